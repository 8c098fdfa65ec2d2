"""What a criterion is, and what it looks at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from abcsearch.channels import named
from abcsearch.rng import numpy_stream

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.group import ChannelGroup, Member

Tensors = dict[str, torch.Tensor]
Needs = Literal["", "images", "images and labels"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What criteria look at.

    Attributes:
        model: the trained network; a criterion that runs it runs a copy.
        graph: its channel groups.
        tensors: its parameters and buffers by name, detached.
        data: what the caller gave, not None where the criterion needs it.
        seed: of everything random.
    """

    model: nn.Module = field(repr=False)
    graph: ChannelGraph
    tensors: Tensors = field(repr=False)
    data: Any = field(repr=False)
    seed: int


@dataclass(frozen=True)
class Criterion(ABC):
    """A way to score channels.

    Attributes:
        needs: the data that it looks at.
        description: one line.
        source: paper.
    """

    needs: ClassVar[Needs] = ""
    description: str = field(default="", kw_only=True)
    source: str = field(default="", kw_only=True)

    @abstractmethod
    def scores(self, subject: Subject) -> list[NDArray[np.float64] | None]:
        """Returns per prunable group (channels,) scores, None where the criterion does not apply to the group."""


def words(name: str) -> dict[str, Any]:
    """Returns the description and the source of a criterion of this package, as `Criterion` takes them."""
    return named.CRITERIA.homes[name].words


def summed(
    group: ChannelGroup, parts: list[tuple[Member, torch.Tensor]]
) -> NDArray[np.float64] | None:
    """Adds up per-entry scores of members into (channels,) float64; None if there is no member."""
    if not parts:
        return None
    scores = np.zeros(group.channels)
    for member, values in parts:
        np.add.at(scores, member.channels, values.double().cpu().numpy()[member.entries])
    return scores


@dataclass(frozen=True)
class RandomCriterion(Criterion):
    """A random order per group, drawn from the seed: what every other criterion should beat."""

    def scores(self, subject: Subject) -> list[NDArray[np.float64] | None]:
        """Returns a permutation of 0 ... channels - 1 per group, (channels,) each."""
        groups = subject.graph.prunable
        streams = [numpy_stream(subject.seed, "ranking", index) for index in range(len(groups))]
        return [
            s.permutation(g.channels).astype(np.float64)
            for s, g in zip(streams, groups, strict=True)
        ]


RANDOM = RandomCriterion(**words("random"))
