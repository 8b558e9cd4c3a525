"""Benchmark reading: images with our loader and with bare Pillow; metadata in seconds and memory.

    python scripts/benchmark_data.py                            # draws JPEGs of ImageNet's usual size
    python scripts/benchmark_data.py --images dataset/CUB --workers 8
    python scripts/benchmark_data.py --lines 1281167            # metadata of so many images, in a temporary folder

Rounds of loader and Pillow alternate, so that other load on the machine affects both; medians are printed.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

import cv2
import numpy as np
from PIL import Image

from data_loaders import ImageDataset, make_loader
from wsol.datasets.file_checks import missing_files
from wsol.datasets.images import IMAGE_SUFFIXES
from wsol.datasets.reader import SplitMetadata, read_split
from wsol.datasets.writer import DatasetMetadata, Record, write_metadata

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", type=Path, metavar="DIR", help="folder of images (default: draw JPEGs of 500x375)")
    add("--count", type=int, default=256, help="images per round (default: %(default)s)")
    add("--rounds", type=int, default=5, help="default: %(default)s")
    add("--workers", type=int, default=0, help="processes of our loader (default: %(default)s); Pillow has one")
    add("--batch_size", type=int, default=32, help="default: %(default)s")
    add("--augment", choices=("none", "crop_flip"), default="none", help="default: %(default)s")
    add("--lines", type=int, metavar="N", help="instead of images, read the metadata of N images")
    return parser.parse_args(argv)


def draw_images(folder: Path, count: int) -> None:
    """Draw smooth noise of a photograph's size and detail: 500x375 at JPEG quality 92, about 100 KB each."""
    random = np.random.default_rng(0)
    for i in range(count):
        coarse = random.integers(0, 256, (94, 125, 3), dtype=np.uint8)
        pixels = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC)
        Image.fromarray(pixels).save(folder / f"{i:05}.jpg", quality=92)


def benchmark_images(args: argparse.Namespace, folder: Path) -> None:
    """Time our loader and bare Pillow on the images of a folder."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    names = names[: args.count]
    if not names:
        sys.exit(f"benchmark_data.py: error: no images in {folder}")
    metadata = SplitMetadata("train", names, np.zeros(len(names), dtype=np.int64), folder, folder)
    dataset = ImageDataset(metadata, crop_size=224, mean=MEAN, std=STD, augment=args.augment, resize_size=256)

    def bare() -> None:
        for name in names:
            with Image.open(folder / name) as image:
                image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)

    def loader() -> None:
        for _ in make_loader(dataset, args.batch_size, args.workers):
            pass

    bare_rates: list[float] = []  # images per second
    loader_rates: list[float] = []
    for round in range(args.rounds + 1):
        for rates, work in ((bare_rates, bare), (loader_rates, loader)):
            start = time.perf_counter()
            work()
            if round:  # the first round warms up caches
                rates.append(len(names) / (time.perf_counter() - start))
    ratio = statistics.median(ours / theirs for ours, theirs in zip(loader_rates, bare_rates, strict=True))
    print(f"{len(names)} images, {args.rounds} rounds, {os.cpu_count()} cores")
    print(f"bare Pillow, decode and resize, one process: {statistics.median(bare_rates):8.1f} images/s")
    print(
        f"our loader, {args.workers} workers, batches of {args.batch_size}: {statistics.median(loader_rates):8.1f} "
        f"images/s (also tensor, normalize, collate{', crop, flip' if args.augment != 'none' else ''})"
    )
    print(f"ours / bare: {ratio:.2f}")


def memory() -> float:
    """Peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def benchmark_metadata(count: int, root: Path) -> None:
    """Time the metadata of a split like ILSVRC's train: 1,000 classes, long ids, one box per image."""
    classes = min(1000, count)
    labels = [i * classes // count for i in range(count)]
    pid = os.fork()  # a process of its own, so that the writer's memory does not count
    if not pid:
        records = [
            Record(f"train/n{k:08}/n{k:08}_{i}.JPEG", k, (500, 375), [(10, 20, 400, 300)]) for i, k in enumerate(labels)
        ]
        write_metadata(root, DatasetMetadata({"train": records}, [f"n{k:08}" for k in range(classes)]))
        os._exit(0)
    os.waitpid(pid, 0)
    print(f"{count:,} images; memory before: {memory():,.0f} MB")
    for title, localization in (
        ("ids and labels, as for training", False),
        ("also sizes and boxes, as for evaluation", True),
    ):
        start = time.perf_counter()
        metadata = read_split(root, "train", root, root, with_localization=localization)
        print(f"{title}: {time.perf_counter() - start:.2f} s, peak {memory():,.0f} MB")
        assert len(metadata) == count
    start = time.perf_counter()
    missing_files(root, metadata.image_ids)
    print(f"looking for the files (no folder exists): {time.perf_counter() - start:.2f} s, peak {memory():,.0f} MB")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    args = parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        if args.lines:
            benchmark_metadata(args.lines, Path(folder))
        else:
            if args.images is None:
                draw_images(Path(folder), args.count)
            benchmark_images(args, args.images or Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
