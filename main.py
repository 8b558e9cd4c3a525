"""Train a network's branch, draw its class activation maps, measure how well they localize.

python main.py                              # the embedded example, a few minutes without a GPU
python main.py --help                       # every setting
python main.py --dataset_name CUB --architecture efficientnet_lite0 --methods cam,gradcam
python main.py --experiment_name run-1 --eval_only
"""

import contextlib
import sys
import tempfile
import time

import torch
import yaml

from config import UNFREEZE, adopt, continue_run, gpu_indices, parse_args, saved_settings, splits_needed
from data_loaders import ImageDataset, make_loader, set_epoch
from inference import compute_scoremaps, save_scoremaps
from wsol import build, dualize, training
from wsol.backbones import get_architecture
from wsol.cam import NO_HEAD, CamExtractor, Meter, variants
from wsol.classifier import Classifier, Output, randomize
from wsol.datasets.images import load_image
from wsol.datasets.load import WsolData, load_data
from wsol.datasets.masks import load_mask
from wsol.datasets.reader import SplitMetadata
from wsol.datasets.registry import dataset_info, will_be_generated
from wsol.device import select_device
from wsol.errors import InputError
from wsol.evaluation.fidelity import FidelityEvaluation
from wsol.evaluation.per_image import PerImage
from wsol.evaluation.saved_maps import scoremap_names
from wsol.evaluation.split import Evaluation
from wsol.log import log, log_to, start_log
from wsol.losses import OBJECTIVES, Objective
from wsol.metrics.box_metrics import CONTOURS
from wsol.metrics.measures import COST
from wsol.run import checkpoint, command, figures, report
from wsol.run.folder import RunFolder
from wsol.run.history import History
from wsol.run.restore import restore, settle_form, try_out
from wsol.run.wandb_logger import Wandb

FIGURE_IMAGES = 6


def main(argv: list[str] | None = None) -> dict | None:
    """Configure, build, train, infer, evaluate, report. Returns what results.json holds."""
    config, run, saved = configure(argv)
    device = select_device(gpu_indices(config.gpus))
    data = read_data(config, saved)
    model = build_model(config, data, saved).to(device, memory_format=torch.channels_last)
    describe(config, data, model)
    if config.dry_run:
        return None

    config.experiment_name = run.open(None if config.eval_only else saved_settings(config))
    log_to(run.path / "log.txt")
    log.info("run folder: %s", run.path)
    wandb = Wandb(
        config.wandb,
        project=config.project,
        name=config.wandb_name or config.experiment_name,
        folder=config.wandb_dir,
        run=run,
        config=saved_settings(config),
    )
    results = None
    if not config.eval_only:
        model = train(config, data, model, saved, run, device, wandb)
    if not config.train_only:
        results, evaluation, images = measure(config, data, model, run, device)
        images.write(run.path)
        report.write_csv(
            run,
            "per_class.csv",
            images.per_class(
                {name: row.get("tau", {}) for name, row in zip(images.rows, results["rows"], strict=True)},
                data.class_names,
            ),
        )
        report.write_results(run, results)
        log.info("\n%s", report.summary(results))
        wandb.log_results(results, draw(data, evaluation, results, run))
    wandb.close()
    log.info("everything is in %s", run.path)
    return results


# --------------------------------------------------------------------------- configure, read, build


def configure(argv: list[str] | None):
    """The settings, the run's folder as it will be, and the checkpoint to begin with; nothing is written yet."""
    config = parse_args(argv)
    start_log(config.debug)
    goes_on = config.resume or config.eval_only
    run = RunFolder(config.root, config.experiment_name, must_exist=goes_on, override=config.override_cache)
    if goes_on:
        own = run.saved_config()
        if config.resume and not own:
            raise InputError(f"{run.path} has no config.yaml, so it is no run to go on with; start one with --ft_ckpt")
        config = continue_run(config, own, f"{run.path}/config.yaml")
    saved = find_checkpoint(config, run)
    if saved is not None and saved.role == "eval":
        config = adopt(config, saved.build_settings)
    config.classifier_form = settle_form(config.architecture, config.classifier_form, config.methods, saved)
    return config, run, saved


