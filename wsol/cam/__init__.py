"""Class activation maps of any classifier: `CamExtractor` runs, `CAM_METHODS` lists, `to_scoremaps` normalises."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
