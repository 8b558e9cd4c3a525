"""Training: the references' optimizer and schedule, one epoch, and features that are computed once."""

from __future__ import annotations

import math
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from wsol import distributed
from wsol.cam.regions import Regions
from wsol.classifier import Classifier, Output, eval_mode
from wsol.device import to_device
from wsol.errors import InputError
from wsol.features import FeatureCache, Features, cache_features, ends_with_head
from wsol.log import log, progress
from wsol.losses import Objective
from wsol.methods.base import TrainingMethod
from wsol.precision import Precision

PLAIN = TrainingMethod()
FLOAT32 = Precision()


class Pause(AbstractContextManager["Pause"], Protocol):
    """What may happen between two steps, inside the block of an epoch: keeping where it is, and ending there."""

    def is_due(self) -> bool:
        """Whether to keep it now; the same on every process."""
        ...

    def keep(self, within: dict[str, Any], optimizer: torch.optim.Optimizer, precision: dict[str, Any]) -> None:
        """Keep what the epoch goes on from: sums and generators, optimizer, precision; may raise, to end it.

        Every process calls it; `within` is whole on the main one.
        """
        ...


def random_states() -> dict[str, Any]:
    """The states of the global generators, as tensors and numbers."""
    kind, keys, *numbers = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *map(float, numbers)],
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Go on with the generators of `random_states`; an InputError if these are not such states."""
    try:
        torch.set_rng_state(states["torch"].cpu())
        if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
        kind, keys, position, has_gauss, gauss = states["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), int(position), int(has_gauss), gauss))
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"the checkpoint's field 'within' has no generator's state ({error}); start from its weights with --ft_ckpt"
        ) from None


def seed_everything(*entropy: int) -> None:
    """Seed the global generators of torch and NumPy from a tuple of integers such as (seed, stage, epoch)."""
    state = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    np.random.seed(state)
    torch.manual_seed(state)


def decay(epoch: int, frequency: int) -> float:
    """The factor of the learning rate in an epoch (from 1): 0.1 from epoch N on, 0.01 from epoch 2N on, ...

    So there are N - 1 epochs at the first rate, as in wsolevaluation.
    """
    return 0.1 ** (epoch // frequency)


def make_optimizer(
    model: Classifier, *, lr: float, classifier_ratio: float, momentum: float, weight_decay: float
) -> torch.optim.SGD:
    """SGD with Nesterov momentum over the trainable parameters.

    Args:
        lr: learning rate of the trunk.
        classifier_ratio: learning-rate multiplier of the parameters that `model.fast` matches, or else of the heads.

    Raises:
        InputError: no parameter is trainable.
    """
    names = model.published_parameters()
    if model.fast is None:
        fast = {p for head in model.heads().values() for p in head.parameters()}
    else:
        fast = {p for name, p in names.items() if re.match(model.fast, name)}
    trainable = [p for p in names.values() if p.requires_grad]
    if not trainable:
        raise InputError("nothing is left to train, because everything is frozen; see --unfreeze_layer")
    # `initial_lr` is what LambdaLR multiplies.
    groups = [
        {"params": [p for p in trainable if p not in fast], "lr": lr, "initial_lr": lr},
        {
            "params": [p for p in trainable if p in fast],
            "lr": lr * classifier_ratio,
            "initial_lr": lr * classifier_ratio,
        },
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        nesterov=momentum > 0,
    )


def train_one_epoch(
    step: Callable[..., tuple[Output, Tensor]],
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    title: str = "",
    after_step: Sequence[Callable[[], None]] = (),
    precision: Precision = FLOAT32,
    pause: Pause | None = None,
    within: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """One pass over a loader of (inputs, labels, indices); there may be several inputs.

    Of several processes, each has its share of every batch, which its loader's BatchShares says; the figures are those
    of all images.

    Args:
        step: (*inputs, labels) → the output of the network or of its heads, and the loss. With several processes it
            gives gradients that are means over them (`distributed.together`).
        title: of the progress bar, and for error messages.
        after_step: called after each optimizer step.
        precision: that the step computes in.
        pause: what to do between steps.
        within: the state that a pause kept of this epoch, to go on from; the loader begins behind the images that it
            counts.

    Returns:
        loss: mean over images. top1: accuracy of the softmax head in percent, measured while it trains.

    Raises:
        InputError: the loss or a weight is no longer finite.
    """
    done = {"loss_sum": 0.0, "num_correct": 0, "num_images": 0} | dict(within or {})
    before = done if distributed.is_main() else {"loss_sum": 0.0, "num_correct": 0}  # what is summed over processes
    loss_sum = torch.tensor(before["loss_sum"], dtype=torch.float64, device=device)
    num_correct = torch.tensor(before["num_correct"], dtype=torch.int64, device=device)
    num_images = done["num_images"]
    in_step = False

    def sums() -> dict[str, float]:
        loss, correct = distributed.sum_numbers([loss_sum.item(), num_correct.item()])
        return {"loss_sum": loss, "num_correct": int(correct), "num_images": num_images}

    def keep_if_due() -> None:
        if pause is not None and pause.is_due():
            states = distributed.gather(random_states())
            others = {"of_others": states[1:]} if len(states) > 1 else {}
            pause.keep(sums() | states[0] | others, optimizer, precision.state)

    shares = loader.batch_sampler
    counts = shares.counts() if isinstance(shares, distributed.BatchShares) else repeat(None)
    with pause or nullcontext():
        try:
            for (*inputs, labels, _), count in zip(progress(loader, title), counts):  # noqa: B905  # one is endless
                in_step = True
                labels = labels.to(device)
                mine, of_all = count or (len(labels), len(labels))
                with precision.autocast():
                    output, loss = step(*(to_device(part, device) for part in inputs), labels)
                # The mean over processes of what each image adds is then the mean over images.
                precision.step(loss * (mine * distributed.world_size() / of_all), optimizer)
                for call in after_step:
                    call()
                if mine:
                    # Sums stay on the device: reading them at every step would make a GPU wait.
                    loss_sum += loss.detach() * mine
                    num_correct += (output.logits.detach().argmax(dim=1) == labels).sum()
                num_images += of_all
                in_step = False
                keep_if_due()
        except RuntimeError:
            # A signal to the whole process group has ended the data loading processes, too; with several processes
            # they leave signals to their parents, which have to agree.
            if not in_step and distributed.world_size() == 1:
                keep_if_due()
            raise
    figures = sums()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    if not math.isfinite(figures["loss_sum"]) or not all(torch.isfinite(p).all() for p in trained):
        raise InputError(
            f"the loss or the weights are no longer finite ({title}); try a smaller --lr "
            "(--vanilla_lr in the vanilla stage of b2)"
        )
    return {"loss": figures["loss_sum"] / num_images, "top1": 100 * figures["num_correct"] / num_images}


def features_can_be_cached(model: Classifier, dataset: Any, views: int = 0) -> bool:
    """Whether the head's inputs need not be computed in every epoch.

    Trunk and neck are frozen, and images are not augmented, or in a fixed number of views.
    """
    return model.trunk_is_frozen and (getattr(dataset, "augment", None) == "none" or views > 0)


class Epoch(NamedTuple):
    """A finished epoch.

    Its number from 1, what `train_one_epoch` returned, the trunk's learning rate, its seconds, and what training goes
    on with: the optimizer, and the state of the precision.
    """

    number: int
    figures: dict[str, float]
    lr: float
    seconds: float
    optimizer: torch.optim.Optimizer
    precision: dict[str, Any]


class Trainer:
    """Trains one model after another, stage by stage, on the same images.

    Args:
        loader: yields (images, labels, indices), shuffled.
        seed: every epoch is seeded by (seed, stage, epoch), so that a resumed run draws what an undisturbed one draws.
        set_epoch: tells the loader the moment, (stage as a number, epoch), that its random draws depend on, and how
            many images of it to leave out, which are trained already.
        decay_frequency: see `decay`.
        precision: that steps compute in.
        features: how features are kept where the trunk is frozen.
        compile: run the network through torch.compile in the steps that run it.
        profile: called with each step of the first epoch that is trained, see `profiled`.
        optimizer_settings: see `make_optimizer`.
    """

    def __init__(
        self,
        loader: DataLoader,
        device: torch.device,
        *,
        seed: int,
        set_epoch: Callable[[DataLoader, tuple[int, int], int], None],
        decay_frequency: int,
        precision: Precision = FLOAT32,
        features: FeatureCache | None = None,
        compile: bool = False,
        profile: AbstractContextManager[Callable[[], None]] | None = None,
        **optimizer_settings: float,
    ):
        self.loader, self.device, self.seed, self.set_epoch = loader, device, seed, set_epoch
        self.decay_frequency, self.optimizer_settings = decay_frequency, optimizer_settings
        self.precision, self.compile, self.profile = precision, compile, profile
        self.cache = features or FeatureCache()
        # Shared by all stages that leave trunk and neck unchanged.
        self._features: Features | None = None
        self._features_tried = self._features_have_regions = False
        self._seconds_before = 0.0  # spent in `caches_features`; they count for the epoch that follows

    def fit(
        self,
        model: Classifier,
        objective: Objective,
        stage: str,
        *,
        epochs: int,
        lr: float,
        resumed: dict[str, Any] | None = None,
        after_step: Callable[[], None] | None = None,
        regions: Regions | None = None,
        method: TrainingMethod = PLAIN,
        pause: Callable[[int, float], Pause] | None = None,
    ) -> Iterator[Epoch]:
        """Train up to epoch `epochs`, yielding after each epoch.

        Args:
            stage: the name that seeds depend on and that progress bars show.
            lr: the trunk's learning rate in the first epochs.
            resumed: the checkpoint to continue from ("epoch", "optimizer", and "within" if it was kept in the middle of
                the next epoch); its epochs count.
            after_step: called after each optimizer step, for example to project the weights.
            regions: gives the output its `regions`, the branch's logits of object and background. For a model with
                frozen trunk.
            method: what it does to images, labels and losses, see wsol/methods/base.py.
            pause: makes what happens between the steps of an epoch, from its number and when it began.
        """
        model.to(self.device)
        done = 0 if resumed is None else resumed["epoch"]
        if done >= epochs:
            return
        if not model.trunk_is_frozen and distributed.world_size() > 1:
            synchronize_batchnorm(model, self.device)
        optimizer = make_optimizer(model, lr=lr, **self.optimizer_settings)
        if resumed is not None and resumed["optimizer"] is not None:  # None: the checkpoint of a run of 0 epochs
            requested = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            load_optimizer(optimizer, resumed["optimizer"], resumed.get("path", "the checkpoint"))
            for group, settings in zip(optimizer.param_groups, requested, strict=True):
                group.update(settings)
            self.precision.load_state(resumed.get("precision", {}))
        # LambdaLR counts finished epochs.
        schedule = LambdaLR(optimizer, lambda done: decay(done + 1, self.decay_frequency), last_epoch=done - 1)
        start, self._seconds_before = time.perf_counter() - self._seconds_before, 0.0
        step, loader = self._steps(model, objective, regions, method)
        within = (resumed or {}).get("within")
        for number in range(done + 1, epochs + 1):
            moment = (zlib.crc32(stage.encode()), number)
            seed_process(self.seed, *moment)
            self.set_epoch(loader, moment, 0 if within is None else within["num_images"])
            model.train()
            if within is not None:
                go_on_drawing(within, self.seed, *moment)
                start -= within["seconds"]
            title = f"{stage} epoch {number}"
            with self.profile or nullcontext() as note_step:
                calls = [call for call in (after_step, note_step) if call is not None]
                pauses = None if pause is None else pause(number, start)
                figures = train_one_epoch(
                    step, loader, optimizer, self.device, title, calls, self.precision, pauses, within
                )
            if not model.trunk_is_frozen:
                distributed.copy_from(0, model.buffers())  # BatchNorm's, where it is not synchronized
            within = None
            self.profile = None  # one epoch is enough
            rate, seconds = lr * decay(number, self.decay_frequency), time.perf_counter() - start
            yield Epoch(number, figures, rate, seconds, optimizer, self.precision.state)
            start = time.perf_counter()
            schedule.step()

    def caches_features(self, model: Classifier, regions: Regions | None = None) -> bool:
        """Whether training runs the heads on features that are computed once; computes them now if they are missing."""
        start = time.perf_counter()
        self._features_loader(model.to(self.device), regions)
        self._seconds_before += time.perf_counter() - start
        return self._features is not None

    def _steps(
        self, model: Classifier, objective: Objective, regions: Regions | None, method: TrainingMethod
    ) -> tuple[Callable[..., tuple[Output, Tensor]], DataLoader]:
        """What a step does with which batches: the heads with cached features if possible, else the method's step."""
        loader = self._features_loader(model, regions) if method.fixed_images else None
        if loader is None:
            compiled = torch.compile(model) if self.compile and can_compile(model, method) else model
            on_batch = partial(method.loss, model, on_images(model, regions, compiled), objective)
            return distributed.together(Step(model, on_batch), static=True), self.loader
        forward = on_features(model, regions is not None)

        def step(*inputs: Tensor) -> tuple[Output, Tensor]:
            output = forward(*inputs)
            return output, objective(output, inputs[-1])

        return distributed.together(Step(model, step), static=False), loader

    def _features_loader(self, model: Classifier, regions: Regions | None = None) -> DataLoader | None:
        """The loader of the features of all images, computed now if they are missing; None if they cannot be kept."""
        if not features_can_be_cached(model, self.loader.dataset, self.cache.views):
            # Features cached before this stage belong to a trunk or neck that it may change.
            self._features, self._features_tried = None, False
            return None
        if not self._features_tried or (regions is not None and not self._features_have_regions):
            features = cache_features(model, self.loader, self.device, regions, self.cache, self.precision)
            (missing,) = distributed.any_process(features is None)
            self._features = None if missing else features
            self._features_tried, self._features_have_regions = True, regions is not None
        if self._features is None:
            return None
        batches: Any = self.loader.batch_sampler
        return self._features.loader(batches.batch_size, batches.sampler)


