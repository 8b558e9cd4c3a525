"""The object loss: by hand, its regions against float64 NumPy, and as a setting of the command."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import TinyNet, arguments, checkpoint_content, killed_after, metrics_without_times
from torch import nn

import main as program
from wsol import CamExtractor, build, dualize, training
from wsol.backbones import ARCHITECTURES, Architecture
from wsol.branch import CANDIDATES
from wsol.cam import Variant
from wsol.cam.regions import Regions, pool_regions
from wsol.classifier import Classifier, Output
from wsol.dual_head import make_nonnegative
from wsol.errors import InputError
from wsol.losses import OBJECTIVES, object_loss

BCE = "binary_cross_entropy"
OBJECT = ("--branch_weights", "nonnegative", "--branch_lambda", "0", "--branch_mu", "3")
QUICK = ("--methods", "cam", "--bootstrap", "0", "--vanilla_epochs", "1", "--augment", "none")


# ------------------------------------------------------------------- by hand


def test_the_loss_by_hand():
    """s(ln 3) = 3/4 on the object and s(-ln 3) = 1/4 on the background cost ln 4/3 each; s(0) = 1/2 costs ln 2."""
    regions = torch.tensor([[[math.log(3), 0.0], [-math.log(3), 0.0]]], dtype=torch.float64)
    assert object_loss(regions).item() == pytest.approx(math.log(4 / 3) + math.log(2))


def test_one_projected_step_by_hand():
    """CE + mu times the object loss: one SGD step of a linear head, from its gradients written out in NumPy."""
    head = nn.Linear(2, 3).double()
    start = torch.tensor([[0.5, -0.5], [0.02, 1.0], [-1.0, 0.1]], dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(start)
        head.bias.copy_(torch.tensor([0.1, -0.2, -0.3]))
    make_nonnegative(head)
    weights, bias = start.clamp(min=0).numpy(), head.bias.detach().clone().numpy()
    pooled, inside, outside = np.array([1.0, 2.0]), np.array([2.0, 1.0]), np.array([0.5, 3.0])
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    regions = head(torch.from_numpy(np.stack([inside, outside])))[None]
    logits = head(torch.from_numpy(pooled)[None])
    objective = OBJECTIVES["b2"]("cross_entropy", BCE, 0.0, 10.0)
    objective(Output(torch.zeros(1, 3), logits, regions), torch.tensor([0])).backward()
    optimizer.step()
    make_nonnegative(head)

    def s(z):
        return 1 / (1 + np.exp(-z))

    z = weights @ pooled + bias
    softmax = np.exp(z) / np.exp(z).sum() - np.eye(3)[0]
    of_object = -s(-(weights @ inside + bias)) / 3
    of_background = s(weights @ outside + bias) / 3
    gradient = np.outer(softmax, pooled) + 10 * (np.outer(of_object, inside) + np.outer(of_background, outside))
    expected = np.maximum(weights - 0.5 * gradient, 0)
    assert (expected == 0).any() and (expected > 0).any()
    assert head.weight.detach().numpy() == pytest.approx(expected)
    assert head.bias.detach().numpy() == pytest.approx(bias - 0.5 * (softmax + 10 * (of_object + of_background)))


def test_pooled_regions_are_those_of_numpy():
    maps, activations = torch.randn(3, 4, 5).double(), torch.rand(3, 6, 4, 5).double()
    maps[2] = 1.5  # constant: both regions are the whole image
    pooled = pool_regions(maps, activations).numpy()
    for b in range(3):
        values, features = maps[b].numpy().ravel(), activations[b].numpy().reshape(6, 20)
        span = values.max() - values.min()
        inside = (values - values.min()) / span if span else np.full(20, 0.5)
        for region, weights in enumerate((inside, 1 - inside)):
            np.testing.assert_allclose(pooled[b, region], features @ weights / weights.sum(), rtol=1e-12)
    assert np.allclose(pooled[2], activations[2].mean(dim=(1, 2)).numpy())


def test_regions_come_from_the_clamped_refined_map_of_the_softmax_head():
    dual = dualize(TinyNet(5), target_layer="features.6").double().eval()
    images, labels = torch.randn(3, 3, 48, 48).double(), torch.tensor([1, 0, 4])
    head_input, pooled = Regions(dual)(images, labels)
    with CamExtractor(dual, ["cam"], heads=["softmax_clamped"], refine=["affinity"]) as extract:
        maps = extract(images, labels)[Variant("cam", "softmax", True, "affinity")]
    with torch.no_grad():
        activations = dual.network.features(images)
        assert torch.equal(head_input, dual.head_input(images))
    assert torch.allclose(pooled, pool_regions(maps, activations)) and pooled.shape == (3, 2, 16)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in dual.modules())
    assert not pooled.requires_grad and not head_input.requires_grad


@pytest.mark.parametrize("last", [nn.Linear(16, 5), nn.Conv2d(16, 5, 1)])
def test_logits_of_regions_are_the_heads_for_each(last):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.fc = nn.Conv2d(3, 16, 4, stride=4), last

        def forward(self, images):
            maps = self.features(images)
            if isinstance(self.fc, nn.Linear):
                return self.fc(maps.mean(dim=(2, 3)))
            return self.fc(maps.mean(dim=(2, 3), keepdim=True)).flatten(1)

    dual, pooled = dualize(Net()), torch.randn(3, 2, 16)
    logits = dual.classify_regions(pooled)
    weight, bias = last.weight.detach().reshape(5, 16), last.bias.detach()
    assert logits.shape == (3, 2, 5) and torch.allclose(logits, pooled @ weight.T + bias, atol=1e-5)


def test_branches_compared_in_one_pass_are_those_alone():
    dual, images = dualize(TinyNet(5), target_layer="features.6").eval(), torch.randn(2, 3, 48, 48)
    rivals = {f"branch {number}": nn.Linear(16, 5) for number in range(3)}
    dual.rivals.update(rivals)
    with CamExtractor(dual, ["cam", "layercam"], heads=[f"{name}_clamped" for name in rivals]) as extract:
        together, output = extract(images, [0, 4]), extract.output
    dual.rivals.clear()
    for name, head in rivals.items():
        dual.sigmoid_head = head
        with CamExtractor(dual, ["cam", "layercam"], heads=["sigmoid_clamped"]) as extract:
            alone = extract(images, [0, 4])
        assert torch.equal(output.by_head()[name], extract.output.sigmoid_logits)
        for variant, maps in alone.items():
            assert torch.equal(together[variant._replace(head=name)], maps)
    assert not set(dual.published_state_dict()) & set(rivals) and list(dual.heads()) == ["softmax", "sigmoid"]


# ------------------------------------------------------------------- whole runs


def test_a_run_with_the_object_loss(shapes):
    results = program.main(arguments(shapes, *OBJECT, *QUICK, name="object"))
    plain = program.main(arguments(shapes, *OBJECT[:4], *QUICK, name="plain"))
    assert results["branch"]["setting"] == {"weights": "nonnegative", "lambda": 0.0, "mu": 3.0}
    assert results["classification"] == plain["classification"] and results["rows"] != plain["rows"]
    saved = checkpoint_content(shapes / "runs/object")
    assert saved["branch"] == results["branch"] and saved["state_dict"]["fc2.weight"].min() >= 0
    again = program.main(["--root", str(shapes / "runs"), "--experiment_name", "object", "--eval_only"])
    assert again["rows"] == results["rows"] and again["branch"] == results["branch"]
    lines = [json.loads(line) for line in (shapes / "runs/object/metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_cached_and_uncached_features_give_the_same_weights(shapes, monkeypatch):
    program.main(arguments(shapes, *OBJECT, *QUICK, "--train_only", name="cached"))
    monkeypatch.setattr(training, "features_can_be_cached", lambda *_: False)
    program.main(arguments(shapes, *OBJECT, *QUICK, "--train_only", name="plain"))
    a, b = (checkpoint_content(shapes / "runs" / name)["state_dict"] for name in ("cached", "plain"))
    assert all(torch.allclose(a[key], b[key], atol=1e-5) for key in a)
    assert not torch.equal(a["fc2.weight"], a["fc.weight"].clamp(min=0))


def test_a_candidate_trained_on_cached_regions_equals_the_run_without_them(shapes):
    """The same features are used whether object and background are computed with them or not."""
    choice = arguments(shapes, "--branch_choice", "val", *QUICK, "--train_only", name="choice")
    given = arguments(shapes, *QUICK, "--train_only", name="given")
    program.main(choice)
    program.main(given)
    stage = f"b2 {CANDIDATES[0]}"
    of_candidate = [line for line in metrics_without_times(shapes / "runs/choice") if line["stage"] == stage]
    own = [line for line in metrics_without_times(shapes / "runs/given") if line["stage"] == "b2"]
    assert [line["loss"] for line in of_candidate if line["split"] == "train"] == [
        line["loss"] for line in own if line["split"] == "train"
    ]


@pytest.mark.parametrize("writes", [1, 3])
def test_a_killed_run_resumes_to_the_same_branch(shapes, monkeypatch, writes):
    settings = (*OBJECT, *QUICK, "--augment", "crop_flip", "--train_only")
    program.main(arguments(shapes, *settings, name="whole"))
    killed_after(monkeypatch, writes, *arguments(shapes, *settings, name="cut"))
    again = ["--root", str(shapes / "runs"), "--experiment_name", "cut", "--resume", "--train_only"]
    with pytest.raises(InputError, match="--resume cannot change --branch_mu"):
        program.main([*again, "--branch_mu", "1"])
    program.main(again)
    whole, cut = (checkpoint_content(shapes / "runs" / name) for name in ("whole", "cut"))
    assert all(torch.equal(whole["state_dict"][key], cut["state_dict"][key]) for key in whole["state_dict"])
    assert metrics_without_times(shapes / "runs/whole") == metrics_without_times(shapes / "runs/cut")


def test_a_trunk_that_trains_has_no_object_loss(shapes, capsys):
    with pytest.raises(InputError, match="--branch_mu 3 needs a frozen trunk .* or give --unfreeze_layer fc2"):
        program.main(arguments(shapes, *OBJECT, "--unfreeze_layer", "all"))
    choice = ("--branch_choice", "val", "--unfreeze_layer", "all", *QUICK, "--train_only")
    program.main(arguments(shapes, *choice))
    branch = checkpoint_content(shapes / "runs/run")["branch"]
    assert len(branch["candidates"]) == 4 and not any(c["setting"]["mu"] for c in branch["candidates"])
    assert "branches with an object loss are not tried: it needs a frozen trunk" in capsys.readouterr().out


@pytest.mark.parametrize("pooling", [lambda maps: maps.amax(dim=(2, 3)), lambda maps: 2 * maps.mean(dim=(2, 3))])
def test_regions_need_a_head_that_reads_the_mean(pooling):
    class Net(TinyNet):
        def forward(self, images):
            return self.fc(pooling(self.features(images)))

    dual = dualize(Net(5), target_layer="features.6").eval()
    with pytest.raises(InputError, match="does not read the mean of the activations"):
        Regions(dual)(torch.randn(2, 3, 48, 48), torch.tensor([0, 1]))


def test_a_convolutional_head_reads_places_whose_mean_it_is():
    """`--last_layer conv`: a 1x1 convolution before pooling."""
    dual = dualize(build("resnet50", 5, pretrained=False, last_layer="conv")).eval()
    _, pooled = Regions(dual)(torch.randn(1, 3, 64, 64), torch.tensor([3]))
    assert pooled.shape == (1, 2, 2048) and dual.classify_regions(pooled).shape == (1, 2, 5)


def test_a_head_that_reads_other_features_has_none(shapes, monkeypatch, capsys):
    """A head behind a layer that changes the channels: its input is not pooled from the target layer."""

    class Narrow(TinyNet):
        def __init__(self):
            super().__init__()
            self.squeeze, self.fc = nn.Linear(16, 7), nn.Linear(7, 1000)

        def forward(self, images):
            return self.fc(self.squeeze(self.features(images).mean(dim=(2, 3))).relu())

    def narrow(options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Classifier(Narrow(), "fc", target_layer="features.6", head_is_new=not options.pretrained)

    monkeypatch.setitem(ARCHITECTURES, "narrow", Architecture("narrow", narrow))
    flags = ("--architecture", "narrow", *QUICK, "--methods", "gradcam", "--train_only")
    with pytest.raises(InputError, match="--branch_mu 3 does not work here"):
        program.main(arguments(shapes, *OBJECT, *flags))
    assert not (shapes / "runs").exists()
    program.main(arguments(shapes, "--branch_choice", "val", *flags))
    branch = checkpoint_content(shapes / "runs/run")["branch"]
    assert len(branch["candidates"]) == 4 and "an object loss are not tried" in capsys.readouterr().out
