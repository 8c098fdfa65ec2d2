"""Is it the structure or the weights? The winner's structure with other weights, or with other channels.

Source: Liu et al., Rethinking the value of network pruning (ICLR 2019), for training from scratch; Frankle and Carbin,
The lottery ticket hypothesis (ICLR 2019), for early weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from abcsearch.baselines.threshold import global_threshold
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.renewing import check_renewable, renew
from abcsearch.channels.source import Sliced, Source
from abcsearch.errors import ConfigError, quoted
from abcsearch.transforms.ranked import sliced

if TYPE_CHECKING:
    from torch import nn

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.orders import Ranking
    from abcsearch.space import Candidate
    from abcsearch.training.recipe import Recipe

_MOST = 2.0  # times as many epochs as the base network had, for what is trained with as many MACs


class Fresh(Source):
    """Networks of the widths of a candidate with new weights, drawn from the seed."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, ranking: Ranking) -> None:
        """Takes what candidates are sliced from.

        Raises:
            ModelError: if a module has parameters, and nothing that draws them anew.
        """
        super().__init__(model, graph, ranking)
        check_renewable(model, "leave out the baselines scratch_e and scratch_b")

    def network(self, candidate: Candidate, seed: int = 0) -> nn.Module:
        """Returns the network of a candidate, with the weights of the seed."""
        network = sliced(self.model, self.graph, self.ranking).network(candidate)
        renew(network, seed)
        return network


def scratch(task: Any) -> Source:  # noqa: ANN401 - a task, of the room that runs are in
    """Returns networks with new weights."""
    return Fresh(task.base, task.graph, task.source.ranking)


def rewound(task: Any) -> Source:  # noqa: ANN401 - a task
    """Returns networks that are sliced from the weights with which the training of the base network began.

    With `rewind` in the config, from those after that epoch (late rewinding).

    Raises:
        ConfigError: if the run has not trained it, or kept no weights of that epoch.
    """
    if _training(task) is None:
        msg = "baseline 'rewound' begins with early weights, and this run has none: its network was brought trained. "
        msg += "Train it by [pretrain], or leave the baseline out"
        raise ConfigError(msg)
    settings = task.settings
    network = settings.space.plain(settings.model.build(settings.seed)).eval()
    if task.early is not None and task.early.exists():
        network.load_state_dict(load_file(task.early))
    elif task.early is not None and task.early.with_name("base.safetensors").exists():
        msg = f"baseline 'rewound' begins with the weights after epoch {settings.rewind} of pre-training (rewind), and "
        msg += f"{task.early} is missing: it is made again by: abcsearch resume {quoted(task.early.parent)}"
        raise ConfigError(msg)
    return Sliced(network, task.graph, task.source.ranking)


def random_channels(task: Any) -> Source:  # noqa: ANN401 - a task
    """Returns networks that keep as many channels of the trained network, but random ones."""
    source = task.source
    ranking = rank_channels(source.model, task.graph, "random", seed=task.settings.seed)
    return Sliced(source.model, task.graph, ranking).beside(source.full)


def as_brought(task: Any) -> Source:  # noqa: ANN401 - a task
    """Returns networks that are sliced from the base network, by its own ranking, as if nothing had been prepared.

    Raises:
        ConfigError: if the run prepares nothing.
    """
    if task.settings.prepare is None:
        msg = "baseline 'one_shot' is what a preparation is compared with, and this run has none: set [iterate] or "
        raise ConfigError(f"{msg}[prepare], or take global_threshold")
    return _unprepared(task)


def _unprepared(task: Any) -> Source:  # noqa: ANN401 - a task
    """Returns the source of a run as it was before its preparation, which may be still to come."""
    return task.source if task.made is None else Sliced(task.base, task.graph, task.rank(task.base))


def one_shot(task: Any) -> Candidate:  # noqa: ANN401 - a task
    """Returns what `global_threshold` leaves of the base network by its own scores."""
    return global_threshold(replace(task, source=_unprepared(task)))


def as_many_epochs(recipe: Recipe, task: Any, structure: Candidate) -> Recipe:  # noqa: ANN401 - a task
    """Returns the recipe that is asked for, with the epochs on top that the preparation says it has trained for."""
    del structure
    epochs = None if task.made is None else task.made.facts.get("epochs")
    return replace(recipe, epochs=recipe.epochs + epochs) if isinstance(epochs, int) else recipe


def as_long(recipe: Recipe, task: Any, structure: Candidate) -> Recipe:  # noqa: ANN401 - a task
    """Returns the recipe that the base network was trained by, where the run has trained it; else what is asked for."""
    del structure
    training = _training(task)
    return (
        recipe
        if training is None
        else replace(training, device=recipe.device, threads=recipe.threads)
    )


def as_many_macs(recipe: Recipe, task: Any, structure: Candidate) -> Recipe:  # noqa: ANN401 - a task
    """Returns the same for as many MACs: more epochs, as the structure is smaller, at most twice as many."""
    recipe = as_long(recipe, task, structure)
    costs = task.graph.costs
    (full,), (small,) = costs.macs([task.graph.space(1.0).full]), costs.macs([structure])
    return replace(recipe, epochs=int(recipe.epochs * min(full / small, _MOST)))


def _training(task: Any) -> Recipe | None:  # noqa: ANN401 - a task
    """Returns the recipe that the run trains its base network by, if it does."""
    return getattr(task.settings, "pretrain", None)
