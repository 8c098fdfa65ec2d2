"""Criteria of what readers make of channels: the choices are those of slow ways that fit anew in every step."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Lasso as SlowLasso
from sklearn.linear_model import lars_path
from torch import nn

from abcsearch.channels.criteria import CRITERIA, reading
from abcsearch.channels.elimination import Fit, eliminate, inverted, regularised, rising_scores
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.moments import Sample, reader_moments, readers_of
from abcsearch.channels.outline import plan_of
from abcsearch.channels.pooling import FewSamplesWarning
from abcsearch.channels.ranking import rank_channels
from abcsearch.errors import RankingError
from tests.channels.criteria.known import (
    SHAPES,
    ZEROS,
    duplicated,
    lost,
    mixed,
    order_of,
    with_zeros,
)
from tests.channels.networks import CLASSES, programs
from tests.channels.oracle import few, images
from tests.channels.test_slicing import traced

EXACT = ["refit", "thinet", "thinet_tpami", "lasso"]
NAMES = [*EXACT, "pfa", "subspace", "discriminant"]


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("name", NAMES)
def test_zero_channels_go_first(name, shape):
    model, x = mixed(with_zeros(), **SHAPES[shape](12))
    assert sorted(order_of(model, x, name)[-5:]) == ZEROS


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("name", EXACT)
def test_readers_of_rank_r_need_r_channels(name, shape):
    mixing = torch.randn(12, 4, generator=torch.Generator().manual_seed(2))
    model, x = mixed(mixing, **SHAPES[shape](12))
    order = order_of(model, x, name)
    assert lost(model, x, order[:4]) < 1e-10
    assert lost(model, x, order[:3]) > 1e-3


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("name", ["refit", "pfa", "subspace"])
def test_of_duplicates_one_is_kept(name, shape):
    mixing, copies = duplicated()
    model, x = mixed(mixing, **SHAPES[shape](12))
    order = order_of(model, x, name)
    assert sorted(copies[order[:6]]) == list(range(6))


# --- refit ---


def brute(problems, channels, ridge=reading.RIDGE, total=None):
    """Scores from solving every fit anew for every channel that could go; problems are (second, weight, blocks)."""
    powers = [total or np.sum(weight * (second @ weight)) for second, weight, _ in problems]

    def error(kept):
        growth = 0.0
        for power, (second, weight, blocks) in zip(powers, problems, strict=True):
            s = second + ridge * np.trace(second) / len(second) * np.eye(len(second))
            others = [i for i in range(len(s)) if not any(i in block for block in blocks)]
            rows = others + [i for c in kept for i in blocks[c]]
            fit = (
                np.linalg.solve(s[np.ix_(rows, rows)], s[rows] @ weight)
                if rows
                else np.zeros((0, weight.shape[1]))
            )
            growth += (np.sum(weight * (s @ weight)) - np.sum((s[rows] @ weight) * fit)) / power
        return growth

    alive, scores = list(range(channels)), np.zeros(channels)
    while alive:
        errors = [error([c for c in alive if c != gone]) for gone in alive]
        scores[alive[int(np.argmin(errors))]] = min(errors)
        alive.pop(int(np.argmin(errors)))
    return scores


class Coupled(nn.Module):
    """A stage of two branches that a strided 3x3, a 1x1 behind a concatenation, and a grouped convolution read."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3), nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(5)
        self.plain, self.both = (
            nn.Conv2d(6, 5, 3, stride=2, bias=False),
            nn.Conv2d(16, 3, 1, bias=False),
        )
        self.last = nn.Linear(5 + 3, 2)

    def forward(self, x):
        stage, other = (self.a(x) + self.b(x)).relu(), self.c(x).relu()
        both = self.both(torch.cat([other, stage, stage - 1], 1))
        return self.last(
            torch.cat([self.norm(self.plain(stage)).mean((2, 3)), both.mean((2, 3))], 1)
        )


