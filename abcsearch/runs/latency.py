"""Forward time in a run: measured once, kept in the folder, so that a continued run has the same budget and widths."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from abcsearch.channels.fast_widths import fast_widths
from abcsearch.channels.latency import (
    LatencyModel,
    measured_structures,
    timed_from_plain,
    where_of,
)
from abcsearch.channels.options import LatencyOptions
from abcsearch.channels.timed import TimedCosts
from abcsearch.errors import BudgetError, ModelError, RunError, TooSmallError
from abcsearch.formats import size_text
from abcsearch.rng import numpy_stream
from abcsearch.runs.out_of_reach import COSTS, why_not_smaller
from abcsearch.shortages import free_memory
from abcsearch.steps import doing

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray
    from torch import nn

    from abcsearch.budget import Constraint, Costs
    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.data.splits import Data
    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.runs.settings import SearchSettings
    from abcsearch.space import SearchSpace

_FILE = "latency.json"
T = TypeVar("T", bound=TimedCosts)
NEAR = 30  # structures near the budget that are measured
_OTHER_BATCH = 64  # is tried where a budget cannot be reached with a smaller one


def run_costs(
    model: nn.Module,
    graph: ChannelGraph,
    data: Data,
    settings: SearchSettings,
    folder: RunFolder | None,
) -> Costs:
    """Returns the costs that a run needs: with forward time, from the folder or measured now, if that is bounded.

    It is measured as well where the space offers the widths that are fast.

    Raises:
        ModelError: if it cannot be measured where the settings say.
        RunError: if the folder's times are damaged, of another network, or missing although there are trials.
    """
    if "latency_ms" not in settings.budget.bounds and not settings.space.hardware:
        return graph.costs
    kept = None if folder is None else folder.read_json(_FILE)
    begun = folder is not None and folder.journal.exists() and folder.journal.stat().st_size
    if kept is None and folder is not None and begun:
        msg = f"{folder.path / _FILE} is missing: trials were chosen by the times in it, and new times would be others; "
        msg += "restore it from a copy, or start a new run in another folder"
        raise RunError(msg)
    if kept is None or not (begun or _is_of(kept, settings)):
        _check_memory(graph, settings)
        doing(f"measuring forward time ({settings.latency.where})")
        levels = settings.space.levels
        costs = LatencyModel.measure(model, graph, data.example, settings.latency, levels=levels)
        return _near_budget(_offering(costs, graph, settings), model, graph, data, settings)
    try:
        costs = timed_from_plain(kept, graph)
        return costs if begun else _offering(costs, graph, settings)
    except (ModelError, AttributeError, TypeError, IndexError, KeyError, ValueError) as error:
        msg = f"{folder.path / _FILE if folder else _FILE} cannot be used: {error}; start a new run in another folder"
        raise RunError(msg) from error


def _is_of(kept: Any, settings: SearchSettings) -> bool:  # noqa: ANN401 - any JSON value
    """Returns whether what a folder without trials holds was measured as the settings say; earlier versions do not."""
    wanted = where_of(settings.latency)
    return isinstance(kept, dict) and {name: kept.get(name) for name in wanted} == wanted


def _check_memory(graph: ChannelGraph, settings: SearchSettings) -> None:
    """Raises ModelError if a batch of the full network takes more main memory than there is."""
    batch, free = settings.latency.batch, free_memory()
    wanted = batch * int(graph.costs.peak_activation([graph.costs.channels])[0])
    if free is not None and wanted > free:
        msg = f"latency: batch = {batch} takes {size_text(wanted)} of memory for activations of the full network, and "
        raise ModelError(f"{msg}{size_text(free)} are free; set a smaller batch in [latency]")


def _near_budget(
    costs: LatencyModel,
    model: nn.Module,
    graph: ChannelGraph,
    data: Data,
    settings: SearchSettings,
) -> LatencyModel:
    """Returns costs that know structures near the budget better, where it bounds forward time."""
    if "latency_ms" not in settings.budget.bounds:
        return costs
    space = settings.space.of(graph, (), costs.fast)
    try:
        constraint = settings.budget.bind(space, costs)
    except BudgetError:  # who binds it says so
        return costs
    structures = near_budget(constraint, NEAR)
    return costs.near(model, graph, data.example, structures, settings.latency)


def near_budget(constraint: Constraint, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Returns random structures inside a budget, grown into it as searchers do it, (count, n_dims)."""
    draws, space = numpy_stream(seed, "structures near a budget of forward time"), constraint.space
    rows = [constraint.repair(space.sample(draws), draws) for _ in range(count)]
    return np.array([constraint.fill(row, draws) for row in rows])


