"""LFPC: which criterion chooses the channels of a layer is drawn anew for every pass, and learned."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from abcsearch.channels.fixed import Fixed
from abcsearch.channels.named import CRITERIA
from abcsearch.channels.orders import Ranking
from abcsearch.channels.ranking import rank_channels
from abcsearch.errors import CandidateError, PreparationError
from abcsearch.preparation.base import Preparation, Prepared, loaded
from abcsearch.preparation.drawn_options import LFPCOptions
from abcsearch.preparation.gumbel import CERTAIN, Gates, Logits, Relaxed, parted
from abcsearch.preparation.structures import INSIDE, largest_uniform
from abcsearch.rng import torch_stream
from abcsearch.training.checks import check_finite, check_training

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.source import Source
    from abcsearch.data.split import Images
    from abcsearch.preparation.base import Pruning, Tensors, Trainer
    from abcsearch.space import Candidate

RANKING_IMAGES = 256  # for criteria that look at images, as of a run


class LFPC(Preparation):
    """Trains a network of given widths through channels that drawn criteria keep, and which criterion each layer needs.

    In every pass each layer draws one of the criteria by Gumbel's softmax, and only the channels that this one keeps
    are read. Weights learn on one part of the training images, the logits of the criteria on the other, by the
    gradients of the softmax where draws decide. The layers of the structure that is found choose channels by their most
    probable criterion, and the search begins with it. Where the search is over criteria, `criterion = ["l1", ...]`, it
    may change them again; where it is not, they are chosen for good, from `criteria`.

    Source: He et al., Learning Filter Pruning Criteria for Deep Convolutional Neural Networks Acceleration (CVPR 2020).

    Differences from the paper:
        - Widths are those of the largest uniform structure inside the budget, or of `structure` or `ratio`, and may
          then be searched; published: one ratio for all layers, and streams are left as they are.
        - Any criteria are taken, also such that look at images; published: l1, l2 and the geometric median (`fpgm`).
        - Criteria rank once, before the training, so that the channels that stay are those that were trained to.
        - Channels that are tied together have one criterion.
        - It begins with the trained network. Temperature and learning rates are ours; the paper does not tell them.
    """

    Options: ClassVar[type] = LFPCOptions
    milder: ClassVar[str] = "lower logit_lr = {logit_lr}"
    options: LFPCOptions

    def check(self, task: Pruning) -> None:
        """Raises unless there is something to choose, widths to choose it for, and the recipe suits the data.

        Raises:
            PreparationError: if all layers keep all channels, or the structure is none of the space.
            RankingError: if a criterion by import path leads nowhere.
            ConfigError: if the recipe does not suit the data.
        """
        structure = self._structure(task)
        if not any(_open(task, structure)):
            msg = f"lfpc has nothing to choose: {structure} keeps all channels of every layer; take narrower widths"
            raise PreparationError(msg)
        for name in self._names(task):
            CRITERIA.find(name)
        check_training(
            self.options.training, task.data.train, task.data.objective, taught=False, scored=False
        )

    def _names(self, task: Pruning) -> Sequence[str]:
        """Returns the criteria to choose from: of the search, or of the options."""
        return max((d.labels for d in task.space.dimensions), key=len) or self.options.criteria

    def _structure(self, task: Pruning) -> Candidate:
        """Returns the structure whose widths channels are chosen for; its criteria are the first."""
        if self.options.ratio is not None:
            return task.space.uniform(self.options.ratio)
        if self.options.structure is None:
            return largest_uniform(task.space, task.constraint)
        given = tuple(self.options.structure)
        shapes = int(task.space.ordered.sum())
        try:
            whole = given + (0,) * (len(task.space) - shapes) if len(given) == shapes else given
            task.space.check(whole)
        except CandidateError as error:
            msg = f"lfpc: structure: {error}"
            raise PreparationError(msg) from error
        return whole

    def prepare(self, task: Pruning, trainer: Trainer) -> Prepared:
        """Trains a copy of the network; returns it, and the structure with the criterion of every layer."""
        network, recipe, options = copy.deepcopy(task.base), self.options.training, self.options
        ranking = self._ranking(task, network, trainer)
        structure = self._structure(task)
        images, structure_split = parted(trainer, options.split, "lfpc")
        open_ = _open(task, structure)
        logits = Logits([len(ranking.criteria)] * sum(open_))
        lesson = Choosing(
            network,
            task.graph,
            logits,
            structure_split,
            masks=kept_by_each(ranking, structure),
            open_=open_,
            blocks=structure[len(open_) : int(task.space.ordered.sum())],
            logit_lr=options.logit_lr,
            temperatures=(options.hottest, options.coldest),
            objective=task.data.objective,
        )
        trained = trainer.train(lesson, recipe, name="lfpc", images=images)
        check_finite("logits", logits.values)
        chosen = lesson.chosen()
        names = [
            ranking.criteria[number]
            for number, is_open in zip(chosen, open_, strict=True)
            if is_open
        ]
        facts = {
            "epochs": recipe.epochs,
            "loss of the first and the last epoch": [trained.losses[0], trained.losses[-1]],
            INSIDE: task.constraint.allows(structure),
            "layers that choose": len(names),
            "of these by criterion": {name: names.count(name) for name in ranking.criteria},
            "of these where all criteria keep the same channels": lesson.agreed,
            f"of these with a probability of {CERTAIN} or more": sum(
                float(row.max()) >= CERTAIN for row in logits.probabilities()
            ),
        }
        start, ranked = self._made(task, structure, ranking, chosen)
        return Prepared(
            source=Fixed(network.eval(), task.graph, ranked), starts=[start], facts=facts
        )

    def _ranking(self, task: Pruning, network: nn.Module, trainer: Trainer) -> Ranking:
        """Returns the ranking by all criteria: the run's, or that of the options."""
        if not task.space.ordered.all():
            return task.rank(network)
        order = torch.randperm(
            len(trainer.images), generator=torch_stream(trainer.seed, "lfpc ranking")
        )
        images = trainer.images.part(order[:RANKING_IMAGES]).loaded()
        data = (images.images, images.labels)
        return rank_channels(
            network, task.graph, list(self.options.criteria), data=data, seed=trainer.seed
        )

    def _made(
        self, task: Pruning, structure: Candidate, ranking: Ranking, chosen: Sequence[int]
    ) -> tuple[Candidate, Ranking]:
        """Returns the start, and the ranking that candidates are cut by."""
        shapes = int(task.space.ordered.sum())
        if shapes == len(task.space):
            scores = ranking.chosen(chosen).scores
            return structure, Ranking(criterion="lfpc", scores=scores)
        # A criterion that has no choice is the first.
        numbers = [
            min(c, len(d.choices) - 1)
            for c, d in zip(chosen, task.space.dimensions[shapes:], strict=True)
        ]
        return task.space.canonical((*structure[:shapes], *numbers)), ranking

    def source(self, task: Pruning, modules: Mapping[str, Tensors]) -> Source:
        """Returns the trained network as a source, its channels ranked as it was trained."""
        return Fixed.restored(loaded(task.base, modules["network"]), task.graph, modules["ranking"])


