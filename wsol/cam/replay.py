"""Run a network again from one of its layers on, with other activations there.

Whatever was finished before the layer hands on what it handed on before, without
computing it; so the part of the network behind the layer, which need not be a
module of its own, is all that runs.
"""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from wsol.cam.forward_pass import ForwardPass
from wsol.classifier import Output
from wsol.errors import InputError


class Replay:
    """One image of a pass after the other, again from the pass's layer on.

        with Replay(shared) as replay:
            output = replay(activations, b)     # (n, ...) in the layer's own layout, in place of image b's

    On entering, the network runs once more, to note what precedes the layer. Networks on which leaving that out would
    change the logits (something between modules works in place, say) run as a whole instead, with the layer's output
    replaced.

    Raises:
        InputError: even then the logits are not those of the pass.
    """

    def __init__(self, shared: ForwardPass):
        self.shared = shared
        self._before: dict[nn.Module, list] = {}
        self._skips = True

    def __enter__(self) -> "Replay":
        self._note()
        if not self._reproduces():
            self._skips = False
            if not self._reproduces():
                raise InputError(
                    f"replacing the output of the target layer {type(self.shared.layer).__name__} does not "
                    f"reproduce the logits of {type(self.shared.model.network).__name__}, so ablationcam "
                    "cannot tell what a channel adds; choose another target layer or method"
                )
        return self

    def __exit__(self, *_exception) -> None:
        self._before.clear()

    @torch.no_grad()
    def __call__(self, activations: Tensor, image: int) -> Output:
        """Logits (n, K) for n other activations of one image."""
        images = self.shared.images[image : image + 1].expand(len(activations), -1, -1, -1)
        with ExitStack() as stack:
            if self._skips:
                for module, outputs in self._before.items():
                    stack.enter_context(_answering(module, [self._of(x, image, len(images)) for x in outputs]))
            stack.enter_context(_giving(self.shared.layer, activations))
            return self.shared.model(images)

    @torch.no_grad()
    def _note(self) -> None:
        """Note the outputs of the modules that are finished before the layer is, each without its parts'."""
        finished = []

        def note(module, _inputs, output):
            if not finished:
                for part in module.modules():
                    if part is not module:
                        self._before.pop(part, None)
                self._before.setdefault(module, []).append(output)
                if module is self.shared.layer:
                    finished.append(module)
                    del self._before[module]

        handles = [module.register_forward_hook(note) for module in self.shared.model.network.modules()]
        try:
            self.shared.model(self.shared.images)
        finally:
            for handle in handles:
                handle.remove()

    def _of(self, output, image: int, count: int):
        """One image's share of a module's output for the batch, `count` times, without a copy."""

        def share(x):
            if not isinstance(x, Tensor) or x.ndim == 0 or len(x) != len(self.shared.images):
                return x
            return x[image : image + 1].expand(count, *x.shape[1:])

        return tree_map(share, output)

    def _reproduces(self) -> bool:
        """Do unchanged activations, twice those of the first image, give its logits?"""
        leaf = self.shared.leaf.detach()
        try:
            output = self(leaf[:1].expand(2, *leaf.shape[1:]).clone(), 0)
        except (RuntimeError, AssertionError, TypeError):  # a tensor that is shared by images is in the way
            return False
        expected = self.shared.logits["softmax"][:1].detach()
        tolerance = 1e-9 if expected.dtype == torch.float64 else 1e-4 if expected.dtype == torch.float32 else 1e-2
        scale = expected.abs().amax().clamp(min=1e-6)
        close = (output.logits - expected).abs() <= tolerance * scale
        return bool((close | ~torch.isfinite(expected)).all())


def _answering(module: nn.Module, outputs: list):
    """A module that hands on these outputs, call by call, instead of computing; then it is itself again."""
    left, real = list(outputs), module.forward
    return _replaced(module, lambda *inputs, **more: left.pop(0) if left else real(*inputs, **more))


def _giving(layer: nn.Module, activations: Tensor):
    """A layer whose output is replaced."""
    return _replaced(layer, lambda *_inputs, **_more: activations)


@contextmanager
def _replaced(module: nn.Module, forward: Callable):
    """A module with another forward inside the block."""
    own = vars(module).get("forward")  # most have their class's
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
