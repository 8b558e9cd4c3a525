"""Closed outlines of shapes: arrays (N, 2) of x (to the right) and y (down), and ways to move them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[Any]  # of floats, mostly float32


def rotation(angle: float) -> Array:
    """The (2, 2) matrix that turns by `angle` radians."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)


def transform(affine: Array, points: Array) -> Array:
    """Points (N, 2) under a (2, 3) affine map."""
    return (points @ affine[:, :2].T + affine[:, 2]).astype(np.float32)


def ellipse(x: float, y: float, a: float, b: float, angle: float = 0.0, n: int = 40) -> Array:
    """An ellipse (n, 2) around (x, y) with semi-axes a and b, turned by `angle` radians."""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = a * np.cos(t), b * np.sin(t)
    return np.stack([x + u * cos - v * sin, y + u * sin + v * cos], 1).astype(np.float32)


def polar(radius: Callable[[Array], Array], n: int = 96) -> Array:
    """The outline (n, 2) with radius r(t) around the origin; t = 0 points up."""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    r = radius(t)
    return np.stack([r * np.sin(t), -r * np.cos(t)], 1).astype(np.float32)


def star(points: int, inner: float) -> Array:
    """A star whose points have radius 1.1 and whose notches have radius `inner`."""
    t = np.arange(2 * points) * np.pi / points
    r = np.where(np.arange(2 * points) % 2 == 0, 1.1, inner)
    return np.stack([r * np.sin(t), -r * np.cos(t)], 1).astype(np.float32)


def heart() -> Array:
    """A heart."""
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], 1).astype(np.float32) / 15


def moon() -> Array:
    """A crescent: an outer arc, and back along an inner one."""
    outer = np.linspace(-2.3, 2.3, 40)
    inner = np.linspace(2.3, -2.3, 40)
    x = np.concatenate([-1.1 * np.cos(outer), 0.34 - 0.50 * np.cos(inner)])
    y = np.concatenate([1.1 * np.sin(outer), 0.82 * np.sin(inner)])
    return np.stack([x, y], 1).astype(np.float32)


def leaf() -> Array:
    """A pointed leaf."""
    t = np.linspace(-1, 1, 32)
    right = np.stack([0.62 * (1 - t**2) * (1 - 0.25 * t), 1.25 * t], 1)
    return np.concatenate([right, right[::-1] * (-1, 1)]).astype(np.float32)


def flower() -> Array:
    """A flower of five petals."""
    return polar(lambda t: 0.78 + 0.30 * np.cos(5 * t))


def gear() -> Array:
    """A wheel of eight teeth."""
    return polar(lambda t: 0.88 + 0.18 * np.sign(np.sin(8 * t)), 192)


def cross() -> Array:
    """A cross of four equal arms."""
    a, b = 0.36, 1.0
    quarter = np.array([(-a, -b), (a, -b), (a, -a)], np.float32)  # one arm; the others are turned by right angles
    return np.concatenate([quarter @ rotation(turn * np.pi / 2).T for turn in range(4)])


def polygon(sides: int, radius: float = 1.0, turn: float = 0.0) -> Array:
    """A regular polygon; its first corner points up, or is turned by `turn` radians from there."""
    t = turn + np.arange(sides) * 2 * np.pi / sides
    return np.stack([radius * np.sin(t), -radius * np.cos(t)], 1).astype(np.float32)


def capsule(spine: Array, start: float, end: float) -> Array:
    """A limb: the outline around a line (n, 2), whose width goes from `start` to `end`, with a round end."""
    direction = np.gradient(spine, axis=0)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True) + 1e-6
    normal = np.stack([-direction[:, 1], direction[:, 0]], 1)
    half = np.linspace(start, end, len(spine))[:, None] / 2
    turn = np.linspace(np.pi / 2, -np.pi / 2, 9)[1:-1, None]
    tip = spine[-1] + end / 2 * (np.cos(turn) * direction[-1] + np.sin(turn) * normal[-1])
    return np.concatenate([spine + half * normal, tip, (spine - half * normal)[::-1]]).astype(np.float32)


def bend(start: tuple[float, float], end: tuple[float, float], bulge: float, n: int = 10) -> Array:
    """Points (n, 2) on a curve from start to end that bulges sideways by `bulge` times its length."""
    a, b = np.array(start), np.array(end)
    t = np.linspace(0, 1, n)[:, None]
    side = np.array([-(b - a)[1], (b - a)[0]])
    return (a + t * (b - a) + 4 * t * (1 - t) * bulge * side).astype(np.float32)


def stone(rng: Generator) -> Array:
    """A dented disc of radius about 1."""
    dent, phase, flatness = rng.uniform(0.05, 0.2), rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.0)
    outline = polar(lambda t: 1 + dent * np.sin(3 * t + phase) + dent * np.cos(4 * t), 40)
    return outline * np.array((1, flatness), np.float32)
