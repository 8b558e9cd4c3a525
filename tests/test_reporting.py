"""The table, the files made from the results, W&B that never stops a run, and the pictures."""

import copy
import json
import sys
import types

import numpy as np
import pytest

from wsol.errors import InputError
from wsol.evaluation.results import flatten
from wsol.run import report, tables
from wsol.run.folder import RunFolder
from wsol.run.overlay import overlay
from wsol.run.wandb_logger import WandbLogger

RESULTS = {
    "dataset": "Shapes",
    "split": "test",
    "num_images": 12,
    "classification": {"top1": 91.666, "top5": 100.0},
    "rows": [
        {
            "method": "cam",
            "head": "softmax",
            "clamped": False,
            "maxboxacc": {30: 80.0, 50: 60.0},
            "maxboxacc_v2": 70.0,
            "gt_loc": 55.0,
            "top1_loc": 50.0,
            "tau": {"gt_loc": 0.2},
        },
        {
            "method": "cam",
            "head": "sigmoid",
            "clamped": True,
            "maxboxacc": {30: 82.0, 50: 61.0},
            "maxboxacc_v2": 71.5,
            "gt_loc": 56.0,
            "top1_loc": 51.0,
            "tau": {"gt_loc": 0.2},
        },
        {
            "method": "eigencam",
            "head": "none",
            "clamped": False,
            "maxboxacc": {30: 1.0, 50: 2.0},
            "maxboxacc_v2": 1.5,
            "gt_loc": 3.0,
            "top1_loc": 2.0,
            "tau": {"gt_loc": 0.2},
        },
    ],
    "center": {"maxboxacc": {30: 40.0, 50: 20.0}, "maxboxacc_v2": 30.0, "gt_loc": 10.0},
    "seconds": {"train": 4.4, "inference": 2.0, "evaluation": 1.0},
}


def test_table_compares_with_the_methods_softmax_row():
    """Columns of a threshold that is best on test are marked; GT-Loc at val's threshold stands beside the fixed one."""
    results = copy.deepcopy(RESULTS)
    results["rows"][0]["gt_loc_val"] = 58.0
    lines = [line.split() for line in tables.results_table(results).splitlines()]
    assert lines[0] == ["method", "head", "MaxBoxAccV2†", "Δ", "@30†", "@50†", "GT-Loc", "GT-Loc@val", "Top-1", "Loc"]
    assert lines[2] == ["cam", "softmax", "70.0", "80.0", "60.0", "55.0", "58.0", "50.0"]
    assert lines[3] == ["sigmoid,", "clamped", "71.5", "+1.5", "82.0", "61.0", "56.0", "51.0"]
    assert lines[5] == ["eigencam", "no", "head", "1.5", "1.0", "2.0", "3.0", "2.0"]
    assert lines[7] == ["centre", "Gaussian", "30.0", "40.0", "20.0", "10.0"]
    text = tables.summary(results)
    assert "Top-1 91.7 %, Top-5 100.0 %" in text
    assert "†: at the threshold that is best on these images" in text and "at the threshold 0.2" in text
    assert "GT-Loc@val: at the threshold that is best on the val split" in text
    assert "GT-Loc@val" not in tables.summary(RESULTS)


def test_table_with_intervals():
    """An interval is written by its bounds, since it need not be symmetric; beside the compared metrics only."""
    intervals = {"resamples": 1000, "classification": {"top1": [64.6, 98.5], "top5": [75.75, 100.0]}}
    results = copy.deepcopy(RESULTS) | {"intervals": intervals}
    results["rows"][0]["interval"] = {"maxboxacc_v2": [67.0, 72.0], "gt_loc": [50.0, 60.0]}
    results["center"]["interval"] = {"maxboxacc_v2": [20.0, 40.0]}
    lines = [line.split() for line in tables.results_table(results).splitlines()]
    assert lines[0][:7] == ["method", "head", "MaxBoxAccV2†", "95", "%", "Δ", "@30†"]
    assert lines[2][:4] == ["cam", "softmax", "70.0", "67.0–72.0"]
    assert lines[3][:4] == ["sigmoid,", "clamped", "71.5", "+1.5"]
    assert lines[7][:4] == ["centre", "Gaussian", "30.0", "20.0–40.0"]
    text = tables.summary(results)
    assert "Top-1 91.7 % [64.6–98.5], Top-5 100.0 % [75.8–100.0]" in text and "95 %: interval over images" in text
    assert "±" not in text and "95 %" not in tables.summary(RESULTS)


def test_flat_names_of_intervals():
    assert flatten({"a": 1, "interval": {"pxap": [2.0, 3.0], "maxboxacc": {30: [4.0, 5.0]}}}) == {
        "a": 1,
        "interval_pxap_low": 2.0,
        "interval_pxap_high": 3.0,
        "interval_maxboxacc_30_low": 4.0,
        "interval_maxboxacc_30_high": 5.0,
    }


def test_files(tmp_path):
    run = RunFolder(str(tmp_path), "run")
    run.open({})
    report.write_results(run, RESULTS)
    assert json.loads((run.path / "results.json").read_text()) == json.loads(json.dumps(RESULTS))
    first, second, *_ = (run.path / "results.csv").read_text().splitlines()
    assert first == "method,head,clamped,maxboxacc_30,maxboxacc_50,maxboxacc_v2,gt_loc,top1_loc,tau_gt_loc"
    assert second == "cam,softmax,False,80.0,60.0,70.0,55.0,50.0,0.2"


