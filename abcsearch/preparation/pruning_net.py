"""PruningNet: a network beside the network, which makes the weights of every structure from its keep ratios."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from abcsearch.channels.fixed import ranked_by, ranking_of
from abcsearch.channels.generated import Generated, Generator, made_weights
from abcsearch.channels.onednn import pointwise_safely
from abcsearch.channels.sharing import shared_network
from abcsearch.errors import PreparationError
from abcsearch.formats import size_text
from abcsearch.preparation.base import Preparation, Prepared, loaded
from abcsearch.preparation.needs import Needs
from abcsearch.preparation.options import PruningNetOptions
from abcsearch.preparation.slimmable import Sampler
from abcsearch.preparation.structures import INSIDE, check_criterion, largest_uniform
from abcsearch.rng import numpy_stream, torch_seeded, torch_stream
from abcsearch.training.checks import check_training
from abcsearch.training.computing import find_device
from abcsearch.training.lesson import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from abcsearch.channels.generated import Made
    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.orders import Ranking
    from abcsearch.channels.source import Source
    from abcsearch.preparation.base import Pruning, Tensors, Trainer
    from abcsearch.space import Candidate, SearchSpace
    from abcsearch.training.recipe import Recipe


class PruningNet(Preparation):
    """Trains a generator that makes the weights of a structure from its keep ratios.

    For every weight of a convolution or a linear layer a hidden layer reads the keep ratios of the groups on its axes;
    what it says changes the weight, see `Generator`. A step draws one structure, makes its weights, and teaches them
    one batch; biases, norms and all else are trained beside them, shared by all structures. Candidates are evaluated
    with weights made for them, their batch norms calibrated as ever; fine-tuning begins with these. The search begins
    with the largest uniform structure inside the budget.

    Widths without a choice are read by no hidden layer. Blocks that are dropped have no weights, and those of others
    do not depend on them.

    Source: Liu et al., MetaPruning: Meta Learning for Automatic Neural Network Channel Pruning (ICCV 2019).

    Differences from the paper:
        - By default weights are the trained network's and what the generator adds, which is nothing in the beginning:
          the first candidates are plain slices, channels in the order of the network's ranking. With form =
          "published" all begins with noise, channels in the order in which they are.
        - A hidden layer reads the ratios of the groups on its weight's axes, one or two; published: the three of a
          bottleneck for each of its layers. Stages and inner widths alike, and the classifier where it reads a group.
        - One batch norm, with scales and shifts, serves all structures; published: one without these for every width.
          Both use the statistics of the batch in training, and estimate them anew for a candidate.
        - By default structures meet the run's budget; published: the whole space, `widths = "free"`.
        - The winner is fine-tuned with the weights that were made for it; published: trained from scratch, which the
          baseline `scratch_e` does beside it.
    """

    Options: ClassVar[type] = PruningNetOptions
    options: PruningNetOptions

    def check(self, task: Pruning) -> None:
        """Raises unless weights can follow from the widths of the space, and the recipe suits the data.

        Raises:
            PreparationError: if no width has a choice, no weight that is trained has channels of one, or, in the
                published form, nothing holds the scale of what is made, or criteria are to be chosen from.
            ConfigError: if the recipe does not suit the data.
        """
        recipe = self.options.training
        taught = recipe.taught
        check_training(recipe, task.data.train, task.data.objective, taught=taught, scored=False)
        if not _free(task.space):
            msg = "pruning_net makes weights from keep ratios, and no width of the space has a choice: search widths "
            msg += 'as well, levels = ["filter", "stage", ...], or take slimmable'
            raise PreparationError(msg)
        if not made_weights(task.base, task.graph, _free(task.space)):
            msg = "pruning_net makes weights of convolutions and linear layers, and none that is trained (requires_grad)"
            msg += " has channels that are searched: thaw them, or take another preparation"
            raise PreparationError(msg)
        if self.options.form == "published":
            check_criterion("pruning_net", task, 'their positions in form = "published"')
            if not any(isinstance(module, _BatchNorm) for module in task.base.modules()):
                msg = "pruning_net: published weights have no scale of their own, and this network has no batch norms "
                msg += 'that would hold one: set form = "residual" or "low_rank"'
                raise PreparationError(msg)

    def needs(self, task: Pruning) -> Needs:
        """Returns how much memory and disk the generator takes."""
        made, options, recipe = (
            made_weights(task.base, task.graph, _free(task.space)),
            self.options,
            self.options.training,
        )
        network = sum(tensor.numel() for tensor in task.base.parameters())
        numbers = _numbers(made, options)
        kept = 4 * (numbers + network) * (1 + _states(recipe) + (recipe.ema > 0))
        # Gradients, and the weights of a step with theirs. What is saved is copied, is bytes tensor by tensor, then all
        # bytes; and the last weights are returned besides. Measured: 1.08 GB, where this says 1.05.
        training, saving = kept + 4 * (numbers + 3 * network), 3 * kept + 4 * (numbers + network)
        where = str(find_device(recipe.device))
        apart = where != "cpu"
        return Needs(
            text=f"pruning_net makes {len(made)} weights by a generator of {numbers:,} numbers, "
            f"{numbers / network:.3g} times those of the network",
            memory=saving if apart else training + saving,
            device=training if apart else 0,
            where=where,
            disk=4 * numbers,
            less=_less(made, options),
        )

    def prepare(self, task: Pruning, trainer: Trainer) -> Prepared:
        """Trains a copy of the network and a generator; returns both, and the largest uniform structure."""
        recipe, options, graph = self.options.training, self.options, task.graph
        network, published = copy.deepcopy(task.base), options.form == "published"
        ranking = _by_position(graph) if published else task.rank(network)
        generator = self._generator(task)
        generator.drawn(torch_stream(trainer.seed, "pruning_net generator"), outputs=published)
        if published:
            _renew(network, generator, options.hidden, trainer.seed)
        lesson = Generating(
            network,
            graph,
            ranking,
            Sampler(task.space, task.constraint, widths=options.widths),
            generator,
            from_full=not published,
            objective=task.data.objective,
            teacher=copy.deepcopy(task.base) if recipe.taught else None,
        )
        trained = trainer.train(lesson, recipe, name="pruning_net")
        if published:
            _own_weights(network, graph, generator, task.space)
        source = Generated(network.eval(), graph, ranking, generator.eval())
        start = largest_uniform(task.space, task.constraint)
        facts = {
            "epochs": recipe.epochs,
            "loss of the first and the last epoch": [trained.losses[0], trained.losses[-1]],
            "weights that are made": len(generator.made),
            "numbers that make them": _numbers(generator.made, options),
            "change of weights, from the full to the smallest structure": _change(
                source, task.space
            ),
            "channels ranked, before the training, by": list(ranking.criteria),
            INSIDE: task.constraint.allows(start),
        }
        return Prepared(source=source, starts=[start], facts=facts)

    def source(self, task: Pruning, modules: Mapping[str, Tensors]) -> Source:
        """Returns the trained network and generator as a source, its channels ranked as it was trained."""
        generator = self._generator(task)
        generator.load_state_dict(dict(modules["generator"]))
        network = loaded(task.base, modules["network"])
        return Generated(network, task.graph, ranking_of(modules["ranking"]), generator.eval())

    def _generator(self, task: Pruning) -> Generator:
        """Returns a generator for the network, not begun."""
        made = made_weights(task.base, task.graph, _free(task.space))
        low_rank = self.options.form == "low_rank"
        return Generator(made, hidden=self.options.hidden, low_rank=low_rank).to_like(task.base)


class Generating(Supervised):
    """A generator learns to make weights: of one random structure per step."""

    def __init__(  # noqa: PLR0913 - what is trained, on which structures, and how
        self,
        model: nn.Module,
        graph: ChannelGraph,
        ranking: Ranking,
        sampler: Sampler,
        generator: Generator,
        *,
        from_full: bool = True,
        objective: str = "classification",
        teacher: nn.Module | None = None,
    ) -> None:
        """Takes what is learned.

        Args:
            model: the network, whose own weights and all that is not made learn as well.
            graph: its channel groups.
            ranking: which channels structures keep.
            sampler: draws structures.
            generator: makes their weights.
            from_full: see `Generator.weights`.
            objective: of `OBJECTIVES`.
            teacher: of all structures, if the recipe distils.
        """
        super().__init__(model, objective=objective, teacher=teacher)
        self._graph, self._ranking, self._sampler = graph, ranking, sampler
        self._generator, self._from_full = generator, from_full
        self.modules = {"model": model, "generator": generator}

    def step(
        self, images: torch.Tensor, labels: torch.Tensor, draws: torch.Generator
    ) -> torch.Tensor:
        """Returns the loss of a batch."""
        rng = numpy_stream(int(torch.randint(2**62, (), generator=draws)), "pruning_net")
        candidate = self._sampler.one(rng)
        weights = self._generator.weights(
            self.model, self._graph, candidate, from_full=self._from_full
        )
        network = shared_network(self.model, self._graph, candidate, self._ranking, weights)
        self._called = network
        try:
            # The training's block is around the full network's modules
            with pointwise_safely(network):
                return self._taught(images, labels).loss
        finally:
            self._called = self.model

    def same(self) -> Mapping[str, Any]:
        """Returns what is drawn, what is made, and the order of channels."""
        orders = [
            [order.tolist() for order in ranking.orders]
            for ranking in (self._ranking, *self._ranking.others)
        ]
        here = {
            "orders": orders,
            "made": [one.name for one in self._generator.made],
            "from_full": self._from_full,
        }
        return {**super().same(), **here, **self._sampler.same()}


def _free(space: SearchSpace) -> list[int]:
    """Returns the numbers of the groups whose widths have a choice: they come first in a space, in their order."""
    dimensions = [dimension for dimension in space.dimensions if dimension.kind == "width"]
    return [number for number, dimension in enumerate(dimensions) if len(dimension.choices) > 1]


def _numbers(made: Sequence[Made], options: PruningNetOptions) -> int:
    """Returns how many numbers a generator has."""
    low_rank = options.form == "low_rank"
    return sum(one.numbers(options.hidden, low_rank=low_rank) for one in made)


def _states(recipe: Recipe) -> int:
    """Returns how many numbers an optimiser keeps of each that it changes."""
    return 2 if recipe.optimizer == "adamw" else int(recipe.momentum > 0)


def _less(made: Sequence[Made], options: PruningNetOptions) -> str:
    """Returns what takes less memory."""
    if options.form == "low_rank":
        return f"set hidden below {options.hidden}" if options.hidden > 1 else ""
    small = sum(one.numbers(options.hidden, low_rank=True) for one in made)
    return f'set form = "low_rank" (a generator of {size_text(4 * small)}), or hidden below {options.hidden}'


def _by_position(graph: ChannelGraph) -> Ranking:
    """Returns the ranking by which the first channels stay."""
    return ranked_by(
        "position", [-np.arange(group.channels, dtype=np.float64) for group in graph.prunable]
    )


def _renew(network: nn.Module, generator: Generator, hidden: int, seed: int) -> None:
    """Draws all weights of a network anew, those that are made as the offsets of a layer of so many inputs, in place.

    What a module without `reset_parameters` holds is as it was.
    """
    with torch_seeded(seed, "pruning_net weights"):
        for module in network.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset) and any(
                parameter is not None and parameter.requires_grad
                for parameter in module._parameters.values()
            ):
                reset()
        made, tensors = [one.name for one in generator.made], dict(network.named_parameters())
        for name in made:
            nn.init.uniform_(tensors[name], -(hidden**-0.5), hidden**-0.5)


@torch.no_grad()
def _own_weights(
    network: nn.Module, graph: ChannelGraph, generator: Generator, space: SearchSpace
) -> None:
    """Gives a network, as its own, the weights that are made for the full one, in place."""
    tensors = dict(network.named_parameters())
    for name, weight in generator.weights(
        network, graph, space.full[: len(graph.prunable)], from_full=False
    ).items():
        tensors[name].copy_(weight)


@torch.no_grad()
def _change(source: Generated, space: SearchSpace) -> float:
    """Returns how far the weights of the smallest structure are from the full network's, as a share of these."""
    least: Candidate = space.at([0] * len(space))[: len(source.graph.prunable)]
    tensors = dict(source.model.named_parameters())
    weights = source.generator.weights(source.model, source.graph, least)
    far = sum(float((weight - tensors[name]).square().sum()) for name, weight in weights.items())
    return (far / max(sum(float(tensors[name].square().sum()) for name in weights), 1e-30)) ** 0.5
