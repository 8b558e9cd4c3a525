"""Methods that perturb the input or the activations and measure how the scores, or their gradients, change.

Perturbed inputs go through the network in chunks of `perturb_batch`, and both heads share these passes. A batch takes
one pass per channel and image, minutes on a large network, so these chunks have a progress bar of their own.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
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


def sscam(view: HeadView) -> Tensor:
    """Score-CAM's weights of the mean score under masks with noise (SS-CAM, Wang et al., 2020, eq. 4, as torch-cam).

    Noise of deviation sscam_std is added to the mask at each pixel, sscam_samples times. Masks are stretched to [0, 1]
    before they are resized (align_corners=False).
    """
    return view.shared.once(noisily_masked_scores)[view.head].softmax(dim=1)


def iscam(view: HeadView) -> Tensor:
    """Score-CAM's weights of the mean score along growing masks (IS-CAM, Naidu et al., 2020, eq. 5-7, as torch-cam).

    The i-th of n = iscam_samples masks is the channel's times 1/n + 2/n + ... + i/n, so up to (n + 1) / 2.
    """
    return view.shared.once(integrated_scores)[view.head].softmax(dim=1)


def masked_scores(shared: ForwardPass) -> dict[str, Tensor]:
    """Scores of each image under each channel's mask, (B, C) per head."""
    # All constant channels (dead units are common) give the same input: zeros.
    return _scores_under(shared, _stretched_large, "scorecam", skip_constant=True)


