"""What a person sees while a command works: the log, and progress bars on a terminal."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from wsol import distributed

T = TypeVar("T")

log = logging.getLogger("dualcam")
# Lines logged before the run folder exists; they are written to its log.txt later.
_early = logging.handlers.MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)


def start_log(debug: bool = False, keep: bool = True) -> None:
    """Log to the console. Of several processes only the main one has something to say, and the others their errors.

    Args:
        debug: log more.
        keep: remember the lines for the file that `log_to` will name.
    """
    log.handlers.clear()
    logging.raiseExceptions = False  # a full disk or a closed pipe must not bury the one line that says so
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    if not distributed.is_main():
        log.setLevel(logging.ERROR)
    log.propagate = False
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(console)
    _early.setTarget(None)
    _early.buffer.clear()
    if keep:
        log.addHandler(_early)


def log_to(path: Path) -> None:
    """Write all later lines, and those remembered so far, to a file as well."""
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _early.setTarget(file)
    _early.flush()
    log.removeHandler(_early)
    log.addHandler(file)


def progress(
    items: Iterable[T], title: str, unit: str = "batch", total: int | None = None, delay: float = 0
) -> Iterable[T]:
    """Iterate over items behind a progress bar on stderr: on a terminal only, gone when done.

    Args:
        total: the number of items, where `items` has no length.
        delay: seconds after which the bar appears, for what is mostly done by then.
    """
    disable = None if distributed.is_main() else True
    return tqdm(items, desc=title, unit=unit, total=total, leave=False, disable=disable, delay=delay)
