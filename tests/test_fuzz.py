"""Every file that a command reads, damaged in every way: exit code 0, or 2 after one line; never a traceback.

Structure-aware: one field of a file is replaced by junk, taken out or doubled, or the file's bytes are cut off, spliced
or flipped.

WSOL_FUZZ_CASES=145 WSOL_FUZZ_SEED=18 pytest tests/test_fuzz.py tries more and other cases; the number is for each file.
"""

import contextlib
import copy
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, arguments, files_below, tiny_network, write_dataset
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import evaluation
import inference
import main as program
from wsol.checksum import sealed
from wsol.run import command

sys.path.insert(0, str(ROOT / "scripts"))
import compare_runs
import export_checkpoint
import prepare_metadata

CASES = int(os.environ.get("WSOL_FUZZ_CASES", "20"))
SEED = int(os.environ.get("WSOL_FUZZ_SEED", "17"))

DEEP = 3000  # beyond Python's limit of recursion
NUMBERS = ["-1", "0", "3", "0.5", "1e400", "-1e308", "9" * 30, "9" * 5000]
WORDS = ["", "text", "../../x", "/etc/passwd", "a/../b", ".", "é", "x" * 5000, "softmax", "test", "%s{0}"]

# --------------------------------------------------------------------------- damage


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The ways to every value in nested dicts and lists, the whole first."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def changed(value: Any, path: tuple, change: Callable[[Any, Any], None] | None, new: Any = None) -> Any:
    """A copy with the value at a path replaced by `new`, or with `change(parent, key)` applied there."""
    if not path:
        return new
    value = copy.deepcopy(value)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    if change is None:
        parent[path[-1]] = new
    else:
        change(parent, path[-1])
    return value


def delete(parent: Any, key: Any) -> None:
    del parent[key]


def double(parent: Any, key: Any) -> None:
    if isinstance(parent, list):
        parent.insert(key, parent[key])
    else:
        parent[f"{key}2"] = parent[key]


def with_junk(draw: Callable, value: Any, junk: list) -> Any:
    """A copy of nested dicts and lists in which one place is replaced by junk, missing or doubled."""
    ways = places(value)
    shallow = [path for path in ways if len(path) <= 1]  # few beside all the tensors' names
    path = draw(st.sampled_from(draw(st.sampled_from([shallow, ways]))))
    change = draw(st.sampled_from([None, None, None, None, delete, double]))
    return changed(value, path, change, draw(st.sampled_from(junk)))


def bytes_damaged(draw: Callable, content: bytes) -> bytes:
    """Cut off, spliced, or with bits flipped."""
    at = draw(st.integers(0, len(content)))
    how = draw(st.sampled_from(["cut", "splice", "flip", "zeros", "other"]))
    if how == "cut":
        return content[:at]
    if how == "splice":
        start, size = draw(st.integers(0, len(content))), draw(st.integers(1, 300))
        return content[:at] + content[start : start + size] + content[draw(st.integers(at, len(content))) :]
    if how == "zeros":
        return content[:at] + bytes(draw(st.integers(1, 100))) + content[at:]
    if how == "other":
        return draw(st.sampled_from([b"", b"\n", b"\0", b"\xff\xfe", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"text"]))
    flipped = bytearray(content)
    for place in draw(st.lists(st.integers(0, max(len(content) - 1, 0)), min_size=1, max_size=8)):
        if flipped:
            flipped[place] ^= 1 << draw(st.integers(0, 7))
    return bytes(flipped)


