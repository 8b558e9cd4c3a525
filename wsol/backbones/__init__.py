"""The networks: one file per family, one registry line per name."""

from wsol.backbones import efficientnet  # noqa: F401  (registers its networks)
from wsol.backbones.registry import ARCHITECTURES, Architecture, build, register

__all__ = ["ARCHITECTURES", "Architecture", "build", "register"]
