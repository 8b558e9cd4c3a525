"""Every setting of the commands, in one table: flags and YAML → one checked config.

Names and meanings are those of wsolevaluation and Dual-CAM, so their commands keep working. Choices come from
registries that list their names without importing torch: --help and mistyped flags are answered at once. Parsing
touches no disk, except to read --config FILE.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import munch

from wsol.backbones.registry import ARCHITECTURES, FORMS, LAST_LAYERS
from wsol.branch import CANDIDATES, WEIGHTS, BranchSetting
from wsol.cam.affinity import AFFINITY_CANDIDATES, DEFAULT_AFFINITY, Affinity
from wsol.cam.normalization import NORMALIZATIONS
from wsol.cam.registry import CAM_METHODS, PERTURB_BATCH, all_methods, cam_options
from wsol.cam.variant import HEADS, REFINEMENTS
from wsol.checked import read_yaml
from wsol.datasets.registry import DATASETS, SPLITS, dataset_info
from wsol.errors import InputError, first_few, nearest, plain_name, shortened
from wsol.log import log
from wsol.losses import AMP, LOSSES, OBJECTIVES
from wsol.methods import METHODS
from wsol.metrics.measures import MEASURES
from wsol.run.figure_options import COLORMAPS, DEFAULT_COLORMAP, FIGURE_FORMATS
from wsol.run.flag_types import (
    amount,
    amount_or_inf,
    architecture,
    boolean,
    count,
    names,
    number,
    numbers,
    percentage,
    positive,
    random_seed,
    rate,
    resamples,
    share,
    size,
    stages,
)
from wsol.run.idle import idle_settings
from wsol.run.presets import EVALUATION_PRESET, PRESETS, preset_defaults

DEFAULT_ARCHITECTURE = "efficientnet_lite0"
# Behind global average pooling and one linear layer, as in the default network, xgradcam, hirescam and shapleycam equal
# gradcam, and layercam equals clamped gradcam. eigencam differs: it sees the trunk alone, so it has one row.
DEFAULT_METHODS = ("cam", "gradcam", "gradcam++", "eigencam")

# --unfreeze_layer → trainable parts of a Classifier. The references' names of layers work on every network.
UNFREEZE = {
    "all": ("trunk", "neck", "softmax_head", "sigmoid_head"),
    "none": (),
    **dict.fromkeys(("fc", "classifier", "SPG_A4", "head", "conv"), ("softmax_head",)),
    **dict.fromkeys(("fc2", "classifier_2", "SPG_A4_2", "head2", "conv2"), ("sigmoid_head",)),
}


# What --help shows for a value of each type.
_METAVARS = dict.fromkeys((count, positive, size, random_seed, resamples), "N") | dict.fromkeys(
    (amount, amount_or_inf, rate, share), "X"
)


# --------------------------------------------------------------------------- the table of settings

MAIN, INFERENCE, EVALUATION = "main", "inference", "evaluation"

# Where a setting's value may come from, and whether a run that continues (--resume, --eval_only) keeps it.
COMMAND_LINE = "command line"  # never from YAML: a run's config.yaml repeats the run under another name
THIS_CALL = "this call"  # from YAML, too, but a run that continues does not keep it
RUN = "run"  # a run that continues keeps it; the command line may change it
FIXED = "fixed"  # --resume cannot change it

# What a setting bears on; decides what a continued run may change, and where its results go.
TRAINING = "training"  # the weights
RESULTS = "results"  # the numbers of an evaluation, perhaps also the weights
NOTHING = "nothing"  # where files are, how fast it goes, what is reported


@dataclass(frozen=True)
class Setting:
    """One flag of one or more commands and, in main.py, one key of config.yaml.

    Args:
        name: of the flag without dashes; a positional argument where `positional`.
        help: for --help, where the default is appended.
        default: None if it follows from other settings (see `complete`).
        type: parses a value; `boolean` flags may stand alone.
        group: the heading in --help.
        commands: the commands that have the flag.
        scope: COMMAND_LINE, THIS_CALL, RUN or FIXED.
        bears_on: TRAINING, RESULTS or NOTHING; see `effect` for the default.
        follows: settings that the default depends on; when one of them is given anew, the saved value is dropped.
        aliases: further flags of the same meaning.
    """

    name: str
    help: str
    default: Any = None
    type: Callable[[str], Any] = str
    group: str = ""
    commands: tuple[str, ...] = (MAIN,)
    scope: str = RUN
    bears_on: str = ""
    follows: tuple[str, ...] = ()
    choices: Collection[str] | None = None
    metavar: str | tuple[str, ...] | None = None
    nargs: str | None = None
    required: bool = False
    positional: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def effect(self) -> str:
        """TRAINING, RESULTS or NOTHING: what `bears_on` says, else what all settings of the group bear on."""
        return self.bears_on or _BEARS_ON.get(self.group, RESULTS)

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """Add the flag to a parser; values that are not given are left out of the result."""
        arguments: dict[str, Any] = {"help": self.help, "default": argparse.SUPPRESS, "type": self.type}
        if self.type is boolean:
            arguments |= {"nargs": "?", "const": True, "metavar": self.metavar or "TRUE|FALSE"}
        elif not self.choices:
            arguments["metavar"] = _METAVARS.get(self.type, "TEXT")
        arguments |= {key: getattr(self, key) for key in ("choices", "metavar", "nargs") if getattr(self, key)}
        if self.default not in (None, False, [], ""):
            values = self.default if isinstance(self.default, (list, tuple)) else [self.default]
            shown = (str(value).upper() if isinstance(value, bool) else str(value) for value in values)
            arguments["help"] += f" (default: {' '.join(shown)})"
        if self.positional:
            parser.add_argument(self.name, **arguments)
        else:
            flags = (f"--{name}" for name in (self.name, *self.aliases))
            parser.add_argument(*flags, dest=self.name, required=self.required, **arguments)


def _flag(name: str, help: str, default: bool | None = False, **properties: Any) -> Setting:
    return Setting(name, help, default, boolean, **properties)


_RUN, _DATA, _NETWORK, _TRAINING = "run", "data", "network and branches", "training"
_MAPS, _WANDB = "maps and metrics", "Weights & Biases, TensorBoard"
_METHOD_OPTIONS = "options of training methods"
_KINDS: dict[str, Callable[[str], Any]] = {"share": share, "positive": positive, "amount": amount}
_BEARS_ON = {_TRAINING: TRAINING, _METHOD_OPTIONS: TRAINING, _WANDB: NOTHING}
_BOTH, _MEASURING = (MAIN, INFERENCE), (MAIN, EVALUATION)
_KNOWN_DATASETS = f"{', '.join(DATASETS)}, or any folder in the same format"

_MAIN_SETTINGS = (
    # ------------------------------------------------------------- run
    Setting("config", "YAML file of settings, such as a run's config.yaml; flags override it",
            group=_RUN, metavar="FILE", scope=COMMAND_LINE),
    Setting("preset", "the defaults of another project's command, for all flags that are not given: its epochs, batch "
            "size, structure, data set, ... (docs/presets.md)", choices=tuple(PRESETS), group=_RUN, commands=_MEASURING,
            scope=FIXED, bears_on=NOTHING),
    Setting("root", "folder that contains the run folders", "experiments", group=_RUN, scope=THIS_CALL,
            bears_on=NOTHING),
    Setting("experiment_name", "name of the run's folder in --root (default: the next free run-N)",
            group=_RUN, scope=COMMAND_LINE),
    _flag("override_cache", "replace an existing run folder of that name", group=_RUN, scope=COMMAND_LINE),
    _flag("resume", "continue an interrupted run", group=_RUN, scope=COMMAND_LINE),
    _flag("eval_only", "evaluate a checkpoint of an existing run, without training", group=_RUN, scope=COMMAND_LINE),
    Setting("eval_checkpoint_type", "checkpoint to evaluate, with --eval_only or after training: last, best, or any "
            "PREFIX of PREFIX_checkpoint.pth.tar in the run folder", "last", group=_RUN, metavar="PREFIX",
            scope=THIS_CALL),
    _flag("train_only", "train, but do not evaluate on the test split", group=_RUN, scope=THIS_CALL,
          bears_on=NOTHING),
    _flag("dry_run", "print the settings and the numbers of parameters and images, then stop",
          group=_RUN, scope=COMMAND_LINE),
    Setting("seed", "random seed", 42, random_seed, group=_RUN, scope=FIXED),
    Setting("gpus", "CUDA device indices, such as 0 or 0,1; without CUDA the CPU is used", "0", metavar="INDICES",
            group=_RUN, commands=_BOTH, bears_on=NOTHING),
    Setting("workers", "data loading processes, at most the number of cores", 4, count, group=_RUN, commands=_BOTH,
            bears_on=NOTHING),
    _flag("deterministic", "the same seed gives the same numbers on the same machine; FALSE lets cuDNN choose its "
          "fastest convolutions", True, group=_RUN, commands=_BOTH, bears_on=NOTHING),
    _flag("debug", "log more", group=_RUN, commands=_BOTH, scope=THIS_CALL, bears_on=NOTHING),
    # ------------------------------------------------------------- data
    Setting("dataset_name", f"{_KNOWN_DATASETS}; Synthetic is generated when first used", "Synthetic",
            group=_DATA, scope=FIXED),
    Setting("data_root", "images are in DATA_ROOT/DATASET_NAME", "dataset", group=_DATA, bears_on=NOTHING),
    Setting("metadata_root", "metadata are in METADATA_ROOT/DATASET_NAME", "metadata", group=_DATA, bears_on=NOTHING),
    Setting("mask_root", "masks are in MASK_ROOT/DATASET_NAME (default: --data_root)",
            group=_DATA, follows=("data_root",), bears_on=NOTHING),
    _flag("proxy_training_set", "train on image_ids_proxy.txt, a small part of ILSVRC", group=_DATA,
          bears_on=TRAINING, scope=FIXED),
    Setting("proportion", "per cent of the training images to use, the same share of each class, at least one; smaller "
            "parts are inside larger ones", 100.0, percentage, metavar="P", group=_DATA, bears_on=TRAINING,
            scope=FIXED),
    Setting("num_val_sample_per_class", "val images per class; 0 uses all", 0, count, group=_DATA),
    _flag("skip_bad_images", "leave out images that are missing or broken, or whose masks are; each is counted and "
          "named in the log. Decodes every file once before the run", group=_DATA),
    Setting("resize_size", "training images are resized to this square before cropping", 256, size, group=_DATA,
            bears_on=TRAINING),
    Setting("crop_size", "side of the network's input", 224, size, group=_DATA, commands=_BOTH),
    Setting("augment", "training images: random crop and flip, or none (default: crop_flip; none for Synthetic and "
            "CUTOUTS)", choices=("crop_flip", "none"), group=_DATA, follows=("dataset_name",), bears_on=TRAINING),
    # ------------------------------------------------------------- network and branches
    Setting("architecture", f"the network: {', '.join(sorted(ARCHITECTURES))}, or any classifier of timm or "
            "torchvision by its name", DEFAULT_ARCHITECTURE, architecture, metavar="NAME", group=_NETWORK, scope=FIXED),
    Setting("classifier_form", "form of vgg16 and inception_v3: with extra convolutions and global average pooling "
            "(cam), or the published network (original). auto: the checkpoint's own, else cam if --methods contains "
            "cam, else original", "auto", choices=(*FORMS, "auto"), group=_NETWORK, commands=_BOTH, scope=FIXED,
            follows=("architecture", "ft_ckpt", "methods", "method")),
    _flag("pretrained", "start from ImageNet weights", True, group=_NETWORK, commands=_BOTH, bears_on=TRAINING),
    Setting("pretrained_path", "ImageNet weights on disk: a file, or a folder that has it under its published name",
            metavar="FILE_OR_FOLDER", group=_NETWORK, commands=_BOTH, bears_on=TRAINING),
    _flag("large_feature_map", "halve the last stage's stride (doubles map resolution)", group=_NETWORK, scope=FIXED),
    Setting("model_structure", "vanilla: one head, loss c1. b1: one head, losses c1 + c2. b2: softmax head (c1) and "
            "sigmoid branch (c2)", "b2", choices=tuple(OBJECTIVES), group=_NETWORK, scope=FIXED),
    Setting("unfreeze_layer", "which parameters to train: all, none, the softmax head (fc classifier SPG_A4 head conv) "
            "or the sigmoid branch (fc2 classifier_2 SPG_A4_2 head2 conv2); default: fc2 in b2, otherwise all",
            type=lambda text: "none" if text == "None" else text, choices=tuple(UNFREEZE), metavar="LAYER",
            group=_NETWORK, scope=FIXED, follows=("model_structure",),
            bears_on=TRAINING),
    Setting("last_layer", "the classification layer: fc after global average pooling, or a 1x1 conv before it", "fc",
            choices=LAST_LAYERS, group=_NETWORK, scope=FIXED),
    Setting("ft_ckpt", "checkpoint to start from; in b2 its head is cloned into the branch", metavar="FILE",
            group=_NETWORK, bears_on=TRAINING, scope=FIXED),
    Setting("sigmoid_init", "start the branch as a clone of the softmax head, or at random as in the authors' code",
            "clone", choices=("clone", "random"), group=_NETWORK, bears_on=TRAINING, scope=FIXED),
    Setting("branch_weights", "b2: weights of the sigmoid branch's last linear layer. free; or nonnegative: negative "
            "weights are set to zero at the start and after each step (in an MLP, units of the last hidden layer are "
            "then only added up, never subtracted)", "free", choices=WEIGHTS, group=_NETWORK, scope=FIXED,
            follows=("model_structure",), bears_on=TRAINING),
    Setting("branch_lambda", "b2: the sigmoid branch's loss is cross entropy + X times --c2 of its own logits; 0 is "
            "cross entropy alone, inf is --c2 alone", math.inf, amount_or_inf, group=_NETWORK, scope=FIXED,
            follows=("model_structure",), bears_on=TRAINING),
    Setting("branch_mu", "b2: weight of the object loss, which the sigmoid branch's loss has in addition: every "
            "class's logit should be positive on the object and negative on the background, as the refined map of the "
            "softmax head tells them apart. For a frozen trunk", 0.0, amount, group=_NETWORK, scope=FIXED,
            follows=("model_structure",), bears_on=TRAINING),
    Setting("branch_choice", "b2: take the three settings above as given, or (val) train each of "
            f"{len(CANDIDATES)} settings and keep the one that localizes best on the val split (default: val; given "
            "with --ft_ckpt, with any of the three, or without a val split)", choices=("given", "val"), group=_NETWORK,
            scope=FIXED, follows=("model_structure", "ft_ckpt", "branch_weights", "branch_lambda", "branch_mu", "c2",
                                  "unfreeze_layer", "epochs"), bears_on=TRAINING),
    _flag("init_weight", "accepted for old commands; new layers always start as wsolevaluation's do, and FALSE has no "
          "effect", True,
          group=_NETWORK, bears_on=TRAINING),
    # ------------------------------------------------------------- training
    Setting("wsol_method", "training method. " + ". ".join(f"{name}: {entry.title}" for name, entry in METHODS.items()),
            "cam", choices=tuple(METHODS), group=_TRAINING, scope=FIXED),
    Setting("epochs", "number of epochs; 0 evaluates the starting point", 10, count, group=_TRAINING,
            aliases=("epoch",)),
    Setting("batch_size", "images per batch, over all processes", 32, positive, group=_TRAINING),
    Setting("lr", "learning rate of the trunk (default: 0.01; 0.003 in b2)", type=rate, group=_TRAINING,
            follows=("model_structure",)),
    Setting("lr_decay_frequency", "divide the learning rate by 10 at the start of epochs N, 2N, ...", 3, positive,
            metavar="N", group=_TRAINING),
    Setting("lr_classifier_ratio", "learning-rate multiplier for the heads", 10.0, rate, group=_TRAINING),
    Setting("momentum", "SGD momentum (Nesterov)", 0.9, share, group=_TRAINING),
    Setting("weight_decay", "SGD weight decay", 5e-4, amount, group=_TRAINING),
    Setting("vanilla_epochs", "b2 on new classes without --ft_ckpt: epochs of the first stage, which trains the "
            "softmax head and other new layers (default: --epochs)", type=count, group=_TRAINING, follows=("epochs",)),
    Setting("vanilla_lr", "learning rate of that stage", 0.01, rate, group=_TRAINING),
    Setting("save_every", "keep the checkpoint of every N-th epoch", 0, count, metavar="N", group=_TRAINING,
            bears_on=NOTHING),
    Setting("save_minutes", "also save in the middle of an epoch after every X minutes; Ctrl-C and SIGTERM save there "
            "in any case", 15, amount, metavar="X", group=_TRAINING, bears_on=NOTHING),
    Setting("val_every", "measure the val split after every N-th epoch, and after the last", 1, positive, metavar="N",
            group=_TRAINING),
    Setting("feature_cache", "where the features of a frozen trunk are kept, which are then computed once: in ram; on "
            "disk, in ROOT/feature_cache, where later runs find them; auto: in ram up to 2 GiB, else on disk; or off",
            "auto", choices=("auto", "ram", "disk", "off"), group=_TRAINING, bears_on=NOTHING),
    _flag("image_cache", "keep decoded and resized images in ROOT/image_cache, where this and later runs read them",
          group=_TRAINING, bears_on=NOTHING),
    Setting("feature_views", "augmented views of each image whose features are kept, one for each epoch in turn; 0: "
            "every epoch runs the trunk on views of its own", 0, number(int, 0, 1000), metavar="N", group=_TRAINING,
            scope=FIXED),
    _flag("feature_half", "keep features as float16", group=_TRAINING),
    Setting("amp", "precision of training: off (float32), bf16, or fp16 with a scaled loss (CUDA only). Maps and "
            "metrics are float32 all the same", "off", choices=AMP, group=_TRAINING),
    _flag("compile", "torch.compile the network for training; pays for many epochs that train the trunk",
          group=_TRAINING, bears_on=NOTHING),
    _flag("profile", "write what some steps of the first epoch spend their time on to profile/ in the run folder",
          group=_TRAINING, scope=COMMAND_LINE, bears_on=NOTHING),
    Setting("c1", "loss of the softmax head", "cross_entropy", choices=tuple(LOSSES), group=_TRAINING, scope=FIXED),
    Setting("c2", "loss of the sigmoid branch", "binary_cross_entropy", choices=tuple(LOSSES), group=_TRAINING,
            scope=FIXED),
    # ------------------------------------------------------------- maps and metrics
    Setting("methods", f"CAM methods, or all (known: {', '.join(CAM_METHODS)}; all leaves out "
            f"{' and '.join(name for name in CAM_METHODS if name not in all_methods())}, which take very many forward "
            f"passes; default: {','.join(DEFAULT_METHODS)})", type=names, metavar="A,B,...", group=_MAPS,
            commands=_BOTH, follows=("method",)),
    Setting("method", "one CAM method; --methods overrides it", choices=tuple(CAM_METHODS), metavar="NAME",
            group=_MAPS),
    Setting("heads", f"heads to explain, of {', '.join(HEADS)} (default: softmax; with a sigmoid branch "
            "softmax,softmax_clamped,sigmoid_clamped). clamped: negative channel weights are set to zero", type=names,
            metavar="A,B,...", group=_MAPS, commands=_BOTH, follows=("model_structure",)),
    _flag("t1", "add softmax_clamped to --heads", group=_MAPS),
    _flag("t2", "add sigmoid_clamped to --heads", group=_MAPS),
    Setting("cam_target", "class whose map is evaluated: the true one, or the softmax head's prediction", "gt",
            choices=("gt", "pred"), group=_MAPS),
    _flag("box_v2_metric", "the box accuracy that a run is judged by, on val to choose checkpoints and settings and "
          "in the table: MaxBoxAccV2, or (FALSE) MaxBoxAcc, which is V1", True, group=_MAPS),
    _flag("multi_contour_eval", "one half of that choice: the boxes of all contours count, or (FALSE) that of the "
          "largest (default: --box_v2_metric)", None, group=_MAPS, follows=("box_v2_metric",)),
    _flag("multi_iou_eval", "the other half: the mean over the IoU thresholds, or (FALSE) the threshold 50 (default: "
          "--box_v2_metric)", None, group=_MAPS, follows=("box_v2_metric",)),
    Setting("normalization", "how a resized map is brought to [0, 1]. minmax; max: negatives cut, divided by the "
            "maximum; pas: minimum subtracted, divided by a quantile, cut at 1; ivr: a quantile subtracted, negatives "
            "cut, divided by the maximum", "minmax", choices=tuple(NORMALIZATIONS), group=_MAPS),
    Setting("normalization_quantile", "quantile of pas (default: 0.9) and ivr (default: 0.45): the value at position "
            "floor(P n) of a map's n sorted values", type=share, metavar="P", group=_MAPS, follows=("normalization",)),
    *(Setting(option.name, option.help, option.default, positive if option.whole else amount, group=_MAPS,
              commands=_BOTH)
      for option in cam_options().values()),
    Setting("refine", "refinements of the maps, of none (maps as they are) and affinity (spread over places whose "
            "activations in a guiding layer are similar); each gives its rows (default: none; in main.py without "
            "--ft_ckpt none,affinity)", None, names, metavar="A,B,...", group=_MAPS, commands=_BOTH,
            follows=("model_structure", "ft_ckpt")),
    Setting("refined_methods", "methods of --methods that --refine applies to (default: all; cam alone if --refine is "
            "left out)", None, names, metavar="A,B,...", group=_MAPS, commands=_BOTH,
            follows=("model_structure", "ft_ckpt", "methods", "method", "refine")),
    Setting("affinity_layer", "the guiding layer of --refine affinity: a module of the network by its name; stride16, "
            "the last layer of the stage that arrives at that stride (the middle block of a plain vision transformer); "
            "stride16:last, the last layer of that stride; or target, the target layer", str(DEFAULT_AFFINITY.layer),
            metavar="NAME", group=_MAPS, commands=_BOTH, follows=("architecture",)),
    Setting("affinity_power", "exponent of the similarities; the higher, the less distant ones count",
            DEFAULT_AFFINITY.power, rate, group=_MAPS, commands=_BOTH),
    Setting("affinity_steps", "how often a map is spread", DEFAULT_AFFINITY.steps, positive, group=_MAPS,
            commands=_BOTH),
    _flag("affinity_centred", "subtract the guiding activations' mean over the places before they are compared",
          DEFAULT_AFFINITY.centred, group=_MAPS, commands=_BOTH),
    Setting("affinity_choice", "take the settings of the refinement as given, or (val) the one of "
            f"{len(AFFINITY_CANDIDATES)} that localizes best on the val split; if the maps as they are do better, the "
            "refined rows are left out (default: val if --refine is left out, too, otherwise given)",
            choices=("given", "val"), group=_MAPS,
            follows=("refine", "affinity_layer", "affinity_power", "affinity_steps", "affinity_centred")),
    Setting("scales", "views of each image whose maps are added: it is scaled by each of these numbers", [1.0], numbers,
            metavar="X,Y,...", group=_MAPS, commands=_BOTH),
    _flag("flip", "further views: each of them mirrored left to right", group=_MAPS, commands=_BOTH),
    _flag("eigen_smooth", "maps are the first principal component of what the channels add, not their sum (grad-cam)",
          group=_MAPS, commands=_BOTH),
    _flag("aug_smooth", "maps are the mean over six views of each image, mirrored or not and at 0.9, 1 and 1.1 times "
          "its values, each stretched to [0, 1] (grad-cam)", group=_MAPS, commands=_BOTH),
    Setting("cam_levels", "stages that methods of several stages (refinecam, layercamfused, broadcam) read: 0 is the "
            "last one, 1 the one before, ... (default: 0,1, or 0 if there is only one)", None, stages,
            metavar="N,M,...", group=_MAPS, commands=_BOTH),
    Setting("bls_alpha", "broadcam: ridge penalty of the broad learning system", 50.0, rate, metavar="X", group=_MAPS),
    Setting("bls_step", "broadcam: features in each of its enhancement nodes", 256, positive, metavar="N", group=_MAPS),
    Setting("perturb_batch", "batch size for perturbed inputs (scorecam, ablationcam, fullgrad)", PERTURB_BATCH,
            positive, group=_MAPS, commands=_BOTH, bears_on=NOTHING),
    Setting("bootstrap", "resamples of the test images for the 95%% intervals of MaxBoxAccV2 and PxAP; 0 leaves these "
            "out. Shares of images have Wilson's interval, which needs none", 1000, resamples,
            metavar="N", group=_MAPS),
    Setting("fidelity", f"further measures of the maps on the test split: {', '.join(MEASURES)}, all or none; each but "
            "pointing costs forward passes per image and row (--dry_run counts them)", [], names, metavar="A,B,...",
            group=_MAPS),
    Setting("colormap", f"colours of score maps in figures: {', '.join(COLORMAPS)}. All but turbo are perceptually "
            "uniform and keep their order in grey print", DEFAULT_COLORMAP, choices=COLORMAPS, metavar="NAME",
            group=_MAPS, commands=_BOTH, scope=THIS_CALL, bears_on=NOTHING),
    Setting("figure_format", f"file formats of the figures, of {', '.join(FIGURE_FORMATS)}", ["png"], names,
            metavar="A,B,...", group=_MAPS, scope=THIS_CALL, bears_on=NOTHING),
    _flag("save_scoremaps", "write every evaluated map to scoremaps/ in the run folder", group=_MAPS, bears_on=NOTHING),
    Setting("cam_curve_interval", "step between score map thresholds", 0.001, number(float, 1e-5, 1), group=_MAPS,
            metavar="X", commands=_MEASURING),
    Setting("iou_threshold_list", "IoU thresholds of box accuracy, in percent", [30, 50, 70], number(int, 1, 100),
            nargs="+", metavar="N", group=_MAPS, commands=_MEASURING),
    Setting("loc_threshold", "score map threshold of gt_loc, top1_loc and top5_loc; that of gt_loc_val and "
            "top1_loc_val is the best on the val split, that of maxboxacc and gt_loc_best the best on the test split",
            0.2, share, group=_MAPS, commands=_MEASURING),
    Setting("gt_boxes", "ground truth of gt_loc, top1_loc, top5_loc and their _best and _val forms: any box of an "
            "image, or the first one only, as in the authors' code; MaxBoxAcc (V1 and V2) and PxAP do not depend on it",
            "any", choices=("any", "first"), group=_MAPS, commands=_MEASURING),
    # ------------------------------------------------------------- Weights & Biases
    _flag("wandb", "report to Weights & Biases (default: on if --project or --wandb_name is given)", None,
          metavar="on|off", group=_WANDB, follows=("project", "wandb_name")),
    _flag("tensorboard", "write events for TensorBoard to tensorboard/ in the run folder", group=_WANDB),
    Setting("project", "W&B project", group=_WANDB),
    Setting("wandb_name", "W&B run name (default: the experiment's)", group=_WANDB),
    Setting("wandb_dir", "where W&B writes (default: the run folder)", group=_WANDB),
    # ------------------------------------------------------------- options of --wsol_method
    *(Setting(option.name, option.help, option.default, _KINDS[option.kind], group=_METHOD_OPTIONS)
      for entry in METHODS.values() for option in entry.options),
)  # fmt: skip

_EVALUATION_SETTINGS = (
    Setting("scoremap_root", "contains <image id>.npy or <image id without its extension>.npy, or one folder of such "
            "files per row, such as scoremaps/test of a run", required=True, metavar="FOLDER"),
    Setting("val_scoremap_root", "the same for the val split; its best thresholds give gt_loc_val", metavar="FOLDER"),
    Setting("dataset_name", _KNOWN_DATASETS, required=True),
    Setting("split", "split of the maps", "test", choices=SPLITS),
    Setting("metadata_root", "metadata are in METADATA_ROOT/DATASET_NAME/SPLIT", "metadata"),
    Setting("mask_root", "masks are in MASK_ROOT/DATASET_NAME", "dataset"),
    _flag("multi_contour_eval", "FALSE: `localization` uses only the box of the largest contour", True),
    _flag("multi_iou_eval", "FALSE: `localization` uses the IoU threshold 50 instead of the mean of all", True),
    Setting("workers", "processes that read and measure maps, at most the number of cores", 4, count),
    Setting("out", "write all numbers to this file", metavar="FILE.json"),
)  # fmt: skip

_OR_THE_CHECKPOINT_S = "(default: the checkpoint's own, else %s)"
_INFERENCE_SETTINGS = (
    Setting("pictures", "picture files and folders; folders are searched recursively", nargs="+",
            metavar="IMAGE_OR_FOLDER", positional=True),
    Setting("out", "folder for grids, overlays and raw maps", required=True, metavar="DIR"),
    Setting("ckpt", "checkpoint of this program, wsolevaluation or Dual-CAM (default: ImageNet weights)",
            metavar="FILE"),
    Setting("class", "the class to explain (default: the softmax head's prediction for each picture)",
            metavar="NAME_OR_INDEX"),
    Setting("explain_channels", "also draw the N channels that add most to each map of weighted channels", 0,
            number(int, 0, 100), metavar="N"),
    Setting("concepts", "also draw N parts that the target layer tells apart in each picture (deep feature "
            "factorization), each with the classes that it speaks for", 0, number(int, 0, 30), metavar="N"),
    _flag("guided_backprop", "also draw guided backpropagation, and its product with Grad-CAM's map (networks of "
          "ReLUs)"),
    _flag("save_npy", "write raw maps, too: signed, at the target layer's resolution"),
    _flag("override_cache", "replace files of an earlier call in DIR; other files are never touched"),
    _flag("skip_bad_images", "leave out pictures that cannot be read; each is named"),
    Setting("batch_size", "pictures per forward pass", 16, positive),
    Setting("architecture", "the network: a name as in main.py " + _OR_THE_CHECKPOINT_S % DEFAULT_ARCHITECTURE,
            type=architecture, metavar="NAME"),
    Setting("last_layer", "the classification layer, fc or conv " + _OR_THE_CHECKPOINT_S % "fc", choices=LAST_LAYERS),
    Setting("wsol_method", "the training method whose layers the network has " + _OR_THE_CHECKPOINT_S % "cam",
            choices=tuple(METHODS)),
    _flag("large_feature_map", "halve the last stage's stride (doubles map resolution) "
          + _OR_THE_CHECKPOINT_S % "FALSE", None),
)  # fmt: skip


def settings_of(command: str) -> dict[str, Setting]:
    """The settings of a command by name, in the order of its --help: its own, then those that commands share."""
    own = {MAIN: (), INFERENCE: _INFERENCE_SETTINGS, EVALUATION: _EVALUATION_SETTINGS}[command]
    shared = (setting for setting in _MAIN_SETTINGS if command in setting.commands)
    table = {setting.name: setting for setting in own}
    return table | {setting.name: setting for setting in shared if setting.name not in table}


# --------------------------------------------------------------------------- parsing

_DESCRIPTIONS = {
    MAIN: "Train a classifier's sigmoid branch (Dual-CAM), make class activation maps, and measure how well they "
    "localize. With no flags, runs the built-in example.",
    INFERENCE: "Show what a network looks at: class activation maps over pictures, a comparison grid per picture, and "
    "its five most likely classes.",
    EVALUATION: "Measure how well saved score maps localize: 224 x 224 arrays in [0, 1], one .npy file per image.",
}
_USAGE = {MAIN: "[options]", INFERENCE: "IMAGE_OR_FOLDER ... --out DIR [options]",
          EVALUATION: "--scoremap_root FOLDER --dataset_name NAME [options]"}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """One clear line instead of argparse's usage dump; exit code 2 as always."""

    source = ""  # the file that settings come from, if it is not the command line
    flags: Collection[str] = ()

    def error(self, message: str) -> Any:
        unknown = re.match(r"unrecognized arguments: (--\w+)", message)
        hint = ""
        if unknown:
            longer = [flag for flag in self.flags if flag.startswith(unknown[1])]
            hint = f"; did you mean {first_few(longer)}?" if longer else nearest(unknown[1], self.flags)
        self.exit(2, f"error: {self.source}{message}{hint}\nsee python {self.prog} --help\n")


