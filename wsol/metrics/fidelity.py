"""Fidelity metrics: does a map show what the network's confidence rests on?

    probe = Probe(model, images, class_ids)             # normalised images, the classes that the maps explain
    metric = Fidelity(["confidence", "road"], heads=probe.heads)
    metric.update(measure(probe, maps, ["confidence", "road"]))
    metric.compute()["softmax"]["avg_drop"]

Each function takes a probe and a batch of maps m in [0, 1], (B, H, W) at the images' size, and returns the figures of
each image for each head. Confidence is the softmax, at the explained class, of the softmax head's logits and, where the
network has a branch, also of the sigmoid head's; both come from the same forward pass. Perturbed images are made in
chunks. wsol/metrics/measures.py lists the measures.
"""

import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsol.classifier import Output, eval_mode
from wsol.metrics.counting import CountingMetric
from wsol.metrics.imputation import linear_imputation
from wsol.metrics.measures import MEASURES, PERCENTILES, STEPS, at_shares

_BLUR_SIDE, _BLUR_SIGMA = 11, 5.0
_IMPUTED_PIXELS = 2**21  # pixels that one call may impute: about half a GB of working memory

PerHead = dict[str, Tensor]


class Probe:
    """A network, images and the classes to explain: reads the confidence in perturbed copies of the images.

    Args:
        model: maps images to logits (B, K), or to an Output of two heads' logits. It runs in eval mode, without
            autograd, and its modules' modes are restored afterwards.
        images: (B, 3, H, W), normalised, on the model's device.
        class_ids: (B,) int64.
        batch: batch size for perturbed images.
        noise: (B, 3, H, W) standard normal, for ROAD; None: drawn from torch's generator when first needed.
        output: the network's output for the images, if already computed.

    Attributes:
        heads: "softmax" and, where there is a branch, "sigmoid".
        before: head → (B,) float64, Y, the confidence in the unchanged images.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        class_ids: Tensor,
        *,
        batch: int = 64,
        noise: Tensor | None = None,
        output: Output | None = None,
    ):
        if images.ndim != 4 or class_ids.shape != images.shape[:1]:
            raise ValueError(
                f"images (B, 3, H, W) need class ids (B,), got {tuple(images.shape)} and {tuple(class_ids.shape)}"
            )
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.model, self.images, self.class_ids, self.batch = model, images, class_ids, batch
        self._noise = noise
        self._layout = (
            torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        )
        self.before: PerHead = (
            _confidence(_logits(output), class_ids)
            if output is not None
            else {head: c[0] for head, c in self.confidence(lambda _step, i: images[i], 1).items()}
        )
        self.heads = tuple(self.before)

    def confidence(self, perturb: Callable[[Tensor, Tensor], Tensor], steps: int, chunk: int = 0) -> PerHead:
        """Confidence in every image after each of several perturbations: head → (steps, B) float64.

        Args:
            perturb: (steps (n,), positions (n,)) → (n, 3, H, W), the images at these positions, each perturbed by its
                step.
            steps: number of perturbations.
            chunk: the largest n, where perturbing more images than `batch` at once is faster.
        """
        step, position = (
            index.flatten()
            for index in torch.meshgrid(
                torch.arange(steps, device=self.images.device),
                torch.arange(len(self.images), device=self.images.device),
                indexing="ij",
            )
        )
        parts_by_head: dict[str, list[Tensor]] = {}
        with _reading(self.model, self.images.device.type):
            for pairs in zip(*(index.split(max(chunk, self.batch)) for index in (step, position)), strict=True):
                # Convolutions run faster where the images are channels-last, as they were given.
                images = perturb(*pairs).contiguous(memory_format=self._layout)
                class_ids = self.class_ids[pairs[1]]
                for part, ids in zip(images.split(self.batch), class_ids.split(self.batch), strict=True):
                    for head, values in _confidence(_logits(self.model(part)), ids).items():
                        parts_by_head.setdefault(head, []).append(values)
        return {head: torch.cat(parts).view(steps, -1) for head, parts in parts_by_head.items()}

    @cached_property
    def noise(self) -> Tensor:
        """ROAD's noise, (B, 3, H, W)."""
        return torch.randn_like(self.images) if self._noise is None else self._noise

    @cached_property
    def in_blank(self) -> PerHead:
        """Confidence in the image of zeros, the mean colour: head → (B,)."""
        with _reading(self.model, self.images.device.type):
            logits = _logits(self.model(torch.zeros_like(self.images[:1])))
        return _confidence({head: x.expand(len(self.images), -1) for head, x in logits.items()}, self.class_ids)

    @cached_property
    def blurred(self) -> Tensor:
        """The images that insertion starts from, (B, 3, H, W), see `blur`."""
        return blur(self.images)

    @cached_property
    def in_blurred(self) -> PerHead:
        """Confidence in the blurred images: head → (B,)."""
        return {head: c[0] for head, c in self.confidence(lambda _step, i: self.blurred[i], 1).items()}


