"""The networks: one file per family, one registry line per name; `named` finds all others in timm and torchvision."""

from wsol.backbones import efficientnet, inception, resnet, vgg, vit  # noqa: F401  (register their networks)
from wsol.backbones.factory import build, get_architecture, new_classes
from wsol.backbones.registry import ARCHITECTURES, FORMS, LAST_LAYERS, Architecture, Wanted, register

__all__ = [
    "ARCHITECTURES",
    "FORMS",
    "LAST_LAYERS",
    "Architecture",
    "Wanted",
    "build",
    "get_architecture",
    "new_classes",
    "register",
]
