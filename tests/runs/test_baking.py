"""A network whose weights are computed, the whole way: searched as a plain copy, tuned, exported, loaded, pruned again."""

import json

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from typer.testing import CliRunner

from abcsearch import (
    Budget,
    Data,
    Recipe,
    SpaceOptions,
    export,
    finetune,
    load,
    resume,
    search,
)
from abcsearch.channels.baking import computed
from abcsearch.cli import app
from abcsearch.errors import CheckpointError, ExampleError, ExportError, RunError
from abcsearch.results.open_run import open_run
from abcsearch.rng import torch_seeded
from abcsearch.runs.disk.weights import load_brought
from tests.conftest import TINY_CONFIG
from tests.records import rewrite

pytestmark = [
    pytest.mark.usefixtures("no_pictures"),
    pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:tensors of the network are computed:UserWarning"),
    pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning"),
]


def masked(layer):
    return prune.l1_unstructured(layer, "weight", 0.3)


KINDS = {
    "hook": weight_norm,
    "weight": parametrizations.weight_norm,
    "spectral": spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "masked": masked,
}


def named(kind="weight"):
    """A network of 8x8 images, for 10 classes, of which two layers compute their weights."""
    made = KINDS[kind]
    layers = [made(nn.Conv2d(1, 8, 3)), nn.BatchNorm2d(8), nn.ReLU(), made(nn.Conv2d(8, 12, 3))]
    layers += [nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(12, 10))


@pytest.fixture(scope="module")
def data():
    draws = torch.Generator().manual_seed(0)
    x, y = torch.randn(90, 1, 8, 8, generator=draws), torch.arange(90) % 10
    return Data.from_tensors((x[:60], y[:60]), (x[60:], y[60:]), validation=0.3)


def run(model, data, folder, n_trials=3, **settings):
    evaluator = {"name": "adaptive_bn", "batch_size": 16, "calibration_images": 32}
    usual = {"budget": Budget(macs=0.5), "searcher": "random", "evaluator": evaluator, "seed": 1}
    return search(model, data, n_trials=n_trials, run_dir=folder, **{**usual, **settings})


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_searched_tuned_exported_and_pruned_again(kind, data, tmp_path):
    with torch_seeded(0, "baking"):
        model = named(kind)
    model(data.example).sum().backward()  # after which what a hook computed has a history
    result = run(model, data, tmp_path / "run")
    assert [d.name for d in result.task.space.dimensions] == ["0", "3"]
    assert resume(tmp_path / "run", model=model, data=data, n_trials=4).trials[:3] == result.trials
    recipe = Recipe(epochs=1, lr=0.01, batch_size=16, distillation=0.5)
    tuned = finetune(result.model(), data, recipe, teacher=model).model
    where = tmp_path / "export"
    export(tuned, where, example_input=data.example, constructor=named, options={"kind": kind})
    loaded = load(where)
    torch.testing.assert_close(loaded(data.example), tuned(data.example), rtol=0, atol=0)
    again = run(loaded, data, tmp_path / "again")
    export(
        again.model(),
        tmp_path / "twice",
        example_input=data.example,
        constructor=named,
        options={"kind": kind},
    )
    torch.testing.assert_close(load(tmp_path / "twice")(data.example), again.model()(data.example))
    assert list(computed(model)) == ["0", "3"]  # as it was brought


def test_left_as_they_are_they_are_fixed_and_an_older_run_stays_so(data, tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 20, 1), nn.ReLU(), nn.Conv2d(20, 1, 1), named()).eval()
    fixed = {"space": SpaceOptions(bake=False)}
    before = run(model, data, tmp_path / "old", 2, budget=Budget(params=0.99), **fixed)
    assert [d.name for d in before.task.space.dimensions] == ["0"]
    with pytest.raises(RunError, match=r"space.bake"):
        run(model, data, tmp_path / "old", 3, budget=Budget(params=0.99))

    rewrite(tmp_path / "old/run.json", forget)
    for n_trials in (3, 4, 5):
        longer = resume(tmp_path / "old", model=model, data=data, n_trials=n_trials)
        assert longer.trials[:2] == before.trials
        assert len(longer.trials) == n_trials
        assert computed(longer.task.base)
    assert run(model, data, tmp_path / "old", 6, budget=Budget(params=0.99)).trials[:5] == (
        longer.trials
    )


def forget(record):
    """Makes settings those of a version without the option."""
    del record["settings"]["space"]["bake"]


