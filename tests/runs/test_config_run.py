"""Configured runs: mistakes before training, baselines at equal cost, weights and scores that belong together."""

import dataclasses
import json
import sys
import tomllib
import types
import warnings

import pytest
import torch

from abcsearch import Budget, Data, load
from abcsearch.config import parse_config, read_config
from abcsearch.data.registry import load_data
from abcsearch.errors import BudgetError, CheckpointError, ConfigError, RunError
from abcsearch.evaluation.base import evaluate
from abcsearch.results.exports import export_run
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.open_run import open_run, open_so_far
from abcsearch.results.report import make_report
from abcsearch.runs.config_run import LoadedOnce, run_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import read_journal
from abcsearch.runs.resuming import resume


def structures(folder, **given):
    return {s.name: s.candidate for s in open_run(folder, **given).structures}


def test_fewer_trials_are_fewer_for_winner_and_random_alike(tiny_config, tmp_path):
    config = read_config(tiny_config, ["n_trials=12"])
    run_config(dataclasses.replace(config, n_trials=4), tmp_path / "short")
    run_config(config, tmp_path / "long")
    run_config(dataclasses.replace(config, n_trials=4), tmp_path / "long")
    assert structures(tmp_path / "long") == structures(tmp_path / "short")
    for part in (".", "baselines/random"):
        best = [
            RunFolder(tmp_path / run / part).read_json("best.json")["number"]
            for run in ("short", "long")
        ]
        assert best[0] == best[1] < 4


def test_random_search_is_its_own_baseline(tiny_config, tmp_path):
    config = read_config(tiny_config, ["searcher=random", "n_trials=3"])
    assert config.baselines == ("uniform",)
    run_config(config, tmp_path / "run")
    assert list(structures(tmp_path / "run")) == ["full", "uniform", "random"]


def test_runs_share_data_that_are_the_same(tiny_config, tmp_path, monkeypatch):
    config, loads = read_config(tiny_config, ["n_trials=3"]), []
    monkeypatch.setattr(
        "abcsearch.runs.config_run.load_data", lambda *a, **o: loads.append(a) or load_data(*a, **o)
    )
    load = LoadedOnce()
    for name, seed in (("run", 0), ("again", 0), ("other", 1)):
        run_config(dataclasses.replace(config, seed=seed), tmp_path / name, load=load)
    assert structures(tmp_path / "again", load=load) == structures(tmp_path / "run", load=load)
    assert len(loads) == 2
    assert open_so_far(tmp_path / "run", load=load).result.task.data is load(config)
    other = open_run(tmp_path / "other", load=load).result.task.data
    assert other is not load(config)
    with pytest.raises(RunError, match="data"):
        open_so_far(tmp_path / "run", load=lambda _: other)


