"""Runs against each other: mean and deviation over seeds, differences over the same images with intervals.

A difference of two runs is paired: both are measured on the same resamples of the images, so that what is hard for
both cancels. Its interval says how far the difference depends on which images the test split happens to hold, for
these trained networks; how far it depends on the training's seed, the deviation over seeds says.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tabulate import tabulate

from wsol.cam import Variant
from wsol.errors import InputError
from wsol.evaluation.per_image import PerImage
from wsol.log import progress
from wsol.metrics.bootstrap import draw, interval, right_replicates
from wsol.run.report import flatten

CLASSIFICATION = "classification"  # the softmax head's accuracy, beside the rows of the table
# Settings that change what a number means, not how good a run is.
_MEANING = ("iou_threshold_list", "gt_boxes")
_NO_METRICS = ("tau", "interval", "num_degenerate", "clamped")

Key = tuple[str, str]  # row's name, metric: ("cam_softmax", "maxboxacc_50")


class Measured(NamedTuple):
    """A metric of one run, or the mean over runs: its value and those of R resamples, None where they are not known."""

    value: float
    replicates: np.ndarray | None  # (R,)


class Difference(NamedTuple):
    """Of two measured metrics over the same images, in per cent."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.value:+.1f}"
        return f"{self.value:+.1f} [{self.low:+.1f}, {self.high:+.1f}]" + ("" if self.low <= 0 <= self.high else " *")


@dataclass
class Group:
    """Runs that differ in their seed alone. metrics: each run's, for the rows and metrics that all of them have."""

    name: str
    folders: list[Path]
    metrics: dict[Key, list[Measured]]

    def mean(self, key: Key) -> Measured:
        """Over the runs, resample by resample."""
        of_runs = self.metrics[key]
        known = all(run.replicates is not None for run in of_runs)
        return Measured(
            float(np.mean([run.value for run in of_runs])),
            np.mean([run.replicates for run in of_runs], axis=0) if known else None,
        )

    def spread(self, key: Key) -> str:
        """Mean ± standard deviation over the runs (n - 1); of one run the value alone."""
        values = [run.value for run in self.metrics[key]]
        return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def difference(measured: Measured, baseline: Measured) -> Difference:
    """measured - baseline, with its 95 % interval where both know their resamples."""
    value = measured.value - baseline.value
    if measured.replicates is None or baseline.replicates is None:
        return Difference(value, None, None)
    return Difference(value, *interval(measured.replicates - baseline.replicates))


def find_runs(text: str) -> list[Path]:
    """The run folders of one argument: a folder, several behind commas, or a pattern such as 'experiments/cam-seed*'.

    Raises:
        InputError: a folder is not there, a pattern matches no run, or a run is named twice.
    """
    found: list[Path] = []
    for part in [text] if Path(text).is_dir() else filter(None, text.split(",")):
        matches = (
            [Path(part)]
            if not glob.has_magic(part) or Path(part).is_dir()
            else [path for path in map(Path, sorted(glob.glob(part))) if (path / "results.json").is_file()]
        )
        if not matches:
            raise InputError(f"no run with a results.json matches '{part}'")
        found += matches
    if not found:
        raise InputError("an empty group; name the folders of its runs")
    for path in found:
        if not path.is_dir():
            raise InputError(f"there is no run {path}")
    twice = [path for i, path in enumerate(found) if path.resolve() in [other.resolve() for other in found[:i]]]
    if twice:
        raise InputError(f"{twice[0]} is named twice in '{text}'")
    return found


def read_groups(arguments: Sequence[str], num_resamples: int, seed: int) -> tuple[list[Group], str]:
    """The groups A, B, ... of runs, measured on the same resamples, and "CUB test, 5,794 images".

    Raises:
        InputError: see find_runs and read_results; or the runs were not evaluated on the same images, or not alike.
    """
    folders = [find_runs(text) for text in arguments]
    if len(folders) > 26:
        raise InputError(f"{len(folders)} groups are more than the 26 that have a letter; join seeds by commas")
    first: tuple[Path, dict, PerImage] | None = None
    measured: dict[Path, dict[Key, Measured]] = {}
    weights = np.empty((0, 0), np.uint8)
    for folder in progress(dict.fromkeys(folder for group in folders for folder in group), "runs", unit="run"):
        results, images = read_results(folder), PerImage.load(folder)
        if first is None:
            first = folder, results, images
            # The first line counts each image once: it gives the metrics themselves.
            weights = np.vstack(
                [np.ones((1, len(images.labels)), np.uint8), draw(len(images.labels), num_resamples, seed)]
            )
        _check_comparable(folder, results, images, *first)
        measured[folder] = _measure(folder, results, images, weights)
    groups = [
        Group(chr(ord("A") + i), group, _in_all([measured[folder] for folder in group]))
        for i, group in enumerate(folders)
    ]
    _, results, images = first
    return groups, f"{images.dataset} {images.split}, {len(images.labels):,} images"


