"""A classification network: its head, its layers, its sigmoid branch, its published names, and which parts train."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsol.errors import InputError, first_few, nearest
from wsol.tensor_files import shared_wrappers, unwrapped

# The neck: layers between trunk and heads for which no ImageNet weights exist (conv6 of VGG's cam form).
PARTS = ("trunk", "neck", "softmax_head", "sigmoid_head")

# Dual-CAM's code names the sigmoid branch after the head; other heads get the suffix "_2".
_SIGMOID_NAMES = {"fc": "fc2", "conv": "conv2", "head": "head2"}
# Every name that the branch has in a published checkpoint, whatever the head is called there.
_PUBLISHED_SIGMOID_NAMES = ("fc2", "conv2", "head2", "classifier_2", "SPG_A4_2")

# Layers allowed between the linear layers of an MLP head.
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
    """What every Classifier returns.

    Attributes:
        logits: (B, K) of the softmax head.
        sigmoid_logits: (B, K) of the sigmoid branch; None without one.
        regions: (B, 2, K) of the sigmoid branch on the object and on the background of each image; None unless it is
            trained on them.
        rivals: (B, K) of each of the classifier's `rivals`.
    """

    logits: Tensor
    sigmoid_logits: Tensor | None
    regions: Tensor | None = None
    rivals: Mapping[str, Tensor] = {}

    def by_head(self) -> dict[str, Tensor]:
        """Logits by the name of their head, see `Classifier.heads`."""
        branch = {} if self.sigmoid_logits is None else {"sigmoid": self.sigmoid_logits}
        return {"softmax": self.logits} | branch | dict(self.rivals)

    def detach(self) -> "Output":
        """The logits of all heads without their autograd graph."""
        rivals = {name: logits.detach() for name, logits in self.rivals.items()}
        branch = None if self.sigmoid_logits is None else self.sigmoid_logits.detach()
        return Output(self.logits.detach(), branch, rivals=rivals)


class MethodLayers(NamedTuple):
    """What a training method has put into a network (wsol/methods/), by dotted names.

    Attributes:
        layers: the layers that its loss reads, by the part they play.
        twins: further heads, which have as many classes as the softmax head.
        own_map: the network's own map in place of the softmax head's `cam`: (network, output of layers["features"]
            (B, C, h, w), that `cam` (B, h, w), class ids (B,), whether negative weights are clamped) → (B, h, w). None:
            there is none.
    """

    layers: Mapping[str, str] = {}
    twins: tuple[str, ...] = ()
    own_map: Callable[[nn.Module, Tensor, Tensor, Tensor, bool], Tensor] | None = None


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a Linear or a 1x1 conv, which is the same function at every position."""
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    )


