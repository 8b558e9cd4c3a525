"""Training methods: layers under wsolevaluation's names, one step of each worked by hand, and nothing at evaluation."""

import copy
import random

import numpy as np
import pytest
import torch
import torchvision
from conftest import TinyNet, arguments, checkpoint_content, killed_after
from PIL import Image
from torch.nn import functional as F

import inference as pictures
import main as program
from wsol import CamExtractor, build, dualize
from wsol.classifier import Classifier
from wsol.errors import InputError
from wsol.losses import OBJECTIVES
from wsol.methods import METHODS
from wsol.methods.adl import ADL
from wsol.methods.base import stretched
from wsol.methods.spg import guided_loss
from wsol.run import checkpoint

OBJECTIVE = OBJECTIVES["vanilla"]("cross_entropy", "cross_entropy")


def make(name, **options):
    return METHODS[name](options)


def network(architecture, method, classes=3, side=64, **options):
    torch.manual_seed(0)
    return build(architecture, classes, pretrained=False, method=make(method), image_size=side, **options)


def step(method, model, images, labels):
    return method.loss(model, lambda inputs, _: model(inputs), OBJECTIVE, images, labels)


# ------------------------------------------------------------------- names and shapes of wsolevaluation's models

CONV4_AND_5 = [(256, 512), (512, 512), (512, 512), (512, 512), (512, 512), (512, 512)]
VGG = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), *CONV4_AND_5]


def conv(name, inputs, outputs, kernel=3):
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def vgg_features(places):
    return {key: shape for place, sizes in zip(places, VGG, strict=False)
            for key, shape in conv(f"features.{place}", *sizes).items()}  # fmt: skip


def acol_heads(inputs):
    return {key: shape for head in "AB"
            for part in (conv(f"classifier_{head}.0", inputs, 1024), conv(f"classifier_{head}.2", 1024, 1024),
                         conv(f"classifier_{head}.4", 1024, 3, 1))
            for key, shape in part.items()}  # fmt: skip


def spg_sides(b1, b2, b, c_inputs):
    return {**conv("SPG_B_1a.0", b1, b), **conv("SPG_B_2a.0", b2, b), **conv("SPG_B_shared.0", b, b),
            **conv("SPG_B_shared.2", b, 1, 1), **conv("SPG_C.0", c_inputs, 512),
            **conv("SPG_C.2", 512, 1, 1)}  # fmt: skip


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if "num_batches" not in name}


def resnet_shapes(rename):
    return {rename(name): shape for name, shape in shapes_of(torchvision.models.resnet50()).items()
            if not name.startswith("fc.")}  # fmt: skip


def adl_name(name):
    layer, _, rest = name.partition(".")
    block, _, rest = rest.partition(".")
    moves = {"layer3": [0, 1, 2, 2, 2, 2], "layer4": [0, 1, 1]}
    if layer == "layer3" and int(block) > 0:
        return f"layer3.{int(block) + 1}.{rest}"  # one layer in front
    if layer == "layer4" and int(block) > 0:
        return f"layer4.{int(block) + moves['layer4'][int(block)]}.{rest}"
    return name


def spg_name(name):
    if name.startswith("layer3.0."):
        return name.replace("layer3.0.", "SPG_A1.0.")
    if name.startswith("layer3."):
        _, block, rest = name.split(".", 2)
        return f"SPG_A2.{int(block) - 1}.{rest}"
    return name


def inception_trunk():
    source = torchvision.models.inception_v3(aux_logits=False, init_weights=False)
    return {name: shape for name, shape in shapes_of(source).items() if not name.startswith(("Mixed_7", "fc."))}


