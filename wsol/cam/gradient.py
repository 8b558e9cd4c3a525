"""Methods that weight activations A by gradients g = d s_k / d A (protocol of each: its paper's equation)."""

from torch import Tensor

from wsol.cam.base import HeadView, register


@register("gradcam", weights=True)
def gradcam(view: HeadView) -> Tensor:
    """w_c = mean_ij g (Selvaraju et al., ICCV 2017, eq. 1)."""
    return view.gradients.mean(dim=(2, 3))


@register("gradcam++", weights=True)
def gradcam_plus_plus(view: HeadView) -> Tensor:
    """w_c = sum_ij alpha relu(g), alpha = g^2 / (2 g^2 + g^3 sum_ij A) (Chattopadhay et al., WACV 2018, eq. 19).

    1e-6 keeps the denominator from zero; alpha is 0 where g is.
    """
    g = view.gradients
    total = view.activations.sum(dim=(2, 3), keepdim=True)
    alpha = g.square() / (2 * g.square() + total * g.pow(3) + 1e-6)
    alpha = alpha.where(g != 0, 0)
    return (alpha * g.relu()).sum(dim=(2, 3))


@register("xgradcam", weights=True)
def xgradcam(view: HeadView) -> Tensor:
    """w_c = sum_ij g A / sum_ij A (Fu et al., BMVC 2020, eq. 8), 1e-7 in the denominator."""
    a = view.activations
    return (view.gradients * a).sum(dim=(2, 3)) / (a.sum(dim=(2, 3)) + 1e-7)


@register("layercam", weights=False)
def layercam(view: HeadView) -> Tensor:
    """sum_c relu(g) A: a weight for each place, not each channel (Jiang et al., TIP 2021, eq. 5)."""
    return (view.gradients.relu() * view.activations).sum(dim=1)
