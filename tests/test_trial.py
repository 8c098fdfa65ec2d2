"""Records of evaluations: exactly one of fitness and failure, and failures never win."""

import dataclasses
import json
import math

import numpy as np
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


def test_numbers_of_any_type_become_plain():
    evaluation = Evaluation(fitness=np.float32(0.5))
    assert type(evaluation.fitness) is float
    assert type(Evaluation(fitness=np.array(2)).fitness) is float
    trial = Trial(0, [np.int64(3), 4], evaluation)
    assert trial.candidate == (3, 4)
    assert json.loads(json.dumps(trial.to_plain()))["candidate"] == [3, 4]
    assert Trial.from_plain(trial.to_plain()) == trial


@pytest.mark.parametrize("fitness", ["0.5", [0.5], 1j, 10**400, np.zeros(2)])
def test_a_fitness_is_one_number(fitness):
    with pytest.raises(AbcSearchError, match="a fitness is one number"):
        Evaluation(fitness=fitness)


@pytest.mark.parametrize("candidate", [None, 3, (0.5, 1), ("3", 4), [(3,)]])
def test_a_candidate_is_made_of_whole_numbers(candidate):
    with pytest.raises(AbcSearchError, match="tuple of whole numbers"):
        Trial(0, candidate, Evaluation(fitness=1.0))
