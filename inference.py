"""Loader + model + CAM methods → score maps."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from wsol.cam import CamExtractor, ScoreMaps, to_scoremaps
from wsol.dual_head import Classifier
from wsol.metrics.boxes import RESOLUTION
from wsol.progress import progress
from wsol.training import to_device


def compute_scoremaps(model: Classifier, loader: DataLoader, methods: Sequence[str], heads: Sequence[str],
                      device: torch.device, *, target: str = "gt", normalization: str = "minmax",
                      quantile: float | None = None, title: str = "maps") -> Iterator[ScoreMaps]:
    """Score maps of every row (method x head) for every image, batch by batch, from one forward pass each.

    Args:
        loader: gives (images (B, 3, H, W), labels, indices).
        target: the class explained: "gt", the label, or "pred", the softmax head's choice.
        normalization, quantile: how maps are brought to [0, 1], see wsol.cam.to_scoremaps.

    Maps are 224 x 224 whatever the input's size: the evaluation's resolution (wsolevaluation).
    """
    with CamExtractor(model, methods, heads=heads) as extract:
        for images, labels, indices in progress(loader, title):
            raw = extract(to_device(images, device), labels.to(device) if target == "gt" else None)
            finished = {row: to_scoremaps(maps, row.method, (RESOLUTION, RESOLUTION), normalization, quantile)
                        for row, maps in raw.items()}
            logits, sigmoid_logits = extract.output
            yield ScoreMaps(indices.numpy(), labels.numpy(), logits.float().cpu(),
                            None if sigmoid_logits is None else sigmoid_logits.float().cpu(),
                            {row: maps.cpu().numpy() for row, (maps, _) in finished.items()},
                            {row: bad.cpu().numpy() for row, (_, bad) in finished.items()})


def save_scoremaps(batch: ScoreMaps, names: Sequence[str], folder: Path) -> None:
    """Write `<folder>/<method>_<head>[_clamped]/<name>`, the very float32 arrays that are evaluated."""
    for row, maps in batch.maps.items():
        for index, scoremap in zip(batch.indices, maps, strict=True):
            path = folder / str(row) / names[index]
            path.parent.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()      # np.save to a full disk raises an error that does not say so
            np.save(content, scoremap)
            path.write_bytes(content.getvalue())
