"""Where the channels of a layer's output are: (B, C, h, w), channels last (B, h, w, C), or tokens (B, P + N, C).

Transformers put P prefix tokens (class, distillation, registers) before the N = h * w patches. The layout follows from
the shapes of the output and of the image.

`find_layers` finds the target layer: the last one with places (positions of a map, or tokens on a grid) that the head
depends on. It takes one forward and one backward pass. `find_guiding_layer` finds the layer whose activations guide the
refinement of maps (wsol/cam/refinement.py). It takes one forward pass.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsol.classifier import eval_mode
from wsol.errors import InputError

MOST_PREFIX_TOKENS = 8
# In eval mode these return their input; the layer before them is the one to name.
_PASSIVE = (nn.Dropout, nn.Dropout2d, nn.Identity)
# Places that every network has (`find_guiding_layer`): "target", "stride16", "stride16:last".
_PLACE = re.compile(r"target|stride(\d+)(:last)?")
GUIDING_PLACE = "stride16"


class Layout(NamedTuple):
    """Where places and channels are.

    Attributes:
        kind: "BCHW", "BHWC" or "BNC".
        grid: (h, w).
        prefix: number of tokens before the patches (BNC).
    """

    kind: str
    grid: tuple[int, int]
    prefix: int = 0

    @property
    def channel_dim(self) -> int:
        """The dimension of the channels."""
        return {"BCHW": 1, "BHWC": 3, "BNC": 2}[self.kind]

    def to_maps(self, activations: Tensor) -> Tensor:
        """Activations in this layout → (B, C, h, w), without prefix tokens."""
        if self.kind == "BHWC":
            return activations.permute(0, 3, 1, 2)
        if self.kind == "BNC":
            return activations[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)
        return activations


@lru_cache
def find_layout(shape: tuple[int, ...], image: tuple[int, int]) -> Layout | None:
    """The layout of an output of `shape` for images of (H, W); None if it has no places."""
    if len(shape) == 4:
        # Choose the reading whose grid is closer to the image's proportions; (B, C, h, w) if both are equally close.
        def stretch(h: int, w: int) -> float:
            return abs(math.log(h * image[1] / (w * image[0]))) if h and w else math.inf

        grids = {"BCHW": (shape[2], shape[3]), "BHWC": (shape[1], shape[2])}
        kind = min(grids, key=lambda name: stretch(*grids[name]))
        return Layout(kind, grids[kind])
    if len(shape) == 3:
        for prefix in range(MOST_PREFIX_TOKENS + 1):
            patches = shape[1] - prefix
            h = round(math.sqrt(max(patches, 0) * image[0] / image[1]))
            if h and patches % h == 0 and abs(h * image[1] - patches // h * image[0]) < max(image):
                return Layout("BNC", (h, patches // h), prefix)
    return None


class _LayerOutput(NamedTuple):
    name: str
    output: Tensor
    layout: Layout

    @property
    def channels(self) -> int:
        return self.layout.to_maps(self.output).shape[1]


def find_layers(network: nn.Module, head: str, images: Tensor) -> tuple[str, str]:
    """Names of the target layer and of the pooled layer of a network.

    The pooled layer is the last one with places before the head. The target layer is the last one with as many channels
    as that, whose places (not only its prefix tokens) the head depends on, and that is not one of parallel layers.

    Args:
        network: runs once in eval mode, forward and backward, and is left as it was.
        head: dotted name of its classification head.
        images: (n, 3, H, W) of the size, dtype and device that the network takes; noise will do.

    Raises:
        InputError: there is no such layer, or the network does not take such images.
    """
    outputs: list[_LayerOutput] = []  # in the order of execution
    head_inputs: list[Tensor] = []

    def record_output(name: str) -> Callable[[nn.Module, tuple, object], None]:
        def hook(_module: nn.Module, _inputs: tuple, output: object) -> None:
            layout = None if head_inputs else _layout_of_places(output, images)
            if layout is not None and isinstance(output, Tensor):
                outputs.append(_LayerOutput(name, output, layout))

        return hook

    handles = [module.register_forward_hook(record_output(name)) for name, module in _layers_before(network, head)]
    handles.append(
        network.get_submodule(head).register_forward_pre_hook(lambda _head, inputs: head_inputs.append(inputs[0]))
    )
    try:
        with eval_mode(network), torch.enable_grad():
            network(images.detach().requires_grad_().clone())  # a graph is recorded even if all parameters are frozen
            if not outputs or not head_inputs:
                raise InputError(
                    f"{type(network).__name__} has no layer with places before its head '{head}'; try larger "
                    "images (--crop_size)"
                )
            # The logits' gradient would not do, as some heads start as zeros; nor that of the plain sum of the head's
            # input, which is zero after LayerNorm. So the sum is weighted by noise.
            noise = torch.randn(head_inputs[0].shape, generator=torch.Generator().manual_seed(0))
            score = (head_inputs[0] * noise.to(head_inputs[0])).sum()
            pooled = outputs[-1]
            candidates = (
                layer
                for layer in reversed(outputs)
                if layer.channels == pooled.channels and _places_matter(score, layer)
            )
            last = layer = next(candidates, pooled)
            for before in candidates:
                # In parallel layers, such as the projections to keys and values, the one before has a way around.
                if not _places_matter(score, before, without=layer):
                    return layer.name, pooled.name
                layer = before
            return last.name, pooled.name
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"--crop_size {images.shape[-2]}: {type(network).__name__} does not take such images ({reason})"
        ) from None
    finally:
        for handle in handles:
            handle.remove()


def _layers_before(network: nn.Module, head: str) -> Iterable[tuple[str, nn.Module]]:
    """The named modules of a network that may have places: all but the passive ones and the parts of its head."""
    for name, module in network.named_modules():
        if name and not name.startswith(f"{head}.") and not isinstance(module, _PASSIVE):
            yield name, module


def _layout_of_places(output: object, images: Tensor) -> Layout | None:
    """The layout of an output that has several places for each image, in the images' proportions; otherwise None."""
    if not isinstance(output, Tensor):
        return None
    size = (images.shape[-2], images.shape[-1])
    layout = find_layout(tuple(output.shape), size)
    if layout is None or len(output) != len(images) or math.prod(layout.grid) == 1:
        return None
    return layout if _has_proportions_of(layout.grid, size) else None


