"""Score maps + metadata → metrics."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

from data_loaders import SplitMetadata, load_mask
from wsol.cam import Row, ScoreMaps, to_scoremaps
from wsol.dual_head import Output
from wsol.metrics import BoxAccuracy, Fidelity, PixelAveragePrecision, Probe, center_gaussian
from wsol.metrics.boxes import RESOLUTION
from wsol.metrics.fidelity import energy_pointing_game, measure, pointing_game
from wsol.progress import progress


class Localization:
    """The metrics that a split's annotation allows, for one row: boxes, masks, or both."""

    def __init__(self, metadata: SplitMetadata, *, interval: float, iou_thresholds: Sequence[int], loc_threshold: float):
        self.boxes = (BoxAccuracy(interval, tuple(iou_thresholds), loc_threshold)
                      if metadata.boxes is not None else None)
        self.pixels = PixelAveragePrecision(interval) if metadata.masks is not None else None
        self.num_degenerate = 0

    def compute(self, val: "Localization | None" = None) -> dict:
        """Metrics by their keys in results.json (percent); val gives the thresholds of gt_loc_val and top1_loc_val."""
        found = {}
        if self.boxes is not None:
            found |= self.boxes.compute(val.boxes if val is not None else None)
        if self.pixels is not None and self.pixels.has_foreground:
            found |= self.pixels.compute()
        return found


class Evaluation:
    """Everything measured on one split: classification, each row's localization, the centre baseline.

    Args:
        metadata: the split.
        rows: methods x heads to expect in every batch.
        interval, iou_thresholds, loc_threshold: see protocol flags `--cam_curve_interval`,
            `--iou_threshold_list`, `--loc_threshold`.
        keep: indices of images whose maps are kept in `examples` for pictures.
        center: measure the centre baseline, too.
        fidelity: what measures fidelity while the maps are made, for `compute` to report beside the rest.
    """

    def __init__(self, metadata: SplitMetadata, rows: Sequence[Row], *, interval: float = 0.001,
                 iou_thresholds: Sequence[int] = (30, 50, 70), loc_threshold: float = 0.2, keep: Sequence[int] = (),
                 center: bool = True, fidelity: "FidelityEvaluation | None" = None):
        self.metadata = metadata
        settings = dict(interval=interval, iou_thresholds=iou_thresholds, loc_threshold=loc_threshold)
        self.rows = {row: Localization(metadata, **settings) for row in rows}
        self.center = Localization(metadata, **settings) if center else None
        self.fidelity = fidelity
        self.keep = set(keep)
        self.examples: dict[int, dict[Row, np.ndarray]] = {}
        self.hits: dict[str, int] = {}
        self.num_images = 0
        self.seconds = 0.0

    def update(self, batch: ScoreMaps) -> None:
        """Add a batch of score maps."""
        start = time.perf_counter()
        self.num_images += len(batch.indices)
        correct = top_k_correct(batch.logits, batch.labels)
        for key, values in correct.items():
            self.hits[key] = self.hits.get(key, 0) + int(values.sum())
        boxes = masks = None
        if self.metadata.boxes is not None:
            boxes = [self.metadata.scaled_boxes(i) for i in batch.indices]
            if self.center is not None:
                self.center.boxes.update_shared(center_gaussian(), boxes)
        if self.metadata.masks is not None:
            masks = load_masks(self.metadata, batch.indices)
            if self.center is not None:
                self.center.pixels.update(np.broadcast_to(center_gaussian(), masks.shape), masks)
        for row, measured in self.rows.items():
            maps = batch.maps[row]
            measured.num_degenerate += int(batch.degenerate[row].sum())
            if boxes is not None:
                measured.boxes.update(maps, boxes, **correct)
            if masks is not None:
                measured.pixels.update(maps, masks)
        for position, index in enumerate(batch.indices):
            if index in self.keep:
                self.examples[int(index)] = {row: batch.maps[row][position] for row in self.rows}
        self.seconds += time.perf_counter() - start

    def compute(self, val: "Evaluation | None" = None) -> dict:
        """{"num_images", "classification", "rows", "center"} as in results.json."""
        rows = [{"method": row.method, "head": row.branch, "clamped": row.clamped, "normalization": "minmax",
                 "num_degenerate": measured.num_degenerate, **measured.compute(val.rows[row] if val else None)}
                for row, measured in self.rows.items()]
        if self.fidelity is not None:
            for row, entry in zip(self.rows, rows, strict=True):
                entry["fidelity"] = self.fidelity.rows[row].compute()
        return {"num_images": self.num_images,
                "classification": {key: 100 * hits / self.num_images for key, hits in self.hits.items()},
                "rows": rows, "center": self.center.compute() if self.center is not None else {}}


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

    def __init__(self, metadata: SplitMetadata, rows: Sequence[Row], measures: Sequence[str], heads: Sequence[str], *,
                 batch: int, seed: int = 0):
        self.metadata, self.measures, self.batch, self.seed = metadata, measures, batch, seed
        self.rows = {row: Fidelity(measures, heads) for row in rows}
        self.seconds = 0.0

    def update(self, model: nn.Module, images: Tensor, raw: dict[Row, Tensor], output: Output,
               indices: np.ndarray) -> None:
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
                figures |= {"pointing": pointing_game(maps, inside),
                            "energy_pointing": energy_pointing_game(maps, inside)}
            metric.update(figures)
        self.seconds += time.perf_counter() - start

    def _noise(self, images: Tensor, indices: Sequence[int]) -> Tensor:
        drawn = [np.random.default_rng((self.seed, int(index))).standard_normal(images.shape[1:], np.float32)
                 for index in indices]
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
            pixels[y0:y1 + 1, x0:x1 + 1] = True
    return inside, np.zeros_like(inside)


def top_k_correct(logits: Tensor, labels: np.ndarray) -> dict[str, np.ndarray]:
    """{"top1": (B,) bool, "top5": (B,) bool}: is the label the best, or among the five best, of (B, K) logits?

    With fewer than five classes top5 says nothing and is left out. An image with a logit that is not finite is wrong.
    """
    num_classes = logits.shape[1]
    best = logits.topk(min(5, num_classes), dim=1).indices
    finite = torch.isfinite(logits).all(dim=1, keepdim=True)
    hit = (finite & (best == torch.as_tensor(labels)[:, None])).numpy()
    correct = {"top1": hit[:, 0]}
    if num_classes >= 5:
        correct["top5"] = hit.any(axis=1)
    return correct


def load_masks(metadata: SplitMetadata, indices: Sequence[int]) -> np.ndarray:
    """Masks of some images, (B, 224, 224) uint8, see data_loaders.load_mask; files are decoded by threads."""
    with ThreadPoolExecutor(4) as pool:
        return np.stack(list(pool.map(lambda i: load_mask(metadata.mask_root, metadata.masks[i]), indices)))
