"""wsol.datasets: the files that the generators write, read back by hand."""

from __future__ import annotations

import importlib.util
import multiprocessing
import pkgutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from wsol.datasets import cutouts, synthetic, writer
from wsol.datasets.cutouts import make_cutouts
from wsol.datasets.publish import publish_dataset
from wsol.datasets.registry import DATASETS, SPLITS
from wsol.datasets.synthetic import make_synthetic
from wsol.datasets.writer import DatasetFolders, DatasetMetadata, Record, write_metadata
from wsol.errors import InputError

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "prepare_cutouts.py"
SMALL = (2, 1, 1)


def read(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return text.splitlines()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def make_objects(folder: Path, classes: int = 2, each: int = 4) -> Path:
    """RGBA cutouts, each of its own colour: a filled ellipse, transparent around."""
    for c in range(classes):
        (folder / f"class {c}").mkdir(parents=True)
        for i in range(each):
            picture = np.zeros((60 + 10 * i, 90, 4), np.uint8)
            cv2.ellipse(
                picture, (45, 30), (30 - 2 * i, 20 + c), 20 * i, 0, 360, (40 * i + 20, 90 * c + 40, 200, 255), -1
            )
            cv2.imwrite(str(folder / f"class {c}" / f"{i}.png"), picture)
    return folder


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    return make_objects(tmp_path / "objects")


# ---------------------------------------------------------------- imports


@pytest.mark.parametrize(
    "module, heavy",
    [
        ("wsol.datasets", ("torch", "cv2", "numpy", "PIL")),
        ("wsol.datasets.registry", ("torch", "cv2", "numpy", "PIL")),
        ("wsol.datasets.reader", ("torch", "cv2", "PIL")),
    ],
)
def test_listing_data_sets_and_reading_metadata_need_no_heavy_library(module, heavy):
    code = f"import sys, {module}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent.parent, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "", done.stdout + done.stderr


def test_every_generator_of_the_registry_exists():
    generators = [info.generator for info in DATASETS.values() if info.generator]
    assert generators and all(callable(pkgutil.resolve_name(name)) for name in generators)


# ---------------------------------------------------------------- writer


def test_metadata_lines_are_wsolevaluations(tmp_path):
    records = [
        Record("test/a/1.jpg", 0, (30, 20), [(1, 2, 29, 19), (0, 0, 0, 0)], ["a1.png", "a2.png"], "ignore.png"),
        Record("test/b/2.jpg", 1, (10, 40), [(3, 4, 5, 6)], ["b.png"]),
    ]
    write_metadata(tmp_path / "m", DatasetMetadata({"train": [], "test": records}, ["an a", "a b"]))
    assert read(tmp_path / "m/classes.txt") == ["an a", "a b"]
    lines = {
        stem: read(tmp_path / f"m/test/{stem}.txt")
        for stem in ("image_ids", "class_labels", "image_sizes", "localization", "masks")
    }
    assert lines == {
        "image_ids": ["test/a/1.jpg", "test/b/2.jpg"],
        "class_labels": ["test/a/1.jpg,0", "test/b/2.jpg,1"],
        "image_sizes": ["test/a/1.jpg,30,20", "test/b/2.jpg,10,40"],
        "localization": ["test/a/1.jpg,1,2,29,19", "test/a/1.jpg,0,0,0,0", "test/b/2.jpg,3,4,5,6"],
        "masks": ["test/a/1.jpg,a1.png,ignore.png", "test/a/1.jpg,a2.png,", "test/b/2.jpg,b.png,"],
    }
    assert read(tmp_path / "m/train/localization.txt") == []


@pytest.mark.parametrize(
    "record, words",
    [
        (Record("a,b.jpg", 0, (9, 9)), "comma"),
        (Record("a.jpg", 2, (9, 9)), "class index 2"),
        (Record("a.jpg", 0, (9, 9), [(0, 0, 9, 8)]), "not inside"),
        (Record("a.jpg", 0, (9, 9), [(5, 0, 4, 8)]), "not inside"),
    ],
)
def test_records_that_could_not_be_read_back_are_refused(tmp_path, record, words):
    with pytest.raises(ValueError, match=words):
        write_metadata(tmp_path, DatasetMetadata({"test": [record]}, ["x", "y"]))


def folders_in(root: Path) -> DatasetFolders:
    return DatasetFolders.named("D", root / "images", root / "metadata", root / "masks")


def fill_with(text: str):
    def fill(folders: DatasetFolders) -> None:
        for kind, folder in folders._asdict().items():
            (folder / f"{kind}.txt").write_text(text)

    return fill


def test_a_failed_generation_leaves_nothing(tmp_path):
    def fail(folders: DatasetFolders) -> None:
        fill_with("half")(folders)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_dataset(folders_in(tmp_path), fail)
    assert snapshot(tmp_path) == {} and not [p for p in tmp_path.rglob("*") if "partial" in p.name]


def test_a_faster_process_wins(tmp_path):
    def slow(folders: DatasetFolders) -> None:
        assert publish_dataset(folders_in(tmp_path), fill_with("first"))
        fill_with("second")(folders)

    assert not publish_dataset(folders_in(tmp_path), slow)
    assert set(snapshot(tmp_path).values()) == {b"first"} and len(snapshot(tmp_path)) == 3


def test_missing_metadata_is_added_only_to_equal_images(tmp_path):
    folders = folders_in(tmp_path)
    publish_dataset(folders, fill_with("one"))
    (folders.metadata / "metadata.txt").unlink()
    folders.metadata.rmdir()
    with pytest.raises(InputError, match="move"):
        publish_dataset(folders, fill_with("two"))
    assert set(snapshot(tmp_path).values()) == {b"one"} and not folders.metadata.exists()
    assert publish_dataset(folders, fill_with("one"))
    assert (folders.metadata / "metadata.txt").read_text() == "one"


def test_published_folders_have_usual_permissions(tmp_path):
    publish_dataset(folders_in(tmp_path), fill_with("x"))
    (tmp_path / "usual").mkdir()
    assert folders_in(tmp_path).images.stat().st_mode == (tmp_path / "usual").stat().st_mode


# ---------------------------------------------------------------- both data sets


@pytest.fixture(params=["Synthetic", "CUTOUTS"])
def made(request, tmp_path):
    """One of the data sets, masks in a folder of their own, and its class names."""
    roots = (tmp_path / "data", tmp_path / "meta", tmp_path / "masks")
    if request.param == "Synthetic":
        assert make_synthetic(*roots, images_per_class=(4, 1, 2), num_classes=3)
        return DatasetFolders.named("Synthetic", roots[0], roots[1], roots[2]), ["red star", "yellow sun", "blue moon"]
    make_objects(tmp_path / "objects")
    assert make_cutouts(tmp_path / "objects", *roots, backgrounds=["noise"], images_per_class=(4, 1, 2))
    return DatasetFolders.named("CUTOUTS", roots[0], roots[1], roots[2]), ["class 0", "class 1"]


def test_files_agree_with_each_other(made):
    folders, names = made
    assert read(folders.metadata / "classes.txt") == names
    for split, number in zip(SPLITS, (4, 1, 2), strict=True):
        ids = read(folders.metadata / split / "image_ids.txt")
        labels = dict(line.split(",") for line in read(folders.metadata / split / "class_labels.txt"))
        sizes = {
            p: (int(w), int(h))
            for p, w, h in (line.split(",") for line in read(folders.metadata / split / "image_sizes.txt"))
        }
        boxes = [line.split(",") for line in read(folders.metadata / split / "localization.txt")]
        masks = [line.split(",") for line in read(folders.metadata / split / "masks.txt")]
        assert len(set(ids)) == len(ids) == number * len(names)
        assert list(labels) == list(sizes) == ids and sorted(labels.values()) == sorted(
            str(c) for c in range(len(names)) for _ in range(number)
        )
        assert {row[0] for row in boxes} == set(ids) and [row[0] for row in boxes] == [row[0] for row in masks]
        for image_id in ids:
            assert Path(image_id).parts[:2] == (split, names[int(labels[image_id])].replace(" ", "_"))
            assert cv2.imread(str(folders.images / image_id)).shape[:2] == sizes[image_id][::-1]
        for (image_id, *box), (_, mask_path, ignore) in zip(boxes, masks, strict=True):
            mask = cv2.imread(str(folders.masks / mask_path), cv2.IMREAD_UNCHANGED)
            assert ignore == "" and mask.shape == sizes[image_id][::-1] and set(np.unique(mask)) == {0, 255}
            ys, xs = np.nonzero(mask)
            assert [int(v) for v in box] == [xs.min(), ys.min(), xs.max(), ys.max()]


def test_no_traces_beside_the_data(made):
    folders, _ = made
    assert all([p.name for p in folder.parent.iterdir()] == [folder.name] for folder in folders)


# ---------------------------------------------------------------- synthetic


def test_synthetic_is_the_same_every_time(tmp_path):
    for root in ("a", "b"):
        make_synthetic(tmp_path / root, tmp_path / root / "meta", images_per_class=SMALL, num_classes=2, seed=5)
    make_synthetic(tmp_path / "c", tmp_path / "c" / "meta", images_per_class=SMALL, num_classes=2, seed=6)
    make_synthetic(tmp_path / "d", tmp_path / "d" / "meta", images_per_class=(1, 1, 1), num_classes=3, seed=5)
    first, same, other, fewer = (snapshot(tmp_path / root) for root in "abcd")
    assert first == same and first != other
    shared = {p for p in fewer if p in first and p.endswith((".jpg", ".png"))}
    assert shared and all(first[p] == fewer[p] for p in shared)  # an image does not depend on how many others there are


def test_scenes_vary_and_some_hold_a_pair():
    scenes = [synthetic.draw_scene(i % 12, np.random.default_rng(i)) for i in range(48)]
    assert {len(masks) for _, masks in scenes} == {1, 2}
    assert len({image.shape for image, _ in scenes}) > 40
    for image, masks in scenes:
        low, high = sorted(image.shape[:2])
        assert synthetic.SIDES[0] <= low and high <= synthetic.SIDES[1] and image.dtype == np.uint8
        assert not (masks[0] & masks[-1]).any() or len(masks) == 1
        for mask in masks:
            x0, y0, x1, y1 = writer.mask_box(mask)
            assert 0.05 < (x1 - x0 + 1) * (y1 - y0 + 1) / mask.size < 0.7
            assert x0 > 0 and y0 > 0 and x1 < mask.shape[1] - 1 and y1 < mask.shape[0] - 1  # whole, inside the image


@pytest.mark.parametrize(
    "options, words", [({"num_classes": 13}, "2 to 12, got 13"), ({"images_per_class": (1, 0, 1)}, "at least 1")]
)
def test_synthetic_refuses_numbers(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        make_synthetic(tmp_path, tmp_path / "meta", **options)
    assert list(tmp_path.iterdir()) == []


def test_existing_data_are_kept(tmp_path):
    arguments = {"images_per_class": (1, 1, 1), "num_classes": 2}
    assert make_synthetic(tmp_path, tmp_path / "meta", **arguments)
    before = snapshot(tmp_path)
    assert not make_synthetic(tmp_path, tmp_path / "meta", seed=9, **arguments)
    with pytest.raises(InputError, match="has different files than"):
        make_synthetic(tmp_path, tmp_path / "meta2", seed=9, **arguments)
    assert snapshot(tmp_path) == before
    assert make_synthetic(tmp_path, tmp_path / "meta2", **arguments)  # the same images: only the metadata are added
    assert snapshot(tmp_path / "meta2") == snapshot(tmp_path / "meta")


def _make_in_process(root: str, barrier) -> None:
    barrier.wait(60)
    make_synthetic(root, f"{root}/meta", images_per_class=SMALL, num_classes=2)


def test_two_processes_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [context.Process(target=_make_in_process, args=(str(tmp_path / "both"), barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    make_synthetic(tmp_path / "alone", tmp_path / "alone/meta", images_per_class=SMALL, num_classes=2)
    assert snapshot(tmp_path / "both") == snapshot(tmp_path / "alone")


# ---------------------------------------------------------------- cutouts


def test_splits_share_no_cutout(objects):
    paths = sorted(objects.rglob("*.png"))
    twin = objects / "class 0" / "twin.png"
    twin.write_bytes(paths[0].read_bytes())
    divided = cutouts.split_cutouts([*paths, twin], np.random.default_rng(3))
    assert {k: len(v) for k, v in divided.items()} == {"train": 5, "val": 1, "test": 2}
    contents = [path.read_bytes() for group in divided.values() for path in group]
    assert len(set(contents)) == len(contents) == 8
    assert {k: len(v) for k, v in cutouts.split_cutouts(paths[:3], np.random.default_rng(0)).items()} == {
        "train": 1,
        "val": 1,
        "test": 1,
    }


def test_composed_images_use_only_their_splits_cutouts(objects, tmp_path, monkeypatch):
    used = {split: set() for split in SPLITS}
    compose, save = cutouts.compose, cutouts.save_example
    last = []

    def spy_compose(cutout, *more):
        last[:] = [cutout.tobytes()]
        return compose(cutout, *more)

    def spy_save(folders, stem, *rest):
        used[stem.split("/")[0]].add(last[0])
        return save(folders, stem, *rest)

    monkeypatch.setattr(cutouts, "compose", spy_compose)
    monkeypatch.setattr(cutouts, "save_example", spy_save)
    make_cutouts(objects, tmp_path / "d", tmp_path / "m", backgrounds=["noise"], images_per_class=(4, 2, 2))
    assert {split: len(v) for split, v in used.items()} == {"train": 4, "val": 2, "test": 2}
    assert len(set.union(*used.values())) == 8


def test_seamless_composites_hide_the_edge_and_keep_the_scene():
    cutout = np.zeros((120, 160, 4), np.uint8)
    cv2.ellipse(cutout, (80, 60), (70, 50), 0, 0, 360, (230, 60, 60, 255), -1)
    photo = np.full((600, 600, 3), 90, np.uint8)
    plain, mask = cutouts.compose(cutout, photo, np.random.default_rng(5))
    seamless, smaller = cutouts.compose(cutout, photo, np.random.default_rng(5), seamless=True)
    assert seamless.shape == plain.shape and seamless.dtype == np.uint8
    assert set(np.unique(smaller)) == {0, 255} and not (smaller > mask).any()  # feathered inwards
    assert 0.8 < (smaller > 0).sum() / (mask > 0).sum() < 1
    inside = cv2.erode(smaller, np.ones((9, 9), np.uint8)) > 0
    outside = cv2.dilate(mask, np.ones((9, 9), np.uint8)) == 0
    contrast = {
        name: np.abs(image[inside].mean(0) - image[outside].mean(0)).max()
        for name, image in (("plain", plain), ("seamless", seamless))
    }
    assert contrast["seamless"] == pytest.approx((1 - cutouts.MATCH) * contrast["plain"], rel=0.1)
    # The steepest step between neighbours is at the edge of the plain image, and none in the seamless one's noise.
    steps = [np.abs(np.diff(image.astype(float), axis=1)).max() for image in (plain, seamless)]
    assert steps[0] > 80 and steps[1] < 50
    noise = {name: image[outside].astype(float).std(0).max() for name, image in (("plain", plain), ("new", seamless))}
    assert 0.4 * cutouts.NOISE < noise["new"] < 1.2 * cutouts.NOISE and noise["plain"] < 1


def test_the_command_writes_seamless_composites(objects, tmp_path):
    numbers = ["--train", "1", "--val", "1", "--test", "1", "--backgrounds", "noise", "--cutouts", str(objects)]
    roots = [["--data_root", str(tmp_path / name), "--metadata_root", str(tmp_path / name / "m")] for name in "ab"]
    script = load_script()
    script.main([*numbers, *roots[0]])
    script.main([*numbers, *roots[1], "--seamless"])
    plain, seamless = (snapshot(tmp_path / name) for name in "ab")
    assert list(plain) == list(seamless) and plain != seamless


def test_cutouts_on_photographs_are_deterministic(objects, tmp_path):
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos/p.jpg"), np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8))
    for root in ("a", "b"):
        make_cutouts(
            objects,
            tmp_path / root,
            tmp_path / root / "meta",
            backgrounds=[tmp_path / "photos"],
            images_per_class=SMALL,
        )
    first = snapshot(tmp_path / "a")
    assert first == snapshot(tmp_path / "b")
    images = [content for path, content in first.items() if path.endswith(".jpg")]
    assert len(set(images)) == len(images) == 8


def test_the_background_shows_only_where_the_object_does_not():
    cutout = np.zeros((40, 60, 4), np.uint8)
    cutout[5:35, 10:50] = (255, 255, 255, 255)
    image, mask = cutouts.compose(cutout, np.zeros((50, 50, 3), np.uint8), np.random.default_rng(1))
    assert (
        image[cv2.erode(mask, np.ones((21, 21))) > 0].min() > 190
        and image[cv2.dilate(mask, np.ones((21, 21))) == 0].max() == 0
    )


def test_backgrounds_are_mirrored_in_place_and_keep_their_colours():
    photo = np.zeros((100, 100, 3), np.uint8)
    photo[..., 0] = 200
    crop = [cutouts.crop_background(photo, (64, 48), np.random.default_rng(i)) for i in range(8)]
    assert all(c.shape == (48, 64, 3) and c[..., 0].min() > 100 and c[..., 1:].max() < 1 for c in crop)


def test_grey_and_palette_cutouts_are_read(tmp_path):
    from PIL import Image

    picture = Image.new("LA", (40, 40), (0, 0))
    picture.paste((120, 255), (10, 5, 30, 25))
    picture.save(tmp_path / "la.png")
    picture.convert("RGBA").quantize(4).save(tmp_path / "p.png")
    for name in ("la.png", "p.png"):
        cutout = cutouts.load_cutout(tmp_path / name)
        assert cutout.shape == (20, 20, 4) and (cutout == (120, 120, 120, 255)).all()


def test_tuxpaint_layout_is_detected_and_leaves_cartoons_out(tmp_path):
    stamps = tmp_path / "usr/share/tuxpaint/stamps"
    for place in cutouts.TUXPAINT_CLASSES.values():
        for name in ("x.png", "cartoon/y.png", "sub/z.png"):
            (stamps / place / name).parent.mkdir(parents=True, exist_ok=True)
            (stamps / place / name).touch()
    assert cutouts.detect_layout(tmp_path) == cutouts.detect_layout(stamps) == "tuxpaint"
    classes = cutouts.find_cutouts(tmp_path)
    assert list(classes) == list(cutouts.TUXPAINT_CLASSES)
    assert [p.name for p in classes["fish"]] == ["z.png", "x.png"] and sum(map(len, classes.values())) == 14


def bad_alpha(objects: Path, alpha: int) -> None:
    cv2.imwrite(str(objects / "class 0" / "bad.png"), np.full((30, 30, 4), (9, 9, 9, alpha), np.uint8))


@pytest.mark.parametrize(
    "spoil, options, words",
    [
        (lambda o: bad_alpha(o, 0), {}, r"bad\.png is transparent everywhere.*remove"),
        (lambda o: bad_alpha(o, 255), {}, r"bad\.png has no transparent background"),
        (lambda o: (o / "class 1" / "bad.png").write_bytes(b"no picture"), {}, r"bad\.png cannot be read"),
        (
            lambda o: [p.unlink() for p in sorted((o / "class 1").iterdir())[2:]],
            {},
            r"class 'class 1' has 2 different cutout",
        ),
        (lambda o: (o / "class 1").rename(o.parent / "gone"), {}, r"has 1 class folder"),
        (lambda o: (o / "class 1").rename(o / "class,0"), {}, r"only in special characters"),
        (lambda o: None, {"layout": "tuxpaint"}, r"no Tux Paint stamps"),
        (lambda o: None, {"layout": "tree"}, r"layout 'tree' is unknown.*tuxpaint, folders"),
        (lambda o: None, {"backgrounds": ["nowhere"]}, r"backgrounds folder nowhere does not exist"),
        (lambda o: None, {"images_per_class": (1, 1, 0)}, r"at least 1"),
    ],
)
def test_bad_input_is_named_and_nothing_written(objects, tmp_path, spoil, options, words):
    spoil(objects)
    with pytest.raises(ValueError, match=words) as caught:
        make_cutouts(
            objects, tmp_path / "d", tmp_path / "m", **{"backgrounds": ["noise"], "images_per_class": SMALL, **options}
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "d").exists() and not (tmp_path / "m").exists()


def test_missing_scikit_image_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(InputError, match="pip install scikit-image"):
        cutouts.find_backgrounds(["skimage"])


def load_script():
    spec = importlib.util.spec_from_file_location("prepare_cutouts", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_command(objects, tmp_path, capsys):
    script = load_script()
    common = [
        "--cutouts",
        str(objects),
        "--backgrounds",
        "noise",
        "--data_root",
        str(tmp_path / "d"),
        "--metadata_root",
        str(tmp_path / "m"),
        "--name",
        "MINE",
    ]
    script.main([*common, "--train", "2", "--val", "1", "--test", "1"])
    assert capsys.readouterr().out.startswith("MINE: 4 train, 2 val, 2 test images of 2 classes (class 0, class 1)")
    script.main(common)
    assert "nothing was changed" in capsys.readouterr().out


def test_the_command_fails_in_one_line(tmp_path):
    command = [sys.executable, str(SCRIPT), "--cutouts", str(tmp_path / "nowhere")]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )  # from anywhere, as a user would
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "nowhere does not exist" in done.stderr
