"""scripts/benchmark_fidelity.py runs, agrees with SciPy's solver, and prints a row for each percentile."""

import subprocess
import sys

from conftest import ROOT

SCRIPT = [sys.executable, str(ROOT / "scripts/benchmark_fidelity.py")]


def test_benchmark(tmp_path):
    arguments = ["--images", "2", "--side", "32", "--cells", "5"]
    done = subprocess.run([*SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 images of 32 x 32, maps from 5 x 5" in done.stdout
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert rows[-10:] == ["10", "20", "30", "40", "50", "60", "70", "80", "90", "all"]
    done = subprocess.run([*SCRIPT, "--images", "0"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--images must be at least 1, got 0" in done.stderr
