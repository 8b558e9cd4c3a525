"""The losses of Dual-CAM and how the model structures combine them."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from wsol.classifier import Output


def class_balanced_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy over all K classes with the positive class weighted K - 1.

    One of K labels is positive, so this weight gives positives and negatives the
    same say. Mean over N * K (Dual-CAM, BMVC 2025).

    Args:
        logits: (N, K); labels: (N,) class indices.
    """
    num_classes = logits.shape[1]
    one_hot = F.one_hot(labels, num_classes).to(logits.dtype)
    # max(): with one class there is no negative to balance, and weight 0 would leave no loss.
    weight = logits.new_tensor(max(num_classes - 1, 1))
    return F.binary_cross_entropy_with_logits(logits, one_hot, pos_weight=weight)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "binary_cross_entropy": class_balanced_bce,
}

Objective = Callable[[Output, Tensor], Tensor]


def vanilla(c1: str, c2: str) -> Objective:
    """One head, loss c1."""
    return lambda output, labels: LOSSES[c1](output.logits, labels)


def one_branch(c1: str, c2: str) -> Objective:
    """One head that serves both losses, c1 + c2 on the same logits."""
    return lambda output, labels: LOSSES[c1](output.logits, labels) + LOSSES[c2](output.logits, labels)


def two_branches(c1: str, c2: str) -> Objective:
    """c1 on the softmax head + c2 on the sigmoid branch; a frozen head adds a constant."""
    return lambda output, labels: LOSSES[c1](output.logits, labels) + LOSSES[c2](output.sigmoid_logits, labels)


# --model_structure → objective(c1, c2)
OBJECTIVES: dict[str, Callable[[str, str], Objective]] = {"vanilla": vanilla, "b1": one_branch, "b2": two_branches}
