"""Train a network's branch, make its class activation maps, measure how well they localize.

python main.py                              # the built-in example, a few minutes without a GPU
python main.py --help                       # every setting
python main.py --dataset_name CUB --architecture resnet50 --methods cam,gradcam
python main.py --experiment_name run-1 --eval_only
torchrun --nproc_per_node 8 main.py --dataset_name ILSVRC ...    # eight GPUs
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until wsol.run.command listens: end, and print no traceback

from config import (
    RESULTS,
    TRAINING,
    UNFREEZE,
    adopt,
    branch_setting,
    changed_settings,
    choosing_method,
    continue_run,
    extractor_options,
    gpu_indices,
    idle,
    parse_args,
    saved_settings,
    splits_needed,
    training_settings,
    view_options,
)
from wsol.run import command

if __name__ == "__main__":
    command.check_early(parse_args)  # the imports below take seconds; --help and mistyped flags should not

import contextlib
import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch.utils.data import DataLoader

from data_loaders import ImageDataset, make_loader, set_epoch
from inference import compute_scoremaps
from wsol import build, distributed, dualize
from wsol.backbones import get_architecture
from wsol.branch import CANDIDATES, BranchSetting
from wsol.cam import NO_HEAD, CamExtractor, Meter, ScoreMaps, Variant, all_methods, variants
from wsol.cam.affinity import AFFINITY_CANDIDATES, Affinity
from wsol.cam.broadcam import fit_broadcam
from wsol.cam.regions import Regions
from wsol.cam.variant import AFFINITY
from wsol.checksum import checksum
from wsol.classifier import Classifier, Output, randomize
from wsol.datasets.load import WsolData, load_data
from wsol.datasets.reader import SplitMetadata
from wsol.datasets.registry import dataset_info, will_be_generated
from wsol.device import select_device
from wsol.dual_head import make_nonnegative
from wsol.errors import InputError, first_few
from wsol.evaluation.comparison import read_results
from wsol.evaluation.fidelity import FidelityEvaluation
from wsol.evaluation.ground_truth import load_ground_truth
from wsol.evaluation.per_image import PerImage
from wsol.evaluation.results import SCHEMA, add_intervals, versions
from wsol.evaluation.saved_maps import save_scoremaps, scoremap_names
from wsol.evaluation.split import Evaluation
from wsol.features import FeatureCache, KeptActivations
from wsol.image_cache import cached_images
from wsol.log import log, log_to, progress, start_log
from wsol.losses import OBJECTIVES
from wsol.methods import METHODS
from wsol.metrics.box_metrics import CONTOURS, headline
from wsol.metrics.measures import COST
from wsol.precision import Precision
from wsol.run import checkpoint as checkpoints
from wsol.run import figures, fitted, report, tables
from wsol.run.checkpoint import Checkpoint
from wsol.run.folder import RunFolder
from wsol.run.history import EpochLog, History, Validate
from wsol.run.loggers import Logger, Loggers, TensorboardLogger, require_tensorboard
from wsol.run.profiling import profiled
from wsol.run.provenance import TrainingRecord, code_record, metadata_checksums
from wsol.run.restore import check_map_settings, check_network, resolve_form, restore
from wsol.run.wandb_logger import WandbLogger
from wsol.training import Epoch, Trainer, can_compile, seed_everything

FIGURE_IMAGES = 6


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    """Configure, build, train, infer, evaluate, report. Returns the content of results.json, on the main process."""
    config, run, checkpoint = configure(argv)
    if config.tensorboard:
        require_tensorboard()
    device = select_device(gpu_indices(config.gpus), config.deterministic)
    with distributed.group(device):
        return carry_out(config, run, checkpoint, device)


def carry_out(
    config: Any, run: RunFolder, checkpoint: Checkpoint | None, device: torch.device
) -> dict[str, Any] | None:
    """What the configuration asks for; every process of a group does its share of it."""
    precision = Precision("off" if config.eval_only else config.amp, device)
    with distributed.main_first():  # it may write a data set, or fetch weights
        kept = find_fitted(config, run)
        data = read_data(config, checkpoint, fits=kept is None and fits_methods(config))
        model, class_names = build_model(config, data, checkpoint)
        if kept is not None and not kept.fits(model):
            log.info("%s is of another checkpoint's features: broadcam is fitted anew", run.path / fitted.FILE)
            kept, data = None, read_data(config, checkpoint, fits=True)
    describe(config, data, model)
    if config.dry_run:
        return None

    sources = sources_of(config, data, checkpoint)
    apart = config.eval_only and differs_from_run(config, run, model, sources)
    model = model.to(device, memory_format=torch.channels_last)
    config.experiment_name = run.open(saved_settings(config), save=not config.eval_only, apart=apart)
    how = "--eval_only" if config.eval_only else "--resume"
    command.when_interrupted(
        f"{run.path} has what was finished; go on with --root {run.root} --experiment_name {run.path.name} {how}"
    )
    if distributed.is_main():
        log_to(run.output / "log.txt")
    log.info("run folder: %s", run.path)
    if distributed.world_size() > 1:
        log.info("processes: %d, which share batches of %d images", distributed.world_size(), config.batch_size)
    loggers = open_loggers(config, run)
    results = None
    branch = checkpoint.branch if checkpoint is not None else None
    if not config.eval_only:
        model, branch = train(config, data, model, checkpoint, sources, run, device, precision, loggers)
        distributed.barrier()  # until the checkpoints are written
        if not config.train_only and config.eval_checkpoint_type != "last":
            take_weights(model, Checkpoint("eval", checkpoints.path_of(run.path, config.eval_checkpoint_type)), sources)
    if fits_methods(config) and (kept is None or not config.eval_only):
        kept = fit_methods(config, data, model, run, device)
    if not config.train_only:
        measured = measure(config, data, model, class_names, branch, sources, run, device, kept)
        if measured is None:
            return None
        results = measured.results
        report.write(run, results, measured.images, class_names)
        log.info("\n%s", tables.summary(results))
        drawn = figures.draw_results(
            run.figures,
            measured.evaluation,
            results["rows"],
            class_names,
            config.loc_threshold,
            colormap=config.colormap,
            formats=config.figure_format,
        )
        loggers.log_results(results, drawn)
    loggers.close()
    log.info("%s in %s", "results are" if apart else "results and checkpoints are", run.output)
    return results


# --------------------------------------------------------------------------- configure, read, build


def configure(argv: list[str] | None) -> tuple[Any, RunFolder, Checkpoint | None]:
    """The config, the run's folder, and the checkpoint to begin with; nothing is written yet."""
    config = parse_args(argv)
    start_log(config.debug)
    continues = config.resume or config.eval_only
    run = RunFolder(config.root, config.experiment_name, must_exist=continues, override=config.override_cache)
    if continues:
        own = run.saved_config()
        if config.resume and not own:
            raise InputError(f"cannot resume: {run.path} has no config.yaml; start a new run with --ft_ckpt instead")
        config = continue_run(config, own, f"{run.path}/config.yaml")
    checkpoint = find_checkpoint(config, run)
    if checkpoint is not None and checkpoint.role == "eval":
        config = adopt(config, checkpoint.build_settings | ({} if own else trained_on(config, checkpoint)))
    config.classifier_form = resolve_form(
        config.architecture, config.classifier_form, config.methods, checkpoint, method=config.wsol_method
    )
    for name, reason in idle(config).items():
        log.info("--%s has no effect: %s", name, reason)
    if checkpoint is not None and checkpoint.role == "resume":
        check_resumed(config, own, checkpoint, run)
    return config, run, checkpoint


