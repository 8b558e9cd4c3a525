"""Everything measured on one split: classification, the localization of each variant, the centre baseline."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsol import distributed
from wsol.cam import ScoreMaps, Variant
from wsol.datasets.reader import SplitMetadata
from wsol.evaluation.ground_truth import GroundTruth
from wsol.evaluation.per_image import PerImage, RowOutcomes
from wsol.log import log
from wsol.metrics import BoxAccuracy, PixelAveragePrecision, center_gaussian
from wsol.metrics.box_metrics import V1_IOU, with_gt_boxes
from wsol.metrics.records import MAX_PIXEL_IMAGES


class Localization:
    """The localization metrics that a split's annotation allows, for one variant: of boxes, of masks, or of both.

    Args:
        metadata: the split.
        interval, iou_thresholds, loc_threshold: see BoxAccuracy.
        gt_boxes: "first": GT-Loc, Top-1 and Top-5 Loc use an image's first ground-truth box only, as Dual-CAM's code
            does. MaxBoxAcc (V1, too) uses any box all the same.
        judged_by: (multi_contour_eval, multi_iou_eval), which make the figure `localization`; see `performance`.
        record: keep what happened to each image, for `outcomes`.
    """

    def __init__(
        self,
        metadata: SplitMetadata,
        *,
        interval: float,
        iou_thresholds: Sequence[int],
        loc_threshold: float,
        gt_boxes: str = "any",
        judged_by: tuple[bool, bool] = (True, True),
        record: bool = False,
    ):
        def box_accuracy() -> BoxAccuracy:
            return BoxAccuracy(interval, tuple(iou_thresholds), loc_threshold, record=record)

        self.boxes = box_accuracy() if metadata.boxes is not None else None
        self.first_box = box_accuracy() if metadata.boxes is not None and gt_boxes == "first" else None
        self.pixels = PixelAveragePrecision(interval, record=record) if metadata.masks is not None else None
        self.judged_by = judged_by
        self.num_degenerate = 0

    def update(self, maps: NDArray[np.floating], truth: GroundTruth, correct: Mapping[str, NDArray[np.bool_]]) -> None:
        """Add score maps (B, 224, 224) with the ground truth of their images; correct: see `top_k_correct`."""
        if self.boxes is not None and truth.boxes is not None:
            self.boxes.update(maps, truth.boxes, **correct)
            if self.first_box is not None:
                self.first_box.update(maps, [boxes[:1] for boxes in truth.boxes], **correct)
        if self.pixels is not None and truth.masks is not None:
            self.pixels.update(maps, truth.masks)

    def update_shared(self, scoremap: NDArray[np.floating], truth: GroundTruth) -> None:
        """Add images that share one score map (224, 224), as the centre baseline does."""
        if self.boxes is not None and truth.boxes is not None:
            self.boxes.update_shared(scoremap, truth.boxes)
            if self.first_box is not None:
                self.first_box.update_shared(scoremap, [boxes[:1] for boxes in truth.boxes])
        if self.pixels is not None and truth.masks is not None:
            self.pixels.update(np.broadcast_to(scoremap, truth.masks.shape), truth.masks)

    def merge(self, other: Localization) -> None:
        """Add the counts of another one with the same settings."""
        for name in ("boxes", "first_box", "pixels"):
            if getattr(self, name) is not None:
                getattr(self, name).merge(getattr(other, name))
        self.num_degenerate += other.num_degenerate

    def performance(self) -> float:
        """The one number, in percent, that wsolevaluation's evaluate_wsol returns, by `judged_by`.

        Boxes: the accuracy at the best threshold tau of all contours' boxes or of the largest one's, averaged over the
        IoU thresholds or at 50. Masks alone: PxAP.
        """
        if self.boxes is not None:
            multi_contour, multi_iou = self.judged_by
            contours, deltas = "multi" if multi_contour else "single", None if multi_iou else [V1_IOU]
            curves = self.boxes.curve(contours, deltas)["maxboxacc"].values()
            return float(np.mean([curve.max() for curve in curves]))
        assert self.pixels is not None, "an evaluated split has boxes or masks"
        return self.pixels.compute()["pxap"]

    def compute(self, val: Localization | None = None) -> dict[str, Any]:
        """The metrics in percent, keys as in results.json; val gives the thresholds of gt_loc_val and top1_loc_val."""
        metrics: dict[str, Any] = {}
        if self.boxes is not None:
            metrics |= self.boxes.compute(val.boxes if val is not None else None)
        if self.first_box is not None:
            of_first = self.first_box.compute(val.first_box if val is not None else None)
            tau = with_gt_boxes(metrics["tau"], of_first["tau"])
            metrics = with_gt_boxes(metrics, of_first) | {"tau": tau}
        if self.pixels is not None and self.pixels.has_foreground:
            metrics |= self.pixels.compute()
        return metrics and {"localization": self.performance()} | metrics

    def outcomes(self, order: NDArray[np.int64], tau: Mapping[str, Any]) -> RowOutcomes:
        """What happened to each image.

        Args:
            order: the images to return, as positions in the order of updates.
            tau: the thresholds of this variant's row, see `compute`.
        """
        boxes, first_box = (
            metric.records.outcomes(order) if metric is not None and metric.records is not None else None
            for metric in (self.boxes, self.first_box)
        )
        histograms = None
        if self.pixels is not None and self.pixels.records is not None and self.pixels.has_foreground:
            histograms = self.pixels.records.histograms(order)
        val_taus = {key: tau[key] for key in ("gt_loc_val", "top1_loc_val") if key in tau}
        return RowOutcomes(boxes, first_box, histograms, val_taus)


class Evaluation:
    """Everything measured on one split: classification, the localization of each variant, the centre baseline.

    Args:
        metadata: the split.
        variants: those to expect in every batch.
        interval, iou_thresholds, loc_threshold, gt_boxes: see the flags `--cam_curve_interval`,
            `--iou_threshold_list`, `--loc_threshold`, `--gt_boxes`.
        judged_by: see Localization.
        keep: indices of images whose maps are kept in `examples`, for figures.
        center: measure the centre baseline as well.
        record: keep what happened to each image, for `per_image`.
    """

    def __init__(
        self,
        metadata: SplitMetadata,
        variants: Sequence[Variant],
        *,
        interval: float = 0.001,
        iou_thresholds: Sequence[int] = (30, 50, 70),
        loc_threshold: float = 0.2,
        gt_boxes: str = "any",
        judged_by: tuple[bool, bool] = (True, True),
        keep: Sequence[int] = (),
        center: bool = True,
        record: bool = False,
    ):
        def localization() -> Localization:
            return Localization(
                metadata,
                interval=interval,
                iou_thresholds=iou_thresholds,
                loc_threshold=loc_threshold,
                gt_boxes=gt_boxes,
                judged_by=judged_by,
                record=record,
            )

        self.metadata = metadata
        self.rows = {variant: localization() for variant in variants}
        self.center = localization() if center else None
        self.keep = set(keep)
        self.examples: dict[int, dict[Variant, NDArray[np.float32]]] = {}
        self.num_correct: dict[str, int] = {}
        self.num_correct_sigmoid: dict[str, int] = {}
        self.record = record
        # What `per_image` reports of each batch: indices, labels, predictions, top1, top5.
        self.images: dict[str, list[NDArray]] = {}
        self.num_images = 0
        self.seconds = 0.0

    def update(self, batch: ScoreMaps, truth: GroundTruth) -> None:
        """Add a batch of score maps with the ground truth of its images."""
        start = time.perf_counter()
        self.num_images += len(batch.indices)
        correct: dict[str, NDArray[np.bool_]] = {}
        if batch.logits is not None:
            correct = top_k_correct(batch.logits, batch.labels)
        _count(self.num_correct, correct)
        if batch.sigmoid_logits is not None:
            _count(self.num_correct_sigmoid, top_k_correct(batch.sigmoid_logits, batch.labels))
        if self.record and batch.logits is not None:
            predictions = predicted(batch.logits)
            columns: dict[str, NDArray] = {"indices": batch.indices, "labels": batch.labels, "predictions": predictions}
            for key, column in (columns | correct).items():
                self.images.setdefault(key, []).append(column)
        if self.center is not None:
            self.center.update_shared(center_gaussian(), truth)
        for variant, localization in self.rows.items():
            localization.num_degenerate += int(batch.degenerate[variant].sum())
            localization.update(batch.maps[variant], truth, correct)
        for position, index in enumerate(batch.indices.tolist()):
            if index in self.keep:
                self.examples[index] = {variant: batch.maps[variant][position] for variant in self.rows}
        self.seconds += time.perf_counter() - start

    def merge(self, other: Evaluation) -> None:
        """Add the counts and examples of another one with the same variants and settings."""
        for variant, localization in self.rows.items():
            localization.merge(other.rows[variant])
        if self.center is not None and other.center is not None:
            self.center.merge(other.center)
        _count(self.num_correct, other.num_correct)
        _count(self.num_correct_sigmoid, other.num_correct_sigmoid)
        for key, parts in other.images.items():
            self.images.setdefault(key, []).extend(parts)
        self.examples |= other.examples
        self.num_images += other.num_images
        self.seconds += other.seconds

    def over_processes(self) -> Evaluation:
        """The evaluation of all processes' images on the main process, with its own seconds; on the others, their own.

        Every process has to call it.
        """
        part = copy.copy(self)
        del part.metadata  # which the main process has
        for other in distributed.gather(part)[1:]:
            other.seconds = 0.0
            self.merge(other)
        return self

    def _per_cent(self, counts: Mapping[str, int]) -> dict[str, float]:
        return {key: 100 * count / self.num_images for key, count in counts.items()}

    def compute(self, val: Evaluation | None = None) -> dict[str, Any]:
        """{"num_images", "classification", "rows", "center"} as in results.json.

        With a sigmoid branch also "sigmoid_classification", the accuracy of its own logits.

        Args:
            val: the evaluation of the val split, whose best thresholds are applied to this one.
        """
        rows = [
            {
                **variant.record,
                "num_degenerate": localization.num_degenerate,
                **localization.compute(val.rows[variant] if val is not None else None),
            }
            for variant, localization in self.rows.items()
        ]
        return {
            "num_images": self.num_images,
            "classification": self._per_cent(self.num_correct),
            **(
                {"sigmoid_classification": self._per_cent(self.num_correct_sigmoid)} if self.num_correct_sigmoid else {}
            ),
            "rows": rows,
            "center": self.center.compute() if self.center is not None else {},
        }

    def per_image(self, dataset: str, metrics: Mapping[str, Any]) -> PerImage:
        """What happened to each image, in the split's order whatever the order of updates.

        Args:
            dataset: its name.
            metrics: what `compute` returned.
        """
        pixels = [localization.pixels for localization in self.rows.values()]
        if any(metric is not None and metric.records is not None and not metric.records.complete for metric in pixels):
            log.warning(
                "more than %s images with masks: PxAP gets no interval and no figure per class", f"{MAX_PIXEL_IMAGES:,}"
            )
        columns = {key: np.concatenate(parts) for key, parts in self.images.items()}
        indices = columns.pop("indices")
        order = np.argsort(indices)
        columns = {key: values[order] for key, values in columns.items()}
        rows = {
            str(variant): localization.outcomes(order, row.get("tau", {}))
            for (variant, localization), row in zip(self.rows.items(), metrics["rows"], strict=True)
        }
        return PerImage(
            dataset,
            self.metadata.split,
            [self.metadata.image_ids[index] for index in indices[order]],
            columns.pop("labels"),
            columns.pop("predictions"),
            columns,
            rows,
            self.center.outcomes(order, {}) if self.center is not None else None,
        )


def _count(counts: dict[str, int], more: Mapping[str, Any]) -> None:
    """Add numbers, or the numbers of true values, to counts."""
    for key, values in more.items():
        counts[key] = counts.get(key, 0) + int(np.sum(values))


def predicted(logits: Tensor) -> NDArray[np.int64]:
    """The class with the highest logit of (B, K): (B,) int64, -1 for an image with a logit that is not finite."""
    finite = torch.isfinite(logits).all(dim=1)
    return torch.where(finite, logits.argmax(dim=1), -1).numpy()


def top_k_correct(logits: Tensor, labels: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """{"top1": (B,) bool, "top5": (B,) bool}: is the label the first, or among the first five, of (B, K) logits?

    With fewer than five classes top5 is meaningless and left out. An image with a logit that is not finite is wrong.
    """
    num_classes = logits.shape[1]
    best = logits.topk(min(5, num_classes), dim=1).indices
    finite = torch.isfinite(logits).all(dim=1, keepdim=True)
    hit = (finite & (best == torch.as_tensor(labels)[:, None])).numpy()
    correct: dict[str, NDArray[np.bool_]] = {"top1": hit[:, 0]}
    if num_classes >= 5:
        correct["top5"] = np.asarray(hit.any(axis=1))
    return correct