def linear_layers(head: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """The Linear and 1x1-conv layers of a head, in order."""
    return [m for m in head.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and _is_linear(m)]


def head_classes(head: nn.Module) -> int:
    """Number of classes K of a head: the width of its last linear layer."""
    last = linear_layers(head)[-1]
    return last.out_features if isinstance(last, nn.Linear) else last.out_channels


def randomize(head: nn.Module) -> None:
    """Initialise a head's linear layers as wsolevaluation and Dual-CAM's code do: weights N(0, 0.01), zero bias."""
    for layer in linear_layers(head):
        nn.init.normal_(layer.weight, std=0.01)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def find_head(network: nn.Module) -> str:
    """Dotted name of the classification head of a network.

    The head is the last Linear or 1x1 conv that the network registers; timm, torchvision and transformers register
    their classifier last. If it belongs to a Sequential that is an MLP, that Sequential is the head: two or more linear
    layers with nothing but activations, normalisation and dropout between them (VGG, MobileNetV3).

    Raises:
        InputError: there is no such layer, or the network ends in two heads (distilled DeiT). The remedy is
            `head="name"`.
    """
    names = [name for name, module in network.named_modules() if _is_linear(module) and name]
    if not names:
        raise InputError(
            f"no Linear or 1x1 conv in {type(network).__name__} that could be a classification "
            "head; name the head: dualize(model, head='...')"
        )
    get_classifier = getattr(network, "get_classifier", None)  # timm's
    if callable(get_classifier) and isinstance(get_classifier(), (tuple, list)):
        raise InputError(
            f"{type(network).__name__} ends in several heads; dualize needs a network with one, "
            "or the name of the one to clone: dualize(model, head='...')"
        )
    name = names[-1]
    parent_name = name.rpartition(".")[0]
    parent = network.get_submodule(parent_name) if parent_name else network
    is_mlp = (
        parent_name != ""
        and isinstance(parent, nn.Sequential)
        and all(_is_linear(child) or isinstance(child, _MLP_GLUE) for child in parent)
        and sum(map(_is_linear, parent)) > 1
    )
    return parent_name if is_mlp else name


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every part of the module is in its former mode."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def logits_of(output: object) -> Tensor:
    """The logits (B, K) in a network's output.

    A tensor, an object with `.logits` (transformers), or a dict with "logits" or "out" (torchvision's segmentation
    networks, whose logits are (B, K, H, W)).

    Raises:
        InputError: the output is none of these.
    """
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(output, Mapping):
        logits = output.get("logits", output.get("out"))
    if not isinstance(logits, Tensor):
        raise InputError(
            f"the network returns {type(output).__name__} without logits; it must return a tensor (B, K), an object "
            'with .logits, or a dict with "logits"'
        )
    return logits


def module_name(network: nn.Module, module: nn.Module | str, role: str) -> str:
    """Dotted name of a module of the network, which may be given by that name or as the module itself.

    Args:
        role: what the module is for, such as "head", for the error message.

    Raises:
        InputError: it is not part of the network. The message suggests the nearest name, or modules of the same type.
    """
    named = dict(network.named_modules(remove_duplicate=False))
    named.pop("", None)
    kind = type(network).__name__
    if isinstance(module, str):
        if module not in named:
            raise InputError(f"{kind} has no module '{module}' to be its {role}{nearest(module, named)}")
        return module
    if not isinstance(module, nn.Module):
        raise InputError(f"the {role} must be a module of {kind} or its dotted name, not {type(module).__name__}")
    for name, candidate in named.items():
        if candidate is module:
            return name
    alike = [name for name, candidate in named.items() if type(candidate) is type(module)]
    hint = f"; its modules of that type are {first_few(alike)}" if alike else ""
    raise InputError(f"the {type(module).__name__} given as {role} is not a module of this {kind}{hint}")


def sigmoid_name(head_name: str) -> str:
    """The sigmoid branch's name in checkpoints, as in Dual-CAM's code: fc2 for fc, classifier_2 for classifier."""
    parent, dot, leaf = head_name.rpartition(".")
    return parent + dot + _SIGMOID_NAMES.get(leaf, f"{leaf}_2")


class Classifier(nn.Module):
    """A classification network with its softmax head and, after `dualize`, a sigmoid branch.

    Args:
        network: maps images (B, 3, H, W) to logits (B, K), in any form that `logits_of` reads.
        head: dotted name of the classification head inside it.
        sigmoid_head: a module that maps the head's input to its output's shape.
        target_layer: dotted name of the layer whose activations (B, C, h, w) class activation maps are made of; None:
            the caller of CamExtractor names it, or it is found.
        pooled_layer: dotted name of the layer that the head pools; None: the target layer. The two differ in vision
            transformers, where the patches of the last block get no gradient from a head that reads the class token.
        neck: names of the network's modules that form its neck, see PARTS.
        fast: regular expression for the published names of the parameters that learn lr_classifier_ratio times as
            fast; None: the parameters of the heads.
        head_is_new: the softmax head is untrained.
        method_layers: what a training method has put into the network.

    Parts (`PARTS`) are frozen one by one with `set_trainable`. A frozen part has no gradients, and it stays in eval
    mode whatever `train()` is called with, so its BatchNorm statistics do not change.

    In checkpoints a Classifier's tensors have published names: those of the network, and `sigmoid_name` for the branch.
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
        method_layers: MethodLayers | None = None,
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
        self.method_layers = method_layers or MethodLayers()
        self.trainable = set(PARTS)
        self.rivals: dict[str, nn.Module] = {}  # further branches, to compare in one pass; not among the parameters

    @property
    def softmax_head(self) -> nn.Module:
        """The network's own classification head."""
        return self.network.get_submodule(self.head_name)

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return head_classes(self.softmax_head)

    @property
    def target_layer(self) -> nn.Module | None:
        """The layer that maps are made of; None if it is not known."""
        return self.network.get_submodule(self.target_layer_name) if self.target_layer_name else None

    @property
    def pooled_layer(self) -> nn.Module | None:
        """The layer that the head pools; None if it is not known."""
        return self.network.get_submodule(self.pooled_layer_name) if self.pooled_layer_name else None

    @property
    def neck(self) -> list[nn.Module]:
        """The modules of the neck, see PARTS."""
        return [self.network.get_submodule(name) for name in self.neck_names]

    @property
    def trunk_is_frozen(self) -> bool:
        """Whether training leaves the heads' input as it is."""
        return "trunk" not in self.trainable and not (self.neck_names and "neck" in self.trainable)

    def heads(self) -> dict[str, nn.Module]:
        """The heads by name: "softmax", "sigmoid" if there is a branch, and its rivals."""
        branch = {"sigmoid": self.sigmoid_head} if self.sigmoid_head else {}
        return {"softmax": self.softmax_head} | branch | self.rivals

    def reset_head(self, num_classes: int) -> None:
        """Replace the softmax head's last linear layer by a new one for `num_classes` classes; see `randomize`.

        Likewise the last ones of further heads.
        """
        for head in (self.softmax_head, *map(self.network.get_submodule, self.method_layers.twins)):
            old = linear_layers(head)[-1]
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

    def trunk_state_dict(self) -> dict[str, Tensor]:
        """The network's tensors without its heads'."""
        inside = f"{self.head_name}."
        return {name: tensor for name, tensor in self.network.state_dict().items() if not name.startswith(inside)}

    def published_state_dict(self) -> dict[str, Tensor]:
        """The tensors under their published names."""
        tensors = dict(self.network.state_dict())
        if self.sigmoid_head is not None:
            tensors |= self.sigmoid_head.state_dict(prefix=sigmoid_name(self.head_name) + ".")
        return tensors

    def published_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters under their published names."""
        parameters = dict(self.network.named_parameters())
        if self.sigmoid_head is not None:
            parameters |= dict(self.sigmoid_head.named_parameters(prefix=sigmoid_name(self.head_name)))
        return parameters

    def load_published(self, tensors: dict[str, Tensor], source: str, *, branch: bool = True) -> None:
        """Load tensors under published names. The set of names and every shape must fit exactly.

        Args:
            tensors: names may have wrappers such as `module.` in front (wsol/tensor_files.py), and a branch may have
                any of its published names.
            source: the file's name, for error messages.
            branch: False leaves the sigmoid branch as it is and ignores one in `tensors`.

        Raises:
            InputError: names or shapes differ, or values are not finite; the message says which, and the remedy.
        """
        prefix = sigmoid_name(self.head_name) + "."
        expected, tensors = self.published_state_dict(), self._under_own_names(tensors)
        if not branch:
            expected, tensors = ({n: t for n, t in d.items() if not n.startswith(prefix)} for d in (expected, tensors))
        # num_batches_tracked was added in torch 0.4.1; older files lack it, and evaluation does not read it.
        missing = [n for n in expected if n not in tensors and not n.endswith("num_batches_tracked")]
        left_over = [n for n in tensors if n not in expected]
        if missing and all(n.startswith(prefix) for n in missing) and not left_over:
            raise InputError(
                f"{source} has no sigmoid branch ({prefix}*), only a softmax head; evaluate it with "
                "--model_structure vanilla, or train a branch on it with --ft_ckpt"
            )
        if left_over and all(n.startswith(prefix) for n in left_over) and not missing:
            raise InputError(f"{source} has a sigmoid branch ({prefix}*); evaluate it with --model_structure b2")
        if missing or left_over:
            differences = {"missing": missing, "left over": left_over}
            raise InputError(
                f"{source} does not fit this network ({type(self.network).__name__}): "
                + "".join(f"{what}: {first_few(names)}; " for what, names in differences.items() if names)
                + "check --architecture, --wsol_method, --classifier_form, --last_layer and --large_feature_map"
            )
        for name, tensor in tensors.items():
            if tensor.shape != expected[name].shape:
                is_head = name.startswith((self.head_name, prefix))
                raise InputError(
                    f"{source}: {name} has shape {tuple(tensor.shape)}, this network needs "
                    f"{tuple(expected[name].shape)}; "
                    + (
                        "it was trained on another number of classes; check --dataset_name"
                        if is_head
                        else "check --architecture"
                    )
                )
            if not torch.isfinite(tensor).all():
                raise InputError(f"{source}: {name} has NaN or infinite values; the training that wrote it diverged")
        with torch.no_grad():
            for name, tensor in tensors.items():
                expected[name].copy_(tensor)  # the tensors of a state dict share memory with the model
        self.head_is_new = False

    def finds_branch(self, tensors: dict[str, Tensor]) -> bool:
        """Whether a sigmoid branch for this network, under any of its published names, is among the tensors."""
        prefix = sigmoid_name(self.head_name) + "."
        return any(name.startswith(prefix) for name in self._under_own_names(tensors))

    def _under_own_names(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a checkpoint under this network's names: with its wrappers only, and its name for the branch."""
        names = list(self.network.state_dict())
        wrappers = shared_wrappers(names)
        modules = {name.removeprefix(wrappers).split(".")[0] for name in names}
        renamed = {}
        for name, tensor in unwrapped(tensors).items():
            first, _, rest = name.partition(".")
            is_branch = first in _PUBLISHED_SIGMOID_NAMES and first not in modules
            renamed[f"{sigmoid_name(self.head_name)}.{rest}" if is_branch else wrappers + name] = tensor
        return renamed

    def forward(self, images: Tensor) -> Output:
        """images (B, 3, H, W), normalised → Output of logits (B, K)."""
        _, *branches = self.heads().items()
        if not branches:
            return Output(logits_of(self.network(images)), None)

        # Networks may process their head's output further (pool, flatten). Passing all heads' outputs on as one batch
        # takes the branch through the same steps, whatever they are, without a second forward pass.
        def append_branches(_head: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return torch.cat([output, *(branch(inputs[0]) for _, branch in branches)])

        handle = self.softmax_head.register_forward_hook(append_branches)
        try:
            together = logits_of(self.network(images))
        finally:
            handle.remove()
        if together.shape[0] != (1 + len(branches)) * images.shape[0]:
            raise InputError(
                f"the output of {type(self.network).__name__} does not follow from its head "
                f"'{self.head_name}' image by image; name another: dualize(model, head='...')"
            )
        logits, *others = together.split(images.shape[0])
        rivals = {name: found for (name, _), found in zip(branches, others, strict=True)}
        return Output(logits, rivals.pop("sigmoid", None), rivals=rivals)

    def head_input(self, images: Tensor) -> Tensor:
        """The head's input for these images, (B, D) if the head follows a pooling layer."""
        head_inputs: list[Tensor] = []
        handle = self.softmax_head.register_forward_pre_hook(lambda _head, inputs: head_inputs.append(inputs[0]))
        try:
            self.network(images)
        finally:
            handle.remove()
        return head_inputs[0]

    def classify(self, features: Tensor) -> Output:
        """Both heads on features from `head_input`, for networks that end with their head."""
        return Output(self.softmax_head(features), None if self.sigmoid_head is None else self.sigmoid_head(features))

    def classify_regions(self, pooled: Tensor) -> Tensor:
        """The sigmoid branch on the mean features of regions, (B, R, D) → (B, R, K)."""
        assert self.sigmoid_head is not None, "regions are for the sigmoid branch"
        features = pooled.flatten(0, 1)
        if isinstance(linear_layers(self.sigmoid_head)[0], nn.Conv2d):
            features = features[:, :, None, None]
        return self.sigmoid_head(features).flatten(1).unflatten(0, pooled.shape[:2])

    @torch.no_grad()
    def check_image_size(self, side: int, setting: str = "") -> None:
        """InputError if the network does not take images of side x side; it is run on one.

        setting: what asks for that side, for the message; by default `--crop_size`.
        """
        try:
            with eval_mode(self):
                self(next(self.parameters()).new_zeros(1, 3, side, side))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            asked = setting or f"--crop_size {side}"
            raise InputError(f"{asked}: {type(self.network).__name__} does not take such images ({reason})") from None

    def set_trainable(self, parts: Iterable[str]) -> "Classifier":
        """Train only these of PARTS and freeze the others. Returns self."""
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
        """Train mode for the parts that are not frozen; eval mode for the others. Returns self."""
        super().train(mode)
        self.network.train(mode and "trunk" in self.trainable)
        for module in self.neck:
            module.train(mode and "neck" in self.trainable)
        self.softmax_head.train(mode and "softmax_head" in self.trainable)
        if self.sigmoid_head is not None:
            self.sigmoid_head.train(mode and "sigmoid_head" in self.trainable)
        return self
