"""What racing saves and what it loses: a search in full whose answers are kept image by image, raced again and again.

    python experiments/benchmarks/racing.py CONFIG --out FOLDER [--trials 60] [--orders 200] [--set KEY=VALUE]

The config's search runs once, every candidate on all images; what is in the folder is not evaluated again. Then its
trials race as a run has them race, images in so many random orders: how many images they would have seen, how many
trials would have been stopped early, and how much worse the winner would have been (by full scores of the best five).
The trials themselves stay those of the search in full: what a searcher makes of partial scores is not asked here.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from abcsearch import search
from abcsearch.config import read_config
from abcsearch.evaluation import racing
from abcsearch.evaluation.registry import make_evaluator
from abcsearch.evaluation.sliced import SlicedEvaluator
from abcsearch.runs.config_run import load_run_data
from abcsearch.runs.disk.weights import load_checkpoint
from abcsearch.runs.task import Task
from abcsearch.searchers.registry import make_searcher
from abcsearch.training.objectives import find_objective
from abcsearch.training.scoring import predict
from abcsearch.trial import Evaluation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from abcsearch.searchers.base import Searcher
    from abcsearch.space import Candidate
    from abcsearch.trial import Trial

FINALISTS = 5


class Raced(NamedTuple):
    """What came of one order.

    Attributes:
        images: share of the images that trials saw.
        all_images: the same with those that the best few were scored on at the end.
        stopped: share of the trials that were stopped early.
        lost: how much worse the winner is than the best trial, both in full.
    """

    images: float
    all_images: float
    stopped: float
    lost: float


class Keeping:
    """An evaluator that keeps what every image was worth."""

    def __init__(self, evaluator: SlicedEvaluator, folder: Path) -> None:
        self.evaluator, self.folder = evaluator, folder
        self.metrics = find_objective(evaluator.data.objective).metrics

    def __call__(self, candidate: Candidate, seed: int) -> Evaluation:
        """Returns fitness, and the mean of every metric."""
        images = self.evaluator.data.validation
        outputs = predict(self.evaluator.build(candidate, seed), images)
        values = {
            name: metric(outputs, images.labels).double() for name, metric in self.metrics.items()
        }
        arrays: dict[str, Any] = {name: scores.numpy() for name, scores in values.items()}
        np.savez(self.path(candidate), **arrays)
        means = {name: float(scores.mean()) for name, scores in values.items()}
        return Evaluation(fitness=means[self.evaluator.metric], metrics=means)

    def path(self, candidate: Candidate) -> Path:
        """Returns where the values of a candidate are."""
        return self.folder / f"{'-'.join(map(str, candidate))}.npz"


def race(values: NDArray[np.float64], first: int, learned: Sequence[int]) -> Raced:
    """Returns what comes of a race.

    Args:
        values: (trials, images) in the order of proposing, and in which images are shown.
        first: images of the first stage.
        learned: from how many trials the searcher had learned when it proposed each.
    """
    every = torch.from_numpy(values)
    count = values.shape[1]
    fitness, seen = np.zeros(len(values)), np.zeros(len(values))
    for number, row in enumerate(every):
        best = max(fitness[: learned[number]].tolist(), default=-math.inf)
        for last in racing.ends(count, first):
            fitness[number], seen[number] = float(row[:last].mean()), last
            if racing.is_behind(fitness[number], racing.standard_error(row[:last]), best):
                break
    leaders = np.argsort(-fitness, kind="stable")[:FINALISTS]
    full = values.mean(axis=1)
    more = count * (seen[leaders] < count).sum()
    return Raced(
        images=seen.mean() / count,
        all_images=(seen.sum() + more) / count / len(values),
        stopped=float((seen < count).mean()),
        lost=float(full.max() - full[leaders].max()),
    )


def batches(searcher: Searcher, trials: Sequence[Trial]) -> list[int]:
    """Returns from how many trials a new searcher has learned when it proposes each of these."""
    learned: list[int] = []
    while len(learned) < len(trials):
        told = len(learned)
        batch = trials[told : told + len(searcher.ask(len(trials) - told))]
        searcher.tell(batch)
        learned += [told] * len(batch)
    return learned


def main(argv: list[str] | None = None) -> None:
    """Searches where that is to be done, races, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--set", action="append", default=[], dest="changes")
    arguments = parser.parse_args(argv)
    config = read_config(arguments.config, arguments.changes)
    model, data = config.model.build(config.seed), load_run_data(config)
    if config.model.checkpoint is not None:
        load_checkpoint(model, config.model.checkpoint)
    task = Task.of(model.eval(), data, config)
    options = {**config.evaluator.options, "scoring": "full"}
    evaluator = make_evaluator(config.evaluator.name, task.source, data, **options)
    if not isinstance(evaluator, SlicedEvaluator):
        parser.error(
            f"evaluator {config.evaluator.name!r} does not race: it scores no candidate on images itself"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    keeping = Keeping(evaluator, arguments.out)
    result = search(
        model,
        data,
        budget=config.budget,
        n_trials=arguments.trials,
        run_dir=arguments.out / "run",
        searcher={"name": config.searcher.name, **config.searcher.options},
        evaluator=keeping,
        seed=config.seed,
        space=config.space,
        criterion=config.criterion,
    )
    searcher = make_searcher(
        config.searcher.name,
        task.space,
        task.constraint,
        seed=config.seed,
        **config.searcher.options,
    )
    learned = batches(searcher, result.trials)
    kept = [np.load(keeping.path(trial.candidate)) for trial in result.trials]
    head = [
        "metric",
        "images, %",
        "with the final ones, %",
        "stopped early, %",
        "winner worse by",
        "in orders, %",
    ]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for metric in kept[0].files:
        values = np.stack([one[metric] for one in kept])
        draws = np.random.default_rng(config.seed)
        orders = [draws.permutation(values.shape[1]) for _ in range(arguments.orders)]
        races = [
            race(np.ascontiguousarray(values[:, order]), racing.FIRST_STAGE, learned)
            for order in orders
        ]
        images, all_images, stopped, lost = np.array(races).T
        cells = [f"{100 * shares.mean():.1f}" for shares in (images, all_images, stopped)]
        lines.append(
            f"| {metric} | {' | '.join(cells)} | {lost.mean():.5f} | {100 * (lost > 0).mean():.1f} |"
        )
    sys.stdout.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
