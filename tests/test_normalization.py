"""--normalization: against NumPy in float64, on resized maps; and where a map cannot be normalised."""

import json

import cv2
import numpy as np
import pytest
import torch
from conftest import arguments

import main as program
from config import parse_args
from wsol.cam import NORMALIZATIONS, to_scoremaps
from wsol.cam.normalization import sorted_value
from wsol.errors import InputError


def expected(scores: np.ndarray, name: str, quantile: float | None) -> np.ndarray:
    """The definition, one map at a time."""
    scores = scores.astype(np.float64)
    if name == "minmax":
        return (scores - scores.min()) / (scores.max() - scores.min())
    if name == "max":
        return np.maximum(scores, 0) / scores.max()
    quantile = {"pas": 0.9, "ivr": 0.45}[name] if quantile is None else quantile
    at = np.sort(scores.ravel())[min(int(quantile * scores.size), scores.size - 1)]
    if name == "pas":
        return np.minimum((scores - scores.min()) / (at - scores.min()), 1)
    return np.maximum(scores - at, 0) / (scores.max() - at)


@pytest.mark.parametrize("method, flag", [("cam", cv2.INTER_CUBIC), ("gradcam", cv2.INTER_LINEAR)])
@pytest.mark.parametrize(
    "name, quantile",
    [
        ("minmax", None),
        ("max", None),
        ("pas", None),
        ("pas", 0.73),
        ("pas", 1.0),
        ("ivr", None),
        ("ivr", 0.73),
        ("ivr", 0.0),
    ],
)
def test_normalizations_are_their_definitions(method, flag, name, quantile):
    raw = torch.randn(6, 7, 9) + torch.tensor([0, 0, 0, 0.5, 3, -0.5])[:, None, None]
    found, degenerate = to_scoremaps(raw, method, (60, 50), name, quantile)
    assert found.dtype == torch.float32 and found.shape == (6, 60, 50) and not degenerate.any()
    for ours, signed in zip(found.numpy(), raw.numpy(), strict=True):
        signed = signed if method == "cam" else np.maximum(signed, 0)
        resized = cv2.resize(signed.astype(np.float64), (50, 60), interpolation=flag)
        assert np.abs(ours - expected(resized, name, quantile)).max() < 1e-5
        assert ours.min() >= 0 and ours.max() <= 1


def test_the_quantile_is_the_sorted_value_at_floor_p_n():
    maps = torch.stack([torch.randperm(20), torch.randperm(20) + 100]).reshape(2, 4, 5).float()
    for quantile, place in ((0, 0), (0.45, 9), (0.499, 9), (0.5, 10), (0.9, 18), (0.99, 19), (1, 19)):
        assert sorted_value(maps, quantile).tolist() == [[[place]], [[place + 100]]]


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_what_cannot_be_normalised_is_zeros_and_counted(name):
    raw = torch.rand(6, 4, 4) + 0.1
    raw[0] = 0.3  # constant
    raw[1, 2, 2] = float("nan")
    raw[2, 0, 0] = float("inf")
    raw[3] = -raw[3]  # no positive value
    raw[4] = 0
    raw[4, 1, 1] = 1  # flat but for one pixel: its quantiles are its minimum
    maps, degenerate = to_scoremaps(raw, "cam", (4, 4), name)
    assert degenerate.tolist() == [True, True, True, name == "max", name == "pas", False]
    assert torch.isfinite(maps).all() and (maps[degenerate] == 0).all()
    assert (maps[~degenerate].amax(dim=(1, 2)) == 1).all()


def test_a_run_uses_and_records_it(shapes):
    wanted = ["--methods", "cam", "--heads", "softmax_clamped", "--epochs", "1", "--save_scoremaps"]
    results = program.main(arguments(shapes, *wanted, "--normalization", "ivr", "--normalization_quantile", "0.7"))
    assert [row["normalization"] for row in results["rows"]] == ["ivr"]
    assert results["config"]["normalization_quantile"] == 0.7
    for path in (shapes / "runs/run/scoremaps/test/cam_softmax_clamped").rglob("*.npy"):
        assert np.mean(np.load(path) == 0) >= 0.7
    again = program.main(
        ["--root", str(shapes / "runs"), "--experiment_name", "run", "--eval_only", "--normalization", "pas"]
    )  # the other normalisation's quantile is not taken along
    assert again["rows"][0]["normalization"] == "pas" and again["config"]["normalization_quantile"] is None
    assert again["rows"][0]["pxap"] != results["rows"][0]["pxap"]
    assert json.loads((shapes / "runs/run/eval-1/results.json").read_text())["rows"][0]["normalization"] == "pas"


def test_a_quantile_that_nothing_reads_is_refused():
    assert parse_args([]).normalization == "minmax"
    for name in ("minmax", "max"):
        with pytest.raises(InputError, match=f"applies to pas and ivr, not to --normalization {name}"):
            parse_args(["--normalization", name, "--normalization_quantile", "0.5"])
    with pytest.raises(SystemExit):
        parse_args(["--normalization", "pas", "--normalization_quantile", "1.5"])
