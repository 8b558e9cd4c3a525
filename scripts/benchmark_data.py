"""How fast are data read? Images through our loader beside a bare PIL decode and resize; metadata in seconds and memory.

    python scripts/benchmark_data.py                            # JPEGs of ImageNet's usual size, drawn for this
    python scripts/benchmark_data.py --images dataset/CUB --workers 8
    python scripts/benchmark_data.py --lines 1281167            # metadata of as many images, in a temporary folder

Rounds of both alternate, so that what else the machine does falls on both; medians are printed.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2  # noqa: E402 - the line above makes the project importable
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from data_loaders import ImageDataset, make_loader  # noqa: E402
from wsol.datasets.file_checks import missing_files  # noqa: E402
from wsol.datasets.images import IMAGE_SUFFIXES  # noqa: E402
from wsol.datasets.reader import (
    SplitMetadata,  # noqa: E402
    read_split,  # noqa: E402
)
from wsol.datasets.writer import DatasetMetadata, Record, write_metadata  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of images (default: 500x375 JPEGs are drawn)"
    )
    parser.add_argument("--count", type=int, default=256, help="images a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=0, help="of our loader; the bare loop has one process")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--augment", choices=("none", "crop_flip"), default="none")
    parser.add_argument("--lines", type=int, metavar="N", help="time metadata of N images instead of images")
    return parser.parse_args(argv)


def draw_images(folder: Path, count: int) -> None:
    """Photographs' size and detail: smooth noise of 500x375 at JPEG quality 92, about 100 KB each."""
    random = np.random.default_rng(0)
    for i in range(count):
        coarse = random.integers(0, 256, (94, 125, 3), dtype=np.uint8)
        pixels = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC)
        Image.fromarray(pixels).save(folder / f"{i:05}.jpg", quality=92)


def benchmark_images(args: argparse.Namespace, folder: Path) -> None:
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

    def ours() -> None:
        for _ in make_loader(dataset, args.batch_size, args.workers):
            pass

    rates: dict[str, list[float]] = {"bare": [], "ours": []}
    for round in range(args.rounds + 1):
        for name, work in (("bare", bare), ("ours", ours)):
            start = time.perf_counter()
            work()
            if round:  # the first warms caches up
                rates[name].append(len(names) / (time.perf_counter() - start))
    median = {name: statistics.median(found) for name, found in rates.items()}
    ratio = statistics.median(o / b for o, b in zip(rates["ours"], rates["bare"], strict=True))
    print(f"{len(names)} images, {args.rounds} rounds, {os.cpu_count()} cores")
    print(f"bare PIL decode + resize, one process:   {median['bare']:8.1f} images/s")
    print(
        f"our loader, workers {args.workers}, batches of {args.batch_size}: {median['ours']:8.1f} images/s "
        f"(+ tensor, normalise, collate{', crop, flip' if args.augment != 'none' else ''})"
    )
    print(f"ours / bare: {ratio:.2f}")


def memory() -> float:
    """The most memory that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def benchmark_metadata(count: int, root: Path) -> None:
    """ILSVRC's train split in kind: 1,000 classes, ids train/<wnid>/<wnid>_<number>.JPEG; one box an image."""
    classes = min(1000, count)
    labels = [i * classes // count for i in range(count)]
    pid = os.fork()  # what the writer holds is not to count as the reader's peak
    if not pid:
        records = [
            Record(f"train/n{k:08}/n{k:08}_{i}.JPEG", k, (500, 375), [(10, 20, 400, 300)]) for i, k in enumerate(labels)
        ]
        write_metadata(root, DatasetMetadata({"train": records}, [f"n{k:08}" for k in range(classes)]))
        os._exit(0)
    os.waitpid(pid, 0)
    print(f"{count:,} images; memory before: {memory():,.0f} MB")
    for title, wants in (("ids and labels, as for training", False), ("sizes and boxes, too, as for evaluation", True)):
        start = time.perf_counter()
        metadata = read_split(root, "train", root, root, with_localization=wants)
        print(f"{title}: {time.perf_counter() - start:.2f} s, peak {memory():,.0f} MB")
        assert len(metadata) == count
    start = time.perf_counter()
    missing_files(root, metadata.image_ids)
    print(f"looking for the files (no folder is there): {time.perf_counter() - start:.2f} s, peak {memory():,.0f} MB")


def main(argv: list[str] | None = None) -> int:
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