def test_refit_of_a_stage_makes_the_choices_of_fitting_anew():
    torch.manual_seed(0)
    model = Coupled().double().eval()
    x = torch.randn(20, 3, 7, 7, dtype=torch.float64)
    graph = trace_channels(model, x[:1])
    seen = reader_moments(model, graph, x)
    scores = rank_channels(model, graph, "refit", data=x).scores
    names = [group.name for group in graph.prunable]
    plain = model.plain.weight.detach().flatten(1).T.numpy()
    both = model.both.weight.detach().flatten(1).T.numpy()
    gram = seen["both"].gram[0].numpy()  # no constant is taken up behind it
    stage = [
        (seen["plain"].covariance[0].numpy(), plain, [range(9 * c, 9 * c + 9) for c in range(6)]),
        (gram, both, [[4 + c, 10 + c] for c in range(6)]),
    ]
    np.testing.assert_allclose(scores[names.index("a")], brute(stage, 6), rtol=1e-6)
    np.testing.assert_allclose(
        scores[names.index("c")], brute([(gram, both, [[c] for c in range(4)])], 4), rtol=1e-6
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_refit_of_what_is_too_large_looks_at_positions_apart(monkeypatch, groups):
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=groups))
        .double()
        .eval()
    )
    x = torch.randn(12, 2, 5, 5, dtype=torch.float64)
    graph = trace_channels(model, x[:1])
    channels = 8 // groups
    monkeypatch.setattr(reading, "WHOLE", channels * 9 - 1)
    reader = reader_moments(model, graph, x)["2"].reader
    with torch.no_grad():
        rows = Sample(reader, 0).inputs(model[2], model[1](model[0](x)), 0)
        weight = reader.split(model[2].weight.detach())
    problems = []
    for each, split in zip(rows, weight, strict=True):
        centred = (
            (each - each.mean(0)).unflatten(1, (channels, 9)).movedim(2, 1).flatten(0, 1).numpy()
        )
        second, outputs = centred.T @ centred / len(centred), split.movedim(1, 0).flatten(1).numpy()
        problems.append((second, outputs, [[c] for c in range(channels)]))
    total = sum(np.sum(outputs * (second @ outputs)) for second, outputs, _ in problems)
    scores = rank_channels(model, graph, "refit", data=x).scores[0]
    np.testing.assert_allclose(scores, brute(problems, channels, total=total), rtol=1e-6)


@given(st.integers(0, 2**16), st.integers(1, 6), st.integers(1, 3), st.integers(1, 4))
@few(30)
def test_elimination_is_fitting_anew(seed, channels, block, outputs):
    rng = np.random.default_rng(seed)
    size = channels * block + 2  # two inputs that never go
    rows = rng.normal(size=(int(rng.integers(1, 3 * size)), size)) @ np.diag(
        rng.lognormal(size=size)
    )
    second, weight = rows.T @ rows / len(rows), rng.normal(size=(size, outputs))
    blocks = [range(c * block, (c + 1) * block) for c in range(channels)]
    inverse = inverted(regularised(torch.from_numpy(second)[None], 1e-3))
    power, n = np.sum(weight * (second @ weight)), channels * block
    fit = Fit(inverse[:, :n, :n], torch.from_numpy(weight)[None, :n], block, 1 / power)
    expected = brute([(second, weight, blocks)], channels, 1e-3)
    np.testing.assert_allclose(eliminate([fit], channels), expected, rtol=1e-7)


def test_scores_rise_in_the_order_of_removal():
    scores = rising_scores([2, 0, 3, 1], [0.0, 0.0, 0.5, 0.25])
    assert np.argsort(-scores, kind="stable")[::-1].tolist() == [2, 0, 3, 1]
    assert len(set(rising_scores([0, 1, 2], [1.0, 0.0, 1.0]))) == 3
    np.testing.assert_allclose(scores, [0, 0.5, 0, 0.5])


# --- thinet, thinet_tpami, lasso ---


