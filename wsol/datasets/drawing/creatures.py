"""Creatures: a random body plan, and the head that tells the class.

A creature is designed in body units: x to the right, where it looks, and y down; bodies are about 2 long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from wsol.datasets.drawing.outlines import (
    Array,
    bend,
    capsule,
    cross,
    ellipse,
    flower,
    gear,
    heart,
    leaf,
    moon,
    polygon,
    rotation,
    star,
)


class Part(NamedTuple):
    """A filled outline (N, 2) in body units, and which paint it gets: "body", "trim" or "head"."""

    outline: Array
    paint: str


class Creature(NamedTuple):
    """A creature's parts from back to front, the head last; position, radius and turn (radians) of the head."""

    parts: list[Part]
    head_at: tuple[float, float]
    head_radius: float
    head_turn: float


class Head(NamedTuple):
    """What tells the class: an outline of radius about 1, two RGB colours, and the pattern in which they alternate."""

    name: str
    outline: Callable[[], Array]
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    pattern: str  # a key of PATTERNS
    face: tuple[float, float] = (0.0, -0.12)  # midpoint between the eyes, in head units


# ---------------------------------------------------------------- the twelve heads

RED, YELLOW, BLUE, GREEN = (0.86, 0.10, 0.12), (0.98, 0.82, 0.10), (0.13, 0.30, 0.86), (0.15, 0.66, 0.20)
PURPLE, PINK, ORANGE, WHITE = (0.50, 0.16, 0.70), (0.97, 0.46, 0.68), (0.96, 0.50, 0.08), (0.95, 0.95, 0.93)
BLACK, SILVER, CYAN, NIGHT = (0.08, 0.08, 0.09), (0.62, 0.64, 0.68), (0.10, 0.76, 0.80), (0.06, 0.10, 0.36)

# Share of a head's second colour, 0..1, at (x, y) in head units.
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
    Head("red star", lambda: star(5, 0.50), (RED, (1.0, 0.35, 0.30)), "centre"),
    Head("yellow sun", lambda: star(14, 0.78), (YELLOW, ORANGE), "centre"),
    Head("blue moon", moon, (BLUE, BLUE), "plain", face=(-0.62, -0.1)),
    Head("green leaf", leaf, (GREEN, (0.75, 0.92, 0.35)), "veins"),
    Head("purple flower", flower, (PURPLE, (0.72, 0.45, 0.92)), "centre"),
    Head("pink heart", heart, (PINK, PINK), "plain"),
    Head("orange triangle", lambda: polygon(3, 1.3), (ORANGE, (0.55, 0.20, 0.02)), "rings"),
    Head("white cross", cross, (WHITE, WHITE), "plain"),
    Head("black gear", gear, (BLACK, SILVER), "centre"),
    Head("checkered square", lambda: polygon(4, 1.25, np.pi / 4), (BLACK, WHITE), "checks"),
    Head("striped diamond", lambda: polygon(4, 1.2), (NIGHT, CYAN), "stripes"),
    Head("spotted disc", lambda: ellipse(0, 0, 1.0, 1.0), (WHITE, RED), "dots"),
)


# ---------------------------------------------------------------- body plans

Plan = tuple[list[Part], tuple[float, float]]  # parts from back to front; position of the head


def _quadruped(rng: Generator) -> Plan:
    long, high, leg = rng.uniform(0.9, 1.25), rng.uniform(0.38, 0.6), rng.uniform(0.55, 1.0)
    width, head = rng.uniform(0.16, 0.28), (long + rng.uniform(0.3, 0.5), -rng.uniform(0.35, 0.8))

    def limb(x: float) -> Array:
        foot = (x + rng.uniform(-0.25, 0.25), high * 0.6 + leg)
        return capsule(bend((x, 0.1), foot, rng.uniform(-0.12, 0.12)), width * 1.5, width)

    tail_tip = (-long - rng.uniform(0.5, 1.0), rng.uniform(-0.9, 0.4))
    tail = capsule(bend((-long * 0.85, -0.1), tail_tip, rng.uniform(-0.3, 0.3)), 0.26, 0.1)
    parts = [Part(limb(long * 0.75), "trim"), Part(limb(-long * 0.55), "trim"), Part(tail, "trim")]
    neck = capsule(bend((long * 0.6, -0.1), head, 0.1), 0.6, 0.36)
    parts += [Part(neck, "body"), Part(ellipse(0, 0, long, high), "body")]
    return [*parts, Part(limb(long * 0.5), "body"), Part(limb(-long * 0.8), "body")], head


