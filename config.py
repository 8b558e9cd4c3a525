"""Every setting of a run: command line and YAML → one checked munch.

Names and meanings are those of wsolevaluation and Dual-CAM; a person's old
commands keep working. Choices come from the registries. Parsing touches no disk
(but for reading --config FILE).
"""

import argparse
import itertools
import math
import sys
from pathlib import Path

import munch
import yaml

from wsol.backbones import ARCHITECTURES, FORMS, LAST_LAYERS, get_architecture
from wsol.cam import CAM_METHODS, HEADS, NORMALIZATIONS, PERTURB_BATCH
from wsol.classifier import PARTS
from wsol.datasets.registry import DATASETS, SPLITS, dataset_info
from wsol.errors import InputError, nearest, plain_name
from wsol.losses import LOSSES, OBJECTIVES
from wsol.methods import METHODS
from wsol.metrics.measures import MEASURES

# The names the references use for `--unfreeze_layer`; each works on every network.
UNFREEZE = {
    "all": PARTS,
    "none": (),
    **dict.fromkeys(("fc", "classifier", "SPG_A4", "head", "conv"), ("softmax_head",)),
    **dict.fromkeys(("fc2", "classifier_2", "SPG_A4_2", "head2", "conv2"), ("sigmoid_head",)),
}

DEFAULT_ARCHITECTURE = "efficientnet_lite0"
DEFAULT_METHODS = ("cam", "gradcam", "gradcam++", "xgradcam", "layercam")
# What a YAML file never decides: a run's config.yaml repeats the run under another name.
_OF_THE_COMMAND_LINE = ("resume", "eval_only", "override_cache", "dry_run", "config", "experiment_name")
# What a run that goes on takes from the command line, too; all else from its config.yaml.
_OF_THIS_CALL = ("eval_checkpoint_type", "train_only", "root", "debug")
# What a run cannot change on its way.
_FIXED = (
    "architecture",
    "classifier_form",
    "last_layer",
    "large_feature_map",
    "dataset_name",
    "model_structure",
    "unfreeze_layer",
    "wsol_method",
)
# Defaults that follow from another setting: given anew, it takes their saved values along.
_FOLLOW = {
    "data_root": ("mask_root",),
    "model_structure": ("heads", "unfreeze_layer", "lr"),
    "dataset_name": ("augment",),
    "architecture": ("classifier_form",),
    "ft_ckpt": ("classifier_form",),
    "methods": ("classifier_form",),
    "method": ("methods", "classifier_form"),
    "project": ("wandb",),
    "wandb_name": ("wandb",),
    "epochs": ("vanilla_epochs",),
    "normalization": ("normalization_quantile",),
}


def boolean(text: str) -> bool:
    """TRUE/FALSE, yes/no, t/f, y/n, 1/0 in any case."""
    word = text.lower()
    if word in ("true", "t", "yes", "y", "1", "on"):
        return True
    if word in ("false", "f", "no", "n", "0", "off"):
        return False
    raise argparse.ArgumentTypeError(f"'{text}' is not TRUE or FALSE")


