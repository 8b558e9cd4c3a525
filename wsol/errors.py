"""The one exception for mistakes of the person at the keyboard."""


class InputError(ValueError):
    """Something given by the user cannot be used: a flag, a file, a folder.

    The message is one line that names the thing and the remedy. `main.py` and
    the scripts print it behind "error:" and leave with exit code 2; a
    traceback, by contrast, always means a defect of the program.
    """


def nearest(name: str, known) -> str:
    """"; did you mean 'x'?" for the closest of the known names, or ""."""
    import difflib
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
