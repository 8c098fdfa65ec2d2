"""The searches of experiments/cifar10, on a few images."""

import json
import re

import pytest
import torch

from abcsearch.execution.serial import SerialExecutor
from abcsearch.models.resnet import resnet20
from experiments.cifar10 import search


@pytest.fixture
def call(stand_in, tmp_path, monkeypatch):
    """Calls the script on few images and structures."""
    torch.save(resnet20().state_dict(), tmp_path / "resnet20.pt")
    settings = [f"data.path={stand_in / 'cifar10-jpeg'}", f"model.checkpoint={tmp_path / 'resnet20.pt'}", "n_trials=2"]
    settings += [
        "evaluator.calibration_images=8",
        "evaluator.batch_size=8",
        "finetune.epochs=1",
        "finetune.batch_size=16",
    ]
    places = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path)]
    own = [*places, *(word for setting in settings for word in ("--set", setting))]
    monkeypatch.setattr(search, "ProcessPoolExecutor", lambda *_: SerialExecutor())
    monkeypatch.setattr("abcsearch.runs.forward._SECONDS", 0.1)

    def called(*words):
        monkeypatch.setattr("sys.argv", ["search", *words, *own])
        search.main()

    return called


def test_a_table_is_made_once_and_drawn_again(call, tmp_path, capsys, monkeypatch):
    words = ["searchers", "--only", "random", "bee_colony", "--seeds", "0", "1"]
    call(*words)
    printed, said = capsys.readouterr()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line.startswith("|")
    ]
    assert [row[0] for row in rows[2:]] == ["full", "uniform", "random", "bee_colony"]
    assert len({len(row) for row in rows}) == 1
    assert rows[2][1:4] == ["2", "40.55", "270"]
    assert len(re.findall("done", said)) == 4
    found = json.loads((tmp_path / "resnet20-searchers.json").read_text())["seeds"]
    assert set(found) == {"0", "1"}
    row = found["1"]["bee_colony"]
    assert row["macs"] <= 0.5 * found["1"]["full"]["macs"]
    assert row["trials"] == 2
    assert row["seconds"] > 0
    scores = json.loads((tmp_path / "runs" / "resnet20" / "bee_colony-1" / "finetuned" / "bee_colony.json").read_text())
    assert row["after"] == scores["after"]["top1"]
    # Again: nothing is searched or trained; the table from the file is the same.
    monkeypatch.setattr("abcsearch.runs.finetuning._finetune", lambda *_: pytest.fail("it is known"))
    call(*words, "--redraw")
    assert capsys.readouterr().out == printed
    call(*words)
    again = json.loads((tmp_path / "resnet20-searchers.json").read_text())["seeds"]
    assert [again[seed][name]["after"] for seed in found for name in found[seed]] == [
        found[seed][name]["after"] for seed in found for name in found[seed]
    ]


def test_what_fails_is_named_and_the_rest_is_done(call, tmp_path, capsys, monkeypatch):
    run = search.run

    def failing(job):
        if job.name == "random":
            raise OSError("disk full")
        return run(job)

    monkeypatch.setattr(search, "run", failing)
    with pytest.raises(SystemExit, match="the same command goes on"):
        call("searchers", "--only", "random", "greedy", "--seeds", "0")
    said = capsys.readouterr().err
    assert "random-0: disk full" in said
    assert "greedy-0: done" in said
    assert not (tmp_path / "resnet20-searchers.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "bee_colonny"], "unknown search 'bee_colonny'; did you mean 'bee_colony'"),
        (["--network", "resnet21"], "resnet21.toml cannot be read"),
        (["--set", "n_trails=3"], "unknown setting 'n_trails'; did you mean 'n_trials'"),
    ],
)
def test_mistakes_are_said_before_anything_is_searched(call, tmp_path, capsys, words, said):
    with pytest.raises(SystemExit) as stopped:
        call("searchers", *words)
    assert said in f"{stopped.value.code} {capsys.readouterr().err}"
    assert not (tmp_path / "runs").exists()


def test_every_search_is_a_config_that_can_be_read():
    for variants in search.TABLES.values():
        for changes in variants.values():
            config = search.read_config(search.HERE / "resnet20.toml", changes)
            assert config.n_trials == (10 if config.evaluator.name == "short_training" else 200)
    published = search.read_config(search.HERE / "resnet20.toml", search.TABLES["ways"]["published"])
    assert published.evaluator.name == "short_training"
    assert published.evaluator.options["fresh_norms"] is True
    assert published.space.levels == ("filter",)
