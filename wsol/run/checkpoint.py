"""Checkpoints: atomic writes, loads that execute nothing, and wsolevaluation's parameter names.

A file `<prefix>_checkpoint.pth.tar` holds plain tensors, numbers and strings:
`architecture`, `epoch`, `state_dict` and `optimizer` as in wsolevaluation, and
beside them what rebuilds the model: `model_structure`, `classifier_form`,
`last_layer`, `num_classes`, `large_feature_map`, `class_names`; and for
resuming: `stage`, `best`.
"""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from wsol.classifier import Classifier
from wsol.errors import InputError
from wsol.files import replacing

SUFFIX = "_checkpoint.pth.tar"
_SIGMOID_NAMES = {"fc": "fc2", "conv": "conv2", "head": "head2"}
# Every name that a published checkpoint's sigmoid branch goes by, whatever the head's is.
_PUBLISHED_SIGMOID = ("fc2", "conv2", "head2", "classifier_2", "SPG_A4_2")


def sigmoid_name(head_name: str) -> str:
    """The sigmoid branch's name in checkpoints: fc2 beside fc, classifier_2 beside classifier (Dual-CAM's code)."""
    parent, dot, leaf = head_name.rpartition(".")
    return parent + dot + _SIGMOID_NAMES.get(leaf, f"{leaf}_2")


def state_dict(model: Classifier) -> dict[str, Tensor]:
    """The model's tensors under published names: the network's own, the branch under `sigmoid_name`."""
    tensors = dict(model.network.state_dict())
    if model.sigmoid_head is not None:
        tensors |= model.sigmoid_head.state_dict(prefix=sigmoid_name(model.head_name) + ".")
    return tensors


def named_parameters(model: Classifier) -> dict[str, Parameter]:
    """The model's parameters under the same names."""
    named = dict(model.network.named_parameters())
    if model.sigmoid_head is not None:
        named |= dict(model.sigmoid_head.named_parameters(prefix=sigmoid_name(model.head_name)))
    return named


def load_state_dict(model: Classifier, tensors: dict[str, Tensor], source: str, *, branch: bool = True) -> None:
    """Load tensors under published names; the set of names and every shape must fit exactly.

    Args:
        tensors: keys optionally under `module.` (DataParallel), a branch under any of its published names.
        source: the file's name, for error messages.
        branch: False leaves the model's sigmoid branch alone and passes over one in the file.

    Raises:
        InputError: names or shapes differ; the message says which, and what it means.
    """
    prefix = sigmoid_name(model.head_name) + "."
    expected = state_dict(model)
    tensors = _plain_names(tensors, prefix, {name.split(".")[0] for name in expected})
    if not branch:
        tensors, expected = ({n: t for n, t in d.items() if not n.startswith(prefix)} for d in (tensors, expected))
    # num_batches_tracked came with torch 0.4.1; older files lack it and evaluation does not read it.
    missing = [n for n in expected if n not in tensors and not n.endswith("num_batches_tracked")]
    left_over = [n for n in tensors if n not in expected]
    if missing and all(n.startswith(prefix) for n in missing) and not left_over:
        raise InputError(
            f"{source} holds no sigmoid branch ({prefix}*); it is a checkpoint of one head: "
            "evaluate it with --model_structure vanilla, or train a branch on it with --ft_ckpt"
        )
    if left_over and all(n.startswith(prefix) for n in left_over) and not missing:
        raise InputError(f"{source} holds a sigmoid branch ({prefix}*); evaluate it with --model_structure b2")
    if missing or left_over:
        raise InputError(
            f"{source} does not fit this network ({type(model.network).__name__}): "
            f"{_some('missing', missing)}{_some('left over', left_over)}"
            "check --architecture, --classifier_form, --last_layer and --large_feature_map"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            hint = (
                "it was trained on another number of classes; check --dataset_name"
                if name.startswith((model.head_name, prefix))
                else "check --architecture"
            )
            raise InputError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, this network needs "
                f"{tuple(expected[name].shape)}; {hint}"
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f"{source}: {name} holds NaN or infinite values; the training that wrote it had failed")
    with torch.no_grad():
        for name, tensor in tensors.items():
            expected[name].copy_(tensor)  # state_dict's tensors are the model's own


def holds_branch(model: Classifier, tensors: dict[str, Tensor]) -> bool:
    """Is there a sigmoid branch for this network, under any of its published names, among these tensors?"""
    prefix = sigmoid_name(model.head_name) + "."
    own = {name.split(".")[0] for name in model.network.state_dict()}
    return any(name.startswith(prefix) for name in _plain_names(tensors, prefix, own))


def _plain_names(tensors: dict[str, Tensor], prefix: str, own: set[str]) -> dict[str, Tensor]:
    """Without `module.`; a branch under another published name (that is no layer of the network) under `prefix`."""
    plain = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("module.")
        first, _, rest = name.partition(".")
        plain[prefix + rest if first in _PUBLISHED_SIGMOID and first not in own else name] = tensor
    return plain


