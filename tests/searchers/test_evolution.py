import numpy as np
import pytest

from abcsearch.errors import SearcherError
from abcsearch.searchers.evolution import Evolution, EvolutionOptions
from abcsearch.testing import toy_fitness, toy_space
from abcsearch.trial import Evaluation, Trial

SPACE = toy_space()


def told(searcher, n, fails=lambda number: False):
    trials = []
    while len(trials) < n:
        start = len(trials)
        for i, candidate in enumerate(searcher.ask(n - start)):
            fitness = None if fails(start + i) else toy_fitness(SPACE, candidate)
            trials.append(
                Trial(
                    start + i,
                    candidate,
                    Evaluation(fitness=fitness, failure=None if fitness else "no"),
                )
            )
        searcher.tell(trials[start:])
    return trials


def test_defaults_are_those_of_the_paper():
    options = EvolutionOptions()
    sizes = (
        options.population,
        options.archive,
        options.parents,
        options.mutations,
        options.crossovers,
    )
    assert sizes == (50, 50, 10, 25, 25)
    assert options.mutation_rate == 0.1


def test_a_generation_is_one_batch():
    searcher = Evolution(SPACE)
    first = searcher.ask(1000)
    assert len(first) == 50
    assert searcher.ask(1) == []


@pytest.mark.parametrize("archive", [50, 12])
def test_archive_holds_the_best_of_all_generations_and_no_failures(archive):
    searcher = Evolution(SPACE, options=EvolutionOptions(archive=archive))
    trials = told(searcher, 300, fails=lambda number: number % 3 == 0)
    succeeded = [trial for trial in trials if trial.evaluation.failure is None]
    best = sorted(succeeded, key=lambda trial: (-trial.fitness, trial.number))[:archive]
    assert searcher._archive == [(trial.candidate, trial.fitness) for trial in best]


def test_children_come_from_the_best_parents_mutations_first():
    searcher = Evolution(SPACE, options=EvolutionOptions(parents=3, mutation_rate=0.2))
    told(searcher, 200)
    parents = np.array([SPACE.indices(candidate) for candidate, _ in searcher._archive[:3]])
    rows = np.array([SPACE.indices(searcher._child(place)) for place in [0] * 500])
    changed = (rows[:, None] != parents).sum(axis=2).min(axis=1)  # genes off the nearest parent
    assert changed.mean() < 0.2 * (SPACE.last_indices > 0).sum()
    crossed = np.array([SPACE.indices(searcher._child(place)) for place in [30] * 500])
    assert (crossed[:, None] == parents).any(axis=1).all()
    assert (crossed[:, None] == parents).all(axis=2).any(
        axis=1
    ).mean() < 0.7  # children of two, mostly new


def test_it_does_better_than_its_first_generation():
    for seed in range(3):
        trials = told(Evolution(SPACE, seed=seed), 400)
        assert max(t.fitness for t in trials[200:]) > max(t.fitness for t in trials[:50])


def test_all_failed_is_random_search():
    searcher = Evolution(SPACE)
    assert len({trial.candidate for trial in told(searcher, 160, fails=lambda number: True)}) == 160
    assert searcher._archive == []


def test_warm_starts_come_first_and_enter_the_archive():
    searcher = Evolution(SPACE, initial=[1.0, 0.5])
    trials = told(searcher, 50)
    assert [trial.candidate for trial in trials[:2]] == [
        SPACE.at(SPACE.last_indices),
        SPACE.uniform(0.5),
    ]
    assert searcher._archive[0][0] == SPACE.at(SPACE.last_indices)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 0}, "evolution: population is from 1 to 10000, found 0"),
        ({"population": 10.5}, "evolution: population is a whole number, found 10.5"),
        ({"archive": 0}, "evolution: archive is at least 1, found 0"),
        ({"parents": 51}, "evolution: parents is from 1 to 50, found 51"),
        ({"mutations": -1}, "evolution: mutations is from 0 to 50, found -1"),
        ({"mutations": 30}, "evolution: crossovers is from 0 to 20, found 25"),
        ({"mutation_rate": 1.5}, "evolution: mutation_rate is from 0 to 1, found 1.5"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(SearcherError) as error:
        EvolutionOptions(**options)
    assert str(error.value) == message
