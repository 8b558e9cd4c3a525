"""Mistakes as a person makes them on the command line: one line, exit code 2, and not a byte changed."""

import sys

import pytest
import torch
from conftest import arguments, files_below

import main as program
from wsol import build
from wsol.checksum import sealed


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def vanilla_tensors(num_classes: int = 3) -> dict:
    return build("tiny", num_classes).published_state_dict()


def write(name, content):
    """A case's preparation: a file `name` beside the data."""

    def prepare(root):
        torch.save(content() if callable(content) else content, root / name)

    return prepare


def truncated(root):
    torch.save({"state_dict": vanilla_tensors()}, root / "x.pth")
    (root / "x.pth").write_bytes((root / "x.pth").read_bytes()[:1500])


def text(root):
    (root / "x.pth").write_text("not a checkpoint")


def finished_run(root):
    program.main(arguments(root, "--methods", "cam", "--epochs", "1", "--train_only"))


def run_with(**fields):
    """A finished run whose checkpoint has other fields, with a checksum that is right."""

    def prepare(root):
        finished_run(root)
        path = root / "runs/run/last_checkpoint.pth.tar"
        content = torch.load(path, weights_only=True)
        del content["checksum"]
        torch.save(sealed(content | fields), path)

    return prepare


def run_with_metrics(change):
    """A finished run whose metrics.jsonl is something else."""

    def prepare(root):
        finished_run(root)
        path = root / "runs/run/metrics.jsonl"
        path.write_bytes(change(path.read_bytes()))

    return prepare


def settings_file(text):
    return lambda root: (root / "x.yaml").write_text(text)


def thesis(root):
    (root / "runs/run").mkdir(parents=True)
    (root / "runs/run/thesis.tex").write_text("mine")


def nothing(root):
    pass


CASES = {
    "unknown architecture": (nothing, ["--architecture", "resnet05"], "'resnet05'"),
    "unknown method": (nothing, ["--methods", "gradcm"], "did you mean 'gradcam'"),
    "unknown head": (nothing, ["--heads", "sigmoidd"], "did you mean 'sigmoid'"),
    "unknown flag": (nothing, ["--learning_rate", "1"], "unrecognized arguments: --learning_rate 1"),
    "unknown data set": (nothing, ["--dataset_name", "Shape"], "no metadata for the data set 'Shape'"),
    "missing data root": (nothing, ["--data_root", "nowhere"], "check --data_root"),
    "missing metadata root": (nothing, ["--metadata_root", "nowhere"], "no metadata"),
    "another architecture": (
        write("x.pth", {"architecture": "vgg16", "state_dict": {"a": torch.ones(1)}}),
        ["--ft_ckpt", "x.pth"],
        "is a checkpoint of vgg16, not of tiny",
    ),
    "another network's tensors": (
        write("x.pth", {"state_dict": {"a": torch.ones(1)}}),
        ["--ft_ckpt", "x.pth"],
        "does not fit this network",
    ),
    "another class count": (
        write("x.pth", lambda: {"state_dict": vanilla_tensors(7)}),
        ["--ft_ckpt", "x.pth"],
        "another number of classes",
    ),
    "no checkpoint": (nothing, ["--ft_ckpt", "x.pth"], "x.pth does not exist"),
    "a folder for a checkpoint": (nothing, ["--ft_ckpt", "dataset"], "is a folder"),
    "text for a checkpoint": (text, ["--ft_ckpt", "x.pth"], "is not a checkpoint"),
    "a truncated checkpoint": (truncated, ["--ft_ckpt", "x.pth"], "is cut off"),
    "a checkpoint that holds code": (write("x.pth", {"state_dict": Evil()}), ["--ft_ckpt", "x.pth"], "not loaded"),
    "a checkpoint of NaN": (
        write(
            "x.pth",
            lambda: {
                "state_dict": {
                    k: v * float("nan") if v.is_floating_point() else v for k, v in vanilla_tensors().items()
                }
            },
        ),
        ["--ft_ckpt", "x.pth"],
        "has NaN",
    ),
    "an existing run": (finished_run, [], "exists; continue it with --resume"),
    "somebody else's folder": (thesis, ["--override_cache"], "removes only folders of this program"),
    "a missing run": (nothing, ["--eval_only"], "no run "),
    "a missing checkpoint of a run": (
        finished_run,
        ["--eval_only", "--eval_checkpoint_type", "highest"],
        "present there: best, last, vanilla_last",
    ),
    "contradicting flags": (nothing, ["--model_structure", "vanilla", "--heads", "sigmoid"], "needs a sigmoid branch"),
    "flags that leave nothing to train": (nothing, ["--unfreeze_layer", "none"], "leaves nothing to train"),
    "a crop larger than the image": (
        nothing,
        ["--augment", "crop_flip", "--crop_size", "64"],
        "smaller than --crop_size",
    ),
    "a size beyond reason": (nothing, ["--crop_size", "1000000"], "at most 4096"),
    "a file for a root": (text, ["--root", "x.pth"], "is a file, not a folder"),
    "a number for an architecture": (run_with(architecture=3), ["--eval_only"], "'architecture' is 3, not text"),
    "a number for class names": (run_with(class_names=5), ["--eval_only"], "'class_names' is 5, not a list"),
    "a tensor for a setting": (
        run_with(large_feature_map=torch.ones(2)),
        ["--eval_only"],
        "'large_feature_map' is a Tensor, not true or false",
    ),
    "a scalar for a head": (
        run_with(state_dict={"fc.weight": torch.tensor(1.0)}),
        ["--eval_only"],
        "has no classification head 'fc'",
    ),
    "a sparse tensor": (
        run_with(state_dict={"fc.weight": torch.ones(3, 16).to_sparse()}),
        ["--eval_only"],
        "'fc.weight' is sparse, quantized",
    ),
    "a word for an epoch": (run_with(epoch="abc"), ["--resume"], "'epoch' is 'abc', not a whole number"),
    "a word for the best figure": (run_with(best="abc"), ["--resume"], "'best' is 'abc', not a number"),
    "metrics that are no text": (run_with_metrics(lambda old: b"\xff" + old), ["--resume"], "cannot be read as text"),
    "metrics without seconds": (
        run_with_metrics(lambda old: old.replace(b'"seconds"', b'"minutes"')),
        ["--resume"],
        "has no field 'seconds'",
    ),
    "a batch size of thirty digits": (nothing, ["--batch_size", "9" * 30], "out of range (at least 1 and at most"),
    "a learning rate beyond reason": (nothing, ["--lr", "1e38"], "out of range"),
    "a number of 5,000 digits in YAML": (settings_file("seed: " + "9" * 5000), ["--config", "x.yaml"], "x.yaml"),
    "5,000 brackets in YAML": (settings_file("[" * 5000), ["--config", "x.yaml"], "nested too deeply"),
    "a missing settings file": (nothing, ["--config", "x.yaml"], "no such file"),
}