def make_parser(command: str = MAIN) -> _Parser:
    """The command line of main, inference or evaluation. Its result has only what was given."""
    parser = _Parser(
        prog=f"{command}.py",
        usage=f"python %(prog)s {_USAGE[command]}",
        description=_DESCRIPTIONS[command],
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
        allow_abbrev=False,  # --pretrained FALSE of one command must not become --pretrained_path FALSE of another
    )
    parser.flags = [f"--{name}" for name in settings_of(command)]
    groups: dict[str, argparse._ActionsContainer] = {}
    for setting in settings_of(command).values():
        group = setting.group if command == MAIN else ""
        if group not in groups:
            groups[group] = parser.add_argument_group(group) if group else parser
        setting.add_to(groups[group])
    return parser


def _defaults(command: str) -> dict[str, Any]:
    return {name: setting.default for name, setting in settings_of(command).items()}


def parse_args(argv: list[str] | None = None) -> munch.Munch:
    """The command line of main.py as a checked munch with every default filled in.

    Exits with code 2 on an unknown flag or value (argparse), and raises InputError where flags contradict each other.
    `given` lists the settings that were given, on the command line or in --config FILE.
    """
    given = vars(make_parser().parse_args(argv))
    if "config" in given:
        given = _not_overruled(load_yaml(given["config"]), given) | given
    return complete(given, given)


