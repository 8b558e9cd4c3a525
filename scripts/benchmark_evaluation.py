"""What does evaluation cost? Our metrics beside a plain loop over their definition, measured in the same run.

    python scripts/benchmark_evaluation.py                      # 64 maps of 224 x 224, upsampled from 14 x 14
    python scripts/benchmark_evaluation.py --maps 5 --cells 7
    python scripts/benchmark_evaluation.py --cells 224          # noise

Boxes: the plain loop thresholds each map at every tau, once for all contours and once for the largest, and asks OpenCV
for the contours. Masks: the plain way is np.histogram of the foreground's and of the background's scores, map by map.
Both ways alternate batch by batch. Medians of CPU time on one thread are compared, so that other work on the machine
matters little. The script ends with an error if the numbers differ.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch
from tabulate import tabulate

from wsol.geometry import box_iou
from wsol.log import progress
from wsol.metrics import BoxAccuracy, PixelAveragePrecision, thresholds

IOU_THRESHOLDS = (30, 50, 70)
BATCH = 32  # maps, as in training and evaluation


class Images(NamedTuple):
    """N score maps and their ground truth."""

    maps: np.ndarray  # (N, side, side) float32
    boxes: list[np.ndarray]  # N times (n, 4) int
    masks: np.ndarray  # (N, side, side) uint8


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=positive, default=64, metavar="N", help="number of maps (default: %(default)s)")
    parser.add_argument("--side", type=positive, default=224, help="side of the maps in pixels (default: %(default)s)")
    parser.add_argument(
        "--cells", type=positive, default=14, help="side of the noise that maps are upsampled from (default: 14)"
    )
    parser.add_argument("--interval", type=float, default=0.001, help="step of the thresholds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)
    if not 0 < args.interval <= 1:
        parser.error(f"--interval must lie in (0, 1], got {args.interval}")
    if args.seed < 0:
        parser.error(f"--seed must not be negative, got {args.seed}")
    return args


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1, got {number}")
    return number


def draw_images(count: int, side: int, cells: int, seed: int) -> Images:
    """Noise of cells x cells, upsampled and stretched to [0, 1]; one to three boxes; a mask with an ignored margin."""
    random = np.random.default_rng(seed)
    maps, masks = np.empty((count, side, side), np.float32), np.zeros((count, side, side), np.uint8)
    boxes: list[np.ndarray] = []
    for i in range(count):
        noise = random.random((cells, cells)).astype(np.float32)
        raw = cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
        maps[i] = (raw - raw.min()) / max(raw.max() - raw.min(), 1e-9)
        corners = np.sort(random.integers(0, side, (random.integers(1, 4), 2, 2)), axis=1)
        boxes.append(corners.reshape(-1, 4))
        x0, y0, x1, y1 = boxes[-1][0]
        masks[i, max(y0 - 2, 0) : y1 + 3, max(x0 - 2, 0) : x1 + 3] = 255
        masks[i, y0 : y1 + 1, x0 : x1 + 1] = 1
    return Images(maps, boxes, masks)


def plain_boxes(scoremap: np.ndarray, gt_boxes: np.ndarray, taus: np.ndarray) -> np.ndarray:
    """Whether the map is right, for all contours and the largest one, at each IoU threshold and tau: (2, 3, T) bool."""
    height, width = scoremap.shape
    right = []
    for every_contour in (True, False):
        grey = (scoremap * 255).astype(np.uint8)
        brightest = int(grey.max())
        boxes: list[tuple[int, int, int, int]] = []
        start = []
        for tau in taus:
            _, binary = cv2.threshold(grey, int(tau * brightest), 255, cv2.THRESH_BINARY)
            contours, _ = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
            if contours and not every_contour:
                contours = [max(contours, key=cv2.contourArea)]
            start.append(len(boxes))
            for x, y, w, h in map(cv2.boundingRect, contours):
                boxes.append((x, y, min(x + w, width - 1), min(y + h, height - 1)))
            if not contours:
                boxes.append((0, 0, 0, 0))
        best = np.maximum.reduceat(box_iou(np.array(boxes), gt_boxes).max(axis=1), start)
        right.append([best >= delta / 100 for delta in IOU_THRESHOLDS])
    return np.array(right)


def plain_pixels(scoremap: np.ndarray, mask: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Foreground and background pixels in each bin, (2, bins)."""
    return np.stack([np.histogram(scoremap[mask == value], edges)[0] for value in (1, 0)])


def timed(
    function: Callable[..., Any], *arguments: Any, clock: Callable[[], float] = time.thread_time
) -> tuple[float, Any]:
    """Seconds by a clock (CPU time of this thread), and what the function returned."""
    start = clock()
    result = function(*arguments)
    return clock() - start, result


