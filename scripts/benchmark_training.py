"""Benchmark training: heads on cached features, steps of a network in each precision, maps and evaluation.

    python scripts/benchmark_training.py                        # cached features against training on the images
    python scripts/benchmark_training.py --parts steps,maps     # images per second, for a GPU
    python scripts/benchmark_training.py --parts steps --out figures.json

`features` draws JPEGs, and trains the head of the default network on them by `python main.py` itself: the pass that
computes the features once, ten epochs with the features kept, ten without, and ten with four augmented views of each
image. Each epoch measures val.

`steps` trains every layer of --architecture on random images that are already on the device: float32, --amp bf16 and
fp16, compiled or not, deterministic or not. `maps` makes the maps of --methods for both heads and measures them against
boxes, as `python main.py` does after training. Rounds of all settings alternate, so that other load affects all of
them; medians are printed, and ratios to float32.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

import numpy as np
import torch
from benchmark_data import draw_images
from tabulate import tabulate

import main as program
from config import parse_args as parse_args_of_main
from wsol import CamExtractor, build, dualize, to_scoremaps
from wsol.datasets.writer import DatasetMetadata, Record, write_metadata
from wsol.features import cache_features
from wsol.files import write_file
from wsol.losses import OBJECTIVES
from wsol.metrics import BoxAccuracy
from wsol.precision import Precision
from wsol.run import command
from wsol.training import make_optimizer

HEADS = ["softmax", "softmax_clamped", "sigmoid_clamped"]
PARTS = ("features", "steps", "maps")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--parts", default="features", help=f"of {', '.join(PARTS)}; default: %(default)s")
    add("--architecture", default="resnet50", help="default: %(default)s, with --large_feature_map 28 x 28 maps")
    add("--methods", default="cam,gradcam,gradcam++,eigencam,layercam", help="default: %(default)s")
    add("--images", type=int, default=2000, help="training images of `features` (default: %(default)s)")
    add("--val_images", type=int, default=100, help="val images of `features` (default: %(default)s)")
    add("--epochs", type=int, default=10, help="epochs of `features` (default: %(default)s)")
    add(
        "--uncached_epochs",
        type=int,
        default=2,
        help="epochs without kept features, whose time is scaled to --epochs (default: %(default)s)",
    )
    add("--batch_size", type=int, default=32, help="default: %(default)s")
    add("--crop_size", type=int, default=224, help="default: %(default)s")
    add("--steps", type=int, default=20, help="steps or batches per round (default: %(default)s)")
    add("--rounds", type=int, default=5, help="default: %(default)s")
    add("--compile", action="store_true", help="measure compiled networks, too; compiling takes a minute each")
    add("--out", type=Path, metavar="FILE.json", help="also write the figures to this file")
    args = parser.parse_args(argv)
    unknown = set(args.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"--parts: unknown part {sorted(unknown)[0]} (known: {', '.join(PARTS)})")
    return args


def new_model(args: argparse.Namespace, device: torch.device) -> torch.nn.Module:
    """The network with random weights and 200 classes, all of it trainable."""
    torch.manual_seed(0)
    model = build(args.architecture, 200, pretrained=False, large_feature_map=True, image_size=args.crop_size)
    return model.to(device, memory_format=torch.channels_last).train()


def training_setting(
    args: argparse.Namespace, device: torch.device, amp: str, compiled: bool, deterministic: bool
) -> Callable[[], None]:
    """A function that takes `steps` training steps."""
    model = new_model(args, device)
    run = torch.compile(model) if compiled else model
    objective = OBJECTIVES["vanilla"]("cross_entropy", "binary_cross_entropy")
    optimizer = make_optimizer(model, lr=1e-3, classifier_ratio=10, momentum=0.9, weight_decay=5e-4)
    precision = Precision(amp, device)
    images = torch.randn(args.batch_size, 3, args.crop_size, args.crop_size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(200, (args.batch_size,), device=device)

    def work() -> None:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, not deterministic
        for _ in range(args.steps):
            with precision.autocast():
                loss = objective(run(images), labels)
            precision.step(loss, optimizer)

    return work


def map_settings(args: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], None]]:
    """Functions that make maps of `steps` batches: the forward pass alone, with maps, with metrics."""
    model = dualize(new_model(args, device)).eval()
    methods = args.methods.split(",")
    images = torch.randn(args.batch_size, 3, args.crop_size, args.crop_size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(200, (args.batch_size,), device=device)
    boxes = [np.array([[40, 50, 150, 170]])] * args.batch_size

    def forward() -> None:
        with torch.no_grad():
            for _ in range(args.steps):
                model(images)

    def maps(measure: bool = False) -> None:
        with CamExtractor(model, methods, heads=HEADS) as extract:
            metrics = {variant: BoxAccuracy() for variant in extract.variants}
            for _ in range(args.steps):
                for variant, raw in extract(images, labels).items():
                    finished, _ = to_scoremaps(raw, variant.method, (224, 224))
                    on_cpu = finished.cpu().numpy()
                    if measure:
                        metrics[variant].update(on_cpu, boxes)

    rows = len(CamExtractor(model, methods, heads=HEADS).variants)
    return {
        "forward pass, float32": forward,
        f"the same with score maps of {rows} rows": maps,
        "the same with box metrics": lambda: maps(measure=True),
    }


@contextlib.contextmanager
def cudnn_restored() -> Iterator[None]:
    """Leave cuDNN's switches as they were."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def rates(args: argparse.Namespace, settings: dict[str, Callable[[], None]], device: torch.device) -> dict[str, float]:
    """Images per second of each setting, the median of rounds that alternate; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in settings}
    for number in range(args.rounds + 1):
        for name, work in settings.items():
            _wait(device)
            start = time.perf_counter()
            work()
            _wait(device)
            if number:
                found[name].append(args.steps * args.batch_size / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in found.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def write_images(root: Path, train: int, val: int) -> None:
    """JPEGs of ImageNet's usual size in ten classes, with a box each, as data set Drawn."""
    for split, count in {"train": train, "val": val}.items():
        (root / "dataset" / "Drawn" / split).mkdir(parents=True)
        draw_images(root / "dataset" / "Drawn" / split, count)
    records = {
        split: [Record(f"{split}/{i:05}.jpg", i % 10, (500, 375), [(100, 80, 350, 300)]) for i in range(count)]
        for split, count in {"train": train, "val": val}.items()
    }
    write_metadata(root / "metadata" / "Drawn", DatasetMetadata(records, [f"class {k}" for k in range(10)]))


