"""Variant: one row of the results, a method applied to a head, with or without clamping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from wsol.cam.registry import get_method
from wsol.errors import InputError, nearest

# Values of `--heads`: the head that a map explains, and whether negative channel weights are clamped to zero first.
HEADS = ("softmax", "softmax_clamped", "sigmoid", "sigmoid_clamped")
NO_HEAD = "none"  # the head of methods that see activations only
_CLAMPED = "_clamped"


class Variant(NamedTuple):
    """A row of the results.

    method: a name in CAM_METHODS, or that of a folder of saved maps. head: "softmax", "sigmoid", or NO_HEAD. clamped:
    negative channel weights are set to zero. `str(variant)` is its name in files, `<method>_<head>[_clamped]`.
    """

    method: str
    head: str = NO_HEAD
    clamped: bool = False

    @classmethod
    def of(cls, method: str, head: str) -> Variant:
        """A method with one of HEADS: Variant.of("cam", "sigmoid_clamped")."""
        return cls(method, head.removesuffix(_CLAMPED), head.endswith(_CLAMPED))

    @classmethod
    def parse(cls, name: str) -> Variant:
        """The variant of a file name such as "gradcam_sigmoid_clamped"; a name without a head has none."""
        for head in sorted((*HEADS, NO_HEAD), key=len, reverse=True):
            if name.endswith(f"_{head}"):
                return cls.of(name.removesuffix(f"_{head}"), head)
        return cls(name)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Variant:
        """The variant of a row of results.json."""
        return cls(record["method"], record["head"], record["clamped"])

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
        """The head for tables and figures: "sigmoid, clamped", or "no head"."""
        return "no head" if self.head == NO_HEAD else self.head_option.replace("_", ", ")

    @property
    def label(self) -> str:
        """The whole variant for tables and messages: "cam sigmoid, clamped"; the method alone where it has no head."""
        return self.method if self.head == NO_HEAD else f"{self.method} {self.head_label}"

    def __str__(self) -> str:
        return f"{self.method}_{self.head_option}"


def variants(methods: Iterable[str], heads: Iterable[str]) -> list[Variant]:
    """The variants that exist for these methods and heads (of HEADS), in order, each once.

    A method without channel weights has nothing to clamp: for a clamped head it gives the head's plain variant. A
    method that sees no head has one variant.
    """
    existing: dict[Variant, None] = {}  # a dict keeps their order
    for method in map(get_method, methods):
        for head in heads:
            if head not in HEADS:
                raise InputError(f"unknown head '{head}'{nearest(head, HEADS)} (known: {', '.join(HEADS)})")
            variant = Variant.of(method.name, head)
            if method.headless:
                variant = Variant(method.name)
            elif not method.weights:
                variant = variant._replace(clamped=False)
            existing[variant] = None
    return list(existing)