INCEPTION_NECK = {**conv("SPG_A3_1b.0", 768, 1024), **conv("SPG_A3_2b.0", 1024, 1024), **conv("SPG_A4", 1024, 3, 1)}
ADL_14, ADL_28 = (18, 20, 22, 26, 28, 30), (18, 20, 22, 25, 27, 29)
CONV1_TO_3 = (0, 2, 5, 7, 10, 12, 14)
FC = {"fc.weight": (3, 2048), "fc.bias": (3,)}
EXPECTED = {
    ("vgg16", "acol"): lambda large: vgg_features((*CONV1_TO_3, 17, 19, 21, 24, 26, 28)) | acol_heads(512),
    ("vgg16", "adl"): lambda large: {
        **vgg_features((*CONV1_TO_3, *(ADL_28 if large else ADL_14))),
        **conv("conv6", 512, 1024), "fc.weight": (3, 1024), "fc.bias": (3,),
    },
    ("vgg16", "spg"): lambda large: {
        **vgg_features(CONV1_TO_3),
        **{key: shape for stage, sizes in (("1", CONV4_AND_5[:3]), ("2", CONV4_AND_5[3:]), ("3", [(512, 512)] * 2))
           for i, size in enumerate(sizes) for key, shape in conv(f"SPG_A_{stage}.{2 * i}", *size).items()},
        **conv("SPG_A_4", 512, 3, 1), **spg_sides(512, 512, 512, 512),
    },
    ("resnet50", "acol"): lambda large: resnet_shapes(str) | acol_heads(2048),
    ("resnet50", "adl"): lambda large: resnet_shapes(adl_name) | FC,
    ("resnet50", "spg"): lambda large: {
        **resnet_shapes(spg_name), **conv("SPG_A4", 2048, 3, 1), **spg_sides(1024, 1024, 1024, 2048)},
    ("inception_v3", "acol"): lambda large: inception_trunk() | acol_heads(768),
    ("inception_v3", "adl"): lambda large: inception_trunk() | INCEPTION_NECK,
    ("inception_v3", "spg"): lambda large: inception_trunk() | INCEPTION_NECK | spg_sides(288, 768, 512, 1024),
}  # fmt: skip


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("architecture, method", EXPECTED)
def test_names_and_shapes_are_those_of_wsolevaluation(architecture, method, large):
    """From its model definitions: wsol/vgg.py, wsol/resnet.py and wsol/inception.py."""
    model = network(architecture, method, large_feature_map=large)
    found = {name: tuple(t.shape) for name, t in model.published_state_dict().items() if "num_batches" not in name}
    assert found == EXPECTED[architecture, method](large)


# ------------------------------------------------------------------- logits and maps, written out in float64


def plain_conv(tensors, name, x, padding=1):
    return F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], padding=padding)


def relu_convs(tensors, names, x):
    for name in names:
        x = plain_conv(tensors, name, x).relu()
    return x


def vgg_trunk(tensors, places, pools, x):
    """pools: place of the pool → its function; a place is that of the layer in front."""
    for place in places:
        x = plain_conv(tensors, f"features.{place}", x).relu()
        if place in pools:
            x = pools[place](x)
    return x


def max_pool(kernel, stride, padding=0):
    return lambda x: F.max_pool2d(x, kernel, stride, padding)


def resnet_trunk(tensors, rename, x, large):
    """torchvision's network with the same tensors and wsolevaluation's strides; gives what layer3.0, 3 and 4 give."""
    source = torchvision.models.resnet50(num_classes=3).double().eval()
    names = [name for name in source.state_dict() if not name.startswith("fc.")]
    source.load_state_dict({name: tensors[rename(name)] for name in names}, strict=False)
    for layer in (source.layer4, *([source.layer3] if large else [])):
        layer[0].conv2.stride = layer[0].downsample[0].stride = (1, 1)
    x = source.layer2(source.layer1(source.maxpool(source.relu(source.bn1(source.conv1(x))))))
    first = source.layer3[0](x)
    third = source.layer3[1:](first)
    return first, third, source.layer4(third)


def inception_trunk_output(tensors, x, large):
    plain = build("inception_v3", 3, pretrained=False, classifier_form="cam", large_feature_map=large).double().eval()
    own = plain.network.state_dict()
    plain.network.load_state_dict({name: tensors.get(name, own[name]) for name in own})
    layers = dict(plain.network.named_children())
    for name in ("dropout1", "SPG_A3_1b", "dropout2", "SPG_A3_2b", "dropout3", "SPG_A4", "avgpool", "flatten"):
        layers.pop(name)
    for layer in layers.values():
        x = layer(x)
    return x