def read_data(config, saved: checkpoint.Checkpoint | None) -> WsolData:
    """The metadata of the splits that this run needs."""
    to_be_made = will_be_generated(config.dataset_name, config.metadata_root)
    if to_be_made and not config.dry_run:
        build_network(config, saved, None)  # a network that cannot be had leaves no data set behind
    settings = dict(
        splits=splits_needed(config),
        seed=config.seed,
        proxy_training_set=config.proxy_training_set,
        num_val_sample_per_class=config.num_val_sample_per_class,
        skip_bad=config.skip_bad_images,
        workers=config.workers,
    )
    with contextlib.ExitStack() as stack:
        roots = config.data_root, config.metadata_root, config.mask_root
        if config.dry_run and to_be_made:
            roots = [stack.enter_context(tempfile.TemporaryDirectory())] * 3  # counted, and gone again
        return load_data(config.dataset_name, *roots, **settings)


def find_checkpoint(config, run: RunFolder) -> checkpoint.Checkpoint | None:
    """The checkpoint that this run evaluates, goes on from, or starts from; None: ImageNet weights, or none."""
    if config.eval_only:
        if config.ft_ckpt:
            log.info("--eval_only evaluates the run's own checkpoint; --ft_ckpt is not read")
        return checkpoint.Checkpoint("eval", checkpoint.path_of(run.path, config.eval_checkpoint_type))
    if config.resume:
        for prefix in ("", "vanilla_"):
            path = run.path / f"{prefix}last{checkpoint.SUFFIX}"
            if path.is_file():
                return checkpoint.Checkpoint("resume", path)
        log.info("%s holds no checkpoint yet; training starts from its beginning", run.path)
    return checkpoint.Checkpoint("start", config.ft_ckpt) if config.ft_ckpt else None


def build_model(config, data: WsolData, saved: checkpoint.Checkpoint | None) -> Classifier:
    """The network with the weights that this run begins with, and with its branch as soon as it has one."""
    training.seed_everything(config.seed)
    b2 = config.model_structure == "b2"
    if saved is not None and saved.role == "resume":
        saved.training_state  # raises where there is none
    imagenet = saved is None and dataset_info(config.dataset_name).imagenet
    model = build_network(config, saved, None if imagenet else data.num_classes)
    if saved is None:
        return model if model.head_is_new or not b2 else branch_out(config, model)
    if saved.role == "eval":
        data.class_names = saved.class_names(model.head_name, data.class_names)
        return restore(model, saved, dual=b2)
    if saved.role == "start":
        model.load_published(saved.tensors, saved.path, branch=False)
        return branch_out(config, model) if b2 else model
    if b2 and saved.content.get("stage") != "vanilla":
        model = dualize(model)
    model.load_published(saved.tensors, saved.path)
    return model


def build_network(config, saved: checkpoint.Checkpoint | None, num_classes: int | None) -> Classifier:
    """The network as the flags ask for it, tried out; None: with the classes that its ImageNet weights know."""
    model = build(
        config.architecture,
        num_classes,
        pretrained=config.pretrained and saved is None,
        pretrained_path=config.pretrained_path,
        classifier_form=config.classifier_form,
        last_layer=config.last_layer,
        large_feature_map=config.large_feature_map,
        image_size=config.crop_size,
    )
    try_out(model, config.methods, config.crop_size)
    return model


def branch_out(config, model: Classifier) -> Classifier:
    """Give a trained network its sigmoid branch (Dual-CAM)."""
    training.seed_everything(config.seed)
    dual = dualize(model)
    if config.sigmoid_init == "random":
        randomize(dual.sigmoid_head)
    return dual