def run(monkeypatch, capsys, argv) -> tuple[int, str]:
    """The command's exit code and what it printed to stderr, in this process so that the tiny network is known."""
    monkeypatch.setattr(sys, "argv", ["main.py", *argv])
    try:
        code = program.run_from_shell()
    except SystemExit as leaving:  # argparse leaves by itself
        code = leaving.code
    return code, capsys.readouterr().err


@pytest.mark.parametrize("case", CASES)
def test_one_line_exit_code_two_and_untouched_folders(shapes, monkeypatch, capsys, case):
    prepare, flags, message = CASES[case]
    monkeypatch.chdir(shapes)
    prepare(shapes)
    capsys.readouterr()
    before = files_below(shapes)
    code, printed = run(monkeypatch, capsys, arguments(shapes, *flags))
    lines = printed.splitlines()
    assert code == 2 and message in lines[0] and lines[0].startswith("error: ")
    assert len(lines) == 1 or lines[1:] == ["see python main.py --help"]
    assert "executed" not in printed
    assert files_below(shapes) == before


def test_an_optimizer_state_of_another_kind_is_refused_before_an_epoch(shapes, monkeypatch, capsys):
    monkeypatch.chdir(shapes)
    run_with(optimizer={})(shapes)
    before = files_below(shapes, without=("config.yaml", "log.txt"))
    capsys.readouterr()
    code, printed = run(monkeypatch, capsys, arguments(shapes, "--resume"))
    assert code == 2 and "the field 'optimizer' does not fit the parameters" in printed
    assert len(printed.splitlines()) == 1 and files_below(shapes, without=("config.yaml", "log.txt")) == before


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(shapes, monkeypatch, capsys):
    finished_run(shapes)
    before = (shapes / "runs/run/last_checkpoint.pth.tar").read_bytes()
    capsys.readouterr()

    def full(_content, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    code, printed = run(
        monkeypatch, capsys, ["--root", str(shapes / "runs"), "--experiment_name", "run", "--resume", "--epochs", "2"]
    )
    assert code == 2 and "No space left on device" in printed and len(printed.splitlines()) == 1
    assert (shapes / "runs/run/last_checkpoint.pth.tar").read_bytes() == before
    assert not list((shapes / "runs/run").glob(".*.tmp"))
