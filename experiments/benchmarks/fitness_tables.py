"""The tables of the benchmark of fitness."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from abcsearch.errors import ConfigError
from abcsearch.evaluation.cascade import Cascade
from abcsearch.evaluation.staged import cheap, trained
from abcsearch.trial import Evaluation
from experiments.benchmarks.agreement import compared, interval, resampled
from experiments.tables import cell

METRICS = ("top1", "neg_loss", "neg_kl")
SCREEN = (
    "AdaptiveBN, 1024 images"  # what criteria are compared by, and the first stage of the cascade
)
# Its second stage: the first of these that was scored.
TRAINED = ("short training, 2 epochs", "short training, 1 epoch")
DEFAULT = "AdaptiveBN, 512 images: top1"  # what a search takes for fitness unless told otherwise


def add_cascade(record: dict[str, Any], fraction: float = 0.2) -> None:
    """Adds the cascade: the first stage for all, the second for the best fraction; unless a stage is missing."""
    stages = [name for name in (SCREEN, *TRAINED) if f"{name}: {METRICS[0]}" in record["fitness"]][
        :2
    ]
    if len(stages) < 2 or stages[0] != SCREEN:
        return
    for metric in METRICS:
        (first, cost), (second, more) = (record["fitness"][f"{name}: {metric}"] for name in stages)
        cascade = object.__new__(Cascade)  # its stages are known already
        cascade.fraction = fraction
        cheaply = {n: cheap(Evaluation(fitness=value)) for n, value in enumerate(first)}
        best = cascade.promoted([], cheaply)
        values = [
            trained(cheaply[n], Evaluation(fitness=second[n])).fitness if n in best else v
            for n, v in enumerate(first)
        ]
        record["fitness"][f"cascade to {stages[1]}, best {fraction:.0%}: {metric}"] = (
            values,
            cost + fraction * more,
        )


def report(record: dict[str, Any]) -> str:
    """Returns the tables in Markdown."""
    criteria: dict[str, list[dict[str, Any]]] = record["criteria"]
    ours = next(iter(criteria.values()))
    for one in ours:
        add_cascade(one)
    truths = [np.mean(one["truth"], axis=1).tolist() for one in ours]
    lines = ["| " + " | ".join(cells) + " |" for cells in _fitness(ours, truths)]
    if len(criteria) > 1:
        lines += ["", *_criteria(criteria)]
    truth = np.array(truths)
    full, count = cell([100 * one["full"] for one in ours]), truth.shape[1]
    lines += [
        "",
        f"Full network: {full} %; {count} structures, fine-tuned {100 * truth.min():.1f} to",
    ]
    lines[-1] += f" {100 * truth.max():.1f} %. {record['machine']}."
    return "\n".join(lines)


def _fitness(ours: list[dict[str, Any]], truths: list[list[float]]) -> list[list[str]]:
    """Returns the table of fitnesses; with one seed, which has no spread over seeds, with intervals over structures."""
    values = {"MACs alone": ([one["macs"] for one in ours], "")}
    for name in ours[0]["fitness"]:
        scores, seconds = zip(*(one["fitness"][name] for one in ours), strict=True)
        values[name] = list(scores), f"{statistics.mean(seconds):.3f}".replace("nan", "")
    drawn = (
        {name: resampled(scores[0], truths[0]) for name, (scores, _) in values.items()}
        if len(ours) == 1
        else {}
    )
    differ = [] if DEFAULT not in drawn else ["- that of the default"]
    head = ["fitness", "Kendall's tau", *differ, "top-5 recall", "chosen, %", "s per structure"]
    lines = [head, ["---"] * len(head)]
    for name, (scores, seconds) in values.items():
        both = [compared(one, truth) for one, truth in zip(scores, truths, strict=True)]
        cells = [name, cell([tau for tau, _ in both])]
        if drawn:
            cells[1] += f" ({interval(drawn[name])})"
        if differ:
            less = both[0][0] - compared(values[DEFAULT][0][0], truths[0])[0]
            cells.append(
                ""
                if name == DEFAULT
                else f"{less:+.2f} ({interval(drawn[name] - drawn[DEFAULT], '+')})"
            )
        chosen = [
            100 * truth[int(np.argmax(one))] for one, truth in zip(scores, truths, strict=True)
        ]
        lines.append([*cells, cell([recalled for _, recalled in both]), cell(chosen), seconds])
    if len(ours[0]["truth"][0]) > 1:
        again = [kendalltau(*np.transpose(one["truth"])[:2]).statistic for one in ours]
        lines.append(
            [
                "fine-tuning against fine-tuning with another seed",
                cell(again),
                *([""] * (len(head) - 2)),
            ]
        )
    return lines


def judged_by(record: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Returns results with the truth of other ones, whose structures are the first here; the own truth is a fitness.

    Raises:
        ConfigError: if they are others.
    """
    ours, theirs = (next(iter(each["criteria"].values())) for each in (record, other))
    if len(ours) != len(theirs):
        msg = f"--truth: {len(theirs)} seed(s) there, {len(ours)} in --results"
        raise ConfigError(msg)
    judged = []
    for mine, given in zip(ours, theirs, strict=True):
        count = len(given["macs"])
        if mine["macs"][:count] != given["macs"]:
            msg = f"--truth: the {count} structures there are not the first of those in --results"
            raise ConfigError(msg)
        fitness = {
            name: (values[:count], seconds) for name, (values, seconds) in mine["fitness"].items()
        }
        mean = np.mean(mine["truth"][:count], axis=1).tolist()
        judged.append(
            {**given, "fitness": {**fitness, "fine-tuning as in --results": (mean, math.nan)}}
        )
    return {"machine": record["machine"], "criteria": {next(iter(record["criteria"])): judged}}


def _criteria(criteria: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Returns the table of criteria, line by line."""
    lines = [
        "| criterion | tau of AdaptiveBN: top1 | tau of AdaptiveBN: neg_loss | fine-tuned, % | best, % |"
    ]
    lines.append("| --- | --- | --- | --- | --- |")
    for criterion, seeds in criteria.items():
        true = [np.mean(one["truth"], axis=1) for one in seeds]
        taus = [
            cell(
                [
                    compared(o["fitness"][f"{SCREEN}: {metric}"][0], t.tolist())[0]
                    for o, t in zip(seeds, true, strict=True)
                ]
            )
            for metric in ("top1", "neg_loss")
        ]
        means, bests = (
            cell([100 * float(t.mean()) for t in true]),
            cell([100 * float(t.max()) for t in true]),
        )
        lines.append(f"| {criterion} | {taus[0]} | {taus[1]} | {means} | {bests} |")
    return lines
