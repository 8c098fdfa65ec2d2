"""Peak activation memory equals what is alive when the sliced network runs."""

import operator

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.models.registry import MODELS
from tests.channels.networks import programs
from tests.channels.oracle import few, images, random_candidate, scrambled


class InPlace(fx.Proxy):
    """`a += b` changes a, which takes no memory of its own."""

    def __iadd__(self, other):
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __imul__(self, other):
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})


class Tracer(fx.Tracer):
    def proxy(self, node):
        return InPlace(node, self)


class Alive(fx.Interpreter):
    """Runs a network operation by operation, frees what is not needed any more, looks at the memory that is held."""

    def __init__(self, model):
        super().__init__(fx.GraphModule(model, Tracer().trace(model)))
        self.weights = {id_of(t) for t in (*model.parameters(), *model.buffers())}
        self.peak = 0

    def run_node(self, n):
        result = super().run_node(n)
        # Fx keeps what nobody reads
        needed = [value for node, value in self.env.items() if node.users]
        held = {id_of(t): t.untyped_storage().nbytes() for t in tensors([*needed, result])}
        self.peak = max(
            self.peak, sum(size for key, size in held.items() if key not in self.weights)
        )
        return result


def id_of(tensor):
    return tensor.untyped_storage().data_ptr()


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return (
        [t for item in items for t in tensors(item)]
        if isinstance(value, tuple | list | dict)
        else []
    )


def measured(model, x):
    alive = Alive(model)
    with torch.no_grad():
        alive.run(x)
    return alive.peak


def check(model, size, tries=3):
    graph = trace_channels(model, images(1, size))
    ranking, rng = rank_channels(model, graph, "random"), np.random.default_rng(0)
    candidates = [
        random_candidate(graph, rng)
        + tuple(int(value) for value in rng.integers(0, 2, len(graph.blocks)))
        for _ in range(tries)
    ]
    found = graph.costs.peak_activation(candidates)
    assert found.dtype == np.int64
    for candidate, peak in zip(candidates, found, strict=True):
        assert measured(slice_model(model, graph, candidate, ranking), images(1, size)) == peak


@pytest.mark.parametrize(
    "name",
    [
        "resnet20",
        "densenet40",
        "resnet18",
        "mobilenet_v2",
        "shufflenet_v2_x0_5",
        "squeezenet1_0",
        "googlenet",
    ],
)
def test_known_networks(name):
    extra = {"init_weights": False} if name == "googlenet" else {}
    model = (
        MODELS[name]()
        if name in MODELS
        else torchvision.models.get_model(name, weights=None, **extra)
    )
    check(scrambled(model), 32)


@few(25)
@given(programs(), st.integers(0, 99))
def test_random_networks(program, seed):
    check(program.build(seed), 4, tries=2)


def test_by_hand():
    layers = [
        nn.Conv2d(3, 8, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(),
        nn.Linear(4 * 4 * 4, 2),
    ]
    graph = trace_channels(nn.Sequential(*layers), torch.zeros(1, 3, 4, 4))
    # float32: input and first result, first and second result, second result (flattened in place) and output.
    for a, b in ((8, 4), (1, 4), (8, 1)):
        expected = 4 * max(3 * 16 + a * 16, a * 16 + b * 16, b * 16 + 2)
        assert graph.costs.peak_activation([(a, b)])[0] == expected
    twice = trace_channels(nn.Sequential(*layers), torch.zeros(2, 3, 4, 4))
    assert twice.costs.peak_activation([(8, 4)])[0] == graph.costs.peak_activation([(8, 4)])[0]


def test_many_candidates_are_independent():
    model = scrambled(MODELS["small_resnet"](in_channels=3, depths=(3, 3, 3)))
    graph = trace_channels(model, images(1, 16))
    rng = np.random.default_rng(1)
    rows = np.array(
        [
            random_candidate(graph, rng) + tuple(rng.integers(0, 2, len(graph.blocks)))
            for _ in range(1500)
        ]
    )
    together = graph.costs.peak_activation(rows)
    for index in (0, 1, 700, 1499):
        assert graph.costs.peak_activation(rows[index : index + 1])[0] == together[index]
    assert graph.costs.peak_activation(rows[:0]).shape == (0,)
