"""Class activation maps of any classifier: `CamExtractor` runs, CAM_METHODS lists, `to_scoremaps` normalises."""

from wsol.cam import activation, fullgrad, gradient, perturbation  # noqa: F401  (register their methods)
from wsol.cam.base import CAM_METHODS, HEADS, NO_HEAD, Row, get_method, rows
from wsol.cam.cost import Meter
from wsol.cam.extractor import PERTURB_BATCH, CamExtractor
from wsol.cam.scoremap import NORMALIZATIONS, ScoreMaps, to_scoremaps

__all__ = [
    "CAM_METHODS",
    "HEADS",
    "NORMALIZATIONS",
    "NO_HEAD",
    "PERTURB_BATCH",
    "CamExtractor",
    "Meter",
    "Row",
    "ScoreMaps",
    "get_method",
    "rows",
    "to_scoremaps",
]
