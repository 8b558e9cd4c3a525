"""Checksums that tell whether weights, checkpoints and files are still what they were.

They find damage and mix-ups, not forgery: whoever changes a file on purpose can change its checksum, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_KIND = "blake2b-128"


def checksum(value: Any) -> str:
    """The checksum of nested dicts, lists and tuples of tensors and plain values, such as "blake2b-128 9f86d08…".

    The order of a dict's keys and the device of a tensor do not matter; names, types, shapes and every bit of the
    tensors do.
    """
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, value)
    return f"{_KIND} {digest.hexdigest()}"


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content with its own checksum under "checksum"."""
    return content | {"checksum": checksum(content)}


def seal_holds(content: Any) -> bool | None:
    """Whether content is what was `sealed`; None if it has no checksum of ours."""
    seal = content.get("checksum") if isinstance(content, dict) else None
    if not isinstance(seal, str) or not seal.startswith(_KIND):  # another project's field may have that name
        return None
    return seal == checksum({key: value for key, value in content.items() if key != "checksum"})


def files_checksum(paths: Iterable[Path]) -> str:
    """The checksum of the names and contents of files, whatever their order and folder."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(paths, key=lambda path: path.name):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return f"{_KIND} {digest.hexdigest()}"


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's values lie one after the other: it is not sparse, quantized, complex or without values."""
    return tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_complex() or tensor.is_meta)


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}\0".encode())
        if not is_plain(value):  # no checkpoint of ours has one
            return
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        digest.update(f"dict {len(value)}\0".encode())
        for key in sorted(value, key=repr):
            digest.update(f"{key!r}\0".encode())
            _add(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"{type(value).__name__} {len(value)}\0".encode())
        for item in value:
            _add(digest, item)
    else:
        digest.update(f"{value!r}\0".encode())
