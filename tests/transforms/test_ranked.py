"""Widths and ranks in one search: costs are those of the network that comes out, full rank is exact, runs go on."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

from abcsearch import Budget, load, rank_channels, score, search, trace_channels
from abcsearch.channels.options import SpaceOptions
from abcsearch.channels.source import Sliced
from abcsearch.cli import app
from abcsearch.config import read_config
from abcsearch.errors import ConfigError, TraceError
from abcsearch.evaluation.sliced import repaired
from abcsearch.models.resnet import SmallResNet
from abcsearch.runs.config_run import run_config
from abcsearch.searchers.registry import SEARCHERS, make_searcher
from abcsearch.testing.toys import through_json, toy_fitness
from abcsearch.transforms.factors import Factorised, split
from abcsearch.transforms.ranked import Ranked, graph_of, sliced, with_products, with_ranks
from abcsearch.trial import Evaluation, Trial
from tests.channels.networks import programs
from tests.channels.oracle import assert_close, counted, counted_flops, few, images

pytestmark = pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
ASKED = SpaceOptions(alpha=1.0, levels=("filter", "stage", "block"), ranks=True)


def anything(graph, rng):
    """A candidate of any widths, blocks and ranks."""
    widths = [int(rng.integers(1, group.channels + 1)) for group in graph.prunable]
    blocks = [int(rng.integers(2)) for _ in graph.blocks]
    return (*widths, *blocks, *(int(rng.integers(1, rank.full + 1)) for rank in graph.ranks))


def ranked(model, example):
    """Graph and source of a network; the example is left out if none of its layers can be a product."""
    try:
        graph = graph_of(model, example, ASKED)
    except TraceError as error:
        assume("no layer of this network" not in str(error) and "nothing can" not in str(error))
        raise
    return graph, sliced(model, graph, rank_channels(model, graph, "random"))


@few(40)
@given(programs(), st.integers(0, 99))
def test_costs_are_those_that_are_counted_in_the_network(program, seed):
    model, one = program.build(), images(1)
    graph, source = ranked(model, one)
    rng = np.random.default_rng(seed)
    for candidate in (source.graph.space(1.0).full, anything(graph, rng), anything(graph, rng)):
        network = source.network(candidate)
        split_here = [p for p, m in network.named_modules() if isinstance(m, Factorised)]
        assert split_here == [*graph.factored(candidate)]
        costs = graph.costs
        macs, params = counted(network, one)
        assert costs.macs([candidate]).tolist() == [macs]
        assert costs.layer_macs([candidate]).sum() == macs
        assert costs.params([candidate]).tolist() == [params]
        assert costs.flops([candidate]).tolist() == [counted_flops(network, one)]
        again = trace_channels(network, one, check=False)
        if again.prunable:
            full = again.costs.peak_activation([[group.channels for group in again.prunable]])
            assert costs.peak_activation([candidate]).tolist() == full.tolist()


def product(first, second):
    """The weight that two weights of rank 1 stand for: of kernels, the height is the first's, or both are."""
    a, b = first[0], second[:, 0]
    if a.ndim == 1:
        return torch.outer(b, a)
    tall, wide = (max(a.shape[axis], b.shape[axis]) for axis in (1, 2))
    return torch.einsum("ihw,ohw->oihw", *(x.expand(-1, tall, wide) for x in (a, b)))


@few(25)
@given(programs(), st.integers(0, 99))
def test_at_the_rank_that_weights_have_products_are_exact(program, seed):
    """Weights of rank 1: whatever widths and ranks a candidate has, it computes what the plain slice does."""
    model, one = program.build(), images(1)
    graph, _ = ranked(model, one)
    with torch.no_grad():
        for layer in graph.ranks:
            first, second = split(model.get_submodule(layer.path), layer.method, (1,))
            model.get_submodule(layer.path).weight.copy_(product(first.weight, second.weight))
    ranking = rank_channels(model, graph, "random")
    candidate = anything(graph, np.random.default_rng(seed))
    plain = Sliced(model, graph, ranking)
    made = sliced(model, graph, ranking).network(candidate)
    with torch.no_grad():
        assert_close(made(one), plain.network(candidate)(one))
    full = with_products(plain).network(graph.space(1.0).full)
    assert torch.equal(full(one), model(one))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = SmallResNet(in_channels=1, classes=4, widths=(8, 12), depths=(1, 1)).eval()
    return model, torch.randn(1, 1, 8, 8)


