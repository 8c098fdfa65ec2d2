"""Made-up landscapes of the benchmark of searchers, and the long search for their optima."""

import itertools

import numpy as np
import pytest

from abcsearch.budget import Budget
from abcsearch.space import Dimension, SearchSpace
from experiments.benchmarks.searchers import oracle
from experiments.benchmarks.searchers.landscapes import LAYOUTS, NOISE, Landscape
from experiments.benchmarks.searchers.play import Job, play
from experiments.benchmarks.searchers.problems import Problem


@pytest.fixture(params=LAYOUTS, scope="module")
def landscape(request):
    return Landscape(request.param, 0)


def drawn(landscape, n):
    rng = np.random.default_rng(0)
    return rng.integers(landscape.space.last_indices + 1, size=(n, len(landscape.space)))


def test_dimensions(landscape):
    assert len(landscape.space) in LAYOUTS
    widths = [d for d in landscape.space.dimensions if d.kind == "width"]
    assert {d.choices for d in widths} == {tuple(range(w, 10 * w + 1, w)) for w in (4, 8, 16)}
    assert [d.full for d in widths] == sorted(d.full for d in widths)
    assert len(landscape.space) - len(widths) == (12 if len(landscape.space) == 45 else 0)


def test_the_full_network_is_best(landscape):
    assert landscape.truths([landscape.space.full])[0] == pytest.approx(0.94)
    truths = landscape.truths(landscape.space.values(drawn(landscape, 500)))
    assert (truths > 0.1).all()
    assert (truths < 0.94).all()


def test_more_width_is_never_worse_and_never_cheaper(landscape):
    rows = drawn(landscape, 200)
    for axis, d in enumerate(landscape.space.dimensions):
        if d.kind == "width":
            more = rows.copy()
            more[:, axis] = np.minimum(more[:, axis] + 1, landscape.space.last_indices[axis])
            before, after = landscape.space.values(rows), landscape.space.values(more)
            assert (landscape.truths(after) >= landscape.truths(before) - 1e-12).all()
            for cost in (landscape.macs, landscape.params, landscape.flops):
                assert (cost(after) >= cost(before)).all()


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
def test_accuracy_of_a_uniform_chain_by_its_formula(ratio):
    landscape = Landscape(30, 0)
    scales, weights = landscape._scales, landscape._weights
    assert len(scales) == 31
    assert ((scales >= 0.08) & (scales <= 0.6)).all()
    assert weights.sum() == pytest.approx(1)
    product = 1.0
    for number, (s, a) in enumerate(zip(scales, weights, strict=True)):
        u = ratio**0.75 if number in (0, 30) else ratio  # image and classes are never pruned
        product *= ((1 - np.exp(-u / s)) / (1 - np.exp(-1 / s))) ** a
    assert landscape.truths([landscape.space.uniform(ratio)])[0] == pytest.approx(
        0.1 + 0.84 * product, rel=1e-12
    )


def test_a_bottleneck_costs_more_than_its_geometric_mean():
    landscape = Landscape(30, 0)
    full = list(landscape.space.full)
    full[5] = 4  # a tenth; u of the two convolutions beside it: sqrt(0.1 * sqrt(0.1))
    u, touched = 0.1**0.75, [5, 6]
    s, a = landscape._scales[touched], landscape._weights[touched]
    gains = (1 - np.exp(-u / s)) / (1 - np.exp(-1 / s))
    assert landscape.truths([full])[0] == pytest.approx(0.1 + 0.84 * (gains**a).prod(), rel=1e-12)


