"""Candidates that race: whoever evaluates, and however often it is interrupted, the same are stopped after the same."""

import dataclasses
import math
import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from abcsearch.evaluation import racing
from abcsearch.evaluation.racing import BAR, ERROR, IMAGES, MARGIN
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import Journal, lines_of, read_journal
from abcsearch.runs.disk.retrying import set_back
from abcsearch.testing import toy_fitness
from abcsearch.trial import Evaluation
from tests.evaluators import SPACE, numbers
from tests.problems import loop, made, outcome, resumed

SEARCHERS = ["bee_colony", "regularized_evolution", "random", "greedy"]
N, COUNT, FIRST = 40, 160, 10


@dataclasses.dataclass
class Toy:
    """Scores of drawn images, whose mean grows with widths; the seed of an evaluation makes no difference.

    Attributes:
        seconds: that an evaluation takes at most.
        every: Ctrl-C at every so many-th evaluation; 0: never.
        fails: numbers of trials that fail.
        limit: images of which trials are scored.
        finalists: as of `Finalist`.
        races: as of `Racer`.
    """

    seconds: float = 0.0
    every: int = 0
    fails: frozenset = frozenset()
    limit: int = COUNT
    finalists: int = 3
    races: bool = True
    calls: list = dataclasses.field(default_factory=list)

    def values(self, candidate, seed):
        """What the images are worth: the same noise for all, and some of the candidate's own."""
        self.calls.append((candidate, seed))
        if self.every and len(self.calls) % self.every == 0:
            raise KeyboardInterrupt
        if numbers()[seed] in self.fails:
            raise ValueError("made to fail")
        time.sleep(random.random() * self.seconds)  # must not repeat
        shared = np.random.default_rng(5).normal(0, 0.15, COUNT)
        own = np.random.default_rng(list(candidate)).normal(0, 0.15, COUNT)
        return torch.from_numpy(toy_fitness(SPACE, candidate) + shared + own)

    def __call__(self, candidate, seed):
        return Evaluation(fitness=float(self.values(candidate, seed)[: self.limit].mean()))

    def race(self, candidate, seed, bar):
        values = self.values(candidate, seed)
        for last in racing.ends(self.limit, FIRST) if self.races else [self.limit]:
            fitness, error = float(values[:last].mean()), racing.standard_error(values[:last])
            if racing.is_behind(fitness, error, bar):
                break
        metrics = {IMAGES: float(last), ERROR: error} | ({} if math.isinf(bar) else {BAR: bar})
        groups = racing.group_means(values) if last == COUNT else {}
        return Evaluation(fitness=fitness, metrics=metrics | groups)

    def complete(self, evaluation):
        return evaluation.metrics[IMAGES] == COUNT

    def in_full(self, candidate, seed):
        return dataclasses.replace(self, limit=COUNT, calls=self.calls).race(
            candidate, seed, -math.inf
        )


def contents(path):
    return read_journal(path / "journal.jsonl")


def found(path):
    """What decides: trials, full scores, who has won."""
    every = contents(path)
    plain = {number: dataclasses.replace(e, seconds=0.0) for number, e in every.final.items()}
    decisions = {
        of: dataclasses.replace(one, winner=outcome([one.winner])[one.winner.number])
        for of, one in every.decisions.items()
        if of == N
    }
    return outcome(every.trials), plain, decisions


def undisturbed(path, **options):
    loop(path / "undisturbed", **{"evaluator": Toy(), **options}).run()
    return found(path / "undisturbed")