def _some(what: str, names: list[str], most: int = 3) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what}: {', '.join(names[:most])}{more}; "


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint so that at any moment the old one or the new one is whole on disk.

    Raises:
        InputError: the file cannot be written (disk full, no permission); the old one is kept.
    """
    with replacing(path, sync=True) as temporary:
        torch.save(content, temporary)


def read(path: Path) -> Any:
    """What torch.save wrote. Code in the file is refused, never executed.

    Raises:
        InputError: no such file, not one of torch's, or it holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"checkpoint {path} " + ("is a folder; name the file in it" if path.is_dir() else "does not exist")
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch muses about pickle protocols before it refuses a file
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = re.sub(r"\x1b\[[0-9;]*m", "", str(error).splitlines()[0])  # without torch's colours
        raise InputError(
            f"{path} is not a checkpoint of plain tensors and values, so it was not loaded ({reason}); "
            "save it again with torch.save({'state_dict': model.state_dict()}, ...)"
        ) from None
    except Exception as error:  # zip, pickle and storage readers each raise their own kind
        raise InputError(f"{path} is not a checkpoint or is cut off ({type(error).__name__}: {error})") from None


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, or a bare state dict as {"state_dict": ...}; see `read`.

    Raises:
        InputError: as read does, or the file holds no state dict.
    """
    content = read(path)
    if (
        isinstance(content, dict)
        and "state_dict" not in content
        and content
        and all(isinstance(value, Tensor) for value in content.values())
    ):
        content = {"state_dict": content}
    tensors = content.get("state_dict") if isinstance(content, dict) else None
    if (
        not isinstance(tensors, dict)
        or not tensors
        or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items())
    ):
        raise InputError(f"{path} holds no state_dict of named tensors")
    return content


def path_of(run_folder: Path, prefix: str) -> Path:
    """`<run_folder>/<prefix>_checkpoint.pth.tar`; an InputError that lists those present where it is missing."""
    path = Path(run_folder) / f"{prefix}{SUFFIX}"
    if not path.is_file():
        present = sorted(p.name.removesuffix(SUFFIX) for p in Path(run_folder).glob(f"*{SUFFIX}"))
        raise InputError(
            f"no checkpoint {path}; "
            + (
                f"present there: {', '.join(present)} (--eval_checkpoint_type)"
                if present
                else "the folder holds no checkpoint at all"
            )
        )
    return path


class Found:
    """A checkpoint that a run was told to use.

    role: "start" (--ft_ckpt), "resume" or "eval". Loaded when made; see `load` for errors.
    """

    def __init__(self, role: str, path: Path):
        self.role, self.path = role, str(path)
        self.content = load(path)

    @property
    def facts(self) -> dict[str, Any]:
        """What rebuilds the model, by the names of the settings; files of elsewhere know less, or nothing."""
        return {
            key: self.content[key]
            for key in ("architecture", "model_structure", "classifier_form", "last_layer", "large_feature_map")
            if self.content.get(key) is not None
        }

    @property
    def training_state(self) -> dict[str, Any]:
        """The checkpoint as what training goes on from; an InputError if it is not one of this program."""
        missing = {"stage", "epoch", "best", "optimizer"} - set(self.content)
        if missing:
            raise InputError(
                f"{self.path} holds no training state ({', '.join(sorted(missing))}), so there is nothing to "
                "resume; start from its weights with --ft_ckpt"
            )
        return self.content

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.content["state_dict"]

    def check_architecture(self, architecture: str) -> None:
        """InputError if the file says it belongs to another network; files of elsewhere may not say."""
        own = self.content.get("architecture")
        if own not in (None, architecture):
            raise InputError(f"{self.path} is a checkpoint of {own}, not of {architecture}; give --architecture {own}")

    def classifier_form(self, entry) -> str | None:
        """The form of an Architecture that the checkpoint holds; None where it does not tell."""
        return entry.form_of(self.tensors) or self.content.get("classifier_form")

    def num_classes(self, head_name: str) -> int:
        """The number of classes the checkpoint decides between; InputError if it holds no such head."""
        tensors = {name.removeprefix("module."): tensor for name, tensor in self.tensors.items()}
        widths = [t.shape[0] for n, t in tensors.items() if n.startswith(f"{head_name}.") and n.endswith("weight")]
        if not widths:
            raise InputError(f"{self.path} holds no classification head '{head_name}'; check --architecture")
        return widths[-1]

    def class_names(self, head_name: str, of_data: list[str]) -> list[str]:
        """Names of all classes the checkpoint decides between; InputError if the data set has more."""
        width = self.num_classes(head_name)
        if len(of_data) > width:
            raise InputError(
                f"{self.path} decides between {width} classes, but the data set has {len(of_data)}; "
                "check --dataset_name, or train on this data set"
            )
        known = self.content.get("class_names") or of_data
        return [*known, *(f"class {k}" for k in range(len(known), width))]
