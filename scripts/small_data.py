"""Curves and a table of each method's figures over the proportion of training images, from the runs of small_data.sh.

    python scripts/small_data.py experiments/small_data --dataset_name CUTOUTS

It writes small_data.png (a line is the mean over seeds, a band goes from the lowest to the highest one), small_data.csv
(every run's figures) and small_data.md (mean and standard deviation) into that folder.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from tabulate import tabulate

from wsol.cam import Variant
from wsol.errors import InputError
from wsol.evaluation.comparison import read_results
from wsol.files import write_file
from wsol.run import command

FIGURES = {"maxboxacc_v2": "MaxBoxAccV2", "pxap": "PxAP", "top1": "Top-1"}
Figures = dict[str, dict[str, dict[float, list[float]]]]  # figure → row → proportion → a value for each seed


def read_runs(root: Path, dataset: str) -> list[dict[str, Any]]:
    """One dict for each row of each run's results, by proportion and seed.

    Raises:
        InputError: no run of the data set has results.
    """
    found = []
    for folder in sorted(root.glob(f"{dataset}-*")):
        if not (folder / "results.json").is_file():
            continue
        results = read_results(folder)
        run = {
            "proportion": float(results["config"]["proportion"]),
            "seed": results["seed"],
            "top1": results["classification"]["top1"],
        }
        for row in results["rows"]:
            figures = {key: row[key] for key in FIGURES if key in row}
            found.append({"row": Variant.from_record(row).label} | run | figures)
    if not found:
        raise InputError(f"{root} has no run of {dataset} with results; scripts/small_data.sh makes them")
    return sorted(found, key=lambda line: (line["proportion"], line["seed"]))


def collect(lines: list[dict[str, Any]]) -> Figures:
    """The values of each figure; the accuracy is that of the classifier, and so no row's."""
    figures: Figures = {key: defaultdict(lambda: defaultdict(list)) for key in FIGURES}
    seen = set()
    for line in lines:
        for key in FIGURES:
            row = "classifier" if key == "top1" else line["row"]
            if key not in line or (key, row, line["proportion"], line["seed"]) in seen:
                continue
            seen.add((key, row, line["proportion"], line["seed"]))
            figures[key][row][line["proportion"]].append(line[key])
    return {key: rows for key, rows in figures.items() if rows}


def draw(figures: Figures, title: str) -> bytes:
    """A PNG with one panel for each figure."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(figures), figsize=(5.2 * len(figures), 4.2), squeeze=False)
    for panel, (key, rows) in zip(axes[0], figures.items(), strict=True):
        for row, points in rows.items():
            x = sorted(points)
            (line,) = panel.plot(x, [mean(points[p]) for p in x], marker="o", markersize=3, label=row)
            low, high = [min(points[p]) for p in x], [max(points[p]) for p in x]
            panel.fill_between(x, low, high, color=line.get_color(), alpha=0.15)
        panel.set_xscale("log")
        panel.set_xticks(x, [f"{p:g}" for p in x], fontsize=7)
        panel.minorticks_off()
        panel.set(xlabel="% of the training images", ylabel=f"{FIGURES[key]} (%)")
        panel.grid(alpha=0.3)
        if len(rows) > 1:
            panel.legend(fontsize=8)
    figure.suptitle(title)
    figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, dpi=130)
    plt.close(figure)
    return content.getvalue()


def tables(figures: Figures) -> str:
    """A Markdown table for each figure: rows by proportions, mean and standard deviation over seeds."""
    parts = []
    for key, rows in figures.items():
        proportions = sorted({p for points in rows.values() for p in points})
        body = [[row, *(_mean_and_sd(points.get(p, [])) for p in proportions)] for row, points in rows.items()]
        headers = [FIGURES[key], *(f"{p:g} %" for p in proportions)]
        parts.append(tabulate(body, headers, tablefmt="github", disable_numparse=True))
    return "\n\n".join(parts) + "\n"


def _mean_and_sd(values: list[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "") if values else ""


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder of the runs")
    parser.add_argument("--dataset_name", default="CUTOUTS", help="default: %(default)s")
    args = parser.parse_args(argv)
    lines = read_runs(args.root, args.dataset_name)
    figures = collect(lines)
    seeds = sorted({line["seed"] for line in lines})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)))
    writer.writeheader()
    writer.writerows(lines)
    write_file(args.root / "small_data.csv", text.getvalue())
    write_file(args.root / "small_data.md", tables(figures))
    title = f"{args.dataset_name}, seeds {', '.join(map(str, seeds))}"
    write_file(args.root / "small_data.png", draw(figures, title))
    print(tables(figures))
    print(f"small_data.png, .csv and .md are in {args.root}")


if __name__ == "__main__":
    sys.exit(command.run(main))
