"""Evaluators for worker processes: they need no torch, and can be made to hang or to kill their process."""

import dataclasses
import functools
import os
import random
import signal
import sys
import time
from pathlib import Path

from abcsearch.rng import derived_seed
from abcsearch.testing import toy_fitness, toy_space
from abcsearch.trial import Evaluation

SPACE = toy_space()


def score(candidate, seed):
    """What an undisturbed evaluation finds: depends on candidate and seed, and every ninth fails."""
    if seed % 9 == 0:
        raise ValueError("made to fail")
    return Evaluation(
        fitness=toy_fitness(SPACE, candidate) + seed % 1000 / 1e4,
        metrics={"seed": float(seed % 1000)},
    )


@functools.cache
def numbers(count=1000):
    """Returns trial numbers by the seeds of their evaluations."""
    return {derived_seed(0, "evaluation", number): number for number in range(count)}


@dataclasses.dataclass(frozen=True)
class Troubled:
    """An evaluator that takes its time, and whose first attempts at some trials kill their process or hang.

    Attributes:
        folder: counts attempts.
        seconds: that an evaluation takes.
        kills: how many attempts die, by trial number.
        hangs: how many attempts hang, by trial number.
    """

    folder: Path
    seconds: float = 0.0
    kills: dict[int, int] = dataclasses.field(default_factory=dict)
    hangs: dict[int, int] = dataclasses.field(default_factory=dict)

    def __call__(self, candidate, seed):
        number = numbers()[seed]
        with (self.folder / str(number)).open("a") as file:
            file.write(f"{os.getpid()}\n")
        attempt = self.attempts(number)
        if attempt <= self.kills.get(number, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if attempt <= self.hangs.get(number, 0):
            time.sleep(3600)
        time.sleep(self.seconds)
        return score(candidate, seed)

    def attempts(self, number):
        """Returns how often a trial's evaluation was begun."""
        path = self.folder / str(number)
        return len(path.read_text().splitlines()) if path.exists() else 0


def jittery(candidate, seed):
    time.sleep(random.random() * 0.004)  # must not repeat
    return score(candidate, seed)


def constant(candidate, seed):
    return score(SPACE.full, 9 * seed + 1)


def nonsense(candidate, seed):
    return "3"


def without_memory(candidate, seed):
    raise MemoryError


def divide(number, by):
    return number / by


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def has_torch():
    return "torch" in sys.modules


class Counted:
    """Counts in a file how often it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __setstate__(self, state):
        self.__dict__ = state
        with self.path.open("a") as file:
            file.write("x")

    def __call__(self, number):
        return number, os.getpid()


class Explosive:
    """Goes off where it is unpickled."""

    def __init__(self):
        self.what = "data set"

    def __setstate__(self, state):
        raise OSError(f"there is no {state['what']} on this machine")

    def __call__(self):
        return 1
