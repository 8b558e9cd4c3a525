"""Score maps + metadata → metrics.

    python evaluation.py --dataset_name CUB --split test --scoremap_root FOLDER     # anybody's saved maps
    python evaluation.py --help

wsolevaluation's names of this module are here, too; wsol/wsolevaluation.py has them.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from config import parse_evaluation_args
from wsol.cam import Variant
from wsol.datasets.masks import load_mask_image  # noqa: F401  (one of wsolevaluation's names, as those below)
from wsol.datasets.reader import SplitMetadata
from wsol.errors import InputError
from wsol.evaluation.saved_maps import evaluate_saved, find_rows, read_evaluated_split
from wsol.files import write_file
from wsol.log import start_log
from wsol.run import command, report
from wsol.wsolevaluation import (  # noqa: F401
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

# --------------------------------------------------------------------------- saved maps


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
    """wsolevaluation's one number for a folder of saved maps, per cent, see Localization.performance.

    Raises InputError, a ValueError: see read_evaluated_split, find_rows, evaluate_saved; the folder holds several rows.
    """
    metadata = read_evaluated_split(metadata_root, dataset_name, split, mask_root)
    files = find_rows(Path(scoremap_root), metadata.image_ids)
    if len(files) > 1:
        raise InputError(f"{scoremap_root} holds the maps of {len(files)} rows; name the folder of one")
    found = evaluate_saved(
        metadata, files, workers=workers, interval=cam_curve_interval, iou_thresholds=iou_threshold_list, center=False
    )
    return next(iter(found.rows.values())).performance(multi_contour_eval, multi_iou_eval)


# --------------------------------------------------------------------------- the command


def main(argv: list[str] | None = None) -> dict:
    """Measure saved maps, print the table, write --out; returns what that holds."""
    args = parse_evaluation_args(argv)
    start_log(keep=False)
    start = time.perf_counter()
    splits = find_saved(args)
    evaluation, val = (
        evaluate_saved(
            *split,
            workers=args.workers,
            interval=args.cam_curve_interval,
            iou_thresholds=args.iou_threshold_list,
            loc_threshold=args.loc_threshold,
            gt_boxes=args.gt_boxes,
        )
        if split
        else None
        for split in splits
    )
    found = evaluation.compute(val)
    for row, measured in zip(found["rows"], evaluation.rows.values(), strict=True):
        row["localization"] = measured.performance(args.multi_contour_eval, args.multi_iou_eval)
    results = {
        "schema": report.SCHEMA,
        "dataset": args.dataset_name,
        "split": args.split,
        "num_images": found["num_images"],
        "config": dict(args),
        "versions": report.versions(),
        "rows": found["rows"],
        "center": found["center"],
        "seconds": {"evaluation": round(time.perf_counter() - start, 2)},
    }
    print(
        f"{args.dataset_name} {args.split}, {found['num_images']:,} images; thresholds in brackets\n\n"
        f"{report.threshold_table(results)}\n"
    )
    for row in results["rows"]:
        print(
            "localization:",
            row["localization"],
            *([Variant.from_record(row).label] if len(results["rows"]) > 1 else []),
        )
    if args.out:
        write_file(args.out, json.dumps(results, indent=2) + "\n")
    return results


def find_saved(args) -> list[tuple[SplitMetadata, dict[Variant, list[Path]]] | None]:
    """Metadata and map files of --split and, if its maps are given, of val: all are found before any is measured."""
    splits = []
    for split, root in ((args.split, args.scoremap_root), ("val", args.val_scoremap_root)):
        if root is None:
            splits.append(None)
            continue
        metadata = read_evaluated_split(args.metadata_root, args.dataset_name, split, args.mask_root)
        splits.append((metadata, find_rows(Path(root), metadata.image_ids)))
    if splits[1] is not None:
        wanted, of_val = splits[0][1], splits[1][1]
        if len(wanted) == len(of_val) == 1:  # two folders of maps need not have the same name
            of_val = dict(zip(wanted, of_val.values(), strict=True))
        lacking = [row for row in wanted if row not in of_val]
        if lacking:
            raise InputError(
                f"--val_scoremap_root {args.val_scoremap_root} lacks the maps {lacking[0]}, which --scoremap_root has"
            )
        splits[1] = splits[1][0], {row: of_val[row] for row in wanted}
    return splits


def run_from_shell() -> int:
    """main() with the exit codes of a command."""
    return command.run(main)


if __name__ == "__main__":
    sys.exit(run_from_shell())
