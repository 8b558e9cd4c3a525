"""Stanford Cars (Krause et al., 2013): metadata from its devkit."""

from __future__ import annotations

from pathlib import Path

from wsol.datasets.annotations import errors_at, image_sizes
from wsol.datasets.official.matlab import read_variable
from wsol.datasets.writer import Box, DatasetMetadata, Record
from wsol.errors import InputError

ANNOTATIONS = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
FIELDS = ("fname", "class", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def read_cars(devkit: Path, *, images: Path | None = None, sizes_file: Path | None = None) -> DatasetMetadata:
    """Train and test of Stanford Cars.

    Labels count from 0. Boxes stay as they are and count pixels from 1.

    Args:
        devkit: folder with cars_train_annos.mat, cars_test_annos_withlabels.mat and cars_meta.mat.
        images: folder of cars_train/ and cars_test/ (default: the devkit's parent); image sizes are read from there.
        sizes_file: `path,width,height` lines, instead of reading the images. Image ids repeat between the splits, so
            "{split}" in the file's name stands for the split.

    Raises:
        InputError: a file is missing or malformed, or SciPy is not installed.
    """
    names = [str(name) for name in read_variable(_devkit_file(devkit, "cars_meta.mat"), "class_names")]
    records = {}
    for split, file in ANNOTATIONS.items():
        path = _devkit_file(devkit, file)
        annotations = read_variable(path, "annotations")
        missing = [field for field in FIELDS if field not in (annotations.dtype.names or ())]
        if missing:
            raise InputError(f"{path} has no field {missing[0]}; the test labels are in cars_test_annos_withlabels.mat")
        rows = [tuple(entry[field] for field in FIELDS) for entry in annotations]
        ids = [Path(str(file_name)).name for file_name, *_ in rows]
        sizes = image_sizes(
            (images or devkit.parent) / f"cars_{split}",
            ids,
            None if sizes_file is None else Path(str(sizes_file).format(split=split)),
        )
        with errors_at(path):
            records[split] = [
                Record(image_id, int(label) - 1, sizes[image_id], [_to_box(box)])
                for image_id, (_, label, *box) in zip(ids, rows, strict=True)
            ]
    return DatasetMetadata(records, names, first_pixel=1)


def _to_box(values: list) -> Box:
    x0, y0, x1, y1 = map(int, values)
    return x0, y0, x1, y1


def _devkit_file(folder: Path, name: str) -> Path:
    """A file in a folder or in its `devkit/`: the published archives differ."""
    for path in (folder / name, folder / "devkit" / name):
        if path.is_file():
            return path
    raise InputError(f"{folder / name} is missing; is {folder} the unpacked car_devkit?")
