"""python evaluation.py on saved maps: the numbers of the run that wrote them, any layout, and broken files named."""

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, arguments, write_dataset

import evaluation
import main as program
from config import parse_evaluation_args
from wsol.cam import Variant
from wsol.errors import InputError
from wsol.evaluation import saved_maps
from wsol.evaluation.saved_maps import find_variants, load_scoremap

NEEDS_LOGITS = ("top1_loc", "top1_loc_best", "top1_loc_val", "top5_loc", "normalization")


def command(root, *more: str, dataset: str = "Shapes") -> list[str]:
    return [
        "--dataset_name",
        dataset,
        "--metadata_root",
        str(root / "metadata"),
        "--mask_root",
        str(root / "dataset"),
        "--cam_curve_interval",
        "0.02",
        "--workers",
        "0",
        *more,
    ]


def key_of(row: dict) -> tuple:
    return row["method"], row["head"], row["clamped"]


def as_of_maps(row: dict) -> dict:
    """A row of results.json without what maps do not tell, and without the intervals, which a run alone has."""
    left_out = {*NEEDS_LOGITS, "cam_target", "interval"}
    kept = {key: value for key, value in row.items() if key not in left_out}
    return kept | {"tau": {key: value for key, value in row["tau"].items() if key not in NEEDS_LOGITS}}


