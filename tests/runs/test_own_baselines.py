"""Baselines that have a source and a recipe of their own: fresh weights, trained for longer."""

import dataclasses
import json
import shlex
import shutil
import sys
import types
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from abcsearch import Sliced
from abcsearch.baselines.registry import BASELINES, Baseline
from abcsearch.cli import app
from abcsearch.config import read_config
from abcsearch.errors import ConfigError, ModelError, RunError
from abcsearch.evaluation.registry import make_evaluator
from abcsearch.planning.dry_run import rehearse
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.open_run import open_run
from abcsearch.results.report import make_report
from abcsearch.rng import torch_seeded
from abcsearch.runs.config_run import run_config
from abcsearch.training.checkpoints import network_hash

pytestmark = pytest.mark.usefixtures("no_pictures")


class Fresh(Sliced):
    """Networks with new weights."""

    part = "fresh"

    def network(self, candidate, seed=0):
        network = super().network(candidate)
        with torch_seeded(seed, self.part):
            for module in network.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        return network


def fresh(task):
    return Fresh(task.base, task.graph, task.source.ranking)


def twice(recipe, task, structure):
    del task, structure
    return replace(recipe, epochs=2 * recipe.epochs)


SCRATCH = Baseline(networks=fresh, recipe=twice)
LONGER = Baseline(structure=lambda task: task.uniform(), recipe=twice)


