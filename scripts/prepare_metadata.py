"""Make, copy and check metadata: what the program knows about a data set (format: metadata/README.md).

    python scripts/prepare_metadata.py copy ../wsolevaluation                        # or a git URL
    python scripts/prepare_metadata.py copy ../wsolevaluation --datasets CUB --splits val
    python scripts/prepare_metadata.py cub CUB_200_2011
    python scripts/prepare_metadata.py cars car_devkit
    python scripts/prepare_metadata.py ilsvrc --annotations bbox_val --synsets LOC_synset_mapping.txt --train train
    python scripts/prepare_metadata.py folder pictures --name Birds --masks pictures/masks
    python scripts/prepare_metadata.py check CUB

Existing files are replaced only with --force. A data set or split appears complete or not at all.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from wsol.datasets.check import check_dataset
from wsol.datasets.copying import copy_metadata
from wsol.datasets.folder import read_folder
from wsol.datasets.official.cars import read_cars
from wsol.datasets.official.cub import read_cub
from wsol.datasets.official.ilsvrc import read_ilsvrc
from wsol.datasets.publish import publish_metadata
from wsol.datasets.registry import SPLITS, dataset_info, image_root
from wsol.datasets.writer import DatasetMetadata
from wsol.run import command

# Name of an official data set → what the folder given by --images contains.
IMAGES_HELP = {"CUB": "the class folders", "CARS": "cars_train and cars_test", "ILSVRC": "val"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `args.run` is the function that carries out the chosen command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(run=run)
        added.add_argument("--metadata_root", type=Path, default=Path("metadata"), help="default: %(default)s")
        return added

    def maker(name: str, help: str, dataset: str = "") -> argparse.ArgumentParser:
        added = command(name, run_maker, help)
        add_force(added)
        if dataset:
            added.add_argument("--name", default=dataset, help="name of the data set (default: %(default)s)")
            per_split = "; {split} in its name stands for train and test" if dataset == "CARS" else ""
            added.add_argument(
                "--sizes",
                type=Path,
                metavar="FILE",
                help=f"path,width,height lines, instead of reading the images{per_split}",
            )
            added.add_argument(
                "--images", type=Path, metavar="DIR", help=f"folder that contains {IMAGES_HELP[dataset]}"
            )
        return added

    def add_force(added: argparse.ArgumentParser) -> None:
        added.add_argument("--force", action="store_true", help="replace splits that exist already")

    copy = command("copy", run_copy, "copy from a checkout of wsolevaluation or Dual-CAM, another folder, or a git URL")
    add_force(copy)
    copy.add_argument("source", metavar="FOLDER_OR_URL")
    copy.add_argument("--datasets", nargs="+", default=[], metavar="NAME", help="default: all in the source")
    copy.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="default: all")

    cub = maker("cub", "from CUB-200-2011's text files: train and test (val, CUBv2, can only be copied)", "CUB")
    cub.add_argument("source", type=Path, metavar="CUB_200_2011")

    cars = maker("cars", "from the devkit of Stanford Cars: train and test; needs SciPy", "CARS")
    cars.add_argument("source", type=Path, metavar="DEVKIT")

    ilsvrc = maker(
        "ilsvrc",
        "from ILSVRC 2012's annotations: test (ImageNet's val) and train (val can only be copied)",
        "ILSVRC",
    )
    add = ilsvrc.add_argument
    add("--annotations", type=Path, metavar="DIR", help="folder of ILSVRC2012_val_*.xml: gives the test split")
    add("--synsets", type=Path, metavar="FILE", help="LOC_synset_mapping.txt, or lines that begin with a WordNet id")
    add("--train", type=Path, metavar="DIR_OR_FILE", help="the class folders, or train_cls.txt: gives the train split")
    add("--ground_truth", type=Path, metavar="FILE", help="ILSVRC2012_validation_ground_truth.txt, to compare with")
    add("--meta", type=Path, metavar="FILE", help="meta.mat of the development kit; --ground_truth needs it")

    folder = maker("folder", "from your own pictures in SOURCE/images/<class>/ or SOURCE/images/<split>/<class>/")
    add = folder.add_argument
    add("source", type=Path, metavar="SOURCE")
    add("--name", required=True, help="name of the data set, for --dataset_name")
    add("--coco", type=Path, metavar="FILE", help="boxes from COCO json")
    add("--voc", type=Path, metavar="DIR", help="boxes from Pascal VOC XML")
    add("--masks", type=Path, metavar="DIR", help="masks below SOURCE: x.png or x_1.png ..., x_ignore.png for x.jpg")
    add(
        "--split",
        type=float,
        nargs=3,
        default=(0.7, 0.1, 0.2),
        metavar=("TRAIN", "VAL", "TEST"),
        help="shares of each class (default: 0.7 0.1 0.2)",
    )
    add("--seed", type=int, default=0, help="random seed for drawing the splits (default: %(default)s)")
    add("--data_root", type=Path, default=Path("dataset"), help="DATA_ROOT/NAME becomes a link to SOURCE")

    check = command(
        "check", run_check, "report counts, missing files, boxes outside images, classes without images ..."
    )
    add = check.add_argument
    add("name", metavar="NAME")
    add("--data_root", type=Path, default=Path("dataset"), help="default: %(default)s")
    add("--mask_root", type=Path, help="default: DATA_ROOT")
    add("--metadata_only", action="store_true", help="do not look for images and masks")
    add("--per_class", action="store_true", help="print the number of images of every class")
    return parser.parse_args(argv)


def run_copy(args: argparse.Namespace) -> int:
    """Copy metadata; exit code 0."""
    copy_metadata(args.source, args.metadata_root, args.datasets, args.splits, force=args.force)
    return 0


def run_maker(args: argparse.Namespace) -> int:
    """Read annotations and write them as metadata; exit code 0."""
    metadata = read_annotations(args)
    folder = args.metadata_root / args.name
    added = publish_metadata(folder, metadata, force=args.force)
    counts = ", ".join(f"{len(records):,} {split}" for split, records in metadata.records.items())
    outcome = (
        f"{', '.join(added)} written to {folder}" if added else f"nothing was changed, {folder} has the same files"
    )
    print(f"{args.name}: {counts} images of {len(metadata.class_names):,} classes; {outcome}")
    if args.command == "folder":
        link(args.data_root / args.name, args.source)
    return 0


def read_annotations(args: argparse.Namespace) -> DatasetMetadata:
    """The metadata that the chosen command makes."""
    if args.command == "cub":
        return read_cub(args.source, images=args.images, sizes_file=args.sizes)
    if args.command == "cars":
        return read_cars(args.source, images=args.images, sizes_file=args.sizes)
    if args.command == "ilsvrc":
        return read_ilsvrc(
            args.annotations,
            synsets=args.synsets,
            train=args.train,
            images=args.images,
            sizes_file=args.sizes,
            ground_truth=args.ground_truth,
            meta=args.meta,
        )
    return read_folder(args.source, coco=args.coco, voc=args.voc, masks=args.masks, shares=args.split, seed=args.seed)


def link(path: Path, source: Path) -> None:
    """Make `path` a link to the user's pictures, unless something is there."""
    if not os.path.lexists(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(source.resolve())
        print(f"{path} is now a link to {source.resolve()}")
    elif path.resolve() != source.resolve():
        print(f"note: {path} exists already and is not {source}; image ids are paths below {source}")


def run_check(args: argparse.Namespace) -> int:
    """Print a summary and all problems; exit code 1 if there is a problem."""
    report = check_dataset(
        args.metadata_root / args.name,
        {split: image_root(args.name, args.data_root, split) for split in SPLITS},
        (args.mask_root or args.data_root) / args.name,
        num_classes=dataset_info(args.name).num_classes,
        look_for_files=not args.metadata_only,
        per_class=args.per_class,
    )
    print("\n".join(report.summary))
    for problem in report.problems:
        print(f"wrong: {problem}")
    count = len(report.problems)
    print(f"{args.name}: " + (f"{count} problem{'s' if count > 1 else ''}" if count else "nothing is wrong"))
    return 1 if report.problems else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(command.run(main))
