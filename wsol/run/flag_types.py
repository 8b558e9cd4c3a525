"""Types of the commands' flags: each turns the text of a flag into a value, or says what is wrong with it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from wsol.backbones.registry import ARCHITECTURES
from wsol.errors import InputError, shortened


def boolean(text: str) -> bool:
    """TRUE/FALSE, yes/no, t/f, y/n, on/off, 1/0 in any case."""
    word = text.lower()
    if word in ("true", "t", "yes", "y", "1", "on"):
        return True
    if word in ("false", "f", "no", "n", "0", "off"):
        return False
    raise argparse.ArgumentTypeError(f"'{shortened(text)}' is not TRUE or FALSE")


def names(text: str) -> list[str]:
    """Split "cam, gradcam" into ["cam", "gradcam"], each once."""
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def numbers(text: str) -> list[float]:
    """Split "0.5, 1" into [0.5, 1.0], each once."""
    return list(dict.fromkeys(number(float, 0, 8, above=True)(word) for word in names(text)))


def stages(text: str) -> list[int]:
    """Split "0, 1" into [0, 1], each once."""
    found = list(dict.fromkeys(number(int, 0, 99)(word) for word in names(text)))
    if not found:
        raise argparse.ArgumentTypeError("no stage is named; 0 is the last one")
    return found


def architecture(text: str) -> str:
    """The name of a network of ours, or of timm or torchvision."""
    if text not in ARCHITECTURES:
        from wsol.backbones import get_architecture  # imports timm and torchvision, which know all other names

        try:
            get_architecture(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return text


def number(
    kind: type, low: float, high: float = math.inf, above: bool = False, infinite: bool = False
) -> Callable[[str], Any]:
    """The type of numbers of a kind (int or float) from `low` (`above`: without it) to `high`, perhaps `infinite`."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{shortened(text)}' is not a number") from None
        if (math.isinf(value) and not infinite) or not (low < value if above else low <= value) or value > high:
            bounds = f"{'above' if above else 'at least'} {low}" + (f" and at most {high}" if high < math.inf else "")
            raise argparse.ArgumentTypeError(f"{shortened(text)} is out of range ({bounds})")
        return value

    return parse


# Numbers beyond these limits are slips, and would overflow somewhere else with a message that names no flag.
count, positive = number(int, 0, 10**9), number(int, 1, 10**9)
amount, rate = number(float, 0, 1e9), number(float, 0, 1e6, above=True)
percentage = number(float, 0, 100, above=True)
share, size = number(float, 0, 1), number(int, 16, 4096)
random_seed, resamples = number(int, 0, 2**32 - 1), number(int, 0, 100_000)
amount_or_inf = number(float, 0, infinite=True)
