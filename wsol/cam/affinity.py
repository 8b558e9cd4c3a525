"""Affinity: the settings of the refinement of maps (wsol/cam/refinement.py). Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from wsol.errors import InputError

if TYPE_CHECKING:
    from torch import nn


class Affinity(NamedTuple):
    """How maps are spread over similar places.

    layer: the guiding layer: a module of the network, its dotted name, or a place that every network has (`named_place`
    in wsol/layout.py). power: exponent of the similarities. steps: how often a map is spread. centred: the
    activations' mean over the places is subtracted first.
    """

    layer: nn.Module | str = "stride16"
    power: float = 1.0
    steps: int = 1
    centred: bool = True

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Affinity:
        """The settings of a `record`."""
        return cls(**record)

    @property
    def record(self) -> dict[str, Any]:
        """The settings in results.json; the layer must be a name."""
        return self._asdict()

    def check(self) -> None:
        """InputError if a number is out of its range."""
        if not self.power > 0:
            raise InputError(f"the power of an affinity must be above 0, got {self.power}")
        if self.steps < 1:
            raise InputError(f"the steps of an affinity must be at least 1, got {self.steps}")

    def __str__(self) -> str:
        centred = "centred" if self.centred else "not centred"
        return f"{self.layer}, power {self.power:g}, steps {self.steps}, {centred}"


DEFAULT_AFFINITY = Affinity()

# What `--affinity_choice val` tries, in this order.
AFFINITY_CANDIDATES = (
    *(Affinity("stride16", power) for power in (1.0, 2.0)),
    Affinity("stride16:last"),
    *(Affinity("stride8", power) for power in (1.0, 4.0)),
)
