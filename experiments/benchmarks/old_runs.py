"""How soon a long run is looked at and goes on: `abcsearch status` and `abcsearch resume` in processes of their own.

    python -m experiments.benchmarks.old_runs [--trials 200000] [--dimensions 37] [--repeats 3] [--old]

The run is a configured one of a plain CNN with as many layers as dimensions and a random search. Its journal and the
snapshot of its searcher are written as a search would have left them, in no time; with --old, as versions before the
journal was chained did.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from abcsearch import Evaluation, Trial, make_searcher
from abcsearch.config import read_config
from abcsearch.data.splits import Data
from abcsearch.runs.config_run import load_run_data, run_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import Journal
from abcsearch.runs.disk.lines import Chain, encode_line, run_id
from abcsearch.runs.task import Task
from abcsearch.signing import signed

if TYPE_CHECKING:
    from abcsearch import Candidate, Searcher
    from abcsearch.evaluation.base import Evaluator

_ME = "experiments.benchmarks.old_runs"
_NOTE = "ABCSEARCH_BENCHMARK_NOTE"  # names the file in which the first evaluation is noted
_WIDTH = 16


def chain(layers: int) -> nn.Module:
    """Returns a plain CNN."""
    parts: list[nn.Module] = []
    for number in range(layers):
        parts += [
            nn.Conv2d(1 if number == 0 else _WIDTH, _WIDTH, 3, padding=1),
            nn.BatchNorm2d(_WIDTH),
            nn.ReLU(),
        ]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_WIDTH, 2))


def noise() -> Data:
    """Returns a few images."""
    images, labels = (
        torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.arange(256) % 2,
    )
    return Data.from_tensors(
        (images[:192], labels[:192]), (images[192:], labels[192:]), validation=0.25
    )


def instant(*_: object) -> Evaluator:
    """Returns an evaluator that takes no time, and notes when it was first called."""

    def evaluator(candidate: Candidate, seed: int) -> Evaluation:
        note = Path(os.environ.get(_NOTE, os.devnull))
        if os.environ.get(_NOTE) and not note.exists():
            note.write_text(json.dumps({"at": time.monotonic(), "cpu": time.process_time()}))
        return evaluation(candidate, seed)

    return evaluator


def evaluation(candidate: Candidate, seed: int) -> Evaluation:
    """Returns what an evaluation finds."""
    draws = np.random.default_rng(seed)
    top1, top5, loss = draws.random(3).tolist()
    return Evaluation(
        fitness=top1, metrics={"top1": top1, "top5": top5, "neg_loss": -loss}, macs=sum(candidate)
    )


def make(path: Path, n_trials: int, dimensions: int, *, old: bool) -> None:
    """Writes a finished run of so many trials, to which one can be added."""
    config, weights = path.with_suffix(".toml"), path.with_suffix(".safetensors")
    save_file(chain(dimensions).state_dict(), weights)
    config.write_text(
        "n_trials = 1\nbaselines = []\n"
        f'model = {{name = "{_ME}:chain", layers = {dimensions}, checkpoint = "{weights}"}}\n'
        f'data = {{name = "{_ME}:noise"}}\nbudget = {{macs = 0.9}}\nsearcher = "random"\nevaluator = "{_ME}:instant"\n'
    )
    settings = read_config(config)
    run_config(settings, path)
    folder = RunFolder(path)
    header = folder.header()
    header["settings"]["n_trials"] = n_trials
    if old:
        del header["id"]
    folder.write_json("run.json", signed("run", header))
    task = Task.of(
        settings.model.build(settings.seed), load_run_data(settings), settings, folder=folder
    )
    searcher = make_searcher("random", task.space, task.constraint, seed=settings.seed)
    choices = [dimension.choices for dimension in task.space.dimensions]
    draws = np.random.default_rng(0)
    columns = [
        np.asarray(column)[draws.integers(len(column), size=n_trials)].tolist()
        for column in choices
    ]
    candidates = list(dict.fromkeys(zip(*columns, strict=True)))
    if len(candidates) < n_trials:
        sys.exit("the space is too small for so many different structures; take more --dimensions")
    _write_journal(folder.journal, candidates, old=old)
    _write_snapshot(folder, searcher, candidates)


def _write_journal(path: Path, candidates: list[Candidate], *, old: bool) -> None:
    """Writes trials of these structures."""
    last = Chain.of(path).last
    with path.open("wb") as file:
        for number, candidate in enumerate(candidates):
            trial = Trial(number, candidate, evaluation(candidate, number))
            line = encode_line({**trial.to_plain(), "time": 1.7e9 + number}, None if old else last)
            last = int(line[:8] if old else line[9:17], 16)
            file.write(line)


def _write_snapshot(folder: RunFolder, searcher: Searcher, candidates: list[Candidate]) -> None:
    """Writes the snapshot of a searcher that has proposed these and been told of all."""
    searcher._known = dict.fromkeys(candidates)
    with Journal(folder.journal) as journal:
        mark = journal.mark()
    count = len(candidates)
    head: dict[str, Any] = {"run": run_id(folder.path), "journal": mark, "n_trials": count}
    head |= {"told": count, "asked": count, "replayed": 0, "exhausted": False}
    folder.write_json("searcher.json", {**head, "open": [], "state": searcher.state_dict()})


def timed(call: list[str]) -> tuple[float, float]:
    """Returns the seconds that a command takes, and its processor seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, "-m", "abcsearch", *call], check=True, capture_output=True)
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_evaluation(path: Path, n_trials: int) -> tuple[float, float]:
    """Returns the seconds from the call of resume to the first new evaluation, and the processor seconds.

    Args:
        path: of a run, which is not changed: a copy goes on.
        n_trials: that the run has.
    """
    copy = Path(shutil.copytree(path, path.with_name("copy")))
    note = path.with_name("note.json")
    note.unlink(missing_ok=True)
    call = [sys.executable, "-m", "abcsearch", "resume", str(copy), "--n-trials", str(n_trials + 1)]
    start = time.monotonic()
    subprocess.run(call, check=True, capture_output=True, env={**os.environ, _NOTE: str(note)})
    shutil.rmtree(copy)
    noted: dict[str, Any] = json.loads(note.read_text())
    return noted["at"] - start, noted["cpu"]


