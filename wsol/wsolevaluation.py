"""The names of wsolevaluation's evaluation.py, data_loaders.py and util.py, for code that was written against them.

    from data_loaders import configure_metadata, get_image_ids
    from evaluation import BoxEvaluator
    evaluator = BoxEvaluator(metadata=configure_metadata("metadata/CUB/test"), dataset_name="CUB", split="test",
                             cam_threshold_list=list(np.arange(0, 1, .001)), iou_threshold_list=[30, 50, 70],
                             mask_root=None, multi_contour_eval=True)
    for scoremap, image_id in ...:
        evaluator.accumulate(scoremap, image_id)
    evaluator.compute()                                 # MaxBoxAcc at each IoU threshold, per cent

Signatures, values and types of errors are those of github.com/clovaai/wsolevaluation; the work is done by wsol/metrics
and wsol/datasets. Two things are welcome that are errors there: float32 maps, and masks of data sets other than
OpenImages.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import munch
import numpy as np
from numpy.typing import NDArray

from wsol.datasets.masks import load_mask
from wsol.datasets.reader import MaskPaths, read_boxes, read_ids, read_labels, read_masks, read_sizes, unknown_ids
from wsol.geometry import RESOLUTION, box_iou, resize_boxes
from wsol.metrics.boxes import best_iou, scoremap_boxes
from wsol.metrics.pixels import average_precision

Box = tuple[int, int, int, int]
_HAVE_BOXES = ("ILSVRC", "CUB", "CARS")


# --------------------------------------------------------------------------- data_loaders.py


def configure_metadata(metadata_root: str) -> munch.Munch:
    """Paths of a split's files; metadata_root is the split's folder, such as metadata/CUB/test."""
    names = ("image_ids", "image_ids_proxy", "class_labels", "image_sizes", "localization")
    return munch.Munch({name: os.path.join(metadata_root, f"{name}.txt") for name in names})


def get_image_ids(metadata: Mapping[str, str], proxy: bool = False) -> list[str]:
    """Ids in the file's order; proxy: those of image_ids_proxy.txt."""
    return read_ids(Path(metadata["image_ids_proxy" if proxy else "image_ids"]))


def get_class_labels(metadata: Mapping[str, str]) -> dict[str, int]:
    """{image id: class index}."""
    path, position = _listed(metadata, "class_labels", 1)
    return dict(zip(position, read_labels(path, position).tolist(), strict=True))


def get_bounding_boxes(metadata: Mapping[str, str]) -> dict[str, list[Box]]:
    """{image id: [(x0, y0, x1, y1), ...]} in the image's own pixels."""
    path, position = _listed(metadata, "localization", 4)
    boxes = read_boxes(path, position, ordered=False)
    return {image_id: list(map(tuple, of_image.tolist())) for image_id, of_image in zip(position, boxes, strict=True)}


