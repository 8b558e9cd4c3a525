"""Dual-CAM: build a network, give it a sigmoid branch, and compute class activation maps.

    from wsol import CamExtractor, build, dualize

Names are loaded when first used: `import wsol` alone imports neither torch nor timm.
"""

import lazy_loader

from wsol.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
