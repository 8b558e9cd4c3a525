"""scripts/benchmark_data.py runs and prints what it promises."""

import subprocess
import sys

from conftest import ROOT


def run(tmp_path, *argv):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/benchmark_data.py"), *argv], cwd=tmp_path, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_images_and_metadata(tmp_path):
    code, out, error = run(tmp_path, "--count", "4", "--rounds", "1", "--batch_size", "3")
    assert code == 0 and "4 images, 1 rounds" in out and out.count("images/s") == 2 and "ours / bare: " in out, error
    code, out, error = run(tmp_path, "--lines", "3000")
    assert code == 0 and "3,000 images; memory before" in out and out.count(" s, peak ") == 3, error
    code, out, error = run(tmp_path, "--images", str(tmp_path))
    assert code == 1 and "no images in" in error and list(tmp_path.iterdir()) == []
