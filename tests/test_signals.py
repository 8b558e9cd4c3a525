"""Ctrl-C and SIGTERM to the process group of the real command, at random moments of its life, workers on.

WSOL_SIGNALS=100 pytest tests/test_signals.py sends more than the 8 of every test run.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, start_main, write_dataset

from wsol.run import command

COUNT = int(os.environ.get("WSOL_SIGNALS", "8"))
SECONDS_ALLOWED = 10


def start(root: Path, name: str, *more: str) -> subprocess.Popen:
    """A run with augmentation, data loading processes, validation, evaluation and figures."""
    argv = [
        *("--dataset_name", "Shapes", "--data_root", "dataset", "--metadata_root", "metadata", "--root", "runs"),
        *("--experiment_name", name, "--architecture", "mobilenetv2_035", "--pretrained", "FALSE"),
        *("--crop_size", "32", "--resize_size", "40", "--augment", "crop_flip", "--unfreeze_layer", "all"),
        *("--branch_choice", "given", "--batch_size", "4", "--epochs", "2", "--workers", "2", "--methods", "gradcam"),
        *("--cam_curve_interval", "0.05", "--bootstrap", "50"),
    ]
    return start_main(root, *argv, *more)


def left_of(group: int, seconds: float = 2.0) -> list[str]:
    """The processes of a group that still run after some seconds; those that only wait to be reaped have ended."""
    end = time.monotonic() + seconds
    while (running := _running(group)) and time.monotonic() < end:
        time.sleep(0.05)
    return running


def _running(group: int) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _parent, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                found.append(f"{folder.name} {state} {(folder / 'cmdline').read_text()}")
    return found


@pytest.fixture(scope="module")
def shapes_and_seconds(tmp_path_factory):
    """A data set, and how long an undisturbed run takes once its files are in memory and its loops compiled."""
    root = write_dataset(tmp_path_factory.mktemp("signals"), "Shapes", form="both")
    for name in ("first", "whole"):
        begun = time.monotonic()
        process = start(root, name)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    return root, time.monotonic() - begun


def test_signals_at_random_moments(shapes_and_seconds):
    root, seconds = shapes_and_seconds
    moments = random.Random(17)
    outcomes = []
    resumable = None
    for number in range(COUNT):
        sent = (signal.SIGINT, signal.SIGTERM)[number % 2]
        delay = moments.uniform(0.05, seconds)
        process = start(root, f"run{number}")
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, sent)
        begun = time.monotonic()
        out, err = process.communicate(timeout=60)
        took = time.monotonic() - begun
        case = f"case {number}: {sent.name} after {delay:.2f} of {seconds:.1f} s: {process.returncode}, {out}\n{err}"
        assert took < SECONDS_ALLOWED, case
        assert not left_of(process.pid), case
        assert "Traceback" not in err and "Exception ignored" not in err and "Error" not in err, case
        outcomes.append(process.returncode)
        if process.returncode == 0:
            assert "results and checkpoints are in" in out, case  # it was done before the signal came
            continue
        if process.returncode == -sent:  # before the first imports: nothing was begun, nothing to say
            assert delay < 1 and not out, case
            continue
        assert process.returncode == 128 + sent, case
        folder = root / "runs" / f"run{number}"
        assert [line for line in out.splitlines() if line.startswith("interrupted; ")] == [
            f"interrupted; runs/run{number} has what was finished; go on with --root runs --experiment_name "
            f"run{number} --resume"
            if (folder / "config.yaml").exists()
            else "interrupted; nothing was written"
        ], case
        assert not list(folder.rglob(".*.tmp")), case
        if (folder / "last_checkpoint.pth.tar").exists() and not (folder / "results.json").exists():
            resumable = f"run{number}"
    assert len(set(outcomes) & {130, 143}) == 2
    if resumable:
        done = start(root, resumable, "--resume")
        out, err = done.communicate(timeout=300)
        assert done.returncode == 0 and "resuming after epoch" in out, out + err


def test_a_second_signal_changes_nothing(shapes_and_seconds):
    root, seconds = shapes_and_seconds
    process = start(root, "twice")
    time.sleep(seconds / 2)
    for sent in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        os.killpg(process.pid, sent)
        time.sleep(0.02)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and out.count("interrupted; ") == 1 and "Traceback" not in err, out + err
    assert not left_of(process.pid)


SWALLOWING = """
import signal, sys, time
sys.path.insert(0, {root!r})
from wsol.run import command

def main():
    print("ready", flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            {work}
        except BaseException:
            pass

command.check_early(lambda: None)
sys.exit(command.run(main))
"""


@pytest.mark.parametrize("work", ["time.sleep(60)", "sum(range(10**6))"])
def test_a_library_that_swallows_the_signal_does_not_keep_the_command(work):
    ends_with_sigterm("-c", SWALLOWING.format(root=str(ROOT), work=work))


def ends_with_sigterm(*arguments: str, cwd: Path | None = None) -> None:
    """A Python process that prints "ready" ends in time after SIGTERM, with one line."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 143 and time.monotonic() - begun < SECONDS_ALLOWED
    assert out == "interrupted; nothing was written\n" and err == ""


IMPORTING = """
import sys
sys.path.insert(0, {root!r})
from wsol.run import command

def main():
    import slow

command.check_early({early})
sys.exit(command.run(main))
"""
SLOW = """
import time

print("ready", flush=True)
try:
    end = time.monotonic() + {seconds}
    while time.monotonic() < end:
        time.sleep(0.01)
except BaseException:
    print("raised")
    raise
"""


@pytest.mark.parametrize("early", [True, False], ids=["parse", "run"])
@pytest.mark.parametrize("seconds", [1, 60])
def test_no_exception_is_raised_in_an_import(tmp_path, early, seconds):
    """It would abort the process in compiled modules, torch's for one: exit code -6 and C++'s own words."""
    (tmp_path / "slow.py").write_text(SLOW.format(seconds=seconds))
    (tmp_path / "slow_command.py").write_text(
        IMPORTING.format(root=str(ROOT), early="main" if early else "lambda: None")
    )
    ends_with_sigterm("slow_command.py", cwd=tmp_path)


def test_ctrl_c_where_main_is_called_by_another_program():
    """Its exit code, and the caller goes on living."""

    def main():
        raise KeyboardInterrupt

    assert command.run(main) == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert threading.excepthook is threading.__excepthook__ or "pytest" in sys.modules
