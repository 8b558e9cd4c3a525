"""How the sigmoid branch is trained: its loss and its weights' sign, worked by hand and as settings of the command."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import Killed, TinyNet, arguments, checkpoint_content, killed_after, metrics_without_times, write_dataset
from torch import nn

import main as program
from config import branch_setting, parse_args
from wsol import dualize, training
from wsol.backbones import ARCHITECTURES, Architecture
from wsol.branch import CANDIDATES, BranchSetting
from wsol.classifier import Classifier, Output, linear_layers
from wsol.dual_head import make_nonnegative
from wsol.errors import InputError
from wsol.losses import OBJECTIVES, branch_loss, class_balanced_bce, cross_entropy
from wsol.run import tables

BCE = "binary_cross_entropy"
QUICK = ("--methods", "cam", "--bootstrap", "0")
CONSTRAINED = ("--branch_weights", "nonnegative", "--branch_lambda", "0.1")


# ------------------------------------------------------------------- by hand


def test_loss_and_gradient_of_lambda_a_tenth_by_hand():
    # K = 3, so a positive counts twice. Logits 0, ln 3, 0: softmax 1/5, 3/5, 1/5; sigmoid 1/2, 3/4, 1/2. Class 0.
    logits = torch.tensor([[0.0, math.log(3), 0.0]], dtype=torch.float64, requires_grad=True)
    loss = branch_loss(BCE, 0.1)(logits, torch.tensor([0]))
    loss.backward()
    bce = (2 * math.log(2) + math.log(4) + math.log(2)) / 3
    assert loss.item() == pytest.approx(math.log(5) + 0.1 * bce)
    softmax, sigmoid = np.array([1 / 5 - 1, 3 / 5, 1 / 5]), np.array([2 * (1 / 2 - 1), 3 / 4, 1 / 2]) / 3
    assert logits.grad[0].numpy() == pytest.approx(softmax + 0.1 * sigmoid)


def test_infinity_is_c2_alone_and_zero_cross_entropy_alone():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    assert branch_loss(BCE, math.inf) is class_balanced_bce and branch_loss(BCE, 0.0) is cross_entropy
    output = Output(torch.randn(6, 4), logits)
    objective = OBJECTIVES["b2"]("cross_entropy", BCE, 0.5)(output, labels)
    expected = cross_entropy(output.logits, labels) + cross_entropy(logits, labels)
    assert objective.item() == pytest.approx((expected + 0.5 * class_balanced_bce(logits, labels)).item())


@pytest.mark.parametrize("c2_weight", [math.inf, 0.1, 0.0])
def test_one_projected_step_by_hand(c2_weight):
    """The weights after one step of a linear head are max(0, W - lr dL/dW), dL/dW from the logits' gradients."""
    head = nn.Linear(2, 3).double()
    start = torch.tensor([[0.5, -0.5], [0.02, 1.0], [-1.0, 0.1]], dtype=torch.float64)
    features, label = torch.tensor([[1.0, 2.0]], dtype=torch.float64), 0
    with torch.no_grad():
        head.weight.copy_(start)
        head.bias.copy_(torch.tensor([0.1, -0.2, -0.3]))
    make_nonnegative(head)
    clamped, bias = start.clamp(min=0).numpy(), head.bias.detach().clone().numpy()
    assert np.array_equal(head.weight.detach().numpy(), clamped)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    branch_loss(BCE, c2_weight)(head(features), torch.tensor([label])).backward()
    optimizer.step()
    make_nonnegative(head)

    z = clamped @ np.array([1.0, 2.0]) + bias
    one_hot = np.eye(3)[label]
    softmax = np.exp(z) / np.exp(z).sum() - one_hot
    p = 1 / (1 + np.exp(-z))
    sigmoid = np.where(one_hot > 0, 2 * (p - 1), p) / 3
    gradient = sigmoid if math.isinf(c2_weight) else softmax + c2_weight * sigmoid
    expected = np.maximum(clamped - 0.5 * np.outer(gradient, [1.0, 2.0]), 0)
    assert (expected == 0).any() and (expected > 0).any()
    assert head.weight.detach().numpy() == pytest.approx(expected)
    assert head.bias.detach().numpy() == pytest.approx(bias - 0.5 * gradient) and head.bias.min() < 0


