"""A gate per residual block: what it adds to its input, weighed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.errors import CandidateError, plural

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from abcsearch.channels.graph import ChannelGraph


@contextlib.contextmanager
def skipping(
    model: nn.Module, graph: ChannelGraph, gates: Sequence[torch.Tensor | float]
) -> Iterator[None]:
    """Weighs what the residual blocks of a model add for a block of code: output = input + gate * (output - input).

    With a gate of 0 a block hands on its input, as where `slice_model` drops it; with 1 it does what it did, up to
    rounding. In between and beyond both are mixed; gradients reach the gates and the parameters. A block is computed in
    any case, so in training mode its batch norms see what they saw.

    Source: stochastic depth (Huang et al., ECCV 2016) and the depth of TAS (Dong and Yang, NeurIPS 2019), with numbers
    instead of draws.

    Args:
        model: of no other thread meanwhile; as it was afterwards.
        graph: its channel groups and blocks.
        gates: per block (`graph.blocks`) a number, or a floating-point tensor (); () leaves all as they are.

    Raises:
        CandidateError: if there is not one gate per block.
    """
    if gates and len(gates) != len(graph.blocks):
        msg = f"gates of blocks are one number per block, found {len(gates)} for {plural(len(graph.blocks), 'block')}"
        raise CandidateError(msg)
    handles: list[Any] = []
    try:
        for block, gate in zip(graph.blocks, gates, strict=False):
            module = model.get_submodule(block.name)
            handles.append(module.register_forward_hook(_weighing(gate), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _weighing(gate: torch.Tensor | float) -> Callable[..., torch.Tensor]:
    """Returns the hook of a block with a gate."""

    def weigh(
        _module: nn.Module,
        args: Any,  # noqa: ANN401
        kwargs: dict[str, Any],
        added: torch.Tensor,
    ) -> torch.Tensor:
        # Blocks have one input
        before: torch.Tensor = args[0] if args else next(iter(kwargs.values()))
        return before + (gate.to(added) if isinstance(gate, torch.Tensor) else gate) * (
            added - before
        )

    return weigh