def stopped(trials):
    return [
        trial for trial in trials.values() if trial.evaluation.metrics.get(IMAGES, COUNT) < COUNT
    ]


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("searcher", SEARCHERS)
def test_neither_workers_nor_their_speed_decide_who_is_stopped(tmp_path, searcher, window):
    expected = undisturbed(tmp_path, searcher=searcher, window=window)
    assert len(stopped(expected[0])) > 5
    for workers in (2, 7):
        with ThreadPoolExecutor(workers) as pool:
            options = {
                "searcher": searcher,
                "window": window,
                "evaluator": Toy(seconds=0.004),
                "executor": pool,
            }
            loop(tmp_path / str(workers), **options).run()
        assert found(tmp_path / str(workers)) == expected


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("searcher", SEARCHERS)
@pytest.mark.parametrize("lost", [False, True])
def test_interrupted_anywhere_it_is_as_undisturbed(tmp_path, searcher, window, lost):
    expected = undisturbed(tmp_path, searcher=searcher, window=window)

    def between():
        if lost:
            (tmp_path / "run" / "searcher.json").unlink(missing_ok=True)

    toy = Toy(every=6)
    sessions = resumed(
        tmp_path / "run", between=between, searcher=searcher, window=window, evaluator=toy
    )
    assert found(tmp_path / "run") == expected
    # The interrupted ones twice, nothing else
    assert len(toy.calls) == N + sessions + len(expected[1])
    state = RunFolder(tmp_path / "run").read_json("searcher.json")
    assert (state["told"], state["open"], state["decided"]) == (N, [], True)


@pytest.mark.parametrize("searcher", ["bee_colony", "random"])
def test_a_journal_cut_anywhere_is_continued_as_undisturbed(tmp_path, searcher):
    expected = undisturbed(tmp_path, searcher=searcher)
    journal = tmp_path / "undisturbed" / "journal.jsonl"
    whole = journal.read_bytes()
    ends = np.cumsum([len(line) for line in lines_of(journal)])
    draws = np.random.default_rng(1)
    for cut in [0, *ends[-4:], *draws.choice(ends, 3), *draws.integers(0, len(whole), 3)]:
        journal.write_bytes(whole[:cut])
        loop(tmp_path / "undisturbed", searcher=searcher, evaluator=Toy()).run()
        assert found(tmp_path / "undisturbed") == expected


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("searcher", SEARCHERS)
def test_more_trials_later_are_as_if_asked_for_at_once(tmp_path, searcher, window):
    expected = undisturbed(tmp_path, searcher=searcher, window=window)
    for n_trials in (9, 17, 18, N):
        loop(
            tmp_path / "grown", searcher=searcher, window=window, n_trials=n_trials, evaluator=Toy()
        ).run()
    trials, _, decisions = found(tmp_path / "grown")
    assert (trials, decisions) == (expected[0], expected[2])
    assert contents(tmp_path / "grown").best(17).number < 17


@pytest.mark.parametrize("searcher", ["bee_colony", "regularized_evolution"])
def test_a_run_that_was_to_end_within_any_batch_grows_as_if_it_was_not(tmp_path, searcher):
    expected = undisturbed(tmp_path, searcher=searcher, n_trials=24, evaluator=Toy(finalists=0))[0]
    for n_trials in range(1, 25):
        loop(
            tmp_path / "grown", searcher=searcher, n_trials=n_trials, evaluator=Toy(finalists=0)
        ).run()
    assert found(tmp_path / "grown")[0] == expected


@pytest.mark.parametrize("searcher", ["bee_colony", "regularized_evolution"])
def test_a_trial_races_against_the_best_of_the_batches_that_were_whole_when_it_was_asked_for(
    tmp_path, searcher
):
    trials = undisturbed(tmp_path, searcher=searcher)[0]
    asking, best, told = made(searcher), -math.inf, 0
    while told < N:
        batch = [trials[told + place] for place in range(len(asking.ask(N - told)))]
        for trial in batch:
            assert trial.evaluation.metrics.get(BAR, -math.inf) == best
        asking.tell(batch)
        told += len(batch)
        best = max(best, *(trial.fitness for trial in batch))
    for trial in stopped(trials):
        evaluation = trial.evaluation
        assert evaluation.fitness + MARGIN * evaluation.metrics[ERROR] < evaluation.metrics[BAR]


