"""CamExtractor: one forward pass for all methods and both heads."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wsol.cam.cost import Meter
from wsol.cam.forward_pass import ForwardPass, HeadView
from wsol.cam.registry import CAM_METHODS, PERTURB_BATCH, cam_options, get_method
from wsol.cam.variant import NO_HEAD, Variant, variants
from wsol.classifier import Classifier, Output, eval_mode, find_head
from wsol.errors import InputError, nearest
from wsol.layout import find_layers, find_layout


class CamExtractor:
    """Raw class activation maps at the target layer's resolution.

        with CamExtractor(model, ["gradcam", "layercam"], target_layer=model.layer4[-1]) as extract:
            maps = extract(images, class_ids)      # {"gradcam": (B, h, w), ...}, signed, not normalised

    Args:
        model: a `Classifier` or any network that maps images to logits (B, K).
        methods: names in CAM_METHODS.
        target_layer: the module whose output is A, (B, C, h, w), (B, h, w, C) or tokens (B, P + N, C), see
            wsol/layout.py; None: a Classifier knows its own, and the layer that its head pools, which `cam` reads; of
            another network the last layers with places are found when the first images come.
        heads: of HEADS. Given, the keys of the maps are Variants such as Variant("gradcam", "sigmoid", clamped=True);
            None: the softmax head, unclamped, and the keys are the methods' names.
        perturb_batch: perturbed inputs in one forward pass (scorecam, ablationcam; images of fullgrad).
        meter: adds up what the forward pass and each method cost. On CUDA it waits for each, which takes time.
        options: hyperparameters of methods (`Option` in wsol/cam/registry.py), such as alpha=0.6 for finercam.

    The trunk runs once a batch and without autograd; recording starts at the
    target layer, so gradients are those of the few layers behind it. (fullgrad
    differentiates the whole network and scorecam runs it once a channel, by
    their definition.) Inside the `with` the model is in eval mode and fp32
    outside autocast; on leaving, even by an exception, the hooks are gone and
    every module's mode is what it was.
    `extract.output` is the Output (logits of both heads) of the last call.
    """

    def __init__(
        self,
        model: nn.Module,
        methods: Sequence[str],
        target_layer: nn.Module | None = None,
        heads: Sequence[str] | None = None,
        *,
        perturb_batch: int = PERTURB_BATCH,
        meter: Meter | None = None,
        **options: float,
    ):
        if perturb_batch < 1:
            raise InputError(f"perturb_batch must be at least 1, got {perturb_batch}")
        self.model = model if isinstance(model, Classifier) else Classifier(model, find_head(model))
        self.methods = [methods] if isinstance(methods, str) else list(methods)
        for name in options:
            if name not in cam_options():
                raise InputError(f"no CAM method has an option '{name}'{nearest(name, cam_options())}")
        made = variants(self.methods, heads or ["softmax"])
        self.keys = {variant: variant if heads is not None else variant.method for variant in made}
        missing = {variant.head for variant in made} - {*self.model.heads(), NO_HEAD}
        if missing:
            raise InputError(
                f"{type(self.model.network).__name__} has no {missing.pop()} head; dualize(model) adds one"
            )
        self.perturb_batch, self.options = perturb_batch, options
        self.output: Output | None = None
        self._meter = meter
        self._layers: dict[str, nn.Module] = {}  # each method's, once known
        target = target_layer if target_layer is not None else self.model.target_layer
        if target is not None:
            self._choose_layers(target, target if target_layer is not None else self.model.pooled_layer)
        self._recorded: dict[nn.Module, Tensor] | None = None  # None: the hooks let everything pass
        self._handles = []
        self._inside = False

    def __enter__(self) -> "CamExtractor":
        self._modes = ExitStack()
        self._modes.enter_context(eval_mode(self.model))
        self._inside = True
        self._hook()
        return self

    def __exit__(self, *_exception) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._recorded, self._inside = [], None, False
        self._modes.close()

    def __call__(self, images: Tensor, class_ids: Tensor | None = None) -> dict[Variant | str, Tensor]:
        """images (B, 3, H, W), normalised, and the classes (B,) to explain (None: the
        softmax head's prediction) → raw maps (B, h, w) on the images' device, by row."""
        if not self._inside:
            raise RuntimeError("CamExtractor works inside its with block: with CamExtractor(...) as extract: ...")
        with (
            torch.inference_mode(False),
            torch.autocast(images.device.type, enabled=False),
            torch.enable_grad(),
            self._differentiable_attention(),
        ):
            if not self._layers:
                names = find_layers(self.model.network, self.model.head_name, torch.randn_like(images[:1]))
                self._choose_layers(*map(self.model.network.get_submodule, names))
                self._hook()
            with self._measured("forward", images.device):
                output, recorded = self._forward(images)
            class_ids = self._check_classes(class_ids, output.logits)
            views = self._views(images, output, recorded, class_ids)
            self.output = Output(*(None if x is None else x.detach() for x in output))
            return self._maps(views)

    def _choose_layers(self, target: nn.Module, pooled: nn.Module) -> None:
        self._layers = {method: pooled if get_method(method).pooled else target for method in self.methods}

    def _hook(self) -> None:
        self._handles = [layer.register_forward_hook(self._record) for layer in dict.fromkeys(self._layers.values())]

    def _record(self, layer, _inputs, activations: Tensor) -> Tensor | None:
        if self._recorded is None:
            return None
        if not isinstance(activations, Tensor) or activations.ndim not in (3, 4):
            raise InputError(f"the target layer {type(layer).__name__} gives no (B, C, h, w) activations")
        torch.set_grad_enabled(True)  # undone by the no_grad block around the forward pass
        if not activations.requires_grad:  # the first of the layers; another one lies behind it
            activations = activations.detach().requires_grad_()
        self._recorded[layer] = activations
        return activations.clone()  # a layer behind may work in place

    def _forward(self, images: Tensor) -> tuple[Output, dict[nn.Module, Tensor]]:
        self._recorded = {}
        try:
            with torch.no_grad():
                return self.model(images), self._recorded
        finally:
            self._recorded = None

    def _measured(self, part: str, device: torch.device) -> AbstractContextManager:
        return nullcontext() if self._meter is None else self._meter.measure(part, device)

    @contextmanager
    def _differentiable_attention(self) -> Iterator[None]:
        """Fused attention cannot be differentiated twice; the plain kernel can."""
        twice = any(CAM_METHODS[method].second_order for method in self.methods)
        with sdpa_kernel(SDPBackend.MATH) if twice else nullcontext():
            yield

    def _views(
        self, images: Tensor, output: Output, recorded: dict[nn.Module, Tensor], class_ids: Tensor
    ) -> dict[tuple[nn.Module, str], HeadView]:
        """What each head makes of each recorded layer."""
        views = {}
        for layer in dict.fromkeys(self._layers.values()):
            if layer not in recorded:
                raise InputError(f"the forward pass never reached the target layer {type(layer).__name__}")
            layout = find_layout(tuple(recorded[layer].shape), tuple(images.shape[-2:]))
            if layout is None:
                raise InputError(
                    f"the target layer {type(layer).__name__} gives no (B, C, h, w) activations, nor "
                    f"tokens on a grid: {tuple(recorded[layer].shape)}"
                )
            shared = ForwardPass(
                self.model,
                images,
                layer,
                recorded[layer],
                layout,
                output,
                class_ids,
                perturb_batch=self.perturb_batch,
                options=self.options,
            )
            for head, module in self.model.heads().items():
                views[layer, head] = HeadView(shared, head, module)
            views[layer, NO_HEAD] = views[layer, "softmax"]
        return views

    def _check_classes(self, class_ids: Tensor | None, logits: Tensor) -> Tensor:
        if class_ids is None:
            return logits.detach().argmax(dim=1)
        class_ids = torch.as_tensor(class_ids, device=logits.device, dtype=torch.long)
        batch, num_classes = logits.shape
        if class_ids.shape != (batch,):
            raise InputError(f"{batch} images need {batch} class ids, not a tensor of shape {tuple(class_ids.shape)}")
        if batch and not 0 <= int(class_ids.min()) <= int(class_ids.max()) < num_classes:
            raise InputError(
                f"class ids {int(class_ids.min())}..{int(class_ids.max())} outside the network's "
                f"{num_classes} classes (0..{num_classes - 1})"
            )
        return class_ids

    def _maps(self, views: dict[tuple[nn.Module, str], HeadView]) -> dict[Variant | str, Tensor]:
        formulas: dict[tuple[str, str], Tensor] = {}  # a head's clamped and plain row share the formula
        maps = {}
        for variant, key in self.keys.items():
            method, view = get_method(variant.method), views[self._layers[variant.method], variant.head]
            with self._measured(variant.method, view.activations.device):
                if (variant.method, variant.head) not in formulas:
                    formulas[variant.method, variant.head] = method(view).detach()
                result = formulas[variant.method, variant.head]
                if method.weights:
                    weights = result.clamp(min=0) if variant.clamped else result
                    result = torch.einsum("bc,bchw->bhw", weights, view.activations)
                maps[key] = result
        return maps
