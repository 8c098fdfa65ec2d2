"""An evaluation that only sleeps. Workers import this module: nothing in it loads torch."""

from __future__ import annotations

import math
import os
import random
import sys
import time
from dataclasses import dataclass

from abcsearch.space import Candidate
from abcsearch.trial import Evaluation


@dataclass(frozen=True)
class Sleeping:
    """Sleeps for a time drawn uniformly from `low` to `high` seconds by the trial's seed; wide structures are fit.

    Its metrics: when it began on the clock that all processes of a machine share, how long it meant to sleep, in which
    process, and whether that had loaded torch.
    """

    low: float = 0.5
    high: float = 1.5

    def __call__(self, candidate: Candidate, seed: int) -> Evaluation:
        """Returns what stands for an evaluation."""
        began = time.monotonic()
        slept = random.Random(seed).uniform(self.low, self.high)
        time.sleep(slept)
        metrics = {
            "began": began,
            "slept": slept,
            "process": os.getpid(),
            "torch": "torch" in sys.modules,
        }
        return Evaluation(fitness=sum(map(math.sqrt, candidate)), metrics=metrics)
