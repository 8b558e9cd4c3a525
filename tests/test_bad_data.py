"""Bad data: one clear line, exit code 2 and an untouched folder; --skip_bad_images continues without bad images."""

import errno
import json
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import REAL, arguments, files_below, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import main as program
from wsol.datasets.file_checks import looks_whole, missing_files
from wsol.datasets.images import check_image, load_image
from wsol.datasets.load import load_data
from wsol.datasets.pictures import file_stems, find_pictures
from wsol.datasets.reader import read_split
from wsol.datasets.split_files import boxes_outside
from wsol.errors import InputError


@pytest.fixture
def command(monkeypatch, capsys):
    """main.py's command in this process: flags → (exit code, stderr, stdout)."""

    def run(flags: list[str]) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["main.py", *flags])
        code = program.run_from_shell()
        captured = capsys.readouterr()
        return code, captured.err, captured.out

    return run


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])


def png_header(width: int, height: int) -> bytes:
    """A PNG that begins and ends as it should and says that it is so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


META, DATA = "metadata/Shapes", "dataset/Shapes"
CASES = {
    "no label": (
        lambda r: replace(r / META / "train/class_labels.txt", "train/0/1.png,0\n", ""),
        "class_labels.txt has no line for train/0/1.png",
    ),
    "word for a label": (
        lambda r: replace(r / META / "train/class_labels.txt", "0/1.png,0", "0/1.png,red"),
        "class_labels.txt:2: 'red' is not a class index",
    ),
    "two labels": (
        lambda r: replace(r / META / "val/class_labels.txt", "val/0/1.png,0", "val/0/0.png,2"),
        "class_labels.txt:",
    ),
    "half a box": (
        lambda r: replace(r / META / "test/localization.txt", "test/0/0.png,", "test/0/0.png,7,7,7,7,x,"),
        "has no box for test/0/0.png",
    ),
    "crossed box": (
        lambda r: (r / META / "test/localization.txt").write_text("test/0/0.png,9,9,3,3\n"),
        "localization.txt:1: box 9,9,3,3 has its corners in the wrong order",
    ),
    "no size": (lambda r: (r / META / "test/image_sizes.txt").unlink(), "image_sizes.txt has no width,height for"),
    "no test split": (
        lambda r: (r / META / "test").rename(r / META / "tset"),
        "has no test split (present: train, val)",
    ),
    "no train split": (lambda r: (r / META / "train").rename(r / META / "tain"), "has no train split"),
    "too few names": (
        lambda r: (r / META / "classes.txt").write_text("red\ngreen\n"),
        "names 2 classes, but class_labels.txt goes up to index 2",
    ),
    "no image": (
        lambda r: [(r / DATA / f"train/1/{i}.png").unlink() for i in range(4)],
        "4 of 12 train images are missing: ",
    ),
    "no folder": (lambda r: (r / DATA / "test/2").rename(r / DATA / "test/two"), "4 of 12 test images are missing: "),
    "no mask": (lambda r: (r / DATA / "val/2/1_mask.png").unlink(), "1 of 12 val masks are missing: "),
    "truncated training image": (lambda r: cut(r / DATA / "train/1/2.png"), "train/1/2.png cannot be read ("),
    "empty test image": (lambda r: (r / DATA / "test/1/2.png").write_bytes(b""), "test/1/2.png cannot be read ("),
    "an image of another size": (
        lambda r: Image.new("RGB", (33, 44)).save(r / DATA / "test/0/1.png"),
        "test/0/1.png is 33x44, but image_sizes.txt says ",
    ),
    "a mask too large to decode": (
        lambda r: (r / DATA / "test/0/1_mask.png").write_bytes(png_header(60_000, 60_000)),
        "test/0/1_mask.png cannot be read (Image size (3600000000 pixels) exceeds limit",
    ),
    "a test image too large to decode": (
        lambda r: (r / DATA / "test/0/1.png").write_bytes(png_header(60_000, 60_000)),
        "test/0/1.png cannot be read (Image size (3600000000 pixels) exceeds limit",
    ),
    "a mask outside": (
        lambda r: replace(r / META / "test/masks.txt", "test/0/1_mask.png", "../../x.png"),
        "masks.txt:2: the mask '../../x.png' leads out of --mask_root",
    ),
    "a mask by its absolute path": (
        lambda r: replace(r / META / "test/masks.txt", "test/0/1_mask.png", "/tmp/x.png"),
        "masks.txt:2: the mask '/tmp/x.png' leads out of --mask_root",
    ),
    "an id that is a folder": (
        lambda r: replace(r / META / "test/image_ids.txt", "test/0/1.png", "."),
        "image_ids.txt:2: '.' leads out of the data set's folder or is no path of a file",
    ),
    "a float box": (
        lambda r: replace(r / META / "test/localization.txt", ",", ",1.5"),
        "is not x0,y0,x1,y1; expected whole numbers",
    ),
    "truncated mask": (lambda r: cut(r / DATA / "test/0/1_mask.png"), "test/0/1_mask.png is missing or broken"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_exit_code_and_untouched_folder(shapes, command, case):
    spoil, message = CASES[case]
    spoil(shapes)
    before = files_below(shapes)
    code, error, _ = command(arguments(shapes, "--methods", "cam", "--heads", "softmax", "--epochs", "1"))
    assert code == 2 and message in error and error.startswith("error: ")
    assert error.rstrip().count("\n") == 0 or "[ERROR" in error or "libpng" in error  # OpenCV has its own say
    assert files_below(shapes) == before


def test_a_val_split_that_a_flag_needs(tmp_path, command):
    write_dataset(tmp_path, "Shapes", splits=("train", "test"))
    before = files_below(tmp_path)
    code, error, _ = command(arguments(tmp_path, "--num_val_sample_per_class", "2"))
    assert code == 2 and "has no val split (present: train, test), and --num_val_sample_per_class 2" in error
    assert files_below(tmp_path) == before


def test_more_classes_than_the_data_set_or_the_network_has(tmp_path, command):
    write_dataset(tmp_path, "CARS", folder="cars_train", labels=[0, 196])
    before = files_below(tmp_path)
    code, error, _ = command(arguments(tmp_path, dataset="CARS"))
    assert code == 2 and "goes up to index 196, but this data set has 196 classes" in error
    (tmp_path / "metadata/CARS/classes.txt").write_text("car\n" * 200)
    assert "names 200 classes, but CARS has 196" in command(arguments(tmp_path, dataset="CARS"))[1]
    (tmp_path / "metadata/CARS/classes.txt").unlink()
    assert files_below(tmp_path) == before


def test_evaluating_on_more_classes_than_logits(shapes, command):
    program.main(arguments(shapes, "--train_only", "--epochs", "1"))
    write_dataset(shapes, "More", classes=5)
    before = files_below(shapes)
    code, error, _ = command(arguments(shapes, "--eval_only", dataset="More"))
    assert code == 2 and "has 3 classes, but the data set has 5" in error
    assert files_below(shapes) == before


def test_a_class_without_images_is_a_warning(tmp_path, command):
    write_dataset(tmp_path, "Shapes", labels=[0, 3], splits=("train", "test"))
    code, _, out = command(arguments(tmp_path, "--methods", "cam", "--epochs", "1"))
    assert code == 0 and "2 of 4 classes have no image in the train split: class 1, class 2" in out
    assert "2 of 4 classes have no image in the test split" in (tmp_path / "runs/run/log.txt").read_text()


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_skip_bad_images_is_a_run_without_them(tmp_path, command, augment):
    """Missing and broken files are counted and named, and the numbers are those of a data set that never had them."""
    bad = {"train": ["0/1", "2/0"], "val": ["1/1"], "test": ["0/2", "1/0", "2/3"]}
    for name in ("clean", "spoilt"):
        write_dataset(tmp_path / name, "Shapes", form="both")
    for split, stems in bad.items():
        for file in (tmp_path / "clean" / META / split).iterdir():
            lines = file.read_text().splitlines(keepends=True)
            file.write_text("".join(x for x in lines if not any(x.startswith(f"{split}/{s}.png") for s in stems)))
    spoilt = tmp_path / "spoilt" / DATA
    (spoilt / "train/0/1.png").unlink()
    cut(spoilt / "train/2/0.png")
    (spoilt / "val/1/1.png").write_text("no picture")
    cut(spoilt / "test/0/2.png")
    cut(spoilt / "test/1/0_mask.png")
    (spoilt / "test/2/3_mask.png").unlink()
    flags = ("--methods", "cam", "--epochs", "1", "--augment", augment)
    assert command(arguments(tmp_path / "clean", *flags))[0] == 0
    assert command(arguments(tmp_path / "spoilt", *flags))[0] == 2
    before = files_below(spoilt)
    code, _, out = command(arguments(tmp_path / "spoilt", *flags, "--skip_bad_images"))
    assert code == 0 and files_below(spoilt) == before
    for split, stems in bad.items():
        assert f"{len(stems)} of 12 images of the {split} split are left out" in out
        assert all(f"{split}/{stem}" in out for stem in stems)
    clean, skipping = (json.loads((tmp_path / n / "runs/run/results.json").read_text()) for n in ("clean", "spoilt"))
    assert skipping["num_images"] == 9 and skipping["num_skipped"] == 3 and "num_skipped" not in clean
    assert skipping["rows"] == clean["rows"] and skipping["classification"] == clean["classification"]
    code, _, out = command(["--root", str(tmp_path / "spoilt/runs"), "--experiment_name", "run", "--eval_only"])
    assert code == 0 and "3 of 12 images of the test split are left out" in out


def test_nothing_but_bad_images(shapes, command):
    for path in (shapes / DATA / "test").rglob("*.png"):
        path.write_bytes(b"")
    code, error, _ = command(arguments(shapes, "--skip_bad_images"))
    assert code == 2 and "no image of the test split can be used" in error and not (shapes / "runs").exists()


def error_message(function, *arguments) -> str:
    """The message of the InputError that a call raises, "" for none."""
    try:
        function(*arguments)
    except InputError as error:
        return str(error)
    return ""


def test_the_quick_look_at_an_image_finds_what_decoding_finds(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
    for suffix in ("jpg", "png", "webp", "bmp", "gif"):
        path = tmp_path / f"x.{suffix}"
        Image.fromarray(pixels).save(path)
        check_image(path)
        whole = path.read_bytes()
        for length in (0, 10, len(whole) // 2, len(whole) * 9 // 10):
            path.write_bytes(whole[:length])
            messages = [error_message(look, path) for look in (check_image, load_image)]
            assert all(f"x.{suffix} cannot be read" in message for message in messages if message)
            is_bad = [message != "" for message in messages]
            assert is_bad[0] == is_bad[1] and (is_bad[0] or suffix == "gif"), (suffix, length)


def test_missing_files_follows_links_and_counts_what_is_not_a_file(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/x.jpg").write_text("")
    (tmp_path / "a/link.jpg").symlink_to(tmp_path / "a/b/x.jpg")
    (tmp_path / "a/dangling.jpg").symlink_to(tmp_path / "nowhere")
    os.symlink(tmp_path / "a", tmp_path / "c")
    names = [
        "a/b/x.jpg",
        "a/link.jpg",
        "a/dangling.jpg",
        "c/b/x.jpg",
        "a/b",
        "a/b/x.jpg/y.jpg",
        "n" * 300 + "/x.jpg",
        "d/x.jpg",
    ]
    assert missing_files(tmp_path, names) == [2, 4, 5, 6, 7]


def test_data_can_be_loaded_without_the_command(shapes):
    (shapes / DATA / "test/2/3.png").unlink()
    settings = dict(
        data_root=shapes / "dataset", metadata_root=shapes / "metadata", mask_root=shapes / "dataset", splits=("test",)
    )
    with pytest.raises(
        InputError, match=r"1 of 12 test images are missing: .*test/2/3\.png; check --data_root, or give "
    ):
        load_data("Shapes", **settings)
    assert load_data("Shapes", **settings, skip_bad=True).skipped == {"test": 1}


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_is_cut_short_does_not_look_whole(tmp_path, kind):
    whole, path = (
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)),
        tmp_path / "a",
    )
    whole.save(path, kind)
    content = path.read_bytes()
    assert looks_whole(path)
    for length in range(0, len(content) - 12, 7):
        path.write_bytes(content[:length])
        assert not looks_whole(path), length
    path.write_bytes(content + b"\0" * 20)  # padding, as some cameras write
    assert looks_whole(path)


def test_a_whole_file_with_much_padding_is_decoded_and_accepted(shapes):
    image = shapes / "dataset/Shapes/train/0/1.png"
    image.write_bytes(image.read_bytes() + b"\0" * 5000)
    assert not looks_whole(image)
    load_data("Shapes", *[str(shapes / part) for part in ("dataset", "metadata", "dataset")], splits=("train", "test"))


def test_a_network_that_cannot_be_built_leaves_no_data_set_behind(tmp_path, command):
    flags = [
        "--data_root",
        str(tmp_path / "d"),
        "--metadata_root",
        str(tmp_path / "m"),
        "--root",
        str(tmp_path / "r"),
        "--architecture",
        "resnet18",
        "--pretrained_path",
        str(tmp_path / "weights.pth"),
    ]
    code, error, _ = command(flags)
    assert code == 2 and "--pretrained_path" in error and "no such file or folder" in error
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- boxes and images that do not fit


def test_skipping_leaves_out_what_is_too_large_or_of_another_size(shapes, command):
    (shapes / DATA / "test/0/1_mask.png").write_bytes(png_header(60_000, 60_000))
    Image.new("RGB", (33, 44)).save(shapes / DATA / "test/2/0.png")
    argv = arguments(shapes, "--methods", "cam", "--heads", "softmax", "--epochs", "0", "--skip_bad_images")
    code, error, out = command([*argv, "--vanilla_epochs", "1"])
    assert code == 0, error
    assert "left out: mask " in out and "test/2/0.png is 33x44" in out
    assert "2 of 12 images of the test split are left out" in out


def test_boxes_outside_their_image_are_named_and_those_at_its_edge_counted(shapes, capsys):
    sizes = dict(line.split(",", 1) for line in (shapes / META / "test/image_sizes.txt").read_text().split())
    lines = [f"{image_id},0,0,{sizes[image_id]}" for image_id in sizes]  # x1 = width and y1 = height
    lines[3] = lines[3].rpartition(",")[0] + ",900"
    lines[4] = lines[4].replace(",0,0,", ",-1,0,")
    (shapes / META / "test/localization.txt").write_text("\n".join(lines))
    program.main(arguments(shapes, "--methods", "cam", "--dry_run"))
    out = capsys.readouterr().out
    assert "10 boxes of the test split end at x1 = width or y1 = height" in out
    assert (
        "2 boxes extend beyond the image in the test split: test/0/3.png (0,0," in out and "test/1/0.png (-1,0," in out
    )


@pytest.mark.skipif(not REAL.is_dir(), reason="the real metadata are not beside this checkout")
@pytest.mark.parametrize(
    "name, split, at_edge", [("CARS", "train", 360), ("CARS", "test", 352), ("ILSVRC", "test", 0), ("CUB", "test", 0)]
)
def test_published_boxes_lie_inside_or_end_at_the_edge(name, split, at_edge):
    metadata = read_split(REAL / name, split, Path("images"), Path("masks"))
    assert boxes_outside(metadata) == ([], at_edge)


def test_a_link_to_itself_hides_no_other_file(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert missing_files(tmp_path, ["a.png", "loop.png"]) == [1]


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)  # for the superuser of a test machine, no folder is closed
    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(InputError, match=r"the folder .*closed may not be read: permission denied"):
        missing_files(tmp_path, ["closed/a.png"])


def test_a_closed_subfolder_of_pictures_is_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    assert [picture.stem for picture in find_pictures([str(tmp_path)], tmp_path / "out")] == ["a"]
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"the folder .*closed cannot be read: Permission denied"):
        find_pictures([str(tmp_path)], tmp_path / "out")


@pytest.mark.parametrize(
    "ids",
    [
        ["a.jpg", "a.png", "a.png.jpg"],
        ["a.png.jpg", "a.png", "a.jpg"],
        ["a", "a.jpg", "a.jpg.png", "a.jpg.png.gif"],
        ["b/a.jpg", "a.jpg"],
    ],
)
def test_two_pictures_never_share_the_name_of_a_result(ids):
    stems = file_stems(ids)
    assert len(set(stems)) == len(ids)
    assert all(image_id.startswith(stem) for stem, image_id in zip(stems, ids, strict=True))


LINES = st.text(st.sampled_from("ab/.,-0123456789\r\n\t enif\0é٣\ufeff"), max_size=60)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(["image_ids", "class_labels", "image_sizes", "localization", "masks"]), LINES | st.binary())
def test_junk_in_metadata_is_read_or_named(tmp_path_factory, name, junk):
    folder = tmp_path_factory.mktemp("junk")
    (folder / "test").mkdir()
    files = {
        "image_ids": "a\nb/a\n",
        "class_labels": "a,0\nb/a,1\n",
        "image_sizes": "a,9,9\nb/a,9,9\n",
        "localization": "a,1,1,5,5\nb/a,0,0,9,9\n",
    }
    for stem, text in files.items():
        (folder / "test" / f"{stem}.txt").write_text(text)
    (folder / "test" / f"{name}.txt").write_bytes(junk if isinstance(junk, bytes) else junk.encode())
    message = ""
    try:
        metadata = read_split(folder, "test", folder, folder)
    except InputError as error:
        message = str(error)
    if message:
        assert f"{folder}/test/" in message and len(message.splitlines()) == 1
    else:
        assert metadata.image_ids and len(metadata.labels) == len(metadata.image_ids)
        boxes_outside(metadata)
