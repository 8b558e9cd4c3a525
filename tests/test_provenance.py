"""Where results come from: checksums, code, the settings of each epoch; and that no result stands beside others'."""

import json
import subprocess

import pytest
import torch
from conftest import arguments, checkpoint_content, files_below, killed_after
from PIL import Image

import inference
import main as program
from config import parse_args
from wsol.checksum import checksum, files_checksum, seal_holds, sealed
from wsol.errors import InputError
from wsol.run import provenance
from wsol.run.checkpoint import Checkpoint
from wsol.tensor_files import load
from wsol.version import __version__

QUICK = ("--methods", "cam", "--heads", "softmax")


def continued(root, *more: str) -> list[str]:
    return ["--root", str(root / "runs"), "--experiment_name", "run", *more]


# --------------------------------------------------------------------------- checksums


def test_a_checksum_depends_on_every_bit_and_nothing_else():
    value = {"a": torch.arange(6.0).reshape(2, 3), "b": [1, 2.5, None, torch.tensor(True)], "c": {"d": "x"}}
    same = {"c": {"d": "x"}, "b": [1, 2.5, None, torch.tensor(True)], "a": torch.arange(6.0).reshape(3, 2).T}
    assert checksum(value) == checksum(value | {"a": value["a"].clone()})
    assert checksum(dict(reversed(value.items()))) == checksum(value)
    others = [
        same,
        value | {"a": value["a"].double()},
        value | {"a": value["a"].reshape(3, 2)},
        value | {"a": torch.nextafter(value["a"], torch.tensor(9.0))},
        value | {"b": (1, 2.5, None, torch.tensor(True))},
        value | {"b": [1.0, 2.5, None, torch.tensor(True)]},
        value | {"c": {"e": "x"}},
        value | {"e": None},
    ]
    assert len({checksum(value), *map(checksum, others)}) == 1 + len(others)
    for kind in (torch.bfloat16, torch.int64, torch.bool, torch.complex64):
        assert checksum(torch.zeros(0, 3, dtype=kind)) != checksum(torch.zeros(1, 3, dtype=kind))


def test_a_seal_holds_until_the_content_changes():
    content = sealed({"epoch": 3, "state_dict": {"w": torch.ones(2)}})
    assert seal_holds(content) is True
    assert seal_holds(content | {"epoch": 4}) is False
    assert seal_holds({"epoch": 3}) is None and seal_holds({"checksum": "crc32 of another project"}) is None
    assert seal_holds([1]) is None


def test_the_checksum_of_files_knows_names_and_contents_but_no_folder(tmp_path):
    def write(folder, **contents):
        (tmp_path / folder).mkdir()
        for name, content in contents.items():
            (tmp_path / folder / name).write_text(content)
        return files_checksum((tmp_path / folder).iterdir())

    assert write("1", a="xy", b="z") == write("2", b="z", a="xy")
    assert len({write("3", a="xy", b="z "), write("4", a="x", b="yz"), write("5", c="xy", b="z"), write("6")}) == 4


def test_a_flipped_bit_in_a_checkpoint_is_found_by_every_command(shapes):
    program.main(arguments(shapes, *QUICK, "--train_only"))
    path = shapes / "runs/run/last_checkpoint.pth.tar"
    content = path.read_bytes()
    weights = checkpoint_content(path.parent)["state_dict"]["fc.weight"].numpy().tobytes()
    place = content.index(weights) + 2  # the exponent of the first weight
    path.write_bytes(content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :])
    assert not torch.equal(
        checkpoint_content(path.parent)["state_dict"]["fc.weight"],
        torch.frombuffer(bytearray(weights), dtype=torch.float32).reshape(3, 16),
    )  # torch reads it without complaint
    Image.new("RGB", (40, 40)).save(shapes / "a.png")
    for command in (
        lambda: program.main(continued(shapes, "--eval_only")),
        lambda: program.main(continued(shapes, "--resume")),
        lambda: program.main(arguments(shapes, *QUICK, "--ft_ckpt", str(path), name="other")),
        lambda: inference.main([str(shapes / "a.png"), "--out", str(shapes / "maps"), "--ckpt", str(path)]),
    ):
        with pytest.raises(InputError, match="last_checkpoint.pth.tar is damaged: .*checksum; restore it"):
            command()


def test_a_checkpoint_without_a_checksum_loads_with_a_note(shapes, tmp_path, capsys):
    program.main(arguments(shapes, *QUICK, "--train_only"))
    path = shapes / "runs/run/last_checkpoint.pth.tar"
    capsys.readouterr()
    program.main(continued(shapes, "--eval_only"))
    assert "checksum" not in capsys.readouterr().out
    torch.save({key: value for key, value in load(path).items() if key != "checksum"}, path)
    program.main(continued(shapes, "--eval_only"))
    assert f"{path} has no checksum" in capsys.readouterr().out


# --------------------------------------------------------------------------- what is recorded


