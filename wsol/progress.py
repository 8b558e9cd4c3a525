"""The one progress bar: on a terminal only, gone when done, so that logs and pipes stay readable."""

from collections.abc import Iterable

from tqdm import tqdm


def progress(items: Iterable, title: str, unit: str = "batch", total: int | None = None) -> Iterable:
    """Iterate over items behind a bar on stderr; total: their number where `items` has no length."""
    return tqdm(items, desc=title, unit=unit, total=total, leave=False, disable=None)