def test_only_ranks_that_save_are_offered_and_the_full_one_is_the_layer(net):
    graph = graph_of(*net, SpaceOptions(ranks=True))
    space = graph.space()
    ranks = [d for d in space.dimensions if d.kind == "rank"]
    assert [d.name for d in ranks] == [f"rank of {layer.path}" for layer in graph.ranks]
    at = len(space) - len(ranks)
    for index, dimension in enumerate(ranks):
        for rank in dimension.choices:
            candidate = list(space.full)
            candidate[at + index] = rank
            path, saved = graph.ranks[index].path, graph.costs.macs([candidate, space.full])
            assert (graph.factored(candidate) == {path: rank}) == (rank < dimension.full)
            assert (saved[0] < saved[1]) == (rank < dimension.full)
    # In a narrow layer a rank may save nothing: it is whole, and shown so
    narrow = (
        *(1 for _ in graph.prunable),
        *(1 for _ in graph.blocks),
        *(d.choices[-2] for d in ranks),
    )
    split_there = graph.factored(narrow)
    assert set(split_there) < {layer.path for layer in graph.ranks}
    assert graph.settled(narrow)[at:] == tuple(
        split_there.get(layer.path, layer.full) for layer in graph.ranks
    )


def test_costs_never_fall_as_a_structure_grows(net):
    """What repairs and the growing of structures rely on."""
    graph = graph_of(*net, ASKED)
    space, rng = graph.space(1.0), np.random.default_rng(0)
    for cost in (graph.costs.macs, graph.costs.params, graph.costs.flops):
        for _ in range(200):
            here = rng.integers(space.last_indices + 1)
            up = np.minimum(
                here + np.eye(len(here), dtype=int)[rng.integers(len(here))], space.last_indices
            )
            less, more = cost(space.values([here, up]))
            assert less <= more


def test_layers_that_cannot_be_products_stay_and_it_is_said():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 4, 3)
    ).eval()
    example = torch.randn(1, 4, 8, 8)
    graph = with_ranks(trace_channels(model, example), model, example)
    assert [layer.path for layer in graph.ranks] == ["0"]
    assert graph.unranked == {
        "1": "it has 8 conv groups",
        "2": "it is a ConvTranspose2d, which is not split",
    }
    with pytest.raises(
        TraceError, match=r"no layer .* can be a product of smaller ones: 0: it has 4"
    ):
        graph_of(nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.ReLU()), example, ASKED)


@pytest.mark.parametrize("name", sorted(set(SEARCHERS) - {"given"}))
def test_every_searcher_searches_ranks_with_widths_inside_one_budget(name, net):
    """New structures inside space and budget; ranks vary; saved in between, it goes on to the same."""
    graph = graph_of(*net, SpaceOptions(ranks=True))
    space = graph.space()
    constraint = Budget(macs=0.5).bind(space, graph.costs)
    options = {"hidden": 32, "warmup": 12} if name == "ddpg" else {}

    def played(reload):
        searcher, trials = make_searcher(name, space, constraint, seed=3, **options), []
        while len(trials) < 40 and (asked := searcher.ask(5)):
            numbers = range(len(trials), len(trials) + 5)
            fitness = [Evaluation(fitness=toy_fitness(space, c)) for c in asked]
            batch = [Trial(*made) for made in zip(numbers, asked, fitness, strict=False)]
            searcher.tell(batch)
            trials += batch
            if reload:
                state = through_json(searcher.state_dict())
                searcher = make_searcher(name, space, constraint, seed=9, **options)
                searcher.load_state_dict(state)
        return [trial.candidate for trial in trials]

    trials = played(False)
    for candidate in trials:
        space.check(candidate)
    assert not constraint.violation(trials).any()
    ranks = np.array(trials)[:, [d.kind == "rank" for d in space.dimensions]]
    assert np.mean([len(np.unique(column)) > 1 for column in ranks.T]) > 0.5
    assert played(True) == trials


def test_repairs_come_before_products_and_go_along(net, tiny_data):
    model = SmallResNet(in_channels=1, classes=2, widths=(6, 8), depths=(1, 1)).eval()
    graph = graph_of(model, tiny_data.example, ASKED)
    source = sliced(model, graph, rank_channels(model, graph))
    fitted = repaired(source, tiny_data, "one_shot")
    assert isinstance(fitted, Ranked)
    candidate = graph.space().uniform(0.5)
    narrow = (*candidate[: len(candidate) - len(graph.ranks)], *(2 for _ in graph.ranks))
    paths = list(graph.factored(narrow))
    assert paths
    networks = [each.network(narrow) for each in (source, fitted)]
    assert all(isinstance(network.get_submodule(paths[-1]), Factorised) for network in networks)
    x = tiny_data.train.images[:20]
    aim, *errors = [(network(x) - model(x)).detach() for network in (model, *networks)]
    assert errors[1].norm() < errors[0].norm()
    assert aim.norm() == 0