def _open(task: Pruning, structure: Candidate) -> list[bool]:
    """Returns for every prunable group whether channels go there, and which of them is not settled by the search."""
    groups = task.graph.prunable
    only = {d.of for d in task.space.dimensions if d.kind == "criterion" and len(d.choices) == 1}
    named = zip(structure, groups, task.space.dimensions, strict=False)
    return [width < group.channels and d.name not in only for width, group, d in named]


def kept_by_each(ranking: Ranking, structure: Sequence[int]) -> list[torch.Tensor]:
    """Returns what each criterion keeps of every prunable group: 1 or 0, (criteria, channels) float32.

    Args:
        ranking: by all criteria.
        structure: widths, and what follows.
    """
    masks: list[torch.Tensor] = []
    for group, scores in enumerate(ranking.scores):
        mask = torch.zeros(len(ranking.criteria), len(scores))
        for number in range(len(mask)):
            mask[number, torch.from_numpy(ranking.kept(group, structure[group], number))] = 1
        masks.append(mask)
    return masks


class Choosing(Relaxed):
    """A network learns with the channels that drawn criteria keep; how probable each criterion is learns beside it.

    Attributes:
        agreed: groups that choose, of which all criteria keep the same channels: nothing is learned there.
    """

    def __init__(  # noqa: PLR0913 - what is trained, on what, and how
        self,
        model: nn.Module,
        graph: ChannelGraph,
        logits: Logits,
        structure: Images,
        *,
        masks: Sequence[torch.Tensor],
        open_: Sequence[bool],
        blocks: Sequence[int] = (),
        logit_lr: float = 0.1,
        temperatures: tuple[float, float] = (5.0, 0.5),
        objective: str = "classification",
    ) -> None:
        """Takes what is learned; see `Relaxed` for the others.

        Args:
            model: the network.
            graph: its channel groups.
            logits: of criteria, a row for each group that chooses.
            structure: the images that they learn on.
            masks: of each prunable group, what each criterion keeps, (criteria, channels).
            open_: which groups choose; others keep what the first criterion keeps.
            blocks: 1 or 0 per residual block, or none.
            logit_lr: highest learning rate of the logits.
            temperatures: of the draws at the beginning and at the end.
            objective: of `OBJECTIVES`.
        """
        super().__init__(
            model,
            graph,
            logits,
            structure,
            logit_lr=logit_lr,
            temperatures=temperatures,
            objective=objective,
        )
        self._masks, self._open, self._blocks = list(masks), tuple(open_), tuple(blocks)
        chooses = [mask for mask, is_open in zip(masks, open_, strict=True) if is_open]
        self.agreed = sum(bool((mask == mask[0]).all()) for mask in chooses)

    def gates(self, draws: torch.Generator) -> Gates:
        """Returns gates: 1 for the channels that the drawn criterion keeps, 0 for others."""
        drawn = self.logits.hard(self.temperature, draws)
        self._masks = [mask.to(drawn.device) for mask in self._masks]
        rows = iter(drawn.unbind())
        groups = [
            next(rows) @ mask if is_open else mask[0]
            for mask, is_open in zip(self._masks, self._open, strict=True)
        ]
        return Gates(groups, [drawn.new_tensor(float(kept)) for kept in self._blocks])

    def chosen(self) -> list[int]:
        """Returns the number of the most probable criterion of every prunable group; 0 where there is no choice."""
        best = iter(self.logits.values.detach().argmax(dim=1).tolist())
        return [next(best) if is_open else 0 for is_open in self._open]

    def same(self) -> Mapping[str, Any]:
        """Returns what the criteria keep."""
        kept = [mask.bool().tolist() for mask in self._masks]
        return {**super().same(), "kept": kept, "blocks": list(self._blocks)}
