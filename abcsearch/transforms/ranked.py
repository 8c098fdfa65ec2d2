"""Widths and ranks in one search: the layers that may be products, and networks in which some are."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from abcsearch.channels.baking import baked_words
from abcsearch.channels.rank_costs import LayerRank
from abcsearch.channels.source import Sliced, Source
from abcsearch.errors import ExampleError, TraceError, callers
from abcsearch.example import Example
from abcsearch.transforms.factors import Factorised, full_ranks, skeleton, split
from abcsearch.transforms.low_rank import run_once, splittable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.options import SpaceOptions
    from abcsearch.channels.orders import Ranking
    from abcsearch.space import Candidate
    from abcsearch.transforms.factors import Layer, Method


class Ranked(Source):
    """Networks of another source in which layers are products of two smaller ones, where a candidate says so.

    The layer is split as it is in the network of the candidate, with the channels, and the weights, that it has there:
    by singular values, as `low_rank` does it. It is a product only where that has fewer MACs than the layer.

    Attributes:
        source: where networks come from before it.
    """

    def __init__(self, source: Source) -> None:
        """Takes the source, whose graph says which layers may be products (`with_ranks`)."""
        super().__init__(source.model, source.graph, source.ranking)
        self.source = source

    def network(self, candidate: Candidate, seed: int = 0) -> nn.Module:
        """Returns the network of a candidate; the seed is the other source's."""
        return factorised(self.source.network(candidate, seed), self.graph, candidate)

    @property
    def full(self) -> nn.Module:
        """What candidates are compared with, as of the other source."""
        return self.source.full

    def beside(self, full: nn.Module) -> Self:
        """Returns the source, its candidates compared with another network."""
        return type(self)(self.source.beside(full))

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """All that its networks are made of, as of the other source."""
        return self.source.modules

    def to(self, device: torch.device | str) -> Self:
        """Returns the source on a device: itself if it is there."""
        moved = self.source.to(device)
        return self if moved is self.source else type(self)(moved)


def sliced(model: nn.Module, graph: ChannelGraph, ranking: Ranking) -> Source:
    """Returns a source of slices, in which layers are products where the graph has ranks and a candidate says so."""
    return with_products(Sliced(model, graph, ranking))


def with_products(source: Source) -> Source:
    """Returns a source whose networks have the ranks of their candidates; itself where there are none to have."""
    return Ranked(source) if source.graph.ranks and not isinstance(source, Ranked) else source


def factorised(network: nn.Module, graph: ChannelGraph, candidate: Candidate) -> nn.Module:
    """Makes products of the layers of a candidate's network that its ranks say, in place; returns it."""
    methods: dict[str, Any] = {layer.path: layer.method for layer in graph.ranks}
    for path, rank in graph.factored(candidate).items():
        layer: Any = network.get_submodule(path)
        if not isinstance(layer, Factorised):
            network.set_submodule(path, split(layer, methods[path], (rank,)))
    return network


def graph_of(model: nn.Module, example: Any, options: SpaceOptions) -> ChannelGraph:  # noqa: ANN401 - see `Example`
    """Returns the channel groups of a network under the options of a space, with ranks where these ask for them."""
    graph = options.traced(model, example)
    return with_ranks(graph, model, example) if options.ranks else graph


def plain_graph(
    model: nn.Module,
    example: Any,  # noqa: ANN401 - see `Example`
    options: SpaceOptions,
) -> tuple[nn.Module, ChannelGraph]:
    """Returns the network that is searched, a copy where weights are made plain, and its channel groups.

    Raises:
        TraceError: if it cannot be traced.
        ModelError: if it cannot be copied.

    Warns:
        UserWarning: if it is a copy.
    """
    plain = options.plain(model)
    if plain is model:
        return model, graph_of(model, example, options)
    warnings.warn(baked_words(model), UserWarning, stacklevel=callers())
    try:
        return plain, graph_of(plain, example, options)
    except ExampleError as error:
        msg = f"{error}. Its computed weights were made plain: if forward reads what they are computed from, set "
        raise ExampleError(
            f"{msg}bake = false in [space], which leaves such layers as they are"
        ) from error


