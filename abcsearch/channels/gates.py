"""A gate per channel: soft or hard masks of a network whose layers stay as they are."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from abcsearch.channels.outline import parts_of, plan_of
from abcsearch.channels.renormalising import renormalised
from abcsearch.errors import CandidateError, plural

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.group import ChannelNorm


def gate(
    model: nn.Module, graph: ChannelGraph, gates: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Returns what reads channels (weights of convolutions and linear layers), times the gates of these channels.

    `torch.func.functional_call(model, gate(model, graph, gates), inputs)` runs the network so. With gates of 0 and 1 it
    computes what `slice_model` with the channels of gate 1 does, up to rounding, in evaluation and in training mode,
    where a batch norm sees the same values of these channels. Any other real gate scales what is read of its channel;
    gradients reach the gates and the parameters.

    - Gates stand behind normalisation and activation: scaled there, a channel is not scaled back.
    - What makes channels, depthwise convolutions and batch norms among them, is not gated.
    - A weight that reads several groups, on one axis or on several, is multiplied by the gates of all. One that reads a
      group and makes another, or the same, is gated along the axis that reads. One that reads and makes along the same
      axis (a tied weight) is gated in both uses.
    - What reads is gated under the name that the graph knows; `functional_call` puts it wherever it is tied. Where one
      module has several paths, it does not put back what was there (pytorch issue 164759): `replaced` does.
    - Channels that nothing reads change no output: their gate has no effect, and no gradient.
    - In training mode forward updates the statistics of `model` itself, since gates replace no batch norm's buffers.
    - Blocks have no gates.
    - Norms over channels are computed by no weight: for a network with such among its prunable groups
      (`ChannelGroup.renormalises`) there is `gated`.

    Source: soft masks as in DMCP (Guo et al., CVPR 2020) and AutoPruner (Luo and Wu, Pattern Recognition 2020), which
    multiply feature maps; here the linear operations that read them are multiplied, which is the same.

    Args:
        model: the network that `graph` was traced on; not changed.
        graph: its channel groups.
        gates: per prunable group (`graph.prunable`) a tensor (channels,) of real numbers without a unit, floating
            point. They are taken to the type and the device of what they multiply.

    Returns:
        By name, the parameters and buffers that read channels of a prunable group, with their shape and type; all
        others are to be taken from the network.

    Raises:
        CandidateError: if there is not one gate tensor per prunable group, or one has another shape or is not
            floating point, or is on the meta device where the network is not; if there are norms over channels.
        TraceError: if the graph was traced on a network with other modules or parameters.
    """
    if graph.norms:
        names = ", ".join(group.name for group in graph.prunable if group.renormalises)
        msg = (
            f"norms over channels of {names} need gates as well: run the network in `with gated(model, graph, gates):`"
            ", or trace it with renormalise=False"
        )
        raise CandidateError(msg)
    return _readers(model, graph, gates)


@contextlib.contextmanager
def gated(model: nn.Module, graph: ChannelGraph, gates: Sequence[torch.Tensor]) -> Iterator[None]:
    """Puts gates on the channels of a model for a block: what `gate` does, and norms over channels as well.

    A norm weighs every channel with its gate: means and variances are weighed ones, a length is that of what is left of
    the channels. A local response norm, whose neighbours are others where channels go, sees those whose gate is not 0.

    Args:
        model: of no other thread meanwhile; as it was afterwards.
        graph: its channel groups.
        gates: as in `gate`.

    Raises:
        CandidateError: as in `gate`, but for norms.
        TraceError: if the graph was traced on a network with other modules or parameters, or a norm gets another input.
    """
    tensors = _readers(model, graph, gates)
    weights: dict[ChannelNorm, torch.Tensor] = {}
    if graph.norms:
        every = torch.cat([*gates, gates[0].new_ones(1)])
        weights = {
            norm: every[torch.from_numpy(norm.channels).to(every.device)] for norm in graph.norms
        }
    with replaced(model, tensors), renormalised(model, weights):
        yield


def _readers(
    model: nn.Module, graph: ChannelGraph, gates: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Returns what reads channels, times their gates, see `gate`."""
    _, tensors = parts_of(model, graph)
    _check(graph, gates)
    plan = plan_of(graph)
    joined: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}
    gated: dict[str, torch.Tensor] = {}
    for target in plan.targets:
        if target.sums:
            tensor = tensors[target.name]
            key = tensor.dtype, tensor.device
            if key not in joined:
                joined[key] = _joined(gates, tensor)
            whole = target.divided(tensor)
            for axis, pattern in target.sums:
                # -1: the one at the end
                numbers = torch.from_numpy(plan.patterns[pattern]).to(tensor.device)
                whole = whole * joined[key][numbers].reshape(
                    [-1 if a == axis else 1 for a in range(whole.ndim)]
                )
            gated[target.name] = target.merged(whole)
    return gated


@contextlib.contextmanager
def replaced(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Puts other tensors in the place of a model's own for a block, tied ones wherever they are.

    Args:
        model: of no other thread meanwhile; as it was afterwards, also where a module of it has several paths.
        tensors: by names of parameters and buffers, as `gate` returns them.
    """
    every = dict([*model.named_parameters(), *model.named_buffers()])
    new = {id(every[name]): tensor for name, tensor in tensors.items()}
    stores = [
        store for module in model.modules() for store in (module._parameters, module._buffers)
    ]
    slots = [
        (store, name, old) for store in stores for name, old in store.items() if id(old) in new
    ]
    try:
        for store, name, old in slots:
            store[name] = new[id(old)]  # pyright: ignore[reportArgumentType] - a parameter's place takes any tensor
        yield
    finally:
        for store, name, old in slots:
            store[name] = old  # pyright: ignore[reportArgumentType]


def _joined(gates: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Returns the gates of all groups one after another, and a one, with the type and device of a tensor."""
    if any(values.is_meta for values in gates) and not like.is_meta:
        msg = f"gates are on the device of the network, {like.device}, found some on meta, which have no values"
        raise CandidateError(msg)
    return torch.cat([*(values.to(like) for values in gates), like.new_ones(1)])


def _check(graph: ChannelGraph, gates: Sequence[torch.Tensor]) -> None:
    """Raises CandidateError unless there is one floating-point tensor (channels,) per prunable group."""
    if len(gates) != len(graph.prunable):
        msg = (
            f"gates are one tensor per prunable group, {len(graph.prunable)} for this network in the order of "
            f"graph.prunable, found {len(gates)}"
        )
        raise CandidateError(msg)
    for group, values in zip(graph.prunable, gates, strict=True):
        if not isinstance(values, torch.Tensor) or not values.is_floating_point():
            kind = str(values.dtype) if isinstance(values, torch.Tensor) else type(values).__name__
            msg = f"the gates of group {group.name!r} are a floating-point tensor, found {kind}; convert with .float()"
            raise CandidateError(msg)
        if values.shape != (group.channels,):
            msg = (
                f"the gates of group {group.name!r} have shape {tuple(values.shape)}; it has "
                f"{plural(group.channels, 'channel')}: one gate for each, ({group.channels},)"
            )
            raise CandidateError(msg)
