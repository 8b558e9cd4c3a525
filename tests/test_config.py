"""The command line: published commands, defaults, booleans, YAML, contradictions; no disk."""

import pytest
import yaml

import config as settings
from config import parse_args
from wsol.errors import InputError


def test_defaults_are_the_documented_ones():
    c = parse_args([])
    expected = dict(
        seed=42,
        data_root="dataset",
        metadata_root="metadata",
        mask_root="dataset",
        root="experiments",
        experiment_name=None,
        architecture="efficientnet_lite0",
        dataset_name="Synthetic",
        model_structure="b2",
        unfreeze_layer="fc2",
        methods=["cam", "gradcam", "gradcam++", "eigencam"],
        heads=["softmax", "softmax_clamped", "sigmoid_clamped"],
        epochs=10,
        batch_size=32,
        lr=0.003,
        lr_decay_frequency=3,
        weight_decay=5e-4,
        momentum=0.9,
        lr_classifier_ratio=10,
        pretrained=True,
        resize_size=256,
        crop_size=224,
        cam_curve_interval=0.001,
        iou_threshold_list=[30, 50, 70],
        loc_threshold=0.2,
        eval_checkpoint_type="last",
        has_grid_size=4,
        has_drop_rate=0.5,
        acol_threshold=0.7,
        spg_threshold_1h=0.7,
        spg_threshold_1l=0.01,
        spg_threshold_2h=0.5,
        spg_threshold_2l=0.05,
        spg_threshold_3h=0.7,
        spg_threshold_3l=0.1,
        adl_drop_rate=0.75,
        adl_threshold=0.9,
        cutmix_beta=1,
        cutmix_prob=1,
        alpha=0.6,
        vanilla_epochs=10,
        wandb=False,
    )
    assert {key: c[key] for key in expected} == expected
    vanilla = parse_args(["--model_structure", "vanilla"])
    assert (vanilla.lr, vanilla.unfreeze_layer, vanilla.heads) == (0.01, "all", ["softmax"])
    assert parse_args(["--dataset_name", "CUB"]).augment == "crop_flip"


def test_the_published_command_parses_literally():
    c = parse_args(
        """--dataset_name ILSVRC --architecture efficientnet_lite0 --wsol_method cam --method cam
      --experiment_name vgg16_cam_ours --wandb_name vgg16_cam_ours --root EXPERIMENTS/ILSVRC --large_feature_map FALSE
      --epoch 10 --batch_size 32 --lr_decay_frequency 3 --workers 4 --gpus 1 --lr 0.003 --weight_decay 5.00E-04
      --model_structure b2 --ft_ckpt CHECKPOINT --unfreeze_layer fc2 --project vgg16-0 --eval_only
      --eval_checkpoint_type last""".split()
    )
    assert (c.epochs, c.methods, c.weight_decay, c.gpus, c.wandb, c.eval_only) == (10, ["cam"], 5e-4, "1", True, True)


@pytest.mark.parametrize(
    "word, value", [("TRUE", True), ("yes", True), ("1", True), ("false", False), ("No", False), ("0", False)]
)
def test_booleans(word, value):
    assert parse_args(["--large_feature_map", word]).large_feature_map is value
    assert parse_args(["--large_feature_map"]).large_feature_map is True


def test_methods_and_heads():
    assert parse_args(["--method", "layercam"]).methods == ["layercam"]
    assert parse_args(["--method", "layercam", "--methods", "cam, gradcam,cam"]).methods == ["cam", "gradcam"]
    assert parse_args(["--methods", "all"]).methods == settings.all_methods()
    assert parse_args(["--heads", "sigmoid", "--t1", "--t2"]).heads == ["sigmoid", "softmax_clamped", "sigmoid_clamped"]


