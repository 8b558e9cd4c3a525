r"""Search settings of main.py, at random or on a grid, chosen on val; processes and machines may share a study.

    python scripts/sweep.py lr --space lr=log:1e-5:1e-2 --space lr_decay_frequency=int:1:20 --trials 30 -- \
        --dataset_name CUB --architecture resnet50 --preset wsolevaluation
    python scripts/sweep.py lr                                   # another process, or one more after a kill: goes on
    python scripts/sweep.py lr --processes 8 --launcher slurm --slurm partition=gpu --slurm gpus_per_node=1
    python scripts/sweep.py lr --summary                         # the table and the plots so far

The settings of all trials are drawn when the study is made (wsolevaluation's protocol: 30 draws, chosen on val) and
kept in ROOT/STUDY/journal.log. A trial is a run of main.py, ROOT/STUDY/trial-0000 and so on, which stops without
looking at the test split. A trial whose process died goes back into the queue and continues its run. Trials whose val
figure is below the median of the others after the same epoch are pruned, unless --prune FALSE is given.

Kinds of --space NAME=...: log:LOW:HIGH and uniform:LOW:HIGH (numbers), int:LOW:HIGH, or a list A,B,C. A grid takes
lists only, and tries all combinations.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import io
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

import filelock
import numpy as np
from tabulate import tabulate

from config import MAIN, parse_args, settings_of
from wsol.errors import InputError, nearest, plain_name
from wsol.files import write_file
from wsol.log import log, start_log
from wsol.run import command
from wsol.run.flag_types import boolean

ROOT = Path(__file__).resolve().parents[1]
STUDY_FILE, JOURNAL = "study.json", "journal.log"
FINISHED = ("COMPLETE", "PRUNED")
PAUSE = 2.0  # seconds between looks at a trial's figures
MOST_TRIALS = 100_000


def make_parser() -> argparse.ArgumentParser:
    """The command line; what follows -- goes to main.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("study", help="name of the study, a folder in --root")
    add("--space", action="append", default=[], metavar="NAME=KIND", help="a setting of main.py and its values")
    add("--sampler", choices=("random", "grid"), default="random", help="default: %(default)s")
    add("--trials", type=int, default=30, help="draws of a random search (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    add(
        "--by",
        choices=("last", "best"),
        default="last",
        help="the epoch whose val figure counts (default: %(default)s)",
    )
    add(
        "--prune", type=boolean, default=True, metavar="TRUE|FALSE", help="stop trials below the median (default: TRUE)"
    )
    add("--root", type=Path, default=Path("experiments/sweeps"), help="default: %(default)s")
    add("--processes", type=int, default=1, help="processes that this call starts (default: %(default)s)")
    add("--launcher", choices=("local", "slurm"), default="local", help="default: %(default)s")
    add(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of submitit, such as partition=gpu",
    )
    add("--stale_minutes", type=float, default=60, help="a trial on another machine that has written nothing for so "
        "long is taken to be dead (default: %(default)s)")  # fmt: skip
    add("--summary", action="store_true", help="only write and print the summary")
    add("--program", type=Path, default=ROOT / "main.py", help=argparse.SUPPRESS)  # for tests
    return parser


# --------------------------------------------------------------------------- the space


def parse_space(words: list[str]) -> dict[str, Any]:
    """{setting: ["log" | "uniform" | "int", low, high] or ["list", text, ...]}; InputError names what is wrong."""
    table = settings_of(MAIN)
    space: dict[str, Any] = {}
    for word in words:
        name, equals, kind = word.partition("=")
        if name not in table:
            raise InputError(f"--space {word}: main.py has no setting '{name}'{nearest(name, table)}")
        parts = kind.split(":")
        if not equals or not kind:
            raise InputError(f"--space {word}: give values, such as {name}=log:1e-5:1e-2 or {name}=A,B")
        if parts[0] in ("log", "uniform", "int"):
            try:
                low, high = (int(text) if parts[0] == "int" else float(text) for text in parts[1:])
            except ValueError:
                raise InputError(f"--space {word}: {parts[0]} needs two numbers, {parts[0]}:LOW:HIGH") from None
            if not low < high or (parts[0] == "log" and low <= 0) or not math.isfinite(high):
                raise InputError(f"--space {word}: LOW must be below HIGH" + ", and above 0" * (parts[0] == "log"))
            space[name] = [parts[0], low, high]
        else:
            space[name] = ["list", *dict.fromkeys(kind.split(","))]
    return space


