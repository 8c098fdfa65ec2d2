"""A budget of forward time: measured once, kept, and met, also by those that are measured before one of them wins."""

import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch import Budget, SpaceOptions, resume, search
from abcsearch.channels.latency import LatencyModel, LatencyOptions, Turns
from abcsearch.channels.timed import LayerTimes
from abcsearch.data.splits import Data
from abcsearch.errors import BudgetError, ConfigError, ModelError, RunError
from abcsearch.files import unsealed
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import read_journal
from abcsearch.runs.latency import run_costs
from abcsearch.runs.settings import SearchSettings
from tests import own_runtimes
from tests.records import rewrite


@pytest.fixture
def task():
    return made()


def made():
    """A small network, and images."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()]
    layers += [nn.Conv2d(12, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 4)).eval()
    images, labels = torch.rand(240, 1, 12, 12), torch.arange(240) % 4
    data = Data.from_tensors(
        (images[:200], labels[:200]), (images[200:], labels[200:]), validation=0.25
    )
    return model, data


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run folder with one trial inside a budget of forward time."""
    folder = tmp_path_factory.mktemp("times") / "run"
    budgeted(made(), folder, n_trials=1)
    return folder


def own(name, **options):
    return LatencyOptions(runtime=f"tests.own_runtimes:{name}", repeats=1, **options)


def worth(candidate, _):
    """The fitness of a structure: its channels."""
    return float(sum(candidate))


# None is measured again before it wins: a busy machine would find it outside of the budget
QUICK = LatencyOptions(repeats=3, finalists=0)


def test_a_run_measures_once_and_keeps_what_it_measured(task, tmp_path, monkeypatch):
    model, data = task
    run = {"budget": Budget(latency_ms=1.0, macs=0.8), "latency": QUICK, "searcher": "random"}
    first = search(model, data, n_trials=3, run_dir=tmp_path / "run", **run)
    kept = unsealed((tmp_path / "run" / "latency.json").read_text())[0]
    assert {name: kept[name] for name in ("runtime", "threads", "batch")} == {
        "runtime": "torch",
        "threads": 1,
        "batch": 1,
    }
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
    shares = iter([0.9, 0.1, 0.9, 0.1])
    monkeypatch.setattr(
        "abcsearch.runs.timed_evaluator.in_turns",
        lambda *_: Turns(shares=np.array([next(shares)]), full_ms=7.0),
    )
    found = search(
        model,
        data,
        budget=Budget(latency_ms=0.5),
        latency=own("smooth", check=True, finalists=0),
        n_trials=4,
        searcher="random",
        run_dir=tmp_path / "run",
    )
    full = found.task.constraint.costs.latency_ms([found.task.space.full])[0]
    assert [trial.evaluation.failure for trial in found.trials[::2]] == [
        f"latency of {0.9 * full:.3g} ms is outside of 0 to {0.5 * full:.3g} ms"
    ] * 2
    assert [trial.evaluation.metrics["latency_ms"] for trial in found.trials] == pytest.approx(
        [0.9 * full, 0.1 * full] * 2
    )
    assert found.best.number in (1, 3)


def test_without_a_bound_on_latency_nothing_is_measured(task, tmp_path, monkeypatch):
    monkeypatch.setattr(LatencyModel, "measure", None)
    search(*task, budget=Budget(macs=0.5), n_trials=2, searcher="random", run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "latency.json").exists()


def test_a_bound_that_no_structure_meets_is_refused_with_what_would_help(task, tmp_path):
    with pytest.raises(BudgetError) as refused:
        search(
            *task,
            budget=Budget(latency_ms=1e-7),
            latency=own("smooth"),
            n_trials=2,
            run_dir=tmp_path / "run",
            space=SpaceOptions(alpha=0.5),
        )
    said = str(refused.value)
    assert "latency_ms = 1e-07 cannot be reached" in said
    assert "structures of this space have" in said
    assert "tests.own_runtimes:smooth, 1 thread, batches of 1 image ([latency])" in said
    # 1e-4 s of every pass do not depend on the batch
    alone = float(re.findall(r"\((0\.\d+) to", said)[0])
    together = float(
        re.findall(r"in batches of 64, the smallest structure takes (0\.\d+)", said)[0]
    )
    assert together < alone / 3
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_runtime_that_returns_nonsense_or_is_missing_is_refused_before_anything_is_written(
    task, tmp_path, monkeypatch
):
    run = {"budget": Budget(latency_ms=0.5), "n_trials": 2, "run_dir": tmp_path / "run"}
    with pytest.raises(ModelError, match=r"own_runtimes:negative' returned -1.0"):
        search(*task, latency=own("negative"), **run)
    monkeypatch.setattr("abcsearch.channels.runtimes.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'abcsearch\[onnx\]'"):
        search(*task, latency=LatencyOptions(runtime="onnxruntime"), **run)
    assert not (tmp_path / "run" / "run.json").exists()


