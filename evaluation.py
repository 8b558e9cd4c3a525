"""Score maps + metadata → metrics.

    python evaluation.py --dataset_name CUB --split test --scoremap_root FOLDER     # anybody's saved maps
    python evaluation.py --help

wsolevaluation's names of this module are here, too; wsol/wsolevaluation.py has them.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from config import parse_evaluation_args
from data_loaders import SplitMetadata, check_masks, load_mask, read_split
from wsol import command, reporting
from wsol.cam import Row, ScoreMaps, to_scoremaps
from wsol.datasets.masks import load_mask_image  # noqa: F401  (one of wsolevaluation's names, as those below)
from wsol.dual_head import Output
from wsol.errors import InputError
from wsol.metrics import BoxAccuracy, Fidelity, PixelAveragePrecision, Probe, center_gaussian
from wsol.metrics.boxes import RESOLUTION
from wsol.metrics.fidelity import energy_pointing_game, measure, pointing_game
from wsol.metrics.localization import OF_GT_BOXES
from wsol.metrics.records import MAX_PIXEL_IMAGES
from wsol.per_image import PerImage, RowOutcomes
from wsol.progress import progress
from wsol.run_folder import log, start_log
from wsol.scoremap_files import find_rows, load_scoremap
from wsol.wsolevaluation import (  # noqa: F401
    BoxEvaluator,
    LocalizationEvaluator,
    MaskEvaluator,
    calculate_multiple_iou,
    check_box_convention,
    check_scoremap_validity,
    compute_bboxes_from_scoremaps,
    configure_metadata,
    get_bounding_boxes,
    get_image_ids,
    get_image_sizes,
    get_mask,
    get_mask_paths,
    resize_bbox,
)

_CHUNK = 32  # saved maps of a row that a process reads and measures at a time


class Localization:
    """The metrics that a split's annotation allows, for one row: boxes, masks, or both.

    gt_boxes "first": GT-Loc, Top-1 and Top-5 Loc ask for an image's first ground-truth box, as Dual-CAM's code does;
    MaxBoxAcc (V1, too) asks for any box all the same. record: keep what each image did, for `outcomes`.
    """

    def __init__(
        self,
        metadata: SplitMetadata,
        *,
        interval: float,
        iou_thresholds: Sequence[int],
        loc_threshold: float,
        gt_boxes: str = "any",
        record: bool = False,
    ):
        def box_accuracy():
            return BoxAccuracy(interval, tuple(iou_thresholds), loc_threshold, record=record)

        self.boxes = box_accuracy() if metadata.boxes is not None else None
        self.first_box = box_accuracy() if metadata.boxes is not None and gt_boxes == "first" else None
        self.pixels = PixelAveragePrecision(interval, record=record) if metadata.masks is not None else None
        self.num_degenerate = 0

    def update(
        self,
        maps: np.ndarray,
        boxes: Sequence[np.ndarray] | None,
        masks: np.ndarray | None,
        correct: Mapping[str, np.ndarray],
    ) -> None:
        """Add score maps (B, 224, 224) with their images' boxes and masks; correct: see top_k_correct."""
        if self.boxes is not None:
            self.boxes.update(maps, boxes, **correct)
        if self.first_box is not None:
            self.first_box.update(maps, [of_image[:1] for of_image in boxes], **correct)
        if self.pixels is not None:
            self.pixels.update(maps, masks)

    def update_shared(self, scoremap: np.ndarray, boxes: Sequence[np.ndarray] | None, masks: np.ndarray | None) -> None:
        """Add images that share one score map (224, 224): the centre baseline."""
        if self.boxes is not None:
            self.boxes.update_shared(scoremap, boxes)
        if self.first_box is not None:
            self.first_box.update_shared(scoremap, [of_image[:1] for of_image in boxes])
        if self.pixels is not None:
            self.pixels.update(np.broadcast_to(scoremap, masks.shape), masks)

    def merge(self, other: "Localization") -> None:
        """Add what another one of the same settings has counted."""
        for name in ("boxes", "first_box", "pixels"):
            if getattr(self, name) is not None:
                getattr(self, name).merge(getattr(other, name))
        self.num_degenerate += other.num_degenerate

    def performance(self, multi_contour_eval: bool = True, multi_iou_eval: bool = True) -> float:
        """The one number that wsolevaluation's evaluate_wsol gives, per cent.

        Boxes: the mean over all IoU thresholds of the accuracy at each one's best threshold tau, or with
        multi_iou_eval False that at 50; multi_contour_eval False: of the largest contour alone. Masks alone: PxAP.
        """
        if self.boxes is None:
            return self.pixels.compute()["pxap"]
        curves = self.boxes.curve("multi" if multi_contour_eval else "single")["maxboxacc"]
        return float(np.mean([curve.max() for curve in curves.values()]) if multi_iou_eval else curves[50].max())

    def compute(self, val: "Localization | None" = None) -> dict:
        """Metrics by their keys in results.json (percent); val gives the thresholds of gt_loc_val and top1_loc_val."""
        found = {}
        if self.boxes is not None:
            found |= self.boxes.compute(val.boxes if val is not None else None)
        if self.first_box is not None:
            of_first = self.first_box.compute(val.first_box if val is not None else None)
            for key in [key for key in OF_GT_BOXES if key in of_first]:
                found[key], found["tau"][key] = of_first[key], of_first["tau"][key]
        if self.pixels is not None and self.pixels.has_foreground:
            found |= self.pixels.compute()
        return found

    def outcomes(self, order: Sequence[int], tau: dict) -> RowOutcomes:
        """What each image did, in the given order of updates; tau: the row's thresholds, see `compute`."""
        boxes, first_box = (
            metric.records.outcomes(order) if metric is not None else None for metric in (self.boxes, self.first_box)
        )
        masks = self.pixels is not None and self.pixels.has_foreground
        return RowOutcomes(
            boxes,
            first_box,
            self.pixels.records.histograms(order) if masks else None,
            {key: tau[key] for key in ("gt_loc_val", "top1_loc_val") if key in tau},
        )


