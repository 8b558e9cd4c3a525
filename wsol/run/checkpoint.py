"""Checkpoints of a run: their content, names and atomic writes.

A file `<prefix>_checkpoint.pth.tar` has plain tensors, numbers and strings: `architecture`, `epoch`, `state_dict` and
`optimizer` as in wsolevaluation; what rebuilds the model (`model_structure`, `wsol_method`, `classifier_form`,
`last_layer`, `num_classes`, `large_feature_map`, `class_names`); how a sigmoid branch was trained (`branch`); what
resuming needs (`stage`, `best`); where it comes from (`training`, `starts_from`, `metadata`, see
wsol/run/provenance.py); and a `checksum` of all of that, which is checked whenever the file is read. Checkpoints of
other projects are read, too; see wsol/tensor_files.py.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsol.backbones import Architecture
from wsol.backbones.registry import FORMS, LAST_LAYERS
from wsol.branch import BranchSetting
from wsol.checked import MAPPING, NUMBER, SCORE, TEXT, TRUTH, WHOLE, Kind, check_fields, listed, one_of, optional
from wsol.errors import InputError, plain_name
from wsol.files import replacing
from wsol.log import log
from wsol.losses import OBJECTIVES
from wsol.methods import METHODS
from wsol.tensor_files import load, shared_wrappers

SUFFIX = "_checkpoint.pth.tar"
_BUILD_SETTINGS = (
    "architecture",
    "model_structure",
    "wsol_method",
    "classifier_form",
    "last_layer",
    "large_feature_map",
)
# What the fields that are read must be, where a checkpoint has them.
_FIELDS = {
    "architecture": TEXT,
    "model_structure": optional(one_of(list(OBJECTIVES))),
    "wsol_method": optional(one_of(list(METHODS))),
    "classifier_form": optional(one_of([*FORMS, "auto"])),
    "last_layer": optional(one_of(LAST_LAYERS)),
    "large_feature_map": optional(TRUTH),
    "class_names": optional(listed(TEXT)),
    "dataset_name": optional(TEXT),
    "branch": optional(MAPPING),
    "training": listed(MAPPING),
    "metadata": MAPPING,
    "starts_from": MAPPING,
}
_TRAINING_STATE = {
    "stage": one_of(list(OBJECTIVES)),
    "epoch": WHOLE,
    "best": optional(SCORE),  # NaN once training has diverged
    "optimizer": optional(Kind(lambda value: isinstance(value, dict), "an optimizer's state")),
}
_WITHIN = {  # an epoch that was saved in its middle
    "loss_sum": SCORE,
    "num_correct": WHOLE,
    "num_images": WHOLE,
    "seconds": NUMBER,
    "torch": Kind(lambda value: isinstance(value, torch.Tensor), "a generator's state"),
    "cuda": Kind(lambda value: isinstance(value, list), "a list of generators' states"),
    "numpy": Kind(lambda value: isinstance(value, list) and len(value) == 5, "a generator's state"),
    "of_others": optional(Kind(lambda value: isinstance(value, list), "a list of other processes' generators")),
}


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; at any moment the old file or the new one is complete on disk.

    Raises:
        InputError: the file cannot be written (disk full, no permission); the old one is kept.
    """
    with replacing(path, sync=True) as temporary:
        torch.save(content, temporary)


def path_of(run_folder: Path, prefix: str) -> Path:
    """`<run_folder>/<prefix>_checkpoint.pth.tar`; if it is missing, an InputError that lists those in the folder."""
    plain_name("--eval_checkpoint_type", prefix, what_it_is="the name of a checkpoint in the run's own folder")
    path = Path(run_folder) / f"{prefix}{SUFFIX}"
    if not path.is_file():
        present = sorted(p.name.removesuffix(SUFFIX) for p in Path(run_folder).glob(f"*{SUFFIX}"))
        raise InputError(
            f"no checkpoint {path}; "
            + (
                f"present there: {', '.join(present)} (--eval_checkpoint_type)"
                if present
                else "the folder has no checkpoint at all"
            )
        )
    return path


