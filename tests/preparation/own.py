"""Preparations of one's own: one that is whole, and some that are not. Tests name these by import path."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.source import Sliced
from abcsearch.errors import ConfigError
from abcsearch.preparation.base import Preparation, Prepared
from abcsearch.training.lesson import Supervised
from abcsearch.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class TwiceOptions:
    epochs: int = 2
    start: bool = True

    def __post_init__(self):
        if self.epochs < 1:
            msg = f"epochs is at least 1, found {self.epochs}"
            raise ConfigError(msg)


class Kept(nn.Module):
    """A number that is saved beside the network."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))


class Beside(Sliced):
    """A source of two modules."""

    def __init__(self, model, graph, ranking, kept):
        super().__init__(model, graph, ranking)
        self.kept = kept

    @property
    def modules(self):
        return {"network": self.model, "kept": self.kept}


class Twice(Preparation):
    """Trains a copy on one half of the images, then on the other; begins with the smallest structure."""

    Options = TwiceOptions

    def prepare(self, task, trainer):
        network, recipe = (
            copy.deepcopy(task.base),
            Recipe(epochs=self.options.epochs, batch_size=16, device="cpu"),
        )
        for name, half in zip(("first", "second"), trainer.halves(0.4), strict=True):
            trainer.train(
                Supervised(network, objective=task.data.objective), recipe, name=name, images=half
            )
        kept = Kept()
        kept.count += 2
        source = Beside(network.eval(), task.graph, task.rank(network), kept)
        smallest = tuple(dimension.choices[0] for dimension in task.space.dimensions)
        return Prepared(
            source=source,
            starts=[smallest] if self.options.start else [],
            facts={"halves": [0.6, 0.4]},
        )

    def source(self, task, modules):
        plain, kept = super().source(task, modules), Kept()
        kept.load_state_dict(modules["kept"])
        return Beside(plain.model, plain.graph, plain.ranking, kept)


class Lacking(Preparation):
    """Has no method."""


class Same(Preparation):
    """Trains nothing; derived ones say what is wrong with what they return."""

    def prepare(self, task, trainer):
        return self.changed(
            task, Sliced(copy.deepcopy(task.base), task.graph, task.rank(task.base))
        )

    def changed(self, task, source):
        return Prepared(source=source)


class NotPrepared(Same):
    def changed(self, task, source):
        return source


class Greedy(Same):
    """Changes what it was lent."""

    def changed(self, task, source):
        with torch.no_grad():
            next(task.base.parameters()).add_(1)
        return Prepared(source=source)


class LeavesTraining(Same):
    """Changes the mode of what it was lent."""

    def changed(self, task, source):
        task.base.train(not task.base.training)
        return Prepared(source=source)


class OneNetwork(Sliced):
    def network(self, candidate, seed=0):
        return self.model


class BrokenSource(Same):
    def changed(self, task, source):
        return Prepared(source=OneNetwork(source.model, source.graph, source.ranking))


class NoSource(Same):
    def changed(self, task, source):
        return Prepared(source=source.model)


class OtherGraph(Same):
    def changed(self, task, source):
        return Prepared(source=Sliced(source.model, copy.deepcopy(source.graph), source.ranking))


class OutsideStart(Same):
    def changed(self, task, source):
        return Prepared(
            source=source, starts=[task.space.full, tuple(10**6 for _ in task.space.full)]
        )


class ShortStart(Same):
    def changed(self, task, source):
        return Prepared(source=source, starts=[(1,)])


class FloatStart(Same):
    def changed(self, task, source):
        return Prepared(source=source, starts=[tuple(float(value) for value in task.space.full)])


class NoStarts(Same):
    def changed(self, task, source):
        return Prepared(source=source, starts=None)


class OddFacts(Same):
    def changed(self, task, source):
        return Prepared(source=source, facts={"tensor": torch.zeros(3)})


class Forgetful(Same):
    """Prunes by another order than its source is made of again."""

    def changed(self, task, source):
        ranking = rank_channels(source.model, source.graph, "random", seed=1)
        return Prepared(source=Sliced(source.model, source.graph, ranking))


class NamedTwice(Same):
    def changed(self, task, source):
        raise NotImplementedError

    def prepare(self, task, trainer):
        for _ in range(2):
            network = copy.deepcopy(task.base)
            trainer.train(Supervised(network), Recipe(epochs=1, batch_size=16, device="cpu"))


NOT_A_CLASS = Same()
