"""What does ROAD's imputation cost? Our solver beside SciPy's and grad-cam's, measured in the same run.

    python scripts/benchmark_fidelity.py                        # 8 images of 224 x 224, percentiles 10 to 90
    python scripts/benchmark_fidelity.py --images 2 --side 112

ROAD removes the pixels of a map above (or below) a percentile and imputes them from their neighbours, which is one
sparse linear system per image. grad-cam solves it by `scipy.sparse.linalg.spsolve`; the column "SciPy" does the same
with a faster, vectorised assembly of the matrix. Ours solves a batch of images at a time, in float32. The table has CPU
time per image on one thread (for SciPy and grad-cam the median over the images). The script ends with an error if an
imputed value differs from SciPy's by more than 1e-3. Needs `pip install grad-cam`, which brings SciPy.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from scipy import sparse
from scipy.sparse.linalg import spsolve
from tabulate import tabulate
from torch import Tensor

from wsol.log import progress
from wsol.metrics.imputation import linear_imputation
from wsol.metrics.measures import PERCENTILES

TOLERANCE = 1e-3
DIRECT, DIAGONAL = 1 / 6, 1 / 12  # weights of a pixel's neighbours
NEIGHBOURS = [
    (dy, dx, DIAGONAL if dy and dx else DIRECT) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)
]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8, metavar="N", help="batch size (default: %(default)s)")
    parser.add_argument("--side", type=int, default=224, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--cells", type=int, default=14, help="side of the upsampled maps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)
    for name in ("images", "side", "cells"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def scipy_imputation(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """`linear_imputation` of one image (C, H, W), known (H, W) bool, by a sparse LU factorisation in float64."""
    height, width = known.shape
    removed_y, removed_x = np.nonzero(~known)
    number = np.full(known.shape, -1)
    number[removed_y, removed_x] = unknowns = np.arange(len(removed_y))
    diagonal, right = np.zeros(len(unknowns)), np.zeros((len(unknowns), len(image)))
    rows, columns, values = [], [], []
    for dy, dx, weight in NEIGHBOURS:
        y, x = removed_y + dy, removed_x + dx
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        diagonal += weight * inside
        place, y, x = unknowns[inside], y[inside], x[inside]
        neighbour = number[y, x]
        is_known = neighbour < 0
        right[place[is_known]] += weight * image[:, y[is_known], x[is_known]].T
        rows.append(place[~is_known])
        columns.append(neighbour[~is_known])
        values.append(np.full((~is_known).sum(), -weight))
    matrix = sparse.csc_matrix(
        (
            np.concatenate([diagonal, *values]),
            (np.concatenate([unknowns, *rows]), np.concatenate([unknowns, *columns])),
        )
    )
    imputed = image.astype(np.float64)
    imputed[:, removed_y, removed_x] = spsolve(matrix, right).reshape(-1, len(image)).T
    return imputed


def draw(count: int, side: int, cells: int, seed: int) -> tuple[Tensor, Tensor]:
    """Smooth random images (N, 3, side, side), like photographs, and maps (N, side, side) from cells x cells."""
    generator = torch.Generator().manual_seed(seed)
    images = F.interpolate(torch.randn(count, 3, 40, 40, generator=generator), (side, side), mode="bicubic")
    images += 0.1 * torch.randn(images.shape, generator=generator)
    maps = F.interpolate(torch.rand(count, 1, cells, cells, generator=generator), (side, side), mode="bilinear")
    return images, maps[:, 0]


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """CPU milliseconds of a call, and its result."""
    start = time.process_time()
    result = function(*arguments)
    return 1e3 * (time.process_time() - start), result


def compare(images: Tensor, known: Tensor) -> tuple[float, float, float, float]:
    """CPU milliseconds per image of grad-cam, SciPy and ours, and the largest difference of an imputed value."""
    milliseconds, ours = timed(linear_imputation, images, known)
    gradcam, scipy, difference = [], [], 0.0
    for image, known_pixels, imputed in zip(images, known, ours, strict=True):
        gradcam.append(timed(NoisyLinearImputer(noise=0), image, known_pixels.float())[0])
        spent, expected = timed(scipy_imputation, image.numpy(), known_pixels.numpy())
        scipy.append(spent)
        difference = max(difference, float(np.abs(imputed.numpy() - expected).max()))
    return statistics.median(gradcam), statistics.median(scipy), milliseconds / len(images), difference


def main(argv: list[str] | None = None) -> int:
    """Run the comparison and print the table."""
    args = parse_args(argv)
    torch.set_num_threads(1)
    images, maps = draw(args.images, args.side, args.cells, args.seed)
    flat = maps.flatten(1)
    linear_imputation(images[:1], maps[:1] < 0.5)  # the first call is slower
    rows = np.empty((len(PERCENTILES) + 1, 4))  # the last one: all percentiles
    for row, percentile in zip(rows, progress(PERCENTILES, "imputing", "percentile"), strict=False):
        known = maps < flat.quantile(percentile / 100, dim=1)[:, None, None]
        row[:] = compare(images, known)
        if row[3] > TOLERANCE:
            sys.exit(f"benchmark_fidelity.py: error: imputed values differ by {row[3]:.1e} at {percentile} %")
    rows[-1] = [*rows[:-1, :3].sum(axis=0), rows[:-1, 3].max()]
    print(
        f"{args.images} images of {args.side} x {args.side}, maps from {args.cells} x {args.cells}, seed {args.seed}; "
        "CPU time, one thread, ms per image"
    )
    print(
        tabulate(
            [
                (name, gradcam, scipy, ours, gradcam / ours, scipy / ours, difference)
                for name, (gradcam, scipy, ours, difference) in zip([*PERCENTILES, "all"], rows, strict=True)
            ],
            ("known, %", "grad-cam", "SciPy", "ours", "grad-cam / ours", "SciPy / ours", "largest difference"),
            floatfmt=("", ".0f", ".0f", ".0f", ".1f", ".1f", ".0e"),
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
