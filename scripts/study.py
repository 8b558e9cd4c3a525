#!/usr/bin/env python
"""The study behind docs/results.md: what clamping, the branch, the choice on val and the refinement bring.

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb stamps     # no root needed
    pip install scikit-image                                                                     # for its photographs
    python scripts/study.py --cutouts stamps --out study                 # hours on two cores; says what it is doing
    python scripts/study.py --out study --report docs/results.md         # the tables of what is finished

Interrupted, the same command continues where it was. A seed stands for everything that chance decides: which objects
are in train, val and test, the composites or drawings, and the training. Nothing is chosen on test.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wsol.cam import Variant
from wsol.datasets.cutouts import find_cutouts, make_cutouts
from wsol.datasets.synthetic import make_synthetic
from wsol.errors import InputError
from wsol.run import command

ROOT = Path(__file__).resolve().parent.parent
# Student's t, 97.5 % quantile, for 1, 2, ... degrees of freedom.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
LARGE, SMALL = ["--crop_size", "448", "--resize_size", "512"], ["--large_feature_map", "TRUE"]
GRADIENT_METHODS = "gradcam,layercam"
FIDELITY_SEEDS = 2  # fidelity, a forward pass for each map, is measured for the first so many seeds
REFINED = ["--refine", "none,affinity", "--refined_methods"]
HEADS = ("softmax", "softmax_clamped", "sigmoid_clamped")
COLUMNS = {
    "MaxBoxAccV2": lambda row: row["maxboxacc_v2"],
    "GT-Loc .2": lambda row: row["gt_loc"],
    "GT-Loc@val": lambda row: row["gt_loc_val"],
    "Top-1 Loc": lambda row: row["top1_loc"],
    "PxAP": lambda row: row["pxap"],
    "avg drop": lambda row: _fidelity(row)["avg_drop"],
    "increase": lambda row: _fidelity(row)["inc_conf"],
}


class Place(NamedTuple):
    """A data set at a resolution. Only in a full one, other methods, the paper's branch and fidelity are measured."""

    name: str
    dataset: str
    flags: list[str]
    full: bool = True


PLACES = (
    Place("CUTOUTS at 448", "CUTOUTS", LARGE),
    Place("CUTOUTS at 224", "CUTOUTS", SMALL),
    Place("Synthetic at 448", "Synthetic", LARGE),
    Place("Synthetic at 224", "Synthetic", SMALL),
    Place("Seamless composites at 448", "SEAMLESS", LARGE, full=False),
)


def _fidelity(row: dict[str, Any]) -> dict[str, float]:
    """Of the network that classifies; empty figures for rows that were not measured."""
    return row.get("fidelity", {}).get("softmax", {"avg_drop": math.nan, "inc_conf": math.nan})


# --------------------------------------------------------------------------- runs