def with_ranks(
    graph: ChannelGraph,
    model: nn.Module,
    example: Any,  # noqa: ANN401 - a tensor, a tuple, an Example
) -> ChannelGraph:
    """Returns a graph whose space has a rank, besides, for every layer that may become a product of two smaller ones.

    Convolutions of one conv group with a kernel of more than one position and stride 1 are split by method "spatial",
    other ones and linear layers by "output", so that a product with fewer MACs has fewer parameters as well.

    Args:
        graph: of the network, as `trace_channels` returns it.
        model: the network; not changed.
        example: a batch, as `trace_channels` takes it.

    Returns:
        The same groups, blocks and norms, with `ranks`, and `unranked`: why other layers stay whole.

    Raises:
        TraceError: if no layer can be split, or the network does not run with layers that are.
    """
    example = Example.of(example)
    layers, left = splittable(model, example)
    looked = {path: _Looked(path, layer) for path, layer in layers.items()}
    handles = [layers[path].register_forward_hook(look) for path, look in looked.items()]
    try:
        run_once(model, example)
    finally:
        for handle in handles:
            handle.remove()
    uses = defaultdict[str | int, float](float)
    for call in graph.calls:
        uses[call.weight] += call.times
    ranks: list[LayerRank] = []
    for path, look in looked.items():
        made = look.rank(uses[f"{path}.weight"])
        if isinstance(made, str):
            left[path] = made
        else:
            ranks.append(made)
    if not ranks:
        told = "; ".join(f"{path}: {reason}" for path, reason in list(left.items())[:5])
        msg = f"ranks = true in [space], and no layer of this network can be a product of smaller ones: {told or 'none'}"
        raise TraceError(f"{msg}; leave ranks out")
    return replace(graph, ranks=tuple(ranks), unranked=left)


class _Looked:
    """How a layer would be split, and on what sizes it is used: a forward hook."""

    def __init__(self, path: str, layer: Layer) -> None:
        kernel = () if isinstance(layer, nn.Linear) else (*layer.kernel_size, *layer.stride)
        plain = kernel[2:] == (1, 1) and kernel[:2] != (1, 1)
        self.method: Method = "spatial" if plain else "output"
        self.path, self.layer = path, layer
        self.full = full_ranks(layer, self.method)[0]
        self._two = skeleton(layer, self.method, (self.full,))
        self._positions = [0.0, 0.0]  # of what each of the two makes, over all calls
        self._between = 0.0  # bytes of one call, per rank

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        """Looks at one call."""
        del layer
        middle = self._two[0](inputs[0])
        self._positions[0] += middle.numel() / self.full
        self._positions[1] += output.numel() / self.layer.weight.shape[0]
        self._between = max(self._between, middle.numel() / self.full * middle.element_size())

    def rank(self, times: float) -> LayerRank | str:
        """Returns the layer as one that may be a product; or why it stays whole.

        Args:
            times: how often each element of its weight is used per image, as it was traced.
        """
        shapes = [tuple(layer.weight.shape) for layer in self._two.children()]  # pyright: ignore[reportCallIssue, reportArgumentType]
        if not times or not self._positions[1]:
            return "its weight is not traced as that of a layer"
        # Of all images of the example to one
        scale = times / self._positions[1]
        used = (self._positions[0] * scale, times)
        costs = [count * math.prod(shape) for count, shape in zip(used, shapes, strict=True)]
        whole = times * self.layer.weight.numel()
        highest = math.ceil(whole / (sum(costs) / self.full)) - 1
        if highest < 1:
            return "no rank of it saves anything"
        return LayerRank(
            path=self.path,
            method=self.method,
            weight=f"{self.path}.weight",
            full=self.full,
            highest=min(highest, self.full - 1) or 1,
            shapes=(shapes[0], shapes[1]),
            times=used,
            between=self._between * scale,
        )
