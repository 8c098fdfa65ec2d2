"""Structures that are drawn by Gumbel's softmax and passed through as gates: logits that learn beside the weights.

Source: Jang et al., Categorical Reparameterization with Gumbel-Softmax (ICLR 2017).
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from abcsearch.channels.gates import gated, replaced
from abcsearch.channels.skipping import skipping
from abcsearch.errors import PreparationError, plural
from abcsearch.example import run_on
from abcsearch.training.checks import check_finite
from abcsearch.training.lesson import Supervised
from abcsearch.training.objectives import output_of
from abcsearch.training.optimization import make_optimizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.data.split import Images
    from abcsearch.preparation.base import Trainer
    from abcsearch.space import Dimension
    from abcsearch.training.recipe import Recipe

CERTAIN = 0.9  # a choice of this probability is as good as decided
_MOMENTA = (0.5, 0.999)  # of Adam, as in the published code of TAS


class Gates(NamedTuple):
    """What a pass multiplies.

    Attributes:
        groups: per prunable group, (channels,).
        blocks: per residual block, (); none where no block is gated.
    """

    groups: Sequence[torch.Tensor]
    blocks: Sequence[torch.Tensor] = ()


class Logits(nn.Module):
    """The logits of several choices: `values` (n, most), of which row i has as many as there are choices in i."""

    exists: torch.Tensor

    def __init__(self, counts: Sequence[int]) -> None:
        """Takes how many choices there are, per row; all logits are 0."""
        super().__init__()
        most = max(counts, default=1)
        self.values = nn.Parameter(torch.zeros(len(counts), most))
        exists = torch.arange(most) < torch.tensor(counts, dtype=torch.int64)[:, None]
        self.register_buffer("exists", exists, persistent=False)

    def logs(self) -> torch.Tensor:
        """Returns the logarithms of the probabilities, (n, most); minus infinity where there is no choice."""
        return self.values.masked_fill(~self.exists, -math.inf).log_softmax(dim=1)

    def drawn(self, temperature: float, draws: torch.Generator) -> torch.Tensor:
        """Returns logits with Gumbel's noise, divided by a temperature, (n, most); minus infinity likewise.

        Args:
            temperature: > 0; near 0 one choice outweighs all others.
            draws: on the CPU.
        """
        return (self.logs() + self.noise(draws)) / temperature

    def noise(self, draws: torch.Generator) -> torch.Tensor:
        """Returns Gumbel's noise, (n, most), finite."""
        uniform = torch.rand(self.values.shape, generator=draws, dtype=torch.float64).clamp(
            1e-12, 1 - 1e-12
        )
        return -(-uniform.log()).log().to(self.values)

    def mixed(self, temperature: float, samples: int, draws: torch.Generator) -> torch.Tensor:
        """Returns weights of choices, (n, most), that add up to 1: of some that are drawn, 0 of all others.

        They are drawn without replacement by the softmax of logits with noise, and weighed by it.

        Args:
            temperature: see `drawn`.
            samples: how many are drawn; all of a row where it has no more.
            draws: on the CPU.
        """
        noisy = self.drawn(temperature, draws)
        # The first places of a race with Gumbel's noise are draws without replacement (Vieira 2014).
        race = noisy.detach() + self.noise(draws)
        chosen = race.topk(min(samples, race.shape[1]), dim=1).indices
        weights = noisy.gather(1, chosen).softmax(dim=1)
        return torch.zeros_like(noisy).scatter(1, chosen, weights)

    def hard(self, temperature: float, draws: torch.Generator) -> torch.Tensor:
        """Returns 1 for the choice of each row that is drawn, 0 for others, (n, most), with the softmax's gradients."""
        soft = self.drawn(temperature, draws).softmax(dim=1)
        one = torch.zeros_like(soft).scatter(1, soft.argmax(dim=1, keepdim=True), 1.0)
        return one + (soft - soft.detach())

    def probabilities(self) -> list[NDArray[np.float64]]:
        """Returns the probabilities of the choices of each row, (n_choices,) each."""
        every = self.logs().detach().double().exp().cpu()
        return [
            row[exists.cpu()].numpy() / float(row.sum())
            for row, exists in zip(every, self.exists, strict=True)
        ]


def first_choices(dimension: Dimension, order: NDArray[np.int64]) -> torch.Tensor:
    """Returns the first choice that is wide enough to keep each channel, (channels,); their number where none is.

    Args:
        dimension: a width.
        order: its channels from best to worst.
    """
    by_rank = torch.searchsorted(
        torch.tensor(dimension.choices), torch.arange(dimension.full), right=True
    )
    return torch.zeros_like(by_rank).index_copy(0, torch.from_numpy(order.copy()), by_rank)


