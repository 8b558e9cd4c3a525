"""What evaluating 50,000 images costs, part by part, measured on generated JPEGs of ImageNet's usual size.

    python scripts/benchmark_pipeline.py                              # efficientnet_lite0, 10 rows, boxes and masks
    python scripts/benchmark_pipeline.py --architecture resnet50 --device cuda

The parts: decode (a file to a tensor, one process), forward, maps (all rows, beyond the forward pass), resize (raw maps
to score maps on the host), boxes and pixels (the exact metrics, all rows), and records (what is kept of each image, and
written at the end). Each is timed by itself, over --images images in batches, and printed in milliseconds an image. The
plan adds up what happens one after the other, and divides decoding by the loader's processes, beside which it runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from benchmark_data import draw_images
from tabulate import tabulate

from data_loaders import ImageDataset
from wsol import CamExtractor, build, dualize, to_scoremaps
from wsol.backbones import get_architecture
from wsol.datasets.reader import SplitMetadata
from wsol.metrics import BoxAccuracy, PixelAveragePrecision

HEADS = ["softmax", "softmax_clamped", "sigmoid_clamped"]
METHODS = ["cam", "gradcam", "gradcam++", "eigencam"]  # 10 rows with these heads
IMAGES = 50_000


def main() -> None:
    """Time each part, and print them and the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="efficientnet_lite0", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=64, help="measured images (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    args = parser.parse_args()
    device, network = torch.device(args.device), get_architecture(args.architecture)
    torch.manual_seed(0)
    model = dualize(build(args.architecture, pretrained=args.architecture == "efficientnet_lite0", image_size=224))
    model = model.to(device, memory_format=torch.channels_last).eval()
    with tempfile.TemporaryDirectory() as folder:
        draw_images(Path(folder), args.images)
        names = sorted(path.name for path in Path(folder).iterdir())
        labels = np.arange(len(names)) % model.num_classes
        split = SplitMetadata("test", names, labels, Path(folder), Path(folder))
        dataset = ImageDataset(split, crop_size=224, mean=network.mean, std=network.std)
        seconds = measure(args, dataset, labels, model, device)
    report(args, {part: statistics.median(values) / args.images for part, values in seconds.items()}, device)


def measure(
    args: argparse.Namespace, dataset: ImageDataset, labels: np.ndarray, model: torch.nn.Module, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each part for all images, of each round; a first round warms up."""
    seconds: dict[str, list[float]] = {}
    side = np.random.default_rng(0)
    for round in range(args.rounds + 1):
        spent = dict.fromkeys(("decode", "forward", "maps", "resize", "boxes", "pixels", "records"), 0.0)

        def timed(part: str, work: Callable, spent: dict[str, float] = spent) -> object:
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            result = work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            spent[part] += time.perf_counter() - start
            return result

        with CamExtractor(model, METHODS, heads=HEADS) as extract:
            boxes = {v: BoxAccuracy(record=True) for v in extract.variants}
            pixels = {v: PixelAveragePrecision(record=True) for v in extract.variants}
            for start in range(0, len(dataset), args.batch_size):
                indices = range(start, min(start + args.batch_size, len(dataset)))
                images = timed("decode", lambda i=indices: torch.stack([dataset[n][0] for n in i]))
                images = images.to(device, memory_format=torch.channels_last)
                classes = torch.from_numpy(labels[list(indices)]).to(device)
                with torch.no_grad():
                    timed("forward", lambda x=images: model(x))
                raw = timed("maps", lambda x=images, c=classes: extract(x, c))
                maps = timed(
                    "resize",
                    lambda raw=raw: {v: to_scoremaps(m, v.method, (224, 224))[0].cpu().numpy() for v, m in raw.items()},
                )
                corners = side.integers(0, 112, (len(indices), 1, 2))
                truth = list(np.concatenate([corners, corners + side.integers(40, 112, corners.shape)], axis=2))
                masks = np.zeros((len(indices), 224, 224), np.uint8)
                masks[:, 60:160, 50:180] = 1
                right = np.zeros(len(indices), bool)
                timed("boxes", lambda b=boxes, m=maps, t=truth, r=right: [b[v].update(m[v], t, r, r) for v in b])
                timed("pixels", lambda p=pixels, m=maps, k=masks: [p[v].update(m[v], k) for v in p])
            outcomes = timed("records", lambda b=boxes: [metric.records.outcomes() for metric in b.values()])
        spent["maps"] = max(spent["maps"] - spent["forward"], 0.0)  # the extractor runs the network itself
        if round:
            for part, value in spent.items():
                seconds.setdefault(part, []).append(value)
    kept = sum(o.multi.nbytes + o.single.nbytes + o.iou.nbytes for o in outcomes) / len(dataset)
    histograms = sum(metric.records.histograms().nbytes for metric in pixels.values()) / len(dataset)
    print(f"kept of each image, {len(boxes)} rows: boxes {kept:,.0f} bytes; masks {histograms:,.0f} bytes")
    print(f"of {IMAGES:,}: {kept * IMAGES / 2**20:,.0f} MiB; masks are not kept beyond 20,000 images\n")
    return seconds


def report(args: argparse.Namespace, each: dict[str, float], device: torch.device) -> None:
    """The parts, and how long 50,000 images take."""
    cores = len(os.sched_getaffinity(0))
    one_after_another = sum(value for part, value in each.items() if part not in ("decode", "pixels"))
    rows = [[part, 1000 * value, IMAGES * value / 60] for part, value in each.items()]
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{args.architecture}, {where}, {cores} cores; medians of {args.rounds} rounds, batches of {args.batch_size}\n"
    )
    print(tabulate(rows, ["part", "ms an image", f"minutes of {IMAGES:,}"], floatfmt=".2f"))
    print(f"\nforward, maps, resize, boxes and records, one after another: {IMAGES * one_after_another / 60:.0f} min")
    print(f"decoding beside it, {cores} processes: {IMAGES * each['decode'] / cores / 60:.0f} min")
    shared = one_after_another + each["decode"] / cores
    print(f"on a machine where all share {cores} cores: {IMAGES * shared / 60:.0f} min")


if __name__ == "__main__":
    main()