@contextmanager
def _reading(model: nn.Module, device_type: str) -> Iterator[None]:
    """Eval mode, fp32 and no autograd; afterwards the modules' modes are restored."""
    with eval_mode(model), torch.no_grad(), torch.autocast(device_type, enabled=False):
        yield


def _logits(output: Output | Tensor) -> PerHead:
    """Head → logits (B, K), of the heads that the network has."""
    if isinstance(output, Tensor):
        return {"softmax": output}
    heads = {"softmax": output.logits, "sigmoid": output.sigmoid_logits}
    return {head: logits for head, logits in heads.items() if logits is not None}


def _confidence(logits: PerHead, class_ids: Tensor) -> PerHead:
    """softmax(logits)[class], head → (B,) float64."""
    return {head: x.double().softmax(dim=1).gather(1, class_ids[:, None])[:, 0] for head, x in logits.items()}


# --------------------------------------------------------------------------- the measures


def confidence_change(probe: Probe, maps: Tensor) -> dict[str, dict[str, Tensor]]:
    """How the confidence changes when the map weights the image: Y on x, O on x * m.

    Average drop, the mean of max(0, Y - O) / Y, and increase in confidence, that of [O > Y]: Chattopadhay et al.,
    "Grad-CAM++", WACV 2018. Average gain, the mean of max(0, O - Y) / (1 - Y): Zhang et al., "Opti-CAM", CVIU 2024.
    1e-7 keeps the denominators above zero.

    Returns:
        head → {"avg_drop", "inc_conf", "avg_gain"} → (B,) in [0, 1].
    """
    _check(probe, maps)
    after = probe.confidence(lambda _step, i: probe.images[i] * maps[i, None], 1)
    figures = {}
    for head, y in probe.before.items():
        o = after[head][0]
        figures[head] = {
            "avg_drop": (y - o).clamp(min=0) / (y + 1e-7),
            "inc_conf": (o > y).double().where((o + y).isfinite(), torch.nan),
            "avg_gain": (o - y).clamp(min=0) / (1 - y + 1e-7),
        }
    return figures


def deletion_curve(probe: Probe, maps: Tensor) -> PerHead:
    """The confidence while pixels become 0, 5 % per step, highest m first: (STEPS + 1, B)."""
    rank, count = _ranks(probe, maps), _counts(probe)
    between = probe.confidence(lambda step, i: probe.images[i] * (rank[i] >= count[step])[:, None], STEPS - 1)
    return {head: _curve(probe.before[head], between[head], probe.in_blank[head]) for head in probe.heads}


