"""The page of what only a GPU shows: rehearsed on the CPU, with a fake clock where it is about time."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from abcsearch import cli
from abcsearch.errors import ConfigError
from abcsearch.execution.serial import SerialExecutor
from abcsearch.models.resnet import resnet20
from experiments import processes
from experiments.benchmarks.evaluation import CASES, Case
from experiments.cifar10 import search
from experiments.gpu import __main__ as gpu
from experiments.gpu import steps
from experiments.gpu.limits import Ended, Limit, command
from experiments.gpu.page import NOT_BEGUN, page
from experiments.gpu.results import Results
from experiments.gpu.steps import STEPS, Setting

PROJECT = Path(__file__).parents[2]
DONE = {"state": "done"}


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class OneProcess(SerialExecutor):
    """Stands in for workers of Ray: as many as are asked for, all of them this process."""

    def __init__(self, workers, *, gpus):
        super().__init__()
        self.alive, self.gpus = workers, gpus


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "results.json")


def known(results):
    return json.loads(results.file.read_text())["steps"]


def step_of(*rows):
    """Returns a step that yields rows, each after some seconds of the clock."""

    def step(_setting, limit, _known):
        for seconds, row in rows:
            if limit.left < seconds:
                limit.clock.now += limit.left
                yield {**row, "state": "stopped"}
                return
            limit.clock.now += seconds
            yield {**row, "state": "done"}

    return step


def test_steps_have_shares_and_what_is_left_of_one_is_the_next_ones(clock, results, monkeypatch):
    given = {}

    def takes(name, seconds):
        def step(_setting, limit, _known):
            given[name] = limit.left
            clock.now += min(seconds, limit.left)
            yield {"name": "", "pytest": "", "phase": "search", "failed": [], "state": "done"}

        return step

    made = {"tests": (0.15, takes("tests", 10)), "abcpruner": (0.4, takes("abcpruner", 1000))}
    made["searchers"] = (1.0, takes("searchers", 50))
    monkeypatch.setattr(gpu, "STEPS", made)
    gpu.measure(gpu.TINY, results, 600, clock=clock)
    assert given == {"tests": 90, "abcpruner": 240, "searchers": 350}
    assert clock.now == 100 + 10 + 240 + 50
    # Alone a step has all the time
    gpu.measure(gpu.TINY, Results(results.file.with_name("other.json")), 600, ["abcpruner"], clock)
    assert given["abcpruner"] == 600


def test_what_is_stopped_goes_on_with_the_next_call_and_every_row_is_kept_at_once(
    clock, results, monkeypatch
):
    phase = {"phase": "search", "done": 1, "of": 2, "unit": "trials", "seconds": 300.0}
    slow = step_of((300, phase), (400, {**phase, "phase": "fine-tuning"}))

    def broken(_setting, _limit, _known):
        yield {"name": "full", "macs": 1e6, "before": 0.1, "after": 0.2, "state": "done"}
        assert known(results)["searchers"][0]["name"] == "full"
        msg = "the device\nis lost"
        raise RuntimeError(msg)

    made = {"searchers": (0.5, broken), "abcpruner": (1.0, slow)}
    monkeypatch.setattr(gpu, "STEPS", made)
    gpu.measure(gpu.TINY, results, 600, clock=clock)
    states = [row["state"] for row in known(results)["abcpruner"]]
    assert states == ["done", "stopped"]
    again = Results(results.file)
    gpu.measure(gpu.TINY, again, 1000, ["abcpruner"], clock)
    rows = known(again)["abcpruner"]
    assert [row["state"] for row in rows] == ["done", "done"]
    assert [row["seconds"] for row in rows] == [300, 600]  # of both calls, where it was stopped
    begun = clock.now
    gpu.measure(gpu.TINY, again, 1000, ["abcpruner"], clock)
    assert clock.now == begun  # nothing is left to do


def test_a_step_without_time_is_left_for_the_next_call(clock, results, monkeypatch, capsys):
    whole = step_of((600, {"phase": "search", "seconds": 600.0}))
    monkeypatch.setattr(gpu, "STEPS", {"abcpruner": (1.0, whole), "searchers": (1.0, None)})
    gpu.measure(gpu.TINY, results, 600, clock=clock)
    assert "searchers: no time is left; the same command goes on" in capsys.readouterr().err


def test_rows_of_another_machine_or_setting_are_refused_with_the_difference(
    clock, results, monkeypatch
):
    monkeypatch.setattr(gpu, "STEPS", {"abcpruner": (1.0, step_of((0, {"phase": "search"})))})
    gpu.measure(gpu.TINY, results, 60, clock=clock)
    before = results.file.read_bytes()
    with pytest.raises(ConfigError, match=r"measured otherwise: .*evaluations.*--results"):
        gpu.measure(replace(gpu.TINY, evaluations=7), Results(results.file), 60)
    assert results.file.read_bytes() == before


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"common": {}, "steps": {"other": [{}]}}', '{"common": {}, "steps": 3}']
)
def test_a_damaged_file_is_named_and_kept(tmp_path, text):
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"results.json is damaged .*; restore it"):
        Results(file)
    assert file.read_text() == text


def test_a_command_whose_time_is_over_keeps_what_it_has_as_after_ctrl_c(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import pathlib, time\n"
        "try:\n    pathlib.Path('begun').touch()\n    time.sleep(600)\n"
        "except KeyboardInterrupt:\n    print('kept')\n"
    )
    program.write_text(program.read_text().replace("'begun'", repr(str(tmp_path / "begun"))))

    def until_begun():
        # Its time is over once it has begun
        return 1000.0 if (tmp_path / "begun").exists() else 0.0

    class Waiting(Limit):
        @property
        def left(self):
            while not (tmp_path / "begun").exists():
                time.sleep(0.01)
            return 0.1

    ended = command([sys.executable, str(program)], Waiting(0.0, until_begun))
    assert (ended.stopped, ended.state, ended.output) == (True, "stopped", "kept\n")
    failed = command(
        [sys.executable, "-c", "print('so far'); raise SystemExit('why')"], Limit(1e5, lambda: 0.0)
    )
    assert (failed.stopped, failed.state) == (False, "failed: why")


@pytest.fixture
def rehearsed(stand_in, tmp_path, monkeypatch):
    """A setting on few images; what would be other processes is this one."""
    torch.save(resnet20().state_dict(), tmp_path / "resnet20.pt")
    monkeypatch.setitem(CASES, "tiny", Case(build=resnet20, size=8, images=(8, 8, 8), batch=8))
    monkeypatch.setattr(steps, "RayExecutor", OneProcess)
    monkeypatch.setattr(processes, "ProcessPoolExecutor", lambda *_, **__: SerialExecutor())
    monkeypatch.setattr(search, "_SECONDS", 0.01)
    monkeypatch.setattr("abcsearch.results.forward._SECONDS", 0.01)
    monkeypatch.setattr(search, "in_onnxruntime", lambda networks, example: networks)
    monkeypatch.setattr(search, "check_onnx", lambda: None)
    some = {"searchers": {"random": ("searcher=random",)}}
    monkeypatch.setattr(search, "TABLES", {**search.TABLES, **some})

    def here(words, limit):
        begun = limit.clock()
        if "pytest" in words:
            return Ended("2 passed, 1 skipped in 3 s\n", 0, stopped=False, seconds=3.0)
        if "abcsearch" in words:
            result = CliRunner().invoke(cli.app, [*words[words.index("abcsearch") + 1 :]])
            return Ended(result.output, result.exit_code, False, limit.clock() - begun)
        monkeypatch.setattr("sys.argv", ["search", *words[words.index("searchers") :]])
        search.main()
        return Ended("", 0, stopped=False, seconds=limit.clock() - begun)

    monkeypatch.setattr(steps, "command", here)
    given = ["n_trials=2", "execution.workers=0", "finetune.epochs=1", "finetune.batch_size=64"]
    given += ["finetune.precision=float32", "finetune.warmup_epochs=0", "evaluator.batch_size=8"]
    given += ["evaluator.precision=float32", "model.name=resnet20"]
    return Setting(
        device="cpu",
        data=stand_in / "cifar10-jpeg",
        weights=tmp_path / "resnet20.pt",
        workers=(1, 2),
        evaluations=2,
        network="tiny",
        runs=tmp_path / "runs",
        given=tuple(given),
    )


def test_all_steps_are_rehearsed_and_make_a_page(rehearsed, results, monkeypatch, capsys):
    monkeypatch.setattr(steps, "PRECISIONS", ("float32",))
    gpu.measure(rehearsed, results, 1e6)
    assert "failed" not in capsys.readouterr().err.replace("'failed': []", "")
    assert list(known(results)) == list(STEPS)
    rates = known(results)["workers"]
    assert [row["workers"] for row in rates] == [1, 2]
    assert all(row["per_second"] > 0 and row["evaluations"] == 2 for row in rates)
    phases = known(results)["abcpruner"]
    assert [(row["done"], row["of"], row["state"]) for row in phases] == [
        (2, 2, "done"),
        (1, 1, "done"),
    ]
    names = [row["name"] for row in known(results)["searchers"]]
    assert names == ["full", "uniform", "random", ""]
    assert all(results.complete(step) for step in STEPS)
    text = page(Results(results.file))
    assert "| float32 | 2 |" in text
    assert "| search | 2 of 2 trials |" in text
    assert "| random | " in text
    assert "Not run yet" not in text
    assert "CPU cores" in text


def test_measurements_of_workers_that_are_known_are_not_made_again(rehearsed, monkeypatch):
    def unknown(*_):
        return {"per_second": 1.0, "start": 1.0, "state": "done"}

    monkeypatch.setattr(steps, "_rate", lambda _setting, _limit, **_: unknown())
    done = [{"precision": "float32", "workers": 1, "state": "done"}]
    rows = list(steps.workers(rehearsed, Limit(1e5, lambda: 0.0), done))
    assert [(row["precision"], row["workers"]) for row in rows] == [
        ("float32", 2),
        ("bf16", 1),
        ("bf16", 2),
    ]
    over = list(steps.workers(rehearsed, Limit(0.0, lambda: 0.0), done))
    assert {row["state"] for row in over} == {"stopped"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no GPU of CUDA; --tiny rehearses on the CPU"),
        (["--tiny", "--data", "nowhere"], "--data nowhere is not there"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is(tmp_path, monkeypatch, words, said):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu", "--results", str(tmp_path), *words])
    with pytest.raises(SystemExit, match=said):
        gpu.main()
    assert list(tmp_path.iterdir()) == []


def test_searches_without_images_say_what_is_missing(results, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "STEPS", {"searchers": STEPS["searchers"]})
    gpu.measure(gpu.TINY, results, 60)
    assert "searchers: failed: --data and --weights are missing" in capsys.readouterr().err


def test_the_page_is_drawn_again_from_the_file_alone(tmp_path, monkeypatch, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    row = {"precision": "bf16", "workers": 1, "per_second": 12.345, "start": 4.0, "state": "done"}
    held = {"common": {"machine": "a GPU", "versions": "torch 2"}, "steps": {"workers": [row]}}
    (tmp_path / "results.json").write_text(json.dumps(held))
    monkeypatch.setattr("sys.argv", ["gpu", "--redraw", "--results", str(tmp_path)])
    gpu.main()
    assert "| bf16 | 1 | 12.35 | 1.00 | 4.0 | done |" in capsys.readouterr().out
    text = readme.read_text()
    assert text.startswith("before\n<!-- results -->\n**Tests that need a GPU**\n\nNot run yet.")
    assert text.endswith("a GPU; torch 2.\n<!-- /results -->\nafter\n")


def test_a_rehearsal_leaves_results_and_runs_in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Not among those of the page, which a later call on a GPU would be refused for."""
    given = []

    def step(setting, _limit, _known):
        given.append(setting.runs)
        yield {"phase": "search", "done": 0, "of": 1, "unit": "trials", "seconds": 0.0} | DONE

    monkeypatch.setattr(gpu, "STEPS", {"abcpruner": (1.0, step)})
    monkeypatch.setattr(gpu, "HERE", tmp_path / "experiments")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["gpu", "--tiny"])
    gpu.main()
    assert [str(path) for path in tmp_path.iterdir()] == [str(tmp_path / "runs")]
    assert len(json.loads((tmp_path / "runs/gpu-tiny/results.json").read_text())["steps"]) == 1
    assert given == [gpu.REHEARSED]
    ignored = (PROJECT / ".gitignore").read_text().splitlines()
    assert f"/{gpu.REHEARSED.parts[0]}/" in ignored


def test_the_page_keeps_its_sentence_where_there_are_no_rows(tmp_path, monkeypatch):
    committed = PROJECT / "experiments/gpu"
    if not (committed / "results.json").exists():
        (tmp_path / "README.md").write_bytes((committed / "README.md").read_bytes())
    else:
        text = f"<!-- results -->\n{NOT_BEGUN}\n<!-- /results -->"
        (tmp_path / "README.md").write_text(text)
    before = (tmp_path / "README.md").read_bytes()
    assert NOT_BEGUN.encode() in before
    monkeypatch.setattr("sys.argv", ["gpu", "--redraw", "--results", str(tmp_path)])
    gpu.main()
    assert (tmp_path / "README.md").read_bytes() == before
