"""BroadCAM's broad learning system: seconds and memory for N images, beside the authors' way of computing it.

    python scripts/benchmark_broadcam.py                                     # N = 20,000 and 40,000, D = 3,072, K = 100
    python scripts/benchmark_broadcam.py --images 2000 --features 512 --classes 10

Features are those of a frozen network in spirit: at least 0, of low rank with class means, drawn chunk by chunk from a
seed, so no side needs a file. Making them is not timed. Each side runs in a process of its own, which reports its peak
memory. The authors' way holds the whole (N, D) matrix and its enhancement nodes, and solves a ridge regression on it
for two classes at a time (as scikit-learn's Ridge does: normal equations of the centred matrix). Two pairs are timed,
and the rest, which are alike, extrapolated.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from tabulate import tabulate

from wsol import BroadLearningSystem

CHUNK = 256
PAIRS = 2  # that are timed of the authors' way


def chunks(images: int, features: int, classes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """float32 features (B, D) and labels (B, K), the same ones in every process."""
    basis = np.random.default_rng(0).standard_normal((32, features), np.float32)
    means = np.random.default_rng(1).standard_normal((classes, 32), np.float32)
    for start in range(0, images, CHUNK):
        random = np.random.default_rng((2, start))
        count = min(CHUNK, images - start)
        labels = random.integers(0, classes, count)
        hidden = means[labels] + random.standard_normal((count, 32), np.float32)
        noise = random.standard_normal((count, features), np.float32)
        yield np.maximum(hidden @ basis / 6 + noise, 0), np.eye(classes, dtype=np.float32)[labels]


def ours(images: int, features: int, classes: int, step: int) -> dict[str, float]:
    """Seconds of all partial fits and the finish."""
    system, seconds = BroadLearningSystem(step=step), 0.0
    for part in chunks(images, features, classes):
        start = time.perf_counter()
        system.partial_fit(*map(torch.from_numpy, part))
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    system.finish()
    return {"seconds": seconds + time.perf_counter() - start, "sum": float(system.weight.abs().sum())}


def ridge_of_two(a: np.ndarray, y: np.ndarray, alpha: float = 50.0) -> np.ndarray:
    """Coefficients (D, 2) on the whole matrix, with columns centred and divided by their norms, as copies."""
    a = a - a.mean(axis=0)
    norms = np.sqrt((a**2).sum(axis=0))
    norms[norms == 0] = 1
    a /= norms
    gram = a.T @ a
    gram.flat[:: len(gram) + 1] += alpha
    return np.linalg.solve(gram, a.T @ (y - y.mean(axis=0))) / norms[:, None]


def authors(images: int, features: int, classes: int, step: int) -> dict[str, float]:
    """Seconds, of which those for pairs of classes are extrapolated."""
    parts = list(chunks(images, features, classes))
    x, y = (np.concatenate([part[i] for part in parts]).astype(np.float64) for i in (0, 1))
    del parts
    start = time.perf_counter()
    sigma = x.std(axis=0)
    z = (x - x.mean(axis=0)) / np.where(sigma > 0, sigma, 1)
    once = time.perf_counter() - start
    pairs = list(range(0, classes, 2))[:PAIRS]
    start = time.perf_counter()
    first = [ridge_of_two(z, y[:, pair : pair + 2]) for pair in pairs]
    of_pairs = time.perf_counter() - start
    start = time.perf_counter()
    v0 = np.concatenate(first, axis=1)
    nodes = int((v0 > 0).sum(axis=0).min()) // step
    # Other classes have nodes of the same size, so their number is all that counts here.
    theta = np.zeros((features, nodes * classes))
    for column in range(nodes * classes):
        ranking = v0[:, column // nodes % v0.shape[1]]
        chosen = np.argsort(-ranking)[column % nodes * step : (column % nodes + 1) * step]
        theta[chosen, column] = ranking[chosen] / step
    whole = np.column_stack([z, z @ theta])
    once += time.perf_counter() - start
    start = time.perf_counter()
    for pair in pairs:
        ridge_of_two(whole, y[:, pair : pair + 2])
    of_pairs += time.perf_counter() - start
    return {"seconds": once + of_pairs / len(pairs) * (-(-classes // 2)), "measured": once + of_pairs}


SIDES = {"ours": ours, "authors": authors}


def in_its_own_process(side: str, sizes: list[int]) -> dict[str, float]:
    """What a side reports, with the peak memory of its process."""
    argv = [sys.executable, __file__, "--side", side, *map(str, sizes)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Time both sides and print a table with ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=3_072)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--step", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3, help="of our side, whose median is printed")
    parser.add_argument("--side", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side, *sizes = args.side
        report = SIDES[side](*map(int, sizes))
        report["mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(report))
        return
    sizes = [args.images, args.features, args.classes, args.step]
    twice = [2 * args.images, *sizes[1:]]
    runs = [in_its_own_process("ours", sizes) for _ in range(args.rounds)]
    at_once = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
    double = in_its_own_process("ours", twice)
    theirs = in_its_own_process("authors", sizes)
    rows = [
        ["ours", f"{sizes[0]:,}", at_once["seconds"], at_once["mib"], 1.0, 1.0],
        ["ours", f"{twice[0]:,}", double["seconds"], double["mib"]],
        ["two classes at a time on the whole matrix", f"{sizes[0]:,}", theirs["seconds"], theirs["mib"]],
    ]
    for row in rows[1:]:
        row += [row[2] / at_once["seconds"], row[3] / at_once["mib"]]
    print(f"D = {args.features:,}, K = {args.classes}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"median of {args.rounds} for the first row; of the last {theirs['measured']:.0f} s were measured\n")
    print(tabulate(rows, ["", "images", "seconds", "peak MiB", "time ratio", "memory ratio"], floatfmt=".1f"))


if __name__ == "__main__":
    main()
