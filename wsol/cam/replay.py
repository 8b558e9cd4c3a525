"""Run a network again from one of its layers on, with other activations there.

Modules that finish before the layer return what they returned in the first run, without computing it. So only the part
of the network after the layer is computed, which need not be a module of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from wsol.cam.forward_pass import ForwardPass
from wsol.classifier import Output
from wsol.errors import InputError


class Replay:
    """Reruns a forward pass from its layer on, one image at a time.

        with Replay(shared) as replay:
            output = replay(activations, b)     # (n, ...) in the layer's own layout, in place of those of image b

    On entering, the network runs once more, to record the outputs of earlier modules. If skipping those modules changes
    the logits (because something between modules works in place, say), the network runs as a whole instead, with the
    layer's output replaced.

    Attributes:
        skips_earlier_modules: whether modules that finish before the layer are skipped.

    Raises:
        InputError: even then the logits are not those of the pass.
    """

    def __init__(self, shared: ForwardPass):
        self.shared = shared
        self.skips_earlier_modules = True
        self._earlier_outputs: dict[nn.Module, list[Any]] = {}  # module → its outputs, call by call

    def __enter__(self) -> "Replay":
        self._record_earlier_outputs()
        if not self._reproduces_logits():
            self.skips_earlier_modules = False
            if not self._reproduces_logits():
                raise InputError(
                    f"replacing the output of the target layer {type(self.shared.layer).__name__} does not "
                    f"reproduce the logits of {type(self.shared.model.network).__name__}, so ablationcam "
                    "cannot tell what a channel adds; choose another target layer or method"
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._earlier_outputs.clear()

    @torch.no_grad()
    def __call__(self, activations: Tensor, image: int) -> Output:
        """Logits (n, K) for n other activations of one image."""
        count = len(activations)
        images = self.shared.images[image : image + 1].expand(count, -1, -1, -1)
        with ExitStack() as stack:
            if self.skips_earlier_modules:
                for module, outputs in self._earlier_outputs.items():
                    stack.enter_context(_returning(module, [self._expand_image(x, image, count) for x in outputs]))
            stack.enter_context(_with_forward(self.shared.layer, lambda *_inputs, **_more: activations))
            return self.shared.model(images)

    @torch.no_grad()
    def _record_earlier_outputs(self) -> None:
        """Record the outputs of modules that finish before the layer; those of their submodules are not needed."""
        layer_is_reached = False

        def record(module: nn.Module, _inputs: tuple, output: Any) -> None:
            nonlocal layer_is_reached
            if layer_is_reached:
                return
            for part in module.modules():
                if part is not module:
                    self._earlier_outputs.pop(part, None)
            if module is self.shared.layer:
                layer_is_reached = True
                self._earlier_outputs.pop(module, None)
            else:
                self._earlier_outputs.setdefault(module, []).append(output)

        with ExitStack() as hooks:
            for module in self.shared.model.network.modules():
                hooks.callback(module.register_forward_hook(record).remove)
            self.shared.model(self.shared.images)

    def _expand_image(self, output: Any, image: int, count: int) -> Any:
        """A module's output for the batch → its output for `count` copies of one image, without copying memory."""

        def expand(x: Any) -> Any:
            if not isinstance(x, Tensor) or x.ndim == 0 or len(x) != len(self.shared.images):
                return x
            return x[image : image + 1].expand(count, *x.shape[1:])

        return tree_map(expand, output)

    def _reproduces_logits(self) -> bool:
        """Whether the unchanged activations of the first image, twice in a batch, give its logits."""
        leaf = self.shared.leaf.detach()
        try:
            output = self(leaf[:1].expand(2, *leaf.shape[1:]).clone(), 0)
        except (RuntimeError, AssertionError, TypeError):  # a recorded tensor that belongs to no single image, say
            return False
        expected = self.shared.logits["softmax"][:1].detach()
        tolerance = 1e-9 if expected.dtype == torch.float64 else 1e-4 if expected.dtype == torch.float32 else 1e-2
        scale = expected.abs().amax().clamp(min=1e-6)
        close = (output.logits - expected).abs() <= tolerance * scale
        return bool((close | ~torch.isfinite(expected)).all())


def _returning(module: nn.Module, outputs: Sequence[Any]) -> AbstractContextManager[None]:
    """Let a module return these outputs, call by call, instead of computing; after the last one it computes again."""
    remaining, compute = list(outputs), module.forward
    return _with_forward(module, lambda *inputs, **more: remaining.pop(0) if remaining else compute(*inputs, **more))


@contextmanager
def _with_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's forward inside the block."""
    own = vars(module).get("forward")  # most modules have only that of their class
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
