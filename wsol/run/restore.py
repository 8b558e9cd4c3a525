"""From a checkpoint to a network: the form of its head, its classes, its weights, its branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from wsol.backbones import get_architecture
from wsol.cam import CamExtractor, get_method
from wsol.cam.affinity import Affinity
from wsol.cam.variant import AFFINITY
from wsol.cam.views import View
from wsol.classifier import Classifier
from wsol.dual_head import dualize
from wsol.errors import InputError
from wsol.log import log
from wsol.run.checkpoint import Checkpoint


def resolve_form(
    architecture: str,
    form: str,
    methods: Sequence[str],
    checkpoint: Checkpoint | None,
    default: str | None = None,
    method: str = "cam",
) -> str:
    """The value of `--classifier_form`, with auto resolved.

    auto is cam if the training method has layers for that form; else the checkpoint's own form; else `default`; else
    cam if that is one of the CAM methods; else original.

    Raises:
        InputError: the checkpoint belongs to another architecture, or has another form than the requested one.
    """
    entry = get_architecture(architecture)
    own = None
    if checkpoint is not None:
        checkpoint.check_architecture(architecture)
        own = checkpoint.classifier_form(entry)
        if form not in ("auto", own) and own is not None and entry.has_two_forms:
            raise InputError(
                f"{checkpoint.path} has the {own} form of {architecture}, not the {form} form; "
                f"give --classifier_form {own}, or auto"
            )
    if form != "auto":
        return form
    if method in entry.layouts:
        return "cam"
    form = own or default or ("cam" if "cam" in methods else "original")
    if entry.has_two_forms:
        reason = f"the methods are {','.join(methods)}"
        if checkpoint is not None and own:
            reason = f"{checkpoint.path} has it"
        elif default:
            reason = "its ImageNet weights are of that form"
        log.info("--classifier_form auto: %s in its %s form, because %s", architecture, form, reason)
    return form


def check_network(model: Classifier, methods: Sequence[str], image_size: int) -> None:
    """InputError now, not after training, if the network does not take such images or its head does not allow `cam`."""
    model.check_image_size(image_size)
    needs_linear_head = [method for method in methods if get_method(method).pooled]
    if needs_linear_head:
        with CamExtractor(model, needs_linear_head) as extract:
            extract(torch.zeros(1, 3, image_size, image_size))


def check_map_settings(
    model: Classifier,
    image_size: int,
    refine: Sequence[str],
    affinity_layer: str,
    scales: Sequence[float],
    methods: Sequence[str],
    levels: Sequence[int] | None,
) -> None:
    """InputError now, not after training, if a setting of the maps does not fit the network.

    The guiding layer has no places, the network takes no scaled images, or it has no stage at one of the levels.
    """
    of_levels = [method for method in methods if get_method(method).levels]
    if of_levels and levels is not None:
        with CamExtractor(model, of_levels, levels=levels) as extract:
            extract.level_features(torch.zeros(1, 3, image_size, image_size))
    if AFFINITY in refine:
        affinity = Affinity(affinity_layer)
        with CamExtractor(model, ["gradcam"], refine=[AFFINITY], affinity=affinity) as extract:
            extract(torch.zeros(1, 3, image_size, image_size))
    for scale in scales:
        if scale != 1:
            model.check_image_size(
                View(scale).side(image_size), f"--crop_size {image_size} times {scale:g} of --scales"
            )


def restore(
    model: Classifier,
    checkpoint: Checkpoint,
    *,
    branch: Literal["load", "none", "auto", "ignore"],
    adopt_classes: bool = False,
) -> Classifier:
    """Load a checkpoint into a network that was just built.

    Args:
        branch: the sigmoid branch. "load": the checkpoint must have one; "none": it must not; "auto": loaded if the
            checkpoint has one; "ignore": left out if it has one.
        adopt_classes: the network gets the checkpoint's number of classes; otherwise both must agree.

    Returns:
        The network, with a branch if one was loaded.

    Raises:
        InputError: the checkpoint does not fit; the message says in what respect.
    """
    if adopt_classes:
        num_classes = checkpoint.num_classes(model.head_name)
        if model.num_classes != num_classes:
            model.reset_head(num_classes)
    if branch == "auto":
        branch = "load" if model.finds_branch(checkpoint.tensors) else "none"
    if branch == "load":
        model = dualize(model)
    model.load_published(checkpoint.tensors, checkpoint.path, branch=branch != "ignore")
    return model
