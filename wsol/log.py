"""What a person sees while a command works: the log, and progress bars on a terminal."""

import logging
import logging.handlers
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm


def progress(items: Iterable, title: str, unit: str = "batch", total: int | None = None) -> Iterable:
    """Iterate over items behind a bar on stderr; total: their number where `items` has no length."""
    return tqdm(items, desc=title, unit=unit, total=total, leave=False, disable=None)


log = logging.getLogger("dualcam")


_early = logging.handlers.MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)


def start_log(debug: bool = False, keep: bool = True) -> None:
    """Log to the console; with `keep`, lines are kept for log.txt until the run folder exists."""
    log.handlers.clear()
    logging.raiseExceptions = False  # a full disk or a closed pipe must not bury the one line that says so
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    log.propagate = False
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(logging.Formatter("%(message)s"))
    _early.setTarget(None)
    _early.buffer.clear()
    log.addHandler(console)
    if keep:
        log.addHandler(_early)


def log_to(path: Path) -> None:
    """Write this and all earlier lines to a file, too."""
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _early.setTarget(file)
    _early.flush()
    log.removeHandler(_early)
    log.addHandler(file)