def class_maps(tensors, head, features):
    hidden = relu_convs(tensors, [f"{head}.0", f"{head}.2"], features)
    return plain_conv(tensors, f"{head}.4", hidden, padding=0)


def minmax(maps):
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    return (maps - low) / (high - low)


def features_of(architecture, method, tensors, x, large):
    """What the heads read, from the literal definitions."""
    if architecture == "resnet50":
        return resnet_trunk(tensors, {"acol": str, "spg": spg_name, "adl": adl_name}[method], x, large)[2]
    if architecture == "inception_v3":
        x = inception_trunk_output(tensors, x, large)
        return x if method == "acol" else relu_convs(tensors, ["SPG_A3_1b.0", "SPG_A3_2b.0"], x)
    if method == "acol":
        strided, still = max_pool(3, 2, 1), max_pool(3, 1, 1)
        pools = {2: strided, 7: strided, 14: strided, 21: still if large else strided, 28: still}
        x = vgg_trunk(tensors, (*CONV1_TO_3, 17, 19, 21, 24, 26, 28), pools, x)
        return F.avg_pool2d(x, 3, 1, 1)
    halves = max_pool(2, 2)
    if method == "adl":
        pools = {2: halves, 7: halves, 14: halves} | ({} if large else {22: halves})
        x = vgg_trunk(tensors, (*CONV1_TO_3, *(ADL_28 if large else ADL_14)), pools, x)
        return relu_convs(tensors, ["conv6"], x)
    x = vgg_trunk(tensors, CONV1_TO_3, {2: halves, 7: halves, 14: halves}, x)
    x = relu_convs(tensors, [f"SPG_A_1.{i}" for i in (0, 2, 4)], x)
    x = x if large else F.max_pool2d(x, 3, 2, 1)
    return relu_convs(tensors, [f"SPG_A_2.{i}" for i in (0, 2, 4)] + ["SPG_A_3.0", "SPG_A_3.2"], x)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("architecture, method", EXPECTED)
def test_logits_and_maps_are_those_of_the_definitions(architecture, method, large):
    model = network(architecture, method, large_feature_map=large).double().eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2)
    for head in (model.softmax_head, *map(model.network.get_submodule, model.method_layers.twins)):
        last = [layer for layer in head.modules() if hasattr(layer, "weight")][-1]
        torch.nn.init.normal_(last.weight)
        torch.nn.init.normal_(last.bias)
    tensors, x, labels = model.published_state_dict(), torch.randn(2, 3, 64, 64).double(), torch.tensor([2, 0])
    with torch.no_grad():
        features = features_of(architecture, method, tensors, x, large)
    if method == "acol":
        maps = class_maps(tensors, "classifier_A", features)
        attention = minmax(maps[torch.arange(2), labels][:, None])
        other = class_maps(tensors, "classifier_B", features * (attention < 0.7))
        expected = torch.maximum(minmax(maps), minmax(other))[torch.arange(2), labels]
        logits = maps.mean(dim=(2, 3))
    elif method == "adl" and architecture != "inception_v3":
        logits = features.mean(dim=(2, 3)) @ tensors["fc.weight"].T + tensors["fc.bias"]
        expected = torch.einsum("bc,bchw->bhw", tensors["fc.weight"][labels], features)
    else:
        head = "SPG_A_4" if architecture == "vgg16" else "SPG_A4"
        maps = plain_conv(tensors, head, features, padding=0)
        logits = maps.mean(dim=(2, 3))
        # Their map has the class's bias in it, which stretching to [0, 1] takes out again.
        expected = maps[torch.arange(2), labels] - tensors[f"{head}.bias"][labels][:, None, None]
    torch.testing.assert_close(model(x).logits, logits, rtol=1e-9, atol=1e-9)
    with CamExtractor(model, ["cam"]) as extract:
        torch.testing.assert_close(extract(x, labels)["cam"], expected, rtol=1e-7, atol=1e-7)


# ------------------------------------------------------------------- one step of each, by hand


