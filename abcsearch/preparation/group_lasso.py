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
    Channels are ranked by the root mean square of their weights, which the search's first structure cuts at one
    threshold for all layers, where the budget is met; blocks that have become 0 are dropped in it.

    Source: Wen et al., Learning Structured Sparsity in Deep Neural Networks (NeurIPS 2016).

    Differences from the paper:
        - A channel's weights are those of all coupled layers that make it, batch-norm scales and shifts among them: a
          scale would make up for whatever is taken from the filters. The paper penalises single filters, single input
          channels and positions of kernels.
        - A norm counts times the square root of how many numbers it is of.
        - After a step of the optimiser, w <- w * max(0, 1 - lr * strength * sqrt(size) / (1 - momentum) / ||w||), which
          makes channels exactly 0; the paper adds a sub-gradient, and sets weights below 1e-4 to 0. Under AdamW the
          factor 1 / (1 - momentum) is 1. Blocks follow channels, one after the other.
        - What it trains after the penalty, with zeros frozen, is fine-tuning here.
    """

    Options: ClassVar[type] = GroupLassoOptions
    options: GroupLassoOptions

    def check(self, task: Pruning) -> None:
        """Raises unless the recipe suits the data, and the criterion is one.

        Raises:
            PreparationError: if the search has criteria to choose from.
            ConfigError: if the recipe does not suit the data.
        """
        check_criterion("group_lasso", task, "the weights that it trains")
        check_training(self.options.training, task.data.train, task.data.objective, taught=False, scored=False)

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
        cut = threshold_cut(scores, task, dropped)
        every = np.concatenate(scores)
        facts = {
            "epochs": recipe.epochs,
            "loss of the first and the last epoch": [trained.losses[0], trained.losses[-1]],
            "channels": len(every),
            "of these 0 as a whole": int((every == 0).sum()),
            "blocks that are 0 as a whole": list(dropped),
            "median of the channels' weights (root mean square)": float(np.median(every)),
            "an idle channel's weights shrink by": lesson.reach,
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
        reach: how far the steps so far have moved the root mean square of a channel that no gradient holds.
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
        self._blocks = {name: [p for p in model.get_submodule(name).parameters() if p.requires_grad] for name in blocks}

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
        pairs = zip(self._makers.norms(), self._makers.sizes, strict=True)
        self._makers.scale([_shrunk(norms, length * sizes.to(norms).sqrt()) for norms, sizes in pairs])
        with torch.no_grad():
            for weights in self._blocks.values():
                size = sum(weight.numel() for weight in weights)
                norm = torch.stack([weight.norm() for weight in weights]).norm()
                factor = _shrunk(norm, length * norm.new_tensor(float(size)).sqrt())
                for weight in weights:
                    weight.mul_(factor)

    def scores(self) -> list[NDArray[np.float64]]:
        """Returns per group the root mean square of what makes each channel, (channels,); infinite without any."""
        pairs = zip(self._makers.norms(), self._makers.sizes, strict=True)
        found = [(norms.double().cpu().numpy(), sizes.double().cpu().numpy()) for norms, sizes in pairs]
        return [np.where(sizes > 0, norms / np.sqrt(np.maximum(sizes, 1)), np.inf) for norms, sizes in found]

    def empty(self) -> list[str]:
        """Returns the blocks all of whose weights are 0."""
        return [name for name, weights in self._blocks.items() if not any(bool(w.any()) for w in weights)]

    def same(self) -> Mapping[str, Any]:
        """Returns objective and penalty."""
        return {**super().same(), "strength": self._strength, "blocks": list(self._blocks)}

    def state_dict(self) -> Mapping[str, Any]:
        """Returns how far steps have moved an idle channel."""
        return {"reach": self.reach}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes that up."""
        self.reach = float(state["reach"])


def _shrunk(norms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Returns what vectors of some norms are multiplied by when they become shorter by some lengths, at most to 0."""
    return torch.where(norms > lengths, 1 - lengths / norms.clamp_min(1e-30), torch.zeros_like(norms))
