"""Classes by name: ImageNet's, and the one a person means."""

import re
from collections.abc import Sequence
from functools import lru_cache

from timm.data import ImageNetInfo
from torchvision.models import ResNet18_Weights

from wsol.errors import InputError, nearest

MOST_CANDIDATES = 8


@lru_cache
def imagenet_names() -> list[str]:
    """A short name for each of the 1000 classes, no two alike, as torchvision's weights list them."""
    return list(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


@lru_cache
def imagenet_synonyms() -> list[list[str]]:
    """What else WordNet calls each of the 1000 classes ("tabby", "tabby cat"), as timm lists it."""
    info = ImageNetInfo()
    return [info.index_to_description(k).split(", ") for k in range(info.num_classes())]


def find_class(wanted: str, names: Sequence[str], synonyms: Sequence[Sequence[str]] | None = None) -> int:
    """The index of the class that a person means.

    Args:
        wanted: an index, a name in any case, or a part of one that no other class
            has, too; whole words count more than parts of words.
        names: of all classes; synonyms: further names of each.

    Raises:
        InputError: no such class (the message has the nearest name), or several (it lists them).
    """
    if re.fullmatch(r"-?\d+", wanted.strip()):
        index = int(wanted)
        if not 0 <= index < len(names):
            raise InputError(f"--class {index}: the network has the classes 0..{len(names) - 1}")
        return index
    word = wanted.strip().lower()
    known = [
        [name.lower(), *(other.lower() for other in (synonyms[k] if synonyms else ()))] for k, name in enumerate(names)
    ]
    short = [k for k, others in enumerate(known) if word == others[0]]
    exact = [k for k, others in enumerate(known) if word in others]
    whole = [k for k, others in enumerate(known) if any(re.search(rf"\b{re.escape(word)}\b", name) for name in others)]
    part = [k for k, others in enumerate(known) if any(word in name for name in others)]
    found = next((candidates for candidates in (short, exact, whole, part) if candidates), []) if word else []
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{k} {names[k]}" for k in found[:MOST_CANDIDATES])
        more = f" and {len(found) - MOST_CANDIDATES} more" if len(found) > MOST_CANDIDATES else ""
        raise InputError(f"--class '{wanted}' may be any of: {listed}{more}; give the index or more of the name")
    hint = nearest(word, [name for others in known for name in others])
    raise InputError(f"--class: no class is called '{wanted}'{hint} (or give an index, 0..{len(names) - 1})")
