"""The ground truth of a batch, loaded once for all metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsol.datasets.masks import load_masks
from wsol.datasets.reader import SplitMetadata
from wsol.geometry import RESOLUTION


class GroundTruth(NamedTuple):
    """What is known of B images, at the evaluation's 224 x 224 pixels.

    boxes: one (n, 4) integer array x0, y0, x1, y1 per image, or None for a split without boxes. masks: (B, 224, 224)
    uint8, 1 foreground, 0 background, 255 ignored, or None for a split without masks.
    """

    boxes: list[NDArray[np.int64]] | None
    masks: NDArray[np.uint8] | None

    def object_pixels(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Pixels on the object and pixels to ignore, (B, 224, 224) each, from boxes or, without boxes, from masks."""
        if self.boxes is None:
            assert self.masks is not None, "an evaluated split has boxes or masks"
            return self.masks == 1, self.masks == 255
        inside = np.zeros((len(self.boxes), RESOLUTION, RESOLUTION), dtype=bool)
        for pixels, boxes in zip(inside, self.boxes, strict=True):
            for x0, y0, x1, y1 in boxes:
                pixels[y0 : y1 + 1, x0 : x1 + 1] = True
        return inside, np.zeros_like(inside)


def load_ground_truth(metadata: SplitMetadata, indices: Sequence[int] | NDArray[np.int64]) -> GroundTruth:
    """The ground truth of some images of a split; masks are read from disk."""
    return GroundTruth(
        None if metadata.boxes is None else [metadata.scaled_boxes(int(index)) for index in indices],
        None if metadata.masks is None else load_masks(metadata, [int(index) for index in indices]),
    )
