"""One row: a search in a run folder of its own, what it found fine-tuned, and what both took."""

from __future__ import annotations

import copy
import functools
import json
import statistics
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from abcsearch import score, slice_model, train
from abcsearch.channels.latency import forward_times
from abcsearch.errors import AbcSearchError
from abcsearch.files import replace_file
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.open_run import open_run
from abcsearch.runs.config_run import LoadedOnce, run_config
from abcsearch.runs.disk.stages import PREPARING, TUNING
from abcsearch.runs.disk.weights import load_checkpoint
from abcsearch.runs.task import Task
from experiments.survey.methods import Method
from experiments.survey.results import decided
from experiments.tables import in_onnxruntime, processors, with_base

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from abcsearch.results.open_run import FinishedRun
    from abcsearch.runs.settings import RunConfig

Row = dict[str, Any]
_AT_ONCE = 20  # networks whose forward times are measured in turn
_BASE = "base network"  # what a run calls its training, where a control has it trained again: no cost of the method
_TIMED = 2  # epochs of the base network
BATCH = 64


@dataclass(frozen=True)
class Job:
    """A row that is asked for.

    Attributes:
        file: the config of the network.
        method: what is done.
        budget: share of the MACs.
        seed: of all.
        given: changes of the config that the caller wants in all rows.
        runs: folder of run folders.
    """

    file: Path
    method: Method
    budget: float
    seed: int
    given: tuple[str, ...]
    runs: Path

    @property
    def name(self) -> str:
        """What a folder and a message call it."""
        words = "".join(letter if letter.isalnum() else "_" for letter in self.method.name)
        return f"{words}-{round(100 * self.budget)}-{self.seed}"

    @property
    def folder(self) -> Path:
        """Its run folder: another one for other settings, or other versions."""
        mark = zlib.crc32(repr((decided(self.file, self.given), self.changes)).encode())
        return self.runs / self.file.stem / f"{self.name}-{mark:08x}"

    def config(self) -> RunConfig:
        """Returns its settings."""
        return self.method.config(self.file, self.budget, self.seed, self.given)

    @property
    def changes(self) -> list[str]:
        """What its method changes."""
        return list(self.method.all_changes(self.file.stem))

    @property
    def key(self) -> dict[str, Any]:
        """What tells its row from others."""
        return {"method": self.method.name, "budget": self.budget, "seed": self.seed}


class Clock:
    """CPU seconds of this process by what they were spent on, kept in a file, as a run may be stopped and go on."""

    def __init__(self, file: Path) -> None:
        """Reads the file, where it is there."""
        self._file = file
        self.seconds = {"search": 0.0, "training": 0.0, "base": 0.0}
        with suppress(OSError, ValueError):
            self.seconds |= json.loads(file.read_text())
        self._since = time.process_time()

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        """Adds what has been spent since the last call; takes what a run shows of its progress."""
        del done, total, note
        trained = stage.startswith((PREPARING, TUNING))
        self.add("training" if trained else "base" if stage == _BASE else "search")

    def add(self, what: str) -> None:
        """Adds what has been spent since the last call to one of the three."""
        now = time.process_time()
        self.seconds[what] += now - self._since
        self._since = now
        replace_file(self._file, lambda path: path.write_text(json.dumps(self.seconds)))


def measured(job: Job) -> Row:
    """Returns the row of a job; where the method does not apply, or fails, it says why under "skipped"."""
    common = {**job.key, "kind": job.method.kind, "changes": job.changes}
    if job.method.lacking:
        return {**common, "skipped": job.method.lacking}
    try:
        return {**common, **_measured(job)}
    except AbcSearchError as error:
        return {**common, "skipped": " ".join(str(error).split())}


