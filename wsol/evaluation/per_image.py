"""What each image of the evaluated split did: `per_image.npz` of a run, read again for paired comparisons.

    images = PerImage.load(Path("experiments/run-1"))
    images.image_ids, images.labels, images.predictions             # N of each
    images.rows["cam_softmax"].boxes.right(tau=0.2)                 # (N,) bool, see wsol/metrics/records.py

The file is a plain npz without pickles: `settings` (JSON: schema, dataset, split, rows, the thresholds chosen on
val), `image_ids`, `labels`, `predictions` (-1: a logit was not finite), `top1` and `top5` (bool), and for each row
`<row>/boxes/<field of BoxOutcomes>`, with `--gt_boxes first` also `<row>/first_box/...`, and `<row>/histograms`: uint16
pixel counts (N, 2, bins) of foreground and background.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from wsol.checked import NUMBER, TEXT, WHOLE, Kind, check_fields
from wsol.errors import InputError, shortened
from wsol.files import NOT_ARRAYS, write_file
from wsol.log import progress
from wsol.metrics.bootstrap import box_replicates, draw, intervals, pixel_replicates
from wsol.metrics.box_metrics import GT_BOXES_KEYS, SHARE_KEYS, BoxCounts, per_cent, reduce_boxes, with_gt_boxes
from wsol.metrics.pixels import average_precisions
from wsol.metrics.records import BoxOutcomes

FILE = "per_image.npz"
_SCHEMA = 1
REMEDY = "evaluate the run again with --eval_only"
_VAL_TAUS = Kind(
    lambda value: isinstance(value, dict) and all(map(NUMBER.holds, value.values())),
    "a threshold for each of val's metrics",
)
_SETTINGS = {
    "schema": WHOLE,
    "dataset": TEXT,
    "split": TEXT,
    "rows": Kind(
        lambda value: isinstance(value, dict) and all(map(_VAL_TAUS.holds, value.values())), "rows' thresholds"
    ),
}


class RowOutcomes(NamedTuple):
    """One row of the results table, image by image."""

    boxes: BoxOutcomes | None
    first_box: BoxOutcomes | None  # --gt_boxes first: with the first ground-truth box alone, for GT_BOXES_KEYS
    histograms: np.ndarray | None  # (N, 2, bins)
    val_taus: dict[str, float]  # of gt_loc_val and top1_loc_val, where there is a val split

    def replicates(self, weights: np.ndarray, correct: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The row's localization metrics in each resample of weights (R, N): keys of results.json, (R,) each.

        Args:
            weights: see `draw`.
            correct: {"top1", "top5"}: (N,) bool, as far as known.
        """
        top1, top5 = correct.get("top1"), correct.get("top5")
        any_box, first_box = (
            box_replicates(outcomes, weights, top1, top5, self.val_taus) if outcomes is not None else {}
            for outcomes in (self.boxes, self.first_box)
        )
        metrics = with_gt_boxes(any_box, first_box)
        if self.histograms is not None:
            metrics["pxap"] = pixel_replicates(self.histograms, weights)
        return metrics


