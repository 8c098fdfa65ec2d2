"""Whole jobs on a GPU agree with those on the CPU; the same tests run on the CPU alone, where they must hold exactly."""

import pytest

from abcsearch.config import read_config
from abcsearch.results.open_run import open_run
from abcsearch.runs.config_run import run_config
from tests.mutations import call

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
EVALUATORS = [
    ("adaptive_bn", ["evaluator.repair=none"]),
    ("adaptive_bn", ["evaluator.repair=one_shot"]),
    ("short_training", ["evaluator.repair=none", "evaluator.epochs=1"]),
]


def searched(config, folder, device, *changes):
    """Returns the trials of a search on a device; the base network is trained on the CPU."""
    on = [f"evaluator.device={device}", "pretrain.device=cpu", f"finetune.device={device}"]
    return run_config(read_config(config, [*on, "n_trials=4", *changes]), folder).trials


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "changes"), EVALUATORS)
def test_fitness_is_that_of_the_cpu(tiny_config, tmp_path, device, name, changes):
    # Random search: the same structures whatever they are worth
    changes = ["searcher=random", f"evaluator={name}", "baselines=[]", *changes]
    trials = searched(tiny_config, tmp_path / "cpu", "cpu", *changes)
    other = searched(tiny_config, tmp_path / "other", device, *changes)
    assert [trial.candidate for trial in other] == [trial.candidate for trial in trials]
    tolerance = 0.0 if device == "cpu" else 0.03  # of 360 images, some are close calls
    for one, two in zip(trials, other, strict=True):
        assert two.evaluation.fitness == pytest.approx(one.evaluation.fitness, abs=tolerance)


@pytest.mark.parametrize("device", DEVICES)
def test_a_job_is_done_on_a_gpu_and_goes_on_without_it(tiny_config, tmp_path, device):
    run = tmp_path / "run"
    searched(tiny_config, run, device, "baselines=[]")
    for command in (
        ["finetune", run],
        ["export", run, "--format", "safetensors"],
        ["resume", run, "--n-trials", "6", "--device", "cpu"],
    ):
        code, printed = call(*command)
        assert code == 0, printed
    assert len(open_run(run).result.trials) == 6
    assert list(run.glob("export*/**/plan.json"))


@pytest.mark.gpu
def test_two_workers_share_a_gpu(tiny_config, tmp_path):
    changes = ["searcher=random", "execution.workers=2", "execution.gpus=0.5"]
    trials = searched(tiny_config, tmp_path / "run", "cuda", *changes)
    assert all(trial.evaluation.failure is None for trial in trials)
