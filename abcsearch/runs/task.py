"""What a search works on: where its networks come from, their space, the budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from abcsearch.channels.groups import ChannelGraph, trace_channels
from abcsearch.channels.source import Sliced, Source
from abcsearch.data.splits import Data
from abcsearch.errors import DataError, ModelError, RunError
from abcsearch.runs.latency import run_costs
from abcsearch.runs.ranking import rank_for_run

if TYPE_CHECKING:
    from torch import nn

    from abcsearch.budget import Constraint
    from abcsearch.runs.folder import RunFolder
    from abcsearch.runs.settings import SearchSettings
    from abcsearch.space import Candidate, SearchSpace


@dataclass(frozen=True, kw_only=True)
class Task:
    """A network to prune, and everything that follows from it and the settings.

    Attributes:
        source: where candidates' networks come from.
        data: its data.
        space: the structures.
        constraint: the budget bound to the space.
    """

    source: Source = field(repr=False)
    data: Data
    space: SearchSpace = field(repr=False)
    constraint: Constraint = field(repr=False)

    @property
    def graph(self) -> ChannelGraph:
        """The channel groups of the network."""
        return self.source.graph

    @classmethod
    def of(
        cls,
        model: nn.Module,
        data: Data,
        settings: SearchSettings,
        *,
        trained: bool = True,
        folder: RunFolder | None = None,
    ) -> Task:
        """Traces and ranks the network and binds the budget.

        Args:
            model: the network.
            data: its data.
            settings: of the run.
            trained: whether the weights are final; if not, the ranking is a draft (see `reranked`).
            folder: the run's, which may hold measured times.

        Raises:
            TraceError, CandidateError, RankingError, BudgetError: if the network, the space or the budget does not do.
        """
        if not isinstance(data, Data):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"data is a Data (Data.from_tensors, load_data), found {type(data).__name__}"
            raise DataError(msg)
        elsewhere = {str(tensor.device) for tensor in model.state_dict().values() if isinstance(tensor, torch.Tensor)}
        if elsewhere - {"cpu"}:
            where = ", ".join(sorted(elsewhere))
            msg = f"the model is on {where}; pass model.cpu(): the evaluator's device says where candidates run"
            raise ModelError(msg)
        options = settings.space
        graph = trace_channels(model, data.example, fixed=options.fixed)
        space = graph.space(options.alpha, options.step, options.levels, options.divisor, options.lowest)
        constraint = settings.budget.bind(space, run_costs(model, graph, data, settings, folder))
        ranking = rank_for_run(model, graph, data, settings, draft=not trained)
        return cls(source=Sliced(model, graph, ranking), data=data, space=space, constraint=constraint)

    def reranked(self, settings: SearchSettings) -> Task:
        """Returns the task after its model has been trained: only the ranking depends on the weights."""
        model, graph = self.source.model, self.graph
        return replace(self, source=Sliced(model, graph, rank_for_run(model, graph, self.data, settings)))

    def uniform(self) -> Candidate:
        """Returns the largest structure inside the budget whose layers all keep the same ratio, and all blocks.

        Widths are floor(ratio * channels), not bound to the choices of the space, so that it comes as close to the
        budget as one ratio can.

        Raises:
            RunError: if no ratio meets the budget.
        """
        channels = np.array(self.space.full)  # 1 for a block: always kept below
        ratios = np.unique(np.concatenate([np.arange(1, c + 1) / c for c in channels.tolist()]))
        structures = np.maximum(1, np.floor(ratios[:, None] * channels + 1e-9).astype(np.int64))
        inside = np.flatnonzero(self.constraint.violation(structures) == 0)
        if not len(inside):
            msg = "no uniform width meets the budget; widen its band"
            raise RunError(msg)
        return tuple(structures[inside[-1]].tolist())
