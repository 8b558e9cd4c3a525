"""The exception for a user's mistakes, and helpers that word its messages."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sized


class InputError(ValueError):
    """Something that the user gave cannot be used: a flag, a file, a folder.

    The message is one line that names the thing and the remedy. Commands print it after "error:" and exit with code 2;
    a traceback, by contrast, is always a defect of the program.
    """

    def __init__(self, message: str):
        # A DataLoader re-raises a worker's error with the whole traceback as its message.
        super().__init__(str(message).rstrip().rsplit(f"{__name__}.InputError: ", 1)[-1])


def plain_name(what: str, name: str, what_it_is: str = "the name of a folder") -> str:
    """Return the name if a folder can have it; otherwise raise InputError."""
    if (
        not name
        or name in (".", "..")
        or "/" in name
        or not name.isprintable()
        or len(name.encode()) > 255
        or name != name.strip()
    ):
        raise InputError(f"{what} {name!r} is not {what_it_is}: one name, without slashes")
    return name


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint "; did you mean 'x'?" with the closest known name (the first of equally close ones), or ""."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=10)
    if not close:
        return ""
    ratios = {candidate: difflib.SequenceMatcher(None, candidate, name).ratio() for candidate in close}
    best = min(close, key=lambda candidate: (-ratios[candidate], known.index(candidate)))
    return f"; did you mean '{best}'?"


def first_few(names: Iterable[object], most: int = 3) -> str:
    """The first few of many names, for a message of one line: "a, b, c and 4 more"."""
    words = [str(name) for name in names]
    return ", ".join(words[:most]) + (f" and {len(words) - most:,} more" if len(words) > most else "")


def counted(items: Sized, singular: str, plural: str) -> str:
    """How many there are, in words: "1 box extends" or "1,204 boxes extend"."""
    return f"{len(items):,} {singular if len(items) == 1 else plural}"


def shortened(value: object, most: int = 60, form: Callable[[object], str] = str) -> str:
    """The text of a value for a message of one line, cut if it is long; `form` makes the text."""
    try:
        text = form(value).replace("\n", " ")
    except (ValueError, RecursionError):  # Python has no text for an int of thousands of digits, or for endless nesting
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= most else f"{text[:most]}..."
