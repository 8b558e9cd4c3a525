"""--preset: defaults of wsolevaluation and Dual-CAM, overridden by flags, kept by the run."""

import pytest
from conftest import arguments

import main as program
from config import parse_args, parse_evaluation_args
from wsol.run.presets import PRESETS


def test_the_defaults_of_both_projects_by_their_config_py():
    """Literally from their get_configs(), but for those that cannot work there."""
    for name in PRESETS:
        config = parse_args(["--preset", name])
        assert (config.dataset_name, config.epochs, config.batch_size, config.lr) == ("CUB", 40, 64, 0.01)
        assert (config.lr_decay_frequency, config.weight_decay, config.momentum) == (30, 1e-4, 0.9)
        assert (config.lr_classifier_ratio, config.resize_size, config.crop_size) == (10, 256, 224)
        assert (config.cam_curve_interval, config.workers, config.pretrained) == (0.001, 4, True)
        assert (config.model_structure, config.unfreeze_layer, config.large_feature_map) == ("vanilla", "all", False)
        assert config.heads == ["softmax"] and config.refine == ["none"] and config.branch_choice == "given"
    assert parse_args(["--preset", "wsolevaluation"]).methods == ["cam"]
    dualcam = parse_args(["--preset", "dualcam"])
    assert (dualcam.methods, dualcam.save_every, dualcam.gt_boxes, dualcam.seed) == (["gradcam"], 1, "first", 42)
    branch = parse_args(["--preset", "dualcam", "--model_structure", "b2", "--method", "cam"])
    assert branch.heads == ["softmax", "sigmoid_clamped"] and branch.methods == ["cam"]
    assert parse_args([]).epochs == 10  # without it nothing changes


def test_flags_and_settings_files_override_a_preset(tmp_path):
    (tmp_path / "x.yaml").write_text("preset: dualcam\nepochs: 7\n")
    config = parse_args(["--config", str(tmp_path / "x.yaml"), "--batch_size", "3"])
    assert (config.preset, config.epochs, config.batch_size, config.lr_decay_frequency) == ("dualcam", 7, 3, 30)


def test_evaluation_has_it_too():
    given = ["--scoremap_root", "x", "--dataset_name", "CUB"]
    config = parse_evaluation_args([*given, "--preset", "wsolevaluation"])
    assert (config.split, config.cam_curve_interval) == ("val", 0.01)
    assert parse_evaluation_args([*given, "--preset", "dualcam", "--split", "test"]).split == "test"
    assert parse_evaluation_args(given).split == "test"


def test_unfreeze_layer_none_as_the_authors_write_it():
    assert parse_args(["--unfreeze_layer", "None", "--epochs", "0"]).unfreeze_layer == "none"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_with_a_preset_and_its_evaluation(shapes, preset, capsys):
    flags = [word for word in arguments(shapes) if word not in ("--branch_choice", "given", "--refine", "none")]
    results = program.main([*flags, "--preset", preset])
    out = capsys.readouterr().out
    assert f"preset: {preset}" in out
    assert [row["method"] for row in results["rows"]] == PRESETS[preset]["methods"]
    assert results["config"]["preset"] == preset and results["config"]["weight_decay"] == 1e-4
    kept = {path.name for path in (shapes / "runs/run").glob("*.pth.tar")}
    each = {"1_checkpoint.pth.tar", "2_checkpoint.pth.tar"} if preset == "dualcam" else set()
    assert kept == {"best_checkpoint.pth.tar", "last_checkpoint.pth.tar"} | each
    evaluate = ["--root", str(shapes / "runs"), "--experiment_name", "run", "--eval_only", "--preset", preset]
    again = program.main([*evaluate, "--eval_checkpoint_type", "last"])
    assert again["rows"][0]["maxboxacc_v2"] == results["rows"][0]["maxboxacc_v2"]
    if preset == "dualcam":
        program.main([*evaluate, "--eval_checkpoint_type", "1"])
