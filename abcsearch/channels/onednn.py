"""Gradients of strided 1x1 convolutions with few channels, which oneDNN gets wrong."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.fx import GraphModule

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_BLOCK = 16  # channels that oneDNN takes at a time, at most: 8 with AVX2, 16 with AVX512
_EXPORTED = torch.ops.aten.conv2d.default  # what a network out of a .pt2 file calls


@contextlib.contextmanager
def pointwise_safely(network: nn.Module) -> Iterator[None]:
    """A block in which a network's strided 1x1 convolutions on the CPU first take every so many-th pixel, then all.

    That computes the same. oneDNN's gradient of the weights writes past a buffer where the input is channels_last and
    has fewer channels than it takes at a time (its issue 6035, open in November 2026; torch 2.15 has it): training
    crashes, hangs or learns from wrong gradients. Pruned networks with projection shortcuts are just that. Meant are
    `Conv2d` modules and networks of `torch.export`; strided 1x1 transposed convolutions have the same fault and
    keep it.

    Args:
        network: trained in the block; as it was afterwards.
    """
    every = [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d) and _affected(module)
    ]
    # Those of a block around this one
    modules = [module for module in every if "_conv_forward" not in vars(module)]
    graphs = [module for module in network.modules() if isinstance(module, GraphModule)]
    for module in modules:
        vars(module)["_conv_forward"] = functools.partial(_conv_forward, module)
    _retarget(graphs, _EXPORTED, _conv2d)
    try:
        yield
    finally:
        for module in modules:
            del vars(module)["_conv_forward"]
        _retarget(graphs, _conv2d, _EXPORTED)


def _affected(module: nn.Conv2d) -> bool:
    """Returns whether a convolution is of this kind, and torch's own."""
    inherited = (
        type(module)._conv_forward is nn.Conv2d._conv_forward and module.padding_mode == "zeros"
    )
    return inherited and module.kernel_size == (1, 1) and module.stride != (1, 1)


def _conv_forward(
    module: nn.Conv2d, pixels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Returns what the module's own method does."""
    return _conv2d(
        pixels, weight, bias, module.stride, module.padding, module.dilation, module.groups
    )


def _retarget(graphs: list[GraphModule], before: object, after: object) -> None:
    """Lets traced networks call one function instead of another."""
    for module in graphs:
        nodes = [node for node in module.graph.nodes if node.target is before]
        for node in nodes:
            node.target = after
        if nodes:
            module.recompile()


def _conv2d(  # noqa: PLR0913 - as torch has it
    pixels: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: str | Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> torch.Tensor:
    """Returns torch.conv2d."""
    padded = padding != "valid" and any(padding)
    affected = (
        pixels.device.type == "cpu"
        and weight.shape[1] < _BLOCK
        and tuple(weight.shape[2:]) == (1, 1)
    )
    if affected and not padded and tuple(stride) != (1, 1):
        pixels, stride = pixels[..., :: stride[0], :: stride[-1]], (1, 1)
    return torch.conv2d(pixels, weight, bias, stride, padding, dilation, groups)  # pyright: ignore[reportArgumentType,reportCallIssue]