def _bird(rng: Generator) -> Plan:
    long, high, tilt = rng.uniform(0.85, 1.05), rng.uniform(0.5, 0.65), rng.uniform(-0.45, -0.1)
    head = (rng.uniform(0.95, 1.2), -rng.uniform(0.6, 1.05))
    parts = []
    for spread in np.linspace(-0.35, 0.25, 3):  # tail feathers
        end = (-long - rng.uniform(0.6, 1.0), 0.35 + spread + rng.uniform(0, 0.3))
        parts.append(Part(capsule(bend((-long * 0.6, 0.15), end, 0.05), 0.2, 0.26), "trim"))
    for x in (-0.15, 0.2):
        foot = (x + rng.uniform(-0.1, 0.15), high + rng.uniform(0.5, 0.8))
        parts.append(Part(capsule(bend((x, high * 0.7), foot, 0.1), 0.12, 0.1), "trim"))
        parts.append(Part(ellipse(foot[0] + 0.1, foot[1], 0.22, 0.07), "trim"))
    parts.append(Part(capsule(bend((0.5, -0.2), head, -0.08), 0.65, 0.34), "body"))
    parts.append(Part(ellipse(0, 0, long, high, tilt), "body"))
    wing = capsule(bend((0.4, -0.15), (-long * 0.9, rng.uniform(-0.9, 0.3)), rng.uniform(0.05, 0.25)), 0.55, 0.2)
    return [*parts, Part(wing, "trim")], head


def _beetle(rng: Generator) -> Plan:
    long, high = rng.uniform(0.85, 1.15), rng.uniform(0.5, 0.75)
    head = (long + rng.uniform(0.2, 0.35), 0.0)
    parts = []
    for side in (-1, 1):
        for x, lean in ((0.55, 0.5), (0.0, -0.1), (-0.5, -0.5)):
            foot = (x * long + lean + rng.uniform(-0.15, 0.15), side * (high + rng.uniform(0.4, 0.7)))
            leg = capsule(bend((x * long, side * high * 0.5), foot, -side * lean * 0.5), 0.17, 0.09)
            parts.append(Part(leg, "trim"))
    parts.append(Part(ellipse(long * 0.6, 0, 0.5, high * 0.75), "trim"))
    for side in (-1, 1):  # wing cases
        parts.append(Part(ellipse(-0.12, side * high * 0.42, long, high * 0.6, side * rng.uniform(0.0, 0.16)), "body"))
    return parts, head


def _fish(rng: Generator) -> Plan:
    long, high = rng.uniform(1.0, 1.25), rng.uniform(0.45, 0.75)
    parts = []
    for side in (-1, 1):
        end = (-long - rng.uniform(0.5, 0.8), side * rng.uniform(0.5, 0.8))
        parts.append(Part(capsule(bend((-long * 0.75, 0.0), end, -side * 0.1), 0.2, 0.42), "trim"))
        root, fin = (rng.uniform(0.0, 0.3), side * high * 0.6), rng.uniform((-0.7, 0.25), (-0.2, 0.55))
        end = (fin[0], side * (high + fin[1]))
        parts.append(Part(capsule(bend(root, end, side * 0.15), 0.7, 0.14), "trim"))
    parts.append(Part(ellipse(0, 0, long, high), "body"))
    parts.append(Part(capsule(bend((0.35, 0.12), (-0.35, rng.uniform(0.1, 0.45)), 0.1), 0.16, 0.34), "trim"))
    return parts, (long * rng.uniform(0.95, 1.1), rng.uniform(-0.1, 0.1))


def _caterpillar(rng: Generator) -> Plan:
    x = np.linspace(-1.5, 1.15, 8)
    y = rng.uniform(0.15, 0.5) * np.sin(x * rng.uniform(1.5, 2.6) + rng.uniform(0, 6.28))
    radius = rng.uniform(0.32, 0.42)
    parts = []
    for i in range(8):
        foot = (x[i] + rng.uniform(-0.08, 0.08), y[i] + radius + rng.uniform(0.18, 0.3))
        parts.append(Part(capsule(bend((x[i], y[i]), foot, 0.0), 0.16, 0.12), "trim"))
    parts += [Part(ellipse(x[i], y[i], radius, radius * 1.08), "body" if i % 2 else "trim") for i in range(8)]
    return parts, (float(x[-1]) + 0.45, float(y[-1]) - rng.uniform(0.05, 0.3))


def _octopus(rng: Generator) -> Plan:
    parts = []
    for angle in np.linspace(2.0, 4.3, 6):  # arms spread to the left, away from the head
        end = (1.7 * np.cos(angle) * rng.uniform(0.8, 1.1), 1.7 * np.sin(angle) * rng.uniform(0.8, 1.1))
        parts.append(Part(capsule(bend((0.0, 0.0), end, rng.uniform(-0.25, 0.25), 16), 0.42, 0.12), "trim"))
    parts.append(Part(ellipse(0.1, 0, rng.uniform(0.75, 0.95), rng.uniform(0.6, 0.8)), "body"))
    return parts, (rng.uniform(0.85, 1.05), rng.uniform(-0.35, 0.35))


PLANS = (_quadruped, _bird, _beetle, _fish, _caterpillar, _octopus)


def design_creature(rng: Generator, head: Head) -> Creature:
    """A random body plan with random proportions, and the head on it."""
    parts, (x, y) = PLANS[rng.integers(len(PLANS))](rng)
    radius, turn = rng.uniform(0.66, 0.78), rng.uniform(-0.25, 0.25)
    outline = (head.outline() @ rotation(turn).T * radius + (x, y)).astype(np.float32)
    return Creature([*parts, Part(outline, "head")], (x, y), radius, turn)