def features_part(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of each way to train a head, by main.py, and of the one pass that computes the features."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, args.images, args.val_images)
        common = (
            f"--dataset_name Drawn --data_root {root}/dataset --metadata_root {root}/metadata --root {root}/runs "
            f"--model_structure vanilla --unfreeze_layer fc --methods cam --train_only --batch_size {args.batch_size}"
        )

        def seconds(name: str, *flags: str, epochs: int = args.epochs) -> float:
            program.main([*common.split(), "--experiment_name", name, "--epochs", str(epochs), *flags])
            lines = (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
            return sum(json.loads(line)["seconds"] for line in lines)

        config = parse_args_of_main([*common.split(), "--augment", "none"])
        data = program.read_data(config, None)
        model, _ = program.build_model(config, data, None)
        model.set_trainable(["softmax_head"])
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        loader = program.image_loader(config, data, "train", "none")
        model = model.to(device, memory_format=torch.channels_last)
        passes = []

        def one_pass() -> None:
            start = time.perf_counter()
            cache_features(model, loader, device)
            passes.append(time.perf_counter() - start)

        one_pass()
        kept = seconds("kept", "--augment", "none")
        one_pass()
        epochs = min(args.uncached_epochs, args.epochs)
        uncached = seconds("uncached", "--augment", "none", "--feature_cache", "off", epochs=epochs)
        one_pass()
        views = seconds("views", "--augment", "crop_flip", "--feature_views", "4")
        found["one pass that computes the features, median of 3"] = statistics.median(passes)
        found[f"{args.epochs} epochs, features kept"] = kept
        found[f"{args.epochs} epochs, features computed in each"] = uncached * args.epochs / epochs
        found[f"{args.epochs} epochs, 4 views kept"] = views
    return found


def print_rates(title: str, found: dict[str, float]) -> None:
    """A table of images per second, and ratios to the first line."""
    first = next(iter(found.values()))
    lines = [[name, f"{rate:,.1f}", f"{rate / first:.2f}"] for name, rate in found.items()]
    print(f"\n{title}\n{tabulate(lines, ['setting', 'images/s', 'ratio'], disable_numparse=True)}")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, write."""
    args = parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}; torch {torch.__version__}; {args.architecture}, batches of {args.batch_size}")
    results: dict[str, Any] = {"device": name, "torch": torch.__version__, "settings": vars(args) | {"out": None}}
    if "features" in args.parts.split(","):
        found = results["features"] = features_part(args)
        one = next(iter(found.values()))
        lines = [[name, f"{seconds:.1f}", f"{seconds / one:.2f}"] for name, seconds in found.items()]
        print(f"\ntraining the head, {args.images:,} images, {args.val_images} of val in each epoch")
        print(tabulate(lines, ["", "seconds", "in passes"], disable_numparse=True))
    with cudnn_restored():
        if "steps" in args.parts.split(","):
            settings = {"float32": training_setting(args, device, "off", False, True)}
            for amp in ("bf16", "fp16") if device.type == "cuda" else ("bf16",):
                settings[f"--amp {amp}"] = training_setting(args, device, amp, False, True)
            settings["--deterministic FALSE"] = training_setting(args, device, "off", False, False)
            settings["--amp bf16 --deterministic FALSE"] = training_setting(args, device, "bf16", False, False)
            if args.compile:
                settings["--compile"] = training_setting(args, device, "off", True, True)
                settings["--amp bf16 --compile"] = training_setting(args, device, "bf16", True, True)
            results["steps"] = rates(args, settings, device)
            print_rates("training steps, all layers", results["steps"])
        if "maps" in args.parts.split(","):
            results["maps"] = rates(args, map_settings(args, device), device)
            print_rates(f"maps and metrics, {args.methods}", results["maps"])
    if args.out:
        write_file(args.out, json.dumps(results, indent=2) + "\n")
    return results


if __name__ == "__main__":
    sys.exit(command.run(main))