# Text that stands for a value that cannot be dumped.
MARK = "JUNK-7f3a"
JSON_JUNK = [
    *("null", "true", '"\\ud800"', '"\\u0000"', "[]", "{}", "[1, 2]", '{"a": 1}', "NaN", "Infinity", "-Infinity"),
    *("[" * DEEP + "]" * DEEP, '{"a":' * 900 + "1" + "}" * 900, *NUMBERS, *map(json.dumps, WORDS)),
]
YAML_JUNK = [
    *("null", "true", "[]", "{}", "[1, 2]", "{a: 1}", "{1: 2}", ".nan", ".inf", "2020-01-01", "2020-13-45", "&a [*a]"),
    *("!!python/object/apply:os.system [ls]", "!!binary aGk=", "!!set {a}", "[" * DEEP + "]" * DEEP, "*b"),
    *("0x" + "f" * 9, '"\\0"', '"\\ud800"', "? [a]\n: b", "2001:1:1", *NUMBERS, *map(json.dumps, WORDS)),
]


def json_damaged(draw: Callable, content: bytes) -> bytes:
    text = json.dumps(with_junk(draw, json.loads(content), [MARK]))
    return text.replace(f'"{MARK}"', draw(st.sampled_from(JSON_JUNK))).encode()


def jsonl_damaged(draw: Callable, content: bytes) -> bytes:
    lines = content.splitlines()
    number = draw(st.integers(0, len(lines) - 1))
    lines[number] = json_damaged(draw, lines[number])
    return b"\n".join(lines) + b"\n"


def yaml_damaged(draw: Callable, content: bytes) -> bytes:
    text = yaml.safe_dump(with_junk(draw, yaml.safe_load(content), [MARK]), width=10**6)
    return text.replace(MARK, draw(st.sampled_from(YAML_JUNK))).encode()


def tensor_junk() -> list:
    deep: Any = []
    for _ in range(60):
        deep = [deep]
    return [
        *(None, True, -1, 0, 3, 0.5, float("nan"), float("inf"), 10**30, b"bytes", (), (1, 2), [], {}, {"a": 1}),
        *({1: 2}, {"a": torch.ones(1)}, {3, 4}, deep, "\0", "\ud800", *WORDS),
        *(torch.tensor(1.0), torch.ones(2), torch.zeros(0), torch.full((3, 16), torch.nan)),
        *(torch.ones(2, dtype=torch.cfloat), torch.ones(3, 16, dtype=torch.bool), torch.ones(2, 2).to_sparse()),
        torch.ones(3, dtype=torch.bfloat16),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ]


def checkpoint_damaged(draw: Callable, content: bytes) -> bytes:
    """One field is another; its checksum may still be the old one, that of the new content, or missing."""
    value = with_junk(draw, torch.load(io.BytesIO(content), weights_only=True), tensor_junk())
    seal = draw(st.sampled_from(["old", "none", "new", "new"]))
    if isinstance(value, dict) and seal != "old":
        value.pop("checksum", None)
        value = sealed(value) if seal == "new" else value
    written = io.BytesIO()
    torch.save(value, written)
    return written.getvalue()


def array_junk() -> list[np.ndarray]:
    return [
        *(np.array(0.5), np.array("text"), np.array(b"text"), np.zeros(0), np.zeros((0, 3)), np.ones(3), np.arange(12)),
        *(np.full(12, np.nan), np.full((12, 1), np.inf), np.full(12, -1), np.full(12, 10**18), np.ones(12, bool)),
        *(np.zeros((12, 3, 4), np.uint8), np.ones((12, 3), complex), np.array(["a"] * 12), np.zeros((1,) * 30)),
        *(np.zeros(12, [("a", int)]), np.array(["2020"] * 12, "datetime64[D]"), np.ones((224, 224), np.float16)),
        *(np.full((224, 224), 2.0), np.full((224, 224), np.nan, np.float32), np.ones((224, 224, 1)), np.ones((224, 0))),
    ]


