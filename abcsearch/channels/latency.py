"""Measured forward time of modules on a device, and a model of it for budgets."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abcsearch.channels.options import LatencyOptions
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.errors import ModelError
from abcsearch.example import repeated, run_on

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray
    from torch import nn

    from abcsearch.channels.cost import CostModel
    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.example import Inputs

_RATIOS = np.arange(1, 11) / 10  # keep ratios whose networks are measured for a model


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Runs a block with `count` torch threads and puts the number back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_latency(
    models: Sequence[nn.Module],
    example_input: Inputs,
    *,
    threads: int = 1,
    repeats: int = 30,
    warmup: int = 5,
) -> list[float]:
    """Returns the median forward time of each model in milliseconds; see `forward_times`.

    Raises:
        ModelError: if threads or repeats are below 1, or warmup below 0.
    """
    times = forward_times(models, example_input, threads=threads, repeats=repeats, warmup=warmup)
    return [statistics.median(passes) for passes in times]


def forward_times(
    models: Sequence[nn.Module],
    example_input: Inputs,
    *,
    threads: int = 1,
    repeats: int = 30,
    warmup: int = 5,
    seconds: float = math.inf,
) -> list[list[float]]:
    """Returns the forward times of each model in milliseconds, in the order of measuring.

    The models take turns, so that drift of the machine's speed hits all of them alike. They run in evaluation mode
    without gradients, on the device and at the batch size of `example_input`, and are left in the mode they were in.

    Args:
        models: networks on the device of the input.
        example_input: one batch.
        threads: torch threads (CPU).
        repeats: timed passes per model.
        warmup: passes before them that do not count; one is enough where they take longer than a tenth of `seconds`.
        seconds: after this time no new turn begins, once three have been timed.

    Raises:
        ModelError: if threads or repeats are below 1, or warmup below 0.
    """
    if min(threads, repeats) < 1 or warmup < 0:
        msg = f"latency needs at least 1 thread, 1 repeat and 0 warm-up passes, found {threads=}, {repeats=}, {warmup=}"
        raise ModelError(msg)
    modes = [(module, module.training) for model in models for module in model.modules()]
    times: list[list[float]] = [[] for _ in models]
    try:
        with torch.inference_mode(), torch_threads(threads):
            for counts in _turns(warmup, repeats, seconds):
                for model, passes in zip(models, times, strict=True):
                    passed = _timed(model.eval(), example_input)
                    passes += [1000 * passed] if counts else []
    finally:
        for module, mode in modes:
            module.training = mode
    return times


def _turns(warmup: int, repeats: int, seconds: float) -> Iterator[bool]:
    """Yields once per turn, whether it counts; as many as are wanted, or as fit into a time."""
    begun = time.perf_counter()
    for turn in range(warmup):
        if turn == 0 or time.perf_counter() - begun < seconds / 10:
            yield False
    for turn in range(repeats):
        if turn < 3 or time.perf_counter() - begun < seconds:
            yield True


@dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """The forward time of candidates, from times of layers that are measured once per width.

    Networks of ten uniform keep ratios are sliced and timed, layer by layer. A layer of a candidate takes as long as
    the same layer did when it had as much work (multiply-accumulates); in between, time is interpolated. All that is
    not a layer (normalisation, activations, overhead) is one more entry, by the work of the whole network. Times never
    fall with work, so that they can bound a budget.

    Attributes:
        costs: closed-form costs of the network.
        tables: (work, milliseconds) of the rest and of every layer of `costs.layers`, both ascending.
    """

    costs: CostModel
    tables: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]

    @classmethod
    def measure(
        cls,
        model: nn.Module,
        graph: ChannelGraph,
        example: Inputs,
        options: LatencyOptions | None = None,
    ) -> LatencyModel:
        """Measures the networks of ten keep ratios, 0.1 ... 1; takes ten times `repeats` passes, twice.

        Args:
            model: the network; not changed.
            graph: its channel groups.
            example: one image, (1, channels, height, width), on the device that counts.
            options: how to measure.
        """
        options = options or LatencyOptions()
        batch = repeated(example, options.batch)
        channels = np.array([group.channels for group in graph.prunable])
        candidates = np.maximum(1, np.floor(_RATIOS[:, None] * channels + 1e-9)).astype(np.int64)
        ranking = rank_channels(model, graph, "random")
        networks = [
            slice_model(model, graph, candidate, ranking) for candidate in candidates.tolist()
        ]
        whole = np.array(
            measure_latency(networks, batch, threads=options.threads, repeats=options.repeats)
        )
        owners = [name.rpartition(".")[0] for name in graph.costs.layers]
        shares = np.array([_layer_shares(network, batch, owners, options) for network in networks])
        # A module with two weights is one time for both.
        shares /= np.array([owners.count(owner) for owner in owners])
        layers = shares * whole[:, None]
        times = np.concatenate([whole[:, None] - layers.sum(axis=1, keepdims=True), layers], axis=1)
        work = np.concatenate(
            [graph.costs.macs(candidates)[:, None], graph.costs.layer_macs(candidates)], axis=1
        )
        tables = tuple(
            _ascending(work[:, k], times[:, k], from_zero=k > 0) for k in range(work.shape[1])
        )
        return cls(costs=graph.costs, tables=tables)

    def latency_ms(self, candidates: ArrayLike) -> NDArray[np.float64]:
        """Returns the expected forward time in milliseconds: (n, n_dims) candidates to (n,) float64."""
        work = np.concatenate(
            [self.costs.macs(candidates)[:, None], self.costs.layer_macs(candidates)], axis=1
        )
        return np.sum(
            [
                np.interp(amounts, *table)
                for amounts, table in zip(work.T, self.tables, strict=True)
            ],
            axis=0,
        )

    def macs(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """As `CostModel.macs`."""
        return self.costs.macs(candidates)

    def flops(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """As `CostModel.flops`."""
        return self.costs.flops(candidates)

    def params(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """As `CostModel.params`."""
        return self.costs.params(candidates)

    def peak_activation(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """As `CostModel.peak_activation`."""
        return self.costs.peak_activation(candidates)

    def to_plain(self) -> dict[str, Any]:
        """Returns the measured times as plain JSON values; `from_plain` is the inverse."""
        names = ["(rest)", *self.costs.layers]
        return {
            name: [list(work), list(times)]
            for name, (work, times) in zip(names, self.tables, strict=True)
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], costs: CostModel) -> LatencyModel:
        """Returns the model that `to_plain` described, for the same network.

        Raises:
            ModelError: if the times are of a network with other layers.
        """
        names = ["(rest)", *costs.layers]
        if set(plain) != set(names):
            other = ", ".join(sorted(set(plain) ^ set(names))[:3])
            msg = f"the measured times are of another network; it differs in {other}"
            raise ModelError(msg)
        return cls(
            costs=costs,
            tables=tuple((tuple(plain[name][0]), tuple(plain[name][1])) for name in names),
        )


def _ascending(
    work: NDArray[np.int64], times: NDArray[np.float64], *, from_zero: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns distinct work, ascending, and the time of each, never falling; no work takes no time if `from_zero`."""
    # Here, as elsewhere: scikit-learn takes two seconds to import, which no worker needs.
    from sklearn.isotonic import isotonic_regression

    amounts = np.unique(work)
    # Noise is averaged out by the nearest times that never fall.
    medians = [max(0.0, float(np.median(times[work == amount]))) for amount in amounts]
    means = isotonic_regression(medians)
    start = [0.0] if from_zero and amounts[0] > 0 else []
    return (*start, *amounts.astype(float).tolist()), (*start, *means.tolist())


