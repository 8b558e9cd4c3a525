"""Deep feature factorization: the parts of pictures that a network tells apart, whatever their class."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsol.errors import InputError


class Concepts(NamedTuple):
    """embeddings: (N, C), each concept as activations of a place. maps: (B, N, h, w) >= 0, how much of it is where."""

    embeddings: NDArray[np.float64]
    maps: NDArray[np.float64]


def factorize(activations: Tensor, num_concepts: int, seed: int = 0) -> Concepts:
    """Activations (B, C, h, w) ~ sum over concepts of embedding times map (Collins et al., ECCV 2018).

    A non-negative matrix factorization by scikit-learn, of all images together, so a concept is the same one in each.
    As in grad-cam, each channel's minimum is subtracted first and added to the embeddings afterwards; NaN counts as 0.

    Args:
        activations: of any layer, such as CamExtractor's `activations`.
        num_concepts: N.
        seed: of the random start.

    Raises:
        InputError: scikit-learn is missing, or there are fewer places or channels than concepts.
    """
    try:
        from sklearn.decomposition import NMF
        from sklearn.exceptions import ConvergenceWarning
    except ImportError:
        raise InputError("deep feature factorization needs scikit-learn: pip install scikit-learn") from None
    batch, channels, height, width = activations.shape
    if not 1 <= num_concepts <= min(channels, batch * height * width):
        raise InputError(
            f"{num_concepts} concepts cannot be found in {channels} channels at {batch * height * width} places"
        )
    matrix = activations.detach().cpu().double().nan_to_num(nan=0).transpose(0, 1).flatten(1).numpy()  # (C, B P)
    offset = matrix.min(axis=1, keepdims=True)
    model = NMF(num_concepts, init="random", random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 steps draw the same picture as more
        embeddings = model.fit_transform(matrix - offset) + offset
    maps = model.components_.reshape(num_concepts, batch, height, width).transpose(1, 0, 2, 3)
    return Concepts(embeddings.T, maps)


def concept_logits(head: torch.nn.Module, embeddings: NDArray[np.float64]) -> Tensor:
    """What a linear or MLP head says of each concept: (N, K)."""
    weight = next(head.parameters())
    inputs = torch.from_numpy(embeddings).to(weight)
    with torch.no_grad():
        return head(inputs[:, :, None, None]).flatten(1) if weight.ndim == 4 else head(inputs)
