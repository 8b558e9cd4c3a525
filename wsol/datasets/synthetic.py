"""The embedded default data set: drawn creatures, of which one part, the head, tells the class.

Body plan, body colours, body texture, pose, size, light and background say nothing about the class; only the head's
shape, colour and pattern do. So a map that covers just what the classifier needs covers a corner of the object, and
localizes badly: the problem that this project is about. Every image is drawn from its own random generator, seeded by
(seed, split, class, number): the order of drawing does not matter.

Units: a creature is designed in body units (x to the right, where it looks, y down; bodies are about 2 long), then
placed in pixels. Colours are RGB floats in 0..1 throughout, images uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from wsol.datasets.registry import SPLITS
from wsol.datasets.writer import DatasetFolders, Record, publish_dataset, save_example, write_metadata
from wsol.log import progress

Array = NDArray[np.float32]
SIDES = (200, 340)  # image sides in pixels
MAX_ASPECT = 1.5  # longer side / shorter side
BOX_AREA = (0.20, 0.62)  # area of the object's box / area of the image, one creature in the image
BOX_AREA_PAIR = (0.16, 0.30)  # the same for each of two creatures
PAIR_SHARE = 0.15  # share of the images that hold two creatures


Frame = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
Paint = Callable[[Array, Array], Array]  # coordinates x, y -> RGB


class Part(NamedTuple):
    """A filled outline, (N, 2) in body units, and what paints it: 'body', 'trim' or 'head'."""

    outline: Array
    paint: str


class Creature(NamedTuple):
    """Parts in body units, back to front, the head last; where the head sits, its radius and its turn in radians."""

    parts: list[Part]
    head_at: tuple[float, float]
    head_radius: float
    head_turn: float


class Head(NamedTuple):
    """What tells the class: an outline of radius about 1, two RGB colours and how they alternate over the outline."""

    name: str
    outline: Callable[[], Array]
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    pattern: str  # a key of PATTERNS
    face: tuple[float, float] = (0.0, -0.12)  # midpoint between the eyes, in head units


# ---------------------------------------------------------------- outlines


def _ellipse(x: float, y: float, a: float, b: float, angle: float = 0.0, n: int = 40) -> Array:
    """Ellipse with half axes a and b, the first turned by `angle` radians. (n, 2)"""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = a * np.cos(t), b * np.sin(t)
    return np.stack([x + u * cos - v * sin, y + u * sin + v * cos], 1).astype(np.float32)


def _polar(radius: Callable[[Array], Array], n: int = 96) -> Array:
    """Closed outline r(t) around the origin; t = 0 points up. (n, 2)"""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    r = radius(t)
    return np.stack([r * np.sin(t), -r * np.cos(t)], 1).astype(np.float32)


def _star(points: int, inner: float) -> Array:
    t = np.arange(2 * points) * np.pi / points
    r = np.where(np.arange(2 * points) % 2 == 0, 1.1, inner)
    return np.stack([r * np.sin(t), -r * np.cos(t)], 1).astype(np.float32)


def _heart() -> Array:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], 1).astype(np.float32) / 15


def _moon() -> Array:
    """Crescent: an outer arc and back along an inner one."""
    outer = np.linspace(-2.3, 2.3, 40)
    inner = np.linspace(2.3, -2.3, 40)
    x = np.concatenate([-1.1 * np.cos(outer), 0.34 - 0.50 * np.cos(inner)])
    y = np.concatenate([1.1 * np.sin(outer), 0.82 * np.sin(inner)])
    return np.stack([x, y], 1).astype(np.float32)


def _leaf() -> Array:
    t = np.linspace(-1, 1, 32)
    right = np.stack([0.62 * (1 - t**2) * (1 - 0.25 * t), 1.25 * t], 1)
    return np.concatenate([right, right[::-1] * (-1, 1)]).astype(np.float32)


def _flower() -> Array:
    return _polar(lambda t: 0.78 + 0.30 * np.cos(5 * t))


def _gear() -> Array:
    return _polar(lambda t: 0.88 + 0.18 * np.sign(np.sin(8 * t)), 192)


def _cross() -> Array:
    a, b = 0.36, 1.0
    quarter = np.array([(-a, -b), (a, -b), (a, -a)], np.float32)  # one arm; turned by right angles, the others
    return np.concatenate([quarter @ _rotation(turn * np.pi / 2).T for turn in range(4)])


def _polygon(sides: int, radius: float = 1.0, turn: float = 0.0) -> Array:
    t = turn + np.arange(sides) * 2 * np.pi / sides
    return np.stack([radius * np.sin(t), -radius * np.cos(t)], 1).astype(np.float32)


def _capsule(spine: Array, start: float, end: float) -> Array:
    """A limb: the outline around a bent line (n, 2), `start` wide at first, `end` wide and round at last."""
    direction = np.gradient(spine, axis=0)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True) + 1e-6
    normal = np.stack([-direction[:, 1], direction[:, 0]], 1)
    half = np.linspace(start, end, len(spine))[:, None] / 2
    turn = np.linspace(np.pi / 2, -np.pi / 2, 9)[1:-1, None]
    tip = spine[-1] + end / 2 * (np.cos(turn) * direction[-1] + np.sin(turn) * normal[-1])
    return np.concatenate([spine + half * normal, tip, (spine - half * normal)[::-1]]).astype(np.float32)


def _bend(start: tuple[float, float], end: tuple[float, float], bulge: float, n: int = 10) -> Array:
    """Points on a curve from start to end that bulges sideways by `bulge` times its length. (n, 2)"""
    a, b = np.array(start), np.array(end)
    t = np.linspace(0, 1, n)[:, None]
    side = np.array([-(b - a)[1], (b - a)[0]])
    return (a + t * (b - a) + 4 * t * (1 - t) * bulge * side).astype(np.float32)


# ---------------------------------------------------------------- the twelve heads

RED, YELLOW, BLUE, GREEN = (0.86, 0.10, 0.12), (0.98, 0.82, 0.10), (0.13, 0.30, 0.86), (0.15, 0.66, 0.20)
PURPLE, PINK, ORANGE, WHITE = (0.50, 0.16, 0.70), (0.97, 0.46, 0.68), (0.96, 0.50, 0.08), (0.95, 0.95, 0.93)
BLACK, SILVER, CYAN, NIGHT = (0.08, 0.08, 0.09), (0.62, 0.64, 0.68), (0.10, 0.76, 0.80), (0.06, 0.10, 0.36)

# How the two colours of a head alternate: (x, y) in head units -> 0 (first colour) .. 1 (second).
PATTERNS: dict[str, Callable[[Array, Array], Array]] = {
    "plain": lambda x, y: np.zeros_like(x),
    "centre": lambda x, y: np.hypot(x, y) < 0.42,
    "checks": lambda x, y: (np.floor(x * 1.7 + 20) + np.floor(y * 1.7 + 20)) % 2,
    "stripes": lambda x, y: np.sin(x * 9.0) > 0,
    "dots": lambda x, y: np.hypot((x + 10.0) % 0.62 - 0.31, (y + 10.0) % 0.62 - 0.31) < 0.19,
    "rings": lambda x, y: np.sin(np.hypot(x, y) * 10.0) > 0,
    "veins": lambda x, y: (np.abs(x) < 0.06) | (np.abs((y + 10.0 + np.abs(x)) % 0.5 - 0.25) < 0.045),
}

HEADS = (
    Head("red star", lambda: _star(5, 0.50), (RED, (1.0, 0.35, 0.30)), "centre"),
    Head("yellow sun", lambda: _star(14, 0.78), (YELLOW, ORANGE), "centre"),
    Head("blue moon", _moon, (BLUE, BLUE), "plain", face=(-0.62, -0.1)),
    Head("green leaf", _leaf, (GREEN, (0.75, 0.92, 0.35)), "veins"),
    Head("purple flower", _flower, (PURPLE, (0.72, 0.45, 0.92)), "centre"),
    Head("pink heart", _heart, (PINK, PINK), "plain"),
    Head("orange triangle", lambda: _polygon(3, 1.3), (ORANGE, (0.55, 0.20, 0.02)), "rings"),
    Head("white cross", _cross, (WHITE, WHITE), "plain"),
    Head("black gear", _gear, (BLACK, SILVER), "centre"),
    Head("checkered square", lambda: _polygon(4, 1.25, np.pi / 4), (BLACK, WHITE), "checks"),
    Head("striped diamond", lambda: _polygon(4, 1.2), (NIGHT, CYAN), "stripes"),
    Head("spotted disc", lambda: _ellipse(0, 0, 1.0, 1.0), (WHITE, RED), "dots"),
)


# ---------------------------------------------------------------- body plans: parts, back to front; where the head goes

Plan = tuple[list[Part], tuple[float, float]]


def _quadruped(rng: Generator) -> Plan:
    long, high, leg = rng.uniform(0.9, 1.25), rng.uniform(0.38, 0.6), rng.uniform(0.55, 1.0)
    width, head = rng.uniform(0.16, 0.28), (long + rng.uniform(0.3, 0.5), -rng.uniform(0.35, 0.8))

    def limb(x: float) -> Array:
        foot = (x + rng.uniform(-0.25, 0.25), high * 0.6 + leg)
        return _capsule(_bend((x, 0.1), foot, rng.uniform(-0.12, 0.12)), width * 1.5, width)

    tail_tip = (-long - rng.uniform(0.5, 1.0), rng.uniform(-0.9, 0.4))
    tail = _capsule(_bend((-long * 0.85, -0.1), tail_tip, rng.uniform(-0.3, 0.3)), 0.26, 0.1)
    parts = [Part(limb(long * 0.75), "trim"), Part(limb(-long * 0.55), "trim"), Part(tail, "trim")]
    neck = _capsule(_bend((long * 0.6, -0.1), head, 0.1), 0.6, 0.36)
    parts += [Part(neck, "body"), Part(_ellipse(0, 0, long, high), "body")]
    return [*parts, Part(limb(long * 0.5), "body"), Part(limb(-long * 0.8), "body")], head


def _bird(rng: Generator) -> Plan:
    long, high, tilt = rng.uniform(0.85, 1.05), rng.uniform(0.5, 0.65), rng.uniform(-0.45, -0.1)
    head = (rng.uniform(0.95, 1.2), -rng.uniform(0.6, 1.05))
    parts = []
    for spread in np.linspace(-0.35, 0.25, 3):  # tail feathers
        end = (-long - rng.uniform(0.6, 1.0), 0.35 + spread + rng.uniform(0, 0.3))
        parts.append(Part(_capsule(_bend((-long * 0.6, 0.15), end, 0.05), 0.2, 0.26), "trim"))
    for x in (-0.15, 0.2):
        foot = (x + rng.uniform(-0.1, 0.15), high + rng.uniform(0.5, 0.8))
        parts.append(Part(_capsule(_bend((x, high * 0.7), foot, 0.1), 0.12, 0.1), "trim"))
        parts.append(Part(_ellipse(foot[0] + 0.1, foot[1], 0.22, 0.07), "trim"))
    parts.append(Part(_capsule(_bend((0.5, -0.2), head, -0.08), 0.65, 0.34), "body"))
    parts.append(Part(_ellipse(0, 0, long, high, tilt), "body"))
    wing = _capsule(_bend((0.4, -0.15), (-long * 0.9, rng.uniform(-0.9, 0.3)), rng.uniform(0.05, 0.25)), 0.55, 0.2)
    return parts + [Part(wing, "trim")], head


def _beetle(rng: Generator) -> Plan:
    long, high = rng.uniform(0.85, 1.15), rng.uniform(0.5, 0.75)
    head = (long + rng.uniform(0.2, 0.35), 0.0)
    parts = []
    for side in (-1, 1):
        for x, lean in ((0.55, 0.5), (0.0, -0.1), (-0.5, -0.5)):
            foot = (x * long + lean + rng.uniform(-0.15, 0.15), side * (high + rng.uniform(0.4, 0.7)))
            leg = _capsule(_bend((x * long, side * high * 0.5), foot, -side * lean * 0.5), 0.17, 0.09)
            parts.append(Part(leg, "trim"))
    parts.append(Part(_ellipse(long * 0.6, 0, 0.5, high * 0.75), "trim"))
    for side in (-1, 1):  # wing cases
        parts.append(Part(_ellipse(-0.12, side * high * 0.42, long, high * 0.6, side * rng.uniform(0.0, 0.16)), "body"))
    return parts, head


def _fish(rng: Generator) -> Plan:
    long, high = rng.uniform(1.0, 1.25), rng.uniform(0.45, 0.75)
    parts = []
    for side in (-1, 1):
        end = (-long - rng.uniform(0.5, 0.8), side * rng.uniform(0.5, 0.8))
        parts.append(Part(_capsule(_bend((-long * 0.75, 0.0), end, -side * 0.1), 0.2, 0.42), "trim"))
        root, fin = (rng.uniform(0.0, 0.3), side * high * 0.6), rng.uniform((-0.7, 0.25), (-0.2, 0.55))
        end = (fin[0], side * (high + fin[1]))
        parts.append(Part(_capsule(_bend(root, end, side * 0.15), 0.7, 0.14), "trim"))
    parts.append(Part(_ellipse(0, 0, long, high), "body"))
    parts.append(Part(_capsule(_bend((0.35, 0.12), (-0.35, rng.uniform(0.1, 0.45)), 0.1), 0.16, 0.34), "trim"))
    return parts, (long * rng.uniform(0.95, 1.1), rng.uniform(-0.1, 0.1))


def _caterpillar(rng: Generator) -> Plan:
    x = np.linspace(-1.5, 1.15, 8)
    y = rng.uniform(0.15, 0.5) * np.sin(x * rng.uniform(1.5, 2.6) + rng.uniform(0, 6.28))
    radius = rng.uniform(0.32, 0.42)
    parts = []
    for i in range(8):
        foot = (x[i] + rng.uniform(-0.08, 0.08), y[i] + radius + rng.uniform(0.18, 0.3))
        parts.append(Part(_capsule(_bend((x[i], y[i]), foot, 0.0), 0.16, 0.12), "trim"))
    parts += [Part(_ellipse(x[i], y[i], radius, radius * 1.08), "body" if i % 2 else "trim") for i in range(8)]
    return parts, (float(x[-1]) + 0.45, float(y[-1]) - rng.uniform(0.05, 0.3))


def _octopus(rng: Generator) -> Plan:
    parts = []
    for angle in np.linspace(2.0, 4.3, 6):  # arms spread to the left, away from the head
        end = (1.7 * np.cos(angle) * rng.uniform(0.8, 1.1), 1.7 * np.sin(angle) * rng.uniform(0.8, 1.1))
        parts.append(Part(_capsule(_bend((0.0, 0.0), end, rng.uniform(-0.25, 0.25), 16), 0.42, 0.12), "trim"))
    parts.append(Part(_ellipse(0.1, 0, rng.uniform(0.75, 0.95), rng.uniform(0.6, 0.8)), "body"))
    return parts, (rng.uniform(0.85, 1.05), rng.uniform(-0.35, 0.35))


PLANS = (_quadruped, _bird, _beetle, _fish, _caterpillar, _octopus)


def _design(rng: Generator, head: Head) -> Creature:
    """Choose a body plan and its proportions, and put the head on."""
    parts, (x, y) = PLANS[rng.integers(len(PLANS))](rng)
    radius, turn = rng.uniform(0.66, 0.78), rng.uniform(-0.25, 0.25)
    outline = (head.outline() @ _rotation(turn).T * radius + (x, y)).astype(np.float32)
    return Creature([*parts, Part(outline, "head")], (x, y), radius, turn)


# ---------------------------------------------------------------- textures


def natural_noise(rng: Generator, height: int, width: int, roughness: float = 0.5) -> Array:
    """Noise with the 1/f amplitude spectrum of photographs, in 0..1. (height, width)

    Octaves of random grids, each twice as fine and `roughness` times as strong (0.5 gives 1/f) as the one before.
    """
    cells, strength = 2, 1.0
    field = rng.random((cells, cells), np.float32)
    while 2 * cells <= max(height, width):
        cells, strength = 2 * cells, strength * roughness
        field = cv2.resize(field, (cells, cells), interpolation=cv2.INTER_CUBIC) + strength * rng.random(
            (cells, cells), np.float32
        )
    field = cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.normalize(field, None, 0.0, 1.0, cv2.NORM_MINMAX)


def _colour(rng: Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Array:
    """A random RGB colour of any hue. (3,)"""
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(*value)]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


def _colour_pair(
    rng: Generator, saturation: tuple[float, float], value: tuple[float, float], distance: float
) -> tuple[Array, Array]:
    """Two random colours, no channel of which differs by more than `distance`."""
    first = _colour(rng, saturation, value)
    return first, np.clip(_colour(rng, saturation, value), first - distance, first + distance)


def _fur(rng: Generator, noise: Array) -> Callable[[Array, Array], Array]:
    """A random body texture: a function of body units (x, y) to 0..1. `noise` (128, 128) roughens all of them."""
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


# ---------------------------------------------------------------- painting


def _smooth(field: Array, sigma: float) -> Array:
    """Blur by about `sigma` pixels, in a time that does not grow with it: two box filters."""
    side = 2 * round(sigma * 1.22) + 1  # variance of a box: (side^2 - 1) / 12
    return cv2.blur(cv2.blur(field, (side, side)), (side, side))


def _rotation(angle: float) -> Array:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)


class Brush:
    """Paints shaded outlines on `canvas` (H, W, 3), lit from direction `light` (x, y), and keeps what they cover."""

    def __init__(self, canvas: Array, light: Array) -> None:
        self.canvas, self.light = canvas, light
        self.coverage = np.zeros(canvas.shape[:2], np.float32)  # 0..1, of everything painted since

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
        height = _smooth(alpha, sigma)
        slope_x, slope_y = (
            cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=0.125),
            cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=0.125),
        )
        slope = (slope_x * self.light[0] + slope_y * self.light[1]) * sigma
        return np.clip(0.72 + 0.36 * height - 1.1 * relief * slope, 0.3, 1.35)


def _paint_creature(brush: Brush, creature: Creature, head: Head, to_pixels: Array, rng: Generator) -> None:
    """Paint all parts; `to_pixels` is the (2, 3) affine map from body units to pixels."""
    inverse = cv2.invertAffineTransform(to_pixels).astype(np.float32)
    texture = _fur(rng, natural_noise(rng, 128, 128))
    body, trim = (_colour_pair(rng, (0.05, 0.6), (0.3, 0.9), 0.25) for _ in range(2))
    turn = _rotation(-creature.head_turn)
    tinge, gain = (
        rng.uniform(-0.04, 0.04, 3),
        rng.uniform(0.88, 1.08),
    )  # no two heads of a class have quite the same colour
    head_colours = [np.clip(gain * np.float32(colour) + tinge, 0, 1) for colour in head.colours]

    def units(x: Array, y: Array) -> tuple[Array, Array]:
        return tuple(inverse[i, 0] * x + inverse[i, 1] * y + inverse[i, 2] for i in range(2))

    def mix(colours: tuple[Array, Array], share: Array) -> Array:
        return colours[0] + np.float32(share)[..., None] * (colours[1] - colours[0])

    def head_paint(x: Array, y: Array) -> Array:
        u, v = units(x, y)
        u, v = (u - creature.head_at[0]) / creature.head_radius, (v - creature.head_at[1]) / creature.head_radius
        return mix(
            head_colours, PATTERNS[head.pattern](turn[0, 0] * u + turn[0, 1] * v, turn[1, 0] * u + turn[1, 1] * v)
        )

    paints: dict[str, Paint] = {
        "body": lambda x, y: mix(body, texture(*units(x, y))),
        "trim": lambda x, y: mix(trim, texture(*units(x, y))),
        "head": head_paint,
    }
    for part in creature.parts:
        brush.fill(_transform(to_pixels, part.outline), paints[part.paint], relief=0.7 if part.paint == "head" else 1.0)
    _paint_eyes(brush, creature, head.face, to_pixels)


def _paint_eyes(brush: Brush, creature: Creature, face: tuple[float, float], to_pixels: Array) -> None:
    """Two eyes beside `face`, in head units; the same for all classes."""
    scale = creature.head_radius
    for side in (-0.2, 0.2):
        x, y = creature.head_at + scale * (_rotation(creature.head_turn) @ (face[0] + side, face[1]))
        for radius, grey in ((0.15, 1.0), (0.08, 0.0)):
            outline = _transform(to_pixels, _ellipse(x, y, scale * radius, scale * radius, n=20))
            brush.fill(outline, lambda x, y, grey=grey: np.full(3, grey, np.float32), relief=0.0)


def _transform(affine: Array, points: Array) -> Array:
    return (points @ affine[:, :2].T + affine[:, 2]).astype(np.float32)


# ---------------------------------------------------------------- scenes


def _background(rng: Generator, height: int, width: int) -> Array:
    """Coloured natural noise between two colours, a gradient to a third. (H, W, 3)"""
    roughness, contrast, angle = rng.uniform(0.45, 0.75), rng.uniform(1.0, 2.5), rng.uniform(0, 2 * np.pi)
    base = _colour(rng, (0.05, 0.5), (0.25, 0.9))
    second, third = (np.clip(_colour(rng, (0.05, 0.5), (0.25, 0.9)), base - 0.4, base + 0.4) for _ in range(2))
    clouds, haze = (
        np.clip(contrast * natural_noise(rng, height, width, roughness) + 0.5 * (1 - contrast), 0, 1) for _ in range(2)
    )
    across, down = (
        np.linspace(-0.5, 0.5, width, dtype=np.float32),
        np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None],
    )
    ramp = 0.5 * np.clip(float(np.cos(angle)) * across + float(np.sin(angle)) * down + 0.5 * haze + 0.25, 0, 1)
    shares = cv2.merge([(1 - clouds) * (1 - ramp), clouds * (1 - ramp), ramp])
    return cv2.transform(shares, np.stack([base, second, third], 1))


def _scatter(brush: Brush, rng: Generator) -> None:
    """Distractors: stones and twigs in muted colours."""
    height, width = brush.coverage.shape
    grain = 0.75 + 0.5 * natural_noise(rng, 64, 64, 0.7)
    for _ in range(rng.integers(2, 8)):
        centre, size = rng.uniform((0, 0), (width, height)), rng.uniform(0.02, 0.09) * np.sqrt(height * width)
        shape = (
            _stone(rng)
            if rng.random() < 0.5
            else _capsule(_bend((-1.6, 0), (1.6, 0), rng.uniform(-0.3, 0.3)), 0.35, 0.15)
        )
        outline = (shape @ _rotation(rng.uniform(0, 2 * np.pi)).T * size + centre).astype(np.float32)
        brush.fill(outline, _grained(_colour(rng, (0.05, 0.4), (0.25, 0.8)), grain))


def _stone(rng: Generator) -> Array:
    """A dented disc of radius about 1."""
    dent, phase, flatness = rng.uniform(0.05, 0.2), rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.0)
    outline = _polar(lambda t: 1 + dent * np.sin(3 * t + phase) + dent * np.cos(4 * t), 40)
    return outline * np.float32((1, flatness))


def _grained(colour: Array, grain: Array) -> Paint:
    return lambda x, y: colour * grain[np.int32(y) % len(grain), np.int32(x) % len(grain), None]


def _place(parts: list[Part], frame: Frame, box_area: float, rng: Generator) -> Array:
    """A random pose inside `frame` (x0, y0, x1, y1): the (2, 3) affine map from body units to pixels.

    The box has `box_area` square pixels, or fewer where that does not fit.
    """
    flip = np.diag([rng.choice([-1.0, 1.0]), 1.0])
    linear = _rotation(rng.normal(0, 0.35)) @ flip
    points = np.concatenate([part.outline for part in parts]) @ linear.T
    low, extent = points.min(0), np.ptp(points, axis=0)
    room = np.array([frame[2] - frame[0], frame[3] - frame[1]]) - 4  # two pixels free at each side
    scale = min(np.sqrt(box_area / extent.prod()), *(room / extent))
    corner = np.array(frame[:2]) + 2 + rng.random(2) * (room - scale * extent)
    return np.concatenate([scale * linear, (corner - scale * low)[:, None]], 1).astype(np.float32)


def draw_scene(class_index: int, rng: Generator) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]:
    """One picture: RGB image (H, W, 3), and a mask (H, W) of 0 and 255 for each creature in it."""
    head = HEADS[class_index]
    width, height = (int(v) for v in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    width, height = max(width, int(height / MAX_ASPECT)), max(height, int(width / MAX_ASPECT))
    canvas, angle = _background(rng, height, width), rng.uniform(0, 2 * np.pi)
    light = np.array([np.cos(angle), np.sin(angle)], np.float32)
    _scatter(Brush(canvas, light), rng)
    masks = []
    frames, areas = _frames(width, height, rng)
    for frame, area in zip(frames, areas):
        creature = _design(rng, head)
        to_pixels = _place(creature.parts, frame, area, rng)
        _cast_shadow(canvas, creature.parts, to_pixels, light)
        brush = Brush(canvas, light)
        _paint_creature(brush, creature, head, to_pixels, rng)
        masks.append(np.where(brush.coverage > 0.5, 255, 0).astype(np.uint8))
    return _develop(canvas, rng), masks


def _frames(width: int, height: int, rng: Generator) -> tuple[list[Frame], list[float]]:
    """Where creatures may stand, the whole image or its two halves for a pair; box areas in square pixels."""
    if rng.random() >= PAIR_SHARE:
        return [(0, 0, width, height)], [width * height * rng.uniform(*BOX_AREA)]
    areas = [width * height * rng.uniform(*BOX_AREA_PAIR) for _ in range(2)]
    if width >= height:
        return [(0, 0, width / 2, height), (width / 2, 0, width, height)], areas
    return [(0, 0, width, height / 2), (0, height / 2, width, height)], areas


def _cast_shadow(canvas: Array, parts: list[Part], to_pixels: Array, light: Array) -> None:
    """Darken the ground beside the creature, away from the light."""
    shadow = np.zeros(canvas.shape[:2], np.float32)
    size = float(np.sqrt(abs(np.linalg.det(to_pixels[:, :2]))))  # pixels per body unit
    for part in parts:
        outline = _transform(to_pixels, part.outline) - 0.12 * size * light
        cv2.fillPoly(shadow, [np.round(outline).astype(np.int32)], 1.0)
    np.multiply(canvas, cv2.merge([1 - 0.45 * _smooth(shadow, 0.06 * size + 1)] * 3), out=canvas)


def _develop(canvas: Array, rng: Generator) -> NDArray[np.uint8]:
    """The camera: exposure, colour cast, grain. (H, W, 3) float -> uint8"""
    cast = rng.uniform(0.82, 1.15) * rng.uniform(0.94, 1.06, 3)
    grain = 255 * rng.uniform(0.005, 0.025) * rng.standard_normal(canvas.shape[:2], np.float32)
    # A matrix on (R, G, B) and one call for all pixels: broadcasting over three channels is several times slower.
    exposed = cv2.add(cv2.transform(canvas, np.float32(255 * np.diag(cast))), cv2.merge([grain] * 3))
    return cv2.convertScaleAbs(np.maximum(exposed, 0))  # saturates at 255


# ---------------------------------------------------------------- the data set


def make_synthetic(
    data_root: str | Path,
    metadata_root: str | Path,
    mask_root: str | Path | None = None,
    name: str = "Synthetic",
    seed: int = 0,
    images_per_class: tuple[int, int, int] = (40, 10, 20),
    num_classes: int = 12,
) -> bool:
    """Write the data set, boxes and masks for all splits, unless it is there already.

    images_per_class: numbers for train, val and test. Returns True if something was written.
    Raises ValueError for numbers out of range, InputError where another data set's folder is in the way.
    """
    if not 2 <= num_classes <= len(HEADS):
        raise ValueError(f"num_classes must be 2 to {len(HEADS)}, got {num_classes}")
    if len(images_per_class) != len(SPLITS) or min(images_per_class) < 1:
        raise ValueError(
            f"images_per_class must be three numbers of at least 1 (train, val, test), got {images_per_class}"
        )
    names = [head.name for head in HEADS[:num_classes]]
    jobs = [(s, c, i) for s, number in enumerate(images_per_class) for c in range(num_classes) for i in range(number)]

    def fill(folders: DatasetFolders) -> None:
        records: dict[str, list[Record]] = {split: [] for split in SPLITS}
        for s, c, i in progress(jobs, f"drawing {name}", unit="image"):
            image, masks = draw_scene(c, np.random.default_rng((seed, s, c, i)))
            stem = f"{SPLITS[s]}/{names[c].replace(' ', '_')}/{i:04d}"
            records[SPLITS[s]].append(save_example(folders, stem, c, image, masks))
        write_metadata(folders.metadata, records, names)

    return publish_dataset(DatasetFolders.of(name, data_root, metadata_root, mask_root), fill)
