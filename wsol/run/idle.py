"""Which settings were given but change nothing in a run, and why: nobody should wait for an effect that cannot come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsol.cam.registry import CAM_METHODS
from wsol.cam.variant import AFFINITY
from wsol.methods import METHODS

_AFFINITY_SETTINGS = ("affinity_layer", "affinity_power", "affinity_steps", "affinity_centred", "affinity_choice")
_OF_NEW_HEADS = ("vanilla_epochs", "vanilla_lr")


def idle_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """{name of a setting: why it has no effect} of those that were given in a call of main.py.

    Args:
        config: complete; `given` lists what was given.
    """
    reasons: dict[str, str] = {}
    if not config["init_weight"]:
        reasons["init_weight"] = "new layers always start as wsolevaluation's do"
    for entry in METHODS.values():
        if entry.name != config["wsol_method"]:
            reason = f"it is for --wsol_method {entry.name}, not {config['wsol_method']}"
            reasons |= {option.name: reason for option in entry.options}
    for method in CAM_METHODS.values():
        if method.name not in config["methods"]:
            reasons |= {option.name: f"{method.name} is not among the methods" for option in method.options}
    if not any(CAM_METHODS[name].levels for name in config["methods"]):
        reasons["cam_levels"] = "none of the methods reads several stages"
    if not any(CAM_METHODS[name].fitted for name in config["methods"]):
        reasons |= dict.fromkeys(("bls_alpha", "bls_step"), "broadcam is not among the methods")
    if config["methods"] != [config["method"]]:
        reasons["method"] = "--methods overrides it"
    if AFFINITY not in config["refine"]:
        reason = f"no map is refined (--refine {','.join(config['refine'])})"
        reasons |= dict.fromkeys((*_AFFINITY_SETTINGS, "refined_methods"), reason)
    structure = config["model_structure"]
    if structure != "b2":
        reasons["sigmoid_init"] = f"--model_structure {structure} has no sigmoid branch"
        reasons |= dict.fromkeys(_OF_NEW_HEADS, f"--model_structure {structure} has no stage before its own")
    elif config["ft_ckpt"]:
        reasons |= dict.fromkeys(_OF_NEW_HEADS, "--ft_ckpt has a trained softmax head")
    if structure == "vanilla":
        reasons["c2"] = "--model_structure vanilla has the loss --c1 alone"
    if config["augment"] == "none":
        reasons["resize_size"] = "training images are not cropped (--augment none)"
        reasons["feature_views"] = "images as they are have one view (--augment none)"
    if not config["wandb"]:
        reasons |= dict.fromkeys(("project", "wandb_name", "wandb_dir"), "--wandb is off")
    if config["train_only"]:
        reasons["eval_checkpoint_type"] = "--train_only evaluates none"
    return {name: reason for name, reason in reasons.items() if name in config["given"]}