class Unit:
    """One place and seed: two trainings (our default, and the paper's branch on the same softmax head), measured.

    Its results are JSON files, one for each evaluation; one that exists is not made again.
    """

    def __init__(self, place: Place, seed: int, out: Path, fidelity: bool):
        self.place, self.seed, self.out = place, seed, out
        self.fidelity = fidelity and place.full
        self.folder = out / place.name.replace(" ", "_") / str(seed)

    def result(self, name: str) -> dict[str, Any] | None:
        """The results.json of an evaluation; None if it is still to be made."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    @property
    def evaluations(self) -> tuple[str, ...]:
        """The names of its results."""
        return ("cam", "paper", "gradient") if self.place.full else ("cam",)

    @property
    def finished(self) -> bool:
        """Whether every evaluation is there."""
        return all(self.result(name) is not None for name in self.evaluations)

    def run(self) -> None:
        """Do what is still to be done."""
        data = self.out / "data" / str(self.seed)
        common = [
            *(
                "--dataset_name",
                self.place.dataset,
                "--data_root",
                str(data),
                "--metadata_root",
                str(data / "metadata"),
            ),
            *("--seed", str(self.seed), "--workers", "1", "--bootstrap", "0", "--val_every", "1000", *self.place.flags),
        ]
        self._train("default", common)
        fidelity = ["--fidelity", "confidence"] if self.fidelity else []
        cam = self._evaluate("cam", "default", ["--methods", "cam", *fidelity])
        if not self.place.full:
            return
        chosen = cam["affinity"]["setting"]
        given = ["--affinity_choice", "given"]
        for key in ("layer", "power", "steps", "centred") if chosen else ():
            given += [f"--affinity_{key}", str(chosen[key]).upper() if key == "centred" else str(chosen[key])]
        self._evaluate("gradient", "default", ["--methods", GRADIENT_METHODS, *REFINED, GRADIENT_METHODS, *given])
        probe = self.folder / "default" / "vanilla_last_checkpoint.pth.tar"
        self._train("paper_branch", [*common, "--ft_ckpt", str(probe), "--heads", "sigmoid_clamped"])
        paper = ["--methods", "cam", *fidelity, *REFINED, "cam", "--affinity_choice", "val"]
        self._evaluate("paper", "paper_branch", paper)

    def _train(self, name: str, flags: list[str]) -> None:
        if (self.folder / f"{name}.trained").exists():
            return
        begun = (self.folder / name / "config.yaml").exists()
        self._main(name, ["--train_only", *(["--resume"] if begun else flags)])
        (self.folder / f"{name}.trained").touch()

    def _evaluate(self, name: str, run: str, flags: list[str]) -> dict[str, Any]:
        if self.result(name) is None:
            self._main(run, ["--eval_only", *flags])
            partial = self.folder / f"{name}.partial"
            # Evaluations with other settings than the run's are in folders of their own, eval-1, eval-2, ...
            made = [*self.folder.glob(f"{run}/results.json"), *self.folder.glob(f"{run}/eval-*/results.json")]
            shutil.copy(max(made, key=lambda path: path.stat().st_mtime_ns), partial)
            partial.replace(self.folder / f"{name}.json")
        result = self.result(name)
        assert result is not None
        return result

    def _main(self, name: str, flags: list[str]) -> None:
        command = [sys.executable, str(ROOT / "main.py"), "--root", str(self.folder), "--experiment_name", name, *flags]
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            code = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode
        if code:
            raise InputError(f"{' '.join(command)} failed ({code}), see {self.folder}/log.txt")


def make_data(seed: int, cutouts: Path, out: Path) -> None:
    """The three data sets of a seed, unless they exist."""
    data = out / "data" / str(seed)
    make_synthetic(data, data / "metadata", seed=seed)
    for name, seamless in (("CUTOUTS", False), ("SEAMLESS", True)):
        make_cutouts(cutouts, data, data / "metadata", name=name, seed=seed, seamless=seamless)


def run(units: Sequence[Unit], cutouts: Path) -> None:
    """Run all units, and say how long each took."""
    for number, unit in enumerate(units, 1):
        if unit.finished:
            continue
        print(f"{number} of {len(units)}: {unit.place.name}, seed {unit.seed}", end=" ", flush=True)
        start = time.perf_counter()
        make_data(unit.seed, cutouts, unit.out)
        unit.run()
        print(f"{time.perf_counter() - start:.0f} s", flush=True)


# --------------------------------------------------------------------------- report


def report(units: Sequence[Unit]) -> str:
    """Tables in Markdown of the units that are finished."""
    parts = []
    for place in PLACES:
        finished = [unit for unit in units if unit.place == place and unit.finished]
        if finished:
            parts.append("\n".join(_place_report(place, finished)))
    return "\n\n".join(parts)


def _place_report(place: Place, units: list[Unit]) -> Iterator[str]:
    seeds = [_rows(unit) for unit in units]
    labels = [label for label in seeds[0] if all(label in rows for rows in seeds)]
    results = [unit.result("cam") or {} for unit in units]
    top1 = [result["classification"]["top1"] for result in results]
    yield f"## {place.name}\n"
    numbers = ", ".join(str(unit.seed) for unit in units)
    yield f"{len(units)} seeds ({numbers}), {results[0]['num_images']} test images each;"
    yield f"Top-1 of the softmax head {_mean_and_sd(top1)} %."
    measured = [str(unit.seed) for unit in units if unit.fidelity]
    yield f"Average drop and increase are of seeds {', '.join(measured)}.\n" if place.full else ""
    yield "| map | " + " | ".join(COLUMNS) + " |"
    yield "| --- |" + " ---: |" * len(COLUMNS)
    for label in labels:
        cells = [_mean_and_sd([read(rows[label]) for rows in seeds]) for read in COLUMNS.values()]
        yield f"| {label} | " + " | ".join(cells) + " |"
    compared = ("MaxBoxAccV2", "GT-Loc .2", "GT-Loc@val", "PxAP", "avg drop")
    yield "\n| paired difference, and its 95 % interval | " + " | ".join(compared) + " |"
    yield "| --- |" + " ---: |" * len(compared)
    for a, b in _comparisons(labels):
        cells = [_paired([COLUMNS[name](rows[a]) - COLUMNS[name](rows[b]) for rows in seeds]) for name in compared]
        yield f"| {a} − {b} | " + " | ".join(cells) + " |"
    yield "\nChosen on val, seed by seed: " + "; ".join(_choices(result) for result in results) + "."


def _rows(unit: Unit) -> dict[str, dict[str, Any]]:
    """Label → row of results.json, in the order of the table."""
    found: dict[str, dict[str, Any]] = {}
    for name in unit.evaluations:
        for row in (unit.result(name) or {})["rows"]:
            head = Variant.from_record(row | {"refine": "none"}).head_label
            head = {"sigmoid, clamped": "branch", "sigmoid": "branch"}.get(head, head)
            if name == "paper":
                head = "paper's branch"
            refined = ", refined" if row["refine"] != "none" else ""
            found[f"{row['method']} {head}{refined}"] = row
    order = ["softmax", "softmax, clamped", "paper's branch", "branch"]

    def place(label: str) -> tuple[bool, str, bool, int]:
        method, _, head = label.partition(" ")
        return method != "cam", method, head.endswith(", refined"), order.index(head.removesuffix(", refined"))

    return {label: found[label] for label in sorted(found, key=place)}


def _comparisons(labels: list[str]) -> Iterator[tuple[str, str]]:
    """Pairs of rows whose difference says what one step brings."""
    clamped, paper, branch = "cam softmax, clamped", "cam paper's branch", "cam branch"
    wanted = [(clamped, "cam softmax"), (paper, clamped), (branch, clamped), (branch, paper)]
    wanted += [(f"{row}, refined", row) for row in (clamped, paper, branch)]
    wanted += [(f"{branch}, refined", f"{other}, refined") for other in (clamped, paper)]
    for method, plain in (("gradcam", "softmax, clamped"), ("layercam", "softmax")):
        wanted += [(f"{method} branch", f"{method} {plain}")]
        wanted += [(f"{method} {head}, refined", f"{method} {head}") for head in (plain, "branch")]
    yield from ((a, b) for a, b in wanted if a in labels and b in labels)


def _choices(result: dict[str, Any]) -> str:
    branch, affinity = result["branch"]["setting"], result["affinity"]["setting"]
    refined = f"{affinity['layer']} p {affinity['power']:g}" if affinity else "no refinement"
    return f"{branch['weights']} λ {branch['lambda']} μ {branch['mu']:g}, {refined}"


def _mean_and_sd(values: Iterable[float]) -> str:
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _paired(differences: list[float]) -> str:
    """Mean, and the 95 % interval of Student's t; in bold if it excludes 0."""
    differences = [difference for difference in differences if not math.isnan(difference)]
    if not differences:
        return ""
    middle = mean(differences)
    if len(differences) < 2:
        return f"{middle:+.1f}"
    half = T_QUANTILES[len(differences) - 2] * stdev(differences) / math.sqrt(len(differences))
    text = f"{middle:+.1f} [{middle - half:+.1f}, {middle + half:+.1f}]"
    return f"**{text}**" if abs(middle) > half else text