class Measuring:
    """Stands in for what measures the best trials: shares of the full network by how many channels there are."""

    def __init__(self, monkeypatch, share, stops_after=None):
        self.calls, self.share, self.stops_after = [], share, stops_after
        monkeypatch.setattr("abcsearch.runs.stopwatch.in_turns", self)

    def __call__(self, networks, full, example, options):
        if len(self.calls) == self.stops_after:
            raise KeyboardInterrupt
        channels = [network[0].out_channels + network[3].out_channels for network in networks]
        self.calls.append(channels)
        shares = [self.share(count) for count in channels]
        return Turns(shares=np.array(shares), full_ms=3.0)


def budgeted(task, folder, n_trials=20, **options):
    latency = own("smooth", **{"finalists": 2, **options})
    return search(
        *task,
        budget=Budget(latency_ms=0.6),
        latency=latency,
        evaluator=worth,
        searcher="random",
        n_trials=n_trials,
        run_dir=folder,
    )


def test_none_that_is_measured_outside_wins_and_what_was_measured_is_not_measured_again(
    task, tmp_path, monkeypatch
):
    best = budgeted(task, tmp_path / "plain", finalists=0).best
    limit = int(best.fitness) - 2
    measuring = Measuring(monkeypatch, lambda count: 0.62 if count > limit else 0.55)
    result = budgeted(task, tmp_path / "run")
    assert result.best.fitness <= limit < best.fitness
    inside = [t.fitness for t in result.trials if t.fitness <= limit]
    assert result.best.fitness == max(inside)
    timed = read_journal(tmp_path / "run" / "journal.jsonl").timed
    assert timed[best.number].share == 0.62
    assert timed[result.best.number].share == 0.55
    words = result.decision.words
    assert f"trial {result.best.number} takes 0.550 of its time, 1.65 ms of 3 ms" in words
    assert f"{best.number} (0.620)" in words.split("outside of the budget: ")[1]
    assert "(tests.own_runtimes:smooth, 1 thread, batches of 1 image)" in words
    calls = len(measuring.calls)
    again = resume(tmp_path / "run", model=task[0], data=task[1], evaluator=worth)
    assert len(measuring.calls) == calls
    assert (again.best, again.decision) == (result.best, result.decision)
    # Killed between two measurements, it goes on with what it has; in one of a pair, with both of them
    for stops_after in (2, 3):
        path = tmp_path / f"killed-{stops_after}"
        stopped = Measuring(monkeypatch, measuring.share, stops_after=stops_after)
        with pytest.raises(KeyboardInterrupt):
            budgeted(task, path)
        rest = Measuring(monkeypatch, measuring.share)
        killed = budgeted(task, path)
        assert stopped.calls[:2] + rest.calls == measuring.calls
        assert killed.best.number == result.best.number
        assert killed.decision.words == result.decision.words


@pytest.mark.parametrize("slow", [0, 1])
def test_one_that_is_inside_on_one_of_two_occasions_does_not_win(task, tmp_path, monkeypatch, slow):
    best = budgeted(task, tmp_path / "plain", finalists=0).best

    def share(count):
        return 0.62 if count == best.fitness and len(measuring.calls) % 2 != slow else 0.55

    measuring = Measuring(monkeypatch, share)
    result = budgeted(task, tmp_path / "run")
    assert result.best.fitness < best.fitness
    timed = read_journal(tmp_path / "run" / "journal.jsonl").timed
    assert timed[best.number].share == 0.62
    assert timed[result.best.number].share == 0.55


def test_without_one_inside_a_run_says_so_and_goes_on_with_more_trials(task, tmp_path, monkeypatch):
    Measuring(monkeypatch, lambda count: 0.61 + count / 1000)
    with pytest.raises(RunError) as refused:
        budgeted(task, tmp_path / "run", n_trials=6)
    said = str(refused.value)
    assert "none of the best 6 trials" in said
    assert "allows 0.000 to 0.600 of the full network's time, and the nearest" in said
    assert "n_trials=N" in said
    Measuring(monkeypatch, lambda count: 0.5)
    result = budgeted(task, tmp_path / "run", n_trials=12)
    assert result.best.number >= 6


