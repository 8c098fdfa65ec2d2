"""Records of evaluations: exactly one of fitness and failure, and failures never win."""

import dataclasses
import math

import pytest

from abcsearch.errors import AbcSearchError
from abcsearch.trial import Evaluation, Trial, best_trial


def trial(number, fitness):
    failure = "out of memory" if fitness is None else None
    return Trial(number, (1, 2), Evaluation(fitness=fitness, failure=failure))


@pytest.mark.parametrize(
    ("fitness", "failure", "message"),
    [
        (None, None, "either a fitness or a failure, found None and None"),
        (0.5, "broken", "either a fitness or a failure, found 0.5 and 'broken'"),
        (math.nan, None, "a fitness must be finite, found nan; report it as a failure"),
        (math.inf, None, "a fitness must be finite, found inf"),
        (-math.inf, None, "a fitness must be finite, found -inf"),
    ],
)
def test_an_evaluation_has_a_fitness_or_a_failure(fitness, failure, message):
    with pytest.raises(AbcSearchError, match=message):
        Evaluation(fitness=fitness, failure=failure)


def test_a_failure_needs_no_text():
    assert Evaluation(fitness=None, failure="").failure == ""


def test_failed_trials_never_win():
    assert trial(0, None).fitness == -math.inf
    assert trial(0, -1e300).fitness == -1e300
    assert best_trial([trial(0, None), trial(1, -1e300), trial(2, None)]).number == 1
    assert best_trial([trial(0, None)]) is None
    assert best_trial([]) is None


def test_the_earliest_of_equals_wins():
    assert best_trial([trial(3, 0.7), trial(1, 0.7), trial(2, 0.6), trial(4, 0.7)]).number == 1


def test_records_are_frozen():
    for record, name in ((trial(0, 1.0), "number"), (trial(0, 1.0).evaluation, "fitness")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, name, 7)