def test_results_checkpoints_and_config_tell_where_they_come_from(shapes):
    results = program.main(arguments(shapes, *QUICK, "--lr", "0.01"))
    saved = Checkpoint("eval", shapes / "runs/run/last_checkpoint.pth.tar").content
    for code in (results["code"], saved["training"][0]["code"]):
        assert code["version"] == __version__ and set(code) == {"version", "commit", "modified"}
    assert f"# {provenance.describe_code()}\n" in (shapes / "runs/run/config.yaml").read_text()
    assert results["weights"] == checksum(saved["state_dict"])
    metadata = shapes / "metadata/Shapes"
    assert results["metadata"] == saved["metadata"]
    assert results["metadata"] == provenance.metadata_checksums(metadata, ("train", "val", "test"))
    vanilla, b2 = results["training"]
    assert results["training"] == saved["training"] and "starts_from" not in results
    assert [(entry["stage"], entry["first_epoch"], entry["last_epoch"]) for entry in (vanilla, b2)] == [
        ("vanilla", 1, 2),
        ("b2", 1, 2),
    ]
    assert b2["settings"]["lr"] == 0.01 and b2["settings"]["seed"] == 42
    assert not {"workers", "data_root", "methods", "experiment_name", "project"} & set(b2["settings"])

    probe = shapes / "runs/run/vanilla_last_checkpoint.pth.tar"
    tuned = program.main(arguments(shapes, *QUICK, "--ft_ckpt", str(probe), name="tuned"))
    assert tuned["starts_from"] == {"file": str(probe), "weights": checksum(load(probe)["state_dict"])}
    again = program.main([*continued(shapes)[:2], "--experiment_name", "tuned", "--eval_only"])
    for key in ("code", "weights", "metadata", "training", "starts_from"):
        assert again[key] == tuned[key]


def test_the_record_begins_anew_where_the_settings_change(shapes, monkeypatch):
    killed_after(monkeypatch, 6, *arguments(shapes, *QUICK, "--epochs", "4"))
    epoch = checkpoint_content(shapes / "runs/run", "vanilla_last")["epoch"]
    assert epoch == 4
    done = checkpoint_content(shapes / "runs/run")["epoch"]
    assert 1 <= done < 4
    results = program.main(continued(shapes, "--resume", "--momentum", "0.5", "--workers", "1"))
    entries = [(e["stage"], e["first_epoch"], e["last_epoch"], e["settings"]["momentum"]) for e in results["training"]]
    assert entries == [("vanilla", 1, 4, 0.9), ("b2", 1, done, 0.9), ("b2", done + 1, 4, 0.5)]


def test_a_resumed_run_with_the_same_settings_prolongs_its_record(shapes, monkeypatch):
    killed_after(monkeypatch, 6, *arguments(shapes, *QUICK, "--epochs", "4"))
    results = program.main(continued(shapes, "--resume"))
    assert [(e["stage"], e["first_epoch"], e["last_epoch"]) for e in results["training"]] == [
        ("vanilla", 1, 4),
        ("b2", 1, 4),
    ]


def test_the_commit_is_ours_or_none(tmp_path, monkeypatch):
    """An installed copy inside a repository of something else has no commit."""
    provenance.code_record.cache_clear()
    repository = tmp_path / "theirs"
    (repository / "site-packages").mkdir(parents=True)
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    try:
        monkeypatch.setattr(provenance, "ROOT", repository / "site-packages")
        assert provenance.code_record() == {"version": __version__, "commit": None, "modified": None}
        provenance.code_record.cache_clear()
        monkeypatch.setattr(provenance, "ROOT", repository)
        record = provenance.code_record()
        assert len(record["commit"]) == 40 and record["modified"] is False
        provenance.code_record.cache_clear()
        monkeypatch.setenv("PATH", str(tmp_path))  # no git at all
        assert provenance.code_record()["commit"] is None
    finally:
        provenance.code_record.cache_clear()


# --------------------------------------------------------------------------- no result beside settings of another


@pytest.mark.parametrize(
    "flags",
    [("--lr", "0.1"), ("--batch_size", "5"), ("--methods", "gradcam"), ("--loc_threshold", "0.5"), ("--epochs", "1")],
)
def test_a_finished_run_is_not_resumed_with_other_settings(shapes, flags):
    program.main(arguments(shapes, *QUICK))
    before = files_below(shapes / "runs", without=("log.txt",))
    with pytest.raises(InputError, match=f"with {flags[0]} .*all 2 epochs are trained, with "):
        program.main(continued(shapes, "--resume", *flags))
    assert files_below(shapes / "runs", without=("log.txt",)) == before


@pytest.mark.parametrize("flags", [("--seed", "7"), ("--c2", "cross_entropy"), ("--sigmoid_init", "random")])
def test_what_makes_another_run_of_it_cannot_change(shapes, flags):
    program.main(arguments(shapes, *QUICK, "--train_only"))
    with pytest.raises(InputError, match=f"--resume cannot change {flags[0]} "):
        program.main(continued(shapes, "--resume", "--epochs", "9", *flags))