class Checkpoint:
    """A checkpoint that a command was given, loaded when constructed; see `wsol.tensor_files.load` for errors.

    Args:
        role: "start" (--ft_ckpt), "resume" or "eval".
    """

    def __init__(self, role: str, path: Path | str):
        self.role, self.path = role, str(path)
        self.content = load(path)
        check_fields(self.content, _FIELDS, self.path, "save it again, or use another checkpoint")
        if self.branch is not None:
            self._check_branch(self.branch)
        if "checksum" not in self.content:
            log.info("%s has no checksum (it is older or another project's), so damage cannot be detected", path)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The state dict, without wrappers in its names."""
        return self.content["state_dict"]

    @property
    def build_settings(self) -> dict[str, Any]:
        """The settings that rebuild the model, by name; checkpoints of other projects have few of them, or none."""
        modules = {name.split(".")[0] for name in self.tensors}
        # Those of wsolevaluation do not name their training method, but the names of their layers may tell.
        told = [("wsol_method", entry.name) for entry in METHODS.values() if entry.module and entry.module in modules]
        return dict(told) | {key: self.content[key] for key in _BUILD_SETTINGS if self.content.get(key) is not None}

    @property
    def branch(self) -> dict[str, Any] | None:
        """How the sigmoid branch was trained, as in results.json; None if there is none or the checkpoint is older."""
        return self.content.get("branch")

    @property
    def training_state(self) -> dict[str, Any]:
        """The content that training resumes from; InputError if the checkpoint was not written by our training."""
        missing = _TRAINING_STATE.keys() - self.content.keys()
        if missing:
            raise InputError(
                f"{self.path} has no training state ({', '.join(sorted(missing))}), so training cannot be resumed; "
                "start from its weights with --ft_ckpt"
            )
        check_fields(
            self.content,
            _TRAINING_STATE,
            self.path,
            "training cannot be resumed; start from its weights with --ft_ckpt",
        )
        if (within := self.content.get("within")) is not None:
            remedy = "training cannot be resumed; start from its weights with --ft_ckpt"
            if not isinstance(within, dict):
                raise InputError(f"{self.path}: the field 'within' is not a mapping; {remedy}")
            check_fields(within, _WITHIN, self.path, remedy)
        return self.content | {"path": self.path}

    def _check_branch(self, branch: dict[str, Any]) -> None:
        """InputError unless every setting in the record of a branch is one of BranchSetting."""
        try:
            for record in (branch, *branch.get("candidates", [])):
                BranchSetting.from_record(record["setting"])
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{self.path}: the field 'branch' names a setting that does not exist; train the branch again"
            ) from None

    def check_architecture(self, architecture: str) -> None:
        """InputError if the checkpoint names another architecture; those of other projects may name none."""
        own = self.content.get("architecture")
        if own not in (None, architecture):
            raise InputError(f"{self.path} is a checkpoint of {own}, not of {architecture}; give --architecture {own}")

    def classifier_form(self, entry: Architecture) -> str | None:
        """The form of the architecture that the checkpoint has; None if it does not tell."""
        return entry.form_of(self.tensors) or self.content.get("classifier_form")

    def num_classes(self, head_name: str) -> int:
        """The number of classes of the checkpoint's head; InputError if it has no such head."""
        for head in (head_name, head_name.removeprefix(shared_wrappers([head_name]))):
            widths = [
                tensor.shape[0]
                for name, tensor in self.tensors.items()
                if name.startswith(f"{head}.") and name.endswith("weight") and tensor.numel() and tensor.ndim
            ]
            if widths:
                return widths[-1]
        raise InputError(f"{self.path} has no classification head '{head_name}'; check --architecture")

    def class_names(self, head_name: str, data_names: list[str]) -> list[str]:
        """Names of all classes of the checkpoint's head; InputError if the data set has more classes."""
        width = self.num_classes(head_name)
        if len(data_names) > width:
            raise InputError(
                f"{self.path} has {width} classes, but the data set has {len(data_names)}; "
                "check --dataset_name, or train on this data set"
            )
        known = self.content.get("class_names") or data_names
        return [*known, *(f"class {k}" for k in range(len(known), width))]
