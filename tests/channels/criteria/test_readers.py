"""Criteria of the weights that read a channel: norms by hand, wherever channels are read."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.errors import RankingError
from tests.channels.criteria.known import Branches, ranked
from tests.channels.networks import Program, Step, programs, strange_network
from tests.channels.oracle import few, images
from tests.channels.test_slicing import traced


def norms(weight, axis=1):
    """The norm of each slice of a weight along an axis."""
    return weight.detach().double().movedim(axis, 0).flatten(1).norm(dim=1).numpy()


def test_readers_of_a_group_are_added_up():
    torch.manual_seed(0)
    model = Branches()
    graph = trace_channels(model, images(1).float())
    scores = {
        g.name: s
        for g, s in zip(
            graph.prunable, rank_channels(model, graph, "reader_l2").scores, strict=True
        )
    }
    plain, rectified = norms(model.plain.weight), norms(model.rectified.weight)
    np.testing.assert_allclose(scores["c"], (plain + rectified)[:5], rtol=1e-6)
    np.testing.assert_allclose(scores["a"], (plain + rectified)[5:], rtol=1e-6)


def test_all_entries_of_a_flattened_channel_count_behind_a_depthwise_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 8, 1, groups=4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 2),
    )
    nn.init.normal_(model[1].weight)
    # Two outputs of 3 x 3 for each channel
    weight = model[5].weight.detach().double().reshape(2, 4, 18)
    reads = weight.square().sum(dim=(0, 2)).sqrt().numpy()
    filters = norms(model[0].weight, 0) + norms(model[2].weight, 0).reshape(4, 2).sum(axis=1)
    x = torch.ones(1, 3, 3, 3)
    np.testing.assert_allclose(ranked(model, "reader_l2", x).scores[0], reads, rtol=1e-6)
    gamma = model[1].weight.detach().double().abs().numpy()
    np.testing.assert_allclose(
        ranked(model, "reader_l2_gamma", x).scores[0], reads * gamma, rtol=1e-6
    )
    np.testing.assert_allclose(
        ranked(model, "reader_l2_filters", x).scores[0], reads * filters, rtol=1e-6
    )


def test_transposed_convolutions_read_along_their_first_axis():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 5, 2))
    scores = ranked(model, "reader_l2", torch.ones(1, 3, 3, 3)).scores[0]
    np.testing.assert_allclose(scores, norms(model[2].weight, 0), rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["recurrent", "tied_transposed", "tied", "grouped", "cat_itself", "transposed_lanes"]
)
def test_weights_that_read_in_several_ways(name):
    model = strange_network(name)
    graph, _ = traced(model)
    assert all((scores > 0).all() for scores in rank_channels(model, graph, "reader_l2").scores)


@pytest.mark.filterwarnings("ignore:criterion 'reader_l2")
@few(15)
@given(programs(), st.integers(0, 2**16))
def test_what_nothing_reads_is_worth_nothing(program, seed):
    model, rng = program.build(seed), np.random.default_rng(seed)
    graph, _ = traced(model)
    tensors = graph.tensors(model)
    index = int(rng.integers(len(graph.prunable)))
    group, channel = graph.prunable[index], int(rng.integers(graph.prunable[index].channels))
    if not any(m.sums for m in group.members):
        return
    with torch.no_grad():
        for m in group.members:
            if m.sums:
                rows = torch.from_numpy(m.entries[m.channels == channel])
                tensors[m.parameter].index_fill_(m.axis, rows, 0.0)
    for name in ("reader_l2", "reader_l2_filters"):
        scores = rank_channels(model, graph, name).scores[index]
        assert scores[channel] == 0
        assert (np.delete(scores, channel) > 0).all()


def test_l1_stands_in_where_nothing_reads_and_without_a_batch_norm():
    model = Program(
        (Step("conv", (0,), "", 4), Step("conv", (0,), "", 6)), ("mean", 3, False)
    ).build()
    graph, _ = traced(model)
    unread = [group.name for group in graph.prunable].index("layers.0")
    l1 = rank_channels(model, graph, "l1").scores
    with pytest.warns(
        UserWarning, match=r"'reader_l2' does not apply to layers.0; l1 is used there"
    ):
        found = rank_channels(model, graph, "reader_l2").scores
    assert [i for i in range(len(l1)) if np.array_equal(l1[i], found[i])] == [unread]
    with pytest.warns(
        UserWarning,
        match=r"'reader_l2_gamma' does not apply to layers.0, layers.1, hidden; l1 is used",
    ):
        found = rank_channels(model, graph, "reader_l2_gamma").scores
    assert all(np.array_equal(a, b) for a, b in zip(l1, found, strict=True))


@pytest.mark.parametrize("name", ["reader_l2", "reader_l2_gamma", "reader_l2_filters"])
def test_readers_that_are_not_finite(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model[3].weight.data[1, 2] = float("nan")
    with pytest.raises(
        RankingError,
        match=f"criterion '{name}' finds no finite score in group '0'; check the trained",
    ):
        ranked(model, name, torch.ones(1, 3, 3, 3))


@pytest.mark.parametrize("name", ["reader_l2", "reader_l2_filters", "l1", "l2", "fpgm", "scsp"])
def test_layout_of_large_weights_does_not_matter(name):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 33, 3), nn.ReLU(), nn.Conv2d(33, 70, 3), nn.ReLU(), nn.Conv2d(70, 40, 3)
    )
    x = torch.ones(1, 3, 9, 9)
    before = [scores.tolist() for scores in ranked(model, name, x).scores]
    assert [
        scores.tolist()
        for scores in ranked(model.to(memory_format=torch.channels_last), name, x).scores
    ] == before
