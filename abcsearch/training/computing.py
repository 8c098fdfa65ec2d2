"""Where and how numbers are computed: device, precision, threads."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING

import torch

from abcsearch.channels.latency import torch_threads
from abcsearch.errors import ConfigError, callers
from abcsearch.formats import first_line
from abcsearch.training.recipe import TF32, check_computing

if TYPE_CHECKING:
    from collections.abc import Iterator


def find_device(name: str, precision: str = "float32") -> torch.device:
    """Returns a device of this machine by name; "auto" is CUDA where there is one, else the CPU.

    Args:
        name: of the device.
        precision: that is computed in.

    Raises:
        ConfigError: if it is none, there is no such device, or it does not have the precision.

    Warns:
        UserWarning: if it has the precision, but computes many times faster in float32.
    """
    check_computing(name, precision)
    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        device = torch.device(name)
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            msg = (
                f'this machine has no device {name!r} ({first_line(error)}); set device to "cpu" or "auto" '
                "(of a run: abcsearch resume --device cpu, abcsearch finetune --set device=cpu)"
            )
            raise ConfigError(msg) from error
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError(TF32.format(device))
    if precision == "bf16" and device.type == "cpu" and slow_in_bf16():
        kind = torch.backends.cpu.get_cpu_capability()
        msg = f"precision bf16 is about ten times slower than float32 on this CPU ({kind}); set precision to float32"
        warnings.warn(msg, stacklevel=callers())
    return device


def slow_in_bf16() -> bool:
    """Returns whether torch falls back to plain loops for convolutions in bf16 on this CPU."""
    return torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextlib.contextmanager
def computing(
    device: torch.device, *, precision: str = "float32", threads: int = 1
) -> Iterator[None]:
    """Runs a block with a number of threads and a precision, and puts torch's switches back afterwards.

    On CUDA, cuDNN takes deterministic algorithms only. "tf32" rounds what convolutions and matrix products multiply to
    10 bits. "bf16" rounds that to 7 bits and stores activations so (autocast), which is fast on GPUs and on CPUs with
    AMX or AVX512-BF16 and slow on others. Parameters and statistics stay in float32.

    Args:
        device: where it runs.
        precision: one of `PRECISIONS`.
        threads: torch threads on the CPU; they decide the order of summation.
    """
    if device.type != "cuda":
        with (
            torch_threads(threads),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        ):
            yield
        return
    before = torch.get_float32_matmul_precision()
    flags = torch.backends.cudnn.flags
    try:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        with (
            flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=precision == "tf32"
            ),
            torch_threads(threads),
            torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
