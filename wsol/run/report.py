"""One dict of results → the printed table, results.json, results.csv and Weights & Biases."""

import csv
import io
import json
import platform
from collections.abc import Iterable
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from tabulate import tabulate

from wsol.cam import Variant
from wsol.log import log
from wsol.run.folder import RunFolder

SCHEMA = 1
# results.json key → heading; in the order of the table. The first is compared with the method's softmax row.
_COLUMNS = {"maxboxacc_v2": "MaxBoxAccV2", "gt_loc": "GT-Loc", "top1_loc": "Top-1 Loc", "pxap": "PxAP"}
_COMPARED = ("maxboxacc_v2", "pxap")


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
    }


def table(results: dict[str, Any]) -> str:
    """A line a method and head; "Δ" is the change against the method's softmax row.

    "±" is half the width of a number's 95 % interval over images, where `interval` holds it.
    """
    shown = [key for key in _COLUMNS if any(key in row for row in results["rows"])]
    iou_keys = list(results["rows"][0].get("maxboxacc", {})) if results["rows"] else []
    with_interval = [key for key in _COMPARED if any(key in row.get("interval", {}) for row in results["rows"])]
    headings = ["method", "head"]
    for key in shown:
        headings += [_COLUMNS[key]] + ["±"] * (key in with_interval) + ["Δ"] * (key in _COMPARED)
        headings += [f"@{iou}" for iou in iou_keys] if key == "maxboxacc_v2" else []
    baselines = {row["method"]: row for row in results["rows"] if row["head"] == "softmax" and not row["clamped"]}
    lines, previous = [], None
    for row in [*results["rows"], {"method": "centre Gaussian", **results["center"]}]:
        if previous is not None and row["method"] != previous:
            lines.append([""] * len(headings))
        name = "" if row["method"] == previous else row["method"]
        lines.append(
            [
                name,
                Variant.from_record(row).head_label if "head" in row else "",
                *_cells(row, baselines.get(row["method"]), shown, iou_keys, with_interval),
            ]
        )
        previous = row["method"]
    return tabulate(lines, headings, disable_numparse=True, colalign=["left"] * 2 + ["right"] * (len(headings) - 2))


# figure of row["fidelity"] → heading and how it is printed; per cent, or areas and differences of confidence.
_FIDELITY = {
    "avg_drop": ("drop ↓", ".1f"),
    "inc_conf": ("increase ↑", ".1f"),
    "avg_gain": ("gain ↑", ".1f"),
    "insertion": ("insertion ↑", ".3f"),
    "deletion": ("deletion ↓", ".3f"),
    "road": ("ROAD ↑", ".3f"),
    "pointing": ("pointing ↑", ".1f"),
    "energy_pointing": ("energy ↑", ".1f"),
}


def fidelity_table(results: dict[str, Any]) -> str:
    """A line for each row and head that confidences are read from; arrows point to where better is."""
    lines, previous = [], None
    for row in results["rows"]:
        read = {head: figures for head, figures in row["fidelity"].items() if isinstance(figures, dict)} or {"": {}}
        pointing = {key: value for key, value in row["fidelity"].items() if key not in read}  # on a row's first line
        names = [
            "" if row["method"] == previous else row["method"],
            Variant.from_record(row).head_label,
        ]
        for head, figures in read.items():
            lines.append((*names, head, figures | pointing))
            names, pointing = ["", ""], {}
        previous = row["method"]
    shown = [key for key in _FIDELITY if any(key in found for *_, found in lines)]
    cells = [
        [*names, *(format(found[key], _FIDELITY[key][1]) if key in found else "" for key in shown)]
        for *names, found in lines
    ]
    headings = ["method", "head", "confidence of", *(_FIDELITY[key][0] for key in shown)]
    return tabulate(cells, headings, disable_numparse=True, colalign=["left"] * 3 + ["right"] * len(shown))


def cost_table(results: dict[str, Any]) -> str:
    """What the forward pass and each method cost, all its rows together; what methods share is counted for the first
    that needs it."""
    forward = results["cost"]["forward"]["seconds"]
    lines = [
        [name, f"{cost['seconds']:.2f}", f"{cost['seconds'] / forward:.2f}", f"{cost['mib']:.0f}"]
        for name, cost in results["cost"].items()
    ]
    return tabulate(
        lines,
        ["maps of", "seconds", "in forward passes", "MiB more"],
        disable_numparse=True,
        colalign=["left"] + ["right"] * 3,
    )