def _has_proportions_of(grid: tuple[int, int], image: tuple[int, int]) -> bool:
    """Whether the grid has the image's proportions, up to the rounding of a stride on either side."""
    return all((side - 1) * image[1 - i] < (grid[1 - i] + 1) * image[i] for i, side in enumerate(grid))


def _places_matter(score: Tensor, layer: _LayerOutput, without: _LayerOutput | None = None) -> bool:
    """Whether the score depends on the layer's places; `without`: on paths that avoid this other layer."""
    if not layer.output.requires_grad:
        return False
    with ExitStack() as stack:
        if without is not None:
            stack.callback(without.output.register_hook(torch.zeros_like).remove)
        (gradient,) = torch.autograd.grad(score, layer.output, retain_graph=True, allow_unused=True)
    return gradient is not None and bool((layer.layout.to_maps(gradient) != 0).any())


# --------------------------------------------------------------------------- the guiding layer


class _Step(NamedTuple):
    """A layer in the order of execution: its strides before and after it, and its output's grid and channels."""

    name: str
    kind: type[nn.Module]
    stride_before: int  # 0: unknown
    stride: int
    shape: tuple[int, int, int]  # (C, h, w)


def is_place(layer: object) -> bool:
    """Whether it is a place that every network has, and no module: "target", "stride16", "stride16:last"."""
    return isinstance(layer, str) and _PLACE.fullmatch(layer) is not None


def find_guiding_layer(network: nn.Module, head: str, target: str, images: Tensor, place: str = GUIDING_PLACE) -> str:
    """Name of the layer whose activations guide the refinement of maps.

    "stride16": the last layer of the stage in which the network arrives at stride 16, if the target layer comes after
    that stage, and otherwise (plain vision transformers) the middle one of the stage's blocks. "stride16:last": the
    last layer with stride 16 before the next stride. "target": the target layer.

    A stage is made of the layers of one stride and one number of channels. So "stride16" is `blocks.3` of
    EfficientNet-Lite0, `layer3` of a ResNet, and the sixth of a ViT's twelve blocks; "stride16:last" is `blocks.4`,
    `layer3` and the target layer. In a network without the stride the next coarser one takes its place; without that,
    it is the target layer.

    Args:
        network: runs once in eval mode, and is left as it was.
        head: dotted name of its classification head.
        target: dotted name of its target layer.
        images: (n, 3, H, W) that the network takes.
        place: see `is_place`.
    """
    match = _PLACE.fullmatch(place)
    if match is None or match[1] is None:
        return target
    steps = _run_through(network, head, images)
    strides = [step.stride for step in steps if step.stride >= int(match[1])]
    if not strides:
        return target
    stride = min(strides)
    arriving = [step for step in steps if 0 < step.stride_before < stride == step.stride]
    if not arriving:
        return target
    # The first layers of the next stage may have this stage's stride and channels.
    leaving = [step.name for step in steps if step.stride_before == stride < step.stride]
    at_stride = [
        step
        for step in steps
        if step.stride == stride and not any(step.name.startswith(f"{name}.") for name in leaving)
    ]
    if match[2]:
        names = [step.name for step in at_stride]
        return target if target in names else names[-1]
    # A container of several stages starts at a finer stride than its last stage. Outer modules end after their parts.
    coarsest = max(step.stride_before for step in arriving)
    arrival = [step for step in arriving if step.stride_before == coarsest][-1]
    stage = [step for step in at_stride if step.shape == arrival.shape]
    if target not in (step.name for step in stage):
        return stage[-1].name
    return _middle_block(stage) or arrival.name