def parse_evaluation_args(argv: list[str] | None = None) -> munch.Munch:
    """The command line of evaluation.py, wsolevaluation's and ours, as a checked munch."""
    given = vars(make_parser(EVALUATION).parse_args(argv))
    config = munch.Munch(_defaults(EVALUATION) | (EVALUATION_PRESET if given.get("preset") else {}) | given)
    plain_name("--dataset_name", config.dataset_name)
    if config.val_scoremap_root and config.split != "test":
        raise InputError(f"--val_scoremap_root chooses thresholds for the test split, not for --split {config.split}")
    if config.out and not Path(config.out).absolute().parent.is_dir():
        raise InputError(f"--out {config.out}: the folder {Path(config.out).parent} is missing")
    if config.out and Path(config.out).is_dir():
        raise InputError(f"--out {config.out} is a folder; give the name of a file in it")
    return config


def parse_picture_args(argv: list[str] | None = None) -> munch.Munch:
    """The command line of inference.py as a checked munch.

    None where a default depends on the network: architecture, last_layer, wsol_method, large_feature_map, heads.
    `methods_were_chosen`: the methods were named one by one, so each of them must work.
    """
    words = _with_boolean_values(sys.argv[1:] if argv is None else argv, settings_of(INFERENCE).values())
    config = munch.Munch(_defaults(INFERENCE) | vars(make_parser(INFERENCE).parse_args(words)))
    if config.ckpt and config.pretrained_path:
        raise InputError("--ckpt and --pretrained_path both name the network's weights; leave one out")
    if config.pretrained_path and not config.pretrained:
        raise InputError("--pretrained_path names ImageNet weights and --pretrained FALSE wants none; leave one out")
    config.methods_were_chosen = config.methods not in (None, ["all"])
    if not config.methods_were_chosen:
        config.methods = all_methods() if config.methods else list(DEFAULT_METHODS)
    _check_names("methods", config.methods, CAM_METHODS)
    if config.heads is not None:
        _check_names("heads", config.heads, HEADS)
    config.refine = config.refine or ["none"]
    _check_names("refine", config.refine, REFINEMENTS)
    config.refined_methods = config.refined_methods or config.methods
    _check_names("refined_methods", config.refined_methods, config.methods)
    _check_views(config)
    _check_gpus(config.gpus)
    return config


