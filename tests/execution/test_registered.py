"""What a script registers is known where its workers look it up, and what cannot be sent is named."""

import threading

import pytest
import torch.nn.functional as F
from torch import nn

from abcsearch import (
    OBJECTIVES,
    OUTPUTS,
    Budget,
    Data,
    Objective,
    RayTraining,
    Recipe,
    finetune,
    search,
)
from abcsearch.errors import RunError
from abcsearch.execution.options import ExecutionOptions
from abcsearch.execution.ray_cluster import connect
from abcsearch.execution.ray_executor import RayExecutor
from abcsearch.training.objectives import registered
from tests.problems import PATIENCE

pytest.importorskip("ray.train", reason="needs the extra train", exc_type=ImportError)


class Two(nn.Module):
    """Returns more than its output."""

    def __init__(self):
        super().__init__()
        self.a, self.n, self.b, self.f = (
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 12, 3),
            nn.Linear(12, 2),
        )

    def forward(self, x):
        hidden = F.relu(self.b(F.relu(self.n(self.a(x))))).mean((2, 3))
        return {"hidden": hidden, "prediction": self.f(hidden)}


class Other(nn.Module):
    """Has nothing to do with it."""


@pytest.fixture(scope="module", autouse=True)
def _ray():
    """Ray as the first one starts it; all tests borrow it."""
    cluster = connect(None, 2, 0, lambda line: None)
    yield
    cluster.close()


@pytest.fixture
def added(monkeypatch):
    """What a script registers: these workers only know what is sent to them."""
    monkeypatch.setitem(OUTPUTS, Two, lambda returned: returned["prediction"])
    margin = Objective(
        loss=F.multi_margin_loss, metrics={"margin": lambda o, y: o.gather(1, y[:, None])[:, 0]}
    )
    monkeypatch.setitem(OBJECTIVES, "margin", margin)


def data(tiny_data):
    return Data(
        name="margin",
        train=tiny_data.train,
        validation=tiny_data.validation,
        test=tiny_data.test,
        objective="margin",
    )


def assert_found(tiny_data, tmp_path, evaluator, **workers):
    options = {
        "budget": Budget(params=0.6),
        "n_trials": 2,
        "searcher": "random",
        "evaluator": evaluator,
    }
    here = search(Two(), data(tiny_data), **options, run_dir=tmp_path / "here")
    there = search(
        here.task.source.model, data(tiny_data), **options, run_dir=tmp_path / "there", **workers
    )
    assert [t.evaluation.metrics for t in there.trials] == [
        t.evaluation.metrics for t in here.trials
    ]
    assert all(t.evaluation.failure is None for t in there.trials)


def test_a_search_finds_them_in_its_workers(added, tiny_data, tmp_path):
    short = {"name": "short_training", "steps": 2, "batch_size": 32}
    assert_found(tiny_data, tmp_path, short, execution=ExecutionOptions(workers=1))


def test_a_search_finds_them_in_given_workers_and_a_later_one_may_register_more(
    added, tiny_data, tmp_path, monkeypatch
):
    executor = RayExecutor(1)
    assert_found(tiny_data, tmp_path, "adaptive_bn", executor=executor)
    objectives = sorted(OBJECTIVES)
    assert executor.submit(names).result(PATIENCE) == (objectives, ["Two"])
    monkeypatch.setitem(OUTPUTS, Other, len)
    executor.prepare(registered())
    assert executor.submit(names).result(PATIENCE) == (objectives, ["Other", "Two"])
    executor.shutdown()


@pytest.mark.faults
def test_fine_tuning_finds_them_in_its_workers(added, tiny_data):
    recipe = Recipe(epochs=1, lr=0.05, batch_size=32)
    tuned = finetune(Two(), data(tiny_data), recipe, workers=RayTraining(workers=2))
    assert tuned.after.keys() == {"margin"}


def names():
    return sorted(OBJECTIVES), sorted(kind.__name__ for kind in OUTPUTS)


@pytest.mark.parametrize("kind", ["OUTPUTS", "OBJECTIVES"])
def test_an_entry_that_cannot_be_sent_is_named(added, monkeypatch, tiny_data, tmp_path, kind):
    lock = threading.Lock()
    if kind == "OUTPUTS":
        monkeypatch.setitem(OUTPUTS, Other, lambda returned: (lock, returned)[1])
    else:
        monkeypatch.setitem(
            OBJECTIVES, "other", Objective(loss=lambda o, y: lock and F.mse_loss(o, y), metrics={})
        )
    words = r"OUTPUTS\[Other\]" if kind == "OUTPUTS" else r"OBJECTIVES\['other'\]"
    words += r" cannot be sent to workers: cannot pickle '_thread.lock' object"
    executor = RayExecutor(1)
    executor.prepare(registered())
    with pytest.raises(RunError, match=words):
        executor.submit(names)
    executor.shutdown()
    with pytest.raises(RunError, match=words):
        finetune(
            Two(), data(tiny_data), Recipe(epochs=1, batch_size=32), workers=RayTraining(workers=2)
        )


def test_what_is_built_in_is_not_sent():
    assert [name for name in registered() if name.startswith("OBJECTIVES")] == []
