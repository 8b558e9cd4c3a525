"""Comparison of runs: mean and deviation over seeds, and paired differences with intervals over the same images.

A difference of two runs is paired: both are measured on the same resamples of the images, so that what is hard for
both cancels. Its interval says how much the difference depends on which images the test split happens to contain, for
these trained networks. The deviation over seeds says how much it depends on the seed of the training.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tabulate import tabulate

from wsol.cam import Variant
from wsol.checked import MAPPING, NUMBER, TEXT, TRUTH, check_fields, listed
from wsol.errors import InputError, first_few, shortened
from wsol.evaluation.per_image import REMEDY, PerImage
from wsol.evaluation.results import flatten
from wsol.log import progress
from wsol.metrics.bootstrap import draw, interval, right_replicates

CLASSIFICATION = "classification"  # the softmax head's accuracy, beside the rows of the table
# Settings that change what a number means: runs must agree in them.
_METRIC_SETTINGS = ("iou_threshold_list", "gt_boxes")
_NO_METRICS = ("tau", "interval", "num_degenerate", "clamped")

_RESULTS = {"rows": listed(MAPPING), "config": MAPPING, "classification": MAPPING}
_ROW = {"method": TEXT, "head": TEXT, "clamped": TRUTH, "refine": TEXT}

Key = tuple[str, str]  # row's name, metric: ("cam_softmax", "maxboxacc_50")


class Measured(NamedTuple):
    """A metric of one run, or its mean over runs: the value and those of R resamples, None where they are unknown."""

    value: float
    replicates: np.ndarray | None  # (R,)


class Difference(NamedTuple):
    """The difference of two metrics over the same images, in per cent, and its 95 % interval where known."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """For the table: a star marks an interval that excludes 0."""
        if self.low is None or self.high is None:
            return f"{self.value:+.1f}"
        return f"{self.value:+.1f} [{self.low:+.1f}, {self.high:+.1f}]" + ("" if self.low <= 0 <= self.high else " *")


@dataclass
class Group:
    """Runs that differ only in their seed."""

    name: str
    folders: list[Path]
    metrics: dict[Key, list[Measured]]  # one per run, for the rows and metrics that all of them have

    def mean(self, key: Key) -> Measured:
        """The mean over the runs, resample by resample."""
        runs = self.metrics[key]
        replicates = [run.replicates for run in runs if run.replicates is not None]
        return Measured(
            float(np.mean([run.value for run in runs])),
            np.mean(replicates, axis=0) if len(replicates) == len(runs) else None,
        )

    def spread(self, key: Key) -> str:
        """Mean ± standard deviation over the runs (n - 1); for a single run just its value."""
        values = [run.value for run in self.metrics[key]]
        return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def difference(measured: Measured, baseline: Measured) -> Difference:
    """Subtract `baseline` from `measured`, with a 95 % interval where the resamples of both are known."""
    value = measured.value - baseline.value
    if measured.replicates is None or baseline.replicates is None:
        return Difference(value, None, None)
    return Difference(value, *interval(measured.replicates - baseline.replicates))


def find_runs(text: str) -> list[Path]:
    """The run folders of one argument: a folder, several joined by commas, or a pattern such as 'experiments/cam-*'.

    Raises:
        InputError: a folder is missing, a pattern matches no run, or a run is named twice.
    """
    folders: list[Path] = []
    for part in [text] if Path(text).is_dir() else filter(None, text.split(",")):
        if not glob.has_magic(part) or Path(part).is_dir():
            folders.append(Path(part))
            continue
        runs = [path for path in map(Path, sorted(glob.glob(part))) if (path / "results.json").is_file()]
        if not runs:
            raise InputError(f"no run with a results.json matches '{part}'")
        folders += runs
    if not folders:
        raise InputError("a group of runs is empty; name the folders of its runs")
    seen: set[Path] = set()
    for path in folders:
        if not path.is_dir():
            raise InputError(f"there is no run folder {path}")
        if path.resolve() in seen:
            raise InputError(f"{path} is named twice in '{text}'")
        seen.add(path.resolve())
    return folders


def read_groups(arguments: Sequence[str], num_resamples: int, seed: int) -> tuple[list[Group], str]:
    """Read groups A, B, ... of runs and measure them on the same resamples.

    Args:
        arguments: one per group, see `find_runs`.
        num_resamples: of the images; 0: no intervals.
        seed: of the resamples.

    Returns:
        The groups, and what they were evaluated on: "CUB test, 5,794 images".

    Raises:
        InputError: see find_runs, read_results and PerImage.load; or the runs were evaluated on different images or
            with different settings.
    """
    folders = [find_runs(text) for text in arguments]
    if not 1 <= len(folders) <= 26:
        raise InputError(f"1 to 26 groups can be compared (A to Z), got {len(folders)}; join seeds by commas")
    first: tuple[Path, dict, PerImage] | None = None
    measured: dict[Path, dict[Key, Measured]] = {}
    weights = np.empty((0, 0), np.uint8)
    for folder in progress(dict.fromkeys(folder for group in folders for folder in group), "runs", unit="run"):
        results, images = read_results(folder), PerImage.load(folder)
        if first is None:
            first = folder, results, images
            # The first row counts each image once: it gives the metrics themselves.
            weights = np.vstack(
                [np.ones((1, len(images.labels)), np.uint8), draw(len(images.labels), num_resamples, seed)]
            )
        _check_comparable(folder, results, images, *first)
        measured[folder] = _measure(folder, results, images, weights)
    groups = [
        Group(chr(ord("A") + i), group, _in_all([measured[folder] for folder in group]))
        for i, group in enumerate(folders)
    ]
    return groups, f"{images.dataset} {images.split}, {len(images.labels):,} images"


def read_results(folder: Path) -> dict[str, Any]:
    """A run folder's results.json. Raises InputError where it is missing or broken."""
    path = Path(folder) / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; evaluate the run with --eval_only") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {shortened(error)}); {REMEDY}") from None
    check_fields(results, _RESULTS, str(path), REMEDY, needed=("rows", "config"))
    for number, row in enumerate(results["rows"]):
        check_fields(row, _ROW, f"{path}, row {number}", REMEDY, needed=("method", "head", "clamped"))
    return results