def batches(images: Images, title: str) -> Iterator[Images]:
    """The images in batches, with a progress bar."""
    for start in progress(range(0, len(images.maps), BATCH), title):
        batch = slice(start, start + BATCH)
        yield Images(images.maps[batch], images.boxes[batch], images.masks[batch])


def compare_boxes(images: Images, interval: float) -> tuple[list[float], list[float]]:
    """Seconds per map of the plain loop and of ours, each from the map to the metric."""
    taus = thresholds(interval)
    side = images.maps.shape[1]
    BoxAccuracy(interval, IOU_THRESHOLDS, resolution=side).update(images.maps[:1], images.boxes[:1])  # compiles
    metric = BoxAccuracy(interval, IOU_THRESHOLDS, resolution=side, threads=1)
    count, plain, ours = np.zeros((2, len(IOU_THRESHOLDS), len(taus)), np.int64), [], []
    for batch in batches(images, "boxes"):
        for scoremap, gt_boxes in zip(batch.maps, batch.boxes, strict=True):
            seconds, right = timed(plain_boxes, scoremap, gt_boxes, taus)
            count += right
            plain.append(seconds)
        ours.append(timed(metric.update, batch.maps, batch.boxes)[0] / len(batch.maps))
    num_maps = len(images.maps)
    seconds, metrics = timed(metric.compute)
    best = (count * 100.0 / num_maps).max(axis=2)
    if (
        metrics["maxboxacc"] != dict(zip(IOU_THRESHOLDS, best[0].tolist(), strict=True))
        or metrics["maxboxacc_v1"] != best[1, 1]
        or not np.array_equal(metric.state()["multi"][:, :-1], count[0])
    ):
        sys.exit("benchmark_evaluation.py: error: the metric and the plain loop differ")
    return plain, [spent + seconds / num_maps for spent in ours]


def compare_pixels(images: Images, interval: float) -> tuple[list[float], list[float]]:
    """Seconds per map of np.histogram and of ours."""
    edges = np.append(thresholds(interval), [2.0, 3.0])
    side = images.maps.shape[1]
    metric = PixelAveragePrecision(interval, resolution=side, threads=1)
    count, plain, ours = np.zeros((2, len(edges) - 1), np.int64), [], []
    for batch in batches(images, "masks"):
        for scoremap, mask in zip(batch.maps, batch.masks, strict=True):
            seconds, pixels = timed(plain_pixels, scoremap, mask, edges)
            count += pixels
            plain.append(seconds)
        ours.append(timed(metric.update, batch.maps, batch.masks)[0] / len(batch.maps))
    seconds, _ = timed(metric.compute)
    if not np.array_equal(list(metric.state().values()), count):
        sys.exit("benchmark_evaluation.py: error: the metric and np.histogram differ")
    return plain, [spent + seconds / len(images.maps) for spent in ours]


def scaling(images: Images, interval: float, rounds: int = 5) -> list[tuple[int, float]]:
    """Wall-clock seconds per map of BoxAccuracy.update with 1, 2, 4, ... threads, up to the number of cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    numbers = sorted({1 << i for i in range(cores.bit_length())} | {cores})
    spent: dict[int, list[float]] = {threads: [] for threads in numbers}
    for _ in progress(range(rounds), "threads", "round"):
        for threads in numbers:
            metric = BoxAccuracy(interval, IOU_THRESHOLDS, resolution=images.maps.shape[1], threads=threads)
            spent[threads].append(timed(metric.update, images.maps, images.boxes, clock=time.perf_counter)[0])
    return [(threads, statistics.median(seconds) / len(images.maps)) for threads, seconds in spent.items()]


def main(argv: list[str] | None = None) -> int:
    """Run the comparisons and print the tables."""
    args = parse_args(argv)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    images = draw_images(args.maps, args.side, args.cells, args.seed)
    rows = []
    for title, compare in (
        ("boxes: OpenCV, threshold by threshold", compare_boxes),
        ("masks: np.histogram", compare_pixels),
    ):
        plain, ours = (statistics.median(seconds) for seconds in compare(images, args.interval))
        rows.append((title, 1e3 * plain, 1e3 * ours, plain / ours, args.side**2 / ours / 1e6))
    print(
        f"{args.maps} maps of {args.side} x {args.side} from {args.cells} x {args.cells}, "
        f"{len(thresholds(args.interval))} thresholds, seed {args.seed}; CPU time, one thread; equal numbers"
    )
    print(
        tabulate(
            rows,
            ("plain implementation", "plain, ms/map", "ours, ms/map", "plain / ours", "ours, Mpixel/s"),
            floatfmt=("", ".2f", ".3f", ".1f", ".1f"),
        )
    )
    print()
    by_threads = scaling(images, args.interval)
    print(
        tabulate(
            [(threads, 1e3 * seconds, by_threads[0][1] / seconds) for threads, seconds in by_threads],
            ("threads", "boxes, ms/map", "speed-up"),
            floatfmt=("", ".3f", ".2f"),
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
