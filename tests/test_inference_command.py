"""python inference.py on pictures of every kind: what it writes, what it says, and what it leaves untouched."""

import matplotlib
import numpy as np
import pytest
import torch
from conftest import METHODS, TinyNet, arguments, files_below
from PIL import Image

import inference as program
import main as training
from wsol import build, dualize
from wsol.cam import CamExtractor, Variant, variants
from wsol.datasets.class_names import find_class, imagenet_names, imagenet_synonyms
from wsol.datasets.images import load_picture
from wsol.datasets.transforms import eval_tensor
from wsol.errors import InputError
from wsol.run import contact_sheet
from wsol.run.overlay import overlay

FAST = ("--architecture", "tiny", "--crop_size", "48", "--workers", "0", "--methods", "gradcam,layercam")


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder `in` of two pictures of one name in two folders; the command runs beside it."""
    random = np.random.default_rng(0)
    for name, size in (("a/x.png", (60, 40)), ("b/x.png", (40, 90))):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / "in" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch, capsys, *argv) -> tuple[int, str, str]:
    """The command's exit code, stdout and stderr, in this process so that the tiny network is known."""
    monkeypatch.setattr("sys.argv", ["inference.py", *argv])
    capsys.readouterr()
    try:
        code = program.run_from_shell()
    except SystemExit as leaving:  # argparse leaves by itself
        code = leaving.code
    return code, *capsys.readouterr()


def written(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_overlays_grids_and_raw_maps_of_a_folder(pictures, monkeypatch, capsys):
    code, out, error = run(monkeypatch, capsys, "--save_npy", "in", "--out", "out", *FAST)
    assert code == 0, error
    assert written(pictures / "out") == sorted(
        f"{folder}/{name}"
        for name in ("a/x", "b/x")
        for folder, name in [
            ("grid", f"{name}.jpg"),
            *((f"{method}_softmax", name + end) for method in ("gradcam", "layercam") for end in (".jpg", ".npy")),
        ]
    )
    assert Image.open("out/gradcam_softmax/b/x.jpg").size == (90, 40)  # the picture's own size, not the network's
    # Raw maps and probabilities are what the library gives for the evaluation's view of the picture.
    model = build("tiny")
    image = eval_tensor(Image.open("in/b/x.png"), 48, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))[None]
    with CamExtractor(model, ["layercam"]) as extract:
        expected = extract(image)["layercam"][0]
        best = extract.output.logits.softmax(dim=1)[0].max(dim=0)
    np.testing.assert_allclose(np.load("out/layercam_softmax/b/x.npy"), expected, rtol=1e-4, atol=1e-6)
    assert f"in/b/x.png: maps of {imagenet_names()[best.indices]}, the most likely class" in out
    assert f"{100 * best.values:5.1f} %  {imagenet_names()[best.indices]}" in out
    assert len([line for line in out.splitlines() if " %  " in line]) == 10


def test_what_an_earlier_call_wrote_is_replaced_only_when_asked_and_other_files_never(pictures, monkeypatch, capsys):
    (pictures / "out/grid/in").mkdir(parents=True)
    (pictures / "out/grid/thesis.tex").write_text("mine")
    assert run(monkeypatch, capsys, "in", "--out", "out", *FAST)[0] == 0
    before = files_below(pictures)
    code, _, error = run(monkeypatch, capsys, "in", "--out", "out", *FAST, "--class", "3")
    assert code == 2 and "--override_cache" in error and files_below(pictures) == before
    code, out, _ = run(monkeypatch, capsys, "in", "--out", "out", *FAST, "--class", "3", "--override_cache")
    assert code == 0 and "maps of tiger shark" in out
    after = files_below(pictures)
    assert after.keys() == before.keys() and sum(after[name] != before[name] for name in after) >= 4
    # A folder of results inside a folder of pictures does not become pictures.
    assert run(monkeypatch, capsys, "in", "--out", "in/out", *FAST)[0] == 0
    assert run(monkeypatch, capsys, "in", "--out", "in/out", *FAST, "--override_cache")[0] == 0
    assert len(list((pictures / "in/out/grid").rglob("*.jpg"))) == 2


