"""What fitted CAM methods keep in a run's folder: `broadcam.safetensors`, tensors and how they came about.

The file has `weight` (K, D) in float64, and in its header the settings of the fit, the layers whose channels the
weights are for, and a checksum of the trunk that gave the features: with another one, the weights mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from wsol.cam.broadcam import NAME as NAME
from wsol.cam.broadcam import Fitted
from wsol.cam.registry import CAM_METHODS
from wsol.checked import MAPPING, TEXT, check_fields, listed
from wsol.checksum import checksum
from wsol.classifier import Classifier
from wsol.errors import InputError
from wsol.files import replacing

FILE = f"{NAME}.safetensors"
_HEADER = {"settings": MAPPING, "layers": listed(TEXT), "trunk": TEXT}
_REMEDY = "remove the file, and --eval_only --methods broadcam fits it anew"


class Kept(NamedTuple):
    """A file's content: weights and layers, the settings of the fit, and the checksum of the trunk they belong to."""

    fitted: Fitted
    settings: dict[str, Any]
    trunk: str

    def fits(self, model: Classifier) -> bool:
        """Whether the network's trunk gives the features that the weights are for."""
        return self.trunk == trunk_of(model)


def is_fitted(method: str) -> bool:
    """Whether a method is fitted to training images before it makes maps."""
    return CAM_METHODS[method].fitted


def trunk_of(model: Classifier) -> str:
    """The checksum of the network's tensors without its heads'."""
    return checksum(model.trunk_state_dict())


def save(folder: Path, fitted: Fitted, settings: Mapping[str, Any], model: Classifier) -> None:
    """Write `broadcam.safetensors` into a folder, whole or not at all."""
    header = {"settings": dict(settings), "layers": fitted.layers, "trunk": trunk_of(model)}
    with replacing(folder / FILE) as temporary:
        tensors = {"weight": fitted.weight.cpu().contiguous()}
        save_file(tensors, temporary, {key: json.dumps(value) for key, value in header.items()})


def load(folder: Path) -> Kept | None:
    """Read a folder's `broadcam.safetensors`; None if it has none.

    Raises:
        InputError: the file is damaged, or none of ours.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            header = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            weight = file.get_tensor("weight")
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not what a fit has written, or is cut off ({error}); {_REMEDY}") from None
    check_fields(header, _HEADER, str(path), _REMEDY, needed=_HEADER)
    if weight.ndim != 2 or weight.dtype != torch.float64 or not weight.isfinite().all():
        raise InputError(f"{path} has weights that are no finite (K, D) in float64; {_REMEDY}")
    return Kept(Fitted(weight, header["layers"]), header["settings"], header["trunk"])
