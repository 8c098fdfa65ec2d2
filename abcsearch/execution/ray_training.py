"""RayTraining: processes of Ray Train, on this machine or a cluster, that train one network together."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray

from abcsearch.errors import AbcSearchError, ConfigError, RunError
from abcsearch.execution.ray_cluster import connect, lost, sent, variables
from abcsearch.execution.setup import sent_setup
from abcsearch.execution.worker_paths import own_paths, take_paths
from abcsearch.scratch import owner, sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from abcsearch.execution.ray_cluster import Cluster

# Workers stay in the driver's folder, and write no metrics for a dashboard that there is not.
_SETTINGS = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}

# What torch.distributed says in the workers that are left when one is gone: not why that one is.
_ECHOES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")


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

    def run(
        self,
        task: Callable[[int, int], None],
        folder: Path,
        *,
        gpu: bool,
        setup: Mapping[str, Callable[[], object]] | None = None,
    ) -> None:
        """Calls task(rank, size) in every process and waits for all.

        Args:
            task: may be pickled.
            folder: that all processes can write to; nothing stays in it.
            gpu: whether each may have a GPU of its own, where there are any.
            setup: calls that every process makes before, by what they are called in messages.

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
                tempfile.TemporaryDirectory(
                    dir=folder, prefix=f".ray-{owner()}-", ignore_cleanup_errors=True
                )
            )
            stack.enter_context(variables(_SETTINGS))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # Ray warns of itself
            config = {
                "paths": own_paths(),
                "setup": sent_setup(setup) if setup else None,
                "task": sent(task, "what is trained", "network and data must be picklable"),
            }
            self._fit(config, storage, cluster, gpu=gpus > 0)

    def _fit(self, config: dict[str, Any], storage: str, cluster: Cluster, *, gpu: bool) -> None:
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
                callbacks: list[Any] = super()._create_default_callbacks()
                return [
                    callback
                    for callback in callbacks
                    if not (ours and type(callback).__name__ == "PlacementGroupCleanerCallback")
                ]

            def _register_sigint_handler(self, controller: Any) -> None:  # noqa: ANN401 - a handle of Ray's
                self.controller = controller

        trainer = Trainer(
            _work,
            train_loop_config=config,
            scaling_config=ScalingConfig(
                num_workers=self.workers, use_gpu=gpu, resources_per_worker={"CPU": 1}
            ),
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
    take_paths(config["paths"])
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    if (device := get_device()).type == "cuda":
        torch.cuda.set_device(device)
    context = get_context()
    try:
        if config["setup"] is not None:
            ray.get(config["setup"])  # makes its calls
        task: Any = ray.get(config["task"])
        task(context.get_world_rank(), context.get_world_size())
    except AbcSearchError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - Ray would cut its text, or fail where it has none
        raise _failed(_described(error)) from None


def _described(error: BaseException) -> str:
    """Returns kind and text of any error, the text whole."""
    try:
        text = str(error).strip()
    except Exception as second:  # noqa: BLE001 - the user's own class
        text = f"(its text cannot be had: {type(second).__name__})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _failed(why: str) -> RunError:
    return RunError(f"a worker of the training failed: {why}; run it again to go on")


def _cause(error: Exception) -> Exception:
    """Returns what a training failed of: our own error of a worker, or else one with Ray's words."""
    failures: list[BaseException] = list(getattr(error, "worker_failures", {}).values()) or [error]
    causes = [
        next((c for c in _chain(one) if isinstance(c, AbcSearchError)), _lost(one))
        for one in failures
    ]
    return min(causes, key=lambda cause: any(words in str(cause) for words in _ECHOES))


def _lost(error: BaseException) -> RunError:
    """Returns an error for a worker that could not say what it failed of."""
    text = _described(error)
    return _failed(lost(text) or text)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and what it was made from."""
    while error is not None:
        yield error
        inner = getattr(error, "_base_exc", None)
        error = inner if isinstance(inner, BaseException) else error.__cause__