def _layer_shares(
    network: nn.Module, batch: Inputs, owners: Sequence[str], options: LatencyOptions
) -> NDArray[np.float64]:
    """Returns what share of a pass each module takes itself, without other modules that are called in it, (n,)."""
    spent: dict[str, float] = defaultdict(float)
    running: list[
        tuple[float, float]
    ] = []  # when a module began, and what modules called in it took
    cuda = batch.device.type == "cuda"

    def now() -> float:
        if cuda:
            torch.cuda.synchronize(batch.device)
        return time.perf_counter()

    def begin(*_: Any) -> None:  # noqa: ANN401 - a hook
        running.append((now(), 0.0))

    def end(name: str) -> None:
        start, inner = running.pop()
        took = now() - start
        spent[name] += took - inner
        if running:
            running[-1] = (running[-1][0], running[-1][1] + took)

    modules = dict(network.named_modules())
    for name in {*owners} & {*modules}:
        modules[name].register_forward_pre_hook(begin)
        modules[name].register_forward_hook(lambda *_, own=name: end(own))
    passes: list[NDArray[np.float64]] = []
    with torch.inference_mode(), torch_threads(options.threads):
        for _ in range(1 + options.repeats):
            spent.clear()
            seconds = _timed(network.eval(), batch)
            passes.append(np.array([spent[owner] for owner in owners]) / seconds)
    return np.median(passes[1:], axis=0)


def _timed(model: nn.Module, example_input: Inputs) -> float:
    """Returns the wall-clock seconds of one forward pass, the device idle before and after."""
    cuda = example_input.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(example_input.device)
    start = time.perf_counter()
    run_on(model, example_input)
    if cuda:
        torch.cuda.synchronize(example_input.device)
    return time.perf_counter() - start
