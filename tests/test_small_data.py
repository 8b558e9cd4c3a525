"""The small-data study: its runs, once each, and what is made of them."""

import csv
import os
import subprocess
import sys

import pytest
from conftest import ROOT, arguments
from PIL import Image

import main as program
from wsol.errors import InputError

sys.path.insert(0, str(ROOT / "scripts"))
import small_data


def test_curves_and_tables(shapes, capsys):
    for proportion in (50, 100):
        for seed in (1, 2):
            flags = ["--proportion", str(proportion), "--seed", str(seed), "--methods", "gradcam,broadcam"]
            flags += ["--model_structure", "vanilla", "--unfreeze_layer", "fc", "--epochs", "1"]
            program.main(arguments(shapes, *flags, name=f"Shapes-{proportion}-{seed}"))
    (shapes / "runs/Shapes-20-1").mkdir()  # unfinished
    capsys.readouterr()
    small_data.main([str(shapes / "runs"), "--dataset_name", "Shapes"])
    table = (shapes / "runs/small_data.md").read_text()
    assert table in capsys.readouterr().out and table.count("±") == 2 * (2 + 2 + 1)
    assert ("| 50 %" in table and "| broadcam no head" in table) or "| broadcam" in table
    with open(shapes / "runs/small_data.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8 and {line["row"] for line in lines} == {"gradcam softmax", "broadcam"}
    values = [float(line["pxap"]) for line in lines if line["row"] == "broadcam" and line["proportion"] == "50.0"]
    assert len(values) == 2 and f"{sum(values) / 2:.1f} ±" in table
    assert Image.open(shapes / "runs/small_data.png").size[0] > 1000
    with pytest.raises(InputError, match="has no run of CUB with results"):
        small_data.main([str(shapes / "runs"), "--dataset_name", "CUB"])


@pytest.mark.slow
def test_the_script_goes_on_where_it_was(shapes):
    env = os.environ | {"PYTHON": sys.executable, "DATASET": "Shapes", "DATA": str(shapes / "dataset"), "SEEDS": "1"}
    env |= {"METADATA": str(shapes / "metadata"), "ROOT": str(shapes / "runs"), "PROPORTIONS": "50 100"}
    env |= {"METHODS": "gradcam,broadcam"}
    argv = ["bash", str(ROOT / "scripts/small_data.sh"), "--architecture", "mobilenetv2_035", "--pretrained", "FALSE"]
    argv += [
        "--crop_size",
        "32",
        "--resize_size",
        "40",
        "--epochs",
        "1",
        "--workers",
        "0",
        "--large_feature_map",
        "FALSE",
    ]
    for again in (False, True):
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("has results") == 2 * again
    assert (shapes / "runs/small_data.png").is_file()
