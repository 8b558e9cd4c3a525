"""scripts/study.py: what it runs, in which order, and its tables, worked by hand."""

import json
import sys

import pytest
from conftest import ROOT

from wsol.errors import InputError

sys.path.insert(0, str(ROOT / "scripts"))
import study


def row(method, head, clamped, refine, v2, fidelity=None):
    """A row of results.json; all figures but MaxBoxAccV2 are 10."""
    figures = {"gt_loc": 10.0, "gt_loc_val": 10.0, "top1_loc": 10.0, "pxap": 10.0, "maxboxacc_v2": v2}
    if fidelity is not None:
        figures["fidelity"] = {"softmax": {"avg_drop": fidelity, "inc_conf": 5.0}}
    return {"method": method, "head": head, "clamped": clamped, "refine": refine} | figures


def finish(unit, offset):
    """Write the results of a unit as if it had run."""
    branch = {"setting": {"weights": "nonnegative", "lambda": 0.0, "mu": 10.0}}
    affinity = {"setting": {"layer": "stride16", "power": 1.0, "steps": 1, "centred": True} if offset else None}
    common = {"branch": branch, "affinity": affinity, "num_images": 7, "classification": {"top1": 80.0 + offset}}
    drop = 20.0 if unit.fidelity else None
    rows = {
        "cam": [
            row("cam", "softmax", False, "none", 50.0, drop),
            row("cam", "softmax", True, "none", 60.0 + offset, drop),
            row("cam", "sigmoid", True, "none", 65.0 + 2 * offset, drop),
            row("cam", "softmax", True, "affinity", 80.0, drop),
            row("cam", "sigmoid", True, "affinity", 82.0, drop),
        ],
        "gradient": [
            row("layercam", "softmax", False, "none", 40.0),
            row("layercam", "sigmoid", False, "none", 41.0),
        ],
        "paper": [row("cam", "sigmoid", True, "none", 60.5), row("cam", "sigmoid", True, "affinity", 79.0)],
    }
    unit.folder.mkdir(parents=True)
    for name in unit.evaluations:
        (unit.folder / f"{name}.json").write_text(json.dumps(common | {"rows": rows[name]}))


def test_the_tables_by_hand(tmp_path):
    units = [study.Unit(study.PLACES[0], seed, tmp_path, fidelity=seed == 1) for seed in (1, 2, 3)]
    for unit, offset in zip(units, (0, 1, 2), strict=True):
        finish(unit, offset)
    lines = study.report(units).splitlines()
    assert "3 seeds (1, 2, 3), 7 test images each;" in lines and "Top-1 of the softmax head 81.0 ± 1.0 %." in lines
    assert "Average drop and increase are of seeds 1." in lines
    cells = {line.split(" | ")[0].lstrip("| "): [c.strip(" |") for c in line.split(" | ")[1:]] for line in lines}
    assert cells["cam branch"] == ["67.0 ± 2.0", *["10.0 ± 0.0"] * 4, "20.0", "5.0"]
    assert cells["cam paper's branch, refined"][0] == "79.0 ± 0.0"
    assert cells["layercam branch"][0] == "41.0 ± 0.0"
    # Differences 5, 6, 7: mean 6, standard deviation 1, half the interval 4.303 / sqrt(3) = 2.48.
    assert cells["cam branch − cam softmax, clamped"][0] == "**+6.0 [+3.5, +8.5]**"
    # Differences 17, 15, 13 of the refinement: mean 15, standard deviation 2.
    assert cells["cam branch, refined − cam branch"][0] == "**+15.0 [+10.0, +20.0]**"
    assert cells["cam branch − cam softmax, clamped"][1] == "+0.0 [+0.0, +0.0]"  # an interval that touches 0
    order = [line.split(" | ")[0] for line in lines if line.startswith("| cam ") and " − " not in line]
    assert order == [
        "| cam softmax",
        "| cam softmax, clamped",
        "| cam paper's branch",
        "| cam branch",
        "| cam softmax, clamped, refined",
        "| cam paper's branch, refined",
        "| cam branch, refined",
    ]
    assert lines[-1].startswith("Chosen on val, seed by seed: nonnegative λ 0.0 μ 10, no refinement; nonnegative")


