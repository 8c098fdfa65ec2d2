"""A criterion per group: every group keeps what its own says, however networks are made; costs see none of it."""

import pickle

import numpy as np
import pytest
import torch

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.orders import Ranking
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.repair import Repaired
from abcsearch.channels.sharing import share
from abcsearch.channels.slicing import slice_model
from abcsearch.channels.source import Sliced
from abcsearch.errors import CandidateError, RankingError
from tests.channels.oracle import zeroed

NAMES = ("l1", "taylor", "random", "reader_l2")
COSTS = ("macs", "flops", "params", "peak_activation")


@pytest.fixture
def graph(tiny_model):
    return trace_channels(tiny_model, torch.zeros(1, 1, 6, 6))


@pytest.fixture
def batch():
    draws = torch.Generator().manual_seed(3)
    return torch.randn(40, 1, 6, 6, generator=draws), torch.arange(40) % 2


@pytest.fixture
def ranking(tiny_model, graph, batch):
    return rank_channels(tiny_model, graph, NAMES, data=batch, seed=4)


def candidates(graph, count=12, levels=("filter", "stage", "block")):
    """Random structures with random criteria."""
    space, rng = graph.space(levels=levels, criteria=NAMES), np.random.default_rng(0)
    return space, [space.sample(rng) for _ in range(count)]


def mixed(ranking, numbers):
    """The ranking that a structure's criteria ask for, put together by hand."""
    every = [ranking, *ranking.others]
    return Ranking(
        criterion="by hand", scores=tuple(every[n].scores[g] for g, n in enumerate(numbers))
    )


def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_several_rankings_are_those_of_each_alone(tiny_model, graph, batch, ranking):
    assert ranking.criteria == NAMES
    for own in (ranking, *ranking.others):
        alone = rank_channels(tiny_model, graph, own.criterion, data=batch, seed=4)
        assert all(np.array_equal(a, b) for a, b in zip(own.scores, alone.scores, strict=True))
        assert alone.others == ()
    for group, other in enumerate(ranking.others[0].orders):
        assert ranking.kept(group, 3, 1).tolist() == sorted(other[:3].tolist())
        assert ranking.kept(group, 3).tolist() == sorted(ranking.orders[group][:3].tolist())


def test_a_list_of_one_is_that_one(tiny_model, graph):
    one, other = rank_channels(tiny_model, graph, ["l1"]), rank_channels(tiny_model, graph, "l1")
    assert (one.criterion, one.others) == (other.criterion, ()) == ("l1", ())
    assert graph.space(criteria=["l1"]) == graph.space()


@pytest.mark.parametrize(
    "levels", [("filter", "stage"), ("stage",), ("filter", "stage", "block"), ("block",)]
)
def test_the_space_has_a_criterion_for_every_width_and_the_rest_as_before(graph, levels):
    space, plain = graph.space(levels=levels, criteria=NAMES), graph.space(levels=levels)
    widths = [d for d in space.dimensions if d.kind == "width"]
    chosen = [d for d in space.dimensions if d.kind == "criterion"]
    blocks = [d for d in space.dimensions if d.kind == "block"]
    assert (
        [d.of for d in chosen]
        == [d.name for d in widths]
        == [group.name for group in graph.prunable]
    )
    assert tuple(widths) == plain.dimensions[: len(widths)]
    assert [d.name for d in blocks] == [block.name for block in graph.blocks]
    assert {d.choices for d in blocks} == {(0, 1) if "block" in levels else (1,)}
    for width, criterion in zip(widths, chosen, strict=True):
        assert criterion.labels == (NAMES if len(width.choices) > 1 else NAMES[:1])
    assert len(space.descriptors) == len(space)
    assert space.descriptors[-len(widths) :] == space.descriptors[: len(widths)]
    assert space.full[: len(plain)] == plain.full
    graph.structure(space.full)