def names(text: str) -> list[str]:
    """ "cam, gradcam" → ["cam", "gradcam"], each once."""
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def architecture(text: str) -> str:
    """The name of a network that we, timm or torchvision know."""
    try:
        get_architecture(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _number(kind, low: float, high: float = math.inf, above: bool = False):
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
        if not math.isfinite(value) or not (low < value if above else low <= value) or value > high:
            bounds = f"{'above' if above else 'at least'} {low}" + (f" and at most {high}" if high < math.inf else "")
            raise argparse.ArgumentTypeError(f"{text} is out of range ({bounds})")
        return value

    return parse


count, positive = _number(int, 0), _number(int, 1)
amount, rate = _number(float, 0), _number(float, 0, above=True)
share, size = _number(float, 0, 1), _number(int, 16, 4096)


class _Parser(argparse.ArgumentParser):
    """One clear line instead of argparse's usage dump; exit code 2 as ever."""

    source = ""  # the file that settings come from, when it is not the command line

    def error(self, message: str):
        if message.startswith("argument --dataset_name") and "invalid choice" in message:
            message += nearest(message.split("'")[1], DATASETS)
        self.exit(2, f"error: {self.source}{message}\nsee python {self.prog} --help\n")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Every default behind its flag, but for those that follow from elsewhere: their help says so itself."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help if action.default is None else super()._get_help_string(action)


def make_parser() -> argparse.ArgumentParser:
    """The command line, in the groups that --help shows."""
    parser = _Parser(
        prog="main.py",
        description="Train a classifier's sigmoid branch (Dual-CAM), draw class activation "
        "maps and measure how well they localize. Without any flag: the embedded example.",
        formatter_class=_Help,
    )
    _add_run(parser.add_argument_group("run"))
    _add_data(parser.add_argument_group("data"))
    _add_model(parser.add_argument_group("network and branches"))
    _add_training(parser.add_argument_group("training"))
    maps = parser.add_argument_group("maps and metrics")
    _add_maps(maps)
    _add_metrics(maps)
    _add_reporting(parser.add_argument_group("Weights & Biases"))
    _add_wsol_methods(parser.add_argument_group("options of --wsol_method"))
    return parser


def _flag(group, name: str, help: str, default=False) -> None:
    """A boolean that may stand alone or be followed by TRUE or FALSE."""
    group.add_argument(name, type=boolean, nargs="?", const=True, default=default, metavar="TRUE|FALSE", help=help)


def _add_run(group) -> None:
    add = group.add_argument
    add("--config", metavar="FILE", help="YAML file of settings (a run's config.yaml, say); flags override it")
    add("--root", default="experiments", help="folder that holds the run folders")
    add("--experiment_name", help="the run's folder below --root (default: the next free run-N)")
    _flag(group, "--override_cache", "replace an existing run folder of that name")
    _flag(group, "--resume", "go on with a run that was cut off")
    _flag(group, "--eval_only", "evaluate a checkpoint of an existing run, no training")
    add(
        "--eval_checkpoint_type",
        default="last",
        metavar="PREFIX",
        help="checkpoint to evaluate: last, best, or any PREFIX of PREFIX_checkpoint.pth.tar in the run folder",
    )
    _flag(group, "--train_only", "train, but do not evaluate on the test split")
    _flag(group, "--dry_run", "print settings, parameter and data counts, and stop")
    add("--seed", type=count, default=42, help="of everything random")
    add("--gpus", default="0", help="CUDA device indices, such as 0 or 0,1; the CPU is used where there is no CUDA")
    add("--workers", type=count, default=4, help="data loading processes, at most the number of cores")
    _flag(group, "--debug", "log more")


def _add_data(group) -> None:
    add = group.add_argument
    add(
        "--dataset_name",
        default="Synthetic",
        help=f"{', '.join(DATASETS)}, or any folder in the same format; default Synthetic, made when first used",
    )
    add("--data_root", default="dataset", help="images are at DATA_ROOT/DATASET_NAME")
    add("--metadata_root", default="metadata", help="metadata are at METADATA_ROOT/DATASET_NAME")
    add("--mask_root", help="masks are at MASK_ROOT/DATASET_NAME (default: --data_root)")
    _flag(group, "--proxy_training_set", "train on image_ids_proxy.txt, a small part of ILSVRC")
    add("--num_val_sample_per_class", type=count, default=0, help="val images a class, 0 for all")
    _flag(
        group,
        "--skip_bad_images",
        "leave out images that are missing or broken, or whose masks are: counted, named in "
        "the log; costs one decoding pass before the run",
    )
    add("--resize_size", type=size, default=256, help="training images are resized to this square before cropping")
    add("--crop_size", type=size, default=224, help="side of the network's input")
    add(
        "--augment",
        choices=("crop_flip", "none"),
        help="training: random crop and flip, or none (default: crop_flip; none for Synthetic and CUTOUTS)",
    )


def _add_model(group) -> None:
    add = group.add_argument
    add(
        "--architecture",
        type=architecture,
        default=DEFAULT_ARCHITECTURE,
        metavar="NAME",
        help=f"the network: {', '.join(sorted(ARCHITECTURES))}, or any classifier of timm or torchvision by its name",
    )
    add(
        "--classifier_form",
        choices=(*FORMS, "auto"),
        default="auto",
        help="of vgg16 and inception_v3: the form with extra convolutions and global average pooling (cam) or the "
        "published network's own head (original); auto: what the checkpoint holds, else cam if the methods "
        "contain cam, else original",
    )
    _flag(group, "--pretrained", "start from ImageNet weights", True)
    add(
        "--pretrained_path",
        metavar="FILE_OR_FOLDER",
        help="ImageNet weights on disk, a file or a folder that holds it under its published name",
    )
    _flag(group, "--large_feature_map", "half the stride of the last stage: maps of twice the side")
    add(
        "--model_structure",
        choices=tuple(OBJECTIVES),
        default="b2",
        help="vanilla: one head, loss c1; b1: one head, c1 + c2; b2: softmax head (c1) and sigmoid branch (c2)",
    )
    add(
        "--unfreeze_layer",
        choices=tuple(UNFREEZE),
        metavar="LAYER",
        help="what learns: all, none, the softmax head (fc classifier SPG_A4 head conv) or the sigmoid branch "
        "(fc2 classifier_2 SPG_A4_2 head2 conv2); default: fc2 in b2, all otherwise",
    )
    add(
        "--last_layer",
        choices=LAST_LAYERS,
        default="fc",
        help="the classification layer: fc behind global average pooling, or a 1x1 conv before it",
    )
    add("--ft_ckpt", metavar="FILE", help="checkpoint to start from; in b2 its head is cloned into the branch")
    add(
        "--sigmoid_init",
        choices=("clone", "random"),
        default="clone",
        help="the branch starts as a copy of the softmax head, or at random as in the authors' code",
    )
    _flag(group, "--init_weight", "accepted for old commands; new layers always start as wsolevaluation's do", True)


def _add_training(group) -> None:
    add = group.add_argument
    add("--wsol_method", choices=tuple(METHODS), default="cam", help="training method")
    add("--epochs", type=count, default=10, help="0 trains nothing and evaluates the start")
    add("--batch_size", type=positive, default=32, help="over all processes")
    add("--lr", type=rate, help="learning rate of the trunk (default: 0.01; 0.003 in b2)")
    add(
        "--lr_decay_frequency",
        type=positive,
        default=3,
        metavar="N",
        help="the rate falls to a tenth at the start of epochs N, 2N, ...",
    )
    add("--lr_classifier_ratio", type=rate, default=10.0, help="heads learn this many times as fast")
    add("--momentum", type=share, default=0.9, help="of SGD, Nesterov's")
    add("--weight_decay", type=amount, default=5e-4, help="of SGD")
    add(
        "--vanilla_epochs",
        type=count,
        help="b2 on new classes without --ft_ckpt: epochs of the stage that trains "
        "the softmax head and whatever else is new (default: --epochs)",
    )
    add("--vanilla_lr", type=rate, default=0.01, help="learning rate of that stage")
    add("--save_every", type=count, default=0, metavar="N", help="keep the checkpoint of every N-th epoch")
    add("--c1", choices=tuple(LOSSES), default="cross_entropy", help="loss of the softmax head")
    add("--c2", choices=tuple(LOSSES), default="binary_cross_entropy", help="loss of the sigmoid branch")


def _add_maps(group) -> None:
    add = group.add_argument
    add(
        "--methods",
        type=names,
        metavar="A,B,...",
        help=f"CAM methods, or all (known: {', '.join(CAM_METHODS)}; default: {','.join(DEFAULT_METHODS)})",
    )
    add("--method", choices=tuple(CAM_METHODS), help="one CAM method; --methods overrides it")
    add(
        "--heads",
        type=names,
        metavar="A,B,...",
        help=f"rows to make, of {', '.join(HEADS)} (default: softmax; in b2 softmax,softmax_clamped,sigmoid_clamped)",
    )
    _flag(group, "--t1", "add the row softmax_clamped")
    _flag(group, "--t2", "add the row sigmoid_clamped")
    add(
        "--cam_target",
        choices=("gt", "pred"),
        default="gt",
        help="class whose map is evaluated: the true one, or the softmax head's prediction",
    )
    _flag(group, "--box_v2_metric", "FALSE: the best checkpoint is chosen by MaxBoxAcc (V1), not MaxBoxAccV2", True)
    _flag(group, "--multi_contour_eval", "FALSE: the same as --box_v2_metric FALSE", True)
    _flag(group, "--multi_iou_eval", "FALSE: the same as --box_v2_metric FALSE", True)
    add(
        "--normalization",
        choices=tuple(NORMALIZATIONS),
        default="minmax",
        help="how a resized map is brought to [0, 1]: minmax; max: negatives cut, divided by the maximum; pas: minimum "
        "subtracted, divided by a quantile, cut at 1; ivr: a quantile subtracted, negatives cut, divided by the "
        "maximum",
    )
    add(
        "--normalization_quantile",
        type=share,
        metavar="P",
        help="of pas (default: 0.9) and ivr (default: 0.45): the value at place floor(P n) of a map's n sorted values",
    )
    add("--alpha", type=amount, default=0.6, help="strength of finercam's comparison with the nearest classes")
    add(
        "--perturb_batch",
        type=positive,
        default=PERTURB_BATCH,
        help="changed inputs that go through the network at a time (scorecam, ablationcam, fullgrad)",
    )
    add(
        "--bootstrap",
        type=count,
        default=1000,
        metavar="N",
        help="resamples of the test images behind the 95%% intervals of results.json; 0 leaves them out",
    )
    add(
        "--fidelity",
        type=names,
        default=[],
        metavar="A,B,...",
        help=f"what else to measure of the maps, on the test split: {', '.join(MEASURES)}, all or none; each but pointing "
        "costs forward passes for every image and row (--dry_run counts them)",
    )
    _flag(group, "--save_scoremaps", "write every evaluated map to scoremaps/ in the run folder")


def _add_metrics(group) -> None:
    add = group.add_argument
    add("--cam_curve_interval", type=_number(float, 1e-5, 1), default=0.001, help="step between score map thresholds")
    add(
        "--iou_threshold_list",
        type=_number(int, 1, 100),
        nargs="+",
        default=[30, 50, 70],
        help="of box accuracy, percent",
    )
    add("--loc_threshold", type=share, default=0.2, help="score map threshold of gt_loc and top1_loc")
    add(
        "--gt_boxes",
        choices=("any", "first"),
        default="any",
        help="ground truth of gt_loc, top1_loc, top5_loc and their _best and _val forms: any box of an image, or its "
        "first only, as the authors' code has it; MaxBoxAcc (V1 and V2) and PxAP are not touched",
    )


def _add_reporting(group) -> None:
    add = group.add_argument
    add(
        "--wandb",
        type=boolean,
        nargs="?",
        const=True,
        metavar="on|off",
        help="report to Weights & Biases (default: on where --project or --wandb_name is given)",
    )
    add("--project", help="W&B project")
    add("--wandb_name", help="W&B run name (default: the experiment's)")
    add("--wandb_dir", help="where W&B writes (default: the run folder)")


def _add_wsol_methods(group) -> None:
    add = group.add_argument
    add("--has_grid_size", type=positive, default=4, help="has: side of a patch in pixels")
    add("--has_drop_rate", type=share, default=0.5, help="has")
    add("--acol_threshold", type=share, default=0.7, help="acol")
    for level, high, low in ((1, 0.7, 0.01), (2, 0.5, 0.05), (3, 0.7, 0.1)):
        add(f"--spg_threshold_{level}h", type=share, default=high, help="spg")
        add(f"--spg_threshold_{level}l", type=share, default=low, help="spg")
    add("--adl_drop_rate", type=share, default=0.75, help="adl")
    add("--adl_threshold", type=share, default=0.9, help="adl")
    add("--cutmix_beta", type=amount, default=1.0, help="cutmix")
    add("--cutmix_prob", type=share, default=1.0, help="cutmix")


# --------------------------------------------------------------------------- the command line of evaluation.py


def parse_evaluation_args(argv: list[str] | None = None) -> munch.Munch:
    """The command line of evaluation.py, wsolevaluation's and ours; exit code 2 where it is wrong."""
    parser = _Parser(
        prog="evaluation.py",
        description="Measure how well saved score maps localize: 224 x 224 arrays in [0, 1], one .npy file an image.",
        formatter_class=_Help,
    )
    add = parser.add_argument
    add(
        "--scoremap_root",
        required=True,
        metavar="FOLDER",
        help="holds <image id>.npy or <image id without its "
        "extension>.npy, or a folder of such files for each row, such as scoremaps/test of a run",
    )
    add("--val_scoremap_root", metavar="FOLDER", help="the same of the val split: its best thresholds give gt_loc_val")
    add("--dataset_name", required=True, help=f"{', '.join(DATASETS)}, or any folder in the same format")
    add("--split", choices=SPLITS, default="test", help="split that the maps are of")
    add("--metadata_root", default="metadata", help="metadata are at METADATA_ROOT/DATASET_NAME/SPLIT")
    add("--mask_root", default="dataset", help="masks are at MASK_ROOT/DATASET_NAME")
    _add_metrics(parser)
    _flag(parser, "--multi_contour_eval", "FALSE: `localization` asks the largest contour's box only", True)
    _flag(
        parser, "--multi_iou_eval", "FALSE: `localization` is read at the IoU threshold 50, not the mean of all", True
    )
    add("--workers", type=count, default=4, help="processes that read and measure maps, at most the number of cores")
    add("--out", metavar="FILE.json", help="write every number there")
    args = munch.munchify(vars(parser.parse_args(argv)))
    plain_name("--dataset_name", args.dataset_name)
    if not args.multi_iou_eval and 50 not in args.iou_threshold_list:
        raise InputError("--multi_iou_eval FALSE reads the IoU threshold 50, which --iou_threshold_list does not name")
    if args.val_scoremap_root and args.split != "test":
        raise InputError(f"--val_scoremap_root chooses thresholds for the test split, not for --split {args.split}")
    if args.out and not Path(args.out).absolute().parent.is_dir():
        raise InputError(f"--out {args.out}: there is no folder {Path(args.out).parent}")
    if args.out and Path(args.out).is_dir():
        raise InputError(f"--out {args.out} is a folder; name a file in it")
    return args


# --------------------------------------------------------------------------- the command for single pictures


def make_picture_parser() -> argparse.ArgumentParser:
    """The command line of inference.py; what it shares with main.py are main.py's own flags."""
    parser = _Parser(
        prog="inference.py",
        description="Show what a network looks at: class activation maps over "
        "pictures, a comparison grid for each, and its five likeliest classes.",
        formatter_class=_Help,
    )
    shared = {action.dest: action for action in make_parser()._actions}
    add = parser.add_argument
    add(
        "pictures",
        nargs="+",
        metavar="IMAGE_OR_FOLDER",
        help="picture files, and folders, searched with all below them",
    )
    add("--out", required=True, metavar="DIR", help="where grids, overlays and raw maps are written")
    add(
        "--ckpt",
        metavar="FILE",
        help="checkpoint of this program, wsolevaluation or Dual-CAM; without one: ImageNet weights",
    )
    add(
        "--class",
        dest="wanted_class",
        metavar="NAME_OR_INDEX",
        help="the class to explain (default: the softmax head's prediction for each picture)",
    )
    _flag(parser, "--save_npy", "write raw maps, too: signed, at the target layer's resolution")
    _flag(parser, "--override_cache", "replace files of an earlier call in DIR; others are never touched")
    _flag(parser, "--skip_bad_images", "leave out pictures that cannot be read; each is named")
    add("--batch_size", type=positive, default=16, help="pictures that go through the network together")
    for name in (
        "architecture",
        "pretrained_path",
        "classifier_form",
        "last_layer",
        "large_feature_map",
        "methods",
        "heads",
        "perturb_batch",
        "alpha",
        "crop_size",
        "workers",
        "gpus",
        "debug",
    ):
        parser._add_action(shared[name])
    # A checkpoint says these itself where the command line does not.
    for name in ("architecture", "last_layer", "large_feature_map"):
        shared[name].help += f" (default: the checkpoint's own, else {shared[name].default})"
        shared[name].default = None
    return parser


def parse_picture_args(argv: list[str] | None = None) -> munch.Munch:
    """The command line of inference.py as a checked munch.

    None where a default depends on the network: architecture, last_layer, large_feature_map, heads. `own_choice`: the
    methods were named one by one, so each is a must.
    """
    parser = make_picture_parser()
    flags = {option for action in parser._actions if action.type is boolean for option in action.option_strings}
    config = munch.munchify(vars(parser.parse_args(_flags_alone(sys.argv[1:] if argv is None else argv, flags))))
    if config.ckpt and config.pretrained_path:
        raise InputError("--ckpt and --pretrained_path both name the network's weights; leave one out")
    config.own_choice = config.methods not in (None, ["all"])
    if not config.own_choice:
        config.methods = list(CAM_METHODS if config.methods else DEFAULT_METHODS)
    _check_names("methods", config.methods, CAM_METHODS)
    if config.heads is not None:
        _check_names("heads", config.heads, HEADS)
    _check_gpus(config.gpus)
    return config


def _flags_alone(argv: list[str], flags: set[str]) -> list[str]:
    """`--save_npy cat.jpg` → `--save_npy=TRUE cat.jpg`: the file behind a boolean is not its value."""

    def is_boolean(word: str) -> bool:
        try:
            return boolean(word) in (True, False)
        except argparse.ArgumentTypeError:
            return False

    return [
        f"{word}=TRUE" if word in flags and not is_boolean(following) else word
        for word, following in itertools.pairwise([*argv, ""])
    ]


# --------------------------------------------------------------------------- parsing


def parse_args(argv: list[str] | None = None) -> munch.Munch:
    """The command line as a checked munch with every default filled in.

    Leaves with exit code 2 on an unknown flag or value (argparse), and raises
    InputError where flags contradict each other. `given` lists the settings that
    were set by hand.
    """
    parser = make_parser()
    values = vars(parser.parse_args(argv))
    given = set(_given(argv))
    if values["config"]:
        saved = _kept(load_yaml(values["config"]), given)
        values |= saved
        given |= set(saved)
    return complete(munch.munchify(values | {"given": sorted(given)}))


def _given(argv: list[str] | None) -> dict:
    """Only what stands on the command line: the same parse with every default suppressed."""
    bare = make_parser()
    for action in bare._actions:
        action.default = argparse.SUPPRESS
    return vars(bare.parse_args(argv))


def load_yaml(path: str) -> dict:
    """Settings of a YAML file, each checked as if it stood on the command line."""
    try:
        saved = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"--config {path}: no such file") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: {str(error).splitlines()[0]}") from None
    if not isinstance(saved, dict):
        raise InputError(f"--config {path}: not a YAML mapping of settings")
    return check_settings(saved, path)


