"""CAM_METHODS: every class activation map method by its name, what is true of it, and where its formula is.

A method is its formula, a function of one head's view of a forward pass (`wsol.cam.forward_pass.HeadView`), and one
entry here. The formula returns a weight for each channel, (B, C); or what each channel adds at each place,
(B, C, h, w), which is summed up; or the finished map, (B, h, w):

    def gradcam(view: HeadView) -> Tensor:
        return view.gradients.mean(dim=(2, 3))

    CamMethod("gradcam", "wsol.cam.gradient:gradcam", weights=True, per_place=True)

Everything else (hooks, the forward pass, gradients, clamping, the weighted sum) is written once, in
wsol/cam/extractor.py. Formulas are imported when first used, so the names can be listed without importing torch.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsol.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from wsol.cam.forward_pass import HeadView

PERTURB_BATCH = 64  # perturbed inputs in one forward pass, see CamExtractor


@dataclass(frozen=True)
class Option:
    """A hyperparameter of a method: a number >= 0 that the formula reads as `view.options[name]`.

    It is a keyword argument of CamExtractor and a flag of the commands, each under its name. `whole`: a whole number
    >= 1.
    """

    name: str
    default: float
    help: str
    whole: bool = False


@dataclass(frozen=True)
class CamMethod:
    """A method's entry.

    Args:
        name: as on the command line.
        formula: the function, or "module:function".
        weights: the formula returns one weight per channel, so that negative weights can be clamped.
        pooled: reads the layer that the head pools instead of the target layer, where the two differ (vision
            transformers). A network that a training method has given a map of its own (ACoL) gives that one for its
            softmax head.
        rectify, interpolation: how a raw map becomes a score map (wsol/cam/scoremap.py): cut negative values before
            resizing, and how to resize.
        headless: sees activations only, so all heads share one map.
        per_place: its maps are proportional to gradients at single places. Behind a mean over P places these are 1/P of
            the head's weights, which counts where maps of several views of an image are added.
        second_order: differentiates twice, which attention's fused kernels do not support.
        any_target: explains any score (wsol/cam/targets.py), not a class's logit alone.
        levels: reads several stages of the network, `view.levels`.
        reads_images: needs the images, not the target layer's activations and the heads alone.
        cut_scales: where views of several scales are added, negative places of each scale are cut first.
        on_request: only made where it is named, not by `--methods all`: it takes very many forward passes.
        fitted: reads what a fit to the training images gave, `view.shared.fitted[name]`; see wsol/cam/broadcam.py.
        options: the method's hyperparameters.
    """

    name: str
    formula: str | Callable[[HeadView], Tensor]
    weights: bool
    pooled: bool = False
    rectify: bool = True
    interpolation: str = "bilinear"
    headless: bool = False
    per_place: bool = False
    second_order: bool = False
    any_target: bool = False
    levels: bool = False
    reads_images: bool = False
    cut_scales: bool = False
    on_request: bool = False
    fitted: bool = False
    options: tuple[Option, ...] = ()

    def __call__(self, view: HeadView) -> Tensor:
        """Channel weights (B, C), what each channel adds (B, C, h, w), or the finished map (B, h, w)."""
        formula = pkgutil.resolve_name(self.formula) if isinstance(self.formula, str) else self.formula
        return formula(view)


def _gradient_method(name: str, function: str, *, weights: bool = False, **more: bool) -> CamMethod:
    properties = {"per_place": True, "any_target": True} | more
    return CamMethod(name, f"wsol.cam.gradient:{function}", weights=weights, **properties)  # type: ignore[arg-type]


CAM_METHODS: dict[str, CamMethod] = {
    method.name: method
    for method in (
        CamMethod("cam", "wsol.cam.activation:cam", weights=True, pooled=True, rectify=False, interpolation="bicubic"),
        CamMethod("eigencam", "wsol.cam.activation:eigencam", weights=False, headless=True),
        CamMethod("kpcacam", "wsol.cam.activation:kpcacam", weights=False, headless=True),
        CamMethod("fem", "wsol.cam.activation:fem", weights=True, headless=True),
        CamMethod("fullgrad", "wsol.cam.fullgrad:fullgrad", weights=False, reads_images=True),
        _gradient_method("gradcam", "gradcam", weights=True),
        _gradient_method("gradcam++", "gradcam_plus_plus", weights=True, per_place=False),
        _gradient_method("xgradcam", "xgradcam", weights=True),
        _gradient_method("layercam", "layercam"),
        _gradient_method("hirescam", "hirescam"),
        _gradient_method("gradcamelementwise", "gradcam_elementwise"),
        _gradient_method("eigengradcam", "eigengradcam"),
        _gradient_method("segeigencam", "segeigencam"),
        _gradient_method("shapleycam", "shapleycam", weights=True, second_order=True),
        CamMethod("refinecam", "wsol.cam.levels:refinecam", weights=False, any_target=True, levels=True),
        CamMethod("layercamfused", "wsol.cam.levels:layercamfused", weights=False, any_target=True, levels=True),
        CamMethod(
            "smoothgradcam++",
            "wsol.cam.perturbation:smoothgradcam_plus_plus",
            weights=True,
            any_target=True,
            reads_images=True,
            options=(
                Option("smooth_samples", 4, "smoothgradcam++: images with noise", whole=True),
                Option("smooth_std", 0.3, "smoothgradcam++: deviation of the noise, of normalized images"),
            ),
        ),
        CamMethod(
            "finercam",
            "wsol.cam.gradient:finercam",
            weights=True,
            per_place=True,
            options=(Option("alpha", 0.6, "finercam: strength of the comparison with the nearest classes"),),
        ),
        CamMethod(
            "broadcam",
            "wsol.cam.broadcam:broadcam",
            weights=False,
            headless=True,
            levels=True,
            fitted=True,
            cut_scales=True,
        ),
        CamMethod("scorecam", "wsol.cam.perturbation:scorecam", weights=True, reads_images=True),
        CamMethod(
            "sscam",
            "wsol.cam.perturbation:sscam",
            weights=True,
            reads_images=True,
            on_request=True,
            options=(
                Option("sscam_samples", 35, "sscam: masks with noise, for each channel", whole=True),
                Option("sscam_std", 2.0, "sscam: deviation of the noise, of masks in [0, 1]"),
            ),
        ),
        CamMethod(
            "iscam",
            "wsol.cam.perturbation:iscam",
            weights=True,
            reads_images=True,
            on_request=True,
            options=(Option("iscam_samples", 10, "iscam: masks that grow, for each channel", whole=True),),
        ),
        CamMethod("ablationcam", "wsol.cam.perturbation:ablationcam", weights=True),
        CamMethod("randomcam", "wsol.cam.baselines:randomcam", weights=True, headless=True, reads_images=True),
        CamMethod("sobelcam", "wsol.cam.baselines:sobelcam", weights=False, headless=True, reads_images=True),
    )
}


def all_methods() -> list[str]:
    """What `--methods all` stands for."""
    return [name for name, method in CAM_METHODS.items() if not method.on_request]


def register(name: str, **properties: Any) -> Callable[[Callable[[HeadView], Tensor]], Callable[[HeadView], Tensor]]:
    """Enter a formula of your own into CAM_METHODS: `@register("mine", weights=True)` above the function."""

    def enter(formula: Callable[[HeadView], Tensor]) -> Callable[[HeadView], Tensor]:
        CAM_METHODS[name] = CamMethod(name, formula, **properties)
        return formula

    return enter


def get_method(name: str) -> CamMethod:
    """The entry of a method, or an InputError that lists the known ones."""
    if name not in CAM_METHODS:
        known = ", ".join(CAM_METHODS)
        raise InputError(f"unknown CAM method '{name}'{nearest(name, CAM_METHODS)} (known: {known})")
    return CAM_METHODS[name]


def cam_options() -> dict[str, Option]:
    """The hyperparameters of all methods, by name."""
    return {option.name: option for method in CAM_METHODS.values() for option in method.options}