class Step(nn.Module):
    """A step as a module: DistributedDataParallel wraps modules, and a training method runs parts of the network."""

    def __init__(self, model: Classifier, step: Callable[..., tuple[Output, Tensor]]):
        super().__init__()
        self.model, self.step = model, step

    def forward(self, *inputs: Tensor) -> tuple[Output, Tensor]:
        """(*inputs, labels) → output and loss; a loss of zero for a process that has no image of a batch."""
        if len(inputs[-1]):
            return self.step(*inputs)
        nothing = inputs[0].new_zeros(0, 1)
        return Output(nothing, None), sum_of_trained(self.model) * 0


def sum_of_trained(model: Classifier) -> Tensor:
    """The sum of all parameters that are trained; its gradient reaches each of them."""
    return torch.stack([p.sum() for p in model.parameters() if p.requires_grad]).sum()


def seed_process(*entropy: int) -> None:
    """`seed_everything`, for draws that must differ between processes."""
    seed_everything(*entropy, *([distributed.rank()] if distributed.rank() else []))


def go_on_drawing(within: Mapping[str, Any], *entropy: int) -> None:
    """Go on with the generators of this process that a pause kept, or new ones if it kept those of fewer."""
    of_processes = [within, *within.get("of_others", [])]
    if distributed.rank() < len(of_processes):
        set_random_states(of_processes[distributed.rank()])
    else:
        seed_process(*entropy, within["num_images"])


