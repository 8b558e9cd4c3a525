"""Are the files of a data set there, and whole? One folder listing instead of a system call an image."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wsol.errors import InputError
from wsol.log import progress


def missing_files(root: Path, names: Sequence[str], title: str = "files") -> list[int]:
    """Positions of the `names`, paths below `root`, that are no file there, in ascending order.

    Each folder is listed once; links are followed. A folder that may be entered but not listed is asked file by file.
    """
    by_folder: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        by_folder.setdefault(name.rpartition("/")[0], []).append(i)
    missing: list[int] = []
    for folder, members in progress(by_folder.items(), f"looking for {title}", unit="folder"):
        present = _files_in(os.path.join(root, folder))
        for i in members:
            leaf = names[i].rpartition("/")[2]
            if not (os.path.isfile(os.path.join(root, names[i])) if present is None else leaf in present):
                missing.append(i)
    return sorted(missing)


def _files_in(folder: str) -> set[str] | None:
    """Names of the files in a folder, nothing where there is no such folder; None where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except PermissionError:
        return None
    except (OSError, ValueError):  # no such folder, a file of that name, a name that is too long
        return set()


def require_files(root: Path, names: Sequence[str], what: str, remedy: str, most: int = 3) -> None:
    """InputError that counts what is missing and names the first few."""
    missing = missing_files(root, names, what)
    if missing:
        first = ", ".join(str(Path(root) / names[i]) for i in missing[:most])
        more = ", ..." if len(missing) > most else ""
        raise InputError(f"{len(missing):,} of {len(names):,} {what} are missing: {first}{more}; {remedy}")


def broken_files(check: Callable[[int], None], indices: Iterable[int], title: str, workers: int = 1) -> dict[int, str]:
    """{index: what is wrong} for the indices that make `check` raise InputError; threads decode side by side."""

    def reason(index: int) -> str:
        try:
            check(index)
        except InputError as error:
            return str(error)
        return ""

    indices = list(indices)
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        found = progress(pool.map(reason, indices), title, unit="file", total=len(indices))
        return {index: why for index, why in zip(indices, found, strict=True) if why}


def looks_whole(path: Path | str) -> bool:
    """Does a JPEG or PNG file begin and end as its format does? False for all other files, which must be decoded.

    Bytes FF D9 end a JPEG's image (ITU T.81, B.1.1.3) and cannot occur in its coded data; the chunk IEND ends a PNG.
    A cut file has neither at its end. 32 bytes leave room for padding; more of it costs a decoding, no error.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 32, 0))
        end = file.read()
    return (start.startswith(b"\xff\xd8") and b"\xff\xd9" in end) or (start == b"\x89PNG\r\n\x1a\n" and b"IEND" in end)
