"""Networks by their timm or torchvision name: head and target layer are found, not listed."""

import io

import pytest
import timm
import torch
from torch import nn

from wsol import CamExtractor, build, dualize
from wsol.backbones import get_architecture
from wsol.backbones.named import find_architecture, with_found_layers
from wsol.backbones.weights import timm_config
from wsol.cam import Variant
from wsol.errors import InputError
from wsol.layout import Layout, find_layers, find_layout
from wsol.losses import class_balanced_bce
from wsol.training import make_optimizer

# name: (side of the images, head, target layer, side of the map)
NETWORKS = {
    "resnet10t": (64, "fc", "layer4", 2),
    "res2net50d": (64, "fc", "layer4", 2),
    "vgg11_bn": (64, "head.fc", "features", 2),
    "densenet121": (64, "classifier", "features", 2),
    "mobilenetv2_035": (64, "classifier", "bn2", 2),
    "mobilenetv3_small_050": (64, "classifier", "blocks", 2),
    "tf_efficientnet_b0": (64, "classifier", "bn2", 2),
    "convnext_atto": (64, "head.fc", "stages", 2),
    "regnetx_002": (64, "head.fc", "s4", 2),
    "vit_tiny_patch16_224": (64, "head", "blocks.11.norm1", 4),
    "deit_tiny_patch16_224": (64, "head", "blocks.11.norm1", 4),
    "beit_base_patch16_224": (64, "head", "blocks.11", 4),
    "vit_small_patch14_dinov2": (70, "head", "blocks.11.norm1", 5),
    "swin_tiny_patch4_window7_224": (64, "head.fc", "norm", 2),
    "mixer_s32_224": (64, "head", "norm", 2),
    "poolformer_s12": (64, "head.fc", "stages", 2),
    "pvt_v2_b0": (64, "head", "stages", 2),
    "mobilevit_xxs": (64, "head.fc", "final_conv", 2),
    "repvgg_a0": (64, "head.fc", "stages", 2),
    "ghostnet_050": (64, "classifier", "blocks", 2),
    "swin_t": (64, "head", "permute", 2),  # torchvision's from here on
    "vit_b_16": (64, "heads.head", "encoder.layers.encoder_layer_11.ln_1", 4),
    "squeezenet1_1": (64, "classifier.1", "features", 3),
    "shufflenet_v2_x0_5": (64, "fc", "conv5", 2),
    "googlenet": (64, "fc", "inception5b", 2),
    "alexnet": (96, "classifier", "avgpool", 6),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_branch_a_training_step_and_a_map(name):
    side, head, target, grid = NETWORKS[name]
    model = dualize(build(name, 5, pretrained=False, image_size=side))
    assert (model.head_name, model.target_layer_name) == (head, target)
    images, labels = torch.randn(2, 3, side, side), torch.tensor([1, 4])

    before = {n: t.clone() for n, t in model.network.state_dict().items()}
    optimizer = make_optimizer(model, lr=1.0, classifier_ratio=10, momentum=0.9, weight_decay=0)
    model.train()
    with torch.no_grad():
        start = model(images)
    assert torch.allclose(start.logits, start.sigmoid_logits, atol=1e-5) or "classifier" in head  # dropout inside
    class_balanced_bce(model(images).sigmoid_logits, labels).backward()
    optimizer.step()
    assert all(torch.equal(t, before[n]) for n, t in model.network.state_dict().items())
    with torch.no_grad():
        assert not torch.equal(model.eval()(images).sigmoid_logits, start.sigmoid_logits)

    with CamExtractor(model, ["gradcam"], heads=["softmax", "sigmoid_clamped"]) as extract:
        maps = extract(images, labels)
    for raw in maps.values():
        assert raw.shape == (2, grid, grid) and torch.isfinite(raw).all()
    assert (maps[Variant("gradcam", "softmax")] != 0).any()


def test_large_feature_maps_where_timm_has_them(tmp_path):
    model = build("resnet10t", 5, pretrained=False, large_feature_map=True, image_size=64)
    with CamExtractor(model, ["cam"]) as extract:
        assert extract(torch.randn(1, 3, 64, 64))["cam"].shape == (1, 4, 4)
    for name in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "squeezenet1_1"):
        with pytest.raises(InputError, match="--large_feature_map: .* cannot halve the stride of"):
            build(name, 5, pretrained=False, large_feature_map=True, image_size=64)
    torch.save(
        build("vit_tiny_patch16_224", pretrained=False).network.state_dict(), tmp_path / "vit_tiny_patch16_224.pth"
    )
    with pytest.raises(InputError, match="cannot halve the stride"):
        build("vit_tiny_patch16_224", 5, pretrained_path=str(tmp_path), large_feature_map=True)
    smaller = build("vit_tiny_patch16_224", 5, pretrained_path=str(tmp_path), image_size=64)
    assert smaller.network.pos_embed.shape == (1, 17, 192)  # timm interpolates it


