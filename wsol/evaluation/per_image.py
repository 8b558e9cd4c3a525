"""What every image of the evaluated split did: `per_image.npz` of a run, read again for paired comparisons.

    images = PerImage.load(Path("experiments/run-1"))
    images.image_ids, images.labels, images.predictions             # N of each
    images.rows["cam_softmax"].boxes.right(tau=0.2)                 # (N,) bool, see wsol/metrics/records.py

The file is a plain npz without pickles: `settings` (JSON: schema, dataset, split, rows, the thresholds chosen on
val), `image_ids`, `labels`, `predictions` (-1: a logit was not finite), `top1` and `top5` (bool), and for each row
`<row>/boxes/<field of BoxOutcomes>`, with `--gt_boxes first` `<row>/first_box/...`, too, and `<row>/histograms`: uint16
pixel counts (N, 2, bins) of foreground and background.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsol.errors import InputError
from wsol.files import write_file
from wsol.log import progress
from wsol.metrics.bootstrap import box_replicates, draw, intervals, pixel_replicates, right_replicates
from wsol.metrics.localization import OF_GT_BOXES, average_precision
from wsol.metrics.records import BoxOutcomes

FILE = "per_image.npz"
_SCHEMA = 1
_BOXES = ("boxes", "first_box")


class RowOutcomes(NamedTuple):
    """One row of the results table, image by image."""

    boxes: BoxOutcomes | None
    first_box: BoxOutcomes | None  # --gt_boxes first: with the first ground-truth box alone, for OF_GT_BOXES
    histograms: np.ndarray | None  # (N, 2, bins)
    val_taus: dict[str, float]  # of gt_loc_val and top1_loc_val, where there is a val split

    def replicates(self, weights: np.ndarray, correct: Mapping[str, np.ndarray]) -> dict:
        """The row's localization metrics in each resample of weights (R, N): keys of results.json, (R,) each.

        Args:
            correct: {"top1", "top5"}: (N,) bool, as far as known.
        """
        classified = correct.get("top1"), correct.get("top5"), self.val_taus
        found = box_replicates(self.boxes, weights, *classified) if self.boxes is not None else {}
        if self.first_box is not None:
            of_first = box_replicates(self.first_box, weights, *classified)
            found |= {key: values for key, values in of_first.items() if key in OF_GT_BOXES}
        if self.histograms is not None:
            found["pxap"] = pixel_replicates(self.histograms, weights)
        return found


@dataclass
class PerImage:
    """N images in the order of the split's image_ids.txt; rows by their names, `<method>_<head>[_clamped]`.

    center: the baseline without a model, not saved, for it belongs to the data set alone.
    """

    dataset: str
    split: str
    image_ids: Sequence[str]
    labels: np.ndarray  # (N,)
    predictions: np.ndarray  # (N,)
    correct: dict[str, np.ndarray]  # {"top1", "top5"}: (N,) bool
    rows: dict[str, RowOutcomes]
    center: RowOutcomes | None = None

    def intervals(self, num_resamples: int, seed: int) -> dict:
        """95 % intervals {"classification": {key: [low, high]}, "rows": {name: {key: ...}}, "center": {key: ...}}.

        All from the same resamples.
        """
        weights = draw(len(self.labels), num_resamples, seed)
        return {
            "classification": intervals({key: right_replicates(right, weights) for key, right in self.correct.items()}),
            "rows": {
                name: intervals(row.replicates(weights, self.correct))
                for name, row in progress(self.rows.items(), "bootstrap", unit="row", total=len(self.rows))
            },
            "center": intervals(self.center.replicates(weights, {})) if self.center is not None else {},
        }

    def per_class(self, taus: Mapping[str, Mapping], class_names: Sequence[str]) -> list[dict[str, Any]]:
        """A dict a class and row: `class`, `name`, `images`, `top1`, `top5`, `row` and the row's metrics in per cent.

        The thresholds are those of the whole split (taus: row → `tau` of results.json), not each class's own best,
        so box accuracies of classes average to the split's, weighted by their images. A class without images has
        no figures; one without foreground pixels no `pxap`.
        """
        counts = np.bincount(self.labels, minlength=len(class_names))
        classification = {key: self._class_shares(right, counts) for key, right in self.correct.items()}
        lines = []
        of_rows = {name: self._row_per_class(row, taus.get(name, {}), counts) for name, row in self.rows.items()}
        for index, (name, count) in enumerate(zip(class_names, counts.tolist(), strict=True)):
            of_class = {"class": index, "name": name, "images": count} | _at(classification, index)
            lines += [of_class | {"row": row} | _at(columns, index) for row, columns in of_rows.items()]
        return lines

    def _row_per_class(self, row: RowOutcomes, tau: Mapping, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Metric → (K,) per cent, NaN where a class has none."""
        found = {}
        if row.boxes is not None:
            of_deltas = {
                f"maxboxacc_{delta}": self._class_shares(row.boxes.right(at, float(delta)), counts)
                for delta, at in tau["maxboxacc"].items()
            }
            found |= of_deltas | {"maxboxacc_v2": np.mean(list(of_deltas.values()), axis=0)}
            for key, at in tau.items():
                if key in OF_GT_BOXES:
                    right = (row.first_box or row.boxes).right(at)
                    classified = self.correct.get(key[:4], True)  # top1_loc..., top5_loc: and the right class
                    found[key] = self._class_shares(right & classified, counts)
        if row.histograms is not None:
            found["pxap"] = np.array([_class_pxap(row.histograms[self.labels == k]) for k in range(len(counts))])
        return found

    def _class_shares(self, right: np.ndarray, counts: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return 100 * np.bincount(self.labels, weights=right, minlength=len(counts)) / counts

    def write(self, folder: Path) -> Path:
        """Write `per_image.npz` into a run folder, whole or not at all."""
        arrays = {
            "image_ids": np.array(self.image_ids),
            "labels": self.labels,
            "predictions": self.predictions,
            **self.correct,
        }
        for name, row in self.rows.items():
            for kind in _BOXES:
                outcomes = getattr(row, kind)
                arrays |= {
                    f"{name}/{kind}/{field}": value
                    for field, value in (outcomes._asdict() if outcomes is not None else {}).items()
                }
            arrays |= {f"{name}/histograms": row.histograms} if row.histograms is not None else {}
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
            InputError: it is missing, cut off, or not such a file; nothing in it is ever executed.
        """
        path = Path(folder) / FILE
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            settings = json.loads(str(arrays["settings"]))
            if settings["schema"] != _SCHEMA:
                raise ValueError(f"schema {settings['schema']}, not {_SCHEMA}")
            rows = {
                name: RowOutcomes(
                    *(_outcomes(arrays, f"{name}/{kind}") for kind in _BOXES),
                    arrays.get(f"{name}/histograms"),
                    val_taus,
                )
                for name, val_taus in settings["rows"].items()
            }
            return cls(
                settings["dataset"],
                settings["split"],
                arrays["image_ids"].tolist(),
                arrays["labels"],
                arrays["predictions"],
                {key: arrays[key] for key in ("top1", "top5") if key in arrays},
                rows,
            )
        except FileNotFoundError:
            raise InputError(f"{path} is missing; evaluate the run again with --eval_only") from None
        except (
            OSError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise InputError(
                f"{path} cannot be read ({type(error).__name__}: {error}); evaluate the run again with --eval_only"
            ) from None


def _outcomes(arrays: dict[str, np.ndarray], prefix: str) -> BoxOutcomes | None:
    if f"{prefix}/multi" not in arrays:
        return None
    return BoxOutcomes(*(arrays[f"{prefix}/{field}"] for field in BoxOutcomes._fields))


def _class_pxap(histograms: np.ndarray) -> float:
    foreground, background = histograms.sum(axis=0, dtype=np.int64)
    return 100 * average_precision(foreground, background) if foreground.any() else float("nan")


def _at(columns: Mapping[str, np.ndarray], index: int) -> dict[str, float]:
    """One class's figures, without those that do not exist."""
    return {key: float(values[index]) for key, values in columns.items() if not np.isnan(values[index])}