def _check_comparable(
    folder: Path, results: dict, images: PerImage, first_folder: Path, first_results: dict, first: PerImage
) -> None:
    """Raise InputError unless a run measured the same things on the same images as the first run."""
    if (images.dataset, images.split) != (first.dataset, first.split):
        raise InputError(
            f"{first_folder} was evaluated on {first.dataset} {first.split}, {folder} on {images.dataset} "
            f"{images.split}; only runs over the same images can be compared"
        )
    only_here, only_there = set(images.image_ids) - set(first.image_ids), set(first.image_ids) - set(images.image_ids)
    if only_here or only_there:
        example = min(only_here or only_there)
        raise InputError(
            f"{first_folder} and {folder} were evaluated on different images ({len(only_there):,} only in the first, "
            f"{len(only_here):,} only in the second, such as {example}); evaluate both on the same split with "
            "--eval_only"
        )
    if images.image_ids != first.image_ids or not np.array_equal(images.labels, first.labels):
        raise InputError(
            f"{first_folder} and {folder} list the same images in another order or with other labels; evaluate both "
            "with the same metadata"
        )
    for key in _METRIC_SETTINGS:
        here, there = results["config"].get(key), first_results["config"].get(key)
        if here != there:
            raise InputError(
                f"{first_folder} was evaluated with --{key} {there}, {folder} with {here}; evaluate both with the same "
                "settings and --eval_only"
            )


def _measure(folder: Path, results: dict, images: PerImage, weights: np.ndarray) -> dict[Key, Measured]:
    """The run's metrics as results.json has them, with replicates where per_image.npz allows."""
    known = {(CLASSIFICATION, key): right_replicates(right, weights) for key, right in images.correct.items()}
    for name, row in images.rows.items():
        known |= {(name, key): values for key, values in flatten(row.replicates(weights, images.correct)).items()}
    found = [(CLASSIFICATION, results.get("classification", {}))]
    found += [(str(Variant.from_record(row)), row) for row in results["rows"]]
    values = {
        (name, key): value
        for name, row in found
        for key, value in flatten({key: value for key, value in row.items() if key not in _NO_METRICS}).items()
        if NUMBER.holds(value)
    }
    for key, replicates in known.items():
        if key not in values or not np.isclose(replicates[0], values[key], rtol=0, atol=1e-6):
            raise InputError(
                f"results.json and per_image.npz of {folder} come from different evaluations: {' '.join(key)} differs; "
                "evaluate the run again with --eval_only"
            )
    return {
        key: Measured(value, known[key][1:] if key in known and len(weights) > 1 else None)
        for key, value in values.items()
    }


def _in_all(runs: list[dict[Key, Measured]]) -> dict[Key, list[Measured]]:
    """The metrics that all runs have."""
    return {key: [run[key] for run in runs] for key in runs[0] if all(key in run for run in runs)}


def table(groups: Sequence[Group], rows: Collection[str] = (), metrics: Collection[str] = ()) -> str:
    """The printed table, one line per row and metric.

    It shows each group's mean and deviation. Several groups are compared with the first one, a single group's rows with
    the softmax row of the same method.

    Args:
        groups: see `read_groups`.
        rows: those to show; empty: all.
        metrics: those to show; empty: all.

    Raises:
        InputError: a row or metric that no run has.
    """
    keys = list(dict.fromkeys(key for group in groups for key in group.metrics))
    for what, chosen, present in (
        ("row", rows, dict.fromkeys(row for row, _ in keys)),
        ("metric", metrics, dict.fromkeys(metric for _, metric in keys)),
    ):
        for name in chosen:
            if name not in present:
                raise InputError(f"no run has the {what} '{name}' (they have: {first_few(present, most=20)})")
    keys = [(row, metric) for row, metric in keys if (not rows or row in rows) and (not metrics or metric in metrics)]
    first, *others = groups
    headings = ["row", "metric", first.name]
    headings += [heading for group in others for heading in (group.name, f"{group.name} - {first.name}")]
    headings += [] if others else ["against softmax"]
    lines: list[list[str]] = []
    previous = ""
    for row, metric in keys:
        if lines and row != previous:
            lines.append([""] * len(headings))
        lines.append(["" if row == previous else row, metric, *_cells((row, metric), first, others)])
        previous = row
    return tabulate(lines, headings, disable_numparse=True, colalign=["left"] * 2 + ["right"] * (len(headings) - 2))


def _cells(key: Key, first: Group, others: Sequence[Group]) -> list[str]:
    """The cells of one line behind its row and metric."""
    cells = [first.spread(key) if key in first.metrics else ""]
    for group in others:
        cells.append(group.spread(key) if key in group.metrics else "")
        comparable = key in first.metrics and key in group.metrics
        cells.append(str(difference(group.mean(key), first.mean(key))) if comparable else "")
    if not others:
        row, metric = key
        baseline = str(Variant.parse(row).baseline), metric
        comparable = baseline != key and baseline in first.metrics
        cells.append(str(difference(first.mean(key), first.mean(baseline))) if comparable else "")
    return cells