def test_unfinished_units_are_left_out(tmp_path):
    finished, other = (study.Unit(study.PLACES[0], seed, tmp_path, fidelity=False) for seed in (1, 2))
    finish(finished, 0)
    finish(other, 1)
    (other.folder / "paper.json").unlink()
    assert finished.finished and not other.finished
    assert "1 seeds (1)" in study.report([finished, other])
    assert study.report([other]) == ""


def test_steps_that_are_done_are_not_repeated(tmp_path, monkeypatch):
    unit = study.Unit(study.PLACES[1], 4, tmp_path, fidelity=True)
    calls = []

    def main(name, flags):
        calls.append((name, flags))
        (unit.folder / name).mkdir(parents=True, exist_ok=True)
        (unit.folder / name / "config.yaml").touch()
        setting = {"layer": "stride8", "power": 4.0, "steps": 1, "centred": True}
        content = {"rows": [], "affinity": {"setting": setting}, "number": len(calls)}
        folder = unit.folder / name / f"eval-{len(calls)}"  # as main.py does where settings differ from the run's
        folder.mkdir(exist_ok=True)
        (folder / "results.json").write_text(json.dumps(content))

    monkeypatch.setattr(unit, "_main", main)
    unit.run()
    assert [(name, flags[0]) for name, flags in calls] == [
        ("default", "--train_only"),
        ("default", "--eval_only"),
        ("default", "--eval_only"),
        ("paper_branch", "--train_only"),
        ("paper_branch", "--eval_only"),
    ]
    assert "--large_feature_map" in calls[0][1] and "--ft_ckpt" not in calls[0][1]
    given = calls[2][1]
    assert (
        given[given.index("--affinity_layer") + 1] == "stride8" and given[given.index("--affinity_power") + 1] == "4.0"
    )
    assert calls[3][1][-3].endswith("default/vanilla_last_checkpoint.pth.tar")
    assert [unit.result(name)["number"] for name in ("cam", "gradient", "paper")] == [2, 3, 5]
    assert "--fidelity" in calls[1][1] and "--fidelity" not in given and unit.finished
    # Every flag is one that main.py reads.
    from config import parse_args

    for _, flags in calls:
        parse_args([*flags, *([] if "--train_only" in flags else ["--experiment_name", "x"])])
    calls.clear()
    (unit.folder / "gradient.json").unlink()
    (unit.folder / "paper_branch.trained").unlink()
    unit.run()
    assert [(name, flags[:2]) for name, flags in calls] == [
        ("default", ["--eval_only", "--methods"]),
        ("paper_branch", ["--train_only", "--resume"]),
    ]


def test_a_page_keeps_what_stands_around_the_tables(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{study.MARKS[0]}\nold\n{study.MARKS[1]}\n\nThe end.\n")
    study.write_report(page, "new")
    assert page.read_text() == f"# Title\n\n{study.MARKS[0]}\nnew\n{study.MARKS[1]}\n\nThe end.\n"
    study.write_report(tmp_path / "other.md", "new")
    assert (tmp_path / "other.md").read_text() == f"{study.MARKS[0]}\nnew\n{study.MARKS[1]}\n"
    page.write_text("# Title\n")
    with pytest.raises(InputError, match="needs the lines <!-- study: begin -->"):
        study.write_report(page, "new")


def test_mistakes_in_one_line(tmp_path):
    with pytest.raises(InputError, match="--cutouts DIR is missing"):
        study.main(["--out", str(tmp_path)])
    with pytest.raises(InputError, match="has no finished results"):
        study.main(["--out", str(tmp_path), "--report", str(tmp_path / "x.md")])
    assert not (tmp_path / "x.md").exists()
    with pytest.raises(InputError, match="nowhere does not exist"):
        study.main(["--out", str(tmp_path), "--cutouts", str(tmp_path / "nowhere")])
    for seeds in ("", "1,x", ",".join(map(str, range(11)))):
        with pytest.raises(SystemExit):
            study.main(["--seeds", seeds])
