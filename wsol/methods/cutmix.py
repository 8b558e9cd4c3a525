"""CutMix: "Regularization Strategy to Train Strong Classifiers with Localizable Features", Yun et al., ICCV 2019."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from wsol.classifier import Classifier, Output
from wsol.losses import Objective
from wsol.methods.base import Forward, TrainingMethod


class CutMix(TrainingMethod):
    """A rectangle of every image of a batch comes from another one; the loss is mixed by area (eqs. 1 and 2)."""

    name = "cutmix"
    fixed_images = False

    def __init__(self, cutmix_beta: float, cutmix_prob: float):
        self.beta, self.probability = cutmix_beta, cutmix_prob

    def loss(
        self, model: Classifier, forward: Forward, objective: Objective, images: Tensor, labels: Tensor
    ) -> tuple[Output, Tensor]:
        """A step on mixed images: share times the loss of their own labels, 1 - share that of the other images'."""
        if not self.beta or np.random.rand() >= self.probability:
            return super().loss(model, forward, objective, images, labels)
        others = torch.randperm(len(images)).to(images.device)
        top, bottom, left, right = self.rectangle(*images.shape[-2:])
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images[others, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
        output = forward(mixed, labels)
        return output, share * objective(output, labels) + (1 - share) * objective(output, labels[others])

    def rectangle(self, height: int, width: int) -> tuple[int, int, int, int]:
        """top, bottom, left, right of a rectangle of (1 - lambda) of the area before it is cut at the image's edge.

        lambda is drawn from Beta(beta, beta), and the centre uniformly.
        """
        ratio = np.sqrt(1 - np.random.beta(self.beta, self.beta))
        edges = []
        for length in (height, width):
            half, centre = int(length * ratio) // 2, np.random.randint(length)
            edges += [max(centre - half, 0), min(centre + half, length)]
        return edges[0], edges[1], edges[2], edges[3]
