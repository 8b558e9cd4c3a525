"""Checkpoints: names, exact sets of keys, atomic writes, refusal of anything that is not plain tensors."""

import pickle

import pytest
import torch
from conftest import TinyNet

from wsol import build, dualize
from wsol.classifier import Classifier
from wsol.errors import InputError
from wsol.run import checkpoint


def classifier(num_classes: int = 5) -> Classifier:
    return Classifier(TinyNet(num_classes), "fc", target_layer="features.6")


def test_sigmoid_names_are_the_published_ones():
    names = {head: checkpoint.sigmoid_name(head) for head in ("fc", "conv", "head", "classifier", "SPG_A4", "head.fc")}
    assert names == {
        "fc": "fc2",
        "conv": "conv2",
        "head": "head2",
        "classifier": "classifier_2",
        "SPG_A4": "SPG_A4_2",
        "head.fc": "head.fc2",
    }


def test_state_dict_holds_the_networks_own_names():
    dual = dualize(TinyNet(5))
    assert set(checkpoint.state_dict(dual)) == set(TinyNet(5).state_dict()) | {"fc2.weight", "fc2.bias"}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_round_trip_through_a_file(tmp_path, prefix):
    source, target = dualize(TinyNet(5)), dualize(TinyNet(5))
    torch.nn.init.normal_(source.sigmoid_head.weight)
    tensors = {prefix + key: tensor for key, tensor in checkpoint.state_dict(source).items()}
    checkpoint.save(tmp_path / "x.pth", {"state_dict": tensors})
    checkpoint.load_state_dict(target, checkpoint.load(tmp_path / "x.pth")["state_dict"], "x.pth")
    images = torch.randn(2, 3, 32, 32)
    for a, b in zip(source.eval()(images), target.eval()(images), strict=True):
        assert torch.equal(a, b)


def test_a_bare_state_dict_is_a_checkpoint(tmp_path):
    torch.save(TinyNet(5).state_dict(), tmp_path / "bare.pth")
    assert set(checkpoint.load(tmp_path / "bare.pth")["state_dict"]) == set(TinyNet(5).state_dict())


@pytest.mark.parametrize(
    "tensors, message",
    [
        (lambda: TinyNet(7).state_dict(), r"fc.weight has shape \(7, 16\).*\(5, 16\); .*another number of classes"),
        (lambda: {k: v for k, v in TinyNet(5).state_dict().items() if k != "fc.bias"}, "missing: fc.bias"),
        (lambda: TinyNet(5).state_dict() | {"extra": torch.zeros(1)}, "left over: extra"),
        (
            lambda: build("efficientnet_lite0", 5, pretrained=False).network.state_dict(),
            r"missing: features.0.weight, features.0.bias, .* more; left over: conv_stem.weight, ",
        ),
        (lambda: checkpoint.state_dict(dualize(TinyNet(5))), "holds a sigmoid branch.*--model_structure b2"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(tensors, message):
    model = classifier()
    before = {k: v.clone() for k, v in checkpoint.state_dict(model).items()}
    with pytest.raises(InputError, match=message):
        checkpoint.load_state_dict(model, tensors(), "file.pth")
    assert all(torch.equal(before[k], v) for k, v in checkpoint.state_dict(model).items())


def test_a_branch_that_is_missing_is_an_error_unless_it_is_not_asked_for():
    with pytest.raises(InputError, match="holds no sigmoid branch"):
        checkpoint.load_state_dict(dualize(TinyNet(5)), TinyNet(5).state_dict(), "file.pth")
    model, source = classifier(), dualize(TinyNet(5))
    checkpoint.load_state_dict(model, checkpoint.state_dict(source), "file.pth", branch=False)
    assert torch.equal(model.softmax_head.weight, source.softmax_head.weight)


def test_old_files_without_batch_counters_load():
    tensors = {k: v for k, v in TinyNet(5).state_dict().items() if not k.endswith("num_batches_tracked")}
    checkpoint.load_state_dict(classifier(), tensors, "file.pth")


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda p: p.write_bytes(b"no checkpoint"), "is not a checkpoint"),
        (lambda p: p.write_bytes(b""), "is not a checkpoint"),
        (lambda p: torch.save({"state_dict": Evil()}, p), "not loaded"),
        (lambda p: p.write_bytes(pickle.dumps(Evil())), "not loaded|is not a checkpoint"),
        (lambda p: torch.save([1, 2], p), "holds no state_dict"),
        (lambda p: torch.save({"state_dict": {}}, p), "holds no state_dict"),
        (lambda p: None, "does not exist"),
    ],
)
def test_what_is_no_checkpoint_is_refused_and_never_executed(tmp_path, capsys, write, message):
    path = tmp_path / "x.pth"
    write(path)
    with pytest.raises(InputError, match=message) as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def test_a_truncated_checkpoint_is_refused(tmp_path):
    torch.save({"state_dict": TinyNet(5).state_dict()}, tmp_path / "x.pth")
    (tmp_path / "x.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:2000])
    with pytest.raises(InputError, match="not a checkpoint or is cut off"):
        checkpoint.load(tmp_path / "x.pth")


def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last_checkpoint.pth.tar"
    checkpoint.save(path, {"state_dict": {"a": torch.ones(1)}})

    def full_disk(content, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(InputError, match="cannot write .*No space left.*kept"):
        checkpoint.save(path, {"state_dict": {"a": torch.zeros(1)}})
    assert checkpoint.load(path)["state_dict"]["a"].item() == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_missing_checkpoint_lists_those_present(tmp_path):
    for name in ("last", "best"):
        checkpoint.save(tmp_path / f"{name}_checkpoint.pth.tar", {"state_dict": {}})
    assert checkpoint.path_of(tmp_path, "best").name == "best_checkpoint.pth.tar"
    with pytest.raises(InputError, match="present there: best, last"):
        checkpoint.path_of(tmp_path, "epoch_12")
    with pytest.raises(InputError, match="no checkpoint at all"):
        checkpoint.path_of(tmp_path / "nowhere", "last")


def test_found_checks_architecture_and_classes(tmp_path):
    checkpoint.save(tmp_path / "x.pth", {"architecture": "vgg16", "state_dict": TinyNet(5).state_dict()})
    found = checkpoint.Found("eval", tmp_path / "x.pth")
    with pytest.raises(InputError, match="checkpoint of vgg16, not of tiny; give --architecture vgg16"):
        found.check_architecture("tiny")
    assert found.class_names("fc", ["a", "b"]) == ["a", "b", "class 2", "class 3", "class 4"]
    with pytest.raises(InputError, match="decides between 5 classes, but the data set has 6"):
        found.class_names("fc", list("abcdef"))
    with pytest.raises(InputError, match="no classification head 'head'"):
        found.class_names("head", ["a"])
