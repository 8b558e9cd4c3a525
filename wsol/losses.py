"""The losses of Dual-CAM by name (LOSSES), and how each model structure combines them (OBJECTIVES).

torch is imported inside the losses, so that the command line can list their names without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from wsol.classifier import Output

AMP = ("off", "bf16", "fp16")  # --amp, see wsol/precision.py
Loss = Callable[["Tensor", "Tensor"], "Tensor"]  # logits (N, K), labels (N,) → scalar
Objective = Callable[["Output", "Tensor"], "Tensor"]  # both heads' logits, labels (N,) → scalar


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross entropy, mean over images. logits: (N, K); labels: (N,) class indices."""
    from torch.nn import functional

    return functional.cross_entropy(logits, labels)


def class_balanced_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy over all K classes with the positive class weighted K - 1, mean over N * K.

    One of K labels is positive, so this weight gives positives and negatives the same influence (Dual-CAM, BMVC 2025).

    Args:
        logits: (N, K).
        labels: (N,) class indices.
    """
    from torch.nn import functional

    num_classes = logits.shape[1]
    one_hot = functional.one_hot(labels, num_classes).to(logits.dtype)
    # max(): with one class there is no negative to balance, and a weight of 0 would leave no loss.
    weight = logits.new_tensor(max(num_classes - 1, 1))
    return functional.binary_cross_entropy_with_logits(logits, one_hot, pos_weight=weight)


def object_loss(regions: Tensor) -> Tensor:
    """Every class's logit should be positive on an object and negative on the background, whatever the object is.

    It is -1/K sum_k [log s(z_k of the object) + log(1 - s(z_k of the background))] with s(z) = 1 / (1 + exp(-z)), mean
    over images. Classes are not told apart, so features that they share are judged by where they are.

    Args:
        regions: (N, 2, K), logits of the object and of the background.
    """
    from torch.nn import functional

    of_object, of_background = regions.unbind(dim=1)
    return functional.softplus(-of_object).mean() + functional.softplus(of_background).mean()


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": class_balanced_bce,
}


def branch_loss(c2: str, c2_weight: float) -> Loss:
    """Cross entropy + c2_weight * c2 of the same logits; c2 alone where c2_weight is infinite (Dual-CAM's recipe)."""
    if math.isinf(c2_weight):
        return LOSSES[c2]
    if not c2_weight:
        return cross_entropy
    return lambda logits, labels: cross_entropy(logits, labels) + c2_weight * LOSSES[c2](logits, labels)


def vanilla(c1: str, c2: str, c2_weight: float = math.inf, object_weight: float = 0.0) -> Objective:
    """One head with the loss c1."""
    return lambda output, labels: LOSSES[c1](output.logits, labels)


def one_branch(c1: str, c2: str, c2_weight: float = math.inf, object_weight: float = 0.0) -> Objective:
    """One head with both losses, c1 + c2 on the same logits."""
    return lambda output, labels: LOSSES[c1](output.logits, labels) + LOSSES[c2](output.logits, labels)


def two_branches(c1: str, c2: str, c2_weight: float = math.inf, object_weight: float = 0.0) -> Objective:
    """c1 on the softmax head + `branch_loss` and object_weight * `object_loss` on the sigmoid branch.

    For a frozen softmax head, c1 is a constant. An output without `regions`, as of val images, has no object loss.
    """
    sigmoid_loss = branch_loss(c2, c2_weight)

    def objective(output: Output, labels: Tensor) -> Tensor:
        assert output.sigmoid_logits is not None, "b2 trains a network with a sigmoid branch"
        loss = LOSSES[c1](output.logits, labels) + sigmoid_loss(output.sigmoid_logits, labels)
        return loss if output.regions is None else loss + object_weight * object_loss(output.regions)

    return objective


# --model_structure → objective(c1, c2, c2_weight, object_weight); structures with one head ignore the weights.
OBJECTIVES: dict[str, Callable[..., Objective]] = {"vanilla": vanilla, "b1": one_branch, "b2": two_branches}
