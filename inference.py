"""Loader + model + CAM methods → score maps; and a command that shows what a network looks at in any picture.

    python inference.py photo.jpg --out maps                               # the embedded ImageNet network
    python inference.py photos/ --out maps --methods all --class "tabby cat" --save_npy
    python inference.py photos/ --out maps --ckpt experiments/run-1/last_checkpoint.pth.tar
    python inference.py photo.jpg --out maps --architecture resnet50 --pretrained_path resnet50-0676ba61.pth

For each picture it prints the five likeliest classes and writes, under the picture's name,
`DIR/grid/` (a comparison of all maps), `DIR/<method>_<head>[_clamped]/` (overlays) and there, with --save_npy, the raw
maps: signed float32 at the target layer's resolution.

The network sees the whole picture squeezed to crop_size x crop_size, as in evaluation, which any network takes; maps
are stretched back and drawn over the picture in its own size and proportions.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.contrib.logging import logging_redirect_tqdm

from config import DEFAULT_ARCHITECTURE, default_heads, gpu_indices, parse_picture_args
from data_loaders import Pictures
from wsol import build
from wsol.backbones import get_architecture
from wsol.cam import CamExtractor, ScoreMaps, Variant, to_scoremaps, variants
from wsol.classifier import Classifier, Output
from wsol.datasets.class_names import find_class, imagenet_names, imagenet_synonyms
from wsol.datasets.images import load_picture
from wsol.datasets.pictures import Picture, find_pictures, readable_pictures
from wsol.datasets.registry import dataset_info
from wsol.device import select_device, to_device
from wsol.errors import InputError
from wsol.files import write_file
from wsol.geometry import RESOLUTION
from wsol.log import log, progress, start_log
from wsol.run import checkpoint, command, figures
from wsol.run.restore import restore, settle_form, try_out

TOP = 5  # classes that are printed and drawn

# What compute_scoremaps calls on each batch: model, images on its device, raw maps of the predicted class, both heads'
# output, indices.
OnPrediction = Callable[[Classifier, Tensor, dict[Variant, Tensor], Output, np.ndarray], None]


def compute_scoremaps(
    extractor: CamExtractor,
    loader: DataLoader,
    device: torch.device,
    *,
    target: str = "gt",
    normalization: str = "minmax",
    quantile: float | None = None,
    title: str = "maps",
    on_prediction: OnPrediction | None = None,
) -> Iterator[ScoreMaps]:
    """Score maps of every row (method x head) for every image, batch by batch, from one forward pass each.

    Args:
        extractor: of a Classifier, with the heads named (keys of its maps are rows).
        loader: gives (images (B, 3, H, W), labels, indices).
        target: the class explained: "gt", the label, or "pred", the softmax head's choice.
        normalization, quantile: how maps are brought to [0, 1], see wsol.cam.to_scoremaps.
        on_prediction: called on each batch with the raw maps of the softmax head's choice, whatever `target` is.

    Maps are 224 x 224 whatever the input's size: the evaluation's resolution (wsolevaluation).
    """
    with extractor as extract:
        for images, labels, indices in progress(loader, title):
            images = to_device(images, device)
            raw = extract(images, labels.to(device) if target == "gt" else None)
            logits, sigmoid_logits = output = extract.output
            if on_prediction is not None:
                of_prediction = raw if target == "pred" else explain_prediction(extract, images, labels.to(device), raw)
                on_prediction(extract.model, images, of_prediction, output, indices.numpy())
            finished = {
                row: to_scoremaps(maps, row.method, (RESOLUTION, RESOLUTION), normalization, quantile)
                for row, maps in raw.items()
            }
            yield ScoreMaps(
                indices.numpy(),
                labels.numpy(),
                logits.float().cpu(),
                None if sigmoid_logits is None else sigmoid_logits.float().cpu(),
                {row: maps.cpu().numpy() for row, (maps, _) in finished.items()},
                {row: bad.cpu().numpy() for row, (_, bad) in finished.items()},
            )


def explain_prediction(
    extract: CamExtractor, images: Tensor, labels: Tensor, raw: dict[Variant, Tensor]
) -> dict[Variant, Tensor]:
    """Raw maps of the class that the softmax head predicts: `raw`, those of the labels, where it is right, and new ones
    elsewhere. `extract` has just made `raw`."""
    predicted = extract.output.logits.argmax(dim=1)
    wrong = (predicted != labels).nonzero()[:, 0]
    if len(wrong) == 0:
        return raw
    fresh = extract(images[wrong], predicted[wrong])
    return {row: maps.index_copy(0, wrong, fresh[row]) for row, maps in raw.items()}


def save_scoremaps(batch: ScoreMaps, names: Sequence[str], folder: Path) -> None:
    """Write `<folder>/<method>_<head>[_clamped]/<name>`, the very float32 arrays that are evaluated."""
    for row, maps in batch.maps.items():
        for index, scoremap in zip(batch.indices, maps, strict=True):
            write_file(folder / str(row) / names[index], npy(scoremap))


def npy(array: np.ndarray) -> bytes:
    """What np.save writes; written by itself to a full disk it raises an error that does not say so."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def jpeg(pixels: np.ndarray) -> bytes:
    """An (H, W, 3) uint8 RGB image as a JPEG file with colours at full resolution."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "jpeg", quality=90, subsampling=0)
    return content.getvalue()


# --------------------------------------------------------------------------- the command: any picture, any network


class Explanation(NamedTuple):
    """What is drawn of one picture.

    subject: the class explained, in words; classes: (name, probability), likeliest first; maps: row → score map in
    [0, 1]; raw: row → raw map; silent: rows whose map is constant or not finite.
    """

    picture: Picture
    subject: str
    classes: list[tuple[str, float]]
    maps: Mapping[Variant, np.ndarray]
    raw: Mapping[Variant, np.ndarray]
    silent: list[Variant]


def main(argv: list[str] | None = None) -> None:
    """Find the pictures, build the network, explain; nothing is written before all of them are known to be good."""
    config = parse_picture_args(argv)
    start_log(config.debug, keep=False)
    out = Path(config.out)
    pictures = find_pictures(config.pictures, out)
    saved = checkpoint.Checkpoint("eval", config.ckpt) if config.ckpt else None
    model = build_model(config, saved)
    names, synonyms = class_names(model, saved)
    class_id = None if config.wanted_class is None else find_class(config.wanted_class, names, synonyms)
    good = readable_pictures(pictures, config.skip_bad_images, config.workers)
    check_free(out, good, variants(config.methods, config.heads), config.save_npy, config.override_cache)

    device = select_device(gpu_indices(config.gpus))
    facts = get_architecture(config.architecture)
    dataset = Pictures([picture.path for picture in good], config.crop_size, facts.mean, facts.std)
    loader = DataLoader(dataset, config.batch_size, num_workers=workers_for(len(good), config))
    model = model.to(device, memory_format=torch.channels_last)
    with logging_redirect_tqdm([log]), ThreadPoolExecutor(max(config.workers, 1)) as pool:
        for batch in explain(
            model,
            loader,
            good,
            config.methods,
            config.heads,
            device,
            class_id,
            names,
            perturb_batch=config.perturb_batch,
            alpha=config.alpha,
        ):
            for explanation in batch:
                report(explanation)
            list(pool.map(lambda explanation: draw(explanation, config.heads, out, config.save_npy), batch))
    left_out = f", {len(pictures) - len(good)} left out" if len(good) < len(pictures) else ""
    log.info("pictures: %d%s; grids are in %s, overlays beside it", len(good), left_out, out / "grid")


def check_free(out: Path, pictures: Sequence[Picture], wanted: Sequence[Variant], raw: bool, override: bool) -> None:
    """InputError if `out` is no folder, or if a file that will be written is there and may not be replaced."""
    above = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not above.is_dir():
        raise InputError(f"--out {out}: {above} is a file, not a folder")
    for picture in () if override else pictures:
        for path in paths_of(out, picture, wanted, raw):
            if path.exists():
                raise InputError(
                    f"{path} exists; replace what an earlier call wrote with --override_cache, or choose another --out"
                )


def paths_of(out: Path, picture: Picture, wanted: Sequence[Variant], raw: bool) -> list[Path]:
    """The files that are written for one picture: the grid, then each row's overlay, then the raw maps."""
    return [
        out / folder / f"{picture.stem}{suffix}"
        for suffix, folders in ((".jpg", ["grid", *map(str, wanted)]), (".npy", map(str, wanted if raw else ())))
        for folder in folders
    ]