def test_in_an_mlp_head_the_last_linear_layer_is_projected():
    head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    first, last = (layer.weight.detach().clone() for layer in linear_layers(head))
    make_nonnegative(head)
    assert torch.equal(head[0].weight, first) and torch.equal(head[2].weight, last.clamp(min=0))


def test_settings_as_records_and_text():
    for setting in (BranchSetting(), BranchSetting("nonnegative", 0.1)):
        assert BranchSetting.from_record(json.loads(json.dumps(setting.record))) == setting
    assert BranchSetting().record == {"weights": "free", "lambda": "inf", "mu": 0.0}
    assert str(BranchSetting("nonnegative", 0.1, 3.0)) == "nonnegative lambda 0.1 mu 3"
    assert BranchSetting.from_record({"weights": "free", "lambda": 0.1}) == BranchSetting("free", 0.1)  # older files


# ------------------------------------------------------------------- the command line


def test_published_commands_keep_the_papers_recipe_and_others_choose():
    config = parse_args(["--ft_ckpt", "theirs.pth.tar"])
    assert branch_setting(config) == BranchSetting() == CANDIDATES[0] and config.branch_choice == "given"
    assert config.refine == ["none"] and config.affinity_choice == "given"
    config = parse_args([])
    assert branch_setting(config) == BranchSetting() and config.branch_choice == config.affinity_choice == "val"
    assert config.refine == ["none", "affinity"] and config.refined_methods == ["cam"]
    for flags in (["--branch_lambda", "0"], ["--branch_mu", "3"], ["--branch_weights", "nonnegative"]):
        config = parse_args(flags)
        assert branch_setting(config) != BranchSetting() and config.branch_choice == "given"
    for flags in (["--model_structure", "vanilla"], ["--model_structure", "b1"]):
        config = parse_args(flags)
        assert config.branch_choice == config.affinity_choice == "given" and config.refine == ["none"]
    assert parse_args(["--epochs", "0"]).branch_choice == "given"  # there is nothing to choose


@pytest.mark.parametrize("structure", ["vanilla", "b1"])
@pytest.mark.parametrize(
    "flags", [["--branch_weights", "nonnegative"], ["--branch_lambda", "0.1"], ["--branch_mu", "3"]]
)
def test_a_structure_without_a_branch_refuses(structure, flags):
    with pytest.raises(InputError, match=f"{flags[0]} .* needs --model_structure b2, not {structure}"):
        parse_args(["--model_structure", structure, *flags])


@pytest.mark.parametrize("value", ["-0.1", "nan", "-inf", "much"])
def test_lambda_is_a_number_from_zero_to_infinity(value, capsys):
    with pytest.raises(SystemExit):
        parse_args([f"--branch_lambda={value}"])
    assert "--branch_lambda" in capsys.readouterr().err


# ------------------------------------------------------------------- whole runs


def test_the_default_is_the_same_run_with_and_without_the_flags(shapes):
    program.main(arguments(shapes, "--train_only", name="default"))
    program.main(
        arguments(
            shapes,
            "--train_only",
            "--branch_mu",
            "0",
            "--branch_weights",
            "free",
            "--branch_lambda",
            "inf",
            name="named",
        )
    )
    default, named = (checkpoint_content(shapes / "runs" / name)["state_dict"] for name in ("default", "named"))
    assert all(torch.equal(default[key], named[key]) for key in default) and default["fc2.weight"].min() < 0