def npz_damaged(draw: Callable, content: bytes) -> bytes:
    with np.load(io.BytesIO(content)) as file:
        arrays = {name: file[name] for name in file.files}
    name = draw(st.sampled_from(list(arrays)))
    how = draw(st.sampled_from(["junk", "junk", "missing", "settings", "settings", "shorter", "pickle"]))
    if how == "settings":
        arrays["settings"] = np.array(json_damaged(draw, str(arrays["settings"]).encode()).decode())
    elif how == "missing":
        del arrays[name]
    elif how == "shorter":
        arrays[name] = arrays[name][1:] if arrays[name].ndim else arrays[name]
    else:
        arrays[name] = draw(st.sampled_from(array_junk())) if how == "junk" else np.array([{}, 1], dtype=object)
    written = io.BytesIO()
    np.savez(written, **arrays)
    return written.getvalue()


NPY_HEADERS = [
    *("{", "(" * DEEP, "9" * 5000, "{'descr': 'x', 'fortran_order': 3, 'shape': 4}"),
    *(
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}"
        for shape in ("(10**9,)", "(-1, 224)", "(9999999999999, 224)", "(224, 225)", "(224,) * 9", "()")
    ),
]


def npy_damaged(draw: Callable, content: bytes) -> bytes:
    written = io.BytesIO()
    if draw(st.booleans()):
        np.save(written, draw(st.sampled_from(array_junk())))
        return written.getvalue()
    header = draw(st.sampled_from(NPY_HEADERS))
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + content[128:]


FIELD_JUNK = [
    *(*NUMBERS, *WORDS, "nan", "inf", "\0", " ", ",", "1,2,3,4,5,6", "\udcff", "test/0/0.png", "٣", "1_0", "0x1"),
]


def table_damaged(draw: Callable, content: bytes) -> bytes:
    """One field of a comma-separated line replaced, or a line missing, doubled or blank."""
    lines = [line.split(",") for line in content.decode().splitlines()]
    line = draw(st.sampled_from(lines))
    how = draw(st.sampled_from(["field", "field", "field", "field", "missing", "doubled", "blank", "end"]))
    if how == "field":
        line[draw(st.integers(0, len(line) - 1))] = draw(st.sampled_from(FIELD_JUNK))
    elif how == "end":
        line.append(draw(st.sampled_from(FIELD_JUNK)))
    else:
        place = lines.index(line)
        lines[place : place + 1] = {"missing": [], "doubled": [line, line], "blank": [[""], line]}[how]
    return "\n".join(map(",".join, lines)).encode("utf-8", "surrogateescape") + b"\n"


# --------------------------------------------------------------------------- files and commands


class Target(NamedTuple):
    """A file that commands read."""

    file: str
    damaged: Callable[[Callable, bytes], bytes]
    commands: tuple[str, ...]


