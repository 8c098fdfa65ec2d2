"""Whoever evaluates, however fast, and however often it is interrupted: the trials are those of an undisturbed run."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from abcsearch.errors import RunError
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import encode_line, read_journal
from abcsearch.searchers.bee_colony import BeeColony, BeeColonyOptions
from tests.evaluators import SPACE, jittery
from tests.problems import (
    BOUND,
    Interrupting,
    assert_follows_its_journal,
    assert_same_as,
    loop,
    outcome,
    resumed,
    undisturbed,
    written,
)

SEARCHERS = ["bee_colony", "regularized_evolution", "nsga2", "random", "greedy"]
WINDOWS = [0, 1, 4, 16]
N = 40


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("searcher", SEARCHERS)
def test_neither_workers_nor_their_speed_change_a_trial(tmp_path, searcher, window):
    expected = undisturbed(tmp_path, searcher=searcher, window=window)
    assert len(expected) == N
    for workers in (1, 3, 8) if searcher == "bee_colony" else (3,):
        with ThreadPoolExecutor(workers) as pool:
            loop(
                tmp_path / str(workers),
                searcher=searcher,
                window=window,
                evaluator=jittery,
                executor=pool,
            ).run()
        assert_same_as(tmp_path / str(workers), expected)


@pytest.mark.parametrize("window", [0, 1, 4])
@pytest.mark.parametrize("searcher", SEARCHERS)
@pytest.mark.parametrize("lost", [False, True])
def test_interrupted_at_every_kth_evaluation_it_is_as_undisturbed(tmp_path, searcher, window, lost):
    expected = undisturbed(tmp_path, searcher=searcher, window=window)

    def between():
        if lost:
            (tmp_path / "run" / "searcher.json").unlink(missing_ok=True)

    interrupting = Interrupting(every=6)
    sessions = resumed(
        tmp_path / "run", between=between, searcher=searcher, window=window, evaluator=interrupting
    )
    assert_same_as(tmp_path / "run", expected)
    assert sessions >= N // 6
    assert len(interrupting.calls) == N + sessions  # the interrupted ones twice, nothing else


@pytest.mark.parametrize("window", [0, 4])
def test_interrupted_among_threads_it_is_as_undisturbed(tmp_path, window):
    expected = undisturbed(tmp_path, window=window)
    interrupting = Interrupting(every=11)
    with ThreadPoolExecutor(3) as pool:
        assert resumed(tmp_path / "run", window=window, evaluator=interrupting, executor=pool)
    assert_same_as(tmp_path / "run", expected)


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("searcher", SEARCHERS)
def test_a_journal_cut_anywhere_is_continued_as_undisturbed(tmp_path, searcher, window):
    expected = undisturbed(tmp_path, searcher=searcher, window=window)
    journal = tmp_path / "undisturbed" / "journal.jsonl"
    whole = journal.read_bytes()
    ends = np.cumsum([len(line) for line in whole.splitlines(keepends=True)])
    draws = np.random.default_rng(1)
    for cut in [0, *draws.choice(ends, 2), *draws.integers(0, len(whole), 2)]:
        journal.write_bytes(whole[:cut])
        loop(tmp_path / "undisturbed", searcher=searcher, window=window).run()
        assert_same_as(tmp_path / "undisturbed", expected)


@pytest.mark.parametrize("window", [0, 1, 4, 16])
@pytest.mark.parametrize("searcher", SEARCHERS)
def test_more_trials_later_are_as_if_asked_for_at_once(tmp_path, searcher, window):
    expected = undisturbed(tmp_path, searcher=searcher, window=window)
    for n_trials in (9, 17, 18, N):
        loop(tmp_path / "grown", searcher=searcher, window=window, n_trials=n_trials).run()
    assert_same_as(tmp_path / "grown", expected)


def test_fewer_trials_than_are_open_and_then_more(tmp_path):
    expected = undisturbed(tmp_path, searcher="regularized_evolution", window=16)
    options = {"searcher": "regularized_evolution", "window": 16}
    with pytest.raises(KeyboardInterrupt):
        loop(tmp_path / "run", evaluator=Interrupting(every=20), **options).run()
    asked = RunFolder(tmp_path / "run").read_json("searcher.json")["asked"]
    fewer = loop(tmp_path / "run", n_trials=asked - 5, **options).run()
    assert outcome(fewer) == {
        number: trial for number, trial in expected.items() if number < asked - 5
    }
    loop(tmp_path / "run", **options).run()
    assert_same_as(tmp_path / "run", expected)


# -- asynchronous


class Checking(BeeColony):
    """Notes what it is told, and refuses to be told twice."""

    name = "bee_colony"

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.heard = []

    def _learn(self, batch):
        self.heard += [trial.number for trial in batch]
        assert len(self.heard) == len(set(self.heard))
        super()._learn(batch)


@pytest.mark.parametrize("searcher", SEARCHERS)
@pytest.mark.parametrize("lost", [False, True])
def test_asynchronous_interrupted_and_resumed_it_follows_its_journal(tmp_path, searcher, lost):
    snapshot = tmp_path / "run" / "searcher.json"

    def between():
        if lost:
            snapshot.unlink(missing_ok=True)

    interrupting = Interrupting(every=9)
    with ThreadPoolExecutor(3) as pool:
        sessions = resumed(
            tmp_path / "run",
            between=between,
            searcher=searcher,
            evaluator=interrupting,
            executor=pool,
            schedule="asynchronous",
        )
    assert sessions >= 3
    assert_follows_its_journal(tmp_path / "run", N, searcher)


def test_asynchronous_a_finished_trial_is_never_evaluated_or_told_again(tmp_path):
    interrupting = Interrupting(every=7)
    with ThreadPoolExecutor(4) as pool:
        for session in itertools.count():
            before = set(written(tmp_path)) if session else set()
            begun = len(interrupting.calls)
            own = Checking(SPACE, BOUND, options=BeeColonyOptions(n_sources=4))
            try:
                loop(
                    tmp_path,
                    searcher=own,
                    evaluator=interrupting,
                    executor=pool,
                    schedule="asynchronous",
                ).run()
                break
            except KeyboardInterrupt:
                assert not before & set(interrupting.calls[begun:])
                assert before <= set(written(tmp_path))
    assert_follows_its_journal(tmp_path, N)
    assert session >= 3


def test_asynchronous_a_journal_replayed_twice_gives_the_same_state_bit_for_bit(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        loop(tmp_path, evaluator=jittery, executor=pool, schedule="asynchronous").run()
    first = (tmp_path / "searcher.json").read_bytes()
    order = read_journal(tmp_path / "journal.jsonl").order
    # Several were open at a time
    assert order != sorted(order, key=lambda number: number if number >= 0 else ~number)
    for _ in range(2):
        (tmp_path / "searcher.json").unlink()
        loop(tmp_path, schedule="asynchronous").run()
        assert (tmp_path / "searcher.json").read_bytes() == first


def test_asynchronous_a_journal_cut_anywhere_is_continued(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        loop(tmp_path, evaluator=jittery, executor=pool, schedule="asynchronous").run()
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    for cut in np.random.default_rng(2).integers(0, len(whole), 8):
        journal.write_bytes(whole[:cut])
        kept = read_journal(journal).sound
        with ThreadPoolExecutor(2) as pool:
            loop(tmp_path, evaluator=jittery, executor=pool, schedule="asynchronous").run()
        assert journal.read_bytes()[:kept] == whole[:kept]
        assert_follows_its_journal(tmp_path, N)


def test_asynchronous_a_trial_that_was_never_asked_for_is_damage(tmp_path):
    loop(tmp_path, n_trials=3, schedule="asynchronous").run()
    trial = read_journal(tmp_path / "journal.jsonl").trials[2]
    with (tmp_path / "journal.jsonl").open("ab") as file:
        last = read_journal(tmp_path / "journal.jsonl").chain.last
        file.write(encode_line({**trial.to_plain(), "number": 7}, last))
    (tmp_path / "searcher.json").unlink()
    with pytest.raises(RunError, match="trial 7 has finished, but was never asked for"):
        loop(tmp_path, n_trials=9, schedule="asynchronous").run()
