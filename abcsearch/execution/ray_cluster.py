"""A connection to Ray: to a cluster, or to processes of this machine that nobody else can reach.

Only this file, `ray_executor` and `ray_training` import ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray.job_config import JobConfig

from abcsearch.errors import RunError, one_line
from abcsearch.execution.ray_sessions import RaySession, begin_session
from abcsearch.execution.worker_paths import first_paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_PRINT = ray_worker.print_to_stdstream
NO_MEMORY = "its worker was stopped because the machine ran out of memory"
_MISSED = 3  # looks at which the head does not answer, after which it is gone: long before Ray ends the process
# Without these Ray reports usage to its makers, hides the GPUs from workers that take none of them with a warning, and
# listens on all interfaces: it does so unless it is told that this system cannot have clusters.
_LOCAL = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
}


@dataclass
class Cluster:
    """A connection to Ray.

    Attributes:
        head: host and port of its head.
        node: id of this process's node.
        borrowed: whether the caller was connected before us, and stays so. Else it is `close` that ends it.
        session: the folder of a Ray that was started here, if it has one of its own.
    """

    head: tuple[str, int]
    node: str
    borrowed: bool
    session: RaySession | None = None
    missed: int = field(default=0, init=False)

    def trouble(self) -> str | None:
        """Returns why nothing more can be computed, or None if all is well."""
        if not self.answers():
            self.missed += 1
            return self.gone if self.missed >= _MISSED else None
        self.missed = 0
        return (
            None
            if self.alive(self.node)
            else "the Ray processes of this machine have died (ray status shows them)"
        )

    @property
    def gone(self) -> str:
        """What to say where the head does not answer."""
        return f"the Ray head at {self.head[0]}:{self.head[1]} does not answer any more"

    def answers(self) -> bool:
        """Returns whether somebody listens where the head was; if not, most calls of Ray would wait for it."""
        try:
            socket.create_connection(self.head, timeout=2).close()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Leaves Ray as it was found: stopped, unless the caller was connected before us."""
        if not self.borrowed:
            _stop()
        if self.session is not None:
            self.session.close()

    @staticmethod
    def alive(node: str) -> bool:
        """Returns whether a node is alive."""
        return any(known["NodeID"] == node and known["Alive"] for known in ray.nodes())


def connect(address: str | None, cpus: int, gpus: float, log: Callable[[str], object]) -> Cluster:
    """Starts Ray on this machine, or connects to a cluster, or takes the connection that there is.

    Args:
        address: "host:port" of the head, "auto" for the cluster of this machine, None to start Ray.
        cpus: that the workers need; Ray is told of so many where it is started, even if there are fewer.
        gpus: of a worker.
        log: takes what Ray has to say.

    Raises:
        RunError: if that fails, or there is no GPU where one is needed.
    """
    borrowed, session = ray.is_initialized(), None
    if not borrowed:
        options: dict[str, Any] = {
            "log_to_driver": False,
            "configure_logging": False,
            "job_config": _Job(),
        }
        with _quiet(log), _kept_signal(signal.SIGTERM), _kept_from_children("SIGHUP"):
            try:
                if address is None:
                    session = _start(log, num_cpus=max(os.cpu_count() or 1, cpus), **options)
                else:
                    reach(address)
                    # Ray itself: for "auto" only
                    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
                    ray.init(address=address, **options)
            except RunError:
                _stop()
                raise
            except Exception as error:
                _stop()
                msg = f"Ray {'on this machine' if address is None else f'at {address}'} cannot be used: {error}"
                if address is not None:
                    msg += (
                        "; this machine must be a node of the cluster (ray start --address=...) and, where that asks "
                        "for it, have the cluster's token (ray get-auth-token shows it; in ~/.ray/auth_token)"
                    )
                raise RunError(msg) from error
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    cluster = Cluster((host, int(port)), context.get_node_id(), borrowed, session)
    if address is None and gpus and not ray.cluster_resources().get("GPU"):
        cluster.close()
        msg = f"execution.gpus = {gpus:g}, but Ray sees no GPU on this machine; leave it out, or name a cluster"
        raise RunError(msg)
    return cluster


class _Job(JobConfig):
    """Has workers import abcsearch, and find no file of the working folder before an installed package."""

    def _get_proto_job_config(self) -> Any:  # noqa: ANN401 - Ray's
        # Ray has put the driver's and the working folder here, which would come first; see `take_paths`.
        self._py_driver_sys_path = first_paths()
        return super()._get_proto_job_config()


