"""nisp: the importance of the last features, propagated back to all channels that they come from."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from scipy.stats import rankdata
from torch import fx

from abcsearch.channels.criteria.base import Criterion, Needs, Subject, Tensors, words
from abcsearch.channels.responses import Batch, run_batches, twin_of
from abcsearch.channels.rules import find_rule, layers, norms, pointwise
from abcsearch.channels.trace import trace_operations
from abcsearch.errors import RankingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from abcsearch.channels.group import ChannelGroup
    from abcsearch.channels.trace import OperationGraph

_LAYERS = (layers.convolution, layers.linear)
_PASSED = (
    *(pointwise.elementwise, norms.channel_norm, norms.channel_norm_function),
    *(norms.group_norm, norms.group_norm_function, norms.layer_norm, norms.layer_norm_function),
    *(norms.local_response_norm, norms.normalize),
)


@dataclass(frozen=True)
class NispCriterion(Criterion):
    """Importance that flows back from the last features: through weights by their absolute values, added where read.

    The last convolution or linear layer is the classifier, its inputs are the last features. `inf_fs` finds their
    scores; the other channels get theirs by one backward pass of the network in which weights have their absolute
    values and what maps entries one by one, or normalises, does nothing. The score of a channel is the sum over all
    layers that read it, and over positions. A channel whose readers are all zero has score 0, the
    last features apart: the classifier's weights are not looked at, nor are those that make a channel.

    Source: Yu et al., NISP: Pruning Networks using Neuron Importance Score Propagation (CVPR 2018), sections 3.2-3.3.

    Differences from the paper:
        - Scores of the whole network are propagated at once; the paper prunes layer by layer, and what is pruned
          passes no importance on.
        - A backward pass is exact wherever operations are linear. Max pooling hands the score to the largest entry,
          products of activations to both, by the values of the other: on the absolute values of the first batch.
        - Constant features are left out of `inf_fs` and have score 0.
    """

    needs: ClassVar[Needs] = "images"

    def scores(self, subject: Subject) -> list[NDArray[np.float64] | None]:
        """Runs the network once over the data, and once more, forward and backward, over the first batch."""
        twin = twin_of(subject.model)
        networks: list[tuple[OperationGraph, _Layers]] = []
        seen: list[NDArray[np.float64]] = []

        def step(batch: Batch) -> None:
            with torch.no_grad():
                if not networks:
                    batch.given.clone().run(twin)
                    networks.append((trace_operations(twin, batch.given), _absolute(twin, batch)))
                run = _Layers(networks[0][0])
                run.run(*batch.inputs)
            seen.append(run.features().double().cpu().numpy())

        run_batches(twin, subject.data, subject.seed, step)
        responses = np.concatenate(seen)
        if not np.isfinite(responses).all():
            msg = (
                "the input of the last layer is not finite; check the trained weights and the data"
            )
            raise RankingError(msg)
        absolute = networks[0][1]
        received = absolute.received(torch.from_numpy(inf_fs(responses)))
        tensors = subject.graph.tensors(absolute.module)
        return [_added(group, tensors, received) for group in subject.graph.prunable]


def _absolute(twin: torch.nn.Module, batch: Batch) -> _Layers:
    """Returns the network of absolute weights, without what maps entries one by one, run on absolute images."""
    given = batch.given.mapped(lambda x: x.double().abs() if x.is_floating_point() else x)
    other = copy.deepcopy(twin).double().requires_grad_(requires_grad=False)
    for tensor in (*other.parameters(), *other.buffers()):
        if tensor.is_floating_point():
            tensor.abs_()
    run = _Layers(trace_operations(other, given), passed=_PASSED)
    with torch.enable_grad():
        run.run(*given.tensors)
    return run


def inf_fs(responses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores of features: how much each adds to subsets of any size, which differ and vary.

    Subsets are paths through the graph of all features, in which two are joined by half the larger of their standard
    deviations and half of 1 - |Spearman correlation|; paths of length l count 0.9^l, relative to the spectral radius.

    Args:
        responses: (images, features).

    Returns:
        (features,), not below 0; 0 for features that are constant (to a relative 1e-6), or 1 for all where all are.

    Source: Roffo et al., Infinite Feature Selection (ICCV 2015), as NISP uses it.
    """
    low, high = responses.min(axis=0), responses.max(axis=0)
    varies = high - low > 1e-6 * np.maximum(np.abs(low), np.abs(high))
    if not varies.any():
        return np.ones(len(varies))
    values = responses[:, varies]
    deviations = values.std(axis=0)
    alike = np.atleast_2d(np.corrcoef(rankdata(values, axis=0), rowvar=False))
    joined = 0.5 * np.maximum.outer(deviations, deviations) + 0.5 * (1 - np.abs(alike))
    paths = 0.9 / np.abs(np.linalg.eigvalsh(joined)).max() * joined
    scores = np.zeros(len(varies))
    scores[varies] = np.linalg.solve(np.eye(len(paths)) - paths, np.ones(len(paths))) - 1
    return scores