def shares(model, graph, x, path, channels):
    """What each channel adds to every output of a layer, (samples * outputs, channels)."""
    seen = reader_moments(model, graph, x)[path]
    with torch.no_grad():
        inputs = {}
        layer = dict(model.named_modules())[path]
        handle = layer.register_forward_hook(lambda module, args, output: inputs.update(x=args[0]))
        model(x)
        handle.remove()
        rows = Sample(seen.reader, 0).inputs(layer, inputs["x"], 0)
        split = seen.reader.split(layer.weight)
        rows = rows - rows.mean(dim=1, keepdim=True) if seen.reader.centred else rows
        each = torch.einsum("gsce,gnce->gsnc", rows.unflatten(2, (split.shape[2], -1)), split)
    each = each.flatten(0, 2).numpy() / np.sqrt(seen.rows)
    whole = np.sqrt(np.sum(each.reshape(-1, split.shape[2]).sum(1) ** 2))
    return np.stack([each[:, units].sum(1) for units in channels], 1) / whole


def naive_thinet(z):
    gone, errors = [], []
    while len(gone) < z.shape[1]:
        trials = {
            c: np.sum(z[:, [*gone, c]].sum(1) ** 2) for c in range(z.shape[1]) if c not in gone
        }
        gone.append(min(trials, key=trials.get))
        errors.append(trials[gone[-1]])
    return gone, errors


def naive_tpami(z):
    kept, y, errors = [], z.sum(1), []
    left = y
    while len(kept) < z.shape[1]:
        gains = {
            c: (z[:, c] @ left) ** 2 / (z[:, c] @ z[:, c])
            for c in range(z.shape[1])
            if c not in kept
        }
        kept.append(max(gains, key=gains.get))
        errors.append(left @ left)
        left = y - z[:, kept] @ np.linalg.lstsq(z[:, kept], y, rcond=None)[0]
    return kept[::-1], errors[::-1]


