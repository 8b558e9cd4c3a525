"""Score maps on disk: written, found by the images' ids, read, and measured.

<folder>/<image id without its extension>.npy       as main.py writes them
<folder>/<image id>.npy                             as wsolevaluation does
<folder>/<method>_<head>[_clamped][_affinity]/...              several variants side by side
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from wsol.cam import ScoreMaps, Variant
from wsol.datasets.file_checks import missing_files
from wsol.datasets.pictures import file_stems
from wsol.datasets.reader import SplitMetadata, read_split, require_annotation
from wsol.datasets.split_files import check_masks
from wsol.errors import InputError, first_few, shortened
from wsol.evaluation.ground_truth import load_ground_truth
from wsol.evaluation.split import Evaluation
from wsol.files import NOT_ARRAYS, npy_bytes, write_file
from wsol.geometry import RESOLUTION
from wsol.log import progress
from wsol.workers import parallel_loader

_CHUNK = 32  # images whose saved maps a process reads and measures at a time


# --------------------------------------------------------------------------- names and files


def scoremap_names(image_ids: Sequence[str]) -> list[str]:
    """File names for the maps of images: `file_stems` + .npy."""
    return [f"{stem}.npy" for stem in file_stems(image_ids)]


def save_scoremaps(batch: ScoreMaps, names: Sequence[str], folder: Path) -> None:
    """Write `<folder>/<method>_<head>[_clamped][_affinity]/<name>`, the very float32 arrays that are evaluated.

    Args:
        names: file names for all images of the split, see `scoremap_names`.
    """
    for variant, maps in batch.maps.items():
        for index, scoremap in zip(batch.indices, maps, strict=True):
            write_file(folder / str(variant) / names[index], npy_bytes(scoremap))


def find_variants(root: Path, image_ids: Sequence[str]) -> dict[Variant, list[Path]]:
    """The variants in a folder, each with the map files of all images in order.

    The folder itself is one variant, or each of its subfolders is.

    Raises:
        InputError: the folder is missing or has no map of these images, or a variant lacks some.
    """
    if not root.is_dir():
        raise InputError(f"--scoremap_root {root} is not a folder")
    subfolders = sorted(path for path in root.iterdir() if path.is_dir())
    for folders in ([root], subfolders):
        files = {folder: _find_maps(folder, image_ids) for folder in folders}
        variants = {
            Variant.parse(folder.absolute().name): _require_all(folder, image_ids, paths)
            for folder, paths in files.items()
            if any(paths)
        }
        if variants:
            return variants
    raise InputError(
        f"--scoremap_root {root} and its subfolders have no score map of any of the {len(image_ids):,} images; the "
        f"first would be {scoremap_names(image_ids)[0]}. Check --split and --dataset_name"
    )


def _find_maps(folder: Path, image_ids: Sequence[str]) -> list[Path | None]:
    """The file of each image's map, None where it is missing."""
    files: list[Path | None] = [None] * len(image_ids)
    for names in (scoremap_names(image_ids), [f"{image_id}.npy" for image_id in image_ids]):
        open_places = [i for i, file in enumerate(files) if file is None]
        missing = set(missing_files(folder, [names[i] for i in open_places], f"maps in {folder.name}"))
        for position, i in enumerate(open_places):
            if position not in missing:
                files[i] = folder / names[i]
    return files


def _require_all(folder: Path, image_ids: Sequence[str], files: Sequence[Path | None]) -> list[Path]:
    missing = [image_id for image_id, file in zip(image_ids, files, strict=True) if file is None]
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing):,} of {len(image_ids):,} score maps, those of {first_few(missing)}"
        )
    return [file for file in files if file is not None]


