"""The exception for mistakes of the person at the keyboard, and helpers that word its messages."""

from collections.abc import Iterable


class InputError(ValueError):
    """Something given by the user cannot be used: a flag, a file, a folder.

    The message is one line that names the thing and the remedy. `main.py` and
    the scripts print it behind "error:" and leave with exit code 2; a
    traceback, by contrast, always means a defect of the program.
    """

    def __init__(self, message: str):
        # A DataLoader re-raises a worker's error with the whole traceback as its message.
        super().__init__(str(message).rstrip().rsplit(f"{__name__}.InputError: ", 1)[-1])


def plain_name(what: str, name: str) -> str:
    """The name, if it can be that of one folder below another; an InputError otherwise."""
    if (
        not name
        or name in (".", "..")
        or "/" in name
        or not name.isprintable()
        or len(name.encode()) > 255
        or name != name.strip()
    ):
        raise InputError(f"{what} {name!r} is not a folder's name: one name, without slashes")
    return name


def nearest(name: str, known) -> str:
    """ "; did you mean 'x'?" for the closest of the known names (of equally close ones the first), or ""."""
    import difflib

    known = list(known)
    close = difflib.get_close_matches(name, known, n=10)
    if not close:
        return ""
    closeness = {candidate: difflib.SequenceMatcher(None, candidate, name).ratio() for candidate in close}
    best = min(close, key=lambda candidate: (-closeness[candidate], known.index(candidate)))
    return f"; did you mean '{best}'?"


def first_few(names: Iterable[object], most: int = 3) -> str:
    """ "a, b, c and 4 more": the first few of many names, for a message of one line."""
    words = [str(name) for name in names]
    return ", ".join(words[:most]) + (f" and {len(words) - most:,} more" if len(words) > most else "")
