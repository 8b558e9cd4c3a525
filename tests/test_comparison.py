"""scripts/compare_runs.py: numbers by hand, pairing against a plain loop, and refusals in one line."""

import json
import sys

import numpy as np
import pytest
from conftest import ROOT

from wsol.errors import InputError
from wsol.evaluation.comparison import find_runs, read_groups, table
from wsol.evaluation.per_image import FILE, PerImage, RowOutcomes
from wsol.metrics.records import BoxRecords
from wsol.run import command
from wsol.run.folder import RunFolder

sys.path.insert(0, str(ROOT / "scripts"))
import compare_runs

TAUS = np.array([0.0, 0.5, 1.0, 0.2])


def write_run(root, name, top1, right=(), *, dataset="Shapes", ids=None, labels=None, **config):
    """A run folder: `top1` of each image, and for rows {name: (N, 3)} whether it is right at tau 0, 0.5 and 1."""
    top1, run = np.array(top1, dtype=bool), RunFolder(str(root), name)
    run.open({})
    rows, found = {}, []
    for row, grid in dict(right).items():
        grid = np.array(grid, dtype=bool)
        columns = np.concatenate([grid, grid[:, :1]], axis=1)  # tau 0.2 cuts as 0 does
        records = BoxRecords(TAUS, (50,))
        records.add(columns[:, None], columns, np.zeros(len(grid)))
        rows[row] = RowOutcomes(records.outcomes(), None, None, {})
        method, _, head = row.partition("_")
        best = 100 * grid.mean(axis=0).max()
        joint = grid & top1[:, None]
        found.append(
            {
                "method": method,
                "head": head.removesuffix("_clamped"),
                "clamped": head.endswith("_clamped"),
                "normalization": "minmax",
                "num_degenerate": 0,
                "maxboxacc": {"50": best},
                "maxboxacc_v2": best,
                "maxboxacc_v1": best,
                "gt_loc_best": best,
                "gt_loc": 100 * grid[:, 0].mean(),
                "top1_loc": 100 * joint[:, 0].mean(),
                "top1_loc_best": 100 * joint.mean(axis=0).max(),
                "tau": {"gt_loc": 0.2},
                "fidelity": {"softmax": {"avg_drop": 12.5}},
            }
        )
    ids = [f"{i}.png" for i in range(len(top1))] if ids is None else ids
    labels = np.zeros(len(top1), int) if labels is None else labels
    PerImage(dataset, "test", ids, labels, np.zeros(len(top1), int), {"top1": top1}, rows).write(run.path)
    classification = {"top1": 100 * top1.mean()}
    run.write("results.json", json.dumps({"rows": found, "config": config, "classification": classification}))
    return str(run.path)


def cells(text):
    """{(row, metric): cells} of a printed table."""
    found, row = {}, ""
    lines = text.splitlines()
    edges = [i for i, c in enumerate(lines[1]) if c == "-" and (i == 0 or lines[1][i - 1] == " ")]
    for line in lines[2:]:
        parts = [line[a:b].strip() for a, b in zip(edges, [*edges[1:], None], strict=True)]
        row = parts[0] or row
        found[row, parts[1]] = parts[2:]
    return found


def test_spread_over_seeds_by_hand(tmp_path):
    a = [write_run(tmp_path, f"a{i}", top1) for i, top1 in enumerate(([1, 1, 0, 0], [1, 1, 1, 0]))]
    b = write_run(tmp_path, "b", [1, 0, 0, 0])
    groups, what = read_groups([",".join(a), b], 0, seed=0)
    assert what == "Shapes test, 4 images"
    # 50 and 75: mean 62.5, standard deviation sqrt(2 * 12.5 ** 2 / 1) = 17.68
    assert cells(table(groups))["classification", "top1"] == ["62.5 ± 17.7", "25.0", "-37.5"]


def test_differences_are_paired_as_in_a_plain_loop(tmp_path):
    rng = np.random.default_rng(0)
    tops = rng.random((3, 40)) < 0.6
    grids = rng.random((3, 40, 3)) < [0.5, 0.6, 0.1]
    runs = [
        write_run(tmp_path, f"r{i}", top, {"cam_softmax": grid})
        for i, (top, grid) in enumerate(zip(tops, grids, strict=True))
    ]
    groups, _ = read_groups([runs[0], f"{runs[1]},{runs[2]}"], 300, seed=5)
    found = cells(table(groups))

    rng, differences = np.random.default_rng(5), {"top1": [], "maxboxacc_50": [], "gt_loc": [], "top1_loc_best": []}
    for _ in range(300):
        chosen = rng.integers(40, size=40)
        values = [
            {
                "top1": top[chosen].mean(),
                "maxboxacc_50": grid[chosen].mean(axis=0).max(),
                "gt_loc": grid[chosen, 0].mean(),
                "top1_loc_best": (grid & top[:, None])[chosen].mean(axis=0).max(),
            }
            for top, grid in zip(tops, grids, strict=True)
        ]
        for key, of_key in differences.items():
            of_key.append(100 * (values[1][key] / 2 + values[2][key] / 2 - values[0][key]))
    for key, of_key in differences.items():
        low, high = np.percentile(of_key, [2.5, 97.5])
        row = "classification" if key == "top1" else "cam_softmax"
        assert f" [{low:+.1f}, {high:+.1f}]" in found[row, key][2], key


