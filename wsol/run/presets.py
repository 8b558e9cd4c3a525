"""PRESETS: the defaults of the projects whose commands main.py and evaluation.py understand.

A command that was written for one of them leaves out what was its default there; `--preset` brings these defaults back.
Flags override them. docs/presets.md says where a default of theirs cannot work, and what takes its place.
"""

from __future__ import annotations

from typing import Any

# What both have in common: config.py of clovaai/wsolevaluation, of which Dual-CAM's is a copy.
_COMMON: dict[str, Any] = {
    "dataset_name": "CUB",
    "architecture": "resnet50",  # theirs, resnet18, is none of their own networks
    "model_structure": "vanilla",
    "unfreeze_layer": "all",
    "wsol_method": "cam",  # theirs, base, is none of their own methods
    "epochs": 40,
    "batch_size": 64,
    "lr": 0.01,
    "lr_decay_frequency": 30,
    "weight_decay": 1e-4,
    "augment": "crop_flip",
    "branch_choice": "given",
    "refine": ["none"],
}
PRESETS: dict[str, dict[str, Any]] = {
    # Its maps are those of CAM.
    "wsolevaluation": _COMMON | {"methods": ["cam"], "root": "train_log"},
    # It keeps the checkpoint of every epoch, and looks at the first box of an image only.
    "dualcam": _COMMON | {"methods": ["gradcam"], "save_every": 1, "gt_boxes": "first"},
}
# evaluation.py of both.
EVALUATION_PRESET: dict[str, Any] = {"cam_curve_interval": 0.01, "split": "val"}


def preset_defaults(name: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The defaults of main.py under a preset; none without a name.

    Args:
        given: the settings that have a value already, which defaults may depend on.
    """
    if name is None:
        return {}
    defaults = dict(PRESETS[name])
    if given.get("method"):
        del defaults["methods"]
    # Its default --t2 clamps the branch's weights; without a branch there is nothing to clamp.
    branch = ["sigmoid_clamped"] if given.get("model_structure") == "b2" else []
    return defaults | {"heads": ["softmax", *branch]}
