"""The published settings under scripts/recipes/: all parse, train and evaluate on folders shaped like their data."""

import csv
import os
import subprocess
import sys

import pytest
from conftest import REAL, ROOT
from published import write_published

import main as program
from config import parse_args

RECIPES = {
    str(path.relative_to(ROOT / "scripts/recipes").with_suffix("")): path
    for path in sorted((ROOT / "scripts/recipes").glob("*/*.yaml"))
}
SMALL = ["--pretrained", "FALSE", "--crop_size", "96", "--resize_size", "104", "--epochs", "1", "--bootstrap", "0",
         "--workers", "0"]  # fmt: skip


def test_there_are_45_with_names_of_their_own():
    assert len(RECIPES) == 45 and len({name.lower() for name in RECIPES}) == 45
    assert {name.split("/")[0] for name in RECIPES} == {"CUB", "CARS", "ILSVRC", "OpenImages"}


@pytest.mark.skipif(not (REAL.parent / "recipes.csv").exists(), reason="the table of published settings is not here")
def test_they_are_the_published_ones():
    rows = list(csv.DictReader((REAL.parent / "recipes.csv").open()))
    keys = ("dataset_name", "architecture", "method", "model_structure", "batch_size", "lr", "lr_decay_frequency")

    def as_row(config):
        row = [str(config[key]) for key in keys] + [config.unfreeze_layer, config.epochs, config.large_feature_map]
        return [*row, config.weight_decay, config.loc_threshold]

    found = sorted(map(str, (as_row(parse_args(["--config", str(path)])) for path in RECIPES.values())))
    expected = sorted(
        str(
            [
                *(str(float(row[key])) if key == "lr" else row[key] for key in keys),
                row["unfreeze_layer"] or "all",
                int(row["epoch"]),
                row["large_feature_map"] == "TRUE",
                float(row["weight_decay"]),
                float(row["loc_threshold"] or 0.2),
            ]
        )
        for row in rows
    )
    assert found == expected


def trains(tmp_path, name, monkeypatch):
    """One epoch of one step, a branch after its twin."""
    monkeypatch.chdir(tmp_path)
    dataset, run = name.split("/")
    write_published(tmp_path, dataset)
    twin = run.removesuffix("_ours")
    start = []
    common = [*SMALL, "--root", f"runs/{dataset}"]
    config = parse_args(["--config", str(RECIPES[name])])
    if config.model_structure == "b2" and f"{dataset}/{twin}" in RECIPES:
        recipe = str(RECIPES[f"{dataset}/{twin}"])
        program.main(["--config", recipe, *common, "--experiment_name", twin, "--train_only"])
        start = ["--ft_ckpt", f"runs/{dataset}/{twin}/last_checkpoint.pth.tar"]
    results = program.main(["--config", str(RECIPES[name]), *common, "--experiment_name", run, *start])
    assert results["architecture"] == config.architecture and results["rows"]
    again = program.main(["--eval_only", "--root", f"runs/{dataset}", "--experiment_name", run])
    assert again["rows"] == results["rows"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_and_evaluates(tmp_path, name, monkeypatch):
    trains(tmp_path, name, monkeypatch)


# ------------------------------------------------------------------- the scripts


def script(name, folder, filter_, *flags):
    environment = os.environ | {"PYTHON": sys.executable, "FILTER": filter_, "ROOT": str(folder / "runs")}
    environment |= {"DATA": str(folder / "dataset"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [ROOT / "scripts" / name, "--metadata_root", str(folder / "metadata"), *flags],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
    )


@pytest.mark.slow
def test_a_branch_waits_for_its_twin_and_finished_runs_are_left_alone(tmp_path):
    write_published(tmp_path, "CUB")
    early = script("run_train.sh", tmp_path, "CUB/resnet50_cam_ours", *SMALL)
    assert early.returncode == 2 and "runs/CUB/resnet50_cam/last_checkpoint.pth.tar, which is missing" in early.stderr
    done = script("run_train.sh", tmp_path, "CUB/resnet50_cam*", *SMALL)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("==")] == [
        "== CUB/resnet50_cam",
        "== CUB/resnet50_cam_ours",
    ]
    config = (tmp_path / "runs/CUB/resnet50_cam_ours/config.yaml").read_text()
    assert f"ft_ckpt: {tmp_path}/runs/CUB/resnet50_cam/last_checkpoint.pth.tar" in config
    (tmp_path / "runs/CUB/resnet50_cam_ours/results.json").unlink()
    again = script("run_train.sh", tmp_path, "CUB/resnet50_cam*", *SMALL)
    assert again.returncode == 0 and "== CUB/resnet50_cam: has results" in again.stdout, again.stderr
    assert (tmp_path / "runs/CUB/resnet50_cam_ours/results.json").exists()
    evaluated = script("run_eval.sh", tmp_path, "CUB/resnet50_*", "--bootstrap", "0", "--workers", "0")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "== CUB/resnet50_gradcam: no run in" in evaluated.stdout and "MaxBoxAccV2" in evaluated.stdout


def test_a_filter_that_names_nothing_and_help(tmp_path):
    wrong = script("run_eval.sh", tmp_path, "CUP/*")
    assert wrong.returncode == 2 and "FILTER='CUP/*' names no recipe; they are CARS/inception_v3_cam" in wrong.stderr
    for name in ("run_train.sh", "run_eval.sh"):
        shown = subprocess.run([ROOT / "scripts" / name, "--help"], text=True, capture_output=True)
        assert shown.returncode == 0 and "FILTER" in shown.stdout and "set -euo" not in shown.stdout