def load_scoremap(path: Path, size: int = RESOLUTION) -> NDArray[np.floating]:
    """A saved map, (size, size) float32 or float64 in [0, 1]. Nothing is ever unpickled.

    Raises:
        InputError: the file is missing or not an array, or the array is not such a map.
    """
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a wrong header costs no memory
    except FileNotFoundError:
        raise InputError(f"the score map {path} is missing") from None
    except NOT_ARRAYS as error:
        reason = shortened(error, most=200) or type(error).__name__
        raise InputError(
            f"the score map {path} is not a complete .npy file of numbers ({reason}); write it with numpy.save"
        ) from None
    if not isinstance(stored, np.ndarray) or stored.dtype.kind not in "fiub":
        what = f"an array of {stored.dtype}" if isinstance(stored, np.ndarray) else "an archive of arrays"
        raise InputError(f"the score map {path} is {what}, not one array of real numbers")
    if stored.shape != (size, size):
        raise InputError(
            f"the score map {path} is {' x '.join(map(str, stored.shape)) or 'a single number'}, not "
            f"{size} x {size}; resize maps before saving them"
        )
    native = stored.dtype.newbyteorder("=")
    scoremap = np.array(stored, dtype=native if native in (np.float32, np.float64) else np.float32)
    low, high = scoremap.min(), scoremap.max()
    if np.isnan(low):
        raise InputError(f"the score map {path} contains NaN; write zeros where a method gives no map")
    if low < 0 or high > 1:
        raise InputError(f"the score map {path} has values from {low:g} to {high:g}, outside [0, 1]; normalise it")
    return scoremap


# --------------------------------------------------------------------------- measuring


def read_evaluated_split(metadata_root: str, dataset_name: str, split: str, mask_root: str) -> SplitMetadata:
    """The metadata that metrics need, without images.

    Raises:
        InputError: see read_split; the split has neither boxes nor masks; mask files are missing.
    """
    folder = Path(metadata_root) / dataset_name
    metadata = read_split(folder, split, Path(), Path(mask_root) / dataset_name)
    require_annotation(metadata, folder)
    check_masks(metadata)
    return metadata


class SavedMaps(Dataset[Evaluation]):
    """A split's saved maps in chunks, each read and measured: item i is an Evaluation of its images alone."""

    def __init__(self, metadata: SplitMetadata, files: Mapping[Variant, Sequence[Path]], settings: Mapping[str, Any]):
        self.metadata, self.files, self.settings = metadata, files, settings

    def __len__(self) -> int:
        return -(-len(self.metadata) // _CHUNK)

    def __getitem__(self, index: int) -> Evaluation:
        places = range(index * _CHUNK, min((index + 1) * _CHUNK, len(self.metadata)))
        metadata = self.metadata.subset(places)
        maps = {
            variant: np.stack([load_scoremap(files[place]) for place in places])
            for variant, files in self.files.items()
        }
        constant = {variant: values.min(axis=(1, 2)) == values.max(axis=(1, 2)) for variant, values in maps.items()}
        indices = np.arange(len(metadata))
        evaluation = Evaluation(metadata, list(self.files), **self.settings)
        evaluation.update(
            ScoreMaps(indices, metadata.labels, None, None, maps, constant), load_ground_truth(metadata, indices)
        )
        return evaluation


def evaluate_saved(
    metadata: SplitMetadata, files: Mapping[Variant, Sequence[Path]], *, workers: int = 4, **settings: Any
) -> Evaluation:
    """Measure the saved maps of a split. Metrics that need classification are absent.

    Args:
        files: the maps of each variant in the order of the images, see `find_variants`.
        workers: processes, 0 for this one alone; the numbers do not depend on it.
        settings: of Evaluation: interval, iou_thresholds, loc_threshold, gt_boxes, judged_by, center.

    Raises:
        InputError: a file is not a 224 x 224 array in [0, 1].
    """
    chunks = SavedMaps(metadata, files, settings)
    total = Evaluation(metadata, list(files), **settings)
    loader = parallel_loader(chunks, None, min(workers, len(chunks)))
    for chunk in progress(loader, "evaluating", unit="chunk"):
        total.merge(chunk)
    return total
