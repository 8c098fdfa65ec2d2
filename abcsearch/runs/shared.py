"""What the runs of several budgets have in common, made once: network, ranking, evaluator, measured times."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from abcsearch.bounds import bounds_text
from abcsearch.channels.timed import TimedCosts
from abcsearch.errors import BudgetError
from abcsearch.files import link
from abcsearch.runs.front_folder import run_folder
from abcsearch.runs.latency import bound, run_costs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from abcsearch.budget import Constraint, Costs
    from abcsearch.evaluation.base import Evaluator
    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.runs.front_settings import Front
    from abcsearch.runs.settings import SearchSettings
    from abcsearch.runs.task import Task


class Shared:
    """What the runs of a front have in common: made by the first of them, taken by the others.

    Attributes:
        task: of the first run, with its trained network; None before.
        evaluator: of the first run.
    """

    def __init__(self, front: Front[Any], folder: RunFolder) -> None:
        """Begins with nothing; the folder is that of the front."""
        self._folder = folder
        self._checked = False
        self._base: Path | None = None
        self.task: Task | None = None
        self.evaluator: Evaluator | None = None
        self._front = front
        self._timed: TimedCosts | None = None

    def task_for(
        self, settings: SearchSettings, folder: RunFolder, make: Callable[[], Task]
    ) -> Task:
        """Returns the task of a budget: of what the first run has made, or else made now.

        What is prepared may follow from the budget: with a preparation, every run has a task of its own. The first
        task says whether every budget can be met, and that no two are the same on this network.

        Args:
            settings: of the run of this budget.
            folder: its folder.
            make: makes its task; called where there is nothing to share.

        Raises:
            BudgetError: if a budget cannot be met, naming it by its place, or if two are the same.
            AbcSearchError: whatever else `make` raises.
        """
        index = self._front.budgets.index(settings.budget)
        if self.task is None or settings.prepare is not None:
            with self._named(index):
                task = make()
        else:
            constraint = self._bound(self.task, index, folder)
            task = replace(self.task, constraint=constraint, settings=settings)
        if not self._checked:
            self._checked = True
            self._check(task)
        return task

    def _check(self, task: Task) -> None:
        """Raises BudgetError unless every budget can be met on the network of a task, and no two are the same there."""
        seen: dict[Any, int] = {}
        for index, budget in enumerate(self._front.budgets):
            folder = run_folder(self._folder, self._front.names[index])
            constraint = self._bound(task, index, folder)
            limits = tuple((limit.name, limit.low, limit.high) for limit in constraint.limits)
            other = seen.setdefault(limits, index)
            if other != index:
                first = bounds_text(self._front.budgets[other].bounds)
                msg = f"budgets[{other}] ({first}) and budgets[{index}] ({bounds_text(budget.bounds)}) "
                raise BudgetError(f"{msg}are the same on this network: leave one out")

    def _bound(self, task: Task, index: int, folder: RunFolder) -> Constraint:
        """Returns a budget, by its place in the list, bound to the space of a task; raises BudgetError naming it."""
        settings = self._front.run(index)
        costs = self._costs(task, settings, folder)
        with self._named(index):
            return bound(settings, task.space, costs, task.base, task.graph, task.data)

    @contextlib.contextmanager
    def _named(self, index: int) -> Iterator[None]:
        """Has what is wrong with a budget say which of the list it is."""
        try:
            yield
        except BudgetError as error:
            bounds = bounds_text(self._front.budgets[index].bounds)
            raise BudgetError(f"budgets[{index}] ({bounds}): {error}") from error

    def holds(self, task: Task) -> bool:
        """Returns whether the networks of a task are those that the first run has trained and ranked."""
        return self.task is not None and task.source is self.task.source

    def keep(self, task: Task, evaluator: Evaluator, base: Path | None = None) -> None:
        """Takes what the first run has made, and the file of its trained network."""
        self.task, self.evaluator, self._base = (
            self.task or task,
            self.evaluator or evaluator,
            self._base or base,
        )

    def give_base(self, folder: RunFolder) -> None:
        """Has a run whose folder has its run.json take the trained network of the first one."""
        if self._base is not None:
            link(self._base, folder.inside(folder.base.name))
            for early in self._base.parent.glob("early-*.safetensors"):
                link(early, folder.inside(early.name))

    def _costs(self, task: Task, settings: SearchSettings, folder: RunFolder) -> Costs:
        """Returns the costs of a budget; forward time is measured once for all."""
        if "latency_ms" not in settings.budget.bounds and not settings.space.hardware:
            return task.graph.costs
        if self._timed is None:
            there = task.constraint.costs
            costs = there if isinstance(there, TimedCosts) else None
            costs = costs or run_costs(task.base, task.graph, task.data, settings, folder)
            assert isinstance(costs, TimedCosts)
            self._timed = costs
        return self._timed