def _offering(costs: T, graph: ChannelGraph, settings: SearchSettings) -> T:
    """Returns costs that know which widths are fast, if the settings ask for these."""
    if not settings.space.hardware or not isinstance(costs, LatencyModel):
        return costs
    return replace(costs, fast=fast_widths(costs, graph, settings.space))


def keep_times(folder: RunFolder, costs: Costs | None) -> None:
    """Writes what was measured into the folder, unless it is there."""
    if isinstance(costs, TimedCosts) and folder.read_json(_FILE) != costs.to_plain():
        folder.write_json(_FILE, costs.to_plain())


def timed_words(costs: Costs | None) -> str:
    """Returns where the forward time that costs are of was measured, and how well it is known; "" without any."""
    if not isinstance(costs, LatencyModel):
        return ""
    return (
        f"forward time, as expected from measured layers: {LatencyOptions(**costs.where).where}; the full network "
        f"{costs.full_ms:.3g} ms, structures that were not measured within {100 * costs.error:.1f} % (median)"
    )


def bound(
    settings: SearchSettings,
    space: SearchSpace,
    costs: Costs,
    model: nn.Module,
    graph: ChannelGraph,
    data: Data,
) -> Constraint:
    """Returns the budget of a run bound to its space.

    Args:
        settings: of the run.
        space: its structures.
        costs: theirs.
        model: the network.
        graph: its channel groups.
        data: its data.

    Raises:
        BudgetError: as `Budget.bind`; of one below the smallest structure it says which layers keep that up, of forward
            time it says where that was measured, and what would help.
    """
    try:
        return settings.budget.bind(space, costs)
    except BudgetError as error:
        if isinstance(error, TooSmallError) and error.cost in COSTS:
            why = why_not_smaller(graph, space, settings.space, error.cost)
            raise TooSmallError(f"{error}{why}", error.cost) from error
        if "latency_ms" not in str(error):
            raise
        msg = f"{error}. Forward time is that of {settings.latency.where} ([latency]); the space has levels = "
        msg += f"{list(settings.space.levels)}"
        more = _help(settings, space, model, graph, data) if "cannot be reached" in msg else ""
        raise BudgetError(f"{msg}{more}") from error


def _help(
    settings: SearchSettings,
    space: SearchSpace,
    model: nn.Module,
    graph: ChannelGraph,
    data: Data,
) -> str:
    """Returns what the smallest structures take with whole blocks dropped, and in larger batches, as measured now."""
    smallest = np.array([space.at([0] * len(space))])[:, : len(graph.prunable)]
    tries: list[tuple[str, NDArray[np.int64], LatencyOptions]] = []
    if "block" not in settings.space.levels and graph.blocks:
        dropped = np.concatenate([smallest, np.zeros((1, len(graph.blocks)), np.int64)], axis=1)
        tries.append(('with "block" among them, whose blocks can go', dropped, settings.latency))
    if settings.latency.batch < _OTHER_BATCH:
        larger = replace(settings.latency, batch=_OTHER_BATCH)
        tries.append((f"in batches of {_OTHER_BATCH}", smallest, larger))
    told: list[str] = []
    for what, structures, options in tries:
        try:
            turns = measured_structures(model, graph, data.example, structures, options)
        except ModelError:  # advice only
            continue
        told.append(
            f"{what}, the smallest structure takes {turns.shares[0]:.3f} of the full one's time"
        )
    return "".join(f"; {text}" for text in told)
