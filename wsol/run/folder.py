"""The folder of one run: made, found again, locked, never lost by accident.

<root>/<experiment_name>/{config.yaml,log.txt,metrics.jsonl,*_checkpoint.pth.tar,results.json,results.csv,figures/}
"""

import fcntl
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from wsol.errors import InputError
from wsol.files import write_file

CONFIG_FILE = "config.yaml"
LOCK_FILE = ".lock"
_SIGNATURE = "# settings of a run of main.py; "


class RunFolder:
    """Where a run writes. Nothing is made or removed before `open`.

    Args:
        root, name: the folder is root/name; name None: the next free `run-N`,
            or with `must_exist` the latest one.
        must_exist: the run goes on (--resume) or is evaluated (--eval_only).
        override: an existing folder of an earlier run is replaced (--override_cache).

    Raises:
        InputError: the folder exists and neither was asked for, or it does not exist and must.
    """

    def __init__(self, root: str, name: str | None, *, must_exist: bool = False, override: bool = False):
        self.root, self.override, self.must_exist = Path(root), override, must_exist
        self._numbered = name is None and not must_exist
        if name is None:
            latest = _latest_number(self.root)
            if must_exist and not latest:
                raise InputError(f"there is no run in {self.root}; name one with --experiment_name or --root")
            name = f"run-{latest if must_exist else latest + 1}"
        self.path = self.root / name
        if must_exist and not self.path.is_dir():
            raise InputError(f"there is no run {self.path}; check --root and --experiment_name")
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"--root {self.root} is a file, not a folder")
        self._check_free()

    def _check_free(self) -> None:
        """A new run's folder holds nothing yet, or an earlier run of this program that may be replaced."""
        if self.must_exist or not self.path.exists():
            return
        if self.path.is_dir() and all(path.name == LOCK_FILE for path in self.path.iterdir()):
            return
        if not self.override:
            raise InputError(
                f"{self.path} exists; go on with --resume, evaluate with --eval_only, replace it with "
                "--override_cache, or choose another --experiment_name"
            )
        config = self.path / CONFIG_FILE
        if not (config.is_file() and config.read_text(errors="replace").startswith(_SIGNATURE)):
            raise InputError(
                f"--override_cache removes only folders that this program made, and {self.path} has no "
                f"{CONFIG_FILE} of its; remove it yourself or choose another --experiment_name"
            )
        inner = next((path for path in self.path.glob(f"*/{CONFIG_FILE}") if path.parent != self.figures), None)
        if inner is not None:
            raise InputError(f"--override_cache would remove another run with it: {inner.parent}; move that first")

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def saved_config(self) -> dict[str, Any]:
        """The settings that the run was started with; none for a folder of checkpoints from elsewhere."""
        try:
            saved = yaml.safe_load((self.path / CONFIG_FILE).read_text())
        except FileNotFoundError:
            return {}
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{self.path / CONFIG_FILE} cannot be read: {str(error).splitlines()[0]}") from None
        if not isinstance(saved, dict):
            raise InputError(f"{self.path / CONFIG_FILE} holds no settings")
        return saved

    def open(self, settings: dict[str, Any] | None) -> str:
        """Make the folder, lock it for this process and keep the run's settings; returns the folder's name.

        The name of a numbered run may be a later one than foreseen, where another process was faster.
        settings None (--eval_only): those of the run stay as they are.
        """
        try:
            self._make()
            self._lock = open(self.path / LOCK_FILE, "w")
        except OSError as error:
            raise InputError(
                f"cannot write to {self.path} ({error.strerror}); choose another --root or --experiment_name"
            ) from None
        self._take_lock()
        if settings is None:
            return self.path.name
        if not self.must_exist:
            self._check_free()
            # config.yaml last: it marks the folder as ours should the removal be cut off.
            for old in sorted(self.path.iterdir(), key=lambda path: path.name == CONFIG_FILE):
                if old.name != LOCK_FILE:
                    shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        settings = settings | {"experiment_name": self.path.name}
        self.write(
            CONFIG_FILE,
            _SIGNATURE + "python main.py --config FILE repeats it\n" + yaml.safe_dump(settings, sort_keys=False),
        )
        return self.path.name

    def _take_lock(self, patience: float = 5.0) -> None:
        """Keep other processes out until this one ends, however it ends.

        The data loading workers of a process that was killed hold its lock for a moment longer, hence the patience.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                return fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise InputError(
                        f"another process is at work in {self.path}; wait for it or choose another --experiment_name"
                    ) from None
                time.sleep(0.1)
            except OSError:  # a file system without locks
                return

    def _make(self) -> None:
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
        """Write a file whole or not at all; text as UTF-8."""
        return write_file(self.path / name, content)

    def append_metrics(self, **line) -> None:
        """Add a line to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def forget_metrics_after(self, stages_done: dict[str, int]) -> None:
        """Drop the lines of epochs that no checkpoint holds; a resumed run makes them again."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the process was killed in the middle of this line
                continue
            if isinstance(entry, dict) and entry.get("epoch", 0) <= stages_done.get(entry.get("stage"), 0):
                kept.append(line + "\n")
        self.write("metrics.jsonl", "".join(kept))

    def seconds_trained(self) -> float:
        """Seconds of all epochs, training and validation, those before a --resume counted in."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return sum(json.loads(line)["seconds"] for line in lines)


def _latest_number(root: Path) -> int:
    numbers = [int(m[1]) for p in root.glob("run-*") if (m := re.fullmatch(r"run-(\d+)", p.name))]
    return max(numbers, default=0)


# --------------------------------------------------------------------------- the log
