"""A network as a checkpoint left it: the form of its head, its number of classes, its branch."""

import torch

from wsol.backbones import get_architecture
from wsol.cam import CamExtractor, get_method
from wsol.classifier import Classifier
from wsol.dual_head import dualize
from wsol.errors import InputError
from wsol.log import log
from wsol.run.checkpoint import Checkpoint


def settle_form(
    architecture: str, form: str, methods: list[str], saved: Checkpoint | None, otherwise: str | None = None
) -> str:
    """--classifier_form auto: what the checkpoint holds, else `otherwise`, else cam if that is a method, else original.

    Raises:
        InputError: the checkpoint is of another architecture, or holds another form than the one asked for.
    """
    entry = get_architecture(architecture)
    held = None
    if saved is not None:
        saved.check_architecture(architecture)
        held = saved.classifier_form(entry)
    if form == "auto":
        form = held or otherwise or ("cam" if "cam" in methods else "original")
        if entry.has_two_forms:
            why = (
                f"{saved.path} holds it"
                if held
                else "its ImageNet weights are of that form"
                if otherwise
                else f"the methods are {','.join(methods)}"
            )
            log.info("--classifier_form auto: %s has its %s form, as %s", architecture, form, why)
    elif entry.has_two_forms and held not in (None, form):
        raise InputError(
            f"{saved.path} holds the {held} form of {architecture}, not the {form} form; "
            f"give --classifier_form {held}, or auto"
        )
    return form


def try_out(model: Classifier, methods: list[str], image_size: int) -> None:
    """InputError now, not later, if the network does not take such images or its head gives no `cam`."""
    model.check_image_size(image_size)
    of_weights = [method for method in methods if get_method(method).pooled]
    if of_weights:
        with CamExtractor(model, of_weights) as extract:
            extract(torch.zeros(1, 3, image_size, image_size))


def restore(model: Classifier, saved: Checkpoint, dual: bool) -> Classifier:
    """Load a checkpoint into a network just built: its classes, its weights, and (`dual`) its sigmoid branch.

    Raises:
        InputError: the checkpoint does not fit, or has a branch where `dual` says that it has none, or the reverse.
    """
    num_classes = saved.num_classes(model.head_name)
    if model.num_classes != num_classes:
        model.reset_head(num_classes)
    if dual:
        model = dualize(model)
    model.load_published(saved.tensors, saved.path)
    return model