def tiny(method, classes=3):
    torch.manual_seed(1)
    plain = Classifier(TinyNet(classes), "fc", target_layer="features.6")
    return method.adapt(plain, 32)


def test_hide_and_seek_hides_whole_patches():
    method = make("has", has_grid_size=5, has_drop_rate=0.4)
    images = torch.rand(3, 3, 12, 17) + 1
    before = images.clone()
    torch.manual_seed(5)
    hidden = torch.rand(3, 1, 3, 4) < 0.4  # 3 x 4 patches, the last ones 2 high and 2 wide
    torch.manual_seed(5)
    found = method.hide(images)
    for b, y, x in np.ndindex(3, 12, 17):
        expected = torch.zeros(3) if hidden[b, 0, y // 5, x // 5] else before[b, :, y, x]
        assert torch.equal(found[b, :, y, x], expected)
    assert torch.equal(images, before)
    assert (
        make("has", has_drop_rate=0.0).hide(images).equal(images)
        and not make("has", has_drop_rate=1.0).hide(images).any()
    )


def test_a_step_of_hide_and_seek():
    method = make("has", has_grid_size=8, has_drop_rate=0.5)
    model, images, labels = tiny(method).eval(), torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    torch.manual_seed(3)
    _, loss = step(method, model, images, labels)
    torch.manual_seed(3)
    seen = images * (torch.rand(4, 1, 4, 4) >= 0.5).repeat_interleave(8, 2).repeat_interleave(8, 3)
    torch.testing.assert_close(loss, F.cross_entropy(model(seen).logits, labels))


def test_a_step_of_cutmix():
    method = make("cutmix", cutmix_beta=1.0, cutmix_prob=1.0)
    model, labels = tiny(method).eval(), torch.tensor([0, 1, 2, 0])
    images = torch.randn(4, 3, 32, 48)
    before = images.clone()
    np.random.seed(4), torch.manual_seed(4)
    _, loss = step(method, model, images, labels)

    np.random.seed(4), torch.manual_seed(4)
    np.random.rand()
    order = torch.randperm(4)
    ratio = (1 - np.random.beta(1, 1)) ** 0.5
    high, centre_y = int(32 * ratio), np.random.randint(32)
    wide, centre_x = int(48 * ratio), np.random.randint(48)
    top, bottom = max(centre_y - high // 2, 0), min(centre_y + high // 2, 32)
    left, right = max(centre_x - wide // 2, 0), min(centre_x + wide // 2, 48)
    assert bottom > top and right > left
    mixed = before.clone()
    for b in range(4):
        mixed[b, :, top:bottom, left:right] = before[order[b], :, top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (32 * 48)
    logits = model(mixed).logits
    expected = kept * F.cross_entropy(logits, labels) + (1 - kept) * F.cross_entropy(logits, labels[order])
    torch.testing.assert_close(loss, expected)
    assert torch.equal(images, before)


@pytest.mark.parametrize("options", [{"cutmix_prob": 0.0}, {"cutmix_beta": 0.0}])
def test_cutmix_that_never_mixes_is_plain(options):
    method = make("cutmix", **options)
    model, images, labels = tiny(method).eval(), torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    _, loss = step(method, model, images, labels)
    torch.testing.assert_close(loss, F.cross_entropy(model(images).logits, labels))


def test_attention_dropout_by_hand():
    features = torch.tensor([[[[1.0, 2.0], [3.0, 10.0]], [[1.0, 0.0], [3.0, 10.0]]]])  # means 1, 1, 3, 10
    mask = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])  # 10 is not below 0.9 * 10
    assert torch.equal(ADL(1.0, 0.9).train()(features), features * mask)
    weights = 1 / (1 + np.exp(-np.array([[1.0, 1.0], [3.0, 10.0]])))
    torch.testing.assert_close(ADL(0.0, 0.9).train()(features), features * torch.tensor(weights, dtype=torch.float32))
    assert ADL(1.0, 0.0).train()(features).abs().sum() == 0  # nothing is below 0
    assert ADL(1.0, 0.9).eval()(features) is features
    torch.manual_seed(0)
    dropped = [bool(ADL(0.75, 0.9).train()(features)[0, 0, 1, 1] == 0) for _ in range(400)]
    assert 0.68 < np.mean(dropped) < 0.82


def test_attention_dropout_in_any_network_works_in_training_alone_and_only_on_what_trains():
    method = make("adl", adl_drop_rate=1.0, adl_threshold=0.5)
    model, images = tiny(method), torch.randn(2, 3, 32, 32)
    plain = Classifier(TinyNet(3), "fc", target_layer="features.6")
    plain.load_published(model.published_state_dict(), "same names")  # hooks leave them as they are
    assert torch.equal(model.eval()(images).logits, plain.eval()(images).logits)
    for net in (model, plain):
        net.train()
        for layer in net.modules():
            if isinstance(layer, (torch.nn.Dropout, torch.nn.BatchNorm2d)):
                layer.eval()
    assert not torch.equal(model(images).logits, plain(images).logits)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(images).logits, model(images).logits)
    model.train().set_trainable(["softmax_head"])
    assert torch.equal(model(images).logits, plain.eval()(images).logits)
    assert "frozen" in method.why_idle(model) and not method.why_idle(model.set_trainable(["trunk"]))


def test_a_step_of_acol():
    method = make("acol", acol_threshold=0.6)
    model, images, labels = tiny(method).double().eval(), torch.randn(2, 3, 32, 32).double(), torch.tensor([1, 2])
    output, loss = step(method, model, images, labels)
    tensors = model.published_state_dict()
    features = model.network.trunk(images)
    maps = class_maps(tensors, "classifier_A", features)
    erased = features.detach().clone()
    for b, label in enumerate(labels.tolist()):
        own = maps[b, label]
        for y, x in np.ndindex(*own.shape):
            if (own[y, x] - own.min()) / (own.max() - own.min()) >= 0.6:
                erased[b, :, y, x] = 0
    other = class_maps(tensors, "classifier_B", erased).mean(dim=(2, 3))
    logits = maps.mean(dim=(2, 3))
    torch.testing.assert_close(output.logits, logits)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels) + F.cross_entropy(other, labels))
    loss.backward()
    assert all(p.grad is not None for name, p in model.published_parameters().items() if "network.fc" not in name)


