"""The options of preparations whose structures are drawn by Gumbel's softmax, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from abcsearch.channels.named import CRITERIA, names_of
from abcsearch.errors import AbcSearchError, ConfigError, unknown_name
from abcsearch.preparation.options import TrainedOptions
from abcsearch.records import setting


@dataclass(frozen=True, kw_only=True)
class DrawnOptions(TrainedOptions):
    """Options of all preparations that draw."""

    @property
    def passes(self) -> int:
        """One on which weights learn, and one on which what is drawn by does."""
        return 2


@dataclass(frozen=True, kw_only=True)
class TASOptions(DrawnOptions):
    """Options of `TAS`.

    Attributes:
        samples: widths of every layer that a pass mixes, at least 2.
        split: share of the training images, in (0, 1), that logits learn on and weights do not.
        logit_lr: highest learning rate of the logits; the recipe's schedule lowers it. Published: 0.001, for 600
            epochs.
        logit_decay: L2 penalty on the logits. Published: 0.001.
        weight: of the cost in the loss of the logits: the logarithm of how far the expected cost is outside.
        tolerance: share of the full network's cost that the expected one may be below the budget at no loss.
        hottest: temperature of the draws at the beginning, above `coldest`.
        coldest: at the end; a cosine leads there.
        structures: how many the search begins with: the expected one, and the likeliest inside the budget.
        weights: of all candidates: "brought", those of the network as it was before, or "trained" through draws. On
            digits structures of the first were better by 1.4 to 1.7 points after the same fine-tuning
            (docs/preparation.md).
        recipe: of the training: a table as [finetune], preset and changes to it; by default 30 epochs of SGD at 0.02.

    Raises:
        ConfigError: if an option is of another type or out of range.
    """

    called: ClassVar[str] = "tas"

    samples: int = setting(2, at_least=2, at_most=1000)
    split: float = setting(0.5, above=0, below=1)
    logit_lr: float = setting(0.1, above=0)
    logit_decay: float = setting(0.0, at_least=0)
    weight: float = setting(2.0, at_least=0)
    tolerance: float = setting(0.05, at_least=0, below=1)
    hottest: float = setting(5.0, above=0)
    coldest: float = setting(0.1, above=0, at_most="hottest")
    structures: int = setting(5, at_least=1, at_most=1000)
    weights: str = setting("brought", words=("brought", "trained"))
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class LFPCOptions(DrawnOptions):
    """Options of `LFPC`.

    Attributes:
        criteria: that every layer chooses from, at least two; published are these. Where the search chooses criteria
            itself (`criterion = [...]`), those count, and these are not looked at.
        structure: whose widths channels are chosen for: a value per dimension of the space, as a searcher's `initial`
            has them, or as many as there are widths and blocks. None: see `ratio`.
        ratio: keep ratio of all widths, in (0, 1], as published; None: the largest uniform structure inside the budget.
        split: share of the training images, in (0, 1), that logits learn on and weights do not.
        logit_lr: highest learning rate of the logits; the recipe's schedule lowers it.
        hottest: temperature of the draws at the beginning, above `coldest`.
        coldest: at the end; a cosine leads there.
        recipe: of the training: a table as [finetune], preset and changes to it; by default 30 epochs of SGD at 0.02.

    Raises:
        ConfigError: if an option is of another type or out of range, a criterion is unknown, or there is both a
            structure and a ratio.
    """

    called: ClassVar[str] = "lfpc"

    criteria: Sequence[str] = ("l1", "l2", "fpgm")
    structure: Sequence[int] | None = None
    ratio: float | None = setting(None, above=0, at_most=1)
    split: float = setting(0.5, above=0, below=1)
    logit_lr: float = setting(0.1, above=0)
    hottest: float = setting(5.0, above=0)
    coldest: float = setting(0.5, above=0, at_most="hottest")
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        """Checks the values, and turns lists (TOML, JSON) into tuples."""
        super().__post_init__()
        structure: object = self.structure
        if structure is not None:
            if not isinstance(structure, list | tuple) or not all(
                type(value) is int for value in structure
            ):
                msg = f"lfpc: structure is a list of whole numbers, one per dimension, found {structure!r:.80}"
                raise ConfigError(msg)
            if self.ratio is not None:
                raise ConfigError(
                    "lfpc: structure and ratio both say how wide layers are; leave one of them out"
                )
            object.__setattr__(self, "structure", tuple(structure))
        object.__setattr__(self, "criteria", _criteria(self.criteria))


def _criteria(given: object) -> tuple[str, ...]:
    """Returns the criteria to choose from; raises ConfigError unless they are two or more known ones."""
    if not isinstance(given, list | tuple):
        msg = f"lfpc: criteria is a list of names, found {given!r:.80}"
        raise ConfigError(msg)
    try:
        names = names_of(given)
    except AbcSearchError as error:
        msg = f"lfpc: criteria: {error}"
        raise ConfigError(msg) from error
    listed = [names] if isinstance(names, str) else names
    unknown = [name for name in listed if ":" not in name and name not in CRITERIA]
    if unknown:
        raise ConfigError(unknown_name("lfpc: criterion", unknown[0], CRITERIA))
    if isinstance(names, str):
        msg = f"lfpc: criteria are those that every layer chooses from, at least two, found {names!r} alone"
        raise ConfigError(msg)
    return names
