"""PruningNet: begins as slicing, learns what depends on the ratios, takes the memory that it says."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.budget import Budget, Constraint
from abcsearch.channels.fixed import Fixed, ranked_by
from abcsearch.channels.generated import Generated, Generator, made_weights
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.config import read_config
from abcsearch.data.split import Split
from abcsearch.errors import AbcSearchError, ConfigError, ModelError, PreparationError
from abcsearch.evaluation.adaptive_bn import AdaptiveBN
from abcsearch.evaluation.options import AdaptiveBNOptions
from abcsearch.planning.dry_run import rehearse
from abcsearch.preparation import needs
from abcsearch.preparation.base import Trainer, run_preparation
from abcsearch.preparation.pruning_net import Generating
from abcsearch.preparation.registry import make_preparation
from abcsearch.preparation.slimmable import Sampler
from abcsearch.rng import numpy_stream
from abcsearch.runs.config_run import run_config
from abcsearch.runs.settings import SearchSettings, SpaceOptions
from abcsearch.runs.task import Task
from abcsearch.testing import LessonContract, PreparationContract
from abcsearch.training.loop import train
from abcsearch.training.recipe import Recipe
from tests.conftest import TINY_CONFIG
from tests.preparation.test_sparse import STILL, orthogonal
from tests.training.toys import network

SHORT = {"epochs": 1, "batch_size": 45, "lr": 0.05, "device": "cpu"}
FORMS = ["residual", "low_rank", "published"]


def prepared_on(task, **options):
    preparation = make_preparation("pruning_net", **{"recipe": SHORT, **options})
    preparation.check(task)
    return run_preparation(preparation, task, Trainer(task.data.train, 0))


def task_of(model, data, **settings):
    return Task.of(
        model, data, SearchSettings(**{"budget": Budget(macs=0.5), "n_trials": 1, **settings})
    )


class Still(Trainer):
    """Trains nothing: what is prepared is as it begins."""

    def _train(self, lesson, recipe, name, images):
        return super()._train(
            lesson, Recipe(epochs=1, lr=1e-30, weight_decay=0, batch_size=45, **CPU), name, images
        )


CPU = {"device": "cpu", "warmup_epochs": 0}


@pytest.mark.parametrize("form", ["residual", "low_rank"])
def test_before_it_learns_every_candidate_is_as_fit_as_its_slice(tiny_model, tiny_data, form):
    """Bit for bit, with blocks kept and dropped."""
    task = task_of(
        tiny_model.eval(), tiny_data, space=SpaceOptions(levels=("filter", "stage", "block"))
    )
    made = run_preparation(
        make_preparation("pruning_net", form=form, hidden=4), task, Still(tiny_data.train, 0)
    )
    # A step of nearly nothing leaves what is 0 nearly so: back to 0, as it began.
    for name, tensor in made.source.generator.state_dict().items():
        if ".outputs." in name:
            assert float(tensor.abs().max()) < 1e-20
            tensor.zero_()
    options = AdaptiveBNOptions(repair="none", calibration_images=64, batch_size=32)
    plain = AdaptiveBN(
        Fixed(made.source.model, task.graph, made.source.ranking), tiny_data, options
    )
    ours, rng = AdaptiveBN(made.source, tiny_data, options), np.random.default_rng(0)
    for candidate in [task.space.sample(rng) for _ in range(6)]:
        assert ours(candidate, 0).metrics == plain(candidate, 0).metrics


def copies():
    """Four channels, each the same sum of the inputs, of which the first k are kept, or the last k: sums over them.

    The target is one such sum, so that the best weights are 1 / k of k kept.
    """
    inputs = orthogonal(64, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[1].weight.fill_(0.5)
        model[2].weight.fill_(0.2)
    model[1].weight.requires_grad = False
    graph = trace_channels(model, torch.zeros(1, 1, 1, 4))
    last = ranked_by("last", [np.arange(4.0)])
    ranking = replace(ranked_by("first", [-np.arange(4.0)]), others=(last,))
    space = graph.space(alpha=1.0, step=0.25, criteria=("first", "last"))
    sampler = Sampler(space, Constraint(space), widths="free")
    return (
        Split(inputs.reshape(64, 1, 1, 4), inputs.sum(dim=1, keepdim=True) / 2),
        model,
        graph,
        ranking,
        sampler,
    )


KEPT = [(width, last) for width in (1, 2, 3, 4) for last in (0, 1)]


def mean_loss(source, split):
    """Over all structures."""
    with torch.no_grad():
        outputs = [source.network(candidate)(split.images) for candidate in KEPT]
    return float(np.mean([float((output - split.labels).square().mean()) for output in outputs]))


@pytest.mark.parametrize("form", FORMS)
def test_weights_that_should_follow_the_ratio_do(form):
    """No one set of weights does for all structures: what the best of them loses is a problem of least squares."""
    rows = np.array(
        [[(i >= 4 - width) if last else (i < width) for i in range(4)] for width, last in KEPT],
        float,
    )
    (residue,) = np.linalg.lstsq(rows, np.ones(len(rows)))[1]
    supernet = residue / len(rows)
    split, model, graph, ranking, sampler = copies()
    generator = Generator(made_weights(model, graph, [0]), hidden=16, low_rank=form == "low_rank")
    generator.drawn(torch.Generator().manual_seed(0), outputs=form == "published")
    lesson = Generating(
        model,
        graph,
        ranking,
        sampler,
        generator,
        from_full=form != "published",
        objective="regression",
    )
    # Published weights begin as noise: at the rate of the others, the first steps leave all hidden units at 0.
    lr = 0.01 if form == "published" else 0.05
    train(lesson, split, Recipe(epochs=400, batch_size=64, lr=lr, **STILL))
    if form == "published":
        weights = generator.weights(model, graph, (4,), from_full=False)
        with torch.no_grad():
            model[2].weight.copy_(weights["2.weight"])
    assert mean_loss(Generated(model, graph, ranking, generator), split) < supernet / 3
    assert mean_loss(Fixed(model, graph, ranking), split) > supernet * 0.999


@pytest.fixture(scope="module")
def task():
    return PreparationContract().task()


@pytest.mark.parametrize("from_full", [True, False])
def test_a_step_is_that_of_a_hand_written_loop(task, from_full):
    """The structure that its draws give, sliced out of the weights that are made for it, and the loss on labels."""
    model, ranking = copy.deepcopy(task.base).train(), task.rank(task.base)
    generator = Generator(made_weights(model, task.graph, [0, 1]), hidden=3)
    generator.drawn(torch.Generator().manual_seed(0), outputs=True)
    sampler = Sampler(task.space, task.constraint, widths="free")
    lesson = Generating(model, task.graph, ranking, sampler, generator, from_full=from_full)
    batch = task.data.train.part(torch.arange(20)).loaded()
    lesson.begin(Recipe(epochs=1, **CPU), task.data.train)
    loss = lesson.step(batch.images, batch.labels, torch.Generator().manual_seed(5))
    draws = torch.Generator().manual_seed(5)
    candidate = sampler.one(
        numpy_stream(int(torch.randint(2**62, (), generator=draws)), "pruning_net")
    )
    other = copy.deepcopy(model)
    weights = generator.weights(model, task.graph, candidate, from_full=from_full)
    with torch.no_grad():
        for name, weight in weights.items():
            dict(other.named_parameters())[name].copy_(weight)
    small = slice_model(other, task.graph, candidate, ranking)
    assert torch.equal(
        loss.detach(), nn.functional.cross_entropy(small(batch.images), batch.labels).detach()
    )
    loss.backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())


def test_it_learns_and_one_pass_a_step_is_all(tiny_model, tiny_data):
    """The smallest structure gets better, on a residual network with stages and blocks."""
    space = SpaceOptions(levels=("filter", "stage", "block"))
    train(tiny_model, tiny_data.train, Recipe(epochs=3, batch_size=45, lr=0.05, device="cpu"))
    task = task_of(tiny_model.eval(), tiny_data, space=space)
    made = prepared_on(task, recipe={**SHORT, "epochs": 8}, hidden=8)
    assert made.facts["forward passes per step"] == 1
    assert made.facts["change of weights, from the full to the smallest structure"] > 0.01
    assert task.constraint.allows(made.starts[0])
    one = task.uniform()
    before, after = (
        AdaptiveBN(s, tiny_data)(one, 0).metrics["neg_loss"] for s in (task.source, made.source)
    )
    assert after > before
    assert (
        made.facts["loss of the first and the last epoch"][1]
        < made.facts["loss of the first and the last epoch"][0]
    )


def test_published_weights_forget_the_trained_ones_and_keep_the_first_channels(task):
    other = copy.deepcopy(task.base)
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.mul_(-3)
    tasks = [task, task_of(other, task.data, seed=task.settings.seed)]
    made = [prepared_on(own, form="published", hidden=4) for own in tasks]
    assert [order.tolist() for order in made[0].source.ranking.orders] == [[*range(6)], [*range(8)]]
    states = [dict(own.source.modules["generator"].state_dict()) for own in made]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    names = [name for name, _ in task.base.named_parameters()]
    tensors = [dict(own.source.model.named_parameters()) for own in made]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in names)


def test_full_is_the_network_and_its_teacher_the_one_of_before(task):
    """Whatever the form, its network is what is made of all channels; with a teacher there is one more pass."""
    for form in FORMS:
        made = prepared_on(task, form=form, hidden=4, recipe={**SHORT, "distillation": 0.5})
        full = made.source.network(task.space.full)
        images = task.data.validation.images
        assert torch.equal(full(images), made.source.model(images))
        assert made.facts["forward passes per step"] == 2


def test_several_criteria_are_kept_with_the_weights(tiny_model, tiny_data):
    own = task_of(tiny_model, tiny_data, criterion=("l1", "reader_l2"))
    made = prepared_on(own, hidden=2)
    states = {name: dict(module.state_dict()) for name, module in made.source.modules.items()}
    again = make_preparation("pruning_net", hidden=2).source(own, states)
    candidate = own.space.at(
        [len(d.choices) - 1 if d.kind == "criterion" else 0 for d in own.space.dimensions]
    )
    images = tiny_data.validation.images
    assert again.ranking.criteria == ("l1", "reader_l2")
    assert torch.equal(again.network(candidate)(images), made.source.network(candidate)(images))
    with pytest.raises(
        PreparationError, match=r"pruning_net ranks channels by their positions .* set one name"
    ):
        make_preparation("pruning_net", form="published").check(own)


def test_widths_without_a_choice_are_not_read(tiny_model, tiny_data):
    own = task_of(
        tiny_model, tiny_data, space=SpaceOptions(levels=("filter",)), budget=Budget(macs=0.9)
    )
    made = prepared_on(own, hidden=2)
    free = [i for i, dimension in enumerate(own.space.dimensions) if len(dimension.choices) > 1]
    assert 0 < len(free) < len(own.space)
    assert {group for one in made.source.generator.made for group in one.groups} == set(free)


def test_where_nothing_can_be_made_is_said(tiny_model, tiny_data):
    blocks = task_of(
        tiny_model, tiny_data, space=SpaceOptions(levels=("block",)), budget=Budget(macs=0.9)
    )
    with pytest.raises(
        PreparationError, match=r"no width of the space has a choice: search widths .* slimmable"
    ):
        make_preparation("pruning_net").check(blocks)
    for module in tiny_model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.requires_grad_(False)
    with pytest.raises(PreparationError, match=r"none that is trained .* thaw them"):
        make_preparation("pruning_net").check(task_of(tiny_model, tiny_data))


def test_published_weights_need_batch_norms_and_residual_ones_do_not(tiny_data):
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2)]
    own = task_of(nn.Sequential(*layers), tiny_data)
    with pytest.raises(
        PreparationError, match=r'no scale of their own, .* no batch norms .* form = "residual"'
    ):
        make_preparation("pruning_net", form="published").check(own)
    for form in ("residual", "low_rank"):
        assert own.constraint.allows(prepared_on(own, form=form).starts[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "residul"}, "pruning_net: .*did you mean 'residual'"),
        ({"hidden": 0}, "pruning_net: hidden.*1"),
        ({"hidden": 1.5}, "pruning_net: hidden.*whole number"),
        ({"widths": "fre"}, "did you mean 'free'"),
        ({"recipe": {"epoch": 3}}, "did you mean 'epochs'"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        make_preparation("pruning_net", **options).check(PreparationContract().task())


def test_a_training_that_diverges_says_what_to_lower(task):
    with pytest.raises(
        ModelError, match=r"preparation PruningNet: the training loss is (nan|inf) .* lower lr"
    ):
        prepared_on(task, recipe={**SHORT, "epochs": 3, "lr": 1e25, "batch_size": 16})


@pytest.mark.parametrize("form", FORMS)
def test_what_it_needs_is_what_it_takes(task, form):
    """The numbers, counted in what it makes; more hidden units need more, low rank little."""
    made = prepared_on(task, form=form, hidden=5)
    told = make_preparation("pruning_net", form=form, hidden=5, recipe=SHORT).needs(task)
    numbers = sum(tensor.numel() for tensor in made.source.generator.parameters())
    own = sum(tensor.numel() for tensor in task.base.parameters())
    assert (
        f"makes 3 weights by a generator of {numbers:,} numbers, {numbers / own:.3g} times"
        in told.text
    )
    assert made.facts["numbers that make them"] == numbers
    assert told.disk == 4 * numbers
    # Weights, gradients and momentum; the first and the last three times while they are saved; the last weights.
    assert 4 * (numbers + own) * (3 + 6 + 1) <= told.memory <= 4 * (numbers + own) * 10 + 8 * own
    more = make_preparation("pruning_net", form=form, hidden=6, recipe=SHORT).needs(task)
    assert more.memory > told.memory
    adam = make_preparation(
        "pruning_net", form=form, hidden=5, recipe={**SHORT, "optimizer": "adamw"}
    ).needs(task)
    assert adam.memory > told.memory


TINY = TINY_CONFIG.replace("n_trials = 24", "n_trials = 4").replace(
    'baselines = ["uniform", "random"]', ""
)
PREPARE = 'prepare = {name = "pruning_net", hidden = 4, recipe = {epochs = 1, batch_size = 256, lr = 0.02}}\n'


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.toml").write_text(TINY + PREPARE)
    return tmp_path / "config.toml"


def test_it_is_told_first_and_refused_where_memory_is_short(config, tmp_path, monkeypatch):
    """By the dry run and by the run, before the base network is trained; what has been prepared needs none any more."""
    own = read_config(config)
    told = rehearse(own, tmp_path / "run", patience=0).lines
    line = next(line for line in told if "by a generator of" in line)
    assert line.startswith("  pruning_net makes ")
    assert " kB of the run folder" in line
    monkeypatch.setattr(needs, "free_memory", lambda: 100_000)
    words = r"takes .* of memory, and 100 kB are free; set form = \"low_rank\" \(.*\), or hidden below 4, or take"
    for attempt in (rehearse, run_config):
        with pytest.raises(PreparationError, match=f"PruningNet: pruning_net makes .*{words}"):
            attempt(own, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    run_config(own, tmp_path / "run")
    assert "preparing: pruning_net makes " in (tmp_path / "run" / "log.txt").read_text()
    monkeypatch.setattr(needs, "free_memory", lambda: 100_000)
    run_config(own, tmp_path / "run")


def test_the_winner_is_fine_tuned_with_the_weights_made_for_it_and_other_settings_are_refused(
    config, tmp_path
):
    result = run_config(read_config(config), tmp_path / "run")
    best, source = result.best.candidate, result.task.source
    assert isinstance(source, Generated)
    built, made = result.build(best), source.network(best)
    names = [one.name for one in source.generator.made]
    tensors, expected = dict(built.named_parameters()), dict(made.named_parameters())
    assert all(torch.equal(tensors[name], expected[name]) for name in names)
    plain = dict(slice_model(source.full, source.graph, best, source.ranking).named_parameters())
    assert not any(torch.equal(tensors[name], plain[name]) for name in names)
    config.write_text(TINY + PREPARE.replace("hidden = 4", "hidden = 5"))
    with pytest.raises(AbcSearchError, match="hidden"):
        run_config(read_config(config), tmp_path / "run")
    # Weights of another generator, with a record that vouches for them: by hand, of course.
    states = {name: dict(module.state_dict()) for name, module in source.modules.items()}
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_preparation("pruning_net", hidden=5).source(result.task, states)


class TestGenerating(LessonContract):
    def make(self, widths="free", from_full=True, hidden=3, criterion="l1"):
        model = network(seed=0)
        graph = trace_channels(model, torch.zeros(1, 1, 8, 8))
        space = graph.space()
        sampler = Sampler(space, Budget(macs=0.5).bind(space, graph.costs), widths=widths)
        generator = Generator(made_weights(model, graph, [0]), hidden=hidden)
        generator.drawn(torch.Generator().manual_seed(0))
        return Generating(
            model,
            graph,
            rank_channels(model, graph, criterion),
            sampler,
            generator,
            from_full=from_full,
        )

    def others(self):
        return [
            self.make(widths="budget"),
            self.make(from_full=False),
            self.make(hidden=4),
            self.make(criterion="l2"),
        ]
