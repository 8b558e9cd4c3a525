"""What an evaluation leaves in the run folder: results.json, results.csv, per_class.csv, per_image.npz, warnings."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from wsol.cam import Variant
from wsol.evaluation.per_image import PerImage
from wsol.evaluation.results import flatten
from wsol.log import log
from wsol.run.folder import RunFolder


def write(run: RunFolder, results: dict[str, Any], images: PerImage, class_names: Sequence[str]) -> None:
    """Write everything: the numbers of single images, those of classes, and the results."""
    images.write(run.output)
    taus = {str(Variant.from_record(row)): row.get("tau", {}) for row in results["rows"]}
    write_csv(run, "per_class.csv", images.per_class(taus, class_names))
    write_results(run, results)


def write_results(run: RunFolder, results: dict[str, Any]) -> None:
    """Write results.json, and its rows as results.csv."""
    run.write("results.json", json.dumps(results, indent=2) + "\n")
    write_csv(run, "results.csv", [flatten(row) for row in results["rows"]])


def write_csv(run: RunFolder, name: str, lines: Sequence[dict[str, Any]]) -> None:
    """Write dicts as a csv file; a cell is empty where its line lacks the column."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    run.write(name, text.getvalue())


def warn(metrics: dict[str, Any]) -> None:
    """Log which rows have maps or confidences that could not be used; metrics: see `Evaluation.compute`."""
    num_images = metrics["num_images"]
    for row in metrics["rows"]:
        label = Variant.from_record(row).label
        if row["num_degenerate"]:
            log.warning(
                "%s: %d of %d maps are constant or not finite; they count as zeros",
                label,
                row["num_degenerate"],
                num_images,
            )
        for head, figures in row.get("fidelity", {}).items():
            if isinstance(figures, dict) and "num_nonfinite" in figures:
                log.warning(
                    "%s: the confidence of the %s head is not finite in %d of %d images; fidelity leaves them out",
                    label,
                    head,
                    figures["num_nonfinite"],
                    num_images,
                )