def test_what_cannot_be_built_is_a_one_line_error():
    with pytest.raises(InputError, match="'resnet9999'; did you mean 'resnet.*classifiers of timm and torchvision"):
        build("resnet9999")
    with pytest.raises(InputError, match="'resnet18.nonsense': Invalid pretrained tag"):
        build("resnet18.nonsense")
    with pytest.raises(InputError, match="several heads"):
        build("levit_128s", 5, pretrained=False, image_size=64)
    with pytest.raises(InputError, match="--crop_size 64: MaxVit does not take such images"):
        build("maxvit_t", 5, pretrained=False, image_size=64)
    with pytest.raises(InputError, match="--last_layer conv: .*leave it out"):
        build("resnet10t", 5, pretrained=False, last_layer="conv")


def test_mean_and_std_are_those_of_timms_weights():
    assert get_architecture("vit_tiny_patch16_224").mean == (0.5, 0.5, 0.5)
    assert get_architecture("resnet18").mean == pytest.approx((0.485, 0.456, 0.406))
    with pytest.raises(InputError, match="did you mean 'resnet50'"):
        get_architecture("resnet5O")


def test_a_network_without_a_head_for_imagenet_gets_one():
    model = build("vit_small_patch14_dinov2", pretrained=False, image_size=70)
    assert model.num_classes == 1000 and model.head_is_new


