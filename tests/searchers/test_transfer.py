"""What is known of other budgets is worth trials, whatever its scale; what is wrong does little harm."""

import numpy as np
import pytest

from abcsearch.budget import Budget
from abcsearch.searchers.quadratic import Quadratic
from abcsearch.searchers.response_surface import ResponseSurface, ResponseSurfaceOptions
from abcsearch.searchers.sensitivity_map import RULES, linear_costs, probes, sensitivity_map, solved
from abcsearch.searchers.transfer import known_quadratic, map_forms
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing import ToyCosts
from abcsearch.trial import Evaluation, Trial

SPACE = SearchSpace(tuple(Dimension(f"d{i}", "width", tuple(range(1, 9))) for i in range(12)))
WEIGHTS = np.random.default_rng(0).exponential(size=12)


def fitness(candidate):
    """Grows and saturates with every width; layers differ much."""
    return float((WEIGHTS * np.log(np.array(candidate) / 8)).sum())


def trials_of(structures, score=fitness):
    return [Trial(i, c, Evaluation(fitness=score(c))) for i, c in enumerate(structures)]


def bound(share):
    return Budget(macs=share).bind(SPACE, ToyCosts())


def best_of(searcher, n, score=fitness):
    found = []
    while len(found) < n:
        batch = trials_of(searcher.ask(n - len(found)), score)
        searcher.tell(batch)
        found += batch
    return found, max(fitness(trial.candidate) for trial in found)


def others(share=0.7, n=60):
    return best_of(ResponseSurface(SPACE, bound(share), seed=9), n)[0]


def searcher_with(known, seed, **options):
    searcher = ResponseSurface(
        SPACE, bound(0.4), seed=seed, options=ResponseSurfaceOptions(**options)
    )
    searcher.know(known)
    return searcher


KNOWN = {
    "the map": lambda: trials_of(probes(SPACE, 2)),
    "another budget": others,
    "another budget on another scale": lambda: [
        Trial(t.number, t.candidate, Evaluation(fitness=40 + 9 * t.fitness)) for t in others()
    ],
}


@pytest.mark.parametrize("kind", KNOWN)
def test_what_is_known_helps_at_once(kind):
    known = KNOWN[kind]()
    plain = [best_of(searcher_with([], seed), 8)[1] for seed in range(4)]
    helped = [best_of(searcher_with(known, seed), 8)[1] for seed in range(4)]
    assert np.mean(helped) > np.mean(plain) + np.std(plain) / 2


def test_what_is_known_and_wrong_is_overruled():
    wrong = [
        Trial(t.number, t.candidate, Evaluation(fitness=-t.fitness))
        for t in [*KNOWN["the map"](), *others()]
    ]
    drawn = np.random.default_rng(1)
    random = [fitness(bound(0.4).repair(SPACE.sample(drawn), drawn)) for _ in range(60)]
    assert best_of(searcher_with(wrong, 0), 60)[1] > max(random)


def test_the_first_proposals_are_what_the_map_makes_of_the_budget():
    searcher = searcher_with(KNOWN["the map"](), 0)
    known = sensitivity_map(SPACE, searcher.knowledge)
    costs = linear_costs(bound(0.4), SPACE.last_indices)
    made = {
        solved(bound(0.4), known.relative, costs, power, np.random.default_rng(0))
        for power in RULES
    }
    assert made < set(searcher.ask(8))


def test_probes_are_asked_for_where_levels_say_so():
    assert searcher_with([], 0, levels=0).probes() == []
    assert searcher_with([], 0, levels=3).probes() == probes(SPACE, 3)


def test_knowledge_that_comes_during_the_search_is_used_and_saved():
    straight, saved = (searcher_with([], 5, batch=4, first=8) for _ in range(2))
    for step in range(6):
        if step == 3:
            straight.know(KNOWN["the map"]())
            saved.know(KNOWN["the map"]())
        again = searcher_with([], 1, batch=4, first=8)
        again.load_state_dict(saved.state_dict())
        saved = again
        asked = straight.ask(4)
        assert saved.ask(4) == asked
        straight.tell(trials_of(asked))
        saved.tell(trials_of(asked))
        assert (
            all(
                len(surface.quadratic.known) == (2 if step > 3 else 0)
                for surface in straight._surfaces
            )
            or step == 3
        )


def test_forms_of_a_map_rank_structures_by_the_sum_of_losses():
    known = sensitivity_map(SPACE, KNOWN["the map"]())
    first, second = map_forms(known, Quadratic(SPACE, 0.0).scale)
    rows = np.random.default_rng(0).integers(8, size=(500, 12))
    loss = known.loss[np.arange(12), rows]
    for form, exponent in ((first, 1), (second, 2)):
        assert np.corrcoef(form(rows), -(loss**exponent).sum(axis=1))[0, 1] == pytest.approx(1)
        assert form(rows).std() == pytest.approx(1, abs=0.15)
    assert map_forms(None, first.scale) == []


@pytest.mark.parametrize("value", [0.0, 0.25, -1e300, None])
def test_knowledge_that_tells_nothing_leaves_a_plain_quadratic(value):
    failure = "made to fail" if value is None else None
    structures = [*probes(SPACE, 1), *(SPACE.sample(np.random.default_rng(i)) for i in range(5))]
    known = [Trial(0, c, Evaluation(fitness=value, failure=failure)) for c in structures]
    assert known_quadratic(SPACE, 0.0, known).known == []