def get_mask_paths(metadata: Mapping[str, str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """({image id: [mask file, ...]}, {image id: ignore file, or ""})."""
    path, position = _listed(metadata, "localization", 2)
    masks = dict(zip(position, read_masks(path, position), strict=True))
    return (
        {image_id: list(paths.foreground) for image_id, paths in masks.items()},
        {image_id: paths.ignore for image_id, paths in masks.items()},
    )


def get_image_sizes(metadata: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """{image id: (width, height)}."""
    path, position = _listed(metadata, "image_sizes", 2)
    sizes = read_sizes(path, position)
    return {} if sizes is None else dict(zip(position, map(tuple, sizes.tolist()), strict=True))


def _listed(metadata: Mapping[str, str], name: str, fields: int) -> tuple[Path, dict[str, int]]:
    """A file and the images that it has lines for, each with its place: these readers do not ask image_ids.txt."""
    path = Path(metadata[name])
    return path, {image_id: i for i, image_id in enumerate(unknown_ids(path, (), fields))}


# --------------------------------------------------------------------------- util.py


def check_scoremap_validity(scoremap: NDArray) -> None:
    """Raise TypeError for what is no float array, ValueError for one that is not 2-D, holds NaN or leaves [0, 1]."""
    if not isinstance(scoremap, np.ndarray):
        raise TypeError(f"a score map must be a numpy array, not {type(scoremap).__name__}")
    if scoremap.dtype not in (np.float32, np.float64):
        raise TypeError(f"a score map must hold float32 or float64, not {scoremap.dtype}")
    if scoremap.ndim != 2:
        raise ValueError(f"a score map must be a (H, W) array, not {scoremap.ndim}-D")
    if np.isnan(scoremap).any():
        raise ValueError("the score map contains NaN")
    if ((scoremap < 0) | (scoremap > 1)).any():
        raise ValueError(f"score map values must lie in [0, 1], got [{scoremap.min()}, {scoremap.max()}]")


def check_box_convention(boxes: NDArray, convention: str) -> None:
    """Raise RuntimeError unless boxes, (4,) or (n, 4), are as the convention "x0y0x1y1" or "xywh" wants them.

    Raises ValueError for another convention.
    """
    if convention not in ("x0y0x1y1", "xywh"):
        raise ValueError(f"unknown box convention {convention!r}")
    if boxes.ndim not in (1, 2) or boxes.shape[-1] != 4:
        raise RuntimeError(f"boxes must be (4,) or (n, 4), got shape {boxes.shape}")
    if (boxes < 0).any():
        raise RuntimeError("box coordinates must not be negative")
    if convention == "x0y0x1y1" and (boxes[..., 2:] < boxes[..., :2]).any():
        raise RuntimeError("boxes must have x1 >= x0 and y1 >= y0")


# --------------------------------------------------------------------------- evaluation.py


def calculate_multiple_iou(box_a: NDArray, box_b: NDArray) -> NDArray[np.float64]:
    """IoU of all pairs of boxes x0, y0, x1, y1 in whole pixels, both ends inclusive: (n, 4), (m, 4) -> (n, m)."""
    for boxes in (box_a, box_b):
        check_box_convention(boxes, "x0y0x1y1")
    return box_iou(_whole(box_a), _whole(box_b))


def _whole(boxes: NDArray) -> NDArray:
    """Boxes as int64 if they are whole numbers, stored as floats or not."""
    return boxes.astype(np.int64) if np.all(boxes == np.trunc(boxes)) else boxes


def resize_bbox(box: Sequence[float], image_size: tuple[float, float], resize_size: tuple[float, float]) -> Box:
    """A box x0, y0, x1, y1 of an image of (width, height) scaled to another (width, height), and truncated."""
    check_box_convention(np.array(box), "x0y0x1y1")
    x0, _, x1, _ = resize_boxes([box], image_size, resize_size[0])[0].tolist()
    _, y0, _, y1 = resize_boxes([box], image_size, resize_size[1])[0].tolist()
    return x0, y0, x1, y1


def compute_bboxes_from_scoremaps(
    scoremap: NDArray, scoremap_threshold_list: Iterable[float], multi_contour_eval: bool = False
) -> tuple[list[NDArray[np.int64]], list[int]]:
    """For each threshold the boxes of a score map (H, W), (n, 4), and how many they are.

    One box, the largest contour's, or with multi_contour_eval those of all; [[0, 0, 0, 0]] where there is no contour.
    """
    check_scoremap_validity(scoremap)
    found = scoremap_boxes(scoremap, list(scoremap_threshold_list))
    of_level = np.split(found.boxes, found.start[1:]) if multi_contour_eval else found.boxes[found.largest][:, None]
    boxes = [of_level[level].copy() for level in found.foreground]
    return boxes, list(map(len, boxes))


def get_mask(mask_root: str, mask_paths: Iterable[str], ignore_path: str) -> NDArray[np.uint8]:
    """One image's masks, (224, 224) uint8: 1 foreground, 0 background, 255 ignore; ignore_path "" for no such file."""
    return load_mask(Path(mask_root), MaskPaths(tuple(mask_paths), ignore_path))


class LocalizationEvaluator:
    """What both evaluators are made with.

    metadata: of configure_metadata. cam_threshold_list: ascending thresholds tau from 0 on. iou_threshold_list: per
    cent. mask_root: the folder that mask paths start from.
    """

    def __init__(
        self,
        metadata: Mapping[str, str],
        dataset_name: str,
        split: str,
        cam_threshold_list: Sequence[float],
        iou_threshold_list: Sequence[int],
        mask_root: str | None,
        multi_contour_eval: bool,
    ):
        self.metadata = metadata
        self.cam_threshold_list = cam_threshold_list
        self.iou_threshold_list = iou_threshold_list
        self.dataset_name = dataset_name
        self.split = split
        self.mask_root = mask_root
        self.multi_contour_eval = multi_contour_eval


class BoxEvaluator(LocalizationEvaluator):
    """MaxBoxAcc.

    Attributes: image_ids; original_bboxes, image_sizes and gt_bboxes (at 224 x 224) by image id; num_correct {IoU
    threshold: images that were right at each threshold tau}; cnt, the images so far.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.image_ids = get_image_ids(self.metadata)
        self.resize_length = RESOLUTION
        self.cnt = 0
        self.num_correct = {delta: np.zeros(len(self.cam_threshold_list)) for delta in self.iou_threshold_list}
        self.original_bboxes = get_bounding_boxes(self.metadata)
        self.image_sizes = get_image_sizes(self.metadata)
        self.gt_bboxes = {
            image_id: self._resized(self.original_bboxes[image_id], self.image_sizes[image_id])
            for image_id in self.image_ids
        }

    def _resized(self, boxes: list[Box], image_size: tuple[int, int]) -> list[Box]:
        """resize_bbox for all boxes of an image at once."""
        check_box_convention(np.array(boxes), "x0y0x1y1")
        return list(map(tuple, resize_boxes(boxes, image_size, self.resize_length).tolist()))

    def accumulate(self, scoremap: NDArray, image_id: str) -> None:
        """Count one image: is any of its score map's boxes right, at each threshold?"""
        check_scoremap_validity(scoremap)
        found = best_iou(scoremap, np.array(self.gt_bboxes[image_id]), self.cam_threshold_list)
        iou = found.multi if self.multi_contour_eval else found.single
        for delta in self.iou_threshold_list:
            self.num_correct[delta] += iou >= delta / 100
        self.cnt += 1

    def compute(self) -> list[np.float64]:
        """The per cent of right images at its best threshold tau, for each IoU threshold."""
        return [(self.num_correct[delta] * 100.0 / self.cnt).max() for delta in self.iou_threshold_list]


class MaskEvaluator(LocalizationEvaluator):
    """PxAP.

    Attributes: mask_paths and ignore_paths by image id; gt_true_score_hist and gt_false_score_hist, foreground and
    background pixels per bin of scores, whose edges are threshold_list_right_edge.

    Raises ValueError for a data set that is known to have boxes and no masks.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.dataset_name in _HAVE_BOXES:
            raise ValueError(f"{self.dataset_name} has boxes, no masks to evaluate with")
        self.mask_paths, self.ignore_paths = get_mask_paths(self.metadata)
        self.num_bins = len(self.cam_threshold_list) + 2
        # The topmost bin stays empty: average_precision leaves it out.
        self.threshold_list_right_edge = np.append(self.cam_threshold_list, [1.0, 2.0, 3.0])
        self.gt_true_score_hist = np.zeros(self.num_bins)
        self.gt_false_score_hist = np.zeros(self.num_bins)

    def accumulate(self, scoremap: NDArray, image_id: str) -> None:
        """Count the pixels of one image, (224, 224)."""
        check_scoremap_validity(scoremap)
        mask = get_mask(self.mask_root, self.mask_paths[image_id], self.ignore_paths[image_id])
        self.gt_true_score_hist += np.histogram(scoremap[mask == 1], self.threshold_list_right_edge)[0]
        self.gt_false_score_hist += np.histogram(scoremap[mask == 0], self.threshold_list_right_edge)[0]

    def compute(self) -> float:
        """Per cent. Raises RuntimeError where no foreground pixel was counted."""
        if not self.gt_true_score_hist.any():
            raise RuntimeError("no positive ground truth: no foreground pixel was counted")
        return 100 * average_precision(self.gt_true_score_hist, self.gt_false_score_hist)
