"""AutoPruner: gates of channels learn beside the weights, and end as 0 or 1 at the budget."""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from abcsearch.channels.fixed import Fixed, ranked_by
from abcsearch.channels.gates import gate, replaced
from abcsearch.preparation.base import Preparation, Prepared, loaded
from abcsearch.preparation.options import AutoPrunerOptions
from abcsearch.preparation.structures import check_criterion, check_norms, targets, threshold_cut
from abcsearch.training.checks import check_finite, check_training
from abcsearch.training.lesson import Supervised
from abcsearch.training.optimization import make_optimizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from abcsearch.budget import Constraint
    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.source import Source
    from abcsearch.preparation.base import Pruning, Tensors, Trainer
    from abcsearch.space import Candidate
    from abcsearch.training.recipe import Recipe

START = 1.0  # of all logits: 0.73 at sharpness 1
OPEN = 0.05  # gates farther than this from 0 and 1 are undecided


class AutoPruner(Preparation):
    """Trains the network together with a gate per channel, sigmoid(sharpness * logit), which ends as 0 or 1.

    The loss has the square of how far the expected cost is from the budget, so gates find out how wide each layer
    becomes. Sharpness grows from 1 to `sharpest`, in equal factors, until the share `decide` of the training is done.
    Then gates are decided: 1 for the largest structure that one threshold on the logits leaves inside the budget, 0 for
    all other channels, which are no longer read; the network trains on with them. The search begins with that
    structure. Channels are ranked by their logits.

    Source: Luo and Wu, AutoPruner: An End-to-End Trainable Filter Pruning Method (Pattern Recognition 2020).

    Differences from the paper:
        - Logits are free numbers; the paper's are a layer of pooled responses, which depends on the batch and on the
          size of images.
        - The paper's penalty is of the share of channels of each layer, which is given; here of the whole network's
          cost, weighed by 10 likewise.
        - All layers learn at once, as in the paper's MobileNetV2, and residual streams as well. Layers that are not
          searched have no gates.
        - Gates that have not come near 0 or 1 by then are decided by the threshold; in the paper sharpness grows faster
          in the last epoch until they have.
        - Gates have an optimiser of their own, Adam without decay, at `gate_lr` and the recipe's schedule.
    """

    Options: ClassVar[type] = AutoPrunerOptions
    milder: ClassVar[str] = "lower weight = {weight} or gate_lr = {gate_lr}"
    options: AutoPrunerOptions

    def check(self, task: Pruning) -> None:
        """Raises unless the budget has an expectation, and the recipe suits the data.

        Raises:
            PreparationError: if the budget is of other costs than MACs, FLOPs and params, or the search has criteria to
                choose from.
            ConfigError: if the recipe does not suit the data.
        """
        targets("autopruner", task.constraint)
        check_criterion("autopruner", task, "the gates that it trains")
        check_norms("autopruner", task)
        check_training(
            self.options.training, task.data.train, task.data.objective, taught=False, scored=False
        )

    def prepare(self, task: Pruning, trainer: Trainer) -> Prepared:
        """Trains a copy of the network; returns it, the structure of the gates, and how decided they are."""
        network, recipe, options = copy.deepcopy(task.base), self.options.training, self.options
        widths = [d for d in task.space.dimensions if d.kind == "width"]
        lesson = Deciding(
            network,
            task.graph,
            [len(d.choices) > 1 for d in widths],
            targets("autopruner", task.constraint),
            widths=functools.partial(_widths_within, task.constraint),
            weight=options.weight,
            sharpest=options.sharpest,
            decide=options.decide,
            gate_lr=options.gate_lr,
            objective=task.data.objective,
        )
        trained = trainer.train(lesson, recipe, name="autopruner")
        check_finite("logits of gates", lesson.logits.values)
        scores = lesson.scores()
        cut = threshold_cut(scores, task.constraint)
        gates = lesson.gates()
        facts = {
            "epochs": recipe.epochs,
            "loss of the first and the last epoch": [trained.losses[0], trained.losses[-1]],
            "channels": sum(map(len, gates)),
            "of these with a gate of 0": int((torch.cat(gates) <= OPEN).sum()),
            f"of these more than {OPEN} from 0 and 1 when they were decided": lesson.undecided,
            "expected cost by the budget": lesson.expected(gates),
            **cut.facts(task.constraint),
        }
        lesson.fold()
        source = Fixed(network.eval(), task.graph, ranked_by("autopruner", scores))
        return Prepared(source=source, starts=[cut.structure], facts=facts)

    def source(self, task: Pruning, modules: Mapping[str, Tensors]) -> Source:
        """Returns the trained network as a source, its channels ranked by the logits of their gates."""
        return Fixed.restored(loaded(task.base, modules["network"]), task.graph, modules["ranking"])