def trained_on(config: Any, checkpoint: Checkpoint) -> dict[str, str]:
    """{dataset_name} of a checkpoint in a folder without config.yaml; InputError if neither it nor a flag names one."""
    name = checkpoint.content.get("dataset_name")
    if name is None and "dataset_name" not in config.given:
        raise InputError(f"{checkpoint.path} does not name the data set that it was trained on; give --dataset_name")
    return {} if name is None else {"dataset_name": name}


def check_resumed(config: Any, saved: dict[str, Any], checkpoint: Checkpoint, run: RunFolder) -> None:
    """InputError if a run has no epoch left to train, and is resumed with settings that did not make its results.

    Or if its checkpoint or metrics.jsonl cannot be continued.
    """
    state = checkpoint.training_state
    run.metrics()
    if state["stage"] != config.model_structure or state["epoch"] < config.epochs:
        return
    evaluated = (run.path / "results.json").exists()
    bearing_on = (TRAINING, RESULTS) if evaluated else (TRAINING,)
    if changed := changed_settings(config, saved, f"{run.path}/config.yaml", bearing_on):
        name = next((name for name in changed if name in config.given), next(iter(changed)))
        before, now = changed[name]
        raise InputError(
            f"cannot resume {run.path} with --{name} {now}: all {state['epoch']} epochs are trained, with {before}; "
            "train further with a higher --epochs, evaluate with --eval_only, or start another run"
        )


def find_checkpoint(config: Any, run: RunFolder) -> Checkpoint | None:
    """The checkpoint that this run evaluates, resumes, or starts from; None: ImageNet weights or random ones."""
    if config.eval_only:
        return Checkpoint("eval", checkpoints.path_of(run.path, config.eval_checkpoint_type))
    if config.resume:
        for prefix in ("", "vanilla_"):
            path = run.path / f"{prefix}last{checkpoints.SUFFIX}"
            if path.is_file():
                return Checkpoint("resume", path)
        log.info("%s has no checkpoint yet; training starts from the beginning", run.path)
    return Checkpoint("start", config.ft_ckpt) if config.ft_ckpt else None


def fits_methods(config: Any) -> bool:
    """Whether a method is fitted to the training images, behind the training."""
    return any(map(fitted.is_fitted, config.methods))


def fit_settings(config: Any) -> dict[str, Any]:
    """What a fit depends on, beside images and network."""
    return {name: config[name] for name in ("proportion", "bls_alpha", "bls_step", "cam_levels", "crop_size", "seed")}


def find_fitted(config: Any, run: RunFolder) -> fitted.Kept | None:
    """What an earlier fit with these settings left in the folder of a run that is only evaluated.

    Without it, `--methods all` leaves out what would have to be fitted.
    """
    if not (config.eval_only and fits_methods(config)):
        return None
    kept = fitted.load(run.path)
    if kept is not None and kept.settings == fit_settings(config):
        return kept
    if set(config.methods) == set(all_methods()):
        config.methods = [name for name in config.methods if not fitted.is_fitted(name)]
        log.info("broadcam is left out of all methods: %s has no fit of it; name it to fit it now", run.path)
    return None


