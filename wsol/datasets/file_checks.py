"""Checking files in bulk: which are missing, and which are broken.

A data set has up to a million files, so missing files are found with one listing per folder instead of one system call
per file, and broken ones are first looked for at their ends (`looks_whole`) instead of by decoding.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wsol.errors import InputError, first_few
from wsol.log import log, progress

MOST_REPORTED = 20  # files left out that are named in the log


def missing_files(root: Path, names: Sequence[str], title: str = "files") -> list[int]:
    """Positions, in ascending order, of the `names` (paths below `root`) that are not files.

    Each folder is listed once; links are followed. In a folder that may be entered but not listed, each file is
    looked up.

    Raises:
        InputError: a folder may not be entered.
    """
    by_folder: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        by_folder.setdefault(name.rpartition("/")[0], []).append(i)
    missing: list[int] = []
    for folder, members in progress(by_folder.items(), f"looking for {title}", unit="folder"):
        present = _files_in(os.path.join(root, folder))
        for i in members:
            file_name = names[i].rpartition("/")[2]
            if not (_is_file(os.path.join(root, names[i])) if present is None else file_name in present):
                missing.append(i)
    return sorted(missing)


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except PermissionError:
        raise InputError(
            f"the folder {os.path.dirname(path)} may not be read: permission denied; change its permissions"
        ) from None
    except (OSError, ValueError):
        return False


def _files_in(folder: str) -> set[str] | None:
    """Names of the files in a folder; empty if the folder does not exist, None if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if _leads_to_file(entry)}
    except PermissionError:
        return None
    except (OSError, ValueError):  # no such folder, a file of that name, a name that is too long
        return set()


def _leads_to_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False


def require_files(root: Path, names: Sequence[str], what: str, remedy: str) -> None:
    """Raise an InputError that counts the missing files and names the first few."""
    missing = missing_files(root, names, what)
    if missing:
        first = first_few(Path(root) / names[i] for i in missing)
        raise InputError(f"{len(missing):,} of {len(names):,} {what} are missing: {first}; {remedy}")


def broken_files(check: Callable[[int], None], indices: Iterable[int], title: str, workers: int = 1) -> dict[int, str]:
    """{index: error message} for each index for which `check` raises InputError; runs in `workers` threads."""

    def message(index: int) -> str:
        try:
            check(index)
        except InputError as error:
            return str(error)
        return ""

    indices = list(indices)
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        messages = progress(pool.map(message, indices), title, unit="file", total=len(indices))
        return {index: text for index, text in zip(indices, messages, strict=True) if text}


def log_left_out(reasons: Sequence[str]) -> None:
    """Log why files are left out, for at most MOST_REPORTED of them."""
    for reason in reasons[:MOST_REPORTED]:
        log.warning("left out: %s", reason)
    if len(reasons) > MOST_REPORTED:
        log.warning("left out: %s more", f"{len(reasons) - MOST_REPORTED:,}")


def looks_whole(path: Path | str) -> bool:
    """Whether a JPEG or PNG file begins and ends as its format requires. False for any other file: decode it to know.

    Bytes FF D9 end a JPEG image (ITU T.81, B.1.1.3) and cannot occur in its coded data; the chunk IEND ends a PNG.
    A truncated file has neither at its end. The last 32 bytes are searched, which allows for padding; a whole file with
    more padding than that is merely decoded.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 32, 0))
        end = file.read()
    return (start.startswith(b"\xff\xd8") and b"\xff\xd9" in end) or (start == b"\x89PNG\r\n\x1a\n" and b"IEND" in end)