def test_acol_with_a_branch_trains_the_branch_alone():
    method = make("acol")
    dual = dualize(tiny(method)).train()
    images, labels = torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 2])
    objective = OBJECTIVES["b2"]("cross_entropy", "binary_cross_entropy")
    output, loss = method.loss(dual, lambda inputs, _: dual(inputs), objective, images, labels)
    torch.testing.assert_close(loss, objective(output, labels))
    loss.backward()
    trained = {name for name, p in dual.published_parameters().items() if p.grad is not None}
    assert trained == {"classifier_A.4_2.weight", "classifier_A.4_2.bias"}
    # Where everything trains, B is judged by A's maps, not by those of the branch, which stand behind them.
    dual.set_trainable(["trunk", "neck", "softmax_head", "sigmoid_head"]).eval()
    torch.nn.init.normal_(dual.sigmoid_head.weight)
    _, with_branch = step(method, dual, images, labels)
    alone = Classifier(dual.network, dual.head_name, method_layers=dual.method_layers).eval()
    torch.testing.assert_close(with_branch, step(method, alone, images, labels)[1])


def test_constant_maps_are_no_division_by_zero():
    assert torch.equal(stretched(torch.full((2, 3, 3), 5.0)), torch.zeros(2, 3, 3))


def test_guidance_by_hand():
    rng = random.Random(0)
    torch.manual_seed(0)
    logits, guide = torch.randn(2, 9, 9).double(), torch.rand(2, 9, 9).double()
    guide[1] *= 0.6  # nothing above 0.7: places above 0.7 of its maximum instead
    expected, count = 0.0, 0
    for b, y, x in np.ndindex(2, 9, 9):
        g, z = guide[b, y, x].item(), logits[b, y, x].item()
        few = sum(value > 0.7 for value in guide[b].flatten().tolist()) < 30
        is_object = g > (0.7 * guide[b].max().item() if few else 0.7)
        if g < 0.2:
            expected, count = expected + np.log1p(np.exp(z)), count + 1
        elif is_object:
            expected, count = expected + np.log1p(np.exp(-z)), count + 1
    assert 0 < count < 162 and rng
    assert guided_loss(logits, guide, 0.7, 0.2).item() == pytest.approx(expected / count, rel=1e-12)
    zeros = torch.zeros(1, 4, 4)
    assert guided_loss(zeros, zeros, 0.7, 0.0).item() == 0  # no confident place, and no NaN