@pytest.mark.parametrize("broken", ["import", "init", "log", "finish"])
def test_wandb_never_stops_a_run(tmp_path, monkeypatch, broken):
    def fail(*_, **__):
        raise RuntimeError("no network")

    class FakeRun:
        summary = {}
        log = fail if broken == "log" else lambda self, *_: None
        finish = fail if broken == "finish" else lambda self: None

    fake = types.SimpleNamespace(
        init=fail if broken == "init" else lambda **_: FakeRun(),
        Image=str,
        Settings=lambda **_: None,
        Table=lambda *_: None,
    )
    monkeypatch.setitem(sys.modules, "wandb", None if broken == "import" else fake)
    run = RunFolder(str(tmp_path), "run")
    run.open({})
    wandb = WandbLogger(True, project=None, name="x", folder=run.path, config={})
    wandb.log_metrics({"loss": 1.0})
    wandb.log_results(RESULTS, [])
    wandb.close()


def test_wandb_gets_the_figures_that_it_can_show(tmp_path, monkeypatch):
    """Of a figure that is saved as PNG and PDF it gets the PNG; a PDF is not an image there."""
    logged = {}
    run = types.SimpleNamespace(summary={}, log=logged.update, finish=lambda: None)
    fake = types.SimpleNamespace(init=lambda **_: run, Image=str, Settings=lambda **_: None, Table=lambda *_: None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    wandb = WandbLogger(True, project=None, name="x", folder=tmp_path, config={})
    wandb.log_results(RESULTS, [tmp_path / "maps.png", tmp_path / "maps.pdf"])
    assert logged["figures/maps"] == str(tmp_path / "maps.png")


def test_wandb_is_offline_without_credentials(tmp_path, monkeypatch, caplog):
    started = {}
    fake = types.SimpleNamespace(init=lambda **kw: started.update(kw), Settings=lambda **_: None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = RunFolder(str(tmp_path), "run")
    run.open({})
    WandbLogger(True, project="p", name="n", folder=run.path, config={})
    assert (started["mode"], started["project"], started["name"]) == ("offline", "p", "n")
    monkeypatch.setenv("WANDB_API_KEY", "x")
    WandbLogger(True, project="p", name="n", folder=tmp_path / "w", config={})
    assert started["mode"] is None and started["dir"] == str(tmp_path / "w")
    started.clear()
    WandbLogger(False, project="p", name="n", folder=run.path, config={})
    assert not started


def test_overlay_is_blue_where_low_and_red_where_high():
    image = np.full((20, 40, 3), 128, np.uint8)
    scoremap = np.zeros((10, 10), np.float32)
    scoremap[:, 5:] = 1
    painted = overlay(image, scoremap).astype(int)
    assert painted.shape == image.shape
    assert painted[10, -1, 0] > painted[10, -1, 2] + 30 and painted[10, 0, 2] > painted[10, 0, 0]


def test_tensorboard_gets_epochs_rows_and_figures(shapes):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from conftest import arguments, metrics_without_times

    import main as program

    results = program.main(arguments(shapes, "--tensorboard", "--methods", "gradcam", "--epochs", "2"))
    events = accumulator.EventAccumulator(str(shapes / "runs/run/tensorboard"), {"images": 0, "scalars": 0})
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("b2/train/loss")}
    lines = metrics_without_times(shapes / "runs/run")
    expected = {line["epoch"]: line["loss"] for line in lines if (line["stage"], line["split"]) == ("b2", "train")}
    assert found == pytest.approx(expected, rel=1e-4) and set(found) == {1, 2}
    (value,) = events.Scalars("test/maxboxacc_v2/gradcam_softmax")
    assert value.value == pytest.approx(results["rows"][0]["maxboxacc_v2"], rel=1e-5)
    assert "figures/maps_gradcam" in events.Tags()["images"]


def test_tensorboard_that_is_missing_is_named_before_any_work(shapes, monkeypatch):
    from conftest import arguments

    import main as program

    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match="needs the package tensorboard: pip install tensorboard"):
        program.main(arguments(shapes, "--tensorboard"))
    assert not (shapes / "runs").exists()


def test_a_resumed_run_goes_on_in_its_wandb_run(tmp_path, monkeypatch):
    started = []

    class Wandb:
        Settings = staticmethod(lambda **_: None)

        @staticmethod
        def init(**settings):
            started.append(settings)
            return type("Run", (), {"id": settings.get("id", "abc123")})

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    common = {"project": None, "name": "x", "folder": tmp_path, "config": {}, "id_file": tmp_path / "wandb_id.txt"}
    WandbLogger(True, **common)
    WandbLogger(True, **common, resume=True)
    WandbLogger(True, **common)  # a run that replaces it begins another one
    assert [settings.get("id") for settings in started] == [None, "abc123", None]
    assert started[1]["resume"] == "allow" and (tmp_path / "wandb_id.txt").read_text() == "abc123\n"
