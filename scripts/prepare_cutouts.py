"""Make the data set CUTOUTS: cut-out photographs of objects pasted on photographs, with boxes and masks.

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb stamps     # no root needed
    pip install scikit-image                                                                     # for its photographs
    python scripts/prepare_cutouts.py --cutouts stamps
    python main.py --dataset_name CUTOUTS

Or your own: `--cutouts FOLDER` with one folder of RGBA pictures a class, `--backgrounds FOLDER` with any photographs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wsol.datasets.cutouts import LAYOUTS, make_cutouts
from wsol.datasets.registry import SPLITS
from wsol.datasets.writer import DatasetFolders
from wsol.errors import InputError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cutouts", required=True, metavar="DIR", help="folder of cutouts, or the unpacked tuxpaint-stamps-default"
    )
    parser.add_argument("--layout", choices=LAYOUTS, help="how the cutouts are sorted (default: detected)")
    parser.add_argument(
        "--backgrounds",
        nargs="+",
        default=["skimage", "noise"],
        metavar="DIR",
        help="folders of photos, or the words skimage, noise (default: both)",
    )
    parser.add_argument("--data_root", default="dataset")
    parser.add_argument("--metadata_root", default="metadata")
    parser.add_argument("--mask_root", help="default: data_root")
    parser.add_argument(
        "--name", default="CUTOUTS", help="the data set's name, later --dataset_name (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    for split, number in zip(SPLITS, (60, 15, 30)):
        parser.add_argument(
            f"--{split}", type=int, default=number, metavar="N", help=f"{split} images a class (default: %(default)s)"
        )
    return parser.parse_args(argv)


def _count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        if args.seed < 0:
            raise InputError(f"--seed {args.seed} is negative; seeds count from 0")
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
        )
    except (InputError, OSError) as error:
        print(f"prepare_cutouts.py: error: {error}", file=sys.stderr)
        return 2
    folders = DatasetFolders.named(args.name, args.data_root, args.metadata_root, args.mask_root)
    if not written:
        print(f"{args.name} is there already, nothing was changed: {folders.images}, {folders.metadata}")
        return 0
    counts = [f"{_count_lines(folders.metadata / split / 'image_ids.txt')} {split}" for split in SPLITS]
    classes = (folders.metadata / "classes.txt").read_text(encoding="utf-8").splitlines()
    print(f"{args.name}: {', '.join(counts)} images of {len(classes)} classes ({', '.join(classes)})")
    print(f"images in {folders.images}, metadata in {folders.metadata}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
