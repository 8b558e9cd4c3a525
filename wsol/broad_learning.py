"""A broad learning system: linear weights of features for classes, in closed form, from sums over the images alone.

    system = BroadLearningSystem(alpha=50, step=256)
    for features, labels in batches:             # (B, D), and (B, K) with a one for each class of an image
        system.partial_fit(features, labels)
    system.finish().weight                       # (K, D), float64

Sources: Chen & Liu, "Broad Learning System", TNNLS 2018; as BroadCAM uses it, Lin et al., "BroadCAM: Outcome-agnostic
Class Activation Mapping for Small-scale Weakly Supervised Applications", 2023. There, with standardized features Z:
1. V is the ridge regression of the labels on Z, and V0 = V / sigma.
2. For each class its features are ranked by V0. `step` features after another make an enhancement node, the mean of
   V0 times the feature: the columns of theta. Each class has as many as full nodes of positive V0 are left to all.
3. U is the ridge regression on Z and Z theta together, and W = (U_z + theta U_h) / sigma.
Ridge regressions are on columns that are centred and divided by their L2 norms (scikit-learn's former normalize=True).

Everything follows from the number of images, the means, and the centred products X'X and X'Y. So memory does not
depend on the number of images, which may come in chunks of any size and order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from wsol import distributed
from wsol.errors import InputError

_BUFFERED = 1024  # images that are multiplied at a time: small products would spend their time on memory
_CONSTANT = 1e-12  # deviation of a feature, relative to its mean, that is nothing but rounding
_TIE = 1e-9  # difference between values of V0, relative to the largest one, that does not count in a ranking


@dataclass
class Moments:
    """Sums over images that a system follows from, in float64.

    Args:
        count: number of images.
        mean, label_mean: (D,) and (K,).
        products, label_products: (D, D) and (D, K), X'X and X'Y of centred features and labels.
    """

    count: int
    mean: Tensor
    label_mean: Tensor
    products: Tensor
    label_products: Tensor

    @classmethod
    def none(cls, num_features: int, num_classes: int, device: torch.device) -> Self:
        """Those of no image."""
        sizes = [(num_features,), (num_classes,), (num_features, num_features), (num_features, num_classes)]
        return cls(0, *(torch.zeros(size, dtype=torch.float64, device=device) for size in sizes))

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add images: (B, D) and (B, K) in float64."""
        if len(features):
            mean, label_mean = features.mean(dim=0), labels.mean(dim=0)
            self._join(len(features), mean, label_mean, features - mean, labels - label_mean)

    def merge(self, other: Moments) -> None:
        """Add the images of others (Chan, Golub & LeVeque, "Updating Formulae ...", 1979)."""
        if other.count:
            self.products += other.products
            self.label_products += other.label_products
            nothing = other.mean.new_zeros(0, len(other.mean)), other.mean.new_zeros(0, len(other.label_mean))
            self._join(other.count, other.mean, other.label_mean, *nothing)

    def _join(self, count: int, mean: Tensor, label_mean: Tensor, features: Tensor, labels: Tensor) -> None:
        """Add images with these means: the products of centred rows, and of one row more that the means make."""
        total = self.count + count
        weight = (self.count * count / total) ** 0.5
        shift, label_shift = mean - self.mean, label_mean - self.label_mean
        features = torch.cat([features, weight * shift[None]])
        labels = torch.cat([labels, weight * label_shift[None]])
        self.products.addmm_(features.mT, features)
        self.label_products.addmm_(features.mT, labels)
        self.mean += shift * (count / total)
        self.label_mean += label_shift * (count / total)
        self.count = total


def ridge(products: Tensor, label_products: Tensor, alpha: float) -> Tensor:
    """Coefficients (D, K) of a ridge regression on columns that are divided by their L2 norms (of 0: by 1).

    Args:
        products, label_products: A'A (D, D) and A'Y (D, K) of centred columns.
        alpha: the penalty of the coefficients of the divided columns, above 0.
    """
    norms = products.diagonal().clamp(min=0).sqrt()
    norms = torch.where(norms > 0, norms, 1)
    scaled = products / norms / norms[:, None]
    scaled.diagonal().add_(alpha)
    factor = torch.linalg.cholesky(scaled)
    return torch.cholesky_solve(label_products / norms[:, None], factor) / norms[:, None]


def enhancement(ranking: Tensor, step: int) -> Tensor:
    """theta (D, n K) of V0 (D, K): nodes 0..n - 1 of the first class, then of the second, and so on.

    n is the number of full nodes of `step` features with positive V0 that every class has. Values that differ by
    rounding only are ties, of which the first feature comes first.
    """
    largest = ranking.abs().max()
    rounded = torch.round(ranking / torch.where(largest > 0, largest, 1) / _TIE)
    nodes = int((rounded > 0).sum(dim=0).min()) // step
    order = rounded.argsort(dim=0, descending=True, stable=True)[: nodes * step]  # (n step, K)
    num_features, num_classes = ranking.shape
    node = torch.arange(nodes, device=ranking.device).repeat_interleave(step)  # (n step,)
    column = node[:, None] + nodes * torch.arange(num_classes, device=ranking.device)
    theta = ranking.new_zeros(num_features, nodes * num_classes)
    theta[order, column] = ranking.gather(0, order) / step
    return theta


