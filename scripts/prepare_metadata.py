"""Make, copy and check metadata: what the program knows about a data set (format: metadata/README.md).

    python scripts/prepare_metadata.py copy ../wsolevaluation                        # or a git URL
    python scripts/prepare_metadata.py copy ../wsolevaluation --datasets CUB --splits val
    python scripts/prepare_metadata.py cub CUB_200_2011
    python scripts/prepare_metadata.py cars car_devkit
    python scripts/prepare_metadata.py ilsvrc --annotations bbox_val --synsets LOC_synset_mapping.txt --train train
    python scripts/prepare_metadata.py folder pictures --name Birds --masks pictures/masks
    python scripts/prepare_metadata.py check CUB

Nothing that is there is replaced without --force, and a data set or split appears whole or not at all.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wsol.datasets.check import check
from wsol.datasets.copying import copy_metadata
from wsol.datasets.folder import read_folder
from wsol.datasets.official.cars import read_cars
from wsol.datasets.official.cub import read_cub
from wsol.datasets.official.ilsvrc import read_ilsvrc
from wsol.datasets.publish import publish_metadata
from wsol.datasets.registry import SPLITS, dataset_info, image_root
from wsol.errors import InputError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str, of: str = ""):
        made = commands.add_parser(name, help=help, description=help)
        made.add_argument("--metadata_root", type=Path, default=Path("metadata"))
        if name != "check":
            made.add_argument("--force", action="store_true", help="replace splits that are there already")
        if of:
            made.add_argument("--name", default=of, help="the data set's name (default: %(default)s)")
            more = "; {split} in it stands for train and test" if of == "CARS" else ""
            made.add_argument(
                "--sizes", type=Path, metavar="FILE", help=f"path,width,height lines, in place of reading images{more}"
            )
            below = {"CUB": "the class folders", "CARS": "cars_train and cars_test", "ILSVRC": "val"}[of]
            made.add_argument("--images", type=Path, metavar="DIR", help=f"the folder that holds {below}")
        return made.add_argument

    add = command("copy", "copy from a checkout of wsolevaluation or Dual-CAM, another folder, or a git URL")
    add("source", metavar="FOLDER_OR_URL")
    add("--datasets", nargs="+", default=[], metavar="NAME", help="default: all that are there")
    add("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))

    command("cub", "from CUB-200-2011's text files: train and test; val (CUBv2) can only be copied", of="CUB")(
        "source", type=Path, metavar="CUB_200_2011"
    )
    command("cars", "from Stanford Cars' devkit: train and test; needs SciPy", of="CARS")(
        "source", type=Path, metavar="DEVKIT"
    )

    add = command(
        "ilsvrc", "from ILSVRC 2012's annotations: test (ImageNet's val) and train; val can only be copied", of="ILSVRC"
    )
    add("--annotations", type=Path, metavar="DIR", help="ILSVRC2012_val_*.xml: gives the test split")
    add("--synsets", type=Path, metavar="FILE", help="LOC_synset_mapping.txt, or lines that begin with a WordNet id")
    add("--train", type=Path, metavar="DIR_OR_FILE", help="the class folders, or train_cls.txt: gives the train split")
    add("--ground_truth", type=Path, metavar="FILE", help="ILSVRC2012_validation_ground_truth.txt, to compare with")
    add("--meta", type=Path, metavar="FILE", help="meta.mat of the development kit, which --ground_truth needs")

    add = command("folder", "from your own pictures in SOURCE/images/<class>/ or SOURCE/images/<split>/<class>/")
    add("source", type=Path, metavar="SOURCE")
    add("--name", required=True, help="the data set's name, later --dataset_name")
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
    add("--seed", type=int, default=0)
    add("--data_root", type=Path, default=Path("dataset"), help="DATA_ROOT/NAME becomes a link to SOURCE")

    add = command("check", "counts, missing files, boxes outside images, labels without images and the like")
    add("name", metavar="NAME")
    add("--data_root", type=Path, default=Path("dataset"))
    add("--mask_root", type=Path, help="default: data_root")
    add("--metadata_only", action="store_true", help="do not look for images and masks")
    add("--per_class", action="store_true", help="print the images of every class")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    if args.command == "copy":
        copy_metadata(args.source, args.metadata_root, args.datasets, args.splits, force=args.force)
        return 0
    if args.command == "check":
        return report(args)
    if args.command == "cub":
        made = read_cub(args.source, images=args.images, sizes_file=args.sizes)
    elif args.command == "cars":
        made = read_cars(args.source, images=args.images, sizes_file=args.sizes)
    elif args.command == "ilsvrc":
        made = read_ilsvrc(
            args.annotations,
            synsets=args.synsets,
            train=args.train,
            images=args.images,
            sizes_file=args.sizes,
            ground_truth=args.ground_truth,
            meta=args.meta,
        )
    else:
        made = read_folder(
            args.source, coco=args.coco, voc=args.voc, masks=args.masks, shares=args.split, seed=args.seed
        )
    folder = args.metadata_root / args.name
    added = publish_metadata(folder, made, force=args.force)
    counts = ", ".join(f"{len(records):,} {split}" for split, records in made.records.items())
    print(
        f"{args.name}: {counts} images of {len(made.class_names):,} classes; "
        + (f"{', '.join(added)} written to {folder}" if added else f"nothing was changed, {folder} holds the same")
    )
    if args.command == "folder":
        link(args.data_root / args.name, args.source)
    return 0


def link(path: Path, source: Path) -> None:
    """Where there is nothing at `path`, a link to the user's pictures."""
    if not os.path.lexists(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(source.resolve())
        print(f"{path} is now a link to {source.resolve()}")
    elif path.resolve() != source.resolve():
        print(f"note: {path} is there already and is not {source}; the ids are paths below {source}")


def report(args: argparse.Namespace) -> int:
    """Print what is there and what is wrong; exit code 1 if anything is."""
    images = {split: image_root(args.name, args.data_root, split) for split in SPLITS}
    found = check(
        args.metadata_root / args.name,
        images,
        (args.mask_root or args.data_root) / args.name,
        num_classes=dataset_info(args.name).num_classes,
        look_for_files=not args.metadata_only,
        per_class=args.per_class,
    )
    print("\n".join(found.facts))
    for problem in found.problems:
        print(f"wrong: {problem}")
    print(f"{args.name}: " + (f"{len(found.problems)} problems" if found.problems else "nothing is wrong"))
    return 1 if found.problems else 0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        return run(args)
    except (InputError, OSError) as error:
        print(f"prepare_metadata.py: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
