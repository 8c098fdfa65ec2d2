"""What runs a network when its forward time is measured: torch, ONNX Runtime, or a function of the user's own.

    [latency]
    runtime = "onnxruntime"               # or "torch", or "package.module:function"

A function of your own is called with (module, batch, threads). It returns a function without arguments that runs one
pass, which is then timed here, or the seconds that one pass takes where it has measured that itself (on a phone, say).
"""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import time
import warnings
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.channels.layout import fit_layout, laid_out
from abcsearch.channels.options import RUNTIMES
from abcsearch.errors import ModelError, one_line
from abcsearch.example import Example, laid, run_on
from abcsearch.importing import import_callable

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from abcsearch.channels.options import LatencyOptions
    from abcsearch.example import Inputs

    Pass = Callable[[], float]  # runs once, and returns the seconds that it took
    Clock = Callable[[], float]

_NEEDED = ("onnx", "onnxruntime", "onnxscript")


def check_runtime(options: LatencyOptions) -> None:
    """Raises ModelError unless networks can be run where the options say, before anything is measured."""
    if options.runtime in RUNTIMES:
        missing = [
            name
            for name in (_NEEDED if options.runtime == "onnxruntime" else ())
            if importlib.util.find_spec(name) is None
        ]
        if missing:
            msg = f"latency: runtime = {options.runtime!r} needs what is not installed ({', '.join(missing)}): "
            raise ModelError(
                f"{msg}pip install 'abcsearch[onnx]'; or measure with runtime = \"torch\""
            )
        return
    import_callable("latency.runtime", options.runtime, ModelError)


def prepared_pass(network: nn.Module, batch: Inputs, options: LatencyOptions) -> Pass:
    """Returns what runs one forward pass of a network, and says how many seconds it took.

    Args:
        network: in evaluation mode, on the device of the batch; torch lays its weights out as channels_last.
        batch: what it is fed, as large as the options say.
        options: where it runs, and with how many threads.

    Raises:
        ModelError: if the runtime is not there, cannot run the network, or is a function that does not keep its word.
    """
    check_runtime(options)
    if options.runtime == "torch":
        return _in_torch(network, batch, _clock(options.threads))
    if options.runtime == "onnxruntime":
        return _in_onnxruntime(network, batch, options.threads)
    return _in_users(network, batch, options)


def _clock(threads: int) -> Clock:
    """Returns what the time is read from.

    One thread on the CPU takes as long as it computes, so that other processes, which it has to wait for, do not count:
    under a load of five processes per core, medians of ten passes by the clock on the wall vary by 11 %.
    """
    return time.thread_time if threads == 1 else time.perf_counter


def _in_torch(network: nn.Module, batch: Inputs, clock: Clock) -> Pass:
    """Returns a pass in torch, images and weights in the layout that evaluations and reports have."""
    fit_layout(network, batch)
    laid_out(network)
    batch = laid(batch)
    device = batch.device
    cuda = device.type == "cuda"
    clock = time.perf_counter if cuda else clock

    def run() -> float:
        if cuda:
            torch.cuda.synchronize(device)
        start = clock()
        with torch.inference_mode():
            run_on(network, batch)
        if cuda:
            torch.cuda.synchronize(device)
        return clock() - start

    return run


def _in_onnxruntime(network: nn.Module, batch: Inputs, threads: int) -> Pass:
    """Returns a pass of ONNX Runtime on the CPU."""
    import onnxruntime

    example = Example.of(batch).to("cpu").contiguous()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    file = _as_onnx(network, example)
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many kinds
        msg = f"latency: onnxruntime cannot run the network: {one_line(str(error), 300)}"
        raise ModelError(f'{msg}; measure with runtime = "torch"') from error
    tensors = dict(zip(_names(example), example.tensors, strict=True))
    feed = {x.name: tensors[x.name].numpy() for x in session.get_inputs()}
    clock = _clock(threads)

    def run() -> float:
        start = clock()
        session.run(None, feed)
        return clock() - start

    return run


def _names(example: Example) -> list[str]:
    return [f"input_{index}" for index in range(len(example.tensors))]


def _as_onnx(network: nn.Module, example: Example) -> bytes:
    """Returns a network as ONNX, for batches of the size of the example.

    torch's exporter by tracing takes a twentieth of the time of the one by torch.export (0.2 s against 4 s for
    ResNet-20), and writes the same layers; dozens of networks are measured. The other one is for what it refuses.
    """
    example = example.fitting(network)
    reasons: list[str] = []
    for dynamo in (False, True):
        file = io.BytesIO()
        before = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    network.eval(),
                    example.args,
                    file,  # pyright: ignore[reportArgumentType] - its types know paths alone
                    kwargs=dict(example.kwargs),
                    dynamo=dynamo,
                    verbose=False,
                    input_names=_names(example),
                )
            return file.getvalue()
        except Exception as error:  # noqa: BLE001 - of many kinds
            reasons.append(f"{type(error).__name__}: {one_line(str(error), 200)}")
        finally:
            logging.disable(before)
    msg = f"latency: torch.onnx cannot write the network for onnxruntime: {'; '.join(reasons)}; "
    raise ModelError(f'{msg}measure with runtime = "torch", or with a function of your own')


def _in_users(network: nn.Module, batch: Inputs, options: LatencyOptions) -> Pass:
    """Returns a pass as a function of the user's runs or measures it."""
    name = options.runtime
    given = _called(name, import_callable("latency.runtime", name, ModelError),
                    network, batch, options.threads)  # fmt: skip
    if not callable(given):
        seconds = _seconds(name, given)
        return lambda: seconds

    def run() -> float:
        start = time.perf_counter()
        returned = _called(name, given)
        took = time.perf_counter() - start
        # It may have been measured where the network runs
        return _seconds(name, returned) if _is_number(returned) else took

    return run


def _called(name: str, function: Callable[..., Any], *args: Any) -> Any:  # noqa: ANN401 - of the user's
    """Returns what a function of the user's returns; raises ModelError with its name where it fails."""
    try:
        return function(*args)
    except Exception as error:  # anything can go wrong in it
        msg = (
            f"latency: runtime {name!r} failed: {type(error).__name__}: {one_line(str(error), 300)}"
        )
        raise ModelError(f"{msg}; it is called with (module, batch, threads)") from error


def _is_number(value: object) -> bool:
    # Those of NumPy are Real as well
    return isinstance(value, Real) and not isinstance(value, bool)


def _seconds(name: str, value: Any) -> float:  # noqa: ANN401 - whatever was returned
    """Returns seconds as a float; raises ModelError for what are none."""
    if _is_number(value) and 0 < value < math.inf:
        return float(value)
    msg = f"latency: runtime {name!r} returned {value!r:.80}; it returns a function without arguments that runs one "
    raise ModelError(f"{msg}pass, or the seconds of one pass: a number above 0")