@dataclass
class PerImage:
    """N images in the order of the split's image_ids.txt; rows by their names, `<method>_<head>[_clamped][_affinity]`.

    `center` is the baseline without a model. It is not saved, as it depends on the data set alone.
    """

    dataset: str
    split: str
    image_ids: Sequence[str]
    labels: np.ndarray  # (N,)
    predictions: np.ndarray  # (N,)
    correct: dict[str, np.ndarray]  # {"top1", "top5"}: (N,) bool
    rows: dict[str, RowOutcomes]
    center: RowOutcomes | None = None

    def intervals(self, num_resamples: int, seed: int) -> dict[str, Any]:
        """95 % bootstrap intervals {"rows": {name: {key: [low, high]}}, "center": {key: ...}}, all from one draw.

        Of the figures that are not shares of images: `maxboxacc_v2` and `pxap`. Shares have `wilson`.
        """
        weights = draw(len(self.labels), num_resamples, seed)

        def of_row(row: RowOutcomes, correct: Mapping[str, np.ndarray]) -> dict[str, Any]:
            replicates = row.replicates(weights, correct)
            return intervals({key: values for key, values in replicates.items() if key not in SHARE_KEYS})

        return {
            "rows": {
                name: of_row(row, self.correct)
                for name, row in progress(self.rows.items(), "bootstrap", unit="row", total=len(self.rows))
            },
            "center": of_row(self.center, {}) if self.center is not None else {},
        }

    def per_class(self, taus: Mapping[str, Mapping[str, Any]], class_names: Sequence[str]) -> list[dict[str, Any]]:
        """One dict per class and row: `class`, `name`, `images`, `top1`, `top5`, `row` and metrics in per cent.

        The thresholds are those of the whole split (taus: row → `tau` of results.json), not each class's own best,
        so box accuracies of classes average to the split's, weighted by their images. A class without images has
        no figures; one without foreground pixels no `pxap`.
        """
        images = np.bincount(self.labels, minlength=len(class_names))  # (K,)
        classification = {
            key: per_cent(self._count_by_class(right, len(images)), images) for key, right in self.correct.items()
        }
        rows = {name: self._row_per_class(row, taus.get(name, {}), images) for name, row in self.rows.items()}
        lines = []
        for index, (class_name, count) in enumerate(zip(class_names, images.tolist(), strict=True)):
            of_class = {"class": index, "name": class_name, "images": count} | _at(classification, index)
            lines += [of_class | {"row": row} | _at(metrics, index) for row, metrics in rows.items()]
        return lines

    def _row_per_class(self, row: RowOutcomes, tau: Mapping[str, Any], images: np.ndarray) -> dict[str, np.ndarray]:
        """Metric → (K,) per cent, NaN where a class has none."""
        metrics: dict[str, np.ndarray] = {}
        if row.boxes is not None:
            any_box = self._boxes_per_class(row.boxes, tau, images)
            first_box = self._boxes_per_class(row.first_box, tau, images) if row.first_box is not None else None
            by_key = with_gt_boxes(any_box, first_box)
            metrics = {f"maxboxacc_{delta}": values for delta, values in by_key["maxboxacc"].items()}
            metrics |= {key: by_key[key] for key in by_key if key == "maxboxacc_v2" or key in GT_BOXES_KEYS}
        if row.histograms is not None:
            counts = np.array(
                [row.histograms[self.labels == k].sum(axis=0, dtype=np.int64) for k in range(len(images))]
            )
            metrics["pxap"] = 100 * average_precisions(counts[:, 0], counts[:, 1])
        return metrics

    def _boxes_per_class(self, outcomes: BoxOutcomes, tau: Mapping[str, Any], images: np.ndarray) -> dict[str, Any]:
        """The metrics of `reduce_boxes` of each class, read at the thresholds of the whole split."""
        per_delta = tau["maxboxacc"]
        single = {key: value for key, value in tau.items() if not isinstance(value, Mapping)}
        needed = sorted({*per_delta.values(), *single.values()})  # the columns of the counts

        def count(delta: float | None, correct: np.ndarray | None = None) -> np.ndarray:
            """Right images of each class at the needed thresholds, (K, C)."""
            right = [outcomes.right(at, delta) for at in needed]
            if correct is not None:
                right = [of_tau & correct for of_tau in right]
            return np.stack([self._count_by_class(of_tau, len(images)) for of_tau in right], axis=1)

        top1, top5 = self.correct.get("top1"), self.correct.get("top5")
        counts = BoxCounts(
            images=images,
            multi=np.stack([count(float(delta)) for delta in per_delta], axis=1),
            single=count(None),
            top1=None if top1 is None else count(None, top1),
            top5=None if top5 is None else self._count_by_class(outcomes.right(tau["top5_loc"]) & top5, len(images)),
        )
        columns: dict[str, Any] = {key: needed.index(at) for key, at in single.items()}
        columns["maxboxacc"] = {delta: needed.index(at) for delta, at in per_delta.items()}
        metrics, _ = reduce_boxes(counts, list(per_delta), np.arange(len(needed)), columns)
        return metrics

    def _count_by_class(self, right: np.ndarray, num_classes: int) -> np.ndarray:
        return np.bincount(self.labels, weights=right, minlength=num_classes)

    def write(self, folder: Path) -> Path:
        """Write `per_image.npz` into a run folder, whole or not at all."""
        arrays: dict[str, Any] = {
            "image_ids": np.array(self.image_ids),
            "labels": self.labels,
            "predictions": self.predictions,
            **self.correct,
        }
        for name, row in self.rows.items():
            for kind, outcomes in (("boxes", row.boxes), ("first_box", row.first_box)):
                if outcomes is not None:
                    arrays |= {f"{name}/{kind}/{field}": value for field, value in outcomes._asdict().items()}
            if row.histograms is not None:
                arrays[f"{name}/histograms"] = row.histograms
        settings = {
            "schema": _SCHEMA,
            "dataset": self.dataset,
            "split": self.split,
            "rows": {name: row.val_taus for name, row in self.rows.items()},
        }
        content = io.BytesIO()
        np.savez_compressed(content, settings=np.array(json.dumps(settings)), **arrays)
        return write_file(folder / FILE, content.getvalue())

    @classmethod
    def load(cls, folder: Path) -> PerImage:
        """Read a run folder's `per_image.npz`.

        Raises:
            InputError: it is missing, damaged, or not such a file, or its arrays do not fit together; nothing in it is
                ever executed.
        """
        path = Path(folder) / FILE
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            settings = json.loads(str(arrays.pop("settings")))
        except FileNotFoundError:
            raise InputError(f"{path} is missing; {REMEDY}") from None
        except NOT_ARRAYS as error:
            raise InputError(f"{path} cannot be read ({type(error).__name__}: {shortened(error)}); {REMEDY}") from None
        check_fields(settings, _SETTINGS, f"{path}, settings", REMEDY, needed=_SETTINGS)
        if settings["schema"] != _SCHEMA:
            raise InputError(f"{path} has schema {settings['schema']}, not {_SCHEMA}; {REMEDY}")
        return _Reader(path, arrays).images(settings)


