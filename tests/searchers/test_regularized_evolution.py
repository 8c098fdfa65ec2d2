import numpy as np
import pytest

from abcsearch.errors import SearcherError
from abcsearch.searchers.regularized_evolution import (
    RegularizedEvolution,
    RegularizedEvolutionOptions,
)
from abcsearch.testing import toy_fitness, toy_space
from abcsearch.trial import Evaluation, Trial

SPACE = toy_space()


def one_batch(searcher, number, fitness=None):
    batch = []
    for i, candidate in enumerate(searcher.ask(1000)):
        value = toy_fitness(SPACE, candidate) if fitness is None else fitness(number + i)
        failure = "made to fail" if value is None else None
        batch.append(Trial(number + i, candidate, Evaluation(fitness=value, failure=failure)))
    searcher.tell(batch)
    return batch


def test_defaults_are_those_of_the_paper():
    options = RegularizedEvolutionOptions()
    assert (options.population, options.sample_size) == (100, 25)


@pytest.mark.parametrize("batch", [1, 7, 20])
def test_the_oldest_die_however_good_they_are(batch):
    options = RegularizedEvolutionOptions(population=20, sample_size=5, batch=batch)
    searcher = RegularizedEvolution(SPACE, options=options)
    trials = one_batch(searcher, 0, fitness=lambda number: 1000.0 - number)  # the first is the best
    assert len(trials) == 20
    while len(trials) < 100:
        done = one_batch(searcher, len(trials), fitness=lambda number: 1000.0 - number)
        assert len(done) == batch
        trials += done
        assert list(searcher._alive) == [(trial.candidate, trial.fitness) for trial in trials[-20:]]


def test_the_winner_of_a_tournament_is_the_parent():
    options = RegularizedEvolutionOptions(population=20, sample_size=5)
    searcher = RegularizedEvolution(SPACE, options=options)
    one_batch(searcher, 0)
    ranked = sorted(searcher._alive, key=lambda member: -member[1])
    rows = np.array([SPACE.indices(candidate) for candidate, _ in ranked])
    wins = np.zeros(20)
    for _ in range(3000):
        off = (rows != SPACE.indices(searcher._child())).sum(axis=1)
        assert off.min() <= 1
        wins[np.argmin(off)] += 1
    expected = ((20 - np.arange(20)) / 20) ** 5 - (
        (19 - np.arange(20)) / 20
    ) ** 5  # the best of 5, with replacement
    assert np.abs(wins / 3000 - expected).max() < 0.03


def test_failed_trials_neither_enter_nor_kill():
    options = RegularizedEvolutionOptions(population=20, sample_size=5)
    searcher = RegularizedEvolution(SPACE, options=options)
    one_batch(searcher, 0, fitness=lambda number: None)
    assert not searcher._alive
    good = one_batch(searcher, 20)
    alive = [(trial.candidate, trial.fitness) for trial in good]
    assert list(searcher._alive) == alive
    one_batch(searcher, 30, fitness=lambda number: None)
    assert list(searcher._alive) == alive


def test_it_does_better_than_its_first_population():
    for seed in range(3):
        searcher = RegularizedEvolution(SPACE, seed=seed)
        trials = []
        while len(trials) < 300:
            trials += one_batch(searcher, len(trials))
        assert max(t.fitness for t in trials[100:]) > max(t.fitness for t in trials[:100])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 1}, "regularized_evolution: population is from 2 to 10000, found 1"),
        ({"sample_size": 101}, "regularized_evolution: sample_size is from 1 to 100, found 101"),
        ({"batch": 0}, "regularized_evolution: batch is from 1 to 100, found 0"),
        ({"batch": 2.5}, "regularized_evolution: batch is a whole number, found 2.5"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(SearcherError) as error:
        RegularizedEvolutionOptions(**options)
    assert str(error.value) == message
