"""Slimmable: one set of weights that works at every structure of a space."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from abcsearch.channels.fixed import Fixed
from abcsearch.channels.onednn import pointwise_safely
from abcsearch.channels.sharing import shared_network
from abcsearch.preparation.base import Preparation, Prepared, loaded
from abcsearch.preparation.options import SlimmableOptions
from abcsearch.preparation.structures import INSIDE, largest_uniform
from abcsearch.rng import numpy_stream
from abcsearch.training.checks import check_training
from abcsearch.training.lesson import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from abcsearch.budget import Constraint
    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.orders import Ranking
    from abcsearch.channels.source import Source
    from abcsearch.preparation.base import Pruning, Tensors, Trainer
    from abcsearch.space import Candidate, SearchSpace
    from abcsearch.training.lesson import Taught


class Slimmable(Preparation):
    """Trains the network so that all its slices work: each step teaches the full network, the smallest and random ones.

    All are slices of one set of weights, by the ranking of the network as it was before, which is kept with them.
    Statistics of batch norms are the full network's; those of a candidate are estimated anew by its evaluation, as
    `adaptive_bn` does. The search begins with the largest uniform structure inside the budget.

    A step takes as many forward and backward passes as there are `networks`, of which one is of the whole network.

    Source: Yu and Huang, Universally Slimmable Networks and Improved Training Techniques (ICCV 2019): the sandwich rule
    and in-place distillation; Yu and Huang, AutoSlim (2019): widths that differ by layer; Cai et al., Once-for-All
    (ICLR 2020): `grow`.

    Differences from the paper:
        - It begins with the trained network, and channels in the order of its ranking; the papers train anew, with
          channels in the order in which they are.
        - The largest network is the full one, though the space may end below it; smallest and random ones are of the
          space, blocks and criteria among them.
        - By default random structures meet the run's budget; the papers draw from the whole space. Over many layers,
          free draws are all about as expensive as their mean.
        - The loss is a weighted mean, in which the full network counts for `full_share`; the papers add all of them
          up, where it is one among `networks` equals.
        - Once-for-all teaches smaller networks in steps, depth before width; here the least network comes down evenly.
          Its kernel sizes and resolutions are not searched here.
    """

    Options: ClassVar[type] = SlimmableOptions
    options: SlimmableOptions

    def check(self, task: Pruning) -> None:
        """Raises ConfigError unless the recipe suits the data."""
        recipe = self.options.training
        taught = recipe.taught
        check_training(recipe, task.data.train, task.data.objective, taught=taught, scored=False)

    def prepare(self, task: Pruning, trainer: Trainer) -> Prepared:
        """Trains a copy of the network; returns it, and the largest uniform structure inside the budget."""
        network, recipe, options = copy.deepcopy(task.base), self.options.training, self.options
        ranking = task.rank(network)
        lesson = Sandwich(
            network,
            task.graph,
            ranking,
            Sampler(task.space, task.constraint, widths=options.widths, grow=options.grow),
            networks=options.networks,
            full_share=options.full_share,
            distil=options.distil,
            objective=task.data.objective,
            teacher=copy.deepcopy(task.base) if recipe.taught else None,
        )
        trained = trainer.train(lesson, recipe, name="slimmable")
        start = largest_uniform(task.space, task.constraint)
        facts = {
            "epochs": recipe.epochs,
            "loss of the first and the last epoch": [trained.losses[0], trained.losses[-1]],
            "channels ranked, before the training, by": list(ranking.criteria),
            INSIDE: task.constraint.allows(start),
        }
        source = Fixed(network.eval(), task.graph, ranking)
        return Prepared(source=source, starts=[start], facts=facts)

    def source(self, task: Pruning, modules: Mapping[str, Tensors]) -> Source:
        """Returns the trained network as a source, its channels ranked as it was trained."""
        return Fixed.restored(loaded(task.base, modules["network"]), task.graph, modules["ranking"])


class Sampler:
    """Draws the structures that a step teaches beside the full one."""

    def __init__(
        self,
        space: SearchSpace,
        constraint: Constraint,
        *,
        widths: str = "budget",
        grow: float = 0.0,
    ) -> None:
        """Takes what to draw from, see `SlimmableOptions`."""
        self._space, self._constraint, self._widths, self._grow = space, constraint, widths, grow

    def drawn(self, count: int, progress: float, rng: np.random.Generator) -> list[Candidate]:
        """Returns the smallest structure of the moment, and random ones.

        Args:
            count: of all of them.
            progress: share of the training that is done.
            rng: draws.
        """
        left = max(0.0, 1 - progress / self._grow) if self._grow else 0.0
        # Criteria have no order: the least one is no smaller than others.
        least = np.rint(left * self._space.last_indices).astype(np.int64) * self._space.ordered
        random = [
            np.maximum(least, self._space.indices(self._random(rng))) for _ in range(count - 1)
        ]
        return [self._space.at(row) for row in (least, *random)]

    def one(self, rng: np.random.Generator) -> Candidate:
        """Returns one random structure, whatever the smallest one of the moment is."""
        return self._random(rng)

    def same(self) -> dict[str, Any]:
        """Returns its settings as plain values."""
        bounds = [[limit.name, limit.low, limit.high] for limit in self._constraint.limits]
        settings = {
            "widths": self._widths,
            "grow": self._grow,
            "choices": [list(d.choices) for d in self._space.dimensions],
        }
        return settings | ({"budget": bounds} if self._widths == "budget" else {})

    def _random(self, rng: np.random.Generator) -> Candidate:
        """Returns one random structure."""
        free = self._space.sample(rng)
        if self._widths == "budget":
            return self._constraint.fill(self._constraint.repair(free, rng), rng)
        if self._widths == "free":
            return free
        ratio = float(rng.uniform(0, 1))
        kinds = [dimension.kind for dimension in self._space.dimensions]
        last = np.array([len(dimension.choices) - 1 for dimension in self._space.dimensions])
        one = self._space.at(np.rint(ratio * last).astype(np.int64))
        return tuple(
            o if kind == "width" else f for o, f, kind in zip(one, free, kinds, strict=True)
        )


class Sandwich(Supervised):
    """A network and slices of it learn at once: the network its labels, the slices the network's outputs.

    Attributes:
        progress: share of the training that is done.
    """

    def __init__(  # noqa: PLR0913 - what is trained, which slices of it, and how
        self,
        model: nn.Module,
        graph: ChannelGraph,
        ranking: Ranking,
        sampler: Sampler,
        *,
        networks: int = 4,
        full_share: float = 0.5,
        distil: bool = True,
        objective: str = "classification",
        teacher: nn.Module | None = None,
    ) -> None:
        """Takes what is learned.

        Args:
            model: the network.
            graph: its channel groups.
            ranking: which channels slices keep.
            sampler: draws slices.
            networks: trained in every step, itself among them.
            full_share: of the loss that is the network's.
            distil: whether slices learn the network's outputs; if not, the labels.
            objective: of `OBJECTIVES`. Slices learn outputs where it is cross-entropy or a squared error.
            teacher: of the network, if the recipe distils.
        """
        super().__init__(model, objective=objective, teacher=teacher)
        self._graph, self._ranking, self._sampler = graph, ranking, sampler
        self._networks, self._full_share, self._distil = networks, full_share, distil
        self.progress = 0.0

    def step(
        self, images: torch.Tensor, labels: torch.Tensor, draws: torch.Generator
    ) -> torch.Tensor:
        """Returns the loss of a batch; one network after another, so that only one at a time is in memory."""
        rng = numpy_stream(int(torch.randint(2**62, (), generator=draws)), "sandwich")
        drawn = self._sampler.drawn(self._networks - 1, self.progress, rng)
        taught = self._taught(images, labels)
        total = self._weighed(taught.loss, self._full_share)
        wanted = self._wanted(taught)
        for candidate in drawn:
            network = shared_network(self.model, self._graph, candidate, self._ranking)
            # The training's block is around the full network's modules
            with pointwise_safely(network):
                _, loss = self._goal.learned(self.model, network, (taught.images, wanted))
            total = total + self._weighed(loss, (1 - self._full_share) / len(drawn))
        return total

    def _weighed(self, loss: torch.Tensor, weight: float) -> torch.Tensor:
        """Adds the gradients of a loss, times a weight, to the others; returns it without them."""
        loss = loss * weight
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        torch.clear_autocast_cache()  # what it holds belongs to the pass that is done
        return loss.detach()

    def _wanted(self, taught: Taught) -> torch.Tensor:
        """Returns what slices learn."""
        if self._goal.taught is not None:
            return taught.labels
        outputs = taught.outputs.detach().float()
        if self._distil and self._goal.loss is F.cross_entropy:
            return outputs.softmax(dim=1)
        return outputs if self._distil and self._goal.loss is F.mse_loss else taught.labels

    def after_step(self, progress: float) -> None:
        """Notes how far the training is."""
        self.progress = progress

    def same(self) -> Mapping[str, Any]:
        """Returns what is drawn, how it is weighed, and the order of channels."""
        orders = [
            [order.tolist() for order in settings.orders]
            for settings in (self._ranking, *self._ranking.others)
        ]
        settings = {
            "networks": self._networks,
            "full_share": self._full_share,
            "distil": self._distil,
            "orders": orders,
        }
        return {**super().same(), **settings, **self._sampler.same()}

    def state_dict(self) -> Mapping[str, Any]:
        """Returns how far the training is."""
        return {"progress": self.progress}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes that up."""
        self.progress = float(state["progress"])