def test_slices_keep_what_each_groups_own_criterion_says(tiny_model, graph, batch, ranking):
    space, drawn = candidates(graph)
    count = len(graph.prunable)
    assert len({candidate[-count:] for candidate in drawn}) > 6
    for candidate in drawn:
        network = slice_model(tiny_model, graph, candidate, ranking)
        assert same(
            network,
            slice_model(tiny_model, graph, candidate[:-count], mixed(ranking, candidate[-count:])),
        )
    first = space.uniform(0.5)
    assert same(
        slice_model(tiny_model, graph, first, ranking),
        slice_model(tiny_model, graph, first[:count], ranking),
    )


def test_slices_compute_what_the_masked_network_does(tiny_model, graph, batch, ranking):
    model, x = tiny_model.double(), batch[0].double()
    count = len(graph.prunable)
    for candidate in candidates(graph, 6, ("filter", "stage"))[1]:
        network = slice_model(model, graph, candidate, ranking)
        expected = zeroed(model, graph, candidate[:count], mixed(ranking, candidate[-count:]))
        torch.testing.assert_close(network(x), expected(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("how", ["one_shot", "sequential"])
def test_shares_and_repairs_choose_likewise_and_survive_pickling(
    tiny_model, graph, batch, ranking, how
):
    x, count = batch[0], len(graph.prunable)
    source = Repaired(Sliced(tiny_model, graph, ranking), x, how)
    for candidate in candidates(graph, 4)[1]:
        own = mixed(ranking, candidate[-count:])
        alone = Repaired(Sliced(tiny_model, graph, own), x, how)
        network = source.network(candidate)
        assert same(network, alone.network(candidate[:-count]))
        assert same(pickle.loads(pickle.dumps(source)).network(candidate), network)
        skeleton, tensors = share(tiny_model, graph, candidate, ranking)
        sliced = slice_model(tiny_model, graph, candidate, ranking)
        with torch.no_grad():
            shared = torch.func.functional_call(skeleton, tensors, x)
            assert torch.equal(shared, sliced(x))


@pytest.mark.parametrize("name", COSTS)
def test_no_cost_depends_on_criteria(graph, name):
    space, drawn = candidates(graph)
    cost, count, rng = getattr(graph.costs, name), len(graph.prunable), np.random.default_rng(1)
    rows = np.array(drawn)
    expected = cost(rows[:, :-count])
    for _ in range(3):
        rows[:, -count:] = [space.sample(rng)[-count:] for _ in rows]
        np.testing.assert_array_equal(cost(rows), expected)


def test_mistakes_are_named(tiny_model, graph, ranking):
    count, blocks = len(graph.prunable), len(graph.blocks)
    shape = (2,) * count + (1,) * blocks
    for numbers, words in (
        (
            (4, *[0] * (count - 1)),
            f"criterion number 4, and the ranking is by {', '.join(NAMES)}, numbered from 0",
        ),
        ((-1, *[0] * (count - 1)), "has criterion -1; criteria are numbered 0, 1, 2"),
        ((0.5, *[0] * (count - 1)), "has criterion 0.5; criteria are numbered"),
    ):
        with pytest.raises((RankingError, CandidateError), match=words):
            slice_model(tiny_model, graph, (*shape, *numbers), ranking)
    with pytest.raises(
        RankingError, match=r"number 1, and the ranking is by l1, numbered from 0; rank by all"
    ):
        slice_model(
            tiny_model, graph, (*shape, *[1] * count), rank_channels(tiny_model, graph, "l1")
        )
    with pytest.raises(CandidateError, match="a candidate of this network has"):
        slice_model(tiny_model, graph, (*shape, 0), ranking)
    for criterion, words in (
        ([], "the list is empty"),
        (["l1", "l1"], "'l1' is there 2 times, once is enough"),
        (["l1", "taylr"], "unknown criterion 'taylr'; did you mean 'taylor'"),
        (["l1", "taylor"], "criterion 'taylor' looks at images and labels and there are none"),
    ):
        with pytest.raises(RankingError, match=words):
            rank_channels(tiny_model, graph, criterion)


def test_a_foreign_ranking_is_refused_whatever_its_others(tiny_model, graph, ranking):
    short = Ranking(
        criterion="l1",
        scores=ranking.scores,
        others=(Ranking(criterion="l2", scores=ranking.scores[:1]),),
    )
    with pytest.raises(RankingError, match="rank again"):
        short.check(graph)
