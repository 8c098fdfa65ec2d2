"""RayTraining: processes of Ray Train, on this machine or a cluster, that train one network together."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray

from abcsearch.errors import AbcSearchError, ConfigError, RunError, one_line
from abcsearch.execution.ray_cluster import connect, variables
from abcsearch.scratch import owner, sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from abcsearch.execution.ray_cluster import Cluster

# Workers stay in the driver's folder, and write no metrics for a dashboard that there is not.
_SETTINGS = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}


@dataclass(frozen=True, kw_only=True)
class RayTraining:
    """Processes of Ray Train that train one network together, connected by torch.distributed.

    Attributes:
        workers: how many; each has a GPU of its own where training uses them (NCCL), else a core (Gloo).
        address: "host:port" of a cluster's head, "auto" for that of this machine; None starts Ray here.
        log: takes what Ray has to say.

    Raises:
        ConfigError: if there is no worker, or Ray Train is not installed.
    """

    workers: int
    address: str | None = None
    log: Callable[[str], object] = field(default=str, repr=False)  # drops it

    def __post_init__(self) -> None:
        """Checks the number, and that Ray Train is there."""
        if self.workers < 1:
            msg = f"workers is the number of processes that train together, at least 1, found {self.workers}"
            raise ConfigError(msg)
        try:
            import ray.train.torch  # noqa: F401 - it needs more than Ray itself
        except ImportError as error:
            msg = "several workers train with Ray Train, which is not installed: pip install 'abcsearch[train]'"
            raise ConfigError(msg) from error

    def run(self, task: Callable[[int, int], None], folder: Path, *, gpu: bool) -> None:
        """Calls task(rank, size) in every process and waits for all.

        Args:
            task: may be pickled.
            folder: that all processes can write to; nothing stays in it.
            gpu: whether each may have a GPU of its own, where there are any.

        Raises:
            AbcSearchError: that the task raised in a worker.
            RunError: if Ray cannot be used, there are fewer GPUs than workers, or a worker was lost.
        """
        with contextlib.ExitStack() as stack:
            cluster = connect(self.address, self.workers, 0, self.log)
            stack.callback(cluster.close)
            gpus = int(ray.cluster_resources().get("GPU", 0)) if gpu else 0
            if 0 < gpus < self.workers:
                msg = f"{self.workers} workers need a GPU each, found {gpus}; take fewer, or set device to cpu"
                raise RunError(msg)
            sweep(folder)
            storage = stack.enter_context(
                tempfile.TemporaryDirectory(dir=folder, prefix=f".ray-{owner()}-", ignore_cleanup_errors=True)
            )
            stack.enter_context(variables(_SETTINGS))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # Ray warns of itself
            self._fit(task, storage, cluster, gpu=gpus > 0)

    def _fit(self, task: Callable[[int, int], None], storage: str, cluster: Cluster, *, gpu: bool) -> None:
        """Runs the workers to their end."""
        from ray.train import RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        ours = self.address is None

        class Trainer(TorchTrainer):
            """Leaves Ctrl-C to the caller."""

            controller: Any = None

            def _create_default_callbacks(self) -> list[Any]:
                # What cleans up after a lost controller asks Ray's dashboard, which a Ray of ours has none of, and ends
                # only when that has timed out; a Ray of ours goes with all that is in it.
                found: list[Any] = super()._create_default_callbacks()
                return [own for own in found if not (ours and type(own).__name__ == "PlacementGroupCleanerCallback")]

            def _register_sigint_handler(self, controller: Any) -> None:  # noqa: ANN401 - a handle of Ray's
                self.controller = controller

        trainer = Trainer(
            _work,
            train_loop_config={"task": ray.put(task)},
            scaling_config=ScalingConfig(num_workers=self.workers, use_gpu=gpu, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="training", storage_path=storage),
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error) from error
        except KeyboardInterrupt:
            if trainer.controller is not None and cluster.answers():
                with contextlib.suppress(Exception):  # it ends with the connection at the latest
                    ray.get(trainer.controller.abort.remote(), timeout=30)
            raise


def _work(config: dict[str, Any]) -> None:
    """Is run by every worker."""
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    if (device := get_device()).type == "cuda":
        torch.cuda.set_device(device)
    own = get_context()
    task: Any = ray.get(config["task"])
    task(own.get_world_rank(), own.get_world_size())


def _cause(error: Exception) -> Exception:
    """Returns what a training failed of: our own error of a worker, or else one with Ray's words."""
    found: list[BaseException] = list(getattr(error, "worker_failures", {}).values()) or [error]
    for own in found:
        for cause in _chain(own):
            if isinstance(cause, AbcSearchError):
                return cause
    last = [line for line in str(found[0]).splitlines() if line.strip()][-1:]
    return RunError(f"a worker of the training failed: {one_line(''.join(last) or repr(error))}; run it again to go on")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and what it was made from."""
    while error is not None:
        yield error
        inner = getattr(error, "_base_exc", None)
        error = inner if isinstance(inner, BaseException) else error.__cause__
