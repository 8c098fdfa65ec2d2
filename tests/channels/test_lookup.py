"""Networks of words: the dimensions of embeddings are channels, their rows all stay, looking up multiplies nothing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from abcsearch import Budget, Data, export, load, search
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from tests.channels.oracle import assert_close, counted, few, random_candidate, scrambled, zeroed
from tests.channels.sharing import check_gates, check_shared

WORDS, LENGTH = 11, 6


class Words(nn.Module):
    """One way from words to six numbers for each of them or for all, then a classifier."""

    def __init__(self, way, c=8):
        super().__init__()
        self.way = way
        self.words, self.places = nn.Embedding(WORDS, c, padding_idx=0), nn.Embedding(LENGTH, c)
        self.bag = nn.EmbeddingBag(WORDS, c, mode=way.split()[-1] if "bag" in way else "mean")
        self.conv, self.norm = nn.Conv1d(c, 6, 3, padding=1), nn.BatchNorm1d(6)
        self.lstm, self.linear = nn.LSTM(c, 6, batch_first=True), nn.Linear(c, 6)
        self.wide = nn.Linear(2 * c, 6)
        self.attention = nn.MultiheadAttention(c, 2, batch_first=True)
        self.register_buffer("numbers", torch.arange(LENGTH)[None])
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        y = WAYS[self.way](self, x)
        return self.head(torch.relu(y) if y.ndim == 2 else torch.relu(y).mean(1))


def _attended(m, x):
    y = m.words(x) + m.places.weight[: x.shape[1]]
    return m.linear(y + m.attention(y, y, y)[0])


def _weighed(m, x):
    weights = (x * 0.5).double()
    return m.linear(F.embedding_bag(x, m.bag.weight, per_sample_weights=weights, mode="sum"))


WAYS = {
    "linear": lambda m, x: m.linear(m.words(x)),
    "convolution": lambda m, x: m.norm(m.conv(m.words(x).transpose(1, 2))).transpose(1, 2),
    "recurrent": lambda m, x: m.lstm(m.words(x))[0],
    "function": lambda m, x: m.linear(F.embedding(x, m.words.weight)),
    "function of one word": lambda m, x: m.linear(F.embedding(x[:, 0], weight=m.words.weight)),
    "places": lambda m, x: m.linear(m.words(x) + m.places(torch.arange(x.shape[1]))),
    "places of a buffer": lambda m, x: m.linear(m.words(x) + m.places(m.numbers[:, : x.size(1)])),
    "concatenated": lambda m, x: m.wide(
        torch.cat([m.words(x), m.places(m.numbers).expand(len(x), -1, -1)], -1)
    ),
    "size read": lambda m, x: m.linear(m.words(x).view(-1, m.words.embedding_dim)).view(
        len(x), LENGTH, -1
    ),
    "rows counted": lambda m, x: m.linear(m.words(x.clamp(max=m.words.num_embeddings - 1))),
    "bag sum": lambda m, x: m.linear(m.bag(x)),
    "bag mean": lambda m, x: m.linear(m.bag(x)),
    "bag max": lambda m, x: m.linear(m.bag(x)),
    "function bag sum": _weighed,
    "tied": lambda m, x: (
        m.linear(m.words(x)) + F.linear(torch.tanh(m.words(x)), m.words.weight).mean(-1, True)
    ),
    "attention": _attended,
}
UNZEROED = {"recurrent", "tied", "attention"}  # `zeroed` knows layers, not these


def words(batch=3, seed=1):
    return torch.randint(WORDS, (batch, LENGTH), generator=torch.Generator().manual_seed(seed))


def network(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return scrambled(make())


def check(model, graph, x, candidate, *, exact):
    ranking = rank_channels(model, graph, "random")
    small = slice_model(model, graph, candidate, ranking)
    assert sum(p.numel() for p in small.parameters()) == int(graph.costs.params([candidate])[0])
    if exact:
        assert counted(small, x[:1])[0] == int(graph.costs.macs([candidate])[0])
        with torch.no_grad():
            assert_close(small(x), zeroed(model, graph, candidate, ranking)(x))
    check_gates(model, graph, candidate, ranking, x)
    check_shared(model, graph, candidate, ranking, x)
    return small


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
def test_dimensions_of_embeddings_are_channels(way):
    model, x = network(lambda: Words(way)), words()
    graph, single = trace_channels(model, x), trace_channels(model, x[:1])
    table = "bag" if "bag" in way else "words"
    sizes = {group.name: group.channels for group in graph.prunable}
    full = tuple(sizes.values())
    assert graph.costs.macs([full]) == single.costs.macs([full])
    assert sizes.pop(table) == (2 if way == "attention" else 8)
    assert sizes.pop("places", 8) == 8
    assert [*sizes.values()] == [6]
    narrow = tuple(max(1, width // 3) for width in full)
    small = check(model, graph, x, narrow, exact=way not in UNZEROED)
    left = getattr(small, table)
    assert left.embedding_dim == left.weight.shape[1] < 8
    assert left.num_embeddings == len(left.weight) == WORDS


@few(25)
@given(st.sampled_from([*WAYS]), st.sampled_from([2, 6, 10]), st.integers(0, 2**16))
@pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
def test_any_widths_compute_what_is_left(way, c, seed):
    model, x = network(lambda: Words(way, c)), words(seed=seed)
    graph = trace_channels(model, x[:1])
    candidate = random_candidate(graph, np.random.default_rng(seed))
    check(model, graph, x, candidate, exact=way not in UNZEROED)


class Limited(nn.Module):
    """Looks up in its tables as it is told, one of which has rows of a largest length."""

    def __init__(self, look):
        super().__init__()
        self.look, self.short = look, nn.Embedding(WORDS, 8, max_norm=0.5)
        self.plain, self.which = nn.Embedding(WORDS, 8), nn.Embedding(WORDS, 4)
        self.linear, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.relu(self.linear(self.look(self, x))).mean(1))


KEPT = {
    "short": (lambda m, x: m.short(x), {"linear"}, "max_norm rescales rows"),
    "plain": (lambda m, x: F.embedding(x, m.plain.weight, None, 1.0), {"linear"}, "max_norm resc"),
    "which": (
        lambda m, x: m.plain(m.which(x).abs().to(torch.int64).clamp(max=9)).sum(2),
        {"plain", "linear"},
        "it picks rows of plain.weight",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_tables_that_need_all_of_their_dimensions_keep_them(name):
    look, left, reason = KEPT[name]
    model = network(lambda: Limited(look))
    graph = trace_channels(model, words())
    assert {group.name for group in graph.prunable} == left
    (group,) = (group for group in graph.groups if group.name == name)
    assert reason in str(group.fixed)
    widths = tuple(2 for _ in graph.prunable)
    small = slice_model(model, graph, widths, ranking := rank_channels(model, graph, "random"))
    with torch.no_grad():
        assert_close(small(words()), zeroed(model, graph, widths, ranking)(words()))


def test_a_scale_by_the_width_keeps_it():
    model = network(lambda: Limited(lambda m, x: m.plain(x) * m.plain.embedding_dim**0.5))
    with pytest.warns(UserWarning, match="pow"):
        graph = trace_channels(model, words())
    assert {group.name for group in graph.prunable} == {"linear"}


BEGINNINGS = {
    "up to": lambda w, n: w[:n],
    "from": lambda w, n: w[n:],
    "of several": lambda w, n: w[None, :n, :],
    "every second": lambda w, n: w[0 : 2 * n : 2],
    "computed": lambda w, n: w[n - 1 : 2 * n - 1],
}


class Placed(nn.Module):
    """Adds some rows of a parameter."""

    def __init__(self, how):
        super().__init__()
        self.how, self.words, self.linear = how, nn.Embedding(WORDS, 8), nn.Linear(8, 6)
        self.places, self.head = nn.Parameter(torch.randn(2 * LENGTH, 8)), nn.Linear(6, 3)

    def forward(self, x):
        y = self.words(x) + BEGINNINGS[self.how](self.places, x.shape[1])
        return self.head(torch.relu(self.linear(y)).mean(1))


@pytest.mark.parametrize("how", BEGINNINGS)
def test_rows_of_a_parameter_up_to_a_length_that_the_input_has(how):
    model = network(lambda: Placed(how))
    graph = trace_channels(model, words())
    assert {group.name: group.channels for group in graph.prunable} == {"words": 8, "linear": 6}
    check(model, graph, words(), (3, 2), exact=True)


@pytest.mark.filterwarnings("ignore:.*no running statistics")
def test_a_network_of_words_goes_the_whole_way(tmp_path):
    x = words(60)
    labels = (x % 3).mode(1).values
    data = Data.of(({"x": x}, labels), ({"x": x[:20]}, labels[:20]))
    model = network(lambda: Words("recurrent")).float()
    result = search(
        model,
        data,
        searcher="random",
        evaluator={"name": "adaptive_bn", "calibration_images": 8, "batch_size": 8},
        budget=Budget(macs=0.5),
        n_trials=2,
        run_dir=tmp_path / "run",
    )
    assert not any(trial.evaluation.failure for trial in result.trials)
    small = result.model().eval()
    assert small.words.embedding_dim < 8 or small.lstm.hidden_size < 6
    export(small, tmp_path / "words", example_input=x[:2], options={"way": "recurrent"})
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "words", Words)(x), small(x))