def test_a_forward_that_reads_what_weights_are_computed_from_is_told_what_to_do(data, tmp_path):
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = named()

        def forward(self, x):
            norms = self.layers[0].parametrizations.weight.original0
            return self.layers(x * norms.mean())

    with pytest.raises(ExampleError, match=r"were made plain: .* set bake = false in \[space\]"):
        run(Reading(), data, tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "prepare"),
    [
        ("", ""),
        ("budgets = [{macs = 0.7}, {macs = 0.5}]", ""),
        ("", "[prepare]\nname = 'slimming'"),
    ],
)
def test_an_older_run_of_a_config_goes_on_again_and_again(text, prepare, tmp_path, monkeypatch):
    """Also where nothing is computed: its settings stay those that it was begun with."""
    monkeypatch.chdir(tmp_path)
    config = TINY_CONFIG.replace("budget = {macs = 0.5}", text or "budget = {macs = 0.5}")
    config = config.replace('"uniform", "random"', '"uniform"')
    recipe = "\nrecipe = {epochs = 1, batch_size = 256}\n" if prepare else ""
    (tmp_path / "old.toml").write_text(config + prepare + recipe)
    as_before = ("--set", "space.bake=false", "--set", "n_trials=4")
    call("search", "old.toml", "--run-dir", "old", *as_before)
    for name in ("run.json", "front.json"):
        for path in (tmp_path / "old").glob(f"**/{name}"):
            if "settings" in json.loads(path.read_text()):
                rewrite(path, forget)
    marks = {p.name: p.read_bytes() for p in (tmp_path / "old").glob("prepared*")}
    for n_trials in (4, 5, 6):
        call("search", "old.toml", "--run-dir", "old", "--set", f"n_trials={n_trials}")
        call("resume", "old")
    assert marks == {p.name: p.read_bytes() for p in (tmp_path / "old").glob("prepared*")}
    for path in (tmp_path / "old").glob("**/run.json"):
        assert "bake" not in json.loads(path.read_text())["settings"]["space"]
    if not text and not prepare:
        call(
            "search",
            "old.toml",
            "--run-dir",
            "new",
            "--set",
            'known=["old"]',
            "--set",
            "n_trials=4",
        )


def call(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = 'model = {name = "tests.runs.test_baking:named", kind = "hook"}'
    text = TINY_CONFIG.replace(
        'model = {name = "small_resnet", widths = [4, 6], depths = [1, 1]}', model
    )
    text = text.replace('"uniform", "random"', '"uniform", "rewound", "scratch_e"')
    (tmp_path / "run.toml").write_text(text)
    page = call("inspect", "run.toml")
    assert "parametrised" not in page
    call("search", "run.toml", "--run-dir", "run", "--set", "n_trials=5", "--set", "rewind=1")
    call("finetune", "run")
    call("report", "run")
    call("export", "run", "--out", "pruned")
    finished = open_run("run")
    assert computed(finished.result.task.base) == {}
    # The weights of its base network are those of another run, and of a network as it is built
    begun = f"model.checkpoint={tmp_path / 'run/base.safetensors'}"
    bare = text.replace("pretrain = {epochs = 1, batch_size = 256}\n", "").replace(
        '"rewound", ', ""
    )
    (tmp_path / "bare.toml").write_text(bare)
    call("search", "bare.toml", "--run-dir", "other", "--set", "n_trials=5", "--set", begun)
    assert torch.equal(
        open_run("other").result.task.base[0].weight, finished.result.task.base[0].weight
    )
    call("evaluate", "run/base.safetensors", "--config", "run.toml")
    torch.save(named("hook").state_dict(), "mine.pt")
    call(
        "search",
        "bare.toml",
        "--run-dir",
        "mine",
        "--set",
        "n_trials=3",
        "--set",
        "model.checkpoint=mine.pt",
    )
    export_again = bare.replace(model, 'model = {export = "pruned"}').replace(
        '"uniform", "scratch_e"', ""
    )
    (tmp_path / "again.toml").write_text(export_again)
    call("search", "again.toml", "--run-dir", "again", "--set", "n_trials=3")
    call("export", "again", "--out", "twice")
    example = finished.result.task.data.example
    torch.testing.assert_close(load("twice")(example), open_run("again").result.model()(example))


def test_weights_that_fit_neither_are_refused_as_ever(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(CheckpointError) as refused:
        load_brought(named(), tmp_path / "other.pt")
    assert "parametrizations.weight.original0" in str(refused.value)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (3, "baked is 3"),
        ([3], r"baked is \[3\]"),
        (["9"], "9 is missing"),
        ([], "0.weight is missing"),
    ],
)
def test_a_plan_that_names_other_layers_is_refused(table, words, data, tmp_path):
    result = run(named(), data, tmp_path / "run", 1)
    export(result.model(), tmp_path / "export", example_input=data.example, constructor=named)
    rewrite(tmp_path / "export/plan.json", {"baked": table}, kind="export")
    with pytest.raises(ExportError, match=words):
        load(tmp_path / "export")
