"""Recurrent layers lose what they read and hidden channels of all gates, layers and directions together."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from abcsearch.channels.groups import UnsupportedOpWarning, trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from tests.channels.oracle import assert_close, counted, images, scrambled, zeroed
from tests.channels.sharing import check_gates, check_shared

KINDS = {
    "LSTM": lambda **options: nn.LSTM(8, 6, **options),
    "GRU": lambda **options: nn.GRU(8, 6, **options),
    "RNN": lambda **options: nn.RNN(8, 6, nonlinearity="relu", **options),
}
OPTIONS = {
    "plain": {"batch_first": True},
    "two layers": {"batch_first": True, "num_layers": 2, "bias": False},
    "both ways": {"batch_first": True, "num_layers": 2, "bidirectional": True},
    "times first": {},
}


class Reader(nn.Module):
    """Rows of an image, read by a recurrent layer; its outputs and, if asked, its last states are read."""

    def __init__(self, layer, *, states=False, begin=None):
        super().__init__()
        self.first, self.layer = nn.Conv2d(3, 8, 3, padding=1), layer
        self.out, self.last = nn.Linear(6 * (1 + layer.bidirectional), 5), nn.Linear(5, 3)
        self.state = nn.Linear(6, 3) if states else None
        self.begin, self.start = begin, nn.Linear(8, 6)

    def forward(self, x):
        x = torch.relu(self.first(x)).flatten(2)
        x = x.transpose(1, 2) if self.layer.batch_first else x.permute(2, 0, 1)
        y, ends = self.layer(x) if self.begin is None else self.layer(x, self.begin(self, x))
        z = self.last(torch.relu(self.out(y)).mean(1 if self.layer.batch_first else 0))
        ends = ends[0] if isinstance(ends, tuple) else ends
        return z if self.state is None else z + self.state(ends[-1])


def network(kind, states=False, begin=None, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return scrambled(Reader(KINDS[kind](**options), states=states, begin=begin))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIONS)
def test_gates_layers_and_directions_lose_the_same_channels(kind, name):
    model, x = network(kind, states=name != "plain", **OPTIONS[name]), images()
    graph = trace_channels(model, x[:1])
    assert [(g.name, g.channels) for g in graph.prunable] == [
        ("first", 8),
        ("layer", 6),
        ("out", 5),
    ]
    ranking = rank_channels(model, graph, "random")
    for candidate in ((8, 6, 5), (3, 4, 2), (1, 1, 1)):
        small = slice_model(model, graph, candidate, ranking)
        assert (small.layer.input_size, small.layer.hidden_size) == candidate[:2]
        with torch.no_grad():
            assert_close(small(x), silenced(model, graph, candidate, ranking)(x))
        assert counted(small, x[:1]) == (
            int(graph.costs.macs([candidate])[0]),
            int(graph.costs.params([candidate])[0]),
        )
        check_gates(model, graph, candidate, ranking, x)
        check_shared(model, graph, candidate, ranking, x)


def silenced(model, graph, candidate, ranking):
    """The oracle: the original, in which nothing reads what is removed."""
    twin = zeroed(model, graph, candidate, ranking)
    layer, hidden = twin.layer, ranking.kept(1, candidate[1]).tolist()
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            if not name.startswith("weight"):
                continue
            kept = hidden if "ih_l0" not in name else ranking.kept(0, candidate[0]).tolist()
            count = 6 if "ih_l0" not in name else 8
            gone = [i for i in range(weight.shape[1]) if i % count not in kept]
            weight[:, gone] = 0
    return copy.deepcopy(twin)


@pytest.mark.parametrize("kind", KINDS)
def test_costs_do_not_depend_on_the_precision(kind):
    model = network(kind, batch_first=True)
    wide = trace_channels(model, images(1)).costs.macs([(8, 6, 5)])
    narrow = trace_channels(copy.deepcopy(model).float(), images(1).float()).costs.macs([(8, 6, 5)])
    assert wide == narrow
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images(1))
    assert wide == counter.get_total_flops() // 2


BEGINNINGS = {
    "zeros that follow": (lambda m, x: x.new_zeros(1, x.shape[0], m.layer.hidden_size), [8, 6, 5]),
    "zeros that are written": (lambda m, x: torch.zeros(1, x.shape[0], 6, dtype=x.dtype), [8, 5]),
    "what another layer made": (lambda m, x: torch.tanh(m.start(x[:, 0]))[None], [8, 6, 5]),
}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_states_that_it_begins_with(name):
    begin, channels = BEGINNINGS[name]
    model = network("GRU", states=True, begin=begin, batch_first=True)
    graph = trace_channels(model, images(1))
    assert [group.channels for group in graph.prunable] == channels
    ranking = rank_channels(model, graph, "random")
    check_gates(model, graph, tuple(2 for _ in channels), ranking, images())


def test_a_projection_of_the_state_keeps_everything():
    model = Reader(nn.LSTM(8, 12, proj_size=6, batch_first=True)).double()
    with pytest.warns(UnsupportedOpWarning, match="LSTM layer: it projects its hidden state"):
        graph = trace_channels(model, images(1))
    assert [group.name for group in graph.prunable] == ["out"]