def check_settings(saved: dict, path: str) -> dict:
    """Pass a mapping of settings through the parser, so that types and choices hold for it, too."""
    parser = make_parser()
    parser.source = f"{path}: "
    known = {action.dest: action for action in parser._actions if action.dest != "help"}
    argv, keys = [], []
    for key, value in saved.items():
        if key not in known:
            raise InputError(f"{path}: unknown setting '{key}'" + nearest(str(key), known))
        if value is None or key in _OF_THE_COMMAND_LINE:
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(v, (dict, list, tuple)) for v in values):
            raise InputError(f"{path}: the setting '{key}' is neither a value nor a list of values")
        words = [str(v) for v in values]
        argv += [f"--{key}", *words] if known[key].nargs == "+" else [f"--{key}={','.join(words)}"]
        keys.append(key)
    checked = vars(parser.parse_args(argv))
    return {key: checked[key] for key in keys}


def continue_run(config: munch.Munch, saved: dict, path: str) -> munch.Munch:
    """A run that goes on keeps the settings it was started with; what stands on the command line counts more."""
    saved = {key: value for key, value in check_settings(saved, path).items() if key not in _OF_THIS_CALL}
    given = set(config.given)
    for key in _FIXED if config.resume else ():
        if key in given and key in saved and config[key] != saved[key]:
            raise InputError(
                f"--resume cannot change --{key} to {config[key]}: {path} says {saved[key]}; "
                "start another run, from this one's checkpoint with --ft_ckpt if you like"
            )
    kept = _kept(saved, given)
    if config.resume and "vanilla_epochs" in saved and "vanilla_epochs" not in given:
        kept["vanilla_epochs"] = saved["vanilla_epochs"]  # more epochs of the branch are none of the stage before it
    unfilled = {
        follower: None for followers in _FOLLOW.values() for follower in followers if follower not in config.given
    }
    return complete(munch.munchify(dict(config) | unfilled | kept))


