"""Records of each single image, beside a metric's counts: for bootstrap intervals, per-class figures, paired tests.

Counts over a data set (localization.py, pixels.py) say how many images are right; records say which. They are kept only
where a metric is asked to (`record=True`), in the order of `update`.

    metric = BoxAccuracy(record=True)
    metric.update(scoremaps, boxes)
    outcomes = metric.records.outcomes()        # then wsol/metrics/bootstrap.py

Size: whether an image is right at each of 1,001 thresholds, four times, takes 504 bytes, packed; 50,000 images take
25 MB per row of the table. An image's pixel histograms take 4 kB, so beyond `MAX_PIXEL_IMAGES` they are not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

MAX_PIXEL_IMAGES = 20_000  # 80 MB of histograms per row; OpenImages' test split has 5,000 images


class BoxOutcomes(NamedTuple):
    """Which of N images are right, at T thresholds of the grid and the fixed one behind them; C of them differ.

    Maps whose greys are floor(255 s) have at most 256 foregrounds, so most of 1,001 thresholds repeat each other.
    """

    taus: np.ndarray  # (T + 1,) float64, the last one is loc_threshold
    column: np.ndarray  # (T + 1,) int64, which of C columns each threshold reads
    deltas: np.ndarray  # (D,) float64, IoU thresholds in per cent
    multi: np.ndarray  # (N, D, ceil(C / 8)) uint8, bits as np.packbits packs them: right, multi-contour
    single: np.ndarray  # (N, ceil(C / 8)) uint8: right at IoU 50, single-contour
    iou: np.ndarray  # (N,) float32, single-contour IoU at loc_threshold

    @property
    def num_columns(self) -> int:
        """C."""
        return int(self.column.max()) + 1

    @property
    def grid(self) -> np.ndarray:
        """The columns that the grid of thresholds reads, lowest tau first: those that can be best."""
        return np.unique(self.column[:-1])

    def column_at(self, tau: float) -> int:
        """The column of a threshold of the grid, or of loc_threshold. Raises ValueError for any other."""
        places = np.flatnonzero(self.taus == tau)
        if len(places) == 0:
            raise ValueError(f"{tau} is none of the recorded thresholds")
        return int(self.column[places[0]])

    def right(self, tau: float, delta: float | None = None) -> np.ndarray:
        """Which images are right at one threshold: (N,) bool; multi-contour at `delta`, None: single-contour at 50."""
        bits = self.single if delta is None else self.multi[:, self.deltas.tolist().index(delta)]
        byte, bit = divmod(self.column_at(tau), 8)
        return (bits[:, byte] >> (7 - bit) & 1).astype(bool)


class Records:
    """Arrays over images, collected batch by batch."""

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {}

    def _append(self, **arrays: np.ndarray) -> None:
        for name, array in arrays.items():
            self._parts.setdefault(name, []).append(array)

    def reset(self) -> None:
        """Forget all images."""
        self._parts = {}

    def __len__(self) -> int:
        return sum(map(len, next(iter(self._parts.values()), [])))

    def merge(self, other: Self) -> None:
        """Append the images of another shard."""
        for name, parts in other._parts.items():
            self._parts.setdefault(name, []).extend(parts)

    def _ordered(self, name: str, order: ArrayLike | None) -> np.ndarray:
        whole = np.concatenate(self._parts[name])
        return whole if order is None else whole[np.asarray(order)]


class BoxRecords(Records):
    """Which images are right, for BoxAccuracy.

    Args:
        taus: (T + 1,), the grid of thresholds and behind it the fixed one.
        deltas: IoU thresholds of the multi-contour metric in per cent.
    """

    def __init__(self, taus: np.ndarray, deltas: Sequence[float]):
        super().__init__()
        self.taus, self.deltas = taus, deltas

    def add(self, multi: np.ndarray, single: np.ndarray, iou: np.ndarray) -> None:
        """Add a batch: multi (B, D, T + 1) bool, single (B, T + 1) bool at IoU 50, iou (B,) at the fixed threshold."""
        self._append(
            multi=np.packbits(multi, axis=-1),
            single=np.packbits(single, axis=-1),
            iou=np.asarray(iou, dtype=np.float32),
        )

    def outcomes(self, order: ArrayLike | None = None) -> BoxOutcomes:
        """All images so far, in the order of `update` or in the given one. Raises ValueError without any."""
        if len(self) == 0:
            raise ValueError("no image was recorded")
        multi, single = self._ordered("multi", order), self._ordered("single", order)
        bits = np.concatenate([multi, single[:, None]], axis=1)  # (N, D + 1, bytes)
        column = np.concatenate([[0], np.cumsum(self._changes(bits))])
        first = np.unique(column, return_index=True)[1]
        packed = _select(bits, first)
        return BoxOutcomes(
            self.taus.copy(),
            column,
            np.array(self.deltas, dtype=np.float64),
            packed[:, :-1],
            packed[:, -1],
            self._ordered("iou", order),
        )

    def _changes(self, bits: np.ndarray) -> np.ndarray:
        """(T,) bool: does any image's outcome change from one threshold to the next?"""
        changes = np.zeros(len(self.taus) - 1, dtype=bool)
        for chunk in _chunks(bits):
            right = np.unpackbits(chunk, axis=-1, count=len(self.taus))
            changes |= (right[..., 1:] != right[..., :-1]).any(axis=(0, 1))
        return changes


class PixelRecords(Records):
    """Histograms of each image's foreground and background scores, for PixelAveragePrecision.

    Beyond `limit` images nothing is kept (`complete` is False): the average precision of a resample needs all of them,
    and an interval from some of them would be that of another number.

    Args:
        num_pixels: of a map, the highest possible count; 224 x 224 fits in 16 bits.
        limit: the largest number of images to keep.
    """

    def __init__(self, num_pixels: int, limit: int = MAX_PIXEL_IMAGES):
        super().__init__()
        self.limit, self.complete, self._type = limit, True, np.min_scalar_type(num_pixels)

    def add(self, histograms: np.ndarray) -> None:
        """Add a batch: (B, 2, bins) pixel counts, foreground and background."""
        self._append(histograms=histograms.astype(self._type))
        self._drop_beyond_limit()

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self.complete = True

    def merge(self, other: Self) -> None:
        """Append the images of another shard."""
        super().merge(other)
        self.complete &= other.complete
        self._drop_beyond_limit()

    def _drop_beyond_limit(self) -> None:
        self.complete &= len(self) <= self.limit
        if not self.complete:
            self._parts.clear()

    def histograms(self, order: ArrayLike | None = None) -> np.ndarray | None:
        """(N, 2, bins) of all images so far, in the order of `update` or in the given one; None where incomplete."""
        return self._ordered("histograms", order) if self.complete and len(self) else None


def _chunks(array: np.ndarray, size: int = 4096) -> Iterator[np.ndarray]:
    return (array[start : start + size] for start in range(0, len(array), size))


def _select(bits: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Some columns of packed bits (N, ..., bytes), packed again."""
    return np.concatenate(
        [np.packbits(np.unpackbits(chunk, axis=-1)[..., columns], axis=-1) for chunk in _chunks(bits)]
    )
