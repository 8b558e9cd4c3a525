"""Where a result comes from: the code, the settings of every epoch, the weights it started from, the metadata."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from wsol.checksum import files_checksum
from wsol.version import __version__

ROOT = Path(__file__).resolve().parents[2]
_GIT_SECONDS = 10


@lru_cache
def code_record() -> dict[str, Any]:
    """The code that runs: `version`; `commit`, and whether tracked files were `modified` since (None if unknown)."""
    commit = modified = None
    # An installed copy may lie in a repository of something else.
    if _git("rev-parse", "--show-toplevel") == str(ROOT):
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no")
        modified = None if changes is None else bool(changes)
    return {"version": __version__, "commit": commit, "modified": modified}


def _git(*words: str) -> str | None:
    """What a git command prints in our folder; None without git, or if it fails."""
    try:
        ran = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=_GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout.strip()


def describe_code() -> str:
    """The code in words, such as "wsol 0.2.0, commit 0a988cd, modified"."""
    code = code_record()
    commit = f", commit {code['commit'][:7]}" if code["commit"] else ""
    return f"wsol {code['version']}{commit}" + (", modified" if code["modified"] else "")


def metadata_checksums(folder: Path, splits: Iterable[str]) -> dict[str, str]:
    """{split: checksum of its metadata files}, of the splits that a data set has.

    Args:
        folder: of the data set's metadata.
    """
    return {
        split: files_checksum(path for path in (folder / split).iterdir() if path.is_file())
        for split in splits
        if (folder / split).is_dir()
    }


class TrainingRecord:
    """Which epochs were trained with which settings and which code: `training` of results.json and of a checkpoint.

    A list of {stage, first_epoch, last_epoch, settings, code}. A resumed run that goes on with the same settings and
    code prolongs the last entry; otherwise it begins another.

    Args:
        settings: of the epochs that follow.
        earlier: the record of a checkpoint that training continues from.
    """

    def __init__(self, settings: dict[str, Any], earlier: Iterable[dict[str, Any]] = ()):
        self.settings = settings
        self.entries = list(earlier)

    def after(self, stage: str, epoch: int) -> list[dict[str, Any]]:
        """The record once an epoch of a stage is trained; epochs are noted in order."""
        same = {"stage": stage, "settings": self.settings, "code": code_record()}
        last = self.entries[-1] if self.entries else {}
        if {key: last.get(key) for key in same} == same:
            self.entries[-1] = last | {"last_epoch": epoch}
        elif epoch:
            self.entries.append({"stage": stage, "first_epoch": epoch, "last_epoch": epoch} | same)
        return list(self.entries)
