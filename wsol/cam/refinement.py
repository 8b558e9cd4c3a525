"""Refinement of maps by affinity: a map is spread over the places whose activations in a guiding layer are similar.

Sources: self-correlation of features, Pan et al., "Unveiling the Potential of Structure Preserving for Weakly
Supervised Object Localization", CVPR 2021 (SPA); random walks by an affinity matrix with a power of its elements, Ahn &
Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic Segmentation",
CVPR 2018.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from wsol.cam.affinity import DEFAULT_AFFINITY

MOST_BYTES = 2**26  # 64 MiB: of the affinities that exist at a time, 4096 x 4096 in float32


def refine_by_affinity(
    maps: Tensor,
    features: Tensor,
    *,
    power: float = DEFAULT_AFFINITY.power,
    steps: int = DEFAULT_AFFINITY.steps,
    centred: bool = DEFAULT_AFFINITY.centred,
    most_bytes: int = MOST_BYTES,
) -> Tensor:
    """map' = A^steps map, with A = relu(F'F)^power elementwise, and each row divided by its sum.

    F (C, P) are the activations of an image at P = h w places. If `centred`, their mean over the places is subtracted.
    Then each place is divided by its norm. A place without any activation is similar to none and keeps its values.
    Maps of another size are first brought to h x w, see `resize_maps`.

    Args:
        maps: (B, V, H, W), V signed maps for each image, which share its affinities.
        features: (B, C, h, w), activations of the guiding layer.
        power: above 0. The higher, the less places with a small similarity count.
        steps: how often the map is spread.
        centred: without it, activations that all places share make all places similar.
        most_bytes: bound of the memory for affinities. They are computed image by image, and as many rows at a time as
            fit, at least one.

    Returns:
        (B, V, h, w), in float64 if maps or features are float64, otherwise in float32.
    """
    dtype = torch.promote_types(torch.promote_types(maps.dtype, features.dtype), torch.float32)
    maps = resize_maps(maps.to(dtype), (features.shape[-2], features.shape[-1])).flatten(2)  # (B, V, P)
    directions = _directions(features.to(dtype).flatten(2), centred)  # (B, C, P)
    rows = max(most_bytes // (maps.shape[2] * maps.element_size()), 1)
    for _ in range(steps):
        maps = torch.stack([_spread(*image, power, rows) for image in zip(maps, directions, strict=True)])
    return maps.unflatten(2, features.shape[-2:])


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, V, H, W) at another size (h, w): the mean of areas where both sides shrink, otherwise bilinear."""
    if maps.shape[-2:] == size:
        return maps
    if maps.shape[-2] >= size[0] and maps.shape[-1] >= size[1]:
        return F.interpolate(maps, size, mode="area")
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def _directions(features: Tensor, centred: bool) -> Tensor:
    """(B, C, P) → the same with each place divided by its norm, and zeros where there is nothing but rounding."""
    norms = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    least = 8 * torch.finfo(features.dtype).eps * norms.amax(dim=2, keepdim=True)
    if centred:
        features = features - features.mean(dim=2, keepdim=True)
        norms = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return torch.where(norms <= least, 0, features / norms)


def _spread(maps: Tensor, directions: Tensor, power: float, rows: int) -> Tensor:
    """One step for one image: maps (V, P), directions (C, P) → (V, P), `rows` places at a time."""
    parts = []
    for these, values in zip(directions.split(rows, dim=1), maps.split(rows, dim=1), strict=True):
        affinity = (these.mT @ directions).relu_().pow_(power)  # (rows, P)
        total = affinity.sum(dim=1)
        parts.append(torch.where(total == 0, values, maps @ affinity.mT / total))
    return torch.cat(parts, dim=1)
