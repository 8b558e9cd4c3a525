"""FullGrad: what the input and every bias of the network add to a score."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsol.cam.forward_pass import ForwardPass, HeadView, by_head
from wsol.layout import find_layout

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def fullgrad(view: HeadView) -> Tensor:
    """psi(x g_x) + sum over layers and channels of psi(b_c g_c) (Srinivas & Fleuret, NeurIPS 2019, eq. 5).

    g: gradients of s_k with respect to the input and to each layer's output before
    its activation function; psi: magnitude, stretched to [0, 1] a channel (1e-7 in
    the denominator), resized bilinearly to the image. Layers are those with a bias
    whose output has places; a BatchNorm's bias is the one of the affine map that
    it is in eval mode. The map is as large as the image.
    """
    return view.shared.once(full_gradients)[view.head]


def full_gradients(shared: ForwardPass) -> dict[str, Tensor]:
    """The maps (B, H, W) of each head. It runs and differentiates the whole network, `perturb_batch` images at a time."""
    parts = [
        _of_images(shared, *pair)
        for pair in zip(
            shared.images.split(shared.perturb_batch), shared.class_ids.split(shared.perturb_batch), strict=True
        )
    ]
    return {head: torch.cat([part[head] for part in parts]) for head in parts[0]}


def _of_images(shared: ForwardPass, images: Tensor, class_ids: Tensor) -> dict[str, Tensor]:
    images = images.detach().clone().requires_grad_()
    biases: list[Tensor] = []
    outputs: list[Tensor] = []

    def note(layer, output):
        layout = isinstance(output, Tensor) and find_layout(tuple(output.shape), tuple(images.shape[-2:]))
        if layout and len(output) == len(images) and output.requires_grad:  # not a window's, not a pooled layer's
            shape = [1] * output.ndim
            shape[layout.channel_dim] = -1
            biases.append(_bias(layer).view(shape))
            outputs.append(output)
            return output.clone()  # a layer behind may work in place
        return None

    handles = []
    for layer in shared.model.network.modules():
        if getattr(layer, "bias", None) is None or not isinstance(layer.bias, Tensor):
            continue
        activation = getattr(layer, "act", None)  # timm's BatchNormAct2d, say: normalisation and activation in one
        if isinstance(activation, nn.Module):
            handles.append(
                activation.register_forward_pre_hook(
                    lambda _act, inputs, layer=layer: (note(layer, inputs[0]),) if len(inputs) == 1 else None
                )
            )
        else:
            handles.append(layer.register_forward_hook(lambda layer, _inputs, output: note(layer, output)))
    try:
        logits = by_head(shared.model(images))
    finally:
        for handle in handles:
            handle.remove()
    return {
        head: _saliency(scores.gather(1, class_ids[:, None]).sum(), images, outputs, biases)
        for head, scores in logits.items()
    }


def _bias(layer: nn.Module) -> Tensor:
    """(C,), the constant that a layer adds in eval mode."""
    if isinstance(layer, _BATCH_NORMS) and layer.running_mean is not None:
        scale = (layer.running_var + layer.eps).rsqrt() * (1 if layer.weight is None else layer.weight)
        return (layer.bias - layer.running_mean * scale).detach()
    return layer.bias.detach()


def _saliency(score: Tensor, images: Tensor, outputs: list[Tensor], biases: list[Tensor]) -> Tensor:
    of_input, *of_outputs = torch.autograd.grad(score, [images, *outputs], retain_graph=True, allow_unused=True)
    size = tuple(images.shape[-2:])
    total = _stretched(of_input * images.detach()).sum(dim=1)
    for gradients, bias in zip(of_outputs, biases, strict=True):
        if gradients is not None:
            maps = find_layout(tuple(gradients.shape), size).to_maps(bias * gradients)
            # Resizing is linear, so channels may be added up before it.
            small = _stretched(maps).sum(dim=1, keepdim=True)
            total = total + F.interpolate(small, size, mode="bilinear", align_corners=False)[:, 0]
    return total


def _stretched(maps: Tensor) -> Tensor:
    """|maps| (B, C, h, w), each channel stretched to [0, 1]; float32 at least."""
    maps = maps.abs() if maps.dtype == torch.float64 else maps.abs().float()
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    return (maps - low) / (high - low + 1e-7)
