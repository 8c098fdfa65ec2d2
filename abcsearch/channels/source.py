"""Where a candidate's network comes from: whatever evaluates, measures, fine-tunes or exports one asks a source."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from abcsearch.channels.slicing import slice_model
from abcsearch.errors import ModelError, one_line, plural

if TYPE_CHECKING:
    from collections.abc import Mapping

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.orders import Ranking
    from abcsearch.space import Candidate


class Source(ABC):
    """Candidate -> network. Subclasses say how; `Sliced` cuts channels out of the trained network.

    Sources are immutable, and pickle: evaluations take place in other processes.

    Attributes:
        model: the full network, trained, in evaluation mode; lent, never changed.
        graph: its channel groups.
        ranking: which channels a candidate keeps.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, ranking: Ranking) -> None:
        """Keeps what every source has."""
        self.model, self.graph, self.ranking = model, graph, ranking

    @abstractmethod
    def network(self, candidate: Candidate, seed: int = 0) -> nn.Module:
        """Returns the network of a candidate: a new one at every call, on the device of the source.

        Args:
            candidate: kept channels per prunable group; then, or not at all, 1 or 0 per block; then,
                or not at all, the number of a criterion of the ranking per prunable group.
            seed: of the evaluation, for sources that draw random numbers.

        Raises:
            CandidateError: if the candidate does not fit the graph.
        """

    @property
    def full(self) -> nn.Module:
        """What candidates are compared with: the network as it was brought, which `model` is unless it was prepared."""
        return vars(self).get("_full", self.model)

    def beside(self, full: nn.Module) -> Self:
        """Returns the source, its candidates compared with another network: what `model` was before it was prepared."""
        other = copy.copy(self)
        vars(other)["_full"] = full
        return other

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """All that its networks are made of, by name: what a checkpoint of it saves, and a run recognises it by."""
        return {"network": self.model}

    def _lent(self) -> tuple[object, ...]:
        """What knows no device, and is not copied when the source moves to another."""
        return self.graph, self.ranking

    def to(self, device: torch.device | str) -> Self:
        """Returns the source on a device, where its networks are then made: itself if it is there."""
        where = torch.device(device)
        every = [*self.modules.values(), self.full]
        if all(
            tensor.device == where for module in every for tensor in module.state_dict().values()
        ):
            return self
        shared = {id(lent): lent for lent in self._lent()}
        moved = copy.deepcopy(self, shared)
        for module in (*moved.modules.values(), moved.full):
            module.to(where)
        return moved


class Sliced(Source):
    """Cuts what a candidate keeps out of the trained network, see `slice_model`."""

    def network(self, candidate: Candidate, seed: int = 0) -> nn.Module:
        """Returns the sliced network; the seed is not used."""
        del seed
        return slice_model(self.model, self.graph, candidate, self.ranking)


def check_source(source: Source) -> None:
    """Raises unless a source keeps its word for the smallest and the largest candidate.

    Networks are new and of the costs that the graph says, the same for the same seed, and what they come from is
    unchanged. For sources of the user's own, whose mistakes every evaluation would repeat.

    Raises:
        ModelError: saying what is wrong.
    """
    name = type(source).__name__
    if not isinstance(source, Source):  # pyright: ignore[reportUnnecessaryIsInstance] - the user's own object
        msg = f"{name} is no source: derive it from abcsearch.Source"
        raise ModelError(msg)
    before = {key: _state(module) for key, module in source.modules.items()}
    full = source.graph.space(alpha=1.0).full
    for candidate in (full, (1,) * len(full)):
        networks = [_network(source, candidate) for _ in range(2)]
        changed = [
            key for key, module in source.modules.items() if not _same(before[key], _state(module))
        ]
        if changed:
            msg = f"source {name} changes its module {changed[0]!r} when it makes networks: change a copy"
            raise ModelError(msg)
        if networks[0] is networks[1] or any(network is source.model for network in networks):
            msg = f"source {name} gives the same module twice: network(candidate) returns a new one at every call"
            raise ModelError(msg)
        states = [_state(network) for network in networks]
        if not _same(*states):
            msg = f"source {name} gives {candidate} other weights at every call: draw random numbers from the seed"
            raise ModelError(msg)
        expected, params = int(source.graph.costs.params([candidate])[0]), _params(networks[0])
        if params != expected:
            msg = f"source {name} gives {candidate} a network of {plural(params, 'parameter')}, expected {expected}"
            raise ModelError(msg)


def _network(source: Source, candidate: Candidate) -> nn.Module:
    """Returns a network of the user's source.

    Raises:
        ModelError: if there is none.
    """
    try:
        network = source.network(candidate, 0)
    except Exception as error:  # the user's code: anything can go wrong in it
        msg = f"source {type(source).__name__} fails for {candidate}: {type(error).__name__}: {one_line(str(error))}"
        raise ModelError(msg) from error
    if not isinstance(network, nn.Module):
        msg = f"source {type(source).__name__} returns {type(network).__name__} for {candidate}, expected an nn.Module"
        raise ModelError(msg)
    return network


def _params(network: nn.Module) -> int:
    """Returns the number of parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Returns copies of the tensors of a module."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Returns whether two modules have the same tensors, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