def write_maps(root, folder, split="test"):
    """Random maps of every image of `split`; returns their files."""
    random = np.random.default_rng(0)
    files = []
    for image_id in (root / "metadata/Shapes" / split / "image_ids.txt").read_text().split():
        path = folder / (os.path.splitext(image_id)[0] + ".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.kron(random.random((8, 8)), np.ones((28, 28))))
        files.append(path)
    return files


# ------------------------------------------------------------------- the numbers of a run


@pytest.mark.parametrize("gt_boxes, methods", [("any", "cam,layercam"), ("first", "cam")])
def test_saved_maps_give_the_numbers_of_their_run(shapes, gt_boxes, methods, capsys):
    for split in ("val", "test"):  # a second box for each image
        path = shapes / "metadata/Shapes" / split / "localization.txt"
        path.write_text("".join(f"{line}\n{line.rsplit(',', 4)[0]},0,0,9,30\n" for line in path.read_text().split()))
    results = program.main(
        arguments(shapes, "--methods", methods, "--epochs", "1", "--save_scoremaps", "--gt_boxes", gt_boxes)
    )
    maps = shapes / "runs/run/scoremaps"
    out = shapes / "found.json"
    found = evaluation.main(
        command(
            shapes,
            "--scoremap_root",
            str(maps / "test"),
            "--val_scoremap_root",
            str(maps / "val"),
            "--gt_boxes",
            gt_boxes,
            "--out",
            str(out),
        )
    )
    expected = {key_of(row): as_of_maps(row) for row in results["rows"]}
    rows = {key_of(row): row for row in found["rows"]}
    assert rows == expected and len(rows) == len(results["rows"]) > 2 and "gt_loc_val" in next(iter(rows.values()))
    center = {key: value for key, value in results["center"].items() if key != "interval"}
    assert found["center"] == center and found["num_images"] == 12
    assert all(row["localization"] == row["maxboxacc_v2"] for row in found["rows"])
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    printed = capsys.readouterr().out
    for wanted in (
        "MaxBoxAccV2†",
        "GT-Loc@val",
        "PxAP",
        "centre Gaussian",
        "cam sigmoid, clamped",
        "@70",
        f"{found['rows'][0]['maxboxacc_v1']:.2f} [{found['rows'][0]['tau']['maxboxacc_v1']:g}]",
    ):
        assert wanted in printed

    one = evaluation.main(
        command(
            shapes,
            "--scoremap_root",
            str(maps / "test/cam_sigmoid_clamped"),
            "--workers",
            "2",
            "--gt_boxes",
            gt_boxes,
            "--multi_contour_eval",
            "FALSE",
            "--multi_iou_eval",
            "FALSE",
        )
    )
    row = one["rows"][0]
    assert key_of(row) == ("cam", "sigmoid", True) and row["localization"] == row["maxboxacc_v1"]
    for key in ("maxboxacc", "gt_loc", "gt_loc_best", "pxap", "num_degenerate"):
        assert row[key] == expected[key_of(row)][key]
    assert "gt_loc_val" not in row and f"localization: {row['maxboxacc_v1']}" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["boxes", "masks"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_any_split_and_any_number_of_processes(tmp_path, form, split, monkeypatch):
    write_dataset(tmp_path, "Shapes", form=form, splits=(split,))
    files = write_maps(tmp_path, tmp_path / "maps", split)
    for file, value in ((files[0], 0), (files[-1], 0.5)):
        np.save(file, np.full((224, 224), value, np.float32))
    monkeypatch.setattr(saved_maps, "_CHUNK", 5)
    found = [
        evaluation.main(command(tmp_path, "--scoremap_root", str(tmp_path / "maps"), "--split", split, "--workers", n))
        for n in ("0", "1", "2")
    ]
    monkeypatch.setattr(saved_maps, "_CHUNK", 100)
    found.append(evaluation.main(command(tmp_path, "--scoremap_root", str(tmp_path / "maps"), "--split", split)))
    for one in found:
        assert one["rows"] == found[0]["rows"] and one["center"] == found[0]["center"]
    assert key_of(found[0]["rows"][0]) == ("maps", "none", False) and found[0]["split"] == split
    assert found[0]["rows"][0]["num_degenerate"] == 2
    assert set(found[0]["rows"][0]) >= ({"pxap"} if form == "masks" else {"maxboxacc", "maxboxacc_v1", "gt_loc", "tau"})
    assert ("pxap" in found[0]["rows"][0]) == (form == "masks") != ("gt_loc" in found[0]["rows"][0])


# ------------------------------------------------------------------- which files


def test_both_names_of_a_map_and_rows_side_by_side(tmp_path):
    ids = ["a/x.jpg", "b/y.png", "c"]
    for name in (
        "row_softmax/a/x.npy",
        "row_softmax/b/y.png.npy",
        "row_softmax/c.npy",
        "other/a/x.jpg.npy",
        "other/b/y.npy",
        "other/c.npy",
        "empty/readme.npy",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_variants(tmp_path, ids)
    assert {row: [str(f.relative_to(tmp_path)) for f in files] for row, files in found.items()} == {
        Variant("other"): ["other/a/x.jpg.npy", "other/b/y.npy", "other/c.npy"],
        Variant("row", "softmax"): ["row_softmax/a/x.npy", "row_softmax/b/y.png.npy", "row_softmax/c.npy"],
    }
    assert list(find_variants(tmp_path / "row_softmax", ids)) == [Variant("row", "softmax")]
    # Ids that share a stem do not share a map.
    with pytest.raises(InputError, match="row_softmax lacks 2 of 3 score maps, those of a/x.jpg, a/x.png$"):
        find_variants(tmp_path / "row_softmax", ["a/x.jpg", "a/x.png", "c"])


def test_missing_maps_are_counted_before_any_is_read(shapes):
    files = write_maps(shapes, shapes / "maps")
    files[0].write_bytes(b"not read")
    for file in files[2:8]:
        file.unlink()
    with pytest.raises(
        InputError,
        match=r"maps lacks 6 of 12 score maps, those of test/0/2.png, test/0/3.png, test/1/0.png and 3 more$",
    ):
        evaluation.main(command(shapes, "--scoremap_root", str(shapes / "maps")))
    shutil.rmtree(shapes / "maps")
    with pytest.raises(InputError, match="maps is not a folder"):
        evaluation.main(command(shapes, "--scoremap_root", str(shapes / "maps")))
    write_maps(shapes, shapes / "maps", "val")
    with pytest.raises(
        InputError, match="have no score map of any of the 12 images; the first would be test/0/0.npy. Check --split"
    ):
        evaluation.main(command(shapes, "--scoremap_root", str(shapes / "maps")))


def stored(array, **more) -> bytes:
    content = io.BytesIO()
    np.save(content, array, **more)
    return content.getvalue()


def archive() -> bytes:
    content = io.BytesIO()
    np.savez(content, np.zeros((224, 224)))
    return content.getvalue()


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def with_value(value) -> np.ndarray:
    scoremap = np.zeros((224, 224), np.float32)
    scoremap[3, 4] = value
    return scoremap


@pytest.mark.parametrize(
    "content, message",
    [
        (stored(np.zeros((14, 14))), "is 14 x 14, not 224 x 224"),
        (stored(np.zeros((1, 224, 224))), "is 1 x 224 x 224, not"),
        (stored(np.float64(0.5)), "is a single number"),
        (stored(np.zeros((0, 224))), "0"),
        (stored(with_value(np.nan)), "contains NaN"),
        (stored(with_value(np.inf)), "from 0 to inf, outside"),
        (stored(with_value(1.5)), "from 0 to 1.5, outside"),
        (stored(with_value(-0.25)), "from -0.25 to 0, outside"),
        (stored(np.full((224, 224), 255, np.uint8)), "from 255 to 255, outside"),
        (stored(np.zeros((224, 224), complex)), "complex128, not one array of real numbers"),
        (stored(np.full((224, 224), "a")), "not one array of real numbers"),
        (stored(np.array([Bomb()]), allow_pickle=True), "not a complete .npy file"),
        (stored(with_value(0))[:-1], "not a complete .npy file"),
        (stored(with_value(0)).replace(b"(224, 224)", b"(9**9,224)"), "not a complete .npy file"),
        (stored(with_value(0)).replace(b"(224, 224)", b"(22400000,)"), "not a complete .npy file"),
        (archive(), "an archive of arrays, not one array"),
        (archive()[:50], "not a complete .npy file"),
        (b"", "not a complete .npy file"),
        (b"\x80\x04K\x01.", "not a complete .npy file"),
        (b"hello", "not a complete .npy file"),
    ],
)
def test_a_file_that_is_no_map_is_named(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(InputError, match="x.npy") as caught:
        load_scoremap(tmp_path / "x.npy")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    "dtype, read_as",
    [
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.float16, np.float32),
        (bool, np.float32),
        (np.uint8, np.float32),
        (">f8", np.float64),
    ],
)
def test_maps_of_any_real_type_are_read(tmp_path, dtype, read_as):
    np.save(tmp_path / "x.npy", with_value(1).astype(dtype))
    found = load_scoremap(tmp_path / "x.npy")
    assert found.dtype == read_as and found.dtype.isnative and (found == with_value(1)).all()


# ------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    "more, message",
    [
        (["--split", "val", "--val_scoremap_root", "x"], "--val_scoremap_root chooses thresholds for the test split"),
        (["--out", "nowhere/x.json"], "the folder nowhere is missing"),
        (["--dataset_name", "../Shapes"], "is not the name of a folder"),
        (["--val_scoremap_root", "maps/other"], "lacks the maps"),
    ],
)
def test_flags_that_contradict_each_other(shapes, monkeypatch, more, message):
    monkeypatch.chdir(shapes)
    for name in ("maps/a_softmax", "maps/b_softmax"):
        write_maps(shapes, shapes / name)
        write_maps(shapes, shapes / name.replace("maps", "maps/other"), "val")
    shutil.rmtree(shapes / "maps/other/b_softmax")
    with pytest.raises(InputError, match=message):
        evaluation.main(command(shapes, "--scoremap_root", "maps", *more))


def test_a_split_without_boxes_and_masks(shapes):
    for name in ("localization", "masks"):
        (shapes / f"metadata/Shapes/train/{name}.txt").write_text("")
    write_maps(shapes, shapes / "maps", "train")
    with pytest.raises(InputError, match="train has neither boxes nor masks, so nothing can be measured"):
        evaluation.main(command(shapes, "--scoremap_root", str(shapes / "maps"), "--split", "train"))


def test_missing_masks_are_counted(tmp_path):
    write_dataset(tmp_path, "Shapes", form="masks")
    write_maps(tmp_path, tmp_path / "maps")
    shutil.rmtree(tmp_path / "dataset")
    with pytest.raises(InputError, match="12 of 12 test masks are missing: .*0_mask.png, .*check --mask_root$"):
        evaluation.main(command(tmp_path, "--scoremap_root", str(tmp_path / "maps")))


def test_the_command_as_it_is_typed(shapes, monkeypatch, capsys):
    files = write_maps(shapes, shapes / "maps")
    typed = [str(ROOT / "evaluation.py"), *command(shapes, "--scoremap_root", "maps", "--workers", "2")]
    done = subprocess.run([sys.executable, *typed], cwd=shapes, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "MaxBoxAccV2" in done.stdout and done.stderr == "", done.stderr
    np.save(files[-1], np.full((224, 224), np.nan))
    monkeypatch.chdir(shapes)
    monkeypatch.setattr(sys, "argv", typed)
    assert evaluation.run_from_shell() == 2  # the error of a worker process, in one line
    assert capsys.readouterr() == (
        "",
        "error: the score map maps/test/2/3.npy contains NaN; write zeros where a method gives no map\n",
    )


def test_flags_that_saved_maps_have_no_use_for_and_a_folder_to_write_to(tmp_path, capsys):
    flags = ["--scoremap_root", str(tmp_path), "--dataset_name", "Shapes"]
    with pytest.raises(SystemExit) as refused:
        parse_evaluation_args([*flags, "--fidelity", "all"])
    assert refused.value.code == 2 and "unrecognized arguments: --fidelity" in capsys.readouterr().err
    with pytest.raises(InputError, match="is a folder; give the name of a file in it"):
        parse_evaluation_args([*flags, "--out", str(tmp_path)])
