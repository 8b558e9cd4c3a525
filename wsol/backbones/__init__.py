"""The networks: one file per family and one line per name in `registry`; `named` finds all others in timm and torchvision."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