def noisily_masked_scores(shared: ForwardPass) -> dict[str, Tensor]:
    """Mean scores under each channel's mask with noise, (B, C) per head."""
    samples, std = int(shared.options["sscam_samples"]), shared.options["sscam_std"]
    channels = shared.activations.shape[1]

    def with_noise(sample: int) -> Callable[[Tensor, Tensor, tuple[int, int]], Tensor]:
        def masks(maps: Tensor, positions: Tensor, size: tuple[int, int]) -> Tensor:
            noise = [
                mask_noise(shared.image_seeds[p // channels], sample, p % channels, size) for p in positions.tolist()
            ]
            return _stretched_small(maps, positions, size) + std * torch.stack(noise)[:, None].to(maps)

        return masks

    return _mean([_scores_under(shared, with_noise(sample), "sscam") for sample in range(samples)])


def integrated_scores(shared: ForwardPass) -> dict[str, Tensor]:
    """Mean scores under each channel's mask, times growing factors, (B, C) per head."""
    samples = int(shared.options["iscam_samples"])

    def times(factor: float) -> Callable[[Tensor, Tensor, tuple[int, int]], Tensor]:
        return lambda maps, positions, size: factor * _stretched_small(maps, positions, size)

    factors = [i * (i + 1) / 2 / samples for i in range(1, samples + 1)]
    return _mean([_scores_under(shared, times(factor), "iscam") for factor in factors])


def mask_noise(seed: int, sample: int, channel: int, size: tuple[int, int]) -> Tensor:
    """Standard normal noise (H, W) that depends on the image's checksum, the sample and the channel alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {sample} {channel}".encode()))
    return torch.randn(size, generator=generator)


def _mean(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {head: torch.stack([scores[head] for scores in samples]).mean(dim=0) for head in samples[0]}


def _stretched_large(maps: Tensor, _positions: Tensor, size: tuple[int, int]) -> Tensor:
    """Channels (n, 1, h, w) as masks of the image: resized (align_corners=True), then stretched to [0, 1]."""
    return _stretched(F.interpolate(maps, size, mode="bilinear", align_corners=True))


def _stretched_small(maps: Tensor, _positions: Tensor, size: tuple[int, int]) -> Tensor:
    """Channels (n, 1, h, w) as masks of the image: stretched to [0, 1], then resized (align_corners=False)."""
    return F.interpolate(_stretched(maps), size, mode="bilinear", align_corners=False)


def _stretched(masks: Tensor) -> Tensor:
    low, high = masks.amin(dim=(2, 3), keepdim=True), masks.amax(dim=(2, 3), keepdim=True)
    return (masks - low).div_(high - low + 1e-8)


def _scores_under(
    shared: ForwardPass,
    make_masks: Callable[[Tensor, Tensor, tuple[int, int]], Tensor],
    method: str,
    skip_constant: bool = False,
) -> dict[str, Tensor]:
    """Scores of each image under a mask for each channel, (B, C) per head.

    Args:
        make_masks: channels (n, 1, h, w), their positions in the (B C,) channels of all images, and the images' size →
            masks (n, 1, H, W).
        skip_constant: a constant channel's mask is zeros, so all of them have one score.
    """
    batch, channels = shared.activations.shape[:2]
    maps = shared.activations.flatten(0, 1)[:, None]  # (B C, 1, h, w)
    size = (shared.images.shape[-2], shared.images.shape[-1])
    image_ids = torch.arange(batch * channels, device=maps.device) // channels
    varies = maps.amax(dim=(1, 2, 3)) > maps.amin(dim=(1, 2, 3))
    of_zeros = _forward(shared, torch.zeros_like(shared.images[:1]))
    scores = {head: logits[0, shared.class_ids].to(maps.dtype)[image_ids] for head, logits in of_zeros.items()}
    wanted = varies if skip_constant else torch.ones_like(varies)
    for chunk in _progress(_chunks(wanted, shared.perturb_batch), method):
        chunk_image_ids = image_ids[chunk]
        masked = shared.images[chunk_image_ids] * make_masks(maps[chunk], chunk, size).to(shared.images.dtype)
        # channels_last: a quarter faster on CPUs, and preferred by tensor cores.
        for head, logits in _forward(shared, masked.contiguous(memory_format=torch.channels_last)).items():
            scores[head][chunk] = logit(logits, shared.class_ids[chunk_image_ids]).to(maps.dtype)
    return {head: values.view(batch, channels) for head, values in scores.items()}


def smoothgradcam_plus_plus(view: HeadView) -> Tensor:
    """Grad-CAM++'s weights of gradients at images with noise (Smooth Grad-CAM++, Omeiza et al., 2019, eq. 4-6).

    w_c = sum_ij alpha relu(mean g), alpha = mean g^2 / (2 mean g^2 + sum_ij (A mean g^3)), means over smooth_samples
    images with noise of deviation smooth_std; 1e-8 in the denominator. Of the paper's typing slip in alpha's numerator,
    torch-cam's correction. (torch-cam takes the last sample's g, where the paper and we take the mean.)
    """
    moments = view.shared.once(noisy_gradients)[view.head]
    first, second, third = moments.unbind(dim=0)
    total = (third * view.activations).sum(dim=(2, 3), keepdim=True)
    return (second / (2 * second + total + 1e-8) * first.relu()).sum(dim=(2, 3))


def noisy_gradients(shared: ForwardPass) -> dict[str, Tensor]:
    """Means of g, g^2 and g^3 over images with noise, (3, B, C, h, w) per head."""
    samples, std = int(shared.options["smooth_samples"]), shared.options["smooth_std"]
    sums: dict[str, Tensor] = {}
    size = (shared.images.shape[-2], shared.images.shape[-1])
    for sample in range(samples):
        noise = torch.stack(
            [torch.stack([mask_noise(seed, sample, c, size) for c in range(3)]) for seed in shared.image_seeds]
        )
        leaf, logits = _recorded_forward(shared, shared.images.detach() + std * noise.to(shared.images))
        for head, of_head in logits.items():
            score = shared.target(of_head, shared.class_ids).sum()
            g = shared.to_maps(torch.autograd.grad(score, leaf, retain_graph=True)[0])
            powers = torch.stack([g, g.square(), g.pow(3)])
            sums[head] = sums[head] + powers if head in sums else powers
    return {head: total / samples for head, total in sums.items()}


def _recorded_forward(shared: ForwardPass, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The layer's output for other images, and logits that depend on it; what comes before it is not recorded."""
    outputs: list[Tensor] = []

    def record(_layer: object, _inputs: tuple, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # undone by the no_grad block
        outputs.append(output.detach().requires_grad_())
        return outputs[-1].clone()  # a later layer may work in place

    handle = shared.layer.register_forward_hook(record)
    try:
        with torch.no_grad():
            logits = shared.model(images).by_head()
    finally:
        handle.remove()
    return outputs[-1], logits


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