def test_a_run_of_an_earlier_version_keeps_its_winner(task, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    result = budgeted(task, folder.path, finalists=0)
    header = folder.read_json("run.json")
    del header["settings"]["latency"]["finalists"]
    folder.write_json("run.json", header)
    measuring = Measuring(monkeypatch, lambda count: 9.0)
    again = budgeted(task, folder.path, finalists=5)
    assert (again.best, again.decision) == (result.best, None)
    assert not measuring.calls


def test_a_machine_with_steps_offers_its_fast_widths_and_a_continued_run_the_same(task, tmp_path):
    model, data = task
    run = {"budget": Budget(macs=0.7), "n_trials": 3, "searcher": "random", "evaluator": worth}
    space = SpaceOptions(hardware=True, alpha=1.0)
    first = search(
        model, data, latency=own("stepped"), space=space, run_dir=tmp_path / "run", **run
    )
    choices = [d.choices for d in first.task.space.dimensions]
    assert choices == [(8,), (8, 16)]
    kept = unsealed((tmp_path / "run" / "latency.json").read_text())[0]
    assert list(kept["fast"].values()) == [[8], [8, 16]]
    own_runtimes.calls.clear()
    again = resume(tmp_path / "run", model=model, data=data, evaluator=worth, n_trials=4)
    assert not own_runtimes.calls
    assert again.task.space == first.task.space
    assert again.trials[:3] == first.trials
    with pytest.raises(ConfigError, match=r"hardware = true offers .* nothing says where: set"):
        search(model, data, space=space, run_dir=tmp_path / "other", **run)
    (tmp_path / "run" / "latency.json").unlink()
    with pytest.raises(RunError, match=r"latency.json is missing: trials were chosen by"):
        resume(tmp_path / "run", model=model, data=data, evaluator=worth, n_trials=5)


def test_widths_are_not_called_fast_for_the_macs_that_a_space_does_not_reach(task, tmp_path):
    """Time that grows with MACs alone, over what a pass takes in any case: no multiple is faster."""
    run = {"budget": Budget(macs=0.7), "n_trials": 1, "searcher": "random", "evaluator": worth}
    for alpha in (0.2, 0.3):
        space = SpaceOptions(hardware=True, alpha=alpha)
        folder = tmp_path / str(alpha)
        search(*task, latency=own("smooth"), space=space, run_dir=folder, **run)
        kept = unsealed((folder / "latency.json").read_text())[0]
        plain = SpaceOptions(alpha=alpha).of(SpaceOptions().traced(task[0], task[1].example))
        assert list(kept["fast"].values()) == [list(d.choices) for d in plain.dimensions]


def test_times_that_were_measured_elsewhere_are_measured_anew_while_there_are_no_trials(
    task, tmp_path
):
    folder = RunFolder(tmp_path / "run")
    budgeted(task, folder.path, n_trials=1)
    for left in folder.path.iterdir():
        if left.name != "latency.json" and left.is_file():
            left.unlink()

    def settings(latency):
        return SearchSettings(budget=Budget(latency_ms=0.6), n_trials=1, latency=latency)

    model, data = task
    graph = SpaceOptions().traced(model, data.example)
    own_runtimes.calls.clear()
    costs = run_costs(model, graph, data, settings(own("stepped")), folder)
    assert own_runtimes.calls
    assert costs.where["runtime"] == "tests.own_runtimes:stepped"
    assert run_costs(model, graph, data, settings(own("smooth")), folder).to_plain() == (
        folder.read_json("latency.json")
    )


def test_a_folder_of_an_earlier_version_is_bound_by_the_times_that_it_holds(task, tmp_path):
    model, data = task
    graph = SpaceOptions().traced(model, data.example)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_json(
        "latency.json",
        {name: [[0.0, 10.0**6], [0.0, 1.0]] for name in ("(rest)", *graph.costs.layers)},
    )
    folder.journal.write_text("something")
    settings = SearchSettings(budget=Budget(latency_ms=0.6), n_trials=1)
    assert isinstance(run_costs(model, graph, data, settings, folder), LayerTimes)


def _of_first_share(value):
    return lambda record: record["shares"].update({next(iter(record["shares"])): value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"full_ms": 0.0}, "full_ms = 0.0, and what was measured is a number above 0"),
        ({"full_ms": float("nan")}, "full_ms = nan, "),
        ({"full_ms": "3"}, "full_ms = '3', "),
        ({"error": -1}, "error = -1, and what was measured is a number of 0 or more"),
        (_of_first_share(-1.0), "pass = -1.0, "),
        (_of_first_share(float("inf")), "pass = inf, "),
        ({"threads": "x"}, "latency: threads"),
        ({"runtime": "phone"}, "latency: unknown runtime 'phone'"),
        ({"fast": [8]}, "fast = .8., and fast widths are those of groups"),
        ({"fast": {"9": [8]}}, "fast widths are those of groups of channels, by name"),
        ({"fast": {"0": ["8"]}}, "fast widths of 0 are .'8'.; they are whole numbers of 1 to 12"),
        ({"fast": {"0": []}}, "fast widths of 0 are "),
        ({"fast": {"0": [0]}}, "fast widths of 0 are "),
        ({"fast": {"0": [4, 16]}}, "fast widths of 0 are "),
        ({"fast": {"0": [8, 4]}}, "fast widths of 0 are "),
    ],
)
def test_times_in_a_folder_that_nothing_has_measured_are_refused(
    change, words, task, begun, tmp_path
):
    shutil.copytree(begun, tmp_path / "run")
    rewrite(tmp_path / "run" / "latency.json", change)
    with pytest.raises(RunError, match=f"latency.json cannot be used: .*{words}"):
        resume(tmp_path / "run", model=task[0], data=task[1], evaluator=worth, n_trials=2)


def test_a_batch_that_memory_has_no_room_for_is_refused_before_it_is_made(task, tmp_path):
    with pytest.raises(ModelError, match=r"batch = 10000000000000 takes .*free; set a smaller"):
        budgeted(task, tmp_path / "run", batch=10**13)
    assert not (tmp_path / "run").exists()
