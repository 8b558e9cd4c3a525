"""What once cost a person a run, a number or an afternoon: each stays mended."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, arguments, checkpoint_content, write_dataset
from PIL import Image

import main as program
from wsol.errors import InputError
from wsol.evaluation.saved_maps import scoremap_names
from wsol.run import checkpoint

QUICK = ("--methods", "cam", "--epochs", "1")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp/x", "a\nb", " a", "x" * 300])
def test_a_run_has_one_folders_name(shapes, name):
    with pytest.raises(InputError, match="--experiment_name .* is not the name of a folder"):
        program.main(arguments(shapes, *QUICK, name=name))
    assert not (shapes / "runs").exists()


def test_override_cache_spares_runs_inside(shapes):
    program.main(arguments(shapes, *QUICK, "--train_only"))
    shutil.copytree(shapes / "runs/run", shapes / "runs/run/inner")
    with pytest.raises(InputError, match="would also remove another run"):
        program.main(arguments(shapes, *QUICK, "--override_cache"))
    assert (shapes / "runs/run/inner/last_checkpoint.pth.tar").exists()


def test_a_root_that_is_a_file(shapes):
    (shapes / "file").write_text("")
    with pytest.raises(InputError, match="--root .* is a file"):
        program.main(arguments(shapes, *QUICK, "--root", str(shapes / "file")))


def test_a_broken_image_in_a_worker_process_is_one_line(shapes):
    path = shapes / "dataset/Shapes/train/1/2.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="2.png cannot be read") as caught:
        program.main(arguments(shapes, *QUICK, "--workers", "1"))
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_resuming_with_no_epochs_keeps_what_was_trained(shapes):
    program.main(arguments(shapes, "--methods", "cam", "--train_only"))
    again = ["--root", str(shapes / "runs"), "--experiment_name", "run", "--resume", "--train_only"]
    with pytest.raises(InputError, match="all 2 epochs are trained"):
        program.main([*again, "--epochs", "0"])
    program.main(again)
    assert checkpoint_content(shapes / "runs/run")["epoch"] == 2
    program.main([*again, "--epochs", "3"])
    assert checkpoint_content(shapes / "runs/run")["epoch"] == 3
    program.main(
        arguments(shapes, "--methods", "cam", "--train_only", "--epochs", "0", "--vanilla_epochs", "1", name="none")
    )
    program.main(
        ["--root", str(shapes / "runs"), "--experiment_name", "none", "--resume", "--train_only", "--epochs", "1"]
    )
    assert checkpoint_content(shapes / "runs/none")["epoch"] == 1


def test_resuming_heeds_what_may_change_and_refuses_what_may_not(shapes):
    program.main(arguments(shapes, *QUICK, "--train_only"))
    again = ["--root", str(shapes / "runs"), "--experiment_name", "run", "--resume", "--train_only"]
    for flags in (
        ["--unfreeze_layer", "all"],
        ["--model_structure", "vanilla"],
        ["--architecture", "efficientnet_lite0"],
        ["--large_feature_map"],
    ):
        with pytest.raises(InputError, match=f"--resume cannot change {flags[0]}"):
            program.main([*again, *flags])
    program.main([*again, "--epochs", "2", "--momentum", "0.5", "--weight_decay", "0", "--lr_classifier_ratio", "3"])
    (group,) = checkpoint_content(shapes / "runs/run")["optimizer"]["param_groups"]
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.0) and group["initial_lr"] == pytest.approx(3 * 0.003)
    assert "epochs: 2\n" in (shapes / "runs/run/config.yaml").read_text()


def test_a_folder_that_is_no_run_is_not_resumed(shapes):
    (shapes / "runs/run").mkdir(parents=True)
    with pytest.raises(InputError, match="no config.yaml"):
        program.main(arguments(shapes, *QUICK, "--resume"))
    program.main(arguments(shapes, *QUICK, "--train_only", name="real"))
    torch.save(
        {"state_dict": checkpoint_content(shapes / "runs/real")["state_dict"]},
        shapes / "runs/real/last_checkpoint.pth.tar",
    )
    with pytest.raises(InputError, match="has no training state"):
        program.main(["--root", str(shapes / "runs"), "--experiment_name", "real", "--resume"])


def test_a_bare_folder_is_evaluated_as_its_checkpoint_says(shapes):
    trained = program.main(arguments(shapes, *QUICK, "--model_structure", "vanilla", "--augment", "none"))
    bare = shapes / "runs/bare"
    bare.mkdir()
    shutil.copy(shapes / "runs/run/last_checkpoint.pth.tar", bare)
    argv = arguments(shapes, *QUICK, "--eval_only", name="bare")
    position = argv.index("--architecture")
    found = program.main(argv[:position] + argv[position + 2 :])  # neither network nor structure are given
    assert found["rows"] == trained["rows"] and found["architecture"] == "tiny"


@pytest.mark.parametrize("heads", ["sigmoid_clamped,softmax", "softmax,sigmoid_clamped", "softmax"])
def test_best_is_chosen_on_the_branch_whatever_rows_are_printed(shapes, heads):
    program.main(arguments(shapes, "--methods", "cam", "--lr", "1", "--epochs", "3", "--heads", heads, "--train_only"))
    lines = [json.loads(x) for x in (shapes / "runs/run/metrics.jsonl").read_text().splitlines()]
    scores = [line["maxboxacc_v2"] for line in lines if line["split"] == "val"]
    program.main(arguments(shapes, "--methods", "cam", "--lr", "1", "--epochs", "3", "--train_only", name="default"))
    usual = [json.loads(x) for x in (shapes / "runs/default/metrics.jsonl").read_text().splitlines()]
    assert scores == [line["maxboxacc_v2"] for line in usual if line["split"] == "val"]


@pytest.mark.parametrize("split", ["val", "test"])
def test_masks_without_foreground_leave_pxap_out(tmp_path, split):
    write_dataset(tmp_path, "Shapes", form="masks")
    for path in (tmp_path / "dataset/Shapes" / split).rglob("*_mask.png"):
        Image.new("L", (40, 40)).save(path)
    results = program.main(arguments(tmp_path, *QUICK))
    assert ("pxap" in results["rows"][0]) == (split == "val")
    assert checkpoint_content(tmp_path / "runs/run", "best")["epoch"] == 1


def test_class_names_are_not_formulas(shapes):
    (shapes / "metadata/Shapes/classes.txt").write_text("a$b_{$\n$\\frac\n%s\n")
    program.main(arguments(shapes, *QUICK))
    assert (shapes / "runs/run/figures/maps_cam.png").exists()


def test_maps_of_ids_that_share_a_stem_do_not_overwrite_each_other():
    assert scoremap_names(["a/x.jpg", "a/x.png", "b/x.jpg", "c"]) == ["a/x.jpg.npy", "a/x.png.npy", "b/x.npy", "c.npy"]


def test_a_network_that_answers_nan_is_refused_and_counts_as_wrong(shapes):
    program.main(arguments(shapes, *QUICK, "--train_only"))
    saved = checkpoint_content(shapes / "runs/run")
    saved["state_dict"]["fc.weight"][0, 0] = float("nan")
    del saved["checksum"]
    checkpoint.save(shapes / "runs/run/last_checkpoint.pth.tar", saved)
    with pytest.raises(InputError, match="fc.weight has NaN"):
        program.main(["--root", str(shapes / "runs"), "--experiment_name", "run", "--eval_only"])
    from wsol.evaluation.split import top_k_correct

    logits = torch.tensor([[1.0, 0.0], [float("nan"), 0.0]])
    assert top_k_correct(logits, np.array([0, 0]))["top1"].tolist() == [True, False]


def test_a_last_batch_of_one_image_does_not_stop_batch_norm(shapes):
    program.main(arguments(shapes, *QUICK, "--model_structure", "vanilla", "--batch_size", "11", "--train_only"))
    assert checkpoint_content(shapes / "runs/run")["epoch"] == 1


def test_a_checkpoint_is_looked_for_before_a_data_set_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="checkpoint nowhere does not exist"):
        program.main(["--ft_ckpt", "nowhere"])
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_loads_on_a_machine_without_the_gpu_that_wrote_it(shapes):
    program.main(arguments(shapes, *QUICK, "--train_only"))
    state = checkpoint_content(shapes / "runs/run")["optimizer"]["state"]
    assert state and all(tensor.device.type == "cpu" for tensor in state[0].values() if tensor is not None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu(shapes, monkeypatch):
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    on_gpu = program.main(arguments(shapes, *QUICK, name="gpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = program.main(arguments(shapes, *QUICK, name="cpu"))
    for a, b in zip(on_gpu["rows"], on_cpu["rows"], strict=True):
        assert a["maxboxacc_v2"] == pytest.approx(b["maxboxacc_v2"], abs=10)


def test_a_terminal_that_cannot_spell_greek_gets_the_table(tmp_path):
    write_dataset(tmp_path, "Shapes", images=1)
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "main.py"),
            "--dataset_name",
            "Shapes",
            "--crop_size",
            "32",
            "--augment",
            "none",
            "--epochs",
            "1",
            "--methods",
            "cam",
            "--workers",
            "0",
            "--cam_curve_interval",
            "0.1",
            "--pretrained",
            "FALSE",
        ],
        cwd=tmp_path,
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        timeout=300,
    )
    assert done.returncode == 0 and b"MaxBoxAccV2" in done.stdout and b"Traceback" not in done.stderr
