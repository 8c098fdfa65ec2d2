"""Gates of 0 and 1 equal slicing; any other scales what is read; gradients are those of the formula."""

import copy
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from abcsearch.channels.gates import gate, replaced
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.errors import CandidateError, TraceError
from abcsearch.models.registry import INPUT_SHAPES, MODELS, Constructor
from tests.channels.networks import Program, Step, programs, strange_network
from tests.channels.oracle import few, images, random_candidate, scrambled
from tests.channels.sharing import check_gates, check_shared
from tests.channels.test_slicing import traced

SEEDS = st.integers(0, 2**16)


@few(25)
@given(programs(), SEEDS)
def test_gates_of_random_networks_equal_slicing(program, seed):
    model, rng = program.build(seed), np.random.default_rng(seed)
    graph, _ = traced(model)
    ranking = rank_channels(model, graph, "random", seed=seed)
    check_gates(model, graph, random_candidate(graph, rng), ranking, images(batch=4))


# The deeper ResNets are the same blocks, more often.
@pytest.mark.parametrize(
    "name",
    sorted(
        MODELS.keys()
        - {"resnet32", "resnet44", "resnet56", "resnet110", "tiny_ssd", "small_edsr", "small_fcn"}
    ),
)
def test_models_of_the_registry_gated_and_shared(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of some weights, batch norms of few values magnify rounding
        model = scrambled(Constructor(name=name, options={"classes": 5}).build())
    size = {"mobilenet_v1": 32, "vgg16_cifar": 16}.get(name, 8)
    channels = INPUT_SHAPES.get(name, (3,))[0]
    graph = trace_channels(model, images(1, size, channels=channels))
    ranking = rank_channels(model, graph, "random", seed=0)
    candidate = random_candidate(graph, np.random.default_rng(0))
    x = images(3, size, channels=channels)
    check_gates(model, graph, candidate, ranking, x, rounding=1e-11)
    check_shared(model, graph, candidate, ranking, x)


class Chain(nn.Module):
    """One channel after another of everything that stands between channels and what reads them."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.depthwise, self.second = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 6, 1)
        self.linear, self.last = nn.Linear(6 * 16, 5), nn.Linear(5, 2)

    def forward(self, x, a=1, b=1, c=1):
        """Gates may come in by hand, where the channels are read."""
        x = self.depthwise(torch.relu(self.norm(self.first(x)))) * a
        x = torch.sigmoid(self.second(x)) * b
        return self.last(F.silu(self.linear(x.flatten(1))) * c)


def chain():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = scrambled(Chain())

        class Example(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = model

            def forward(self, x):
                return self.inner(x)

        graph = trace_channels(Example().double(), images(1))
    assert [(group.name, group.channels) for group in graph.prunable] == [
        ("inner.first", 4),
        ("inner.second", 6),
        ("inner.linear", 5),
    ]
    return Example(), graph


@pytest.mark.parametrize("training", [False, True])
def test_a_gate_scales_what_is_read_of_its_channel(training):
    model, graph = chain()
    model.train(training)
    gates = [torch.randn(group.channels).double() for group in graph.prunable]
    a, b, c = gates[0].reshape(1, 4, 1, 1), gates[1].reshape(1, 6, 1, 1), gates[2]
    twin = copy.deepcopy(model)
    actual = functional_call(model, gate(model, graph, gates), (images(),))
    torch.testing.assert_close(actual, twin.inner(images(), a, b, c), rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_formula():
    model, graph = chain()
    gates = [torch.rand(group.channels).double().requires_grad_() for group in graph.prunable]
    x = images()
    assert torch.autograd.gradcheck(
        lambda *values: functional_call(model, gate(model, graph, values), (x,)),
        tuple(gates),
        raise_exception=True,
    )
    functional_call(model, gate(model, graph, gates), (x,)).square().sum().backward()
    assert all(float(values.grad.abs().min()) > 0 for values in gates)
    assert all(float(p.grad.abs().max()) > 0 for p in model.parameters())


def test_only_what_reads_is_gated_and_the_model_stays():
    model, graph = chain()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gated = gate(model, graph, [torch.zeros(group.channels) for group in graph.prunable])
    assert gated.keys() == {"inner.second.weight", "inner.linear.weight", "inner.last.weight"}
    assert not any(bool(tensor.any()) for tensor in gated.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_channel_that_nothing_reads_has_a_gate_without_effect():
    steps = (Step("conv", (0,), "", 4), Step("conv", (0,), "", 6))
    model = Program(steps, ("mean", 3, False)).build()
    graph, _ = traced(model)
    unread = [i for i, group in enumerate(graph.prunable) if not any(m.sums for m in group.members)]
    assert [graph.prunable[i].name for i in unread] == ["layers.0"]
    gates = [
        torch.rand(group.channels, dtype=torch.double, requires_grad=True)
        for group in graph.prunable
    ]
    out = functional_call(model, gate(model, graph, gates), (images(),))
    gradients = torch.autograd.grad(out.sum(), gates, allow_unused=True, retain_graph=True)
    assert [i for i, g in enumerate(gradients) if g is None or not bool(g.any())] == unread
    gates[unread[0]] = torch.zeros(graph.prunable[unread[0]].channels)
    assert torch.equal(out, functional_call(model, gate(model, graph, gates), (images(),)))


# A weight that reads and makes: the same group on two axes, on the same axis in two uses; several names; a buffer.
@pytest.mark.parametrize(
    "name", ["recurrent", "tied_transposed", "tied", "grouped", "cat_itself", "transposed_lanes"]
)
def test_weights_with_several_parts(name):
    model = strange_network(name)
    graph, _ = traced(model)
    ranking = rank_channels(model, graph, "random", seed=2)
    for width in (1, 2):
        candidate = tuple(min(width, group.channels) for group in graph.prunable)
        check_gates(model, graph, candidate, ranking, images(batch=4))


def test_replaced_tensors_are_put_back_where_a_module_has_several_paths():
    model = Program(
        (Step("conv", (0,), "", 4), Step("conv", (1,), "", 4), Step("shared", (2,), "", 1)),
        ("mean", 3, False),
    )
    model = model.build()
    graph, _ = traced(model)
    before = {
        name: (id(p), p.detach().clone())
        for name, p in model.named_parameters(remove_duplicate=False)
    }
    gates = [torch.rand(group.channels) for group in graph.prunable]
    gated = gate(model, graph, gates)
    with torch.no_grad(), replaced(model, gated):
        assert model.layers[1].weight is model.layers[2].weight is gated["layers.1.weight"]
        inside = model(images())
    with pytest.raises(OSError, match="in the block"), replaced(model, gated):
        raise OSError("in the block")
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert id(parameter) == before[name][0]
        assert torch.equal(parameter, before[name][1])
    assert torch.equal(inside, functional_call(copy.deepcopy(model), gated, (images(),)))


class Fixed(nn.Module):
    """A buffer reads the channels, and a plain parameter does in forward."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(5, 2)
        self.register_buffer("filters", torch.randn(6, 4, 1, 1))
        self.rows = nn.Parameter(torch.randn(6, 5))

    def forward(self, x):
        x = F.conv2d(torch.relu(self.conv(x)), self.filters)
        return self.linear(F.silu(torch.einsum("bc,cd->bd", x.mean((2, 3)), self.rows)))


def test_buffers_and_functions_read_too():
    model = scrambled(Fixed())
    graph, _ = traced(model)
    gates = [torch.ones(group.channels) for group in graph.prunable]
    assert gate(model, graph, gates).keys() == {"filters", "rows", "linear.weight"}
    ranking = rank_channels(model, graph)
    candidate = tuple(2 for _ in graph.prunable)
    check_gates(model, graph, candidate, ranking, images())
    check_shared(model, graph, candidate, ranking, images())


def test_gates_take_the_type_of_what_they_multiply():
    model, graph = chain()
    half = model.to(torch.bfloat16)
    gates = [torch.rand(group.channels, requires_grad=True) for group in graph.prunable]
    gated = gate(half, graph, gates)
    assert {tensor.dtype for tensor in gated.values()} == {torch.bfloat16}
    functional_call(half, gated, (images().bfloat16(),)).sum().backward()
    assert all(values.grad.dtype == torch.float32 for values in gates)


def test_frozen_networks_and_networks_without_numbers():
    model, graph = chain()
    model.requires_grad_(requires_grad=False)
    gates = [torch.rand(group.channels).double().requires_grad_() for group in graph.prunable]
    functional_call(model, gate(model, graph, gates), (images(),)).sum().backward()
    assert all(values.grad is not None for values in gates)
    assert all(p.grad is None for p in model.parameters())
    meta = copy.deepcopy(model).to("meta")
    assert all(tensor.is_meta for tensor in gate(meta, graph, gates).values())
    with pytest.raises(
        CandidateError, match="gates are on the device of the network, cpu, found some on meta"
    ):
        gate(model, graph, [values.to("meta") for values in gates])


@pytest.mark.gpu
def test_gates_on_another_device():
    model, graph = chain()
    gates = [torch.rand(group.channels) for group in graph.prunable]
    assert all(tensor.is_cuda for tensor in gate(model.to("cuda"), graph, gates).values())


WRONG = {
    "number": (
        lambda g: g[:2],
        "one tensor per prunable group, 3 for this network in the order of graph.prunable, fo",
    ),
    "length": (
        lambda g: [g[0], g[1][:5], g[2]],
        "group 'inner.second' have shape (5,); it has 6 channels: one gate",
    ),
    "axes": (
        lambda g: [g[0][None], *g[1:]],
        "group 'inner.first' have shape (1, 4); it has 4 channels",
    ),
    "flags": (
        lambda g: [g[0] > 0, *g[1:]],
        "group 'inner.first' are a floating-point tensor, found torch.bool; conv",
    ),
    "whole": (lambda g: [g[0].long(), *g[1:]], "found torch.int64; convert with .float()"),
    "complex": (lambda g: [g[0].cfloat(), *g[1:]], "found torch.complex64"),
    "list": (
        lambda g: [[1.0] * 4, *g[1:]],
        "group 'inner.first' are a floating-point tensor, found list",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_gates_that_do_not_fit_are_refused(name):
    model, graph = chain()
    change, message = WRONG[name]
    with pytest.raises(CandidateError, match=re.escape(message)):
        gate(model, graph, change([torch.ones(group.channels) for group in graph.prunable]))


def test_the_graph_of_another_network_is_refused():
    model, graph = chain()
    gates = [torch.ones(group.channels) for group in graph.prunable]
    with pytest.raises(
        TraceError, match="the graph was traced on another network: the network is Example there"
    ):
        gate(nn.Identity(), graph, gates)
    other = copy.deepcopy(model)
    other.inner.linear = nn.Linear(96, 7)
    with pytest.raises(
        TraceError, match=r"inner.linear.weight has shape .5, 96. there and .7, 96. here"
    ):
        gate(other, graph, gates)


def test_parameters_untied_or_added_since_are_refused():
    model = strange_network("tied")
    graph, _ = traced(model)
    gates = [torch.ones(group.channels) for group in graph.prunable]
    model.layers[3].two.weight = nn.Parameter(model.layers[3].one.weight.detach().clone())
    with pytest.raises(
        TraceError, match=r"layers.3.two.weight is no parameter of its own there; trace again"
    ):
        gate(model, graph, gates)


DROPOUTS = {
    "dropout": lambda x, on: F.dropout(x, 0.3, training=on),
    "keyword": lambda x, on: F.dropout(input=x, p=0.3, training=on),
    "planes": lambda x, on: F.dropout2d(x, 0.3, training=on),
    "alpha": lambda x, on: F.alpha_dropout(x, 0.3, training=on),
    "torch": lambda x, on: torch.dropout(x, 0.3, on),
}


class Dropping(nn.Module):
    """Drops entries by a function, as networks with a `drop_rate` do."""

    def __init__(self, drop):
        super().__init__()
        self.drop, self.first = drop, nn.Conv2d(3, 8, 3)
        self.second, self.norm, self.last = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.norm(self.second(self.drop(torch.relu(self.first(x)), self.training)))
        return self.last(self.drop(torch.relu(x), self.training).mean((2, 3)))


@pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
@pytest.mark.parametrize("name", DROPOUTS)
def test_networks_that_drop_by_a_function_are_compared_in_training_mode(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = scrambled(Dropping(DROPOUTS[name]))
    graph = trace_channels(model, images(1))
    ranking = rank_channels(model, graph, "random", seed=0)
    widths = tuple(group.channels // 2 for group in graph.prunable)
    assert widths
    check_gates(model, graph, widths, ranking, images(4))
    check_shared(model, graph, widths, ranking, images(4))


class Deep(nn.Module):
    """Many norms of three values each, which magnify rounding; and a mistake, as large as it is told."""

    def __init__(self, mistake=0.0, depth=12):
        super().__init__()
        self.mistake, self.first, self.norm = mistake, nn.Linear(3, 8), nn.BatchNorm1d(8)
        steps = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)) for _ in range(depth)]
        self.second, self.steps = nn.Linear(8, 6), nn.ModuleList(steps)

    def forward(self, x):
        y = torch.sin(3 * self.norm(self.first(x)))
        y = self.second(y + self.mistake * y.shape.numel())
        for step in self.steps:
            y = step(torch.sin(3 * y))
        return y


def test_networks_that_magnify_rounding_are_told_from_mistakes():
    x = images(3)[..., 0, 0]

    def compare(mistake, **options):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = scrambled(Deep(mistake))
        graph = trace_channels(model, x, check=False)
        assert [group.name for group in graph.prunable][:2] == ["first", "second"]
        ranking = rank_channels(model, graph, "random", seed=0)
        widths = tuple(max(1, group.channels - 2) for group in graph.prunable)
        check_gates(model, graph, widths, ranking, x, modes=(True,), **options)

    with pytest.raises(AssertionError, match="training True"):
        compare(0.0, rounding=1e-14)
    compare(0.0, rounding=1e-14, conditioned=True)
    with pytest.raises(AssertionError, match="training True"):
        compare(1e-6, conditioned=True)