def test_asynchronous_a_trial_races_against_what_the_journal_says_was_told(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        options = {"schedule": "asynchronous", "executor": pool}
        loop(tmp_path / "run", evaluator=Toy(seconds=0.003), **options).run()
    loop(tmp_path / "run", evaluator=Toy(), schedule="asynchronous").run()
    every, best = contents(tmp_path / "run"), [-math.inf]
    assert every.decisions[N].winner.fitness == max(
        e.fitness for e in every.final.values() or [every.best(N)]
    )
    for call in every.order:
        if call < 0:
            best.append(max(best[-1], every.trials[~call].fitness))
        else:
            assert every.trials[call].evaluation.metrics.get(BAR, -math.inf) == best[-1]


def test_who_waits_for_no_results_keeps_many_workers_busy(tmp_path):
    busy, most = [], []

    class Watching(Toy):
        def values(self, candidate, seed):
            busy.append(seed)
            most.append(len(busy))
            try:
                return super().values(candidate, seed)
            finally:
                busy.remove(seed)

    with ThreadPoolExecutor(16) as pool:
        loop(
            tmp_path / "run", searcher="random", evaluator=Watching(seconds=0.2), executor=pool
        ).run()
    assert max(most) > 8


def test_a_front_is_not_raced_for(tmp_path):
    trials = undisturbed(tmp_path, searcher="nsga2")[0]
    assert not stopped(trials)
    assert all(BAR not in trial.evaluation.metrics for trial in trials.values())


@pytest.mark.parametrize("fails", [{3}, {0, 21, 22}, {39}])
def test_failures_evaluated_again_end_in_the_run_in_which_nothing_failed(tmp_path, fails):
    expected = undisturbed(tmp_path)
    path = tmp_path / "run"
    loop(path, evaluator=Toy(fails=frozenset(fails))).run()
    assert found(path) != expected
    assert set_back(RunFolder(path)) == len(fails)
    loop(path, evaluator=Toy()).run()
    assert found(path) == expected


def test_what_another_search_has_stopped_early_is_taken_over_where_it_would_be_stopped_here_too(
    tmp_path,
):
    trials = undisturbed(tmp_path, searcher="random")[0]
    known = {trial.candidate: trial.evaluation for trial in trials.values()}
    toy = Toy()
    other = loop(tmp_path / "other", searcher="random", evaluator=toy)
    other.known = known
    other.run()
    assert not toy.calls
    lower = {
        candidate: dataclasses.replace(e, fitness=e.fitness + 5) if e.metrics[IMAGES] < COUNT else e
        for candidate, e in known.items()
    }
    other = loop(tmp_path / "third", searcher="random", evaluator=toy)
    other.known = lower
    other.run()
    assert {candidate for candidate, _ in toy.calls} == {
        trial.candidate for trial in stopped(trials)
    }
    assert found(tmp_path / "third")[0] == trials


# -- the end


@pytest.mark.parametrize("races", [False, True])
def test_full_scores_decide_and_luck_on_a_part_of_the_images_does_not(tmp_path, races):
    toy = Toy(limit=24, races=races, finalists=6)
    loop(tmp_path / "run", evaluator=toy, searcher="random").run()
    trials, final, decisions = found(tmp_path / "run")
    best = sorted(trials.values(), key=lambda trial: (-trial.fitness, trial.number))[:6]
    assert set(final) == {trial.number for trial in best}
    full = {t.number: float(toy.values(t.candidate, seed_of(t.number)).mean()) for t in best}
    winner = decisions[N].winner
    assert winner.number == max(full, key=full.get)
    assert winner.fitness == pytest.approx(full[winner.number])
    assert list(decisions[N].among) == sorted(full, key=full.get, reverse=True)
    lucky = [trial.fitness - full[trial.number] for trial in best]
    assert max(lucky) > 0  # there was luck to be taken away
    assert (
        RunFolder(tmp_path / "run").read_json("best.json")
        == contents(tmp_path / "run").best(N).to_plain()
    )


def seed_of(number):
    return next(seed for seed, one in numbers().items() if one == number)


def test_what_fails_in_full_makes_room_for_the_next(tmp_path):
    class Breaking(Toy):
        def in_full(self, candidate, seed):
            if numbers()[seed] in broken:
                raise ValueError("NaN on the other images")
            return super().in_full(candidate, seed)

    broken = set()
    loop(tmp_path / "sound", evaluator=Breaking(limit=24)).run()
    broken.add(contents(tmp_path / "sound").decisions[N].among[0])
    loop(tmp_path / "run", evaluator=Breaking(limit=24)).run()
    every = contents(tmp_path / "run")
    assert len(every.decisions[N].among) == 3
    assert not broken & set(every.decisions[N].among)
    assert every.final[broken.pop()].failure == "ValueError: NaN on the other images"
    assert set_back(RunFolder(tmp_path / "run")) == 1
    loop(tmp_path / "run", evaluator=Toy(limit=24)).run()
    assert found(tmp_path / "run") == found(tmp_path / "sound")


def test_an_evaluator_that_scores_in_full_anyway_has_nothing_scored_again(tmp_path):
    toy = Toy(races=False)
    loop(tmp_path / "run", evaluator=toy).run()
    trials, final, decisions = found(tmp_path / "run")
    assert not final
    assert len(toy.calls) == N
    assert decisions[N].winner == max(trials.values(), key=lambda trial: trial.fitness)
    loop(tmp_path / "none", evaluator=Toy(races=False, finalists=0)).run()
    assert not contents(tmp_path / "none").decisions
    every = [trial.evaluation.fitness for trial in contents(tmp_path / "none").trials.values()]
    assert every == [trial.evaluation.fitness for trial in trials.values()]


def test_a_run_that_is_still_to_be_decided_is_not_finished(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        loop(folder.path, evaluator=Toy(limit=24, every=N + 2)).run()
    assert len(contents(folder.path).final) == 1
    assert not folder.finished(N)
    assert folder.decided() is False
    toy = Toy(limit=24)
    loop(folder.path, evaluator=toy).run()
    assert len(toy.calls) == 2
    assert folder.finished(N)
    assert folder.decided()
    with Journal(folder.journal) as journal:
        lines = journal.contents.sound
    loop(folder.path, evaluator=Toy(limit=24)).run()
    assert contents(folder.path).sound == lines  # nothing is said twice


# -- what is noise


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.97, 1.0])
def test_the_margin_of_hits_and_misses_holds_the_truth_nearly_always(share):
    draws = np.random.default_rng(0).random((400, 128)) < share
    errors = [racing.standard_error(torch.from_numpy(row).double()) for row in draws]
    assert min(errors) > 0.005
    held = [
        abs(row.mean() - share) <= MARGIN * error for row, error in zip(draws, errors, strict=True)
    ]
    assert np.mean(held) > 0.94


