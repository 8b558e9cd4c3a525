"""What is read from files becomes typed values here, or one line that names the file, the field and the remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from wsol.errors import InputError, shortened


class Kind(NamedTuple):
    """What a value must be: a test, and its words for messages."""

    holds: Callable[[Any], bool]
    words: str


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value) and value >= 0


def _is_plain(value: Any, depth: int = 20) -> bool:
    """Whether Python's JSON can have it: nested dicts with text as keys, lists, text, numbers, truths, nothing."""
    if depth == 0:
        return False
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item, depth - 1) for key, item in value.items())
    if isinstance(value, list):
        return all(_is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, (str, bool, float)) or _is_number(value)


TEXT = Kind(lambda value: isinstance(value, str) and "\0" not in value, "text")
TRUTH = Kind(lambda value: isinstance(value, bool), "true or false")
NUMBER = Kind(_is_number, "a finite number")
SCORE = Kind(lambda value: isinstance(value, float) or _is_number(value), "a number")
WHOLE = Kind(_is_whole, "a whole number, at least 0")
MAPPING = Kind(lambda value: isinstance(value, Mapping) and _is_plain(value), "a mapping of plain values")


def listed(kind: Kind) -> Kind:
    """A list of values of one kind."""
    return Kind(
        lambda value: isinstance(value, list) and all(map(kind.holds, value)), f"a list, each item of it {kind.words}"
    )


def optional(kind: Kind) -> Kind:
    """A kind, or None."""
    return Kind(lambda value: value is None or kind.holds(value), f"{kind.words}, or nothing")


def one_of(values: Collection[str]) -> Kind:
    """One of some words."""
    return Kind(lambda value: isinstance(value, str) and value in values, f"one of {', '.join(values)}")


def check_fields(
    content: Any, kinds: Mapping[str, Kind], place: str, remedy: str, needed: Collection[str] = ()
) -> None:
    """Check the fields of a mapping that was read from a file.

    Args:
        content: what was read; fields that `kinds` does not name may be anything.
        kinds: of the fields; those that are absent are fine unless they are `needed`.
        place: the file, perhaps with a line or a part of it, for the message.
        remedy: what to do about it, for the message.

    Raises:
        InputError: content is no mapping, or a field is missing or of another kind.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"{place} is {_shown(content)}, not a mapping of names to values; {remedy}")
    for name in needed:
        if name not in content:
            raise InputError(f"{place} has no field '{name}'; {remedy}")
    for name, kind in kinds.items():
        if name in content and not kind.holds(content[name]):
            raise InputError(f"{place}: the field '{name}' is {_shown(content[name])}, not {kind.words}; {remedy}")


def read_yaml(path: Path | str) -> dict[Any, Any]:
    """The mapping in a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it cannot be read, or is no mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except RecursionError:
        raise InputError(f"{path} cannot be read: it is nested too deeply") from None
    except (OSError, yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read: {reason}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a YAML mapping of settings")
    return content


def _shown(value: Any) -> str:
    """A value for a message of one line; of tensors, arrays and the like only the type."""
    if not isinstance(value, (str, int, float, list, dict, tuple, type(None))):
        return f"a {type(value).__name__}"
    return shortened(value, form=repr)
