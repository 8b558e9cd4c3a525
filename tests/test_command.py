"""How a command ends where its output cannot leave, memory is short or a file may not be touched: in one line."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_dataset

from wsol.errors import InputError
from wsol.run import command


@pytest.fixture
def maps(tmp_path) -> Path:
    """A data set and a map for each of its test images."""
    write_dataset(tmp_path, "Shapes")
    for image_id in (tmp_path / "metadata/Shapes/test/image_ids.txt").read_text().split():
        path = (tmp_path / "maps" / image_id).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.default_rng(0).random((224, 224), dtype=np.float32))
    return tmp_path


EVALUATE = [
    *(sys.executable, str(ROOT / "evaluation.py"), "--dataset_name", "Shapes", "--scoremap_root", "maps"),
    *("--cam_curve_interval", "0.1", "--workers", "0", "--out", "numbers.json"),
]


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run a line of bash; $EVALUATE is evaluation.py on the maps."""
    environment = os.environ | {"EVALUATE": " ".join(EVALUATE), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=cwd, capture_output=True, text=True, env=environment, timeout=300
    )


@pytest.mark.parametrize(
    "line, reason",
    [
        ("$EVALUATE > /dev/full", "cannot write to standard output: No space left on device"),
        ("$EVALUATE | true", "cannot write to standard output: Broken pipe"),
        ("$EVALUATE >&-", "standard output is closed"),
    ],
)
def test_output_that_cannot_leave_ends_in_one_line_and_results_are_kept(maps, line, reason):
    done = shell(line, maps)
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith(f"error: {reason}"), done.stderr
    # Closed from the start, it is refused before any work.
    assert (maps / "numbers.json").exists() == (">&-" not in line)


def test_both_outputs_closed_is_still_exit_code_2(maps):
    assert shell("$EVALUATE >&- 2>&-", maps).returncode == 2
    assert json.loads(shell("$EVALUATE > /dev/null; cat numbers.json", maps).stdout)["num_images"] == 12


def test_numbers_of_an_earlier_call_survive_a_failing_one(maps):
    (maps / "numbers.json").write_text("earlier")
    (maps / "maps/test/0/0.npy").write_bytes(b"\x93NUMPY")
    done = shell("$EVALUATE", maps)
    assert done.returncode == 2 and (maps / "numbers.json").read_text() == "earlier"


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_too_little_shared_memory_is_named(tmp_path):
    write_dataset(tmp_path, "Shapes")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    run = (
        f"mount -t tmpfs -o size=64k tmpfs /dev/shm && exec {sys.executable} {ROOT / 'main.py'} --dataset_name Shapes "
        "--architecture mobilenetv2_035 --pretrained FALSE --methods gradcam --epochs 1 --batch_size 4 --workers 1 "
        "--crop_size 64 --resize_size 64 --augment none --branch_choice given"
    )
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", run], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2, done
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "/dev/shm" in errors[0] and "--workers 0" in errors[0], done.stderr
    assert "Traceback" not in done.stderr


def ends_with(error: BaseException, capsys) -> str:
    """The line that a command ends with after this error, with exit code 2."""

    def main():
        raise error

    assert command.run(main) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_only_a_lack_of_memory_is_called_that(capsys):
    import torch

    for error in (
        MemoryError("Unable to allocate 3 TiB"),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ):
        assert ends_with(error, capsys).startswith("error: out of memory")
    for error in (
        RecursionError("maximum recursion depth exceeded"),
        NotImplementedError("Could not run 'aten::copy_' with arguments from the 'SparseCPU' backend"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ):
        with pytest.raises(type(error)):  # ours to mend, not the user's
            ends_with(error, capsys)


def test_what_may_not_be_touched_is_not_called_unwritable(capsys):
    refused = PermissionError(errno.EACCES, "Permission denied", "/data/images")
    assert ends_with(refused, capsys) == "error: no permission for /data/images: Permission denied"
    full = OSError(errno.ENOSPC, "No space left on device", "/data/x.npy")
    assert ends_with(full, capsys) == "error: cannot write /data/x.npy: No space left on device"
    assert ends_with(InputError("one line"), capsys) == "error: one line"


def test_more_resamples_than_memory_can_hold_are_refused_at_once(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "--bootstrap", "2000000000"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and "--bootstrap" in done.stderr and "out of range" in done.stderr
    assert not list(tmp_path.iterdir())
