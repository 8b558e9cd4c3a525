"""Saved score maps: finding the file of each image, reading one, and the rows that a folder holds.

<folder>/<image id without its extension>.npy       as main.py writes them
<folder>/<image id>.npy                             as wsolevaluation does
<folder>/<method>_<head>/...                        several rows side by side
"""

from __future__ import annotations

import os
import signal
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from wsol.cam import ScoreMaps, Variant
from wsol.datasets.file_checks import missing_files
from wsol.datasets.pictures import file_stems
from wsol.datasets.reader import SplitMetadata, read_split
from wsol.datasets.split_files import check_masks
from wsol.errors import InputError
from wsol.evaluation.split import Evaluation
from wsol.geometry import RESOLUTION
from wsol.log import progress

# How np.load tells that a file is no array: cut off, pickled, a broken zip, a header of nonsense.
_NOT_READABLE = (OSError, ValueError, EOFError, OverflowError, MemoryError, zipfile.BadZipFile)


def scoremap_names(image_ids: Sequence[str]) -> list[str]:
    """File names for the maps of images: `file_stems` + .npy."""
    return [f"{stem}.npy" for stem in file_stems(image_ids)]


def find_rows(root: Path, image_ids: Sequence[str]) -> dict[Variant, list[Path]]:
    """The rows below a folder, each with its images' map files in order: the folder is a row, or its subfolders are.

    Raises:
        InputError: there is no such folder, it holds no map of these images, or a row lacks some.
    """
    if not root.is_dir():
        raise InputError(f"--scoremap_root {root} is no folder")
    inner = sorted(path for path in root.iterdir() if path.is_dir())
    for folders in ([root], inner):
        found = {folder: _find_maps(folder, image_ids) for folder in folders}
        rows = {
            Variant.parse(folder.absolute().name): _complete(folder, image_ids, files)
            for folder, files in found.items()
            if any(files)
        }
        if rows:
            return rows
    raise InputError(
        f"none of the {len(image_ids):,} images has a score map in --scoremap_root {root} or in a folder "
        f"there: no {scoremap_names(image_ids)[0]}, say; check --split and --dataset_name, too"
    )


def load_scoremap(path: Path, size: int = RESOLUTION) -> NDArray[np.floating]:
    """A saved map, (size, size) float32 or float64 in [0, 1]. Nothing is ever unpickled.

    Raises:
        InputError: the file is missing or is no array, or the array is no such map.
    """
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a wrong header costs no memory
    except FileNotFoundError:
        raise InputError(f"the score map {path} is missing") from None
    except _NOT_READABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"the score map {path} is not a whole .npy file of numbers ({reason}); write it with numpy.save"
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
        raise InputError(f"the score map {path} holds NaN; write zeros where a method gives no map")
    if low < 0 or high > 1:
        raise InputError(f"the score map {path} holds values from {low:g} to {high:g}, outside [0, 1]; normalise it")
    return scoremap


def _find_maps(folder: Path, image_ids: Sequence[str]) -> list[Path | None]:
    """The file of each image's map, None where there is none."""
    files: list[Path | None] = [None] * len(image_ids)
    for names in (scoremap_names(image_ids), [f"{image_id}.npy" for image_id in image_ids]):
        places = [i for i, file in enumerate(files) if file is None]
        missing = set(missing_files(folder, [names[i] for i in places], f"maps in {folder.name}"))
        for position, i in enumerate(places):
            if position not in missing:
                files[i] = folder / names[i]
    return files


def _complete(folder: Path, image_ids: Sequence[str], files: Sequence[Path | None]) -> list[Path]:
    missing = [image_id for image_id, file in zip(image_ids, files, strict=True) if file is None]
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(f"{len(missing):,} of {len(image_ids):,} score maps are missing in {folder}, those of {first}")
    return list(files)


_CHUNK = 32  # saved maps of a row that a process reads and measures at a time


def read_evaluated_split(metadata_root: str, dataset_name: str, split: str, mask_root: str) -> SplitMetadata:
    """The metadata that metrics need, without images.

    Raises:
        InputError: see read_split; the split has neither boxes nor masks; mask files are missing.
    """
    folder = Path(metadata_root) / dataset_name
    metadata = read_split(folder, split, Path(), Path(mask_root) / dataset_name)
    if metadata.boxes is None and metadata.masks is None:
        raise InputError(
            f"{folder / split} has neither boxes nor masks, so nothing can be measured on this split: "
            "localization.txt is missing or empty"
        )
    check_masks(metadata)
    return metadata


class SavedMaps(Dataset):
    """Chunks of a split's saved maps, each read and measured: item i is an Evaluation of its images alone."""

    def __init__(self, metadata: SplitMetadata, files: Mapping[Variant, Sequence[Path]], settings: Mapping):
        self.metadata, self.files, self.settings = metadata, files, settings

    def __len__(self) -> int:
        return -(-len(self.metadata) // _CHUNK)

    def __getitem__(self, index: int) -> Evaluation:
        places = range(index * _CHUNK, min((index + 1) * _CHUNK, len(self.metadata)))
        metadata = self.metadata.subset(places)
        maps = {row: np.stack([load_scoremap(files[place]) for place in places]) for row, files in self.files.items()}
        evaluation = Evaluation(metadata, list(self.files), normalization=None, **self.settings)
        evaluation.update(
            ScoreMaps(
                np.arange(len(metadata)),
                metadata.labels,
                None,
                None,
                maps,
                {row: of_row.min(axis=(1, 2)) == of_row.max(axis=(1, 2)) for row, of_row in maps.items()},
            )
        )
        return evaluation


def evaluate_saved(
    metadata: SplitMetadata, files: Mapping[Variant, Sequence[Path]], *, workers: int = 4, **settings
) -> Evaluation:
    """Measure the saved maps of a split, in `workers` processes (0: in this one).

    files: each row's maps in the order of the images, as wsol.scoremap_files.find_rows finds them. settings: those of
    Evaluation: interval, iou_thresholds, loc_threshold, gt_boxes, center. What classification adds is absent. The
    numbers do not depend on `workers`.

    Raises:
        InputError: a file is not a 224 x 224 array in [0, 1].
    """
    chunks = SavedMaps(metadata, files, settings)
    found = Evaluation(metadata, list(files), normalization=None, **settings)
    processes = min(workers, len(os.sched_getaffinity(0)), len(chunks))
    loader = DataLoader(chunks, batch_size=None, num_workers=processes, worker_init_fn=_leave_ctrl_c)
    for chunk in progress(loader, "evaluating", unit="chunk"):
        found.merge(chunk)
    return found


def _leave_ctrl_c(_: int) -> None:
    """Ctrl-C reaches every process of the terminal; this one, a worker, is stopped by its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
