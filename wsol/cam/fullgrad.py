"""FullGrad: what the input and every bias of the network contribute to a score."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsol.cam.forward_pass import ForwardPass, HeadView
from wsol.cam.targets import logit
from wsol.layout import find_layout

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def fullgrad(view: HeadView) -> Tensor:
    """psi(x g_x) + sum over layers and channels of psi(b_c g_c) (Srinivas & Fleuret, NeurIPS 2019, eq. 5).

    g: gradients of s_k with respect to the input and to each layer's output before its activation function. psi:
    magnitude, stretched to [0, 1] per channel (1e-7 in the denominator), resized bilinearly to the image. The layers
    are those with a bias whose output has places. In eval mode a BatchNorm is an affine map; its bias is the one of
    that map. The map is as large as the image.
    """
    return view.shared.once(full_gradients)[view.head]


def full_gradients(shared: ForwardPass) -> dict[str, Tensor]:
    """Maps (B, H, W) of each head. Runs and differentiates the whole network, `perturb_batch` images at a time."""
    chunks = [tensor.split(shared.perturb_batch) for tensor in (shared.images, shared.class_ids)]
    maps = [_full_gradients_of(shared, images, class_ids) for images, class_ids in zip(*chunks, strict=True)]
    return {head: torch.cat([chunk[head] for chunk in maps]) for head in maps[0]}


def _full_gradients_of(shared: ForwardPass, images: Tensor, class_ids: Tensor) -> dict[str, Tensor]:
    images = images.detach().clone().requires_grad_()
    biases: list[Tensor] = []
    outputs: list[Tensor] = []

    def record(layer: nn.Module, output: object) -> Tensor | None:
        if not isinstance(output, Tensor) or not output.requires_grad:
            return None
        layout = find_layout(tuple(output.shape), _size(images))
        if layout is None or len(output) != len(images):  # Swin's windows, say, are not images
            return None
        shape = [1] * output.ndim
        shape[layout.channel_dim] = -1
        biases.append(_bias(layer).view(shape))
        outputs.append(output)
        return output.clone()  # a later layer may work in place

    handles = []
    for layer in shared.model.network.modules():
        if getattr(layer, "bias", None) is None or not isinstance(layer.bias, Tensor):
            continue
        activation = getattr(
            layer, "act", None
        )  # timm's BatchNormAct2d, say: normalisation and activation in one module
        if isinstance(activation, nn.Module):
            handles.append(
                activation.register_forward_pre_hook(
                    lambda _act, inputs, layer=layer: (record(layer, inputs[0]),) if len(inputs) == 1 else None
                )
            )
        else:
            handles.append(layer.register_forward_hook(lambda layer, _inputs, output: record(layer, output)))
    try:
        logits = shared.model(images).by_head()
    finally:
        for handle in handles:
            handle.remove()
    return {head: _saliency(logit(scores, class_ids).sum(), images, outputs, biases) for head, scores in logits.items()}


def _bias(layer: nn.Module) -> Tensor:
    """(C,), the constant that a layer adds in eval mode."""
    assert isinstance(layer.bias, Tensor)
    if isinstance(layer, _BATCH_NORMS) and layer.running_mean is not None and layer.running_var is not None:
        scale = (layer.running_var + layer.eps).rsqrt() * (1 if layer.weight is None else layer.weight)
        return (layer.bias - layer.running_mean * scale).detach()
    return layer.bias.detach()


def _saliency(score: Tensor, images: Tensor, outputs: list[Tensor], biases: list[Tensor]) -> Tensor:
    """The map (B, H, W) of one head."""
    input_gradient, *output_gradients = torch.autograd.grad(
        score, [images, *outputs], retain_graph=True, allow_unused=True
    )
    size = _size(images)
    total = _stretched(input_gradient * images.detach()).sum(dim=1)
    for gradients, bias in zip(output_gradients, biases, strict=True):
        layout = None if gradients is None else find_layout(tuple(gradients.shape), size)
        if layout is not None:
            # Resizing is linear, so channels may be added up before it.
            small = _stretched(layout.to_maps(bias * gradients)).sum(dim=1, keepdim=True)
            total = total + F.interpolate(small, size, mode="bilinear", align_corners=False)[:, 0]
    return total


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _stretched(maps: Tensor) -> Tensor:
    """|maps| (B, C, h, w), each channel stretched to [0, 1]; at least float32."""
    maps = maps.abs() if maps.dtype == torch.float64 else maps.abs().float()
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    return (maps - low) / (high - low + 1e-7)
