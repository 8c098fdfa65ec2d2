"""Weights that follow from keep ratios: a generator beside a network, and a source whose networks have its weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from abcsearch.channels.fixed import Fixed
from abcsearch.channels.outline import outlined
from abcsearch.channels.slicing import fill, slice_model
from abcsearch.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.orders import Ranking
    from abcsearch.space import Candidate


class Made(NamedTuple):
    """A weight that a generator makes.

    Attributes:
        name: in the network.
        shape: of all of it.
        groups: numbers of the prunable groups on its axes, whose keep ratios it follows from.
    """

    name: str
    shape: tuple[int, ...]
    groups: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of outputs and inputs, without those of length 1."""
        return tuple(axis for axis, length in enumerate(self.shape[:2]) if length > 1)

    def numbers(self, hidden: int, *, low_rank: bool) -> int:
        """Returns how many numbers make it, besides the network's own."""
        rows = sum(self.shape[axis] for axis in self.axes) if low_rank else self.numel
        return hidden * (len(self.groups) + 1 + rows)


def made_weights(model: nn.Module, graph: ChannelGraph, free: Collection[int]) -> tuple[Made, ...]:
    """Returns the weights that can follow from the widths of some groups.

    Those are weights of convolutions and linear layers with channels of such a group on an axis. All else is left as
    it is: biases, norms, embeddings, and what is frozen (`requires_grad` is False).

    Args:
        model: the network that `graph` was traced on.
        graph: its channel groups.
        free: numbers of the prunable groups.
    """
    trained = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    groups: dict[str, list[int]] = {
        call.weight: []
        for call in graph.calls
        if isinstance(call.weight, str) and call.weight in trained
    }
    for index in sorted(free):
        for name in dict.fromkeys(member.parameter for member in graph.prunable[index].members):
            if name in groups:
                groups[name].append(index)
    return tuple(
        Made(name, graph.sizes[name], tuple(group)) for name, group in groups.items() if group
    )


class Generator(nn.Module):
    """Makes weights from keep ratios: one hidden layer per weight, whose outputs are added to the network's own.

    A weight W becomes W + B (f(v) - f(1)), where v are the keep ratios of the groups on its axes and f(v) = relu(A v +
    a); at low rank W * (1 + C (f(v) - f(1))) * (1 + D (f(v) - f(1))), with a factor per output and one per input. So
    the full network has its own weights, and as long as B, C and D are 0 all others have slices of them.

    Source: Liu et al., MetaPruning (ICCV 2019), section 3.1, where W(v) = B f(v) + b.

    Attributes:
        made: the weights.
    """

    def __init__(self, made: Sequence[Made], *, hidden: int = 32, low_rank: bool = False) -> None:
        """Makes one whose hidden layers and outputs are 0; `drawn` begins it.

        Args:
            made: the weights.
            hidden: units of each hidden layer.
            low_rank: whether weights get factors instead of numbers of their own.
        """
        super().__init__()
        self.made = tuple(made)
        self._makers = nn.ModuleList(_Maker(one, hidden, low_rank=low_rank) for one in self.made)

    def drawn(self, draws: torch.Generator, *, outputs: bool = False) -> None:
        """Draws the hidden layers as torch draws those of `nn.Linear`, in place.

        Args:
            draws: from which.
            outputs: whether what they are read by is drawn likewise, and is not 0.
        """
        for maker in self._makers:
            maker.drawn(draws, outputs=outputs)  # pyright: ignore[reportCallIssue] - a `_Maker`

    def to_like(self, model: nn.Module) -> Generator:
        """Returns itself, in the types and on the devices of the weights of a network."""
        tensors = dict(model.named_parameters())
        for one, maker in zip(self.made, self._makers, strict=True):
            maker.to(tensors[one.name].device, tensors[one.name].dtype)
        return self

    def weights(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        candidate: Sequence[int],
        *,
        from_full: bool = True,
    ) -> dict[str, torch.Tensor]:
        """Returns the whole weights of a candidate by name, of which it keeps a slice; those of its blocks alone.

        Args:
            model: whose own weights they are made of.
            graph: its channel groups.
            candidate: whose keep ratios they follow from.
            from_full: whether they are the network's own for the full one, as above; if not, f(1) is left out, as
                published.

        Raises:
            CandidateError: if the candidate does not fit the graph.
        """
        widths, dropped = graph.structure(candidate)
        ratios = [
            width / group.channels for width, group in zip(widths, graph.prunable, strict=True)
        ]
        gone = tuple(f"{block.name}." for block in dropped)
        tensors, weights = dict(model.named_parameters()), {}
        for one, maker in zip(self.made, self._makers, strict=True):
            if not gone or not one.name.startswith(gone):
                tensor, inputs = tensors[one.name], [ratios[group] for group in one.groups]
                # The same numbers, whatever is computed in
                with torch.autocast(tensor.device.type, enabled=False):
                    weights[one.name] = maker(tensor, inputs, from_full=from_full)
        return weights

    def check(self, model: nn.Module, graph: ChannelGraph) -> None:
        """Raises ModelError unless it was made for this network and these channels."""
        known = dict(model.named_parameters())
        for one in self.made:
            here = tuple(known[one.name].shape) if one.name in known else None
            on_axes = {
                index
                for index, group in enumerate(graph.prunable)
                if any(member.parameter == one.name for member in group.members)
            }
            if here != one.shape or not on_axes.issuperset(one.groups):
                there = f"a weight {one.name} of shape {one.shape} with channels of groups {list(one.groups)}"
                msg = f"the generator was made for another network or space: it has {there}, and here that has shape "
                msg += f"{here} and channels of groups {sorted(on_axes)}; prepare it anew for this network"
                raise ModelError(msg)


