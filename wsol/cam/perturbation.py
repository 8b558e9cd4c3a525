"""Methods that perturb the input or the activations and measure how the scores change.

Perturbed inputs go through the network in chunks of `perturb_batch`, and both heads share these passes. A batch takes
one pass per channel and image, minutes on a large network, so these chunks have a progress bar of their own.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from wsol.cam.forward_pass import ForwardPass, HeadView
from wsol.cam.replay import Replay
from wsol.cam.targets import logit
from wsol.log import progress

T = TypeVar("T")


def scorecam(view: HeadView) -> Tensor:
    """w = softmax over channels of the score s_k of the image masked by A_c (Wang et al., CVPRW 2020, eq. 4, 6).

    The mask is A_c resized to the image (bilinear, align_corners=True), then stretched to [0, 1]; 1e-8 in the
    denominator, so a constant channel masks everything.
    """
    return view.shared.once(masked_scores)[view.head].softmax(dim=1)


def masked_scores(shared: ForwardPass) -> dict[str, Tensor]:
    """Scores of each image under each channel's mask, (B, C) per head."""
    batch, channels = shared.activations.shape[:2]
    maps = shared.activations.flatten(0, 1)[:, None]  # (B C, 1, h, w)
    image_ids = torch.arange(batch * channels, device=maps.device) // channels
    # All constant channels (dead units are common) give the same input: zeros.
    varies = maps.amax(dim=(1, 2, 3)) > maps.amin(dim=(1, 2, 3))
    of_zeros = _forward(shared, torch.zeros_like(shared.images[:1]))
    scores = {head: logits[0, shared.class_ids].to(maps.dtype)[image_ids] for head, logits in of_zeros.items()}
    for chunk in _progress(_chunks(varies, shared.perturb_batch), "scorecam"):
        masks = F.interpolate(maps[chunk], shared.images.shape[-2:], mode="bilinear", align_corners=True)
        low, high = masks.amin(dim=(2, 3), keepdim=True), masks.amax(dim=(2, 3), keepdim=True)
        masks = masks.sub_(low).div_(high - low + 1e-8)
        chunk_image_ids = image_ids[chunk]
        masked = shared.images[chunk_image_ids] * masks.to(shared.images.dtype)
        # channels_last: a quarter faster on CPUs, and preferred by tensor cores.
        for head, logits in _forward(shared, masked.contiguous(memory_format=torch.channels_last)).items():
            scores[head][chunk] = logit(logits, shared.class_ids[chunk_image_ids]).to(maps.dtype)
    return {head: values.view(batch, channels) for head, values in scores.items()}


def _progress(chunks: Sequence[T], method: str) -> Iterable[T]:
    """The chunks behind a progress bar, below that of the batches; fast networks need none."""
    return progress(chunks, f"{method}, this batch", unit="pass", delay=3)


def _chunks(chosen: Tensor, size: int) -> list[Tensor]:
    """Indices of the True values of a (n,) bool, at most `size` at a time; an empty list if there are none."""
    positions = chosen.nonzero()[:, 0]
    return list(positions.split(size)) if len(positions) else []


@torch.no_grad()
def _forward(shared: ForwardPass, images: Tensor) -> dict[str, Tensor]:
    return shared.model(images).by_head()


def ablationcam(view: HeadView) -> Tensor:
    """w_c = (s - s without channel c) / s, with s = s_k (Desai & Ramaswamy, WACV 2020, eq. 2).

    A channel is ablated by zeros at all places, prefix tokens included.
    """
    scores = view.scores.detach()[:, None]
    return ((scores - view.shared.once(ablated_scores)[view.head]) / scores).to(view.activations.dtype)


def ablated_scores(shared: ForwardPass) -> dict[str, Tensor]:
    """Scores without each channel, (B, C) per head. Only what follows the layer is computed."""
    leaf, dim = shared.leaf.detach(), shared.layout.channel_dim
    channels = leaf.shape[dim]
    class_ids = shared.class_ids[:, None].expand(-1, channels)
    scores = {head: logits.detach().gather(1, class_ids).clone() for head, logits in shared.logits.items()}
    # Ablating a channel that is zero already changes nothing.
    alive = (leaf != 0).movedim(dim, 1).flatten(2).any(dim=2)  # (B, C)
    with Replay(shared) as replay:
        chunks = [(b, chunk) for b in range(len(leaf)) for chunk in _chunks(alive[b], shared.perturb_batch)]
        for b, chunk in _progress(chunks, "ablationcam"):
            ablated = leaf[b : b + 1].expand(len(chunk), *leaf.shape[1:]).clone()
            ablated.movedim(dim, 1)[torch.arange(len(chunk), device=chunk.device), chunk] = 0
            for head, logits in replay(ablated, b).by_head().items():
                scores[head][b, chunk] = logits[:, shared.class_ids[b]]
    return scores
