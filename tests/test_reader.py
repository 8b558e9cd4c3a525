"""Metadata readers on mutated files: success or an InputError that names the file; blocks give what one piece gives."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsol.datasets import reader
from wsol.datasets.reader import read_split
from wsol.errors import InputError

IDS = ["a/x.jpg", "a/y.jpg", "b/one, two.jpg", "b/größe.jpg"]
BOXES = {
    "image_ids.txt": "".join(f"{i}\n" for i in IDS),
    "class_labels.txt": "".join(f"{i},{k}\n" for k, i in enumerate(IDS)),
    "image_sizes.txt": "".join(f"{i},448,112\n" for i in IDS),
    "localization.txt": "".join(f"{i},10,20,30,40\n{i},1,2,3,4\n" for i in IDS),
}
MASKS = BOXES | {
    "localization.txt": "".join(f"{i},m/1.png,m/i.png\n{i},m/2.png,\n" for i in IDS),
    "masks.txt": "".join(f"{i},m/1.png,m/i.png\n" for i in IDS),
}


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    (folder / "test").mkdir(exist_ok=True)
    for old in (folder / "test").iterdir():
        old.unlink()
    for name, content in files.items():
        (folder / "test" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(folder: Path, **more):
    return read_split(folder, "test", folder, folder, **more)


NUMBERS = st.sampled_from(
    [
        "",
        "-1",
        "-0",
        "+7",
        "9" * 19,
        "9" * 30,
        "9" * 6000,
        "-9223372036854775808",
        "1e3",
        "nan",
        "inf",
        "0x10",
        "1_000",
        "٣",
        "²",
        "１２",
        "3.5",
        " 5 ",
        "NaN",
        "\x00",
        "../x",
        "/",
        "é" * 3000,
    ]
)


@st.composite
def mutated(draw, files: dict[str, str]) -> dict[str, bytes]:
    """One of the files after one to four mutations of its bytes, lines and fields."""
    files = {name: text.encode() for name, text in files.items()}
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(sorted(files)))
        data = files[name]
        kind = draw(st.sampled_from(["flip", "cut", "drop", "twice", "order", "field", "newline", "bytes", "remove"]))
        lines = data.split(b"\n")
        at = draw(st.integers(0, max(len(lines) - 1, 0)))
        if kind == "flip" and data:
            i = draw(st.integers(0, len(data) - 1))
            data = data[:i] + bytes([draw(st.integers(0, 255))]) + data[i + 1 :]
        elif kind == "cut":
            data = data[: draw(st.integers(0, len(data)))]
        elif kind == "drop":
            data = b"\n".join(lines[:at] + lines[at + 1 :])
        elif kind == "twice":
            data = b"\n".join([*lines[:at], lines[at], *lines[at:]])
        elif kind == "order":
            data = b"\n".join(draw(st.permutations(lines)))
        elif kind == "field":
            fields = lines[at].split(b",")
            fields[draw(st.integers(0, len(fields) - 1))] = draw(NUMBERS).encode()
            data = b"\n".join([*lines[:at], b",".join(fields), *lines[at + 1 :]])
        elif kind == "newline":
            data = data.replace(b"\n", draw(st.sampled_from([b"\r\n", b"\r", b"\n\n", b"\x85", b""])))
        elif kind == "bytes":
            data = (
                data[:at]
                + draw(st.sampled_from([b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\xed\xa0\x80", b","]))
                + data[at:]
            )
        elif kind == "remove" and len(files) > 1:
            del files[name]
            continue
        files[name] = data
    return files


@pytest.mark.parametrize("files", [BOXES, MASKS], ids=["boxes", "masks"])
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_files_give_an_input_error_or_are_read(tmp_path, files, data):
    write(tmp_path, data.draw(mutated(files)))
    metadata, message = None, ""
    try:
        metadata = read(tmp_path)
    except InputError as error:
        message = str(error)
    if metadata is None:
        assert ".txt" in message and "\n" not in message and len(message) < len(str(tmp_path)) + 7000
        return
    assert len(metadata) == len(metadata.labels) == len(set(metadata.image_ids)) and metadata.labels.min() >= 0
    if metadata.boxes is not None:
        assert len(metadata.boxes) == len(metadata)
        for i in range(len(metadata)):
            assert len(metadata.scaled_boxes(i)) >= 1
    if metadata.masks is not None:
        assert len(metadata.masks) == len(metadata) and all(m.foreground for m in metadata.masks)


@pytest.mark.parametrize(
    "name, text, message",
    [
        (
            "class_labels.txt",
            "a/x.jpg,0\na/x.jpg,0\na/x.jpg,1\n",
            r"class_labels.txt:\d: another line gives a different class index",
        ),
        (
            "class_labels.txt",
            "a/x.jpg,12345678901234567890\n",
            "class_labels.txt:1: '12345678901234567890' is not a class",
        ),
        ("class_labels.txt", "a/x.jpg,1000000000\n", "class_labels.txt:1: 1000000000 is beyond 1,000,000"),
        ("class_labels.txt", "\na/x.jpg,1_0\n", "class_labels.txt:2: '1_0' is not a class index"),
        ("class_labels.txt", "a/x.jpg,٣\n", "class_labels.txt:1: '٣' is not a class index"),
        ("class_labels.txt", "a/x.jpg,0\nb\0,1\n", "class_labels.txt:2: a NUL byte"),
        (
            "image_sizes.txt",
            "a/x.jpg,448,112\na/x.jpg,448,113\n",
            r"image_sizes.txt:\d: another line gives a different size",
        ),
        (
            "localization.txt",
            "a/x.jpg,0,0,5,5\n\na/x.jpg,0,0,5,-9223372036854775808\n",
            "localization.txt:3: -9223372036854775808",
        ),
    ],
)
def test_what_mutation_found_is_named_with_its_line(tmp_path, name, text, message):
    write(tmp_path, BOXES | {name: text})
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_marks_of_other_systems_are_read(tmp_path):
    files = {name: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() for name, text in BOXES.items()}
    metadata = read(write(tmp_path, files))
    assert metadata.image_ids == IDS and metadata.labels.tolist() == [0, 1, 2, 3]


def test_blocks_agree_with_one_piece(tmp_path, monkeypatch):
    """Order, line numbers and several boxes of an image do not depend on where blocks end."""
    write(tmp_path, BOXES | {"localization.txt": BOXES["localization.txt"] + "b/one, two.jpg,5,6,7,8\n"})
    whole = read(tmp_path)
    monkeypatch.setattr(reader, "BLOCK", 3)
    pieces = read(tmp_path)
    assert pieces.image_ids == whole.image_ids and (pieces.labels == whole.labels).all()
    assert all(np.array_equal(a, b) for a, b in zip(pieces.boxes, whole.boxes, strict=True))
    assert whole.boxes[2].tolist() == [[10, 20, 30, 40], [1, 2, 3, 4], [5, 6, 7, 8]]
    (tmp_path / "test/image_sizes.txt").write_text(BOXES["image_sizes.txt"].replace("größe.jpg,448", "größe.jpg,wide"))
    with pytest.raises(InputError, match="image_sizes.txt:4: 'wide,112' is not width,height"):
        read(tmp_path)
