"""Methods that read the activations A, and perhaps the head's weights, but no gradient."""

import torch
from torch import Tensor

from wsol.cam.forward_pass import HeadView

# Of the leading eigenvector: vectors in a block, rounds between checks, checks, and the error, relative to its value.
_BLOCK, _ROUNDS, _MOST_CHECKS, _TOLERANCE = 8, 4, 6, 1e-11


def cam(view: HeadView) -> Tensor:
    """w_c = W[k, c] (Zhou et al., CVPR 2016, eq. 2); resized as wsolevaluation does, cubic and unrectified."""
    return view.class_weights


def eigencam(view: HeadView) -> Tensor:
    """First principal component of A (Muhammad & Yeasin, IJCNN 2020), see principal_component."""
    return principal_component(view.activations)


def kpcacam(view: HeadView) -> Tensor:
    """First kernel principal component of A, kernel tanh(x.y / C + 1) (Karmani et al., 2024, sigmoid kernel)."""
    pixels = _centred_pixels(view.activations)  # (B, P, C)
    kernel = (pixels @ pixels.mT / pixels.shape[2] + 1).tanh()
    kernel = (
        kernel
        - kernel.mean(dim=1, keepdim=True)
        - kernel.mean(dim=2, keepdim=True)
        + kernel.mean(dim=(1, 2), keepdim=True)
    )
    return _as_map(_leading_eigenvector(kernel), view.activations)


def fem(view: HeadView) -> Tensor:
    """w_c = share of places where A_c exceeds its mean + 2 sigma (Fuad et al., IPTA 2020)."""
    a = view.activations
    sigma, mean = torch.std_mean(a, dim=(2, 3), correction=0, keepdim=True)
    return (a > mean + 2 * sigma).to(a.dtype).mean(dim=(2, 3))


def principal_component(maps: Tensor) -> Tensor:
    """Projection of each place's channels onto their first principal component: (B, C, h, w) → (B, h, w).

    Channels are centred over the places. The sign of a principal component is arbitrary; here it is the one that
    correlates positively with the sum over the channels.
    """
    pixels = _centred_pixels(maps)  # (B, P, C)
    if pixels.shape[1] <= pixels.shape[2]:
        component = _leading_eigenvector(pixels @ pixels.mT)
    else:
        direction = _leading_eigenvector(pixels.mT @ pixels)  # (B, C), up to scale
        length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
        component = (pixels @ (direction / length.where(length > 0, 1))[:, :, None])[:, :, 0]
    return _as_map(component, maps)


def _centred_pixels(maps: Tensor) -> Tensor:
    """(B, C, h, w) → (B, h w, C), in float64 because products of it lose half the digits."""
    pixels = maps.double().flatten(2).mT
    return pixels - pixels.mean(dim=1, keepdim=True)


def _leading_eigenvector(matrix: Tensor) -> Tensor:
    """The leading eigenvector of each symmetric matrix (B, n, n), times the square root of its eigenvalue: (B, n).

    NaN if the matrix is not finite. Of an indefinite matrix it is the largest one of the few of largest magnitude.
    """
    broken = ~torch.isfinite(matrix).all(dim=2).all(dim=1)
    matrix = matrix.masked_fill(broken[:, None, None], 0)
    value, vector, converged = _subspace_iteration(matrix)
    if not bool(converged.all()):
        values, vectors = torch.linalg.eigh(matrix[~converged])
        value, vector = value.clone(), vector.clone()
        value[~converged], vector[~converged] = values[:, -1], vectors[:, :, -1]
    leading = vector * value.clamp(min=0).sqrt()[:, None]
    return leading.masked_fill(broken[:, None], torch.nan)


def _subspace_iteration(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Leading eigenvalues (B,) and eigenvectors (B, n) of symmetric matrices (B, n, n), and where they are found, (B,).

    A block of a few vectors is multiplied and made orthonormal again and again (Golub & Van Loan, Matrix Computations,
    section 8.2). Matrices of activations have a few large eigenvalues, so a few rounds do; a full decomposition takes
    tens of times as long, on a GPU hundreds.
    """
    batch, n, _ = matrix.shape
    width = min(_BLOCK, n)
    start = torch.randn(n, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    block = torch.linalg.qr(start.to(matrix)).Q.expand(batch, n, width)
    for _ in range(_MOST_CHECKS):
        for _ in range(_ROUNDS):
            block = torch.linalg.qr(matrix @ block).Q
        moved = matrix @ block
        values, turns = torch.linalg.eigh(block.mT @ moved)  # (B, width), small
        turn, value = turns[:, :, -1:], values[:, -1]
        vector = (block @ turn)[:, :, 0]
        error = torch.linalg.vector_norm((moved @ turn)[:, :, 0] - value[:, None] * vector, dim=1)
        converged = error <= _TOLERANCE * value.abs()
        if bool(converged.all()):
            break
    return value, vector, converged


def _as_map(component: Tensor, maps: Tensor) -> Tensor:
    """A component (B, h w) as a map (B, h, w), with its sign chosen; maps: (B, C, h, w)."""
    total = maps.sum(dim=1).flatten(1).double()
    total = total - total.mean(dim=1, keepdim=True)
    falls = (component * total).sum(dim=1, keepdim=True) < 0
    return torch.where(falls, -component, component).unflatten(1, maps.shape[2:]).to(maps.dtype)
