"""Variant: one row of the results, a method applied to a head, with or without clamping and refinement."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from wsol.cam.registry import get_method
from wsol.errors import InputError, nearest

# Values of `--heads`: the head that a map explains, and whether negative channel weights are clamped to zero first.
HEADS = ("softmax", "softmax_clamped", "sigmoid", "sigmoid_clamped")
NO_HEAD = "none"  # the head of methods that see activations only
_CLAMPED = "_clamped"
# Values of `--refine`: maps as they are, or spread over similar places (wsol/cam/refinement.py).
AFFINITY = "affinity"
REFINEMENTS = ("none", AFFINITY)


class Variant(NamedTuple):
    """A row of the results.

    method: a name in CAM_METHODS, or that of a folder of saved maps. head: "softmax", "sigmoid", or NO_HEAD. clamped:
    negative channel weights are set to zero. refine: one of REFINEMENTS. `str(variant)` is its name in files,
    `<method>_<head>[_clamped][_affinity]`.
    """

    method: str
    head: str = NO_HEAD
    clamped: bool = False
    refine: str = "none"

    @classmethod
    def of(cls, method: str, head: str, refine: str = "none") -> Variant:
        """A method with one of HEADS: Variant.of("cam", "sigmoid_clamped")."""
        return cls(method, head.removesuffix(_CLAMPED), head.endswith(_CLAMPED), refine)

    @classmethod
    def parse(cls, name: str) -> Variant:
        """The variant of a file name such as "gradcam_sigmoid_clamped_affinity"; a name without a head has none."""
        suffixes = {
            f"_{head}" + ("" if refine == "none" else f"_{refine}"): (head, refine)
            for head in (*HEADS, NO_HEAD)
            for refine in REFINEMENTS
        }
        for suffix in sorted(suffixes, key=len, reverse=True):
            if name.endswith(suffix):
                return cls.of(name.removesuffix(suffix), *suffixes[suffix])
        return cls(name)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Variant:
        """The variant of a row of results.json; rows written before there was refinement do not name it."""
        return cls(record["method"], record["head"], record["clamped"], record.get("refine", "none"))

    @property
    def record(self) -> dict[str, Any]:
        """The keys that identify a row of results.json."""
        return self._asdict()

    @property
    def head_option(self) -> str:
        """The head as `--heads` spells it: "sigmoid_clamped"."""
        return self.head + (_CLAMPED if self.clamped else "")

    @property
    def head_label(self) -> str:
        """The head for tables and figures: "sigmoid, clamped, refined", or "no head"."""
        head = "no head" if self.head == NO_HEAD else self.head_option.replace("_", ", ")
        return head + (", refined" if self.refined else "")

    @property
    def label(self) -> str:
        """The whole variant for tables and messages: "cam sigmoid, clamped"; the method alone where it has no head."""
        if self.head == NO_HEAD:
            return self.method + (", refined" if self.refined else "")
        return f"{self.method} {self.head_label}"

    @property
    def refined(self) -> bool:
        """Whether the map is refined in any way."""
        return self.refine != "none"

    @property
    def baseline(self) -> Variant:
        """The row that this one is compared with: the method's map of the softmax head, neither clamped nor refined."""
        return Variant(self.method, self.head if self.head == NO_HEAD else "softmax")

    def __str__(self) -> str:
        return f"{self.method}_{self.head_option}" + (f"_{self.refine}" if self.refined else "")


def variants(
    methods: Iterable[str],
    heads: Iterable[str],
    refine: Iterable[str] = ("none",),
    further_heads: Iterable[str] = (),
    further_refinements: Iterable[str] = (),
    refined_methods: Collection[str] | None = None,
) -> list[Variant]:
    """The variants that exist for these methods, heads (of HEADS) and refinements (of REFINEMENTS).

    A network may have further heads, and an extractor further refinements, under names of their own. Other methods than
    `refined_methods` (None: all of them) have unrefined variants only, of any `refine`.

    Each comes once: method by method, those of the first refinement before those of the second.
    A method without channel weights has nothing to clamp: for a clamped head it gives the head's plain variant. A
    method that sees no head has one variant, and a refined one.
    """
    heads, refine = list(heads), list(refine)
    known_heads = dict.fromkeys([*HEADS, *(head + end for head in further_heads for end in ("", _CLAMPED))])
    known_refinements = dict.fromkeys([*REFINEMENTS, *further_refinements])
    for what, names, known in (("head", heads, known_heads), ("refinement", refine, known_refinements)):
        for name in names:
            if name not in known:
                raise InputError(f"unknown {what} '{name}'{nearest(name, known)} (known: {', '.join(known)})")
    existing: dict[Variant, None] = {}  # a dict keeps their order
    for method in map(get_method, methods):
        refined = refined_methods is None or method.name in refined_methods
        for refinement, head in itertools.product(refine if refined else ["none"], heads):
            variant = Variant.of(method.name, head, refinement)
            if method.headless:
                variant = Variant(method.name, refine=refinement)
            elif not method.weights:
                variant = variant._replace(clamped=False)
            existing[variant] = None
    return list(existing)