class Evaluation:
    """Everything measured on one split: classification, each row's localization, the centre baseline.

    Args:
        metadata: the split.
        rows: methods x heads to expect in every batch.
        interval, iou_thresholds, loc_threshold, gt_boxes: see the flags `--cam_curve_interval`,
            `--iou_threshold_list`, `--loc_threshold`, `--gt_boxes`.
        normalization: how the maps were brought to [0, 1], for the record; None where that is not known.
        keep: indices of images whose maps are kept in `examples` for pictures.
        center: measure the centre baseline, too.
        record: keep what each image did, for `per_image`.
        fidelity: what measures fidelity while the maps are made, for `compute` to report beside the rest.
    """

    def __init__(
        self,
        metadata: SplitMetadata,
        rows: Sequence[Row],
        *,
        interval: float = 0.001,
        iou_thresholds: Sequence[int] = (30, 50, 70),
        loc_threshold: float = 0.2,
        gt_boxes: str = "any",
        normalization: str | None = "minmax",
        keep: Sequence[int] = (),
        center: bool = True,
        record: bool = False,
        fidelity: "FidelityEvaluation | None" = None,
    ):
        self.metadata = metadata
        settings = dict(
            interval=interval,
            iou_thresholds=iou_thresholds,
            loc_threshold=loc_threshold,
            gt_boxes=gt_boxes,
            record=record,
        )
        self.normalization = normalization
        self.rows = {row: Localization(metadata, **settings) for row in rows}
        self.center = Localization(metadata, **settings) if center else None
        self.fidelity = fidelity
        self.keep = set(keep)
        self.examples: dict[int, dict[Row, np.ndarray]] = {}
        self.hits: dict[str, int] = {}
        self.record = record
        self.images: dict[str, list[np.ndarray]] = {}  # of each batch: indices, labels, predictions, top1, top5
        self.num_images = 0
        self.seconds = 0.0

    def update(self, batch: ScoreMaps) -> None:
        """Add a batch of score maps."""
        start = time.perf_counter()
        self.num_images += len(batch.indices)
        correct = top_k_correct(batch.logits, batch.labels) if batch.logits is not None else {}
        for key, values in correct.items():
            self.hits[key] = self.hits.get(key, 0) + int(values.sum())
        if self.record:
            of_batch = {"indices": batch.indices, "labels": batch.labels, "predictions": predicted(batch.logits)}
            for key, values in (of_batch | correct).items():
                self.images.setdefault(key, []).append(np.asarray(values))
        boxes = masks = None
        if self.metadata.boxes is not None:
            boxes = [self.metadata.scaled_boxes(i) for i in batch.indices]
        if self.metadata.masks is not None:
            masks = load_masks(self.metadata, batch.indices)
        if self.center is not None:
            self.center.update_shared(center_gaussian(), boxes, masks)
        for row, measured in self.rows.items():
            measured.num_degenerate += int(batch.degenerate[row].sum())
            measured.update(batch.maps[row], boxes, masks, correct)
        for position, index in enumerate(batch.indices):
            if index in self.keep:
                self.examples[int(index)] = {row: batch.maps[row][position] for row in self.rows}
        self.seconds += time.perf_counter() - start

    def merge(self, other: "Evaluation") -> None:
        """Add what another one of the same rows and settings has counted; its examples stay behind."""
        for row, measured in self.rows.items():
            measured.merge(other.rows[row])
        if self.center is not None:
            self.center.merge(other.center)
        for key, hits in other.hits.items():
            self.hits[key] = self.hits.get(key, 0) + hits
        for key, parts in other.images.items():
            self.images.setdefault(key, []).extend(parts)
        self.num_images += other.num_images
        self.seconds += other.seconds

    def compute(self, val: "Evaluation | None" = None) -> dict:
        """{"num_images", "classification", "rows", "center"} as in results.json."""
        normalized = {} if self.normalization is None else {"normalization": self.normalization}
        rows = [
            {
                "method": row.method,
                "head": row.branch,
                "clamped": row.clamped,
                **normalized,
                "num_degenerate": measured.num_degenerate,
                **measured.compute(val.rows[row] if val else None),
            }
            for row, measured in self.rows.items()
        ]
        if self.fidelity is not None:
            for row, entry in zip(self.rows, rows, strict=True):
                entry["fidelity"] = self.fidelity.rows[row].compute()
        return {
            "num_images": self.num_images,
            "classification": {key: 100 * hits / self.num_images for key, hits in self.hits.items()},
            "rows": rows,
            "center": self.center.compute() if self.center is not None else {},
        }

    def per_image(self, dataset: str, found: dict) -> PerImage:
        """What each image did, in the split's order whatever the order of updates; found: what `compute` returned."""
        if any(measured.pixels is not None and not measured.pixels.records.complete for measured in self.rows.values()):
            log.warning(
                "more than %s images with masks: PxAP gets no interval and no figure for each class",
                f"{MAX_PIXEL_IMAGES:,}",
            )
        images = {key: np.concatenate(parts) for key, parts in self.images.items()}
        indices = images.pop("indices")
        order = np.argsort(indices)
        image_ids = [self.metadata.image_ids[i] for i in indices[order]]
        images = {key: values[order] for key, values in images.items()}
        rows = {
            str(row): measured.outcomes(order, entry.get("tau", {}))
            for (row, measured), entry in zip(self.rows.items(), found["rows"], strict=True)
        }
        return PerImage(
            dataset,
            self.metadata.split,
            image_ids,
            images.pop("labels"),
            images.pop("predictions"),
            images,
            rows,
            self.center.outcomes(order, {}) if self.center is not None else None,
        )


