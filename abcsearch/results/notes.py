"""What a report says of its numbers: how they were measured, and what has to be known of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from abcsearch.errors import plural, quoted
from abcsearch.preparation.structures import missed_bounds
from abcsearch.results.finetuned_files import FOLDER, kept
from abcsearch.results.forward import BATCHES
from abcsearch.runs.disk.decision import scored
from abcsearch.runs.disk.environment import versions_text
from abcsearch.runs.disk.setup import read_setup
from abcsearch.runs.latency import timed_words
from abcsearch.runs.recipes import finetune_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from abcsearch.results.open_run import FinishedRun
    from abcsearch.results.rows import Row


def notes_of(
    run: FinishedRun, rows: Sequence[Row], recipe: Mapping[str, Any] | None, out: Path | None = None
) -> tuple[str, ...]:
    """Returns how the numbers were measured, and which cannot be compared.

    Args:
        run: the run.
        rows: its networks, the full one first and the winner last.
        recipe: that the winner was fine-tuned with; None if it was not.
        out: where the page is written, if not in the folder of the run.
    """
    header, config = run.folder.header(), run.config
    threads = int(config.evaluator.options.get("threads", 1))
    outside, setup = _outside(run), read_setup(run.folder)
    versions = versions_text(header)
    failed = sum(trial.evaluation.failure is not None for trial in run.result.trials)
    data = run.result.task.data
    platform = header["environment"].get("platform", "an unknown platform")
    return (
        f"Fitness: {config.evaluator.name} ({config.evaluator.options.get('metric') or run.metric}) "
        f"on {plural(len(data.validation), 'search-validation image')}. "
        f"Before and after fine-tuning: {run.metric} on {plural(len(data.test), 'test image')}. "
        f"Fine-tuned: {_fine_tuned(run, rows, recipe)}{_kept(run)}. "
        f"Forward time: median for a whole batch of {' and of '.join(map(str, BATCHES))} on the CPU, "
        f"{threads} thread(s), the networks in turns.{_overlapping(rows, _again(run, out))}",
        f"{_counted(run)}, {failed} failed, seed {config.seed}; {versions}; {platform}.",
        *(() if setup is None else setup.lines),
        *filter(None, [scored(run.result.trials, run.result.decision), _timed(run), outside]),
    )


def _timed(run: FinishedRun) -> str:
    """Returns what the forward time of the budget is; "" without any."""
    words = timed_words(run.result.task.constraint.costs)
    return f"{words[0].upper()}{words[1:]}." if words else ""


def _fine_tuned(run: FinishedRun, rows: Sequence[Row], recipe: Mapping[str, Any] | None) -> str:
    """Returns how the networks were fine-tuned, and which of them otherwise than the winner or not at all."""
    again = finetune_command(run.folder.path, recipe, asdict(run.config.finetune))
    missing = [row.network for row in rows if not row.tests]
    if recipe is None:
        others = f"; {', '.join(row.network for row in rows if row.tests)} may be of other recipes"
        return f"{rows[-1].network} not yet ({again}){others if len(missing) < len(rows) else ''}"
    epochs = f"{plural(recipe['epochs'], 'epoch')}"
    odd = [f"{row.network}: {'; '.join(row.otherwise)}" for row in rows if row.otherwise]
    recipes = "".join(
        f"; {row.network} with its own: {', '.join(row.own)}" for row in rows if row.own
    )
    if not odd:
        rest = f"; not yet: {', '.join(missing)} ({again})" if missing else ""
        others = " for all" if not recipes else " for all others"
        return f"{epochs} with one recipe{rest or others}{recipes}"
    return (
        f"{rows[-1].network} {epochs}; not with this recipe, so that what is after cannot be compared: "
        f"{'. '.join([*odd, *(f'{name}: not yet' for name in missing)])}. Make them equal first ({again}){recipes}"
    )


def _kept(run: FinishedRun) -> str:
    """Returns where there are networks that were fine-tuned by other recipes; "" if there are none."""
    names = [path.name for path in kept(run.folder)]
    return f"; by other recipes, in {run.folder.path / FOLDER}: {', '.join(names)}" if names else ""


def _overlapping(rows: Sequence[Row], again: str) -> str:
    """Returns which forward times cannot be told apart from the full network's, and what to do; "" if all can."""
    full, *others = rows
    near = {
        before.where: [row.network for row in others if not row.times[index].apart(before)]
        for index, before in enumerate(full.times)
    }
    overlaps = [f"{where} of {', '.join(names)}" for where, names in near.items() if names]
    if not overlaps:
        return ""
    return (
        f" Not told apart from the full network's: {'; '.join(overlaps)}: the middle halves of the times overlap. "
        f"If this machine was busy, repeat it when it is quiet: {again}"
    )


def _counted(run: FinishedRun) -> str:
    """Returns how many trials there are, and whether more would come."""
    done, all_ = len(run.result.trials), run.config.n_trials
    over = done >= all_ or run.folder.exhausted()
    return f"{plural(done, 'trial')}" if over else f"{done} of {plural(all_, 'trial')} so far"


def _again(run: FinishedRun, out: Path | None) -> str:
    """Returns the command that writes this report once more."""
    if out is None:
        return f"abcsearch report {quoted(run.folder.path)}"
    return f"abcsearch report {quoted(run.folder.path)} --out {quoted(out)}"


def _outside(run: FinishedRun) -> str:
    """Returns which networks that the winner is compared with are outside of the budget, and by how much, or ""."""
    lines: list[str] = []
    for structure in run.structures[1:]:
        words = missed_bounds(structure.candidate, run.result.task.constraint)
        lines += [f"{structure.name} ({words})"] if words else []
    return (
        f"Outside of the budget, so no comparison at equal cost: {', '.join(lines)}."
        if lines
        else ""
    )
