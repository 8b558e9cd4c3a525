"""Metrics of maps: box accuracy and PxAP over a data set, fidelity, and the pure functions that they count with.

Everything is loaded when first used: `import wsol.metrics` alone imports neither torch nor OpenCV nor numba.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