def test_trained_weights_are_the_used_ones(shapes):
    heads = "softmax,softmax_clamped,sigmoid,sigmoid_clamped"
    results = program.main(arguments(shapes, *CONSTRAINED, "--methods", "cam,gradcam,layercam", "--heads", heads))
    saved = checkpoint_content(shapes / "runs/run")
    weights = saved["state_dict"]["fc2.weight"]
    assert weights.min() == 0 and weights.max() > 0
    assert not torch.equal(weights, saved["state_dict"]["fc.weight"].clamp(min=0))
    assert results["branch"] == saved["branch"] == {"setting": {"weights": "nonnegative", "lambda": 0.1, "mu": 0.0}}
    assert json.loads((shapes / "runs/run/results.json").read_text())["branch"] == results["branch"]
    rows = {(row["method"], row["head"], row["clamped"]): row for row in results["rows"]}
    for method in ("cam", "gradcam"):
        assert rows[method, "sigmoid", True] == rows[method, "sigmoid", False] | {"clamped": True}
    line = "cam, gradcam: the rows sigmoid and sigmoid, clamped are equal, because the branch has no negative weights"
    assert line in tables.summary(results).splitlines()
    again = program.main(["--root", str(shapes / "runs"), "--experiment_name", "run", "--eval_only"])
    assert again["rows"] == results["rows"] and again["branch"] == results["branch"]
    assert again["config"] == results["config"]


def test_the_summary_says_nothing_where_a_row_is_missing_or_differs():
    plain = {"method": "cam", "head": "sigmoid", "clamped": False, "pxap": 1.0}
    setting = {"branch": {"setting": BranchSetting("nonnegative").record}}
    clamped = plain | {"clamped": True}
    assert tables._unchanged_by_clamping({"rows": [plain, clamped], **setting}) == ["cam"]
    assert tables._unchanged_by_clamping({"rows": [plain, clamped | {"pxap": 2.0}], **setting}) == []
    assert tables._unchanged_by_clamping({"rows": [clamped], **setting}) == []
    assert (
        tables._unchanged_by_clamping({"rows": [plain, clamped], "branch": {"setting": BranchSetting().record}}) == []
    )
    assert tables._unchanged_by_clamping({"rows": [plain, clamped]}) == []


def test_the_vanilla_stage_of_a_constrained_run_can_be_evaluated(shapes):
    program.main(arguments(shapes, *CONSTRAINED, *QUICK))
    command = ["--root", str(shapes / "runs"), "--experiment_name", "run", "--eval_only", "--eval_checkpoint_type"]
    results = program.main([*command, "vanilla_last"])
    assert "branch" not in results and results["config"]["branch_weights"] == "free"


def test_a_run_of_no_epochs_starts_from_the_clamped_clone(shapes):
    program.main(arguments(shapes, *CONSTRAINED, "--epochs", "0", "--vanilla_epochs", "1", "--train_only"))
    saved = checkpoint_content(shapes / "runs/run")["state_dict"]
    assert torch.equal(saved["fc2.weight"], saved["fc.weight"].clamp(min=0))
    assert torch.equal(saved["fc2.bias"], saved["fc.bias"])


def test_cached_and_uncached_features_give_the_same_weights(shapes, monkeypatch):
    program.main(arguments(shapes, *CONSTRAINED, "--augment", "none", "--train_only", name="cached"))
    monkeypatch.setattr(training, "features_can_be_cached", lambda *_: False)
    program.main(arguments(shapes, *CONSTRAINED, "--augment", "none", "--train_only", name="plain"))
    a, b = (checkpoint_content(shapes / "runs" / name)["state_dict"] for name in ("cached", "plain"))
    assert all(torch.allclose(a[key], b[key], atol=1e-5) for key in a)
    assert a["fc2.weight"].min() >= 0 and b["fc2.weight"].min() >= 0


