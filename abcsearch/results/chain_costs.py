"""What the links of a chain cost, how good and how fast they are."""

from __future__ import annotations

import statistics
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.latency import forward_times
from abcsearch.errors import ExportError, one_line
from abcsearch.example import Example, repeated
from abcsearch.exporting import export, open_export
from abcsearch.exporting.checking import Frozen
from abcsearch.results.forward import BATCHES
from abcsearch.results.intervals import SHARES, packed, packed_draws
from abcsearch.results.links import Chain, Link, Time
from abcsearch.runs.disk.weights import state_bytes
from abcsearch.training.objectives import find_objective
from abcsearch.training.scoring import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from abcsearch.data.splits import Data

    Open = Callable[[Path, Link], nn.Module]

_SECONDS = 10.0  # for all networks together, per runtime and batch


def measured(folder: Path, opened: Open, before: Link | None, data: Data) -> dict[str, Any]:
    """Returns costs and scores of what a folder holds, by the names of `Link`.

    Args:
        folder: of the link.
        opened: returns the network of a folder and its link.
        before: the link before it; None of the first.
        data: on whose test images it is scored.
    """
    bare = Link(
        **dict.fromkeys(("macs", "params", "nonzero", "weight_bytes", "file_bytes"), 0),
        **dict.fromkeys(("name", "identity", "format"), ""),
        test={},
        files={path.name: "" for path in folder.iterdir()},
    )
    network = opened(folder, bare)
    goal = find_objective(data.objective)
    tally = Tally(goal, kept=goal.headline, resampled=True)
    tally.add(network, data.test)
    values = tally.values()
    shares = values is not None and values.ndim == 1 and bool(((values == 0) | (values == 1)).all())
    packed_file = folder / "model.compressed"
    return {
        **_costs(network, before, data),
        "weight_bytes": packed_file.stat().st_size
        if packed_file.exists()
        else state_bytes(network),
        "test": tally.means(),
        "hits": tuple(packed(values.bool().numpy())) if shares and values is not None else (),
        "resampled": {}
        if goal.headline in SHARES
        else {
            metric: packed_draws(draws, tally.count)
            for metric, draws in tally.resampled().items()
            if metric == goal.headline
        },
    }


def _costs(network: nn.Module, before: Link | None, data: Data) -> dict[str, int]:
    """Returns MACs, parameters, and how many of these are not 0; of a traced computation those of the link before it.

    Raises:
        AbcSearchError: if the network cannot be traced.
    """
    if isinstance(network, Frozen):
        assert before is not None
        weights = [value for value in network.state_dict().values() if value.dtype == torch.int8]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        whole = sum(weight.numel() for weight in weights)
        return {
            "macs": before.macs,
            "params": before.params,
            "nonzero": before.params - zeros if whole else before.nonzero,
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations without a rule: nothing is pruned here
        graph = trace_channels(network, data.example)
    macs = int(graph.costs.macs([graph.space(1.0).full])[0])
    parameters = list(network.parameters())
    return {
        "macs": macs,
        "params": sum(parameter.numel() for parameter in parameters),
        "nonzero": sum(int((parameter != 0).sum()) for parameter in parameters),
    }


def timed(chain: Chain, opened: Open, data: Data) -> Chain:
    """Returns a chain with the forward times of all links, in turns, so that a busy machine slows all of them alike."""
    networks = [opened(chain.place(number), link) for number, link in enumerate(chain.links)]
    times = [
        Time(runtime="torch", batch=batch, median_ms=_medians(networks, data, batch, chain.threads))
        for batch in BATCHES
    ]
    with tempfile.TemporaryDirectory() as name:
        made = [
            _session(network, Path(name) / f"{i}.onnx", data) for i, network in enumerate(networks)
        ]
        untimed = tuple(why if isinstance(why, str) else "" for why in made)
        sessions = [session if isinstance(session, torch.nn.Module) else None for session in made]
        there = [session for session in sessions if session is not None]
        for batch in BATCHES if there else ():
            medians = iter(_medians(there, data, batch, chain.threads))
            every = tuple(None if session is None else next(medians) for session in sessions)
            times.append(Time(runtime="onnxruntime", batch=batch, median_ms=every))
    return replace(chain, times=tuple(times), untimed=untimed if any(untimed) else ())


def _session(network: nn.Module, path: Path, data: Data) -> nn.Module | str | None:
    """Returns a network as onnxruntime computes it; why not, where it cannot be written, or nothing is installed."""
    try:
        tolerance = 0.05 if isinstance(network, Frozen) else 1e-3
        export(network, path, example_input=data.example, tolerance=tolerance)
        return open_export(path).network
    except ExportError as error:
        return one_line(str(error).replace(str(path), path.name))


def _medians(
    networks: Sequence[nn.Module], data: Data, batch: int, threads: int
) -> tuple[float, ...]:
    """Returns the median forward time of each network in milliseconds."""
    images = repeated(data.example, batch)
    images = images.mapped(_row_by_row) if isinstance(images, Example) else images.contiguous()
    times = forward_times(networks, images, threads=threads, seconds=_SECONDS)
    return tuple(statistics.median(each) for each in times)


def _row_by_row(leaf: Any) -> Any:  # noqa: ANN401 - arguments are anything
    return leaf.contiguous() if isinstance(leaf, torch.Tensor) else leaf
