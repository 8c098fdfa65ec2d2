"""Criteria that look at what the network says without a channel."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import fx, nn

from abcsearch.channels.criteria.base import Criterion, Needs, Subject, words
from abcsearch.channels.gates import gated
from abcsearch.channels.responses import Batch, checked_logits, run_batches, twin_of
from abcsearch.channels.trace import trace_operations
from abcsearch.rng import torch_seeded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.trace import OperationGraph


@dataclass(frozen=True)
class CurlCriterion(Criterion):
    """How far the network's answers move when a channel is taken out: KL(without it || whole network), in nats.

    The mean over images of the divergence between the softmax of the logits without one channel and of those of the
    whole network; exactly 0 for a channel that does nothing. A channel is taken out by a gate of 0 where it is read.

    The cost is one forward for each channel and image, of which what comes before the first operation that reads the
    group is done once for all of its channels.

    Source: Luo and Wu, Neural Network Pruning with Residual-Connections and Limited-Data (CVPR 2020), section 3.

    Differences from the paper:
        - Gates stand where channels are read (`gate`), in coupled layers too, so that a gate of 0 is removal.
        - Scores order the channels of a group; the paper cuts one list of the channels of all groups.
    """

    needs: ClassVar[Needs] = "images"

    def scores(self, subject: Subject) -> list[NDArray[np.float64] | None]:
        """Runs the network once per channel over the data."""
        graph, twin = subject.graph, twin_of(subject.model)
        groups = graph.prunable
        totals = [torch.zeros(group.channels, dtype=torch.float64) for group in groups]
        count = 0

        def step(batch: Batch) -> None:
            nonlocal count
            images = len(batch)
            count += images
            with torch.no_grad():
                checked_logits(batch.given.clone().run(twin), images)
                rest = _Rest(trace_operations(twin, batch.given), batch.inputs)
                for number, index in rest.readers(graph):
                    rest.advance(number)
                    totals[index] += _divergences(rest, graph, index, subject.seed)

        run_batches(twin, subject.data, subject.seed, step)
        return [
            (total / count).numpy() if any(m.sums for m in group.members) else None
            for group, total in zip(groups, totals, strict=True)
        ]


def _divergences(rest: _Rest, graph: ChannelGraph, index: int, seed: int) -> torch.Tensor:
    """Returns the divergence without each channel of a group, (channels,) float64, summed over the images."""
    ones = torch.ones(graph.prunable[index].channels)
    whole = rest.answers(graph, index, ones, seed)
    sums: list[torch.Tensor] = []
    for channel in range(len(ones)):
        without = rest.answers(graph, index, ones.index_fill(0, torch.tensor(channel), 0.0), seed)
        apart, q = without - whole, without.exp()
        # The sum of q log(q/p), with p - q added, which sum up to 0: no term is negative, and small ones stay exact.
        near = q * (apart + torch.expm1(-apart))
        # Of a class that is hardly possible any more, exp(-apart) may be too large a number.
        terms = torch.where(apart > -1, near, q * apart + whole.exp() - q)
        sums.append(terms.clamp(min=0).sum())
    return torch.stack(sums).cpu()


class _Rest:
    """A traced network on one batch, run from any operation on; what comes before is run once."""

    def __init__(self, operations: OperationGraph, inputs: tuple[torch.Tensor, ...]) -> None:
        self.network, self._nodes = operations.modules[""], operations.nodes
        self._numbers = {node: number for number, node in enumerate(self._nodes)}
        self._done = 0
        self._past = self._interpreter()
        self._past.args_iter = iter(inputs)

    def _interpreter(self) -> fx.Interpreter:
        return fx.Interpreter(
            self.network, garbage_collect_values=False, graph=self._nodes[0].graph
        )

    def readers(self, graph: ChannelGraph) -> list[tuple[int, int]]:
        """Returns (operation, prunable group) by the first operation that has what reads the group's channels."""
        tensors = graph.tensors(self.network)
        used = [
            (number, {id(tensor) for tensor in self._used(node)})
            for node, number in self._numbers.items()
        ]
        first: list[tuple[int, int]] = []
        for index, group in enumerate(graph.prunable):
            reads = {id(tensors[m.parameter]) for m in group.members if m.sums}
            first += [(number, index) for number, ids in used if reads & ids][:1]
        return sorted(first)

    def _used(self, node: fx.Node) -> list[torch.Tensor]:
        """Returns the parameters and buffers of an operation's module, or the one that it takes from the network."""
        value = (
            attrgetter(str(node.target))(self.network)
            if node.op in ("call_module", "get_attr")
            else None
        )
        if isinstance(value, nn.Module):
            return [*value.parameters(), *value.buffers()]
        return [value] if isinstance(value, torch.Tensor) else []

    def advance(self, number: int) -> None:
        """Runs the operations before one, and drops the results that nothing from there on needs."""
        for node in self._nodes[self._done : number]:
            self._past.env[node] = self._past.run_node(node)
        self._done = number
        for node in self._past.env:
            if all(self._numbers[user] < number for user in node.users):
                self._past.env[node] = None

    def answers(
        self, graph: ChannelGraph, index: int, gates: torch.Tensor, seed: int
    ) -> torch.Tensor:
        """Returns the logarithms of the softmax of the logits, float64, with gates on the channels of one group."""
        every = [
            gates if i == index else torch.ones(g.channels) for i, g in enumerate(graph.prunable)
        ]
        known = self._past.env
        # Operations may change them; in one go, so that views stay views
        values = copy.deepcopy(list(known.values()))
        # What forward draws is the same with and without a channel.
        with gated(self.network, graph, every), torch_seeded(seed, "curl"):
            logits = self._interpreter().run(initial_env=dict(zip(known, values, strict=True)))
        return logits.double().log_softmax(dim=1)


CURL = CurlCriterion(**words("curl"))
