"""CamExtractor: one forward pass for all methods and both heads."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wsol.cam.cost import Meter
from wsol.cam.forward_pass import ForwardPass, HeadView
from wsol.cam.refinement import refine_by_affinity, resize_maps
from wsol.cam.registry import PERTURB_BATCH, cam_options, get_method
from wsol.cam.variant import AFFINITY_CENTRED, AFFINITY_POWER, AFFINITY_STEPS, NO_HEAD, Variant, variants
from wsol.classifier import Classifier, Output, eval_mode, find_head, module_name
from wsol.errors import InputError, nearest
from wsol.layout import Layout, find_guiding_layer, find_layers, find_layout


class CamExtractor:
    """Raw class activation maps at the target layer's resolution.

        with CamExtractor(model, ["gradcam", "layercam"], target_layer=model.layer4[-1]) as extract:
            maps = extract(images, class_ids)      # {"gradcam": (B, h, w), ...}, signed, not normalised

    The trunk runs once per batch and without autograd; recording starts at the target layer, so gradients are computed
    only for the few layers after it. (By definition, fullgrad differentiates the whole network and scorecam runs it
    once per channel.) Inside the `with` block the model is in eval mode, and maps are computed outside autocast. On
    leaving, even by an exception, every module is in its former mode; hooks exist only during a forward pass.

    Args:
        model: a `Classifier`, or any network whose output for images is logits (B, K), an object with `.logits`, or a
            dict with "logits".
        methods: names in CAM_METHODS.
        target_layer: the layer whose output is A, as a module of the network or by its dotted name. The output is
            (B, C, h, w), (B, h, w, C) or tokens (B, P + N, C), see wsol/layout.py. None: a Classifier may know its own,
            and the layer that its head pools, which `cam` reads; otherwise both are found from the first images.
        heads: of HEADS. If given, the keys of the maps are Variants such as Variant("gradcam", "sigmoid", True). None:
            maps of the softmax head, unclamped, and the keys are the methods' names.
        refine: of REFINEMENTS. "affinity" adds a refined map for each other one, at the resolution of the guiding layer
            (wsol/cam/refinement.py), whose activations are those of the same forward pass. If given, the keys of the
            maps are Variants.
        affinity_layer: the guiding layer, as a module of the network or by its dotted name. None: it is found from the
            first images (`find_guiding_layer` in wsol/layout.py).
        affinity_power, affinity_steps, affinity_centred: settings of the refinement.
        perturb_batch: number of perturbed inputs in one forward pass (scorecam, ablationcam; images in fullgrad).
        meter: adds up what the forward pass, each method and the refinement ("affinity") cost. On CUDA, measuring waits
            for the device.
        options: hyperparameters of methods (`Option` in wsol/cam/registry.py), such as alpha=0.6 for finercam.

    Attributes:
        output: the Output (logits of both heads) of the last call.
        affinity_layer_name: dotted name of the guiding layer; None until it is known, and without refinement.
    """

    def __init__(
        self,
        model: nn.Module,
        methods: Sequence[str],
        target_layer: nn.Module | str | None = None,
        heads: Sequence[str] | None = None,
        *,
        refine: Sequence[str] = ("none",),
        affinity_layer: nn.Module | str | None = None,
        affinity_power: float = AFFINITY_POWER,
        affinity_steps: int = AFFINITY_STEPS,
        affinity_centred: bool = AFFINITY_CENTRED,
        perturb_batch: int = PERTURB_BATCH,
        meter: Meter | None = None,
        **options: float,
    ):
        if perturb_batch < 1:
            raise InputError(f"perturb_batch must be at least 1, got {perturb_batch}")
        if not affinity_power > 0:
            raise InputError(f"affinity_power must be above 0, got {affinity_power}")
        if affinity_steps < 1:
            raise InputError(f"affinity_steps must be at least 1, got {affinity_steps}")
        for name in options:
            if name not in cam_options():
                raise InputError(f"no CAM method has an option '{name}'{nearest(name, cam_options())}")
        self.model = model if isinstance(model, Classifier) else Classifier(model, find_head(model))
        self.methods = [methods] if isinstance(methods, str) else list(methods)
        refine = [refine] if isinstance(refine, str) else list(refine)
        self.variants = variants(self.methods, heads or ["softmax"], refine)
        missing = {variant.head for variant in self.variants} - {*self.model.heads(), NO_HEAD}
        if missing:
            raise InputError(
                f"{type(self.model.network).__name__} has no {missing.pop()} head; dualize(model) adds one"
            )
        self.perturb_batch, self.options = perturb_batch, options
        self.output: Output | None = None
        self.affinity_layer_name: str | None = None
        self.affinity_power, self.affinity_steps = affinity_power, affinity_steps
        self.affinity_centred = affinity_centred
        self._refines = any(variant.refined for variant in self.variants)
        self._keys_are_variants = heads is not None or self._refines
        self._meter = meter
        self._former_modes: ExitStack | None = None  # None outside the with block
        self._target_name = ""
        self._layer_of: dict[str, nn.Module] = {}  # method → the layer it reads; empty until the layers are known
        if target_layer is not None:
            layer = module_name(self.model.network, target_layer, "target layer")
            self._choose_layers(layer, layer)
        elif self.model.target_layer_name and self.model.pooled_layer_name:
            self._choose_layers(self.model.target_layer_name, self.model.pooled_layer_name)
        if self._refines and affinity_layer is not None:
            self.affinity_layer_name = module_name(self.model.network, affinity_layer, "affinity layer")

    def __enter__(self) -> "CamExtractor":
        self._former_modes = ExitStack()
        self._former_modes.enter_context(eval_mode(self.model))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._former_modes is not None:
            self._former_modes.close()
        self._former_modes = None

    def __call__(self, images: Tensor, class_ids: Tensor | Sequence[int] | None = None) -> dict[Variant | str, Tensor]:
        """Raw maps of one batch.

        Args:
            images: (B, 3, H, W), normalised.
            class_ids: (B,), the classes to explain; None: those that the softmax head predicts.

        Returns:
            Maps (B, h, w) on the images' device, one per variant, in the order of `variants`.
        """
        if self._former_modes is None:
            raise RuntimeError("CamExtractor works inside its with block: with CamExtractor(...) as extract: ...")
        with (
            torch.inference_mode(False),
            torch.autocast(images.device.type, enabled=False),
            torch.enable_grad(),
            self._differentiable_attention(),
        ):
            if not self._layer_of:
                noise = torch.randn_like(images[:1])
                self._choose_layers(*find_layers(self.model.network, self.model.head_name, noise))
            if self._refines and self.affinity_layer_name is None:
                self.affinity_layer_name = find_guiding_layer(
                    self.model.network, self.model.head_name, self._target_name, images[:1]
                )
            with self._measured("forward", images.device):
                output, activations, guide = self._forward(images)
            views = self._views(images, output, activations, self._check_classes(class_ids, output.logits))
            self.output = output.detach()
            return self._maps(views, guide)

    def _choose_layers(self, target: str, pooled: str) -> None:
        self._target_name = target
        self._layer_of = {
            method: self.model.network.get_submodule(pooled if get_method(method).pooled else target)
            for method in self.methods
        }

    def _forward(self, images: Tensor) -> tuple[Output, dict[nn.Module, Tensor], Tensor | None]:
        """Run the network.

        Returns its output, the activations of its chosen layers, from which autograd records, and where maps are
        refined those of the guiding layer, (B, C, h, w).
        """
        activations: dict[nn.Module, Tensor] = {}
        guide: Tensor | None = None

        def record(layer: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
            self._layout(layer, output, images, "target layer")
            torch.set_grad_enabled(True)  # undone by the no_grad block around the forward pass
            if not output.requires_grad:  # true of the first of the layers only
                output = output.detach().requires_grad_()
            activations[layer] = output
            return output.clone()  # a later layer may work in place

        def record_guide(layer: nn.Module, _inputs: tuple, output: Tensor) -> None:
            nonlocal guide
            layout = self._layout(layer, output, images, "affinity layer")
            guide = layout.to_maps(output.detach().clone())  # a later layer may work in place

        with ExitStack() as hooks:
            for layer in dict.fromkeys(self._layer_of.values()):
                hooks.callback(layer.register_forward_hook(record).remove)
            if self.affinity_layer_name is not None:
                layer = self.model.network.get_submodule(self.affinity_layer_name)
                hooks.callback(layer.register_forward_hook(record_guide).remove)
            with torch.no_grad():
                output = self.model(images)
        if self._refines and guide is None:
            raise InputError(f"the forward pass never reached the affinity layer {self.affinity_layer_name}")
        return output, activations, guide

    def _layout(self, layer: nn.Module, output: object, images: Tensor, role: str) -> Layout:
        """Where the places and channels of a layer's output are, or an InputError that names the layer's role."""
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        layout = find_layout(shape, (images.shape[-2], images.shape[-1]))
        if layout is None:
            raise InputError(
                f"the {role} {type(layer).__name__} gives no (B, C, h, w) activations, nor tokens on a grid: {shape}"
            )
        return layout

    def _measured(self, part: str, device: torch.device) -> AbstractContextManager[None]:
        return nullcontext() if self._meter is None else self._meter.measure(part, device)

    @contextmanager
    def _differentiable_attention(self) -> Iterator[None]:
        """Use the plain attention kernel if a method differentiates twice; fused kernels do not support that."""
        twice = any(get_method(method).second_order for method in self.methods)
        with sdpa_kernel(SDPBackend.MATH) if twice else nullcontext():
            yield

    def _views(
        self, images: Tensor, output: Output, activations: dict[nn.Module, Tensor], class_ids: Tensor
    ) -> dict[tuple[nn.Module, str], HeadView]:
        """Each head's view of each recorded layer."""
        views = {}
        for layer in dict.fromkeys(self._layer_of.values()):
            if layer not in activations:
                raise InputError(f"the forward pass never reached the target layer {type(layer).__name__}")
            layout = self._layout(layer, activations[layer], images, "target layer")
            shared = ForwardPass(
                self.model,
                images,
                layer,
                activations[layer],
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

    def _check_classes(self, class_ids: Tensor | Sequence[int] | None, logits: Tensor) -> Tensor:
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

    def _maps(self, views: dict[tuple[nn.Module, str], HeadView], guide: Tensor | None) -> dict[Variant | str, Tensor]:
        """The maps of all variants; guide: (B, C, h, w), activations of the guiding layer."""
        results: dict[tuple[str, str], Tensor] = {}  # of the formulas, shared by clamped and unclamped variants
        raw: dict[Variant, Tensor] = {}
        for variant in dict.fromkeys(variant._replace(refine="none") for variant in self.variants):
            method, view = get_method(variant.method), views[self._layer_of[variant.method], variant.head]
            with self._measured(variant.method, view.activations.device):
                if (variant.method, variant.head) not in results:
                    results[variant.method, variant.head] = method(view).detach()
                result = results[variant.method, variant.head]
                if method.weights:
                    weights = result.clamp(min=0) if variant.clamped else result
                    result = torch.einsum("bc,bchw->bhw", weights, view.activations)
                raw[variant] = result
        if guide is not None:
            with self._measured("affinity", guide.device):
                raw |= self._refined(raw, guide)
        return {variant if self._keys_are_variants else variant.method: raw[variant] for variant in self.variants}

    def _refined(self, raw: dict[Variant, Tensor], guide: Tensor) -> dict[Variant, Tensor]:
        """The refined form of each raw map. All maps of an image share its affinities."""
        size = (guide.shape[-2], guide.shape[-1])
        maps = torch.stack([resize_maps(maps[:, None], size)[:, 0] for maps in raw.values()], dim=1)  # (B, V, h, w)
        refined = refine_by_affinity(
            maps, guide, power=self.affinity_power, steps=self.affinity_steps, centred=self.affinity_centred
        )
        return {
            variant._replace(refine="affinity"): maps for variant, maps in zip(raw, refined.unbind(dim=1), strict=True)
        }
