"""A run, its journal and its export as an earlier version wrote them: they open, continue and come out the same.

What is compared bit for bit are numbers that depend on the machine's arithmetic. So the search is run anew as well;
where that trains another base network than the kept one, this machine rounds in another way, and only the rest is
compared.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from abcsearch import load, load_data
from abcsearch.results.open_run import open_run
from abcsearch.training.scoring import score
from tests.records import rewrite
from tests.test_cli import call

GOLDEN = Path(__file__).parent / "golden"
# What the defaults were when the run was kept.
FORMER = (
    "criterion=l1",
    "evaluator.repair=none",
    "evaluator.scoring=full",
    "evaluator.finalists=0",
)


@pytest.fixture
def golden(tmp_path):
    """A copy of the kept run and its export."""
    shutil.copytree(GOLDEN, tmp_path / "golden")
    return tmp_path / "golden"


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    """The same search, made now."""
    folder = tmp_path_factory.mktemp("golden") / "run"
    former = [word for change in FORMER for word in ("--set", change)]
    result = call("search", GOLDEN / "golden.toml", "--run-dir", folder, *former)
    assert result.exit_code == 0, result.output
    return folder


def decided(journal):
    """What the lines of a journal say of its trials, but for their times."""
    lines = [json.loads(line.partition(" ")[2]) for line in journal.read_text().splitlines()]
    trials = [line for line in lines if "event" not in line]
    return [
        (line["number"], line["candidate"], {**line["evaluation"], "seconds": 0}) for line in trials
    ]


def rounds_alike(again):
    if (again / "base.safetensors").read_bytes()[-4000:] != (
        GOLDEN / "run/base.safetensors"
    ).read_bytes()[-4000:]:
        pytest.skip("this machine rounds in another way than the one that made the kept run")


def test_the_same_search_gives_the_same_run(again):
    rounds_alike(again)
    for folder in ("", "baselines/random"):
        assert decided(again / folder / "journal.jsonl") == decided(
            GOLDEN / "run" / folder / "journal.jsonl"
        )
    for key in ("settings", "identity"):
        now, before = (
            json.loads((folder / "run.json").read_text())[key] for folder in (again, GOLDEN / "run")
        )
        if key == "settings":
            for kind in ("evaluator", "searcher"):
                said, options = before[kind]["options"], now[kind]["options"]
                now[kind]["options"] = {
                    name: value for name, value in options.items() if name in said
                }
            now["space"] = {
                name: value for name, value in now["space"].items() if name in before["space"]
            }
        assert {name: value for name, value in now.items() if name in before} == before


def test_a_kept_run_is_continued_to_the_same_trials(golden, again):
    before = decided(golden / "run/journal.jsonl")
    result = call("resume", golden / "run", "--n-trials", "24")
    assert result.exit_code == 0, result.output
    after = decided(golden / "run/journal.jsonl")
    assert after[:12] == before
    assert len(after) == 24
    rounds_alike(again)
    assert after == decided(golden / "longer.jsonl")


def test_a_kept_run_is_shown(golden):
    for command in ("status", "report"):
        result = call(command, golden / "run")
        assert result.exit_code == 0, result.output
    page = (golden / "run" / "report.md").read_text()
    assert "20.00" in page  # the winner's accuracy after fine-tuning


def test_a_kept_fine_tuning_is_exported_as_before(golden):
    result = call("export", golden / "run", "--out", golden / "new")
    assert result.exit_code == 0, result.output
    now, before = (
        load_file(golden / "new/model.safetensors"),
        load_file(golden / "export/model.safetensors"),
    )
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name], before[name]) for name in before)


def test_a_kept_export_is_loaded_and_scores_as_it_did(golden):
    network, data = load(golden / "export"), load_data("digits")
    scores = json.loads((golden / "run/finetuned/bee_colony.json").read_text())["after"]
    assert score(network, data.test)["top1"] == pytest.approx(scores["top1"], abs=0.01)
    run = open_run(golden / "run")
    tuned = run.network(run.winner, tuned=True)
    assert all(
        torch.equal(a, b) for a, b in zip(tuned.parameters(), network.parameters(), strict=True)
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_run_of_a_gpu_goes_on_without_one(golden):
    run = golden / "run"

    def moved(header):
        header["settings"]["evaluator"]["options"]["device"] = "cuda"
        for recipe in ("pretrain", "finetune"):
            header["settings"][recipe]["device"] = "cuda"

    for folder in (run, run / "baselines/random"):
        rewrite(folder / "run.json", moved)
    lack = "this machine has no device 'cuda'"
    assert call("status", run).exit_code == 0
    result = call("resume", run, "--n-trials", "14")
    assert result.exit_code == 2
    assert lack in result.output
    assert "abcsearch resume --device cpu" in result.output.replace("\n", " ")
    with pytest.warns(UserWarning, match=lack):
        tuned = open_run(run)
    assert tuned.network(tuned.winner, tuned=True) is not None
    for command in (("report", run), ("export", run, "--out", golden / "new")):
        with pytest.warns(UserWarning, match=lack):
            result = call(*command)
        assert result.exit_code == 0, result.output
    assert lack in call("finetune", run, "--replace", "--set", "epochs=2").output
    result = call("resume", run, "--device", "cpu", "--n-trials", "14")
    assert result.exit_code == 0, result.output
    assert decided(run / "journal.jsonl")[:12] == decided(GOLDEN / "run/journal.jsonl")
    result = call("finetune", run, "--replace", "--set", "device=cpu", "--only", "bee_colony")
    assert result.exit_code == 0, result.output
