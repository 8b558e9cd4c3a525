"""What is kept of every epoch: a line in the log and in metrics.jsonl, and the checkpoints."""

import time
from collections.abc import Callable
from typing import Any

import torch

from wsol.classifier import Classifier
from wsol.log import log
from wsol.run import checkpoint
from wsol.run.folder import RunFolder
from wsol.run.wandb_logger import Wandb


class History:
    """Records the epochs of one stage of training.

    Args:
        facts: what rebuilds the model, copied into every checkpoint.
        prefix: of the checkpoints' names ("vanilla_" for that stage of a b2 run).
        save_every: keep the checkpoint of every N-th epoch; 0: none.
        criterion: the validation figure whose highest value makes a checkpoint
            `best`; None (no val split): the lowest training loss does.
        resumed: the checkpoint that the stage goes on from.
    """

    def __init__(
        self,
        run: RunFolder,
        wandb: Wandb,
        stage: str,
        facts: dict[str, Any],
        *,
        prefix: str = "",
        save_every: int = 0,
        criterion: str | None = None,
        resumed: dict | None = None,
    ):
        self.run, self.wandb, self.stage, self.facts = run, wandb, stage, facts
        self.prefix, self.save_every, self.criterion = prefix, save_every, criterion
        self.best: float | None = resumed["best"] if resumed else None

    def record(
        self,
        epoch: int,
        figures: dict[str, float],
        model: Classifier,
        optimizer: torch.optim.Optimizer,
        validate: Callable[[Classifier], dict[str, float]] | None,
        *,
        lr: float,
        seconds: float,
    ) -> None:
        """Write down epoch (from 1), its training figures, what `validate(model)` says, and the checkpoints."""
        self._note(epoch, "train", figures | {"lr": lr, "seconds": seconds})
        score = -figures["loss"]
        if validate is not None:
            start = time.perf_counter()
            val = validate(model)
            self._note(epoch, "val", val | {"lr": lr, "seconds": time.perf_counter() - start})
            score = val.get(self.criterion, score)  # a val split may hold no foreground to measure
        is_best = self.best is None or score > self.best
        self.best = score if is_best else self.best
        content = self._content(epoch, model, optimizer)
        names = ["best"] * (is_best and not self.prefix) + ["last"]
        if self.save_every and epoch % self.save_every == 0:
            names.insert(0, str(epoch))
        for name in names:  # last comes last: a run killed in between does the epoch again
            checkpoint.save(self.run.path / f"{self.prefix}{name}{checkpoint.SUFFIX}", content)

    def save_untrained(self, model: Classifier) -> None:
        """A run of 0 epochs keeps its starting point, so that it can be evaluated again."""
        checkpoint.save(self.run.path / f"{self.prefix}last{checkpoint.SUFFIX}", self._content(0, model, None))

    def _content(self, epoch: int, model: Classifier, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
        """A checkpoint's content, on the CPU."""
        return self.facts | {
            "stage": self.stage,
            "epoch": epoch,
            "best": self.best,
            "state_dict": _on_cpu(model.published_state_dict()),
            "optimizer": None if optimizer is None else _on_cpu(optimizer.state_dict()),
        }

    def _note(self, epoch: int, split: str, figures: dict[str, float]) -> None:
        rounded = {key: float(f"{value:.6g}") for key, value in figures.items()}
        self.run.append_metrics(stage=self.stage, epoch=epoch, split=split, **rounded)
        self.wandb.log_metrics(
            {f"{self.stage}/{split}/{key}": value for key, value in figures.items()} | {f"{self.stage}/epoch": epoch}
        )
        log.info(
            "%s epoch %2d %-5s  %s",
            self.stage,
            epoch,
            split,
            "  ".join(f"{key} {value:.4g}" for key, value in rounded.items()),
        )


def _on_cpu(value):
    """Nested dicts and lists with every tensor on the CPU, so that a checkpoint loads on any machine."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value
