"""The chain of transforms of a run: made of its fine-tuned winner, in the folder chain/ of the run."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from abcsearch.errors import ConfigError, ModelError, RunError, quoted, unknown_name
from abcsearch.results.chain import apply_chain, chain_model
from abcsearch.results.finetuned_files import refusal, weights_path
from abcsearch.results.links import FOLDER, START, Chain, chain_for
from abcsearch.runs.disk.stages import CHAINING
from abcsearch.runs.progress import Progress, logged, silent
from abcsearch.training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn

    from abcsearch.results.open_run import FinishedRun


def run_chain(
    run: FinishedRun, *, progress: Progress = silent, tell: Callable[[str], object] = str
) -> Chain | None:
    """Applies the transforms of a run's config to its fine-tuned winner; what is done already is left alone.

    One that was killed goes on after the last whole epoch, with the same bits.

    Args:
        run: the run.
        progress: shown after every epoch.
        tell: takes a line for what is replaced.

    Returns:
        The chain; None where the config has no transforms.

    Raises:
        RunError: if the winner has not been fine-tuned, or what there is of that is damaged.
        ConfigError, ModelError, ExportError: as `apply_chain`.
    """
    config, winner = run.config, run.winner
    if not config.transform:
        return None
    scores = _scores(run)
    if scores is None:
        msg = f"{winner.name} has not been fine-tuned, which comes before the chain; run: "
        raise RunError(f"{msg}abcsearch finetune {quoted(run.folder.path)}")
    folder = run.folder.inside(FOLDER)
    told = logged(run.folder, progress)
    names = ", ".join(transform.name for transform in config.transform)

    def on_epoch(stage: str, done: int, total: int, note: str) -> None:
        run.folder.check()
        run.folder.write_progress(
            f"{CHAINING} {stage.rpartition(' ')[2]}", done, total, busy=1, workers=1
        )
        told(stage, done, total, note)

    with run.folder.locked():
        before = known_chain(run)
        with _way_on(run):
            chain = apply_chain(
                run.network(winner, tuned=True),
                run.result.task.data,
                config.transform,
                folder,
                constructor=config.model.name,
                options=config.model.options,
                recipe=Recipe(**scores["recipe"]),
                seed=config.seed,
                threads=int(config.evaluator.options.get("threads", 1)),
                teacher=run.result.task.base,
                progress=on_epoch,
                tell=tell,
            )
        if before != chain:
            run.folder.log(
                f"{CHAINING} {names}: test {chain.metric} {chain.links[-1].test[chain.metric]:.4f}"
            )
    return chain


@contextlib.contextmanager
def _way_on(run: FinishedRun) -> Iterator[None]:
    """Runs a block; what it refuses of a chain ends with how to change that, and that nothing else is done again."""
    try:
        yield
    except (ConfigError, ModelError) as error:
        path = run.folder.path
        raise type(error)(
            f"{error}; trials and what is fine-tuned stay: change transform in the config, then "
            f"abcsearch search CONFIG --run-dir {quoted(path)}, and abcsearch finetune {quoted(path)}"
        ) from error


def known_chain(run: FinishedRun) -> Chain | None:
    """Returns the chain of a run's fine-tuned winner, finished, as its config says; None where there is none such."""
    scores = run.tuned(run.winner).scores
    wanted = [(transform.name, transform.options) for transform in run.config.transform]
    file = weights_path(run.folder, run.winner.name).name
    if scores is None or not wanted:
        return None
    return chain_for(run.folder.path / FOLDER, wanted, scores.get("weights", {}).get(file))


def _scores(run: FinishedRun) -> Mapping[str, Any] | None:
    """Returns the scores of the fine-tuned winner; None where it is not fine-tuned.

    Raises:
        RunError: if what there is of that is damaged.
    """
    tuned = run.tuned(run.winner)
    if tuned.wrong:
        raise RunError(refusal(run.folder, run.winner.name, tuned))
    return tuned.scores


def link_number(chain: Chain, asked: str | None) -> int:
    """Returns which link is asked for: by its number, its name, or the last one.

    Raises:
        ConfigError: if there is no such link.
    """
    if asked is None:
        return len(chain.links) - 1
    if asked.isdecimal() and int(asked) < len(chain.links):
        return int(asked)
    if asked not in chain.labels:
        raise ConfigError(
            unknown_name("link", asked, [*chain.labels, *map(str, range(len(chain.links)))])
        )
    return chain.labels.index(asked)


def chain_network(run: FinishedRun, chain: Chain, number: int) -> nn.Module:
    """Returns the network of a link of a run's chain."""
    return chain_model(chain, run.config.model.find(), number)


def chain_facts(chain: Chain, number: int) -> list[dict[str, Any]]:
    """Returns what an export says of the links up to its own: by module path, kind and rank."""
    return [
        {
            "name": link.name,
            "options": dict(link.options),
            "facts": dict(link.facts),
            "macs": link.macs,
            "params": link.params,
            "nonzero": link.nonzero,
            "test": dict(link.test),
        }
        for link in chain.links[: number + 1]
        if link.name != START
    ]
