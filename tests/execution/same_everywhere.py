"""Prints a digest of the trials of many searches, run in a process whose surroundings are given: see its test."""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import torch

from abcsearch import Budget, Data, ExecutionOptions, search
from abcsearch.execution.ray_executor import RayExecutor
from abcsearch.execution.serial import SerialExecutor
from abcsearch.models.resnet import SmallResNet
from abcsearch.rng import torch_seeded

SEARCHERS = [
    {"name": "bee_colony", "n_sources": 4},
    {"name": "regularized_evolution", "population": 6, "sample_size": 3, "batch": 3},
    {"name": "optuna", "sampler": "tpe"},
    {"name": "optuna", "sampler": "gp"},
    {"name": "ddpg", "warmup": 3},
    {"name": "response_surface"},
]
RANDOM = {"name": "random"}
EVALUATORS = {
    "adaptive_bn": {"calibration_images": 32, "batch_size": 32},
    "short_training": {"steps": 2, "batch_size": 32},
    "adaptive_bn of two threads": {"calibration_images": 32, "batch_size": 32, "threads": 2},
}
SCHEDULES = {"rounds": 0, "window": 6}


def problem():
    """Returns an untrained network, and images of two classes."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(160) % 2
    images = torch.randn(160, 1, 6, 6, generator=draws)
    images[labels == 1, :, :3] += 2
    with torch_seeded(0, "init"):
        model = SmallResNet(in_channels=1, classes=2, widths=(6, 8), depths=(1, 1))
    return model, Data.from_tensors(
        (images[:120], labels[:120]), (images[120:], labels[120:]), validation=0.25
    )


def digest(trials):
    """Returns a hash of structures, fitness and metrics, bit for bit."""
    plain = [
        [t.number, t.candidate, repr(t.evaluation.fitness), repr(t.evaluation.metrics)]
        for t in trials
    ]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:12]


def main(executor, threads, schedules):
    """Searches with every searcher and with every evaluator, by one schedule or the other in turn, or by both."""
    torch.set_num_threads(threads)
    cases = [(searcher, "adaptive_bn") for searcher in SEARCHERS] + [
        (RANDOM, name) for name in EVALUATORS
    ]
    digests = {}
    for number, (searcher, evaluator) in enumerate(cases):
        for schedule, window in list(SCHEDULES.items())[:: 1 if number % 2 else -1][:schedules]:
            model, data = problem()
            with tempfile.TemporaryDirectory() as folder:
                result = search(
                    model,
                    data,
                    budget=Budget(macs=0.6),
                    n_trials=13,
                    run_dir=Path(folder) / "run",
                    searcher=searcher,
                    evaluator={"name": evaluator.split()[0], **EVALUATORS[evaluator]},
                    execution=ExecutionOptions(window=window),
                    executor=executor,
                )
            digests[f"{searcher}, {evaluator}, {schedule}"] = digest(result.trials)
    print(json.dumps(digests))  # noqa: T201


if __name__ == "__main__":
    workers, threads, schedules = map(int, sys.argv[1:])
    with RayExecutor(workers) if workers else SerialExecutor() as shared:  # workers start once
        main(shared, threads, schedules)
