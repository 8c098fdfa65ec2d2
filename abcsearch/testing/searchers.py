"""What every searcher keeps.

In one sentence: proposals are new, inside the space and the budget, and depend on nothing but the seed and what was
told; a saved searcher continues bit for bit. One that `overlaps` keeps this, and any number of workers busy, also where
it is asked ahead. `KnowledgeContract` has what `know` may change, and what not; `CriteriaContract` what holds where
criteria are searched.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from abcsearch.budget import Budget
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing.criteria import CriteriaContract
from abcsearch.testing.knowledge import KnowledgeContract
from abcsearch.testing.toys import ToyCosts, refused, through_json, toy_fitness
from abcsearch.trial import Evaluation, Trial, best_trial

if TYPE_CHECKING:
    from collections.abc import Callable

    from abcsearch.searchers.base import Searcher
    from abcsearch.space import Candidate


class SearcherContract(KnowledgeContract, CriteriaContract):
    """What every searcher keeps; override `make`, and where yours learns slowly `rounds`.

    Attributes:
        rounds: how many exchanges of ask and tell the longest test plays.
        trials: how many trials the other long tests run.
        window: how many structures are open at a time where the searcher is asked ahead.
    """

    rounds = 500
    trials = 200
    window = 16

    def slide(
        self,
        searcher: Searcher,
        n: int,
        which: Callable[[int], int],
        between: Callable[[Searcher], Searcher] = lambda searcher: searcher,
    ) -> list[Candidate]:
        """Asks ahead, as workers do of which `window` are busy, and tells trials one by one, until `n` are asked for.

        Args:
            searcher: asserted to keep the window full if it `overlaps`.
            n: how many structures are asked for; those in the window at the end are not told.
            which: says which of the open structures, oldest first, is told next.
            between: is given the searcher between any two calls, and says which goes on.
        """
        asked: list[Candidate] = []
        late: list[Trial] = []  # asked for, not yet told
        while len(asked) < n:
            wanted = min(self.window - len(late), n - len(asked))
            new = searcher.ask(wanted, ahead=True)
            late += [self.evaluated(searcher.space, c, len(asked) + i) for i, c in enumerate(new)]
            assert len(new) == wanted or (late and not searcher.overlaps), (
                "a worker has nothing to do"
            )
            asked += new
            searcher = between(searcher)
            searcher.tell([late.pop(which(len(late)))])
            searcher = between(searcher)
        return asked

    def test_every_proposal_is_new_and_inside_space_and_budget(self) -> None:
        """No structure twice, none outside."""
        space, constraint = self.problem()
        trials = self.play(self.make(space, constraint, 0), self.trials)
        assert len(trials) == self.trials
        assert len({trial.candidate for trial in trials}) == self.trials
        for trial in trials:
            space.check(trial.candidate)
            assert constraint.allows(trial.candidate)

    def test_same_seed_same_proposals(self) -> None:
        """The seed decides everything."""
        space, constraint = self.problem()
        first, second, other = (
            self.play(self.make(space, constraint, seed), 100) for seed in (3, 3, 4)
        )
        assert first == second
        assert [t.candidate for t in first] != [t.candidate for t in other]

    def test_how_many_are_asked_for_at_a_time_changes_nothing(self) -> None:
        """Workers come and go; proposals stay."""
        space, constraint = self.problem()
        runs = [
            self.play(self.make(space, constraint, 1), 150, sizes)
            for sizes in ((1,), (150,), (2, 5, 1, 11))
        ]
        assert (
            [t.candidate for t in runs[0]]
            == [t.candidate for t in runs[1]]
            == [t.candidate for t in runs[2]]
        )

    def test_order_of_telling_changes_nothing(self) -> None:
        """Trials finish in any order, and some much later than others."""
        space, constraint = self.problem()
        ordered, shuffled = self.make(space, constraint, 2), self.make(space, constraint, 2)
        order = np.random.default_rng(0)
        number = 0
        for _ in range(30):
            asked, again = ordered.ask(8), shuffled.ask(8)
            assert asked == again
            batch = [self.evaluated(space, c, number + i) for i, c in enumerate(asked)]
            number += len(batch)
            ordered.tell(batch)
            for index in order.permutation(len(batch)):
                shuffled.tell([batch[index]])

    def test_saved_and_loaded_continues_bit_for_bit(self) -> None:
        """A state goes through JSON (arrays aside) at any point, also with trials open, and nothing changes."""
        space, constraint = self.problem()
        straight = self.make(space, constraint, 5)
        saved = self.make(space, constraint, 5)
        number = 0
        for step in range(40):
            asked = straight.ask(5)
            assert saved.ask(5) == asked
            batch = [self.evaluated(space, c, number + i) for i, c in enumerate(asked)]
            number += len(batch)
            cut = step % (len(batch) + 1)
            straight.tell(batch[:cut])
            saved.tell(batch[:cut])
            state = through_json(saved.state_dict())
            saved = self.make(space, constraint, 99)
            saved.load_state_dict(state)
            straight.tell(batch[cut:])
            saved.tell(batch[cut:])

    def test_hundreds_of_rounds_of_late_failed_and_interrupted_trials_change_nothing(self) -> None:
        """Asked in portions, told in parts and out of order, saved and loaded all along: the proposals stay the same.

        The other searcher is told everything at once, in order, and never saved.
        """
        space, constraint = self.problem()
        order = np.random.default_rng(0)
        searcher, straight = self.make(space, constraint, 7), self.make(space, constraint, 7)
        late: list[Trial] = []  # asked for, not yet told
        asked: list[Candidate] = []
        for step in range(self.rounds):
            new = searcher.ask(int(order.integers(1, 4)))
            assert new or late  # it only waits for what it has not been told
            late += [self.evaluated(space, c, len(asked) + i) for i, c in enumerate(new)]
            asked += new
            told = order.permutation(len(late))[
                : int(order.integers(0 if new else 1, len(late) + 1))
            ]
            searcher.tell([late[i] for i in told])
            late = [trial for i, trial in enumerate(late) if i not in told]
            if step % 75 == 0 or step > self.rounds - 4:
                state = through_json(searcher.state_dict())
                searcher = self.make(space, constraint, step)
                searcher.load_state_dict(state)
        assert [trial.candidate for trial in self.play(straight, len(asked))] == asked

    def test_asked_ahead_the_window_stays_full_of_new_structures_inside(self) -> None:
        """Whether the oldest is always told first, or they finish in any order."""
        space, constraint = self.problem()
        for which in (_oldest, _any(0)):
            asked = self.slide(self.make(space, constraint, 0), self.trials, which)
            assert len(set(asked)) == self.trials
            for candidate in asked:
                space.check(candidate)
                assert constraint.allows(candidate)

    def test_asked_ahead_the_same_calls_give_the_same_proposals(self) -> None:
        """The seed and the order of calls decide everything; to searchers that do not overlap ahead means nothing."""
        space, constraint = self.problem()
        n = min(150, self.trials)
        first, second, other = (
            self.slide(self.make(space, constraint, seed), n, _any(1)) for seed in (3, 3, 4)
        )
        assert first == second != other
        searcher = self.make(space, constraint, 3)
        if not searcher.overlaps:
            assert first == [trial.candidate for trial in self.play(searcher, n)]

    def test_asked_ahead_saved_and_loaded_at_any_point_continues_bit_for_bit(self) -> None:
        """With several batches open at once, after any call, whatever it has just been told."""
        space, constraint = self.problem()
        n = min(150, self.trials)
        order = np.random.default_rng(2)

        def reloaded(searcher: Searcher) -> Searcher:
            if order.random() < 0.7:
                return searcher
            state = through_json(searcher.state_dict())
            searcher = self.make(space, constraint, 99)
            searcher.load_state_dict(state)
            return searcher

        straight = self.slide(self.make(space, constraint, 5), n, _any(3))
        assert self.slide(self.make(space, constraint, 5), n, _any(3), reloaded) == straight

    def test_what_it_works_from_is_inside_the_space(self) -> None:
        """Its population is made of plain structures, none twice, before, during and after learning."""
        space, constraint = self.problem()
        searcher = self.make(space, constraint, 0)
        for _ in range(4):
            population = searcher.population()
            assert len(set(population)) == len(population)
            for candidate in population:
                space.check(candidate)
                assert type(candidate) is tuple
                assert {type(value) for value in candidate} == {int}
            self.play(searcher, self.trials // 4)

    def test_every_dimension_changes_in_time(self) -> None:
        """No dimension that has a choice is left out after the start; those without one stay."""
        space, constraint = self.problem()
        rows = np.array(
            [trial.candidate for trial in self.play(self.make(space, constraint, 0), self.trials)]
        )
        # Not much later: what a model is sure of by then, it need not try again
        late = rows[len(rows) // 8 :]
        varies = np.array([len(np.unique(late[:, i])) > 1 for i in range(len(space))])
        assert (varies == (space.last_indices > 0)).all()

    def test_failed_trials_never_win_and_do_not_stop_the_search(self) -> None:
        """All failed, then half failed: proposals go on, and the best is a success."""
        space, constraint = self.problem()
        searcher = self.make(space, constraint, 0)
        for number in range(40):
            for candidate in searcher.ask(1):
                searcher.tell(
                    [Trial(number, candidate, Evaluation(fitness=None, failure="made to fail"))]
                )
        trials = self.play(searcher, 60, start=40)
        best = best_trial(trials)
        assert len(trials) == 60
        assert best is not None
        assert best.evaluation.failure is None

    def test_a_small_space_is_exhausted_and_its_optimum_found(self) -> None:
        """Every structure inside the budget is proposed exactly once; then nothing."""
        space = SearchSpace(tuple(Dimension(f"w{i}", "width", (1, 2, 3, 5), 6) for i in range(3)))
        constraint = Budget(macs=(1, 20)).bind(space, ToyCosts())
        every = [c for c in itertools.product((1, 2, 3, 5), repeat=3) if constraint.allows(c)]
        searcher = self.make(space, constraint, 0)
        trials: list[Trial] = []
        while batch := searcher.ask(4):
            done = [
                Trial(len(trials) + i, c, Evaluation(fitness=toy_fitness(space, c)))
                for i, c in enumerate(batch)
            ]
            searcher.tell(done)
            trials += done
        assert sorted(trial.candidate for trial in trials) == sorted(every)
        assert max(trial.fitness for trial in trials) == max(toy_fitness(space, c) for c in every)

    def test_wrong_calls_are_refused_and_change_nothing(self) -> None:
        """Told twice, never asked, a foreign state: one clear error, and the search goes on as if nothing was."""
        space, constraint = self.problem()
        searcher, undisturbed = self.make(space, constraint, 0), self.make(space, constraint, 0)
        asked, same = searcher.ask(3), undisturbed.ask(3)
        batch = [self.evaluated(space, c, i) for i, c in enumerate(asked)]
        searcher.tell(batch[:2])
        foreign = Trial(9, space.full, Evaluation(fitness=2.0))
        other = {**searcher.state_dict(), "searcher": "another"}
        smaller = {**searcher.state_dict(), "space": searcher.state_dict()["space"][1:]}
        refused(lambda: searcher.tell([batch[2], batch[0]]), "told already")
        refused(lambda: searcher.tell([batch[2], batch[2]]), "told already")
        refused(lambda: searcher.tell([batch[2], foreign]), "never asked")
        refused(lambda: searcher.ask(0), "at least one")
        refused(lambda: searcher.load_state_dict(other), "another")
        refused(lambda: searcher.load_state_dict(smaller), "another space")
        searcher.tell(batch[2:])
        undisturbed.tell([self.evaluated(space, c, i) for i, c in enumerate(same)])
        assert searcher.ask(20) == undisturbed.ask(20)


def _oldest(_: int) -> int:
    """Returns which of some open structures is told next: the oldest."""
    return 0


def _any(seed: int) -> Callable[[int], int]:
    """Returns what says which of some open structures is told next: any of them, drawn."""
    order = np.random.default_rng(seed)
    return lambda n: int(order.integers(n))
