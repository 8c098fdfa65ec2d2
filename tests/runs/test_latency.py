"""A budget of forward time: measured once, kept, and met."""

import pytest
import torch
from torch import nn

from abcsearch import Budget, SpaceOptions, resume, search
from abcsearch.channels.latency import LatencyModel, LatencyOptions
from abcsearch.data.splits import Data
from abcsearch.errors import RunError
from abcsearch.files import unsealed


@pytest.fixture
def task():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()]
    layers += [nn.Conv2d(12, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 4)).eval()
    images, labels = torch.rand(240, 1, 12, 12), torch.arange(240) % 4
    data = Data.from_tensors(
        (images[:200], labels[:200]), (images[200:], labels[200:]), validation=0.25
    )
    return model, data


QUICK = LatencyOptions(repeats=3)


def test_a_run_measures_once_and_keeps_what_it_measured(task, tmp_path, monkeypatch):
    model, data = task
    run = {"budget": Budget(latency_ms=1.0, macs=0.8), "latency": QUICK, "searcher": "random"}
    first = search(model, data, n_trials=3, run_dir=tmp_path / "run", **run)
    kept = unsealed((tmp_path / "run" / "latency.json").read_text())[0]
    assert set(kept) == {"(rest)", "0.weight", "3.weight", "8.weight"}
    assert first.task.constraint.costs.to_plain() == kept
    assert not first.task.constraint.violation([trial.candidate for trial in first.trials]).any()
    front = first.pareto("latency_ms")
    assert (
        first.number(front[0], "latency_ms")
        == first.task.constraint.costs.latency_ms([front[0].candidate])[0]
    )

    def measured_again(*_, **__):
        raise AssertionError

    monkeypatch.setattr(LatencyModel, "measure", measured_again)
    again = resume(tmp_path / "run", model=model, data=data, n_trials=6)
    assert again.trials[:3] == first.trials
    assert len(again.trials) == 6
    (tmp_path / "run" / "latency.json").write_text('{"other": [[1], [1]]}')
    with pytest.raises(
        RunError, match=r"latency.json cannot be used: .* another network; it differs in \(rest\)"
    ):
        resume(tmp_path / "run", model=model, data=data, n_trials=9)


def test_candidates_that_are_measured_outside_fail(task, tmp_path, monkeypatch):
    model, data = task
    times = iter([9.0, 1.0, 9.0, 1.0])
    plain = {
        name: [[0.0, 10.0**9], [0.0, 1.0]]
        for name in ("(rest)", "0.weight", "3.weight", "8.weight")
    }
    monkeypatch.setattr(
        LatencyModel, "measure", lambda _, graph, *__: LatencyModel.from_plain(plain, graph.costs)
    )
    monkeypatch.setattr(
        "abcsearch.runs.timed_evaluator.measure_latency", lambda *_, **__: [next(times)]
    )
    found = search(
        model,
        data,
        budget=Budget(latency_ms=2.0),
        latency=LatencyOptions(repeats=1, check=True),
        n_trials=4,
        searcher="random",
        run_dir=tmp_path / "run",
    )
    assert [trial.evaluation.failure for trial in found.trials[::2]] == [
        "latency of 9 ms is outside of 0 to 2 ms"
    ] * 2
    assert [trial.evaluation.metrics["latency_ms"] for trial in found.trials] == [
        9.0,
        1.0,
        9.0,
        1.0,
    ]
    assert found.best.number in (1, 3)


def test_without_a_bound_on_latency_nothing_is_measured(task, tmp_path, monkeypatch):
    monkeypatch.setattr(LatencyModel, "measure", None)
    search(*task, budget=Budget(macs=0.5), n_trials=2, searcher="random", run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "latency.json").exists()


def test_a_bound_that_no_structure_meets_is_refused_with_the_reachable_range(task, tmp_path):
    with pytest.raises(
        Exception, match=r"latency_ms = 1e-07 cannot be reached: .* structures of this space have"
    ):
        search(
            *task,
            budget=Budget(latency_ms=1e-7),
            latency=QUICK,
            n_trials=2,
            run_dir=tmp_path / "run",
            space=SpaceOptions(alpha=0.5),
        )
    assert not (tmp_path / "run" / "run.json").exists()