def parted(trainer: Trainer, share: float, name: str) -> tuple[Images, Images]:
    """Returns the images that weights learn on, and those that a structure does.

    Raises:
        PreparationError: if one of them has none.
    """
    weights, structure = trainer.halves(share)
    if not len(weights) or not len(structure):
        msg = f"{name}: split = {share:g} of {plural(len(trainer.images), 'training image')} leaves none to learn "
        msg += f"{'weights' if len(structure) else 'the structure'} on; set it nearer to 0.5"
        raise PreparationError(msg)
    return weights, structure


class Relaxed(Supervised):
    """A network learns through gates that are drawn anew for every pass, and the logits of the draws beside it.

    A step has a pass for the weights, through gates that do not learn from it, and one for the logits on images of
    their own, from which the weights do not learn. A subclass says what is drawn.

    Attributes:
        logits: of the draws.
        progress: share of the training that is done.
    """

    def __init__(  # noqa: PLR0913 - what is trained, on what, and how
        self,
        model: nn.Module,
        graph: ChannelGraph,
        logits: Logits,
        structure: Images,
        *,
        logit_lr: float,
        temperatures: tuple[float, float],
        logit_decay: float = 0.0,
        objective: str = "classification",
    ) -> None:
        """Takes what is learned.

        Args:
            model: the network.
            graph: its channel groups.
            logits: of the draws.
            structure: the images that they learn on.
            logit_lr: their highest learning rate.
            temperatures: of the draws at the beginning and at the end.
            logit_decay: L2 penalty on the logits.
            objective: of `OBJECTIVES`.
        """
        super().__init__(model, objective=objective)
        self.logits, self.progress = logits, 0.0
        self._graph, self._structure = graph, structure
        self._logit_lr, self._temperatures, self._logit_decay = logit_lr, temperatures, logit_decay
        self.modules = {"model": model, "logits": logits}

    def gates(self, draws: torch.Generator) -> Gates:
        """Returns gates, with gradients to the logits.

        Args:
            draws: on the CPU.
        """
        raise NotImplementedError

    def cost(self) -> torch.Tensor | None:
        """Returns what is added to the loss of the logits, a scalar with gradients; None: nothing."""

    @property
    def temperature(self) -> float:
        """The temperature of draws now: a cosine from the first to the last."""
        hottest, coldest = self._temperatures
        return coldest + (hottest - coldest) * (1 + math.cos(math.pi * self.progress)) / 2

    def optimizers(self, recipe: Recipe) -> Mapping[str, torch.optim.Optimizer]:
        """Returns the recipe's one for the network, and one for the logits."""
        logits = torch.optim.Adam(
            self.logits.parameters(),
            lr=self._logit_lr,
            betas=_MOMENTA,
            weight_decay=self._logit_decay,
        )
        return {"model": make_optimizer(self.model, recipe), "logits": logits}

    def step(
        self, images: torch.Tensor, labels: torch.Tensor, draws: torch.Generator
    ) -> torch.Tensor:
        """Returns the loss of a batch, on which weights learn; that of the logits is no part of it."""
        check_finite("logits", self.logits.values)
        with torch.no_grad():
            gates = self.gates(draws)
        with self._through(gates):
            loss = super().step(images, labels, draws)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        torch.clear_autocast_cache()  # what it holds belongs to the pass that is done
        self._learn(len(labels), labels.device, draws)
        return loss.detach()

    @contextlib.contextmanager
    def _through(self, gates: Gates) -> Iterator[None]:
        """Has the network compute with gates in a block."""
        with (
            gated(self.model, self._graph, gates.groups),
            skipping(self.model, self._graph, gates.blocks),
        ):
            yield

    def _learn(self, count: int, device: torch.device, draws: torch.Generator) -> None:
        """Sets the gradient of the logits: of the loss on images of their own, and of the cost."""
        which = self.crew.picked(count, len(self._structure), draws)
        batch = self._structure.part(which).loaded()
        images, labels = batch.images.to(device), batch.labels.to(device)
        # Statistics of batch norms stay those of the passes that weights learn on.
        buffers = {name: tensor.clone() for name, tensor in self.model.named_buffers()}
        with replaced(self.model, buffers), self._through(self.gates(draws)):
            outputs = output_of(self.model, run_on(self.model, images))
        total, cost = self._goal.loss(outputs, labels), self.cost()
        if cost is not None:
            total = total + cost.to(total)
        # Criteria may all agree
        (gradient,) = torch.autograd.grad(total, [self.logits.values], allow_unused=True)
        self.logits.values.grad = (
            torch.zeros_like(self.logits.values) if gradient is None else gradient
        )
        torch.clear_autocast_cache()

    def after_step(self, progress: float) -> None:
        """Notes how far the training is."""
        self.progress = progress

    def same(self) -> Mapping[str, Any]:
        """Returns how it is learned."""
        settings = {
            "logit_lr": self._logit_lr,
            "temperatures": list(self._temperatures),
            "logit_decay": self._logit_decay,
        }
        return {**super().same(), **settings, "structure images": len(self._structure)}

    def state_dict(self) -> Mapping[str, Any]:
        """Returns how far the training is."""
        return {"progress": self.progress}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes that up."""
        self.progress = float(state["progress"])
