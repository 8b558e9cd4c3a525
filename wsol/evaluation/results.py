"""results.json as a dict: its schema, the versions it names, intervals, and its rows flattened for tables."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import TYPE_CHECKING, Any

from wsol.version import __version__

if TYPE_CHECKING:
    from wsol.evaluation.per_image import PerImage

SCHEMA = 1
_PACKAGES = ("torch", "torchvision", "timm", "numpy")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that the numbers depend on."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "wsol": __version__, **packages}


def add_intervals(metrics: dict[str, Any], images: PerImage, resamples: int, seed: int) -> dict[str, Any]:
    """Put `interval` into each row and into the centre baseline.

    Args:
        metrics: what `Evaluation.compute` returned.
        resamples: of the images, see wsol/metrics/bootstrap.py.

    Returns:
        The block `bootstrap` of results.json.
    """
    intervals = images.intervals(resamples, seed)
    rows = zip(metrics["rows"], intervals["rows"].values(), strict=True)
    for block, of_block in [(metrics["center"], intervals["center"]), *rows]:
        if of_block:
            block["interval"] = of_block
    return {"resamples": resamples, "confidence": 95.0, "classification": intervals["classification"]}


def flatten(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"maxboxacc": {30: 80.0}} → {"maxboxacc_30": 80.0}, at any depth; a pair [a, b] becomes ..._low and ..._high."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, list) and len(value) == 2:
            value = dict(zip(("low", "high"), value, strict=True))
        flat |= flatten(value, f"{name}_") if isinstance(value, dict) else {name: value}
    return flat
