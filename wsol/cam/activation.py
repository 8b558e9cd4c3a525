"""Methods that need the activations and the head's weights, but no gradient."""

from torch import Tensor

from wsol.cam.base import HeadView, register


@register("cam", weights=True, pooled=True, rectify=False, interpolation="bicubic")
def cam(view: HeadView) -> Tensor:
    """w_c = W[k, c] (Zhou et al., CVPR 2016, eq. 2); resized as wsolevaluation does, cubic and unrectified."""
    return view.class_weights
