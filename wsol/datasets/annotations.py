"""What published annotations have in common: boxes, image sizes, Pascal VOC's XML.

Box format throughout: x0, y0, x1, y1 in pixels, both ends inclusive.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from wsol.datasets.file_checks import require_files
from wsol.datasets.images import image_size
from wsol.datasets.reader import read_lines
from wsol.datasets.writer import Box, Size
from wsol.errors import InputError
from wsol.log import progress


class VocAnnotation(NamedTuple):
    """The annotation of one image: its size if given, and (class name, box) of each object, in the file's order."""

    size: Size | None
    objects: list[tuple[str, Box]]


def read_voc(path: Path) -> VocAnnotation:
    """Read an XML file in Pascal VOC's format, which ImageNet uses, too; boxes are as the file has them.

    Raises:
        InputError: the file is missing, is not XML (with the line) or has a malformed box or size.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except ElementTree.ParseError as error:
        raise InputError(f"{path}:{error.position[0]}: not XML ({error})") from None
    except (OSError, ValueError, LookupError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    with errors_at(path):
        width, height = (root.findtext(f"size/{side}") for side in ("width", "height"))
        size = (int(width), int(height)) if width and height and int(width) and int(height) else None
        objects = [(item.findtext("name", "").strip(), _voc_box(item)) for item in root.iter("object")]
    return VocAnnotation(size, objects)


def _voc_box(item: ElementTree.Element) -> Box:
    x0, y0, x1, y1 = (int(float(item.findtext(f"bndbox/{side}", ""))) for side in ("xmin", "ymin", "xmax", "ymax"))
    return x0, y0, x1, y1


def image_sizes(root: Path, image_ids: Sequence[str], sizes_file: Path | None = None) -> dict[str, Size]:
    """{image id: (width, height)}, from a file of `path,width,height` lines, or else from the images' headers.

    Raises:
        InputError: an image or its line is missing or malformed.
    """
    if sizes_file is not None:
        sizes = {}
        for number, line in enumerate(read_lines(sizes_file), 1):
            image_id, *fields = line.rsplit(",", 2)
            with errors_at(f"{sizes_file}:{number}"):
                width, height = map(int, fields)
                sizes[image_id] = width, height
        for image_id in image_ids:
            if image_id not in sizes:
                raise InputError(f"{sizes_file} has no line for {image_id}")
        return sizes
    require_files(root, image_ids, "images", "sizes are read from them; give --images, or a --sizes file")

    with ThreadPoolExecutor(8) as pool:
        read = progress(
            pool.map(lambda image_id: image_size(root / image_id, "replace the file, or leave it out"), image_ids),
            "sizes",
            unit="image",
            total=len(image_ids),
        )
        return dict(zip(image_ids, read, strict=True))


def clip_box(box: Box, size: Size) -> Box:
    """The part of a box inside its image. Raises ValueError if nothing is left."""
    (x0, y0, x1, y1), (width, height) = box, size
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width - 1), min(y1, height - 1)
    if x0 > x1 or y0 > y1:
        raise ValueError(f"box {','.join(map(str, box))} has no pixel in the {width}x{height} image")
    return x0, y0, x1, y1


@contextmanager
def errors_at(place: Path | str) -> Iterator[None]:
    """Turn errors about malformed numbers, and boxes outside their image, into an InputError that begins with `place`.

    Args:
        place: a file, or "file:line".
    """
    try:
        yield
    except InputError:
        raise
    except (ValueError, OverflowError, TypeError) as error:
        raise InputError(f"{place}: {error}") from None
