"""The table of fidelity measures: their figures, their cost, and where the function is. Importing it needs no torch.

Adding a measure: write its function in wsol/metrics/fidelity.py, and one entry here.
"""

from typing import NamedTuple

STEPS = 20  # of insertion and deletion, each 5 % of the pixels
PERCENTILES = tuple(range(10, 100, 10))  # of ROAD

_PER_CENT = 100.0


def at_shares(name: str) -> list[str]:
    """The figures of a curve: "insertion@0", "insertion@5", ..., the confidence at each share of the pixels in %."""
    return [f"{name}@{100 * step // STEPS}" for step in range(STEPS + 1)]


class Measure(NamedTuple):
    """What one name of `--fidelity` stands for."""

    function: str  # "module:function", loaded when used
    figures: dict[str, float]  # key in results.json → what 1 is in the results: 100 for per cent, else 1
    passes: int  # forward passes per image and map
    reads_confidence: bool = True  # function(probe, maps) for each head; else function(maps, object pixels)


MEASURES = {
    "confidence": Measure(
        "wsol.metrics.fidelity:confidence_change",
        {"avg_drop": _PER_CENT, "inc_conf": _PER_CENT, "avg_gain": _PER_CENT},
        passes=1,
    ),
    **{
        name: Measure(
            f"wsol.metrics.fidelity:{name}_figures",
            {name: 1.0} | dict.fromkeys(at_shares(name), 1.0),  # the latter form the list "<name>_curve" of the results
            passes=STEPS - 1,
        )
        for name in ("insertion", "deletion")
    },
    "road": Measure("wsol.metrics.fidelity:road", {"road": 1.0}, passes=2 * len(PERCENTILES)),
    "pointing": Measure(
        "wsol.metrics.fidelity:pointing_games",
        {"pointing": _PER_CENT, "energy_pointing": _PER_CENT},
        passes=0,
        reads_confidence=False,
    ),
}
COST = {name: measure.passes for name, measure in MEASURES.items()}
