"""TAS: the widths and the depth of a network are drawn anew for every pass, by probabilities that learn beside it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from abcsearch.channels.fixed import Fixed
from abcsearch.errors import PreparationError
from abcsearch.preparation.base import Preparation, Prepared, loaded
from abcsearch.preparation.drawn_options import TASOptions
from abcsearch.preparation.gumbel import CERTAIN, Gates, Logits, Relaxed, first_choices, parted
from abcsearch.preparation.likeliest import expected_structure, likeliest
from abcsearch.preparation.structures import check_criterion, targets
from abcsearch.rng import numpy_stream
from abcsearch.training.checks import check_finite, check_training

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from abcsearch.budget import Constraint
    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.orders import Ranking
    from abcsearch.channels.source import Source
    from abcsearch.preparation.base import Pruning, Tensors, Trainer
    from abcsearch.space import SearchSpace

    Bounds = Mapping[str, tuple[float, float]]

# The slope of the first logits is looked for between minus this and this
_FAR, _HALVINGS = (40.0, 40)


class TAS(Preparation):
    """Trains a network through widths that are drawn for every pass, and the probabilities of the draws.

    For every layer two of its widths are drawn by Gumbel's softmax and mixed, and so are keeping and dropping a block
    where the space has blocks. Weights learn on one part of the training images, logits on the other, where the loss
    has the distance of the expected cost from the budget. Draws get colder, so that one width outweighs the others. The
    search begins with the structure of the expected widths, and the likeliest ones inside the budget. As published,
    what it finds is then trained with the unpruned network as its teacher: `distillation = 0.9` in `[finetune]`.

    Source: Dong and Yang, Network Pruning via Transformable Architecture Search (NeurIPS 2019).

    Differences from the paper:
        - A channel has a gate, the sum of the weights of those drawn widths that keep it, by the ranking of the
          network. So both widths are one pass of one size, of which the narrower one is a part. Published: a pass for
          each, resized to the wider by averages over neighbouring channels, with batch norms of their own for every
          width; statistics are estimated anew here for each candidate, by its evaluation.
        - All layers that are tied together have one draw; published: streams whose ends differ are added on the
          channels that both have.
        - Every block is kept or dropped by itself, as the space has it; published: a number of blocks per stage.
        - It begins with the trained network, which is published to be trained anew. Logits begin in proportion to the
          width, with the one slope of which the expected cost is the budget's; published: near 0.
        - The loss has log(expected / budget) as soon as the expected cost is above the budget or more than `tolerance`
          below; published: as soon as that of the likeliest structure is.
        - Candidates are cut out of the network as it was brought, or with `weights = "trained"` as it is then;
          published: the structure that is found has new weights.
        - The result are several structures inside the budget, which are then evaluated; published: the likeliest one,
          whatever it costs.
    """

    Options: ClassVar[type] = TASOptions
    milder: ClassVar[str] = "lower weight = {weight} or logit_lr = {logit_lr}"
    options: TASOptions

    def check(self, task: Pruning) -> None:
        """Raises unless the budget has an expectation, there is something to draw, and the recipe suits the data.

        Raises:
            PreparationError: if the budget is of other costs than MACs, FLOPs and params, the search has criteria to
                choose from, or all dimensions have one choice.
            ConfigError: if the recipe does not suit the data.
        """
        targets("tas", task.constraint)
        check_criterion("tas", task, "the ranking that draws are made by")
        if not task.space.last_indices.any():
            raise PreparationError(
                "tas has nothing to draw: every dimension of the space has one choice; widen [space]"
            )
        check_training(
            self.options.training, task.data.train, task.data.objective, taught=False, scored=False
        )

    def prepare(self, task: Pruning, trainer: Trainer) -> Prepared:
        """Trains a copy of the network; returns the weights of candidates, and the likeliest structures inside."""
        network, recipe, options = copy.deepcopy(task.base), self.options.training, self.options
        ranking = task.rank(network)
        images, structure = parted(trainer, options.split, "tas")
        sizes, bounds = Sizes(task.space), bounds_of(task.constraint, task.graph, options.tolerance)
        sizes.begin(task.graph, {name: high for name, (_, high) in bounds.items()})
        lesson = Sampling(
            network,
            task.graph,
            sizes,
            structure,
            ranking=ranking,
            bounds=bounds,
            weight=options.weight,
            samples=options.samples,
            logit_lr=options.logit_lr,
            logit_decay=options.logit_decay,
            temperatures=(options.hottest, options.coldest),
            objective=task.data.objective,
        )
        trained = trainer.train(lesson, recipe, name="tas", images=images)
        check_finite("logits", sizes.values)
        probabilities = sizes.of_all()
        rng = numpy_stream(trainer.seed, "tas structures")
        chosen = likeliest(probabilities, task.constraint, options.structures, rng)
        every = [
            expected_structure(probabilities, task.constraint),
            *(candidate for candidate, _ in chosen),
        ]
        argmax = task.space.at(np.array([int(row.argmax()) for row in probabilities]))
        facts = {
            "epochs": recipe.epochs,
            "loss of the first and the last epoch": [trained.losses[0], trained.losses[-1]],
            "expected cost by the budget": {
                name: float(cost.detach()) / bounds[name][1]
                for name, cost in sizes.expected(task.graph, bounds).items()
            },
            f"choices of probability {CERTAIN} or more": sum(
                float(row.max()) >= CERTAIN for row in probabilities
            ),
            "the likeliest structure of all is inside the budget": task.constraint.allows(argmax),
            "log probabilities of its structures": [score for _, score in chosen],
        }
        made = network.eval() if options.weights == "trained" else copy.deepcopy(task.base)
        source = Fixed(made, task.graph, ranking)
        return Prepared(
            source=source, starts=list(dict.fromkeys(every))[: options.structures], facts=facts
        )

    def source(self, task: Pruning, modules: Mapping[str, Tensors]) -> Source:
        """Returns the network of the candidates as a source, its channels ranked as draws were made."""
        return Fixed.restored(loaded(task.base, modules["network"]), task.graph, modules["ranking"])


def bounds_of(
    constraint: Constraint, graph: ChannelGraph, tolerance: float
) -> dict[str, tuple[float, float]]:
    """Returns between what and what expected costs are at no loss, by name.

    Args:
        constraint: the budget; the ends of a band are its own.
        graph: whose full costs tolerance is a share of.
        tolerance: share that they may be below an upper bound.
    """
    full = graph.space(alpha=1.0).full
    room = {
        limit.name: tolerance * float(getattr(graph.costs, limit.name)([full])[0])
        for limit in constraint.limits
    }
    return {
        limit.name: (limit.low or max(limit.high - room[limit.name], limit.high / 2), limit.high)
        for limit in constraint.limits
    }


class Sizes(Logits):
    """The logits of all widths and blocks of a space that have a choice: a row for each."""

    choices: torch.Tensor

    def __init__(self, space: SearchSpace) -> None:
        """Takes the space; what has one choice has no row."""
        self.space = space
        self.shapes = [d for d in space.dimensions if d.kind != "criterion"]
        self._rows = [index for index, d in enumerate(self.shapes) if len(d.choices) > 1]
        super().__init__([len(self.shapes[index].choices) for index in self._rows])
        most = max(len(d.choices) for d in self.shapes)
        choices = torch.tensor(
            [[*d.choices, *d.choices[-1:] * (most - len(d.choices))] for d in self.shapes]
        )
        self.register_buffer("choices", choices, persistent=False)

    def begin(self, graph: ChannelGraph, wanted: Mapping[str, float]) -> None:
        """Sets logits to a slope times the share that is kept: the highest of which no expected cost is above it."""
        shapes = [self.shapes[index] for index in self._rows]
        shares = nn.utils.rnn.pad_sequence(
            [torch.tensor(d.choices) / d.full for d in shapes], batch_first=True
        )
        low, high = -_FAR, _FAR
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            with torch.no_grad():
                self.values.copy_(middle * shares)
            costs = self.expected(graph, wanted)
            low, high = (
                (middle, high)
                if all(costs[n] <= most for n, most in wanted.items())
                else (low, middle)
            )
        with torch.no_grad():
            self.values.copy_(low * shares)

    def whole(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns numbers of all choices of all widths and blocks, from those of the ones with a row; 1 for the others.

        Args:
            rows: (n, most).
        """
        every = rows.new_zeros(len(self.shapes), self.choices.shape[1])
        every[:, 0] = 1  # of those with one choice
        if not self._rows:
            return every
        padded = nn.functional.pad(rows, (0, every.shape[1] - rows.shape[1]))
        return every.index_copy(0, torch.tensor(self._rows, device=rows.device), padded)

    def expected(self, graph: ChannelGraph, names: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Returns expected costs by name, scalars with gradients."""
        every: list[Any] = []
        for d, row, choices in zip(
            self.shapes, self.whole(self.logs().exp()), self.choices, strict=True
        ):
            count = len(d.choices)
            values, shares = choices[:count], row[:count]
            every.append((values, shares) if d.kind == "width" else (values * shares).sum())
        return {name: graph.costs.expected(every, name) for name in names}

    def of_all(self) -> list[NDArray[np.float64]]:
        """Returns the probabilities of the choices of every dimension, (n_choices,) each; criteria are the first."""
        rows = dict(zip(self._rows, self.probabilities(), strict=True))
        every = [rows.get(index, np.ones(1)) for index in range(len(self.shapes))]
        return every + [
            np.eye(len(d.choices))[0] for d in self.space.dimensions if d.kind == "criterion"
        ]


class Sampling(Relaxed):
    """A network learns through widths and blocks that are drawn; how probable each is learns at a cost."""

    logits: Sizes

    def __init__(  # noqa: PLR0913 - what is trained, at which cost, and how
        self,
        model: nn.Module,
        graph: ChannelGraph,
        sizes: Sizes,
        structure: Any,  # noqa: ANN401 - images, as of `Relaxed`
        *,
        ranking: Ranking,
        bounds: Bounds,
        weight: float = 2.0,
        samples: int = 2,
        logit_lr: float = 0.1,
        logit_decay: float = 0.0,
        temperatures: tuple[float, float] = (5.0, 0.1),
        objective: str = "classification",
    ) -> None:
        """Takes what is learned at which cost; see `Relaxed` for the others.

        Args:
            model: the network.
            graph: its channel groups.
            sizes: the logits.
            structure: the images that they learn on.
            ranking: which channels a width keeps.
            bounds: between what and what expected costs are at no loss.
            weight: of the logarithms of how far they are outside.
            samples: choices of every dimension that a pass mixes.
            logit_lr: highest learning rate of the logits.
            logit_decay: L2 penalty on them.
            temperatures: of the draws at the beginning and at the end.
            objective: of `OBJECTIVES`.
        """
        super().__init__(
            model,
            graph,
            sizes,
            structure,
            logit_lr=logit_lr,
            logit_decay=logit_decay,
            temperatures=temperatures,
            objective=objective,
        )
        self._ranking, self._bounds, self._weight, self._samples = (
            ranking,
            dict(bounds),
            weight,
            samples,
        )
        widths = [d for d in sizes.shapes if d.kind == "width"]
        self._first = [
            first_choices(d, order) for d, order in zip(widths, ranking.orders, strict=True)
        ]

    def gates(self, draws: torch.Generator) -> Gates:
        """Returns gates: of a channel the sum of the weights of the drawn widths that keep it, of a block likewise."""
        weights = self.logits.whole(self.logits.mixed(self.temperature, self._samples, draws))
        # 0 beyond the widest
        reached = nn.functional.pad(weights.flip(1).cumsum(1).flip(1), (0, 1))
        count = len(self._first)
        self._first = [each.to(reached.device) for each in self._first]
        groups = [row[first] for row, first in zip(reached, self._first, strict=False)]
        kept = (weights * self.logits.choices).sum(dim=1)
        return Gates(groups, kept[count:].unbind())

    def cost(self) -> torch.Tensor:
        """Returns how far expected costs are outside of their bounds, in logarithms, times the weight; a scalar."""
        outside: list[torch.Tensor] = []
        for name, cost in self.logits.expected(self._graph, self._bounds).items():
            low, high = self._bounds[name]
            outside.append((cost / high).log().clamp_min(0) + (low / cost).log().clamp_min(0))
        return self._weight * torch.stack(outside).sum()

    def same(self) -> Mapping[str, Any]:
        """Returns what is drawn at which cost."""
        orders = [order.tolist() for order in self._ranking.orders]
        settings = {
            "bounds": {name: list(ends) for name, ends in self._bounds.items()},
            "orders": orders,
        }
        settings["choices"] = [list(d.choices) for d in self.logits.shapes]
        return {**super().same(), **settings, "weight": self._weight, "samples": self._samples}
