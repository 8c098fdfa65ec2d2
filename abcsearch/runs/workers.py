"""Who evaluates: the caller's executor, this process, or workers of Ray for as long as the run lasts."""

from __future__ import annotations

import contextlib
import os
import warnings
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.errors import ConfigError, RunError, plural, unknown_name
from abcsearch.execution.options import ExecutionOptions
from abcsearch.execution.serial import SerialExecutor
from abcsearch.records import names
from abcsearch.training.objectives import registered

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Executor

    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.runs.settings import SearchSettings


@contextlib.contextmanager
def workers_for(
    settings: SearchSettings, folder: RunFolder, given: Executor | None
) -> Iterator[Executor]:
    """Yields the executor of a run; workers of Ray start with the first evaluation, and stop at the end.

    Args:
        settings: of the run.
        folder: hears in its log of workers that come and go.
        given: the caller's own, used instead.
    """
    execution = settings.execution
    if given is not None or execution.workers == 0:
        _prepare(given)
        yield given or SerialExecutor()
        return
    from abcsearch.execution.ray_executor import RayExecutor

    threads = evaluation_threads(settings.evaluator.options)
    cores = os.cpu_count() or 1
    if execution.ray_address is None and not execution.gpus and execution.workers * threads > cores:
        workers = f"{plural(execution.workers, 'worker')} of {threads} thread(s)"
        msg = f"{workers} share {plural(cores, 'CPU')}: fewer workers would be as fast"
        warnings.warn(msg, stacklevel=2)
    executor = RayExecutor(
        execution.workers,
        address=execution.ray_address,
        threads=threads,
        gpus=execution.gpus,
        timeout=execution.timeout,
        log=folder.log,
    )
    _prepare(executor)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _prepare(executor: Executor | None) -> None:
    """Has workers of Ray know what a script has registered; other executors have their own ways."""
    prepare = getattr(executor, "prepare", None)
    if prepare is not None:
        prepare(registered())


def check_workers(options: ExecutionOptions) -> None:
    """Finds out early what would end a run when its first evaluation begins.

    Raises:
        RunError: if no cluster answers at the address, or a GPU is wanted where there is none.
    """
    if options.ray_address is not None:
        from abcsearch.execution.ray_cluster import reach

        reach(options.ray_address)
    elif options.workers and options.gpus and not torch.cuda.is_available():
        msg = f"execution.gpus = {options.gpus:g}, but this machine has no GPU; leave it out, or name a cluster"
        raise RunError(msg)


def changed_execution(before: ExecutionOptions, changes: Mapping[str, Any]) -> ExecutionOptions:
    """Returns the options of a continued run.

    Args:
        before: what the run's folder says.
        changes: other values; with 0 workers, address and timeout of before do not count.

    Raises:
        ConfigError: if an option is unknown, or decides the trials and is another one than before.
    """
    known = {field.name for field in fields(ExecutionOptions)}
    for name, value in changes.items():
        if name not in known:
            raise ConfigError(unknown_name("setting of execution", name, known))
        if name in names(ExecutionOptions, decides=True) and value != getattr(before, name):
            msg = f"execution.{name} decides the trials: {getattr(before, name)!r} in the folder, {value!r} now"
            raise ConfigError(msg)
    alone = {"ray_address": None, "timeout": None} if changes.get("workers") == 0 else {}
    return replace(before, **{**alone, **changes})


def evaluation_threads(options: Any) -> int:  # noqa: ANN401 - options of an evaluator
    """Returns how many threads an evaluation uses: the most that any table of options has, or else 1."""
    tables = [options, *(value for value in options.values() if isinstance(value, dict))]
    return max(
        (int(table["threads"]) for table in tables if isinstance(table.get("threads"), int)),
        default=1,
    )
