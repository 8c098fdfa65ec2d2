"""Iterative pruning by first-order importance: some channels at a time, in the course of a training."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from abcsearch.channels.fixed import Fixed, ranked_by
from abcsearch.channels.gates import gate, replaced
from abcsearch.preparation.base import Preparation, Prepared, loaded
from abcsearch.preparation.options import TaylorIterativeOptions
from abcsearch.preparation.structures import check_criterion, check_norms, threshold_cut
from abcsearch.training.checks import check_training
from abcsearch.training.lesson import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import nn

    from abcsearch.budget import Constraint
    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.source import Source
    from abcsearch.preparation.base import Pruning, Tensors, Trainer
    from abcsearch.space import SearchSpace


class TaylorIterative(Preparation):
    """Trains the network and silences its least important channels on the way, until the budget is met.

    Importance of a channel is (gradient of its gate)^2, the first-order estimate of what the loss would lose; a running
    mean over batches. Every `batches` steps the `at_once` least important channels of all layers are no longer read,
    ever after. Once the budget is met, the training goes on without. Channels are ranked by when they went, those that
    are left by importance; the search begins with what is left.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning (CVPR 2019): gates, equation 8.

    Differences from the paper:
        - Gates are on what reads a channel, and those of a residual stream are one; its importance is divided by the
          number of its readers, where the published code has numbers for ResNet-50.
        - It ends with a budget, not a number of channels, and no layer gets narrower than the narrowest of the space;
          layers that are not searched stay as they are.
        - Momentum of what made a silenced channel is left to run out; nothing reads it.
    """

    Options: ClassVar[type] = TaylorIterativeOptions
    options: TaylorIterativeOptions

    def check(self, task: Pruning) -> None:
        """Raises unless the recipe suits the data, and the criterion is one.

        Raises:
            PreparationError: if the search has criteria to choose from.
            ConfigError: if the recipe does not suit the data.
        """
        check_criterion("taylor_iterative", task, "importance in the course of the training")
        check_norms("taylor_iterative", task)
        check_training(
            self.options.training, task.data.train, task.data.objective, taught=False, scored=False
        )

    def prepare(self, task: Pruning, trainer: Trainer) -> Prepared:
        """Trains a copy of the network; returns it, what is left of it, and how it went."""
        network, recipe, options = copy.deepcopy(task.base), self.options.training, self.options
        lesson = Dwindling(
            network,
            task.graph,
            Bounds(task.space, task.constraint),
            batches=options.batches,
            at_once=options.at_once,
            memory=options.memory,
            objective=task.data.objective,
        )
        trained = trainer.train(lesson, recipe, name="taylor_iterative")
        lesson.fold()
        scores = lesson.scores()
        cut = threshold_cut(scores, task.constraint)
        facts = {
            "epochs": recipe.epochs,
            "loss of the first and the last epoch": [trained.losses[0], trained.losses[-1]],
            "channels": sum(map(len, scores)),
            "of these silenced in the training": lesson.silenced,
            "prunings": lesson.prunings,
            "the budget was met in the training": lesson.met,
            **cut.facts(task.constraint),
        }
        source = Fixed(network.eval(), task.graph, ranked_by("taylor_iterative", scores))
        return Prepared(source=source, starts=[cut.structure], facts=facts)

    def source(self, task: Pruning, modules: Mapping[str, Tensors]) -> Source:
        """Returns the trained network as a source, its channels ranked by when they went."""
        return Fixed.restored(loaded(task.base, modules["network"]), task.graph, modules["ranking"])


class Bounds:
    """How narrow layers may become, and when that is narrow enough."""

    def __init__(self, space: SearchSpace, constraint: Constraint) -> None:
        """Takes the structures and the budget."""
        self._space, self._constraint = space, constraint
        self._widths = [d for d in space.dimensions if d.kind == "width"]
        self.least = np.array([d.choices[0] for d in self._widths])

    def met(self, counts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns whether layers of so many channels, (n, n_widths), are inside the budget, (n,) bool.

        A layer has the smallest width of the space that is enough for its channels, at most the largest one.
        """
        rows = np.tile(self._space.values(self._space.largest_indices), (len(counts), 1))
        columns = [at for at, d in enumerate(self._space.dimensions) if d.kind == "width"]
        for column, width, number in zip(columns, self._widths, counts.T, strict=True):
            choices = np.array(width.choices)
            rows[:, column] = choices[
                np.minimum(np.searchsorted(choices, number), len(choices) - 1)
            ]
        return self._constraint.violation(rows) == 0

    def same(self) -> dict[str, Any]:
        """Returns all that it says as plain values."""
        limits = [[limit.name, limit.low, limit.high] for limit in self._constraint.limits]
        return {"choices": [list(d.choices) for d in self._widths], "budget": limits}


