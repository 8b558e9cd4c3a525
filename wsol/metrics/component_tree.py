"""All contours of all foregrounds of a grey map in one pass over its pixels: what OpenCV finds level by level.

    contours = trace(quantized)                     # (H, W) uint8; the foregrounds are quantized > 0, 1, ..., 254
    multi, single = match(contours, boxes, taus)    # best IoU at each threshold, of any contour and of the largest

Pixels are added grey by grey and a union-find joins them to components (a component tree: Najman and Couprie, "Building
the component tree in quasi-linear time", IEEE TIP 2006). A component whose box stays the same over some levels is
recorded once. This gives the results of `cv2.findContours(RETR_TREE)`, `boundingRect` and `contourArea` because:

* A contour is the border of an 8-connected foreground component, or of a hole, a 4-connected background component
  that does not reach the image's border. A hole's contour runs on the foreground pixels around it, so its box is the
  hole's grown by one pixel on each side.
* The largest contour belongs to a component outside all holes: what lies inside a contour is not larger, and OpenCV
  lists it later. These components, with their holes filled, are the components of the map with its holes filled.
* contourArea of a component without holes counts 1 for each square of 2 x 2 of its pixels, and 1/2 for each square
  with three of them. Of equally large components OpenCV lists first the one whose first pixel is last in raster order.

The loops are compiled (wsol/metrics/compiled.py).
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numba import int32, uint8, uint32, uintp

from wsol.metrics.compiled import cached, inlined

Index = np.unsignedinteger[Any]  # of an array: compiled code skips the check for negative ones
NUM_LEVELS = 256  # a foreground is what is brighter than one of 256 levels; nothing is brighter than the last

# Neighbours of a pixel are bits: N, NE, E, SE, S, SW, W, NW from the lowest.
_NUM_DIRECTIONS = 8
_NONE = 8  # no direction
_OUTSIDE = -1  # the grey of the padding around the map


class Contours(NamedTuple):
    """All contours of one map. A contour whose box is the same at several levels is one row."""

    # (N, 6) int32: x0, y0, x1, y1 as in `wsol.metrics.boxes.contour_boxes`, the lowest level with this box, and the
    # level after the highest
    boxes: np.ndarray
    largest: np.ndarray  # (256, 4) int32, at each level the box of the largest contour; (0, 0, 0, 0) without any
    brightest: int  # the map's largest grey: from this level on no contour is left


def trace(quantized: np.ndarray) -> Contours:
    """Contours of the foregrounds `quantized > level` of a map (H, W) uint8, for all levels 0..255.

    The map must have fewer than 2**29 pixels: they are counted in 32 bits.
    """
    height, width = quantized.shape
    # The width is a power of two, so that the low bits of a position are its column.
    padded = np.full((height + 2, 1 << (width + 1).bit_length()), _OUTSIDE, np.int16)
    padded[1:-1, 1 : width + 1] = quantized
    brightest = int(quantized.max())
    order, bounds, around = _enter(padded, width)
    foreground, _, _ = _grow(order, bounds, around, width, True, _FOREGROUND)
    holes, labels, joined = _grow(order[::-1].copy(), order.size - bounds[::-1], around, width, False, _BACKGROUND)
    _fill(padded, labels, joined, width)
    order, bounds, around = _enter(padded, width)
    return Contours(np.concatenate([foreground, holes]), _largest(order, bounds, around, width, brightest), brightest)


def match(contours: Contours, gt_boxes: np.ndarray, taus: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best IoU with any of the boxes (m, 4) int64, m >= 1, at each threshold (T,) float64 in [0, 1].

    Returns two (T,) float64: over all contours, and of the largest contour alone.
    """
    gt_boxes = np.require(gt_boxes, np.int64, ["C_CONTIGUOUS", "WRITEABLE"])
    taus = np.require(taus, np.float64, ["C_CONTIGUOUS", "WRITEABLE"])
    return _match(*contours, gt_boxes, taus)


