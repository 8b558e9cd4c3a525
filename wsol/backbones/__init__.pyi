from .factory import build as build
from .factory import get_architecture as get_architecture
from .registry import ARCHITECTURES as ARCHITECTURES
from .registry import FORMS as FORMS
from .registry import LAST_LAYERS as LAST_LAYERS
from .registry import Architecture as Architecture
from .registry import BuildOptions as BuildOptions
from .registry import register as register
