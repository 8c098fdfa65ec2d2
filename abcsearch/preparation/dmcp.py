"""DMCP: the width of every layer is a Markov chain, whose probabilities learn beside the weights; so is a block."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from abcsearch.channels.fixed import Fixed
from abcsearch.channels.gates import gated, replaced
from abcsearch.channels.skipping import skipping
from abcsearch.preparation.base import Preparation, Prepared, loaded
from abcsearch.preparation.gumbel import CERTAIN, Gates
from abcsearch.preparation.likeliest import expected_structure, likeliest
from abcsearch.preparation.options import DMCPOptions
from abcsearch.preparation.slimmable import Sampler, Sandwich
from abcsearch.preparation.structures import check_criterion, targets
from abcsearch.rng import numpy_stream
from abcsearch.training.checks import check_finite, check_training
from abcsearch.training.optimization import make_optimizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from abcsearch.budget import Constraint
    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.orders import Ranking
    from abcsearch.channels.source import Source
    from abcsearch.data.split import Images
    from abcsearch.preparation.base import Pruning, Tensors, Trainer
    from abcsearch.space import Candidate, SearchSpace
    from abcsearch.training.recipe import Recipe

BAND = 0.025  # how far expected costs may be from what they should be, in logarithms, at no loss
_FAR, _HALVINGS = 8.0, 30  # steps begin with logits between minus this and this


class DMCP(Preparation):
    """Trains slices of one set of weights, and chains that say how probable each width of every layer is.

    The widths of a layer are a chain: with probability sigmoid(a_k) it is at least as wide as its choice k, if it is as
    wide as the choice before. A step teaches the full network, the smallest and random slices, as `slimmable` does;
    from the middle of the training on, random slices come more and more from the chains, and the chains learn, too: all
    channels are gated by the probability that their width is kept, and the loss has the distance of the expected cost
    from the budget. The search begins with the expected structure, and the likeliest ones inside the budget. Where the
    space has blocks, each is a chain of one step: what it adds is gated by the probability that it is kept.

    Source: Guo et al., DMCP: Differentiable Markov Channel Pruning for Neural Networks (CVPR 2020).

    Differences from the paper:
        - Chains learn on `split` of the training images, on which weights do not; in the published code on the batch
          that the weights have just learned, `split = 0`.
        - The loss of the cost is |log(expected / wanted)| beyond a band of 2.5 %; published: log of the difference in
          MFLOPs, which depends on the scale and is singular at the band's edge. Expectations are exact also where one
          group stands on both ends of a layer.
        - The result is the structure of the expected widths, scaled into the budget, and the likeliest structures that
          spend most of it, which are then evaluated. Published: expected widths, rounded, which may be above the
          budget; or draws until one fits, which need not end where chains are certain. As long as chains are undecided,
          the likeliest structures are extreme: a layer that stops at no step is as wide as it can be.
        - It begins with the trained network and its channels in the order of its ranking, and random slices meet the
          budget. Steps begin with one probability for all, of which the expected cost is the budget's; published: 1/2,
          which of ten widths makes the second or third the likeliest.
        - Residual blocks may go, where the space has them; published: all stay, as with `blocks = false`.
        - Chains learn by Adam, at a rate that follows the recipe's schedule; published: SGD at 0.5, for 20 epochs of
          ImageNet, of which thousands of images leave all chains as they were.
    """

    Options: ClassVar[type] = DMCPOptions
    milder: ClassVar[str] = "lower weight = {weight} or chain_lr = {chain_lr}"
    options: DMCPOptions

    def check(self, task: Pruning) -> None:
        """Raises unless the budget has an expectation, and the recipe suits the data.

        Raises:
            PreparationError: if the budget is of other costs than MACs, FLOPs and params, or the search has criteria to
                choose from.
            ConfigError: if the recipe does not suit the data.
        """
        targets("dmcp", task.constraint)
        check_criterion("dmcp", task, "the ranking that slices are trained by")
        check_training(
            self.options.training, task.data.train, task.data.objective, taught=False, scored=False
        )

    def prepare(self, task: Pruning, trainer: Trainer) -> Prepared:
        """Trains a copy of the network; returns it, and the likeliest structures inside the budget."""
        network, recipe, options = copy.deepcopy(task.base), self.options.training, self.options
        ranking = task.rank(network)
        images, structure = (
            trainer.halves(options.split) if options.split else (trainer.images, None)
        )
        chains = Chains(task.space, blocks=options.blocks)
        costs = targets("dmcp", task.constraint)
        chains.begin(task.graph, costs)
        lesson = Marking(
            network,
            task.graph,
            ranking,
            ChainSampler(task.space, task.constraint, chains),
            structure=structure,
            costs=costs,
            weight=options.weight,
            chain_lr=options.chain_lr,
            networks=options.networks,
            full_share=options.full_share,
            objective=task.data.objective,
        )
        trained = trainer.train(lesson, recipe, name="dmcp", images=images)
        check_finite("chains", chains.steps)
        probabilities = chains.probabilities()
        rng = numpy_stream(trainer.seed, "dmcp structures")
        chosen = likeliest(probabilities, task.constraint, options.structures, rng)
        expected = expected_structure(probabilities, task.constraint)
        starts = list(dict.fromkeys([expected, *(structure for structure, _ in chosen)]))[
            : options.structures
        ]
        facts = {
            "epochs": recipe.epochs,
            "loss of the first and the last epoch": [trained.losses[0], trained.losses[-1]],
            "expected cost by the budget": {
                name: float(share.detach())
                for name, share in chains.shares(task.graph, costs).items()
            },
            f"choices of probability {CERTAIN} or more": sum(
                float(p.max()) >= CERTAIN for p in probabilities
            ),
            "log probabilities of its structures": [score for _, score in chosen],
        }
        source = Fixed(network.eval(), task.graph, ranking)
        return Prepared(source=source, starts=starts, facts=facts)

    def source(self, task: Pruning, modules: Mapping[str, Tensors]) -> Source:
        """Returns the trained network as a source, its channels ranked as it was trained."""
        return Fixed.restored(loaded(task.base, modules["network"]), task.graph, modules["ranking"])


class Chains(nn.Module):
    """Logits of the steps of all widths and blocks, `steps` (all choices but the first of each,), 0 at the beginning.

    Attributes:
        shapes: the dimensions that have a chain, those of a space in their order: widths, then blocks.
    """

    def __init__(self, space: SearchSpace, *, blocks: bool = True) -> None:
        """Takes the space; a dimension with one choice has no step, criteria have no chain.

        Args:
            space: the structures.
            blocks: whether blocks have chains; without, all stay.
        """
        super().__init__()
        kinds = ("width", "block") if blocks else ("width",)
        self._space = space
        self.shapes = [d for d in space.dimensions if d.kind in kinds]
        self.steps = nn.Parameter(torch.zeros(sum(len(d.choices) - 1 for d in self.shapes)))

    def begin(self, graph: ChannelGraph, costs: Mapping[str, float]) -> None:
        """Sets all steps to one logit: the highest of which no expected cost is above what it should be."""
        low, high = -_FAR, _FAR
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            nn.init.constant_(self.steps, middle)
            if all(share <= 1 for share in self.shares(graph, costs).values()):
                low = middle
            else:
                high = middle
        nn.init.constant_(self.steps, low)

    def shares(self, graph: ChannelGraph, costs: Mapping[str, float]) -> dict[str, torch.Tensor]:
        """Returns expected costs as shares of what they should be, scalars by name."""
        every: Sequence[Any] = self.distributions()
        return {name: graph.costs.expected(every, name) / wanted for name, wanted in costs.items()}

    def reached(self) -> list[torch.Tensor]:
        """Returns per chain the probability that it is at least each of its choices, (n_choices,), 1 first."""
        chains = self.steps.split([len(d.choices) - 1 for d in self.shapes])
        return [torch.cat([chain.new_ones(1), torch.sigmoid(chain).cumprod(0)]) for chain in chains]

    def distributions(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns per chain its choices and their probabilities, both (n_choices,)."""
        pairs = zip(self.shapes, self.reached(), strict=True)
        return [
            (torch.tensor(d.choices, device=r.device), r - torch.cat([r[1:], r.new_zeros(1)]))
            for d, r in pairs
        ]

    def probabilities(self) -> list[NDArray[np.float64]]:
        """Returns the probabilities of the choices of every dimension, (n_choices,) each.

        Blocks without a chain stay, criteria are the first.
        """
        every: list[NDArray[np.float64]] = []
        for _, probability in self.distributions():
            values = probability.detach().double().cpu().numpy().clip(0)
            every.append(values / values.sum())
        for dimension in self._space.dimensions[len(every) :]:
            only = len(dimension.choices) - 1 if dimension.kind == "block" else 0
            every.append(np.eye(len(dimension.choices))[only])
        return every

    def gates(self, ranking: Ranking) -> Gates:
        """Returns the probability that each channel is kept, and each block.

        Channels that are ranked first are always kept; without chains of blocks, none of these is gated.

        Args:
            ranking: which channels a width keeps.
        """
        groups: list[torch.Tensor] = []
        blocks: list[torch.Tensor] = []
        for index, (dimension, reached) in enumerate(zip(self.shapes, self.reached(), strict=True)):
            # A channel is kept by the first choice that is wider than its rank; beyond the widest it never is.
            ranks = torch.arange(dimension.full)
            choice = torch.searchsorted(torch.tensor(dimension.choices), ranks, right=True)
            by_rank = torch.cat([reached, reached.new_zeros(1)])[choice.to(reached.device)]
            if dimension.kind == "block":  # as a layer of one channel
                blocks.append(by_rank[0])
                continue
            order = torch.from_numpy(np.ascontiguousarray(ranking.orders[index])).to(reached.device)
            groups.append(torch.zeros_like(by_rank).index_copy(0, order, by_rank))
        return Gates(groups, blocks)


