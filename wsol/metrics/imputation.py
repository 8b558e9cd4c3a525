"""Noisy linear imputation: fill removed pixels so smoothly that their outline tells a network nothing.

Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods" (ROAD), ICML 2022: each removed
pixel equals the weighted mean of its eight neighbours, direct ones weighing 1/6 and diagonal ones 1/12 (those there
are, at the image's border), plus noise. Removed neighbours are unknowns themselves, so an image gives a sparse linear
system, one for all channels, of as many unknowns as pixels were removed.

The system's matrix is symmetric and positive definite. It is solved by conjugate gradients, preconditioned by one
multigrid V-cycle: the number of iterations stays below 20 whatever the image's size, and each is a few dense
operations over a batch of systems, on any device. scripts/benchmark_fidelity.py compares it with SciPy's sparse solver.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]  # the nine planes of a stencil, in this order
_CENTRE = _NEIGHBOURS.index((0, 0))
_WEIGHTS = [weight / 12 for weight in (1, 2, 1, 2, 0, 2, 1, 2, 1)]
_DAMPING = 0.8  # of the Jacobi smoother
_COARSEST, _COARSEST_SWEEPS = 3, 3
MAX_ITERATIONS = 100  # about 10 are needed


def linear_imputation(images: Tensor, known: Tensor, noise: Tensor | None = None, strength: float = 0.01) -> Tensor:
    """Replace the unknown pixels of images by the weighted mean of their neighbours, plus noise.

    Args:
        images: (B, C, H, W) floats; the result has their precision.
        known: (B, H, W) bool, False where a pixel was removed.
        noise: (B, C, H, W), added `strength` times to removed pixels; None: no noise.
        strength: standard deviation of the noise, if that is standard normal (ROAD: 0.01).

    Returns:
        (B, C, H, W). Known pixels are unchanged. An image without any known pixel has no unique solution; it becomes 0
        everywhere: for normalised images the data set's mean colour.

    Raises:
        ValueError: shapes that do not fit.
    """
    if images.ndim != 4 or known.shape != (images.shape[0], *images.shape[2:]):
        raise ValueError(
            f"images (B, C, H, W) need known pixels (B, H, W), got {tuple(images.shape)} and {tuple(known.shape)}"
        )
    images, known = images.contiguous(), known[:, None]  # channels-last images would be slower
    unknown = (~known).to(images)
    right_side = unknown * _weighted_sum(images.where(known, 0))
    filled = _conjugate_gradients(_hierarchy(_system(unknown)), right_side)
    if noise is not None:
        filled = filled + strength * noise
    return images.where(known, filled)


class _Level(NamedTuple):
    """A sparse matrix on a grid of h x w pixels."""

    stencil: Tensor  # (B, 9, h, w), each pixel's coefficients for its nine neighbours
    smoother: Tensor  # (B, 1, h, w), the damped inverse of the diagonal, 0 where the grid has no unknown


def _system(unknown: Tensor) -> Tensor:
    """The stencil (B, 9, H, W) of the unknown pixels (B, 1, H, W), as 0 and 1: sum_j w_ij (x_i - x_j)."""
    planes = [-weight * unknown * shifted for weight, shifted in zip(_WEIGHTS, _shifts(unknown), strict=True)]
    planes[_CENTRE] = unknown * _weighted_sum(torch.ones_like(unknown[:1]))  # less than 1 at the border
    return torch.cat(planes, dim=1)


def _hierarchy(stencil: Tensor) -> list[_Level]:
    """The system and its Galerkin coarsenings, each of half the side, down to a few pixels."""
    levels = []
    while True:
        diagonal = stencil[:, _CENTRE : _CENTRE + 1]
        levels.append(_Level(stencil, torch.where(diagonal > 0, _DAMPING / diagonal, 0)))
        if max(stencil.shape[-2:]) <= _COARSEST:
            return levels
        stencil = _coarsen(stencil)


def _coarsen(stencil: Tensor) -> Tensor:
    """Restriction x matrix x prolongation on the grid of every second pixel, again a stencil.

    Coarse pixels three apart have no neighbour in common, so the responses to nine combs give all coefficients: each
    pixel's nine neighbours lie on nine different combs.
    """
    size = stencil.shape[-2:]
    y, x = (torch.arange(n // 2 + 1, device=stencil.device) for n in size)
    comb_of = torch.stack([((y + dy) % 3 * 3)[:, None] + (x + dx) % 3 for dy, dx in _NEIGHBOURS])  # (9, h, w)
    combs = (comb_of[_CENTRE] == torch.arange(9, device=stencil.device)[:, None, None]).to(stencil)
    responses = _restrict(_multiply(stencil, _prolong(combs[None], size).expand(len(stencil), -1, -1, -1)))
    return responses.gather(1, comb_of.expand_as(responses))


def _v_cycle(levels: list[_Level], residual: Tensor) -> Tensor:
    """An approximate solution (B, C, h, w) of the first level's system: smooth, correct on the coarser grid, smooth."""
    stencil, smoother = levels[0]
    solution = smoother * residual
    if len(levels) == 1:
        for _ in range(_COARSEST_SWEEPS):
            solution = solution + smoother * (residual - _multiply(stencil, solution))
        return solution
    correction = _v_cycle(levels[1:], _restrict(residual - _multiply(stencil, solution)))
    solution = solution + _prolong(correction, residual.shape[-2:])
    return solution + smoother * (residual - _multiply(stencil, solution))