def read_results(folder: Path) -> dict[str, Any]:
    """A run folder's results.json; an InputError where it is missing or broken."""
    path = Path(folder) / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        for row in results["rows"]:
            str(Variant.from_record(row))
        return results | {"config": dict(results["config"])}
    except FileNotFoundError:
        raise InputError(f"{path} is missing; evaluate the run with --eval_only") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a run's results ({type(error).__name__}: {error})") from None


def _check_comparable(
    folder: Path, results: dict, images: PerImage, first_folder: Path, first_results: dict, first: PerImage
) -> None:
    """InputError unless a run measured the same things on the same images as the first run."""
    if (images.dataset, images.split) != (first.dataset, first.split):
        raise InputError(
            f"{first_folder} was evaluated on {first.dataset} {first.split}, {folder} on {images.dataset} "
            f"{images.split}; only runs over the same images can be compared"
        )
    only_here, only_there = set(images.image_ids) - set(first.image_ids), set(first.image_ids) - set(images.image_ids)
    if only_here or only_there:
        example = min(only_here or only_there)
        raise InputError(
            f"{first_folder} and {folder} were evaluated on different images ({len(only_there):,} only in "
            f"the first, {len(only_here):,} only in the second, such as {example}); evaluate both on the "
            "same split with --eval_only"
        )
    if images.image_ids != first.image_ids or not np.array_equal(images.labels, first.labels):
        raise InputError(
            f"{first_folder} and {folder} list the same images in another order or with other labels; "
            "evaluate both with the same metadata"
        )
    for key in _MEANING:
        here, there = results["config"].get(key), first_results["config"].get(key)
        if here != there:
            raise InputError(
                f"{first_folder} was evaluated with --{key} {there}, {folder} with {here}; evaluate both "
                "alike with --eval_only"
            )


def _measure(folder: Path, results: dict, images: PerImage, weights: np.ndarray) -> dict[Key, Measured]:
    """The run's metrics as results.json has them, with replicates where its images are known."""
    known = {(CLASSIFICATION, key): right_replicates(right, weights) for key, right in images.correct.items()}
    for name, row in images.rows.items():
        known |= {(name, key): values for key, values in flatten(row.replicates(weights, images.correct)).items()}
    values = {(CLASSIFICATION, key): value for key, value in results.get("classification", {}).items()}
    for row in results["rows"]:
        metrics = flatten({key: value for key, value in row.items() if key not in _NO_METRICS})
        values |= {
            (str(Variant.from_record(row)), key): value
            for key, value in metrics.items()
            if isinstance(value, (int, float))
        }
    for key, replicates in known.items():
        if key not in values or not np.isclose(replicates[0], values[key], rtol=0, atol=1e-6):
            raise InputError(
                f"results.json and per_image.npz of {folder} are of different evaluations "
                f"({' '.join(key)}); evaluate the run again with --eval_only"
            )
    return {
        key: Measured(value, known[key][1:] if key in known and len(weights) > 1 else None)
        for key, value in values.items()
    }


def _in_all(runs: list[dict[Key, Measured]]) -> dict[Key, list[Measured]]:
    return {key: [run[key] for run in runs] for key in runs[0] if all(key in run for run in runs)}


def table(groups: Sequence[Group], rows: Collection[str] = (), metrics: Collection[str] = ()) -> str:
    """A line a row and metric: each group's spread; several groups: their differences from the first one.

    Of one group: the differences from the method's softmax row.

    Args:
        rows, metrics: those to show; empty: all.

    Raises:
        InputError: a row or metric that no run has.
    """
    keys = list(dict.fromkeys(key for group in groups for key in group.metrics))
    for what, wanted, present in (("row", rows, [row for row, _ in keys]), ("metric", metrics, [m for _, m in keys])):
        for name in wanted:
            if name not in present:
                raise InputError(f"no run has the {what} '{name}' (there are: {', '.join(dict.fromkeys(present))})")
    keys = [(row, metric) for row, metric in keys if (not rows or row in rows) and (not metrics or metric in metrics)]
    first, *others = groups
    headings = ["row", "metric", first.name]
    headings += [heading for group in others for heading in (group.name, f"{group.name} - {first.name}")]
    headings += [] if others else ["against softmax"]
    lines, previous = [], None
    for row, metric in keys:
        if previous not in (None, row):
            lines.append([""] * len(headings))
        lines.append(["" if row == previous else row, metric, *_cells((row, metric), first, others)])
        previous = row
    return tabulate(lines, headings, disable_numparse=True, colalign=["left"] * 2 + ["right"] * (len(headings) - 2))


def _cells(key: Key, first: Group, others: Iterable[Group]) -> list[str]:
    cells = [first.spread(key) if key in first.metrics else ""]
    for group in others:
        both = key in first.metrics and key in group.metrics
        cells += [
            group.spread(key) if key in group.metrics else "",
            str(difference(group.mean(key), first.mean(key))) if both else "",
        ]
    if not others:
        row, metric = key
        softmax = row.removesuffix("_clamped").rpartition("_")[0] + "_softmax", metric
        cells.append(
            str(difference(first.mean(key), first.mean(softmax))) if softmax != key and softmax in first.metrics else ""
        )
    return cells