def test_the_standard_error_of_other_values_is_the_usual_one_and_unknown_without_spread():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert racing.standard_error(values) == pytest.approx(
        np.std(values.numpy(), ddof=1) / math.sqrt(50)
    )
    assert racing.standard_error(torch.full((50,), -1.0, dtype=torch.float64)) is None
    assert racing.standard_error(values[:1]) is None
    assert not racing.is_behind(-1.0, None, 0.0)


@pytest.mark.parametrize(
    ("count", "first"), [(1, 128), (100, 128), (128, 128), (129, 128), (5000, 128), (7, 1)]
)
def test_stages_double_and_end_with_all_images(count, first):
    ends = racing.ends(count, first)
    assert ends[-1] == count
    assert ends == sorted(set(ends))
    assert ends[:-1] == [first * 2**place for place in range(len(ends) - 1)]


def test_candidates_are_compared_on_the_same_images():
    draws = np.random.default_rng(0)
    shared = torch.from_numpy(draws.normal(0, 1, 2000))  # far more than there is between the two

    def scored(values):
        means = tuple(racing.group_means(values).values())
        return Evaluation(
            fitness=float(values.mean()), metrics={ERROR: racing.standard_error(values)}
        ), means

    (one, first), (other, second) = (
        scored(shared),
        scored(shared + 0.02 + torch.from_numpy(draws.normal(0, 0.02, 2000))),
    )
    assert racing.told_apart(one, other, (first, second))
    assert not racing.told_apart(one, other, (first, None))  # not known to be of the same images
    same = scored(shared + torch.from_numpy(draws.normal(0, 0.02, 2000)))
    assert not racing.told_apart(one, same[0], (first, same[1]))
