"""The standard loop of pruning: some channels go, what is left is trained, and again, down to the budget."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from abcsearch.budget import Constraint
from abcsearch.channels.fixed import Fixed, ranked_by
from abcsearch.channels.gates import gate
from abcsearch.channels.putting_back import put_back
from abcsearch.channels.slicing import slice_model
from abcsearch.channels.threshold import largest_within, threshold_path
from abcsearch.errors import PreparationError
from abcsearch.preparation.base import Preparation, Prepared, loaded
from abcsearch.preparation.options import IterateOptions
from abcsearch.preparation.structures import INSIDE, check_criterion, check_norms
from abcsearch.rng import derived_seed
from abcsearch.searchers.registry import check_searcher_options, make_searcher
from abcsearch.training.checks import check_training
from abcsearch.training.lesson import Supervised
from abcsearch.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from abcsearch.channels.source import Source
    from abcsearch.preparation.base import Pruning, Tensors, Trainer
    from abcsearch.space import Candidate, SearchSpace


class Iterate(Preparation):
    """In every round a structure is chosen, cut out, and trained for some epochs; the next round starts from that.

    Every structure is inside the one before. Its budget: the share of the full network's costs that is asked for, to
    the power of number / rounds, so that every round removes the same share of what there is. Channels are scored anew
    in every round, by the run's criterion; the structure is that of one threshold on the scores over their mean in each
    layer, or the best that a searcher finds, by the run's evaluator. Trained is the slice itself, which takes less time
    from round to round, and what it has learned is written back to where it was cut out. The search begins with the
    structure of the last round. Channels that went are no longer read; they are ranked by the round in which they went.

    Source: the loop of the survey of structured pruning, section 3.1.1; Han et al., Learning both weights and
    connections (NeurIPS 2015); Molchanov et al., Pruning convolutional neural networks (ICLR 2017).

    Differences from the paper:
        - Budgets are geometric. The papers above remove a number, or a share, that is set by hand, until accuracy suffers.
        - Blocks stay: only channels go in the rounds.
    """

    Options: ClassVar[type] = IterateOptions
    options: IterateOptions

    def check(self, task: Pruning) -> None:
        """Raises unless there is one criterion, the recipe suits the data, and rounds can get down to the budget.

        Raises:
            PreparationError: if the search has criteria to choose from, norms are over channels, or the budget asks
                for blocks to be dropped.
            SearcherError, ConfigError: if searcher, evaluator or recipe do not do.
        """
        check_criterion("iterate", task, "the run's criterion in every round")
        check_norms("iterate", task)
        recipe = self.options.training
        taught = recipe.taught
        check_training(recipe, task.data.train, task.data.objective, taught=taught, scored=False)
        name, options = self.options.searching
        if name:
            check_searcher_options(name, options)
            task.evaluator(Fixed(task.base, task.graph, task.rank(task.base)))
        limits = tuple(replace(limit, low=0) for limit in task.constraint.limits)
        narrowest = _narrowed(task.space, task.space.at(task.space.last_indices)).dimensions
        least = tuple(d.choices[0] for d in narrowest)
        if not Constraint(task.space, limits).allows(least):
            msg = "iterate keeps all blocks, and the narrowest layers are still above the budget; allow narrower ones "
            msg += "(space.lowest), raise the budget, or take a search without rounds"
            raise PreparationError(msg)

    def prepare(self, task: Pruning, trainer: Trainer) -> Prepared:
        """Goes through the rounds; returns the network as it is after them, and the structure of the last."""
        rounds, recipe = _Rounds(task, trainer, self.options), self.options.training
        losses: list[list[float]] = []
        for number in range(1, self.options.rounds + 1):
            trained = rounds.next(number)
            losses.append([trained.losses[0], trained.losses[-1]])
        facts = {
            "epochs": self.options.rounds * recipe.epochs,
            "rounds": self.options.rounds,
            "structures are chosen by": self.options.searching[0] or "threshold",
            "loss of the first and the last epoch, by round": losses,
            **rounds.facts(),
        }
        source = Fixed(rounds.network, task.graph, ranked_by("iterate", rounds.scores()))
        return Prepared(source=source, starts=[rounds.structure], facts=facts)

    def source(self, task: Pruning, modules: Mapping[str, Tensors]) -> Source:
        """Returns the trained network as a source, its channels ranked by when they went."""
        return Fixed.restored(loaded(task.base, modules["network"]), task.graph, modules["ranking"])


class _Rounds:
    """What rounds have left so far.

    Attributes:
        network: of full size; what its structure does not keep is not read.
        structure: what is left of it.
    """

    def __init__(self, task: Pruning, trainer: Trainer, options: IterateOptions) -> None:
        self._task, self._trainer, self._options = task, trainer, options
        self.network = copy.deepcopy(task.base)
        self.structure = task.space.at(task.space.last_indices)
        # Rounds; 0: is left
        self._went = [np.zeros(group.channels, dtype=np.int64) for group in task.graph.prunable]
        self._chosen: list[Candidate] = []

    def next(self, number: int) -> Any:  # noqa: ANN401 - a Trained
        """Goes through one round, counted from 1; returns its training."""
        task, options = self._task, self._options
        scores = self.scores()
        ranking = ranked_by("iterate", scores)
        space = _narrowed(task.space, self.structure)
        constraint = _eased(task.constraint, space, number / options.rounds)
        self.structure = largest_within(threshold_path(self._over_mean(scores), space), constraint)
        if options.searching[0]:
            source = Fixed(self.network, task.graph, ranking)
            self.structure = self._searched(source, space, constraint, number)
        self._chosen.append(self.structure)
        sliced = slice_model(self.network, task.graph, self.structure, ranking)
        recipe = options.training
        teacher = copy.deepcopy(task.base) if recipe.taught else None
        lesson = Supervised(sliced, objective=task.data.objective, teacher=teacher)
        trained = self._trainer.train(lesson, recipe, name=f"round-{number}")
        put_back(self.network, task.graph, self.structure, ranking, sliced)
        for index, (went, width) in enumerate(zip(self._went, self.structure, strict=False)):
            gone = np.ones(len(went), dtype=bool)
            gone[ranking.kept(index, width)] = False
            went[gone & (went == 0)] = number
        self._silence()
        self.network.eval()
        return trained

    def scores(self) -> list[NDArray[np.float64]]:
        """Returns per group (channels,) the criterion's scores now; of those that went below, the first the lowest."""
        every: list[NDArray[np.float64]] = []
        for scores, went in zip(self._task.rank(self.network).scores, self._went, strict=True):
            lowest = float(scores[went == 0].min())
            every.append(np.where(went == 0, scores, lowest - 1 - self._options.rounds + went))
        return every

    def _over_mean(self, scores: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
        """Returns scores over the mean size of those that are left in their group, as `global_threshold` has them."""
        every: list[NDArray[np.float64]] = []
        for score, went in zip(scores, self._went, strict=True):
            mean = float(np.abs(score[went == 0]).mean())
            every.append(score / mean if mean else score)
        return every

    def _searched(
        self, source: Source, space: SearchSpace, constraint: Constraint, number: int
    ) -> Candidate:
        """Returns the best structure that a searcher finds, beginning with that of the threshold."""
        (name, options), seed = (
            self._options.searching,
            derived_seed(self._trainer.seed, "iterate", number),
        )
        options = {
            "initial": [self.structure] if constraint.allows(self.structure) else [],
            **options,
        }
        searcher = make_searcher(name, space, constraint, seed=seed, **options)
        evaluator = self._task.evaluator(source)
        trials: list[Trial] = []

        def tried(candidate: Candidate) -> Trial:
            trials.append(
                Trial(
                    len(trials),
                    candidate,
                    evaluator(candidate, derived_seed(seed, "trial", len(trials))),
                )
            )
            return trials[-1]

        searcher.know([tried(probe) for probe in searcher.probes()])
        first = len(trials)
        last = first + self._options.trials
        while len(trials) < last and (asked := searcher.ask(last - len(trials))):
            searcher.tell([tried(candidate) for candidate in asked])
        good = [trial for trial in trials[first:] if trial.evaluation.fitness is not None]
        if not good:
            failures = {str(trial.evaluation.failure) for trial in trials[first:]} or {
                f"{name} proposed none"
            }
            msg = f"iterate: no structure of round {number} could be scored: {'; '.join(sorted(failures))}"
            raise PreparationError(msg)
        return max(good, key=lambda trial: trial.fitness).candidate

    def _silence(self) -> None:
        """Has nothing read the channels that went."""
        gates = [torch.from_numpy(went == 0).float() for went in self._went]
        tensors = dict([*self.network.named_parameters(), *self.network.named_buffers()])
        with torch.no_grad():
            for name, tensor in gate(self.network, self._task.graph, gates).items():
                tensors[name].copy_(tensor)

    def facts(self) -> dict[str, Any]:
        """Returns what a report says of the structures: costs of each as a share of the full network's."""
        rows, full = np.array(self._chosen), [self._task.space.full]
        return {
            f"{limit.name} of the full network's, by round": (
                limit.cost(rows) / limit.cost(full)[0]
            ).tolist()
            for limit in self._task.constraint.limits
        } | {INSIDE: self._task.constraint.allows(self.structure)}


def _narrowed(space: SearchSpace, structure: Candidate) -> SearchSpace:
    """Returns the structures of a space inside one of them, with all of its blocks."""
    dimensions = [
        replace(dimension, choices=tuple(c for c in dimension.choices if c <= value))
        if dimension.kind == "width"
        else replace(dimension, choices=(value,))
        for dimension, value in zip(space.dimensions, structure, strict=True)
    ]
    return replace(space, dimensions=tuple(dimensions))


def _eased(constraint: Constraint, space: SearchSpace, power: float) -> Constraint:
    """Returns a budget on the way: upper bounds are shares of the full costs to a power, lower ones only the last's."""
    limits = []
    for limit in constraint.limits:
        full = float(limit.cost([space.full])[0])
        if power < 1:
            limit = replace(limit, low=0, high=max(limit.high, full * (limit.high / full) ** power))
        limits.append(limit)
    return Constraint(space, tuple(limits), constraint.costs)
