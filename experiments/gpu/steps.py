"""What is measured: each step yields rows as they come, and ends when its time is over."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abcsearch import Budget, make_searcher
from abcsearch.errors import ConfigError
from abcsearch.execution.options import ExecutionOptions
from abcsearch.execution.ray_executor import RayExecutor
from experiments.benchmarks import evaluation
from experiments.benchmarks.scaling import session, start_all
from experiments.gpu.limits import Ended, Limit, command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Row = dict[str, Any]
PUBLISHED = Path(__file__).parents[1] / "abcpruner" / "cifar10_resnet56.toml"
PRECISIONS = ("float32", "bf16")
# The recipe of the table of ResNet-20: the published one, of 150 epochs, would take ten minutes for each network.
_RECIPE = ("finetune.epochs=4", "finetune.schedule=cosine", "finetune.lr=0.05")

_EPOCH = re.compile(r"fine-tuning .*: (\d+)/(\d+), loss")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and on what is measured.

    Attributes:
        device: "cuda", or "cpu" for a rehearsal.
        data: a folder of images, or an npz file; None: the two searches are left out.
        weights: of ResNet-56.
        workers: how many evaluate at a time, one measurement each; the last is what searches are run with.
        evaluations: of each measurement.
        network: of the measurements, of `experiments.benchmarks.evaluation.CASES`.
        tests: what pytest is told to run.
        runs: folder of run folders.
        given: changes of configs of searches, "key=value".
    """

    device: str = "cuda"
    data: Path | None = None
    weights: Path | None = None
    workers: tuple[int, ...] = (1, 2, 4, 8)
    evaluations: int = 200
    network: str = "resnet56"
    tests: tuple[str, ...] = ("tests", "-m", "gpu")
    runs: Path = Path("runs/gpu")
    given: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of the device that each worker of a search takes."""
        return 1 / self.workers[-1] if self.device != "cpu" else 0.0

    @property
    def searching(self) -> list[str]:
        """Changes of a config that have a search run here."""
        if self.data is None or self.weights is None:
            msg = "--data and --weights are missing: the images of CIFAR-10, and weights of ResNet-56 for them"
            raise ConfigError(msg)
        kind = "npz" if self.data.suffix == ".npz" else "image_folder"
        where = [f"data.name={kind}", f"data.path={self.data}", f"model.checkpoint={self.weights}"]
        return [*where, f"evaluator.device={self.device}", f"finetune.device={self.device}"]


def tests(setting: Setting, limit: Limit, _known: Sequence[Row]) -> Iterator[Row]:
    """Tests that need a GPU."""
    ended = command([sys.executable, "-m", "pytest", "-q", *setting.tests], limit)
    lines = ended.output.strip().splitlines() or [""]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    yield {"pytest": lines[-1].strip("= "), "failed": failed, "state": _tested(ended)}


def _tested(ended: Ended) -> str:
    """Returns how pytest ended: that tests failed is a result, not a failure of the step."""
    return "done" if ended.code in (0, 1) and not ended.stopped else ended.state


def workers(setting: Setting, limit: Limit, known: Sequence[Row]) -> Iterator[Row]:
    """Evaluations per second with several workers on one device, by precision."""
    measured = {(row["precision"], row["workers"]) for row in known}
    for precision, count in itertools.product(PRECISIONS, setting.workers):
        if (precision, count) in measured:
            continue
        row = {"precision": precision, "workers": count}
        yield {**row, **({"state": "stopped"} if limit.over else _rate(setting, limit, **row))}


def _rate(setting: Setting, limit: Limit, precision: str, workers: int) -> Row:
    """Returns evaluations per second, once all workers are up."""
    bench = evaluation.prepare(setting.network, setting.device, precision)
    constraint = Budget(macs=0.5).bind(bench.graph.space(), bench.graph.costs)
    share = 1 / workers if setting.device != "cpu" else 0.0
    with RayExecutor(workers, gpus=share) as executor:
        begun = limit.clock()
        start_all(executor, bench.evaluator, constraint.space.full, workers)
        ready = limit.clock() - begun
        done = session(
            # For all numbers of workers the same structures, whoever finishes first
            make_searcher("random", constraint.space, constraint, seed=0),
            bench.evaluator,
            executor,
            ExecutionOptions(workers=workers, gpus=share, schedule="asynchronous"),
            setting.evaluations,
        )
    failures = [trial.evaluation.failure for trial in done.trials if trial.evaluation.failure]
    return {
        "evaluations": len(done.trials),
        "per_second": len(done.trials) / done.seconds,
        "start": ready,
        "state": f"failed: {failures[0]}" if failures else "done",
    }


def abcpruner(setting: Setting, limit: Limit, _known: Sequence[Row]) -> Iterator[Row]:
    """ABCPruner's published setting for ResNet-56, whole: search, then fine-tuning, as far as the time goes."""
    run = setting.runs / "abcpruner"
    changes = [*setting.searching, f"execution.workers={setting.workers[-1]}"]
    changes += [f"execution.gpus={setting.share}", "evaluator.precision=bf16"]
    changes += ["finetune.precision=bf16", *setting.given]
    words = ["search", str(PUBLISHED), "--run-dir", str(run)]
    words += [word for change in changes for word in ("--set", change)]
    ended = command([sys.executable, "-m", "abcsearch", *words], limit)
    status = _status(run)
    searches = status.get("searches", [])
    first = searches[0] if searches else {"done": 0, "total": 0}
    yield {
        "phase": "search",
        "done": first["done"],
        "of": first["total"],
        "unit": "trials",
        "seconds": ended.seconds,
        "state": ended.state,
    }
    if ended.state != "done":
        return
    tuning = ["finetune", str(run), "--only", first["name"]]
    ended = command([sys.executable, "-m", "abcsearch", *tuning], limit)
    yield {"phase": "fine-tuning", **_tuned(run), "seconds": ended.seconds, "state": ended.state}