@pytest.mark.parametrize(
    ("name", "naive"), [("thinet", naive_thinet), ("thinet_tpami", naive_tpami)]
)
@pytest.mark.parametrize("seed", range(4))
def test_orders_from_gram_matrices_are_those_of_the_loops(name, naive, seed):
    torch.manual_seed(seed)
    model = Coupled().double().eval()
    x = torch.randn(20, 3, 7, 7, dtype=torch.float64)
    graph = trace_channels(model, x[:1])
    scores = rank_channels(model, graph, name, data=x).scores
    names = [group.name for group in graph.prunable]
    plain = shares(model, graph, x, "plain", [[c] for c in range(6)])
    both = shares(model, graph, x, "both", [[4 + c, 10 + c] for c in range(6)])
    for group, z in (
        ("a", np.concatenate([plain, both])),
        ("c", shares(model, graph, x, "both", [[c] for c in range(4)])),
    ):
        order, errors = naive(z)
        values = scores[names.index(group)]
        assert np.argsort(values).tolist() == order
        np.testing.assert_allclose(
            np.sort(values), np.maximum.accumulate(errors), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("name", "naive"), [("thinet", naive_thinet), ("thinet_tpami", naive_tpami)]
)
def test_conv_groups_add_up(name, naive, groups):
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=groups))
        .double()
        .eval()
    )
    x = torch.randn(12, 2, 5, 5, dtype=torch.float64)
    graph = trace_channels(model, x[:1])
    z = shares(model, graph, x, "2", [[c] for c in range(8 // groups)])
    assert rank_channels(model, graph, name, data=x).orders[0].tolist() == naive(z)[0][::-1]


@pytest.mark.parametrize("seed", range(4))
def test_lasso_is_the_path_on_the_samples(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3)).double().eval()
    x = torch.randn(12, 2, 5, 5, dtype=torch.float64)
    graph = trace_channels(model, x[:1])
    z = shares(model, graph, x, "2", [[c] for c in range(8)])
    values = rank_channels(model, graph, "lasso", data=x).scores[0]
    z *= np.sqrt(len(z))
    penalties, _, factors = lars_path(z, z.sum(1), method="lasso")
    expected = [
        penalties[np.flatnonzero(row)[0] - 1] / penalties[0] if row.any() else 0.0
        for row in factors
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-300)
    for share in (0.9, 0.5, 0.2, 0.1):
        fit = SlowLasso(
            alpha=share * penalties[0], fit_intercept=False, tol=1e-10, max_iter=10**6
        ).fit(z, z.sum(1))
        assert set(np.flatnonzero(fit.coef_)) <= set(np.flatnonzero(values >= share))


def test_lasso_ranks_by_strength_what_never_enters():
    scaled = np.array([1.0, 3, 0, 2])
    gram = np.outer(scaled, scaled)  # all alike: one is enough
    order, values = CRITERIA["lasso"].removal(gram)
    assert order == [2, 0, 3, 1]
    assert values[-1] == 1


# --- all of them ---


@few(15)
@given(programs(), st.integers(0, 2**16))
def test_scores_of_random_networks_are_an_order(program, seed):
    model = program.build(seed)
    graph, _ = traced(model)
    read = {reader.pattern for reader in readers_of(model, graph)}
    patterns = [plan_of(graph).patterns[pattern] for pattern in read]
    starts = plan_of(graph).starts
    for name in NAMES:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data = images(batch=40), torch.arange(40) % CLASSES
            scores = rank_channels(model, graph, name, data=data, seed=seed).scores
        said = " ".join(str(warning.message) for warning in caught)
        for start, group, values in zip(starts, graph.prunable, scores, strict=False):
            assert np.isfinite(values).all()
            seen = any(start in pattern for pattern in patterns)
            assert seen or f"{group.name}" in said
            if seen and values.any():
                assert len(np.unique(values)) == min(group.channels, np.count_nonzero(values) + 1)


@pytest.mark.parametrize("name", NAMES)
def test_bad_data_are_named(name):
    model, x = mixed(torch.eye(4))
    graph = trace_channels(model, x[:1])
    labels = torch.zeros(len(x), dtype=torch.int64)
    for data, words in (
        (None, rf"criterion '{name}' looks at images( and labels)? and there are none: pass data="),
        ((x[:0], labels[:0]), "data is empty"),
        ((x[:, :2], labels), "data do not fit the network"),
        (
            (x * float("nan"), labels),
            r"the input of 2 \(Conv2d\(4, 5, .* is not finite; check the trained weights",
        ),
    ):
        with pytest.raises(RankingError, match=words):
            rank_channels(model, graph, name, data=data)


@pytest.mark.parametrize("name", NAMES)
def test_where_nothing_reads_a_group_l1_stands_in(name):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x):
            x = self.first(x).relu()
            return self.third(nn.functional.linear(x, self.second.weight, self.second.bias).relu())

    torch.manual_seed(0)
    model, x = Functional(), torch.randn(9, 3)
    with pytest.warns(
        UserWarning, match=rf"criterion '{name}' does not apply to first; l1 is used there"
    ):
        ranking = rank_channels(
            model, trace_channels(model, x), name, data=(x, torch.arange(9) % 2)
        )
    np.testing.assert_array_equal(ranking.scores[0], ranking_of_l1(model, x))


@pytest.mark.parametrize(
    "name", ["refit", "thinet", "thinet_tpami", "lasso", "subspace", "pfa", "discriminant"]
)
def test_fewer_samples_than_channels_are_told(name):
    model, x = (
        nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 2)).eval(),
        torch.randn(9, 3),
    )
    with pytest.warns(FewSamplesWarning, match=r"9 \w+ are fewer than the 12 \w+ that 2 reads"):
        rank_channels(model, trace_channels(model, x), name, data=(x, torch.arange(9) % 2))


def ranking_of_l1(model, x):
    return rank_channels(model, trace_channels(model, x), "l1").scores[0]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_constant_or_dead_goes_first(name):
    torch.manual_seed(0)
    head = [nn.ReLU(), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), *head)
    with torch.no_grad():
        model[0].bias[:] = torch.tensor([9.0, -99, 9, -99, 9, 9])
        model[2].weight[:] = (
            0  # what is behind it is constant, and then there is nothing to tell channels apart by
        )
    x = torch.randn(30, 3, 4, 4)
    data = x, torch.arange(30) % 2
    scores = rank_channels(model, trace_channels(model, x[:1]), name, data=data).scores
    # Those do not look at the weights
    assert not scores[0].any() or name in ("pfa", "discriminant")
    assert not scores[1].any()
    torch.nn.init.normal_(model[2].weight)
    ranking = rank_channels(model, trace_channels(model, x[:1]), name, data=data)
    assert ranking.orders[0][-2:].tolist() == [1, 3]
    assert np.flatnonzero(ranking.scores[0] == 0).tolist() == [1, 3]
