"""A search of milliseconds that can be run anywhere, killed, and compared; its evaluations can be made to go wrong."""

import contextlib
import dataclasses
import multiprocessing
import os
import sys
import time
from pathlib import Path
from unittest import mock

import typer

from abcsearch.budget import Budget
from abcsearch.execution.options import ExecutionOptions
from abcsearch.execution.ray_executor import RayExecutor
from abcsearch.execution.serial import SerialExecutor
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import read_journal
from abcsearch.runs.loop import Loop
from abcsearch.searchers.registry import make_searcher
from abcsearch.testing import ToyCosts
from abcsearch.trial import best_trial
from tests.evaluators import SPACE, numbers, score

BOUND = Budget(macs=0.5).bind(SPACE, ToyCosts())
SMALL = {  # several generations within a few trials
    "bee_colony": {"n_sources": 4},
    "regularized_evolution": {"population": 8, "sample_size": 3, "batch": 4},
    "nsga2": {"population": 8},
}
PATIENCE = 120.0  # seconds after which whatever is waited for is taken for hanging


def made(name):
    """Returns a new searcher."""
    return make_searcher(name, SPACE, BOUND, **SMALL.get(name, {}))


def loop(path, *, evaluator=score, executor=None, n_trials=40, searcher="bee_colony", **execution):
    """Returns the loop of a run folder."""
    path.mkdir(parents=True, exist_ok=True)
    return Loop(
        folder=RunFolder(path),
        searcher=made(searcher) if isinstance(searcher, str) else searcher,
        evaluator=evaluator,
        costs=ToyCosts(),
        executor=executor or SerialExecutor(),
        n_trials=n_trials,
        seed=0,
        max_failures=20,
        execution=ExecutionOptions(**execution),
    )


def outcome(trials):
    """Returns trials without what may differ from run to run."""
    found = trials.values() if isinstance(trials, dict) else trials
    return {
        trial.number: dataclasses.replace(
            trial, evaluation=dataclasses.replace(trial.evaluation, seconds=0.0)
        )
        for trial in found
    }


def written(path):
    """Returns the outcome that a run folder holds so far."""
    return outcome(read_journal(path / "journal.jsonl").trials)


def assert_same_as(path, expected):
    """The folder holds these trials, and names their best."""
    assert written(path) == expected
    assert (
        RunFolder(path).read_json("best.json")["number"]
        == best_trial(list(expected.values())).number
    )
    state = RunFolder(path).read_json("searcher.json")
    assert (state["told"], state["open"]) == (len(expected), [])


def assert_follows_its_journal(path, n_trials, searcher="bee_colony"):
    """In the asynchronous schedule: each number once, and what a searcher fed in the journal's order proposes."""
    contents = read_journal(path / "journal.jsonl")
    assert sorted(contents.trials) == list(range(n_trials))
    fed = made(searcher)
    for number in contents.order:
        if number >= 0:
            assert fed.ask(1, ahead=True) == [contents.asked[number]]
        else:
            assert contents.trials[~number].candidate == contents.asked[~number]
            fed.tell([contents.trials[~number]])
    saved = RunFolder(path).read_json("searcher.json")
    assert saved["replayed"] == len(contents.order)
    assert saved["state"]["checksum"] == fed.state_dict()["checksum"]
    return contents


def undisturbed(path, **options):
    """Returns the trials of a run in this process."""
    return outcome(loop(path / "undisturbed", **options).run())


class Interrupting:
    """Ctrl-C at every k-th evaluation."""

    def __init__(self, every):
        self.every, self.calls = every, []

    def __call__(self, candidate, seed):
        self.calls.append(numbers()[seed])
        if len(self.calls) % self.every == 0:
            raise KeyboardInterrupt
        return score(candidate, seed)


def resumed(path, *, between=lambda: None, sessions=200, **options):
    """Runs a loop until it is finished, however often it is interrupted; returns how often it was."""
    for session in range(sessions):
        try:
            loop(path, **options).run()
        except KeyboardInterrupt:
            between()
            continue
        return session
    raise AssertionError("it never ends")


# -- runs in processes of their own


def forks():
    """Returns the maker of processes that start with everything imported: a kill then hits the run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.problems", "torch", "abcsearch.config", "abcsearch.runs.config_run"]
    )
    return context


def drive(path, *, workers=0, threads=0, address=None, timeout=None, **options):
    """Runs or continues the loop of a folder as the command line does: exits with its status."""
    from concurrent.futures import ThreadPoolExecutor

    from abcsearch.terminal import answering

    folder = RunFolder(path)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_status_of_exit())
        stack.enter_context(answering(path))
        stack.enter_context(folder.locked())
        executor = None
        if workers:
            executor = RayExecutor(workers, address=address, timeout=timeout, log=folder.log)
            stack.callback(executor.shutdown, cancel_futures=True)
        elif threads:
            executor = stack.enter_context(ThreadPoolExecutor(threads))
        loop(path, executor=executor, **options).run()


@contextlib.contextmanager
def _status_of_exit():
    try:
        yield
    except typer.Exit as error:
        sys.exit(error.exit_code)


def started(path, *, environment=None, **options):
    """Returns a process that runs `drive`; a new one where it needs another environment: Ray reads it on import."""
    path.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn") if environment else forks()
    process = context.Process(target=drive, args=(path,), kwargs=options)
    with mock.patch.dict(os.environ, environment or {}):
        process.start()
    return process


def finished(process, status=0):
    """Waits for the end of a process, which must be of this status."""
    process.join(PATIENCE)
    try:
        assert process.exitcode == status
    finally:
        process.kill()


def until(condition, what, patience=PATIENCE):
    """Waits until something holds; returns it."""
    end = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < end, f"waited for ever: {what}"
        time.sleep(0.02)
    return found


def until_trials(path, count, driver):
    """Waits until so many trials are written down by a process."""
    journal = path / "journal.jsonl"

    def there():
        assert driver.is_alive(), f"ended early, with status {driver.exitcode}"
        return journal.exists() and len(read_journal(journal).trials) >= count

    until(there, f"{count} trials of {path}")


# -- processes, as /proc shows them

PROC = Path("/proc")


def descendants(pid):
    """Returns the ids of all living processes below one, with their command lines."""
    parents, lines = {}, {}
    for entry in PROC.iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    parents[int(entry.name)] = int(parent)
                    lines[int(entry.name)] = (
                        (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    )
    found, below = {}, {pid}
    while below:
        below = {child for child, parent in parents.items() if parent in below}
        found |= {child: lines[child] for child in below}
    return found


def alive(pid):
    """Returns whether a process runs; a zombie does not."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until_gone(family):
    """Waits until none of these processes runs."""
    until(lambda: not any(map(alive, family)), f"the end of {family}")
