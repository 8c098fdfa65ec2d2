"""Network Slimming: sparse batch-norm scales, and one threshold for all of them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.source import Sliced
from abcsearch.errors import PreparationError, plural
from abcsearch.preparation.base import Preparation, Prepared, loaded
from abcsearch.preparation.options import SlimmingOptions
from abcsearch.preparation.structures import threshold_cut
from abcsearch.training.checks import check_training
from abcsearch.training.lesson import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import nn

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.group import Member
    from abcsearch.channels.source import Source
    from abcsearch.preparation.base import Pruning, Tensors, Trainer
    from abcsearch.training.recipe import Recipe


class Slimming(Preparation):
    """Trains the network with a penalty on the scales of batch norms; those of channels it can do without go to 0.

    Candidates are sliced out of that network, channels ranked by |gamma| (so the run's criterion is not used). The
    search begins with one structure: that of a threshold on the gammas of all layers, cut where the budget is met.

    Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming (ICCV 2017), section 3.

    Differences from the paper:
        - After a step of the optimiser, gamma <- sign(gamma) * max(|gamma| - lr * strength / (1 - momentum), 0), which
          makes gammas exactly 0; the published sub-gradient, `step = "subgradient"`, leaves them swinging about it.
          With the factor, both do the same to gammas that stay. Under AdamW the factor is 1.
        - Penalised are the gammas of channels that can be removed; the paper penalises all.
        - It begins with the trained network and its gammas, unless `start_gamma` is set; the paper trains anew, with
          gammas of 0.5.
        - Channels that are tied together, as on a residual stream, have one score: the mean over their batch norms.
          The paper scores every batch norm alone, and lets each block read another choice of the stream.
        - The threshold follows from the budget, and no layer gets narrower than the narrowest of the space; the paper
          removes a given share of all channels, of a layer possibly all.
        - Weight decay spares gammas here, so the same strength leaves them larger than the published code's 1e-4 does.
        - The shift of a channel whose gamma is 0 goes with it, as in the paper; re-estimated statistics make up for it.
    """

    Options: ClassVar[type] = SlimmingOptions
    milder: ClassVar[str] = "lower strength = {strength}"
    options: SlimmingOptions

    def check(self, task: Pruning) -> None:
        """Raises unless there are gammas to penalise, and the recipe suits the data.

        Raises:
            PreparationError: if no channel that can be removed has a batch norm, or the search has criteria to choose
                from.
            ConfigError: if the recipe does not suit the data.
        """
        if not penalised(task.graph, task.base):
            msg = (
                f"slimming penalises the scales of batch norms, and {type(task.base).__name__} has none that is "
                f"trained and belongs to channels that can be removed ({plural(len(task.graph.prunable), 'group')} "
                "without); take group_lasso, soft_pruning, autopruner or taylor_iterative, which need none"
            )
            raise PreparationError(msg)
        if not task.space.ordered.all():
            msg = "slimming ranks channels by the scales that it trains, so criteria cannot be chosen from: set one name"
            raise PreparationError(msg)
        check_training(
            self.options.training, task.data.train, task.data.objective, taught=False, scored=False
        )

    def prepare(self, task: Pruning, trainer: Trainer) -> Prepared:
        """Trains a copy of the network; returns it, the structure of the threshold, and what became of the gammas."""
        network, recipe = copy.deepcopy(task.base), self.options.training
        gammas = penalised(task.graph, network)
        if self.options.start_gamma is not None:
            with torch.no_grad():
                for name, entries in gammas.items():
                    network.get_parameter(name)[entries] = self.options.start_gamma
        lesson = SparseScales(
            network,
            gammas,
            strength=self.options.strength,
            step=self.options.step,
            objective=task.data.objective,
        )
        trained = trainer.train(lesson, recipe, name="slimming")
        scores = gamma_scores(task.graph, network.eval())
        cut = threshold_cut(scores, task.constraint)
        values = np.concatenate([score[np.isfinite(score)] for score in scores])
        facts = {
            "epochs": recipe.epochs,
            "loss of the first and the last epoch": [trained.losses[0], trained.losses[-1]],
            "channels with a batch norm": len(values),
            "of these with a scale of 0": int((values == 0).sum()),
            "median scale": float(np.median(values)),
            "an idle scale shrinks by": lesson.reach,
            **cut.facts(task.constraint),
        }
        return Prepared(source=self._source(task, network), starts=[cut.structure], facts=facts)

    def source(self, task: Pruning, modules: Mapping[str, Tensors]) -> Source:
        """Returns the trained network as a source, its channels ranked by |gamma|."""
        return self._source(task, loaded(task.base, modules["network"]))

    def _source(self, task: Pruning, network: nn.Module) -> Source:
        return Sliced(network, task.graph, rank_channels(network, task.graph, "bn_gamma"))


class SparseScales(Supervised):
    """A network learns the labels with a penalty on some batch-norm scales.

    Attributes:
        reach: how far the proximal steps so far have moved a scale that no gradient holds.
    """

    def __init__(
        self,
        model: nn.Module,
        gammas: Mapping[str, torch.Tensor],
        *,
        strength: float,
        step: str = "proximal",
        objective: str = "classification",
    ) -> None:
        """Takes what is learned, and which scales are penalised.

        Args:
            model: the network.
            gammas: names of parameters, and which of their entries, as `penalised` returns them.
            strength: of the penalty.
            step: "proximal" or "subgradient".
            objective: of `OBJECTIVES`.
        """
        super().__init__(model, objective=objective)
        self._strength, self._proximal = strength, step == "proximal"
        self._gammas = [(model.get_parameter(name), entries) for name, entries in gammas.items()]
        self._names, self.reach = list(gammas), 0.0

    def optimizers(self, recipe: Recipe) -> Mapping[str, torch.optim.Optimizer]:
        """Returns the recipe's one, whose learning rate is the length of proximal steps."""
        made = super().optimizers(recipe)
        self._optimizer = made["all"]
        # Momentum multiplies what a steady gradient does by this; AdamW divides by its size instead.
        self._factor = 1 / (1 - recipe.momentum) if recipe.optimizer == "sgd" else 1.0
        return made

    def step(
        self, images: torch.Tensor, labels: torch.Tensor, draws: torch.Generator
    ) -> torch.Tensor:
        """Returns the loss of a batch, with the penalty where its sub-gradient acts."""
        loss = super().step(images, labels, draws)
        if self._proximal:
            return loss
        return loss + self._strength * sum(
            gamma[entries.to(gamma.device)].abs().sum() for gamma, entries in self._gammas
        )

    def after_step(self, progress: float) -> None:
        """Shrinks the scales: what a step of the penalty does to each of them, and no further than to 0."""
        del progress
        length = self._optimizer.param_groups[0]["lr"] * self._strength * self._factor
        self.reach += length
        if not self._proximal:
            return
        with torch.no_grad():
            for gamma, entries in self._gammas:
                shrunk = torch.nn.functional.softshrink(gamma, length)
                gamma.copy_(torch.where(entries.to(gamma.device), shrunk, gamma))

    def same(self) -> Mapping[str, Any]:
        """Returns objective and penalty."""
        return {
            **super().same(),
            "strength": self._strength,
            "proximal": self._proximal,
            "gammas": self._names,
        }

    def state_dict(self) -> Mapping[str, Any]:
        """Returns how far steps have moved an idle scale."""
        return {"reach": self.reach}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes that up."""
        self.reach = float(state["reach"])


def penalised(graph: ChannelGraph, model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the batch-norm scales that belong to channels which can be removed.

    Returns:
        Names of parameters that are trained, each with a mask of its entries, (entries,) bool.
    """
    tensors = graph.tensors(model)
    masks: dict[str, torch.Tensor] = {}
    for group in graph.prunable:
        for member in _scales(tensors, group.members):
            gamma = tensors[member.parameter]
            if gamma.requires_grad:
                mask = masks.setdefault(
                    member.parameter, torch.zeros(gamma.shape, dtype=torch.bool)
                )
                mask[torch.from_numpy(member.entries)] = True
    return masks


def gamma_scores(graph: ChannelGraph, model: nn.Module) -> list[NDArray[np.float64]]:
    """Returns per prunable group the mean |gamma| of every channel over its batch norms; infinite without one.

    A mean, and no sum, so that groups of many layers and of one can be compared.
    """
    tensors = graph.tensors(model)
    scores: list[NDArray[np.float64]] = []
    for group in graph.prunable:
        sums, counts = np.zeros(group.channels), np.zeros(group.channels)
        for member in _scales(tensors, group.members):
            sizes = tensors[member.parameter].detach().abs().double().cpu().numpy()
            np.add.at(sums, member.channels, sizes[member.entries])
            np.add.at(counts, member.channels, 1)
        scores.append(np.where(counts > 0, sums / np.maximum(counts, 1), np.inf))
    return scores


def _scales(tensors: Tensors, members: tuple[Member, ...]) -> list[Member]:
    """Returns the members of a group that are scales of batch norms."""
    return [m for m in members if m.parameter.removesuffix("weight") + "running_mean" in tensors]
