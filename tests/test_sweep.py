"""scripts/sweep.py: what it draws, and that processes share a study and lose no trial when they are killed."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, write_dataset

pytest.importorskip("optuna")
sys.path.insert(0, str(ROOT / "scripts"))

import sweep

from wsol.errors import InputError

# Stands in for main.py: three epochs of `pause` seconds, whose val figure depends on the learning rate and the epoch.
PROGRAM = """
import json, pathlib, sys, time
flags, name = {}, None
for word in sys.argv[1:]:
    if word.startswith("--"):
        name, _, value = word[2:].partition("=")
        flags[name] = value
    else:
        flags[name] = word
folder = pathlib.Path(flags["root"]) / flags["experiment_name"]
folder.mkdir(parents=True, exist_ok=True)
if "resume" in flags:
    flags |= json.loads((folder / "config.yaml").read_text())
else:
    (folder / "config.yaml").write_text(json.dumps({"lr": flags["lr"]}))
    (folder / "metrics.jsonl").write_text("")
done = len((folder / "metrics.jsonl").read_text().splitlines())
with open(folder / "starts.txt", "a") as starts:
    starts.write(f"{done}\\n")
for epoch in range(done + 1, 4):
    time.sleep(PAUSE)
    if flags["lr"] == "9.0":
        sys.exit(2)
    with open(folder / "metrics.jsonl", "a") as file:
        figure = 10 * float(flags["lr"]) + epoch
        file.write(json.dumps({"stage": "b2", "split": "val", "epoch": epoch, "maxboxacc_v2": figure}) + "\\n")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a data set, and a program in place of main.py."""
    write_dataset(tmp_path, "Shapes", images=1)
    (tmp_path / "program.py").write_text(PROGRAM.replace("PAUSE", "0.02"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "PAUSE", 0.02)
    return tmp_path


DATA = ["--", "--dataset_name", "Shapes", "--epochs", "3"]


def words(*more, name="s"):
    return [name, "--root", "sweeps", "--program", "program.py", *more]


def states(folder, name="s"):
    study = sweep.Study(folder / "sweeps" / name)
    study.open()
    return [trial.state.name for trial in study.trials()], study


def test_draws_are_seeded_and_in_their_ranges():
    space = sweep.parse_space(["lr=log:1e-5:1e-2", "momentum=uniform:0:0.9", "epochs=int:2:4", "method=cam,gradcam"])
    drawn = sweep.draw(space, "random", 400, 1)
    assert drawn == sweep.draw(space, "random", 400, 1) != sweep.draw(space, "random", 400, 2)
    assert drawn[:30] == sweep.draw(space, "random", 30, 1)
    rates = np.log10([trial["lr"] for trial in drawn])
    assert -5 <= rates.min() < -4.9 and -2.1 < rates.max() <= -2 and abs(rates.mean() + 3.5) < 0.15
    assert {trial["epochs"] for trial in drawn} == {2, 3, 4} and {trial["method"] for trial in drawn} == {
        "cam",
        "gradcam",
    }
    grid = sweep.draw(sweep.parse_space(["lr=.1,.2", "method=cam,gradcam,fem"]), "grid", 1, 0)
    assert len(grid) == 6 and {"lr": ".2", "method": "fem"} in grid


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "there is nothing to search"),
        (["--space", "lrr=1,2"], "main.py has no setting 'lrr'; did you mean"),
        (["--space", "lr"], "give values, such as lr=log"),
        (["--space", "lr=log:0:1"], "LOW must be below HIGH, and above 0"),
        (["--space", "lr=log:1"], "log needs two numbers"),
        (["--space", "lr=log:1e-3:1", "--sampler", "grid"], "grid needs a list of values for lr"),
        (["--space", "lr=.1,.2", "--trials", "0"], "--trials 0 is out of range"),
        (["--space", "lr=.1,.2", "--", "--lr", ".3"], "--lr cannot stand behind --; the sweep sets it"),
        (["--space", "lr=.1,.2", "--", "--dataset_name", "Nowhere"], "Nowhere"),
        (["--summary"], "there is no study in"),
    ],
)
def test_what_is_wrong_is_said_before_a_study_is_written(folder, flags, message):
    with pytest.raises(InputError, match=message):
        sweep.main(words(*flags))
    assert not (folder / "sweeps/s/study.json").exists()
    sweep.main(words("--space", "lr=.1,.2", "--sampler", "grid", *DATA))  # the name is still free


def test_values_that_main_would_refuse_are_refused_at_once(folder):
    with pytest.raises(SystemExit):
        sweep.main(words("--space", "batch_size=0,8", "--sampler", "grid", *DATA))


def test_a_study_its_table_and_its_plots(folder, capsys):
    sweep.main(words("--space", "lr=.1,.5,9.0,.3", "--sampler", "grid", "--prune", "FALSE", *DATA))
    out = capsys.readouterr().out
    assert states(folder)[0] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    lines = (folder / "sweeps/s/summary.csv").read_text().splitlines()
    assert lines[:4] == [
        "run,state,maxboxacc_v2,epochs,lr",
        "trial-0001,complete,8.0,3,.5",
        "trial-0003,complete,6.0,3,.3",
        "trial-0000,complete,4.0,3,.1",
    ]
    assert "4 trials: 3 complete, 1 fail" in out and "--experiment_name trial-0001 --eval_only" in out
    assert (folder / "sweeps/s/summary.png").stat().st_size > 5000
    sweep.main(words())  # nothing is left to do
    sweep.main(words("--summary"))


def test_the_best_epoch_may_count(folder):
    (folder / "program.py").write_text(PROGRAM.replace("PAUSE", "0").replace("+ epoch", "- epoch"))
    sweep.main(words("--space", "lr=.4,.5", "--sampler", "grid", "--by", "best", *DATA))
    assert "trial-0001,complete,4.0,3,.5" in (folder / "sweeps/s/summary.csv").read_text()


def test_bad_trials_are_pruned(folder):
    (folder / "program.py").write_text(PROGRAM.replace("PAUSE", "0.3"))
    good = ",".join(f"0.{n}" for n in range(4, 9))
    sweep.main(words("--space", f"lr={good},0.01", "--sampler", "grid", *DATA))
    found, study = states(folder)
    assert found == ["COMPLETE"] * 5 + ["PRUNED"]
    assert len((folder / "sweeps/s/trial-0005/metrics.jsonl").read_text().splitlines()) < 3
    assert "pruned" in (folder / "sweeps/s/summary.csv").read_text() and study.settings["criterion"] == "maxboxacc_v2"


def start(folder, *more):
    return subprocess.Popen(
        [sys.executable, ROOT / "scripts/sweep.py", *words(*more)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_two_processes_share_a_study_and_a_killed_one_loses_no_trial(folder):
    (folder / "program.py").write_text(PROGRAM.replace("PAUSE", "0.7"))
    flags = ("--space", "lr=uniform:0:1", "--trials", "6", "--prune", "FALSE", *DATA)
    first = start(folder, *flags)
    second = start(folder, *flags)
    trials = folder / "sweeps/s"
    deadline = time.monotonic() + 90
    while len(list(trials.glob("trial-*/metrics.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.9)  # the first epoch of each is done
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert second.wait(timeout=120) == 0
    found, study = states(folder)
    assert found == ["COMPLETE"] * 6
    attempts = [trial.user_attrs["run"] for trial in study.study.trials]
    assert len(attempts) == 7 and len(set(attempts)) == 6  # the killed one was queued again
    (again,) = {run for run in attempts if attempts.count(run) == 2}
    starts = [int(text) for text in (trials / again / "starts.txt").read_text().split()]
    assert len(starts) == 2 and starts[0] == 0 and starts[1] >= 1  # and went on where it was
    values = [trial.value for trial in study.trials()]
    drawn = [10 * trial.user_attrs["settings"]["lr"] + 3 for trial in study.trials()]
    assert values == pytest.approx(drawn)


@pytest.mark.slow
def test_real_runs(tmp_path, monkeypatch):
    write_dataset(tmp_path, "Shapes", images=2)
    monkeypatch.chdir(tmp_path)
    small = (
        "--dataset_name Shapes --architecture resnet18 --pretrained FALSE --crop_size 32 --resize_size 40 --epochs 2 "
    )
    small += "--branch_choice given --refine none --workers 0 --methods cam"
    sweep.main(["s", "--root", "sweeps", "--space", "lr=log:1e-4:1e-1", "--trials", "2", "--", *small.split()])
    assert states(tmp_path)[0] == ["COMPLETE"] * 2
    assert json.loads((tmp_path / "sweeps/s/study.json").read_text())["criterion"] == "maxboxacc_v2"
    assert not list((tmp_path / "sweeps/s").rglob("results.json"))  # nobody looked at test


def test_slurm_gets_its_parameters(folder, monkeypatch):
    """submitit itself is not called: there is no Slurm here."""
    seen = {}

    class Executor:
        def __init__(self, folder, cluster):
            seen.update(folder=folder, cluster=cluster, jobs=[])

        def update_parameters(self, **parameters):
            seen["parameters"] = parameters

        def submit(self, function, *arguments):
            seen["jobs"].append((function, arguments))
            return type("Job", (), {"job_id": "17"})

    monkeypatch.setitem(sys.modules, "submitit", type("submitit", (), {"AutoExecutor": Executor}))
    slurm = ["--launcher", "slurm", "--processes", "3", "--slurm", "partition=gpu", "--slurm", "gpus_per_node=1"]
    sweep.main(words("--space", "lr=.1,.2", "--sampler", "grid", *slurm, *DATA))
    assert seen["parameters"] == {"name": "sweep-s", "slurm_partition": "gpu", "gpus_per_node": 1}
    assert [job[0] for job in seen["jobs"]] == [sweep.work] * 3 and states(folder)[0] == ["WAITING"] * 2
    with pytest.raises(InputError, match="give KEY=VALUE, such as --slurm partition=gpu"):
        sweep.main(words("--launcher", "slurm", "--slurm", "partition"))
