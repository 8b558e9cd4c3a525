"""Score maps + metadata → metrics.

python evaluation.py --dataset_name CUB --split test --scoremap_root FOLDER     # anybody's saved maps
python evaluation.py --help

The names that wsolevaluation has in this module are here as well, from wsol/wsolevaluation.py.
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until wsol.run.command listens: end, and print no traceback

from config import parse_evaluation_args
from wsol.run import command

if __name__ == "__main__":
    command.check_early(parse_evaluation_args)  # the imports below take seconds; --help and mistyped flags should not

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsol.cam import Variant
from wsol.datasets.masks import load_mask_image
from wsol.datasets.reader import SplitMetadata
from wsol.errors import InputError
from wsol.evaluation.results import SCHEMA, versions
from wsol.evaluation.saved_maps import evaluate_saved, find_variants, read_evaluated_split
from wsol.files import write_file
from wsol.log import start_log
from wsol.run import tables
from wsol.wsolevaluation import (
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

__all__ = [
    "BoxEvaluator",
    "LocalizationEvaluator",
    "MaskEvaluator",
    "calculate_multiple_iou",
    "check_box_convention",
    "check_scoremap_validity",
    "compute_bboxes_from_scoremaps",
    "configure_metadata",
    "evaluate_wsol",
    "get_bounding_boxes",
    "get_image_ids",
    "get_image_sizes",
    "get_mask",
    "get_mask_paths",
    "load_mask_image",
    "main",
    "resize_bbox",
]


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
    """The one number of wsolevaluation for a folder of saved maps, in percent; see Localization.performance.

    Args:
        multi_contour_eval: False: only the box of the largest contour counts.
        multi_iou_eval: False: the accuracy at IoU threshold 50 instead of the average.

    Raises InputError, a ValueError: see read_evaluated_split, find_variants and evaluate_saved; or the folder has the
    maps of several variants.
    """
    metadata = read_evaluated_split(metadata_root, dataset_name, split, mask_root)
    files = find_variants(Path(scoremap_root), metadata.image_ids)
    if len(files) > 1:
        raise InputError(f"{scoremap_root} has the maps of {len(files)} variants; give the folder of one")
    evaluation = evaluate_saved(
        metadata,
        files,
        workers=workers,
        interval=cam_curve_interval,
        iou_thresholds=iou_threshold_list,
        judged_by=(multi_contour_eval, multi_iou_eval),
        center=False,
    )
    (localization,) = evaluation.rows.values()
    return localization.performance()


# --------------------------------------------------------------------------- the command


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure saved maps, print the table, write --out; returns the content of that file."""
    args = parse_evaluation_args(argv)
    start_log(keep=False)
    start = time.perf_counter()
    settings = {
        "workers": args.workers,
        "interval": args.cam_curve_interval,
        "iou_thresholds": args.iou_threshold_list,
        "loc_threshold": args.loc_threshold,
        "gt_boxes": args.gt_boxes,
        "judged_by": (args.multi_contour_eval, args.multi_iou_eval),
    }
    maps, val_maps = find_saved(args)
    evaluation = evaluate_saved(*maps, **settings)
    val = None if val_maps is None else evaluate_saved(*val_maps, center=False, **settings)
    metrics = evaluation.compute(val)
    results = {
        "schema": SCHEMA,
        "dataset": args.dataset_name,
        "split": args.split,
        "num_images": metrics["num_images"],
        "config": dict(args),
        "versions": versions(),
        "rows": metrics["rows"],
        "center": metrics["center"],
        "seconds": {"evaluation": round(time.perf_counter() - start, 2)},
    }
    if args.out:  # first: a closed pipe ends the command at the first line printed
        write_file(args.out, json.dumps(results, indent=2) + "\n")
    print(f"{args.dataset_name} {args.split}, {metrics['num_images']:,} images; thresholds in brackets; †: best here\n")
    print(f"{tables.threshold_table(results)}\n")
    for row in results["rows"]:
        label = f" {Variant.from_record(row).label}" if len(results["rows"]) > 1 else ""
        print(f"localization: {row['localization']}{label}")
    return results


SplitMaps = tuple[SplitMetadata, dict[Variant, list[Path]]]


def find_saved(args: Any) -> tuple[SplitMaps, SplitMaps | None]:
    """Metadata and map files of --split and, if its maps are given, of val: all are found before any is measured."""
    metadata = read_evaluated_split(args.metadata_root, args.dataset_name, args.split, args.mask_root)
    files = find_variants(Path(args.scoremap_root), metadata.image_ids)
    if args.val_scoremap_root is None:
        return (metadata, files), None
    val_metadata = read_evaluated_split(args.metadata_root, args.dataset_name, "val", args.mask_root)
    val_files = find_variants(Path(args.val_scoremap_root), val_metadata.image_ids)
    if len(files) == len(val_files) == 1:  # two folders of maps need not have the same name
        val_files = dict(zip(files, val_files.values(), strict=True))
    missing = [variant for variant in files if variant not in val_files]
    if missing:
        raise InputError(
            f"--val_scoremap_root {args.val_scoremap_root} lacks the maps {missing[0]}, which --scoremap_root has"
        )
    return (metadata, files), (val_metadata, {variant: val_files[variant] for variant in files})


def run_from_shell() -> int:
    """main() with the exit codes of a command."""
    return command.run(main)


if __name__ == "__main__":
    sys.exit(run_from_shell())
