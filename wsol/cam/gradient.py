"""Methods that weight activations A by gradients g = d s_k / d A; each cites the equation of its paper."""

import torch
from torch import Tensor

from wsol.cam.activation import principal_component
from wsol.cam.forward_pass import HeadView

NEAREST_CLASSES = 3  # that finercam compares with


def gradcam(view: HeadView) -> Tensor:
    """w_c = mean_ij g (Selvaraju et al., ICCV 2017, eq. 1)."""
    return view.gradients.mean(dim=(2, 3))


def gradcam_plus_plus(view: HeadView) -> Tensor:
    """w_c = sum_ij alpha relu(g), alpha = g^2 / (2 g^2 + g^3 sum_ij A) (Chattopadhay et al., WACV 2018, eq. 19).

    1e-6 in the denominator; alpha is 0 where g is 0.
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
    """sum_c relu(g) A: one weight per place and channel (Jiang et al., TIP 2021, eq. 5)."""
    return view.gradients.relu() * view.activations


def hirescam(view: HeadView) -> Tensor:
    """sum_c g A (Draelos & Carin, 2020, eq. 4)."""
    return view.gradients * view.activations


def gradcam_elementwise(view: HeadView) -> Tensor:
    """sum_c relu(g A): HiResCAM without evidence against the class (grad-cam's GradCAMElementWise)."""
    return (view.gradients * view.activations).relu()


def eigengradcam(view: HeadView) -> Tensor:
    """First principal component of g A (grad-cam's EigenGradCAM), with the sign that correlates with HiResCAM's map."""
    return principal_component(view.gradients * view.activations)


def segeigencam(view: HeadView) -> Tensor:
    """First principal component of |g| A, with the sign whose extreme is farther from 0.

    Seg-Eigen-CAM (Chung & Ying, Applied Sciences 15(13), 7562, 2025, eq. 10-13).
    """
    component = principal_component(view.gradients.abs() * view.activations)
    flat = component.flatten(1)
    falls = flat.amin(dim=1).abs() > flat.amax(dim=1).abs()
    return torch.where(falls[:, None, None], -component, component)


def shapleycam(view: HeadView) -> Tensor:
    """w_c = mean_ij (g - H A / 2) (Cai, 2025, arXiv 2501.06261); gradcam where the score is linear in A."""
    return (view.gradients - 0.5 * view.hessian_product()).mean(dim=(2, 3))


def finercam(view: HeadView) -> Tensor:
    """gradcam of s_k - alpha m; m: mean of the nearest classes' scores, weighted by their probabilities.

    The nearest are the three classes whose scores differ least from s_k; the gradient also goes through the weights
    (Zhang et al., CVPR 2025, arXiv 2501.11309, eq. 4). A softmax over these three equals their probabilities divided by
    the sum of these, and does not underflow if the network is certain.
    """
    others = view.logits.scatter(1, view.class_ids[:, None], torch.nan)  # NaN sorts last
    distance = (others - view.scores[:, None]).abs().detach()
    count = min(NEAREST_CLASSES, others.shape[1] - 1)
    if count == 0:
        return view.gradients.mean(dim=(2, 3))
    near = view.logits.gather(1, distance.argsort(dim=1)[:, :count])
    mean = (near.softmax(dim=1) * near).sum(dim=1)
    return view.gradients_of(view.scores - view.options["alpha"] * mean).mean(dim=(2, 3))