def adopt(config: munch.Munch, facts: dict) -> munch.Munch:
    """The settings with those of a checkpoint that were not given on the command line."""
    facts = {key: value for key, value in facts.items() if key not in config.given}
    changed = {key for key, value in facts.items() if config[key] != value}
    unfilled = {follower: None for key in changed for follower in _FOLLOW.get(key, ()) if follower not in config.given}
    return complete(munch.munchify(dict(config) | unfilled | facts))


def _kept(saved: dict, given: set[str]) -> dict:
    """The saved settings that the command line does not overrule, itself or through a setting they follow from."""
    overruled = given | {follower for key in given for follower in _FOLLOW.get(key, ())}
    return {key: value for key, value in saved.items() if key not in overruled}


def complete(config: munch.Munch) -> munch.Munch:
    """Fill in the defaults that depend on other settings, and refuse contradictions."""
    b2 = config.model_structure == "b2"
    fill = {
        "mask_root": config.data_root,
        "classifier_form": "auto",
        "unfreeze_layer": "fc2" if b2 else "all",
        "lr": 0.003 if b2 else 0.01,
        "vanilla_epochs": config.epochs,
        "augment": dataset_info(config.dataset_name).augment,
        "methods": [config.method] if config.method else list(DEFAULT_METHODS),
        "heads": default_heads(b2),
        "wandb": bool(config.project or config.wandb_name),
    }
    for key, value in fill.items():
        if config[key] is None:
            config[key] = value
    if config.methods == ["all"]:
        config.methods = list(CAM_METHODS)
    if config.fidelity in (["all"], ["none"]):
        config.fidelity = list(MEASURES) if config.fidelity == ["all"] else []
    for flag, variant in (("t1", "softmax_clamped"), ("t2", "sigmoid_clamped")):
        if config[flag] and variant not in config.heads:
            config.heads.append(variant)
    _check(config)
    return config


