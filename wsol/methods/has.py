"""Hide-and-Seek: Singh & Lee, "Hide-and-Seek: Forcing a Network to be Meticulous ...", ICCV 2017.

Patches of each training image are hidden at random, so that the network cannot rely on one part of an object.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsol.classifier import Classifier, Output
from wsol.losses import Objective
from wsol.methods.base import Forward, TrainingMethod


class HideAndSeek(TrainingMethod):
    """Each patch of a grid is hidden with a probability, in each image on its own (section 3.1)."""

    name = "has"
    fixed_images = False

    def __init__(self, has_grid_size: float, has_drop_rate: float):
        self.side, self.rate = int(has_grid_size), has_drop_rate

    def loss(
        self, model: Classifier, forward: Forward, objective: Objective, images: Tensor, labels: Tensor
    ) -> tuple[Output, Tensor]:
        """A step on images with hidden patches."""
        return super().loss(model, forward, objective, self.hide(images), labels)

    def hide(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) with zeros, the mean colour, in hidden patches. The last patches may be smaller."""
        height, width = images.shape[-2:]
        rows, columns = -(-height // self.side), -(-width // self.side)
        hidden = torch.rand(len(images), 1, rows, columns) < self.rate
        hidden = hidden.repeat_interleave(self.side, dim=2).repeat_interleave(self.side, dim=3)
        return images.masked_fill(hidden[..., :height, :width].to(images.device), 0)
