"""Loader + model + CAM methods → score maps; and a command that shows what a network looks at in any picture.

python inference.py photo.jpg --out maps                               # the built-in ImageNet network
python inference.py photos/ --out maps --methods all --class "tabby cat" --save_npy
python inference.py photos/ --out maps --ckpt experiments/run-1/last_checkpoint.pth.tar
python inference.py photo.jpg --out maps --architecture resnet50 --pretrained_path resnet50-0676ba61.pth

For each picture it prints the five most likely classes and writes, under the picture's name, `DIR/grid/` (a comparison
of all maps), `DIR/<method>_<head>[_clamped][_affinity]/` (overlays) and there, with --save_npy, the raw maps: signed
float32 at the target layer's resolution, or at that of the layer that guides the refinement. --explain_channels,
--concepts and --guided_backprop add `DIR/channels/<variant>/`, `DIR/concepts/` and `DIR/guided/`.

The network sees the whole picture squeezed to crop_size x crop_size, as in evaluation; maps are stretched back and
drawn over the picture in its own size and proportions.
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until wsol.run.command listens: end, and print no traceback

from config import DEFAULT_ARCHITECTURE, default_heads, extractor_options, gpu_indices, parse_picture_args, view_options
from wsol.methods import METHODS
from wsol.run import command

if __name__ == "__main__":
    command.check_early(parse_picture_args)  # the imports below take seconds; --help and mistyped flags should not

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.contrib.logging import logging_redirect_tqdm

from data_loaders import Pictures
from wsol import build
from wsol.backbones import get_architecture
from wsol.cam import CamExtractor, ScoreMaps, Variant, to_scoremaps, variants
from wsol.cam.scoremap import Prediction
from wsol.classifier import Classifier
from wsol.datasets.class_names import find_class, imagenet_names, imagenet_synonyms
from wsol.datasets.images import load_picture
from wsol.datasets.pictures import Picture, find_pictures, readable_pictures
from wsol.datasets.registry import dataset_info
from wsol.device import select_device, to_device
from wsol.errors import InputError
from wsol.files import npy_bytes, write_file
from wsol.geometry import RESOLUTION
from wsol.log import log, progress, start_log
from wsol.run import fitted
from wsol.run.checkpoint import Checkpoint
from wsol.run.contact_sheet import contact_sheet
from wsol.run.further_figures import FurtherFigures
from wsol.run.overlay import jpeg_bytes, overlay
from wsol.run.restore import check_map_settings, check_network, resolve_form, restore
from wsol.workers import parallel_loader

TOP = 5  # classes that are printed and drawn


def compute_scoremaps(
    extractor: CamExtractor,
    loader: DataLoader,
    device: torch.device,
    *,
    target: str = "gt",
    normalization: str = "minmax",
    quantile: float | None = None,
    title: str = "maps",
    explain_predictions: bool = False,
) -> Iterator[ScoreMaps]:
    """Score maps of every variant for every image, batch by batch, from one forward pass each.

    Maps are 224 x 224 whatever the input's size: the evaluation's resolution (wsolevaluation).

    Args:
        extractor: made with `heads`, so that the keys of its maps are Variants.
        loader: yields (images (B, 3, H, W), labels, indices).
        target: the class to explain: "gt", the label, or "pred", the softmax head's prediction.
        normalization, quantile: how maps are brought to [0, 1], see wsol.cam.to_scoremaps.
        title: of the progress bar.
        explain_predictions: add the raw maps of the softmax head's predictions, whatever `target` is.
    """
    with extractor as extract:
        for images, labels, indices in progress(loader, title):
            images = to_device(images, device)
            raw = extract(images, labels.to(device) if target == "gt" else None)
            output = extract.output
            sigmoid_logits = output.sigmoid_logits
            prediction = None
            if explain_predictions:
                predicted = raw if target == "pred" else explain_prediction(extract, images, labels.to(device), raw)
                prediction = Prediction(images, predicted, output)
            maps, degenerate = {}, {}
            for variant, raw_maps in raw.items():
                finished, bad = to_scoremaps(
                    raw_maps, variant.method, (RESOLUTION, RESOLUTION), normalization, quantile
                )
                maps[variant], degenerate[variant] = finished.cpu().numpy(), bad.cpu().numpy()
            yield ScoreMaps(
                indices.numpy(),
                labels.numpy(),
                output.logits.float().cpu(),
                None if sigmoid_logits is None else sigmoid_logits.float().cpu(),
                maps,
                degenerate,
                prediction,
            )


def explain_prediction(
    extract: CamExtractor, images: Tensor, labels: Tensor, raw: Mapping[Variant, Tensor]
) -> dict[Variant, Tensor]:
    """Raw maps of the class that the softmax head predicts.

    Args:
        extract: has just made `raw` of these images, the maps of their labels. They are reused where the prediction is
            right.
    """
    predicted = extract.output.logits.argmax(dim=1)
    wrong = (predicted != labels).nonzero()[:, 0]
    if len(wrong) == 0:
        return dict(raw)
    recomputed = extract(images[wrong], predicted[wrong])
    return {variant: maps.index_copy(0, wrong, recomputed[variant]) for variant, maps in raw.items()}


# --------------------------------------------------------------------------- the command: any picture, any network


class Network(NamedTuple):
    """What explains the pictures: a model, the names of its classes, and the methods and heads that it allows."""

    model: Classifier
    architecture: str
    class_names: list[str]
    synonyms: list[list[str]] | None
    methods: list[str]
    fitted: dict[str, Tensor]
    heads: list[str]


class Explanation(NamedTuple):
    """What is drawn of one picture.

    subject: the explained class, in words. classes: (name, probability), most likely first. maps: variant → score map
    in [0, 1]. raw: variant → raw map. degenerate: variants whose map is constant or not finite. further: draws, over
    the decoded picture, a figure for each of further folders.
    """

    picture: Picture
    subject: str
    classes: list[tuple[str, float]]
    maps: Mapping[Variant, NDArray[np.float32]]
    raw: Mapping[Variant, NDArray[np.float32]]
    degenerate: list[Variant]
    further: Callable[[NDArray[np.uint8]], dict[str, NDArray[np.uint8]]] | None


def main(argv: list[str] | None = None) -> None:
    """Find the pictures, build the network, explain; nothing is written before all of them are known to be readable."""
    config = parse_picture_args(argv)
    start_log(config.debug, keep=False)
    out = Path(config.out)
    pictures = find_pictures(config.pictures, out)
    network = build_network(config)
    class_id = None
    if config["class"] is not None:
        class_id = find_class(config["class"], network.class_names, network.synonyms)
    good = readable_pictures(pictures, config.skip_bad_images, config.workers)
    rows = variants(network.methods, network.heads, config.refine, refined_methods=config.refined_methods)
    further = FurtherFigures(config, network.model, network.class_names, rows)
    check_output(out, good, rows, further.folders, config.save_npy, config.override_cache)

    command.when_interrupted(f"the pictures drawn so far are in {out}; start again with --override_cache")
    device = select_device(gpu_indices(config.gpus), config.deterministic)
    network.model.to(device, memory_format=torch.channels_last)
    normalization = get_architecture(network.architecture)
    dataset = Pictures([picture.path for picture in good], config.crop_size, normalization.mean, normalization.std)
    # A single batch would be decoded before worker processes have started.
    loader = parallel_loader(dataset, config.batch_size, config.workers if len(good) > config.batch_size else 0)
    extractor = CamExtractor(
        network.model,
        network.methods,
        heads=network.heads,
        refine=config.refine,
        refined_methods=config.refined_methods,
        fitted={name: weight.to(device) for name, weight in network.fitted.items()},
        **extractor_options(config),
        **view_options(config),
    )
    with logging_redirect_tqdm([log]), ThreadPoolExecutor(max(config.workers, 1)) as pool:
        for batch in explain(extractor, loader, good, device, class_id, network.class_names, further):
            for explanation in batch:
                report(explanation)
            list(
                pool.map(
                    lambda explanation: draw(
                        explanation, network.heads, config.refine, out, config.save_npy, config.colormap
                    ),
                    batch,
                )
            )
    left_out = f", {len(pictures) - len(good)} left out" if len(good) < len(pictures) else ""
    log.info("pictures: %d%s; grids are in %s, overlays beside it", len(good), left_out, out / "grid")


def build_network(config: Any) -> Network:
    """The network with its weights, and what the command line left to the checkpoint and the network.

    Raises:
        InputError: the network, its checkpoint and the requested methods and heads do not fit together.
    """
    checkpoint = Checkpoint("eval", config.ckpt) if config.ckpt else None
    saved = checkpoint.build_settings if checkpoint is not None else {}
    defaults = {
        "architecture": DEFAULT_ARCHITECTURE,
        "wsol_method": "cam",
        "last_layer": "fc",
        "large_feature_map": False,
    } | saved
    chosen = {key: default if config.get(key) is None else config[key] for key, default in defaults.items()}
    architecture = chosen["architecture"]
    method = chosen["wsol_method"]
    form = resolve_form(
        architecture,
        config.classifier_form,
        config.methods,
        checkpoint,
        default=None if checkpoint else "original",
        method=method,
    )
    pretrained = checkpoint is None and config.pretrained
    model = build(
        architecture,
        pretrained=pretrained,
        pretrained_path=config.pretrained_path,
        classifier_form=form,
        last_layer=chosen["last_layer"],
        large_feature_map=chosen["large_feature_map"],
        image_size=config.crop_size,
        method=METHODS[method](config),
    )
    if checkpoint is not None:
        model = restore(model, checkpoint, branch="auto", adopt_classes=True)
    elif pretrained and model.head_is_new:
        raise InputError(
            f"the head of {architecture} in this form has no ImageNet weights; give --ckpt, or --classifier_form "
            "original, or try the network with random weights: --pretrained FALSE"
        )
    heads = config.heads or default_heads(model.sigmoid_head is not None)
    branch_head = next((head for head in heads if head.startswith("sigmoid")), None)
    if branch_head and model.sigmoid_head is None:
        raise InputError(
            f"--heads {branch_head} needs a sigmoid branch, and {config.ckpt or 'the ImageNet network'} has none; give "
            "the --ckpt of a b2 run"
        )
    of_run = find_fitted(config, model) if checkpoint is not None else {}
    methods = usable_methods(model, config, of_run)
    check_map_settings(
        model, config.crop_size, config.refine, config.affinity_layer, config.scales, methods, config.cam_levels
    )
    return Network(model, architecture, *class_names(model, checkpoint), methods, of_run, heads)


def find_fitted(config: Any, model: Classifier) -> dict[str, Tensor]:
    """What methods were fitted to, in the folder of the checkpoint; those that are not asked for are left alone.

    Takes over the levels of the fit.
    """
    if not any(map(fitted.is_fitted, config.methods)):
        return {}
    folder = Path(config.ckpt).parent
    kept = fitted.load(folder)
    if kept is None:
        return {}
    if not kept.fits(model):
        raise InputError(f"{folder / fitted.FILE} was fitted to other features than those of {config.ckpt}")
    if config.cam_levels is None:
        config.cam_levels = kept.settings.get("cam_levels")
    return {fitted.NAME: kept.fitted.weight}


def usable_methods(model: Classifier, config: Any, of_run: Mapping[str, Tensor]) -> list[str]:
    """The requested methods; if none was requested by name, those that this network's head allows.

    of_run: the methods that were fitted to its training images.
    """
    unfitted = [name for name in config.methods if fitted.is_fitted(name) and name not in of_run]
    if config.methods_were_chosen:
        if unfitted:
            raise InputError(
                f"{unfitted[0]} is fitted to training images; give the --ckpt of a run of main.py with --methods "
                f"{unfitted[0]}, whose folder has {fitted.FILE}"
            )
        check_network(model, config.methods, config.crop_size)
        return config.methods
    model.check_image_size(config.crop_size)
    usable = []
    for method in config.methods:
        if method in unfitted:
            log.info("%s is left out: it is fitted to training images, which main.py does", method)
            continue
        try:
            check_network(model, [method], config.crop_size)
            usable.append(method)
        except InputError as error:
            log.info("%s is left out: %s", method, error)
    return usable


def class_names(model: Classifier, checkpoint: Checkpoint | None) -> tuple[list[str], list[list[str]] | None]:
    """Names of the network's classes, and synonyms if they are ImageNet's.

    A checkpoint of 1000 classes that does not name its data set is taken for one of ILSVRC.
    """
    trained_on = "ILSVRC" if checkpoint is None else checkpoint.content.get("dataset_name", "ILSVRC")
    if model.num_classes == len(imagenet_names()) and dataset_info(trained_on).imagenet:
        return imagenet_names(), imagenet_synonyms()
    if checkpoint is None:
        return [f"class {k}" for k in range(model.num_classes)], None
    return checkpoint.class_names(model.head_name, []), None


def check_output(
    out: Path,
    pictures: Sequence[Picture],
    rows: Sequence[Variant],
    further: Sequence[str],
    save_raw: bool,
    override: bool,
) -> None:
    """InputError if `out` cannot be a folder, or if a file to be written exists and may not be replaced."""
    above = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not above.is_dir():
        raise InputError(f"--out {out}: {above} is a file, not a folder")
    for picture in () if override else pictures:
        more = [further_path(out, picture, folder) for folder in further]
        for path in [*output_paths(out, picture, rows, save_raw), *more]:
            if path.exists():
                raise InputError(
                    f"{path} exists; replace the files of an earlier call with --override_cache, or choose another "
                    "--out"
                )


def output_paths(out: Path, picture: Picture, rows: Sequence[Variant], save_raw: bool) -> list[Path]:
    """The files of one picture: the grid, then each variant's overlay, then each variant's raw map."""
    images = [out / folder / f"{picture.stem}.jpg" for folder in ("grid", *map(str, rows))]
    return images + [out / str(variant) / f"{picture.stem}.npy" for variant in rows if save_raw]


def further_path(out: Path, picture: Picture, folder: str) -> Path:
    """The file of a further figure."""
    return out / folder / f"{picture.stem}.jpg"


def explain(
    extractor: CamExtractor,
    loader: DataLoader,
    pictures: Sequence[Picture],
    device: torch.device,
    class_id: int | None,
    names: Sequence[str],
    further: FurtherFigures,
) -> Iterator[list[Explanation]]:
    """Explanations, batch by batch, from one forward pass each.

    Args:
        loader: yields (images (B, 3, H, W), indices into pictures).
        class_id: the class to explain; None: the softmax head's prediction.
        names: of all classes.
        further: what else is drawn.
    """
    with extractor as extract:
        for images, indices in progress(loader, "pictures"):
            class_ids = None if class_id is None else torch.full((len(images),), class_id)
            images = to_device(images, device)
            raw = extract(images, class_ids)
            probabilities, ranked = extract.output.logits.float().cpu().softmax(dim=1).sort(dim=1, descending=True)
            size = tuple(images.shape[-2:])
            finished = {variant: to_scoremaps(maps, variant.method, size) for variant, maps in raw.items()}
            on_cpu = {variant: maps.cpu().numpy() for variant, maps in raw.items()}
            scoremaps = {variant: maps.cpu().numpy() for variant, (maps, _) in finished.items()}
            degenerate = {variant: bad.cpu().numpy() for variant, (_, bad) in finished.items()}
            subjects = [_subject(of_picture, class_id, names) for of_picture in ranked]
            explained = ranked[:, 0] if class_ids is None else class_ids
            draw_further = further.of(extract, images, explained.to(device)) if further.folders else None
            yield [
                Explanation(
                    pictures[index],
                    subjects[i],
                    [(names[k], float(p)) for k, p in zip(ranked[i, :TOP], probabilities[i, :TOP], strict=True)],
                    {variant: maps[i] for variant, maps in scoremaps.items()},
                    {variant: maps[i] for variant, maps in on_cpu.items()},
                    [variant for variant, bad in degenerate.items() if bad[i]],
                    None
                    if draw_further is None
                    else partial(
                        draw_further,
                        i,
                        pictures[index],
                        subjects[i],
                        {variant: maps[i] for variant, maps in scoremaps.items()},
                    ),
                )
                for i, index in enumerate(indices.tolist())
            ]


def _subject(ranked: Tensor, class_id: int | None, names: Sequence[str]) -> str:
    if class_id is None:
        return f"{names[ranked[0]]}, the most likely class"
    rank = int((ranked == class_id).nonzero()) + 1
    return f"{names[class_id]}, number {rank} of {len(names)} classes"


def report(explanation: Explanation) -> None:
    """Log the most likely classes of a picture."""
    log.info("%s: maps of %s", explanation.picture.path, explanation.subject)
    for name, probability in explanation.classes:
        log.info("    %5.1f %%  %s", 100 * probability, name)
    if explanation.degenerate:
        labels = ", ".join(variant.label for variant in explanation.degenerate)
        log.warning("    no map, because it is constant or not finite: %s", labels)


def draw(
    explanation: Explanation, heads: Sequence[str], refine: Sequence[str], out: Path, save_raw: bool, colormap: str
) -> None:
    """Write a picture's grid, its overlays, its further figures and, with `save_raw`, its raw maps.

    The file is decoded again here: a batch of large photographs would not fit into memory.
    """
    image = np.asarray(load_picture(explanation.picture.path))
    rows = list(explanation.maps)
    grid, *others = output_paths(out, explanation.picture, rows, save_raw)
    title = f"Maps of {explanation.subject}: {explanation.picture.path.name}"
    sheet = contact_sheet(
        image, title, explanation.classes, explanation.maps, heads, explanation.degenerate, refine, colormap
    )
    write_file(grid, jpeg_bytes(sheet))
    for variant, path in zip(rows, others[: len(rows)], strict=True):
        write_file(path, jpeg_bytes(overlay(image, explanation.maps[variant], colormap)))
    for variant, path in zip(rows, others[len(rows) :], strict=False):
        write_file(path, npy_bytes(explanation.raw[variant]))
    for folder, figure in (explanation.further(image) if explanation.further is not None else {}).items():
        write_file(further_path(out, explanation.picture, folder), jpeg_bytes(figure))


def run_from_shell() -> int:
    """main() with the exit codes of a command."""
    return command.run(main)


if __name__ == "__main__":
    sys.exit(run_from_shell())
