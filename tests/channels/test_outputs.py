"""Networks with several inputs or outputs, and how strict the oracle of slicing is."""

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from tests.channels.networks import Program, Step, strange_network
from tests.channels.odd_layers import conv
from tests.channels.oracle import assert_close, images, random_candidate, scrambled, zeroed


class Several(nn.Module):
    """Two inputs, two heads."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs
        self.one, self.two, self.middle = conv(3, 6), conv(3, 4), conv(10, 8)
        self.left, self.right = conv(8, 2), conv(14, 3)

    def forward(self, x, y):
        a, b = torch.relu(self.one(x)), torch.sigmoid(self.two(y))
        c = torch.relu(self.middle(torch.cat([a, b], 1)))
        return self.outputs(self.left(c), self.right(torch.cat([c, a], 1)))


@pytest.mark.parametrize(
    "outputs",
    [
        lambda a, b: (a, b),
        lambda a, b: [a, (b, a)],
        lambda a, b: {"left": a, "right": b},
        lambda a, b: {"all": [a, {"right": b}], "shape": a.shape[2]},
    ],
)
def test_several_inputs_and_outputs(outputs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = scrambled(Several(outputs))
    graph = trace_channels(model, (images(1), images(1, seed=2)), unknown="raise")
    assert {g.name: g.fixed for g in graph.groups} == {
        "one": None,
        "two": None,
        "middle": None,
        "left": "the network's output",
        "right": "the network's output",
    }
    for seed in range(3):
        ranking = rank_channels(model, graph, "random", seed=seed)
        candidate = random_candidate(graph, np.random.default_rng(seed))
        networks = (
            slice_model(model, graph, candidate, ranking),
            zeroed(model, graph, candidate, ranking),
        )
        with torch.no_grad():
            found, expected = (tensors(network(images(), images(seed=2))) for network in networks)
        assert len(found) == len(expected) > 0
        for one, two in zip(found, expected, strict=True):
            assert_close(one, two)


def tensors(output):
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(output, torch.Tensor):
        return [output]
    items = (
        output.values()
        if isinstance(output, dict)
        else output
        if isinstance(output, tuple | list)
        else []
    )
    return [tensor for item in items for tensor in tensors(item)]


def test_outputs_that_are_channels_stay():
    class Features(Several):
        def forward(self, x, y):
            a = self.one(x)
            return {
                "out": self.left(self.middle(torch.cat([a, self.two(y)], 1))),
                "features": [a.mean((2, 3))],
            }

    graph = trace_channels(Features(None), (images(1).float(), images(1).float()))
    assert {g.name: g.fixed for g in graph.groups if g.name in ("one", "two")} == {
        "one": "the network's output",
        "two": None,
    }


@pytest.mark.parametrize(
    "name", ["grouped_wide", "se_view", "shortcut", "shuffle_sizes", "group_norm_pairs", "tokens"]
)
def test_the_oracle_tells_which_channels_were_kept(name):
    """The network sliced by another ranking is not what the oracle expects, and removing channels changes outputs."""
    model = strange_network(name)
    graph = trace_channels(model, images(1))
    candidate = tuple(max(1, group.channels // 2) for group in graph.prunable)
    one, other = (rank_channels(model, graph, "random", seed=seed) for seed in (1, 2))
    sliced, wrong = (slice_model(model, graph, candidate, ranking) for ranking in (one, other))
    with torch.no_grad():
        expected = zeroed(model, graph, candidate, one)(images())
        assert_close(sliced(images()), expected)
        for mistaken in (wrong(images()), model(images())):
            with pytest.raises(AssertionError, match="Not equal to tolerance"):
                assert_close(mistaken, expected)


def test_the_oracle_leaves_what_computes_the_removed_channels():
    steps = (
        Step("conv", (0,), "", 6),
        Step("module", (1,), "batch_norm"),
        Step("conv", (2,), "", 4),
    )
    model = Program(steps, ("flatten", 4, True)).build()
    graph = trace_channels(model, images(1))
    twin = zeroed(model, graph, tuple(1 for _ in graph.prunable), rank_channels(model, graph))
    changed = {
        name
        for name, tensor in model.state_dict().items()
        if not torch.equal(tensor, twin.state_dict()[name])
    }
    assert changed == {"layers.2.weight", "hidden.weight", "classifier.weight"}
