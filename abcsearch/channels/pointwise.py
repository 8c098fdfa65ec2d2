"""Gradients of strided 1x1 convolutions with few channels, which oneDNN gets wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_BLOCK = 16  # channels that oneDNN takes at a time, at most: 8 with AVX2, 16 with AVX512


class PointwiseSafely(TorchFunctionMode):
    """A block in which a strided 1x1 convolution on the CPU takes every so many-th pixel first, then all of these.

    That computes the same. oneDNN's gradient of the weights writes past a buffer where the input is channels_last and
    has fewer channels than it takes at a time (its issue 6035, open in November 2026; torch 2.15 has it): training
    crashes, hangs or learns from wrong gradients. Pruned networks with projection shortcuts are just that.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - as the function
        """Calls a function of torch; a convolution of this kind in two steps."""
        if func is torch.conv2d:
            return _conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _conv2d(  # noqa: PLR0913 - as torch has it
    input: torch.Tensor,  # noqa: A002 - as torch has it
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> torch.Tensor:
    """Returns torch.conv2d."""
    steps = (stride, stride) if isinstance(stride, int) else (stride[0], stride[-1])
    padded = padding != "valid" and any((padding,) if isinstance(padding, int) else padding)
    affected = input.device.type == "cpu" and weight.shape[1] < _BLOCK and tuple(weight.shape[2:]) == (1, 1)
    if affected and not padded and steps != (1, 1):
        input, stride = input[..., :: steps[0], :: steps[1]], 1  # noqa: A001 - see above
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
