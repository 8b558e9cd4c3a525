"""Checkpoints: names, exact sets of keys, atomic writes, refusal of anything that is not plain tensors."""

import pickle
import shutil

import pytest
import torch
from conftest import TinyNet
from safetensors.torch import save_file

from wsol import build, dualize
from wsol.classifier import Classifier, sigmoid_name
from wsol.errors import InputError
from wsol.run import checkpoint
from wsol.tensor_files import find_state_dict, load, unwrapped


def classifier(num_classes: int = 5) -> Classifier:
    return Classifier(TinyNet(num_classes), "fc", target_layer="features.6")


def test_sigmoid_names_are_the_published_ones():
    names = {head: sigmoid_name(head) for head in ("fc", "conv", "head", "classifier", "SPG_A4", "head.fc")}
    assert names == {
        "fc": "fc2",
        "conv": "conv2",
        "head": "head2",
        "classifier": "classifier_2",
        "SPG_A4": "SPG_A4_2",
        "head.fc": "head.fc2",
    }


def test_published_state_dict_has_the_networks_own_names():
    dual = dualize(TinyNet(5))
    assert set(dual.published_state_dict()) == set(TinyNet(5).state_dict()) | {"fc2.weight", "fc2.bias"}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_round_trip_through_a_file(tmp_path, prefix):
    source, target = dualize(TinyNet(5)), dualize(TinyNet(5))
    torch.nn.init.normal_(source.sigmoid_head.weight)
    tensors = {prefix + key: tensor for key, tensor in source.published_state_dict().items()}
    checkpoint.save(tmp_path / "x.pth", {"state_dict": tensors})
    target.load_published(load(tmp_path / "x.pth")["state_dict"], "x.pth")
    images = torch.randn(2, 3, 32, 32)
    ours, theirs = source.eval()(images).by_head(), target.eval()(images).by_head()
    assert list(ours) == list(theirs) == ["softmax", "sigmoid"]
    assert all(torch.equal(ours[head], theirs[head]) for head in ours)


def test_a_bare_state_dict_is_a_checkpoint(tmp_path):
    torch.save(TinyNet(5).state_dict(), tmp_path / "bare.pth")
    assert set(load(tmp_path / "bare.pth")["state_dict"]) == set(TinyNet(5).state_dict())


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
        (lambda: dualize(TinyNet(5)).published_state_dict(), "has a sigmoid branch.*--model_structure b2"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(tensors, message):
    model = classifier()
    before = {k: v.clone() for k, v in model.published_state_dict().items()}
    with pytest.raises(InputError, match=message):
        model.load_published(tensors(), "file.pth")
    assert all(torch.equal(before[k], v) for k, v in model.published_state_dict().items())


def test_a_branch_that_is_missing_is_an_error_unless_it_is_not_asked_for():
    with pytest.raises(InputError, match="has no sigmoid branch"):
        dualize(TinyNet(5)).load_published(TinyNet(5).state_dict(), "file.pth")
    model, source = classifier(), dualize(TinyNet(5))
    model.load_published(source.published_state_dict(), "file.pth", branch=False)
    assert torch.equal(model.softmax_head.weight, source.softmax_head.weight)


def test_old_files_without_batch_counters_load():
    tensors = {k: v for k, v in TinyNet(5).state_dict().items() if not k.endswith("num_batches_tracked")}
    classifier().load_published(tensors, "file.pth")


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
        (lambda p: torch.save([1, 2], p), "has no state_dict"),
        (lambda p: torch.save({"state_dict": {}}, p), "has no state_dict"),
        (lambda p: None, "does not exist"),
    ],
)
def test_what_is_not_a_checkpoint_is_refused_and_never_executed(tmp_path, capsys, write, message):
    path = tmp_path / "x.pth"
    write(path)
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out
    assert "weights_only" not in str(caught.value)  # torch's advice to load it nevertheless