@pytest.mark.parametrize("architecture", ["vgg16", "resnet50", "inception_v3"])
def test_a_step_of_spg(architecture):
    """The four terms from the definitions: A guides B2, B2 guides B1, both guide C."""
    method = make("spg", spg_threshold_1l=0.05)
    model = network(architecture, "spg").double().eval()
    torch.nn.init.normal_(model.softmax_head.weight)
    images, labels = torch.randn(2, 3, 64, 64).double(), torch.tensor([1, 2])
    _, loss = step(method, model, images, labels)
    tensors = model.published_state_dict()
    with torch.no_grad():
        if architecture == "resnet50":
            b1, b2, last = resnet_trunk(tensors, spg_name, images, False)
        elif architecture == "inception_v3":
            taken = {}
            handle = model.network.Mixed_6a.register_forward_pre_hook(lambda _, inputs: taken.update(b1=inputs[0]))
            model(images)
            handle.remove()
            b1, b2 = taken["b1"], inception_trunk_output(tensors, images, False)
            last = relu_convs(tensors, ["SPG_A3_1b.0", "SPG_A3_2b.0"], b2)
        else:
            halves = max_pool(2, 2)
            b1 = vgg_trunk(tensors, CONV1_TO_3, {2: halves, 7: halves, 14: halves}, images)
            b1 = F.max_pool2d(relu_convs(tensors, [f"SPG_A_1.{i}" for i in (0, 2, 4)], b1), 3, 2, 1)
            b2 = relu_convs(tensors, [f"SPG_A_2.{i}" for i in (0, 2, 4)], b1)
            last = relu_convs(tensors, ["SPG_A_3.0", "SPG_A_3.2"], b2)

        def side(name, x):
            x = relu_convs(tensors, [f"{name}.0"], x)
            x = relu_convs(tensors, ["SPG_B_shared.0"], x) if name != "SPG_C" else x
            x = plain_conv(tensors, "SPG_B_shared.2" if name != "SPG_C" else "SPG_C.2", x, padding=0)
            return F.interpolate(x, size=(64, 64), mode="bilinear")[:, 0]

        first, second, third = side("SPG_B_1a", b1), side("SPG_B_2a", b2), side("SPG_C", last)
        head = "SPG_A_4" if architecture == "vgg16" else "SPG_A4"
        maps = plain_conv(tensors, head, last, padding=0)
        own = F.interpolate(maps, size=(64, 64), mode="bilinear")[torch.arange(2), labels][:, None]
        expected = (
            F.cross_entropy(maps.mean(dim=(2, 3)), labels)
            + guided_loss(second, minmax(own)[:, 0], 0.7, 0.05)
            + guided_loss(first, second.sigmoid(), 0.5, 0.05)
            + guided_loss(third, (first.sigmoid() + second.sigmoid()) / 2, 0.7, 0.1)
        )
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------- what does not work is said before any work


def test_networks_that_a_method_does_not_fit_are_refused():
    with pytest.raises(InputError, match="spg has layers for vgg16, resnet50 and inception_v3 only"):
        build("efficientnet_lite0", pretrained=False, method=make("spg"), image_size=64)
    with pytest.raises(InputError, match="for the cam form of vgg16 only"):
        build("vgg16", pretrained=False, classifier_form="original", method=make("adl"))
    for method in ("acol", "adl"):
        with pytest.raises(InputError, match=f"--wsol_method {method} needs feature maps"):
            build("vit", pretrained=False, method=make(method))
    with pytest.raises(InputError, match="--last_layer conv"):
        build("resnet50", pretrained=False, last_layer="conv", method=make("acol"))