def _measured(job: Job) -> Row:
    torch.set_num_threads(1)
    load, config = _loader(job.file, job.seed), job.config()
    base = job.folder.with_name(f"base-{job.seed}")
    brought = with_base(config, base, load)
    epoch, full = _epoch(job, brought, load)
    job.folder.mkdir(parents=True, exist_ok=True)
    clock = Clock(job.folder.with_suffix(".seconds"))
    run_config(config if job.method.retrained else brought, job.folder, load=load, progress=clock)
    clock.add("search")
    finished = open_run(job.folder, load=load)
    structure = finished.named(job.method.network) if job.method.network else finished.winner
    clock = Clock(job.folder.with_suffix(".seconds"))
    finetune_run(finished, only=[structure.name], progress=clock)
    scores = finished.scores(structure)
    if scores is None:
        msg = f"{job.folder}: {structure.name} has no scores of its fine-tuning"
        raise AbcSearchError(msg)
    costs, made = finished.result.task.graph.costs, finished.result.task.made
    (macs,), (params,) = costs.macs([structure.candidate]), costs.params([structure.candidate])
    (of,) = costs.macs([finished.result.task.graph.space(1.0).full])
    prepared = 0 if made is None or structure.has_networks else made.facts["epochs"]
    return {
        "candidate": list(structure.candidate),
        "macs": int(macs) / int(of),
        "params": int(params),
        "before": scores["before"]["top1"],
        "after": scores["after"]["top1"],
        "full": full,
        "images": len(finished.result.task.data.test),
        "trials": _evaluations(finished),
        "epochs": [prepared, int(scores["recipe"]["epochs"])],
        "search": clock.seconds["search"] / epoch,
        "training": clock.seconds["training"] / epoch,
        "epoch": epoch,
        "machine": processors(),
    }


def _evaluations(finished: FinishedRun) -> int:
    """Returns how many structures have been scored, those of a map among them."""
    journal = finished.folder.map.journal
    probes = sum(1 for line in journal.read_text().splitlines() if line) if journal.exists() else 0
    return probes + len(finished.result.trials)


@functools.lru_cache(maxsize=1)
def _loader(_file: Path, _seed: int) -> LoadedOnce:
    """Returns what loads data; runs of one network and seed share them."""
    return LoadedOnce()


_EPOCHS: dict[tuple[Path, int], tuple[float, float]] = {}


def _epoch(job: Job, config: RunConfig, load: LoadedOnce) -> tuple[float, float]:
    """Returns the CPU seconds of an epoch of the base network by the recipe of fine-tuning, and its test accuracy."""
    if (job.file, job.seed) not in _EPOCHS:
        task = _task(config, load)
        accuracy = score(task.base, task.data.test)["top1"]
        recipe, network = (
            replace(config.finetune, epochs=1, warmup_epochs=0.0),
            copy.deepcopy(task.base),
        )
        # What happens for the first time in a process takes longer
        train(network, task.data.train, recipe, seed=0)
        start = time.process_time()
        train(network, task.data.train, replace(recipe, epochs=_TIMED), seed=0)
        _EPOCHS[job.file, job.seed] = (time.process_time() - start) / _TIMED, accuracy
    return _EPOCHS[job.file, job.seed]


def _task(config: RunConfig, load: LoadedOnce) -> Task:
    """Returns the base network of a config with its data, traced and ranked."""
    model = config.model.build(config.seed)
    load_checkpoint(model, str(config.model.checkpoint))
    return Task.of(model.eval(), load(config), config)


def forward_shares(
    config: RunConfig, load: LoadedOnce, candidates: Sequence[tuple[int, ...]]
) -> Iterator[dict[tuple[int, ...], float]]:
    """Yields forward times in ONNX Runtime as shares of the full network's, some structures at a time.

    Batches of 64 on one thread; networks take turns, the full one in every round of some of them.
    """
    task = _task(config, load)
    batch = task.data.test.loaded().images[:BATCH]
    for first in range(0, len(candidates), _AT_ONCE):
        some = candidates[first : first + _AT_ONCE]
        networks = [task.base, *(_sliced(task, structure) for structure in some)]
        times = forward_times(in_onnxruntime(networks, task.data.example), batch, threads=1)
        full, *others = (statistics.median(seconds) for seconds in times)
        yield {structure: time / full for structure, time in zip(some, others, strict=True)}


def _sliced(task: Task, candidate: tuple[int, ...]) -> torch.nn.Module:
    return slice_model(
        task.base, task.graph, candidate[: len(task.space.full)], task.source.ranking
    )