def predicted(logits: Tensor) -> np.ndarray:
    """The class with the highest logit of (B, K): (B,) int64, -1 for an image with a logit that is not finite."""
    finite = torch.isfinite(logits).all(dim=1)
    return torch.where(finite, logits.argmax(dim=1), -1).numpy()


class FidelityEvaluation:
    """Fidelity (wsol/metrics/fidelity.py) of every row of one split, for the class that the softmax head predicts.

    Maps that confidences are measured with are min-maxed at the images' size, interpolated bilinearly; the pointing
    games look at the same at 224 x 224, where the ground truth is: boxes, or masks where there are no boxes.

    Args:
        metadata: the split.
        rows: methods x heads to expect in every batch.
        measures: of wsol.metrics.MEASURES.
        heads: the heads that confidences are read from.
        batch: how many perturbed images exist at a time, at most.
        seed: of ROAD's noise, which depends on it and the image's index alone: it is the same for every row.
    """

    def __init__(
        self,
        metadata: SplitMetadata,
        rows: Sequence[Row],
        measures: Sequence[str],
        heads: Sequence[str],
        *,
        batch: int,
        seed: int = 0,
    ):
        self.metadata, self.measures, self.batch, self.seed = metadata, measures, batch, seed
        self.rows = {row: Fidelity(measures, heads) for row in rows}
        self.seconds = 0.0

    def update(
        self, model: nn.Module, images: Tensor, raw: dict[Row, Tensor], output: Output, indices: np.ndarray
    ) -> None:
        """Add a batch: images on the model's device, the raw maps of the predicted class, the network's output."""
        start = time.perf_counter()
        noise = self._noise(images, indices) if "road" in self.measures else None
        probe = Probe(model, images, output.logits.argmax(dim=1), batch=self.batch, noise=noise, output=output)
        truth = None
        if "pointing" in self.measures:
            truth = [torch.from_numpy(pixels).to(images.device) for pixels in object_pixels(self.metadata, indices)]
        for row, metric in progress(self.rows.items(), "fidelity", "row"):
            maps, _ = to_scoremaps(raw[row], row.method, images.shape[-2:], interpolation="bilinear")
            figures = measure(probe, maps, self.measures)
            if truth is not None:
                inside, ignored = truth
                maps, _ = to_scoremaps(raw[row], row.method, (RESOLUTION, RESOLUTION), interpolation="bilinear")
                maps = maps.masked_fill(ignored, 0)
                figures |= {
                    "pointing": pointing_game(maps, inside),
                    "energy_pointing": energy_pointing_game(maps, inside),
                }
            metric.update(figures)
        self.seconds += time.perf_counter() - start

    def _noise(self, images: Tensor, indices: Sequence[int]) -> Tensor:
        drawn = [
            np.random.default_rng((self.seed, int(index))).standard_normal(images.shape[1:], np.float32)
            for index in indices
        ]
        return torch.from_numpy(np.stack(drawn)).to(images)