def synchronize_batchnorm(model: Classifier, device: torch.device) -> None:
    """Let BatchNorm take means over all processes, on GPUs; elsewhere say that it does not."""
    if not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.network.modules()):
        return
    if device.type == "cuda":
        distributed.synchronize_batchnorm(model.network)
    else:
        log.info("BatchNorm: on the CPU each process normalizes its own share of a batch; train with one, or on GPUs")


def can_compile(model: Classifier, method: TrainingMethod) -> bool:
    """Whether steps may run the network through torch.compile, which does not see hooks: those of a second head."""
    return method.compiles and len(model.heads()) == 1


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], path: str) -> None:
    """Load the state of SGD with momentum.

    Raises:
        InputError: it is not that of these parameters; path is for the message.
    """
    try:
        optimizer.load_state_dict(state)
        fits = all(
            buffer is None or (buffer.shape == parameter.shape and buffer.isfinite().all())
            for parameter, kept in optimizer.state.items()
            for buffer in [kept.get("momentum_buffer")]
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError):
        fits = False
    if not fits:
        raise InputError(
            f"{path}: the field 'optimizer' does not fit the parameters that are trained; start from its weights with "
            "--ft_ckpt"
        )


def on_features(model: Classifier, with_regions: bool) -> Callable[..., Output]:
    """A step's forward pass on cached features: (features, labels), or (features, pooled, labels), → Output."""

    def forward(features: Tensor, *pooled_and_labels: Tensor) -> Output:
        output = model.classify(features)
        return output._replace(regions=model.classify_regions(pooled_and_labels[0])) if with_regions else output

    return forward


def on_images(
    model: Classifier, regions: Regions | None = None, compiled: Callable[[Tensor], Output] | None = None
) -> Callable[[Tensor, Tensor], Output]:
    """A step's forward pass on images: (images, labels) → Output. With regions, the trunk runs without autograd.

    compiled: runs the model, faster.
    """
    heads_alone: bool | None = None
    run = model if compiled is None else compiled

    def forward(images: Tensor, labels: Tensor) -> Output:
        nonlocal heads_alone
        if regions is None:
            return run(images)
        head_input, pooled = regions(images, labels)
        if heads_alone is None:
            with torch.no_grad(), eval_mode(model):
                heads_alone = ends_with_head(model, images, head_input)
        output = model.classify(head_input) if heads_alone else model(images)
        return output._replace(regions=model.classify_regions(pooled))

    return forward
