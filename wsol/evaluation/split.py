"""Everything measured on one split: classification, each row's localization, the centre baseline."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from wsol.cam import ScoreMaps, Variant
from wsol.datasets.masks import load_masks
from wsol.datasets.reader import SplitMetadata
from wsol.evaluation.fidelity import FidelityEvaluation
from wsol.evaluation.per_image import PerImage, RowOutcomes
from wsol.log import log
from wsol.metrics import BoxAccuracy, PixelAveragePrecision, center_gaussian
from wsol.metrics.box_metrics import with_gt_boxes
from wsol.metrics.records import MAX_PIXEL_IMAGES


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
            tau = with_gt_boxes(found["tau"], of_first["tau"])
            found = with_gt_boxes(found, of_first) | {"tau": tau}
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
        rows: Sequence[Variant],
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
        self.examples: dict[int, dict[Variant, np.ndarray]] = {}
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
                **row.record,
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