def test_a_finished_run_is_resumed_for_further_epochs_or_as_it_is(shapes):
    first = program.main(arguments(shapes, *QUICK))
    again = program.main(continued(shapes, "--resume", "--workers", "1"))
    assert again["rows"] == first["rows"] and again["training"] == first["training"]
    further = program.main(continued(shapes, "--resume", "--epochs", "3", "--lr", "0.1", "--methods", "gradcam"))
    assert [(e["stage"], e["last_epoch"], e["settings"]["lr"]) for e in further["training"]] == [
        ("vanilla", 2, 0.003),
        ("b2", 2, 0.003),
        ("b2", 3, 0.1),
    ]
    assert further["config"]["lr"] == 0.1 and {row["method"] for row in further["rows"]} == {"gradcam"}


def test_a_run_killed_before_its_evaluation_is_resumed_with_other_methods(shapes):
    program.main(arguments(shapes, *QUICK, "--train_only"))
    results = program.main(continued(shapes, "--resume", "--methods", "gradcam"))
    assert {row["method"] for row in results["rows"]} == {"gradcam"} and results["config"]["methods"] == ["gradcam"]


def test_changed_metadata_are_another_data_set(shapes):
    program.main(arguments(shapes, *QUICK))
    results = json.loads((shapes / "runs/run/results.json").read_text())
    boxes = shapes / "metadata/Shapes/test/localization.txt"
    boxes.write_text(boxes.read_text().replace("test/0/0.png,", "test/0/0.png,1,1,9,9\ntest/0/0.png,"))
    changed = program.main(continued(shapes, "--eval_only"))
    assert changed["metadata"]["test"] != results["metadata"]["test"] and (shapes / "runs/run/eval-1").is_dir()
    assert json.loads((shapes / "runs/run/results.json").read_text()) == results
    labels = shapes / "metadata/Shapes/train/class_labels.txt"
    labels.write_text("\n".join(reversed(labels.read_text().split())) + "\n")
    with pytest.raises(InputError, match=r"cannot resume: the metadata in .*Shapes/train have changed"):
        program.main(continued(shapes, "--resume", "--epochs", "3"))


def test_other_weights_in_the_run_folder_are_another_result(shapes):
    program.main(arguments(shapes, *QUICK))
    program.main(arguments(shapes, *QUICK, "--epochs", "1", "--lr", "1", name="other"))
    (shapes / "runs/other/last_checkpoint.pth.tar").rename(shapes / "runs/run/last_checkpoint.pth.tar")
    program.main(continued(shapes, "--eval_only"))
    assert (shapes / "runs/run/eval-1/results.json").exists()


# --------------------------------------------------------------------------- which checkpoint, which data set


@pytest.mark.parametrize("prefix", ["../base/best", "/tmp/best", "..", ""])
def test_a_checkpoint_of_another_run_is_not_evaluated_here(shapes, prefix):
    program.main(arguments(shapes, *QUICK, name="base"))
    program.main(arguments(shapes, *QUICK))
    with pytest.raises(InputError, match="--eval_checkpoint_type .* is not the name of a checkpoint in the run's own"):
        program.main(continued(shapes, "--eval_only", "--eval_checkpoint_type", prefix))


def test_a_folder_of_checkpoints_alone_is_evaluated_on_their_data_set(shapes, tmp_path, monkeypatch):
    program.main(arguments(shapes, *QUICK, "--train_only"))
    (shapes / "runs/run/config.yaml").unlink()
    monkeypatch.chdir(tmp_path)
    roots = ["--data_root", str(shapes / "dataset"), "--metadata_root", str(shapes / "metadata"), "--crop_size", "48"]
    common = [*roots, *QUICK, "--workers", "0", "--bootstrap", "0", "--eval_only", "--refine", "none"]
    results = program.main(continued(shapes, *common))
    assert results["dataset"] == "Shapes"
    path = shapes / "runs/run/last_checkpoint.pth.tar"
    theirs = {"architecture": "tiny", "state_dict": load(path)["state_dict"]}
    torch.save(theirs, path)
    with pytest.raises(InputError, match="does not name the data set .*give --dataset_name"):
        program.main(continued(shapes, *common))
    assert not (shapes / "dataset/Synthetic").exists() and not (tmp_path / "dataset/Synthetic").exists()
    assert program.main(continued(shapes, *common, "--dataset_name", "Shapes"))["dataset"] == "Shapes"


@pytest.mark.parametrize("flag, hint", [("--arch", "--architecture"), ("--pretrain", "--pretrained")])
def test_flags_are_not_abbreviated(flag, hint, capsys):
    with pytest.raises(SystemExit):
        parse_args([flag, "1"])
    assert f"unrecognized arguments: {flag} 1; did you mean" in (error := capsys.readouterr().err) and hint in error
    assert parse_args(["--epoch", "3"]).epochs == 3
