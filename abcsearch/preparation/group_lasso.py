"""Structured sparsity learning: whole channels, and whole blocks, whose weights go to 0 together."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from abcsearch.channels.fixed import Fixed, ranked_by
from abcsearch.preparation.base import Preparation, Prepared, loaded
from abcsearch.preparation.makers import Makers
from abcsearch.preparation.options import GroupLassoOptions
from abcsearch.preparation.structures import check_criterion, threshold_cut
from abcsearch.training.checks import check_training
from abcsearch.training.lesson import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.source import Source
    from abcsearch.preparation.base import Pruning, Tensors, Trainer
    from abcsearch.training.recipe import Recipe


class GroupLasso(Preparation):
    """Trains the network with a penalty on the norm of all that makes a channel; dispensable ones become 0 as a whole.

    Where the space has blocks, the norm of all weights of a block is penalised as well. It needs no batch norms.
    Channels are ranked by the norm of their weights by the mean norm of their layer before the training, which the
    search's first structure cuts at one threshold for all layers, where the budget is met; blocks that have become 0
    are dropped in it.

    Source: Wen et al., Learning Structured Sparsity in Deep Neural Networks (NeurIPS 2016).

    Differences from the paper:
        - A channel's weights are those of all coupled layers that make it, batch-norm scales and shifts among them: a
          scale would make up for whatever is taken from the filters. The paper penalises single filters, single input
          channels and positions of kernels.
        - A norm counts times the mean norm of its layer before the training, so that what is idle vanishes at one pace
          everywhere; that of a block likewise.
        - After a step of the optimiser, w <- w * max(0, 1 - lr * strength * usual / (1 - momentum) / ||w||) with that
          mean for usual, which makes channels exactly 0; the paper adds a sub-gradient and sets weights below 1e-4 to
          0. Under AdamW the factor 1 / (1 - momentum) is 1. Blocks follow channels, one after the other.
        - What it trains after the penalty, with zeros frozen, is fine-tuning here.
    """

    Options: ClassVar[type] = GroupLassoOptions
    milder: ClassVar[str] = "lower strength = {strength}"
    options: GroupLassoOptions

    def check(self, task: Pruning) -> None:
        """Raises unless the recipe suits the data, and the criterion is one.

        Raises:
            PreparationError: if the search has criteria to choose from.
            ConfigError: if the recipe does not suit the data.
        """
        check_criterion("group_lasso", task, "the weights that it trains")
        check_training(
            self.options.training, task.data.train, task.data.objective, taught=False, scored=False
        )

    def prepare(self, task: Pruning, trainer: Trainer) -> Prepared:
        """Trains a copy of the network; returns it, the structure of the threshold, and what became 0."""
        network, recipe = copy.deepcopy(task.base), self.options.training
        blocks = [d.name for d in task.space.dimensions if d.kind == "block" and 0 in d.choices]
        lesson = SparseChannels(
            network,
            task.graph,
            blocks if self.options.blocks else [],
            strength=self.options.strength,
            objective=task.data.objective,
        )
        trained = trainer.train(lesson, recipe, name="group_lasso")
        scores = lesson.scores()
        dropped = lesson.empty()
        cut = threshold_cut(scores, task.constraint, dropped)
        every = np.concatenate(scores)
        facts = {
            "epochs": recipe.epochs,
            "loss of the first and the last epoch": [trained.losses[0], trained.losses[-1]],
            "channels": len(every),
            "of these 0 as a whole": int((every == 0).sum()),
            "blocks that are 0 as a whole": list(dropped),
            "median norm, by the layer's before": float(np.median(every)),
            "an idle channel's norm shrinks by": lesson.reach,
            **cut.facts(task.constraint),
        }
        source = Fixed(network.eval(), task.graph, ranked_by("group_lasso", scores))
        return Prepared(source=source, starts=[cut.structure], facts=facts)

    def source(self, task: Pruning, modules: Mapping[str, Tensors]) -> Source:
        """Returns the trained network as a source, its channels ranked by their weights."""
        return Fixed.restored(loaded(task.base, modules["network"]), task.graph, modules["ranking"])


class SparseChannels(Supervised):
    """A network learns the labels with a penalty on the norms of what makes each channel, and of blocks.

    Attributes:
        reach: how far the steps so far have moved the norm of a channel that no gradient holds, by the mean norm of its
            layer before.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        blocks: Sequence[str] = (),
        *,
        strength: float,
        objective: str = "classification",
    ) -> None:
        """Takes what is learned, and what is penalised.

        Args:
            model: the network.
            graph: its channel groups.
            blocks: paths of modules whose weights are penalised as a whole.
            strength: of the penalty.
            objective: of `OBJECTIVES`.
        """
        super().__init__(model, objective=objective)
        self._strength, self._makers, self.reach = strength, Makers(graph, model), 0.0
        self._blocks = {
            name: [p for p in model.get_submodule(name).parameters() if p.requires_grad]
            for name in blocks
        }
        self._usual = [float(norms.mean()) for norms in self._makers.norms()]
        self._usual_of_blocks = {
            name: float(_norm(weights)) for name, weights in self._blocks.items()
        }

    def optimizers(self, recipe: Recipe) -> Mapping[str, torch.optim.Optimizer]:
        """Returns the recipe's one, whose learning rate is the length of steps of the penalty."""
        made = super().optimizers(recipe)
        self._optimizer = made["all"]
        # Momentum multiplies what a steady gradient does by this; AdamW divides by its size instead.
        self._factor = 1 / (1 - recipe.momentum) if recipe.optimizer == "sgd" else 1.0
        return made

    def after_step(self, progress: float) -> None:
        """Shrinks every channel, then every block: what a step of the penalty does, and no further than to 0."""
        del progress
        length = self._optimizer.param_groups[0]["lr"] * self._strength * self._factor
        self.reach += length
        pairs = zip(self._makers.norms(), self._usual, strict=True)
        self._makers.scale([_shrunk(norms, length * usual) for norms, usual in pairs])
        with torch.no_grad():
            for name, weights in self._blocks.items():
                factor = _shrunk(_norm(weights), length * self._usual_of_blocks[name])
                for weight in weights:
                    weight.mul_(factor)

    def scores(self) -> list[NDArray[np.float64]]:
        """Returns per group the norm of what makes each channel by the mean norm before, (channels,).

        Infinite where nothing is trained that makes one, or all was 0.
        """
        pairs = zip(self._makers.norms(), self._usual, strict=True)
        norms_of = [(norms.double().cpu().numpy(), usual) for norms, usual in pairs]
        return [
            norms / usual if usual else np.full(len(norms), np.inf) for norms, usual in norms_of
        ]

    def empty(self) -> list[str]:
        """Returns the blocks all of whose weights are 0."""
        return [
            name
            for name, weights in self._blocks.items()
            if not any(bool(w.any()) for w in weights)
        ]

    def same(self) -> Mapping[str, Any]:
        """Returns objective and penalty."""
        return {**super().same(), "strength": self._strength, "blocks": list(self._blocks)}

    def state_dict(self) -> Mapping[str, Any]:
        """Returns how far steps have moved an idle channel."""
        return {"reach": self.reach}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes that up."""
        self.reach = float(state["reach"])


def _norm(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the Euclidean norm of several tensors together, a scalar."""
    return torch.stack([weight.detach().norm() for weight in weights]).norm()


def _shrunk(norms: torch.Tensor, length: float) -> torch.Tensor:
    """Returns what vectors of some norms are multiplied by when they become shorter by a length, at most to 0."""
    return torch.where(norms > length, 1 - length / norms.clamp_min(1e-30), torch.zeros_like(norms))