def test_the_target_is_what_the_head_depends_on():
    """The last layer of all is a dead end, and the head reads the class token: the layer before has the places."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.mix, self.norm = nn.Conv2d(3, 6, 8, stride=8), nn.Conv1d(17, 17, 1), nn.LayerNorm(6)
            self.head = nn.Linear(6, 1000)
            nn.init.zeros_(self.head.weight)

        def forward(self, images):
            tokens = self.patches(images).flatten(2).transpose(1, 2)
            tokens = self.mix(torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1))
            return self.head(self.norm(tokens)[:, 0])

    model = with_found_layers(Tokens(), 32)
    assert (model.target_layer_name, model.pooled_layer_name) == ("patches", "norm")


@pytest.mark.parametrize(
    "shape, image, layout",
    [
        ((2, 512, 7, 7), (224, 224), Layout("BCHW", (7, 7))),
        ((2, 7, 7, 768), (224, 224), Layout("BHWC", (7, 7))),
        ((2, 14, 10, 96), (224, 160), Layout("BHWC", (14, 10))),
        ((2, 7, 7, 7), (224, 224), Layout("BCHW", (7, 7))),
        ((2, 197, 192), (224, 224), Layout("BNC", (14, 14), 1)),
        ((2, 196, 192), (224, 224), Layout("BNC", (14, 14), 0)),
        ((2, 198, 192), (224, 224), Layout("BNC", (14, 14), 2)),
        ((2, 261, 384), (224, 224), Layout("BNC", (16, 16), 5)),
        ((2, 141, 192), (224, 160), Layout("BNC", (14, 10), 1)),
        ((2, 141, 192), (230, 164), Layout("BNC", (14, 10), 1)),
        ((2, 210, 192), (224, 224), None),
        ((2, 192), (224, 224), None),
    ],
)
def test_layouts(shape, image, layout):
    assert find_layout(shape, image) == layout
    if layout:
        maps = layout.to_maps(torch.zeros(shape))
        assert maps.shape[2:] == layout.grid and len(maps) == 2


def test_layers_are_found_in_a_frozen_network_too():
    """Even if no parameter requires a gradient, the layer after which nothing reads the patches is not chosen."""
    network = build("vit_tiny_patch16_224", 5, pretrained=False, image_size=64).network
    images = torch.randn(1, 3, 64, 64)
    expected = find_layers(network, "head", images)
    assert find_layers(network.requires_grad_(False), "head", images) == expected == ("blocks.11.norm1", "norm")


# ------------------------------------------------------------------- timm's networks on the Hugging Face hub


@pytest.fixture
def hub(monkeypatch):
    """A hub with one repository, org/tiny: a resnet10t with its own mean and std. Yields the list of requests."""
    asked = []
    real = timm.create_model

    def config_of(hub_id, cache_dir=None):
        if hub_id != "org/tiny":
            raise RuntimeError(f"401 Client Error: repository {hub_id} not found\nmore lines")
        asked.append("config")
        statistics = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "num_classes": 1000, "input_size": (3, 64, 64)}
        return {"architecture": "resnet10t", "hf_hub_id": hub_id, "source": "hf-hub"} | statistics, "resnet10t", {}

    def create_model(name, pretrained=False, **arguments):
        asked.append((name, pretrained, *arguments))
        return real("resnet10t", num_classes=1000)

    monkeypatch.setattr(timm.models, "load_model_config_from_hf", config_of)
    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr("urllib.request.urlopen", lambda request, timeout: io.BytesIO())
    yield asked
    timm_config.cache_clear()
    find_architecture.cache_clear()


@pytest.mark.parametrize("prefix", ["hf-hub:", "hf_hub:"])
def test_networks_of_the_hugging_face_hub(hub, prefix):
    entry = get_architecture(f"{prefix}org/tiny")
    assert (entry.mean, entry.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    model = build(f"{prefix}org/tiny", image_size=64)
    assert (model.head_name, model.target_layer_name, model.head_is_new) == ("fc", "layer4", False)
    assert hub == ["config", (f"{prefix}org/tiny", True)]
    assert build(f"{prefix}org/tiny", 5, pretrained=False, image_size=64).num_classes == 5


def test_weights_of_a_hub_network_from_a_file(hub, tmp_path):
    torch.save({"model": {}}, tmp_path / "tiny.pth")
    with pytest.raises(InputError, match=r"tiny\.pth has no state_dict"):
        build("hf-hub:org/tiny", pretrained_path=str(tmp_path), image_size=64)
    torch.save({"model": timm.create_model("resnet10t").state_dict()}, tmp_path / "tiny.pth")
    build("hf-hub:org/tiny", pretrained_path=str(tmp_path), image_size=64)
    assert hub[-1] == ("hf-hub:org/tiny", True, "pretrained_cfg_overlay")


@pytest.mark.parametrize("name", ["hf-hub:org/other", "hf_hub:org/tinny", "hf-hub:", "hf-hub:no spaces!/x"])
def test_a_hub_network_that_is_not_there_is_one_line_with_the_remedy(hub, name):
    with pytest.raises(InputError, match=f"unknown architecture '{name}': .*--pretrained_path") as caught:
        build(name)
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_one_line_with_the_remedy(hub, monkeypatch):
    def refuse(request, timeout):
        assert request.full_url.endswith("/org/tiny/resolve/main/config.json")
        assert timeout <= 10
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(InputError, match=r"'hf-hub:org/tiny': .*\(network is unreachable\); .*--pretrained_path"):
        get_architecture("hf-hub:org/tiny")
    assert hub == []
