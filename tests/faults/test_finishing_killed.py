"""Export and fine-tuning are killed at random instants: nothing is lost, and the next one leaves nothing of theirs."""

import multiprocessing
import shutil
import signal
import time

import numpy as np
import pytest

from abcsearch.config import read_config
from abcsearch.exporting import load
from abcsearch.results.exports import export_run
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.open_run import open_run
from abcsearch.results.status import RunWatch
from abcsearch.runs.config_run import run_config
from abcsearch.training.recipe import Recipe
from tests.conftest import TINY_CONFIG

pytestmark = pytest.mark.faults
ONE = Recipe(epochs=1, batch_size=64, lr=0.05)
TWO = Recipe(epochs=2, batch_size=64, lr=0.05, keep="best")
KILLS = 8


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("finishing")
    (path / "tiny.toml").write_text(TINY_CONFIG)
    run_config(
        read_config(path / "tiny.toml", ["n_trials=3", "baselines=['uniform']"]), path / "run"
    )
    finetune_run(open_run(path / "run"), ONE)
    shutil.copytree(path / "run", path / "whole")
    finetune_run(open_run(path / "whole"), TWO)
    return path


@pytest.fixture(scope="module")
def forks():
    """Processes that start with everything imported, so that a kill hits what they do."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "torch",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "abcsearch.results.exports",
            "abcsearch.results.finetuning",
        ]
    )
    first = context.Process(target=int)
    first.start()
    first.join()
    return context


def _export(folder, kind):
    export_run(open_run(folder), format=kind)


def _tune(folder):
    finetune_run(open_run(folder), TWO)


def killed(forks, target, arguments):
    """Calls a function in a process again and again, and kills it at another instant each time; yields after each."""
    began = time.monotonic()
    whole = forks.Process(target=target, args=arguments)
    whole.start()
    whole.join()
    assert whole.exitcode == 0
    seconds, instants, kills = time.monotonic() - began, np.random.default_rng(), 0
    while kills < KILLS:
        victim = forks.Process(target=target, args=arguments)
        victim.start()
        victim.join(instants.uniform(0.05, 1) * seconds)
        victim.kill()
        victim.join()
        assert victim.exitcode in (0, -signal.SIGKILL)
        kills += victim.exitcode != 0
        yield victim.exitcode != 0


def hidden(folder):
    """Temporary files and folders anywhere in a run folder."""
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize("kind", ["safetensors", "onnx", "pt2"])
def test_an_export_killed_at_random_instants(made, tmp_path, forks, kind):
    shutil.copytree(made / "whole", tmp_path / "run")
    export = tmp_path / "run" / "export"
    target = export if kind == "safetensors" else export / f"model.{kind}"
    most = 0
    for _ in killed(forks, _export, (tmp_path / "run", kind)):
        load(target)
        most = max(most, len(hidden(tmp_path / "run")))
    assert most <= 1  # each removes what the one before has left
    export_run(open_run(tmp_path / "run"), format=kind)
    assert not hidden(tmp_path / "run")


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_fine_tuning_killed_at_random_instants(made, tmp_path, forks):
    run, expected = tmp_path / "run", content(made / "whole" / "finetuned")
    shutil.copytree(made / "run", run)
    finished = 0
    for stopped in killed(forks, _tune, (run,)):
        assert set(RunWatch(run).look().tuned) <= {"bee_colony", "full", "uniform"}
        # What it has ended with is as undisturbed; then from the beginning
        if not stopped or finished == 0:
            finished += 1
            if not stopped:
                assert content(run / "finetuned") == expected
            shutil.rmtree(run / "finetuned")
            shutil.copytree(made / "run" / "finetuned", run / "finetuned")
    finetune_run(open_run(run), TWO)
    assert content(run / "finetuned") == expected
    assert not hidden(run)
