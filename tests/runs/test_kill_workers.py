"""The driver of workers is killed: they go with it, and the run ends as if nothing had happened."""

import dataclasses
import time

import numpy as np

from tests.evaluators import Troubled
from tests.problems import (
    assert_same_as,
    descendants,
    finished,
    started,
    undisturbed,
    until_gone,
    until_trials,
    written,
)


def test_a_killed_driver_takes_its_workers_along_and_is_continued_as_undisturbed(tmp_path):
    expected = undisturbed(tmp_path, n_trials=30, window=4)
    run = tmp_path / "run"
    (run / "attempts").mkdir(parents=True)
    # It cannot come to its end before it is killed: trial 20 hangs, and no other is far ahead of it.
    evaluator = Troubled(run / "attempts", seconds=0.05, kills={3: 1}, hangs={20: 1})
    victim = started(run, n_trials=30, window=4, evaluator=evaluator, workers=2)
    # With a window of 4 that is after trial 3, which takes another worker
    until_trials(run, 8, victim)
    time.sleep(np.random.default_rng().uniform(0, 0.2))
    family = descendants(victim.pid)
    assert any("raylet" in line for line in family.values())
    victim.kill()
    victim.join()
    until_gone(family)
    kept = {number: evaluator.attempts(number) for number in written(run)}
    assert len(kept) >= 8
    assert kept[3] == 2
    well = dataclasses.replace(evaluator, hangs={})
    finished(started(run, n_trials=30, window=4, evaluator=well))  # in its own process now
    assert_same_as(run, expected)
    assert {number: evaluator.attempts(number) for number in kept} == kept