def _groups(neighbours: int, diagonal: bool) -> list[int]:
    """One direction for each connected group of neighbours that touches the pixel between them.

    `diagonal`: pixels that share only a corner are connected, too.
    """
    group = {direction: direction for direction in range(_NUM_DIRECTIONS) if neighbours >> direction & 1}
    for a, b in [*product(group, repeat=2)] * len(group):
        steps = (b - a) % _NUM_DIRECTIONS
        if steps == 1 or (diagonal and steps == 2 and a % 2 == 0):
            group[a] = group[b] = min(group[a], group[b])
    touching = {group[direction]: direction for direction in group if diagonal or direction % 2 == 0}
    return sorted(touching.values())


def _may_extend(neighbours: int) -> bool:
    """Whether a pixel with these neighbours in its component can extend the component's box."""
    north, east, south, west = 0b10000011, 0b00001110, 0b00111000, 0b11100000
    return any(neighbours & ~side == 0 for side in (north, east, south, west))


def _joining(diagonal: bool) -> np.ndarray:
    """How to add a pixel, by its neighbours that entered before it in the foreground's order: (256,) uint16.

    Below 8 the pixel only joins the neighbour in that direction. Otherwise the low 4 bits are the direction of the
    first group of neighbours to join, or _NONE, and the high 8 bits the directions of the other groups. The foreground
    is connected diagonally. The background is not, and enters in the opposite order: there a pixel finds all neighbours
    but the earlier ones.
    """
    table = np.zeros(256, np.uint16)
    for earlier in range(256):
        present = earlier if diagonal else 255 - earlier
        first, *others = _groups(present, diagonal) or [_NONE]
        more_to_do = others or _may_extend(present if diagonal else present & 0b01010101)
        table[earlier] = first | (0b10000 if more_to_do else 0) | sum(1 << 8 + direction for direction in others)
    return table


_FOREGROUND, _BACKGROUND = _joining(diagonal=True), _joining(diagonal=False)
# Twice the area that a pixel adds: 1 for each square of 2 x 2 pixels of which at least two others are there.
_DOUBLED_AREA = np.array(
    [
        sum(((around | around << 8) >> start & 0b111).bit_count() >= 2 for start in (0, 2, 4, 6))
        for around in range(256)
    ],
    np.uint8,
)


