"""Class names: those of ImageNet, and finding the class that a person means."""

import re
from collections.abc import Sequence
from functools import lru_cache

from timm.data.imagenet_info import ImageNetInfo
from torchvision.models import ResNet18_Weights

from wsol.errors import InputError, first_few, nearest

MOST_CANDIDATES = 8


@lru_cache
def imagenet_names() -> list[str]:
    """A short, unique name for each of the 1000 ImageNet classes, as torchvision's weights list them."""
    return list(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


@lru_cache
def imagenet_synonyms() -> list[list[str]]:
    """WordNet's synonyms for each of the 1000 ImageNet classes ("tabby", "tabby cat"), as timm lists them."""
    info = ImageNetInfo()
    return [info.index_to_description(k).split(", ") for k in range(info.num_classes())]


def find_class(wanted: str, names: Sequence[str], synonyms: Sequence[Sequence[str]] | None = None) -> int:
    """The index of the class that a person means.

    Args:
        wanted: an index, a name in any case, or a part of a name that only one class has; whole words are preferred
            to parts of words.
        names: names of all classes.
        synonyms: further names of each class.

    Raises:
        InputError: there is no such class (the message suggests the nearest name), or several (it lists them).
    """
    if re.fullmatch(r"-?\d+", wanted.strip()):
        index = int(wanted) if len(wanted) < 20 else -1
        if not 0 <= index < len(names):
            raise InputError(f"--class {wanted.strip()[:20]}: the network has the classes 0..{len(names) - 1}")
        return index
    word = wanted.strip().lower()
    aliases = [
        [name.lower(), *(other.lower() for other in (synonyms[k] if synonyms else ()))] for k, name in enumerate(names)
    ]
    whole_word = re.compile(rf"\b{re.escape(word)}\b")
    name_matches = [k for k, own in enumerate(aliases) if word == own[0]]
    synonym_matches = [k for k, own in enumerate(aliases) if word in own]
    word_matches = [k for k, own in enumerate(aliases) if any(whole_word.search(name) for name in own)]
    part_matches = [k for k, own in enumerate(aliases) if any(word in name for name in own)]
    by_preference = (name_matches, synonym_matches, word_matches, part_matches)
    candidates = next((matches for matches in by_preference if matches), []) if word else []
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        listed = first_few((f"{k} {names[k]}" for k in candidates), MOST_CANDIDATES)
        raise InputError(f"--class '{wanted}' may be any of: {listed}; give the index or more of the name")
    hint = nearest(word, [name for own in aliases for name in own])
    raise InputError(f"--class: no class is called '{wanted}'{hint} (or give an index, 0..{len(names) - 1})")