def test_a_truncated_checkpoint_is_refused(tmp_path):
    torch.save({"state_dict": TinyNet(5).state_dict()}, tmp_path / "x.pth")
    (tmp_path / "x.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:2000])
    with pytest.raises(InputError, match="not a checkpoint or is cut off"):
        load(tmp_path / "x.pth")


def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last_checkpoint.pth.tar"
    checkpoint.save(path, {"state_dict": {"a": torch.ones(1)}})

    def full_disk(content, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(InputError, match="cannot write .*No space left.*kept"):
        checkpoint.save(path, {"state_dict": {"a": torch.zeros(1)}})
    assert load(path)["state_dict"]["a"].item() == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_is_not_called_kept_where_it_is_gone(tmp_path, monkeypatch):
    path = tmp_path / "run" / "last_checkpoint.pth.tar"
    checkpoint.save(path, {"state_dict": {"a": torch.ones(1)}})

    def folder_removed(content, target):
        shutil.rmtree(tmp_path / "run")
        raise OSError(2, "No such file or directory")

    monkeypatch.setattr(torch, "save", folder_removed)
    with pytest.raises(InputError, match="cannot write") as caught:
        checkpoint.save(path, {"state_dict": {"a": torch.zeros(1)}})
    assert "is kept" not in str(caught.value)


def test_a_missing_checkpoint_lists_those_present(tmp_path):
    for name in ("last", "best"):
        checkpoint.save(tmp_path / f"{name}_checkpoint.pth.tar", {"state_dict": {}})
    assert checkpoint.path_of(tmp_path, "best").name == "best_checkpoint.pth.tar"
    with pytest.raises(InputError, match="present there: best, last"):
        checkpoint.path_of(tmp_path, "epoch_12")
    with pytest.raises(InputError, match="no checkpoint at all"):
        checkpoint.path_of(tmp_path / "nowhere", "last")


def test_a_checkpoint_checks_architecture_and_classes(tmp_path):
    checkpoint.save(tmp_path / "x.pth", {"architecture": "vgg16", "state_dict": TinyNet(5).state_dict()})
    saved = checkpoint.Checkpoint("eval", tmp_path / "x.pth")
    with pytest.raises(InputError, match="checkpoint of vgg16, not of tiny; give --architecture vgg16"):
        saved.check_architecture("tiny")
    assert saved.class_names("fc", ["a", "b"]) == ["a", "b", "class 2", "class 3", "class 4"]
    with pytest.raises(InputError, match="has 5 classes, but the data set has 6"):
        saved.class_names("fc", list("abcdef"))
    with pytest.raises(InputError, match="no classification head 'head'"):
        saved.class_names("head", ["a"])


# ------------------------------------------------------------------- files of other projects

WRAPPERS = ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.model.module."]


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict", "network"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_state_dict_is_found_and_its_names_unwrapped(tmp_path, key, wrapper):
    tensors = {wrapper + name: tensor for name, tensor in TinyNet(5).state_dict().items()}
    torch.save(tensors if key is None else {"epoch": 3, key: tensors}, tmp_path / "x.pth")
    content = load(tmp_path / "x.pth")
    assert content.get("epoch") == (None if key is None else 3) and set(content) <= {"epoch", "state_dict"}
    assert list(content["state_dict"]) == list(TinyNet(5).state_dict())
    model = classifier()
    model.load_published(content["state_dict"], "x.pth")
    assert torch.equal(model.softmax_head.weight, tensors[f"{wrapper}fc.weight"]) and not model.head_is_new


@pytest.mark.parametrize("wrapper", ["", "model."])
def test_safetensors_files_are_read(tmp_path, wrapper):
    tensors = {wrapper + name: tensor for name, tensor in TinyNet(5).state_dict().items()}
    save_file(tensors, tmp_path / "x.safetensors")
    saved = checkpoint.Checkpoint("start", tmp_path / "x.safetensors")
    assert saved.num_classes("fc") == 5 and torch.equal(saved.tensors["fc.bias"], tensors[f"{wrapper}fc.bias"])
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:900])
    with pytest.raises(InputError, match="not a checkpoint or is cut off"):
        load(tmp_path / "x.safetensors")


def test_only_wrappers_that_all_names_share_are_taken_off():
    one, two = torch.zeros(1), torch.zeros(2)
    assert unwrapped({"model.stem": one, "head": two}) == {"model.stem": one, "head": two}
    assert list(unwrapped({"module.model.stem": one, "module.head": two})) == ["model.stem", "head"]
    assert unwrapped({}) == {} and find_state_dict({"state_dict": {}, "network": {"a": 1}}) == (None, None)


def test_a_network_whose_own_names_look_wrapped_loads_its_checkpoints(tmp_path):
    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = TinyNet(5)

        def forward(self, images):
            return self.model(images)

    source, target = dualize(Wrapper()), dualize(Wrapper())
    torch.nn.init.normal_(source.sigmoid_head.weight)
    assert source.head_name == "model.fc"
    checkpoint.save(tmp_path / "x.pth", {"state_dict": source.published_state_dict()})
    saved = checkpoint.Checkpoint("eval", tmp_path / "x.pth")
    assert saved.num_classes("model.fc") == 5 and target.finds_branch(saved.tensors)
    target.load_published(saved.tensors, saved.path)
    for name, tensor in source.published_state_dict().items():
        assert torch.equal(target.published_state_dict()[name], tensor), name
    plain = Classifier(Wrapper(), "model.fc")
    plain.load_published(TinyNet(5).state_dict(), "the wrapped network's own file")
