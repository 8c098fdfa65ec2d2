"""Rehearsals: what they say of a run, that they write nothing and refuse what a search does, and estimates of time."""

import dataclasses
import hashlib
import json
import math
import types

import pytest
import torch
from typer.testing import CliRunner

from abcsearch import cli
from abcsearch.cli import app
from abcsearch.config import read_config
from abcsearch.errors import AbcSearchError, CheckpointError, RunError
from abcsearch.planning import dry_run
from abcsearch.planning.dry_run import rehearse
from abcsearch.planning.dry_run_words import Reach, about
from abcsearch.runs import timing
from abcsearch.runs.config_run import prepare, run_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.weights import weights_writer
from abcsearch.runs.timing import Estimate, evaluation_time, training_time
from abcsearch.trial import Evaluation

TIMES = ("evaluation", "search", "alone", "baseline", "pretraining", "finetuning")


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def files(folder):
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in found
    }


def test_all_but_the_times_follows_from_the_config(tiny_config, tmp_path):
    config = read_config(tiny_config, ["execution.workers=1"])
    state = torch.get_rng_state()
    one, other = (rehearse(config, tmp_path / "run", patience=0) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    task, _ = prepare(config, RunFolder(tmp_path / "run"))
    assert dataclasses.replace(other, **{name: getattr(one, name) for name in TIMES}) == one
    assert (one.macs, one.params) == tuple(
        int(cost([task.space.full])[0]) for cost in (task.graph.costs.macs, task.graph.costs.params)
    )
    assert int(one.structures) == math.prod(len(d.choices) for d in task.space.dimensions)
    assert (one.dimensions, one.free, one.blocks) == (
        len(task.space),
        len(task.space),
        len(task.graph.blocks),
    )
    assert one.prunable + sum(one.fixed.values()) == one.groups == len(task.graph.groups)
    assert one.images == {"train": 1077, "search-validation": 360, "test": 360}
    (bound,) = one.budget
    ends = [[d.choices[place] for d in task.space.dimensions] for place in (0, -1)]
    assert [bound.smallest, bound.largest] == task.graph.costs.macs(ends).tolist()
    assert (bound.low, bound.high) == (0, one.macs // 2)
    assert (one.trials, one.batch, one.workers, one.finetuned) == (24, 4, 1, 3)
    assert one.notes == ()


@pytest.mark.parametrize(
    ("overrides", "noted"),
    [
        (["n_trials=10"], True),
        (["n_trials=11"], False),
        (["n_trials=10", "execution.schedule=asynchronous"], False),
        (["n_trials=10", "searcher=random"], False),
        (["n_trials=10", "searcher=greedy"], False),
    ],
)
def test_a_search_that_ends_before_its_searcher_has_learned_is_noted(
    tiny_config, tmp_path, overrides, noted
):
    config = read_config(tiny_config, ["searcher=bee_colony", "execution.workers=0", *overrides])
    note = "bee_colony proposes all 10 trials before it has a result to learn from"
    assert rehearse(config, tmp_path / "run", patience=0).notes == ((note,) if noted else ())


def test_a_rehearsal_writes_nothing(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    rehearse(read_config(tiny_config), "run", patience=0)
    rehearse(read_config(tiny_config, ["budget={latency_ms = 1.0}"]), "run", patience=0)
    assert files(tmp_path) == before
    assert not (tmp_path / "run").exists()
    config = read_config(tiny_config, ["n_trials=5"])
    run_config(config, "run")
    before = files(tmp_path)
    found = rehearse(config, "run", patience=0)
    assert files(tmp_path) == before
    assert found.notes == (
        "the run folder holds this run, which would be continued; times are of a whole one",
    )


def test_a_checkpoint_that_is_missing_is_noted_and_one_that_does_not_fit_refused(
    tiny_config, tmp_path
):
    plain = tiny_config.read_text().replace("pretrain = {epochs = 1, batch_size = 256}\n", "")
    tiny_config.write_text(plain)
    path = tmp_path / "weights.safetensors"
    config = read_config(tiny_config, [f"model.checkpoint={path}"])
    found = rehearse(config, tmp_path / "run", patience=0)
    assert found.pretraining is None
    assert found.notes == (
        f"checkpoint {path} is missing: the search will refuse; random weights were timed here",
    )
    with pytest.raises(CheckpointError, match="does not exist"):
        run_config(config, tmp_path / "run")
    weights_writer(config.model.build(0))(path)
    again = rehearse(config, tmp_path / "run", patience=0)
    assert again.notes == ()
    assert (again.macs, again.budget) == (found.macs, found.budget)
    weights_writer(torch.nn.Linear(2, 2))(path)
    with pytest.raises(CheckpointError, match="does not fit"):
        rehearse(config, tmp_path / "run", patience=0)


@pytest.mark.parametrize(
    "overrides",
    [
        ["budget.macs=0.0001"],
        ["data={name = 'cifar10', path = 'gone'}"],
        ["pretrain.distillation=0.5"],
        ["evaluator.batch_size=2000", "evaluator.calibration_images=2000"],
        ["space.fixed=['nothing']"],
        ["searcher.initial=[[1, 2]]"],
        ["execution.workers=1", "execution.gpus=0.5"],
    ],
)
def test_it_refuses_what_a_search_refuses_in_the_same_words(tiny_config, tmp_path, overrides):
    config = read_config(tiny_config, overrides)
    said = []
    for act in (rehearse, run_config):
        if "execution.gpus=0.5" in overrides and torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        with pytest.raises(AbcSearchError) as caught:
            act(config, tmp_path / "run")
        said.append((type(caught.value), str(caught.value)))
    assert said[0] == said[1]
    assert not (tmp_path / "run").exists()


def test_folders_of_something_else_are_refused_as_by_a_search(tiny_config, tmp_path):
    foreign, other = tmp_path / "foreign", tmp_path / "other"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    run_config(read_config(tiny_config, ["n_trials=2", "baselines=[]"]), other)
    for folder, overrides in ((foreign, []), (other, ["seed=1"])):
        said = []
        for act in (rehearse, run_config):
            with pytest.raises(RunError) as caught:
                act(read_config(tiny_config, overrides), folder)
            said.append(str(caught.value))
        assert said[0] == said[1]


@pytest.mark.parametrize(
    ("fixed", "pace", "full", "patience"),
    [(0.5, 0.001, 10_000, 2), (0.0, 0.5, 100, 2), (3.0, 0.01, 1e6, 2), (0.1, 1e-6, 5000, 2)],
)
def test_a_time_that_grows_in_proportion_is_found_exactly(fixed, pace, full, patience):
    timed = []

    def part(share):
        work = max(1, round(share * full))
        seconds = fixed + pace * work
        timed.append(work)
        return timing._Part(work, seconds, seconds)

    found = timing._grown(part, full, patience)
    assert found.seconds == pytest.approx(fixed + pace * full, rel=1e-6) or fixed > patience
    assert found.share == timed[-1] / full
    assert timed == sorted(timed)
    assert fixed + pace * timed[-1] <= 1.01 * patience or len(set(timed)) == 1
    if fixed > patience:  # one part only: nothing says what of it was fixed
        assert found.seconds >= fixed + pace * full


@pytest.mark.parametrize("first", [5.0, 30.0, 1000.0])
def test_a_first_time_that_takes_longer_does_not_count(first):
    # 20: 2 s of patience allow 2.5 times as much again
    timed = iter([(1, first), (1, 0.1), (8, 0.8), (20, 1.6)])

    def part(share):
        work, seconds = next(timed)
        assert max(1, round(100 * share)) == work
        return timing._Part(work, seconds, seconds)

    found = timing._grown(part, 100, 2)
    assert found == Estimate(
        seconds=pytest.approx(1.6 + (1.6 - 0.8) / (20 - 8) * (100 - 20)), share=0.2
    )


def test_a_larger_part_that_took_no_longer_counts_in_proportion():
    # The last cannot be made larger: it is the end
    timed = iter([(10, 0.5), (10, 0.5), (20, 0.45), (20, 0.45)])
    found = timing._grown(lambda _: timing._Part(*(pair := next(timed)), pair[1]), 100, 1.0)
    assert found.seconds == pytest.approx(0.45 * 5)
    assert next(timed, None) is None


def test_times_of_evaluations_are_those_of_all_their_images(tiny_config, tmp_path, monkeypatch):
    """With a clock that counts images: what is found is what the whole evaluation would take."""
    each = {
        "adaptive_bn": lambda own: own["calibration_images"],
        "short_training": lambda own: 3 * own["steps"] * own["batch_size"],
    }
    made, clock = {}, [0.0]

    def evaluated(images, *_):
        clock[0] += 0.01 * images
        return Evaluation(fitness=1.0, seconds=0.01 * images)

    def make(name, *_, **own):
        made.setdefault(name, []).append(own)
        clock[0] += 0.1  # what is made ready
        return each[name](own) + own["validation_images"]

    monkeypatch.setattr(timing, "make_evaluator", make)
    monkeypatch.setattr(timing, "measured", lambda evaluator, *_: evaluator)
    monkeypatch.setattr(timing, "evaluate", evaluated)
    monkeypatch.setattr(timing, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(timing, "_CHEAP", 0)

    def found(evaluator):
        config = read_config(tiny_config, [f"evaluator={evaluator}"])
        task, _ = prepare(config, RunFolder(tmp_path / "run"))
        return evaluation_time(task, config, task.space.full)

    first = found("{name = 'adaptive_bn', calibration_images = 512, batch_size = 100}")
    assert first.seconds == pytest.approx(0.01 * (500 + 360), rel=0.02)
    assert first.share < 0.3
    assert {own["batch_size"] for own in made["adaptive_bn"]} == {8}
    second = found(
        "{name = 'short_training', epochs = 3, batch_size = 100, validation_images = 50}"
    )
    assert second.seconds == pytest.approx(0.01 * (3 * 3 * 1000 + 50), rel=0.02)
    assert second.share < 0.2
    assert all(own["lr"] < 1e-5 for own in made["short_training"])
    short = "short_training = {epochs = 3, batch_size = 100}"
    both = found(
        f"{{name = 'cascade', fraction = 0.5, {short}, adaptive_bn = {{calibration_images = 512, batch_size = 100}}}}"
    )
    assert both.seconds == pytest.approx(0.01 * (500 + 360 + 0.5 * (3 * 3 * 1000 + 360)), rel=0.02)


@pytest.mark.parametrize(
    "evaluator",
    [
        "{name = 'short_training', steps = 2, batch_size = 16}",
        "{name = 'cascade', short_training = {steps = 2}, adaptive_bn = {calibration_images = 128}}",
        "{name = 'abcsearch.evaluation.adaptive_bn:AdaptiveBN'}",
    ],
)
def test_every_evaluator_is_timed(tiny_config, tmp_path, evaluator):
    found = rehearse(read_config(tiny_config, [f"evaluator={evaluator}"]), tmp_path / "run")
    assert found.evaluation.failure is None
    assert 0 < found.evaluation.seconds < 60
    assert found.evaluation.share == 1


def test_an_evaluation_that_fails_is_noted(tiny_config, tmp_path, monkeypatch):
    def broken(*_):
        raise ArithmeticError("no")

    monkeypatch.setattr(timing, "measured", lambda *_: broken)
    found = rehearse(read_config(tiny_config), tmp_path / "run", patience=0)
    assert found.notes == ("the timed evaluation failed: ArithmeticError: no",)


def test_training_leaves_the_network_as_it_was_and_times_the_whole_where_it_is_short(
    tiny_config, tmp_path
):
    config = read_config(tiny_config)
    task, _ = prepare(config, RunFolder(tmp_path / "run"))
    before = {name: tensor.clone() for name, tensor in task.source.model.state_dict().items()}
    found = training_time(task, task.source.model, config.finetune, patience=30)
    assert found.share == 1
    assert all(
        torch.equal(before[name], tensor) for name, tensor in task.source.model.state_dict().items()
    )


@pytest.mark.parametrize(
    ("overrides", "turns"),
    [
        ([], 24),
        (["searcher.n_sources=5", "execution.workers=2"], 4 * 3 + 2),
        (["searcher.n_sources=5", "execution.workers=2", "execution.window=8"], 12),
        (["searcher=random", "execution.workers=2"], 12),
        (["execution.workers=2", "execution.schedule=asynchronous"], 12),
    ],
)
def test_rounds_wait_for_their_last_evaluation(
    tiny_config, tmp_path, monkeypatch, overrides, turns
):
    monkeypatch.setattr(dry_run, "evaluation_time", lambda *_: Estimate(seconds=10.0, share=1))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    found = rehearse(read_config(tiny_config, overrides), tmp_path / "run", patience=0)
    assert (found.search, found.alone) == (10 * turns, 240)
    assert found.baseline == (None if "searcher=random" in overrides else 240 / found.workers)


def test_workers_beyond_the_cores_do_not_count(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    config = read_config(tiny_config, ["execution.workers=16", "evaluator.threads=2"])
    found = rehearse(config, tmp_path / "run", patience=0)
    assert found.workers == 2
    assert found.notes == ("16 workers of 2 thread(s) share 4 CPUs and count as 2",)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.123, "0.12 s"),
        (9.94, "9.9 s"),
        (42.4, "42 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (12_000, "3 h 20 min"),
        (7200, "2 h"),
        (200_000, "2 days 8 h"),
        (86_400 * 400, "400 days"),
    ],
)
def test_times_in_words(seconds, words):
    assert about(seconds) == words


@pytest.mark.parametrize(
    ("high", "largest", "said"),
    [(0.8, 0.77, True), (0.5, 0.77, False), (1.0, 1.0, False), (0.77, 0.77, False)],
)
def test_a_budget_that_no_structure_spends_is_told_what_does(high, largest, said):
    own = Reach(name="macs", low=0, high=1e6 * high, smallest=1e4, largest=1e6 * largest, full=1e6)
    assert ("with alpha = 1 in [space]" in own.line) == said


def test_dry_run_prints_it_and_writes_nothing(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    printed = call("search", tiny_config, "--dry-run", "--set", "budget.macs=[0.4, 0.5]")
    assert printed.exit_code == 0, printed.output
    for words in (
        "network: small_resnet (widths = [4, 6], depths = [1, 1])",
        "weights: trained first",
        "data: digits; 1,077 train, 360 search-validation, 360 test; 1x8x8",
        "(40 % to 50 %); this space reaches ",
        "; 24 trials, 4 at a time, 6 rounds",
        "per structure",
        "search: about ",
        "random baseline: about ",
        "base network: about ",
        "fine-tuning: about ",
        "in all: about ",
        "nothing was written",
    ):
        assert words in printed.output
    plain = call("search", tiny_config, "--dry-run", "--json", "--run-dir", "runs/a")
    found = json.loads(plain.stdout)
    assert found["structures"] == "225"
    assert found["evaluation"]["seconds"] > 0
    assert set(found) == {"total", *(field.name for field in dataclasses.fields(dry_run.Rehearsal))}
    tuning = (
        found["finetuning"][0]["seconds"] + found["finetuned"] * found["finetuning"][1]["seconds"]
    )
    parts = found["pretraining"]["seconds"], found["search"], found["baseline"], tuning
    assert found["total"] == pytest.approx(sum(parts))
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--json"], "--json belongs to --dry-run"),
        (["--dry-run", "--set", "budget.macs=0.0001"], "cannot be reached"),
        (["--dry-run", "--set", "n_trial=5", "--set", "seeds=3"], "has 2 mistake(s)"),
    ],
)
def test_mistakes_are_answered_as_by_a_search(tiny_config, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    printed = call("search", tiny_config, *arguments)
    assert printed.exit_code == 2
    assert words in printed.output
    assert not (tmp_path / "runs").exists()


def test_the_default_folder_may_hold_another_run(tiny_config, tmp_path, monkeypatch):
    """Without --run-dir nobody has chosen that folder: what would be searched is shown all the same."""
    monkeypatch.chdir(tmp_path)
    run_config(read_config(tiny_config, ["n_trials=1", "baselines=[]"]), "runs/tiny")
    before = files(tmp_path)
    call = ["search", str(tiny_config), "--set", "seed=3", "--dry-run"]
    shown = CliRunner().invoke(app, call)
    assert shown.exit_code == 0, shown.output
    assert (
        "note: a search would need another folder, --run-dir: runs/tiny already holds a different run"
        in shown.output
    )
    refused = CliRunner().invoke(app, [*call, "--run-dir", "runs/tiny"])
    assert refused.exit_code == 2
    assert "already holds a different run" in refused.output
    assert files(tmp_path) == before
    alone = CliRunner().invoke(app, [*call[:2], "--set", "budget.macs=0.0001", "--dry-run"])
    assert alone.exit_code == 2  # what is wrong anywhere is refused