@pytest.mark.parametrize("layer", settings.UNFREEZE)
def test_every_published_name_of_a_layer_works(layer):
    argv = ["--unfreeze_layer", layer] + (["--epochs", "0"] if layer == "none" else [])
    assert parse_args(argv).unfreeze_layer == layer


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--architecture", "vgg61"], "unknown architecture 'vgg61'; did you mean 'vgg16'"),
        (["--architecture", "efficientnet_lite"], "did you mean 'efficientnet_lite0'"),
        (["--epochs", "-1"], "out of range"),
        (["--batch_size", "0"], "at least 1"),
        (["--lr", "nan"], "out of range"),
        (["--lr", "0"], "above 0"),
        (["--loc_threshold", "2"], "at most 1"),
        (["--large_feature_map", "maybe"], "not TRUE or FALSE"),
        (["--no_such_flag"], "unrecognized arguments: --no_such_flag"),
        (["--wsol_method", "acoll"], "invalid choice"),
    ],
)
def test_what_argparse_refuses(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(argv)
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.startswith("error: ") and len(printed.splitlines()) == 2


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--dataset_name", "../CUB"], "not the name of a folder"),
        (["--heads", ","], "--heads is empty"),
        (["--eval_only", "--train_only"], "exclude each other"),
    ],
)
def test_contradictions(argv, message):
    with pytest.raises(InputError, match=message):
        parse_args(argv)


def test_parsing_touches_no_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parse_args(["--root", "somewhere", "--override_cache", "--experiment_name", "x", "--wandb_dir", "w"])
    assert list(tmp_path.iterdir()) == []


def test_another_network_or_other_methods_choose_the_form_anew(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump({"architecture": "vgg16", "classifier_form": "cam", "epochs": 3}))
    assert parse_args(["--config", str(path), "--epochs", "4"]).classifier_form == "cam"
    for flags in (
        ["--methods", "gradcam"],
        ["--method", "gradcam"],
        ["--architecture", "inception_v3"],
        ["--ft_ckpt", "x"],
    ):
        assert parse_args(["--config", str(path), *flags]).classifier_form == "auto"
    assert (
        parse_args(["--config", str(path), "--method", "gradcam", "--classifier_form", "cam"]).classifier_form == "cam"
    )


def test_yaml_gives_defaults_and_flags_override_them(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "epochs": 3,
                "methods": ["cam", "layercam"],
                "lr": 0.5,
                "large_feature_map": True,
                "iou_threshold_list": [40, 60],
                "experiment_name": "kept out",
            }
        )
    )
    c = parse_args(["--config", str(path), "--lr", "0.25"])
    assert (c.epochs, c.methods, c.lr, c.large_feature_map) == (3, ["cam", "layercam"], 0.25, True)
    assert c.iou_threshold_list == [40, 60] and c.experiment_name is None


def test_saved_settings_read_back_as_they_were(tmp_path):
    c = parse_args(["--methods", "cam", "--weight_decay", "1e-7", "--iou_threshold_list", "10", "90", "--t1"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings.saved_settings(c)))
    again = settings.saved_settings(parse_args(["--config", str(path)]))
    assert again == settings.saved_settings(c)


@pytest.mark.parametrize(
    "text, message",
    [
        ("epochz: 3", "unknown setting 'epochz'; did you mean 'epochs'"),
        ("- a", "not a YAML mapping"),
        ("a: [", "settings.yaml"),
    ],
)
def test_bad_yaml(tmp_path, text, message):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        parse_args(["--config", str(path)])
    with pytest.raises(InputError, match="no such file"):
        parse_args(["--config", str(tmp_path / "nowhere.yaml")])


def test_bad_values_in_yaml_name_the_file(tmp_path, capsys):
    path = tmp_path / "settings.yaml"
    path.write_text("lr: fast")
    with pytest.raises(SystemExit):
        parse_args(["--config", str(path)])
    assert f"error: {path}: argument --lr: 'fast' is not a number" in capsys.readouterr().err


def test_help_mentions_every_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert all(option in printed for a in settings.make_parser()._actions for option in a.option_strings)


def test_a_setting_given_anew_takes_along_what_follows_from_it():
    saved = settings.saved_settings(parse_args(["--epochs", "7", "--iou_threshold_list", "50"]))

    def again(*argv):
        return settings.continue_run(parse_args(["--eval_only", *argv]), saved, "config.yaml")

    assert again().epochs == 7 and again().heads == saved["heads"] and again().iou_threshold_list == [50]
    assert again("--data_root", "elsewhere").mask_root == "elsewhere"
    assert again("--data_root", "elsewhere", "--mask_root", "m").mask_root == "m"
    assert again("--method", "layercam").methods == ["layercam"]
    vanilla = again("--model_structure", "vanilla")
    assert (vanilla.heads, vanilla.unfreeze_layer, vanilla.lr) == (["softmax"], "all", 0.01)
