"""The commands of wsolevaluation and Dual-CAM, as typed and with --preset, on folders shaped like their data sets."""

import numpy as np
import pytest
from published import (
    DUALCAM_EVALUATE,
    DUALCAM_TRAIN,
    WSOLEVALUATION_EVALUATE,
    WSOLEVALUATION_TRAIN,
    write_published,
)

import evaluation
import main as program
from config import make_parser

# Random weights where theirs are downloaded; small images and one epoch; in the test marked slow, theirs and two.
SMALL = "--pretrained FALSE --resize_size 104 --crop_size 96 --epochs 1 --bootstrap 0"
WHOLE = "--pretrained FALSE --epochs 2"
VAL_IMAGES = {"OpenImages": 5}  # wsolevaluation's command asks for five of each class
# Flags of both projects' get_configs().
FLAGS = (
    "seed experiment_name override_cache workers dataset_name data_root metadata_root mask_root proxy_training_set "
    "num_val_sample_per_class architecture epochs pretrained cam_curve_interval resize_size crop_size "
    "multi_contour_eval multi_iou_eval iou_threshold_list eval_checkpoint_type box_v2_metric batch_size lr "
    "lr_decay_frequency lr_classifier_ratio momentum weight_decay large_feature_map wsol_method has_grid_size "
    "has_drop_rate acol_threshold spg_threshold_1h spg_threshold_1l spg_threshold_2h spg_threshold_2l "
    "spg_threshold_3h spg_threshold_3l adl_drop_rate adl_threshold cutmix_beta cutmix_prob gpus root wandb project "
    "wandb_dir last_layer unfreeze_layer model_structure eval_only train_only init_weight debug c1 c2 t1 t2 wandb_name "
    "ft_ckpt method loc_threshold alpha methods"
)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return tmp_path


def write_data(root, command):
    name = command.split("--dataset_name", 1)[1].replace("=", " ").split()[0]
    write_published(root, name, images_of_val=VAL_IMAGES.get(name, 1))


def run(command, preset, sizes):
    """The results of a command as typed, or with a preset."""
    return program.main(f"{command} {f'--preset {preset}' if preset else ''} {sizes}".split())


def test_no_flag_of_theirs_is_unknown():
    known = {action.dest for action in make_parser()._actions}
    assert set(FLAGS.split()) <= known


def wsolevaluation_trains(root, preset, sizes):
    write_data(root, WSOLEVALUATION_TRAIN)
    results = run(WSOLEVALUATION_TRAIN, preset, sizes)
    config = results["config"]
    assert config["weight_decay"] == 5e-4 and config["num_val_sample_per_class"] == 5
    assert results["localization"] == "pxap" and "pxap" in results["rows"][0]
    if preset is None:
        assert config["model_structure"] == "b2" and len(results["rows"]) > 1
    else:  # the whole network with one head, explained by CAM
        assert (config["model_structure"], config["unfreeze_layer"]) == ("vanilla", "all")
        assert [(row["method"], row["head"]) for row in results["rows"]] == [("cam", "softmax")]
        folder = root / "train_log/OpenImages_vgg16_CAM"
        assert {path.name for path in folder.glob("*.tar")} == {"best_checkpoint.pth.tar", "last_checkpoint.pth.tar"}


def test_wsolevaluation_s_training(tmp_path):
    wsolevaluation_trains(tmp_path, "wsolevaluation", SMALL)


@pytest.mark.parametrize("preset", [None, "wsolevaluation", "dualcam"])
def test_wsolevaluation_s_evaluation(tmp_path, preset, capsys):
    """A folder of maps for val, as its README has it."""
    write_data(tmp_path, WSOLEVALUATION_EVALUATE)
    for image_id in (tmp_path / "metadata/CUB/val/image_ids.txt").read_text().split():
        path = tmp_path / "train_log/scoremaps" / f"{image_id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        scoremap = np.zeros((224, 224))
        scoremap[60:160, 60:160] = 0.7
        np.save(path, scoremap)
    found = evaluation.main(f"{WSOLEVALUATION_EVALUATE} {f'--preset {preset}' if preset else ''}".split())
    assert found["config"]["cam_curve_interval"] == 0.01 and found["split"] == "val"
    assert f"localization: {found['rows'][0]['maxboxacc_v2']}" in capsys.readouterr().out


def dualcam_trains(root, name, preset, sizes):
    command = DUALCAM_TRAIN[name]
    write_data(root, command)
    if "--ft_ckpt" in command:
        twin = {"CUB 1-2": "CUB 1-1", "CARS 1-4": "CARS 1-3", "OpenImages 3-2": "OpenImages 3-1"}[name]
        run(DUALCAM_TRAIN[twin], preset, f"{sizes} --train_only")
    results = run(command, preset, sizes)
    config = results["config"]
    branch = config["model_structure"] == "b2"
    assert config["unfreeze_layer"] != "all" if branch else config["unfreeze_layer"] == "all"
    methods = {row["method"] for row in results["rows"]}
    assert methods == {config["methods"][0]} and len(config["methods"]) == 1
    heads = [row["head"] + "_clamped" * row["clamped"] for row in results["rows"] if row["refine"] == "none"]
    of_ours = ["softmax", "softmax_clamped", "sigmoid_clamped"] if branch else ["softmax"]
    assert heads == (of_ours if preset is None else [head for head in of_ours if head != "softmax_clamped"])
    kept = len(list((root / "experiments" / config["experiment_name"]).glob("[0-9]*_checkpoint.pth.tar")))
    assert kept == (config["epochs"] if preset else 0)
    return results


@pytest.mark.parametrize(
    "name, preset",
    [
        ("CUB 1-2", "dualcam"),
        pytest.param("OpenImages 3-2", "dualcam", marks=pytest.mark.slow),
        ("ILSVRC 2-4", "dualcam"),
    ],
)
def test_dualcam_s_training(tmp_path, name, preset):
    dualcam_trains(tmp_path, name, preset, SMALL)


def dualcam_evaluates(root, preset, sizes):
    results = dualcam_trains(root, "CUB 1-1", preset, sizes)
    again = run(DUALCAM_EVALUATE, preset, "")
    assert again["weights"] == results["weights"] and again["rows"] == results["rows"]
    if preset == "dualcam":
        run(DUALCAM_EVALUATE.replace("type last", "type 1"), preset, "")


def test_dualcam_s_evaluation(tmp_path):
    dualcam_evaluates(tmp_path, "dualcam", SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wsolevaluation", *DUALCAM_TRAIN, "evaluation"])
@pytest.mark.parametrize("with_preset", [False, True])
def test_as_typed(tmp_path, name, with_preset):
    """At 224 x 224, on one image of each of two classes."""
    if name == "wsolevaluation":
        wsolevaluation_trains(tmp_path, "wsolevaluation" if with_preset else None, WHOLE)
    elif name == "evaluation":
        dualcam_evaluates(tmp_path, "dualcam" if with_preset else None, WHOLE)
    else:
        dualcam_trains(tmp_path, name, "dualcam" if with_preset else None, WHOLE)
