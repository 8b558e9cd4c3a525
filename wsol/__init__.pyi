from .backbones import build as build
from .broad_learning import BroadLearningSystem as BroadLearningSystem
from .cam import CamExtractor as CamExtractor
from .cam import Variant as Variant
from .cam import to_scoremaps as to_scoremaps
from .dual_head import dualize as dualize
from .version import __version__ as __version__
