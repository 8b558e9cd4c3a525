"""ILSVRC 2012 (Russakovsky et al., IJCV 2015): metadata from ImageNet's annotations, in wsolevaluation's layout."""

from __future__ import annotations

from pathlib import Path

from wsol.datasets.annotations import clip_box, errors_at, image_sizes, read_voc
from wsol.datasets.official.matlab import read_variable
from wsol.datasets.reader import read_lines
from wsol.datasets.writer import DatasetMetadata, Record
from wsol.errors import InputError
from wsol.log import progress


def read_ilsvrc(
    annotations: Path | None = None,
    *,
    synsets: Path | None = None,
    train: Path | None = None,
    images: Path | None = None,
    sizes_file: Path | None = None,
    ground_truth: Path | None = None,
    meta: Path | None = None,
) -> DatasetMetadata:
    """Test (ImageNet's validation images) and train of ILSVRC 2012.

    Args:
        annotations: folder of ILSVRC2012_val_*.xml; gives `test`, with ids val/<name>.JPEG and boxes in the files'
            order.
        synsets: lines that begin with a WordNet id (LOC_synset_mapping.txt, synset_words.txt). Class indices are the
            ranks of the sorted ids. Without this file, the class folders of `train` give the ids.
        train: the folder of the 1,000 class folders, or a file of `<WordNet id>/<name>` lines (train_cls.txt); gives
            `train`, with ids train/<WordNet id>/<name>.JPEG, sorted, without sizes and boxes.
        images: folder that contains val/, to read image sizes from.
        sizes_file: `path,width,height` lines, instead. Without either, sizes come from the XML.
        ground_truth: ILSVRC2012_validation_ground_truth.txt of the development kit, to compare the XML's labels with.
        meta: meta.mat of the development kit, which `ground_truth` needs.

    Raises:
        InputError: a file is missing or malformed, or the files contradict each other.
    """
    if annotations is None and train is None:
        raise InputError("nothing to do: give --annotations (the folder of val's XML), --train, or both")
    train_ids = [] if train is None else _train_ids(train)
    names: dict[str, str] = {}  # WordNet id → class name
    if synsets is not None:
        for line in read_lines(synsets):
            wnid, *name = line.split(maxsplit=1)
            names[wnid] = name[0] if name else wnid
    elif train_ids:
        names = {wnid: wnid for wnid in map(_wnid, train_ids)}
    else:
        raise InputError(
            "class indices are the ranks of the sorted WordNet ids: give --synsets LOC_synset_mapping.txt, or --train"
        )
    class_index = {wnid: i for i, wnid in enumerate(sorted(names))}
    records = {}
    if train_ids:
        for image_id in train_ids:
            if _wnid(image_id) not in class_index:
                raise InputError(f"{train}: {synsets} does not list the class of {image_id}")
        records["train"] = [Record(image_id, class_index[_wnid(image_id)], None) for image_id in train_ids]
    if annotations is not None:
        expected = None if ground_truth is None else _read_ground_truth(ground_truth, meta)
        records["test"] = _test_records(annotations, class_index, images, sizes_file, expected)
    return DatasetMetadata(records, [names[wnid] for wnid in class_index], final_newline=False)


def _wnid(train_id: str) -> str:
    """The WordNet id in train/<WordNet id>/<name>.JPEG."""
    return train_id.split("/")[1]


def _train_ids(train: Path) -> list[str]:
    if train.is_dir():
        return [
            f"train/{folder.name}/{file}"
            for folder in sorted(p for p in train.iterdir() if p.is_dir())
            for file in sorted(p.name for p in folder.iterdir() if p.suffix.upper() == ".JPEG")
        ]
    names = [line.split()[0] for line in read_lines(train)]
    for name in names:
        if name.count("/") != 1:
            raise InputError(f"{train}: '{name}' is not <WordNet id>/<name>, as in train_cls.txt")
    return sorted(f"train/{name}" if name.upper().endswith(".JPEG") else f"train/{name}.JPEG" for name in names)


def _test_records(
    folder: Path, class_index: dict[str, int], images: Path | None, sizes_file: Path | None, expected: list[str] | None
) -> list[Record]:
    """Records from the XML of the validation images; `expected`: the WordNet id of each, to compare with."""
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise InputError(f"no .xml in {folder}; it should contain ILSVRC2012_val_00000001.xml and so on")
    if expected is not None and len(expected) != len(files):
        raise InputError(f"the ground truth has {len(expected)} lines, but {folder} has {len(files)} images")
    ids = [f"val/{file.stem}.JPEG" for file in files]
    sizes = None if images is None and sizes_file is None else image_sizes(images or folder, ids, sizes_file)
    records = []
    for i, (image_id, file) in enumerate(zip(ids, progress(files, "annotations", unit="file"), strict=True)):
        annotation = read_voc(file)
        classes = {name for name, _ in annotation.objects}
        if len(classes) != 1 or not classes <= set(class_index):
            raise InputError(
                f"{file}: its objects should be of one of the {len(class_index)} classes, not {sorted(classes)}"
            )
        wnid = classes.pop()
        if expected is not None and expected[i] != wnid:
            raise InputError(f"{file}: its objects are of class {wnid}, the ground truth says {expected[i]}")
        size = annotation.size if sizes is None else sizes[image_id]
        if size is None:
            raise InputError(f"{file} gives no image size; give --images or --sizes")
        with errors_at(file):
            boxes = [clip_box(box, size) for _, box in annotation.objects]
        records.append(Record(image_id, class_index[wnid], size, boxes))
    return records


def _read_ground_truth(path: Path, meta: Path | None) -> list[str]:
    """The WordNet id of each validation image. The file has numbers whose meaning only meta.mat tells."""
    if meta is None:
        raise InputError(f"the numbers in {path} are ILSVRC2012_IDs, not class indices: give --meta meta.mat, too")
    wnids = {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in read_variable(meta, "synsets")}
    labels = []
    for number, line in enumerate(read_lines(path), 1):
        if not (line.isascii() and line.isdigit()) or int(line) not in wnids:
            raise InputError(f"{path}:{number}: '{line}' is not an ILSVRC2012_ID of {meta}")
        labels.append(wnids[int(line)])
    return labels
