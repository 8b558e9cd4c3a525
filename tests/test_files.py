"""Files are written whole or not at all; and the other helpers on the ground floor."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, TinyNet

from wsol.classifier import eval_mode
from wsol.errors import InputError, first_few
from wsol.files import npy_bytes, replacing, write_file


def test_folders_are_created_and_content_replaced(tmp_path):
    path = tmp_path / "new" / "er" / "a.txt"
    assert write_file(path, "grüße") == path and path.read_bytes() == "grüße".encode()
    write_file(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01" and os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(28, "No space left on device"), RuntimeError("full")])
def test_after_an_error_the_old_file_is_as_it_was(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    expected = ValueError if type(error) is ValueError else InputError
    with pytest.raises(expected, match=r"a bug|cannot write .*a.txt: .*; the previous file is kept$"):
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for place in ("folder", "file/below.txt"):
        with pytest.raises(InputError, match=f"^cannot write {tmp_path / place}: [^;]+$"):
            write_file(tmp_path / place, "x")


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import os, signal; from wsol.files import replacing\n"
        f"with replacing({str(path)!r}, sync=True) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -9
    assert path.read_text() == "old"
    write_file(path, "new")  # what the killed process left is no obstacle
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


def test_npy_bytes_are_what_numpy_reads(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(np.load(write_file(tmp_path / "a.npy", npy_bytes(array))), array)


def test_first_few():
    assert [first_few("abcd"[:n]) for n in range(5)] == ["", "a", "a, b", "a, b, c", "a, b, c and 1 more"]
    assert first_few(range(5000), most=1) == "0 and 4,999 more"


def test_eval_mode_gives_each_part_its_own_mode_back():
    model = TinyNet(3).train()
    model.features[1].eval()
    before = [part.training for part in model.modules()]
    with pytest.raises(RuntimeError), eval_mode(model):
        assert not any(part.training for part in model.modules())
        raise RuntimeError
    assert [part.training for part in model.modules()] == before and set(before) == {True, False}
