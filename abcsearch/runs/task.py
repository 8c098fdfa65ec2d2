"""What a search works on: where its networks come from, their space, the budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from abcsearch.channels.groups import ChannelGraph
from abcsearch.channels.source import Source
from abcsearch.channels.threshold import largest_within
from abcsearch.data.splits import Data
from abcsearch.errors import DataError, ExampleError, ModelError, RunError
from abcsearch.evaluation.base import evaluate
from abcsearch.evaluation.registry import make_evaluator
from abcsearch.example import Example
from abcsearch.runs.disk.early import early_path
from abcsearch.runs.latency import bound, run_costs
from abcsearch.runs.ranking import rank_for_run
from abcsearch.steps import doing
from abcsearch.transforms.ranked import plain_graph, sliced

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any

    from torch import nn

    from abcsearch.budget import Constraint
    from abcsearch.channels.orders import Ranking
    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.runs.settings import SearchSettings
    from abcsearch.space import Candidate, SearchSpace
    from abcsearch.trial import Evaluation


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a preparation has made besides the source.

    Attributes:
        starts: structures that the search begins with.
        facts: for the report.
        mark: what it is recognised by.
    """

    starts: tuple[Candidate, ...]
    facts: Mapping[str, Any]
    mark: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """A network to prune, and everything that follows from it and the settings.

    Attributes:
        source: where candidates' networks come from.
        data: its data.
        space: the structures.
        constraint: the budget bound to the space.
        settings: of the run.
        made: what was prepared besides the source; None where nothing was.
        early: the file of early weights of the base network; None where none are kept.
    """

    source: Source = field(repr=False)
    data: Data
    space: SearchSpace = field(repr=False)
    constraint: Constraint = field(repr=False)
    settings: SearchSettings = field(repr=False)
    made: Made | None = None
    early: Path | None = None

    @property
    def base(self) -> nn.Module:
        """The network as it was brought, or trained: what "full" means, whatever has been prepared."""
        return self.source.full

    @property
    def starts(self) -> tuple[Candidate, ...]:
        """The structures that a search begins with."""
        return () if self.made is None else self.made.starts

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
            model: the network; where weights are baked, the task has a copy.
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
        elsewhere = {
            str(tensor.device)
            for tensor in model.state_dict().values()
            if isinstance(tensor, torch.Tensor)
        }
        if elsewhere - {"cpu"}:
            where = ", ".join(sorted(elsewhere))
            msg = f"the model is on {where}; pass model.cpu(): the evaluator's device says where candidates run"
            raise ModelError(msg)
        options = settings.space
        doing("tracing the network")
        try:
            model, graph = plain_graph(model, data.example, options)
        except ExampleError as error:
            if isinstance(data.example, Example) or data.example.ndim != 3:
                raise
            msg = f"{error}. Images {data.train.shape} are taken as signals, (channels, length); grey images have a "
            msg += "channel: images[:, None]"
            raise ExampleError(msg) from error
        costs = run_costs(model, graph, data, settings, folder)
        space = options.of(graph, settings.criteria, getattr(costs, "fast", None))
        constraint = bound(settings, space, costs, model, graph, data)
        ranking = rank_for_run(model, graph, data, settings, draft=not trained)
        source = sliced(model, graph, ranking)
        task = cls(source=source, data=data, space=space, constraint=constraint, settings=settings)
        return task if folder is None or not trained else task.keeping(folder)

    def rank(self, model: nn.Module) -> Ranking:
        """Returns the ranking of a network of the same graph by the run's criterion."""
        return rank_for_run(model, self.graph, self.data, self.settings)

    def evaluator(self, source: Source) -> Callable[[Candidate, int], Evaluation]:
        """Returns the run's evaluator of structures whose networks come from a source; one that fails says so.

        Raises:
            ConfigError: if the evaluator is an object that the caller brought, which knows its own networks.
        """
        named = self.settings.evaluator
        return partial(evaluate, make_evaluator(named.name, source, self.data, **named.options))

    def reranked(self) -> Task:
        """Returns the task after its model has been trained: only the ranking depends on the weights."""
        return replace(self, source=sliced(self.base, self.graph, self.rank(self.base)))

    def keeping(self, folder: RunFolder) -> Task:
        """Returns the task whose early weights, if there are any, are kept in a folder."""
        return replace(self, early=early_path(folder.path, getattr(self.settings, "rewind", 0)))

    def prepared(self, source: Source, made: Made) -> Task:
        """Returns the task with another source; what is full stays so."""
        return replace(self, source=source.beside(self.base), made=made)

    def uniform(self, *, nearest: bool = False) -> Candidate:
        """Returns the largest structure inside the budget whose layers all keep the same ratio, whole, and all blocks.

        Widths are floor(ratio * channels), not bound to the choices of the space, so that it comes as close to the
        budget as one ratio can. Where criteria are searched, the first one chooses the channels.

        Args:
            nearest: whether it is the one that misses the budget least where none meets it, as where blocks have to go.

        Raises:
            RunError: if no ratio meets the budget, and the nearest is not asked for.
        """
        full = np.array(self.space.full)
        widths = np.array([dimension.kind == "width" for dimension in self.space.dimensions])
        channels = full[widths].tolist()
        ratios = np.unique(np.concatenate([np.arange(1, c + 1) / c for c in channels or [1]]))
        # Blocks, ranks and criteria stay as they are in the full network
        kept = np.maximum(1, np.floor(ratios[:, None] * full + 1e-9).astype(np.int64))
        structures = np.where(widths, kept, full)
        # From the widest: the first that is inside
        uniform = largest_within(structures[::-1], self.constraint)
        if not nearest and self.constraint.violation([uniform])[0]:
            msg = "no structure whose layers all keep the same ratio, with all blocks, is inside the budget"
            raise RunError(msg)
        return uniform