def row(name: str, measured: list[tuple[float, float]]) -> list[str]:
    """Returns the row of a table: medians and ranges of seconds and of processor seconds."""
    columns = ([pair[index] for pair in measured] for index in (0, 1))
    return [
        name,
        *(
            f"{statistics.median(column):.2f} ({min(column):.2f} to {max(column):.2f})"
            for column in columns
        ),
    ]


def main() -> None:
    """Prints the table."""
    from experiments.benchmarks.evaluation import table  # loads what neither command needs
    from experiments.tables import versions

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=200_000)
    parser.add_argument("--dimensions", type=int, default=37)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--old", action="store_true", help="a journal of a version before it was chained"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        make(run, arguments.trials, arguments.dimensions, old=arguments.old)
        megabytes = (run / "journal.jsonl").stat().st_size / 1e6
        looks = [timed(["status", str(run)]) for _ in range(arguments.repeats)]
        resumes = [first_evaluation(run, arguments.trials) for _ in range(arguments.repeats)]
    rows = [row("status", looks), row("resume, to the first new evaluation", resumes)]
    what = f"{arguments.trials} trials, {arguments.dimensions} dimensions, journal of {megabytes:.0f} MB"
    head = [f"abcsearch ... ({what}{', older lines' if arguments.old else ''})", "s", "processor s"]
    made_with = f"Python {platform.python_version()}, {versions('numpy', 'torch')}"
    sys.stdout.write(
        f"{table(head, rows)}\n\n{platform.machine()} CPU, {os.cpu_count()} cores; {made_with}.\n"
    )


if __name__ == "__main__":
    main()
