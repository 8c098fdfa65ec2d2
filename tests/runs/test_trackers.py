"""MLflow and Weights & Biases: what they are told, in which order, and that nothing is told twice.

By modules that record calls: the packages are extras, and would want a server.
"""

import itertools
import sys
import types

import pytest

from abcsearch import Budget, search
from abcsearch.errors import ConfigError
from abcsearch.runs.trackers import mlflow_watcher, wandb_watcher
from abcsearch.trial import Evaluation


class Client:
    """As far as MlflowClient is used."""

    experiments, runs, metrics, params, ended = {}, {}, [], [], []

    def __init__(self, tracking_uri=None):
        self.uri = tracking_uri

    def get_experiment_by_name(self, name):
        return self.experiments.get(name)

    def create_experiment(self, name):
        self.experiments[name] = types.SimpleNamespace(experiment_id=f"e{len(self.experiments)}")
        return self.experiments[name].experiment_id

    def search_runs(self, experiments, *, filter_string, max_results):
        wanted = filter_string.partition(" = ")[2].strip("'")
        return [
            types.SimpleNamespace(info=types.SimpleNamespace(run_id=name))
            for name, (home, tags) in self.runs.items()
            if home in experiments and wanted in tags.values()
        ][:max_results]

    def create_run(self, home, *, run_name, tags):
        name = f"r{len(self.runs)}-{run_name}"
        self.runs[name] = home, tags
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=name))

    def log_param(self, run, name, value):
        self.params.append((run, name, value))

    def log_metric(self, run, name, value, *, timestamp, step):
        assert timestamp > 1e12  # milliseconds
        self.metrics.append(types.SimpleNamespace(run=run, key=name, value=value, step=step))

    def get_metric_history(self, run, name):
        return [own for own in self.metrics if (own.run, own.key) == (run, name)]

    def set_terminated(self, run):
        self.ended.append(run)


class Weights:
    """As far as wandb is used."""

    def __init__(self):
        self.runs = {}

    def init(self, *, project, resume, **options):
        assert resume == "allow"
        run = self.runs.setdefault(options.pop("id"), Run())
        run.opened += 1
        run.options = {"project": project, **options}
        return run


class Run:
    def __init__(self):
        self.logged, self.step, self.opened, self.finished = [], 0, 0, 0

    def log(self, values, *, step):
        assert step >= self.step, "W&B drops steps that go back"
        self.logged.append((step, values))
        self.step = step + 1

    def finish(self):
        self.finished += 1


@pytest.fixture
def mlflow(monkeypatch):
    for name in ("experiments", "runs"):
        monkeypatch.setattr(Client, name, {})
    for name in ("metrics", "params", "ended"):
        monkeypatch.setattr(Client, name, [])
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(MlflowClient=Client))
    return Client


@pytest.fixture
def wandb(monkeypatch):
    made = Weights()
    monkeypatch.setitem(sys.modules, "wandb", made)
    return made


class Stopped(KeyboardInterrupt):
    """As Ctrl-C."""


def run(model, data, folder, watcher, n_trials=9, stop=10**9):
    calls = itertools.count()

    def evaluator(candidate, seed):
        if next(calls) >= stop:
            raise Stopped
        if sum(candidate) % 5 == 0:
            raise ValueError("no")
        return Evaluation(sum(candidate) / 100, metrics={"top1": 0.5})

    options = {
        "budget": Budget(macs=0.8),
        "searcher": "random",
        "evaluator": evaluator,
        "watchers": [watcher],
    }
    return search(model, data, n_trials=n_trials, run_dir=folder, **options)


def steps_of(client, name):
    return {own.step: own.value for own in client.metrics if own.key == name}


def check(result, fitness, best, failures):
    told = {trial.number + 1: trial.evaluation.fitness for trial in result.trials}
    assert fitness == {step: value for step, value in told.items() if value is not None}
    assert list(failures) == list(told)  # of every trial, in order
    assert failures[len(told)] == sum(value is None for value in told.values()) > 0
    assert max(best.values()) == result.best.fitness
    assert list(best.values()) == sorted(best.values())


def test_mlflow_has_every_trial_once_also_of_a_search_that_was_stopped(
    mlflow, tiny_model, tiny_data, tmp_path
):
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        run(tiny_model, tiny_data, folder, mlflow_watcher("file:x"), stop=4)
    before = len(mlflow.metrics)
    assert before
    result = run(tiny_model, tiny_data, folder, mlflow_watcher("file:x"))
    assert len(mlflow.runs) == 1
    assert len({(own.key, own.step) for own in mlflow.metrics}) == len(mlflow.metrics)  # none twice
    check(result, *(steps_of(mlflow, name) for name in ("fitness", "best_fitness", "failures")))
    told = {name: value for _, name, value in mlflow.params}
    assert (told["searcher"], told["n_trials"], told["budget"]) == ("random", 9, "macs 0.8")
    assert len(mlflow.ended) == 2


def test_another_run_folder_is_another_run(mlflow, wandb, tiny_model, tiny_data, tmp_path):
    for name in ("a", "b"):
        run(tiny_model, tiny_data, tmp_path / name, mlflow_watcher(), n_trials=2)
        run(tiny_model, tiny_data, tmp_path / f"w{name}", wandb_watcher(), n_trials=2)
    assert (len(mlflow.runs), len(mlflow.experiments), len(wandb.runs)) == (2, 1, 2)


def test_wandb_has_every_trial_once_also_of_a_search_that_was_stopped(
    wandb, tiny_model, tiny_data, tmp_path
):
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        run(tiny_model, tiny_data, folder, wandb_watcher("mine", mode="offline"), stop=4)
    result = run(tiny_model, tiny_data, folder, wandb_watcher("mine", mode="offline"))
    (own,) = wandb.runs.values()
    steps = [step for step, _ in own.logged]
    assert steps == list(range(1, 10))
    by_name = {
        name: {step: values[name] for step, values in own.logged if name in values}
        for name in ("fitness", "best_fitness", "failures")
    }
    check(result, *by_name.values())
    assert (own.opened, own.finished) == (2, 2)
    assert own.options["project"] == "mine"
    assert own.options["mode"] == "offline"
    assert own.options["config"]["seed"] == 0


@pytest.mark.parametrize(("name", "make"), [("mlflow", mlflow_watcher), ("wandb", wandb_watcher)])
def test_a_package_that_is_not_there_is_told_before_anything_begins(monkeypatch, name, make):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"is not installed .*pip install 'abcsearch\[{name}\]'"):
        make()