class Logits(nn.Module):
    """The logits of gates, `values` (channels of all groups,)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.full((count,), START))


class Deciding(Supervised):
    """A network learns the labels with gates that learn which channels it needs at a cost.

    Attributes:
        sharpness: of the gates now.
        undecided: gates that were neither near 0 nor near 1 when they were decided.
    """

    def __init__(  # noqa: PLR0913 - what is trained, at which cost, and how
        self,
        model: nn.Module,
        graph: ChannelGraph,
        gated: Sequence[bool],
        costs: Mapping[str, float],
        widths: Callable[[list[NDArray[np.float64]]], Sequence[int]],
        *,
        weight: float = 10.0,
        sharpest: float = 100.0,
        decide: float = 0.6,
        gate_lr: float = 0.02,
        objective: str = "classification",
    ) -> None:
        """Takes what is learned at which cost.

        Args:
            model: the network.
            graph: its channel groups.
            gated: per prunable group, whether its channels have gates.
            costs: what costs should be, by name, see `targets`.
            widths: logits of all groups to how many channels of each are kept when gates are decided.
            weight: of the penalty: the sum over costs of (expected / wanted - 1)^2.
            sharpest: sharpness when gates are decided.
            decide: share of the training that is done then.
            gate_lr: highest learning rate of the logits.
            objective: of `OBJECTIVES`.
        """
        super().__init__(model, objective=objective)
        self._graph, self._gated, self._costs = graph, tuple(gated), dict(costs)
        self._weight, self._sharpest, self._decide, self._gate_lr = (
            weight,
            sharpest,
            decide,
            gate_lr,
        )
        self._widths = widths
        self.logits = Logits(sum(group.channels for group in graph.prunable))
        self.modules = {"model": model, "gates": self.logits}
        self.sharpness, self.undecided = 1.0, 0
        self._decided = torch.zeros(0)  # all gates, once they are

    def optimizers(self, recipe: Recipe) -> Mapping[str, torch.optim.Optimizer]:
        """Returns the recipe's one for the network, and one for the logits."""
        gates = torch.optim.Adam(self.logits.parameters(), lr=self._gate_lr)
        return {"model": make_optimizer(self.model, recipe), "gates": gates}

    def gates(self) -> list[torch.Tensor]:
        """Returns the gates of every group, (channels,); 1 where it has none."""
        logits = self.logits.values
        known = len(self._decided) > 0
        groups = self._parts(
            self._decided.to(logits) if known else torch.sigmoid(self.sharpness * logits)
        )
        return [
            group if has else torch.ones_like(group)
            for group, has in zip(groups, self._gated, strict=True)
        ]

    def _parts(self, values: torch.Tensor) -> Sequence[torch.Tensor]:
        """Returns values of all channels, one tensor per group."""
        return values.split([group.channels for group in self._graph.prunable])

    def expected(self, gates: Sequence[torch.Tensor]) -> dict[str, float]:
        """Returns the expected costs as shares of what they should be."""
        return {name: float(share.detach()) for name, share in self._shares(gates).items()}

    def _shares(self, gates: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: self._graph.costs.expected(gates, name) / wanted
            for name, wanted in self._costs.items()
        }

    def step(
        self, images: torch.Tensor, labels: torch.Tensor, draws: torch.Generator
    ) -> torch.Tensor:
        """Returns the loss of a batch through the gates, and the penalty."""
        check_finite("logits of gates", self.logits.values)
        gates = self.gates()
        with replaced(self.model, gate(self.model, self._graph, gates)):
            loss = super().step(images, labels, draws)
        penalty = torch.stack(
            [(share - 1).square() for share in self._shares(gates).values()]
        ).sum()
        return loss + self._weight * penalty.to(loss)

    def after_step(self, progress: float) -> None:
        """Sharpens the gates, and decides them when it is time."""
        self.sharpness = self._sharpest ** min(1.0, progress / self._decide)
        if progress >= self._decide and not len(self._decided):
            soft, scores = torch.cat(self.gates()).detach(), self.scores()
            self.undecided = int(((soft - 0.5).abs() < 0.5 - OPEN).sum())
            pairs = zip(scores, self._widths(scores), strict=False)
            self._decided = torch.from_numpy(
                np.concatenate([_best(logits, width) for logits, width in pairs])
            )

    def fold(self) -> None:
        """Has nothing read the channels whose gates are 0, for good; gates are decided."""
        with torch.no_grad():
            tensors = dict([*self.model.named_parameters(), *self.model.named_buffers()])
            for name, tensor in gate(self.model, self._graph, self.gates()).items():
                tensors[name].copy_(tensor)

    def scores(self) -> list[NDArray[np.float64]]:
        """Returns the logits of every group, (channels,); infinite where it has no gates."""
        groups = [
            group.double().cpu().numpy() for group in self._parts(self.logits.values.detach())
        ]
        return [
            logits if has else np.full(len(logits), np.inf)
            for logits, has in zip(groups, self._gated, strict=True)
        ]

    def same(self) -> Mapping[str, Any]:
        """Returns what is learned at which cost."""
        settings = {
            "weight": self._weight,
            "sharpest": self._sharpest,
            "decide": self._decide,
            "gate_lr": self._gate_lr,
        }
        return {**super().same(), **settings, "costs": self._costs, "gated": list(self._gated)}

    def state_dict(self) -> Mapping[str, Any]:
        """Returns how sharp the gates are, and what they are once they are decided."""
        return {"sharpness": self.sharpness, "undecided": self.undecided, "decided": self._decided}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes that up."""
        self.sharpness, self.undecided = float(state["sharpness"]), int(state["undecided"])
        self._decided = state["decided"].clone()


def _widths_within(constraint: Constraint, scores: list[NDArray[np.float64]]) -> Candidate:
    """Returns the structure that one threshold on scores, (channels,) per group, leaves inside a budget."""
    return threshold_cut(scores, constraint).structure


def _best(scores: NDArray[np.float64], width: int) -> NDArray[np.float32]:
    """Returns 1 for the channels with the highest scores, 0 for the others, (channels,); of equal ones the first."""
    best = np.zeros(len(scores), dtype=np.float32)
    best[np.argsort(-scores, kind="stable")[:width]] = 1
    return best