@pytest.mark.parametrize("writes", [1, 3])
def test_a_killed_run_resumes_to_the_same_branch(shapes, monkeypatch, writes):
    settings = (*CONSTRAINED, "--augment", "crop_flip", "--train_only", "--vanilla_epochs", "1")
    program.main(arguments(shapes, *settings, name="whole"))
    killed_after(monkeypatch, writes, *arguments(shapes, *settings, name="cut"))
    again = ["--root", str(shapes / "runs"), "--experiment_name", "cut", "--resume", "--train_only"]
    for flags in (["--branch_weights", "free"], ["--branch_lambda", "inf"]):
        with pytest.raises(InputError, match=f"--resume cannot change {flags[0]}"):
            program.main([*again, *flags])
    program.main(again)
    whole, cut = (checkpoint_content(shapes / "runs" / name) for name in ("whole", "cut"))
    assert all(torch.equal(whole["state_dict"][key], cut["state_dict"][key]) for key in whole["state_dict"])
    assert whole["branch"] == cut["branch"] and whole["state_dict"]["fc2.weight"].min() >= 0
    assert metrics_without_times(shapes / "runs/whole") == metrics_without_times(shapes / "runs/cut")


def test_a_run_without_the_settings_on_record_had_the_defaults(shapes):
    """A run that is older than the settings cannot be resumed with others."""
    program.main(arguments(shapes, "--train_only"))
    path = shapes / "runs/run/config.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("branch_")))
    again = ["--root", str(shapes / "runs"), "--experiment_name", "run", "--resume", "--train_only"]
    with pytest.raises(InputError, match="--resume cannot change --branch_lambda to 0.1: .* has inf"):
        program.main([*again, "--branch_lambda", "0.1"])
    program.main(again)


@pytest.fixture
def mlp_architecture():
    """`--architecture mlp`: the tiny network with a head of two linear layers."""

    def builder(options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = TinyNet()
            network.fc = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 1000))
            return Classifier(network, "fc", target_layer="features.6", head_is_new=not options.pretrained)

    ARCHITECTURES["mlp"] = Architecture("mlp", builder)
    yield
    del ARCHITECTURES["mlp"]


def test_an_mlp_head(shapes, mlp_architecture):
    settings = ("--architecture", "mlp", "--methods", "gradcam", "--bootstrap", "0")
    results = program.main(arguments(shapes, *CONSTRAINED, *settings))
    saved = checkpoint_content(shapes / "runs/run")["state_dict"]
    assert saved["fc2.2.weight"].min() >= 0 and saved["fc2.0.weight"].min() < 0
    assert results["branch"]["setting"]["weights"] == "nonnegative"


def test_library_users_project_after_each_step():
    dual = dualize(TinyNet(5)).train()
    make_nonnegative(dual.sigmoid_head)
    optimizer = training.make_optimizer(dual, lr=0.1, classifier_ratio=10, momentum=0.9, weight_decay=1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        branch_loss(BCE, 0.1)(dual(torch.randn(4, 3, 32, 32)).sigmoid_logits, torch.arange(4)).backward()
        optimizer.step()
        make_nonnegative(dual.sigmoid_head)
    assert dual.sigmoid_head.weight.min() >= 0 and dual.softmax_head.weight.min() < 0


# ------------------------------------------------------------------- chosen on val

CHOICE = ("--branch_choice", "val", "--augment", "none", "--vanilla_epochs", "1", "--cam_curve_interval", "0.1", *QUICK)
STAGES = [f"b2 {setting}" for setting in CANDIDATES]


def val_figures(monkeypatch, by_setting: dict[BranchSetting, float]) -> None:
    """Let the val split say that each setting's branch localizes this well; others have 0."""
    names = {f"{setting}_clamped": figure for setting, figure in by_setting.items()}
    monkeypatch.setattr(program, "val_figures", lambda *more: [names.get(head, 0.0) for head in more[-1]])


def test_the_best_on_val_is_kept_and_equals_a_run_with_its_setting(shapes, monkeypatch):
    val_figures(monkeypatch, {CANDIDATES[2]: 60.0, CANDIDATES[5]: 60.0, CANDIDATES[0]: 59.0})
    chosen = program.main(arguments(shapes, *CHOICE, name="chosen"))
    monkeypatch.undo()
    assert chosen["branch"]["setting"] == CANDIDATES[2].record == {"weights": "nonnegative", "lambda": 0.1, "mu": 0.0}
    assert "branch_choice" in chosen["config"]
    given = program.main(arguments(shapes, *CONSTRAINED, *CHOICE[2:], name="given"))
    a, b = (checkpoint_content(shapes / "runs" / name) for name in ("chosen", "given"))
    assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])
    assert chosen["rows"] == given["rows"] and chosen["classification"] == given["classification"]


