"""Controls: the winner's structure with other weights, or with other channels."""

import dataclasses
import json
import shlex
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from abcsearch.baselines.controls import Fresh, rewound
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.channels.source import check_source
from abcsearch.cli import app
from abcsearch.config import read_config
from abcsearch.errors import ConfigError, ModelError
from abcsearch.results.open_run import open_run, open_so_far
from abcsearch.runs.config_run import run_config
from abcsearch.training.loop import train
from tests.conftest import TINY_CONFIG

pytestmark = pytest.mark.usefixtures("no_pictures")

NAMES = ["scratch_e", "scratch_b", "rewound", "random_channels"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished search, with all controls."""
    path = tmp_path_factory.mktemp("controls")
    (path / "tiny.toml").write_text(TINY_CONFIG)
    settings = [
        "n_trials=3",
        "seed=5",
        f"baselines={NAMES}",
        "pretrain.epochs=3",
        "pretrain.lr=0.03",
    ]
    run_config(read_config(path / "tiny.toml", settings), path / "run")
    return path


@pytest.fixture(scope="module")
def run(made):
    return open_run(made / "run")


def states(*networks):
    return [network.state_dict() for network in networks]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_all_have_the_structure_of_the_winner_and_networks_of_their_own(run):
    assert [each.name for each in run.structures[:-1]] == ["full", *NAMES]
    for name in NAMES:
        structure = run.named(name)
        assert structure.candidate == run.winner.candidate
        check_source(run.source(structure))
    drawn = {name: run.source(run.named(name)).network(run.winner.candidate, 5) for name in NAMES}
    assert same(*states(drawn["scratch_e"], drawn["scratch_b"]))
    winner = run.result.task.source.network(run.winner.candidate)
    for name in ("scratch_e", "rewound", "random_channels"):
        assert not same(*states(drawn[name], winner))


def test_new_weights_are_drawn_from_the_seed(run):
    source, candidate = run.source(run.named("scratch_e")), run.winner.candidate
    first, again, other = states(*(source.network(candidate, seed) for seed in (5, 5, 6)))
    assert same(first, again)
    assert not same(first, other)
    for name, tensor in source.network(candidate, 5).named_buffers():
        if name.endswith("running_var"):
            assert (tensor == 1).all()


def test_rewound_is_the_winner_at_the_first_step(run):
    """The network as it was before any training, sliced as the winner is: by the ranking of the trained one."""
    task, candidate = run.result.task, run.winner.candidate
    early = run.config.model.build(run.config.seed).eval()
    expected = slice_model(early, task.graph, candidate, task.source.ranking)
    assert same(*states(run.source(run.named("rewound")).network(candidate), expected))


def test_random_channels_are_the_trained_networks(run):
    task, candidate = run.result.task, run.winner.candidate
    source = run.source(run.named("random_channels"))
    assert source.model is task.source.model
    assert source.ranking.criterion == "random"
    full = states(source.network(task.space.full), task.source.network(task.space.full))
    assert same(*full) or task.space.full != tuple(group.channels for group in task.graph.prunable)
    assert any(
        not np.array_equal(source.ranking.kept(i, width), task.source.ranking.kept(i, width))
        for i, width in enumerate(candidate[: len(task.graph.prunable)])
    )


def test_recipes_are_those_of_the_base_network(run):
    asked = run.config.finetune
    recipes = {name: run.recipe(run.named(name), asked) for name in NAMES}
    for name in ("scratch_e", "rewound"):
        assert (recipes[name].epochs, recipes[name].lr, recipes[name].threads) == (
            3,
            0.03,
            asked.threads,
        )
    task = run.result.task
    (full,) = task.graph.costs.macs([task.graph.space(1.0).full])
    (small,) = task.graph.costs.macs([run.winner.candidate])
    assert recipes["scratch_b"].epochs == int(3 * min(full / small, 2)) > 3
    assert recipes["random_channels"] == asked


def test_they_are_fine_tuned_reported_and_exported(made):
    def call(*arguments):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return done.output

    folder = made / "run"
    call(
        "finetune",
        folder,
        "--only",
        "scratch_b,random_channels",
        *shlex.split("--set finetune.epochs=1"),
    )
    scores = {
        name: json.loads((folder / "finetuned" / f"{name}.json").read_text())
        for name in ("scratch_b",)
    }
    assert scores["scratch_b"]["recipe"]["epochs"] > 3
    assert not (folder / "finetuned/rewound.json").exists()
    call("finetune", folder, "--only", "rewound", *shlex.split("--set finetune.epochs=1"))
    page = call("report", folder)
    assert all(name in page for name in ("scratch_b", "rewound", "random_channels"))
    call("export", folder, "--network", "rewound", "--out", made / "export")


def test_a_network_that_was_brought_has_no_early_weights(made, tmp_path):
    settings = ["n_trials=3", f"model.checkpoint={made / 'run/base.safetensors'}"]
    text = TINY_CONFIG.replace("pretrain = {epochs = 1, batch_size = 256}\n", "")
    (tmp_path / "tiny.toml").write_text(text)
    with pytest.raises(
        ConfigError, match=r"'rewound' begins with early weights, and this run has none"
    ):
        run_config(
            read_config(tmp_path / "tiny.toml", [*settings, 'baselines=["rewound"]']),
            tmp_path / "run",
        )
    assert not (tmp_path / "run/journal.jsonl").exists()
    config = read_config(tmp_path / "tiny.toml", [*settings, 'baselines=["scratch_e"]'])
    run_config(config, tmp_path / "run")
    opened = open_run(tmp_path / "run")
    assert opened.recipe(opened.named("scratch_e"), config.finetune) == config.finetune


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.second(self.first(x) * self.scale).mean((2, 3))


def test_a_module_that_draws_no_weights_is_named():
    model, x = Scaled().eval(), torch.rand(1, 3, 8, 8)
    graph = trace_channels(model, x)
    with pytest.raises(
        ModelError, match="the network itself has parameters and no method reset_parameters"
    ):
        Fresh(model, graph, rank_channels(model, graph))


@pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
def test_attention_draws_its_own_weights():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.attention, self.last = (
                nn.Linear(4, 8),
                nn.MultiheadAttention(8, 2),
                nn.Linear(8, 3),
            )
            self.hidden = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))

        def forward(self, x):
            x = self.embed(x)
            return self.last(self.hidden(self.attention(x, x, x)[0]))

    model, x = Attending().eval(), torch.rand(2, 5, 4)
    graph = trace_channels(model, x)
    source = Fresh(model, graph, rank_channels(model, graph))
    check_source(source)
    before, after = states(model, source.network(graph.space(1.0).full, 3))
    assert not torch.equal(before["attention.in_proj_weight"], after["attention.in_proj_weight"])


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    """A finished search that keeps the weights after the first epoch."""
    path = tmp_path_factory.mktemp("late")
    (path / "tiny.toml").write_text(TINY_CONFIG)
    settings = [
        "n_trials=2",
        "seed=5",
        'baselines=["rewound"]',
        "pretrain.epochs=3",
        "pretrain.lr=0.03",
        "rewind=1",
    ]
    config = read_config(path / "tiny.toml", settings)
    run_config(config, path / "run")
    return path, config


def test_late_rewinding_is_the_winner_after_that_epoch(late, tmp_path):
    path, config = late
    opened = open_run(path / "run")
    task, candidate = opened.result.task, opened.winner.candidate
    early = config.model.build(config.seed)
    seen = []

    def look(done, total, loss):
        if done == 1:
            seen.append({name: tensor.clone() for name, tensor in early.state_dict().items()})

    train(
        early, task.data.train, config.pretrain, seed=config.seed, stream="pretrain", on_epoch=look
    )
    early.load_state_dict(seen[0])
    expected = slice_model(early, task.graph, candidate, task.source.ranking)
    assert same(*states(opened.source(opened.named("rewound")).network(candidate), expected))
    assert not same(*states(early, config.model.build(config.seed)))


@pytest.mark.parametrize("epoch", [1, 2])
def test_early_weights_that_are_lost_or_were_not_kept_are_made_again(late, tmp_path, epoch):
    path, config = late
    folder = tmp_path / "run"
    shutil.copytree(path / "run", folder)
    kept = (folder / "early-1.safetensors").read_bytes()
    (folder / "early-1.safetensors").unlink()
    with pytest.raises(
        ConfigError, match=r"early-1.safetensors is missing: it is made again by: abcsearch resume"
    ):
        rewound(open_so_far(folder).result.task)
    run_config(dataclasses.replace(config, rewind=epoch), folder)
    made_again = (folder / f"early-{epoch}.safetensors").read_bytes()
    assert (made_again == kept) == (epoch == 1)


def test_a_training_that_is_killed_after_that_epoch_keeps_its_weights(late, tmp_path):
    """Between the checkpoint of the epoch and the early weights."""
    path, config = late
    done = []

    def stop(stage, epoch, total, note):
        done.append((stage, epoch))
        if len(done) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_config(config, tmp_path / "run", progress=stop)
    (tmp_path / "run/early-1.safetensors").unlink()
    run_config(config, tmp_path / "run", progress=stop)
    assert done[:3] == [("base network", 1), ("base network", 2), ("base network", 3)]
    kept = [
        (folder / "early-1.safetensors").read_bytes() for folder in (path / "run", tmp_path / "run")
    ]
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("value", "words"), [(9, "from 0 to 1, found 9"), (-1, "at least 0"), ("x", "rewind")]
)
def test_an_epoch_that_there_is_not(tmp_path, value, words):
    (tmp_path / "tiny.toml").write_text(TINY_CONFIG)
    with pytest.raises(ConfigError, match=words):
        read_config(tmp_path / "tiny.toml", [f"rewind={value}"])
    text = TINY_CONFIG.replace("pretrain = {epochs = 1, batch_size = 256}\n", "rewind = 1\n")
    (tmp_path / "tiny.toml").write_text(text)
    with pytest.raises(ConfigError, match="brought trained: there are no early weights"):
        read_config(tmp_path / "tiny.toml", ["model.checkpoint=x.pt"])