class _Layers(fx.Interpreter):
    """Runs a traced network and keeps what goes into each convolution and linear layer.

    Attributes:
        uses: per use of a layer: its weight, the axis of it that reads, the input, and the axis of the channels there.
    """

    def __init__(self, operations: OperationGraph, passed: tuple[Any, ...] = ()) -> None:
        """Begins a run.

        Args:
            operations: the network.
            passed: rules of operations that return their argument as it is.
        """
        super().__init__(operations.modules[""], graph=operations.nodes[0].graph)
        self.uses: list[tuple[torch.Tensor, int, torch.Tensor, int]] = []
        self._passed, self._changes = passed, operations.changes

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - torch.fx calls it; an operation may return anything
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        rule = (
            find_rule(n.target if module is None else type(module))
            if n.op.startswith("call_")
            else None
        )
        source = self.env[n.all_input_nodes[0]] if n.all_input_nodes else None
        if rule in self._passed and isinstance(source, torch.Tensor):
            # What follows may view the result, or change it in place: it is memory of its own where it was.
            return (
                source
                if n in self._changes
                else source.clone(memory_format=torch.contiguous_format)
            )
        if rule not in _LAYERS:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        given = dict(zip(("input", "weight"), args, strict=False), **kwargs)
        x = given["input"]
        x = x.clone() if x.requires_grad else x.detach().requires_grad_(torch.is_grad_enabled())
        weight = given["weight"] if module is None else module.weight
        transposed = (
            "transpose"
            in getattr(n.target if module is None else type(module), "__name__", "").lower()
        )
        self.uses.append((weight, 0 if transposed else 1, x, -1 if rule is layers.linear else 1))
        args, kwargs = ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "input": x})
        return getattr(self, n.op)(n.target, args, kwargs)

    def features(self) -> torch.Tensor:
        """Returns the means over positions of the last layer's input, (images, features)."""
        *_, x, axis = self.uses[-1]
        x = x.movedim(axis, -1)
        return x.reshape(len(x), -1, x.shape[-1]).mean(dim=1)

    def received(self, scores: torch.Tensor) -> dict[tuple[int, int], list[NDArray[np.float64]]]:
        """Returns what channels receive where layers read them, if the last features have these scores.

        Returns:
            By the id of a weight and the axis that reads: for each such use (channels of the input,).
        """
        features = self.features()
        taps = [x for _, _, x, _ in self.uses]
        flow = (features * scores.to(features)).sum() / len(features)
        gradients = torch.autograd.grad(flow, taps, allow_unused=True)
        received: dict[tuple[int, int], list[NDArray[np.float64]]] = {}
        for (weight, reads, _, axis), gradient in zip(self.uses, gradients, strict=True):
            if gradient is not None:
                each = gradient.movedim(axis, 0).flatten(1).sum(dim=1).abs()
                received.setdefault((id(weight), reads), []).append(each.cpu().numpy())
        return received


def _added(
    group: ChannelGroup,
    tensors: Tensors,
    received: dict[tuple[int, int], list[NDArray[np.float64]]],
) -> NDArray[np.float64] | None:
    """Adds up what a group's channels receive; None where no layer that reads them leads to the last features."""
    scores, readers = np.zeros(group.channels), 0
    for member in (m for m in group.members if m.sums):
        weight = tensors[member.parameter]
        for values in received.get((id(weight), member.axis), []):
            readers += 1
            # One row for each of its conv_groups
            lanes = values.reshape(-1, weight.shape[member.axis]).sum(axis=0)
            np.add.at(scores, member.channels, lanes[member.entries])
    return scores if readers else None


NISP = NispCriterion(**words("nisp"))
