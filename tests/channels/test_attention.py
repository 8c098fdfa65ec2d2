"""Attention loses whole heads: what is left of a transformer is what a formula of the heads that stay computes."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.backends import mha

from abcsearch.channels.groups import UnsupportedOpWarning, trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from tests.channels.attention import ATTENTIONS, HEADS, OWN_HEADS, TOKENS, Torchs, Transformer
from tests.channels.oracle import assert_close, images, random_candidate, scrambled
from tests.channels.sharing import check_gates, check_shared
from tests.channels.zoo import cost, layer_macs


@pytest.fixture(autouse=True)
def _slow_path():
    """Torch's fused attention does not count what it multiplies."""
    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    yield
    mha.set_fastpath_enabled(before)


def transformer(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return scrambled(Transformer(name))


@pytest.mark.parametrize("name", ATTENTIONS)
def test_heads_are_units(name):
    model, x = transformer(name), images(size=6)
    graph = trace_channels(model, x[:1])
    groups = {group.name: group.channels for group in graph.prunable}
    inner = {f"blocks.{i}.mlp.0": 10 for i in range(2)}
    if name == "torch encoder":
        inner |= {f"blocks.{i}.attention.linear1": 20 for i in range(2)}
    if name in OWN_HEADS:
        heads = {key: size for key, size in groups.items() if ".attention." in key}
        assert list(heads.values()) == [HEADS, HEADS]
        inner |= heads
    assert groups == {"patches": 12 if name in OWN_HEADS else HEADS, **inner}
    assert {group.fixed for group in graph.groups} == {None, "the network's output"}
    ranking, rng = rank_channels(model, graph, "random", seed=1), np.random.default_rng(0)
    for candidate in (random_candidate(graph, rng), tuple(1 for _ in graph.prunable)):
        small = slice_model(model, graph, candidate, ranking)
        macs, params = cost(graph, candidate)
        assert (macs, params) == (
            layer_macs(small, x[:1]),
            sum(p.numel() for p in small.parameters()),
        )
        check_gates(model, graph, candidate, ranking, x, rounding=1e-11)
        check_shared(model, graph, candidate, ranking, x)


class Formula(nn.Module):
    """What attention of torch is, of some heads, written out."""

    def __init__(self, layer, embedded, heads):
        super().__init__()
        self.layer, self.embedded, self.heads = layer, embedded, heads

    def forward(self, x):
        each = self.layer.embed_dim // self.layer.num_heads
        weight, bias = self.layer.in_proj_weight, self.layer.in_proj_bias
        out = torch.zeros(*x.shape[:2], self.layer.embed_dim, dtype=x.dtype)
        for head in self.heads.tolist():
            rows = [
                part * self.layer.embed_dim + head * each + torch.arange(each) for part in range(3)
            ]
            q, k, v = (x @ weight[r][:, self.embedded].T + bias[r] for r in rows)
            weights = torch.softmax(q @ k.mT / each**0.5, dim=-1)
            out = (
                out
                + (weights @ v) @ self.layer.out_proj.weight[:, head * each + torch.arange(each)].T
            )
        return (out + self.layer.out_proj.bias)[..., self.embedded]


def test_a_sliced_attention_is_the_formula_of_its_heads():
    model, x = transformer("torch"), images(size=6)
    graph = trace_channels(model, x[:1])
    ranking = rank_channels(model, graph, "random", seed=3)
    candidate = (2, *(group.channels for group in graph.prunable[1:]))
    small = slice_model(model, graph, candidate, ranking)
    layer, left = model.blocks[0].attention.attention, small.blocks[0].attention
    assert (left.attention.num_heads, left.attention.embed_dim, left.attention.head_dim) == (
        2,
        8,
        4,
    )
    heads = torch.from_numpy(ranking.kept(0, 2))
    embedded = (heads[:, None] * 4 + torch.arange(4)).flatten()
    y = torch.randn(2, TOKENS, 8, dtype=torch.double)
    with torch.no_grad():
        assert_close(left(y), Formula(layer, embedded, heads)(y))
        before = left(y)
        mha.set_fastpath_enabled(True)
        assert_close(left.eval()(y), before)


REFUSED = {
    "other channels": (
        lambda: nn.MultiheadAttention(12, 3, kdim=6, vdim=6, batch_first=True),
        lambda m, x: m.layer(x, x[..., :6], x[..., :6])[0],
    ),
    "bias_kv": (
        lambda: nn.MultiheadAttention(12, 3, add_bias_kv=True, batch_first=True),
        lambda m, x: m.layer(x, x, x)[0],
    ),
    "channels as tokens": (
        lambda: nn.MultiheadAttention(16, 4, batch_first=True),
        lambda m, x: m.layer(x.mT, x.mT, x.mT)[0].mT,
    ),
    "dot products over channels": (
        nn.Identity,
        lambda m, x: nn.functional.scaled_dot_product_attention(x, x, x),
    ),
}


class Refused(nn.Module):
    """Attention that is not covered, among convolutions."""

    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function
        self.first, self.last = nn.Conv2d(3, 12, 1), nn.Linear(12, 4)

    def forward(self, x):
        return self.last(self.function(self, self.first(x).flatten(2).mT))


@pytest.mark.parametrize("name", REFUSED)
def test_attention_that_is_not_covered_keeps_its_channels(name):
    make, function = REFUSED[name]
    model = Refused(make(), function).double()
    with pytest.warns(UnsupportedOpWarning, match="ttention"):
        graph = trace_channels(model, images(1))
    assert not graph.prunable


def test_a_mask_of_heads_keeps_them():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj, self.num_heads = nn.Linear(12, 36), nn.Linear(12, 12), HEADS
            self.mask = [torch.randn(HEADS, TOKENS, TOKENS, dtype=torch.double)]

        def forward(self, x):
            q, k, v = (
                self.qkv(x)
                .reshape(*x.shape[:2], 3, self.num_heads, -1)
                .permute(2, 0, 3, 1, 4)
                .unbind(0)
            )
            y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask[0])
            return self.proj(y.transpose(1, 2).flatten(2))

    model = transformer("packed fused")
    model.blocks[0].attention = Masked().double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsupportedOpWarning)
        graph = trace_channels(model, images(1, 6))
    fixed = {group.name: group.fixed for group in graph.groups}
    assert "combined with a tensor that is neither a parameter nor a buffer" in str(
        fixed["blocks.0.attention.qkv"]
    )


def test_attention_weights_that_are_asked_for():
    class Weights(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.layer, self.last = nn.Conv2d(3, 12, 1), Torchs(12), nn.Linear(12, 4)

        def forward(self, x):
            x = self.first(x).flatten(2).mT
            y, weights = self.layer.attention(x, x, x)
            return self.last(y) * weights.mean()

    model = scrambled(Weights())
    graph = trace_channels(model, images(1))
    assert [(g.name, g.channels) for g in graph.prunable] == [
        ("first", 3),
        ("layer.attention.out_proj", 12),
    ]
    check_gates(
        model, graph, (2, 5), rank_channels(model, graph, "random"), images(), modes=(False,)
    )
