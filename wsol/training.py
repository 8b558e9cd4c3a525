"""Training: the optimizer and schedule of the references, one epoch, features computed once."""

import re
import time
import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from wsol.classifier import Classifier, Output, eval_mode
from wsol.device import to_device
from wsol.errors import InputError
from wsol.log import progress
from wsol.losses import Objective
from wsol.run.history import History

FEATURE_CACHE_BYTES = 2 * 1024**3


def seed_everything(*entropy: int) -> None:
    """Seed torch's and NumPy's global generators from a tuple of whole numbers, such as (seed, stage, epoch)."""
    state = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    np.random.seed(state)
    torch.manual_seed(state)


def learning_rate(base: float, epoch: int, decay_frequency: int) -> float:
    """x 0.1 at the start of epochs N, 2N, ... counted from 1: N - 1 epochs at the first rate (wsolevaluation)."""
    return base * 0.1 ** (epoch // decay_frequency)


def make_optimizer(
    model: Classifier, *, lr: float, classifier_ratio: float, momentum: float, weight_decay: float
) -> torch.optim.SGD:
    """SGD with Nesterov momentum over what may learn; `model.fast`, or else the heads, `classifier_ratio` times as fast.

    Each group keeps its `ratio`, so that a schedule can set its rate from the base rate.
    """
    names = model.published_parameters()
    if model.fast is None:
        fast = {p for head in model.heads().values() for p in head.parameters()}
    else:
        fast = {p for name, p in names.items() if re.match(model.fast, name)}
    learning = [p for p in names.values() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p not in fast], "lr": lr, "ratio": 1.0},
        {"params": [p for p in learning if p in fast], "lr": lr * classifier_ratio, "ratio": classifier_ratio},
    ]
    if not learning:
        raise InputError("nothing is left to train: everything is frozen; see --unfreeze_layer")
    return torch.optim.SGD(
        [g for g in groups if g["params"]], lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0
    )


def train_one_epoch(
    forward: Callable[[Tensor], Output],
    loader: DataLoader,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    title: str = "",
) -> dict[str, float]:
    """One pass over a loader of (inputs, labels, indices).

    Returns:
        loss (mean over images) and top1 (percent, of the softmax head while it learns).

    Raises:
        InputError: the loss is no longer a finite number.
    """
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    images = 0
    for inputs, labels, _ in progress(loader, title):
        inputs, labels = to_device(inputs, device), labels.to(device)
        output = forward(inputs)
        loss = objective(output, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # Sums stay on the device: reading them at every step would make a GPU wait.
        loss_sum += loss.detach() * len(labels)
        correct += (output.logits.detach().argmax(dim=1) == labels).sum()
        images += len(labels)
    learnt = [p for group in optimizer.param_groups for p in group["params"]]
    if not torch.isfinite(loss_sum) or not all(torch.isfinite(p).all() for p in learnt):
        raise InputError(
            f"the loss or the weights are no longer finite ({title}); try a smaller --lr "
            "(--vanilla_lr in the vanilla stage of b2)"
        )
    return {"loss": loss_sum.item() / images, "top1": 100 * correct.item() / images}


def features_can_be_cached(model: Classifier, dataset) -> bool:
    """Do the head's inputs stay the same from epoch to epoch? A frozen trunk and neck, and images without augmentation."""
    return model.trunk_is_frozen and getattr(dataset, "augment", None) == "none"


@torch.no_grad()
def cache_features(model: Classifier, loader: DataLoader, device: torch.device) -> TensorDataset | None:
    """The head's input for every image of a loader in dataset order, as (features, label, index).

    None where the logits are not simply the head's output (something follows the
    head), or the features would take more than FEATURE_CACHE_BYTES of memory.
    """
    features, labels = [], []
    with eval_mode(model):
        for images, batch_labels, _ in progress(loader, "features"):
            images = to_device(images, device)
            batch = model.head_input(images)
            if not features:
                size = batch[0].numel() * batch.element_size() * len(loader.dataset)
                if size > FEATURE_CACHE_BYTES or not torch.equal(model.classify(batch).logits, model(images).logits):
                    return None
            features.append(batch.cpu())
            labels.append(batch_labels)
    return TensorDataset(torch.cat(features), torch.cat(labels), torch.arange(len(loader.dataset)))


class Trainer:
    """Trains one model after another, stage by stage, on the same images.

    Args:
        loader: gives (images, labels, indices), shuffled.
        seed: every epoch is seeded by (seed, stage, epoch), so a run that goes on
            from a checkpoint draws what an undisturbed one draws.
        set_epoch: tells the loader the moment, (stage as a number, epoch), that its draws depend on.
        decay_frequency: see learning_rate; the others: see make_optimizer.
    """

    def __init__(
        self,
        loader: DataLoader,
        device: torch.device,
        *,
        seed: int,
        set_epoch: Callable[[DataLoader, tuple[int, int]], None],
        decay_frequency: int,
        **optimizer_settings,
    ):
        self.loader, self.device, self.seed, self.set_epoch = loader, device, seed, set_epoch
        self.decay_frequency, self.optimizer_settings = decay_frequency, optimizer_settings
        self._features: TensorDataset | None = None  # for all stages that leave trunk and neck as they are
        self._features_tried = False

    def fit(
        self,
        model: Classifier,
        objective: Objective,
        history: History,
        *,
        epochs: int,
        lr: float,
        resumed: dict | None = None,
        validate: Callable[[Classifier], dict] | None = None,
    ) -> None:
        """Train for `epochs` epochs (those of `resumed` counted in) and let `history` keep each.

        validate(model) gives the figures of the val split.
        """
        model.to(self.device)
        start = 0
        if resumed is not None:
            start = resumed["epoch"]
        elif not epochs:  # nothing to train, but something to evaluate later
            history.save_untrained(model)
        if start >= epochs:
            return
        optimizer = make_optimizer(model, lr=lr, **self.optimizer_settings)
        if resumed is not None and resumed["optimizer"] is not None:  # None: the checkpoint of a run of 0 epochs
            asked_for = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            optimizer.load_state_dict(resumed["optimizer"])
            for group, settings in zip(optimizer.param_groups, asked_for, strict=True):
                group.update(settings)
        began = time.perf_counter()
        forward, loader = self._inputs(model)
        for epoch in range(start + 1, epochs + 1):
            rate = learning_rate(lr, epoch, self.decay_frequency)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["ratio"]
            moment = (zlib.crc32(history.stage.encode()), epoch)
            seed_everything(self.seed, *moment)
            self.set_epoch(loader, moment)
            model.train()
            figures = train_one_epoch(
                forward, loader, objective, optimizer, self.device, f"{history.stage} epoch {epoch}"
            )
            history.record(epoch, figures, model, optimizer, validate, lr=rate, seconds=time.perf_counter() - began)
            began = time.perf_counter()

    def _inputs(self, model: Classifier) -> tuple[Callable[[Tensor], Output], DataLoader]:
        """What to run on which batches: the heads on cached features where that changes nothing, or all on images."""
        if not features_can_be_cached(model, self.loader.dataset):
            # What was cached before this stage is of a trunk or neck that it may change.
            self._features, self._features_tried = None, False
            return model, self.loader
        if not self._features_tried:
            in_order = DataLoader(self.loader.dataset, self.loader.batch_size, num_workers=self.loader.num_workers)
            self._features, self._features_tried = cache_features(model, in_order, self.device), True
        if self._features is None:
            return model, self.loader
        return model.classify, DataLoader(self._features, self.loader.batch_size, sampler=self.loader.sampler)
