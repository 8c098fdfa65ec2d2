"""Norms over channels: in a slice they are those of the channels that are left, as a formula of these says."""

import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.models.convnext import LayerNorm2d

from abcsearch.channels.gates import gate, gated
from abcsearch.channels.groups import UnsupportedOpWarning, trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.errors import CandidateError, TraceError
from tests.channels.networks import programs
from tests.channels.oracle import assert_close, counted, few, images, random_candidate, scrambled
from tests.channels.sharing import check_gates, check_shared
from tests.channels.test_slicing import traced

WIDTH = 8


class Norm(nn.Module):
    """A norm with weights of some shape, computed by a function of (module, x)."""

    def __init__(self, function, *shape):
        super().__init__()
        self.function, self.normalized_shape, self.eps = function, (WIDTH,), 1e-3
        if shape:
            self.weight, self.bias = (
                nn.Parameter(torch.rand(shape) + 0.5),
                nn.Parameter(torch.randn(shape)),
            )

    def forward(self, x):
        return self.function(self, x)


def by_hand(m, x):
    u = x.mean(1, keepdim=True)
    s = (x - u).pow(2).mean(1, keepdim=True)
    return m.weight[:, None, None] * ((x - u) / torch.sqrt(s + m.eps)) + m.bias[:, None, None]


def by_variance(m, x):
    mean, var = x.mean(dim=1, keepdim=True), x.var(dim=1, keepdim=True, unbiased=False)
    return (x - mean) * (var + m.eps).rsqrt() * m.weight + m.bias


def grn(m, x):
    gx = torch.norm(x, p=2, dim=(2, 3), keepdim=True)
    return m.weight * (x * (gx / (gx.mean(dim=1, keepdim=True) + 1e-6))) + m.bias + x


def last(function):
    return lambda m, x: function(m, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Last(nn.Sequential):
    """A layer over the last axis."""

    def forward(self, x):
        return self[0](x.movedim(1, -1)).movedim(-1, 1)


# What each does to the channels that are left, (batch, k, height, width), with its weights for these.
def standardised(x, weight, bias, eps, axes=(1,)):
    y = (x - x.mean(axes, keepdim=True)) / (x.var(axes, unbiased=False, keepdim=True) + eps).sqrt()
    return y * weight.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)


def rooted(x, weight, eps):
    return x / (x.square().mean(1, keepdim=True) + eps).sqrt() * weight.reshape(1, -1, 1, 1)


def responded(x, size):
    padded = F.pad(x.square(), (0, 0, 0, 0, size // 2, (size - 1) // 2))
    return x / (1 + 1e-4 / size * sum(padded[:, i : i + x.shape[1]] for i in range(size))) ** 0.75


def lengths(x):
    return x / x.square().sum(1, keepdim=True).sqrt()


def responses(x, weight, bias):
    gx = x.square().sum((2, 3), keepdim=True).sqrt()
    shaped = weight.reshape(1, -1, 1, 1), bias.reshape(1, -1, 1, 1)
    return shaped[0] * x * gx / (gx.mean(1, keepdim=True) + 1e-6) + shaped[1] + x


NORMS = {
    "LayerNorm": (lambda: Last(nn.LayerNorm(WIDTH)), lambda x, w, b: standardised(x, w, b, 1e-5)),
    "LayerNorm without weights": (
        lambda: Last(nn.LayerNorm(WIDTH, elementwise_affine=False)),
        lambda x: standardised(x, torch.ones(1), torch.zeros(1), 1e-5),
    ),
    "LayerNorm2d": (lambda: LayerNorm2d(WIDTH), lambda x, w, b: standardised(x, w, b, 1e-5)),
    "LayerNorm over all": (
        lambda: nn.LayerNorm((WIDTH, 4, 4), elementwise_affine=False),
        lambda x: standardised(x, torch.ones(1), torch.zeros(1), 1e-5, (1, 2, 3)),
    ),
    "layer_norm of an attribute": (
        lambda: Norm(
            last(lambda m, x: F.layer_norm(x, m.normalized_shape, m.weight, m.bias, m.eps)), WIDTH
        ),
        lambda x, w, b: standardised(x, w, b, 1e-3),
    ),
    "layer_norm of a shape": (
        lambda: Norm(last(lambda m, x: F.layer_norm(x, x.shape[-1:], eps=m.eps))),
        lambda x: standardised(x, torch.ones(1), torch.zeros(1), 1e-3),
    ),
    "GroupNorm": (
        lambda: nn.GroupNorm(1, WIDTH),
        lambda x, w, b: standardised(x, w, b, 1e-5, (1, 2, 3)),
    ),
    "group_norm": (
        lambda: Norm(lambda m, x: F.group_norm(x, 1, m.weight, m.bias, m.eps), WIDTH),
        lambda x, w, b: standardised(x, w, b, 1e-3, (1, 2, 3)),
    ),
    "RMSNorm": (lambda: Last(nn.RMSNorm(WIDTH, eps=1e-3)), lambda x, w: rooted(x, w, 1e-3)),
    "RMSNorm without eps": (lambda: Last(nn.RMSNorm(WIDTH)), lambda x, w: rooted(x, w, 0)),
    "rms_norm": (
        lambda: Norm(
            last(lambda m, x: F.rms_norm(x, (x.shape[-1],), m.weight, m.eps) + 0 * m.bias), WIDTH
        ),
        lambda x, w, b: rooted(x, w, 1e-3),
    ),
    "RMS by hand": (
        lambda: Norm(
            lambda m, x: x * (x.pow(2).mean(1, keepdim=True) + m.eps).rsqrt() * m.weight + m.bias,
            WIDTH,
            1,
            1,
        ),
        lambda x, w, b: rooted(x, w, 1e-3) + b.reshape(1, -1, 1, 1),
    ),
    "by hand": (lambda: Norm(by_hand, WIDTH), lambda x, w, b: standardised(x, w, b, 1e-3)),
    "by variance": (
        lambda: Norm(by_variance, 1, WIDTH, 1, 1),
        lambda x, w, b: standardised(x, w, b, 1e-3),
    ),
    "GRN": (lambda: Norm(grn, 1, WIDTH, 1, 1), responses),
    "normalize": (lambda: Norm(lambda m, x: F.normalize(x)), lengths),
    "normalize dim": (lambda: Norm(last(lambda m, x: F.normalize(x, p=2.0, dim=-1))), lengths),
    "L2 by hand": (
        lambda: Norm(lambda m, x: torch.div(x, x.pow(2).sum(1, keepdim=True).sqrt() + 1e-12)),
        lengths,
    ),
    "L2 by norm": (
        lambda: Norm(lambda m, x: x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)),
        lengths,
    ),
    "L2 by vector_norm": (
        lambda: Norm(
            lambda m, x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
        ),
        lengths,
    ),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(3), lambda x: responded(x, 3)),
    "local_response_norm": (
        lambda: Norm(lambda m, x: F.local_response_norm(x, 4)),
        lambda x: responded(x, 4),
    ),
}


