"""What every searcher keeps where a criterion per width is searched as well (kind "criterion")."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from abcsearch.budget import Budget
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing.toys import SearcherPlay, refused, through_json
from abcsearch.trial import Evaluation, Trial

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from abcsearch.searchers.base import Searcher
    from abcsearch.space import Candidate

LABELS = ("a", "b", "c")


@dataclass(frozen=True)
class ShapeCosts:
    """Costs of a chain of layers, which no criterion changes."""

    space: SearchSpace

    def macs(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns the sum of products of neighbouring widths, (n,) int64."""
        rows = np.asarray(candidates, dtype=np.int64)[:, self.space.ordered]
        return (rows[:, :-1] * rows[:, 1:]).sum(axis=1) + rows.sum(axis=1)

    def flops(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns twice the macs."""
        return 2 * self.macs(candidates)

    def params(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns the macs."""
        return self.macs(candidates)


def criteria_space(
    widths: int = 4, labels: tuple[str, ...] = LABELS, choices: int = 8
) -> SearchSpace:
    """Returns a space of widths, one of them with a single choice, a block switch, and a criterion for each width."""
    shapes = [
        Dimension(f"w{i}", "width", tuple(range(1, choices + 1)), choices + 2)
        for i in range(widths)
    ]
    shapes.append(Dimension("fixed", "width", (5,)))
    chosen = [
        Dimension(f"criterion of w{i}", "criterion", (0, 1, 2), of=f"w{i}", labels=labels)
        for i in range(widths)
    ]
    chosen.append(Dimension("criterion of fixed", "criterion", (0,), of="fixed", labels=labels[:1]))
    return SearchSpace((*shapes, Dimension("b", "block", (0, 1)), *chosen))


def right_criteria(space: SearchSpace) -> dict[str, str]:
    """Returns which criterion is right for each width: another one from width to width."""
    chosen = [dimension for dimension in space.dimensions if dimension.kind == "criterion"]
    return {d.of: d.labels[(index + 1) % len(d.labels)] for index, d in enumerate(chosen)}


def criteria_fitness(space: SearchSpace, candidate: Candidate) -> float:
    """Returns a fitness in [0, 1]: that of the widths, halved by degrees as fewer of them have the right criterion."""
    kept = [value / full for value, full in space.widths(candidate).values()]
    right, chosen = right_criteria(space), space.criteria(candidate)
    hits = np.mean([right[name] == label for name, label in chosen.items()])
    return float(np.mean(np.sqrt(kept)) * (1 + hits) / 2)


class CriteriaContract(SearcherPlay):
    """Criteria are searched like any other dimension, and no budget and no cost ever changes one."""

    trials = 200

    def chosen(self, searcher: Searcher, n: int, state: Any = None) -> list[Trial]:  # noqa: ANN401 - a function
        """Returns the trials of a search where the criteria decide, told in fives.

        Args:
            searcher: new.
            n: how many are asked for.
            state: is called with the searcher between batches, and returns the one that goes on.
        """
        trials: list[Trial] = []
        while len(trials) < n and (asked := searcher.ask(min(5, n - len(trials)))):
            evaluations = [
                Evaluation(fitness=criteria_fitness(searcher.space, candidate))
                for candidate in asked
            ]
            numbers = range(len(trials), n)
            batch = [Trial(*made) for made in zip(numbers, asked, evaluations, strict=False)]
            searcher.tell(batch)
            trials += batch
            searcher = searcher if state is None else state(searcher)
        return trials

    def test_criteria_are_searched_and_proposals_stay_new_and_inside_the_budget(self) -> None:
        """Every criterion with a choice changes in time; of structures that are the same network, one is tried."""
        space = criteria_space()
        constraint = Budget(macs=0.4).bind(space, ShapeCosts(space))
        n = min(self.trials, 100)
        trials = self.chosen(self.make(space, constraint, 0), n)
        assert len({trial.candidate for trial in trials}) == n
        for trial in trials:
            space.check(trial.candidate)
            assert space.canonical(trial.candidate) == trial.candidate
            assert constraint.allows(trial.candidate)
        rows = np.array([trial.candidate for trial in trials])
        for index in np.flatnonzero(~space.ordered):
            varies = len(np.unique(rows[:, index])) > 1
            assert varies == (space.last_indices[index] > 0), space.dimensions[index].name

    def test_a_small_space_with_criteria_is_exhausted(self) -> None:
        """Where a width is full its criterion says nothing: such structures are proposed once."""
        widths = [Dimension(f"w{i}", "width", (1, 3, 4)) for i in range(2)]
        criteria = [
            Dimension(f"c{i}", "criterion", (0, 1, 2), of=f"w{i}", labels=LABELS) for i in range(2)
        ]
        space = SearchSpace((*widths, *criteria))
        constraint = Budget(macs=(1, 20)).bind(space, ShapeCosts(space))
        every = {
            space.canonical(c) for c in itertools.product((1, 3, 4), (1, 3, 4), range(3), range(3))
        }
        inside = {candidate for candidate in every if constraint.allows(candidate)}
        trials = self.chosen(self.make(space, constraint, 0), 1000)
        assert len(inside) < len(every) < space.size
        assert sorted(trial.candidate for trial in trials) == sorted(inside)

    def test_saved_with_criteria_it_continues_bit_for_bit(self) -> None:
        """A state restores what was learnt of criteria; one of other criteria is refused."""
        space = criteria_space()
        constraint = Budget(macs=0.4).bind(space, ShapeCosts(space))

        def reloaded(searcher: Searcher) -> Searcher:
            other = self.make(space, constraint, 9)
            other.load_state_dict(through_json(searcher.state_dict()))
            return other

        n = min(45, self.trials)
        straight = self.chosen(self.make(space, constraint, 5), n)
        assert self.chosen(self.make(space, constraint, 5), n, reloaded) == straight
        renamed = criteria_space(labels=("a", "b", "d"))
        state = self.make(space, constraint, 0).state_dict()
        searcher = self.make(renamed, Budget(macs=0.4).bind(renamed, ShapeCosts(renamed)), 0)
        refused(lambda: searcher.load_state_dict(state), "another space")