def read_data(config: Any, checkpoint: Checkpoint | None, fits: bool = False) -> WsolData:
    """The metadata of the splits that this run needs; a generated data set is written first.

    fits: a CAM method is fitted to the training images.
    """
    to_be_generated = will_be_generated(config.dataset_name, config.metadata_root)
    if to_be_generated and not config.dry_run:
        build_network(config, checkpoint, None)  # fails, if it must, before a data set is written
    with contextlib.ExitStack() as stack:
        roots = [config.data_root, config.metadata_root, config.mask_root]
        if config.dry_run and to_be_generated:
            roots = [stack.enter_context(tempfile.TemporaryDirectory())] * 3  # generated, counted, and removed
        data = load_data(
            config.dataset_name,
            *roots,
            splits=splits_needed(config, fits),
            seed=config.seed,
            proportion=config.proportion,
            proxy_training_set=config.proxy_training_set,
            num_val_sample_per_class=config.num_val_sample_per_class,
            skip_bad=config.skip_bad_images,
            workers=config.workers,
        )
        check_choices(config, data)
    return data


def check_choices(config: Any, data: WsolData) -> None:
    """Where the val split cannot decide, give up choices that are only a default.

    Raises:
        InputError: one was asked for by name.
    """
    instead = {"affinity_choice": "--affinity_layer, --affinity_power and the like"}
    if not config.eval_only:
        instead["branch_choice"] = "--branch_weights, --branch_lambda and --branch_mu"
    wanted = [name for name in instead if config[name] == "val"]
    if not wanted:
        return
    if "val" not in data.splits:
        reason = f"{config.metadata_root}/{data.name} has no val split"
    elif not has_foreground(data.splits["val"]):
        reason = f"the val split of {data.name} has no object to localize"
    else:
        return
    for name in wanted:
        if name in config.given:
            raise InputError(f"--{name} val: {reason}; add one, or give {instead[name]} instead")
        config[name] = "given"
        log.info("--%s given, with the defaults of %s: %s", name, instead[name], reason)


def has_foreground(metadata: SplitMetadata) -> bool:
    """Whether any image of a split has a box or, if its objects are given by masks, a foreground."""
    if metadata.boxes is not None:
        return any(len(boxes) for boxes in metadata.boxes)
    one_by_one = (load_ground_truth(metadata, [index]).object_pixels()[0] for index in range(len(metadata)))
    return any(pixels.any() for pixels in one_by_one)


def build_model(config: Any, data: WsolData, checkpoint: Checkpoint | None) -> tuple[Classifier, list[str]]:
    """The network with the weights that this run begins with, and the names of its classes.

    It has its branch, unless a vanilla stage must train the softmax head first.
    """
    seed_everything(config.seed)
    b2 = config.model_structure == "b2"
    if checkpoint is None:
        has_imagenet_classes = dataset_info(config.dataset_name).imagenet
        model = build_network(config, None, None if has_imagenet_classes else data.num_classes)
        return (add_branch(config, model) if b2 and not model.head_is_new else model), data.class_names
    stage = checkpoint.training_state["stage"] if checkpoint.role == "resume" else None
    model = build_network(config, checkpoint, data.num_classes)
    if checkpoint.role == "eval":
        class_names = checkpoint.class_names(model.head_name, data.class_names)
        return restore(model, checkpoint, branch="load" if b2 else "none", adopt_classes=True), class_names
    if checkpoint.role == "resume":
        return restore(model, checkpoint, branch="load" if b2 and stage != "vanilla" else "none"), data.class_names
    model = restore(model, checkpoint, branch="ignore")
    return (add_branch(config, model) if b2 else model), data.class_names


def build_network(config: Any, checkpoint: Checkpoint | None, num_classes: int | None) -> Classifier:
    """Build and validate the network; num_classes None keeps the ImageNet head."""
    model = build(
        config.architecture,
        num_classes,
        pretrained=config.pretrained and checkpoint is None,
        pretrained_path=config.pretrained_path,
        classifier_form=config.classifier_form,
        last_layer=config.last_layer,
        large_feature_map=config.large_feature_map,
        image_size=config.crop_size,
        method=METHODS[config.wsol_method](config),
    )
    check_network(model, config.methods, config.crop_size)
    check_map_settings(
        model, config.crop_size, config.refine, config.affinity_layer, config.scales, config.methods, config.cam_levels
    )
    if config.branch_mu and not config.eval_only and (reason := why_no_regions(config, model)):
        raise InputError(f"--branch_mu {config.branch_mu:g} does not work here: {reason}")
    return model


def add_branch(config: Any, model: Classifier) -> Classifier:
    """Give a trained network its sigmoid branch (Dual-CAM)."""
    seed_everything(config.seed)
    dual = dualize(model)
    if config.sigmoid_init == "random" and dual.sigmoid_head is not None:
        randomize(dual.sigmoid_head)
    return dual