def network(norm):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = (
            nn.Conv2d(3, WIDTH, 3, padding=1),
            norm(),
            nn.SiLU(),
            nn.Conv2d(WIDTH, 6, 3, padding=1),
        )
        return scrambled(nn.Sequential(*parts, nn.Flatten(), nn.Linear(96, 3)))


@pytest.mark.parametrize("name", NORMS)
def test_what_is_left_is_normalised_among_itself(name):
    norm, formula = NORMS[name]
    model, x = network(norm), images()
    graph = trace_channels(model, x[:1])
    assert [(g.name, g.channels, g.renormalises) for g in graph.prunable] == [
        ("0", WIDTH, True),
        ("3", 6, False),
    ]
    ranking = rank_channels(model, graph, "random")
    weights = list(model[1].parameters())
    for widths in ((5, 6), (1, 4), (WIDTH, 6)):
        small = slice_model(model, graph, widths, ranking)
        kept, others = (torch.from_numpy(ranking.kept(i, k)) for i, k in enumerate(widths))
        with torch.no_grad():
            y = model[0](x)[:, kept]
            y = formula(y, *(w.reshape(WIDTH)[kept] for w in weights))
            y = F.conv2d(
                F.silu(y), model[3].weight[others][:, kept], model[3].bias[others], padding=1
            )
            read = model[5].weight.unflatten(1, (6, 16))[:, others].flatten(1)
            assert_close(small(x), F.linear(y.flatten(1), read, model[5].bias))
        assert counted(small, x[:1]) == (
            int(graph.costs.macs([widths])[0]),
            int(graph.costs.params([widths])[0]),
        )
        check_gates(model, graph, widths, ranking, x)
        check_shared(model, graph, widths, ranking, x)


@pytest.mark.parametrize("name", NORMS)
def test_without_renormalising_the_channels_stay(name):
    with pytest.warns(UserWarning, match="channels touched by operations without a rule"):
        graph = trace_channels(network(NORMS[name][0]), images(1), renormalise=False)
    assert [group.name for group in graph.prunable] == ["3"]
    assert re.search("it (normalises|reduces)", graph.groups[0].fixed)
    assert not any(group.renormalises for group in graph.groups)