def _with_boolean_values(argv: Sequence[str], settings: Iterable[Setting]) -> list[str]:
    """`--save_npy cat.jpg` → `--save_npy=TRUE cat.jpg`: a file after a boolean flag is not its value."""

    def is_boolean(word: str) -> bool:
        try:
            boolean(word)
        except argparse.ArgumentTypeError:
            return False
        return True

    flags = {f"--{setting.name}" for setting in settings if setting.type is boolean}
    return [
        f"{word}=TRUE" if word in flags and not is_boolean(following) else word
        for word, following in itertools.pairwise([*argv, ""])
    ]


# --------------------------------------------------------------------------- YAML, and runs that continue


def load_yaml(path: str) -> dict[str, Any]:
    """Settings of a YAML file, each checked as if it were on the command line."""
    try:
        return check_settings(read_yaml(path), path)
    except FileNotFoundError:
        raise InputError(f"--config {path}: no such file") from None


def check_settings(saved: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Pass a mapping of settings through the parser, so that types and choices are checked."""
    table = settings_of(MAIN)
    argv: list[str] = []
    for key, value in saved.items():
        if key not in table:
            raise InputError(f"{path}: unknown setting '{shortened(key)}'" + nearest(shortened(key), table))
        if value is None or table[key].scope == COMMAND_LINE:
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(v, (dict, list, tuple)) for v in values):
            raise InputError(f"{path}: the setting '{key}' is neither a value nor a list of values")
        try:
            words = [str(v) for v in values]
        except ValueError:
            raise InputError(f"{path}: the setting '{key}' is a number of thousands of digits") from None
        argv += [f"--{key}", *words] if table[key].nargs == "+" else [f"--{key}={','.join(words)}"]
    parser = make_parser()
    parser.source = f"{path}: "
    return vars(parser.parse_args(argv))


def continue_run(config: munch.Munch, saved: Mapping[str, Any], path: str) -> munch.Munch:
    """The config of a run that continues: its saved settings, overridden by the command line's.

    Args:
        config: of this call.
        saved: the content of the run's config.yaml.
        path: of that file, for error messages.
    """
    table = settings_of(MAIN)
    saved = {key: value for key, value in check_settings(saved, path).items() if table[key].scope != THIS_CALL}
    given = {key: config[key] for key in config.given}
    for key, value in list(given.items()):
        before = saved.get(key, table[key].default)  # a setting newer than the run had its default
        if config.resume and table[key].scope == FIXED and before not in (None, value):
            raise InputError(
                f"--resume cannot change --{key} to {value}: the run of {path} has {before}; start another run "
                "instead, from this one's checkpoint with --ft_ckpt if you like"
            )
        # The batch size of an evaluation is a matter of memory.
        if config.eval_only and saved and table[key].effect == TRAINING and key != "batch_size" and before != value:
            log.info("--%s %s has no effect with --eval_only, which does not train", key, value)
            del given[key]
    changed = {key for key, value in given.items() if saved.get(key, table[key].default) != value}
    kept = _not_overruled(saved, changed)
    if config.resume and "vanilla_epochs" in saved and "vanilla_epochs" not in given:
        kept["vanilla_epochs"] = saved["vanilla_epochs"]  # more epochs of the branch do not lengthen the stage before
    return complete(kept | given, given)


def adopt(config: munch.Munch, settings: Mapping[str, Any]) -> munch.Munch:
    """The config with a checkpoint's settings, except for those given on the command line."""
    settings = {key: value for key, value in settings.items() if key not in config.given}
    changed = {key for key, value in settings.items() if config[key] != value}
    values = {key: value for key, value in config.items() if key != "given"}
    return complete(_not_overruled(values, changed, config.given) | settings, config.given)


def _not_overruled(saved: Mapping[str, Any], given: Collection[str], always: Collection[str] = ()) -> dict[str, Any]:
    """The saved settings that are not given, and whose default does not follow from one that is; or `always` kept."""
    table = settings_of(MAIN)
    return {
        key: value
        for key, value in saved.items()
        if key in always or not (key in given or any(leader in given for leader in table[key].follows))
    }


def training_settings(config: munch.Munch) -> dict[str, Any]:
    """The settings that training depends on, as config.yaml has them."""
    table = settings_of(MAIN)
    return {
        name: value
        for name, value in saved_settings(config).items()
        if table[name].effect != NOTHING and table[name].group != _MAPS and table[name].scope in (RUN, FIXED)
    }


def changed_settings(
    config: munch.Munch, saved: Mapping[str, Any], path: str, bearing_on: Collection[str] = (TRAINING, RESULTS)
) -> dict[str, tuple[Any, Any]]:
    """{name: (saved value, value now)} of the settings that differ and bear on the weights or the results.

    Args:
        saved: what `saved_settings` returned once. A setting that it lacks had its default.
        path: of the file that contains it, for error messages.
    """
    table = settings_of(MAIN)
    before = saved_settings(complete(check_settings(saved, path), ()))
    return {
        name: (before[name], value)
        for name, value in saved_settings(config).items()
        if table[name].effect in bearing_on and table[name].scope != COMMAND_LINE and before[name] != value
    }


def saved_settings(config: munch.Munch) -> dict[str, Any]:
    """What config.yaml contains: the settings of the run, without those of a single command line.

    Infinity is the text "inf": JSON has no number for it.
    """
    return {
        name: "inf" if config[name] == math.inf else munch.unmunchify(config[name])
        for name, setting in settings_of(MAIN).items()
        if setting.scope != COMMAND_LINE or name == "experiment_name"
    }


# --------------------------------------------------------------------------- defaults that follow, and checks


def complete(values: Mapping[str, Any], given: Collection[str]) -> munch.Munch:
    """Fill in defaults, also those that depend on other settings, and refuse contradictions."""
    preset = preset_defaults(values.get("preset"), dict(values))
    config = munch.munchify(_defaults(MAIN) | preset | dict(values) | {"given": sorted(given)})
    b2 = config.model_structure == "b2"
    following = {
        "mask_root": config.data_root,
        "unfreeze_layer": "fc2" if b2 else "all",
        "lr": 0.003 if b2 else 0.01,
        "vanilla_epochs": config.epochs,
        "augment": dataset_info(config.dataset_name).augment,
        "methods": [config.method] if config.method else list(DEFAULT_METHODS),
        "heads": default_heads(b2),
        "multi_contour_eval": config.box_v2_metric,
        "multi_iou_eval": config.box_v2_metric,
        "wandb": bool(config.project or config.wandb_name),
    }
    for key, value in following.items():
        if config[key] is None:
            config[key] = value
    if config.methods == ["all"]:
        config.methods = all_methods()
    _complete_choices(config)
    if config.fidelity in (["all"], ["none"]):
        config.fidelity = list(MEASURES) if config.fidelity == ["all"] else []
    for flag, head in (("t1", "softmax_clamped"), ("t2", "sigmoid_clamped")):
        if config[flag] and head not in config.heads:
            config.heads.append(head)
    _check(config)
    return config


def _complete_choices(config: munch.Munch) -> None:
    """What is chosen on val, and refined, if flags do not say so; a command with --ft_ckpt keeps the paper's recipe."""
    ours = config.model_structure == "b2" and not config.ft_ckpt
    if config.branch_choice is None:
        trains_branch = bool(config.epochs) and "sigmoid_head" in UNFREEZE[config.unfreeze_layer]
        as_published = branch_setting(config) == BranchSetting()
        config.branch_choice = "val" if ours and trains_branch and as_published else "given"
    by_default = config.refine is None
    if by_default:
        config.refine = list(REFINEMENTS) if ours else ["none"]
    if config.affinity_choice is None:
        config.affinity_choice = "val" if by_default and ours and affinity_of(config) == DEFAULT_AFFINITY else "given"
    if config.refined_methods is None:
        cam = [method for method in config.methods if method == "cam"]
        config.refined_methods = cam if by_default else config.methods


def affinity_of(config: munch.Munch) -> Affinity:
    """The settings of the refinement."""
    return Affinity(config.affinity_layer, config.affinity_power, config.affinity_steps, config.affinity_centred)


def choosing_method(config: munch.Munch) -> str:
    """The method whose maps of val choose checkpoints and settings: the first that shows what a head has learned."""
    return next((name for name in config.methods if not CAM_METHODS[name].fitted), "gradcam")


def extractor_options(config: munch.Munch) -> dict[str, Any]:
    """Keyword arguments of CamExtractor: the settings of the refinement and of methods."""
    same_name = ("perturb_batch", "eigen_smooth", *cam_options())
    return {"affinity": affinity_of(config), "levels": config.cam_levels} | {name: config[name] for name in same_name}


def view_options(config: munch.Munch) -> dict[str, Any]:
    """Keyword arguments of CamExtractor: the views of each image."""
    return {"scales": config.scales, "flip": config.flip, "aug_smooth": config.aug_smooth}


def default_heads(dual: bool) -> list[str]:
    """The heads to explain on a network with (dual) or without a sigmoid branch."""
    return ["softmax", "softmax_clamped", "sigmoid_clamped"] if dual else ["softmax"]


def _check(config: munch.Munch) -> None:
    _check_names("methods", config.methods, CAM_METHODS)
    _check_names("heads", config.heads, HEADS)
    _check_names("refine", config.refine, REFINEMENTS)
    if config.refined_methods:
        _check_names("refined_methods", config.refined_methods, config.methods)
    _check_views(config)
    if config.fidelity:
        _check_names("fidelity", config.fidelity, MEASURES)
    _check_names("figure_format", config.figure_format, FIGURE_FORMATS)
    branch_heads = [head for head in config.heads if head.startswith("sigmoid")]
    if config.model_structure != "b2":
        if branch_heads:
            raise InputError(
                f"--heads {branch_heads[0]} needs a sigmoid branch: --model_structure b2, not {config.model_structure}"
            )
        if UNFREEZE[config.unfreeze_layer] == ("sigmoid_head",):
            raise InputError(
                f"--unfreeze_layer {config.unfreeze_layer} is the sigmoid branch: it needs --model_structure b2, not "
                f"{config.model_structure}"
            )
        for flag in ("branch_weights", "branch_lambda", "branch_mu", "branch_choice"):
            if config[flag] not in (settings_of(MAIN)[flag].default, "given"):
                raise InputError(
                    f"--{flag} {config[flag]} is about the sigmoid branch: it needs --model_structure b2, not "
                    f"{config.model_structure}"
                )
    if config.branch_choice == "val":
        if branch_setting(config) != BranchSetting():
            raise InputError(
                "--branch_choice val tries settings of its own; leave out --branch_weights, --branch_lambda and "
                "--branch_mu"
            )
        if not config.eval_only and not (config.epochs and "sigmoid_head" in UNFREEZE[config.unfreeze_layer]):
            raise InputError(
                f"--branch_choice val compares trained branches, but --unfreeze_layer {config.unfreeze_layer} with "
                f"--epochs {config.epochs} trains none"
            )
    if config.branch_mu and not config.eval_only and UNFREEZE[config.unfreeze_layer] != ("sigmoid_head",):
        raise InputError(
            f"--branch_mu {config.branch_mu:g} needs a frozen trunk and softmax head, not --unfreeze_layer "
            f"{config.unfreeze_layer}; leave it out or give --unfreeze_layer fc2"
        )
    if not UNFREEZE[config.unfreeze_layer] and config.epochs and not config.eval_only:
        raise InputError("--unfreeze_layer none leaves nothing to train; evaluate with --eval_only or --epochs 0")
    if config.resume + config.eval_only + config.override_cache > 1:
        raise InputError("--resume, --eval_only and --override_cache exclude each other")
    if config.pretrained_path and not config.pretrained:
        raise InputError("--pretrained_path names ImageNet weights and --pretrained FALSE wants none; leave one out")
    _check_evaluated(config)
    if config.eval_only and config.train_only:
        raise InputError("--eval_only and --train_only exclude each other")
    if config.normalization_quantile is not None and NORMALIZATIONS[config.normalization].quantile is None:
        raise InputError(
            f"--normalization_quantile applies to pas and ivr, not to --normalization {config.normalization}; leave it "
            "out"
        )
    if config.augment == "crop_flip" and config.resize_size < config.crop_size:
        raise InputError(
            f"--resize_size {config.resize_size} is smaller than --crop_size {config.crop_size}, so no crop fits; "
            "enlarge it or give --augment none"
        )
    plain_name("--dataset_name", config.dataset_name)
    if config.experiment_name is not None:
        plain_name("--experiment_name", config.experiment_name)
    _check_gpus(config.gpus)


def _check_evaluated(config: munch.Munch) -> None:
    """InputError if a run is to train, and then evaluate a checkpoint that it will not keep."""
    wanted = config.eval_checkpoint_type
    if config.eval_only or config.train_only or wanted == "last" or (wanted == "best" and config.epochs):
        return
    every = config.save_every
    if not every or wanted not in map(str, range(every, config.epochs + 1, every)):
        keeps = "last" if not config.epochs else "last, best" + (f" and every {every}th epoch" if every else "")
        raise InputError(
            f"--eval_checkpoint_type {shortened(wanted)}: a run of {config.epochs} epochs with --save_every {every} "
            f"does not keep that checkpoint; it keeps {keeps}"
        )


def _check_views(config: munch.Munch) -> None:
    if not config.scales:
        raise InputError("--scales is empty; 1 is the image as it is")
    if config.aug_smooth and (config.flip or config.scales != [1]):
        raise InputError("--aug_smooth has views of its own; leave out --scales and --flip")


def _check_names(flag: str, values: Sequence[str], known: Iterable[str]) -> None:
    known = list(known)
    for value in values:
        if value not in known:
            raise InputError(f"--{flag}: unknown name '{value}'{nearest(value, known)} (known: {', '.join(known)})")
    if not values:
        raise InputError(f"--{flag} is empty (known: {', '.join(known)})")


def _check_gpus(text: str) -> None:
    try:
        if min(gpu_indices(text)) < 0:
            raise ValueError
    except ValueError:
        raise InputError(f"--gpus '{shortened(text)}' is not a list of device indices such as 0 or 0,1") from None


def gpu_indices(text: str) -> list[int]:
    """Split "0,1" into [0, 1]."""
    return [int(word) for word in str(text).split(",")]


def branch_setting(config: munch.Munch) -> BranchSetting:
    """How the sigmoid branch is to be trained."""
    return BranchSetting(config.branch_weights, config.branch_lambda, config.branch_mu)


def idle(config: munch.Munch) -> dict[str, str]:
    """{name: why it has no effect} of the settings that were given, other than their defaults, in vain."""
    values = {key: value for key, value in config.items() if key != "given"}

    def default(name: str) -> Any:
        return complete({key: value for key, value in values.items() if key != name}, ())[name]

    return {name: reason for name, reason in idle_settings(config).items() if config[name] != default(name)}


def splits_needed(config: munch.Munch, fits: bool = False) -> tuple[str, ...]:
    """The splits that a run reads; fits: a CAM method is fitted to the training images, also with --eval_only."""
    if config.eval_only:
        return SPLITS if fits else SPLITS[1:]
    return SPLITS[:2] if config.train_only else SPLITS
