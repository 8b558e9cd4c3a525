"""Metadata readers (every error names file and line), masks, images, shuffling and augmentation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REAL, write_dataset
from PIL import Image
from torchvision.transforms import functional as TF

from data_loaders import ImageDataset, make_loader, set_epoch
from wsol.datasets.images import load_image
from wsol.datasets.load import load_data, sample_per_class
from wsol.datasets.masks import load_mask
from wsol.datasets.reader import MaskPaths, read_split
from wsol.datasets.registry import DATASETS
from wsol.datasets.transforms import normalized
from wsol.errors import InputError
from wsol.workers import EpochIndex


def read(folder: Path, split: str = "test", **more):
    return read_split(folder, split, folder / "images", folder / "masks", **more)


@pytest.fixture
def tiny(tmp_path) -> Path:
    """Two images: one with two boxes and an id with a comma."""
    folder = tmp_path / "test"
    folder.mkdir()
    (folder / "image_ids.txt").write_text("a/x.jpg\nb/one, two.jpg")  # no newline at the end
    (folder / "class_labels.txt").write_text("a/x.jpg,0\nb/one, two.jpg,4\n")
    (folder / "image_sizes.txt").write_text("a/x.jpg,448,112\nb/one, two.jpg,224,224\n")
    (folder / "localization.txt").write_text("a/x.jpg,10,20,30,40\nb/one, two.jpg,1,2,3,4\na/x.jpg,0,0,447,111\n")
    return tmp_path


def test_boxes(tiny):
    metadata = read(tiny)
    assert metadata.image_ids == ["a/x.jpg", "b/one, two.jpg"] and metadata.labels.tolist() == [0, 4]
    assert metadata.boxes[0].tolist() == [[10, 20, 30, 40], [0, 0, 447, 111]] and metadata.masks is None
    assert metadata.image_path(1) == tiny / "images" / "b/one, two.jpg"
    assert metadata.scaled_boxes(0).tolist() == [[5, 40, 15, 80], [0, 0, 223, 222]]


def test_masks_of_either_file(tiny):
    lines = "a/x.jpg,m/1.png,m/i.png\na/x.jpg,m/2.png,\nb/one, two.jpg,m/3.png,\n"
    (tiny / "test/masks.txt").write_text(lines)
    both = read(tiny)
    assert both.boxes is not None
    (tiny / "test/localization.txt").write_text(lines)
    (tiny / "test/masks.txt").unlink()
    only = read(tiny)
    assert only.boxes is None
    assert only.masks == both.masks == [MaskPaths(("m/1.png", "m/2.png"), "m/i.png"), MaskPaths(("m/3.png",), "")]


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("image_ids.txt", "", "image_ids.txt lists no image"),
        ("image_ids.txt", "a/x.jpg\na/x.jpg\n", "lists a/x.jpg twice"),
        ("class_labels.txt", "a/x.jpg,0\n", "class_labels.txt has no line for b/one, two.jpg"),
        ("class_labels.txt", "a/x.jpg,zero\n", r"class_labels.txt:1: 'zero' is not a class index"),
        ("class_labels.txt", "a/x.jpg,0\n\nb/one, two.jpg,-1\n", r"class_labels.txt:3: class index -1"),
        ("class_labels.txt", "a/x.jpg\n", r"class_labels.txt:1: 'a/x.jpg' is not of the form path,class_index"),
        ("image_sizes.txt", "a/x.jpg,448,0\n", r"image_sizes.txt:1: width and height"),
        ("image_sizes.txt", "a/x.jpg,448,112\n", "image_sizes.txt has no width,height for b/one, two.jpg"),
        ("localization.txt", "a/x.jpg,10,20,30,40\n", "localization.txt has no box for b/one, two.jpg"),
        ("localization.txt", "a/x.jpg,10,20,5,40\n", r"localization.txt:1: box 10,20,5,40 has its corners"),
        ("localization.txt", "a/x.jpg,1,2,3,4\na/x.jpg,1,2,x,4\n", r"localization.txt:2: '1,2,x,4' is not"),
        ("localization.txt", "a/x.jpg,m.png,\n", "has no mask for b/one, two.jpg"),
        ("localization.txt", "a/x.jpg,,\n", r"localization.txt:1: no mask file"),
    ],
)
def test_errors_name_file_and_line(tiny, file, text, message):
    (tiny / "test" / file).write_text(text)
    with pytest.raises(InputError, match=message):
        read(tiny)


def test_missing_and_binary_files(tiny):
    (tiny / "test/class_labels.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="class_labels.txt cannot be read as text"):
        read(tiny)
    (tiny / "test/class_labels.txt").unlink()
    with pytest.raises(InputError, match="class_labels.txt is missing; see metadata/README.md"):
        read(tiny)


def test_ids_stay_inside_their_folder(tiny):
    (tiny / "test/image_ids.txt").write_text("../../x.jpg\n")
    with pytest.raises(InputError, match=r"image_ids.txt:1: '../../x.jpg'"):
        read(tiny)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real metadata are not beside this checkout")
@pytest.mark.parametrize(
    "name, split, images, boxes",
    [
        ("CUB", "train", 5994, 5994),
        ("CUB", "val", 1000, 1000),
        ("CUB", "test", 5794, 5794),
        ("CARS", "train", 8144, 8144),
        ("CARS", "test", 8041, 8041),
        ("ILSVRC", "val", 10000, 18532),
        ("ILSVRC", "test", 50000, 80477),
        ("OpenImages", "train", 29819, None),
        ("OpenImages", "val", 2500, None),
        ("OpenImages", "test", 5000, None),
    ],
)
def test_real_metadata(name, split, images, boxes):
    metadata = read_split(REAL / name, split, Path("images"), Path("masks"))
    assert len(metadata) == images and metadata.labels.max() == DATASETS[name].num_classes - 1
    assert (None if metadata.boxes is None else sum(map(len, metadata.boxes))) == boxes
    assert (metadata.masks is not None) == (name == "OpenImages" and split != "train")


def test_class_names_from_file_folder_or_index(tmp_path):
    write_dataset(tmp_path, "Shapes")

    def names():
        return load_data(
            "Shapes", tmp_path / "dataset", tmp_path / "metadata", tmp_path / "dataset", splits=("train", "test")
        ).class_names

    assert names() == ["0", "1", "2"]  # its folders
    (tmp_path / "metadata/Shapes/classes.txt").write_text("red\ngreen\nblue\n")
    assert names() == ["red", "green", "blue"]
    (tmp_path / "metadata/Shapes/classes.txt").write_text("red\n")
    with pytest.raises(InputError, match="names 1 classes, but class_labels.txt goes up to index 2"):
        names()


def test_sampling_val_images_is_seeded_and_per_class(tmp_path):
    write_dataset(tmp_path, "Shapes", images=5)
    whole = read_split(tmp_path / "metadata/Shapes", "val", tmp_path, tmp_path)
    some = sample_per_class(whole, 2, seed=1)
    assert np.bincount(some.labels).tolist() == [2, 2, 2]
    assert (
        some.image_ids == sample_per_class(whole, 2, seed=1).image_ids != sample_per_class(whole, 2, seed=2).image_ids
    )
    assert [b.tolist() for b in some.boxes] == [whole.boxes[whole.image_ids.index(i)].tolist() for i in some.image_ids]


def test_a_sample_larger_than_a_class_is_an_error_that_names_the_class(tmp_path):
    write_dataset(tmp_path, "Shapes", images=5)
    whole = read_split(tmp_path / "metadata/Shapes", "val", tmp_path, tmp_path)
    with pytest.raises(InputError, match=r"per_class 6: class 0 has only 5 images .*val/0/0.png; give at most 5"):
        sample_per_class(whole, 6, seed=1)


def test_proxy_training_set(tmp_path):
    write_dataset(tmp_path, "Shapes")
    roots = tmp_path / "dataset", tmp_path / "metadata", tmp_path / "dataset"
    (tmp_path / "metadata/Shapes/train/image_ids_proxy.txt").write_text("train/0/0.png\ntrain/2/1.png\n")
    data = load_data("Shapes", *roots, splits=("train", "val"), proxy_training_set=True)
    assert data.splits["train"].image_ids == ["train/0/0.png", "train/2/1.png"]


def test_masks_are_united_and_the_ignore_region_spares_them(tmp_path):
    def save(name, rows):
        Image.fromarray(np.array(rows, dtype=np.uint8)).save(tmp_path / name)

    save("a.png", [[255, 0], [0, 0]])
    save("b.png", [[0, 1], [0, 0]])  # any value above 0.5 of 0..255 is foreground
    save("i.png", [[255, 255], [255, 0]])
    assert load_mask(tmp_path, MaskPaths(("a.png", "b.png"), "i.png"), 2).tolist() == [[1, 1], [255, 0]]
    assert load_mask(tmp_path, MaskPaths(("a.png",), ""), 4).tolist() == [[1, 1, 0, 0]] * 2 + [[0] * 4] * 2
    with pytest.raises(InputError, match="mask .*nowhere.png is missing or broken"):
        load_mask(tmp_path, MaskPaths(("nowhere.png",), ""), 2)


def test_broken_images_are_named(tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(InputError, match="text.jpg cannot be read"):
        load_image(tmp_path / "text.jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    with pytest.raises(InputError, match="cut.jpg cannot be read"):
        load_image(tmp_path / "cut.jpg")
    with pytest.raises(InputError, match="none.jpg is missing"):
        load_image(tmp_path / "none.jpg")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new("RGB", (20, 10), (200, 30, 40)).convert(mode).save(path)
    assert load_image(path).mode == "RGB" and load_image(path).size == (20, 10)


def test_sixteen_bit_images_are_scaled_and_not_cut(tmp_path):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    pixels = np.asarray(load_image(tmp_path / "deep.png"))
    assert pixels.shape == (16, 16, 3) and np.array_equal(pixels[..., 0].ravel(), np.arange(256))


def dataset(tmp_path, **more):
    if not (tmp_path / "metadata").exists():
        write_dataset(tmp_path, "Shapes")
    metadata = read_split(tmp_path / "metadata/Shapes", "train", tmp_path / "dataset/Shapes", tmp_path)
    return ImageDataset(metadata, crop_size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), **more)


def test_evaluation_view_is_the_resized_normalised_image(tmp_path):
    data = dataset(tmp_path)
    image, label, index = data[5]
    expected = np.asarray(load_image(data.metadata.image_path(5)).resize((32, 32), Image.Resampling.BILINEAR)) / 255
    expected = (expected - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    assert torch.allclose(image, torch.tensor(expected).permute(2, 0, 1).float(), atol=1e-5)
    assert (label, index) == (1, 5)


def test_normalized_is_torchvisions_to_the_last_bit():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 20, 3), dtype=np.uint8))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert torch.equal(normalized(image, mean, std), TF.normalize(TF.to_tensor(image), mean, std))


def test_augmentation_depends_on_seed_epoch_and_index_alone(tmp_path):
    data = dataset(tmp_path, augment="crop_flip", resize_size=40, seed=3)
    loader = make_loader(data, 4, 0, shuffle_seed=3)

    def epoch(number, workers=0):
        loader = make_loader(data, 4, workers, shuffle_seed=3)
        set_epoch(loader, (0, number))
        return [x for batch in loader for x in batch]

    first, again, parallel, second = epoch(1), epoch(1), epoch(1, workers=2), epoch(2)
    kept = make_loader(data, 4, 2, shuffle_seed=3)  # its processes outlive an epoch
    for number, expected in ((1, first), (2, second), (1, first)):
        set_epoch(kept, (0, number))
        assert all(torch.equal(a, b) for a, b in zip((x for batch in kept for x in batch), expected, strict=True))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, again, parallel, strict=True))
    assert not torch.equal(first[2], second[2])  # another order
    assert sorted(torch.cat(first[2::3]).tolist()) == list(range(len(data)))
    a, b = data[0][0], data[EpochIndex(0, (0, 5))][0]
    assert a.shape == b.shape == (3, 32, 32) and not torch.equal(a, b)
    assert len(loader) == 3


def test_crops_and_flips_are_pieces_of_the_resized_image(tmp_path):
    data = dataset(tmp_path, augment="crop_flip", resize_size=34)
    image = load_image(data.metadata.image_path(0)).resize((34, 34), Image.Resampling.BILINEAR)
    whole = (
        torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255 - torch.tensor([0.5, 0.4, 0.3])[:, None, None]
    ) / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    pieces = {
        (flip, t, s): (whole[:, t : t + 32, s : s + 32].flip(2) if flip else whole[:, t : t + 32, s : s + 32])
        for flip in (False, True)
        for t in range(3)
        for s in range(3)
    }
    seen = set()
    for epoch in range(150):
        view = data[EpochIndex(0, (0, epoch))][0]
        seen.add(next(key for key, piece in pieces.items() if torch.allclose(view, piece, atol=1e-5)))
    assert seen == set(pieces)  # all nine corners, both ways
