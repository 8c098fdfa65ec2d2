"""Repair is worth most where no batch norm can be calibrated: a network of super-resolution, and plain convolutions."""

import warnings

import numpy as np
import torch
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.source import Sliced
from abcsearch.data.registry import load_data
from abcsearch.data.splits import Data
from abcsearch.evaluation.adaptive_bn import AdaptiveBN, AdaptiveBNOptions
from abcsearch.rng import torch_seeded
from abcsearch.training.loop import train
from abcsearch.training.recipe import Recipe
from abcsearch.training.scoring import score


class Upscaling(nn.Module):
    """A small EDSR: residual blocks without normalisation, and a pixel shuffle."""

    def __init__(self, channels=16, blocks=2):
        super().__init__()
        self.head = nn.Conv2d(1, channels, 3, padding=1)
        pairs = [
            [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)] for _ in range(blocks)
        ]
        self.blocks = nn.ModuleList(nn.Sequential(one, nn.ReLU(), two) for one, two in pairs)
        self.up = nn.Conv2d(channels, 4 * channels, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.tail = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x):
        x = self.head(x)
        for block in self.blocks:
            x = x + block(x)
        return self.tail(self.shuffle(torch.relu(self.up(x))))


def losses(model, data, metric):
    """What half of all widths leave of a network, by repair; and the full network's."""
    graph = trace_channels(model, data.example)
    source = Sliced(model, graph, rank_channels(model, graph))
    candidate = tuple(max(1, group.channels // 2) for group in graph.prunable)
    found = {}
    for repair in ("none", "one_shot", "sequential"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # there are no statistics to calibrate
            evaluator = AdaptiveBN(
                source, data, AdaptiveBNOptions(repair=repair, batch_size=32, metric=metric)
            )
        found[repair] = -evaluator(candidate, 0).metrics[metric]
    return found, -score(model, data.validation, objective=data.objective)[metric]


def test_super_resolution_without_batch_norm():
    digits = load_data("digits")
    small = [nn.functional.avg_pool2d(split.images, 2) for split in (digits.train, digits.test)]
    pairs = zip(small, (digits.train.images, digits.test.images), strict=True)
    data = Data.from_tensors(*pairs, objective="regression", validation=0.2)
    with torch_seeded(0, "upscaling"):
        model = Upscaling()
    train(
        model,
        data.train,
        Recipe(epochs=6, optimizer="adamw", lr=3e-3),
        seed=0,
        objective="regression",
    )
    found, full = losses(model.eval(), data, "neg_mse")
    added = {repair: loss - full for repair, loss in found.items()}
    assert added["one_shot"] < 0.4 * added["none"]
    assert added["sequential"] < added["one_shot"]


def test_plain_convolutions():
    data = load_data("digits")
    with torch_seeded(0, "plain"):
        convolutions = [
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
        ]
        classifier = [
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        ]
        model = nn.Sequential(*convolutions, *classifier)
    train(model, data.train, Recipe(epochs=5, lr=0.05), seed=0)
    found, full = losses(model.eval(), data, "neg_loss")
    assert np.isfinite([*found.values()]).all()
    assert found["one_shot"] - full < 0.7 * (found["none"] - full)
    assert found["sequential"] < found["none"]
