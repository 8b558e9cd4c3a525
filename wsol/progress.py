"""The one progress bar: on a terminal only, gone when done, so that logs and pipes stay readable."""

from collections.abc import Iterable

from tqdm import tqdm


def progress(items: Iterable, title: str, unit: str = "batch") -> Iterable:
    """Iterate over items behind a bar on stderr."""
    return tqdm(items, desc=title, unit=unit, leave=False, disable=None)
