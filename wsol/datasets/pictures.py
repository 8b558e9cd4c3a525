"""Pictures that a person names on the command line: finding them, naming their results, leaving out bad ones."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from wsol.datasets.file_checks import broken_files, log_left_out
from wsol.datasets.images import IMAGE_SUFFIXES, NAMED_PICTURE, check_image
from wsol.errors import InputError


class Picture(NamedTuple):
    """A picture's file, and the stem that its results are named after."""

    path: Path
    stem: str


def find_pictures(places: Sequence[str], out: Path) -> list[Picture]:
    """The files named, and those below the folders named, in order; each once, each with a stem of its own.

    Hidden files and everything in `out` are skipped. A stem is the path below the named folder; if two would be
    equal, leading folders are added until they differ.

    Raises:
        InputError: a path does not exist, or a folder has no picture.
    """
    files: dict[str, Path] = {}  # absolute path → the path as it was named
    ids: dict[str, str] = {}  # absolute path → the stem with its extension
    for place in map(Path, places):
        if place.is_file():
            paths = [place]
        elif place.is_dir():
            paths = _pictures_below(place, out)
        else:
            raise InputError(f"{place} is missing: there is no such picture or folder")
        for path in paths:
            files.setdefault(os.path.abspath(path), path)
            ids.setdefault(os.path.abspath(path), path.name if path == place else path.relative_to(place).as_posix())
    while repeated := {image_id for image_id, count in Counter(ids.values()).items() if count > 1}:
        for absolute, image_id in ids.items():
            if image_id in repeated:
                ids[absolute] = "/".join(Path(absolute).parts[1:][-image_id.count("/") - 2 :])
    return [Picture(path, stem) for path, stem in zip(files.values(), file_stems(list(ids.values())), strict=True)]


def _pictures_below(folder: Path, out: Path) -> list[Path]:
    """Files with an image suffix at any depth, sorted; without hidden files and those in `out`."""
    absolute_out = Path(os.path.abspath(out))

    def refuse(error: OSError) -> None:
        raise InputError(f"the folder {error.filename} cannot be read: {error.strerror}")

    files = (Path(where, name) for where, _, names in os.walk(folder, onerror=refuse) for name in names)
    paths = [
        path
        for path in sorted(files)
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and absolute_out not in Path(os.path.abspath(path)).parents
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not paths:
        raise InputError(f"there is no picture in {folder} ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return paths


def file_stems(image_ids: Sequence[str]) -> list[str]:
    """For each image, the file name (without extension) that its results get.

    This is the image id without its extension, or the whole id where another image would get the same name.
    """
    stems = [str(Path(image_id).with_suffix("")) for image_id in image_ids]
    while len(counts := Counter(stems)) < len(stems):  # a whole id may in turn be another's stem: x.png and x.png.jpg
        stems = [stem if counts[stem] == 1 else image_id for stem, image_id in zip(stems, image_ids, strict=True)]
    return stems


def readable_pictures(pictures: Sequence[Picture], skip_bad: bool, workers: int) -> list[Picture]:
    """The pictures that can be decoded.

    Raises:
        InputError: a picture cannot be decoded; with `skip_bad`, only if none can.
    """

    def check(i: int) -> None:
        check_image(pictures[i].path, NAMED_PICTURE)

    bad = broken_files(check, range(len(pictures)), "decoding pictures", workers)
    reasons = list(bad.values())
    if bad and (not skip_bad or len(bad) == len(pictures)):
        raise InputError(reasons[0] + (f" (and {len(bad) - 1:,} more)" if len(bad) > 1 else ""))
    log_left_out(reasons)
    return [picture for i, picture in enumerate(pictures) if i not in bad]