def broad_weights(moments: Moments, alpha: float, step: int) -> Tensor:
    """W (K, D) of a broad learning system. Features that are constant get weights of 0."""
    deviations = (moments.products.diagonal().clamp(min=0) / moments.count).sqrt()
    varies = deviations > _CONSTANT * moments.mean.abs()
    deviations = torch.where(varies, deviations, 1)
    products = moments.products / deviations / deviations[:, None]  # Z'Z
    label_products = moments.label_products / deviations[:, None]  # Z'Y
    products = products * varies * varies[:, None]  # without what rounding has left of constant ones
    label_products = label_products * varies[:, None]
    theta = enhancement(ridge(products, label_products, alpha) / deviations[:, None], step)
    with_nodes = products @ theta
    products = torch.cat(
        [torch.cat([products, with_nodes], dim=1), torch.cat([with_nodes.mT, theta.mT @ with_nodes], dim=1)]
    )
    coefficients = ridge(products, torch.cat([label_products, theta.mT @ label_products]), alpha)
    of_features, of_nodes = coefficients.split([len(theta), theta.shape[1]])
    return ((of_features + theta @ of_nodes) / deviations[:, None]).mT.contiguous()


class BroadLearningSystem:
    """A broad learning system, fitted at once or in chunks; see the module.

    Args:
        alpha: penalty of the ridge regressions, above 0.
        step: features in an enhancement node, at least 1.

    Raises:
        InputError: alpha or step is out of range.
    """

    def __init__(self, alpha: float = 50.0, step: int = 256):
        if not 0 < alpha < float("inf"):
            raise InputError(f"alpha must be a number above 0, got {alpha}")
        if step < 1:
            raise InputError(f"step must be at least 1, got {step}")
        self.alpha, self.step = alpha, step
        self._moments: Moments | None = None
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._weight: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """W, (K, D) float64, on the device of the features; a RuntimeError before `finish`."""
        if self._weight is None:
            raise RuntimeError("the system has no weights yet: call finish() behind the last partial_fit")
        return self._weight

    @property
    def num_images(self) -> int:
        """Images that this process has given."""
        waiting = sum(len(features) for features, _ in self._waiting)
        return waiting + (0 if self._moments is None else self._moments.count)

    def fit(self, features: ArrayLike | Tensor, labels: ArrayLike | Tensor) -> Self:
        """Forget what was given before, and fit (N, D) features and (N, K) labels."""
        self._moments, self._waiting = None, []
        return self.partial_fit(features, labels).finish()

    def partial_fit(self, features: ArrayLike | Tensor, labels: ArrayLike | Tensor) -> Self:
        """Add images; `finish` then gives the weights of all.

        Args:
            features: (B, D), finite.
            labels: (B, K), with a one for each class of an image, otherwise zeros.

        Raises:
            InputError: other shapes, a size that differs from before, or a value that is not finite.
        """
        features = torch.as_tensor(features).double()
        labels = torch.as_tensor(labels, device=features.device).double()
        if features.ndim != 2 or labels.ndim != 2 or len(features) != len(labels):
            raise InputError(
                f"features (B, D) need labels (B, K), got {tuple(features.shape)} and {tuple(labels.shape)}"
            )
        if not features.isfinite().all() or not labels.isfinite().all():
            raise InputError("features and labels must be finite; the network may have diverged")
        if self._moments is None:
            self._moments = Moments.none(features.shape[1], labels.shape[1], features.device)
        sizes = len(self._moments.mean), len(self._moments.label_mean)
        if (features.shape[1], labels.shape[1]) != sizes:
            raise InputError(
                f"{features.shape[1]} features and {labels.shape[1]} classes, after {sizes[0]} and {sizes[1]} before"
            )
        self._weight = None
        self._waiting.append((features, labels))
        if sum(len(chunk) for chunk, _ in self._waiting) >= _BUFFERED:
            self._add_waiting()
        return self

    def merge(self, other: BroadLearningSystem) -> Self:
        """Add the images that another system was given, in place; its settings do not matter."""
        other._add_waiting()
        self._add_waiting()
        self._weight = None
        if other._moments is not None and other._moments.count:
            if self._moments is None:
                moments = other._moments
                self._moments = Moments.none(len(moments.mean), len(moments.label_mean), moments.mean.device)
            self._moments.merge(other._moments)
        return self

    def finish(self) -> Self:
        """Compute `weight` from all images so far; of several processes each has to call it, and gets those of all.

        More images may follow, and another `finish`.

        Raises:
            InputError: no image was given.
        """
        self._add_waiting()
        moments = _of_all_processes(self._moments)
        if moments is None or not moments.count:
            raise InputError("a broad learning system needs at least one image")
        self._weight = broad_weights(moments, self.alpha, self.step)
        return self

    def _add_waiting(self) -> None:
        if self._waiting and self._moments is not None:
            self._moments.add(*(torch.cat(parts) for parts in zip(*self._waiting, strict=True)))
        self._waiting = []


def _of_all_processes(own: Moments | None) -> Moments | None:
    """The moments of all processes' images, on the CPU: merged in one order on each, so the same bit for bit."""
    if distributed.world_size() == 1:
        return own
    sizes = distributed.gather(None if own is None or not own.count else (own.count, *own.label_products.shape))
    sizes = distributed.from_main(lambda: sizes)
    given = [size for size in sizes if size is not None]
    if len({size[1:] for size in given}) > 1:
        raise InputError("the processes have given different numbers of features or classes")
    total = None
    for source, size in enumerate(sizes):
        if size is None:
            continue
        part = Moments.none(size[1], size[2], torch.device("cpu"))
        tensors = part.mean, part.label_mean, part.products, part.label_products
        if own is not None and source == distributed.rank():
            for kept, tensor in zip(tensors, (own.mean, own.label_mean, own.products, own.label_products), strict=True):
                kept.copy_(tensor)
        distributed.copy_from(source, tensors)
        part.count = size[0]
        if total is None:
            total = part
        else:
            total.merge(part)
    return total
