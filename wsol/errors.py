"""The one exception for mistakes of the person at the keyboard."""


class InputError(ValueError):
    """Something given by the user cannot be used: a flag, a file, a folder.

    The message is one line that names the thing and the remedy. `main.py` and
    the scripts print it behind "error:" and leave with exit code 2; a
    traceback, by contrast, always means a defect of the program.
    """


def nearest(name: str, known) -> str:
    """"; did you mean 'x'?" for the closest of the known names (of equally close ones the first), or ""."""
    import difflib
    known = list(known)
    close = difflib.get_close_matches(name, known, n=10)
    if not close:
        return ""
    closeness = {candidate: difflib.SequenceMatcher(None, candidate, name).ratio() for candidate in close}
    best = min(close, key=lambda candidate: (-closeness[candidate], known.index(candidate)))
    return f"; did you mean '{best}'?"