def sources_of(config: Any, data: WsolData, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """What a result comes from, for results.json and checkpoints: `code`, `metadata`, `starts_from`, `training`.

    Raises:
        InputError: the metadata of a resumed run have changed since it was trained.
    """
    folder = Path(config.metadata_root) / data.name
    sources: dict[str, Any] = {"code": code_record(), "metadata": metadata_checksums(folder, data.splits)}
    if checkpoint is None:
        return sources
    if checkpoint.role == "start":
        return sources | {"starts_from": {"file": checkpoint.path, "weights": checksum(checkpoint.tensors)}}
    if checkpoint.role == "resume":
        before = checkpoint.content.get("metadata", {})
        for split in ("train", "val"):
            if before.get(split, now := sources["metadata"].get(split)) != now:
                raise InputError(
                    f"cannot resume: the metadata in {folder / split} have changed since {checkpoint.path} was "
                    "trained; restore them, or start another run"
                )
    sources["metadata"] = checkpoint.content.get("metadata", {}) | sources["metadata"]
    return sources | {key: checkpoint.content[key] for key in ("starts_from", "training") if key in checkpoint.content}


def differs_from_run(config: Any, run: RunFolder, model: Classifier, sources: dict[str, Any]) -> bool:
    """Whether --eval_only measures something else than the run did: other settings, weights or metadata."""
    saved, measured = run.saved_config(), (RESULTS,)
    changed = list(changed_settings(config, saved, f"{run.path}/config.yaml", measured)) if saved else []
    results = None
    with contextlib.suppress(InputError):  # without results, or if they are damaged, these become the run's
        results = read_results(run.path)
    if results is not None:
        changed += changed_settings(config, results["config"], f"{run.path}/results.json", measured)
        now = {"weights": checksum(model.published_state_dict()), "metadata": sources["metadata"]}
        changed += [name for name, value in now.items() if results.get(name, value) != value]
    if changed:
        log.info("differs from the run in %s: results get a folder of their own", first_few(dict.fromkeys(changed)))
    return bool(changed)


def describe(config: Any, data: WsolData, model: Classifier) -> None:
    """Log what is about to run: in two lines, or in full for --dry_run."""
    if config.model_structure == "b2" and model.sigmoid_head is None:
        model = dualize(model)  # as it will be once the softmax head is trained
    model.set_trainable(UNFREEZE[config.unfreeze_layer])
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trainable
    if config.dry_run:
        log.info(yaml.safe_dump(saved_settings(config), sort_keys=False).rstrip())
    if config.preset:
        log.info("preset: %s", config.preset)
    images = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    log.info("data: %s, %d classes; images: %s", data.name, data.num_classes, images)
    log.info(
        "network: %s, %s; parameters: %s trainable, %s frozen",
        config.architecture,
        config.model_structure,
        f"{trainable:,}",
        f"{frozen:,}",
    )
    if config.branch_choice == "val" and not config.eval_only:
        log.info(
            "branch: chosen on val among up to %d settings, each trained for %d epochs before the run's own %d",
            len(CANDIDATES),
            config.epochs,
            config.epochs,
        )
    if config.fidelity and "test" in data.splits:
        passes = sum(COST[name] for name in config.fidelity)
        num_rows, num_images = (
            len(variants(config.methods, config.heads, config.refine, refined_methods=config.refined_methods)),
            len(data.splits["test"]),
        )
        log.info(
            "fidelity: %s forward passes (%d for each of %d rows and %s images)",
            f"{passes * num_rows * num_images:,}",
            passes,
            num_rows,
            f"{num_images:,}",
        )


def image_loader(config: Any, data: WsolData, split: str, augment: str | None = None) -> DataLoader:
    """A loader of one split; with `augment` ("none" or another of --augment) shuffled for training."""
    network = get_architecture(config.architecture)
    decoded = None
    if config.image_cache:
        side = config.crop_size if (augment or "none") == "none" else config.resize_size
        with distributed.main_first():
            decoded = cached_images(data.splits[split], side, Path(config.root) / "image_cache", config.workers)
    dataset = ImageDataset(
        data.splits[split],
        decoded=decoded,
        crop_size=config.crop_size,
        mean=network.mean,
        std=network.std,
        augment=augment or "none",
        resize_size=config.resize_size,
        seed=config.seed,
    )
    return make_loader(dataset, config.batch_size, config.workers, None if augment is None else config.seed)


def open_loggers(config: Any, run: RunFolder) -> Loggers:
    """Weights & Biases and TensorBoard, as far as they are asked for, on the main process."""
    if not distributed.is_main():
        return Loggers([])
    loggers: list[Logger] = [
        WandbLogger(
            config.wandb,
            project=config.project,
            name=config.wandb_name or config.experiment_name,
            folder=Path(config.wandb_dir or run.output),
            config=saved_settings(config),
            id_file=None if config.eval_only else run.path / "wandb_id.txt",
            resume=config.resume,
        )
    ]
    if config.tensorboard:
        loggers.append(TensorboardLogger(run.output / "tensorboard"))
    return Loggers(loggers)


# --------------------------------------------------------------------------- train


def train(
    config: Any,
    data: WsolData,
    model: Classifier,
    checkpoint: Checkpoint | None,
    sources: dict[str, Any],
    run: RunFolder,
    device: torch.device,
    precision: Precision,
    loggers: Logger,
) -> tuple[Classifier, dict[str, Any] | None]:
    """Train what --unfreeze_layer names; in b2 on new classes, train the softmax head first and then add the branch.

    Args:
        sources: see `sources_of`; its "training" is brought up to date.

    Returns:
        The network, and how its branch was trained: `branch` of results.json; None without a branch.
    """
    resumed = checkpoint.training_state if checkpoint is not None and checkpoint.role == "resume" else None
    last_epochs: dict[str, float] = {}
    if resumed is not None:
        log.info("resuming after epoch %d of stage %s", resumed["epoch"], resumed["stage"])
        # A checkpoint of b2 has its vanilla stage behind it.
        last_epochs = {"vanilla": config.vanilla_epochs} | {resumed["stage"]: resumed["epoch"]}
        for candidate in resumed.get("branch", {}).get("candidates", []):
            last_epochs[candidate_stage(setting_of(candidate))] = math.inf
    run.forget_metrics_after(last_epochs)  # epochs that no checkpoint has are trained again
    profile = profiled(run.path / "profile") if config.profile and distributed.is_main() else None
    trainer = new_trainer(config, data, device, precision, config.augment, profile)
    method = METHODS[config.wsol_method](config)
    rebuilds_model = {
        "architecture": config.architecture,
        "wsol_method": config.wsol_method,
        "classifier_form": config.classifier_form,
        "last_layer": config.last_layer,
        "large_feature_map": config.large_feature_map,
        "num_classes": data.num_classes,
        "class_names": data.class_names,
        "dataset_name": data.name,
        "seed": config.seed,
        **{key: sources[key] for key in ("metadata", "starts_from") if key in sources},
    }
    record = TrainingRecord(training_settings(config), sources.get("training", []))

    def fit(
        structure: str, setting: BranchSetting, epochs: int, lr: float, by: Trainer = trainer, **pausing: Any
    ) -> Iterator[Epoch]:
        """Train with the loss of a model structure, from the resumed checkpoint on if there is one."""
        after_step = None
        if setting.nonnegative:
            assert model.sigmoid_head is not None
            after_step = partial(make_nonnegative, model.sigmoid_head)
            after_step()  # the branch starts without negative weights, too
        return by.fit(
            model,
            OBJECTIVES[structure](config.c1, config.c2, setting.c2_weight, setting.object_weight),
            structure,
            epochs=epochs,
            lr=lr,
            resumed=resumed,
            after_step=after_step,
            regions=Regions(model) if setting.object_weight else None,
            method=method,
            **pausing,
        )

    def train_stage(
        structure: str,
        epochs: int,
        lr: float,
        prefix: str = "",
        branch: dict[str, Any] | None = None,
        **validating: Any,
    ) -> None:
        """Train, and record the epochs and checkpoints under the stage's name."""
        if config.compile and not can_compile(model, method):
            log.info(
                "--compile has no effect in stage %s: its network has several heads, or layers that are recorded",
                structure,
            )
        if reason := method.why_idle(model):
            log.info("--wsol_method %s changes nothing in stage %s: %s", method.name, structure, reason)
        settings = rebuilds_model | {"model_structure": structure} | ({} if branch is None else {"branch": branch})
        history = History(
            run,
            loggers,
            structure,
            settings,
            record,
            prefix,
            config.save_every,
            resumed,
            save_minutes=config.save_minutes,
            **validating,
        )
        epochs_trained = fit(structure, setting_of(branch), epochs, lr, pause=partial(history.pause, model))
        if not epochs and resumed is None:
            history.save_untrained(model)
        history.follow(epochs_trained, model)

    if config.model_structure == "b2" and model.sigmoid_head is None:
        neck = f" and its new layers {', '.join(model.neck_names)}" if model.neck else ""
        log.info("the classes are new to the network: a linear probe trains its softmax head%s first", neck)
        model.set_trainable(["neck", "softmax_head"])
        train_stage("vanilla", config.vanilla_epochs, config.vanilla_lr, prefix="vanilla_")
        model, resumed = add_branch(config, model), None

    model.set_trainable(UNFREEZE[config.unfreeze_layer])
    branch = None
    if config.model_structure == "b2":
        branch = (resumed or {}).get("branch") or {"setting": branch_setting(config).record}
        if config.branch_choice == "val" and resumed is None:
            # Behind a frozen trunk, on the images as they are: their features are computed once for all candidates.
            plain = model.trunk_is_frozen and config.augment != "none" and not config.feature_views
            chooser = new_trainer(config, data, device, precision, "none") if plain else trainer
            branch = choose_branch(config, data, model, chooser, fit, run, device, loggers)
    validate, criterion = validation(config, data, setting_of(branch), device)
    train_stage(
        config.model_structure,
        config.epochs,
        config.lr,
        branch=branch,
        validate=validate,
        criterion=criterion,
        validate_after=lambda epoch: epoch % config.val_every == 0 or epoch == config.epochs,
    )
    sources["training"] = record.entries
    return model, branch


def take_weights(model: Classifier, checkpoint: Checkpoint, sources: dict[str, Any]) -> None:
    """Go back to an earlier checkpoint of the training that just ended, to evaluate it."""
    model.load_published(checkpoint.tensors, checkpoint.path, branch=model.sigmoid_head is not None)
    sources["training"] = checkpoint.content["training"]
    log.info("evaluating %s, after epoch %d", checkpoint.path, checkpoint.content["epoch"])


def new_trainer(
    config: Any,
    data: WsolData,
    device: torch.device,
    precision: Precision,
    augment: str,
    profile: AbstractContextManager[Callable[[], None]] | None = None,
) -> Trainer:
    """What trains on the images of the train split."""
    return Trainer(
        image_loader(config, data, "train", augment),
        device,
        seed=config.seed,
        set_epoch=set_epoch,
        decay_frequency=config.lr_decay_frequency,
        precision=precision,
        features=FeatureCache(
            config.feature_cache, Path(config.root) / "feature_cache", config.feature_views, config.feature_half
        ),
        compile=config.compile,
        profile=profile,
        classifier_ratio=config.lr_classifier_ratio,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def choose_branch(
    config: Any,
    data: WsolData,
    model: Classifier,
    trainer: Trainer,
    fit: Callable[[str, BranchSetting, int, float, Trainer], Iterator[Epoch]],
    run: RunFolder,
    device: torch.device,
    loggers: Logger,
) -> dict[str, Any]:
    """Train the branch with each candidate from the same start, and find the one that localizes best on val.

    Args:
        model: left as it was.
        fit: trains the model: (structure, setting, epochs, learning rate, trainer), see `Trainer.fit`.

    Returns:
        `branch` of results.json: the best setting, the first of equal ones, and every candidate with its figures.
    """
    candidates = CANDIDATES
    if reason := why_no_regions(config, model):
        candidates = tuple(setting for setting in CANDIDATES if not setting.object_weight)
        log.info("branches with an object loss are not tried: %s", reason)
    regions = Regions(model) if candidates == CANDIDATES else None
    if not METHODS[config.wsol_method](config).fixed_images or not trainer.caches_features(model, regions):
        log.info(
            "features cannot be cached here: choosing the branch takes %d trainings of %d epochs over the images",
            len(candidates),
            config.epochs,
        )
    untrained = copy.deepcopy(model.state_dict())
    same_trunk = model.trainable == {"sigmoid_head"}
    figures: list[float] = []
    seconds = 0.0
    for setting in candidates:
        model.load_state_dict(untrained)
        epoch_log = EpochLog(run, loggers, candidate_stage(setting))
        for epoch in fit("b2", setting, config.epochs, config.lr, trainer):
            epoch_log.train(epoch)
        if same_trunk:
            model.rivals[str(setting)] = copy.deepcopy(model.sigmoid_head).requires_grad_(False)
        else:
            start = time.perf_counter()
            figures += val_figures(config, data, model, device, ["sigmoid_clamped"])
            seconds += time.perf_counter() - start
    if same_trunk:  # all of them in one pass
        start = time.perf_counter()
        figures = val_figures(config, data, model, device, [f"{name}_clamped" for name in model.rivals])
        seconds = time.perf_counter() - start
        model.rivals.clear()
    model.load_state_dict(untrained)
    criterion = val_criterion(config, data)
    for setting, figure in zip(candidates, figures, strict=True):
        noted = {criterion: figure, "seconds": seconds / len(candidates)}
        EpochLog(run, loggers, candidate_stage(setting)).note(config.epochs, "val", noted)
    branch = best_on_val([setting.record for setting in candidates], criterion, figures)
    log.info("\n%s\n", tables.branch_table(branch))
    return branch


def why_no_regions(config: Any, model: Classifier) -> str:
    """Why this network's branch cannot be trained with an object loss; empty if it can."""
    if UNFREEZE[config.unfreeze_layer] != ("sigmoid_head",):
        return f"it needs a frozen trunk and softmax head, not --unfreeze_layer {config.unfreeze_layer}"
    image = next(model.parameters()).new_zeros(1, 3, config.crop_size, config.crop_size)
    try:
        Regions(model)(image, torch.zeros(1, dtype=torch.long, device=image.device))
    except InputError as error:
        return str(error)
    return ""


def choose_affinity(config: Any, data: WsolData, model: Classifier, device: torch.device) -> dict[str, Any]:
    """Find the settings of the refinement that localize best on val.

    Returns:
        `affinity` of results.json: the best setting, the first of equal ones, and every candidate with its figures;
        the first candidate, and the setting if it is the best, is None: maps as they are.
    """
    candidates = {str(settings): settings for settings in AFFINITY_CANDIDATES}
    refine = ["none", *candidates]
    figures = val_figures(config, data, model, device, [explaining_head(config)], refine=refine, affinity=candidates)
    records = [None, *(settings.record for settings in AFFINITY_CANDIDATES)]
    affinity = best_on_val(records, val_criterion(config, data), figures)
    log.info("\n%s\n", tables.affinity_table(affinity))
    return affinity


def best_on_val(records: Sequence[dict[str, Any] | None], criterion: str, figures: Sequence[float]) -> dict[str, Any]:
    """A choice as results.json has it: the record with the highest figure, the first of equal ones, and all of them."""
    return {
        "setting": records[figures.index(max(figures))],
        "criterion": criterion,
        "candidates": [
            {"setting": record, "val": {criterion: figure}} for record, figure in zip(records, figures, strict=True)
        ],
    }


def setting_of(branch: dict[str, Any] | None) -> BranchSetting:
    """The setting in `branch` of results.json or a checkpoint; the default for None, a network with one head."""
    return BranchSetting() if branch is None else BranchSetting.from_record(branch["setting"])


def candidate_stage(setting: BranchSetting) -> str:
    """The name of a candidate's epochs in the log and in metrics.jsonl."""
    return f"b2 {setting}"


def explaining_head(config: Any) -> str:
    """The head that learns to explain, which val figures are of, whatever rows the table will have."""
    return "sigmoid_clamped" if config.model_structure == "b2" else "softmax"


def val_criterion(config: Any, data: WsolData) -> str:
    """The name of the figure of the val split that chooses between checkpoints and between settings."""
    return headline(data.splits["val"].boxes is not None, config.multi_contour_eval, config.multi_iou_eval)


def val_figures(
    config: Any, data: WsolData, model: Classifier, device: torch.device, heads: list[str], **refinement: Any
) -> list[float]:
    """The criterion's value of `choosing_method` for each of these heads and refinements, from one pass over val."""
    extractor = new_extractor(config, model, [choosing_method(config)], heads, **refinement)
    evaluation = new_evaluation(config, data.splits["val"], extractor.variants, center=False)
    loader = image_loader(config, data, "val")
    for batch in new_scoremaps(config, extractor, loader, device, "choose on val"):
        evaluation.update(batch, load_ground_truth(evaluation.metadata, batch.indices))
    total = evaluation.over_processes()
    return distributed.from_main(lambda: [row["localization"] for row in total.compute()["rows"]])


def validation(
    config: Any, data: WsolData, setting: BranchSetting, device: torch.device
) -> tuple[Validate | None, str | None]:
    """A function that returns the figures of the val split, and the figure that chooses `best`; None without val.

    It measures `choosing_method` on `explaining_head`.
    """
    if "val" not in data.splits:
        return None, None
    criterion = val_criterion(config, data)
    objective = OBJECTIVES[config.model_structure](config.c1, config.c2, setting.c2_weight)
    images = image_loader(config, data, "val")
    method = choosing_method(config)
    kept = KeptActivations(method, len(images.sampler))  # type: ignore[arg-type]
    kept.usable = kept.usable and config.feature_cache != "off"

    def validate(model: Classifier) -> dict[str, float]:
        explained, loader = kept.source(model, images)
        extractor = new_extractor(config, explained, [method], [explaining_head(config)])
        evaluation = new_evaluation(config, data.splits["val"], extractor.variants, center=False)
        loss = 0.0
        for batch in new_scoremaps(config, extractor, loader, device, "validate"):
            evaluation.update(batch, load_ground_truth(evaluation.metadata, batch.indices))
            kept.add(model, extractor.activations[method], batch.labels, batch.indices, batch.logits)
            output = Output(batch.logits, batch.sigmoid_logits)
            loss += objective(output, torch.from_numpy(batch.labels)).item() * len(batch.labels)
        total, (sum_of_losses,) = evaluation.over_processes(), distributed.sum_numbers([loss])

        def figures() -> dict[str, float]:
            metrics = total.compute()
            (row,) = metrics["rows"]
            of_heads = {"loss": sum_of_losses / metrics["num_images"], "top1": metrics["classification"]["top1"]}
            return of_heads | ({criterion: row["localization"]} if "localization" in row else {})

        return distributed.from_main(figures)

    return validate, criterion


# --------------------------------------------------------------------------- infer, evaluate


def fit_methods(config: Any, data: WsolData, model: Classifier, run: RunFolder, device: torch.device) -> fitted.Kept:
    """Fit BroadCAM to the features of the training images, and keep what it gave in the run's folder."""
    loader = image_loader(config, data, "train")
    found = fit_broadcam(
        model,
        progress(loader, "fit broadcam"),
        device,
        levels=config.cam_levels,
        alpha=config.bls_alpha,
        step=config.bls_step,
    )
    if distributed.is_main():
        # Beside the run's own fit, those of further evaluations are in their folders.
        folder = run.output if config.eval_only and (run.path / fitted.FILE).exists() else run.path
        fitted.save(folder, found, fit_settings(config), model)
    log.info("broadcam: fitted to %s images and %d features", f"{len(data.splits['train']):,}", found.weight.shape[1])
    return fitted.Kept(found, fit_settings(config), fitted.trunk_of(model))


def new_extractor(config: Any, model: Classifier, methods: list[str], heads: list[str], **further: Any) -> CamExtractor:
    """What makes the maps of these methods and heads; further: other arguments of CamExtractor than the config's."""
    return CamExtractor(model, methods, heads=heads, **extractor_options(config) | further)


def new_scoremaps(
    config: Any, extractor: CamExtractor, loader: DataLoader, device: torch.device, title: str, **more: bool
) -> Iterator[ScoreMaps]:
    """The score maps of a loader's images, batch by batch."""
    return compute_scoremaps(
        extractor,
        loader,
        device,
        target=config.cam_target,
        normalization=config.normalization,
        quantile=config.normalization_quantile,
        title=title,
        **more,
    )


def new_evaluation(config: Any, metadata: SplitMetadata, rows: Sequence[Variant], **more: Any) -> Evaluation:
    """The metrics of a split."""
    return Evaluation(
        metadata,
        rows,
        interval=config.cam_curve_interval,
        iou_thresholds=config.iou_threshold_list,
        loc_threshold=config.loc_threshold,
        gt_boxes=config.gt_boxes,
        judged_by=(config.multi_contour_eval, config.multi_iou_eval),
        **more,
    )


class Measured(NamedTuple):
    """results: the content of results.json. evaluation: of the test split. images: what happened to each image."""

    results: dict[str, Any]
    evaluation: Evaluation
    images: PerImage


def measure(
    config: Any,
    data: WsolData,
    model: Classifier,
    class_names: list[str],
    branch: dict[str, Any] | None,
    sources: dict[str, Any],
    run: RunFolder,
    device: torch.device,
    kept: fitted.Kept | None = None,
) -> Measured | None:
    """Maps and metrics of the test split, and before it of the val split, whose best thresholds are used on test.

    None on processes other than the main one, which has their share of the images.

    Args:
        branch: how the sigmoid branch was trained, for results.json; None if there is none or it is not known.
        sources: what the result comes from, for results.json.
        kept: what the fit of a method gave.
    """
    start = time.perf_counter()
    test, meter = data.splits["test"], Meter()
    choice, refinement = None, {"refine": config.refine}
    if config.affinity_choice == "val" and AFFINITY in config.refine:
        choice = choose_affinity(config, data, model, device)
        if choice["setting"] is None:
            log.info("no refinement localizes better on val than the maps as they are: refined rows are left out")
            refinement = {"refine": ["none"]}
        else:
            refinement["affinity"] = Affinity.from_record(choice["setting"])
    extractor = new_extractor(
        config,
        model,
        config.methods,
        config.heads,
        meter=meter,
        refined_methods=config.refined_methods,
        fitted={} if kept is None else {fitted.NAME: kept.fitted.weight.to(device)},
        **refinement,
        **view_options(config),
    )
    val = None
    if "val" in data.splits:
        val = new_evaluation(config, data.splits["val"], extractor.variants, center=False)
        evaluate(config, data, val, extractor, run, device)
        val = val.over_processes()
    keep = [round(i * (len(test) - 1) / max(FIGURE_IMAGES - 1, 1)) for i in range(FIGURE_IMAGES)]
    evaluation = new_evaluation(config, test, extractor.variants, keep=keep, record=True)
    fidelity = None
    if config.fidelity:
        heads = list(model.heads())
        fidelity = FidelityEvaluation(
            extractor.variants, config.fidelity, heads, batch=config.batch_size, seed=config.seed
        )
    evaluate(config, data, evaluation, extractor, run, device, fidelity)
    evaluation = evaluation.over_processes()
    if fidelity is not None:
        fidelity = fidelity.over_processes()
    if not distributed.is_main():
        return None

    computing = time.perf_counter()
    metrics = evaluation.compute(val)
    metrics["rows"] = [
        {
            **variant.record,
            "normalization": config.normalization,
            **row,
            **({} if fidelity is None else {"fidelity": fidelity.rows[variant].compute()}),
        }
        for variant, row in zip(extractor.variants, metrics["rows"], strict=True)
    ]
    images = evaluation.per_image(data.name, metrics)
    intervals = add_intervals(metrics, images, config.bootstrap, config.seed)
    for row in metrics["rows"]:
        if row["head"] != NO_HEAD:
            row["cam_target"] = config.cam_target
    report.warn(metrics)
    seconds = {} if fidelity is None else {"fidelity": fidelity.seconds}
    in_val = val.seconds if val is not None else 0.0
    seconds["evaluation"] = evaluation.seconds + in_val + time.perf_counter() - computing
    seconds = {"inference": time.perf_counter() - start - sum(seconds.values())} | seconds
    if not config.eval_only:
        seconds = {"train": run.seconds_trained()} | seconds
    results = {
        "schema": SCHEMA,
        "dataset": data.name,
        "split": "test",
        "num_images": metrics["num_images"],
        **({"num_skipped": data.skipped["test"]} if "test" in data.skipped else {}),
        "num_classes": len(class_names),
        "architecture": config.architecture,
        "seed": config.seed,
        "config": saved_settings(config),
        **({} if branch is None else {"branch": branch}),
        "weights": checksum(model.published_state_dict()),
        **sources,
        "versions": versions(),
        "localization": headline(test.boxes is not None, config.multi_contour_eval, config.multi_iou_eval),
        "contours": {key: mode for key, mode in CONTOURS.items() if any(key in row for row in metrics["rows"])},
        "intervals": intervals,
        **({} if choice is None else {"affinity": choice}),
        **({"affinity_layer": layer} if (layer := extractor.guiding_layers.get(AFFINITY)) else {}),
        **{key: metrics[key] for key in ("classification", "sigmoid_classification") if key in metrics},
        "rows": metrics["rows"],
        "center": metrics["center"],
        "cost": meter.summary(),
        "seconds": {key: round(value, 2) for key, value in seconds.items()},
    }
    return Measured(results, evaluation, images)


def evaluate(
    config: Any,
    data: WsolData,
    evaluation: Evaluation,
    extractor: CamExtractor,
    run: RunFolder,
    device: torch.device,
    fidelity: FidelityEvaluation | None = None,
) -> None:
    """Make the maps of a split, measure them and, if requested, save them."""
    metadata = evaluation.metadata
    names = scoremap_names(metadata.image_ids)
    loader = image_loader(config, data, metadata.split)
    title = f"maps of {metadata.split}"
    for batch in new_scoremaps(config, extractor, loader, device, title, explain_predictions=fidelity is not None):
        start = time.perf_counter()
        truth = load_ground_truth(metadata, batch.indices)
        evaluation.seconds += time.perf_counter() - start
        evaluation.update(batch, truth)
        if fidelity is not None and batch.prediction is not None:
            fidelity.update(extractor.model, batch.prediction, batch.indices, truth)
        if config.save_scoremaps:
            save_scoremaps(batch, names, run.output / "scoremaps" / metadata.split)


def run_from_shell() -> int:
    """main() with the exit codes of a command."""
    return command.run(main)


if __name__ == "__main__":
    sys.exit(run_from_shell())