def insertion_curve(probe: Probe, maps: Tensor) -> PerHead:
    """The confidence while pixels of a blurred image (see `blur`) become those of the image: (STEPS + 1, B)."""
    rank, count = _ranks(probe, maps), _counts(probe)

    def perturb(step: Tensor, i: Tensor) -> Tensor:
        return probe.images[i].where((rank[i] < count[step])[:, None], probe.blurred[i])

    between = probe.confidence(perturb, STEPS - 1)
    return {head: _curve(probe.in_blurred[head], between[head], probe.before[head]) for head in probe.heads}


def deletion(probe: Probe, maps: Tensor) -> PerHead:
    """Area under the `deletion_curve`: (B,), lower is better.

    Petsiuk et al., "RISE", BMVC 2018: the trapezoidal area under the STEPS + 1 confidences over [0, 1].
    """
    return {head: _area(curve) for head, curve in deletion_curve(probe, maps).items()}


def insertion(probe: Probe, maps: Tensor) -> PerHead:
    """Area under the `insertion_curve`, by the same source: (B,), higher is better."""
    return {head: _area(curve) for head, curve in insertion_curve(probe, maps).items()}


def deletion_figures(probe: Probe, maps: Tensor) -> dict[str, dict[str, Tensor]]:
    """head → the area and the confidence at each share of the pixels, by their names in `MEASURES`."""
    return _area_and_curve("deletion", deletion_curve(probe, maps))


def insertion_figures(probe: Probe, maps: Tensor) -> dict[str, dict[str, Tensor]]:
    """The same of insertion."""
    return _area_and_curve("insertion", insertion_curve(probe, maps))


def _area_and_curve(name: str, curves: PerHead) -> dict[str, dict[str, Tensor]]:
    return {
        head: {name: _area(curve)} | dict(zip(at_shares(name), curve, strict=True)) for head, curve in curves.items()
    }