def object_pixels(metadata: SplitMetadata, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels on the object and pixels to be ignored, (B, 224, 224) bool each: those in any box, where the split has
    boxes, else those of the masks."""
    if metadata.boxes is None:
        masks = load_masks(metadata, indices)
        return masks == 1, masks == 255
    inside = np.zeros((len(indices), RESOLUTION, RESOLUTION), dtype=bool)
    for pixels, index in zip(inside, indices, strict=True):
        for x0, y0, x1, y1 in metadata.scaled_boxes(index):
            pixels[y0 : y1 + 1, x0 : x1 + 1] = True
    return inside, np.zeros_like(inside)


def top_k_correct(logits: Tensor, labels: np.ndarray) -> dict[str, np.ndarray]:
    """{"top1": (B,) bool, "top5": (B,) bool}: is the label the best, or among the five best, of (B, K) logits?

    With fewer than five classes top5 says nothing and is left out. An image with a logit that is not finite is wrong.
    """
    num_classes = logits.shape[1]
    best = logits.topk(min(5, num_classes), dim=1).indices
    finite = torch.isfinite(logits).all(dim=1, keepdim=True)
    hit = (finite & (best == torch.as_tensor(labels)[:, None])).numpy()
    correct = {"top1": hit[:, 0]}
    if num_classes >= 5:
        correct["top5"] = hit.any(axis=1)
    return correct


def load_masks(metadata: SplitMetadata, indices: Sequence[int]) -> np.ndarray:
    """Masks of some images, (B, 224, 224) uint8, see data_loaders.load_mask; files are decoded by threads."""
    with ThreadPoolExecutor(4) as pool:
        return np.stack(list(pool.map(lambda i: load_mask(metadata.mask_root, metadata.masks[i]), indices)))


# --------------------------------------------------------------------------- saved maps


def read_evaluated_split(metadata_root: str, dataset_name: str, split: str, mask_root: str) -> SplitMetadata:
    """The metadata that metrics need, without images.

    Raises:
        InputError: see read_split; the split has neither boxes nor masks; mask files are missing.
    """
    folder = Path(metadata_root) / dataset_name
    metadata = read_split(folder, split, Path(), Path(mask_root) / dataset_name)
    if metadata.boxes is None and metadata.masks is None:
        raise InputError(
            f"{folder / split} has neither boxes nor masks, so nothing can be measured on this split: "
            "localization.txt is missing or empty"
        )
    check_masks(metadata)
    return metadata


class SavedMaps(Dataset):
    """Chunks of a split's saved maps, each read and measured: item i is an Evaluation of its images alone."""

    def __init__(self, metadata: SplitMetadata, files: Mapping[Row, Sequence[Path]], settings: Mapping):
        self.metadata, self.files, self.settings = metadata, files, settings

    def __len__(self) -> int:
        return -(-len(self.metadata) // _CHUNK)

    def __getitem__(self, index: int) -> Evaluation:
        places = range(index * _CHUNK, min((index + 1) * _CHUNK, len(self.metadata)))
        metadata = self.metadata.subset(places)
        maps = {row: np.stack([load_scoremap(files[place]) for place in places]) for row, files in self.files.items()}
        evaluation = Evaluation(metadata, list(self.files), normalization=None, **self.settings)
        evaluation.update(
            ScoreMaps(
                np.arange(len(metadata)),
                metadata.labels,
                None,
                None,
                maps,
                {row: of_row.min(axis=(1, 2)) == of_row.max(axis=(1, 2)) for row, of_row in maps.items()},
            )
        )
        return evaluation


def evaluate_saved(
    metadata: SplitMetadata, files: Mapping[Row, Sequence[Path]], *, workers: int = 4, **settings
) -> Evaluation:
    """Measure the saved maps of a split, in `workers` processes (0: in this one).

    files: each row's maps in the order of the images, as wsol.scoremap_files.find_rows finds them. settings: those of
    Evaluation: interval, iou_thresholds, loc_threshold, gt_boxes, center. What classification adds is absent. The
    numbers do not depend on `workers`.

    Raises:
        InputError: a file is not a 224 x 224 array in [0, 1].
    """
    chunks = SavedMaps(metadata, files, settings)
    found = Evaluation(metadata, list(files), normalization=None, **settings)
    processes = min(workers, len(os.sched_getaffinity(0)), len(chunks))
    loader = DataLoader(chunks, batch_size=None, num_workers=processes, worker_init_fn=_leave_ctrl_c)
    for chunk in progress(loader, "evaluating", unit="chunk"):
        found.merge(chunk)
    return found


def _leave_ctrl_c(_: int) -> None:
    """Ctrl-C reaches every process of the terminal; this one, a worker, is stopped by its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def evaluate_wsol(
    scoremap_root: str,
    metadata_root: str,
    mask_root: str,
    dataset_name: str,
    split: str,
    multi_contour_eval: bool = True,
    multi_iou_eval: bool = True,
    iou_threshold_list: Sequence[int] = (30, 50, 70),
    cam_curve_interval: float = 0.001,
    workers: int = 4,
) -> float:
    """wsolevaluation's one number for a folder of saved maps, per cent, see Localization.performance.

    Raises InputError, a ValueError: see read_evaluated_split, find_rows, evaluate_saved; the folder holds several rows.
    """
    metadata = read_evaluated_split(metadata_root, dataset_name, split, mask_root)
    files = find_rows(Path(scoremap_root), metadata.image_ids)
    if len(files) > 1:
        raise InputError(f"{scoremap_root} holds the maps of {len(files)} rows; name the folder of one")
    found = evaluate_saved(
        metadata, files, workers=workers, interval=cam_curve_interval, iou_thresholds=iou_threshold_list, center=False
    )
    return next(iter(found.rows.values())).performance(multi_contour_eval, multi_iou_eval)


# --------------------------------------------------------------------------- the command


def main(argv: list[str] | None = None) -> dict:
    """Measure saved maps, print the table, write --out; returns what that holds."""
    args = parse_evaluation_args(argv)
    start_log(keep=False)
    start = time.perf_counter()
    splits = find_saved(args)
    evaluation, val = (
        evaluate_saved(
            *split,
            workers=args.workers,
            interval=args.cam_curve_interval,
            iou_thresholds=args.iou_threshold_list,
            loc_threshold=args.loc_threshold,
            gt_boxes=args.gt_boxes,
        )
        if split
        else None
        for split in splits
    )
    found = evaluation.compute(val)
    for row, measured in zip(found["rows"], evaluation.rows.values(), strict=True):
        row["localization"] = measured.performance(args.multi_contour_eval, args.multi_iou_eval)
    results = {
        "schema": reporting.SCHEMA,
        "dataset": args.dataset_name,
        "split": args.split,
        "num_images": found["num_images"],
        "config": dict(args),
        "versions": reporting.versions(),
        "rows": found["rows"],
        "center": found["center"],
        "seconds": {"evaluation": round(time.perf_counter() - start, 2)},
    }
    print(
        f"{args.dataset_name} {args.split}, {found['num_images']:,} images; thresholds in brackets\n\n"
        f"{reporting.threshold_table(results)}\n"
    )
    for row in results["rows"]:
        print("localization:", row["localization"], *([reporting.row_name(row)] if len(results["rows"]) > 1 else []))
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=2) + "\n")
    return results


def find_saved(args) -> list[tuple[SplitMetadata, dict[Row, list[Path]]] | None]:
    """Metadata and map files of --split and, if its maps are given, of val: all are found before any is measured."""
    splits = []
    for split, root in ((args.split, args.scoremap_root), ("val", args.val_scoremap_root)):
        if root is None:
            splits.append(None)
            continue
        metadata = read_evaluated_split(args.metadata_root, args.dataset_name, split, args.mask_root)
        splits.append((metadata, find_rows(Path(root), metadata.image_ids)))
    if splits[1] is not None:
        wanted, of_val = splits[0][1], splits[1][1]
        if len(wanted) == len(of_val) == 1:  # two folders of maps need not have the same name
            of_val = dict(zip(wanted, of_val.values(), strict=True))
        lacking = [row for row in wanted if row not in of_val]
        if lacking:
            raise InputError(
                f"--val_scoremap_root {args.val_scoremap_root} lacks the maps {lacking[0]}, which --scoremap_root has"
            )
        splits[1] = splits[1][0], {row: of_val[row] for row in wanted}
    return splits


def run_from_shell() -> int:
    """main() with the exit codes of a command."""
    return command.run(main)


if __name__ == "__main__":
    sys.exit(run_from_shell())
