"""The map of a run: what fitness each layer alone loses at the widths that were tried before the search began.

Not to be taken for `sensitivity`, which asks the trials of the search which widths go with high ranks.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from abcsearch.reporting.curves import Layer
    from abcsearch.space import Candidate
    from abcsearch.trial import Trial

ROWS = 20  # of the picture, each for as large a part of the full width


@dataclass(frozen=True, kw_only=True)
class ProbedLayer:
    """What fitness is lost where one layer, or block, alone is narrower.

    Attributes:
        layer: what it is.
        largest: its largest width in the space, at which nothing is lost; 1 of a block.
        widths: those that were tried below, ascending; 0 of a block.
        losses: of each the fitness of the largest structure minus that of this one; None where all evaluations failed.
    """

    layer: Layer
    largest: int
    widths: tuple[int, ...]
    losses: tuple[float | None, ...]

    @property
    def most(self) -> float | None:
        """The greatest loss; None where nothing is known."""
        return max((loss for loss in self.losses if loss is not None), default=None)

    def at(self, width: float, failed: float) -> float | None:
        """Returns the loss at a width, interpolated over the logarithm as searchers do it; of a block the nearest.

        Args:
            width: any.
            failed: loss of those that failed.

        Returns:
            None above the largest width, and below the smallest that was tried.
        """
        known = [failed if loss is None else loss for loss in self.losses]
        if not known or width > self.largest or width < self.widths[0]:
            return None
        if self.layer.level == "block":
            return known[0] if width < self.largest / 2 else 0.0
        scale = np.log(np.array([*self.widths, self.largest], dtype=float) + 1)
        return float(np.interp(math.log(width + 1), scale, [*known, 0.0]))


@dataclass(frozen=True, kw_only=True)
class LayerMap:
    """What each layer alone loses.

    Attributes:
        largest: fitness of the largest structure: every layer as wide as the space has it; where it has none, the
            highest of the others.
        known: whether that is its fitness.
        layers: in network order.
        failed: how many structures of the map have failed.
        reason: why there is nothing to show, or None.
    """

    largest: float = math.nan
    known: bool = False
    layers: tuple[ProbedLayer, ...] = field(default=())
    failed: int = 0
    reason: str | None = None

    @property
    def worst(self) -> float:
        """The greatest loss of all, at least 0: that of what has failed."""
        return max((layer.most or 0.0 for layer in self.layers), default=0.0)

    @property
    def grid(self) -> list[list[float | None]]:
        """Losses, at least 0, by share of the full width (`ROWS`, ascending) and layer; None where nothing is known."""
        edges = np.linspace(0, 1, ROWS + 1)
        rows: list[list[float | None]] = []
        for low, high in itertools.pairwise(edges.tolist()):
            losses = [_within(probed, low, high, self.worst) for probed in self.layers]
            rows.append([None if loss is None else max(loss, 0.0) for loss in losses])
        return rows


def _within(probed: ProbedLayer, low: float, high: float, failed: float) -> float | None:
    """Returns the loss in the middle of two shares of the full width, or where the widths that are known come nearest."""
    full = probed.layer.full
    if not probed.widths or high * full < probed.widths[0] or low * full > probed.largest:
        return None
    middle = min(max((low + high) / 2 * full, probed.widths[0]), probed.largest)
    return probed.at(middle, failed)


def layer_map(
    trials: Sequence[Trial], layers: Sequence[Layer], largest: Candidate | None = None
) -> LayerMap:
    """Returns what each layer alone loses by trials of which all but one dimension are as large as can be.

    Args:
        trials: of the map, and others, in any order; those that are narrower in several dimensions are left out.
        layers: the widths and blocks, which come first in every structure.
        largest: the largest structure; where it is not known it is made of the largest widths of all trials.
    """
    whole = largest or _largest(trial.candidate for trial in trials)
    losses: dict[tuple[int, int], list[float]] = defaultdict(list)
    full: list[float] = []
    for trial in trials:
        narrow = [
            i
            for i, pair in enumerate(zip(trial.candidate, whole, strict=False))
            if pair[0] != pair[1]
        ]
        if not narrow:
            full.append(trial.fitness)
        elif len(narrow) == 1 and narrow[0] < len(layers):
            losses[narrow[0], trial.candidate[narrow[0]]].append(trial.fitness)
    means = {key: _mean(values) for key, values in losses.items()}
    reference = _mean(full)
    best = max((mean for mean in means.values() if mean is not None), default=None)
    if best is None:
        return LayerMap(reason="no evaluation of the map has succeeded")
    base = best if reference is None else reference
    probed = [
        _probed(layer, index, whole[index], means, base) for index, layer in enumerate(layers)
    ]
    failed = sum(math.isinf(trial.fitness) for trial in trials)
    return LayerMap(largest=base, known=reference is not None, layers=tuple(probed), failed=failed)


def _largest(candidates: Iterable[Candidate]) -> Candidate:
    """Returns the largest value of every dimension."""
    return tuple(max(values) for values in zip(*candidates, strict=False))


def _mean(values: Sequence[float]) -> float | None:
    """Returns the mean of those that succeeded; None without any."""
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else None


def _probed(
    layer: Layer, index: int, largest: int, means: dict[tuple[int, int], float | None], base: float
) -> ProbedLayer:
    """Returns what one layer loses."""
    widths = sorted(width for dimension, width in means if dimension == index)
    fitness = [means[index, width] for width in widths]
    losses = tuple(None if value is None else base - value for value in fitness)
    return ProbedLayer(layer=layer, largest=largest, widths=tuple(widths), losses=losses)
