"""Channels that are silent by chance: how many, where and when; what is read of the others makes up for them."""

import pytest
import torch
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.source import Sliced
from abcsearch.data.splits import Data
from abcsearch.errors import ConfigError
from abcsearch.evaluation import dropout
from abcsearch.evaluation.dropout import Dropout
from abcsearch.evaluation.short_training import ShortTraining, ShortTrainingOptions
from abcsearch.rng import torch_seeded
from abcsearch.testing import LessonContract
from abcsearch.training.loop import train
from abcsearch.training.recipe import Recipe
from tests.training.toys import stripes, weights

SIDES = (40, 60, 50)


def chain():
    """Three layers that can be pruned, one after another."""
    with torch_seeded(0, "chain"):
        first, second, third = (
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip((1, *SIDES), SIDES, strict=False)
        )
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third, nn.ReLU(), head())


def head():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(SIDES[-1], 3))


def lesson(rate=0.3):
    model = chain()
    return Dropout(model, trace_channels(model, torch.zeros(1, 1, 6, 6), check=False), rate=rate)


class TestDropout(LessonContract):
    def make(self):
        return lesson()

    def others(self):
        return [lesson(0.1)]


def test_more_are_silent_later_and_deeper_and_the_others_make_up_for_them(monkeypatch):
    """Counted over the steps of one training, of which each draws anew."""
    taught, seen = lesson(), []
    gated = dropout.gated

    def spy(model, graph, gates):
        seen.append((taught.rates(), gates))
        return gated(model, graph, gates)

    monkeypatch.setattr(dropout, "gated", spy)
    train(taught, stripes(96), Recipe(epochs=50, batch_size=48, lr=1e-3, device="cpu"))
    assert len(seen) == 100
    assert seen[0][0] == [0, 0, 0]
    assert all(bool((gate == 1).all()) for gate in seen[0][1])
    for group in range(3):
        rates = [step[group] for step, _ in seen]
        assert rates == sorted(rates)
        assert rates[-1] == pytest.approx(0.3 * 0.99 * (group + 1) / 3)
        silent = [float((gates[group] == 0).float().mean()) for _, gates in seen]
        assert sum(silent) / 100 == pytest.approx(sum(rates) / 100, abs=0.02)
        means = [float(gates[group].mean()) for _, gates in seen]
        assert sum(means) / 100 == pytest.approx(1, abs=0.03)
    assert not torch.equal(seen[98][1][0], seen[99][1][0])


def test_candidates_are_trained_with_it_where_it_is_asked_for():
    model, images = chain().eval(), stripes(120)
    pair = (images.images, images.labels)
    data = Data.from_tensors(pair, pair, validation=0.25)
    graph = trace_channels(model, data.example)
    source = Sliced(model, graph, rank_channels(model, graph))
    structure = graph.space().uniform(0.5)

    def built(**options):
        wanted = ShortTrainingOptions(steps=4, batch_size=16, lr=0.05, repair="none", **options)
        return weights(ShortTraining(source, data, wanted).build(structure, 0))

    assert torch.equal(built(dropout=0.3), built(dropout=0.3))
    assert torch.equal(built(dropout=0.0), built())
    assert not torch.equal(built(dropout=0.3), built())
    with pytest.raises(ConfigError, match=r"dropout is from 0 to 0\.5, found 0\.6"):
        built(dropout=0.6)
