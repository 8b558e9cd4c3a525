"""What a run keeps of every epoch: a line in the log and in metrics.jsonl, and the checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch

from wsol import distributed
from wsol.checksum import sealed
from wsol.classifier import Classifier
from wsol.log import log
from wsol.run import checkpoint, command
from wsol.run.folder import RunFolder
from wsol.run.loggers import Logger
from wsol.run.provenance import TrainingRecord
from wsol.training import Epoch

Validate = Callable[[Classifier], dict[str, float]]


class EpochLog:
    """Where the figures of a stage's epochs go: one line each in the log and in metrics.jsonl, and to the loggers.

    Args:
        stage: the name of the stage there.
    """

    def __init__(self, run: RunFolder, loggers: Logger, stage: str):
        self.run, self.loggers, self.stage = run, loggers, stage

    def train(self, epoch: Epoch) -> None:
        """Note the training figures of an epoch."""
        self.note(epoch.number, "train", epoch.figures | {"lr": epoch.lr, "seconds": epoch.seconds})

    def val(self, epoch: Epoch, model: Classifier, validate: Validate) -> dict[str, float]:
        """Measure the val split after an epoch, note its figures, and return them."""
        start = time.perf_counter()
        figures = validate(model)
        self.note(epoch.number, "val", figures | {"lr": epoch.lr, "seconds": time.perf_counter() - start})
        return figures

    def note(self, epoch: int, split: str, figures: dict[str, float]) -> None:
        """Note figures of a split after an epoch."""
        rounded = {key: float(f"{value:.6g}") for key, value in figures.items()}
        self.run.append_metrics(stage=self.stage, epoch=epoch, split=split, **rounded)
        self.loggers.log_metrics(
            {f"{self.stage}/{split}/{key}": value for key, value in figures.items()} | {f"{self.stage}/epoch": epoch}
        )
        described = "  ".join(f"{key} {value:.4g}" for key, value in rounded.items())
        log.info("%s epoch %2d %-5s  %s", self.stage, epoch, split, described)


class SaveWithin:
    """A Pause that saves the middle of an epoch: every so often, and when a signal has come, which then ends the run.

    Args:
        save: writes the checkpoint of a state within the epoch.
        began: when the epoch began, by time.perf_counter.
        minutes: between two saves; 0: only at signals.
    """

    def __init__(self, save: Callable[..., None], began: float, minutes: float):
        self.save, self.began, self.minutes = save, began, minutes
        self._saved = time.perf_counter()
        self._stop = False
        self._patience: AbstractContextManager[None] | None = None

    def __enter__(self) -> SaveWithin:
        self._patience = command.finishing()
        self._patience.__enter__()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        assert self._patience is not None
        return self._patience.__exit__(*error)

    def is_due(self) -> bool:
        """Whether a signal has come, or it is time, on any process: they all stop behind the same step."""
        late = self.minutes and time.perf_counter() - self._saved > 60 * self.minutes
        self._stop, due = distributed.any_process(command.stop_requested(), bool(late))
        return self._stop or due

    def keep(self, within: dict[str, Any], optimizer: torch.optim.Optimizer, precision: dict[str, Any]) -> None:
        """Save, and end the run if a signal asks for it."""
        self.save(within | {"seconds": time.perf_counter() - self.began}, optimizer, precision)
        self._saved = time.perf_counter()
        if self._stop:
            distributed.barrier()  # until the main process has saved: the first to end takes the others with it
            command.stop()


class History:
    """Records the epochs of one stage of training.

    Args:
        stage: the name of the stage in the log, metrics.jsonl and checkpoints.
        settings: what rebuilds the model and where it comes from, copied into every checkpoint.
        record: of the epochs trained so far and their settings, prolonged with each epoch.
        prefix: prefix of the checkpoints' names ("vanilla_" for that stage of a b2 run).
        save_every: keep the checkpoint of every N-th epoch; 0: of none.
        save_minutes: also save within an epoch after so many minutes; 0: only when a signal ends the run.
        resumed: the checkpoint that the stage continues from.
        validate: returns the figures of the val split.
        criterion: the validation figure whose highest value makes a checkpoint `best`; None (no val split): the lowest
            training loss.
        validate_after: whether an epoch, by its number, is validated. One that is not cannot become `best`.
    """

    def __init__(
        self,
        run: RunFolder,
        loggers: Logger,
        stage: str,
        settings: dict[str, Any],
        record: TrainingRecord,
        prefix: str = "",
        save_every: int = 0,
        resumed: dict[str, Any] | None = None,
        *,
        validate: Validate | None = None,
        criterion: str | None = None,
        validate_after: Callable[[int], bool] = lambda _epoch: True,
        save_minutes: float = 0,
    ):
        self.run, self.stage, self.settings, self.record = run, stage, settings, record
        self.epoch_log = EpochLog(run, loggers, stage)
        self.prefix, self.save_every, self.validate, self.criterion = prefix, save_every, validate, criterion
        self.validate_after, self.save_minutes = validate_after, save_minutes
        self.best: float | None = resumed["best"] if resumed else None

    def follow(self, epochs: Iterable[Epoch], model: Classifier) -> None:
        """Record each epoch as it is trained (`Trainer.fit`)."""
        for epoch in epochs:
            self._record(epoch, model)

    def save_untrained(self, model: Classifier) -> None:
        """Keep the starting point of a run of 0 epochs, so that it can be evaluated later."""
        if distributed.is_main():
            self._save("last", self._content(0, model, None))

    def pause(self, model: Classifier, number: int, began: float) -> SaveWithin:
        """What saves in the middle of an epoch, by its number and when it began; `last` then continues there."""

        def save(within: dict[str, Any], optimizer: torch.optim.Optimizer, precision: dict[str, Any]) -> None:
            if distributed.is_main():
                self._save("last", self._content(number - 1, model, optimizer, precision, within))
            log.info("%s epoch %2d: saved after %d images", self.stage, number, within["num_images"])

        return SaveWithin(save, began, self.save_minutes)

    def _record(self, epoch: Epoch, model: Classifier) -> None:
        self.epoch_log.train(epoch)
        score = -epoch.figures["loss"]
        validated = self.validate is None or self.validate_after(epoch.number)
        if self.validate is not None and validated:
            val = self.epoch_log.val(epoch, model, self.validate)
            if self.criterion is not None:
                score = val.get(self.criterion, score)  # a val split without foreground has no such figure
        is_best = validated and (self.best is None or score > self.best)
        self.best = score if is_best else self.best
        if not distributed.is_main():
            return
        content = self._content(epoch.number, model, epoch.optimizer, epoch.precision)
        if self.save_every and epoch.number % self.save_every == 0:
            self._save(str(epoch.number), content)
        if is_best and not self.prefix:
            self._save("best", content)
        self._save("last", content)  # at the end: a run killed before this line repeats the epoch

    def _save(self, name: str, content: dict[str, Any]) -> None:
        checkpoint.save(self.run.path / f"{self.prefix}{name}{checkpoint.SUFFIX}", content)

    def _content(
        self,
        epoch: int,
        model: Classifier,
        optimizer: torch.optim.Optimizer | None,
        precision: dict[str, Any] | None = None,
        within: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A checkpoint's content, on the CPU."""
        return sealed(
            self.settings
            | {
                "stage": self.stage,
                "epoch": epoch,
                "best": self.best,
                "training": self.record.after(self.stage, epoch),
                "state_dict": _on_cpu(model.published_state_dict()),
                "optimizer": None if optimizer is None else _on_cpu(optimizer.state_dict()),
                **({"precision": precision} if precision else {}),
                **({} if within is None else {"within": _on_cpu(within)}),
            }
        )


def _on_cpu(value: Any) -> Any:
    """Nested dicts and lists with every tensor on the CPU, so that a checkpoint loads on any machine."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value
