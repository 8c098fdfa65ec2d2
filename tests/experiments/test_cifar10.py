"""The searches of experiments/cifar10, on a few images."""

import json
import re
import shutil

import pytest
import torch

from abcsearch.execution.serial import SerialExecutor
from abcsearch.models.resnet import resnet20
from abcsearch.training.loop import train
from experiments import processes
from experiments.cifar10 import search


@pytest.fixture
def call(stand_in, tmp_path, monkeypatch):
    """Calls the script on few images and structures."""
    torch.save(resnet20().state_dict(), tmp_path / "resnet20.pt")
    settings = [
        f"data.path={stand_in / 'cifar10-jpeg'}",
        f"model.checkpoint={tmp_path / 'resnet20.pt'}",
        "n_trials=2",
    ]
    settings += [
        "evaluator.calibration_images=8",
        "evaluator.batch_size=8",
        "finetune.epochs=1",
        "finetune.batch_size=16",
    ]
    places = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path)]
    own = [word for setting in settings for word in ("--set", setting)]
    monkeypatch.setattr(processes, "ProcessPoolExecutor", lambda *_, **__: SerialExecutor())
    monkeypatch.setattr("abcsearch.results.forward._SECONDS", 0.1)
    monkeypatch.setattr(search, "_SECONDS", 0.1)
    # Else seconds for each
    monkeypatch.setattr(search, "in_onnxruntime", lambda networks, example: networks)

    def called(*words):
        monkeypatch.setattr("sys.argv", ["search", *places, *words, *own])
        search.main()

    return called


def test_a_table_is_made_once_and_drawn_again(call, tmp_path, capsys, monkeypatch):
    words = ["searchers", "--only", "random", "bee_colony", "--seeds", "0", "1"]
    call(*words)
    printed, said = capsys.readouterr()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in printed.splitlines()
        if line.startswith("|")
    ]
    assert [row[0] for row in rows[2:]] == ["full", "uniform", "random", "bee_colony"]
    assert len({len(row) for row in rows}) == 1
    assert rows[2][1:4] == ["2", "40.55", "270"]
    assert len(re.findall("done", said)) == 4
    found = {(row["name"], row["seed"]): row for row in known(tmp_path)}
    assert list(found) == [
        (name, seed) for seed in (0, 1) for name in ("full", "uniform", "random", "bee_colony")
    ]
    row = found["bee_colony", 1]
    assert row["macs"] <= 0.5 * found["full", 1]["macs"]
    assert row["trials"] == 2
    assert row["seconds"] > 0
    assert set(row["ms"]) >= {f"{how}, batch {size}" for how in ("CPU", "ONNX") for size in (1, 64)}
    scores = json.loads(
        (
            tmp_path / "runs" / "resnet20" / "bee_colony-1" / "finetuned" / "bee_colony.json"
        ).read_text()
    )
    assert row["after"] == scores["after"]["top1"]
    call(*words, "--redraw")
    assert capsys.readouterr().out == printed
    call("searchers", "--only", "bee_colony", "--seeds", "1", "--redraw")
    one = capsys.readouterr().out
    assert re.findall(r"^\| (\w+) \| (\d)", one, re.MULTILINE) == [
        ("full", "1"),
        ("uniform", "1"),
        ("bee_colony", "1"),
    ]
    assert "Searches, seed 1 with" in one
    with pytest.raises(SystemExit, match="has no such networks yet"):
        call("searchers", "--seeds", "7", "--redraw")
    # Again, without the run folders: nothing is searched or trained; forward times are measured anew.
    shutil.rmtree(tmp_path / "runs")
    call(*words)
    assert not (tmp_path / "runs").exists()
    assert [without_times(row) for row in known(tmp_path)] == [
        without_times(row) for row in found.values()
    ]


def known(folder):
    return json.loads((folder / "resnet20.json").read_text())["rows"]


def without_times(row):
    return {key: value for key, value in row.items() if key != "ms"}


def test_what_was_searched_with_other_settings_is_not_mixed_in(call, tmp_path):
    call("searchers", "--only", "greedy", "--seeds", "0")
    before = (tmp_path / "resnet20.json").read_bytes()
    said = r"resnet20.json has greedy with seed 0, searched with searcher=greedy .* n_trials=3.* --results"
    with pytest.raises(SystemExit, match=said):
        call("searchers", "--only", "random", "greedy", "--seeds", "0", "--set", "n_trials=3")
    assert (tmp_path / "resnet20.json").read_bytes() == before
    assert not (tmp_path / "runs" / "resnet20" / "random-0").exists()


@pytest.mark.parametrize("words", [["--only", "greedy", "--seeds", "0"], ["--redraw"]])
@pytest.mark.parametrize(
    "text",
    [
        '{"timed on": "", "ro',
        '{"timed on": ""}',
        "[]",
        '{"timed on": "", "rows": null}',
        '{"timed on": "", "rows": [1]}',
        '{"timed on": "", "rows": [{"name": "greedy"}]}',
    ],
)
def test_a_damaged_file_of_results_is_named_and_kept(call, tmp_path, words, text):
    (tmp_path / "resnet20.json").write_text(text)
    with pytest.raises(
        SystemExit, match=r"resnet20.json is damaged .*; restore it, or begin other results"
    ):
        call("searchers", *words)
    assert (tmp_path / "resnet20.json").read_text() == text
    assert not (tmp_path / "runs").exists()


def test_results_that_cannot_be_written_are_said_first(call, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        SystemExit, match=r"error: .*resnet20.json cannot be written: .*File exists"
    ):
        call("searchers", "--only", "greedy", "--results", str(tmp_path / "file"))
    assert not (tmp_path / "runs").exists()


