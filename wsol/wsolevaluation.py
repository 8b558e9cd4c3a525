"""wsolevaluation's public names, for code written against its evaluation.py, data_loaders.py and util.py.

    from data_loaders import configure_metadata, get_image_ids
    from evaluation import BoxEvaluator
    evaluator = BoxEvaluator(metadata=configure_metadata("metadata/CUB/test"), dataset_name="CUB", split="test",
                             cam_threshold_list=list(np.arange(0, 1, .001)), iou_threshold_list=[30, 50, 70],
                             mask_root=None, multi_contour_eval=True)
    for scoremap, image_id in ...:
        evaluator.accumulate(scoremap, image_id)
    evaluator.compute()                                 # MaxBoxAcc in percent, at each IoU threshold

Signatures, values and types of errors are those of github.com/clovaai/wsolevaluation; wsol/metrics and wsol/datasets do
the work. Two things are accepted that are errors there: float32 maps, and masks of data sets other than OpenImages.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import munch
import numpy as np
from numpy.typing import NDArray

from wsol.datasets.masks import load_mask
from wsol.datasets.reader import MaskPaths, read_boxes, read_ids, read_labels, read_masks, read_sizes, unknown_ids
from wsol.geometry import RESOLUTION, box_iou, resize_boxes
from wsol.metrics.boxes import best_iou, scoremap_boxes
from wsol.metrics.pixels import average_precision

Box = tuple[int, int, int, int]
_BOX_DATASETS = ("ILSVRC", "CUB", "CARS")


# --------------------------------------------------------------------------- data_loaders.py


def configure_metadata(metadata_root: str) -> munch.Munch:
    """Paths of a split's files. `metadata_root` is the split's folder, such as metadata/CUB/test."""
    names = ("image_ids", "image_ids_proxy", "class_labels", "image_sizes", "localization")
    return munch.Munch({name: os.path.join(metadata_root, f"{name}.txt") for name in names})


def get_image_ids(metadata: Mapping[str, str], proxy: bool = False) -> list[str]:
    """Image ids in the file's order; with `proxy`, those of image_ids_proxy.txt."""
    return read_ids(Path(metadata["image_ids_proxy" if proxy else "image_ids"]))


def get_class_labels(metadata: Mapping[str, str]) -> dict[str, int]:
    """{image id: class index}."""
    path, position = _images_in(metadata, "class_labels", 1)
    return dict(zip(position, read_labels(path, position).tolist(), strict=True))


def get_bounding_boxes(metadata: Mapping[str, str]) -> dict[str, list[Box]]:
    """{image id: [(x0, y0, x1, y1), ...]} in the image's own pixels."""
    path, position = _images_in(metadata, "localization", 4)
    boxes = read_boxes(path, position, ordered=False)
    return {image_id: list(map(tuple, array.tolist())) for image_id, array in zip(position, boxes, strict=True)}


