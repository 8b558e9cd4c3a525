"""Metrics: boxes are pure functions, the classes around them count over a data set and over processes."""

from wsol.geometry import RESOLUTION, box_iou, resize_boxes
from wsol.metrics.boxes import (
    BestIoU,
    LevelBoxes,
    best_iou,
    box_at,
    contour_boxes,
    match_boxes,
    match_contours,
    quantize,
    scoremap_boxes,
    thresholds,
    trace_contours,
)
from wsol.metrics.fidelity import Fidelity, Probe, measure
from wsol.metrics.localization import BoxAccuracy, center_gaussian
from wsol.metrics.pixels import PixelAveragePrecision, average_precision

__all__ = [
    "RESOLUTION",
    "BestIoU",
    "BoxAccuracy",
    "Fidelity",
    "LevelBoxes",
    "PixelAveragePrecision",
    "Probe",
    "average_precision",
    "best_iou",
    "box_at",
    "box_iou",
    "center_gaussian",
    "contour_boxes",
    "match_boxes",
    "match_contours",
    "measure",
    "quantize",
    "resize_boxes",
    "scoremap_boxes",
    "thresholds",
    "trace_contours",
]