def find_stages(network: nn.Module, head: str, target: str, images: Tensor) -> list[str]:
    """Names of the layers that end the stages of a network: the target layer, then those before its own, last first.

    Where a stage ends is what timm's `feature_info` says, if the network has it; a plain vision transformer has one.
    Otherwise a stage is made of the layers of one stride before the target layer; and a list of blocks with at least
    twice the channels of what comes before it, such as a ResNet's `layer4`, is a stage even where they share a stride.

    Args:
        network: runs once in eval mode, and is left as it was.
        head, target, images: see `find_guiding_layer`.
    """
    steps = {step.name: step for step in _run_through(network, head, images)}
    if target not in steps:  # a layer that does nothing
        return [target]
    before = list(itertools.takewhile(lambda name: name != target, steps))  # they finish before it
    info = getattr(network, "feature_info", None)
    info = info if isinstance(info, list) else []
    if len(info) > 1 and all(entry["module"] in steps for entry in info):
        if len({entry["reduction"] for entry in info}) == 1:
            return [target]
        # The target layer's stage is the one that ends with it or after it; or the last, which it may follow.
        own = next((n for n, entry in enumerate(info) if entry["module"] not in before), len(info) - 1)
        return [target, *(entry["module"] for entry in reversed(info[:own]))]
    ends_of_stages: list[_Step] = []
    for name in [*_parts_before(network, "", target, steps), target]:
        step = steps[name]
        last = ends_of_stages[-1] if ends_of_stages else None
        same_stride = last is not None and last.shape[1:] == step.shape[1:]
        if (
            last is not None
            and same_stride
            and not (_begins_list(network, name, last.name) and step.shape[0] >= 2 * last.shape[0])
        ):
            ends_of_stages.pop()
        ends_of_stages.append(step)
    return [step.name for step in reversed(ends_of_stages)]


def _parts_before(network: nn.Module, parent: str, target: str, steps: Mapping[str, _Step]) -> list[str]:
    """The outermost layers with places before the target layer, in order; containers of several strides are opened."""
    children = [f"{parent}.{name}" if parent else name for name, _ in network.get_submodule(parent).named_children()]
    order = {name: number for number, name in enumerate(steps)}
    parts: list[str] = []
    for name in sorted((name for name in children if name in steps), key=order.__getitem__):
        leads_to_target = target == name or target.startswith(f"{name}.")
        inner = [f"{name}.{child}" for child, _ in network.get_submodule(name).named_children()]
        strides = {steps[child].shape[1:] for child in inner if child in steps}
        if target.startswith(f"{name}.") or (
            isinstance(network.get_submodule(name), nn.Sequential) and len(strides) > 1
        ):
            parts += _parts_before(network, name, target, steps)
        elif not leads_to_target:
            parts.append(name)
        if leads_to_target:
            break
    return parts


def _begins_list(network: nn.Module, name: str, before: str) -> bool:
    """Whether a layer is a list of blocks, or the first block of one; before: the layer before it."""
    parent = name.rpartition(".")[0]
    is_first = bool(parent) and not before.startswith(f"{parent}.")
    return _is_list(network.get_submodule(name)) or (is_first and _is_list(network.get_submodule(parent)))


def _is_list(module: nn.Module) -> bool:
    """Whether it is a list of blocks, which have parts themselves."""
    return isinstance(module, nn.Sequential) and any(True for block in module for _ in block.children())


def _run_through(network: nn.Module, head: str, images: Tensor) -> list[_Step]:
    """The layers with places before the head, in the order in which they finish."""
    steps: list[_Step] = []
    head_is_reached = False

    def record(name: str) -> Callable[[nn.Module, tuple, object], None]:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            layout = None if head_is_reached else _layout_of_places(output, images)
            if layout is not None and isinstance(output, Tensor):
                before = _layout_of_places(inputs[0], images) if inputs else None
                stride_before = 0 if before is None else _stride(before.grid, images)
                channels = output.shape[layout.channel_dim]
                steps.append(
                    _Step(name, type(module), stride_before, _stride(layout.grid, images), (channels, *layout.grid))
                )

        return hook

    def stop(_head: nn.Module, _inputs: tuple) -> None:
        nonlocal head_is_reached
        head_is_reached = True

    with ExitStack() as hooks:
        for name, module in _layers_before(network, head):
            hooks.callback(module.register_forward_hook(record(name)).remove)
        hooks.callback(network.get_submodule(head).register_forward_pre_hook(stop).remove)
        with eval_mode(network), torch.no_grad():
            network(images)
    return steps


def _stride(grid: tuple[int, int], images: Tensor) -> int:
    """The power of two nearest to the image's side over the grid's; layers without padding and patches of 14 fit in."""
    ratio = math.sqrt(images.shape[-2] * images.shape[-1] / math.prod(grid))
    return 2 ** round(math.log2(ratio)) if ratio > 1 else 1


def _middle_block(stage: list[_Step]) -> str | None:
    """The middle one of the longest list of layers of one type in one parent; None where each is the only one."""
    lists: dict[tuple[str, type[nn.Module]], list[str]] = {}
    for step in stage:
        lists.setdefault((step.name.rpartition(".")[0], step.kind), []).append(step.name)
    blocks = max(lists.values(), key=lambda names: (len(names), -names[0].count(".")))
    return blocks[(len(blocks) - 1) // 2] if len(blocks) > 1 else None
