"""The folder of one run: created, found again, locked, never lost by accident.

<root>/<experiment_name>/{config.yaml,log.txt,metrics.jsonl,*_checkpoint.pth.tar,results.json,results.csv,figures/}

Each further evaluation, with other settings than the run's, has a folder of its own inside: eval-1, eval-2, ..., with
the same files of results and a config.yaml.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock
import yaml

from wsol import distributed
from wsol.checked import NUMBER, TEXT, WHOLE, check_fields, read_yaml
from wsol.errors import InputError
from wsol.files import write_file
from wsol.run.provenance import describe_code

CONFIG_FILE = "config.yaml"
LOCK_FILE = ".lock"
_METRICS = {"stage": TEXT, "epoch": WHOLE, "split": TEXT, "seconds": NUMBER}  # fields of a line of metrics.jsonl
_SIGNATURE = "# settings of a run of main.py; "  # the first words of a run's config.yaml
_EVALUATION = re.compile(r"eval-(\d+)")
# Data loading workers of a killed process hold its lock for a moment longer.
_SECONDS_TO_LOCK = 5.0


class RunFolder:
    """Where a run writes. Nothing is created or removed before `open`.

    Args:
        root, name: the folder is root/name. name None: the next free `run-N`, or with `must_exist` the latest one.
        must_exist: the run is resumed or evaluated (--resume, --eval_only).
        override: replace an existing folder of an earlier run (--override_cache).

    Attributes:
        path: the folder.
        output: where results go: the folder itself, or one of a further evaluation inside.

    Raises:
        InputError: the folder exists and none of these flags was given, or it does not exist and must.
    """

    def __init__(self, root: str, name: str | None, *, must_exist: bool = False, override: bool = False):
        self.root, self.override, self.must_exist = Path(root), override, must_exist
        self._numbered = name is None and not must_exist
        if name is None:
            latest = _latest_number(self.root)
            if must_exist and not latest:
                raise InputError(f"no run in {self.root}; name one with --experiment_name or --root")
            name = f"run-{latest if must_exist else latest + 1}"
        self.path = self.root / name
        if must_exist and not self.path.is_dir():
            raise InputError(f"no run {self.path}; check --root and --experiment_name")
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"--root {self.root} is a file, not a folder")
        self.output = self.path
        self._check_free()

    def _check_free(self) -> None:
        """A new run needs an empty folder, or that of an earlier run of this program which may be replaced."""
        if self.must_exist or not self.path.exists():
            return
        if self.path.is_dir() and all(path.name == LOCK_FILE for path in self.path.iterdir()):
            return
        if not self.override:
            raise InputError(
                f"{self.path} exists; continue it with --resume, evaluate it with --eval_only, replace it with "
                "--override_cache, or choose another --experiment_name"
            )
        config = self.path / CONFIG_FILE
        if not (config.is_file() and config.read_text(errors="replace").startswith(_SIGNATURE)):
            raise InputError(
                f"--override_cache removes only folders of this program's runs, and {self.path} has no {CONFIG_FILE} "
                "of one; remove it yourself or choose another --experiment_name"
            )
        inner = next((p for p in self.path.glob(f"*/{CONFIG_FILE}") if not _EVALUATION.fullmatch(p.parent.name)), None)
        if inner is not None:
            raise InputError(f"--override_cache would also remove another run, {inner.parent}; move that one first")

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.output / "figures"

    def saved_config(self) -> dict[str, Any]:
        """The settings that the run was started with; empty for a folder of checkpoints from elsewhere."""
        path = self.path / CONFIG_FILE
        try:
            return read_yaml(path)
        except FileNotFoundError:
            return {}

    def open(self, settings: dict[str, Any], *, save: bool = True, apart: bool = False) -> str:
        """Create the folder, lock it for this process, and save the run's settings; returns the folder's name.

        A numbered run may get a later number than foreseen, if another process took that one meanwhile. Of several
        processes of a run the main one does it, here and wherever something is written, and the others learn the names.

        Args:
            save: False (--eval_only) leaves the saved settings of the run unchanged.
            apart: results go to the next free eval-N inside, with these settings.
        """
        self.path, self.output = distributed.from_main(lambda: self._open(settings, save, apart))
        return self.path.name

    def _open(self, settings: dict[str, Any], save: bool, apart: bool) -> tuple[Path, Path]:
        try:
            self._create()
            self._take_lock()
        except OSError as error:
            raise InputError(
                f"cannot write to {self.path} ({error.strerror}); choose another --root or --experiment_name"
            ) from None
        self.output = self.path
        if apart:
            numbers = (int(match[1]) for path in self.path.iterdir() if (match := _EVALUATION.fullmatch(path.name)))
            self.output = self.path / f"eval-{max(numbers, default=0) + 1}"
            self._save_settings(self.output / CONFIG_FILE, "an evaluation of a run", settings)
        if not save:
            return self.path, self.output
        if not self.must_exist:
            self._check_free()
            # config.yaml last: it marks the folder as ours in case the removal is interrupted.
            for old in sorted(self.path.iterdir(), key=lambda path: path.name == CONFIG_FILE):
                if old.name != LOCK_FILE:
                    shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        self._save_settings(self.path / CONFIG_FILE, "a run", settings)
        return self.path, self.output

    def _save_settings(self, path: Path, of: str, settings: dict[str, Any]) -> None:
        header = f"# settings of {of} of main.py; python main.py --config FILE repeats it\n# {describe_code()}\n"
        settings = settings | {"experiment_name": self.path.name}
        write_file(path, header + yaml.safe_dump(settings, sort_keys=False))

    def _take_lock(self) -> None:
        """Keep other processes out until this one ends, however it ends."""
        self._lock = filelock.FileLock(self.path / LOCK_FILE, timeout=_SECONDS_TO_LOCK)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise InputError(
                f"another process is using {self.path}; wait for it or choose another --experiment_name"
            ) from None
        except NotImplementedError:  # a file system without locks
            pass

    def _create(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                self.path.mkdir(exist_ok=not self._numbered)
                return
            except FileExistsError:  # another process took this number a moment ago
                if not self._numbered:
                    raise InputError(
                        f"{self.path} is a file, not a run's folder; choose another --experiment_name"
                    ) from None
                self.path = self.root / f"run-{_latest_number(self.root) + 1}"

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file of results whole or not at all; text as UTF-8."""
        return write_file(self.output / name, content)

    def append_metrics(self, **line: Any) -> None:
        """Add a line to metrics.jsonl."""
        if not distributed.is_main():
            return
        path = self.path / "metrics.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}; make room and go on with --resume") from None

    def forget_metrics_after(self, last_epochs: Mapping[str, float]) -> None:
        """Drop the lines of epochs that no checkpoint has; a resumed run trains them again.

        Args:
            last_epochs: {stage: the last epoch to keep}; a stage that is not listed is dropped.
        """
        metrics = self.metrics()
        kept = [json.dumps(line) + "\n" for line in metrics if line["epoch"] <= last_epochs.get(line["stage"], 0)]
        if metrics and distributed.is_main():
            write_file(self.path / "metrics.jsonl", "".join(kept))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without one at its end that is cut off: the process was killed while writing it.

        Raises:
            InputError: a line is none of ours.
        """
        path, remedy = self.path / "metrics.jsonl", "remove that line, or the file"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read as text: {error}; remove it to resume without it") from None
        metrics = []
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                if number == len(lines):
                    break
                raise InputError(f"{path}:{number} is not JSON ({error}); {remedy}") from None
            check_fields(entry, _METRICS, f"{path}:{number}", remedy, needed=_METRICS)
            metrics.append(entry)
        return metrics

    def seconds_trained(self) -> float:
        """Seconds of all epochs, training and validation, including those before a --resume."""
        return sum(line["seconds"] for line in self.metrics())


def _latest_number(root: Path) -> int:
    numbers = [int(match[1]) for path in root.glob("run-*") if (match := re.fullmatch(r"run-(\d+)", path.name))]
    return max(numbers, default=0)