def road(probe: Probe, maps: Tensor) -> PerHead:
    """ROAD: half of (confidence without the least relevant pixels - confidence without the most relevant), (B,).

    Rong et al., ICML 2022; the mean over the percentiles 10, 20, ..., 90. At percentile p, "most relevant first" keeps
    the pixels below the p-th percentile of m and "least relevant first" those below the p-th percentile of 1 - m. The
    others are imputed from their neighbours, with noise of 0.01 (`linear_imputation`). Higher is better. grad-cam calls
    it ROADCombined.
    """
    _check(probe, maps)
    least_first, most_first = (_below_percentiles(order) for order in (1 - maps, maps))  # (9, B, H, W) bool each
    known = torch.cat([least_first, most_first])

    def perturb(step: Tensor, i: Tensor) -> Tensor:
        return linear_imputation(probe.images[i], known[step, i], probe.noise[i])

    confidence = probe.confidence(perturb, len(known), chunk=_IMPUTED_PIXELS // maps[0].numel())
    return {head: (c[: len(PERCENTILES)] - c[len(PERCENTILES) :]).mean(dim=0) / 2 for head, c in confidence.items()}


def pointing_games(maps: Tensor, inside: Tensor) -> dict[str, Tensor]:
    """Both pointing games, by their names in the results: maps (B, H, W) >= 0, inside (B, H, W) bool → (B,) each."""
    return {"pointing": pointing_game(maps, inside), "energy_pointing": energy_pointing_game(maps, inside)}


def pointing_game(maps: Tensor, inside: Tensor) -> Tensor:
    """Does the map's highest pixel (the first on ties) lie on the object? (B,) of 0 and 1.

    Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016, without their tolerance of
    15 pixels. maps: (B, H, W) >= 0; inside: (B, H, W) bool. A map of zeros points nowhere: 0.
    """
    _check_inside(maps, inside)
    flat = maps.flatten(1)
    highest, place = flat.max(dim=1)[0], flat.argmax(dim=1, keepdim=True)
    return (inside.flatten(1).gather(1, place)[:, 0] & (highest > 0)).double()


def energy_pointing_game(maps: Tensor, inside: Tensor) -> Tensor:
    """Share of the map's sum that lies on the object, (B,); 0 for a map of zeros.

    Wang et al., "Score-CAM", CVPR Workshops 2020: sum of m inside / sum of all m. maps and inside as for pointing_game.
    """
    _check_inside(maps, inside)
    flat = maps.double().flatten(1)
    total = flat.sum(dim=1)
    return torch.where(total > 0, (flat * inside.flatten(1)).sum(dim=1) / total, 0)


def blur(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) convolved with the kernel of RISE's code, with zeros around them: where insertion starts.

    The kernel is the response of a Gaussian filter of sigma 5, cut off at 4 sigma, to an impulse in an image of 11 x 11
    pixels with reflected borders. It is flatter than a Gaussian window.
    """
    reach = int(4 * _BLUR_SIGMA)
    offsets = np.arange(-reach, reach + 1)
    gaussian = np.exp(-0.5 * (offsets / _BLUR_SIGMA) ** 2)
    pixel = (_BLUR_SIDE // 2 + offsets) % (2 * _BLUR_SIDE)
    pixel = np.minimum(pixel, 2 * _BLUR_SIDE - 1 - pixel)  # reflected
    kernel = torch.from_numpy(np.bincount(pixel, gaussian / gaussian.sum(), _BLUR_SIDE)).to(images)
    margin = _BLUR_SIDE // 2
    channels = images.flatten(0, 1)[:, None]
    columns = F.conv2d(channels, kernel[None, None, :, None], padding=(margin, 0))
    return F.conv2d(columns, kernel[None, None, None], padding=(0, margin)).view(images.shape)


def _ranks(probe: Probe, maps: Tensor) -> Tensor:
    """Each pixel's rank by m, 0 the highest, ties in raster order: (B, H, W)."""
    _check(probe, maps)
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view(maps.shape)


def _counts(probe: Probe) -> Tensor:
    """How many pixels are changed after each step but the last, which changes all: (STEPS - 1, 1, 1)."""
    pixels = probe.images.shape[-2] * probe.images.shape[-1]
    return torch.arange(1, STEPS, device=probe.images.device)[:, None, None] * pixels // STEPS


def _curve(first: Tensor, between: Tensor, last: Tensor) -> Tensor:
    """(B,), (n, B), (B,) → (n + 2, B)."""
    return torch.cat([first[None], between, last[None]])


def _area(curve: Tensor) -> Tensor:
    """Trapezoidal area over [0, 1] under equally spaced scores (n + 1, B): (B,)."""
    return ((curve[0] + curve[-1]) / 2 + curve[1:-1].sum(dim=0)) / (len(curve) - 1)


def _below_percentiles(maps: Tensor) -> Tensor:
    """Is a pixel strictly below each of the PERCENTILES of its map, linearly interpolated? (9, B, H, W) bool."""
    ordered = maps.flatten(1).sort(dim=1)[0].double()
    place = torch.tensor(PERCENTILES, dtype=torch.float64, device=maps.device) / 100 * (ordered.shape[1] - 1)
    low, high = ordered[:, place.floor().long()], ordered[:, place.ceil().long()]
    levels = (low + (high - low) * place.frac()).T  # (9, B)
    return maps.double() < levels[..., None, None]


def _check(probe: Probe, maps: Tensor) -> None:
    expected = (probe.images.shape[0], *probe.images.shape[2:])
    if maps.shape != expected:
        raise ValueError(f"maps must have the images' size, {expected}, got {tuple(maps.shape)}")
    if not bool(((maps >= 0) & (maps <= 1)).all()):  # also False for NaN
        raise ValueError("maps must lie in [0, 1], without NaN")


def _check_inside(maps: Tensor, inside: Tensor) -> None:
    if maps.ndim != 3 or inside.shape != maps.shape or inside.dtype != torch.bool:
        raise ValueError(
            f"maps (B, H, W) need object pixels of the same shape and type bool, got {tuple(maps.shape)} and "
            f"{tuple(inside.shape)} {inside.dtype}"
        )


# --------------------------------------------------------------------------- over a data set

_UNIT = 2.0**-32


def measure(probe: Probe, maps: Tensor, measures: Iterable[str]) -> dict[str, Tensor]:
    """The figures of each image that read confidences, "head/figure" → (B,), for Fidelity.update.

    Names of `MEASURES` that read no confidence, the pointing games, are passed over: see `pointing_games`.
    """
    figures: dict[str, Tensor] = {}
    for name in measures:
        if MEASURES[name].reads_confidence:
            per_head = pkgutil.resolve_name(MEASURES[name].function)(probe, maps)
            for head, values in per_head.items():
                # A measure of several figures gives them by name, one of a single figure gives its values.
                by_figure = values if isinstance(values, dict) else {name: values}
                figures |= {f"{head}/{figure}": of_figure for figure, of_figure in by_figure.items()}
    return figures


class Fidelity(CountingMetric):
    """Means over images of what `measure` and `pointing_games` give for one row of the results.

    An image's figures are rounded to multiples of 2^-32 and summed as integers, so that any number of shards, in any
    order, gives the same digits. Figures that are not finite (a network that answers NaN) are left out of the mean and
    counted.

    Args:
        measures: names of MEASURES.
        heads: the heads that confidences are read from.
    """

    def __init__(self, measures: Sequence[str], heads: Sequence[str] = ("softmax",)):
        unknown = set(measures) - set(MEASURES)
        if unknown:
            raise ValueError(f"unknown fidelity measure {sorted(unknown)}; known: {', '.join(MEASURES)}")
        self._scale = {
            f"{head}/{key}": scale
            for head in heads
            for name in measures
            if MEASURES[name].reads_confidence
            for key, scale in MEASURES[name].figures.items()
        }
        for name in measures:
            if not MEASURES[name].reads_confidence:
                self._scale |= MEASURES[name].figures
        super().__init__(
            settings=tuple(self._scale),
            counts={name: np.zeros(len(self._scale), np.int64) for name in ("sum", "images", "nonfinite")},
        )

    def update(self, figures: Mapping[str, Tensor]) -> None:
        """Add a batch: name → (B,) in [-1, 1]. Raises ValueError for a name that this metric does not have."""
        names = list(self._scale)
        unknown = set(figures) - set(names)
        if unknown:
            raise ValueError(f"this metric has no {sorted(unknown)}; it has {', '.join(names)}")
        for name, values in figures.items():
            place, values = names.index(name), values.detach().double()
            finite = values[values.isfinite()]
            self._counts["sum"][place] += int((finite / _UNIT).round().long().sum())
            self._counts["images"][place] += len(finite)
            self._counts["nonfinite"][place] += len(values) - len(finite)

    def compute(self) -> dict[str, Any]:
        """Means: {"softmax": {"avg_drop": ..., ...}, "sigmoid": {...}, "pointing": ..., "energy_pointing": ...}.

        avg_drop, inc_conf, avg_gain and the pointing games in per cent; insertion and deletion as areas in [0, 1], and
        their curves as lists, `insertion_curve` and `deletion_curve`; road as a difference of confidences in [-1, 1].
        `num_nonfinite` counts a head's images whose confidence was not
        finite, where there are any. A figure that no image has is absent.
        """
        results: dict[str, Any] = {}
        for place, (name, scale) in enumerate(self._scale.items()):
            head, _, key = name.rpartition("/")
            group = results.setdefault(head, {}) if head else results
            total, images, bad = (int(self._counts[count][place]) for count in ("sum", "images", "nonfinite"))
            if images:
                value = scale * (total * _UNIT / images)
                curve, at, _ = key.partition("@")
                if at:
                    group.setdefault(f"{curve}_curve", []).append(value)
                else:
                    group[key] = value
            if bad:
                group["num_nonfinite"] = max(bad, group.get("num_nonfinite", 0))
        return results