def test_a_dropped_block_costs_its_share_and_saves_its_convolutions():
    landscape = Landscape(45, 0)
    full = landscape.space.full
    for axis, d in enumerate(landscape.space.dimensions):
        if d.kind == "block":
            without = [*full[:axis], 0, *full[axis + 1 :]]
            cost = -np.log((landscape.truths([without])[0] - 0.1) / 0.84)
            assert 0.002 <= cost <= 0.06
            width, size = full[axis - 1], {40: 32, 80: 16, 160: 8}[full[axis - 1]]
            saved = landscape.params([full])[0] - landscape.params([without])[0]
            assert saved == 3 * 9 * width**2
            assert landscape.macs([full])[0] - landscape.macs([without])[0] == saved * size**2
            narrow = [*without[: axis - 2], 4 * width // 40, 4 * width // 40, *without[axis:]]
            # Widths of what is not there
            assert landscape.truths([narrow])[0] == landscape.truths([without])[0]


def test_costs_of_the_smallest_chain_by_hand():
    landscape = Landscape(30, 0)
    smallest = [4] * 10 + [8] * 10 + [16] * 10
    convolutions = {32: 3 * 4 + 9 * 4 * 4, 16: 4 * 8 + 9 * 8 * 8, 8: 8 * 16 + 9 * 16 * 16}
    macs = sum(9 * products * size**2 for size, products in convolutions.items()) + 16 * 10
    params = 9 * sum(convolutions.values()) + 16 * 10
    assert landscape.macs([smallest]).tolist() == [macs]
    assert landscape.flops([smallest]).tolist() == [2 * macs]
    assert landscape.params([smallest]).tolist() == [params]
    found = landscape(tuple(smallest), 0)
    assert (found.macs, found.params) == (macs, params)


def test_noise_is_a_function_of_structure_and_seed(landscape):
    one, other = map(tuple, landscape.space.values(drawn(landscape, 2)).tolist())
    again = Landscape(len(landscape.space), 0)
    assert landscape(one, 5) == again(one, 5)
    assert landscape(np.array(one), 5) == landscape(one, 5)
    noise = np.array(
        [
            [landscape(c, seed).fitness - landscape.truths([c])[0] for seed in range(200)]
            for c in (one, other)
        ]
    )
    assert len(np.unique(noise)) == noise.size
    assert abs(np.corrcoef(noise)[0, 1]) < 0.3
    assert noise.std() == pytest.approx(NOISE, rel=0.15)
    assert abs(noise.mean()) < 4 * NOISE / noise.size**0.5


def test_other_seeds_are_other_landscapes():
    half = [Landscape(30, 0).space.uniform(0.5)]
    assert len({float(Landscape(30, seed).truths(half)[0]) for seed in range(5)}) == 5


@pytest.mark.parametrize(
    "choices", [(1, 2), (1, 2, 3, 4, 5)]
)  # fewer structures than its population, and more
def test_the_oracle_finds_the_optimum_of_a_listed_problem(monkeypatch, tmp_path, choices):
    space = SearchSpace(tuple(Dimension(f"layer{i}", "width", choices) for i in range(5)))
    every = np.array(list(itertools.product(choices, repeat=5)))

    class Costs:
        macs = flops = params = staticmethod(lambda rows: (np.asarray(rows) ** 2).sum(axis=1))

    def truths(rows):
        return np.log(np.asarray(rows)) @ np.array([1, 3, 2, 5, 4]) / 30

    constraint = Budget(macs=0.5).bind(space, Costs())
    found = Problem(
        space, constraint, lambda *_: pytest.fail("noise is not for the oracle"), truths
    )
    monkeypatch.setattr(oracle, "problem", lambda *_: found)
    best = truths(every[constraint.violation(every) == 0]).max()
    assert best < truths(every).max()
    assert oracle.oracle("listed", tmp_path, restarts=1, generations=20) == best


def test_the_oracle_is_above_what_searchers_find(tmp_path):
    task = "tuning-landscape30-25"
    best = oracle.oracle(task, tmp_path, restarts=1, generations=40)
    assert best == oracle.oracle(task, tmp_path, restarts=1, generations=40)
    for name in ("random", "evolution"):
        run = play(Job(row=name, searcher=name, task=task, seed=0, evaluations=50), tmp_path)
        assert 0.1 < max(value for _, value in run.steps) < best < 0.94