def _cells(
    row: dict, baseline: dict | None, shown: Iterable[str], iou_keys: Iterable, with_interval: Iterable[str]
) -> list[str]:
    cells = []
    for key in shown:
        cells.append(f"{row[key]:.1f}" if key in row else "")
        if key in with_interval:
            cells.append(_half_width(row.get("interval", {}).get(key)))
        if key in _COMPARED:
            known = baseline is not None and baseline is not row and key in row and key in baseline
            cells.append(f"{row[key] - baseline[key]:+.1f}" if known else "")
        if key == "maxboxacc_v2":
            cells += (
                [f"{row['maxboxacc'][iou]:.1f}" for iou in iou_keys] if "maxboxacc" in row else [""] * len(iou_keys)
            )
    return cells


def _half_width(interval: list[float] | None) -> str:
    return f"{(interval[1] - interval[0]) / 2:.1f}" if interval is not None else ""


def summary(results: dict[str, Any]) -> str:
    """What stands around the table: the classifier's accuracy before it, the seconds after it."""
    bounds = results.get("bootstrap", {}).get("classification", {})
    accuracy = ", ".join(
        f"{key.replace('top', 'Top-')} {value:.1f}{' ± ' + _half_width(bounds[key]) if key in bounds else ''} %"
        for key, value in results["classification"].items()
    )
    legend = (
        f"±: half the width of the 95 % interval over images ({results['bootstrap']['resamples']:,} resamples)\n\n"
        if "bootstrap" in results
        else ""
    )
    fidelity = f"{fidelity_table(results)}\n\n" if any("fidelity" in row for row in results["rows"]) else ""
    cost = f"{cost_table(results)}\n\n" if "cost" in results else ""
    seconds = ", ".join(f"{key} {value:.0f} s" for key, value in results["seconds"].items())
    return (
        f"{results['dataset']} {results['split']}, {results['num_images']:,} images; softmax head: {accuracy}\n\n"
        f"{table(results)}\n\n{legend}{fidelity}{cost}{seconds}"
    )


def threshold_table(results: dict[str, Any]) -> str:
    """A line a row, every localization metric with the threshold that it was read at."""
    named = [
        *((Variant.from_record(row).label, row) for row in results["rows"]),
        ("centre Gaussian", results["center"]),
    ]
    headings = {
        "maxboxacc_v2": "MaxBoxAccV2",
        "maxboxacc_v1": "MaxBoxAcc",
        "gt_loc": "GT-Loc",
        "gt_loc_val": "GT-Loc (val)",
        "pxap": "PxAP",
    }
    shown = [key for key in headings if any(key in row for _, row in named)]
    deltas = list(named[0][1].get("maxboxacc", {}))
    lines = []
    for name, row in named:
        taus = row.get("tau", {})
        cells = {
            key: f"{row[key]:.2f}" + (f" [{taus[key]:g}]" if isinstance(taus.get(key), float) else "")
            for key in shown
            if key in row
        }
        of_delta = [f"{row['maxboxacc'][d]:.2f} [{taus['maxboxacc'][d]:g}]" if taus else "" for d in deltas]
        lines.append([name, *of_delta, *(cells.get(key, "") for key in shown)])
    return tabulate(
        lines,
        ["maps", *(f"@{delta}" for delta in deltas), *(headings[key] for key in shown)],
        disable_numparse=True,
        colalign=["left"] + ["right"] * (len(lines[0]) - 1),
    )


def warn(found: dict[str, Any]) -> None:
    """Log which rows have maps or confidences that could not be used; found: what Evaluation.compute returned."""
    for row in found["rows"]:
        if row["num_degenerate"]:
            log.warning(
                "%s, %s head: %d of %d maps were constant or not finite, and count as zeros",
                row["method"],
                row["head"],
                row["num_degenerate"],
                found["num_images"],
            )
        for head, figures in row.get("fidelity", {}).items():
            if isinstance(figures, dict) and "num_nonfinite" in figures:
                log.warning(
                    "%s, %s head: the %s head's confidence in %d of %d images was not finite; fidelity leaves them out",
                    row["method"],
                    row["head"],
                    head,
                    figures["num_nonfinite"],
                    found["num_images"],
                )


def write_results(run: RunFolder, results: dict[str, Any]) -> None:
    """results.json whole and results.csv, a line a row of the table."""
    run.write("results.json", json.dumps(results, indent=2) + "\n")
    write_csv(run, "results.csv", [flatten(row) for row in results["rows"]])


def write_csv(run: RunFolder, name: str, lines: list[dict[str, Any]]) -> None:
    """A csv file of dicts; a cell is empty where its line lacks the column."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    run.write(name, text.getvalue())


def flatten(row: dict, prefix: str = "") -> dict[str, Any]:
    """{"maxboxacc": {30: 80.0}} → {"maxboxacc_30": 80.0}, at any depth; a pair [a, b] becomes ..._low and ..._high."""
    flat = {}
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, list) and len(value) == 2:
            value = dict(zip(("low", "high"), value, strict=True))
        flat |= flatten(value, f"{name}_") if isinstance(value, dict) else {name: value}
    return flat
