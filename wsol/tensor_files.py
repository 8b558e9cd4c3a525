"""Files of tensors, ours and other projects': read without executing code, state dict found, names unwrapped.

Formats: what `torch.save` writes (pickles of plain values only) and `.safetensors`.
"""

import pickle
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsol.checksum import is_plain, seal_holds
from wsol.errors import InputError

# Where projects keep a model's tensors in their checkpoints, in the order in which we look.
STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict", "network")
# What DataParallel, Lightning (an attribute `model`) and torch.compile put in front of every name.
WRAPPERS = ("module.", "model.", "_orig_mod.")


def read(path: Path | str) -> Any:
    """The content of a file of tensors; a `.safetensors` file is a dict of them.

    Raises:
        InputError: no such file, neither format, cut off, or more than tensors and plain values in it. Code in the
            file is refused, never executed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"checkpoint {path} " + ("is a folder; name the file in it" if path.is_dir() else "does not exist")
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickle protocols before it refuses a file
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RecursionError):
        raise InputError(
            f"{path} is not a checkpoint of tensors and plain values alone, so it was not loaded: it could run "
            "code; save it again with torch.save({'state_dict': model.state_dict()}, ...)"
        ) from None
    except Exception as error:  # zip, pickle, safetensors and storage readers each raise their own kind
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise InputError(f"{path} is not a checkpoint or is cut off ({reason})") from None


def load(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint, with its tensors under "state_dict" whatever its key was, and without WRAPPERS.

    Raises:
        InputError: as `read` does, or the file has no state dict, or it has a checksum that its content does not match.
    """
    content = read(path)
    if seal_holds(content) is False:
        raise InputError(f"{path} is damaged: its content does not match its checksum; restore it from a copy")
    key, tensors = find_state_dict(content)
    if tensors is None:
        raise InputError(
            f"{path} has no state_dict of named tensors (neither at the top nor under {', '.join(STATE_DICT_KEYS)})"
        )
    for name, tensor in tensors.items():
        if not is_plain(tensor):
            raise InputError(
                f"{path}: the tensor '{name}' is sparse, quantized, complex or without values; save it as a plain one"
            )
    others = {} if key is None else {name: value for name, value in content.items() if name != key}
    return others | {"state_dict": unwrapped(tensors)}


def find_state_dict(content: Any) -> tuple[str | None, dict[str, Tensor] | None]:
    """The key and the state dict in a checkpoint's content; the key of a bare one is None. (None, None) if absent."""
    if _is_state_dict(content):
        return None, content
    if isinstance(content, dict):
        for key in STATE_DICT_KEYS:
            if _is_state_dict(content.get(key)):
                return key, content[key]
    return None, None


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under names without the WRAPPERS that all of them share, such as "module._orig_mod."."""
    start = len(shared_wrappers(tensors))
    return {name[start:]: tensor for name, tensor in tensors.items()}


def shared_wrappers(names: Iterable[str]) -> str:
    """The longest chain of WRAPPERS that every name starts with; "" if there is none."""
    names, chain = list(names), ""
    while wrapper := next((w for w in WRAPPERS if names and all(n.startswith(chain + w) for n in names)), None):
        chain += wrapper
    return chain
