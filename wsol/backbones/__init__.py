"""The networks: one file per family, one line per name in `registry`; `named` adds those of timm and torchvision."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
