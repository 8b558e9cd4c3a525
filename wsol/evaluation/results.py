"""results.json as a dict: its schema, the versions it names, intervals, and its rows flattened for tables."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import TYPE_CHECKING, Any

from wsol.metrics.box_metrics import SHARE_KEYS
from wsol.metrics.proportions import wilson
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
    """Put the 95 % `interval` of each figure, [low, high], into each row and into the centre baseline.

    Shares of right images have Wilson's interval, which needs no resamples; MaxBoxAccV2 and PxAP the bootstrap's.

    Args:
        metrics: what `Evaluation.compute` returned.
        resamples: of the images, see wsol/metrics/bootstrap.py; 0: no interval for MaxBoxAccV2 and PxAP.

    Returns:
        The block `intervals` of results.json: those of the classification, and how each was made.
    """
    num_images = metrics["num_images"]
    resampled = images.intervals(resamples, seed) if resamples else {"rows": {name: {} for name in images.rows}}
    rows = zip(metrics["rows"], resampled["rows"].values(), strict=True)
    kinds: dict[str, str] = dict.fromkeys(metrics["classification"], "wilson")
    for block, of_means in [(metrics["center"], resampled.get("center", {})), *rows]:
        of_shares = {key: _wilson_of(value, num_images) for key, value in block.items() if key in SHARE_KEYS}
        if found := of_shares | of_means:
            block["interval"] = {key: found[key] for key in block if key in found}
        kinds |= dict.fromkeys(of_shares, "wilson") | dict.fromkeys(of_means, "bootstrap")
    classification = {key: wilson(value, num_images) for key, value in metrics["classification"].items()}
    return {"confidence": 95.0, "resamples": resamples, "kinds": kinds, "classification": classification}


def _wilson_of(value: Any, num_images: int) -> Any:
    """`wilson` of a share, or of each of a dict."""
    if isinstance(value, dict):
        return {key: _wilson_of(share, num_images) for key, share in value.items()}
    return wilson(value, num_images)


def flatten(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"maxboxacc": {30: 80.0}} → {"maxboxacc_30": 80.0}, at any depth; a pair [a, b] becomes ..._low and ..._high.

    Longer lists, curves, are left out.
    """
    flat: dict[str, Any] = {}
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, list) and len(value) == 2:
            value = dict(zip(("low", "high"), value, strict=True))
        elif isinstance(value, list):
            continue
        flat |= flatten(value, f"{name}_") if isinstance(value, dict) else {name: value}
    return flat
