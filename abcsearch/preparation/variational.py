"""Variational pruning: batch-norm scales are distributions, which a prior draws to 0."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from abcsearch.channels.fixed import Fixed, ranked_by
from abcsearch.channels.gates import replaced
from abcsearch.errors import PreparationError, plural
from abcsearch.preparation.base import Preparation, Prepared, loaded
from abcsearch.preparation.options import VariationalOptions
from abcsearch.preparation.slimming import penalised
from abcsearch.preparation.structures import check_criterion, threshold_cut
from abcsearch.training.checks import check_training
from abcsearch.training.lesson import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.source import Source
    from abcsearch.data.split import Images
    from abcsearch.preparation.base import Pruning, Tensors, Trainer
    from abcsearch.training.recipe import Recipe

SMALL = 0.02  # published: below this a channel goes


class Variational(Preparation):
    """Trains the network with noise in batch-norm scales and a prior about 0; what the loss does not defend goes there.

    What a batch norm puts out is multiplied, per channel, by a number drawn from N(mean, spread^2) for every batch;
    mean and spread are learned, and the loss has the divergence from the prior N(0, prior^2). In the end means are
    multiplied into scales and shifts. Channels are ranked by |mean|; the search begins with the structure that one
    threshold on (mean / spread)^2 leaves of all layers, at the budget.

    Source: Zhao et al., Variational Convolutional Neural Network Pruning (CVPR 2019), as remembered, section 3.

    Differences from the paper:
        - The prior has one variance for all, so that the divergence is log(prior / spread) + (spread^2 + mean^2) /
          (2 prior^2) - 1/2. With the variance of each channel's own distribution it is mean^2 / (2 spread^2), whose
          least value is that of endless noise.
        - Distributions are of a factor on the trained scale and shift, which begins at 1; scales are not trained
          meanwhile, shifts are. The paper's are of the scales themselves, of a network that is trained anew.
        - Channels that are tied together have the mean score over their batch norms.
        - The threshold follows from the budget; as remembered, the paper's is |mean| < 0.02 and spread < 0.01.
    """

    Options: ClassVar[type] = VariationalOptions
    milder: ClassVar[str] = "raise prior = {prior}, or lower strength = {strength}"
    options: VariationalOptions

    def check(self, task: Pruning) -> None:
        """Raises unless there are scales to learn, and the recipe suits the data.

        Raises:
            PreparationError: if no channel that can be removed has a batch norm, or the search has criteria to choose
                from.
            ConfigError: if the recipe does not suit the data.
        """
        if not penalised(task.graph, task.base):
            msg = (
                f"variational learns the scales of batch norms, and {type(task.base).__name__} has none that is "
                f"trained and belongs to channels that can be removed ({plural(len(task.graph.prunable), 'group')} "
                "without); take group_lasso, soft_pruning, autopruner or taylor_iterative, which need none"
            )
            raise PreparationError(msg)
        check_criterion("variational", task, "the scales that it trains")
        check_training(
            self.options.training, task.data.train, task.data.objective, taught=False, scored=False
        )

    def prepare(self, task: Pruning, trainer: Trainer) -> Prepared:
        """Trains a copy of the network; returns it, the structure of the threshold, and what became of the scales."""
        network, recipe = copy.deepcopy(task.base), self.options.training
        lesson = NoisyScales(
            network,
            penalised(task.graph, network),
            prior=self.options.prior,
            strength=self.options.strength,
            objective=task.data.objective,
        )
        trained = trainer.train(lesson, recipe, name="variational")
        means, ratios = lesson.scores(task.graph)
        lesson.fold()
        cut = threshold_cut(ratios, task.constraint)
        values = np.concatenate([values_of[np.isfinite(values_of)] for values_of in means])
        facts = {
            "epochs": recipe.epochs,
            "loss of the first and the last epoch": [trained.losses[0], trained.losses[-1]],
            "channels with a batch norm": len(values),
            f"of these with a factor below {SMALL}": int((values < SMALL).sum()),
            "median factor": float(np.median(values)),
            **cut.facts(task.constraint),
        }
        source = Fixed(network.eval(), task.graph, ranked_by("variational", means))
        return Prepared(source=source, starts=[cut.structure], facts=facts)

    def source(self, task: Pruning, modules: Mapping[str, Tensors]) -> Source:
        """Returns the trained network as a source, its channels ranked by the means."""
        return Fixed.restored(loaded(task.base, modules["network"]), task.graph, modules["ranking"])


class Factors(nn.Module):
    """A normal distribution for each of some numbers: `mean`, and the logarithm of the spread, both (n,)."""

    def __init__(self, count: int, spread: float) -> None:
        """Begins with means of 1."""
        super().__init__()
        self.mean = nn.Parameter(torch.ones(count))
        self.log_spread = nn.Parameter(torch.full((count,), math.log(spread)))

    def divergence(self, prior: float) -> torch.Tensor:
        """Returns the sum of the divergences KL(N(mean, spread^2) || N(0, prior^2)), a scalar in nats."""
        squares = (2 * self.log_spread).exp() + self.mean.square()
        return (math.log(prior) - self.log_spread + squares / (2 * prior**2) - 0.5).sum()


class NoisyScales(Supervised):
    """A network learns the labels while random factors, which are learned too, scale what its batch norms put out."""

    def __init__(
        self,
        model: nn.Module,
        gammas: Mapping[str, torch.Tensor],
        *,
        prior: float = 0.1,
        strength: float = 1.0,
        objective: str = "classification",
    ) -> None:
        """Takes what is learned, and which scales have a factor.

        Args:
            model: the network.
            gammas: names of parameters, and which of their entries, as `penalised` returns them.
            prior: spread of the prior; distributions begin with half of it.
            strength: that the divergence, by the number of images, is multiplied by.
            objective: of `OBJECTIVES`.
        """
        super().__init__(model, objective=objective)
        self._entries = {name: mask.nonzero()[:, 0] for name, mask in gammas.items()}
        self._prior, self._strength = prior, strength
        self.factors = Factors(sum(map(len, self._entries.values())), prior / 2)
        self.modules = {"model": model, "factors": self.factors}

    def begin(self, recipe: Recipe, images: Images) -> None:
        """Notes how many images there are."""
        super().begin(recipe, images)
        self._count = len(images)

    def step(
        self, images: torch.Tensor, labels: torch.Tensor, draws: torch.Generator
    ) -> torch.Tensor:
        """Returns the loss of a batch under one draw of the factors, and the divergence."""
        factors = self.factors
        noise = torch.randn(factors.mean.shape, generator=draws).to(factors.mean)
        with replaced(self.model, self._scaled(factors.mean + factors.log_spread.exp() * noise)):
            loss = super().step(images, labels, draws)
        return loss + self._strength / self._count * factors.divergence(self._prior)

    def _scaled(self, factors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns scales and shifts of batch norms times factors, by name; scales are constants."""
        tensors = dict(self.model.named_parameters())
        scaled: dict[str, torch.Tensor] = {}
        chunks = factors.split([len(entries) for entries in self._entries.values()])
        for (name, entries), chunk in zip(self._entries.items(), chunks, strict=True):
            gamma, shift = tensors[name].detach(), f"{name.removesuffix('weight')}bias"
            along = torch.ones_like(gamma).index_put(
                (entries.to(gamma.device),), chunk.to(gamma.dtype)
            )
            scaled[name] = gamma * along
            if shift in tensors:
                scaled[shift] = tensors[shift] * along
        return scaled

    def fold(self) -> None:
        """Multiplies the means into scales and shifts, for good."""
        with torch.no_grad():
            tensors = dict(self.model.named_parameters())
            for name, value in self._scaled(self.factors.mean.detach()).items():
                tensors[name].copy_(value)

    def scores(
        self, graph: ChannelGraph
    ) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
        """Returns per prunable group |mean|, and (mean / spread)^2, (channels,): over batch norms; infinite without one."""
        mean = self.factors.mean.detach().double().cpu()
        spread = self.factors.log_spread.detach().double().cpu().exp()
        means: list[list[NDArray[np.float64]]] = []
        for values in (mean.abs(), (mean / spread).square()):
            chunks = values.split([len(entries) for entries in self._entries.values()])
            by_name = {
                name: dict(zip(entries.tolist(), chunk.tolist(), strict=True))
                for (name, entries), chunk in zip(self._entries.items(), chunks, strict=True)
            }
            means.append([_mean_over(group, by_name) for group in graph.prunable])
        return means[0], means[1]

    def same(self) -> Mapping[str, Any]:
        """Returns objective, prior and strength."""
        return {
            **super().same(),
            "prior": self._prior,
            "strength": self._strength,
            "gammas": list(self._entries),
        }


def _mean_over(group: Any, values: Mapping[str, Mapping[int, float]]) -> NDArray[np.float64]:  # noqa: ANN401
    """Returns the mean of the values of every channel of a group over its batch norms; infinite without one.

    Args:
        group: a `ChannelGroup`.
        values: by name of a parameter, by entry of it.
    """
    sums, counts = np.zeros(group.channels), np.zeros(group.channels)
    for member in group.members:
        if member.parameter in values:
            np.add.at(
                sums,
                member.channels,
                [values[member.parameter][entry] for entry in member.entries.tolist()],
            )
            np.add.at(counts, member.channels, 1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
