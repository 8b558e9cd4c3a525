"""Which further figures inference.py draws of a picture, and what they are made of; picture_figures.py draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsol.cam import CAM_METHODS, CamExtractor, Variant, get_method, to_scoremaps
from wsol.cam.factorization import concept_logits, factorize
from wsol.cam.guided import guided_backpropagation
from wsol.classifier import Classifier
from wsol.datasets.pictures import Picture
from wsol.errors import InputError
from wsol.run.picture_figures import channel_sheet, concept_sheet, guided_sheet, strongest_channels

# Place in the batch, picture, explained class in words, score maps, decoded picture (H, W, 3) → folder → figure.
Draw = Callable[[int, Picture, str, Mapping[Variant, NDArray], NDArray[np.uint8]], dict[str, NDArray[np.uint8]]]


class FurtherFigures:
    """What --explain_channels, --concepts and --guided_backprop draw of each picture beside its maps.

    Args:
        config: of inference.py.
        model, class_names: the network and the names of its classes.
        rows: the variants that are drawn.

    Attributes:
        folders: where, below --out.

    Raises:
        InputError: the network or the methods do not allow one of them.
    """

    def __init__(self, config: Any, model: Classifier, class_names: Sequence[str], rows: Sequence[Variant]):
        self.config, self.model, self.class_names = config, model, class_names
        self.weighted = [row for row in rows if get_method(row.method).weights and not row.refined]
        if config.explain_channels and not self.weighted:
            able = ", ".join(name for name, method in CAM_METHODS.items() if method.weights)
            raise InputError(f"--explain_channels needs a method that weights channels: {able}")
        image = torch.zeros(1, 3, config.crop_size, config.crop_size)
        if config.guided_backprop:
            guided_backpropagation(model, image)
        if config.concepts:
            with CamExtractor(model, ["gradcam"]) as extract:
                extract(image)
                channels, *grid = extract.activations["gradcam"].shape[1:]
            if config.concepts > min(channels, math.prod(grid)):
                raise InputError(
                    f"--concepts {config.concepts} is more than the {math.prod(grid)} places of the target layer; give "
                    "fewer, or a larger --crop_size"
                )
        self.folders = [f"channels/{row}" for row in self.weighted] if config.explain_channels else []
        self.folders += ["concepts"] * bool(config.concepts) + ["guided"] * config.guided_backprop

    def of(self, extract: CamExtractor, images: Tensor, class_ids: Tensor) -> Draw:
        """What draws the figures of a batch.

        Args:
            extract: has just explained the batch.
            images: (B, 3, H, W), normalised. class_ids: (B,), explained.
        """
        config = self.config
        weights = {row: extract.weights[row].cpu().numpy() for row in self.weighted} if config.explain_channels else {}
        activations = {row: extract.activations[row.method].cpu().numpy() for row in weights}
        layer, guided = None, None
        if config.concepts or config.guided_backprop:
            with CamExtractor(self.model, ["gradcam"], heads=["softmax"]) as plain:
                raw = plain(images, class_ids)[Variant("gradcam", "softmax")]
                layer = plain.activations["gradcam"]
            gradcam = to_scoremaps(raw, "gradcam", (images.shape[-2], images.shape[-1]))[0].cpu().numpy()
        if config.guided_backprop:
            guided = guided_backpropagation(self.model, images, class_ids).cpu().numpy()

        def draw_further(
            i: int, picture: Picture, subject: str, scoremaps: Mapping[Variant, NDArray], image: NDArray[np.uint8]
        ) -> dict[str, NDArray[np.uint8]]:
            figures = {}
            for row, of_row in weights.items():
                channels = strongest_channels(of_row[i], activations[row][i], config.explain_channels)
                heading = f"{row.label}: the channels that add most to the map of {subject}"
                figures[f"channels/{row}"] = channel_sheet(image, heading, scoremaps[row], channels, config.colormap)
            if config.concepts and layer is not None:
                found = factorize(layer[i : i + 1], config.concepts)
                figures["concepts"] = concept_sheet(
                    image,
                    f"What the target layer tells apart: {picture.path.name}",
                    found.maps[0],
                    self._captions(found.embeddings),
                )
            if guided is not None:
                figures["guided"] = guided_sheet(image, f"Pixels that excite {subject}", guided[i], gradcam[i])
            return figures

        return draw_further

    def _captions(self, embeddings: NDArray[np.float64]) -> list[str]:
        """The two most likely classes of each concept; its number where the head does not read the target layer."""
        head = self.model.heads()["softmax"]
        if next(head.parameters()).shape[1] != embeddings.shape[1]:
            return [f"concept {number}" for number in range(1, len(embeddings) + 1)]
        top = concept_logits(head, embeddings).softmax(dim=1).topk(min(2, len(self.class_names)), dim=1)
        return [
            ", ".join(f"{self.class_names[k].split(',')[0]} {100 * p:.0f} %" for k, p in zip(ks, ps, strict=True))
            for ks, ps in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