def _conjugate_gradients(levels: list[_Level], right_side: Tensor) -> Tensor:
    """Solve every system (B, C, H, W) until its residual is 1e-6 of the right side (float64: 1e-12).

    The result is only defined at unknown pixels.
    """
    tolerance = 1e-12 if right_side.dtype == torch.float64 else 1e-6
    limit = tolerance * _dot(right_side, right_side).sqrt()
    solution, residual = torch.zeros_like(right_side), right_side
    step = preconditioned = _v_cycle(levels, residual)
    fall = _dot(residual, preconditioned)
    for _ in range(MAX_ITERATIONS):
        if not (_dot(residual, residual).sqrt() > limit).any():  # NaN ends it, too
            break
        image = _multiply(levels[0].stencil, step)
        length = _ratio(fall, _dot(step, image))
        solution = solution + length * step
        residual = residual - length * image
        preconditioned = _v_cycle(levels, residual)
        fall, before = _dot(residual, preconditioned), fall
        step = preconditioned + _ratio(fall, before) * step
    return solution


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(2, 3), keepdim=True)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """Divide, and give 0 for a system that is solved exactly (b = 0)."""
    return torch.where(b != 0, a / b, 0)


def _shifts(maps: Tensor) -> list[Tensor]:
    """Each pixel's nine neighbours, 0 outside the image: views of one padded copy."""
    height, width = maps.shape[-2:]
    padded = F.pad(maps, (1, 1, 1, 1))
    return [padded[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width] for dy, dx in _NEIGHBOURS]


def _multiply(stencil: Tensor, maps: Tensor) -> Tensor:
    """The matrix times (B, C, h, w)."""
    result = torch.zeros_like(maps)
    for plane, shifted in enumerate(_shifts(maps)):
        result.addcmul_(stencil[:, plane : plane + 1], shifted)
    return result


def _weighted_sum(maps: Tensor) -> Tensor:
    """Each pixel's neighbours times their weights, 0 outside the image."""
    result = torch.zeros_like(maps)
    for weight, shifted in zip(_WEIGHTS, _shifts(maps), strict=True):
        result += weight * shifted
    return result


def _prolong(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Coarse maps (B, C, h // 2 + 1, w // 2 + 1) onto `size` (h, w): bilinear, coarse pixel i lying on pixel 2 i."""
    rows = maps.new_empty(*maps.shape[:2], 2 * maps.shape[2] - 1, maps.shape[3])
    rows[:, :, ::2], rows[:, :, 1::2] = maps, (maps[:, :, 1:] + maps[:, :, :-1]) / 2
    fine = rows.new_empty(*rows.shape[:3], 2 * rows.shape[3] - 1)
    fine[..., ::2], fine[..., 1::2] = rows, (rows[..., 1:] + rows[..., :-1]) / 2
    return fine[..., : size[0], : size[1]]


def _restrict(maps: Tensor) -> Tensor:
    """The transpose of _prolong: (B, C, h, w) → (B, C, h // 2 + 1, w // 2 + 1)."""
    height, width = maps.shape[-2:]
    maps = F.pad(maps, (0, 1 - width % 2, 0, 1 - height % 2))
    rows, between = maps[:, :, ::2].clone(), maps[:, :, 1::2] / 2
    rows[:, :, 1:] += between
    rows[:, :, :-1] += between
    coarse, between = rows[..., ::2].clone(), rows[..., 1::2] / 2
    coarse[..., 1:] += between
    coarse[..., :-1] += between
    return coarse
