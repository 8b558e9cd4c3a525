"""The built-in default data set `Synthetic`: drawn creatures whose class is told by one part, the head.

Body plan, body colours, body texture, pose, size, light and background say nothing about the class; only the head's
shape, colour and pattern do. A map that covers just what the classifier needs therefore covers a corner of the object
and localizes badly, which is the problem that this project is about.

Every image has its own random generator, seeded by (seed, split, class, number), so images do not depend on each other.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from wsol.datasets.drawing.creatures import HEADS, Part, design_creature
from wsol.datasets.drawing.outlines import Array, bend, capsule, rotation, stone
from wsol.datasets.drawing.painting import (
    Brush,
    Paint,
    cast_shadow,
    develop,
    natural_noise,
    paint_creature,
    random_colour,
)
from wsol.datasets.publish import publish_dataset
from wsol.datasets.registry import SPLITS
from wsol.datasets.writer import DatasetFolders, DatasetMetadata, Record, save_example, write_metadata
from wsol.log import progress

SIDES = (200, 340)  # image sides in pixels
MAX_ASPECT = 1.5  # longer side / shorter side
BOX_AREA = (0.20, 0.62)  # area of the box / area of the image, for a single creature
BOX_AREA_PAIR = (0.16, 0.30)  # the same for each of two creatures
PAIR_SHARE = 0.15  # share of the images with two creatures

Frame = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels


# ---------------------------------------------------------------- scenes


def _background(rng: Generator, height: int, width: int) -> Array:
    """Natural noise between two colours, with a gradient to a third: (H, W, 3)."""
    roughness, contrast, angle = rng.uniform(0.45, 0.75), rng.uniform(1.0, 2.5), rng.uniform(0, 2 * np.pi)
    base = random_colour(rng, (0.05, 0.5), (0.25, 0.9))
    second, third = (np.clip(random_colour(rng, (0.05, 0.5), (0.25, 0.9)), base - 0.4, base + 0.4) for _ in range(2))
    clouds, haze = (
        np.clip(contrast * natural_noise(rng, height, width, roughness) + 0.5 * (1 - contrast), 0, 1) for _ in range(2)
    )
    across = np.linspace(-0.5, 0.5, width, dtype=np.float32)
    down = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
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
            stone(rng) if rng.random() < 0.5 else capsule(bend((-1.6, 0), (1.6, 0), rng.uniform(-0.3, 0.3)), 0.35, 0.15)
        )
        outline = (shape @ rotation(rng.uniform(0, 2 * np.pi)).T * size + centre).astype(np.float32)
        brush.fill(outline, _grained(random_colour(rng, (0.05, 0.4), (0.25, 0.8)), grain))


def _grained(colour: Array, grain: Array) -> Paint:
    return lambda x, y: colour * grain[np.int32(y) % len(grain), np.int32(x) % len(grain), None]


def _place(parts: list[Part], frame: Frame, box_area: float, rng: Generator) -> Array:
    """A random pose inside `frame`: the (2, 3) affine map from body units to pixels.

    The creature's box has an area of `box_area` pixels, or less if that does not fit.
    """
    flip = np.diag([rng.choice([-1.0, 1.0]), 1.0])
    linear = rotation(rng.normal(0, 0.35)) @ flip
    points = np.concatenate([part.outline for part in parts]) @ linear.T
    low, extent = points.min(0), np.ptp(points, axis=0)
    room = np.array([frame[2] - frame[0], frame[3] - frame[1]]) - 4  # two pixels stay free at each side
    scale = min(np.sqrt(box_area / extent.prod()), *(room / extent))
    corner = np.array(frame[:2]) + 2 + rng.random(2) * (room - scale * extent)
    return np.concatenate([scale * linear, (corner - scale * low)[:, None]], 1).astype(np.float32)


def draw_scene(class_index: int, rng: Generator) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]:
    """Draw one picture of a class.

    Returns:
        The RGB image (H, W, 3), and for each creature in it a mask (H, W) of 0 and 255.
    """
    head = HEADS[class_index]
    width, height = (int(v) for v in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    width, height = max(width, int(height / MAX_ASPECT)), max(height, int(width / MAX_ASPECT))
    canvas, angle = _background(rng, height, width), rng.uniform(0, 2 * np.pi)
    light = np.array([np.cos(angle), np.sin(angle)], np.float32)
    _scatter(Brush(canvas, light), rng)
    masks = []
    frames, areas = _frames(width, height, rng)
    for frame, area in zip(frames, areas, strict=True):
        creature = design_creature(rng, head)
        to_pixels = _place(creature.parts, frame, area, rng)
        cast_shadow(canvas, creature.parts, to_pixels, light)
        brush = Brush(canvas, light)
        paint_creature(brush, creature, head, to_pixels, rng)
        masks.append(np.where(brush.coverage > 0.5, 255, 0).astype(np.uint8))
    return develop(canvas, rng), masks


def _frames(width: int, height: int, rng: Generator) -> tuple[list[Frame], list[float]]:
    """Frames for the creatures (the whole image, or its two halves for a pair), and their box areas in pixels."""
    if rng.random() >= PAIR_SHARE:
        return [(0, 0, width, height)], [width * height * rng.uniform(*BOX_AREA)]
    areas = [width * height * rng.uniform(*BOX_AREA_PAIR) for _ in range(2)]
    if width >= height:
        return [(0, 0, width / 2, height), (width / 2, 0, width, height)], areas
    return [(0, 0, width, height / 2), (0, height / 2, width, height)], areas


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
    """Write the data set, with boxes and masks for all splits, unless it exists already.

    Args:
        data_root: folder of the images of all data sets.
        metadata_root: folder of the metadata of all data sets.
        mask_root: folder of the masks of all data sets (default: data_root).
        name: the data set's name.
        seed: seed of everything that is drawn.
        images_per_class: numbers for train, val and test.
        num_classes: uses the first so many of the twelve classes.

    Returns:
        True if something was written.

    Raises:
        ValueError: a number is out of range.
        InputError: a folder with other files is in the way.
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
        write_metadata(folders.metadata, DatasetMetadata(records, names))

    return publish_dataset(DatasetFolders.named(name, data_root, metadata_root, mask_root), fill)