@pytest.fixture
def known(monkeypatch):
    """Baselines of the test, by name."""
    monkeypatch.setattr(
        BASELINES, "_entries", {**BASELINES._entries, "scratch": SCRATCH, "longer": LONGER}
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished search, with its baselines; every test copies it."""
    from tests.conftest import TINY_CONFIG

    path = tmp_path_factory.mktemp("baselines")
    (path / "tiny.toml").write_text(TINY_CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            BASELINES, "_entries", {**BASELINES._entries, "scratch": SCRATCH, "longer": LONGER}
        )
        baselines = 'baselines=["uniform", "longer", "scratch"]'
        run_config(
            read_config(path / "tiny.toml", ["n_trials=3", "seed=5", baselines]), path / "run"
        )
    return path


@pytest.fixture
def run(made, known, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    return open_run(tmp_path / "run")


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def epochs_of(run):
    return {
        own.name: (run.scores(own) or {"recipe": {"epochs": 0}})["recipe"]["epochs"]
        for own in run.structures
    }


def weights_of(run):
    return {
        path.name: path.read_bytes()
        for path in (run.folder.path / "finetuned").glob("*.safetensors")
    }


def test_networks_and_fitness_are_those_of_the_baseline(run):
    scratch, winner = run.named("scratch"), run.winner
    assert [own.name for own in run.structures] == [
        "full",
        "uniform",
        "scratch",
        "longer",
        "bee_colony",
    ]
    assert scratch.candidate == winner.candidate
    assert isinstance(run.source(scratch), Fresh)
    assert run.source(winner) is run.result.task.source is run.source(run.named("longer"))
    seeded = fresh(run.result.task).network(scratch.candidate, 5).state_dict()
    there = run.network(scratch, tuned=False).state_dict()
    assert all(torch.equal(there[name], seeded[name]) for name in there if name.endswith("weight"))
    assert network_hash(run.network(winner, tuned=False)) != network_hash(
        run.network(scratch, tuned=False)
    )
    assert run.fitness(winner) == run.result.best.fitness
    fitness = run.fitness(scratch)
    evaluator = make_evaluator(
        "adaptive_bn", fresh(run.result.task), run.result.task.data, **run.config.evaluator.options
    )
    assert fitness == evaluator(scratch.candidate, run.config.seed).fitness != run.fitness(winner)
    assert open_run(run.folder.path).fitness(scratch) == fitness
    keys = run.folder.read_json(run.folder.fitness.name).keys()
    assert any(key.startswith("scratch ") for key in keys)


def test_it_is_fine_tuned_by_its_own_recipe_and_goes_on_after_ctrl_c(run, tmp_path):
    shutil.copytree(run.folder.path, tmp_path / "whole")
    whole = open_run(tmp_path / "whole")
    finetune_run(whole, replace(run.config.finetune, epochs=2))

    def stop(stage, done, total, note):
        assert total == (4 if stage.endswith(("scratch", "longer")) else 2)
        if stage.endswith("scratch") and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune_run(run, replace(run.config.finetune, epochs=2), progress=stop)
    waiting = json.loads(call("status", run.folder.path, "--json").output)["interrupted"]
    words = shlex.split(waiting)
    assert words == ["abcsearch", "finetune", str(run.folder.path), "--set", "epochs=2"]
    (run.folder.path / "finetuning.json").unlink()  # then the checkpoint says what was asked for
    words = shlex.split(json.loads(call("status", run.folder.path, "--json").output)["interrupted"])
    assert "epochs=2" in words
    assert "epochs=4" not in words
    done = call(*words[1:])
    assert done.exit_code == 0, done.output
    assert "fine-tuning scratch: 4/4" in done.output
    done = call("finetune", run.folder.path, "--set", "epochs=2")
    assert (done.exit_code, "fine-tuning" in done.output) == (0, False)  # nothing is left to train
    assert epochs_of(run) == {"full": 2, "uniform": 2, "longer": 4, "scratch": 4, "bee_colony": 2}
    assert weights_of(run) == weights_of(whole)
    assert not list((run.folder.path / "finetuned").glob("*.checkpoint"))


def test_report_and_status_say_in_what_its_recipe_is_another(run):
    finetune_run(run)
    report = make_report(run)
    rows = {row.network: row for row in report.rows}
    assert rows["scratch"].own == rows["longer"].own == ("epochs 2, not 1",)
    assert not rows["uniform"].own
    assert all(row.after is not None for row in report.rows)  # asked for was one recipe
    assert "1 epoch with one recipe for all others" in report.notes[0]
    assert "scratch with its own: epochs 2, not 1" in report.notes[0]
    shown = call("status", run.folder.path).output
    assert "fine-tuned with epochs 2, not 1: longer, scratch" in shown
    done = call("report", run.folder.path)
    assert done.exit_code == 0, done.output
    exported = call("export", run.folder.path, "--network", "scratch")
    assert exported.exit_code == 0, exported.output


def test_another_recipe_keeps_it_and_brings_it_back(run):
    usual = run.config.finetune
    finetune_run(run, only=["scratch", "longer"])
    before = weights_of(run)
    finetune_run(run, replace(usual, epochs=2), only=["scratch", "longer"])
    assert epochs_of(run)["scratch"] == 4
    told = []
    finetune_run(
        run,
        usual,
        only=["scratch", "longer"],
        tell=told.append,
        progress=lambda *_: pytest.fail("trained"),
    )
    assert sum("has been fine-tuned by this recipe: taken from" in line for line in told) == 2
    assert weights_of(run) == before


def test_a_recipe_asked_for_that_equals_its_own_is_another_one(run):
    """Twice one epoch is what the run asks for, twice two what is asked for now; neither is taken for the other."""
    finetune_run(run, only=["longer"])
    done = call("finetune", run.folder.path, "--only", "uniform", "--set", "epochs=2")
    assert done.exit_code == 0
    assert epochs_of(run)["longer"] == epochs_of(run)["uniform"] == 2
    rows = {row.network: row for row in make_report(run).rows}
    assert (rows["longer"].own, rows["uniform"].own) == (("epochs 2, not 1",), ())


def test_what_the_baseline_has_become_is_fine_tuned_anew(run, monkeypatch):
    finetune_run(run, only=["scratch", "uniform"])
    monkeypatch.setattr(Fresh, "part", "other")
    run, told = open_run(run.folder.path), []
    finetune_run(run, only=["scratch", "uniform"], tell=told.append)
    assert [line.split(": ")[0] for line in told] == [
        "scratch was fine-tuned by another recipe (as another network)"
    ]
    other = dataclasses.replace(SCRATCH, recipe=lambda recipe, *_: replace(recipe, epochs=3))
    monkeypatch.setitem(BASELINES._entries, "scratch", other)
    run, told = open_run(run.folder.path), []
    finetune_run(run, only=["scratch"], tell=told.append)
    assert ["(epochs 2, not 3)" in line for line in told] == [True]
    assert epochs_of(run)["scratch"] == 3


def test_the_winners_structure_is_fine_tuned_anew_when_the_winner_is_beaten(run):
    finetune_run(run, only=["scratch"])
    path = run.folder.path / "finetuned" / "scratch.json"
    scores = json.loads(path.read_text())
    scores["candidate"][0] += 1
    run.folder.write_json(
        "finetuned/scratch.json", {k: v for k, v in scores.items() if k != "checksum"}
    )
    assert "scratch" not in json.loads(call("status", run.folder.path, "--json").output)["tuned"]
    assert run.scores(run.named("scratch")) is None


def test_a_rehearsal_counts_its_own_epochs(made, known, tmp_path):
    config = read_config(made / "tiny.toml", ["n_trials=3", 'baselines=["longer", "scratch"]'])
    found = rehearse(config, tmp_path / "none", patience=0.01)
    full, pruned = found.finetuning
    assert found.longer == pytest.approx(2 * pruned.seconds)
    assert found.tuning == pytest.approx(full.seconds + 5 * pruned.seconds)


def other_graph(task):
    from abcsearch import trace_channels

    return Fresh(task.base, trace_channels(task.base, task.data.example), task.source.ranking)


class Restless(Sliced):
    """Other weights at every call."""

    def network(self, candidate, seed=0):
        network = super().network(candidate)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter)
        return network


WRONG = {
    "no source": (
        Baseline(networks=lambda task: task.base),
        ConfigError,
        "returns a Source of task.graph",
    ),
    "another graph": (Baseline(networks=other_graph), ConfigError, "found Fresh of another graph"),
    "fails": (
        Baseline(networks=lambda task: task.nothing),
        ConfigError,
        "networks of baseline .* fails: AttributeError",
    ),
    "restless": (
        Baseline(networks=lambda task: Restless(task.base, task.graph, task.source.ranking)),
        ModelError,
        "other weights at every call",
    ),
    "no recipe": (
        Baseline(recipe=lambda *_: {"epochs": 3}),
        ConfigError,
        "that returns a Recipe, found",
    ),
    "recipe fails": (
        Baseline(recipe=lambda recipe: recipe),
        ConfigError,
        "recipe of baseline .* fails: TypeError",
    ),
}


@pytest.mark.parametrize("how", WRONG)
def test_what_a_baseline_should_not_bring_is_told_before_anything_is_written(
    made, monkeypatch, tmp_path, how
):
    module = types.ModuleType("mine_of_baselines")
    monkeypatch.setitem(sys.modules, "mine_of_baselines", module)
    module.wrong, kind, words = WRONG[how]
    config = read_config(
        made / "tiny.toml", ["n_trials=3", 'baselines=["mine_of_baselines:wrong"]']
    )
    with torch.random.fork_rng(), pytest.raises(kind, match=words):
        run_config(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", [Baseline(), Baseline(structure=fresh, searcher="random")])
def test_a_baseline_is_a_structure_or_a_search_or_the_winner_otherwise(wrong, monkeypatch):
    monkeypatch.setattr(BASELINES, "_objects", {})
    with pytest.raises(
        ConfigError,
        match="a structure, or a searcher that finds it, or, with neither, the winner's",
    ):
        BASELINES.find(wrong)


def whole(task):
    return task.space.full


def test_the_report_notes_who_is_outside_of_the_budget(made, known, tmp_path, monkeypatch):
    monkeypatch.setitem(BASELINES._entries, "whole", Baseline(structure=whole))
    config = read_config(
        made / "tiny.toml",
        ["n_trials=2", 'baselines=["uniform", "whole"]', "budget.macs=[0.3, 0.5]"],
    )
    run_config(config, tmp_path / "run")
    report = make_report(open_run(tmp_path / "run"))
    full = report.rows[0].macs
    (note,) = (note for note in report.notes if note.startswith("Outside of the budget"))
    assert (
        f"equal cost: whole (macs {full:,}, not {round(0.3 * full):,} to {round(0.5 * full):,})."
        in note
    )
    assert note in call("report", tmp_path / "run").output
    config = read_config(made / "tiny.toml", ["n_trials=2", 'baselines=["uniform", "whole"]'])
    run_config(config, tmp_path / "upper")
    assert (
        f"whole (macs {full:,}, not at most " in make_report(open_run(tmp_path / "upper")).notes[-1]
    )


def test_uniform_widths_outside_of_a_budget_that_needs_blocks_to_go_are_the_nearest_and_noted(
    made, tmp_path
):
    sets = ["n_trials=2", 'baselines=["uniform"]', 'space.levels=["filter", "stage", "block"]']
    graph = run_config(read_config(made / "tiny.toml", sets), tmp_path / "wide").task.graph
    least = int(graph.costs.macs([[1] * len(graph.prunable)])[0])
    config = read_config(made / "tiny.toml", [*sets, f"budget.macs={least - 1}"])
    result = run_config(config, tmp_path / "run")
    assert result.task.graph.costs.macs([result.best.candidate])[0] < least
    with pytest.raises(RunError, match="no structure whose layers all keep the same ratio"):
        result.task.uniform()
    assert call("finetune", tmp_path / "run").exit_code == 0
    report = make_report(open_run(tmp_path / "run"))
    assert {row.network: row.macs for row in report.rows}["uniform"] == least
    (note,) = (note for note in report.notes if note.startswith("Outside of the budget"))
    assert f"uniform (macs {least:,}, not at most {least - 1:,})" in note


def test_all_inside_nothing_is_noted(run):
    assert not [note for note in make_report(run).notes if "Outside" in note]


def test_commands_in_a_report_that_lies_elsewhere_write_it_there(run, tmp_path, monkeypatch):
    monkeypatch.setattr("abcsearch.results.forward.ForwardTime.apart", lambda *_: False)
    out = tmp_path / "other place" / "page.html"
    out.parent.mkdir()
    done = call("report", run.folder.path, "--out", out)
    assert done.exit_code == 0, done.output
    commands = [line for line in done.output.splitlines() if "abcsearch report" in line]
    assert commands
    again = shlex.join(["abcsearch", "report", str(run.folder.path), "--out", str(out)])
    assert all(again in line for line in commands)
    assert f"abcsearch report {run.folder.path}" in call("report", run.folder.path).output
    assert "--out" not in make_report(run).notes[0]
