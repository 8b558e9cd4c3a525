"""Targets: what a gradient method explains instead of a class's logit, as `CamExtractor(..., target=probability)`.

A target is a function of one head's logits and the explained classes that gives each image's score:

    def target(logits: Tensor, class_ids: Tensor) -> Tensor:      # (B, K) or (B, K, H, W), (B,) → (B,)

Counterparts in grad-cam's `model_targets.py`: logit is its ClassifierOutputTarget, probability its
ClassifierOutputSoftmaxTarget, rest its ClassifierOutputReST, region_mean its SemanticSegmentationTarget divided by the
region's size, which leaves a normalised map as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from wsol.errors import InputError

Target = Callable[[Tensor, Tensor], Tensor]


def logit(logits: Tensor, class_ids: Tensor) -> Tensor:
    """s_k, what every method explains unless told otherwise."""
    return logits.gather(1, class_ids[:, None])[:, 0]


def probability(logits: Tensor, class_ids: Tensor) -> Tensor:
    """The softmax p_k: evidence that other classes share counts less."""
    return logit(logits.softmax(dim=1), class_ids)


def rest(logits: Tensor, class_ids: Tensor) -> Tensor:
    """s_k + log p_k (ReST: Cai, 2025, arXiv 2501.06261): both what speaks for the class and against the others."""
    return logit(logits + logits.log_softmax(dim=1), class_ids)


def difference(other: int, weight: float = 1.0) -> Target:
    """s_k - weight s_other: what tells the class from another one."""

    def score(logits: Tensor, class_ids: Tensor) -> Tensor:
        if not 0 <= other < logits.shape[1]:
            raise InputError(f"difference({other}): the network has {logits.shape[1]} classes, from 0 on")
        return logit(logits, class_ids) - weight * logits[:, other]

    return score


def region_mean(mask: Tensor) -> Target:
    """The mean of s_k over a region, for networks whose logits are (B, K, H, W), those of semantic segmentation.

    Args:
        mask: the region, bool or 0 and 1: (H', W') for all images, or (B, H', W'). Where its size is not that of the
            logits, the nearest pixel counts.

    Raises:
        InputError: when called: the logits have no places, the region is empty, or there is not one for each image.
    """
    region = torch.as_tensor(mask)

    def score(logits: Tensor, class_ids: Tensor) -> Tensor:
        if logits.ndim != 4:
            raise InputError(
                f"region_mean is for logits (B, K, H, W) of a segmentation network, not {tuple(logits.shape)}"
            )
        masks = region.to(logits).expand(len(logits), *region.shape[-2:]) if region.ndim == 2 else region.to(logits)
        if masks.shape[:-2] != logits.shape[:1]:
            raise InputError(f"region_mean needs one region, or one for each of {len(logits)} images, not {len(masks)}")
        masks = F.interpolate(masks[:, None], logits.shape[-2:], mode="nearest-exact")[:, 0]
        sizes = masks.sum(dim=(1, 2))
        if (sizes == 0).any():
            raise InputError("region_mean: a region is empty at the resolution of the logits")
        of_class = logits[torch.arange(len(logits), device=logits.device), class_ids]  # (B, H, W)
        return (of_class * masks).sum(dim=(1, 2)) / sizes

    return score
