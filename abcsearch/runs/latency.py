"""Budgets of forward time in a run: measured once, kept in the folder, so that a continued run has the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abcsearch.channels.latency import LatencyModel
from abcsearch.errors import ModelError, RunError
from abcsearch.steps import doing

if TYPE_CHECKING:
    from torch import nn

    from abcsearch.budget import Costs
    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.data.splits import Data
    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.runs.settings import SearchSettings

_FILE = "latency.json"


def run_costs(
    model: nn.Module,
    graph: ChannelGraph,
    data: Data,
    settings: SearchSettings,
    folder: RunFolder | None,
) -> Costs:
    """Returns the costs that a run's budget needs: with times of layers, from the folder or measured now.

    Raises:
        RunError: if the folder's times are damaged, of another network, or missing although there are trials.
    """
    if "latency_ms" not in settings.budget.bounds:
        return graph.costs
    kept = None if folder is None else folder.read_json(_FILE)
    if (
        kept is None
        and folder is not None
        and folder.journal.exists()
        and folder.journal.stat().st_size
    ):
        msg = f"{folder.path / _FILE} is missing: trials were chosen by the times in it, and new times would be others; "
        msg += "restore it from a copy, or start a new run in another folder"
        raise RunError(msg)
    if kept is None:
        doing("measuring the forward time of the network's layers")
        return LatencyModel.measure(model, graph, data.example, settings.latency)
    try:
        return LatencyModel.from_plain(kept, graph.costs)
    except (ModelError, AttributeError, TypeError, IndexError, KeyError, ValueError) as error:
        msg = f"{folder.path / _FILE if folder else _FILE} cannot be used: {error}; start a new run in another folder"
        raise RunError(msg) from error


def keep_times(folder: RunFolder, costs: Costs | None) -> None:
    """Writes what was measured into the folder, unless it is there."""
    if isinstance(costs, LatencyModel) and folder.read_json(_FILE) is None:
        folder.write_json(_FILE, costs.to_plain())
