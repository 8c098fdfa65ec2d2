"""Runs whose searcher and criterion are the user's own."""

import json
import shutil
import sys

import pytest
from typer.testing import CliRunner

from abcsearch import Budget, resume, search
from abcsearch.cli import app
from abcsearch.errors import RunError
from tests.conftest import TINY_CONFIG

OWN = """
from abcsearch.channels.criteria import l2
from abcsearch.searchers.random_search import RandomSearch


class Walk(RandomSearch):
    pass


class Random(RandomSearch):
    pass


def strength(tensors, group):
    return l2(tensors, group)


def thinnest(task):
    return [1] * len(task.space)


def nothing(task):
    return [0]
"""


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "walking.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield "walking"
    sys.modules.pop("walking", None)


def test_a_run_of_own_parts_is_a_run_like_any_other(own, tmp_path):
    text = TINY_CONFIG.replace("n_trials = 24", "n_trials = 3")
    text = text.replace(
        '{name = "bee_colony", n_sources = 4}', '{name = "walking:Walk", fill = false}'
    )
    text = text.replace('"random"]', '"walking:thinnest"]')
    (tmp_path / "own.toml").write_text(f'criterion = "walking:strength"\n{text}')
    for command in (
        ("search", "own.toml", "--dry-run"),
        ("search", "own.toml", "--run-dir", "run"),
        ("resume", "run", "--n-trials", "4"),
        ("status", "run"),
        ("finetune", "run", "--only", "Walk"),
        ("finetune", "run", "--only", "thinnest"),
        ("report", "run"),
        ("export", "run", "--out", "exported"),
        ("evaluate", "exported"),
    ):
        done = call(*command)
        assert done.exit_code == 0, (command, done.output)
        if command[0] == "status":
            assert "Walk: 4 of 4 trials" in done.output
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert (settings["searcher"]["name"], settings["criterion"]) == (
        "walking:Walk",
        "walking:strength",
    )
    assert (tmp_path / "run" / "finetuned" / "Walk.safetensors").exists()
    assert "fine-tuned: Walk, thinnest" in call("status", "run").output
    assert settings["baselines"] == ["uniform", "walking:thinnest"]
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    done = call("compare", "run", "again")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "run" / "baselines").exists()  # it is not searched
    page = (tmp_path / "run" / "report.html").read_text()
    assert "thinnest" in page
    done = call(
        "search", "own.toml", "--run-dir", "other", "--set", "baselines=['walking:nothing']"
    )
    assert done.exit_code == 2
    assert not (tmp_path / "other").exists()
    assert "baseline 'walking:nothing' gives no structure of this network" in " ".join(
        done.output.split()
    )
    sys.modules.pop(own)
    (tmp_path / "walking.py").unlink()  # what has been done is shown without the module
    assert call("status", "run").exit_code == 0
    assert "walking" not in sys.modules


def test_the_same_by_path_and_by_name_in_python(own, tiny_model, tiny_data, tmp_path):
    mine = __import__(own)
    options = {"budget": Budget(macs=0.6), "n_trials": 3, "seed": 2}
    first = search(
        tiny_model,
        tiny_data,
        **options,
        searcher="walking:Walk",
        criterion=mine.strength,
        run_dir=tmp_path / "a",
    )
    other = search(
        tiny_model, tiny_data, **options, searcher="random", criterion="l2", run_dir=tmp_path / "b"
    )
    assert first.settings.criterion == "walking:strength"
    assert [t.evaluation.metrics for t in first.trials] == [
        t.evaluation.metrics for t in other.trials
    ]
    again = resume(tmp_path / "a", model=tiny_model, data=tiny_data, n_trials=4)
    assert [t.candidate for t in again.trials[:3]] == [t.candidate for t in first.trials]


def test_a_criterion_without_a_name_is_asked_for_again(own, tiny_model, tiny_data, tmp_path):
    mine = __import__(own)

    def inner(tensors, group):
        return mine.strength(tensors, group)

    options = {
        "budget": Budget(macs=0.6),
        "n_trials": 3,
        "searcher": "random",
        "run_dir": tmp_path / "run",
    }
    search(tiny_model, tiny_data, **options, criterion=inner)
    with pytest.raises(RunError, match=r"pass the same ones: resume\(.*, criterion=...\)"):
        resume(tmp_path / "run", model=tiny_model, data=tiny_data)
    assert (
        len(
            resume(
                tmp_path / "run", model=tiny_model, data=tiny_data, criterion=inner, n_trials=4
            ).trials
        )
        == 4
    )
    with pytest.raises(
        RunError, match=r"criterion: .*inner.* in the folder, 'walking:strength' now"
    ):
        resume(tmp_path / "run", model=tiny_model, data=tiny_data, criterion=mine.strength)


def test_a_winner_is_not_called_like_a_baseline():
    from abcsearch.runs.disk.shapes import winner_name

    assert winner_name("bee_colony") == "bee_colony"
    assert winner_name("walking:Walk") == "Walk"
    assert winner_name("walking:random") == "walking.random"
    assert winner_name("walking:Walk (object)") == "walking:Walk (object)"
