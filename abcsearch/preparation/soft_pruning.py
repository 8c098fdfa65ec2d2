"""Soft filter pruning: after every epoch the worst channels are silenced, and free to come back in the next."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from abcsearch.channels.fixed import Fixed, ranked_by
from abcsearch.channels.gates import gate
from abcsearch.channels.ranking import rank_channels
from abcsearch.errors import CandidateError, PreparationError
from abcsearch.preparation.base import Preparation, Prepared, loaded
from abcsearch.preparation.options import SoftPruningOptions
from abcsearch.preparation.structures import INSIDE, check_criterion, check_norms, largest_uniform
from abcsearch.training.checks import check_training
from abcsearch.training.lesson import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.orders import Ranking
    from abcsearch.channels.source import Source
    from abcsearch.preparation.base import Pruning, Tensors, Trainer
    from abcsearch.space import Candidate


class SoftPruning(Preparation):
    """Trains the network towards a structure: after every epoch, whatever reads the worst channels of a layer is 0.

    The next epoch trains all weights again, so that a channel may return and another one go. After the last epoch the
    network computes what the slice of that structure does, which the search begins with. By default that is the
    largest uniform structure inside the budget; `structure` is another one, such as the winner of a search.

    Source: He et al., Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks (IJCAI 2018).

    Differences from the paper:
        - A silenced channel is no longer read: 0 are the weights of all that reads it, so that the network is the
          sliced one. The paper sets filters to 0; batch norms then still hand on their shifts, and were scale and shift
          0 as well, no gradient would bring the channel back.
        - Channels that are tied together, as on a residual stream, go together; the paper leaves streams as they are.
        - Every layer has the width of the structure; the paper removes one share of all of them.
    """

    Options: ClassVar[type] = SoftPruningOptions
    options: SoftPruningOptions

    def check(self, task: Pruning) -> None:
        """Raises unless there is a structure to train towards, and the recipe suits the data.

        Raises:
            PreparationError: if the structure is none of the space, drops blocks, or is outside of the budget, or the
                search has criteria to choose from.
            ConfigError: if the recipe does not suit the data.
        """
        check_criterion(
            "soft_pruning", task, f"{self.options.criterion} in the course of the training"
        )
        self._structure(task)
        check_norms("soft_pruning", task)
        check_training(
            self.options.training, task.data.train, task.data.objective, taught=False, scored=False
        )

    def _structure(self, task: Pruning) -> Candidate:
        """Returns the structure to train towards."""
        if self.options.structure is None:
            return largest_uniform(task.space, task.constraint)
        given = tuple(self.options.structure)
        try:
            task.space.check(given)
        except CandidateError as error:
            msg = f"soft_pruning: structure: {error}"
            raise PreparationError(msg) from error
        if not task.constraint.allows(given):
            msg = "soft_pruning: structure is outside of the budget; take one that is inside, or change the budget"
            raise PreparationError(msg)
        lost = [
            d.name
            for d, value in zip(task.space.dimensions, given, strict=True)
            if d.kind == "block" and not value
        ]
        if lost:
            msg = f"soft_pruning: structure drops {', '.join(lost)}, and only channels are pruned softly; keep all blocks"
            raise PreparationError(msg)
        return given

    def prepare(self, task: Pruning, trainer: Trainer) -> Prepared:
        """Trains a copy of the network; returns it, and the structure."""
        network, recipe, structure = (
            copy.deepcopy(task.base),
            self.options.training,
            self._structure(task),
        )
        lesson = Silencing(
            network,
            task.graph,
            structure[: len(task.graph.prunable)],
            criterion=self.options.criterion,
            objective=task.data.objective,
        )
        trained = trainer.train(lesson, recipe, name="soft_pruning")
        facts = {
            "epochs": recipe.epochs,
            "loss of the first and the last epoch": [trained.losses[0], trained.losses[-1]],
            "channels": sum(group.channels for group in task.graph.prunable),
            "of these silenced after every epoch": sum(
                group.channels - width
                for group, width in zip(task.graph.prunable, structure, strict=False)
            ),
            "of these others than after the epoch before": lesson.changes,
            INSIDE: task.constraint.allows(structure),
        }
        return Prepared(
            source=Fixed(network.eval(), task.graph, lesson.ranking),
            starts=[structure],
            facts=facts,
        )

    def source(self, task: Pruning, modules: Mapping[str, Tensors]) -> Source:
        """Returns the trained network as a source, its channels ranked as after the last epoch."""
        return Fixed.restored(loaded(task.base, modules["network"]), task.graph, modules["ranking"])


class Silencing(Supervised):
    """A network learns the labels; after every epoch the worst channels of its layers are no longer read.

    Attributes:
        ranking: by which they were chosen after the last epoch.
        changes: per epoch, from the second on, how many were not among those of the epoch before.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        widths: Sequence[int],
        *,
        criterion: str = "l2",
        objective: str = "classification",
    ) -> None:
        """Takes what is learned, and how many channels are left of every layer.

        Args:
            model: the network.
            graph: its channel groups.
            widths: per prunable group.
            criterion: the channels' scores: one that looks at weights alone.
            objective: of `OBJECTIVES`.
        """
        super().__init__(model, objective=objective)
        self._graph, self._widths, self._criterion = graph, tuple(widths), criterion
        self.ranking: Ranking = rank_channels(model, graph, criterion)
        self.changes: list[int] = []

    def gates(self) -> list[torch.Tensor]:
        """Returns per group 1 for every channel that is kept, 0 for those that are silenced, (channels,)."""
        gates: list[torch.Tensor] = []
        for index, (group, width) in enumerate(
            zip(self._graph.prunable, self._widths, strict=True)
        ):
            kept = torch.zeros(group.channels)
            kept[torch.from_numpy(self.ranking.kept(index, width))] = 1
            gates.append(kept)
        return gates

    def after_epoch(self, epoch: int) -> None:
        """Silences the channels that are the worst now."""
        before = torch.cat(self.gates())
        self.ranking = rank_channels(self.model, self._graph, self._criterion)
        now = self.gates()
        if epoch > 1:
            self.changes.append(int((torch.cat(now) < before).sum()))
        with torch.no_grad():
            tensors = dict([*self.model.named_parameters(), *self.model.named_buffers()])
            for name, tensor in gate(self.model, self._graph, now).items():
                tensors[name].copy_(tensor)

    def same(self) -> Mapping[str, Any]:
        """Returns what is learned, and which widths are left by what."""
        return {**super().same(), "widths": list(self._widths), "criterion": self._criterion}

    def state_dict(self) -> Mapping[str, Any]:
        """Returns the scores of the last epoch, and what has changed in every one."""
        scores = {
            f"scores {i}": torch.from_numpy(score) for i, score in enumerate(self.ranking.scores)
        }
        return {"changes": self.changes, **scores}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes them up."""
        scores = [state[f"scores {index}"].numpy() for index in range(len(self._widths))]
        self.ranking, self.changes = ranked_by(self._criterion, scores), list(state["changes"])
