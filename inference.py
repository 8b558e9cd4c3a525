"""Loader + model + CAM methods → score maps."""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from wsol.cam import CamExtractor, Row, ScoreMaps, to_scoremaps
from wsol.dual_head import Classifier, Output
from wsol.metrics.boxes import RESOLUTION
from wsol.progress import progress
from wsol.training import to_device

# What compute_scoremaps calls on each batch: model, images on its device, raw maps of the predicted class, both heads'
# output, indices.
OnPrediction = Callable[[Classifier, Tensor, dict[Row, Tensor], Output, np.ndarray], None]


def compute_scoremaps(model: Classifier, loader: DataLoader, methods: Sequence[str], heads: Sequence[str],
                      device: torch.device, *, target: str = "gt", title: str = "maps",
                      on_prediction: OnPrediction | None = None) -> Iterator[ScoreMaps]:
    """Score maps of every row (method x head) for every image, batch by batch, from one forward pass each.

    Args:
        loader: gives (images (B, 3, H, W), labels, indices).
        target: the class explained: "gt", the label, or "pred", the softmax head's choice.
        on_prediction: called on each batch with the raw maps of the softmax head's choice, whatever `target` is.

    Maps are 224 x 224 whatever the input's size: the evaluation's resolution (wsolevaluation).
    """
    extractor = CamExtractor(model, methods, heads=heads)
    for images, labels, indices in progress(loader, title):
        images = to_device(images, device)
        with extractor as extract:      # batch by batch: other forward passes may come between
            raw = extract(images, labels.to(device) if target == "gt" else None)
            output = extract.output
            if on_prediction is not None:
                of_prediction = raw if target == "pred" else explain_prediction(extract, images, labels.to(device), raw)
        if on_prediction is not None:
            on_prediction(model, images, of_prediction, output, indices.numpy())
        finished = {row: to_scoremaps(maps, row.method, (RESOLUTION, RESOLUTION)) for row, maps in raw.items()}
        logits, sigmoid_logits = output
        yield ScoreMaps(indices.numpy(), labels.numpy(), logits.float().cpu(),
                        None if sigmoid_logits is None else sigmoid_logits.float().cpu(),
                        {row: maps.cpu().numpy() for row, (maps, _) in finished.items()},
                        {row: bad.cpu().numpy() for row, (_, bad) in finished.items()})


def explain_prediction(extract: CamExtractor, images: Tensor, labels: Tensor,
                       raw: dict[Row, Tensor]) -> dict[Row, Tensor]:
    """Raw maps of the class that the softmax head predicts: `raw`, those of the labels, where it is right, and new ones
    elsewhere. `extract` has just made `raw`."""
    predicted = extract.output.logits.argmax(dim=1)
    wrong = (predicted != labels).nonzero()[:, 0]
    if len(wrong) == 0:
        return raw
    fresh = extract(images[wrong], predicted[wrong])
    return {row: maps.index_copy(0, wrong, fresh[row]) for row, maps in raw.items()}


def scoremap_names(image_ids: Sequence[str]) -> list[str]:
    """File names for the maps of images: the id without its extension + .npy, or the whole id + .npy where two ids
    differ in their extension only."""
    stems = [str(Path(image_id).with_suffix("")) for image_id in image_ids]
    counts = Counter(stems)
    return [(stem if counts[stem] == 1 else image_id) + ".npy" for stem, image_id in zip(stems, image_ids, strict=True)]


def save_scoremaps(batch: ScoreMaps, names: Sequence[str], folder: Path) -> None:
    """Write `<folder>/<method>_<head>[_clamped]/<name>`, the very float32 arrays that are evaluated."""
    for row, maps in batch.maps.items():
        for index, scoremap in zip(batch.indices, maps, strict=True):
            path = folder / str(row) / names[index]
            path.parent.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()      # np.save to a full disk raises an error that does not say so
            np.save(content, scoremap)
            path.write_bytes(content.getvalue())
