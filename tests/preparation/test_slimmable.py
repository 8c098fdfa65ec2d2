"""Slimmable: every step teaches slices of one set of weights, in the order that they have, and no other."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from abcsearch.budget import Budget, Constraint
from abcsearch.channels.fixed import Fixed, ranked_by
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.sharing import share
from abcsearch.data.split import Split
from abcsearch.evaluation.adaptive_bn import AdaptiveBN
from abcsearch.preparation.base import Trainer, run_preparation
from abcsearch.preparation.registry import make_preparation
from abcsearch.preparation.slimmable import Sampler, Sandwich
from abcsearch.rng import numpy_stream
from abcsearch.runs.settings import SearchSettings, SpaceOptions
from abcsearch.runs.task import Task
from abcsearch.testing import LessonContract, PreparationContract
from abcsearch.training.loop import train
from abcsearch.training.recipe import Recipe
from tests.channels.test_onednn import Recorded
from tests.preparation.test_sparse import STILL, orthogonal
from tests.training.toys import network

GAINS = (3.0, 2.0, 1.0, 0.5)


def additive(order):
    """Four channels, each an input that adds its own gain; half-trained, and ranked by an order."""
    inputs = orthogonal(64, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(4))
        model[2].weight.copy_(torch.tensor([GAINS]) / 2)
    model[1].weight.requires_grad = False
    graph = trace_channels(model, torch.zeros(1, 1, 1, 4))
    split = Split(inputs.reshape(64, 1, 1, 4), inputs @ torch.tensor([GAINS]).T)
    ranking = ranked_by("order", [np.array([-float(order.index(channel)) for channel in range(4)])])
    space = graph.space(alpha=1.0, step=0.25)
    sampler = Sampler(space, Constraint(space), widths="free")
    return (
        split,
        Sandwich(model, graph, ranking, sampler, objective="regression"),
        Fixed(model, graph, ranking),
    )


def losses_at(order):
    """Of every width, after training."""
    split, lesson, source = additive(order)
    train(lesson, split, Recipe(epochs=80, batch_size=64, lr=0.2, **STILL))
    with torch.no_grad():
        outputs = [source.network((width,))(split.images) for width in (1, 2, 3, 4)]
    return [F.mse_loss(output, split.labels).item() for output in outputs]


def test_every_width_loses_the_gains_that_it_drops_and_the_order_counts():
    """Sorted by gain: the squares of those left out. The other way round: those of the large ones, which is worse."""
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        dropped = [sum(GAINS[channel] ** 2 for channel in order[width:]) for width in (1, 2, 3, 4)]
        assert losses_at(order) == pytest.approx(dropped, abs=0.05)


@pytest.fixture(scope="module")
def task():
    return PreparationContract().task()


@pytest.mark.parametrize("distil", [True, False])
def test_a_step_is_that_of_a_hand_written_loop(task, distil):
    """The gradients of full network, smallest and random slices add up, each with its share."""
    model, ranking = copy.deepcopy(task.base).train(), task.rank(task.base)
    lesson = Sandwich(
        model,
        task.graph,
        ranking,
        Sampler(task.space, task.constraint, widths="free"),
        full_share=0.4,
        distil=distil,
    )
    recipe = Recipe(batch_size=16, device="cpu")
    images, labels = task.data.train.images[:16], task.data.train.labels[:16]
    lesson.begin(recipe, task.data.train)
    loss = lesson.step(images, labels, torch.Generator().manual_seed(5))
    found = [p.grad.clone() for p in model.parameters()]

    rng = numpy_stream(
        int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(5))), "sandwich"
    )
    drawn = [task.space.at([0] * len(task.space)), task.space.sample(rng), task.space.sample(rng)]
    again = copy.deepcopy(task.base).train()
    outputs = again(images)
    total = 0.4 * F.cross_entropy(outputs, labels)
    for candidate in drawn:
        skeleton, tensors = share(again, task.graph, candidate, ranking)
        wanted = outputs.detach().softmax(1) if distil else labels
        total = total + 0.2 * F.cross_entropy(
            torch.func.functional_call(skeleton, tensors, (images,)), wanted
        )
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-6)
    for one, other in zip(found, again.parameters(), strict=True):
        assert torch.allclose(one, other.grad, atol=1e-6)


def test_steps_keep_off_the_kernel_that_writes_past_its_buffer(tiny_model, tiny_data):
    """Slices of strided 1x1 convolutions have fewer channels than oneDNN takes at a time, the network itself or not."""
    model = tiny_model
    graph = trace_channels(model, tiny_data.example)
    assert any(
        m.stride == (2, 2) and m.kernel_size == (1, 1)
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    )
    sampler = Sampler(graph.space(), Constraint(graph.space()), widths="free")
    lesson = Sandwich(model, graph, rank_channels(model, graph), sampler)
    with Recorded() as seen:
        train(lesson, tiny_data.train, Recipe(epochs=1, batch_size=45, device="cpu"))
    assert len(seen.strides) >= 4
    assert all(strides == [1, 1] for strides in seen.strides)


def test_a_step_runs_as_many_networks_as_it_says(task):
    """And no more: what it costs is in the facts."""
    passes = []

    class Counted(nn.Sequential):
        def forward(self, x):
            if self.training:
                passes.append(1)
            return super().forward(x)

    model = Counted(*copy.deepcopy(task.base)).eval()
    own = Task.of(model, task.data, task.settings)
    passes.clear()
    recipe = {"epochs": 1, "batch_size": 20, "lr": 0.01, "device": "cpu"}
    made = run_preparation(
        make_preparation("slimmable", networks=5, recipe=recipe), own, Trainer(own.data.train, 0)
    )
    steps = len(own.data.train) // 20
    assert len(passes) == 5 * steps
    assert made.facts["forward passes per step"] == 5


@pytest.mark.parametrize("widths", ["budget", "free", "uniform"])
def test_what_is_drawn_is_of_the_space(tiny_model, tiny_data, widths):
    """Inside the budget where that is asked for; uniform ones have one place among the choices of every width."""
    space = SpaceOptions(levels=("filter", "stage", "block"))
    task = Task.of(
        tiny_model, tiny_data, SearchSettings(budget=Budget(macs=0.4), n_trials=1, space=space)
    )
    sampler = Sampler(task.space, task.constraint, widths=widths)
    drawn = [sampler.drawn(4, 0.5, np.random.default_rng(seed)) for seed in range(10)]
    for least, *others in drawn:
        assert least == task.space.at([0] * len(task.space))
        for candidate in others:
            task.space.check(candidate)
            assert widths != "budget" or task.constraint.allows(candidate)
    assert len({candidate for row in drawn for candidate in row[1:]}) > 5


def test_the_smallest_network_comes_down_from_the_largest(task):
    sampler = Sampler(task.space, task.constraint, widths="free", grow=0.5)
    last = task.space.last_indices
    rows = [
        sampler.drawn(30, progress, np.random.default_rng(0)) for progress in (0.0, 0.25, 0.5, 1.0)
    ]
    least = np.array([task.space.indices(row[0]) for row in rows])
    assert (least[0] == last).all()
    assert (least[2:] == 0).all()
    assert ((least[1] > 0) & (least[1] < last)).all()
    for row, floor in zip(rows, least, strict=True):
        assert all((task.space.indices(candidate) >= floor).all() for candidate in row)


def test_all_levels_learn_and_what_is_learned_shows(tiny_model, tiny_data):
    """On a residual network with stages and blocks: the smallest structure gets better, calibrated as ever."""
    space = SpaceOptions(levels=("filter", "stage", "block"))
    task = Task.of(
        tiny_model, tiny_data, SearchSettings(budget=Budget(macs=0.4), n_trials=1, space=space)
    )
    train(task.base, tiny_data.train, Recipe(epochs=3, batch_size=45, lr=0.05, device="cpu"))
    task = Task.of(task.base.eval(), tiny_data, task.settings)
    recipe = {"epochs": 8, "batch_size": 45, "lr": 0.05, "device": "cpu"}
    made = run_preparation(
        make_preparation("slimmable", recipe=recipe), task, Trainer(tiny_data.train, 0)
    )
    least = task.space.at([0] * len(task.space))
    before, after = (
        AdaptiveBN(s, tiny_data)(least, 0).metrics["neg_loss"] for s in (task.source, made.source)
    )
    assert after > before
    assert task.constraint.allows(made.starts[0])


def test_the_ranking_is_that_of_before(task):
    """The weights that come out would be ranked otherwise; candidates keep what was trained to be kept."""
    recipe = {"epochs": 6, "batch_size": 20, "lr": 0.2, "device": "cpu"}
    made = run_preparation(
        make_preparation("slimmable", recipe=recipe), task, Trainer(task.data.train, 0)
    )
    kept = [order.tolist() for order in made.source.ranking.orders]
    assert kept == [order.tolist() for order in task.rank(task.base).orders]
    assert kept != [order.tolist() for order in task.rank(made.source.model).orders]


def test_several_criteria_are_kept_with_the_weights(tiny_model, tiny_data):
    settings = SearchSettings(budget=Budget(macs=0.5), n_trials=1, criterion=("l1", "reader_l2"))
    task = Task.of(tiny_model, tiny_data, settings)
    recipe = {"epochs": 1, "batch_size": 45, "lr": 0.01, "device": "cpu"}
    made = run_preparation(
        make_preparation("slimmable", recipe=recipe), task, Trainer(tiny_data.train, 0)
    )
    states = {name: dict(module.state_dict()) for name, module in made.source.modules.items()}
    again = make_preparation("slimmable").source(task, states)
    assert again.ranking.criteria == ("l1", "reader_l2")
    for one, other in zip(again.ranking.others, made.source.ranking.others, strict=True):
        assert all((a == b).all() for a, b in zip(one.scores, other.scores, strict=True))


def test_the_network_as_it_was_may_teach_the_full_one(task):
    """A recipe that distils: then a step has one more pass, and no teacher is asked for."""
    recipe = {"epochs": 1, "batch_size": 20, "lr": 0.01, "device": "cpu", "distillation": 0.5}
    preparation = make_preparation("slimmable", recipe=recipe)
    preparation.check(task)
    made = run_preparation(preparation, task, Trainer(task.data.train, 0))
    assert made.facts["forward passes per step"] == 5


class TestSandwich(LessonContract):
    def make(self, widths="free", grow=0.5, **options):
        model = network(seed=0)
        graph = trace_channels(model, torch.zeros(1, 1, 8, 8))
        space = graph.space()
        sampler = Sampler(
            space, Budget(macs=0.5).bind(space, graph.costs), widths=widths, grow=grow
        )
        return Sandwich(model, graph, rank_channels(model, graph, "l1"), sampler, **options)

    def others(self):
        return [
            self.make(widths="budget"),
            self.make(grow=0.2),
            self.make(networks=3),
            self.make(full_share=0.3),
            self.make(distil=False),
        ]