def test_weights_are_not_taken_for_those_of_older_scores(tiny_config, tmp_path, monkeypatch):
    run_config(read_config(tiny_config, ["n_trials=3"]), tmp_path / "run")
    run = open_run(tmp_path / "run")
    finetune_run(run)
    kept = run.scores(run.winner)
    write = RunFolder.write_json

    def killed(self, name, value, **options):
        if name.startswith("finetuned/"):
            raise KeyboardInterrupt
        write(self, name, value, **options)

    monkeypatch.setattr(RunFolder, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune_run(run, dataclasses.replace(run.config.finetune, lr=0.1))
    monkeypatch.undo()
    assert run.scores(run.winner) == kept  # the new ones were not whole yet
    finetune_run(run)
    assert run.scores(run.winner) == kept


def test_what_was_fine_tuned_of_another_structure_is_not_exported_as_the_winner(
    tiny_config, tmp_path
):
    run_config(read_config(tiny_config, ["n_trials=4"]), tmp_path / "run")
    run = open_run(tmp_path / "run")
    finetune_run(run)
    scores = run.folder.read_json("finetuned/bee_colony.json")
    run.folder.write_json(
        "finetuned/bee_colony.json", {**scores, "candidate": [1, *scores["candidate"][1:]]}
    )
    done = export_run(run)
    path, tuned = done.made, done.tuned
    assert not tuned
    assert sum(p.numel() for p in load(path).parameters()) == run.result.best.evaluation.params
    assert make_report(run).rows[-1].after is None
    done = export_run(run, network="uniform")
    uniform, tuned = done.made, done.tuned
    assert tuned
    assert uniform.path == run.folder.path / "export" / "uniform"
    assert (
        sum(p.numel() for p in load(uniform.path).parameters()) == make_report(run).rows[1].params
    )


def test_a_report_evaluates_a_network_once(tiny_config, tmp_path, monkeypatch):
    """It may mean to train the full network for as long as a trial."""
    run_config(
        read_config(
            tiny_config, ["n_trials=3", "searcher.guide=0", 'baselines=["uniform", "random"]']
        ),
        tmp_path / "run",
    )
    evaluated, kept = [], tmp_path / "run" / "fitness.json"
    monkeypatch.setattr(
        "abcsearch.results.open_run.evaluate",
        lambda own, c, *more: evaluated.append(c) or evaluate(own, c, *more),
    )
    run = open_run(tmp_path / "run")
    rows = [row.fitness for row in make_report(run).rows]
    assert [run.structures[0].candidate, run.structures[1].candidate] == evaluated
    assert [row.fitness for row in make_report(open_run(tmp_path / "run")).rows] == rows
    assert len(evaluated) == 2
    key = next(iter(json.loads(kept.read_text())))
    for damage in ("{", "[1]", '{"1": "2"}', f'{{"{key}": NaN}}', "[" * 200_000):
        kept.write_text(damage)
        assert [row.fitness for row in make_report(open_run(tmp_path / "run")).rows] == rows
    assert len(evaluated) == 12
    kept.unlink()
    kept.mkdir()  # nothing can be kept there
    assert [row.fitness for row in make_report(open_run(tmp_path / "run")).rows] == rows
    kept.rmdir()
    random = {
        t.candidate: t.fitness
        for t in read_journal(tmp_path / "run/baselines/random/journal.jsonl").trials.values()
    }
    assert rows[2] == max(random.values())


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (["pretrain.distillation=0.5"], ConfigError, "no teacher"),
        (
            ["budget.macs=0.3", "budget.params=[0.95, 1.0]", "space.alpha=1.0"],
            BudgetError,
            "no structure found",
        ),
    ],
)
def test_mistakes_are_found_before_training_and_leave_the_folder_free(
    tiny_config, tmp_path, changes, error, words
):
    with pytest.raises(error, match=words):
        run_config(read_config(tiny_config, changes), tmp_path / "run")
    assert len(run_config(read_config(tiny_config, ["n_trials=2"]), tmp_path / "run").trials) == 2