def test_calls_side_by_side_keep_what_the_other_found(tmp_path):
    file = tmp_path / "resnet20.json"
    one, other = search.Results(file), search.Results(file)

    def row(name, seed):
        return {**dict.fromkeys(search.EXPECTED), "name": name, "seed": seed}

    one.add([row("random", 0)])
    other.add([row("random", 1)])
    one.add([row("greedy", 0), row("random", 0)])
    rows = [(row["name"], row["seed"]) for row in json.loads(file.read_text())["rows"]]
    assert rows == [("random", 0), ("greedy", 0), ("random", 1)]


def test_agreement_is_that_of_the_searchers_of_each_seed():
    def row(name, seed, fitness, after):
        return {"name": name, "seed": seed, "fitness": fitness, "after": after}

    names = ["random", "bee_colony", "evolution", "greedy"]
    rows = [row(name, 1, 0.5 + 0.1 * place, 0.8 + 2 * place) for place, name in enumerate(names)]
    rows += [row(name, 0, 0.5 + 0.1 * place, 0.8 - place) for place, name in enumerate(names)]
    rows[-1]["after"] = 1  # the best fitness is the best after all: three pairs in order, three not
    rows += [row("published", 1, 0.9, 0.1), {"name": "full", "seed": 1, "after": 0.9}]
    rows += [row("random", 2, 0.5, 0.5), row("greedy", 2, 0.6, 0.6)]  # two tell nothing
    (line,) = search.agreement(rows)
    assert line.endswith(": 0.00, 1.00 (seed 0, 1); of their means over seeds: 1.00.")
    (line,) = search.agreement([own for own in rows if own["seed"] != 1])
    assert line.endswith(": 0.00 (seed 0).")
    assert search.agreement(rows[-2:]) == []


def test_searches_with_one_seed_share_the_base_network_that_they_train(
    stand_in, tmp_path, monkeypatch
):
    made = []
    monkeypatch.setattr(
        "abcsearch.runs.base.train",
        lambda *args, **options: made.append(1) or train(*args, **options),
    )
    settings = [
        "searcher=random",
        f"data.path={stand_in / 'cifar10-jpeg'}",
        "n_trials=2",
        "pretrain.epochs=1",
    ]
    settings += ["pretrain.batch_size=16", "finetune.epochs=1", "finetune.batch_size=16"]
    settings += [
        "evaluator.calibration_images=8",
        "pretrain.precision=float32",
        "finetune.precision=float32",
    ]
    settings += ["evaluator.precision=float32", "evaluator.batch_size=8"]
    tiny = (
        (search.HERE / "vgg16_cifar.toml")
        .read_text()
        .replace('"vgg16_cifar"', '"small_resnet"\nin_channels = 3')
    )
    (tmp_path / "tiny.toml").write_text(tiny)
    monkeypatch.setattr(search, "HERE", tmp_path)
    rows = [
        row
        for name, changes in (
            ("random", ()),
            ("greedy", ("searcher=greedy", "space.divisor=2", "criterion=l2")),
        )
        for row in search.run(search.Job("tiny", name, 0, (*settings, *changes), tmp_path / "runs"))
    ]
    assert [row["name"] for row in rows] == ["full", "uniform", "random", "greedy"]
    assert len(made) == 1
    files = sorted((tmp_path / "runs" / "tiny").rglob("base*"))
    assert [file.suffix for file in files] == [
        ".safetensors"
    ] * 3  # one beside those of the run folders
    assert len({file.read_bytes() for file in files}) == 1
    search.run(search.Job("tiny", "anew", 0, (*settings, "pretrain.lr=0.01"), tmp_path / "runs"))
    assert len(made) == 2


def test_the_order_of_settings_does_not_matter(call, tmp_path):
    call(
        "searchers",
        "--only",
        "greedy",
        "--seeds",
        "0",
        "--set",
        "space.step=0.2",
        "--set",
        "evaluator.metric=top5",
    )
    before = known(tmp_path)
    call(
        "searchers",
        "--only",
        "greedy",
        "--seeds",
        "0",
        "--set",
        "evaluator.metric=top5",
        "--set",
        "space.step=0.2",
    )
    assert [without_times(row) for row in known(tmp_path)] == [without_times(row) for row in before]


def test_what_fails_is_named_and_the_rest_is_done(call, tmp_path, capsys, monkeypatch):
    run = search.run

    def failing(job):
        if job.name == "random":
            raise OSError("disk full")
        return run(job)

    monkeypatch.setattr(search, "run", failing)
    with pytest.raises(SystemExit, match="when that is mended, the same command goes on"):
        call("searchers", "--only", "random", "greedy", "--seeds", "0")
    said = capsys.readouterr().err
    assert "random-0: disk full" in said
    assert "greedy-0: done" in said
    assert [row["name"] for row in known(tmp_path)] == ["greedy"]
    call("searchers", "--redraw")  # also without uniform
    assert "| greedy | 1 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "bee_colonny"], "unknown search 'bee_colonny'; did you mean 'bee_colony'"),
        (["--network", "resnet21"], "resnet21.toml cannot be read"),
        (["--workers", "0"], "argument --workers: at least 1, found '0'"),
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
            if config.evaluator.name == "short_training":
                assert config.n_trials == 10
    published = search.read_config(
        search.HERE / "resnet20.toml", search.TABLES["ways"]["published"]
    )
    assert published.evaluator.name == "short_training"
    assert published.evaluator.options["fresh_norms"] is True
    assert published.space.levels == ("filter",)
