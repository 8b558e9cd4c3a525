"""Files that are written whole or not at all."""

from __future__ import annotations

import io
import os
import shutil
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsol.errors import InputError


@contextmanager
def replacing(path: Path | str, *, sync: bool = False) -> Iterator[Path]:
    """A temporary path to write to; when the block ends without an error it takes the place of `path`, atomically.

    At any moment the old file or the new one is whole. After an error the old file is as it was and the temporary one
    is gone. The folders above are created.

    Args:
        sync: wait until the content is on disk, so that it survives a crash of the machine.

    Raises:
        InputError: the file cannot be written (disk full, no permission, a folder of that name).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if sync:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(
            f"cannot write {path}: {reason}" + ("; the previous file is kept" if path.is_file() else "")
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_file(path: Path | str, content: str | bytes) -> Path:
    """Write a file, text as UTF-8, whole or not at all; returns its path. Raises InputError as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)


SPARE = 1.1  # free disk space that is wanted, over what a file takes


def free_bytes(folder: Path) -> int:
    """Bytes that are free on the disk of a folder, which need not exist."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def in_words(count: float) -> str:
    """A number of bytes: "1.5 GiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError


# What np.load raises for a file that is not an array or an archive of arrays: cut off, pickled, a broken zip, a
# nonsensical header, which is a Python literal.
NOT_ARRAYS = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError, OverflowError),
    *(MemoryError, RecursionError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


def npy_bytes(array: NDArray) -> bytes:
    """The content of a .npy file, to be written by `write_file`: np.save itself does not say that a disk is full."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()
