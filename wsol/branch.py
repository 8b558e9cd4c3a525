"""How the sigmoid branch is trained: its weights' sign, its loss, the candidates of a choice. Imports no torch."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

WEIGHTS = ("free", "nonnegative")


class BranchSetting(NamedTuple):
    """How the sigmoid branch is trained.

    weights: "free", or "nonnegative": the weights of its last linear layer are kept at zero or above. c2_weight: lambda
    in its loss, cross entropy + lambda c2 + mu object; infinity is c2 in place of cross entropy + lambda c2.
    object_weight: mu, the weight of `object_loss` (wsol/losses.py). The default is the paper's (Dual-CAM, BMVC 2025).
    """

    weights: str = "free"
    c2_weight: float = math.inf
    object_weight: float = 0.0

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> BranchSetting:
        """The setting of a `record`; those written before there was an object loss do not name mu.

        Raises:
            KeyError, TypeError, ValueError: it is no such record.
        """
        setting = cls(record["weights"], float(record["lambda"]), float(record.get("mu", 0.0)))
        if setting.weights not in WEIGHTS or not setting.c2_weight >= 0 or not 0 <= setting.object_weight < math.inf:
            raise ValueError(f"no setting of a branch: {setting}")
        return setting

    @property
    def record(self) -> dict[str, Any]:
        """The setting in results.json and checkpoints. Infinity, which JSON lacks, is the text "inf"."""
        c2_weight = "inf" if math.isinf(self.c2_weight) else self.c2_weight
        return {"weights": self.weights, "lambda": c2_weight, "mu": self.object_weight}

    @property
    def nonnegative(self) -> bool:
        """Whether negative weights are set to zero."""
        return self.weights == "nonnegative"

    def __str__(self) -> str:
        return f"{self.weights} lambda {self.c2_weight:g} mu {self.object_weight:g}"


# What `--branch_choice val` tries, in this order: the paper's recipe; nonnegative weights with less and less c2; and
# with more and more of the object loss.
CANDIDATES = (
    BranchSetting(),
    *(BranchSetting("nonnegative", c2_weight) for c2_weight in (math.inf, 0.1, 0.0)),
    *(BranchSetting("nonnegative", 0.0, object_weight) for object_weight in (3.0, 10.0, 30.0)),
)