def _tuned(run: Path) -> Row:
    """Returns how many epochs of fine-tuning the winner has had, by what the run noted of it."""
    lines = _EPOCH.findall((run / "log.txt").read_text())
    done, epochs = map(int, lines[-1]) if lines else (0, 0)
    return {"done": done, "of": epochs, "unit": "epochs"}


def _status(run: Path) -> dict[str, Any]:
    """Returns how far a run is; empty if it has not begun."""
    words = [sys.executable, "-m", "abcsearch", "status", str(run), "--json"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    return json.loads(ended.stdout) if ended.returncode == 0 else {}


def searchers(setting: Setting, limit: Limit, _known: Sequence[Row]) -> Iterator[Row]:
    """The first table of CIFAR-10, for ResNet-56, one seed: searchers side by side, as far as the time goes."""
    changes = [*_RECIPE, *setting.searching, *setting.given]
    words = ["searchers", "--network", "resnet56", "--seeds", "0", "--workers", "4"]
    words += ["--runs", str(setting.runs / "cifar10"), "--results", str(setting.runs)]
    words += [word for change in changes for word in ("--set", change)]
    ended = command([sys.executable, "-m", "experiments.cifar10.search", *words], limit)
    for row in _rows(setting.runs / "resnet56.json"):
        kept = ("name", "macs", "params", "before", "after", "fitness", "trials", "seconds")
        yield {**{key: row[key] for key in kept if key in row}, "state": "done"}
    # What is left of the table
    yield {"name": "", "state": ended.state}


def _rows(file: Path) -> list[Row]:
    return json.loads(file.read_text())["rows"] if file.exists() else []


# In this order; with the share of the whole time that each has at most, of which what is left goes to the next.
STEPS: dict[str, tuple[float, Callable[[Setting, Limit, Sequence[Row]], Iterator[Row]]]] = {
    "tests": (0.15, tests),
    "workers": (0.3, workers),
    "abcpruner": (0.4, abcpruner),
    "searchers": (1.0, searchers),
}