def default_heads(dual: bool) -> list[str]:
    """The rows of a network with (dual) or without a sigmoid branch."""
    return ["softmax", "softmax_clamped", "sigmoid_clamped"] if dual else ["softmax"]


def _check(config: munch.Munch) -> None:
    _check_names("methods", config.methods, CAM_METHODS)
    _check_names("heads", config.heads, HEADS)
    if config.fidelity:
        _check_names("fidelity", config.fidelity, MEASURES)
    wants_branch = [head for head in config.heads if head.startswith("sigmoid")]
    if config.model_structure != "b2":
        if wants_branch:
            raise InputError(
                f"--heads {wants_branch[0]} needs a sigmoid branch: --model_structure b2, not {config.model_structure}"
            )
        if UNFREEZE[config.unfreeze_layer] == ("sigmoid_head",):
            raise InputError(
                f"--unfreeze_layer {config.unfreeze_layer} is the sigmoid branch: it needs "
                f"--model_structure b2, not {config.model_structure}"
            )
    if not UNFREEZE[config.unfreeze_layer] and config.epochs and not config.eval_only:
        raise InputError("--unfreeze_layer none leaves nothing to train; evaluate with --eval_only or --epochs 0")
    if config.resume + config.eval_only + config.override_cache > 1:
        raise InputError("--resume, --eval_only and --override_cache exclude each other")
    if config.pretrained_path and not config.pretrained:
        raise InputError("--pretrained_path names ImageNet weights and --pretrained FALSE wants none; leave one out")
    if config.eval_only and config.train_only:
        raise InputError("--eval_only and --train_only exclude each other")
    if config.normalization_quantile is not None and NORMALIZATIONS[config.normalization].quantile is None:
        raise InputError(
            f"--normalization_quantile is read by pas and ivr, not by --normalization "
            f"{config.normalization}; leave it out"
        )
    if config.augment == "crop_flip" and config.resize_size < config.crop_size:
        raise InputError(
            f"--resize_size {config.resize_size} is smaller than --crop_size {config.crop_size}: no crop "
            "fits; enlarge it or give --augment none"
        )
    plain_name("--dataset_name", config.dataset_name)
    if config.experiment_name is not None:
        plain_name("--experiment_name", config.experiment_name)
    _check_gpus(config.gpus)


def _check_names(flag: str, values, known) -> None:
    for value in values:
        if value not in known:
            raise InputError(f"--{flag}: unknown name '{value}'{nearest(value, known)} (known: {', '.join(known)})")
    if not values:
        raise InputError(f"--{flag} names nothing (known: {', '.join(known)})")


def _check_gpus(text: str) -> None:
    try:
        if min(gpu_indices(text)) < 0:
            raise ValueError
    except ValueError:
        raise InputError(f"--gpus '{text}' is not a list of device indices such as 0 or 0,1") from None


def gpu_indices(text: str) -> list[int]:
    """ "0,1" → [0, 1]."""
    return [int(word) for word in str(text).split(",")]


def saved_settings(config: munch.Munch) -> dict:
    """What config.yaml keeps: every setting but the bookkeeping of this call."""
    return {
        key: munch.unmunchify(value)
        for key, value in config.items()
        if key not in ("given", "config", "resume", "eval_only", "dry_run", "override_cache")
    }


def splits_needed(config: munch.Munch) -> tuple[str, ...]:
    """The splits this run reads."""
    return SPLITS[1:] if config.eval_only else SPLITS[:2] if config.train_only else SPLITS