def _start(log: Callable[[str], object], **options: Any) -> RaySession | None:  # noqa: ANN401 - of ray.init
    """Starts Ray on this machine; once more if it fails, as it does where its processes take half a minute to start."""
    session = begin_session()
    if session is not None:
        options["_temp_dir"] = str(session.path)
    try:
        with _only_here():
            try:
                ray.init(address="local", include_dashboard=False, **options)
            except Exception as error:  # noqa: BLE001 - Ray has no kind of its own for it
                log(f"Ray did not start, trying once more: {error}")
                ray.shutdown()
                ray.init(
                    address="local", include_dashboard=False, **{**options, "job_config": _Job()}
                )
    except BaseException:
        _stop()
        if session is not None:
            session.close(keep=True)  # the error names files in it
        raise
    with contextlib.suppress(OSError):  # Ray writes it for all to read
        (Path.home() / ".ray" / "auth_token").chmod(0o600)
    return session


def sent(value: Any, what: str, advice: str) -> Any:  # noqa: ANN401 - any object, and Ray's reference to it
    """Returns a reference to a value that is in the object store from now on.

    Args:
        value: any object.
        what: it is, for the message.
        advice: what to do where it cannot be pickled.

    Raises:
        RunError: if it cannot be pickled.
    """
    try:
        return ray.put(value)
    except Exception as error:
        # Ray's own fills a screen
        why = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        msg = f"{what} cannot be sent to workers: {why[0]}; {advice}"
        raise RunError(msg) from error


def _stop() -> None:
    """Leaves the cluster, or stops it where it was started here; what Ray prints is printed again."""
    ray.shutdown()
    ray_worker.print_to_stdstream = _PRINT


def lost(text: str) -> str | None:
    """Returns in a few words how a worker was lost that Ray says in many, or None if that is not what it says."""
    if "low on memory" in text.lower():
        return NO_MEMORY
    if "USER_EXIT" in text or "USER_ERROR" in text:
        return "its worker process has ended itself (sys.exit?)"
    if "SYSTEM_ERROR" in text:
        return "its worker process died (killed, out of memory, or a crash in native code)"
    return None


def reach(address: str) -> None:
    """Raises RunError at once where no cluster can be: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    start = "start one with: ray start --head --port=6379"
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        msg = f"ray_address is host:port or auto, found {address!r}; {start}"
        raise RunError(msg)
    try:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.settimeout(5)
            connection.sendall(
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
            )
            answer = connection.recv(9)
    except OSError as error:
        msg = f"no Ray cluster answers at {address} ({error}); {start}"
        raise RunError(msg) from error
    # GRPC, as any HTTP/2, answers with its settings
    if answer[3:4] != b"\4" and not os.environ.get("RAY_USE_TLS"):
        msg = f"what answers at {address} is not a Ray cluster; give the address that ray start --head has printed"
        raise RunError(msg)


@contextlib.contextmanager
def _only_here() -> Iterator[None]:
    """Has Ray listen on localhost only."""
    constant = ray_constants.ENABLE_RAY_CLUSTER
    with variables(_LOCAL):
        ray_constants.ENABLE_RAY_CLUSTER = False
        try:
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = constant


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Runs a block with environment variables, and puts them back."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@contextlib.contextmanager
def _quiet(log: Callable[[str], object]) -> Iterator[None]:
    """Keeps Ray's messages off the terminal: what it says while connecting is dropped, later errors are logged.

    They are until `_stop`.
    """
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)

    def logged(data: dict[str, Any], **_: object) -> None:
        for line in data.get("lines", ()):
            log(f"Ray: {one_line(str(line), 300)}")

    ray_worker.print_to_stdstream = logged  # there is no public way to have them elsewhere
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _kept_from_children(name: str) -> Iterator[None]:
    """Has processes that are started meanwhile never get a signal, by its name: the driver alone decides about it."""
    number = getattr(signal, name, None)
    if number is None:  # of another system
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _kept_signal(number: signal.Signals) -> Iterator[None]:
    """Puts the handler of a signal back, which Ray replaces."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(number)
    try:
        yield
    finally:
        if main and before is not None:
            signal.signal(number, before)
