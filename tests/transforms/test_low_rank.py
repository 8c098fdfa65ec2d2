"""Low rank: exact at full rank, planted ranks are found, costs are counted, ranks are channels."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from abcsearch import Budget, rank_channels, slice_model, trace_channels
from abcsearch.errors import ModelError
from abcsearch.transforms.factors import METHODS, Factorised, full_ranks, skeleton, split, unfolded
from abcsearch.transforms.low_rank import low_rank
from abcsearch.transforms.ranks import by_energy, evbmf

# What torch says of 'same' padding with even kernels, which some random layers have.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


MODES = ("zeros", "reflect", "replicate", "circular")


def macs(module, x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops() // 2


@st.composite
def convolutions(draw):
    """A convolution of one conv group, and an image that it takes."""
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(2))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(2))
    mode = draw(st.sampled_from(MODES))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(2))
    padding = tuple(draw(st.integers(0, 2)) for _ in range(2))
    if stride == (1, 1) and draw(st.booleans()):
        padding = draw(st.sampled_from(["same", "valid"]))
    inputs, outputs = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    torch.manual_seed(draw(st.integers(0, 99)))
    layer = nn.Conv2d(
        inputs,
        outputs,
        kernel,
        stride,
        padding,
        dilation,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    return layer.double(), torch.randn(2, inputs, 9, 10, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.sampled_from(METHODS))
def test_full_rank_is_the_layer_itself(drawn, method):
    layer, x = drawn
    made = split(layer, method, full_ranks(layer, method))
    assert made.ranks == full_ranks(layer, method)
    with torch.no_grad():
        assert torch.allclose(made(x), layer(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("ranks", [(1, 2), (2, 1), (1, 6), (5, 1)])
def test_a_side_may_have_more_ranks_than_the_other_leaves_directions(ranks):
    """Of one channel between, a kernel of one entry can feed one direction; the others are 0, and nothing is lost by it."""
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 6, 1).double()
    made = split(layer, "tucker", ranks)
    assert next(iter(made)).weight.shape[0] == ranks[0]
    nearest = split(layer, "tucker", (1, 1) if 1 in ranks else ranks)
    x = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    assert torch.allclose(made(x), nearest(x), atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(convolutions(), st.sampled_from(METHODS), st.data())
def test_what_is_lost_is_what_was_cut(drawn, method, data):
    """The error of the weight is that of the singular values that went; of two, no more than both together."""
    layer, _ = drawn
    ranks = tuple(data.draw(st.integers(1, of)) for of in full_ranks(layer, method))
    made = split(layer, method, ranks)
    shapes = [list(own.weight.shape) for own in skeleton(layer, method, ranks)]
    assert [list(own.weight.shape) for own in made] == shapes
    # The product's kernel, as what it makes of an impulse at every place: here by the weights' own product.
    first, *rest = (own.weight.detach().double() for own in made)
    product = first
    for weight in rest:
        if method == "spatial":
            product = torch.einsum("rih,orw->oihw", product[..., 0], weight[:, :, 0])
        elif weight.shape[2:] == (1, 1):
            product = torch.einsum("rihw,or->oihw", product, weight[..., 0, 0])
        else:
            product = torch.einsum("ri,orhw->oihw", product[..., 0, 0], weight)
    error = (product - layer.weight.detach()).norm() ** 2
    tails = [
        float((torch.linalg.svdvals(m)[r:] ** 2).sum())
        for m, r in zip(unfolded(layer, method), ranks, strict=True)
    ]
    assert error <= sum(tails) + 1e-9
    assert error >= max(tails) - 1e-9
    if method != "tucker":
        assert float(error) == pytest.approx(tails[0], abs=1e-9)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(bias):
    layer = nn.Linear(7, 5, bias=bias).double()
    x = torch.randn(3, 4, 7, dtype=torch.float64)
    made = split(layer, "output", (5,))
    assert torch.allclose(made(x), layer(x), atol=1e-12)
    assert [type(own) for own in made] == [nn.Linear, nn.Linear]
    assert (made[0].bias is None, made[1].bias is None) == (True, not bias)


@pytest.mark.parametrize("rank", [1, 3, 10, 20])
@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_a_planted_rank_is_found(rank, noise):
    rng = np.random.default_rng(rank)
    planted = rng.normal(size=(40, rank)) @ rng.normal(size=(rank, 90))
    values = np.linalg.svd(planted, compute_uv=False)
    assert by_energy(values, 1 - 1e-9) == rank
    noisy = planted + noise * rng.normal(size=planted.shape)
    assert evbmf(np.linalg.svd(noisy, compute_uv=False), noisy.shape) == rank


@pytest.mark.parametrize("shape", [(30, 90), (90, 30), (16, 16), (2, 9)])
def test_there_is_nothing_in_noise(shape):
    values = np.linalg.svd(np.random.default_rng(0).normal(size=shape), compute_uv=False)
    assert evbmf(values, shape) == 0
    assert evbmf(values * 0, shape) == 0
    assert evbmf(values * 1e-150, shape) == 0
    assert by_energy(values * 0, 0.5) == 1
    assert by_energy(values, 1.0) == len(values)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1, groups=4), nn.Conv2d(24, 32, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", METHODS)
def test_costs_are_those_that_are_counted(method):
    model = net()
    before = copy.deepcopy(model.state_dict())
    for rule in ("break_even", {"3": 2}, 0.5):
        made = low_rank(model, X, method=method, ranks=rule)
        assert made.factors
        after = macs(made.model, X)
        saved = sum(
            (macs(model[: int(f.path) + 1], X) - macs(model[: int(f.path)], X)) * (1 - f.macs)
            for f in made.factors
        )
        assert after == pytest.approx(macs(model, X) - saved)
        assert all(f.macs <= 1 for f in made.factors)
        assert {*made.left, *(f.path for f in made.factors)} == {"0", "3", "6", "7", "11"}
        assert made.left["6"] == "it has 4 conv groups"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_ranks_are_channels(method):
    """Traced again, every rank is a group, which l2 puts in the order of the singular values; slices run."""
    model = net()
    made = low_rank(model, X, method=method, ranks="full")
    assert torch.allclose(made.model(X), model(X), atol=1e-5)
    graph = trace_channels(made.model, X)
    names = {f"{f.path}.{i}" for f in made.factors for i in range(len(f.ranks))}
    groups = {group.name: i for i, group in enumerate(graph.prunable)}
    assert names <= set(groups)
    ranking = rank_channels(made.model, graph, "l2")
    for f in made.factors:
        if f.method != "tucker":
            scores = np.asarray(ranking.scores[groups[f"{f.path}.0"]])
            assert (np.diff(scores) <= 1e-5 * scores[0]).all()
    space = graph.space(1.0)
    budget = Budget(macs=macs(model, X[:1])).bind(space, graph.costs)
    candidate = budget.repair(space.full, np.random.default_rng(0))
    sliced = slice_model(made.model, graph, candidate, ranking)
    assert macs(sliced, X[:1]) <= macs(model, X[:1])
    assert macs(sliced, X[:1]) == graph.costs.macs([candidate])[0]
    assert {type(m) for m in sliced.modules()} >= {Factorised}


def test_with_data_outputs_are_met_better():
    torch.manual_seed(0)
    mixing = torch.randn(3, 3) * torch.tensor([3.0, 1.0, 0.1])
    images = torch.einsum("nihw,ij->njhw", torch.randn(64, 3, 16, 16), mixing)
    model = net()
    errors = []
    for data in (None, [images]):
        made = low_rank(model, X, method="output", ranks={"0": 4, "3": 6}, data=data)
        with torch.no_grad():
            errors.append(float((made.model(images) - model(images)).norm()))
            first = made.model[0](images) - model[0](images)
        errors.append(float(first.norm()))
    assert errors[3] < 0.8 * errors[1]
    full = low_rank(model, X, method="output", ranks="full", data=[images])
    assert torch.allclose(full.model(X), model(X), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "spatail"}, "did you mean 'spatial'"),
        ({"ranks": "evmbf"}, "did you mean 'evbmf'"),
        ({"ranks": 0.0}, "in (0, 1], one of"),
        ({"ranks": 2}, "found 2"),
        ({"ranks": None}, "found None"),
        ({"ranks": {"0": 0}}, "whole number from 1 to 9, found 0"),
        ({"ranks": {"0": 1.5}}, "found 1.5"),
        ({"ranks": {"0": (1, 2)}}, "found (1, 2)"),
        ({"ranks": {"1": 2}}, "is a BatchNorm2d, no convolution"),
        ({"ranks": {"12": 2}}, "unknown layer"),
        ({"ranks": {"6": 2}}, "which cannot be split: it has 4 conv groups"),
        ({"data": [X]}, "only method 'output' can"),
    ],
)
def test_what_is_refused(options, words):
    with pytest.raises(ModelError) as caught:
        low_rank(net(), X, **options)
    assert words in str(caught.value)


def test_ranks_of_what_a_search_has_split_or_dropped_are_refused_with_what_to_do():
    made = low_rank(net(), X, ranks="full").model
    with pytest.raises(ModelError, match="is a product of smaller layers already: leave it out"):
        low_rank(made, X, ranks={"0": 2})
    made[1] = nn.Identity()
    with pytest.raises(ModelError, match="is an Identity: if that was dropped, leave it out"):
        low_rank(made, X, ranks={"1": 2})


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.first, self.second, self.unused = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.read = nn.Linear(8, 8)

    def forward(self, x):
        y = self.attention(x, x, x)[0]
        return self.second(self.first(y)) @ self.read.weight


def test_layers_that_are_more_than_modules_are_left_alone():
    made = low_rank(Attention().eval(), torch.randn(2, 4, 8), ranks="full")
    assert not made.factors
    reasons = {path: text.partition(",")[0] for path, text in made.left.items()}
    assert reasons == {
        "attention.out_proj": "it is a NonDynamicallyQuantizableLinear",
        "first": "its weight is another module's",
        "second": "its weight is another module's",
        "unused": "forward does not call it as a module",
        "read": "forward does not call it as a module",
    }
    twice = low_rank(low_rank(net(), X, ranks="full").model, X, ranks="full")
    assert not twice.factors


def test_weights_that_are_not_finite_are_named():
    model = net()
    model[3].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match="weight of 3 is not finite"):
        low_rank(model, X)


def test_modes_types_and_frozen_weights_stay():
    model = net().double().train()
    made = low_rank(model, X.double(), ranks="full").model
    assert all(module.training for module in made.modules())
    assert {p.dtype for p in made.parameters()} == {torch.float64}
    assert model[0].training