class _Reader:
    """The arrays of a file, each checked when it is asked for."""

    def __init__(self, path: Path, arrays: dict[str, np.ndarray]):
        self.path, self.arrays = path, arrays

    def images(self, settings: dict[str, Any]) -> PerImage:
        """All of them. Raises InputError for what does not fit together."""
        count = len(self.array("image_ids", "U", (None,)))
        return PerImage(
            settings["dataset"],
            settings["split"],
            self.arrays["image_ids"].tolist(),
            self.array("labels", "iu", (count,), low=0),
            self.array("predictions", "iu", (count,)),
            {key: self.array(key, "b", (count,)) for key in ("top1", "top5") if key in self.arrays},
            {
                name: RowOutcomes(
                    boxes=self.outcomes(f"{name}/boxes", count, val_taus),
                    first_box=self.outcomes(f"{name}/first_box", count, val_taus),
                    histograms=self.histograms(f"{name}/histograms", count),
                    val_taus=val_taus,
                )
                for name, val_taus in settings["rows"].items()
            },
        )

    def array(
        self, name: str, kinds: str, shape: Sequence[int | None], low: float = -math.inf, high: float = math.inf
    ) -> np.ndarray:
        """An array of one of the kinds (of NumPy's dtype.kind) and of a shape, None: any length but 0; finite."""
        array = self.arrays.get(name)
        if array is None:
            self.fail(f"has no array '{name}'")
        fits = array.ndim == len(shape) and all(
            length == (wanted or max(length, 1)) for length, wanted in zip(array.shape, shape, strict=True)
        )
        if array.dtype.kind not in kinds or not fits:
            sides = ", ".join("any" if length is None else str(length) for length in shape)
            self.fail(f"has an array '{name}' of {array.dtype} {array.shape}, not one of shape ({sides})")
        if array.dtype.kind in "iuf" and not (np.isfinite(array).all() and low <= array.min() and array.max() <= high):
            self.fail(f"has an array '{name}' with values that are not finite or out of range")
        return array

    def outcomes(self, prefix: str, count: int, val_taus: Mapping[str, float]) -> BoxOutcomes | None:
        """The boxes of a row, if there are any."""
        if f"{prefix}/multi" not in self.arrays:
            return None
        taus = self.array(f"{prefix}/taus", "f", (None,))
        deltas = self.array(f"{prefix}/deltas", "f", (None,))
        single = self.array(f"{prefix}/single", "u", (count, None))
        outcomes = BoxOutcomes(
            taus,
            self.array(f"{prefix}/column", "iu", taus.shape, low=0, high=8 * single.shape[1] - 1),
            deltas,
            self.array(f"{prefix}/multi", "u", (count, len(deltas), single.shape[1])),
            single,
            self.array(f"{prefix}/iou", "f", (count,)),
        )
        if len(taus) < 2 or single.dtype != np.uint8 or outcomes.multi.dtype != np.uint8:
            self.fail(f"has arrays '{prefix}/...' without thresholds, or not of bytes")
        if not set(val_taus.values()) <= set(taus.tolist()):
            self.fail(f"names thresholds of val that are not among '{prefix}/taus'")
        return outcomes

    def histograms(self, name: str, count: int) -> np.ndarray | None:
        """The pixel counts of a row, if there are any."""
        return self.array(name, "u", (count, 2, None)) if name in self.arrays else None

    def fail(self, what: str) -> NoReturn:
        """Raise an InputError that says what the file has."""
        raise InputError(f"{self.path} {what}; {REMEDY}")


def _at(columns: Mapping[str, np.ndarray], index: int) -> dict[str, float]:
    """One class's figures, without those that do not exist."""
    return {key: float(values[index]) for key, values in columns.items() if not np.isnan(values[index])}
