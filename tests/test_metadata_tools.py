"""scripts/prepare_metadata.py: official files become wsolevaluation's metadata byte for byte; own folders; checks."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REAL, ROOT, files_below, write_dataset
from PIL import Image

from wsol.datasets.copying import find_datasets
from wsol.datasets.load import load_data
from wsol.datasets.masks import load_mask
from wsol.datasets.reader import read_split
from wsol.run import command

_spec = importlib.util.spec_from_file_location("prepare_metadata", ROOT / "scripts" / "prepare_metadata.py")
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)

FILES = ("image_ids", "class_labels", "image_sizes", "localization")
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real metadata are not beside this checkout")


def assert_same(made: Path, original: Path) -> None:
    for name in FILES:
        assert (made / f"{name}.txt").read_bytes() == (original / f"{name}.txt").read_bytes(), name


def columns(path: Path, count: int) -> list[list[str]]:
    return [line.rsplit(",", count) for line in path.read_text().splitlines()]


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """The command in a folder of its own: arguments → (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run_command(*argv) -> tuple[int, str, str]:
        code = command.run(lambda: tool.main([str(a) for a in argv]))
        return (code, *capsys.readouterr())

    return run_command


# ---------------------------------------------------------- official files, rebuilt from the real metadata


@pytest.fixture
def cub(tmp_path) -> Path:
    """CUB_200_2011's five text files and one of sizes: ids ordered as in images.txt, boxes as x, y, w, h."""
    folder = tmp_path / "CUB_200_2011"
    folder.mkdir()
    images, sizes = [], {}
    for split, flag in (("train", 1), ("test", 0)):
        at = REAL / "CUB" / split
        for (image_id, label), (_, *box) in zip(
            columns(at / "class_labels.txt", 1), columns(at / "localization.txt", 4), strict=True
        ):
            images.append((int(label), image_id, flag, list(map(int, box))))
        sizes |= {i: f"{w},{h}" for i, w, h in columns(at / "image_sizes.txt", 2)}
    images = [x for k in range(200) for x in images if x[0] == k]  # stable: the order within a split stays
    table = {"images": "", "image_class_labels": "", "train_test_split": "", "bounding_boxes": ""}
    for n, (label, image_id, flag, (x0, y0, x1, y1)) in enumerate(images, 1):
        table["images"] += f"{n} {image_id}\n"
        table["image_class_labels"] += f"{n} {label + 1}\n"
        table["train_test_split"] += f"{n} {flag}\n"
        table["bounding_boxes"] += f"{n} {x0:.1f} {y0:.1f} {x1 - x0:.1f} {y1 - y0:.1f}\n"
    table["classes"] = "".join(f"{k + 1} {next(x[1] for x in images if x[0] == k).split('/')[0]}\n" for k in range(200))
    for name, text in table.items():
        (folder / f"{name}.txt").write_text(text)
    (tmp_path / "sizes.txt").write_text("".join(f"{i},{size}\n" for i, size in sizes.items()))
    return folder


@real
def test_cub(cub, run, tmp_path):
    code, out, _ = run("cub", cub, "--sizes", "sizes.txt")
    assert code == 0 and "5,994 train, 5,794 test images of 200 classes; classes.txt, test, train written" in out
    for split in ("train", "test"):
        assert_same(tmp_path / "metadata/CUB" / split, REAL / "CUB" / split)
    assert (tmp_path / "metadata/CUB/classes.txt").read_text().startswith("001.Black_footed_Albatross\n")
    code, out, _ = run("copy", REAL, "--datasets", "CUB", "--splits", "val")  # what the official files lack
    assert code == 0 and "CUB: val copied" in out
    assert_same(tmp_path / "metadata/CUB/val", REAL / "CUB/val")
    code, out, _ = run("check", "CUB", "--metadata_only")
    assert code == 0 and "nothing is wrong" in out and "val: 1,000 images of 200 classes" in out


@real
def test_cars(run, tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    devkit = tmp_path / "devkit"
    devkit.mkdir()
    for split, file in (("train", "cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        at = REAL / "CARS" / split
        rows = [
            (*map(np.uint16, box), np.uint8(int(label) + 1), name)
            for (name, label), (_, *box) in zip(
                columns(at / "class_labels.txt", 1), columns(at / "localization.txt", 4), strict=True
            )
        ]
        kind = [(key, object) for key in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
        scipy_io.savemat(devkit / file, {"annotations": np.array(rows, dtype=kind)[None]})
    names = np.array([f"Make Model {k}" for k in range(196)], dtype=object)
    scipy_io.savemat(devkit / "cars_meta.mat", {"class_names": names[None]})
    code, out, error = run("cars", devkit, "--sizes", REAL / "CARS/{split}/image_sizes.txt")
    assert code == 0 and "8,144 train, 8,041 test images of 196 classes" in out, error
    for split in ("train", "test"):
        assert_same(tmp_path / "metadata/CARS" / split, REAL / "CARS" / split)
    assert (tmp_path / "metadata/CARS/classes.txt").read_text().splitlines()[195] == "Make Model 195"
    (devkit / "cars_meta.mat").write_bytes((devkit / "cars_meta.mat").read_bytes()[:150])
    code, _, error = run("cars", devkit, "--force")
    assert code == 2 and "cars_meta.mat is not a MATLAB file or is cut off" in error


def ilsvrc_annotations(folder: Path, images: int) -> None:
    """ImageNet's XML of the first `images` validation images, wnids n00000000 ... in the order of class indices."""
    at = REAL / "ILSVRC/test"
    folder.mkdir()
    boxes: dict[str, list] = {}
    for image_id, *box in columns(at / "localization.txt", 4):
        boxes.setdefault(image_id, []).append(box)
    for (image_id, label), (_, width, height) in zip(
        columns(at / "class_labels.txt", 1)[:images], columns(at / "image_sizes.txt", 2)[:images], strict=True
    ):
        objects = "".join(
            f"<object><name>n{int(label):08d}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
            f"<ymax>{y1}</ymax></bndbox></object>"
            for x0, y0, x1, y1 in boxes[image_id]
        )
        stem = Path(image_id).stem
        (folder / f"{stem}.xml").write_text(
            f"<annotation><folder>val</folder><filename>{stem}</filename><size><width>{width}</width>"
            f"<height>{height}</height><depth>3</depth></size>\n{objects}</annotation>"
        )


@real
@pytest.mark.parametrize("images", [2000, pytest.param(50000, marks=pytest.mark.slow)])
def test_ilsvrc(run, tmp_path, images):
    ilsvrc_annotations(tmp_path / "val", images)
    (tmp_path / "synsets.txt").write_text("".join(f"n{k:08d} name {k}, other name\n" for k in reversed(range(1000))))
    code, out, error = run("ilsvrc", "--annotations", "val", "--synsets", "synsets.txt")
    assert code == 0 and f"{images:,} test images of 1,000 classes" in out, error
    for name in FILES:
        whole = (REAL / "ILSVRC/test" / f"{name}.txt").read_text()
        made = (tmp_path / "metadata/ILSVRC/test" / f"{name}.txt").read_text()
        assert whole == made if images == 50000 else whole.startswith(made + "\n"), name
    assert (tmp_path / "metadata/ILSVRC/classes.txt").read_text().startswith("name 0, other name\nname 1,")
    code, _, error = run("ilsvrc", "--annotations", "val", "--synsets", "synsets.txt", "--ground_truth", "truth.txt")
    assert code == 2 and "give --meta meta.mat, too" in error


def test_ilsvrc_train_and_ground_truth(run, tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    for wnid in ("n02", "n01"):
        for number in (10, 2):
            path = tmp_path / f"train/{wnid}/{wnid}_{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    assert run("ilsvrc", "--train", "train")[0] == 0
    (tmp_path / "train_cls.txt").write_text("n02/n02_2 1\nn02/n02_10 2\nn01/n01_2 3\nn01/n01_10 4\n")
    code, out, _ = run("ilsvrc", "--train", "train_cls.txt")
    assert code == 0 and "nothing was changed" in out  # the list and the folders say the same
    made = tmp_path / "metadata/ILSVRC/train"
    assert (made / "class_labels.txt").read_text() == (
        "train/n01/n01_10.JPEG,0\ntrain/n01/n01_2.JPEG,0\ntrain/n02/n02_10.JPEG,1\ntrain/n02/n02_2.JPEG,1"
    )
    assert (made / "localization.txt").read_text() == (made / "image_sizes.txt").read_text() == ""
    (tmp_path / "val").mkdir()
    (tmp_path / "val/ILSVRC2012_val_00000001.xml").write_text(
        "<annotation><size><width>9</width><height>8</height></size><object><name>n02</name><bndbox><xmin>1</xmin>"
        "<ymin>2</ymin><xmax>9</xmax><ymax>5</ymax></bndbox></object></annotation>"
    )
    kind = [("ILSVRC2012_ID", object), ("WNID", object)]
    scipy_io.savemat(tmp_path / "meta.mat", {"synsets": np.array([(1, "n02"), (2, "n01")], dtype=kind)[:, None]})
    (tmp_path / "truth.txt").write_text("1\n")
    flags = ("ilsvrc", "--annotations", "val", "--train", "train", "--ground_truth", "truth.txt", "--meta", "meta.mat")
    code, _, error = run(*flags)
    assert code == 0, error
    assert (
        tmp_path / "metadata/ILSVRC/test/localization.txt"
    ).read_text() == "val/ILSVRC2012_val_00000001.JPEG,1,2,8,5"
    (tmp_path / "truth.txt").write_text("2\n")
    code, _, error = run(*flags, "--force")
    assert code == 2 and "are of class n02, the ground truth says n01" in error


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("images.txt", "1 a/x.jpg\n2\n", "images.txt:2: '2' has 1 words, not 2"),
        ("bounding_boxes.txt", "1 1 1 5 nan\n", "bounding_boxes.txt:1: cannot convert float NaN"),
        ("bounding_boxes.txt", "1 90 1 5 5\n", "bounding_boxes.txt:1: box 90,1,95,6 has no pixel in the 20x10 image"),
        ("bounding_boxes.txt", "", "bounding_boxes.txt has no line for image 1"),
        ("image_class_labels.txt", "1 7\n", "image_class_labels.txt:1: classes.txt has no class 7"),
        ("classes.txt", None, "classes.txt is missing; is "),
    ],
)
def test_broken_official_files_are_named_and_nothing_is_written(run, tmp_path, file, text, message):
    good = {
        "images.txt": "1 a/x.jpg\n",
        "image_class_labels.txt": "1 1\n",
        "train_test_split.txt": "1 1\n",
        "bounding_boxes.txt": "1 1.0 1.0 5.0 5.0\n",
        "classes.txt": "1 a\n",
    }
    (tmp_path / "images/a").mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(tmp_path / "images/a/x.jpg")
    for name, content in (good | {file: text}).items():
        if content is not None:
            (tmp_path / name).write_text(content)
    before = files_below(tmp_path)
    code, _, error = run("cub", ".")
    assert code == 2 and message in error and error.count("\n") == 1
    assert files_below(tmp_path) == before
    for name, content in good.items():
        (tmp_path / name).write_text(content)
    assert run("cub", ".")[0] == 0  # sizes come from the images


def test_cars_says_that_scipy_is_needed(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    (tmp_path / "cars_meta.mat").write_bytes(b"")
    code, _, error = run("cars", ".")
    assert code == 2 and "pip install scipy" in error


# --------------------------------------------------------------------------- copy, force


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout with a data set whose val split has wsolevaluation's former name."""
    write_dataset(tmp_path / "checkout", "Shapes", form="both")
    folder = tmp_path / "checkout/metadata/Shapes"
    (folder / "val").rename(folder / "train-fullsup")
    (folder / "train/image_ids_proxy.txt").write_text("train/0/0.png\n")
    (folder / "train/notes.md").write_text("not metadata")
    return tmp_path / "checkout"


def test_copy_maps_the_former_name_and_changes_no_byte(run, checkout, tmp_path):
    code, out, _ = run("copy", checkout)
    assert code == 0 and "Shapes: test, train, val copied" in out
    made = tmp_path / "metadata/Shapes"
    assert files_below(made / "val") == files_below(checkout / "metadata/Shapes/train-fullsup")
    assert (made / "train/image_ids_proxy.txt").exists() and not (made / "train/notes.md").exists()
    before = files_below(tmp_path)
    assert "nothing was changed" in run("copy", checkout / "metadata/Shapes")[1]  # a data set's own folder will do
    (checkout / "metadata/Shapes/test/localization.txt").write_text("test/0/0.png,1,2\n")
    code, _, error = run("copy", checkout, "--force")
    assert code == 2 and ("has no mask for test/0/1.png" in error or "localization.txt" in error)
    assert files_below(made) == {
        k.removeprefix("metadata/Shapes/"): v for k, v in before.items() if k.startswith("metadata/Shapes/")
    }


def test_only_force_replaces_and_splits_are_added(run, checkout, tmp_path):
    assert run("copy", checkout, "--splits", "train")[0] == 0
    made = tmp_path / "metadata/Shapes"
    (made / "train/class_labels.txt").write_text("mine")
    (made / "keep.txt").write_text("mine, too")
    before = files_below(made)
    code, _, error = run("copy", checkout)
    assert code == 2 and "already has train with other content; nothing was changed: --force" in error
    assert files_below(made) == before
    assert run("copy", checkout, "--splits", "test")[0] == 0 and (made / "test").is_dir()
    code, out, _ = run("copy", checkout, "--force")
    assert code == 0 and "Shapes: train, val copied" in out
    assert (made / "keep.txt").exists() and "mine" not in (made / "train/class_labels.txt").read_text()
    assert sorted(p.name for p in (tmp_path / "metadata").iterdir()) == ["Shapes"]  # no temporary folder stays


def test_copy_from_git_and_from_nowhere(run, checkout, tmp_path):
    git = ["git", "-C", checkout, "-c", "user.name=x", "-c", "user.email=x@x"]
    for words in (["init", "-q"], ["add", "metadata"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    code, out, error = run("copy", f"file://{checkout}", "--datasets", "Shapes")
    assert code == 0 and "copied" in out, error
    code, _, error = run("copy", f"file://{tmp_path}/nowhere")
    assert code == 2 and "git clone" in error and error.count("\n") == 1
    assert "is not a folder" in run("copy", "nowhere")[2]
    assert "has no data set 'CUB' (it has: Shapes)" in run("copy", checkout, "--datasets", "CUB")[2]
    assert "no metadata in" in run("copy", tmp_path / "checkout/dataset")[2]


@real
def test_copy_of_the_real_metadata(run, tmp_path):
    assert run("copy", REAL, "--datasets", "CARS", "OpenImages")[0] == 0
    for name in ("CARS", "OpenImages"):
        assert files_below(tmp_path / "metadata" / name) == files_below(REAL / name)


# --------------------------------------------------------------------------- a user's own folder


@pytest.fixture
def pictures(tmp_path) -> Path:
    """images/{cat,dog}/0..9.png of 40x30, each with a square whose place is its number."""
    for name in ("cat", "dog"):
        for n in range(10):
            for kind in ("images", "masks"):
                (tmp_path / "own" / kind / name).mkdir(parents=True, exist_ok=True)
            mask = np.zeros((30, 40), np.uint8)
            mask[n : n + 5, 2 * n : 2 * n + 8] = 255
            Image.fromarray(mask).convert("RGB").save(tmp_path / "own/images" / name / f"{n}.png")
            Image.fromarray(mask).save(tmp_path / "own/masks" / name / f"{n}.png")
    return tmp_path / "own"


def expected_box(image_id: str) -> list[int]:
    n = int(Path(image_id).stem)
    return [2 * n, n, 2 * n + 7, n + 4]


def read_own(tmp_path):
    return load_data(
        "Own",
        data_root=tmp_path / "dataset",
        metadata_root=tmp_path / "metadata",
        mask_root=tmp_path / "dataset",
        splits=("train", "val", "test"),
    )


def annotate(pictures: Path, kind: str) -> list[str]:
    """COCO json, XML or the masks as they are; returns the flags."""
    members = [(n, path) for n, path in enumerate(sorted((pictures / "images").rglob("*.png")))]
    if kind == "coco":
        (pictures / "coco.json").write_text(
            json.dumps(
                {
                    "images": [{"id": n, "file_name": f"{p.parent.name}/{p.name}"} for n, p in members],
                    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "tree"}],
                    "annotations": [
                        a
                        for n, p in members
                        for a in (
                            {"image_id": n, "category_id": 3, "bbox": [0, 0, 40, 30]},
                            {
                                "image_id": n,
                                "category_id": 1 + (p.parent.name == "dog"),
                                "bbox": [2 * int(p.stem) + 0.25, int(p.stem), 7.5, 5],
                            },
                        )
                    ],
                }
            )
        )
        return ["--coco", "own/coco.json"]
    if kind == "voc":
        (pictures / "annotations/cat").mkdir(parents=True)
        (pictures / "annotations/dog").mkdir()
        for _, p in members:
            x0, y0, x1, y1 = (side + 1 for side in expected_box(p.name))  # VOC counts pixels from 1
            (pictures / "annotations" / p.parent.name / f"{p.stem}.xml").write_text(
                f"<annotation><object><name>{p.parent.name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
                f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object></annotation>"
            )
        return ["--voc", "own/annotations"]
    return ["--masks", "own/masks"]


@pytest.mark.parametrize("kind", ["coco", "voc", "masks"])
def test_own_folder(run, pictures, tmp_path, kind):
    code, out, error = run(
        "folder", pictures, "--name", "Own", *annotate(pictures, kind), "--split", "0.6", "0.1", "0.3"
    )
    assert code == 0 and "12 train, 2 val, 6 test images of 2 classes" in out, error
    data = read_own(tmp_path)
    assert data.class_names == ["cat", "dog"]
    for split in ("val", "test"):
        metadata = data.splits[split]
        assert [b.tolist() for b in metadata.boxes] == [[expected_box(i)] for i in metadata.image_ids]
        assert metadata.labels.tolist() == [int("dog" in i) for i in metadata.image_ids]
        assert (metadata.masks is not None) == (kind == "masks")
    if kind == "masks":
        assert load_mask(data.splits["test"].mask_root, data.splits["test"].masks[0]).sum() > 500
    ids = [set(s.image_ids) for s in data.splits.values()]
    assert len(set.union(*ids)) == 20
    again = run("folder", pictures, "--name", "Own", *_flags(kind), "--split", "0.6", "0.1", "0.3")
    assert "nothing was changed" in again[1]  # the same seed
    assert run("folder", pictures, "--name", "Own", *_flags(kind), "--seed", "5")[0] == 2
    assert run("check", "Own")[0] == 0


def _flags(kind):
    return {
        "coco": ["--coco", "own/coco.json"],
        "voc": ["--voc", "own/annotations"],
        "masks": ["--masks", "own/masks"],
    }[kind]


def test_own_folder_with_given_splits_instances_and_ignore_masks(run, pictures, tmp_path):
    for kind in ("images", "masks"):
        for split in ("train", "test"):
            (pictures / kind / split).mkdir()
        (pictures / kind / "cat").rename(pictures / kind / "train/cat")
        (pictures / kind / "dog").rename(pictures / kind / "test/dog")
        (pictures / kind / "train/dog").mkdir()
        (pictures / kind / "test/dog/9.png").rename(pictures / kind / "train/dog/9.png")
    masks = pictures / "masks/test/dog"
    (masks / "0.png").rename(masks / "0_1.png")
    (masks / "5.png").rename(masks / "0_2.png")
    (masks / "6.png").rename(masks / "0_ignore.png")
    flags = ("folder", pictures, "--name", "Own", "--masks", pictures / "masks")
    code, _, error = run(*flags)
    assert code == 2 and "images/test/dog/5.png of the test split has no annotation" in error
    for n in (5, 6):
        (pictures / f"images/test/dog/{n}.png").unlink()
    code, out, error = run(*flags)
    assert code == 0 and "11 train, 7 test images" in out, error
    test = read_own(tmp_path).splits["test"]
    assert test.masks[0] == (("masks/test/dog/0_1.png", "masks/test/dog/0_2.png"), "masks/test/dog/0_ignore.png")
    assert test.boxes[0].tolist() == [[0, 0, 7, 4], [10, 5, 17, 9]]


def test_bad_own_folders(run, pictures, tmp_path):
    flags = ("folder", pictures, "--name", "Own")
    cases = [
        ((*flags,), "give one of --coco"),
        ((*flags, "--masks", tmp_path), "is not below"),
        ((*flags, "--masks", pictures / "masks", "--split", "1", "1", "1"), "add up to 1"),
        ((*flags, "--coco", "none.json"), "none.json is missing"),
        ((*flags, "--voc", "nowhere"), "no annotation belongs to any of the 20 images"),
        (("folder", "nowhere", "--name", "Own", "--voc", "x"), "images is missing"),
    ]
    (tmp_path / "bad.json").write_text('{"images": []}')
    cases.append(((*flags, "--coco", "bad.json"), "bad.json is not COCO json"))
    for argv, message in cases:
        code, _, error = run(*argv)
        assert code == 2 and message in error, (argv, error)
    Image.new("L", (40, 30)).save(pictures / "masks/cat/3.png")
    assert "cat/3.png is empty" in run(*flags, "--masks", pictures / "masks")[2]
    assert not (tmp_path / "metadata/Own").exists() and not (tmp_path / "dataset").exists()


# --------------------------------------------------------------------------- check


def test_check_counts_and_finds_everything(run, tmp_path):
    write_dataset(tmp_path, "Shapes", form="both")
    code, out, _ = run("check", "Shapes", "--per_class")
    assert code == 0 and "train: 12 images of 3 classes (4 to 4 per class, median 4)" in out
    assert "test: 12 images of 3 classes (4 to 4 per class, median 4), 12 boxes, 12 masks" in out
    meta, data = tmp_path / "metadata/Shapes", tmp_path / "dataset/Shapes"
    (data / "train/1/0.png").unlink()
    (data / "train/1/3.png").unlink()
    (data / "test/0/0_mask.png").unlink()
    with open(meta / "test/localization.txt", "a") as file:
        file.write("test/0/1.png,0,0,900,5\nghost.png,1,2,3,4\n")
    with open(meta / "train/class_labels.txt", "a") as file:
        file.write("ghost.png,1\n")
    with open(meta / "train/image_ids.txt", "a") as file:
        file.write("test/2/0.png\n")
    with open(meta / "train/class_labels.txt", "a") as file:
        file.write("test/2/0.png,4\n")
    (meta / "val/class_labels.txt").write_text("val/0/0.png,0\n")
    before = files_below(tmp_path)
    code, out, _ = run("check", "Shapes")
    assert code == 1 and files_below(tmp_path) == before
    for problem in (
        "train: 2 of 13 images are missing in dataset/Shapes (--data_root): train/1/0.png, train/1/3.png",
        "train: class_labels.txt has lines about 1 image that image_ids.txt does not list: ghost.png",
        "train: 1 of 5 classes have no image: index 3",
        "test: 2 of 5 classes have no image: index 3, 4",
        "test: localization.txt has lines about 1 image that image_ids.txt does not list: ghost.png",
        "test: 1 of 12 masks are missing in dataset/Shapes (--mask_root): test/0/0_mask.png",
        "test: 1 box extends beyond the image: test/0/1.png (0,0,900,5 in ",
        "test: 1 image is also in train: test/2/0.png",
        "class_labels.txt has no line for val/0/1.png",
    ):
        assert f"wrong: {problem}" in out or problem in out, problem
    assert "9 problems" in out
    assert run("check", "Nowhere")[0] == 2


def test_the_command_from_a_shell(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/prepare_metadata.py"), "check", "CUB"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Trace" not in done.stderr


def test_a_step_that_fails_puts_everything_back(run, checkout, tmp_path, monkeypatch):
    assert run("copy", checkout)[0] == 0
    made = tmp_path / "metadata/Shapes"
    for split in ("train", "val"):
        (made / split / "class_labels.txt").write_text("mine")
    before = files_below(made)
    rename, calls = os.rename, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == 4:
            raise OSError(28, "No space left on device", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    assert run("copy", checkout, "--force")[0] == 2
    assert files_below(made) == before
    assert read_split(made, "test", made, made).boxes is not None
    assert find_datasets(tmp_path) == {"Shapes": made}


def test_coco_names_that_fit_two_pictures_are_named(run, pictures):
    annotate(pictures, "coco")
    content = json.loads((pictures / "coco.json").read_text())
    for image in content["images"]:
        image["file_name"] = image["file_name"].rpartition("/")[2]
    both = {path.name for path in (pictures / "images/cat").iterdir()} & {
        path.name for path in (pictures / "images/dog").iterdir()
    }
    assert both
    (pictures / "coco.json").write_text(json.dumps(content))
    code, _, error = run("folder", pictures, "--name", "Own", "--coco", "own/coco.json")
    assert code == 2 and "the file_name '" in error and "fits images/cat/" in error and "images/dog/" in error