def draw(space: Mapping[str, Any], sampler: str, trials: int, seed: int) -> list[dict[str, Any]]:
    """The settings of all trials, the same for the same seed.

    Raises:
        InputError: a grid over a range, or there is nothing to search.
    """
    if not space:
        raise InputError("there is nothing to search; give --space NAME=..., see --help")
    if sampler == "grid":
        for name, (kind, *_) in space.items():
            if kind != "list":
                raise InputError(f"--sampler grid needs a list of values for {name}, not {kind}")
        names = list(space)
        grid = itertools.product(*(values[1:] for values in space.values()))
        return [dict(zip(names, values, strict=True)) for values in itertools.islice(grid, MOST_TRIALS)]
    if not 1 <= trials <= MOST_TRIALS:
        raise InputError(f"--trials {trials} is out of range (1 to {MOST_TRIALS:,})")
    random = np.random.default_rng(seed)
    return [{name: _draw_one(random, *values) for name, values in space.items()} for _ in range(trials)]


def _draw_one(random: np.random.Generator, kind: str, *values: Any) -> Any:
    if kind == "list":
        return values[random.integers(len(values))]
    low, high = values
    if kind == "int":
        return int(random.integers(low, high + 1))
    return float(np.exp(random.uniform(np.log(low), np.log(high))) if kind == "log" else random.uniform(low, high))


# --------------------------------------------------------------------------- the study


class Study:
    """A study on disk: its settings, and Optuna's journal of its trials, which processes on any machine may share.

    Args:
        folder: ROOT/STUDY.
    """

    def __init__(self, folder: Path):
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
        except ImportError:
            raise InputError("sweeps need Optuna: pip install optuna") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna, self.folder = optuna, folder
        self.lock = filelock.FileLock(folder / ".lock")
        journal = str(folder / JOURNAL)
        self.storage = JournalStorage(JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal)))
        self.settings: dict[str, Any] = {}

    def create(self, settings: dict[str, Any], trials: list[dict[str, Any]]) -> None:
        """Write a new study with all trials waiting."""
        study = self.optuna.create_study(
            study_name="sweep", storage=self.storage, direction="maximize", load_if_exists=True
        )
        for number, drawn in enumerate(trials[len(study.trials) :], len(study.trials)):
            study.enqueue_trial({}, user_attrs={"settings": drawn, "run": f"trial-{number:04}"})
        write_file(self.folder / STUDY_FILE, json.dumps(settings, indent=2) + "\n")  # last: the study is whole
        self.open()

    def open(self) -> None:
        """Read a study that is there."""
        self.settings = json.loads((self.folder / STUDY_FILE).read_text())
        self.study = self.optuna.load_study(
            study_name="sweep", storage=self.storage, pruner=self.optuna.pruners.MedianPruner(n_startup_trials=5)
        )

    def trials(self) -> list[Any]:
        """The newest trial of each run, in order."""
        newest = {trial.user_attrs["run"]: trial for trial in self.study.get_trials(deepcopy=False)}
        return [newest[run] for run in sorted(newest)]

    def requeue_dead(self, stale_minutes: float) -> None:
        """Queue the trials again whose process is gone."""
        with self.lock:
            for trial in self.trials():
                if trial.state.name == "RUNNING" and not self._is_alive(trial, stale_minutes):
                    log.info("%s: its process is gone; queued again", trial.user_attrs["run"])
                    self.requeue(trial)

    def requeue(self, trial: Any) -> None:
        """End a running trial, and queue another one that continues its run."""
        keep = {key: trial.user_attrs[key] for key in ("settings", "run")}
        self.study.enqueue_trial({}, user_attrs=keep)
        self.study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)

    def _is_alive(self, trial: Any, stale_minutes: float) -> bool:
        owner = trial.user_attrs.get("owner")
        if owner is None:  # between taking the trial and signing it
            return time.time() - trial.datetime_start.timestamp() < 60
        host, process, started = owner
        if host == socket.gethostname():
            return _started(process) == started
        newest = max((path.stat().st_mtime for path in (self.folder / trial.user_attrs["run"]).rglob("*")), default=0)
        since = max(newest, trial.datetime_start.timestamp())
        return time.time() - since < 60 * stale_minutes

    def take(self) -> Any | None:
        """A waiting trial, now this process's; None if none is waiting."""
        with self.lock:
            if not any(trial.state.name == "WAITING" for trial in self.study.get_trials(deepcopy=False)):
                return None
            trial = self.study.ask()
            trial.set_user_attr("owner", [socket.gethostname(), os.getpid(), _started(os.getpid())])
            return trial


