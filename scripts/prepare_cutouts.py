"""Make the data set CUTOUTS: cut-out photographs of objects pasted on photographs, with boxes and masks.

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb stamps     # no root needed
    pip install scikit-image                                                                     # for its photographs
    python scripts/prepare_cutouts.py --cutouts stamps
    python main.py --dataset_name CUTOUTS

For your own cutouts: `--cutouts FOLDER` with one subfolder of RGBA pictures per class, and `--backgrounds FOLDER` with
any photographs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from wsol.datasets.cutouts import LAYOUTS, make_cutouts
from wsol.datasets.reader import read_ids, read_lines
from wsol.datasets.registry import SPLITS
from wsol.datasets.writer import DatasetFolders
from wsol.run import command
from wsol.run.flag_types import positive, random_seed


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cutouts", required=True, metavar="DIR", help="folder of cutouts, or the unpacked tuxpaint-stamps-default")
    add("--layout", choices=LAYOUTS, help="how the cutouts are sorted into folders (default: detected)")
    add(
        "--backgrounds",
        nargs="+",
        default=["skimage", "noise"],
        metavar="DIR",
        help="folders of photographs, or the words skimage and noise (default: both words)",
    )
    add("--data_root", default="dataset", help="default: %(default)s")
    add("--metadata_root", default="metadata", help="default: %(default)s")
    add("--mask_root", help="default: DATA_ROOT")
    add("--name", default="CUTOUTS", help="name of the data set, for --dataset_name (default: %(default)s)")
    add("--seed", type=random_seed, default=0, help="random seed (default: %(default)s)")
    for split, number in zip(SPLITS, (60, 15, 30), strict=True):
        add(
            f"--{split}",
            type=positive,
            default=number,
            metavar="N",
            help=f"{split} images per class (default: {number})",
        )
    add(
        "--seamless",
        action="store_true",
        help="soft edges, matched colours, and blur, noise and compression everywhere",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    written = make_cutouts(
        args.cutouts,
        args.data_root,
        args.metadata_root,
        args.mask_root,
        name=args.name,
        layout=args.layout,
        backgrounds=args.backgrounds,
        seed=args.seed,
        images_per_class=(args.train, args.val, args.test),
        seamless=args.seamless,
    )
    folders = DatasetFolders.named(args.name, args.data_root, args.metadata_root, args.mask_root)
    if not written:
        print(f"{args.name} exists already, nothing was changed: {folders.images}, {folders.metadata}")
        return
    counts = [f"{len(read_ids(folders.metadata / split / 'image_ids.txt'))} {split}" for split in SPLITS]
    classes = read_lines(folders.metadata / "classes.txt")
    print(f"{args.name}: {', '.join(counts)} images of {len(classes)} classes ({', '.join(classes)})")
    print(f"images in {folders.images}, metadata in {folders.metadata}")


if __name__ == "__main__":
    sys.exit(command.run(main))
