"""The precision that training computes in: float32, or half of it where that is safe (`--amp`)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from wsol.errors import InputError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast for forward passes, and an optimizer step that scales the loss where half precision needs it.

    Weights, optimizer states and losses stay float32, and so do maps and metrics, which leave autocast.

    Args:
        amp: of AMP (wsol/losses.py). fp16 has few exponents, so its loss is scaled, and a step whose gradients overflow
            is left out.
        device: that training runs on.

    Raises:
        InputError: fp16 on a CPU.
    """

    def __init__(self, amp: str = "off", device: torch.device | str = "cpu"):
        self.amp, self.kind = amp, torch.device(device).type
        if amp == "fp16" and self.kind != "cuda":
            raise InputError("--amp fp16 needs a CUDA device; give --amp bf16, or off")
        self._scaler = torch.amp.GradScaler(self.kind, enabled=amp == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of forward passes and losses."""
        return nullcontext() if self.amp == "off" else torch.autocast(self.kind, _DTYPES[self.amp])

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Differentiate a loss, and take a step."""
        optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(optimizer)
        self._scaler.update()

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the scale of the loss; empty without one."""
        return self._scaler.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with the scale of a checkpoint; another precision's is ignored."""
        if state and self._scaler.is_enabled():
            self._scaler.load_state_dict(state)
