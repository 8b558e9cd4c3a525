"""demo.py: its lists, what it trains and keeps, what it draws, and its errors."""

import numpy as np
import pytest
from conftest import arguments, write_dataset
from PIL import Image

import demo
from wsol.errors import InputError
from wsol.run import fitted
from wsol.run.seeds_sheet import Truth, seeds_sheet, with_truth


@pytest.mark.parametrize(
    "items",
    [
        ["CAM", "GradCAM", "ScoreCAM"],
        ["[CAM, GradCAM, ScoreCAM]"],
        ["[CAM,", "GradCAM,", "ScoreCAM]"],
        ["cam,Grad-CAM,SCORE_CAM"],
        ["['CAM', \"GradCAM\"]", "ScoreCAM", "cam"],
    ],
)
def test_methods_are_read_however_they_are_written(items):
    assert demo.methods_of(items) == ["cam", "gradcam", "scorecam"]
    assert demo.parse_args(["--cam_methods", *items]).cam_methods == ["cam", "gradcam", "scorecam"]


def test_proportions_are_read_however_they_are_written():
    for items in (["1", "20", "5"], ["[001, 005, 020]"], ["5%,1%,20%", "5"]):
        assert demo.proportions_of(items) == [1, 5, 20]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--cam_methods", "GradCAMM"], "unknown method 'GradCAMM'; did you mean 'gradcam'"),
        (["--proportions", "0"], "--proportions: 0 is out of range"),
        (["--proportions", "1", "200"], "--proportions: 200 is out of range"),
        (["--proportions", "[]"], "need a name and a number"),
        (["--image", "nowhere.png"], "nowhere.png is missing"),
        (["--image_id", "nowhere"], "--image_id nowhere: no image of the test split"),
        (["--image_id", "1"], "images, such as test/1/1.png, of the test split has this id"),
    ],
)
def test_errors_are_one_line(shapes, argv, message):
    with pytest.raises(InputError, match=message):
        demo.main([*flags(shapes), *argv])


def flags(root):
    names = {"--dataset_name", "--architecture", "--data_root", "--metadata_root", "--crop_size"}
    words = arguments(root)
    pairs = [(words[i], words[i + 1]) for i in range(0, len(words), 2)]
    given = [word for pair in pairs if pair[0] in names for word in pair]
    return [*given, "--root", str(root / "demo"), "--epochs", "2", "--num_workers", "0"]


def test_figures_of_the_test_split_and_of_a_photograph(tmp_path, capsys):
    root = write_dataset(tmp_path, "Shapes", form="both", images=6)
    argv = [*flags(root), "--proportions", "20", "100", "--scales", "1,1.5"]
    first = demo.main(argv)
    assert [path.name for path in first] == [f"test_{k}_0_{k}.jpg" for k in range(3)]
    runs = sorted(path for path in (root / "demo").iterdir() if path.name != "figures")
    assert [path.name for path in runs] == ["Shapes-tiny-48-100-0", "Shapes-tiny-48-20-0"]
    assert all((run / fitted.FILE).is_file() and not (run / "results.json").exists() for run in runs)
    sizes = {Image.open(path).size for path in first}
    before = {path: path.read_bytes() for path in first}
    capsys.readouterr()
    again = demo.main(argv)  # nothing is trained again
    assert "epoch" not in capsys.readouterr().out and {path: path.read_bytes() for path in again} == before
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 40, 3), np.uint8)).save(photo)
    (one,) = demo.main([*argv, "--image", str(photo), "--cam_methods", "GradCAM", "BroadCAM"])
    assert one.name.startswith("photo_") and Image.open(one).size not in sizes
    two = demo.main([*argv, "--image", str(photo), "--image_id", "1/0", "--cam_methods", "BroadCAM", "--flip", "FALSE"])
    assert [path.name for path in two][1] == "test_1_0_1.jpg" and len(two) == 2


def test_an_interrupted_training_goes_on(shapes, monkeypatch):
    import main as program

    argv = [*flags(shapes), "--proportions", "100", "--cam_methods", "BroadCAM"]
    real = program.fit_methods
    monkeypatch.setattr(program, "fit_methods", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        demo.main(argv)
    monkeypatch.setattr(program, "fit_methods", real)
    assert len(demo.main(argv)) == 3


def test_a_sheet_shows_maps_and_truth():
    image = np.full((90, 120, 3), 200, np.uint8)
    mask = np.zeros((224, 224), bool)
    mask[50:150, 60:160] = True
    truth = Truth(np.array([[60, 50, 159, 149]]), mask)
    drawn = with_truth(image, truth)
    assert (drawn[0, 0] < 80).all() and (drawn[45, 55] == 200).all() and (drawn != image).any()
    scores = np.linspace(0, 1, 49, dtype=np.float32).reshape(7, 7)
    sheet = seeds_sheet(
        image, "a picture", {"cam": [scores, scores], "broadcam": [scores, 0 * scores]}, ["1 %", "100 %"], truth
    )
    without = seeds_sheet(image, "a picture", {"cam": [scores]}, ["1 %"])
    assert sheet.shape[0] > without.shape[0] and sheet.shape[1] > without.shape[1]
