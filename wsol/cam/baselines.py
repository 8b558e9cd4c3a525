"""Maps that know nothing of the class, to compare others with: a method should beat them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wsol.cam.forward_pass import HeadView


def randomcam(view: HeadView) -> Tensor:
    """w_c uniform in [-1, 1] (grad-cam's RandomCAM), drawn anew for each image, from a seed that is its checksum.

    So an image has the same weights in any batch, process and run.
    """
    channels = view.activations.shape[1]
    weights = [
        torch.rand(channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in view.shared.image_seeds
    ]
    return (2 * torch.stack(weights) - 1).to(view.activations)


def sobelcam(view: HeadView) -> Tensor:
    """Where the picture has edges: half of |Sobel_x| + |Sobel_y| of its grey values (grad-cam's sobel_cam).

    Of the normalised image as the network gets it, whose channels are taken as equally stretched; unlike there, nothing
    is rounded or cut at 255. Borders are mirrored, as in OpenCV. The map is as large as the image.
    """
    images = view.shared.images.detach()
    images = images if images.dtype == torch.float64 else images.float()
    grey = (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
    across = images.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = torch.stack([across, across.T])[:, None]
    return 0.5 * F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="reflect"), kernels).abs().sum(dim=1)
