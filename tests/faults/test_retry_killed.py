"""A run that evaluates its failed trials again is killed at random instants: it ends as if nothing had failed."""

import itertools
import time

import numpy as np
import pytest

from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.retrying import set_back
from tests.evaluators import Troubled, numbers, score
from tests.problems import assert_same_as, drive, finished, forks, loop, started, undisturbed

pytestmark = pytest.mark.faults

N, KILLS = 60, 10


class Failing:
    """Some trials fail."""

    def __init__(self, fails):
        self.fails = fails

    def __call__(self, candidate, seed):
        if numbers()[seed] in self.fails:
            raise ConnectionError("the cluster is full")
        return score(candidate, seed)


def again(path, evaluator, options):
    """Sets a run back, and goes on with it, as `abcsearch resume --retry-failed` does."""
    with RunFolder(path).locked():
        set_back(RunFolder(path))
    drive(path, n_trials=N, evaluator=evaluator, **options)


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"window": 8, "threads": 4}], ids=str)
def test_killed_at_random_instants_it_ends_as_if_nothing_had_failed(tmp_path, options):
    expected = undisturbed(
        tmp_path, n_trials=N, **{key: value for key, value in options.items() if key != "threads"}
    )
    finished(started(tmp_path / "first", n_trials=1))  # the server of the processes starts
    draws = np.random.default_rng()
    kills = 0
    for run in itertools.count():
        path = tmp_path / str(run)
        (path / "attempts").mkdir(parents=True)
        fails = draws.choice(N, size=4, replace=False).tolist()
        loop(path, n_trials=N, evaluator=Failing(fails), window=options.get("window", 0)).run()
        evaluator = Troubled(path / "attempts", seconds=0.01)
        for _ in range(4):
            victim = forks().Process(target=again, args=(path, evaluator, options))
            victim.start()
            victim.join(draws.uniform(0.05, 1.5))
            victim.kill()
            victim.join()
            assert victim.exitcode in (0, -9)
            kills += victim.exitcode == -9
            time.sleep(0.01)
        # It may never have got as far before
        last = forks().Process(target=again, args=(path, evaluator, options))
        last.start()
        finished(last)
        assert_same_as(path, expected)
        if kills >= KILLS:
            return