def _started(process: int) -> str | None:
    """When a process of this machine started, in the kernel's own count; None if there is none."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


# --------------------------------------------------------------------------- a trial


def run_trial(study: Study, trial: Any, program: Path) -> None:
    """Run main.py with the settings of a trial, and tell the study how val went."""
    settings, run = study.settings, trial.user_attrs["run"]
    folder = study.folder / run
    flags = [f"--{name}={value}" for name, value in trial.user_attrs["settings"].items()]
    where = ["--root", str(study.folder), "--experiment_name", run]
    if (folder / "config.yaml").is_file():
        words = [*where, "--resume", "--train_only"]
    else:
        words = [*settings["flags"], *flags, *where, "--train_only", "--override_cache"]
    log.info("%s: %s", run, " ".join(flags))
    (study.folder / "logs").mkdir(exist_ok=True)
    with open(study.folder / "logs" / f"{run}.txt", "ab") as output, _child(program, words, output) as child:
        reported = 0
        while True:
            ended = child.poll() is not None
            figures = val_figures(folder, settings["criterion"])
            for epoch, value in figures[reported:]:
                trial.report(value, epoch)
            reported = len(figures)
            if ended:
                break
            if settings["prune"] and reported and trial.should_prune():
                _end(child)
                log.info("%s: pruned after epoch %d", run, figures[-1][0])
                study.study.tell(trial, state=study.optuna.trial.TrialState.PRUNED)
                return
            time.sleep(PAUSE)
    if child.returncode or not figures:
        log.warning("%s: main.py ended with %s; see %s", run, child.returncode, output.name)
        study.study.tell(trial, state=study.optuna.trial.TrialState.FAIL)
        return
    values = [value for _, value in figures]
    study.study.tell(trial, values[-1] if settings["by"] == "last" else max(values))
    log.info("%s: %s %.2f on val", run, settings["criterion"], values[-1])


@contextmanager
def _child(program: Path, words: list[str], output: Any) -> Iterator[subprocess.Popen]:
    """A process of main.py that ends with this one, however this one ends."""
    kernel = ctypes.CDLL(None, use_errno=True)
    parent_death_signal = 1  # PR_SET_PDEATHSIG

    def end_with_parent() -> None:
        kernel.prctl(parent_death_signal, signal.SIGTERM)

    child = subprocess.Popen(
        [sys.executable, str(program), *words], stdout=output, stderr=output, preexec_fn=end_with_parent
    )
    try:
        yield child
    finally:
        _end(child)


def _end(child: subprocess.Popen) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
    child.wait()


def val_figures(folder: Path, criterion: str) -> list[tuple[int, float]]:
    """(epoch, figure) of a run's own stage on val, in order; those of its candidates and first stages do not count."""
    figures: dict[int, float] = {}
    path = folder / "metrics.jsonl"
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:  # a line that is being written
            continue
        if line.get("split") == "val" and criterion in line and line["stage"] in ("vanilla", "b1", "b2"):
            figures[line["epoch"]] = line[criterion]
    return sorted(figures.items())