def test_batches_fit_small_data_and_it_is_said(tiny_config, tmp_path):
    """Before, the run was refused: nothing was trained in batches that there are no images for."""
    small = ["data.validation=0.9", "n_trials=2", "baselines=[]", "finetune.epochs=1"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        result = run_config(read_config(tiny_config, small), tmp_path / "run")
        finetune_run(open_run(tmp_path / "run"))
    said = [str(one.message) for one in caught if "one batch" in str(one.message)]
    assert set(said) == {
        "batch_size = 256 is larger than the 143 training images: they are one batch"
    }
    assert len(result.trials) == 2


def test_settings_may_change_until_there_is_something_to_lose(tiny_config, tmp_path, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("abcsearch.runs.base.train", killed)
    with pytest.raises(KeyboardInterrupt):
        run_config(read_config(tiny_config), tmp_path / "run")
    monkeypatch.undo()
    run_config(read_config(tiny_config, ["seed=5", "n_trials=2"]), tmp_path / "run")
    with pytest.raises(RunError, match="seed: 5 in the folder, 0 now"):
        run_config(read_config(tiny_config, ["n_trials=2"]), tmp_path / "run")


def test_a_changed_checkpoint_is_another_run_and_a_lost_one_is_not_needed(tiny_config, tmp_path):
    run_config(read_config(tiny_config, ["n_trials=2"]), tmp_path / "first")
    checkpoint = tmp_path / "mine.safetensors"
    checkpoint.write_bytes((tmp_path / "first" / "base.safetensors").read_bytes())
    tiny_config.write_text(
        tiny_config.read_text().replace("pretrain = {epochs = 1, batch_size = 256}\n", "")
    )
    config = read_config(tiny_config, [f"model.checkpoint={checkpoint}", "n_trials=2"])
    result = run_config(config, tmp_path / "run")
    checkpoint.unlink()
    assert resume(tmp_path / "run").trials[0].candidate == result.trials[0].candidate
    torch.save({"other": torch.zeros(1)}, checkpoint)
    with pytest.raises(RunError, match="the checkpoint file has changed"):
        run_config(config, tmp_path / "run")
    with pytest.raises(CheckpointError):
        run_config(config, tmp_path / "new")


def test_a_run_is_continued_from_another_folder(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_config(read_config(tiny_config, ["n_trials=2"]), "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(resume("../run", n_trials=3).trials) == 3


def test_log_tells_what_happened(tiny_config, tmp_path):
    run_config(read_config(tiny_config, ["n_trials=6"]), tmp_path / "run")
    finetune_run(open_run(tmp_path / "run"))
    log = (tmp_path / "run" / "log.txt").read_text()
    for words in (
        "base network: 1/1, loss",
        "bee_colony: 6/6, best",
        "search finished: 6 trials",
        "fine-tuning uniform",
    ):
        assert words in log


def test_labels_without_an_output_are_refused_at_the_start(tiny_config, tmp_path):
    with pytest.raises(Exception, match="label 9 has no output: the model has 7 classes"):
        run_config(read_config(tiny_config, ["model.classes=7"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_records_of_python_are_checked(tiny_config):
    config = read_config(tiny_config)
    for changes, words in (
        ({"budget": 0.5}, "budget is a Budget"),
        ({"space": {"ranks": True}}, r"space is a SpaceOptions, e.g. .*, found {'ranks': True}"),
        ({"latency": {"runtime": "torch"}}, r"latency is a LatencyOptions, e.g. LatencyOptions\("),
        ({"execution": 4}, r"execution is an ExecutionOptions, .* found 4"),
        ({"n_trials": 2.5}, "n_trials is a whole number"),
    ):
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(config, **changes)
    assert json.dumps(Budget(macs=10**30).bounds)


def test_a_regression_runs_from_search_to_report(tiny_config, tmp_path, monkeypatch):
    """How bright an image is, and how bright its left half."""
    module = types.ModuleType("brightness")

    def images():
        pixels = torch.rand(500, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        values = torch.stack(
            [pixels.mean(dim=(1, 2, 3)), pixels[..., :3].mean(dim=(1, 2, 3))], dim=1
        )
        return Data.from_tensors(
            (pixels[:400], values[:400]), (pixels[400:], values[400:]), objective="regression"
        )

    module.images = images
    monkeypatch.setitem(sys.modules, "brightness", module)
    plain = tomllib.loads(tiny_config.read_text())
    plain |= {
        "data": "brightness:images",
        "n_trials": 4,
        "model": {**plain["model"], "in_channels": 1, "classes": 2},
    }
    plain["evaluator"] = {"name": "cascade", "metric": "neg_mse", "short_training": {"steps": 2}}
    run_config(parse_config(plain), tmp_path / "run")
    run = open_run(tmp_path / "run")
    finetune_run(run)
    report = make_report(run)
    assert report.metric == "neg_mse"
    assert all(-1 < row.after < 0 for row in report.rows)
    assert "neg_mse on 100 test images" in report.markdown()