def test_every_candidate_is_reported(shapes, monkeypatch):
    results = program.main(arguments(shapes, *CHOICE))
    folder = shapes / "runs/run"
    branch = json.loads((folder / "results.json").read_text())["branch"]
    assert branch == results["branch"] == checkpoint_content(folder)["branch"]
    assert [candidate["setting"] for candidate in branch["candidates"]] == [setting.record for setting in CANDIDATES]
    figures = [candidate["val"][branch["criterion"]] for candidate in branch["candidates"]]
    assert branch["setting"] == branch["candidates"][figures.index(max(figures))]["setting"]

    lines = metrics_without_times(folder)
    assert list(dict.fromkeys(line["stage"] for line in lines)) == ["vanilla", *STAGES, "b2"]
    for stage, candidate in zip(STAGES, branch["candidates"], strict=True):
        own = [line for line in lines if line["stage"] == stage]
        assert [(line["epoch"], line["split"]) for line in own] == [(1, "train"), (2, "train"), (2, "val")]
        assert own[-1]["maxboxacc_v2"] == pytest.approx(candidate["val"]["maxboxacc_v2"], abs=1e-3)
    # The run's own training repeats the best candidate's.
    best = [line for line in lines if line["stage"] == STAGES[figures.index(max(figures))]]
    final = [line for line in lines if line["stage"] == "b2"]
    assert [{**line, "stage": "b2"} for line in best[:2]] == [final[0], final[2]]
    assert best[2]["maxboxacc_v2"] == final[3]["maxboxacc_v2"]
    log = (folder / "log.txt").read_text()
    assert "branch: chosen on val among up to 7 settings, each trained for 2 epochs before the run's own 2" in log
    assert tables.branch_table(branch) in log and "features cannot be cached" not in log
    again = program.main(["--root", str(shapes / "runs"), "--experiment_name", "run", "--eval_only"])
    assert again["branch"] == branch and again["rows"] == results["rows"]


def test_the_table_of_candidates_by_hand():
    val = [{"maxboxacc_v1": 50.0}, {"maxboxacc_v1": 61.25}]
    candidates = [
        {"setting": setting.record, "val": figures} for setting, figures in zip(CANDIDATES[1:3], val, strict=True)
    ]
    branch = {"setting": CANDIDATES[2].record, "criterion": "maxboxacc_v1", "candidates": candidates}
    lines = [line.split() for line in tables.branch_table(branch).splitlines()]
    assert lines[0] == ["branch", "weights", "lambda", "mu", "MaxBoxAcc", "on", "val"]
    assert lines[2:] == [["nonnegative", "inf", "0", "50.0"], ["nonnegative", "0.1", "0", "61.2", "chosen"]]


def test_candidates_on_images_are_announced_and_equal_cached_ones(shapes, monkeypatch, capsys):
    program.main(arguments(shapes, *CHOICE, "--train_only", name="cached"))
    monkeypatch.setattr(training, "features_can_be_cached", lambda *_: False)
    capsys.readouterr()
    program.main(arguments(shapes, *CHOICE, "--train_only", name="plain"))
    assert (
        "features cannot be cached here: choosing the branch takes 7 trainings of 2 epochs" in capsys.readouterr().out
    )
    a, b = (checkpoint_content(shapes / "runs" / name) for name in ("cached", "plain"))
    assert a["branch"]["setting"] == b["branch"]["setting"]
    assert all(torch.allclose(a["state_dict"][key], b["state_dict"][key], atol=1e-5) for key in a["state_dict"])