def get_mask_paths(metadata: Mapping[str, str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """({image id: [mask file, ...]}, {image id: ignore file or ""})."""
    path, position = _images_in(metadata, "localization", 2)
    masks = dict(zip(position, read_masks(path, position), strict=True))
    return (
        {image_id: list(paths.foreground) for image_id, paths in masks.items()},
        {image_id: paths.ignore for image_id, paths in masks.items()},
    )


def get_image_sizes(metadata: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """{image id: (width, height)}."""
    path, position = _images_in(metadata, "image_sizes", 2)
    sizes = read_sizes(path, position)
    return {} if sizes is None else dict(zip(position, map(tuple, sizes.tolist()), strict=True))


def _images_in(metadata: Mapping[str, str], name: str, fields: int) -> tuple[Path, dict[str, int]]:
    """A file's path, and {image id: position} of its images: wsolevaluation's readers do not look at image_ids.txt."""
    path = Path(metadata[name])
    return path, {image_id: i for i, image_id in enumerate(unknown_ids(path, (), fields))}


# --------------------------------------------------------------------------- util.py


def check_scoremap_validity(scoremap: NDArray) -> None:
    """Raise TypeError unless it is a float array, and ValueError unless it is 2-D with values in [0, 1]."""
    if not isinstance(scoremap, np.ndarray):
        raise TypeError(f"a score map must be a numpy array, not {type(scoremap).__name__}")
    if scoremap.dtype not in (np.float32, np.float64):
        raise TypeError(f"a score map must be of float32 or float64, not {scoremap.dtype}")
    if scoremap.ndim != 2:
        raise ValueError(f"a score map must be a (H, W) array, not {scoremap.ndim}-D")
    if np.isnan(scoremap).any():
        raise ValueError("the score map contains NaN")
    if ((scoremap < 0) | (scoremap > 1)).any():
        raise ValueError(f"score map values must lie in [0, 1], got [{scoremap.min()}, {scoremap.max()}]")


def check_box_convention(boxes: NDArray, convention: str) -> None:
    """Check that boxes, (4,) or (n, 4), follow the convention "x0y0x1y1" or "xywh".

    Raises:
        RuntimeError: they do not.
        ValueError: the convention is another one.
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
    """IoU of all pairs of boxes x0, y0, x1, y1 in whole pixels, ends inclusive: (n, 4), (m, 4) -> (n, m)."""
    for boxes in (box_a, box_b):
        check_box_convention(boxes, "x0y0x1y1")
    return box_iou(_to_integers(box_a), _to_integers(box_b))


def _to_integers(boxes: NDArray) -> NDArray:
    """Boxes as int64 if all values are whole numbers, otherwise unchanged."""
    return boxes.astype(np.int64) if np.all(boxes == np.trunc(boxes)) else boxes


def resize_bbox(box: Sequence[float], image_size: tuple[float, float], resize_size: tuple[float, float]) -> Box:
    """Scale a box x0, y0, x1, y1 from one image size (width, height) to another and truncate it to whole pixels."""
    check_box_convention(np.array(box), "x0y0x1y1")
    x0, _, x1, _ = resize_boxes([box], image_size, resize_size[0])[0].tolist()
    _, y0, _, y1 = resize_boxes([box], image_size, resize_size[1])[0].tolist()
    return x0, y0, x1, y1


def compute_bboxes_from_scoremaps(
    scoremap: NDArray, scoremap_threshold_list: Iterable[float], multi_contour_eval: bool = False
) -> tuple[list[NDArray[np.int64]], list[int]]:
    """For each threshold, the boxes (n, 4) of a score map (H, W), and their number.

    There is one box, that of the largest contour, or with `multi_contour_eval` one box per contour; [[0, 0, 0, 0]] if
    there is no contour.
    """
    check_scoremap_validity(scoremap)
    result = scoremap_boxes(scoremap, list(scoremap_threshold_list))
    if multi_contour_eval:
        boxes_by_level = np.split(result.boxes, result.start[1:])
    else:
        boxes_by_level = list(result.boxes[result.largest][:, None])
    boxes = [boxes_by_level[level].copy() for level in result.foreground]
    return boxes, list(map(len, boxes))


def get_mask(mask_root: str, mask_paths: Iterable[str], ignore_path: str) -> NDArray[np.uint8]:
    """One image's masks, (224, 224) uint8: 1 foreground, 0 background, 255 ignore. `ignore_path` is "" for no file."""
    return load_mask(Path(mask_root), MaskPaths(tuple(mask_paths), ignore_path))


class LocalizationEvaluator:
    """The settings that both evaluators share."""

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
        """Keep the settings.

        Args:
            metadata: paths from `configure_metadata`.
            dataset_name: name of the data set.
            split: name of the split.
            cam_threshold_list: score-map thresholds tau, ascending from 0.
            iou_threshold_list: IoU thresholds in percent.
            mask_root: folder that mask paths start from; None if there are no masks.
            multi_contour_eval: consider the boxes of all contours, not only of the largest.
        """
        self.metadata = metadata
        self.cam_threshold_list = cam_threshold_list
        self.iou_threshold_list = iou_threshold_list
        self.dataset_name = dataset_name
        self.split = split
        self.mask_root = mask_root
        self.multi_contour_eval = multi_contour_eval


class BoxEvaluator(LocalizationEvaluator):
    """MaxBoxAcc.

    Attributes:
        image_ids: the split's images.
        original_bboxes: {image id: boxes in the image's own pixels}.
        image_sizes: {image id: (width, height)}.
        gt_bboxes: {image id: boxes at 224 x 224}.
        num_correct: {IoU threshold: number of correct images at each threshold tau}.
        cnt: number of images so far.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        """Read the split's boxes and image sizes."""
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
        """`resize_bbox` for all boxes of an image at once."""
        check_box_convention(np.array(boxes), "x0y0x1y1")
        return list(map(tuple, resize_boxes(boxes, image_size, self.resize_length).tolist()))

    def accumulate(self, scoremap: NDArray, image_id: str) -> None:
        """Add one image: at each threshold tau, it is correct if one of its score map's boxes is."""
        check_scoremap_validity(scoremap)
        best = best_iou(scoremap, np.array(self.gt_bboxes[image_id]), self.cam_threshold_list)
        iou = best.multi if self.multi_contour_eval else best.single
        for delta in self.iou_threshold_list:
            self.num_correct[delta] += iou >= delta / 100
        self.cnt += 1

    def compute(self) -> list[np.float64]:
        """For each IoU threshold, the percentage of correct images at the best threshold tau."""
        return [(self.num_correct[delta] * 100.0 / self.cnt).max() for delta in self.iou_threshold_list]


class MaskEvaluator(LocalizationEvaluator):
    """PxAP.

    Attributes:
        mask_paths: {image id: mask files}.
        ignore_paths: {image id: ignore file or ""}.
        threshold_list_right_edge: edges of the score bins.
        gt_true_score_hist: foreground pixels per score bin.
        gt_false_score_hist: background pixels per score bin.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        """Read the split's mask paths. Raises ValueError for a data set that has boxes and no masks."""
        super().__init__(*args, **kwargs)
        if self.dataset_name in _BOX_DATASETS:
            raise ValueError(f"{self.dataset_name} has boxes and no masks to evaluate with")
        self.mask_paths, self.ignore_paths = get_mask_paths(self.metadata)
        self.num_bins = len(self.cam_threshold_list) + 2
        # The last bin stays empty: average_precision ignores it.
        self.threshold_list_right_edge = np.append(self.cam_threshold_list, [1.0, 2.0, 3.0])
        self.gt_true_score_hist = np.zeros(self.num_bins)
        self.gt_false_score_hist = np.zeros(self.num_bins)

    def accumulate(self, scoremap: NDArray, image_id: str) -> None:
        """Add the pixels of one image's score map, (224, 224)."""
        check_scoremap_validity(scoremap)
        if self.mask_root is None:
            raise TypeError("MaskEvaluator needs mask_root, the folder that mask paths start from")
        mask = get_mask(self.mask_root, self.mask_paths[image_id], self.ignore_paths[image_id])
        self.gt_true_score_hist += np.histogram(scoremap[mask == 1], self.threshold_list_right_edge)[0]
        self.gt_false_score_hist += np.histogram(scoremap[mask == 0], self.threshold_list_right_edge)[0]

    def compute(self) -> float:
        """PxAP in percent. Raises RuntimeError if no foreground pixel was counted."""
        if not self.gt_true_score_hist.any():
            raise RuntimeError("no positive ground truth: no foreground pixel was counted")
        return 100 * average_precision(self.gt_true_score_hist, self.gt_false_score_hist)