def build_model(config, saved: checkpoint.Checkpoint | None) -> Classifier:
    """The network with its weights; fills in what the command line left to the checkpoint and the network.

    Raises:
        InputError: the network, its checkpoint and what is asked of them do not fit together.
    """
    facts = saved.build_settings if saved is not None else {}
    for key, default in (("architecture", DEFAULT_ARCHITECTURE), ("last_layer", "fc"), ("large_feature_map", False)):
        if config[key] is None:
            config[key] = facts.get(key, default)
    config.classifier_form = settle_form(
        config.architecture,
        config.classifier_form,
        config.methods,
        saved,
        otherwise="original" if saved is None else None,
    )
    model = build(
        config.architecture,
        pretrained=saved is None,
        pretrained_path=config.pretrained_path,
        classifier_form=config.classifier_form,
        last_layer=config.last_layer,
        large_feature_map=config.large_feature_map,
        image_size=config.crop_size,
    )
    if saved is not None:
        model = restore(model, saved, dual=model.finds_branch(saved.tensors))
    elif model.head_is_new:
        raise InputError(
            f"there are no ImageNet weights for the head of {config.architecture} as asked for; give "
            "--ckpt, or --classifier_form original"
        )
    config.heads = config.heads or default_heads(model.sigmoid_head is not None)
    needs_branch = next((head for head in config.heads if head.startswith("sigmoid")), None)
    if needs_branch and model.sigmoid_head is None:
        raise InputError(
            f"--heads {needs_branch} needs a sigmoid branch, and {config.ckpt or 'the ImageNet network'} "
            "has none; give the --ckpt of a b2 run"
        )
    config.methods = methods_for(model, config)
    return model


