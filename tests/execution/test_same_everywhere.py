"""The same trials, bit for bit, whatever the number of workers, the hash seed and the threads of the surroundings."""

import json
import os
import subprocess
import sys

import pytest

# Workers, PYTHONHASHSEED, OMP_NUM_THREADS, torch.set_num_threads.
HERE = (0, 0, 1, 1)
OTHERS = [(0, 1, 2, 2)]
WITH_WORKERS = [(1, 2, 1, 3), (2, 3, 2, 1), (3, 4, 3, 2)]


def trials(workers, seed, omp, threads, schedules):
    """Returns digests of many searches by name; the last line, since other tools may print, too."""
    environment = {
        **os.environ,
        "PYTHONHASHSEED": str(seed),
        "OMP_NUM_THREADS": str(omp),
        "OMP_WAIT_POLICY": "passive",
    }
    line = [
        sys.executable,
        "-m",
        "tests.execution.same_everywhere",
        str(workers),
        str(threads),
        str(schedules),
    ]
    done = subprocess.run(
        line, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("schedules", [1, pytest.param(2, marks=pytest.mark.faults)])
def test_trials_are_the_same_everywhere(schedules):
    """Every searcher and evaluator; `make test-faults` has both schedules with each, and workers."""
    expected = trials(*HERE, schedules)
    for surroundings in [*OTHERS, *(WITH_WORKERS if schedules > 1 else ())]:
        assert trials(*surroundings, schedules) == expected, surroundings
