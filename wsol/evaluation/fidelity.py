"""Fidelity of every variant on one split: does its map show what the network's confidence rests on?"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsol import distributed
from wsol.cam import Variant, to_scoremaps
from wsol.cam.scoremap import Prediction
from wsol.evaluation.ground_truth import GroundTruth
from wsol.geometry import RESOLUTION
from wsol.log import progress
from wsol.metrics import Fidelity, Probe
from wsol.metrics.fidelity import measure, pointing_games


class FidelityEvaluation:
    """Fidelity (wsol/metrics/fidelity.py) of every variant, for the class that the softmax head predicts.

    Maps that confidences are measured with are min-max normalised at the images' size, interpolated bilinearly. The
    pointing games use the same at 224 x 224, where the ground truth is: boxes, or masks without boxes.

    Args:
        variants: those to expect in every batch.
        measures: of wsol.metrics.MEASURES.
        heads: the heads that confidences are read from.
        batch: the most perturbed images that exist at a time.
        seed: of ROAD's noise, which depends on it and on the image's index alone, so it is the same for every variant.
    """

    def __init__(
        self, variants: Sequence[Variant], measures: Sequence[str], heads: Sequence[str], *, batch: int, seed: int = 0
    ):
        self.measures, self.batch, self.seed = measures, batch, seed
        self.rows = {variant: Fidelity(measures, heads) for variant in variants}
        self.seconds = 0.0

    def update(self, model: nn.Module, prediction: Prediction, indices: NDArray[np.int64], truth: GroundTruth) -> None:
        """Add a batch.

        Args:
            model: the network.
            prediction: images on the model's device, and the raw maps of their predicted classes.
            indices: (B,), positions of the images in the split.
            truth: their ground truth.
        """
        start = time.perf_counter()
        images, output = prediction.images, prediction.output
        size = images.shape[-2], images.shape[-1]
        noise = self._noise(images, indices) if "road" in self.measures else None
        probe = Probe(model, images, output.logits.argmax(dim=1), batch=self.batch, noise=noise, output=output)
        inside = ignored = None
        if "pointing" in self.measures:
            inside, ignored = (torch.from_numpy(pixels).to(images.device) for pixels in truth.object_pixels())
        for variant, metric in progress(self.rows.items(), "fidelity", "row"):
            raw = prediction.raw[variant]
            maps, _ = to_scoremaps(raw, variant.method, size, interpolation="bilinear")
            figures = measure(probe, maps, self.measures)
            if inside is not None and ignored is not None:
                maps, _ = to_scoremaps(raw, variant.method, (RESOLUTION, RESOLUTION), interpolation="bilinear")
                maps = maps.masked_fill(ignored, 0)
                figures |= pointing_games(maps, inside)
            metric.update(figures)
        self.seconds += time.perf_counter() - start

    def over_processes(self) -> FidelityEvaluation:
        """The fidelity over all processes' images on the main process; on the others, their own.

        Every process has to call it.
        """
        for other in distributed.gather(self.rows)[1:]:
            for variant, metric in self.rows.items():
                metric.merge(other[variant])
        return self

    def _noise(self, images: Tensor, indices: NDArray[np.int64]) -> Tensor:
        drawn = [
            np.random.default_rng((self.seed, int(index))).standard_normal(images.shape[1:], np.float32)
            for index in indices
        ]
        return torch.from_numpy(np.stack(drawn)).to(images)
