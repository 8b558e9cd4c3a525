"""--box_v2_metric and --multi_*: the figure that a run is judged by; --eval_checkpoint_type; settings in vain."""

import itertools
import json

import numpy as np
import pytest
from conftest import arguments, checkpoint_content, metrics_without_times, write_dataset

import main as program
from config import idle, parse_args
from wsol.errors import InputError
from wsol.metrics.box_metrics import HEADLINES


def test_the_halves_beat_the_whole():
    """Where given; wsolevaluation overwrites them with --box_v2_metric, so that they have no effect."""
    for v2, contour, iou in itertools.product((None, True, False), repeat=3):
        flags = {"box_v2_metric": v2, "multi_contour_eval": contour, "multi_iou_eval": iou}
        words = [word for name, value in flags.items() if value is not None for word in (f"--{name}", str(value))]
        config = parse_args(words)
        whole = v2 is not False
        assert config.multi_contour_eval == (whole if contour is None else contour)
        assert config.multi_iou_eval == (whole if iou is None else iou)


@pytest.mark.parametrize("contour, iou", HEADLINES)
def test_the_headline_chooses_and_is_shown(tmp_path, capsys, contour, iou):
    """In each of the four combinations: on val, in results.json and in the table."""
    write_dataset(tmp_path, "Shapes", images=5)
    flags = ["--multi_contour_eval", str(contour), "--multi_iou_eval", str(iou), "--methods", "gradcam"]
    results = program.main(arguments(tmp_path, *flags, "--branch_choice", "val"))
    name = HEADLINES[contour, iou]
    assert results["localization"] == name == results["branch"]["criterion"]
    for row in results["rows"]:
        known = {
            "maxboxacc_v2": np.mean(list(row["maxboxacc"].values())),
            "maxboxacc_v1": row["gt_loc_best"],
            "maxboxacc_50": row["maxboxacc"][50],
            "maxboxacc_single": row["localization"],  # against brute force in test_wsolevaluation.py
        }
        assert row["localization"] == pytest.approx(known[name])
    lines = metrics_without_times(tmp_path / "runs/run")
    assert all(name in line for line in lines if line["split"] == "val")
    best = max(line[name] for line in lines if line["split"] == "val" and line["stage"] == "b2")
    assert checkpoint_content(tmp_path / "runs/run", "best")["best"] == pytest.approx(best, rel=1e-5)
    heading = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("method") and "GT-Loc" in line
    )
    titles = {"maxboxacc_v1": "MaxBoxAcc†", "maxboxacc_50": "(all contours)†", "maxboxacc_single": "(largest contour)†"}
    assert name == "maxboxacc_v2" or titles[name] in heading


def test_the_two_further_figures_against_curves_of_both_kinds():
    """One image whose largest contour misses the object that a smaller one hits."""
    from wsol.metrics import BoxAccuracy

    scoremap = np.zeros((1, 224, 224))
    scoremap[0, 10:110, 10:110] = 1  # the larger: no object
    scoremap[0, 150:190, 150:190] = 1
    metric = BoxAccuracy(0.1, (30, 70))
    metric.update(scoremap, [np.array([[150, 150, 190, 214]])])  # IoU 40 / 65
    multi, single = (metric.curve(kind, [50])["maxboxacc"][50].max() for kind in ("multi", "single"))
    assert (multi, single) == (100, 0)
    assert {delta: curve.max() for delta, curve in metric.curve("multi")["maxboxacc"].items()} == {30: 100, 70: 0}


def test_a_training_evaluates_the_checkpoint_that_it_is_asked_for(shapes):
    flags = ["--save_every", "1", "--epochs", "3", "--lr", "0.3", "--methods", "gradcam"]
    for name in ("last", "best", "2"):
        results = program.main(arguments(shapes, *flags, "--eval_checkpoint_type", name, name=f"of-{name}"))
        again = program.main(
            [
                "--root",
                str(shapes / "runs"),
                "--experiment_name",
                "of-last",
                "--eval_only",
                "--eval_checkpoint_type",
                name,
            ]
        )
        assert again["rows"] == results["rows"] and again["weights"] == results["weights"]
        trained = checkpoint_content(shapes / "runs/of-last", name)["training"]
        assert [{**entry, "settings": None} for entry in results["training"]] == [
            {**entry, "settings": None} for entry in trained
        ]
    saved = [json.loads((shapes / f"runs/of-{name}/results.json").read_text())["weights"] for name in ("last", "2")]
    assert saved[0] != saved[1]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--eval_checkpoint_type", "5"], "with --save_every 0 does not keep that checkpoint; it keeps last, best$"),
        (["--eval_checkpoint_type", "3", "--save_every", "2"], "keeps last, best and every 2th epoch"),
        (["--eval_checkpoint_type", "12", "--save_every", "2"], "a run of 10 epochs"),
        (["--eval_checkpoint_type", "best", "--epochs", "0"], "it keeps last$"),
    ],
)
def test_a_checkpoint_that_will_not_be_kept_is_refused_at_once(flags, message):
    with pytest.raises(InputError, match=message):
        parse_args(flags)


def test_settings_without_effect_are_named():
    said = {
        "--init_weight FALSE": "init_weight",
        "--has_drop_rate .3": "has_drop_rate",
        "--alpha .2": "alpha",
        "--method cam --methods gradcam,cam": "method",
        "--refine none --affinity_power 3": "affinity_power",
        "--model_structure vanilla --c2 cross_entropy": "c2",
        "--model_structure vanilla --sigmoid_init random": "sigmoid_init",
        "--model_structure b1 --vanilla_lr .2": "vanilla_lr",
        "--ft_ckpt x --vanilla_epochs 3": "vanilla_epochs",
        "--augment none --resize_size 300": "resize_size",
        "--wandb off --project x": "project",
        "--train_only --eval_checkpoint_type best": "eval_checkpoint_type",
    }
    for flags, name in said.items():
        assert list(idle(parse_args(flags.split()))) == [name], flags
    for flags in (
        "",
        "--init_weight TRUE",
        "--has_drop_rate .3 --wsol_method has",
        "--alpha .2 --methods finercam",
        "--method cam",
        "--affinity_power 3",
        "--model_structure b1 --c2 cross_entropy",
        "--vanilla_lr .2",
        "--resize_size 300 --augment crop_flip",
        "--project x",
    ):
        assert not idle(parse_args(flags.split())), flags


def test_repeating_a_run_by_its_settings_says_nothing(shapes, capsys):
    program.main(arguments(shapes, "--model_structure", "vanilla", "--methods", "gradcam"))
    capsys.readouterr()
    program.main(["--config", str(shapes / "runs/run/config.yaml"), "--root", str(shapes / "runs")])
    assert "has no effect" not in capsys.readouterr().out