def test_candidates_are_trained_on_cached_features_whatever_the_augmentation(shapes, capsys):
    """The run's own training sees augmented images, the candidates the images as they are."""
    flags = (*CHOICE, "--train_only")
    program.main(arguments(shapes, *flags, name="plain"))
    capsys.readouterr()
    program.main(arguments(shapes, *flags, "--augment", "crop_flip", "--vanilla_epochs", "0", name="augmented"))
    assert "features cannot be cached" not in capsys.readouterr().out
    plain, augmented = (
        [line for line in metrics_without_times(shapes / "runs" / name) if line["stage"].startswith("b2")]
        for name in ("plain", "augmented")
    )
    assert [line["stage"] for line in plain] == [line["stage"] for line in augmented]


def test_candidates_start_alike_when_the_trunk_trains(shapes):
    """Without a frozen trunk, each candidate begins with the network that the others began with."""
    flags = ("--unfreeze_layer", "all", "--train_only", "--augment", "none", "--vanilla_epochs", "1")
    program.main(arguments(shapes, "--branch_choice", "val", *flags, name="chosen"))
    setting = BranchSetting.from_record(checkpoint_content(shapes / "runs/chosen")["branch"]["setting"])
    assert not setting.object_weight  # the object loss is for a frozen trunk
    given = ("--branch_weights", setting.weights, "--branch_lambda", str(setting.c2_weight))
    program.main(arguments(shapes, *given, *flags, name="given"))
    a, b = (checkpoint_content(shapes / "runs" / name)["state_dict"] for name in ("chosen", "given"))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("killed_at", ["candidate", "own training"])
def test_a_choice_that_was_killed_ends_at_the_same_branch(shapes, monkeypatch, killed_at):
    whole = program.main(arguments(shapes, *CHOICE, name="whole"))
    cut = arguments(shapes, *CHOICE, name="cut")
    if killed_at == "candidate":
        real = program.candidate_stage

        def candidate_stage(setting):
            if setting == CANDIDATES[3]:
                raise Killed
            return real(setting)

        monkeypatch.setattr(program, "candidate_stage", candidate_stage)
        with pytest.raises(Killed):
            program.main(cut)
        monkeypatch.setattr(program, "candidate_stage", real)
    else:
        killed_after(monkeypatch, 3, *cut)  # after the vanilla stage's checkpoint, and best and last of epoch 1
    resumed = program.main(["--root", str(shapes / "runs"), "--experiment_name", "cut", "--resume"])
    assert resumed["branch"] == whole["branch"] and resumed["rows"] == whole["rows"]
    a, b = (checkpoint_content(shapes / "runs" / name)["state_dict"] for name in ("whole", "cut"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert metrics_without_times(shapes / "runs/whole") == metrics_without_times(shapes / "runs/cut")


def test_a_choice_needs_a_val_split(tmp_path):
    root = write_dataset(tmp_path, "Shapes", splits=("train", "test"))
    with pytest.raises(
        InputError, match="--branch_choice val: .*Shapes has no val split; add one, or give --branch_weights"
    ):
        program.main(arguments(root, *CHOICE))
    assert not (root / "runs").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--branch_weights", "nonnegative"], "tries settings of its own; leave out --branch_weights"),
        (["--branch_lambda", "0.1"], "tries settings of its own"),
        (["--epochs", "0"], "--epochs 0 trains none"),
        (["--unfreeze_layer", "fc"], "--unfreeze_layer fc with --epochs 10 trains none"),
        (["--model_structure", "vanilla"], "--branch_choice val is about the sigmoid branch: it needs"),
        (["--model_structure", "b1"], "needs --model_structure b2, not b1"),
    ],
)
def test_a_choice_contradicts(flags, message):
    with pytest.raises(InputError, match=message):
        parse_args(["--branch_choice", "val", *flags])


def test_a_choice_by_pxap_where_there_are_masks_alone(tmp_path):
    root = write_dataset(tmp_path, "Shapes", form="masks")
    results = program.main(arguments(root, *CHOICE))
    assert results["branch"]["criterion"] == "pxap"
    again = program.main(["--root", str(root / "runs"), "--experiment_name", "run", "--resume"])
    assert again["branch"] == results["branch"] and again["rows"] == results["rows"]
