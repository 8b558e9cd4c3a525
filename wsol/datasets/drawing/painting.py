"""Painting: textures, shaded outlines, creatures, shadows and the camera.

Colours are RGB floats in 0..1 throughout; a canvas is (H, W, 3) float32.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from wsol.datasets.drawing.creatures import PATTERNS, Creature, Head, Part
from wsol.datasets.drawing.outlines import Array, ellipse, rotation, transform

Paint = Callable[[Array, Array], Array]  # coordinates x, y -> RGB


# ---------------------------------------------------------------- textures


def natural_noise(rng: Generator, height: int, width: int, roughness: float = 0.5) -> Array:
    """Noise (height, width) in 0..1 with the 1/f amplitude spectrum of photographs.

    It is a sum of random grids, each twice as fine and `roughness` times as strong (0.5 gives 1/f) as the one before.
    """
    cells, strength = 2, 1.0
    field: Array = rng.random((cells, cells), np.float32)
    while 2 * cells <= max(height, width):
        cells, strength = 2 * cells, strength * roughness
        field = cv2.resize(field, (cells, cells), interpolation=cv2.INTER_CUBIC) + strength * rng.random(
            (cells, cells), np.float32
        )
    field = cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.normalize(field, np.empty_like(field), 0.0, 1.0, cv2.NORM_MINMAX)


def random_colour(rng: Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Array:
    """A random RGB colour (3,) of any hue."""
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(*value)]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


def random_colour_pair(
    rng: Generator, saturation: tuple[float, float], value: tuple[float, float], distance: float
) -> tuple[Array, Array]:
    """Two random RGB colours that differ by at most `distance` in each channel."""
    first = random_colour(rng, saturation, value)
    return first, np.clip(random_colour(rng, saturation, value), first - distance, first + distance)


def _fur(rng: Generator, noise: Array) -> Callable[[Array, Array], Array]:
    """A random body texture: a function of (x, y) in body units to 0..1, roughened by `noise` (128, 128)."""
    kind, frequency, angle = rng.integers(5), rng.uniform(6, 12), rng.uniform(0, np.pi)

    def texture(x: Array, y: Array) -> Array:
        columns, rows = (np.int32((v + 4.0) * 16.0) % 128 for v in (x, y))
        rough = noise[rows, columns]
        u = x * np.cos(angle) + y * np.sin(angle)
        match kind:
            case 0:
                return rough
            case 1:
                return 0.5 + 0.5 * np.sin(frequency * u + 6.0 * rough)  # wavy stripes
            case 2:
                return np.clip(8.0 * (rough - 0.5) + 0.5, 0, 1)  # patches
            case 3:
                cell = 2.6 / frequency
                distance = np.hypot((x + 9) % cell - cell / 2, (y + 9) % cell - cell / 2)
                return np.clip(6.0 * (0.45 - distance / cell), 0, 1)  # spots
        return np.clip(0.5 + 0.35 * y + 0.5 * (rough - 0.5), 0, 1)  # back and belly

    return texture


# ---------------------------------------------------------------- shapes and creatures


def smooth(field: Array, sigma: float) -> Array:
    """Blur by about `sigma` pixels with two box filters, which take the same time for any sigma."""
    side = 2 * round(sigma * 1.22) + 1  # variance of a box: (side^2 - 1) / 12
    return cv2.blur(cv2.blur(field, (side, side)), (side, side))


class Brush:
    """Paints shaded outlines on a canvas (H, W, 3), lit from direction `light` (x, y), and records what they cover.

    Attributes:
        coverage: (H, W) in 0..1, of everything that this brush has painted.
    """

    def __init__(self, canvas: Array, light: Array) -> None:
        self.canvas, self.light = canvas, light
        self.coverage: Array = np.zeros(canvas.shape[:2], np.float32)

    def fill(self, outline: Array, colour: Paint, relief: float = 1.0) -> None:
        """Paint an outline (N, 2), in pixels. `colour` maps pixels x (1, w), y (h, 1) to RGB (h, w, 3)."""
        height, width = self.coverage.shape
        x0, y0 = np.maximum(np.floor(outline.min(0)).astype(int) - 2, 0)
        x1, y1 = np.minimum(np.ceil(outline.max(0)).astype(int) + 3, (width, height))
        if x0 >= x1 or y0 >= y1:
            return
        shape = np.zeros((y1 - y0, x1 - x0), np.uint8)
        cv2.fillPoly(shape, [np.round((outline - (x0, y0)) * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
        alpha = shape.astype(np.float32) / 255
        y, x = np.arange(y0, y1, dtype=np.float32)[:, None], np.arange(x0, x1, dtype=np.float32)[None]
        paint = colour(x, y) * cv2.merge([self._shade(alpha, relief)] * 3)
        region = (slice(y0, y1), slice(x0, x1))
        self.canvas[region] += cv2.merge([alpha] * 3) * (paint - self.canvas[region])
        self.coverage[region] = np.maximum(self.coverage[region], alpha)

    def _shade(self, alpha: Array, relief: float) -> Array:
        """Brightness of a cushion with this outline: brighter towards the light, darker at the rim."""
        sigma = 0.18 * float(np.sqrt(alpha.sum())) + 0.5
        height = smooth(alpha, sigma)
        slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=0.125)
        slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=0.125)
        slope = (slope_x * self.light[0] + slope_y * self.light[1]) * sigma
        return np.clip(0.72 + 0.36 * height - 1.1 * relief * slope, 0.3, 1.35)


def paint_creature(brush: Brush, creature: Creature, head: Head, to_pixels: Array, rng: Generator) -> None:
    """Paint all parts of a creature; `to_pixels` is the (2, 3) affine map from body units to pixels."""
    inverse = cv2.invertAffineTransform(to_pixels).astype(np.float32)
    texture = _fur(rng, natural_noise(rng, 128, 128))
    body, trim = (random_colour_pair(rng, (0.05, 0.6), (0.3, 0.9), 0.25) for _ in range(2))
    turn = rotation(-creature.head_turn)
    tinge, gain = rng.uniform(-0.04, 0.04, 3), rng.uniform(0.88, 1.08)  # heads of a class differ a little in colour
    first, second = (np.clip(gain * np.array(colour, np.float32) + tinge, 0, 1) for colour in head.colours)

    def units(x: Array, y: Array) -> tuple[Array, Array]:
        u, v = (inverse[i, 0] * x + inverse[i, 1] * y + inverse[i, 2] for i in range(2))
        return u, v

    def mix(colours: tuple[Array, Array], share: Array) -> Array:
        return colours[0] + np.asarray(share, np.float32)[..., None] * (colours[1] - colours[0])

    def head_paint(x: Array, y: Array) -> Array:
        u, v = units(x, y)
        u, v = (u - creature.head_at[0]) / creature.head_radius, (v - creature.head_at[1]) / creature.head_radius
        pattern = PATTERNS[head.pattern](turn[0, 0] * u + turn[0, 1] * v, turn[1, 0] * u + turn[1, 1] * v)
        return mix((first, second), pattern)

    paints: dict[str, Paint] = {
        "body": lambda x, y: mix(body, texture(*units(x, y))),
        "trim": lambda x, y: mix(trim, texture(*units(x, y))),
        "head": head_paint,
    }
    for part in creature.parts:
        brush.fill(transform(to_pixels, part.outline), paints[part.paint], relief=0.7 if part.paint == "head" else 1.0)
    _paint_eyes(brush, creature, head.face, to_pixels)


def _paint_eyes(brush: Brush, creature: Creature, face: tuple[float, float], to_pixels: Array) -> None:
    """Two eyes beside `face`, in head units; the same for all classes."""
    scale = creature.head_radius
    for side in (-0.2, 0.2):
        x, y = creature.head_at + scale * (rotation(creature.head_turn) @ (face[0] + side, face[1]))
        for radius, grey in ((0.15, 1.0), (0.08, 0.0)):
            outline = transform(to_pixels, ellipse(x, y, scale * radius, scale * radius, n=20))
            brush.fill(outline, _flat_grey(grey), relief=0.0)


def _flat_grey(grey: float) -> Paint:
    return lambda x, y: np.full(3, grey, np.float32)


# ---------------------------------------------------------------- the whole canvas


def cast_shadow(canvas: Array, parts: list[Part], to_pixels: Array, light: Array) -> None:
    """Darken the ground beside the creature, away from the light."""
    shadow = np.zeros(canvas.shape[:2], np.float32)
    size = float(np.sqrt(abs(np.linalg.det(to_pixels[:, :2]))))  # pixels per body unit
    for part in parts:
        outline = transform(to_pixels, part.outline) - 0.12 * size * light
        cv2.fillPoly(shadow, [np.round(outline).astype(np.int32)], 1.0)
    np.multiply(canvas, cv2.merge([1 - 0.45 * smooth(shadow, 0.06 * size + 1)] * 3), out=canvas)


def develop(canvas: Array, rng: Generator) -> NDArray[np.uint8]:
    """What the camera adds: exposure, colour cast and grain; (H, W, 3) float to uint8."""
    cast = rng.uniform(0.82, 1.15) * rng.uniform(0.94, 1.06, 3)
    grain = 255 * rng.uniform(0.005, 0.025) * rng.standard_normal(canvas.shape[:2], np.float32)
    # One matrix for (R, G, B) of all pixels, as broadcasting over three channels is several times slower.
    exposed = cv2.add(cv2.transform(canvas, (255 * np.diag(cast)).astype(np.float32)), cv2.merge([grain] * 3))
    return cv2.convertScaleAbs(np.maximum(exposed, 0)).astype(np.uint8, copy=False)  # saturates at 255
