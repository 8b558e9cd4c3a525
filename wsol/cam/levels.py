"""Methods that read several stages of a network: `view.levels` has one view for each of `levels` of CamExtractor."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wsol.cam.forward_pass import HeadView
from wsol.cam.gradient import gradcam_plus_plus


def layercamfused(view: HeadView) -> Tensor:
    """Maximum over stages of LayerCAM's maps, each rectified and scaled to tanh(2 M / max M), at the finest one's size.

    Jiang et al., "LayerCAM", TIP 2021, section III-C: early stages have weak maps, which the scaling brings up.
    BroadCAM's comparison fuses like that, too.
    """
    maps = []
    for level in view.levels:
        coarse = (level.gradients.relu() * level.activations).sum(dim=1).relu()
        highest = coarse.amax(dim=(1, 2), keepdim=True)
        maps.append((2 * coarse / highest.where(highest > 0, 1)).tanh())
    size = max((tuple(of_level.shape[1:]) for of_level in maps), key=lambda shape: shape[0] * shape[1])
    fine = [F.interpolate(of_level[:, None], size, mode="bilinear", align_corners=False)[:, 0] for of_level in maps]
    return torch.stack(fine).amax(dim=0)


def refinecam(view: HeadView) -> Tensor:
    """Product over stages of Grad-CAM++'s maps, each rectified, resized to the image and stretched to [0, 1].

    An early stage's fine places remain where the late ones see the class (RefineCAM, arXiv 2605.14641). 1e-7 in the
    denominator of each stretch. The map is as large as the image.
    """
    maps = []
    for level in view.levels:
        coarse = torch.einsum("bc,bchw->bhw", gradcam_plus_plus(level), level.activations).relu()
        size = view.shared.images.shape[-2:]
        fine = F.interpolate(coarse[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        low, high = fine.amin(dim=(1, 2), keepdim=True), fine.amax(dim=(1, 2), keepdim=True)
        constant = coarse.amax(dim=(1, 2), keepdim=True) == coarse.amin(dim=(1, 2), keepdim=True)
        # Resizing rounds, and a constant map would be stretched to noise.
        maps.append(((fine - low) / (high - low + 1e-7)).masked_fill(constant, 0))
    return torch.stack(maps).prod(dim=0)
