"""Models that return logits in an object or a dict, as Hugging Face's do, behave like those that return a tensor."""

from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from conftest import METHODS, TinyNet
from torch import Tensor, nn

from wsol import CamExtractor, dualize
from wsol.cam import Variant
from wsol.classifier import Classifier, logits_of
from wsol.errors import InputError
from wsol.layout import find_layers
from wsol.losses import class_balanced_bce

HEADS = ["softmax", "sigmoid", "sigmoid_clamped"]


@dataclass
class ModelOutput:
    """What Hugging Face's image classifiers return, in short."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class Wrapped(TinyNet):
    """TinyNet whose output is made by `wrap`."""

    def __init__(self, wrap):
        super().__init__(5)
        self.wrap = wrap

    def forward(self, images):
        return self.wrap(super().forward(images))


OUTPUTS = {
    "object": lambda logits: ModelOutput(logits=logits),
    "dict": lambda logits: {"features": None, "logits": logits},
    "ordered dict": lambda logits: OrderedDict(logits=logits),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_logits_are_read_from_objects_and_dicts(kind):
    torch.manual_seed(0)
    plain = TinyNet(5)
    model = Wrapped(OUTPUTS[kind])
    model.load_state_dict(plain.state_dict())
    images, labels = torch.randn(3, 3, 48, 48), torch.tensor([0, 2, 4])
    assert torch.equal(Classifier(model.eval(), "fc")(images).logits, plain.eval()(images))
    assert find_layers(model, "fc", images) == find_layers(plain, "fc", images)

    duals = [dualize(network) for network in (plain, model)]
    for dual in duals:
        torch.manual_seed(1)
        nn.init.normal_(dual.sigmoid_head.weight)
        class_balanced_bce(dual.train()(images).sigmoid_logits, labels).backward()
    assert torch.equal(duals[0].sigmoid_head.weight.grad, duals[1].sigmoid_head.weight.grad)
    maps = []
    for dual in duals:
        with CamExtractor(dual, METHODS, heads=HEADS) as extract:
            maps.append(extract(images, labels))
    for variant, expected in maps[0].items():
        assert torch.equal(maps[1][variant], expected), variant


def test_an_output_without_logits_is_an_error_that_says_what_to_return():
    for output in ((torch.zeros(1, 5),), {"scores": torch.zeros(1, 5)}, ModelOutput(), None):
        with pytest.raises(
            InputError, match=f"returns {type(output).__name__} without logits; it must return a tensor"
        ):
            logits_of(output)
    with pytest.raises(InputError, match="returns list without logits"):
        Classifier(Wrapped(lambda logits: [logits]), "fc")(torch.randn(1, 3, 48, 48))


# ------------------------------------------------------------------- transformers, from configurations


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=48,
            patch_size=8,
            num_labels=5,
        )
    )


def resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5)
    )


class Tensors(nn.Module):
    """A transformers model that returns its logits as a tensor."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).logits


@pytest.mark.parametrize(
    "build, head, target, methods",
    [
        (vit, "classifier", "vit.layers.1.layernorm_before", ["cam", "gradcam", "layercam", "ablationcam"]),
        (resnet, "classifier.1", "resnet.encoder.stages.1", ["cam", "gradcam", "layercam", "scorecam", "ablationcam"]),
    ],
)
def test_transformers_models_are_used_as_they_are(build, head, target, methods):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = build().eval()
    images, labels = torch.randn(2, 3, 48, 48), torch.tensor([1, 4])
    duals = [dualize(model), dualize(Tensors(model))]
    assert (duals[0].head_name, duals[1].head_name) == (head, f"model.{head}")
    maps = []
    for dual in duals:
        torch.manual_seed(1)
        nn.init.normal_(dual.sigmoid_head.weight)
        with CamExtractor(dual, methods, heads=HEADS) as extract:
            maps.append(extract(images, labels))
    with torch.no_grad():
        assert torch.equal(duals[0](images).logits, model(images).logits)
    for variant, expected in maps[1].items():
        assert torch.equal(maps[0][variant], expected) and torch.isfinite(expected).all(), variant
        assert variant.method == "ablationcam" or expected.std() > 0, variant
    assert find_layers(model, head, images)[0] == find_layers(duals[0].network, head, images)[0] == target
    with CamExtractor(duals[0], ["gradcam"], target_layer=target, heads=["softmax"]) as extract:
        told = extract(images, labels)
    assert torch.equal(told[Variant("gradcam", "softmax")], maps[0][Variant("gradcam", "softmax")])