# ------------------------------------------------------------------- from the command line to a table

GENERIC = ["cam", "has", "acol", "adl", "cutmix"]


def trained(root, method, *flags, name="run"):
    flags = ("--wsol_method", method, "--methods", "cam,gradcam", "--epochs", "2", "--augment", "none", *flags)
    return program.main(arguments(root, *flags, name=name))


# In b2, one that draws for each image, and the others with --slow.
RUNS = [("vanilla", method) for method in GENERIC] + [
    pytest.param("b2", method, marks=() if method == "adl" else pytest.mark.slow) for method in GENERIC
]


@pytest.mark.parametrize("structure, method", RUNS)
def test_a_run_its_evaluation_and_its_resumption(shapes, monkeypatch, method, structure):
    flags = ("--model_structure", structure)
    results = trained(shapes, method, *flags)
    whole = checkpoint_content(shapes / "runs/run")
    assert whole["wsol_method"] == method and results["config"]["wsol_method"] == method
    again = program.main(["--root", str(shapes / "runs"), "--experiment_name", "run", "--eval_only"])
    assert again["rows"] == results["rows"] or drop_times(again) == drop_times(results)
    (shapes / "runs/run/config.yaml").unlink()
    alone = ("--dataset_name", "Shapes", "--data_root", str(shapes / "dataset"), "--metadata_root",
             str(shapes / "metadata"), "--crop_size", "48", "--methods", "cam")  # fmt: skip
    program.main(["--root", str(shapes / "runs"), "--experiment_name", "run", "--eval_only", *alone])

    flags = ("--wsol_method", method, "--methods", "cam,gradcam", "--epochs", "2", "--augment", "none", *flags)
    killed_after(monkeypatch, 2, *arguments(shapes, *flags, name="killed"))
    program.main(["--root", str(shapes / "runs"), "--experiment_name", "killed", "--resume"])
    resumed = checkpoint_content(shapes / "runs/killed")
    for name, tensor in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], tensor, rtol=1e-5, atol=1e-6)


def drop_times(results):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in results["rows"]]


@pytest.mark.parametrize("method", ["has", "acol", "adl", "cutmix"])
def test_each_method_trains_other_weights_than_plain_training(shapes, method):
    flags = ("--model_structure", "vanilla", "--train_only", "--adl_threshold", "0.5")
    trained(shapes, "cam", *flags, name="plain")
    trained(shapes, method, *flags, name="other")
    plain, other = (checkpoint_content(shapes / "runs" / name)["state_dict"] for name in ("plain", "other"))
    first = next(name for name in other if name.endswith("features.0.weight"))
    assert not torch.allclose(other[first], plain["features.0.weight"], atol=1e-6)


def test_a_method_without_effect_is_said_so(shapes, capsys):
    trained(shapes, "adl", "--train_only", "--has_grid_size", "8")
    out = capsys.readouterr().out
    assert "--has_grid_size has no effect: it is for --wsol_method has, not adl" in out
    assert "--wsol_method adl changes nothing in stage b2: its layers drop nothing, because the trunk is frozen" in out


def test_a_checkpoint_of_wsolevaluation_tells_its_method(tmp_path):
    torch.save({"state_dict": network("resnet50", "spg").published_state_dict()}, tmp_path / "spg.pth")
    torch.save({"state_dict": network("resnet50", "acol").published_state_dict()}, tmp_path / "acol.pth")
    for name in ("spg", "acol"):
        assert checkpoint.Checkpoint("start", tmp_path / f"{name}.pth").build_settings["wsol_method"] == name


def test_maps_of_pictures_from_an_acol_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": network("resnet50", "acol").published_state_dict()}, "acol.pth")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save("a.png")
    flags = "--architecture resnet50 --crop_size 64 --workers 0 --methods cam,gradcam --save_npy"
    pictures.main(["a.png", "--out", "out", "--ckpt", "acol.pth", *flags.split()])
    own = np.load("out/cam_softmax/a.npy")
    assert 0 <= own.min() and own.max() == 1  # the larger of two maps in [0, 1]
