"""scripts/benchmark_cam.py measures what it says, on the tiny network."""

import importlib
import sys

import pytest
import torch
from conftest import ROOT

from wsol.errors import InputError

sys.path.insert(0, str(ROOT / "scripts"))
import benchmark_cam as benchmark

FAST = ("--architecture", "tiny", "--image_size", "48", "--batch_size", "3", "--repeats", "1", "--device", "cpu")


def lines_of(printed: str) -> dict[tuple[str, str], list[str]]:
    """(row's title, library) → the figures behind them."""
    found, title = {}, ""
    for line in printed.splitlines()[5:]:
        library = next((name for name in benchmark.LIBRARIES if f" {name} " in line), None)
        if library:
            before, _, after = line.partition(f" {library} ")
            title = before.strip() or title
            found[title, library] = after.split()
    return found


def test_each_method_and_the_five_beside_both_peers(capsys):
    benchmark.main([*FAST, "--methods", ",".join(benchmark.FIVE), "--no_memory"])
    printed = capsys.readouterr().out
    assert "one forward pass: " in printed
    found = lines_of(printed)
    assert {title for title, _ in found} == {*benchmark.FIVE, "five methods", "five methods, two heads"}
    assert ("cam", "grad-cam") not in found and ("cam", "torchcam") in found
    passes = {key: figures[2] for key, figures in found.items()}
    assert passes["gradcam", "ours"] == passes["gradcam", "grad-cam"] == passes["gradcam", "torchcam"] == "1"
    # One pass for five methods and two heads; one for each method elsewhere.
    assert passes["five methods, two heads", "ours"] == passes["five methods", "ours"] == "1"
    assert passes["five methods", "grad-cam"] == passes["five methods", "torchcam"] == "5"
    assert all(float(figures[0]) >= 0 and float(figures[1]) > 0 for figures in found.values())


def test_a_library_that_is_not_there_and_one_that_fails(capsys, monkeypatch):
    monkeypatch.setitem(benchmark.LIBRARIES, "torchcam", "no_such_library")
    monkeypatch.setitem(benchmark.PEERS, "gradcam", ("NoSuchMethod", "GradCAM"))
    benchmark.main([*FAST, "--methods", "gradcam", "--no_memory", "--two_heads"])
    found = lines_of(capsys.readouterr().out)
    assert found["gradcam, two heads", "torchcam"] == ["not", "installed"]
    assert found["gradcam, two heads", "grad-cam"] == ["fails:", "AttributeError"]
    assert len(found["gradcam, two heads", "ours"]) == 5


def test_peers_are_called_as_their_libraries_call_them():
    for column, library in ((0, "grad-cam"), (1, "torchcam")):
        module = importlib.import_module(benchmark.LIBRARIES[library])
        for kinds in benchmark.PEERS.values():
            assert kinds[column] is None or hasattr(module, kinds[column])


def test_memory_is_the_peak_above_what_was_held():
    held = torch.ones(2**22)
    grown = benchmark.cpu_growth(lambda: torch.ones(2**24).sum())  # 64 MiB of float32, given back at once
    assert grown is None or 60 < grown < 80
    assert benchmark.cpu_growth(lambda: held.sum()) in (None, pytest.approx(0, abs=5))


def test_mistakes(capsys):
    with pytest.raises(InputError, match="did you mean 'gradcam'"):
        benchmark.main([*FAST, "--methods", "gradcm"])
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device"):
            benchmark.main([*FAST, "--device", "cuda"])
    with pytest.raises(SystemExit) as leaving:
        benchmark.main(["--repeats", "0"])
    assert leaving.value.code == 2 and "--repeats" in capsys.readouterr().err