def test_a_run_against_itself_and_a_sure_difference(tmp_path):
    better, worse = write_run(tmp_path, "a", [1] * 30 + [0] * 10), write_run(tmp_path, "b", [1] * 15 + [0] * 25)
    groups, _ = read_groups([better, better, worse], 500, seed=0)
    same, other = cells(table(groups))["classification", "top1"][2::2]
    assert same == "+0.0 [+0.0, +0.0]"
    assert other.startswith("-37.5 [-5") and other.endswith("] *")  # 15 of 40 images lost


def test_one_group_is_compared_with_its_softmax_rows(tmp_path):
    run = write_run(
        tmp_path,
        "a",
        [1, 1, 1, 1],
        {
            "cam_softmax": [[1, 0, 0]] * 4,
            "cam_sigmoid_clamped": [[1, 0, 0]] * 3 + [[0, 0, 0]],
            "eigencam_none": [[0, 0, 0]] * 4,
        },
    )
    groups, _ = read_groups([run], 100, seed=0)
    found = cells(table(groups))
    assert found["cam_softmax", "gt_loc"] == ["100.0", ""] and found["eigencam_none", "gt_loc"] == ["0.0", ""]
    assert found["cam_sigmoid_clamped", "gt_loc"][1].startswith("-25.0 [")
    assert found["cam_softmax", "fidelity_softmax_avg_drop"] == ["12.5", ""]
    # Fidelity is not recorded image by image: a difference, but no interval.
    assert found["cam_sigmoid_clamped", "fidelity_softmax_avg_drop"] == ["12.5", "+0.0"]
    chosen = cells(table(groups, ["cam_softmax"], ["gt_loc", "maxboxacc_50"]))
    assert set(chosen) == {("cam_softmax", "gt_loc"), ("cam_softmax", "maxboxacc_50")}
    with pytest.raises(InputError, match=r"no run has the row 'cam' \(they have: classification, cam_softmax, "):
        table(groups, ["cam"])


def test_groups_by_commas_and_patterns(tmp_path, monkeypatch):
    for name in ("s1", "s0", "other"):
        write_run(tmp_path, name, [1])
    (tmp_path / "s2").mkdir()  # not evaluated yet
    monkeypatch.chdir(tmp_path)
    assert [p.name for p in find_runs("s*")] == ["s0", "s1"]
    assert [p.name for p in find_runs("s1,other")] == ["s1", "other"]
    for text, message in (
        ("s0,s0", "named twice"),
        ("x*", "no run .* matches 'x"),
        ("s0,zz", "there is no run folder zz"),
        (",", "a group of runs is empty"),
    ):
        with pytest.raises(InputError, match=message):
            find_runs(text)


@pytest.mark.parametrize(
    "other, message",
    [
        (dict(dataset="CUB"), r"evaluated on Shapes test, .* on CUB test; only runs over the same images"),
        (
            dict(ids=["0.png", "x.png"]),
            r"different images \(1 only in the first, 1 only in the second, such as x.png\)",
        ),
        (dict(ids=["1.png", "0.png"]), "in another order or with other labels"),
        (dict(labels=np.array([0, 1])), "in another order or with other labels"),
        (dict(gt_boxes="first"), "--gt_boxes any, .* with first"),
        (dict(iou_threshold_list=[50]), "--iou_threshold_list"),
    ],
)
def test_runs_that_cannot_be_compared(tmp_path, capsys, other, message):
    a = write_run(tmp_path, "a", [1, 0], gt_boxes="any")
    b = write_run(tmp_path, "b", [1, 0], **({"gt_boxes": "any"} | other))
    with pytest.raises(InputError, match=message):
        read_groups([a, b], 10, seed=0)
    assert command.run(lambda: compare_runs.main([a, b])) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and not printed.out


def test_results_and_images_of_different_evaluations(tmp_path):
    folder = write_run(tmp_path, "a", [1, 0])
    stale = (tmp_path / "a" / FILE).read_bytes()
    write_run(tmp_path, "b", [1, 1])
    (tmp_path / "b" / FILE).write_bytes(stale)
    with pytest.raises(InputError, match="different evaluations"):
        read_groups([folder, str(tmp_path / "b")], 10, seed=0)
    (tmp_path / "a" / "results.json").write_text("{")
    with pytest.raises(InputError, match="results.json cannot be read"):
        read_groups([folder], 10, seed=0)
    (tmp_path / "a" / "results.json").unlink()
    with pytest.raises(InputError, match="--eval_only"):
        read_groups([folder], 10, seed=0)


def test_the_command(tmp_path, capsys):
    a, b = write_run(tmp_path, "a", [1, 1, 0]), write_run(tmp_path, "b", [1, 0, 0])
    compare_runs.main([a, b, "--bootstrap", "50"])
    printed = capsys.readouterr().out
    assert f"A: {a}\nB: {b}\nShapes test, 3 images\n" in printed and "-33.3 [" in printed and "50 resamples" in printed
    compare_runs.main([a, b, "--bootstrap", "0"])
    assert "[" not in capsys.readouterr().out