def methods_for(model: Classifier, config) -> list[str]:
    """The methods asked for; where none was asked for by name, those that this network's head allows."""
    if config.own_choice:
        try_out(model, config.methods, config.crop_size)
        return config.methods
    model.check_image_size(config.crop_size)
    usable = []
    for method in config.methods:
        try:
            try_out(model, [method], config.crop_size)
            usable.append(method)
        except InputError as error:
            log.info("%s is left out: %s", method, error)
    return usable


def class_names(model: Classifier, saved: checkpoint.Checkpoint | None) -> tuple[list[str], list[list[str]] | None]:
    """Names of the network's classes, and synonyms where they are ImageNet's.

    A checkpoint of 1000 classes that does not name its data set is taken for one of ILSVRC.
    """
    trained_on = "ILSVRC" if saved is None else saved.content.get("dataset_name", "ILSVRC")
    if model.num_classes == len(imagenet_names()) and dataset_info(trained_on).imagenet:
        return imagenet_names(), imagenet_synonyms()
    return saved.class_names(model.head_name, []), None


def workers_for(pictures: int, config) -> int:
    """Processes that decode; none for a single batch, which would be done before they have started."""
    return min(config.workers, len(os.sched_getaffinity(0))) if pictures > config.batch_size else 0


def explain(
    model: Classifier,
    loader: DataLoader,
    pictures: Sequence[Picture],
    methods: Sequence[str],
    heads: Sequence[str],
    device: torch.device,
    class_id: int | None,
    names: Sequence[str],
    **settings,
) -> Iterator[list[Explanation]]:
    """Explanations, batch by batch, from one forward pass each.

    Args:
        loader: gives (images (B, 3, H, W), indices into pictures).
        class_id: the class explained; None: the softmax head's prediction.
        settings: perturb_batch and alpha of CamExtractor.
    """
    with CamExtractor(model, methods, heads=heads, **settings) as extract:
        for images, indices in progress(loader, "pictures"):
            raw = extract(to_device(images, device), None if class_id is None else torch.full((len(images),), class_id))
            finished = {row: to_scoremaps(maps, row.method, tuple(images.shape[-2:])) for row, maps in raw.items()}
            scores, ranked = extract.output.logits.float().cpu().softmax(dim=1).sort(dim=1, descending=True)
            raw = {row: maps.cpu().numpy() for row, maps in raw.items()}
            maps = {row: found.cpu().numpy() for row, (found, _) in finished.items()}
            silent = {row: bad.cpu().numpy() for row, (_, bad) in finished.items()}
            yield [
                Explanation(
                    pictures[index],
                    _subject(ranked[i], class_id, names),
                    [(names[k], float(p)) for k, p in zip(ranked[i, :TOP], scores[i, :TOP], strict=True)],
                    {row: found[i] for row, found in maps.items()},
                    {row: found[i] for row, found in raw.items()},
                    [row for row, bad in silent.items() if bad[i]],
                )
                for i, index in enumerate(indices.tolist())
            ]


def _subject(ranked: torch.Tensor, class_id: int | None, names: Sequence[str]) -> str:
    if class_id is None:
        return f"{names[ranked[0]]}, the likeliest class"
    place = int((ranked == class_id).nonzero()) + 1
    return f"{names[class_id]}, number {place} of {len(names)} classes"


def report(explanation: Explanation) -> None:
    """Print what the network takes a picture for."""
    log.info("%s: maps of %s", explanation.picture.path, explanation.subject)
    for name, probability in explanation.classes:
        log.info("    %5.1f %%  %s", 100 * probability, name)
    if explanation.silent:
        log.warning("    no map, as it is constant or not finite: %s", ", ".join(map(str, explanation.silent)))


def draw(explanation: Explanation, heads: Sequence[str], out: Path, raw: bool) -> None:
    """Write a picture's grid, overlays and, with `raw`, its raw maps. The file is decoded anew: a batch of large
    photographs would not fit into memory."""
    image = np.asarray(load_picture(explanation.picture.path))
    wanted = list(explanation.maps)
    grid, *others = paths_of(out, explanation.picture, wanted, raw)
    heading = f"Maps of {explanation.subject}: {explanation.picture.path.name}"
    write_file(
        grid,
        jpeg(figures.contact_sheet(image, heading, explanation.classes, explanation.maps, heads, explanation.silent)),
    )
    for row, path in zip(wanted, others[: len(wanted)], strict=True):
        write_file(path, jpeg(figures.overlay(image, explanation.maps[row])))
    for row, path in zip(wanted, others[len(wanted) :], strict=False):
        write_file(path, npy(explanation.raw[row]))


def run_from_shell() -> int:
    """main() with the exit codes of a command."""
    return command.run(main)


if __name__ == "__main__":
    sys.exit(run_from_shell())