MAIN = "main --root runs --experiment_name run"
NEW = (
    "main --root runs --experiment_name new --dataset_name Shapes --architecture tiny --data_root dataset "
    "--metadata_root metadata --dry_run"
)
PICTURE = "inference picture.png --out pictures --methods cam --workers 0 --ckpt runs/run/last_checkpoint.pth.tar"
EVALUATE = (
    "evaluation --dataset_name Shapes --metadata_root metadata --mask_root dataset --scoremap_root maps "
    "--cam_curve_interval 0.1 --workers 0"
)
CHECK = "prepare_metadata check Shapes --metadata_root metadata --data_root dataset"
COMPARE = "compare_runs runs/run runs/other --bootstrap 20"
EVALUATE_RUN = f"{MAIN} --eval_only --dry_run"
RESUME = f"{MAIN} --resume --epochs 2 --train_only"
TARGETS = [
    Target(
        "runs/run/last_checkpoint.pth.tar",
        checkpoint_damaged,
        (
            *(EVALUATE_RUN, RESUME, PICTURE),
            f"{NEW} --ft_ckpt runs/run/last_checkpoint.pth.tar",
            "export_checkpoint runs/run/last_checkpoint.pth.tar exported.pth",
        ),
    ),
    Target("runs/run/metrics.jsonl", jsonl_damaged, (RESUME,)),
    Target("runs/run/config.yaml", yaml_damaged, (EVALUATE_RUN, RESUME)),
    Target("settings.yaml", yaml_damaged, (f"{NEW} --config settings.yaml",)),
    Target("runs/run/results.json", json_damaged, (COMPARE, EVALUATE_RUN)),
    Target("runs/run/per_image.npz", npz_damaged, (COMPARE,)),
    Target("maps/test/0/1.npy", npy_damaged, (EVALUATE,)),
    *(
        Target(f"metadata/Shapes/test/{name}.txt", table_damaged, (EVALUATE_RUN, EVALUATE, CHECK))
        for name in ("image_ids", "class_labels", "image_sizes", "localization", "masks")
    ),
    Target("picture.png", bytes_damaged, (PICTURE,)),
    Target("dataset/Shapes/test/0/1_mask.png", bytes_damaged, (EVALUATE,)),
]
PROGRAMS = {
    "main": program.main,
    "evaluation": evaluation.main,
    "inference": inference.main,
    "compare_runs": compare_runs.main,
    "export_checkpoint": export_checkpoint.main,
    "prepare_metadata": prepare_metadata.main,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with two finished runs, saved maps, a file of settings and a picture."""
    root = write_dataset(tmp_path_factory.mktemp("fuzz"), "Shapes", form="both")
    with tiny_network(), contextlib.chdir(root):
        for name in ("run", "other"):
            flags = ("--methods", "cam", "--epochs", "1", "--save_scoremaps")
            program.main([word.replace(f"{root}/", "") for word in arguments(root, *flags, name=name)])
    (root / "runs/run/scoremaps/test/cam_softmax").rename(root / "maps")
    for folder in ("run", "other"):
        for part in ("scoremaps", "figures"):
            shutil.rmtree(root / "runs" / folder / part)
    shutil.copy(root / "dataset/Shapes/test/0/0.png", root / "picture.png")
    given = {
        "lr": 0.01,
        "methods": ["cam"],
        "heads": ["softmax"],
        "augment": "crop_flip",
        "scales": [1.0],
        "wandb": False,
    }
    (root / "settings.yaml").write_text(yaml.safe_dump(given))
    return root


def ended(line: str) -> tuple[int, str]:
    """The exit code of a command and what it printed to stderr; in this process, where the tiny network is known."""
    name, *argv = line.split()
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = command.run(lambda: PROGRAMS[name](argv))
        except SystemExit as leaving:  # argparse leaves by itself
            code = leaving.code
    err.flush()
    return code, err.buffer.getvalue().decode()


@contextlib.contextmanager
def restored(root):
    """Whatever happens to the files below a folder, they are as before afterwards."""
    before = files_below(root)
    try:
        yield before
    finally:
        now = files_below(root)
        for name in now.keys() - before.keys():
            (root / name).unlink()
        for name, content in before.items():
            if now.get(name) != content:
                (root / name).write_bytes(content)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.file)
def test_damaged_files(world, monkeypatch, target):
    monkeypatch.chdir(world)
    whole = (world / target.file).read_bytes()
    for line in target.commands:  # otherwise every case would end for one and the same reason
        with restored(world):
            code, printed = ended(line)
            assert code == 0, (line, printed)

    @seed(SEED)
    @settings(
        max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
    )
    @given(st.data())
    def fuzz(data):
        damaged = data.draw(st.sampled_from([target.damaged, bytes_damaged]))
        content = damaged(data.draw, whole)
        line = data.draw(st.sampled_from(target.commands))
        with restored(world):
            (world / target.file).write_bytes(content)
            before = files_below(world)
            code, printed = ended(line)
            problems = code == 1 and line == CHECK  # what that command is for: it prints them all
            assert code in (0, 2) or problems, (line, code, printed)
            assert "Traceback" not in printed and "weights_only" not in printed, printed
            if code == 2:
                first, *others = printed.splitlines()
                assert first.startswith("error: "), printed
                assert not others or others == [f"see python {line.split()[0]}.py --help"], printed
                assert line == RESUME or files_below(world) == before, line

    fuzz()
