"""scripts/benchmark_evaluation.py runs, prints what it promises, and compares the numbers as well as the times."""

import re
import subprocess
import sys

from conftest import ROOT

SCRIPT = [sys.executable, str(ROOT / "scripts/benchmark_evaluation.py")]


def test_benchmark(tmp_path):
    done = subprocess.run(
        [*SCRIPT, "--maps", "3", "--side", "32", "--interval", "0.01"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "3 maps of 32 x 32 from 14 x 14, 101 thresholds" in done.stdout
    for title in ("boxes: OpenCV", "masks: np.histogram", r"threads"):
        assert re.search(title, done.stdout)
    assert len(re.findall(r"^ +\d+ +[\d.]+ +[\d.]+$", done.stdout, re.MULTILINE)) >= 1  # a line for one thread at least
    done = subprocess.run([*SCRIPT, "--maps", "0"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--maps: at least 1, got 0" in done.stderr
    assert not list(tmp_path.iterdir())