def describe(config, data: WsolData, model: Classifier) -> None:
    """Log what is about to run: in full for --dry_run, in two lines otherwise."""
    if config.model_structure == "b2" and model.sigmoid_head is None:
        model = dualize(model)  # as it will be once the softmax head is trained
    model.set_trainable(UNFREEZE[config.unfreeze_layer])
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trainable
    if config.dry_run:
        log.info(yaml.safe_dump(saved_settings(config), sort_keys=False).rstrip())
    log.info(
        "data: %s, %d classes; images: %s",
        data.name,
        data.num_classes,
        ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items()),
    )
    log.info(
        "network: %s, %s; parameters: %s trainable, %s frozen",
        config.architecture,
        config.model_structure,
        f"{trainable:,}",
        f"{frozen:,}",
    )
    if config.fidelity and "test" in data.splits:
        passes, wanted = sum(COST[name] for name in config.fidelity), variants(config.methods, config.heads)
        images = len(data.splits["test"])
        log.info(
            "fidelity: %s forward passes (%d for each of %d rows and %s images)",
            f"{passes * len(wanted) * images:,}",
            passes,
            len(wanted),
            f"{images:,}",
        )


def image_loader(config, data: WsolData, split: str, train: bool = False):
    """A loader of one split; `train`: augmented and shuffled."""
    facts = get_architecture(config.architecture)
    dataset = ImageDataset(
        data.splits[split],
        crop_size=config.crop_size,
        mean=facts.mean,
        std=facts.std,
        augment=config.augment if train else "none",
        resize_size=config.resize_size,
        seed=config.seed,
    )
    return make_loader(dataset, config.batch_size, config.workers, config.seed if train else None)


# --------------------------------------------------------------------------- train