class _Maker(nn.Module):
    """Makes one weight."""

    def __init__(self, made: Made, hidden: int, *, low_rank: bool) -> None:
        super().__init__()
        self._shape = made.shape
        self._axes = made.axes if low_rank else ()
        self.hidden = nn.Parameter(torch.zeros(hidden, len(made.groups)))
        self.offset = nn.Parameter(torch.zeros(hidden))
        sizes = [made.shape[axis] for axis in self._axes] if low_rank else [made.numel]
        self.outputs = nn.ParameterList(torch.zeros(size, hidden) for size in sizes)

    def drawn(self, draws: torch.Generator, *, outputs: bool) -> None:
        """Draws the hidden layer, and what reads it, see `Generator.drawn`."""
        count, inputs = self.hidden.shape
        drawn = {self.hidden: inputs, self.offset: inputs} | (
            dict.fromkeys(self.outputs, count) if outputs else {}
        )
        with torch.no_grad():
            for tensor, fan in drawn.items():
                tensor.uniform_(-(fan**-0.5), fan**-0.5, generator=draws)

    def forward(
        self, weight: torch.Tensor, ratios: Sequence[float], *, from_full: bool
    ) -> torch.Tensor:
        """Returns the weight."""
        at = self._features(ratios)
        if from_full:
            at = at - self._features([1.0] * len(ratios))
        if not self._axes:
            return weight + (self.outputs[0] @ at).view(self._shape)
        for axis, factors in zip(self._axes, self.outputs, strict=True):
            weight = weight * (1 + factors @ at).view(
                [-1 if a == axis else 1 for a in range(len(self._shape))]
            )
        return weight

    def _features(self, ratios: Sequence[float]) -> torch.Tensor:
        """Returns what the hidden layer makes of the keep ratios, (hidden,)."""
        given = torch.tensor(ratios, dtype=self.hidden.dtype).to(self.hidden.device)
        return F.relu(torch.mv(self.hidden, given) + self.offset)


class Generated(Fixed):
    """Slices of weights that a generator makes for every candidate anew, from its keep ratios.

    Evaluators do not repair its networks: a repair is fitted to the full network's weights.

    Attributes:
        generator: makes the weights.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, ranking: Ranking, generator: Generator
    ) -> None:
        """Takes a network, its channels, which of them are best, and what makes its weights.

        Raises:
            ModelError: if the generator was made for another network, or for other channels.
        """
        generator.check(model, graph)
        super().__init__(model, graph, ranking)
        self.generator = generator

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The network, the scores of its channels, and the generator."""
        return {**super().modules, "generator": self.generator}

    def network(self, candidate: Candidate, seed: int = 0) -> nn.Module:
        """Returns the sliced network with its weights; the seed is not used."""
        del seed
        network = slice_model(self.model, self.graph, candidate, self.ranking)
        outline = outlined(self.model, self.graph, candidate, self.ranking)
        with torch.no_grad():
            fill(network, outline, self.generator.weights(self.model, self.graph, candidate))
        return network
