"""Fidelity of every row of one split."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from wsol.cam import Variant, to_scoremaps
from wsol.classifier import Output
from wsol.datasets.masks import load_masks
from wsol.datasets.reader import SplitMetadata
from wsol.geometry import RESOLUTION
from wsol.log import progress
from wsol.metrics import Fidelity, Probe
from wsol.metrics.fidelity import measure, pointing_games


class FidelityEvaluation:
    """Fidelity (wsol/metrics/fidelity.py) of every row of one split, for the class that the softmax head predicts.

    Maps that confidences are measured with are min-maxed at the images' size, interpolated bilinearly; the pointing
    games look at the same at 224 x 224, where the ground truth is: boxes, or masks where there are no boxes.

    Args:
        metadata: the split.
        rows: methods x heads to expect in every batch.
        measures: of wsol.metrics.MEASURES.
        heads: the heads that confidences are read from.
        batch: how many perturbed images exist at a time, at most.
        seed: of ROAD's noise, which depends on it and the image's index alone: it is the same for every row.
    """

    def __init__(
        self,
        metadata: SplitMetadata,
        rows: Sequence[Variant],
        measures: Sequence[str],
        heads: Sequence[str],
        *,
        batch: int,
        seed: int = 0,
    ):
        self.metadata, self.measures, self.batch, self.seed = metadata, measures, batch, seed
        self.rows = {row: Fidelity(measures, heads) for row in rows}
        self.seconds = 0.0

    def update(
        self, model: nn.Module, images: Tensor, raw: dict[Variant, Tensor], output: Output, indices: np.ndarray
    ) -> None:
        """Add a batch: images on the model's device, the raw maps of the predicted class, the network's output."""
        start = time.perf_counter()
        noise = self._noise(images, indices) if "road" in self.measures else None
        probe = Probe(model, images, output.logits.argmax(dim=1), batch=self.batch, noise=noise, output=output)
        truth = None
        if "pointing" in self.measures:
            truth = [torch.from_numpy(pixels).to(images.device) for pixels in object_pixels(self.metadata, indices)]
        for row, metric in progress(self.rows.items(), "fidelity", "row"):
            maps, _ = to_scoremaps(raw[row], row.method, images.shape[-2:], interpolation="bilinear")
            figures = measure(probe, maps, self.measures)
            if truth is not None:
                inside, ignored = truth
                maps, _ = to_scoremaps(raw[row], row.method, (RESOLUTION, RESOLUTION), interpolation="bilinear")
                maps = maps.masked_fill(ignored, 0)
                figures |= pointing_games(maps, inside)
            metric.update(figures)
        self.seconds += time.perf_counter() - start

    def _noise(self, images: Tensor, indices: Sequence[int]) -> Tensor:
        drawn = [
            np.random.default_rng((self.seed, int(index))).standard_normal(images.shape[1:], np.float32)
            for index in indices
        ]
        return torch.from_numpy(np.stack(drawn)).to(images)


def object_pixels(metadata: SplitMetadata, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels on the object and pixels to be ignored, (B, 224, 224) bool each: those in any box, where the split has
    boxes, else those of the masks."""
    if metadata.boxes is None:
        masks = load_masks(metadata, indices)
        return masks == 1, masks == 255
    inside = np.zeros((len(indices), RESOLUTION, RESOLUTION), dtype=bool)
    for pixels, index in zip(inside, indices, strict=True):
        for x0, y0, x1, y1 in metadata.scaled_boxes(index):
            pixels[y0 : y1 + 1, x0 : x1 + 1] = True
    return inside, np.zeros_like(inside)