def train(
    config, data: WsolData, model: Classifier, saved: checkpoint.Checkpoint | None, run: RunFolder, device, wandb
) -> Classifier:
    """Train the softmax head first where classes are new and a branch is to follow it, then what was asked for."""
    resumed = saved.training_state if saved is not None and saved.role == "resume" else None
    if resumed is not None:
        log.info("resuming after epoch %d of stage %s", resumed["epoch"], resumed["stage"])
    # Epochs that no checkpoint holds are trained again; a checkpoint of b2 has its vanilla stage behind it.
    run.forget_metrics_after(
        {} if resumed is None else {"vanilla": config.vanilla_epochs} | {resumed["stage"]: resumed["epoch"]}
    )
    trainer = training.Trainer(
        image_loader(config, data, "train", train=True),
        device,
        seed=config.seed,
        set_epoch=set_epoch,
        decay_frequency=config.lr_decay_frequency,
        classifier_ratio=config.lr_classifier_ratio,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    facts = {
        "architecture": config.architecture,
        "model_structure": config.model_structure,
        "classifier_form": config.classifier_form,
        "last_layer": config.last_layer,
        "large_feature_map": config.large_feature_map,
        "num_classes": data.num_classes,
        "class_names": data.class_names,
        "dataset_name": data.name,
        "seed": config.seed,
    }

    if config.model_structure == "b2" and model.sigmoid_head is None:
        neck = f" and its new layers {', '.join(model.neck_names)}" if model.neck else ""
        log.info("the classes are new to the network: a linear probe trains its softmax head%s first", neck)
        model.set_trainable(["neck", "softmax_head"])
        objective = OBJECTIVES["vanilla"](config.c1, config.c2)
        history = History(
            run,
            wandb,
            "vanilla",
            facts | {"model_structure": "vanilla"},
            prefix="vanilla_",
            save_every=config.save_every,
            resumed=resumed,
        )
        trainer.fit(model, objective, history, epochs=config.vanilla_epochs, lr=config.vanilla_lr, resumed=resumed)
        model, resumed = branch_out(config, model), None

    model.set_trainable(UNFREEZE[config.unfreeze_layer])
    objective = OBJECTIVES[config.model_structure](config.c1, config.c2)
    validate, criterion = validation(config, data, objective, device)
    history = History(
        run, wandb, config.model_structure, facts, save_every=config.save_every, criterion=criterion, resumed=resumed
    )
    trainer.fit(model, objective, history, epochs=config.epochs, lr=config.lr, resumed=resumed, validate=validate)
    return model


def validation(config, data: WsolData, objective: Objective, device):
    """(model → figures of the val split, the figure that picks `best`); (None, None) without a val split.

    It reads the first CAM method on the head that learns to explain, whatever
    rows the table will have: in b2 the sigmoid branch with negative weights clamped.
    """
    if "val" not in data.splits:
        return None, None
    v2 = config.box_v2_metric and config.multi_contour_eval and config.multi_iou_eval
    boxes = data.splits["val"].boxes is not None
    criterion = "pxap" if not boxes else "maxboxacc_v2" if v2 else "maxboxacc_v1"
    head = "sigmoid_clamped" if config.model_structure == "b2" else "softmax"
    row = variants(config.methods[:1], [head])[0]
    loader = image_loader(config, data, "val")

    def validate(model: Classifier) -> dict[str, float]:
        evaluation = new_evaluation(config, data.splits["val"], [row], center=False)
        loss = 0.0
        for batch in compute_scoremaps(
            new_extractor(config, model, [row.method], [head]),
            loader,
            device,
            target=config.cam_target,
            normalization=config.normalization,
            quantile=config.normalization_quantile,
            title="validate",
        ):
            evaluation.update(batch)
            output = Output(batch.logits, batch.sigmoid_logits)
            loss += objective(output, torch.from_numpy(batch.labels)).item() * len(batch.labels)
        found = evaluation.compute()
        figures = {"loss": loss / found["num_images"], "top1": found["classification"]["top1"]}
        return figures | {key: value for key, value in found["rows"][0].items() if key == criterion}

    return validate, criterion


# --------------------------------------------------------------------------- infer, evaluate, report


def new_extractor(config, model: Classifier, methods, heads, meter: Meter | None = None) -> CamExtractor:
    return CamExtractor(
        model, methods, heads=heads, perturb_batch=config.perturb_batch, alpha=config.alpha, meter=meter
    )


def new_evaluation(config, metadata: SplitMetadata, wanted, **more) -> Evaluation:
    return Evaluation(
        metadata,
        wanted,
        interval=config.cam_curve_interval,
        iou_thresholds=config.iou_threshold_list,
        loc_threshold=config.loc_threshold,
        gt_boxes=config.gt_boxes,
        normalization=config.normalization,
        **more,
    )


def new_fidelity(config, metadata: SplitMetadata, model: Classifier) -> FidelityEvaluation | None:
    if not config.fidelity:
        return None
    return FidelityEvaluation(
        metadata,
        variants(config.methods, config.heads),
        config.fidelity,
        list(model.heads()),
        batch=config.batch_size,
        seed=config.seed,
    )


def measure(config, data: WsolData, model: Classifier, run: RunFolder, device) -> tuple[dict, Evaluation, PerImage]:
    """Maps and metrics of the test split; of the val split first, whose best thresholds are used on test."""
    start = time.perf_counter()
    test, meter = data.splits["test"], Meter()
    extractor = new_extractor(config, model, config.methods, config.heads, meter)
    val = evaluate_split(config, data, "val", extractor, run, device) if "val" in data.splits else None
    keep = [round(i * (len(test) - 1) / max(FIGURE_IMAGES - 1, 1)) for i in range(FIGURE_IMAGES)]
    evaluation = evaluate_split(
        config, data, "test", extractor, run, device, keep=keep, record=True, fidelity=new_fidelity(config, test, model)
    )
    computing = time.perf_counter()
    found = evaluation.compute(val)
    images = evaluation.per_image(data.name, found)
    bootstrap = add_intervals(found, images, config.bootstrap, config.seed) if config.bootstrap else {}
    seconds = {"fidelity": evaluation.fidelity.seconds} if evaluation.fidelity is not None else {}
    seconds["evaluation"] = (
        evaluation.seconds + (val.seconds if val is not None else 0.0) + time.perf_counter() - computing
    )
    seconds = {"inference": time.perf_counter() - start - sum(seconds.values())} | seconds
    if not config.eval_only:
        seconds = {"train": run.seconds_trained()} | seconds
    for row in found["rows"]:
        if row["head"] != NO_HEAD:
            row["cam_target"] = config.cam_target
    report.warn(found)
    results = {
        "schema": report.SCHEMA,
        "dataset": data.name,
        "split": "test",
        "num_images": found["num_images"],
        **({"num_skipped": data.skipped["test"]} if "test" in data.skipped else {}),
        "num_classes": data.num_classes,
        "architecture": config.architecture,
        "seed": config.seed,
        "config": saved_settings(config),
        "versions": report.versions(),
        "contours": {key: mode for key, mode in CONTOURS.items() if any(key in row for row in found["rows"])},
        **bootstrap,
        "classification": found["classification"],
        "rows": found["rows"],
        "center": found["center"],
        "cost": meter.summary(),
        "seconds": {key: round(value, 2) for key, value in seconds.items()},
    }
    return results, evaluation, images


def evaluate_split(
    config, data: WsolData, split: str, extractor: CamExtractor, run: RunFolder, device, **more
) -> Evaluation:
    """Make the maps of a split, measure them and, if asked for, save them."""
    evaluation = new_evaluation(config, data.splits[split], variants(config.methods, config.heads), **more)
    names = scoremap_names(data.splits[split].image_ids)
    for batch in compute_scoremaps(
        extractor,
        image_loader(config, data, split),
        device,
        target=config.cam_target,
        normalization=config.normalization,
        quantile=config.normalization_quantile,
        title=f"maps of {split}",
        on_prediction=None if evaluation.fidelity is None else evaluation.fidelity.update,
    ):
        evaluation.update(batch)
        if config.save_scoremaps:
            save_scoremaps(batch, names, run.path / "scoremaps" / split)
    return evaluation


def add_intervals(found: dict, images: PerImage, resamples: int, seed: int) -> dict:
    """Put `interval` into each row and the centre baseline; returns the block `bootstrap` of results.json."""
    bounds = images.intervals(resamples, seed)
    of_rows = zip(found["rows"], bounds["rows"].values(), strict=True)
    for block, of_block in [(found["center"], bounds["center"]), *of_rows]:
        if of_block:
            block["interval"] = of_block
    return {"bootstrap": {"resamples": resamples, "confidence": 95.0, "classification": bounds["classification"]}}


def draw(data: WsolData, evaluation: Evaluation, results: dict, run: RunFolder) -> list:
    """figures/: a grid of maps for each method, and box accuracy over the threshold."""
    test = data.splits["test"]
    examples = [
        figures.Example(
            image=load_image(test.image_path(i)),
            title=data.class_names[test.labels[i]],
            maps=maps,
            boxes=None if test.boxes is None else test.boxes[i],
            mask=None if test.masks is None else load_mask(test.mask_root, test.masks[i]),
        )
        for i, maps in evaluation.examples.items()
    ]
    taus = {
        row: entry.get("tau", {}).get("gt_loc_val", results["config"]["loc_threshold"])
        for row, entry in zip(evaluation.rows, results["rows"], strict=True)
    }
    paths = [
        figures.map_grid(
            run.figures / f"maps_{method}.png",
            method,
            examples,
            {row: tau for row, tau in taus.items() if row.method == method},
        )
        for method in dict.fromkeys(row.method for row in taus)
    ]
    if test.boxes is not None:
        curves = {row: measured.boxes.curve() for row, measured in evaluation.rows.items()}
        paths.append(figures.box_accuracy_curves(run.figures / "box_accuracy.png", curves))
    return paths


def run_from_shell() -> int:
    """main() with the exit codes of a command."""
    return command.run(main, "stopped; a run goes on with --resume and its folder's name as --experiment_name")


if __name__ == "__main__":
    sys.exit(run_from_shell())
