"""Dual-CAM and its neighbours: build a network, give it a sigmoid branch, look at what it sees.

from wsol import build, dualize, CamExtractor
"""

from wsol.backbones import build
from wsol.cam import CamExtractor
from wsol.dual_head import dualize

__all__ = ["CamExtractor", "build", "dualize"]
