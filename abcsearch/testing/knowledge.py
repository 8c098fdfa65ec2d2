"""What every searcher keeps that is told what it has not asked for (`Searcher.know`), and its probes."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from abcsearch.budget import Budget, Constraint
from abcsearch.errors import CandidateError
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing.toys import SearcherPlay, ToyCosts, listed, refused, through_json
from abcsearch.trial import Evaluation, Trial

if TYPE_CHECKING:
    from abcsearch.searchers.base import Searcher


class KnowledgeContract(SearcherPlay):
    """Knowledge may change what is proposed, never the rules; it is kept in the state, and is no proposal."""

    def knowledge(self, space: SearchSpace, n: int = 12) -> list[Trial]:
        """Returns trials that no searcher asked for: of the full network, and of structures in and outside a budget.

        Every seventh has failed; numbers start anew, as those of another run do.
        """
        rng = np.random.default_rng(11)
        rows = [
            space.full,
            space.at(space.last_indices),
            *(space.sample(rng) for _ in range(n - 2)),
        ]
        return [self.evaluated(space, candidate, number) for number, candidate in enumerate(rows)]

    def told_of(
        self, space: SearchSpace, constraint: Constraint, seed: int, known: list[Trial]
    ) -> Searcher:
        """Returns a new searcher that knows trials."""
        searcher = self.make(space, constraint, seed)
        searcher.know(known)
        return searcher

    def test_probes_are_of_the_space_and_the_same_for_every_budget_and_seed(self) -> None:
        """None twice; asking for them changes nothing."""
        space, constraint = self.problem()
        searcher = self.make(space, constraint, 0)
        state = json.dumps(listed(searcher.state_dict()), sort_keys=True)
        probes = searcher.probes()
        assert json.dumps(listed(searcher.state_dict()), sort_keys=True) == state
        assert len(set(probes)) == len(probes)
        for candidate in probes:
            space.check(candidate)
        looser = Budget(macs=0.8).bind(space, ToyCosts())
        for other in (searcher, self.make(space, looser, 3), self.make(space, None, 4)):
            assert other.probes() == probes

    def test_what_it_knows_is_never_a_proposal_and_may_still_be_proposed(self) -> None:
        """Every proposal stays inside the budget, none is made twice, and a known structure can be told once more."""
        space, constraint = self.problem()
        searcher = self.told_of(space, constraint, 0, self.knowledge(space))
        assert searcher.knowledge == self.knowledge(space)
        trials = self.play(searcher, 24)
        assert len({trial.candidate for trial in trials}) == 24
        assert all(constraint.allows(trial.candidate) for trial in trials)
        assert searcher.knowledge == self.knowledge(space)
        searcher.know([trials[0]])
        assert searcher.ask(1)
        tiny = SearchSpace(tuple(Dimension(f"w{i}", "width", (1, 2, 4), 4) for i in range(2)))
        every = list(itertools.product((1, 2, 4), repeat=2))
        known = [self.evaluated(tiny, candidate, 0) for candidate in every]
        again = self.play(self.told_of(tiny, Constraint(tiny), 0, known), 20)
        assert sorted(trial.candidate for trial in again) == sorted(every)

    def test_same_knowledge_same_proposals(self) -> None:
        """Whether it is told at once or bit by bit; the seed decides the rest."""
        space, constraint = self.problem()
        known = self.knowledge(space)
        bit_by_bit = self.told_of(space, constraint, 3, known[:5])
        bit_by_bit.know(known[5:])
        at_once = self.told_of(space, constraint, 3, known)
        other = self.told_of(space, constraint, 4, known)
        first, second, third = (
            self.play(searcher, 28) for searcher in (bit_by_bit, at_once, other)
        )
        assert first == second
        assert [trial.candidate for trial in first] != [trial.candidate for trial in third]

    def test_a_state_with_knowledge_continues_bit_for_bit(self) -> None:
        """Also where it learns of something while trials are open; a state without any takes away what was known."""
        space, constraint = self.problem()
        known = self.knowledge(space)
        straight, saved = (self.told_of(space, constraint, 5, known[:6]) for _ in range(2))
        number = 0
        for step in range(6):
            state = through_json(saved.state_dict())
            saved = self.told_of(space, constraint, 99, known[:2])
            saved.load_state_dict(state)
            assert saved.knowledge == straight.knowledge
            asked = straight.ask(5)
            assert saved.ask(5) == asked
            more = known[6:] if step == 2 else []
            batch = [self.evaluated(space, c, number + i) for i, c in enumerate(asked)]
            number += len(batch)
            for searcher in (straight, saved):
                searcher.tell(batch[:3])
                searcher.know(more)
                searcher.tell(batch[3:])
        assert saved.knowledge == known
        fresh = self.make(space, constraint, 5)
        before = fresh.state_dict()
        assert "knowledge" not in before  # as states of versions that knew nothing
        saved.load_state_dict(through_json(before))
        assert not saved.knowledge
        assert saved.ask(20) == fresh.ask(20)

    def test_failed_and_odd_knowledge_does_no_harm(self) -> None:
        """All failed, one twice, all alike, or of another scale by far: the search goes on inside the budget."""
        space, constraint = self.problem()
        known = self.knowledge(space)
        failed = [
            Trial(t.number, t.candidate, Evaluation(fitness=None, failure="made to fail"))
            for t in known
        ]
        alike = [Trial(t.number, t.candidate, Evaluation(fitness=0.25)) for t in known]
        huge = [
            Trial(t.number, t.candidate, Evaluation(fitness=(-1e300) ** (t.number % 2)))
            for t in known
        ]
        for odd in (failed, known + known, alike, huge, [*failed, known[0]]):
            trials = self.play(self.told_of(space, constraint, 0, odd), 24)
            assert len({trial.candidate for trial in trials}) == 24
            assert all(constraint.allows(trial.candidate) for trial in trials)

    def test_knowledge_of_another_space_is_refused_and_changes_nothing(self) -> None:
        """One structure that does not fit, or something that is no trial: nothing is taken."""
        space, constraint = self.problem()
        known = self.knowledge(space)
        short = Trial(9, space.full[1:], Evaluation(fitness=1.0))
        strange = Trial(9, (space.full[0] + 1, *space.full[1:]), Evaluation(fitness=1.0))
        searcher, undisturbed = (self.told_of(space, constraint, 0, known) for _ in range(2))
        refused(lambda: searcher.know([known[0], short]), "candidate of this space", CandidateError)
        refused(lambda: searcher.know([known[0], strange]), "allowed are", CandidateError)
        no_trial: list[Any] = [known[0], space.full]
        refused(lambda: searcher.know(no_trial), "trials")
        assert searcher.knowledge == known
        assert searcher.ask(20) == undisturbed.ask(20)