@cached
def _enter(grey: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The order in which pixels enter the foreground, and which of its neighbours each pixel finds there.

    grey: the padded map (H + 2, stride) int16. Returns the order (H * W,) uint32 of positions, brightest first, ties in
    raster order; bounds (257,) int64, where the pixels of grey 255, 254, ..., 0 begin; and the neighbours that entered
    before, (H + 2, stride) uint8.
    """
    height, stride = grey.shape[0] - 2, grey.shape[1]
    around = np.zeros(grey.shape, np.uint8)
    bounds = np.zeros(257, np.int64)
    for y in range(height):
        above, row, below, out = grey[y], grey[y + 1], grey[y + 2], around[y + 1]
        for x in range(width):  # all in 8 bits, so that the compiler vectorises this
            g = row[x + 1]
            out[x + 1] = (
                uint8(above[x + 1] >= g)
                | uint8(uint8(above[x + 2] >= g) << 1)
                | uint8(uint8(row[x + 2] > g) << 2)
                | uint8(uint8(below[x + 2] > g) << 3)
                | uint8(uint8(below[x + 1] > g) << 4)
                | uint8(uint8(below[x] > g) << 5)
                | uint8(uint8(row[x] >= g) << 6)
                | uint8(uint8(above[x] >= g) << 7)
            )
        for x in range(width):
            bounds[uintp(256 - row[x + 1])] += 1
    for batch in range(256):
        bounds[batch + 1] += bounds[batch]
    order, place = np.empty(height * width, np.uint32), bounds.copy()
    for y in range(height):
        row, position = grey[y + 1], uint32((y + 1) * stride + 1)
        for x in range(width):
            batch = uintp(255 - row[x + 1])
            order[uintp(place[batch])] = position
            place[batch] += 1
            position += uint32(1)
    return order, bounds, around


@cached
def _grow(
    order: np.ndarray, bounds: np.ndarray, around: np.ndarray, width: int, foreground: bool, joining: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Add pixels, one grey after the other, and record each box of each component.

    order, bounds, around: of `_enter`; for the background, order and bounds reversed. joining: of `_joining`.
    Returns the boxes as those of `Contours`; the component that each pixel entered, (size of around,) uint32; and the
    grey at which each component became part of component 0, the background that reaches the border, int16.
    """
    height, stride = around.shape[0] - 2, around.shape[1]
    around, steps, shift = around.ravel(), _steps(stride), _log2(stride)
    labels = np.zeros(around.size, np.uint32)  # 0 around the map
    most = order.size // 2 + 2  # components do not start side by side
    parent, host, joined = np.empty(most, np.uint32), np.empty(most, np.uint32), np.empty(most, np.int16)
    extent, since = np.empty((most, 4), np.int32), np.empty(most, np.int32)
    parent[0] = host[0] = joined[0] = 0
    rows, num_rows, number = np.empty((1024, 6), np.int32), uintp(0), uintp(1)
    for batch in range(256):
        grey = 255 - batch if foreground else batch
        if len(rows) < num_rows + number:  # no component is recorded twice at one grey
            longer = np.empty((num_rows + num_rows + number, 6), np.int32)
            for i in range(num_rows):
                for k in range(6):
                    longer[i, k] = rows[i, k]
            rows = longer
        if grey == 0 and foreground:
            break  # grey 0 is never foreground
        for i in range(bounds[batch], bounds[batch + 1]):
            p = uintp(order[uintp(i)])
            action = uintp(joining[uintp(around[p])])
            if action < _NONE:
                labels[p] = _find(parent, labels[p + steps[action]])
                continue
            direction = action & uintp(15)
            if direction == _NONE:
                labels[p] = parent[number] = number
                since[number] = grey
                host[number] = joined[number] = 0
                extent[number, 0] = extent[number, 1] = p
                extent[number, 2] = extent[number, 3] = p & uintp(stride - 1)
                number += uintp(1)
                continue
            c = _find(parent, labels[p + steps[direction]])
            first = last = int32(p)
            left = right = int32(p & uintp(stride - 1))
            others = action >> uintp(8)
            for k in range(8 if others else 0):
                if others >> uintp(k) & uintp(1):
                    d = _find(parent, labels[p + steps[uintp(k)]])
                    if c != d:
                        c, d = min(c, d), max(c, d)  # component 0 stays, and a host's number is lower
                        parent[d] = host[d] = c
                        joined[d] = grey
                        num_rows = _write(extent, d, since, grey, shift, width, height, foreground, rows, num_rows)
                        first, last = min(first, extent[d, 0]), max(last, extent[d, 1])
                        left, right = min(left, extent[d, 2]), max(right, extent[d, 3])
            if c and (first < extent[c, 0] or last > extent[c, 1] or left < extent[c, 2] or right > extent[c, 3]):
                num_rows = _write(extent, c, since, grey, shift, width, height, foreground, rows, num_rows)
                extent[c, 0], extent[c, 1] = min(first, extent[c, 0]), max(last, extent[c, 1])
                extent[c, 2], extent[c, 3] = min(left, extent[c, 2]), max(right, extent[c, 3])
            labels[p] = c
    for c in range(uintp(1), number):
        if host[c]:
            joined[c] = max(joined[c], joined[host[c]])
        elif foreground:  # a component that lasts to the end
            num_rows = _write(extent, c, since, grey, shift, width, height, foreground, rows, num_rows)
    return rows[:num_rows], labels, joined


@cached
def _largest(order: np.ndarray, bounds: np.ndarray, around: np.ndarray, width: int, brightest: int) -> np.ndarray:
    """The box of the largest component of a map without holes at each level, (256, 4) int32.

    order, bounds, around: of `_enter`. (0, 0, 0, 0) from the brightest grey on.
    """
    height, stride = around.shape[0] - 2, around.shape[1]
    around, steps, shift = around.ravel(), _steps(stride), _log2(stride)
    labels = np.zeros(around.size, np.uint32)
    most = order.size // 2 + 2
    parent, doubled_area, extent = np.empty(most, np.uint32), np.empty(most, np.int64), np.empty((most, 4), np.int32)
    parent[0] = 0
    alive, num_alive, number, best = np.empty(most, np.uint32), uintp(0), uintp(1), uintp(0)
    largest = np.zeros((NUM_LEVELS, 4), np.int32)
    for level in range(brightest - 1, -1, -1):
        batch = 254 - level
        for i in range(bounds[batch], bounds[batch + 1]):
            p = uintp(order[uintp(i)])
            neighbours = uintp(around[p])
            action = uintp(_FOREGROUND[neighbours])
            if action < _NONE:
                c = _find(parent, labels[p + steps[action]])
                labels[p] = c
                doubled_area[c] += _DOUBLED_AREA[neighbours]
                continue
            direction = action & uintp(15)
            if direction == _NONE:
                labels[p] = parent[number] = alive[num_alive] = number
                doubled_area[number] = 0
                extent[number, 0] = extent[number, 1] = p
                extent[number, 2] = extent[number, 3] = p & uintp(stride - 1)
                num_alive += uintp(1)
                number += uintp(1)
                continue
            c = _find(parent, labels[p + steps[direction]])
            first = last = int32(p)
            left = right = int32(p & uintp(stride - 1))
            others = action >> uintp(8)
            for k in range(8 if others else 0):
                if others >> uintp(k) & uintp(1):
                    d = _find(parent, labels[p + steps[uintp(k)]])
                    if c != d:
                        c, d = min(c, d), max(c, d)
                        parent[d] = c
                        doubled_area[c] += doubled_area[d]
                        first, last = min(first, extent[d, 0]), max(last, extent[d, 1])
                        left, right = min(left, extent[d, 2]), max(right, extent[d, 3])
            extent[c, 0], extent[c, 1] = min(first, extent[c, 0]), max(last, extent[c, 1])
            extent[c, 2], extent[c, 3] = min(left, extent[c, 2]), max(right, extent[c, 3])
            labels[p] = c
            doubled_area[c] += _DOUBLED_AREA[neighbours]

        if bounds[batch] < bounds[batch + 1]:
            best, num_left = uintp(0), uintp(0)
            for i in range(num_alive):
                c = uintp(alive[i])
                if parent[c] == c:
                    alive[num_left] = c
                    num_left += uintp(1)
                    if (
                        best == 0
                        or doubled_area[c] > doubled_area[best]
                        or (
                            doubled_area[c] == doubled_area[best]
                            and _first_pixel(extent, c, labels, parent, shift)
                            > _first_pixel(extent, best, labels, parent, shift)
                        )
                    ):
                        best = c
            num_alive = num_left
        _box(extent, best, shift, width, height, 0, largest, level)
    return largest


@cached
def _fill(padded: np.ndarray, labels: np.ndarray, joined: np.ndarray, width: int) -> None:
    """Raise each hole of the padded map, in place, to the lowest grey over which it drains to the border.

    labels, joined: of `_grow` for the background.
    """
    for y in range(1, padded.shape[0] - 1):
        row, row_labels = padded[y], labels[y * padded.shape[1] : (y + 1) * padded.shape[1]]
        for x in range(1, width + 1):
            row[x] = max(row[x], joined[row_labels[x]])


@inlined
def _find(parent: np.ndarray, label: int) -> Index:
    """The component that `label` has become part of."""
    c = uintp(label)
    while parent[c] != c:
        parent[c] = parent[uintp(parent[c])]
        c = uintp(parent[c])
    return c


@inlined
def _first_pixel(extent: np.ndarray, c: int, labels: np.ndarray, parent: np.ndarray, shift: int) -> int:
    """The first pixel of component c in raster order; `extent` has its row, but possibly a later column."""
    row = extent[c, 0] >> shift << shift
    for p in range(row + extent[c, 2], extent[c, 0]):
        if _find(parent, labels[uintp(p)]) == c:
            return p
    return extent[c, 0]


@inlined
def _write(
    extent: np.ndarray,
    c: int,
    since: np.ndarray,
    grey: int,
    shift: int,
    width: int,
    height: int,
    foreground: bool,
    rows: np.ndarray,
    num_rows: Index,
) -> Index:
    """Record the box that component c had until this grey, unless it is newer; returns the new number of rows."""
    if since[c] == grey:
        return num_rows
    _box(extent, c, shift, width, height, 0 if foreground else 1, rows, num_rows)
    # Foreground at the levels from this grey up to the older one; background from the older one up to this.
    rows[num_rows, 4], rows[num_rows, 5] = min(since[c], grey), max(since[c], grey)
    since[c] = grey
    return num_rows + uintp(1)


@inlined
def _box(
    extent: np.ndarray, c: int, shift: int, width: int, height: int, margin: int, boxes: np.ndarray, row: int
) -> None:
    """The contour's box of component c as x, y, x + w, y + h, cut off at the border, in a row of boxes.

    extent[c]: first and last pixel, left and right column in the padded map. margin: by which the contour is larger.
    """
    boxes[row, 0] = extent[c, 2] - 1 - margin
    boxes[row, 1] = (extent[c, 0] >> shift) - 1 - margin
    boxes[row, 2] = min(extent[c, 3] + margin, width - 1)
    boxes[row, 3] = min((extent[c, 1] >> shift) + margin, height - 1)


@inlined
def _log2(stride: int) -> int:
    """The exponent of a power of two."""
    exponent = 0
    while 1 << exponent < stride:
        exponent += 1
    return exponent


@inlined
def _steps(stride: int) -> np.ndarray:
    """The offset of each direction's neighbour in the padded map; unsigned like indices, which saves a check."""
    steps = np.empty(8, np.uintp)
    for k, step in enumerate((-stride, 1 - stride, 1, 1 + stride, stride, stride - 1, -1, -1 - stride)):
        steps[k] = uintp(step)
    return steps


@cached
def _match(
    boxes: np.ndarray, largest: np.ndarray, brightest: int, gt_boxes: np.ndarray, taus: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`match` for the fields of `Contours`."""
    multi, single = np.zeros(NUM_LEVELS), np.zeros(NUM_LEVELS)
    for i in range(len(boxes)):
        iou = _best_iou(boxes, i, gt_boxes)
        for level in range(boxes[i, 4], boxes[i, 5]):
            multi[level] = max(multi[level], iou)
    for level in range(NUM_LEVELS):
        single[level] = _best_iou(largest, level, gt_boxes)
        if level >= brightest:
            multi[level] = single[level]
    multi_at, single_at = np.empty(len(taus)), np.empty(len(taus))
    for i in range(len(taus)):
        level = int(taus[i] * brightest)
        multi_at[i], single_at[i] = multi[level], single[level]
    return multi_at, single_at


@inlined
def _best_iou(boxes: np.ndarray, i: int, gt_boxes: np.ndarray) -> float:
    """The best IoU of one box with any ground truth: the same quotients as those of `wsol.metrics.boxes.box_iou`."""
    area, best = (boxes[i, 2] - boxes[i, 0] + 1) * (boxes[i, 3] - boxes[i, 1] + 1), 0.0
    for k in range(len(gt_boxes)):
        w = min(boxes[i, 2], gt_boxes[k, 2]) - max(boxes[i, 0], gt_boxes[k, 0]) + 1
        h = min(boxes[i, 3], gt_boxes[k, 3]) - max(boxes[i, 1], gt_boxes[k, 1]) + 1
        intersection = max(w, 0) * max(h, 0)
        gt_area = (gt_boxes[k, 2] - gt_boxes[k, 0] + 1) * (gt_boxes[k, 3] - gt_boxes[k, 1] + 1)
        best = max(best, intersection / (area + gt_area - intersection))
    return best
