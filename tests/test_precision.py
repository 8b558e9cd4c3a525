"""--amp, --compile, --deterministic and --profile: what a run computes in, and what it writes."""

import json

import pytest
import torch
from conftest import TinyNet, arguments, checkpoint_content, killed_after, metrics_without_times

import main as program
from wsol import training
from wsol.classifier import Classifier
from wsol.errors import InputError
from wsol.losses import OBJECTIVES
from wsol.precision import Precision

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
WHOLE = ["--model_structure", "vanilla", "--methods", "gradcam"]  # every layer trains, on the images


def weights(folder):
    return checkpoint_content(folder)["state_dict"]


@pytest.mark.parametrize("amp", ["bf16", pytest.param("fp16", marks=on_gpu)])
def test_half_precision_trains_about_the_same_weights(shapes, amp):
    for name in ("off", amp):
        program.main(arguments(shapes, *WHOLE, "--amp", name, name=name))
    exact, rough = weights(shapes / "runs/off"), weights(shapes / f"runs/{amp}")
    assert all(tensor.dtype == exact[name].dtype for name, tensor in rough.items())
    moved = [name for name in exact if not torch.equal(exact[name], rough[name])]
    assert moved and all(torch.allclose(exact[name].float(), rough[name].float(), atol=0.05) for name in moved)
    losses = [metrics_without_times(shapes / f"runs/{name}")[0]["loss"] for name in ("off", amp)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


@pytest.mark.parametrize("amp", ["bf16", pytest.param("fp16", marks=on_gpu)])
def test_half_precision_on_cached_features_and_resumed(shapes, amp, monkeypatch):
    flags = ["--amp", amp, "--methods", "gradcam", "--epochs", "3"]
    program.main(arguments(shapes, *flags, name="whole"))
    killed_after(monkeypatch, 5, *arguments(shapes, *flags, name="killed"))
    program.main(["--root", str(shapes / "runs"), "--experiment_name", "killed", "--resume"])
    found, expected = weights(shapes / "runs/killed"), weights(shapes / "runs/whole")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_maps_and_metrics_do_not_depend_on_it(shapes):
    """Of the same weights, evaluated with and without."""
    program.main(arguments(shapes, *WHOLE))
    for name in ("bf16", "fp16", "off"):  # fp16 trains on CUDA only, but what it has trained is evaluated anywhere
        again = program.main(["--root", str(shapes / "runs"), "--experiment_name", "run", "--eval_only", "--amp", name])
        stored = json.loads((shapes / "runs/run/results.json").read_text())
        assert json.loads(json.dumps(again["rows"])) == stored["rows"]


def test_fp16_needs_a_gpu():
    with pytest.raises(InputError, match="--amp fp16 needs a CUDA device"):
        Precision("fp16", "cpu")


@on_gpu
def test_an_overflow_leaves_a_step_out():
    precision, weight = Precision("fp16", "cuda"), torch.ones(1, device="cuda", requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    precision.step(weight * 1e38, optimizer)  # times the scale of the loss: infinity
    assert weight.item() == 1 and precision.state["scale"] == 2.0**15
    other = Precision("fp16", "cuda")
    other.load_state(precision.state)
    assert other.state["scale"] == 2.0**15


def test_a_compiled_network_trains_the_same_weights(shapes, monkeypatch):
    compiled = []

    def compile_eagerly(model):
        compiled.append(model)
        return lambda images: model(images)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    for name, more in {"plain": [], "compiled": ["--compile"]}.items():
        program.main(arguments(shapes, *WHOLE, *more, name=name))
    assert len(compiled) == 1
    plain, found = weights(shapes / "runs/plain"), weights(shapes / "runs/compiled")
    assert all(torch.equal(tensor, plain[name]) for name, tensor in found.items())


@pytest.mark.slow
def test_torch_compile_itself():
    """A step of a real network, compiled by the default backend."""
    from wsol import build

    losses = []
    for compile in (False, True):
        torch.manual_seed(0)
        model = build("resnet18", 5, pretrained=False)
        run = torch.compile(model) if compile else model
        output = run(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
        loss = OBJECTIVES["vanilla"]("cross_entropy", "binary_cross_entropy")(output, torch.tensor([0, 1, 2, 3]))
        loss.backward()
        losses.append((loss.item(), model.network.conv1.weight.grad.norm().item()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_two_heads_are_not_compiled_and_it_is_said(shapes, capsys):
    program.main(arguments(shapes, "--compile", "--epochs", "1", "--vanilla_epochs", "0", "--train_only"))
    assert "--compile has no effect in stage b2: its network has several heads" in capsys.readouterr().out
    assert not training.can_compile(Classifier(TinyNet(3), "fc", torch.nn.Linear(16, 3)), training.PLAIN)


def test_a_profile_of_some_steps(shapes, capsys):
    program.main(arguments(shapes, *WHOLE, "--profile", "--batch_size", "2"))
    folder = shapes / "runs/run/profile"
    names = {event.get("name", "") for event in json.loads((folder / "trace.json").read_text())["traceEvents"]}
    assert "aten::conv2d" in names and "convolution" in (folder / "operators.txt").read_text()
    assert f"profile: {folder}" in capsys.readouterr().out
