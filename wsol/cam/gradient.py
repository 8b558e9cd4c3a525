"""Methods that weight activations A by gradients g = d s_k / d A (protocol of each: its paper's equation)."""

import torch
from torch import Tensor

from wsol.cam.activation import principal_component
from wsol.cam.forward_pass import HeadView

NEAREST = 3  # classes that finercam compares with


def gradcam(view: HeadView) -> Tensor:
    """w_c = mean_ij g (Selvaraju et al., ICCV 2017, eq. 1)."""
    return view.gradients.mean(dim=(2, 3))


def gradcam_plus_plus(view: HeadView) -> Tensor:
    """w_c = sum_ij alpha relu(g), alpha = g^2 / (2 g^2 + g^3 sum_ij A) (Chattopadhay et al., WACV 2018, eq. 19).

    1e-6 keeps the denominator from zero; alpha is 0 where g is.
    """
    g = view.gradients
    total = view.activations.sum(dim=(2, 3), keepdim=True)
    alpha = g.square() / (2 * g.square() + total * g.pow(3) + 1e-6)
    alpha = alpha.where(g != 0, 0)
    return (alpha * g.relu()).sum(dim=(2, 3))


def xgradcam(view: HeadView) -> Tensor:
    """w_c = sum_ij g A / sum_ij A (Fu et al., BMVC 2020, eq. 8), 1e-7 in the denominator."""
    a = view.activations
    return (view.gradients * a).sum(dim=(2, 3)) / (a.sum(dim=(2, 3)) + 1e-7)


def layercam(view: HeadView) -> Tensor:
    """sum_c relu(g) A: a weight for each place, not each channel (Jiang et al., TIP 2021, eq. 5)."""
    return (view.gradients.relu() * view.activations).sum(dim=1)


def hirescam(view: HeadView) -> Tensor:
    """sum_c g A (Draelos & Carin, 2020, eq. 4)."""
    return (view.gradients * view.activations).sum(dim=1)


def gradcam_elementwise(view: HeadView) -> Tensor:
    """sum_c relu(g A): HiResCAM without what speaks against the class (grad-cam's GradCAMElementWise)."""
    return (view.gradients * view.activations).relu().sum(dim=1)


def eigengradcam(view: HeadView) -> Tensor:
    """First principal component of g A (grad-cam's EigenGradCAM), signed to rise with HiResCAM's map."""
    return principal_component(view.gradients * view.activations)


def shapleycam(view: HeadView) -> Tensor:
    """w_c = mean_ij (g - H A / 2) (Cai, 2025, arXiv 2501.06261); gradcam where the score is linear in A."""
    return (view.gradients - 0.5 * view.hessian_product()).mean(dim=(2, 3))


def finercam(view: HeadView) -> Tensor:
    """gradcam of s_k - alpha m, m the mean of the nearest classes' scores, weighted by their probabilities.

    Nearest are the three classes whose scores differ least from s_k; the gradient
    goes through the weights, too (Zhang et al., CVPR 2025, arXiv 2501.11309, eq. 4).
    Normalising over the three alone is what their probabilities over their sum
    come to, without the underflow of a sure network.
    """
    others = view.logits.scatter(1, view.class_ids[:, None], torch.nan)  # NaN sorts behind everything
    distance = (others - view.scores[:, None]).abs().detach()
    count = min(NEAREST, others.shape[1] - 1)
    if count == 0:
        return view.gradients.mean(dim=(2, 3))
    near = view.logits.gather(1, distance.argsort(dim=1)[:, :count])
    mean = (near.softmax(dim=1) * near).sum(dim=1)
    return view.gradients_of(view.scores - view.options["alpha"] * mean).mean(dim=(2, 3))
