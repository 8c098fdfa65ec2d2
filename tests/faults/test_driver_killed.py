"""The driver is killed at random instants, with real processes: nothing finished is lost, and the end is the same."""

import contextlib
import os
import signal
import time

import numpy as np
import pytest

from tests.evaluators import Troubled
from tests.problems import (
    assert_follows_its_journal,
    assert_same_as,
    descendants,
    finished,
    started,
    undisturbed,
    until_gone,
    until_trials,
    written,
)

pytestmark = pytest.mark.faults

# How many kills, and how the killed runs evaluate: 48 in all, and 6 more with workers of Ray.
KINDS = {
    "whole rounds": (14, {}),
    "a window": (12, {"window": 4}),
    "a window, threads": (10, {"window": 8, "threads": 4}),
    "asynchronous, threads": (12, {"schedule": "asynchronous", "threads": 4}),
}
N = 60
SECONDS = 0.01  # that an evaluation takes


def evaluator_of(path, seconds=SECONDS):
    (path / "attempts").mkdir(parents=True, exist_ok=True)
    return Troubled(path / "attempts", seconds=seconds)


def decided(path):
    """Returns the whole lines of the journal."""
    journal = path / "journal.jsonl"
    return journal.read_bytes().rpartition(b"\n")[0] if journal.exists() else b""


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_instants_it_ends_as_undisturbed(tmp_path, kind):
    kills, options = KINDS[kind]
    asynchronous = options.get("schedule") == "asynchronous"
    expected = undisturbed(
        tmp_path, n_trials=N, **{k: v for k, v in options.items() if k != "threads"}
    )
    finished(started(tmp_path / "first", n_trials=1))  # the server of the processes starts
    start = time.monotonic()
    finished(
        started(
            tmp_path / "whole", n_trials=N, evaluator=evaluator_of(tmp_path / "whole"), **options
        )
    )
    duration = time.monotonic() - start
    draws = np.random.default_rng()
    done = runs = 0
    while done < kills:
        run, runs = tmp_path / str(runs), runs + 1
        evaluator = evaluator_of(run)
        for _ in range(3):
            victim = started(run, n_trials=N, evaluator=evaluator, **options)
            victim.join(draws.uniform(0.1, 0.8) * duration)
            before = decided(run)
            victim.kill()
            victim.join()
            assert victim.exitcode in (0, -9)
            done += victim.exitcode == -9
            assert decided(run).startswith(before)
        last = decided(run)
        finished(started(run, n_trials=N, evaluator=evaluator, **options))
        assert decided(run).startswith(last)
        if asynchronous:
            assert_follows_its_journal(run, N)
        else:
            assert_same_as(run, expected)


@pytest.mark.parametrize("schedule", ["rounds", "asynchronous"])
def test_killed_with_workers_of_ray_it_ends_as_undisturbed_and_leaves_no_process(
    tmp_path, schedule
):
    options = {"window": 4} if schedule == "rounds" else {"schedule": schedule}
    expected = undisturbed(tmp_path, n_trials=N, **options)
    run = tmp_path / "run"
    evaluator = evaluator_of(run, seconds=0.1)
    draws = np.random.default_rng()
    for after in (0, 5, 20):
        victim = started(run, n_trials=N, evaluator=evaluator, workers=2, **options)
        until_trials(run, after, victim)
        time.sleep(draws.uniform(0, 4 if after == 0 else 0.5))
        family, before = descendants(victim.pid), decided(run)
        victim.kill()
        victim.join()
        until_gone(family)
        assert decided(run).startswith(before)
    kept = set(written(run))
    attempts = {number: evaluator.attempts(number) for number in kept}
    finished(
        started(
            run,
            n_trials=N,
            evaluator=evaluator,
            workers=3 if schedule == "rounds" else 2,
            **options,
        )
    )
    assert {
        number: evaluator.attempts(number) for number in kept
    } == attempts  # what is finished is not done again
    if schedule == "rounds":
        assert_same_as(run, expected)
    else:
        assert_follows_its_journal(run, N)


@pytest.mark.parametrize("options", [{"window": 4}, {"schedule": "asynchronous"}])
def test_workers_killed_at_random_instants_change_nothing(tmp_path, options):
    expected = undisturbed(tmp_path, n_trials=N, **options)
    run = tmp_path / "run"
    driver = started(
        run, n_trials=N, evaluator=evaluator_of(run, seconds=0.1), workers=2, **options
    )
    draws = np.random.default_rng()
    kills = 0
    for after in (3, 10, 16, 24, 32):
        until_trials(run, after, driver)
        time.sleep(draws.uniform(0, 0.1))
        victims = [pid for pid, line in descendants(driver.pid).items() if "ray::_Host" in line]
        if victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(draws.choice(victims)), signal.SIGKILL)
            kills += 1
    finished(driver)
    assert kills >= 3
    if "window" in options:
        assert_same_as(run, expected)
    else:
        assert_follows_its_journal(run, N)
