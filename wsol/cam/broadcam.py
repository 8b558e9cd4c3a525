"""BroadCAM: channel weights from a broad learning system fitted to the training images, not from the classifier.

Source: Lin et al., "BroadCAM: Outcome-agnostic Class Activation Mapping for Small-scale Weakly Supervised
Applications", 2023; the system itself is in wsol/broad_learning.py.

    fitted = fit_broadcam(model, loader, device)
    with CamExtractor(model, ["broadcam"], fitted={"broadcam": fitted.weight}) as extract:
        maps = extract(images, class_ids)

Here the features are means over the places of rectified activations, which the maps are made of, too. So the mean of a
map is what its class's score changes by. (Where stages end with a ReLU, as the authors' do, this is the plain mean.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wsol.broad_learning import BroadLearningSystem
from wsol.cam.extractor import CamExtractor
from wsol.cam.forward_pass import HeadView
from wsol.classifier import Classifier
from wsol.device import to_device
from wsol.errors import InputError

NAME = "broadcam"


class Fitted(NamedTuple):
    """weight: (K, D) float64, of each class for the channels of all levels. layers: their dotted names."""

    weight: Tensor
    layers: list[str]


def broadcam(view: HeadView) -> Tensor:
    """sum_c W[k, c] relu(A_c) over the channels of all levels, coarse ones brought to the finest's size (bilinear)."""
    weights = view.shared.fitted[NAME]
    channels = [level.activations.shape[1] for level in view.levels]
    if weights.shape[1] != sum(channels):
        raise InputError(
            f"broadcam was fitted to {weights.shape[1]} channels, and the levels have {sum(channels)}; fit it again, "
            "or give the --cam_levels that it was fitted to"
        )
    if int(view.class_ids.max()) >= len(weights):
        raise InputError(f"broadcam was fitted to {len(weights)} classes and has no map of {int(view.class_ids.max())}")
    of_classes = weights.to(view.activations)[view.class_ids].split(channels, dim=1)
    maps = [
        torch.einsum("bc,bchw->bhw", of_level, level.activations.relu())
        for of_level, level in zip(of_classes, view.levels, strict=True)
    ]
    # Resizing is linear, so each level's sum is resized instead of all its channels.
    size = max((tuple(of_level.shape[1:]) for of_level in maps), key=lambda shape: shape[0] * shape[1])
    return torch.stack(
        [
            F.interpolate(of_level[:, None], size, mode="bilinear", align_corners=False)[:, 0]
            if of_level.shape[1:] != size
            else of_level
            for of_level in maps
        ]
    ).sum(dim=0)


def fit_broadcam(
    model: Classifier,
    loader: Iterable[tuple[Tensor, Tensor, Tensor]],
    device: torch.device,
    *,
    levels: Sequence[int] | None = None,
    alpha: float = 50.0,
    step: int = 256,
) -> Fitted:
    """Fit a broad learning system to the features of images and their labels, in one pass over a loader.

    Of several processes each gives its own images, and all get the same weights.

    Args:
        loader: yields (images (B, 3, H, W), labels, indices). Labels are class indices (B,), or (B, K) with ones for
            each class of an image.
        levels: see CamExtractor.
        alpha, step: see BroadLearningSystem.

    Raises:
        InputError: the network has no such levels; or alpha or step cannot be used.
    """
    system = BroadLearningSystem(alpha=alpha, step=step)
    with CamExtractor(model, [NAME], levels=levels) as extract:
        for images, labels, _ in loader:
            features = extract.level_features(to_device(images, device))
            if labels.ndim == 1:
                labels = F.one_hot(labels.long(), model.num_classes)
            system.partial_fit(features, labels.to(device))
        system.finish()
        return Fitted(system.weight, list(extract.level_layers))
