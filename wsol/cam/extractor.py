"""CamExtractor: one forward pass for all methods and both heads."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wsol.cam.activation import principal_component
from wsol.cam.affinity import DEFAULT_AFFINITY, Affinity
from wsol.cam.cost import Meter
from wsol.cam.forward_pass import ForwardPass, HeadView
from wsol.cam.refinement import refine_by_affinity, resize_maps
from wsol.cam.registry import CAM_METHODS, PERTURB_BATCH, cam_options, get_method
from wsol.cam.scoremap import to_scoremaps
from wsol.cam.targets import Target, logit
from wsol.cam.variant import AFFINITY, NO_HEAD, Variant, variants
from wsol.cam.views import AUGMENTED, PLAIN, add_views, make_views
from wsol.classifier import Classifier, Output, eval_mode, find_head, module_name
from wsol.errors import InputError, nearest
from wsol.layout import Layout, find_guiding_layer, find_layers, find_layout, find_stages, is_place


class _Recorded(NamedTuple):
    """A forward pass.

    output: logits, which depend on the activations. activations: of the target layer and of the pooled layer, from
    which autograd records, in their own layout. layouts: of these. guides: guiding layer → its activations
    (B, C, h, w).
    """

    output: Output
    activations: dict[nn.Module, Tensor]
    layouts: dict[nn.Module, Layout]
    guides: dict[str, Tensor]


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
        heads: of HEADS, or a name that the model's `heads()` has, with or without "_clamped". If given, the keys of the
            maps are Variants such as Variant("gradcam", "sigmoid", True). None: maps of the softmax head, unclamped,
            and the keys are the methods' names.
        refine: of REFINEMENTS. "affinity" adds a refined map for each other one, at the resolution of the guiding layer
            (wsol/cam/refinement.py), whose activations are those of the same forward pass. If given, the keys of the
            maps are Variants.
        refined_methods: the methods that `refine` applies to; None: all. The others' maps are not refined.
        affinity: the refinement's settings; or several, each under a name that `refine` and the Variants then have.
        scales, flip: views of each image: it is scaled by each number, and with `flip` also mirrored left to right. The
            raw maps of all views are brought to the size of the largest one and added (wsol/cam/views.py); of broadcam,
            as in its paper, negative places of each scale are cut first. Gradients at
            one of P places are multiplied by P over that of the image itself first: behind a mean over the places they
            would otherwise count the less, the larger the view. Logits and predictions are those of the image itself.
        levels: the stages that methods of several stages read: 0 is the target layer, 1 the last layer of the stage
            before its own, and so on (`find_stages` in wsol/layout.py). None: 0 and 1, or 0 alone where the network has
            one stage only.
        fitted: method → what its fit to the training images gave; for broadcam the weights (K, D) of
            wsol/cam/broadcam.py.
        target: what is explained, a function of logits and class ids; see wsol/cam/targets.py. By default the class's
            logit; others are for methods that differentiate it.
        eigen_smooth: the first principal component of what the channels add takes the place of their sum (grad-cam), in
            methods that sum over channels.
        aug_smooth: the mean over six views of each image, mirrored or not and multiplied by 0.9, 1 and 1.1, of the maps
            rectified, resized to the image and stretched to [0, 1] (grad-cam). Maps are then as large as the image and
            not signed.
        perturb_batch: number of perturbed inputs in one forward pass (scorecam, ablationcam; images in fullgrad).
        meter: adds up what the forward pass, each method and the refinement ("affinity") cost, without waiting for the
            device.
        options: hyperparameters of methods (`Option` in wsol/cam/registry.py), such as alpha=0.6 for finercam.

    Attributes:
        output: the Output (logits of all heads) of the last call.
        activations: method → activations (B, C, h, w) of the layer that it reads, in the last call.
        weights: variant → channel weights (B, C) of the last call, of the image itself, for methods that have them.
        level_layers: dotted names of the stages that methods read; empty until the first images have come, and if no
            method reads any.
        guiding_layers: refinement → dotted name of its guiding layer; empty until the first images have come.
    """

    def __init__(
        self,
        model: nn.Module,
        methods: Sequence[str],
        target_layer: nn.Module | str | None = None,
        heads: Sequence[str] | None = None,
        *,
        refine: Sequence[str] = ("none",),
        refined_methods: Sequence[str] | None = None,
        affinity: Affinity | Mapping[str, Affinity] = DEFAULT_AFFINITY,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        levels: Sequence[int] | None = None,
        fitted: Mapping[str, Tensor] | None = None,
        target: Target = logit,
        eigen_smooth: bool = False,
        aug_smooth: bool = False,
        perturb_batch: int = PERTURB_BATCH,
        meter: Meter | None = None,
        **options: float,
    ):
        if perturb_batch < 1:
            raise InputError(f"perturb_batch must be at least 1, got {perturb_batch}")
        affinities = {AFFINITY: affinity} if isinstance(affinity, Affinity) else dict(affinity)
        for settings in affinities.values():
            settings.check()
        for name in options:
            if name not in cam_options():
                raise InputError(f"no CAM method has an option '{name}'{nearest(name, cam_options())}")
            if cam_options()[name].whole and (options[name] < 1 or options[name] != int(options[name])):
                raise InputError(f"{name} must be a whole number, at least 1, got {options[name]:g}")
        self.model = model if isinstance(model, Classifier) else Classifier(model, find_head(model))
        self.methods = [methods] if isinstance(methods, str) else list(methods)
        refine = [refine] if isinstance(refine, str) else list(refine)
        self.variants = variants(
            self.methods, heads or ["softmax"], refine, self.model.heads(), affinities, refined_methods
        )
        missing = {variant.head for variant in self.variants} - {*self.model.heads(), NO_HEAD}
        if missing:
            raise InputError(
                f"{type(self.model.network).__name__} has no {missing.pop()} head; dualize(model) adds one"
            )
        if levels is not None and min(levels, default=-1) < 0:
            raise InputError(f"levels must be numbers of stages from 0 on, at least one, got {list(levels)}")
        if target is not logit:
            for method in self.methods:
                if not get_method(method).any_target:
                    able = ", ".join(name for name, entry in CAM_METHODS.items() if entry.any_target)
                    raise InputError(f"{method} explains a class's logit, not another target; those that can: {able}")
        if aug_smooth and (flip or list(scales) != [1]):
            raise InputError("aug_smooth has views of its own; leave out scales and flip")
        self.perturb_batch, self.options = perturb_batch, options
        self.levels, self.target, self.eigen_smooth = levels, target, eigen_smooth
        self.fitted = dict(fitted or {})
        self.weights: dict[Variant | str, Tensor] = {}
        self.level_layers: list[str] = []
        self.output: Output | None = None
        self.activations: dict[str, Tensor] = {}
        refinements = {variant.refine for variant in self.variants if variant.refined}
        self.affinities = {name: settings for name, settings in affinities.items() if name in refinements}
        self.guiding_layers: dict[str, str] = {}
        self._keys_are_variants = heads is not None or bool(refinements)
        self._views_of_images = AUGMENTED if aug_smooth else make_views(scales, flip)
        self._aug_smooth = aug_smooth
        self._reads_levels = any(get_method(method).levels for method in self.methods)
        self._meter = meter
        self._former_modes: ExitStack | None = None  # None outside the with block
        self._target_name = ""
        self._layer_of: dict[str, nn.Module] = {}  # method → the layer it reads; empty until the layers are known
        if target_layer is not None:
            layer = module_name(self.model.network, target_layer, "target layer")
            self._choose_layers(layer, layer)
        elif self.model.target_layer_name and self.model.pooled_layer_name:
            self._choose_layers(self.model.target_layer_name, self.model.pooled_layer_name)
        for settings in self.affinities.values():
            if not is_place(settings.layer):
                module_name(self.model.network, settings.layer, "affinity layer")  # an InputError now, not later

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
        self._check_entered()
        for method in self.methods:
            if get_method(method).fitted and method not in self.fitted:
                raise InputError(f"{method} is fitted to training images first; give what that gave as fitted=")
        with (
            torch.inference_mode(False),
            torch.autocast(images.device.type, enabled=False),
            torch.enable_grad(),
            self._differentiable_attention(),
        ):
            self._find_layers(images)
            with self._measured("forward", images.device):
                plain = self._forward(images)
            class_ids = self._check_classes(class_ids, plain.output.logits)
            self.output = plain.output.detach()
            self.activations = {
                method: plain.layouts[layer].to_maps(plain.activations[layer].detach())
                for method, layer in self._layer_of.items()
            }
            maps = []
            for view in self._views_of_images:
                if view == PLAIN:
                    found = self._maps(plain, images, class_ids)
                else:
                    seen = view.of(images)
                    with self._measured("views", images.device):
                        recorded = self._forward(seen)
                    found = self._maps(recorded, seen, class_ids, plain)
                if self._aug_smooth:
                    found = self._stretched(found, (images.shape[-2], images.shape[-1]))
                maps.append({key: view.undo(values) for key, values in found.items()})
            if self._aug_smooth:
                return {key: torch.stack([values[key] for values in maps]).mean(dim=0) for key in maps[0]}
            cut = {key for key in maps[0] if get_method(key.method if isinstance(key, Variant) else key).cut_scales}
            return maps[0] if len(maps) == 1 else add_views(maps, self._views_of_images, cut)

    def level_features(self, images: Tensor) -> Tensor:
        """What a fit reads of images (B, 3, H, W): the mean over the places of each level's rectified activations.

        Returns:
            (B, D), the channels of the levels one after the other.
        """
        self._check_entered()
        with torch.inference_mode(False), torch.autocast(images.device.type, enabled=False):
            self._find_layers(images)
            recorded = self._forward(images)
            layers = map(self.model.network.get_submodule, self.level_layers)
            maps = [recorded.layouts[layer].to_maps(recorded.activations[layer].detach()) for layer in layers]
        return torch.cat([of_level.relu().mean(dim=(2, 3)) for of_level in maps], dim=1)

    def _check_entered(self) -> None:
        if self._former_modes is None:
            raise RuntimeError("CamExtractor works inside its with block: with CamExtractor(...) as extract: ...")

    def _stretched(self, maps: dict[Variant | str, Tensor], size: tuple[int, int]) -> dict[Variant | str, Tensor]:
        """Maps at the images' size in [0, 1]."""
        return {
            key: to_scoremaps(values, key.method if isinstance(key, Variant) else key, size)[0]
            for key, values in maps.items()
        }

    def _find_layers(self, images: Tensor) -> None:
        """Find what was not named, from the first images."""
        network = self.model.network
        if not self._layer_of:
            self._choose_layers(*find_layers(network, self.model.head_name, torch.randn_like(images[:1])))
        if self._reads_levels and not self.level_layers:
            self.level_layers = self._find_levels(images)
        for name, settings in self.affinities.items():
            if name not in self.guiding_layers:
                layer = settings.layer
                self.guiding_layers[name] = (
                    find_guiding_layer(network, self.model.head_name, self._target_name, images[:1], str(layer))
                    if is_place(layer)
                    else module_name(network, layer, "affinity layer")
                )

    def _find_levels(self, images: Tensor) -> list[str]:
        """The layers at `levels`, or an InputError if there are not so many stages."""
        network = self.model.network
        stages = find_stages(network, self.model.head_name, self._target_name, images[:1])
        levels = range(min(2, len(stages))) if self.levels is None else self.levels
        if max(levels) >= len(stages):
            raise InputError(
                f"{type(network).__name__} has no level {max(levels)}; its levels are "
                + ", ".join(f"{n}: {name}" for n, name in enumerate(stages))
            )
        return [stages[level] for level in levels]

    def _recorded_layers(self) -> list[nn.Module]:
        """The layers whose activations methods read, each once."""
        levels = map(self.model.network.get_submodule, self.level_layers)
        return list(dict.fromkeys([*self._layer_of.values(), *levels]))

    def _choose_layers(self, target: str, pooled: str) -> None:
        self._target_name = target
        self._layer_of = {
            method: self.model.network.get_submodule(pooled if get_method(method).pooled else target)
            for method in self.methods
        }

    def _forward(self, images: Tensor) -> _Recorded:
        """Run the network."""
        activations: dict[nn.Module, Tensor] = {}
        layouts: dict[nn.Module, Layout] = {}
        guides: dict[str, Tensor] = {}

        def record(layer: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
            layouts[layer] = self._layout(layer, output, images, "target layer")
            torch.set_grad_enabled(True)  # undone by the no_grad block around the forward pass
            if not output.requires_grad:  # true of the first of the layers only
                output = output.detach().requires_grad_()
            activations[layer] = output
            return output.clone()  # a later layer may work in place

        def record_guide(name: str, layer: nn.Module, _inputs: tuple, output: Tensor) -> None:
            layout = self._layout(layer, output, images, "affinity layer")
            guides[name] = layout.to_maps(output.detach().clone())  # a later layer may work in place

        own_features = self._layer_of_own_map()
        with ExitStack() as hooks:
            if own_features is not None:
                layer = self.model.network.get_submodule(own_features)
                hooks.callback(layer.register_forward_hook(partial(record_guide, own_features)).remove)
            for layer in self._recorded_layers():
                hooks.callback(layer.register_forward_hook(record).remove)
            for name in dict.fromkeys(self.guiding_layers.values()):
                layer = self.model.network.get_submodule(name)
                hooks.callback(layer.register_forward_hook(partial(record_guide, name)).remove)
            with torch.no_grad():
                output = self.model(images)
        for layer in self._recorded_layers():
            if layer not in activations:
                raise InputError(f"the forward pass never reached the target layer {type(layer).__name__}")
        for name in self.guiding_layers.values():
            if name not in guides:
                raise InputError(f"the forward pass never reached the affinity layer {name}")
        return _Recorded(output, activations, layouts, guides)

    def _layer_of_own_map(self) -> str | None:
        """The layer that the network's own map is made of, if there is one and it is asked for."""
        if self.model.method_layers.own_map is None or not any(get_method(name).pooled for name in self.methods):
            return None
        return self.model.method_layers.layers["features"]

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

    def _heads_views(
        self, recorded: _Recorded, images: Tensor, class_ids: Tensor
    ) -> dict[tuple[nn.Module, str], HeadView]:
        """Each head's view of each recorded layer."""
        views = {}
        for layer, activations in recorded.activations.items():
            shared = ForwardPass(
                self.model,
                images,
                layer,
                activations,
                recorded.layouts[layer],
                recorded.output,
                class_ids,
                perturb_batch=self.perturb_batch,
                options=self.options,
                target=self.target,
                fitted=self.fitted,
            )
            for head, module in self.model.heads().items():
                views[layer, head] = HeadView(shared, head, module)
            views[layer, NO_HEAD] = views[layer, "softmax"]
        levels = [self.model.network.get_submodule(name) for name in self.level_layers]
        for (_, head), view in views.items():
            view.levels = [views[layer, head] for layer in levels]
        return views

    def _check_classes(self, class_ids: Tensor | Sequence[int] | None, logits: Tensor) -> Tensor:
        if class_ids is None:
            if logits.ndim != 2:
                raise InputError(f"the network gives logits {tuple(logits.shape)}, so name the class of each image")
            return logits.detach().argmax(dim=1)
        class_ids = torch.as_tensor(class_ids, device=logits.device, dtype=torch.long)
        batch, num_classes = logits.shape[:2]
        if class_ids.shape != (batch,):
            raise InputError(f"{batch} images need {batch} class ids, not a tensor of shape {tuple(class_ids.shape)}")
        if batch and not 0 <= int(class_ids.min()) <= int(class_ids.max()) < num_classes:
            raise InputError(
                f"class ids {int(class_ids.min())}..{int(class_ids.max())} outside the network's "
                f"{num_classes} classes (0..{num_classes - 1})"
            )
        return class_ids

    def _maps(
        self, recorded: _Recorded, images: Tensor, class_ids: Tensor, plain: _Recorded | None = None
    ) -> dict[Variant | str, Tensor]:
        """The maps of all variants.

        Args:
            plain: of the images themselves, if `images` are another view of them.
        """
        views = self._heads_views(recorded, images, class_ids)
        results: dict[tuple[str, str], Tensor] = {}  # of the formulas, shared by clamped and unclamped variants
        raw: dict[Variant, Tensor] = {}
        for variant in dict.fromkeys(variant._replace(refine="none") for variant in self.variants):
            method, layer = get_method(variant.method), self._layer_of[variant.method]
            view = views[layer, variant.head]
            with self._measured(variant.method, view.activations.device):
                if (variant.method, variant.head) not in results:
                    results[variant.method, variant.head] = method(view).detach()
                result = results[variant.method, variant.head]
                if method.weights:
                    weights = result.clamp(min=0) if variant.clamped else result
                    if plain is None:
                        self.weights[variant if self._keys_are_variants else variant.method] = weights
                    result = self._summed(weights, view.activations)
                elif result.ndim == 4:
                    result = self._summed(None, result)
                own_map = self.model.method_layers.own_map
                if own_map is not None and method.pooled and variant.head == "softmax":
                    features = recorded.guides[self.model.method_layers.layers["features"]]
                    with torch.no_grad():
                        result = own_map(self.model.network, features, result, class_ids, variant.clamped)
                if plain is not None and method.per_place:
                    result = result * (math.prod(recorded.layouts[layer].grid) / math.prod(plain.layouts[layer].grid))
                raw[variant] = result
        maps = dict(raw)
        for name, settings in self.affinities.items():
            guide = recorded.guides[self.guiding_layers[name]]
            with self._measured(AFFINITY, guide.device):
                maps |= self._refined(raw, guide, name, settings)
        return {variant if self._keys_are_variants else variant.method: maps[variant] for variant in self.variants}

    def _summed(self, weights: Tensor | None, maps: Tensor) -> Tensor:
        """The sum over the channels of maps (B, C, h, w), weighted by (B, C); with `eigen_smooth` the component."""
        if self.eigen_smooth:
            return principal_component(maps if weights is None else weights[:, :, None, None] * maps)
        return maps.sum(dim=1) if weights is None else torch.einsum("bc,bchw->bhw", weights, maps)

    def _refined(
        self, raw: dict[Variant, Tensor], guide: Tensor, name: str, settings: Affinity
    ) -> dict[Variant, Tensor]:
        """The refined form of each raw map. All maps of an image share its affinities; guide: (B, C, h, w)."""
        wanted = [variant for variant in raw if variant._replace(refine=name) in self.variants]
        size = (guide.shape[-2], guide.shape[-1])
        maps = torch.stack([resize_maps(raw[variant][:, None], size)[:, 0] for variant in wanted], dim=1)
        refined = refine_by_affinity(  # (B, V, h, w)
            maps, guide, power=settings.power, steps=settings.steps, centred=settings.centred
        )
        return {
            variant._replace(refine=name): maps for variant, maps in zip(wanted, refined.unbind(dim=1), strict=True)
        }
