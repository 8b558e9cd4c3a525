"""dualize: bit-for-bit equality, what stays frozen, which heads are found."""

import pytest
import timm
import torch
import torchvision
from conftest import TinyNet
from torch import nn

from wsol import dualize
from wsol.classifier import Classifier, find_head
from wsol.errors import InputError
from wsol.losses import class_balanced_bce


class Conv1x1Net(nn.Module):
    """A 1x1 conv as the head with pooling behind it, as in SPG's networks."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.conv = nn.Conv2d(8, 5, 1)

    def forward(self, images):
        return self.conv(self.trunk(images)).mean(dim=(2, 3))


NETWORKS = {
    "linear": (lambda: TinyNet(5), "fc"),
    "conv then pooling": (Conv1x1Net, "conv"),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), "fc"),
    "vgg11 (mlp)": (lambda: torchvision.models.vgg11(num_classes=5), "classifier"),
    "mobilenet_v3 (mlp)": (lambda: torchvision.models.mobilenet_v3_small(num_classes=5), "classifier"),
    "squeezenet (conv)": (lambda: torchvision.models.squeezenet1_1(num_classes=5), "classifier.1"),
    "convnext (torchvision)": (lambda: torchvision.models.convnext_tiny(num_classes=5), "classifier.2"),
    "vit (torchvision)": (
        lambda: torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=5),
        "heads.head",
    ),
    "timm vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5), "head"),
    "timm efficientnet": (lambda: timm.create_model("tf_efficientnet_lite0", num_classes=5), "classifier"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_both_branches_equal_the_model_before_training_and_logits_after(name):
    make, head = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    dual = dualize(model)
    assert dual.head_name == head
    dual.eval()
    output = dual(images)
    assert torch.equal(output.logits, expected)
    assert torch.equal(output.sigmoid_logits, expected)

    dual.train()
    optimizer = torch.optim.SGD([p for p in dual.parameters() if p.requires_grad], lr=0.5)
    class_balanced_bce(dual(images).sigmoid_logits, torch.tensor([0, 1, 2])).backward()
    optimizer.step()
    dual.eval()
    after = dual(images)
    assert torch.equal(after.logits, expected)
    assert not torch.equal(after.sigmoid_logits, expected)
    for key, tensor in model.state_dict().items():  # BatchNorm's running statistics are among them
        assert torch.equal(tensor, before[key]), key


def test_the_branch_is_a_copy_and_not_the_head():
    model = TinyNet(5)
    dual = dualize(model)
    assert dual.softmax_head is model.fc
    assert dual.sigmoid_head.weight.data_ptr() != model.fc.weight.data_ptr()


def test_frozen_parts_stay_in_eval_mode_and_record_nothing():
    dual = dualize(TinyNet(5)).train()
    assert all(not module.training for module in dual.network.modules())
    assert dual.sigmoid_head.training
    output = dual(torch.randn(2, 3, 32, 32))
    assert dual.head_input(torch.randn(2, 3, 32, 32)).grad_fn is None
    output.sigmoid_logits.sum().backward()
    assert all(p.grad is None for p in dual.network.parameters())
    assert all(p.grad is not None for p in dual.sigmoid_head.parameters())


@pytest.mark.parametrize("parts", [["trunk"], ["softmax_head"], ["sigmoid_head"], ["trunk", "softmax_head"], []])
def test_any_part_can_be_frozen(parts):
    dual = dualize(TinyNet(5)).set_trainable(parts).train()
    assert dual.network.features[1].training == ("trunk" in parts)
    assert dual.network.features[0].weight.requires_grad == ("trunk" in parts)
    assert dual.softmax_head.weight.requires_grad == dual.softmax_head.training == ("softmax_head" in parts)
    assert dual.sigmoid_head.weight.requires_grad == dual.sigmoid_head.training == ("sigmoid_head" in parts)


def test_without_a_branch_there_are_no_sigmoid_logits():
    output = Classifier(TinyNet(5), "fc")(torch.randn(2, 3, 32, 32))
    assert output.logits.shape == (2, 5) and output.sigmoid_logits is None


def test_a_classifier_can_be_dualized_once():
    dual = dualize(Classifier(TinyNet(5), "fc", target_layer="features.6"))
    assert dual.target_layer is dual.network.features[6]
    with pytest.raises(InputError, match="branch already"):
        dualize(dual)


def test_the_head_can_be_named():
    model = torchvision.models.vgg11(num_classes=5)
    dual = dualize(model, head="classifier.6")
    assert isinstance(dual.sigmoid_head, nn.Linear)


def test_head_and_target_layer_are_given_as_modules_or_by_their_names():
    model = torchvision.models.vgg11(num_classes=5)
    by_module = dualize(model, head=model.classifier[6], target_layer=model.features[3])
    by_name = dualize(model, head="classifier.6", target_layer="features.3")
    assert by_module.head_name == by_name.head_name == "classifier.6"
    assert by_module.target_layer is by_name.target_layer is model.features[3]
    again = dualize(Classifier(model, "classifier", target_layer="features.20"), target_layer=model.features[3])
    assert again.target_layer_name == again.pooled_layer_name == "features.3"
    with pytest.raises(InputError, match=r"Linear given as head is not a module of this VGG; .*classifier\.0, "):
        dualize(model, head=nn.Linear(4096, 5))
    with pytest.raises(InputError, match=r"no module 'features\.33' to be its target layer; did you mean 'features"):
        dualize(model, target_layer="features.33")


def test_errors_name_the_module_and_the_remedy():
    with pytest.raises(InputError, match="no module 'clasifier'.*did you mean 'classifier'"):
        dualize(torchvision.models.vgg11(num_classes=5), head="clasifier")
    with pytest.raises(InputError, match="has no Linear"):
        dualize(TinyNet(5), head="features.1")
    with pytest.raises(InputError, match="name the head"):
        find_head(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(InputError, match="several heads"):
        find_head(timm.create_model("deit_tiny_distilled_patch16_224", img_size=32))


def test_an_output_that_does_not_follow_from_the_head_is_noticed():
    class Sum(TinyNet):
        def forward(self, images):
            return super().forward(images).sum(dim=0, keepdim=True)

    with pytest.raises(InputError, match="image by image"):
        dualize(Sum(5))(torch.randn(3, 3, 32, 32))
