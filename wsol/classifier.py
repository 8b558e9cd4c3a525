"""A classification network: its head, found; its layers; its one or two branches; what of it learns."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsol.errors import InputError

# The neck: layers between trunk and heads for which no ImageNet weights exist (conv6 of VGG's cam form).
PARTS = ("trunk", "neck", "softmax_head", "sigmoid_head")


# What may stand between the linear layers of an MLP head.
_MLP_GLUE = (
    nn.Dropout,
    nn.Identity,
    nn.Flatten,
    nn.LayerNorm,
    nn.BatchNorm1d,
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Tanh,
    nn.Sigmoid,
    nn.LeakyReLU,
    nn.ELU,
)


class Output(NamedTuple):
    """What every network of this project returns.

    logits: (B, K) of the softmax head; sigmoid_logits: (B, K) of the sigmoid
    branch, None for a network without one.
    """

    logits: Tensor
    sigmoid_logits: Tensor | None


def _is_linear(module: nn.Module) -> bool:
    """A Linear layer or its convolutional twin, a 1x1 conv."""
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    )


def linear_layers(head: nn.Module) -> list[nn.Module]:
    """The Linear and 1x1-conv layers of a head, in order."""
    return [m for m in head.modules() if _is_linear(m)]


def head_classes(head: nn.Module) -> int:
    """Number of classes K a head decides between: the width of its last linear layer."""
    last = linear_layers(head)[-1]
    return last.out_features if isinstance(last, nn.Linear) else last.out_channels


def randomize(head: nn.Module) -> None:
    """Start a head's linear layers as wsolevaluation and the authors' code do: weights N(0, 0.01), zero bias."""
    for layer in linear_layers(head):
        nn.init.normal_(layer.weight, std=0.01)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def find_head(network: nn.Module) -> str:
    """Dotted name of the classification head of a network.

    The head is the last Linear or 1x1 conv that the network registers (timm and
    torchvision register their classifier last), widened to the enclosing
    Sequential where that is an MLP: two or more linear layers with nothing but
    activations, normalisation and dropout between them (VGG, MobileNetV3).

    Raises:
        InputError: there is no such layer, or two heads end the network
            (distilled DeiT); the remedy is `head="name"`.
    """
    names = [name for name, module in network.named_modules() if _is_linear(module) and name]
    if not names:
        raise InputError(
            f"no Linear or 1x1 conv in {type(network).__name__} that could be a classification "
            "head; name the head: dualize(model, head='...')"
        )
    if hasattr(network, "get_classifier") and isinstance(network.get_classifier(), (tuple, list)):
        raise InputError(
            f"{type(network).__name__} ends in several heads; dualize needs a network with one, "
            "or the name of the one to clone: dualize(model, head='...')"
        )
    name = names[-1]
    parent_name = name.rpartition(".")[0]
    parent = network.get_submodule(parent_name) if parent_name else network
    is_mlp = (
        parent_name
        and isinstance(parent, nn.Sequential)
        and all(_is_linear(child) or isinstance(child, _MLP_GLUE) for child in parent)
        and sum(map(_is_linear, parent)) > 1
    )
    return parent_name if is_mlp else name


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every part of the module is in the mode that it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


class Classifier(nn.Module):
    """A classification network with its softmax head and, perhaps, a sigmoid branch.

    Args:
        network: maps images (B, 3, H, W) to logits (B, K).
        head: dotted name of the classification head inside it.
        sigmoid_head: a module that maps the head's input to its output's shape.
        target_layer: dotted name of the layer whose activations (B, C, h, w)
            class activation maps are made of; None: the caller names it.
        pooled_layer: dotted name of the layer whose places the head pools; None:
            the target layer. Vision transformers tell the two apart: the patches
            of the last block get no gradient from a head that reads the class token.
        neck: names of the network's modules that form its neck.
        fast: pattern of the published parameter names that learn
            lr_classifier_ratio times as fast; None: the heads.
        head_is_new: the softmax head is untrained.

    Parts (`PARTS`) are frozen one by one with `set_trainable`. A frozen part has
    no gradients and stays in eval mode whatever `train()` is called with, so its
    BatchNorm statistics stay put; because none of its parameters requires a
    gradient, autograd records nothing of it, either.
    """

    def __init__(
        self,
        network: nn.Module,
        head: str,
        sigmoid_head: nn.Module | None = None,
        target_layer: str | None = None,
        *,
        pooled_layer: str | None = None,
        neck: Iterable[str] = (),
        fast: str | None = None,
        head_is_new: bool = True,
    ):
        super().__init__()
        self.network = network
        self.head_name = head
        self.sigmoid_head = sigmoid_head
        self.target_layer_name = target_layer
        self.pooled_layer_name = pooled_layer or target_layer
        self.neck_names = tuple(neck)
        self.fast = fast
        self.head_is_new = head_is_new
        self.trainable = set(PARTS)

    @property
    def softmax_head(self) -> nn.Module:
        return self.network.get_submodule(self.head_name)

    @property
    def num_classes(self) -> int:
        return head_classes(self.softmax_head)

    @property
    def target_layer(self) -> nn.Module | None:
        return self.network.get_submodule(self.target_layer_name) if self.target_layer_name else None

    @property
    def pooled_layer(self) -> nn.Module | None:
        return self.network.get_submodule(self.pooled_layer_name) if self.pooled_layer_name else None

    @property
    def neck(self) -> list[nn.Module]:
        return [self.network.get_submodule(name) for name in self.neck_names]

    @property
    def trunk_is_frozen(self) -> bool:
        """Does what reaches the heads stay as it is?"""
        return "trunk" not in self.trainable and not (self.neck_names and "neck" in self.trainable)

    def heads(self) -> dict[str, nn.Module]:
        """The heads that exist, by name: "softmax" and, on a dual network, "sigmoid"."""
        return {"softmax": self.softmax_head} | ({"sigmoid": self.sigmoid_head} if self.sigmoid_head else {})

    def reset_head(self, num_classes: int) -> None:
        """Replace the softmax head's last linear layer by a new one for `num_classes` classes; see `randomize`."""
        old = linear_layers(self.softmax_head)[-1]
        new: nn.Module
        if isinstance(old, nn.Linear):
            new = nn.Linear(old.in_features, num_classes)
        else:
            new = nn.Conv2d(old.in_channels, num_classes, kernel_size=1)
        randomize(new)
        name = next(name for name, module in self.network.named_modules() if module is old)
        parent, _, attribute = name.rpartition(".")
        setattr(self.network.get_submodule(parent), attribute, new)
        self.head_is_new = True

    def forward(self, images: Tensor) -> Output:
        """images (B, 3, H, W), normalised → Output of logits (B, K)."""
        if self.sigmoid_head is None:
            return Output(self.network(images), None)

        # Networks may do something after their head (pool, flatten). Handing both
        # heads' outputs on as one batch of 2B puts the branch through the very same
        # steps, without a second pass and without knowing what they are.
        def append_branch(_head, inputs, output):
            return torch.cat([output, self.sigmoid_head(inputs[0])])

        handle = self.softmax_head.register_forward_hook(append_branch)
        try:
            both = self.network(images)
        finally:
            handle.remove()
        if both.shape[0] != 2 * images.shape[0]:
            raise InputError(
                f"the output of {type(self.network).__name__} does not follow from its head "
                f"'{self.head_name}' image by image; name another: dualize(model, head='...')"
            )
        return Output(*both.chunk(2))

    def head_input(self, images: Tensor) -> Tensor:
        """What reaches the head, (B, D) behind a pooling layer; images as in forward."""
        caught = []
        handle = self.softmax_head.register_forward_pre_hook(lambda _head, inputs: caught.append(inputs[0]))
        try:
            self.network(images)
        finally:
            handle.remove()
        return caught[0]

    def classify(self, features: Tensor) -> Output:
        """Both heads on features from `head_input`, for networks that end with their head."""
        branch = self.sigmoid_head(features) if self.sigmoid_head is not None else None
        return Output(self.softmax_head(features), branch)

    @torch.no_grad()
    def check_image_size(self, side: int) -> None:
        """InputError if the network does not take images of side x side, found by trying one."""
        try:
            with eval_mode(self):
                self(next(self.parameters()).new_zeros(1, 3, side, side))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"--crop_size {side}: {type(self.network).__name__} does not take such images ({reason})"
            ) from None

    def set_trainable(self, parts: Iterable[str]) -> "Classifier":
        """Let only these of PARTS learn; freeze the others. Returns self."""
        self.trainable = set(parts)
        unknown = self.trainable - set(PARTS)
        if unknown:
            raise InputError(f"unknown part {sorted(unknown)}; known: {', '.join(PARTS)}")
        self.network.requires_grad_("trunk" in self.trainable)
        for module in self.neck:
            module.requires_grad_("neck" in self.trainable)
        self.softmax_head.requires_grad_("softmax_head" in self.trainable)
        if self.sigmoid_head is not None:
            self.sigmoid_head.requires_grad_("sigmoid_head" in self.trainable)
        return self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        self.network.train(mode and "trunk" in self.trainable)
        for module in self.neck:
            module.train(mode and "neck" in self.trainable)
        self.softmax_head.train(mode and "softmax_head" in self.trainable)
        if self.sigmoid_head is not None:
            self.sigmoid_head.train(mode and "sigmoid_head" in self.trainable)
        return self