class ChainSampler(Sampler):
    """Draws slices inside the budget: anywhere at first, from the middle of the training on by and by from chains."""

    def __init__(self, space: SearchSpace, constraint: Constraint, chains: Chains) -> None:
        """Takes the space, its budget, and the chains."""
        super().__init__(space, constraint)
        self.chains = chains
        self._progress = 0.0

    def drawn(self, count: int, progress: float, rng: np.random.Generator) -> list[Candidate]:
        """Returns the smallest structure and random ones, see `Sampler.drawn`."""
        self._progress = progress
        return super().drawn(count, progress, rng)

    def _random(self, rng: np.random.Generator) -> Candidate:
        # As published, where the share of free draws falls to 1 / e over the second half.
        if rng.random() < math.exp(-max(0.0, 2 * self._progress - 1)):
            return super()._random(rng)
        drawn = [int(rng.choice(len(p), p=p)) for p in self.chains.probabilities()]
        return self._constraint.repair(self._space.at(np.array(drawn, dtype=np.int64)), rng)


class Marking(Sandwich):
    """Slices of a network learn, and from the middle of the training on the chains that say which are worth it."""

    def __init__(  # noqa: PLR0913 - what is trained, at which cost, and how
        self,
        model: nn.Module,
        graph: ChannelGraph,
        ranking: Ranking,
        sampler: ChainSampler,
        *,
        structure: Images | None,
        costs: Mapping[str, float],
        weight: float = 1.0,
        chain_lr: float = 0.1,
        networks: int = 4,
        full_share: float = 0.5,
        objective: str = "classification",
    ) -> None:
        """Takes what is learned at which cost.

        Args:
            model: the network.
            graph: its channel groups.
            ranking: which channels slices keep.
            sampler: draws slices, and has the chains.
            structure: the images that chains learn on; None: those that the weights learn on.
            costs: what costs should be, by name, see `targets`.
            weight: of the distance of the expected costs from that.
            chain_lr: highest learning rate of the chains.
            networks: as of `Sandwich`, likewise the others.
            full_share: likewise.
            objective: likewise.
        """
        super().__init__(
            model,
            graph,
            ranking,
            sampler,
            networks=networks,
            full_share=full_share,
            objective=objective,
        )
        self._chains, self._structure = sampler.chains, structure
        self._costs, self._weight, self._chain_lr = dict(costs), weight, chain_lr
        self.modules = {"model": model, "chains": self._chains}

    def optimizers(self, recipe: Recipe) -> Mapping[str, torch.optim.Optimizer]:
        """Returns the recipe's one for the network, and one for the chains."""
        chains = torch.optim.Adam(self._chains.parameters(), lr=self._chain_lr)
        return {"model": make_optimizer(self.model, recipe), "chains": chains}

    def step(
        self, images: torch.Tensor, labels: torch.Tensor, draws: torch.Generator
    ) -> torch.Tensor:
        """Returns the loss of a batch; the chains' part is no part of it."""
        check_finite("chains", self._chains.steps)
        loss = super().step(images, labels, draws)
        if self.progress >= 0.5:
            if self._structure is not None:
                which = self.crew.picked(len(labels), len(self._structure), draws)
                batch = self._structure.part(which).loaded()
                images, labels = batch.images.to(labels.device), batch.labels.to(labels.device)
            self._mark(images, labels)
        return loss

    def _mark(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Adds the gradients of the chains: of the network with all channels and blocks gated, and of the expected cost."""
        gates = self._chains.gates(self._ranking)
        # Statistics of batch norms stay those of networks without gates.
        buffers = {name: tensor.clone() for name, tensor in self.model.named_buffers()}
        with (
            replaced(self.model, buffers),
            gated(self.model, self._graph, gates.groups),
            skipping(self.model, self._graph, gates.blocks),
        ):
            _, loss = self._goal.learned(self.model, self.model, (images, labels))
        beyond = [
            (share.log().abs() - BAND).clamp_min(0)
            for share in self._chains.shares(self._graph, self._costs).values()
        ]
        total = loss + self._weight * torch.stack(beyond).sum().to(loss)
        # Weights do not learn from this pass
        (gradient,) = torch.autograd.grad(total, [self._chains.steps])
        self._chains.steps.grad = gradient

    def same(self) -> Mapping[str, Any]:
        """Returns what is learned at which cost."""
        images = 0 if self._structure is None else len(self._structure)
        settings = {
            "weight": self._weight,
            "chain_lr": self._chain_lr,
            "costs": self._costs,
            "structure images": images,
        }
        return {**super().same(), **settings}
