"""How figures may be drawn and saved: the choices of the flags, listed without importing matplotlib."""

# Colour maps of score maps. turbo is the rainbow that readers of the field's papers expect, in a smooth form. The
# others are perceptually uniform: the higher a score the lighter, so its order shows in grey print and to colour-blind
# readers.
COLORMAPS = ("turbo", "viridis", "cividis", "inferno", "magma")
DEFAULT_COLORMAP = "turbo"

FIGURE_FORMATS = ("png", "pdf", "svg")
