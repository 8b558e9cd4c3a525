"""Object and background of an image as the trained softmax head sees them: the regions that train a sigmoid branch.

regions = Regions(dual)
head_input, pooled = regions(images, labels)     # pooled: (B, 2, C)
"""

import torch
from torch import Tensor

from wsol.cam.affinity import DEFAULT_AFFINITY, Affinity
from wsol.cam.extractor import CamExtractor
from wsol.cam.refinement import resize_maps
from wsol.cam.registry import get_method
from wsol.cam.variant import AFFINITY, Variant
from wsol.classifier import Classifier, linear_layers
from wsol.errors import InputError


class Regions:
    """Mean features of the object and of the background, weighted by a map of the softmax head.

    The map m is the one that would be drawn of the label's class: the softmax head's CAM (gradcam for an MLP head) with
    negative channel weights clamped, refined by affinity, and stretched to [0, 1]. With A, the activations of the layer
    that it is made of, and p a place,

        object = sum_p m(p) A(p) / sum_p m(p),   background = sum_p (1 - m(p)) A(p) / sum_p (1 - m(p))

    A map that is constant tells nothing: both are the plain mean then.

    Args:
        model: its trunk and softmax head should be frozen, so that the regions stay what they are.
        affinity: the refinement's settings.
    """

    def __init__(self, model: Classifier, affinity: Affinity = DEFAULT_AFFINITY):
        method = "cam" if len(linear_layers(model.softmax_head)) == 1 else "gradcam"
        self.model = model
        self._variant = Variant.of(get_method(method).name, "softmax_clamped", AFFINITY)
        self._extractor = CamExtractor(model, [method], heads=["softmax_clamped"], refine=[AFFINITY], affinity=affinity)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The head's input for the images, and the mean features of object and background, (B, 2, C).

        Args:
            images: (B, 3, H, W), normalised.
            labels: (B,), the classes whose maps tell object from background.

        Raises:
            InputError: the head does not read the mean of the activations that its maps are made of, as after another
                pooling or a further layer; what it would say of a region is not known then.
        """
        head_inputs: list[Tensor] = []
        handle = self.model.softmax_head.register_forward_pre_hook(lambda _head, inputs: head_inputs.append(inputs[0]))
        try:
            with self._extractor as extract:
                maps = extract(images, labels)[self._variant]
        finally:
            handle.remove()
        activations = self._extractor.activations[self._variant.method]
        head_input = head_inputs[-1].detach()  # the first call begins with passes that find the layers
        pooled = head_input.flatten(2).mean(dim=2) if head_input.dim() == 4 else head_input
        mean = activations.mean(dim=(2, 3))
        if pooled.shape != mean.shape or not torch.allclose(
            pooled, mean, rtol=1e-3, atol=1e-3 * float(mean.abs().max())
        ):
            raise InputError(
                "object and background cannot be told apart for this head: it does not read the mean of the "
                f"activations that its maps are made of ({tuple(mean.shape[1:])} features)"
            )
        return head_input, pool_regions(maps, activations)


def pool_regions(maps: Tensor, activations: Tensor) -> Tensor:
    """Mean activations inside and outside of maps, see `Regions`.

    Args:
        maps: (B, h', w'), of any range; stretched to [0, 1] and brought to h x w.
        activations: (B, C, h, w).

    Returns:
        (B, 2, C): of the object and of the background.
    """
    size = (activations.shape[-2], activations.shape[-1])
    inside = resize_maps(maps[:, None].to(activations.dtype), size).flatten(2)  # (B, 1, P)
    least, most = inside.amin(dim=2, keepdim=True), inside.amax(dim=2, keepdim=True)
    inside = torch.where(most > least, (inside - least) / (most - least), 0.5)
    weights = torch.cat([inside, 1 - inside], dim=1)  # (B, 2, P)
    return torch.einsum("brp,bcp->brc", weights / weights.sum(dim=2, keepdim=True), activations.flatten(2))