def test_pictures_of_one_name_from_different_places(pictures, monkeypatch, capsys):
    Image.new("RGB", (20, 20), "red").save("in/a/x.bmp")
    code, _, error = run(monkeypatch, capsys, "in/a", "in/b/x.png", "in/a/x.png", "--out", "out", *FAST)
    assert code == 0, error
    assert [name for name in written(pictures / "out") if name.startswith("grid")] == [
        "grid/a/x.jpg",
        "grid/b/x.jpg",
        "grid/x.jpg",
    ]


def trained(root):
    training.main(arguments(root, "--methods", "cam", "--epochs", "1", "--train_only"))
    return root / "runs/run/last_checkpoint.pth.tar"


def test_a_checkpoint_of_ours_brings_architecture_branch_and_class_names(shapes, monkeypatch, capsys):
    file = trained(shapes)
    picture = shapes / "dataset/Shapes/test/0/0.png"
    code, out, error = run(
        monkeypatch,
        capsys,
        str(picture),
        "--out",
        str(shapes / "out"),
        "--ckpt",
        str(file),
        "--crop_size",
        "48",
        "--class",
        "1",
        "--save_npy",
    )
    assert code == 0, error
    names = torch.load(file)["class_names"]
    assert f"maps of {names[1]}, number" in out
    assert all(f"%  {name}" in out for name in names) and len(names) == 3  # fewer than five classes
    folders = {path.parent.name for path in (shapes / "out").rglob("*.jpg")}
    assert {
        "grid",
        "gradcam_softmax",
        "gradcam_softmax_clamped",
        "gradcam_sigmoid_clamped",
        "eigencam_none",
    } <= folders
    model = dualize(build("tiny", 3))
    model.load_published(torch.load(file)["state_dict"], "file")
    image = eval_tensor(load_picture(picture), 48, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))[None]
    with CamExtractor(model, ["gradcam"], heads=["sigmoid_clamped"]) as extract:
        expected = extract(image, torch.tensor([1]))[Variant("gradcam", "sigmoid", clamped=True)][0]
    np.testing.assert_allclose(np.load(shapes / "out/gradcam_sigmoid_clamped/0.npy"), expected, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_of_the_references(pictures, monkeypatch, capsys):
    """Names under `module.`, the branch as fc2, 1000 classes without names: those of ImageNet."""
    model = dualize(build("tiny"))
    tensors = {f"module.{name}": tensor for name, tensor in model.published_state_dict().items()}
    torch.save({"architecture": "tiny", "epoch": 3, "state_dict": tensors, "optimizer": None}, "theirs.pth.tar")
    code, out, error = run(
        monkeypatch, capsys, "in/a/x.png", "--out", "out", *FAST, "--ckpt", "theirs.pth.tar", "--class", "tabby CAT"
    )
    assert code == 0 and "maps of tabby, number" in out, error
    assert (pictures / "out/gradcam_sigmoid_clamped/x.jpg").is_file()
    # 1000 classes, no branch, in a bare state dict.
    torch.save(TinyNet().state_dict(), "bare.pth")
    code, _, error = run(monkeypatch, capsys, "in/a/x.png", "--out", "out2", *FAST, "--ckpt", "bare.pth")
    assert code == 0 and not (pictures / "out2/gradcam_sigmoid_clamped").exists(), error


def test_all_methods_that_the_registry_has(pictures, monkeypatch, capsys):
    code, _, error = run(monkeypatch, capsys, "in/a", "--out", "out", *FAST, "--methods", "all")
    assert code == 0, error
    folders = {path.parent.name.rpartition("_")[0] for path in (pictures / "out").glob("*/x.jpg")}
    assert folders - {""} == set(METHODS)


CASES = {
    "a missing picture": (["in", "nowhere.jpg"], "nowhere.jpg is missing"),
    "text for a picture": (["in", "notes.jpg"], "notes.jpg cannot be read (not an image format"),
    "a cut-off picture": (["in/a/x.png", "cut.png"], "cut.png cannot be read"),
    "a folder without pictures": (["empty"], "there is no picture in empty"),
    "a folder with bad pictures": (
        ["."],
        "image cut.png cannot be read (image file is truncated); replace the file, "
        "or give --skip_bad_images (and 1 more)",
    ),
    "a file for --out": (["in", "--out", "notes.jpg"], "notes.jpg is a file"),
    "below a file": (["in", "--out", "notes.jpg/deep/er"], "notes.jpg is a file"),
    "an unknown class": (["in", "--class", "tabbi"], "did you mean 'tabby'"),
    "several classes": (["in", "--class", "cat"], "281 tabby, 282 tiger cat"),
    "a class out of range": (["in", "--class", "1000"], "0..999"),
    "a class of 5,000 digits": (["in", "--class", "9" * 5000], "0..999"),
    "an unknown method": (["in", "--methods", "gradcm"], "did you mean 'gradcam'"),
    "no method": (["in", "--methods", ","], "is empty"),
    "an unknown head": (["in", "--heads", "sigmoidd"], "did you mean 'sigmoid'"),
    "a head that is not there": (["in", "--heads", "sigmoid"], "needs a sigmoid branch"),
    "an unknown network": (["in", "--architecture", "resnet05"], "resnet05"),
    "no checkpoint": (["in", "--ckpt", "x.pth"], "x.pth does not exist"),
    "another network's checkpoint": (["in", "--ckpt", "vgg.pth"], "is a checkpoint of vgg16, not of tiny"),
    "two sources of weights": (["in", "--ckpt", "vgg.pth", "--pretrained_path", "x"], "leave one out"),
    "nothing at all": (None, "the following arguments are required"),
    "an unknown flag": (["in", "--methds", "cam"], "unrecognized arguments"),
}


@pytest.mark.parametrize("case", CASES)
def test_mistakes_are_one_line_exit_code_two_and_an_untouched_folder(pictures, monkeypatch, capsys, case):
    (pictures / "empty").mkdir()
    (pictures / "notes.jpg").write_text("not a picture")
    (pictures / "cut.png").write_bytes((pictures / "in/a/x.png").read_bytes()[:900])
    torch.save({"architecture": "vgg16", "state_dict": {"a": torch.ones(1)}}, "vgg.pth")
    before = files_below(pictures)
    words, message = CASES[case]
    code, _, printed = run(monkeypatch, capsys, *([] if words is None else [*FAST, "--out", "out", *words]))
    lines = printed.splitlines()
    assert code == 2 and lines[0].startswith("error: ") and message in lines[0]
    assert len(lines) == 1 or lines[1:] == ["see python inference.py --help"]
    assert files_below(pictures) == before


def test_bad_pictures_are_left_out_and_named_when_asked(pictures, monkeypatch, capsys):
    (pictures / "in/a/notes.jpg").write_text("not a picture")
    (pictures / "in/a/._x.png").write_text("what a Mac leaves beside its files")
    code, out, _ = run(monkeypatch, capsys, "in", "--out", "out", *FAST, "--skip_bad_images")
    assert code == 0 and "left out: image" in out and "notes.jpg" in out and "pictures: 2, 1 left out" in out
    (pictures / "in/a/x.png").unlink()
    code, _, error = run(monkeypatch, capsys, "in/a", "--out", "out2", *FAST, "--skip_bad_images")
    assert code == 2 and "notes.jpg" in error and not (pictures / "out2").exists()


def test_pictures_of_every_kind_look_as_a_person_sees_them(tmp_path):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    plain = Image.fromarray(pixels)

    def loaded(name, image, **more):
        image.save(tmp_path / name, **more)
        picture = load_picture(tmp_path / name)
        assert picture.mode == "RGB"
        return np.asarray(picture)

    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned: shown a quarter turn clockwise
    np.testing.assert_array_equal(loaded("turned.png", plain, exif=exif), np.rot90(pixels, -1))
    np.testing.assert_array_equal(loaded("grey.png", plain.convert("L"))[..., 1], np.asarray(plain.convert("L")))
    deep = np.arange(54, dtype=np.uint16).reshape(6, 9) * 1200
    np.testing.assert_array_equal(loaded("deep.png", Image.fromarray(deep))[..., 0], deep // 257)
    clear = plain.copy()
    clear.putalpha(Image.fromarray(np.where(np.arange(9) < 4, 0, 255).astype(np.uint8)[None].repeat(6, 0)))
    expected = np.where(np.arange(9)[None, :, None] < 4, 255, pixels)
    np.testing.assert_array_equal(loaded("clear.png", clear), expected)
    palette = Image.fromarray(np.arange(54, dtype=np.uint8).reshape(6, 9) % 3, "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    shown = loaded("palette.png", palette, transparency=1)
    assert shown[0, :3].tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]
    frames = [Image.new("RGB", (9, 6), colour) for colour in ("red", "blue")]
    assert (loaded("moving.gif", frames[0], save_all=True, append_images=frames[1:]) == [255, 0, 0]).all()
    print_colours = Image.new("CMYK", (9, 6), (0, 255, 255, 0))
    assert np.abs(loaded("print.jpg", print_colours, quality=100).astype(int) - [255, 0, 0]).max() < 12


def test_classes_by_name():
    names, synonyms = imagenet_names(), imagenet_synonyms()
    assert len(names) == len(set(names)) == len(synonyms) == 1000
    for word, index in (("281", 281), ("Tabby Cat", 281), ("egyptian", 285), ("crane", 517), ("crane bird", 134)):
        assert find_class(word, names, synonyms) == index
    with pytest.raises(InputError, match=r"207 golden retriever.*give the index or more"):
        find_class("retriever", names, synonyms)
    with pytest.raises(InputError, match="did you mean 'espresso'"):
        find_class("expresso", names, synonyms)
    assert find_class("square", ["a red square", "squares", "circle"]) == 0  # a whole word before a part of one


def test_a_sheet_shows_each_map_once_and_says_where_nothing_was_clamped():
    heads = ["softmax", "softmax_clamped", "sigmoid_clamped"]
    wanted = variants(["gradcam", "layercam"], heads)
    maps = {row: np.random.rand(7, 7).astype(np.float32) for row in wanted}
    columns = contact_sheet._columns(maps, heads)
    assert [cell and cell[0].head_option for cell in columns["gradcam"]] == heads
    assert columns["layercam"] == [
        (Variant("layercam", "softmax"), ""),
        None,
        (Variant("layercam", "sigmoid"), "not clamped"),
    ]
    image = np.random.randint(0, 256, (120, 200, 3), dtype=np.uint8)
    sheet = contact_sheet.contact_sheet(image, "x" * 500, [("a$b", 0.5), ("ü\n" * 99, 0.1)], maps, heads, [wanted[0]])
    thumbnail = contact_sheet.thumbnail(image)
    height, width = thumbnail.shape[:2]
    for row, scoremap in maps.items():  # all but the strip at the bottom, where a remark may stand
        cell = overlay(thumbnail, scoremap)[: height - 20]
        corner = np.flatnonzero((sheet[:-height, :-width] == cell[0, 0]).all(axis=2))
        places = [divmod(at, sheet.shape[1] - width) for at in corner]
        assert sum(np.array_equal(sheet[y : y + height - 20, x : x + width], cell) for y, x in places) == 1, row
    for shape in ((1, 1, 3), (10, 2000, 3), (2000, 10, 3)):
        assert contact_sheet.contact_sheet(np.zeros(shape, np.uint8), "", [("a", 1.0)], maps, heads).max() == 255


def test_an_overlay_has_the_colours_of_matplotlib():
    image = np.random.randint(0, 256, (40, 50, 3), dtype=np.uint8)
    scoremap = np.linspace(0, 1, 2000, dtype=np.float32).reshape(40, 50)
    strength = 0.3 + 0.35 * scoremap[..., None]
    expected = strength * 255 * matplotlib.colormaps["turbo"](scoremap)[..., :3] + (1 - strength) * image
    assert np.abs(overlay(image, scoremap) - expected).max() <= 1