def work(folder: Path, program: Path, stale_minutes: float) -> None:
    """Run trials until none is waiting; then those, too, whose processes have died meanwhile."""
    start_log(keep=False)
    study = Study(folder)
    study.open()
    while True:
        study.requeue_dead(stale_minutes)
        trial = study.take()
        if trial is None:
            return
        try:
            run_trial(study, trial, program)
        except BaseException:
            with study.lock:
                study.requeue(study.study.trials[trial.number])
            raise


# --------------------------------------------------------------------------- the summary


def summarize(study: Study) -> str:
    """Write summary.csv and summary.png into the study's folder; returns the table, best first."""
    trials, settings = study.trials(), study.settings
    names = list(settings["space"])
    lines = []
    for trial in trials:
        values = trial.intermediate_values
        value = trial.value if trial.value is not None else (list(values.values())[-1] if values else None)
        lines.append(
            {
                "run": trial.user_attrs["run"],
                "state": trial.state.name.lower(),
                settings["criterion"]: value,
                "epochs": max(values, default=0),
                **{name: trial.user_attrs["settings"][name] for name in names},
            }
        )
    lines.sort(key=lambda line: (line["state"] != "complete", -(line[settings["criterion"]] or -math.inf)))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_file(study.folder / "summary.csv", text.getvalue())
    _plot(study.folder / "summary.png", lines, names, settings)
    shown = [[_cell(value) for value in line.values()] for line in lines[:20]]
    table = tabulate(shown, list(lines[0]), disable_numparse=True)
    counts = ", ".join(
        f"{sum(line['state'] == state for line in lines)} {state}"
        for state in dict.fromkeys(line["state"] for line in lines)
    )
    best = lines[0]
    advice = ""
    if best["state"] == "complete":
        advice = (
            f"\n\nthe best on val, measured on test: python main.py --root {study.folder} --experiment_name "
            f"{best['run']} --eval_only --eval_checkpoint_type {settings['by']}"
        )
    return f"{table}\n\n{len(lines)} trials: {counts}; summary.csv and summary.png are in {study.folder}{advice}"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _plot(path: Path, lines: list[dict[str, Any]], names: list[str], settings: dict[str, Any]) -> None:
    """The val figure of each trial over each setting."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    criterion = settings["criterion"]
    figure, axes = plt.subplots(1, len(names), squeeze=False, sharey=True, layout="constrained",
                                figsize=(3.4 * len(names) + 0.8, 3.2))  # fmt: skip
    for axis, name in zip(axes[0], names, strict=True):
        for state, marker in {"complete": "o", "pruned": "x"}.items():
            points = [line for line in lines if line["state"] == state and line[criterion] is not None]
            axis.plot(
                [line[name] for line in points], [line[criterion] for line in points], marker, label=state, alpha=0.8
            )
        if settings["space"][name][0] == "log":
            axis.set_xscale("log")
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(f"{criterion} on val")
    axes[0][0].legend(fontsize=8)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    plt.close(figure)
    write_file(path, content.getvalue())


# --------------------------------------------------------------------------- the command


def new_study(args: argparse.Namespace, flags: list[str], study: Study) -> None:
    """Check everything that trials will be given, and write the study."""
    space = parse_space(args.space)
    trials = draw(space, args.sampler, args.trials, args.seed)
    given = {word.partition("=")[0].removeprefix("--") for word in flags}
    for name in (*space, "root", "experiment_name", "train_only", "resume", "eval_only"):
        if name in given:
            raise InputError(f"--{name} cannot stand behind --; the sweep sets it")
    for drawn in trials:  # every one, now
        config = parse_args([*flags, *(f"--{name}={value}" for name, value in drawn.items())])
    criterion = headline_of(config)
    settings = {"space": space, "flags": flags, "criterion": criterion, "by": args.by, "prune": args.prune}
    study.create(settings, trials)
    log.info("study %s: %d trials, judged by %s on val", study.folder, len(trials), criterion)


def headline_of(config: Any) -> str:
    """The figure that runs of this config are judged by on val."""
    from wsol.datasets.load import load_data
    from wsol.metrics.box_metrics import headline

    roots = [config.data_root, config.metadata_root, config.mask_root]
    data = load_data(config.dataset_name, *roots, splits=("train", "val"), seed=config.seed)
    if "val" not in data.splits:
        raise InputError(f"{config.metadata_root}/{data.name} has no val split to choose on")
    return headline(data.splits["val"].boxes is not None, config.multi_contour_eval, config.multi_iou_eval)


def launch(args: argparse.Namespace, folder: Path) -> None:
    """Start the processes of this call, and wait for them; on Slurm, submit them."""
    parameters = (folder, args.program.resolve(), args.stale_minutes)
    if args.launcher == "slurm":
        try:
            import submitit
        except ImportError:
            raise InputError("--launcher slurm needs submitit: pip install submitit") from None
        executor = submitit.AutoExecutor(folder=folder / "slurm", cluster="slurm")
        executor.update_parameters(name=f"sweep-{args.study}", **_slurm_parameters(args.slurm))
        jobs = [executor.submit(work, *parameters) for _ in range(args.processes)]
        log.info("submitted: %s", ", ".join(job.job_id for job in jobs))
        return
    if args.processes == 1:
        work(*parameters)
        return
    again = [sys.executable, __file__, args.study, "--root", str(args.root), "--program", str(args.program),
             "--stale_minutes", str(args.stale_minutes)]  # fmt: skip
    children = [subprocess.Popen(again, stdout=subprocess.DEVNULL) for _ in range(args.processes)]
    try:
        for child in children:
            child.wait()
    finally:
        for child in children:
            _end(child)


def _slurm_parameters(words: list[str]) -> dict[str, Any]:
    pairs = [word.partition("=") for word in words]
    for key, equals, _ in pairs:
        if not (key and equals):
            raise InputError(f"--slurm {key}: give KEY=VALUE, such as --slurm partition=gpu")
    known = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")  # of submitit itself
    return {
        key if key in known or key.startswith("slurm_") else f"slurm_{key}": int(value) if value.isdecimal() else value
        for key, _, value in pairs
    }


def main(argv: list[str] | None = None) -> None:
    """Make or go on with a study, run trials, write the summary."""
    words = list(sys.argv[1:] if argv is None else argv)
    own, flags = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    args = make_parser().parse_args(own)
    start_log(keep=False)
    plain_name("STUDY", args.study)
    if args.processes < 1:
        raise InputError(f"--processes {args.processes} is out of range (at least 1)")
    folder = args.root / args.study
    exists = (folder / STUDY_FILE).is_file()
    if args.summary and not exists:
        raise InputError(f"there is no study in {folder}")
    if not exists:
        parse_space(args.space)  # nothing is written for a wrong one
        draw(parse_space(args.space), args.sampler, args.trials, args.seed)
    folder.mkdir(parents=True, exist_ok=True)
    study = Study(folder)
    with study.lock:  # of several processes that are started together, one makes the study
        if (folder / STUDY_FILE).is_file():
            if args.space or flags:
                log.info("%s is there already: its own --space and flags count", folder)
            study.open()
        else:
            new_study(args, flags, study)
    command.when_interrupted(
        f"the study is in {folder}; go on with: python scripts/sweep.py {args.study} --root {args.root}"
    )
    if not args.summary:
        launch(args, folder)
        study = Study(folder)
        study.open()
    print(summarize(study))


if __name__ == "__main__":
    sys.exit(command.run(main))
