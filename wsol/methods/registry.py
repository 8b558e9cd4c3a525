"""METHODS: every training method by its name (`--wsol_method`), its hyperparameters, and where its class is.

A method is a subclass of `wsol.methods.base.TrainingMethod` in a file of its own, which says only what it does
otherwise than plain training, and one entry here. The table can be read without importing torch.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsol.methods.base import TrainingMethod


@dataclass(frozen=True)
class MethodOption:
    """A hyperparameter of a method: a flag of main.py and a keyword argument of the method's class, under one name.

    kind: "share" (0 to 1), "positive" (a whole number above 0) or "amount" (0 or more).
    """

    name: str
    default: float
    kind: str
    help: str


@dataclass(frozen=True)
class MethodEntry:
    """A method's entry; calling it with values of its options makes the method.

    Args:
        name: as on the command line.
        title: name and source, for --help.
        method: the class, as "module:class".
        options: its hyperparameters.
        module: a module that only its networks have, by which a checkpoint tells that it is of them.
    """

    name: str
    title: str
    method: str = "wsol.methods.base:TrainingMethod"
    options: tuple[MethodOption, ...] = ()
    module: str = ""

    def __call__(self, values: Mapping[str, Any]) -> TrainingMethod:
        """The method with its options' values, taken from a mapping that may have others; absent: the defaults."""
        return pkgutil.resolve_name(self.method)(
            **{option.name: values.get(option.name, option.default) for option in self.options}
        )


METHODS: dict[str, MethodEntry] = {
    entry.name: entry
    for entry in (
        MethodEntry("cam", "plain training (Zhou et al., CVPR 2016)"),
        MethodEntry(
            "has",
            "Hide-and-Seek (Singh & Lee, ICCV 2017): patches of training images are hidden",
            "wsol.methods.has:HideAndSeek",
            (
                MethodOption("has_grid_size", 4, "positive", "HaS: side of a patch in pixels"),
                MethodOption("has_drop_rate", 0.5, "share", "HaS: probability of hiding a patch"),
            ),
        ),
        MethodEntry(
            "acol",
            "ACoL (Zhang et al., CVPR 2018): a second classifier on features from which the first one's object is "
            "erased",
            "wsol.methods.acol:AdversarialComplementaryLearning",
            (MethodOption("acol_threshold", 0.7, "share", "ACoL: erasing threshold"),),
            module="classifier_B",
        ),
        MethodEntry(
            "spg",
            "SPG (Zhang et al., ECCV 2018): confident places of each level's map teach the next (vgg16, resnet50, "
            "inception_v3)",
            "wsol.methods.spg:SelfProducedGuidance",
            tuple(
                MethodOption(
                    f"spg_threshold_{level}{kind}", default, "share", f"SPG: {word} threshold of level {level}"
                )
                for level, high, low in ((1, 0.7, 0.01), (2, 0.5, 0.05), (3, 0.7, 0.1))
                for kind, word, default in (("h", "high", high), ("l", "low", low))
            ),
            module="SPG_B_shared",
        ),
        MethodEntry(
            "adl",
            "ADL (Choe & Shim, CVPR 2019): the most attended places of feature maps are dropped, or all weighted",
            "wsol.methods.adl:AttentionDropout",
            (
                MethodOption("adl_drop_rate", 0.75, "share", "ADL: probability of the drop mask"),
                MethodOption("adl_threshold", 0.9, "share", "ADL: drop threshold, relative to the maximum"),
            ),
        ),
        MethodEntry(
            "cutmix",
            "CutMix (Yun et al., ICCV 2019): a rectangle of another image, labels mixed by area",
            "wsol.methods.cutmix:CutMix",
            (
                MethodOption("cutmix_beta", 1.0, "amount", "CutMix: parameter of the beta distribution; 0: no mixing"),
                MethodOption("cutmix_prob", 1.0, "share", "CutMix: probability of mixing a batch"),
            ),
        ),
    )
}