CONFIG = """
n_trials = 16
baselines = ["uniform", "scratch_e", "rewound", "random_channels"]
model = {name = "small_resnet", widths = [6, 10], depths = [1, 1]}
data = {name = "digits"}
space = {ranks = true}
pretrain = {epochs = 2, batch_size = 128, lr = 0.1}
budget = {macs = 0.4}
searcher = {name = "evolution", population = 6, mutations = 3, crossovers = 3}
evaluator = {name = "adaptive_bn", calibration_images = 64, batch_size = 64}
finetune = {epochs = 1, batch_size = 128, lr = 0.02}
transform = [{name = "low_rank", ranks = 0.9}]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranked")
    (path / "ranks.toml").write_text(CONFIG)
    run_config(read_config(path / "ranks.toml"), path / "run")
    return path


def call(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def trials_in(folder):
    lines = (folder / "journal.jsonl").read_text().splitlines()
    return [re.sub(r'"(seconds|finished|at)": ?[\d.e+-]+', "", line)[18:] for line in lines]


def test_a_stopped_run_goes_on_to_the_same_trials(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run / "run", other)
    lines = (other / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (other / "journal.jsonl").write_bytes(b"".join(lines[:7]))
    for name in ("searcher.json", "best.json"):
        (other / name).unlink(missing_ok=True)
    result = run_config(read_config(run / "ranks.toml"), other)
    before = run_config(read_config(run / "ranks.toml"), run / "run")
    assert [(t.candidate, t.fitness) for t in result.trials] == [
        (t.candidate, t.fitness) for t in before.trials
    ]


@pytest.mark.usefixtures("no_pictures")
def test_a_run_from_its_config_to_its_files(run, tmp_path):
    """What a budget bounds is what the file costs; every command understands ranks."""
    folder = run / "run"
    said = call("search", run / "ranks.toml", "--dry-run", "--run-dir", tmp_path / "new")
    assert "7 layers may be products of two smaller ones, at ranks that save MACs" in said
    assert "rank of" in call("inspect", run / "ranks.toml")
    call("finetune", folder)
    said = call("report", folder, "--out", tmp_path / "page.html")
    assert "rank of" in (tmp_path / "page.html").read_text()
    result = run_config(read_config(run / "ranks.toml"), folder)
    task, best = result.task, result.best
    x = task.data.test.images[:30]
    split_there = task.graph.factored(best.candidate)
    assert split_there
    assert [p for p, m in result.model().named_modules() if isinstance(m, Factorised)] == list(
        split_there
    )
    outputs = []
    for kind in ("safetensors", "compressed"):
        call("export", folder, "--format", kind, "--link", "0", "--out", tmp_path / kind)
        loaded = load(tmp_path / kind)
        outputs.append(loaded(x))
        assert counted(loaded, task.data.example) == (best.evaluation.macs, best.evaluation.params)
        assert best.evaluation.macs <= 0.4 * task.graph.costs.macs([task.space.full])[0]
    assert torch.equal(*outputs)
    plan = json.loads((tmp_path / "safetensors/plan.json").read_text())
    assert set(plan["factorised"]) == set(split_there)
    widths = plan["info"]["widths"]
    for layer in task.graph.ranks:
        assert widths[layer.name] == [split_there.get(layer.path, layer.full), layer.full]
    file = tmp_path / "net.onnx"
    call("export", folder, "--link", "0", "--out", file)
    assert torch.allclose(load(file)(x), outputs[0], atol=1e-4)
    measured = json.loads(call("evaluate", tmp_path / "safetensors", "--json"))
    assert measured["macs"] == best.evaluation.macs
    again = call("inspect", folder / "export") if (folder / "export").exists() else ""
    assert "error" not in again


def test_from_python_with_uniform_widths_and_whole_layers(net, tiny_data, tmp_path):
    model = SmallResNet(in_channels=1, classes=2, widths=(6, 8), depths=(1, 1)).eval()
    result = search(
        model,
        tiny_data,
        budget=Budget(macs=0.5, params=0.7, peak_activation=0.95),
        n_trials=6,
        space=SpaceOptions(ranks=True),
        run_dir=tmp_path / "run",
    )
    task = result.task
    assert task.graph.factored(task.uniform()) == {}
    assert not task.constraint.violation([t.candidate for t in result.trials]).any()
    shown = result.widths
    assert {name for name in shown if name.startswith("rank of")} == {
        layer.name for layer in task.graph.ranks
    }
    assert 0 <= score(result.model(), tiny_data.test)["top1"] <= 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            'prepare = {name = "slimming"}',
            "a preparation .* says nothing of ranks: leave one of them out",
        ),
        ("iterate = {rounds = 2}", "a preparation"),
        ("budget = {latency_ms = 0.5}", "a budget of latency_ms .* bound macs"),
        (
            'evaluator = {name = "adaptive_bn", utilisation = 5}',
            "evaluator.utilisation .* another searcher than network_adjustment",
        ),
        ("space = {ranks = 3}", "ranks"),
    ],
)
def test_what_cannot_be_together_with_ranks_is_refused(change, words, tmp_path):
    key = change.partition(" ")[0]
    kept = [line for line in CONFIG.splitlines() if not line.startswith(f"{key} ")]
    (tmp_path / "bad.toml").write_text("\n".join([*kept, change]))
    with pytest.raises(ConfigError, match=words):
        read_config(tmp_path / "bad.toml")