class Dwindling(Supervised):
    """A network learns the labels and loses its least important channels on the way.

    Attributes:
        met: whether the budget is met.
        prunings: how often channels have been silenced.
    """

    def __init__(  # noqa: PLR0913 - what is trained, what it loses, and when
        self,
        model: nn.Module,
        graph: ChannelGraph,
        bounds: Bounds,
        *,
        batches: int = 30,
        at_once: int = 100,
        memory: float = 0.9,
        objective: str = "classification",
    ) -> None:
        """Takes what is learned, and how channels go.

        Args:
            model: the network.
            graph: its channel groups.
            bounds: how narrow its layers may become.
            batches: steps from one pruning to the next.
            at_once: channels that go at each.
            memory: what the mean importance keeps of that before, in [0, 1).
            objective: of `OBJECTIVES`.
        """
        super().__init__(model, objective=objective)
        self._graph, self._bounds = graph, bounds
        self._batches, self._at_once, self._memory = batches, at_once, memory
        self._channels = [group.channels for group in graph.prunable]
        readers = [max(1, sum(m.sums for m in group.members)) for group in graph.prunable]
        self._readers = torch.cat(
            [torch.full((c,), float(r)) for c, r in zip(self._channels, readers, strict=True)]
        )
        count = sum(self._channels)
        # The number of those that went up to it; 0: it is left
        self._went = torch.zeros(count, dtype=torch.int64)
        self._sums, self._mean = torch.zeros(count), torch.zeros(count)
        self._seen = self.prunings = 0
        self.met = bool(bounds.met(np.array([self._channels]))[0])

    @property
    def silenced(self) -> int:
        """How many channels are no longer read."""
        return int((self._went > 0).sum())

    def gates(self) -> list[torch.Tensor]:
        """Returns per group 1 for channels that are left and 0 for the others, (channels,)."""
        return list((self._went == 0).float().split(self._channels))

    def step(
        self, images: torch.Tensor, labels: torch.Tensor, draws: torch.Generator
    ) -> torch.Tensor:
        """Returns the loss of a batch, after its backward pass, and adds up what it says of the gates."""
        ones = torch.ones(len(self._went), device=images.device, requires_grad=True)
        left = ones * (self._went == 0).to(ones)
        with replaced(self.model, gate(self.model, self._graph, left.split(self._channels))):
            loss = super().step(images, labels, draws)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        if ones.grad is not None:
            # Of the whole batch, of which several processes have seen a part each
            self._sums = self._sums.to(ones.device) + self.crew.mean(ones.grad).square()
        return loss.detach()

    def after_step(self, progress: float) -> None:
        """Silences channels when it is time."""
        del progress
        self._seen += 1
        if self._seen % self._batches == 0 and not self.met:
            self._prune()

    def _prune(self) -> None:
        """Silences the least important channels, no more than the budget asks for."""
        now = self._sums.cpu() / self._batches / self._readers
        self._mean = self._memory * self._mean + (1 - self._memory) * now if self.prunings else now
        self._sums, self.prunings = (
            torch.zeros_like(self._went, dtype=torch.float32),
            self.prunings + 1,
        )
        group_of = np.repeat(np.arange(len(self._channels)), self._channels)
        counts = np.array([int(gates.sum()) for gates in self.gates()])
        chosen: list[int] = []
        rows: list[NDArray[np.int64]] = []
        for channel in torch.argsort(self._mean, stable=True).tolist():
            group = group_of[channel]
            if (
                len(chosen) < self._at_once
                and not self._went[channel]
                and counts[group] > self._bounds.least[group]
            ):
                counts[group] -= 1
                chosen.append(channel)
                rows.append(counts.copy())
        if not chosen:
            return
        met = self._bounds.met(np.array(rows))
        self.met = bool(met.any())
        last = int(met.argmax()) + 1 if self.met else len(chosen)
        before = self.silenced
        self._went[chosen[:last]] = torch.arange(before + 1, before + last + 1)

    def fold(self) -> None:
        """Has nothing read the channels that went, for good."""
        with torch.no_grad():
            tensors = dict([*self.model.named_parameters(), *self.model.named_buffers()])
            for name, tensor in gate(self.model, self._graph, self.gates()).items():
                tensors[name].copy_(tensor)

    def scores(self) -> list[NDArray[np.float64]]:
        """Returns per group importance, (channels,); those that went have negative numbers, the first the lowest."""
        went = self._went.double()
        scores = torch.where(went > 0, went - (self.silenced + 1), self._mean.double())
        return [score.numpy() for score in scores.split(self._channels)]

    def same(self) -> Mapping[str, Any]:
        """Returns what is learned, and how channels go."""
        settings = {"batches": self._batches, "at_once": self._at_once, "memory": self._memory}
        return {**super().same(), **settings, **self._bounds.same()}

    def state_dict(self) -> Mapping[str, Any]:
        """Returns which channels went, and what is known of the others."""
        state = {"went": self._went, "sums": self._sums, "mean": self._mean}
        return {**state, "seen": self._seen, "prunings": self.prunings, "met": self.met}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes them up."""
        self._went, self._sums, self._mean = (
            state[name].clone() for name in ("went", "sums", "mean")
        )
        self._seen, self.prunings, self.met = (
            int(state["seen"]),
            int(state["prunings"]),
            bool(state["met"]),
        )