OTHERS = {
    "a mean that a layer reads": (
        lambda m, x: x * m.layer(x.mean(1, keepdim=True)),
        "it reduces the channels",
    ),
    "a mean that is returned": (lambda m, x: (x, x.mean(1, keepdim=True)), "the network's output"),
    "a mean in a condition": (
        lambda m, x: x if x.mean((1, 2, 3), keepdim=True)[0] > 0 else -x,
        "it reduces",
    ),
    "a mean that is squeezed": (lambda m, x: x * x.mean(1)[:, None], "it reduces the channels"),
    "a deviation with one less": (
        lambda m, x: x / x.std(1, keepdim=True),
        "of a single channel that is left",
    ),
    "groups that are written": (
        lambda m, x: F.group_norm(x, 2),
        "2 groups of channels, a number that is written",
    ),
    "a shape that is written": (
        lambda m, x: F.layer_norm(x.movedim(1, 3), (8,)).movedim(3, 1),
        "a size there would",
    ),
    "a maximum": (lambda m, x: x / x.amax(1, keepdim=True), "it reduces the channels"),
}


class Other(nn.Module):
    """A convolution, something else over channels, and what reads them."""

    def __init__(self, function):
        super().__init__()
        self.function, self.first = function, nn.Conv2d(3, WIDTH, 1)
        self.layer, self.last = nn.Conv2d(1, 1, 3, padding=1), nn.LazyConv2d(4, 1)

    def forward(self, x):
        x = self.function(self, self.first(x))
        return self.last(x) if isinstance(x, torch.Tensor) else (self.last(x[0]), *x[1:])


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_norm_keeps_its_channels(name):
    function, reason = OTHERS[name]
    model = Other(function).double()
    model(images(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsupportedOpWarning)
        graph = trace_channels(model, images(1))
    assert reason in str(next(group for group in graph.groups if group.name == "first").fixed)


@few(10)
@given(programs(strange=True, most=4), st.integers(0, 2**16))
def test_random_networks_with_norms(program, seed):
    model, rng = program.build(seed), np.random.default_rng(seed)
    graph, _ = traced(model, renormalise=True)
    ranking = rank_channels(model, graph, "random", seed=seed)
    candidate = random_candidate(graph, rng)
    check_gates(model, graph, candidate, ranking, images(batch=4), rounding=1e-9)
    check_shared(model, graph, candidate, ranking, images(batch=4))


def test_soft_gates_weigh_a_norm_and_get_gradients():
    model, x = network(NORMS["LayerNorm"][0]), images()
    graph = trace_channels(model, x[:1])
    gates = [
        torch.rand(group.channels, dtype=torch.double).requires_grad_() for group in graph.prunable
    ]
    with gated(model, graph, gates):
        actual = model(x)
    with torch.no_grad():
        y = model[0](x).movedim(1, -1)
        g = gates[0] / gates[0].sum()
        middle = (y * g).sum(-1, keepdim=True)
        y = (y - middle) / (((y - middle).square() * g).sum(-1, keepdim=True) + 1e-5).sqrt()
        y = (y * model[1][0].weight + model[1][0].bias).movedim(-1, 1)
        y = F.silu(y) * gates[0].reshape(-1, 1, 1)
        y = model[3](y) * gates[1].reshape(-1, 1, 1)
        assert_close(actual, model[5](y.flatten(1)))
    assert all(bool(g.all()) for g in torch.autograd.grad(actual.square().sum(), gates))


def test_a_norm_that_gets_another_input_is_named():
    model = network(NORMS["by hand"][0])
    graph = trace_channels(model, images(1))
    model[0] = nn.Conv2d(3, WIDTH, 3, padding=1).double()
    gates = [torch.ones(group.channels) for group in graph.prunable]
    with (
        gated(model, graph, gates),
        pytest.raises(TraceError, match=r"mean in 1 gets \(1, 3, 4, 4\)"),
    ):
        model[1](images(1))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_tensors_alone_cannot_gate_a_norm():
    model = network(NORMS["by hand"][0])
    graph = trace_channels(model, images(1))
    with pytest.raises(
        CandidateError,
        match="norms over channels of 0 need gates as well: run the network in `with",
    ):
        gate(model, graph, [torch.ones(group.channels) for group in graph.prunable])


class Twice(nn.Module):
    """One norm for two layers of different groups, another called as a function twice in one forward."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = (
            nn.Conv2d(3, WIDTH, 1),
            nn.Conv2d(WIDTH, WIDTH, 1),
            nn.LayerNorm(WIDTH),
        )
        self.c, self.d = nn.Conv2d(WIDTH, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.norm(self.a(x).movedim(1, -1)).movedim(-1, 1)
        x = self.norm(torch.relu(self.b(x)).movedim(1, -1)).movedim(-1, 1)
        return self.d(F.normalize(torch.relu(self.c(F.normalize(x)))))


def test_norms_that_are_called_several_times():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = scrambled(Twice())
    graph = trace_channels(model, images(1))
    assert [(g.name, g.channels, g.renormalises) for g in graph.prunable] == [
        ("a", WIDTH, True),
        ("c", 6, True),
    ]
    ranking = rank_channels(model, graph, "random")
    check_gates(model, graph, (3, 4), ranking, images(), rounding=1e-11)