MARKS = ("<!-- study: begin -->", "<!-- study: end -->")


def write_report(path: Path, text: str) -> None:
    """Put the tables between the marks of a page, or, if there is none yet, into a new one."""
    page = path.read_text(encoding="utf-8") if path.exists() else "\n".join(MARKS) + "\n"
    if any(page.count(mark) != 1 for mark in MARKS):
        raise InputError(f"{path} needs the lines {' and '.join(MARKS)}, once each, to put the tables between")
    before, rest = page.split(MARKS[0])
    path.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")


# --------------------------------------------------------------------------- command


def numbered_seeds(text: str) -> list[int]:
    """Split "1,2" into [1, 2]; at most ten."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(words) > len(T_QUANTILES) + 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of up to {len(T_QUANTILES) + 1} seeds, such as 1,2,3")
    return list(dict.fromkeys(map(int, words)))


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add("--cutouts", type=Path, metavar="DIR", help="the unpacked tuxpaint-stamps-default, or folders of cutouts")
    add("--out", type=Path, default=Path("study"), metavar="DIR", help="data, runs and results (default: %(default)s)")
    add("--seeds", type=numbered_seeds, default=[1, 2, 3, 4, 5], metavar="A,B,...", help="default: 1,2,3,4,5")
    add("--report", type=Path, metavar="FILE", help="only write the tables of what is finished into this page")
    arguments = parser.parse_args(argv)
    out = arguments.out.resolve()
    seeds = enumerate(arguments.seeds)
    units = [Unit(place, seed, out, number < FIDELITY_SEEDS) for number, seed in seeds for place in PLACES]
    units.sort(key=lambda unit: not unit.place.full)  # what the others stand beside comes last
    if arguments.report is None:
        if arguments.cutouts is None:
            raise InputError("--cutouts DIR is missing: the folder of the cutouts; --report FILE needs none")
        find_cutouts(arguments.cutouts)  # fails, if it must, before anything is made
        run(units, arguments.cutouts)
        print(report(units))
    else:
        if not (text := report(units)):
            raise InputError(f"{out} has no finished results to report; run the study without --report first")
        write_report(arguments.report, text)


if __name__ == "__main__":
    sys.exit(command.run(main))
