"""Class-balanced binary cross entropy and the three model structures, in numbers."""

import math

import pytest
import torch
import torch.nn.functional as F

from wsol.classifier import Output
from wsol.losses import OBJECTIVES, class_balanced_bce


def test_class_balanced_bce_by_hand():
    # K = 3, so a positive counts twice; logits 0 and ln 3: sigmoid 1/2 and 3/4
    logits = torch.tensor([[0.0, math.log(3), 0.0]])
    positive, wrong, negative = -2 * math.log(1 / 2), -math.log(1 / 4), -math.log(1 / 2)
    assert class_balanced_bce(logits, torch.tensor([0])).item() == pytest.approx((positive + wrong + negative) / 3)


def test_mean_over_images_and_classes_with_weight_k_minus_1():
    logits, labels = torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 3, 0, 1])
    total = 0.0
    for n in range(6):
        for k in range(4):
            p = 1 / (1 + math.exp(-logits[n, k].item()))
            total += -3 * math.log(p) if labels[n] == k else -math.log(1 - p)
    assert class_balanced_bce(logits, labels).item() == pytest.approx(total / 24)


def test_one_class_still_has_a_loss():
    assert class_balanced_bce(torch.zeros(2, 1), torch.tensor([0, 0])).item() == pytest.approx(math.log(2))


def test_structures():
    labels = torch.tensor([0, 2])
    output = Output(torch.randn(2, 3), torch.randn(2, 3))
    ce, bce = F.cross_entropy(output.logits, labels), class_balanced_bce
    names = ("cross_entropy", "binary_cross_entropy")
    assert OBJECTIVES["vanilla"](*names)(output, labels) == ce
    assert OBJECTIVES["b1"](*names)(output, labels) == ce + bce(output.logits, labels)
    assert OBJECTIVES["b2"](*names)(output, labels) == ce + bce(output.sigmoid_logits, labels)
    assert OBJECTIVES["vanilla"]("binary_cross_entropy", names[1])(output, labels) == bce(output.logits, labels)
