"""Slices that share: a candidate whose weights are differentiable slices of the full network's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from abcsearch.channels.cutting import cut
from abcsearch.channels.outline import outlined
from abcsearch.channels.slicing import assembled, no_collection, parameter_of
from abcsearch.errors import ModelError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from abcsearch.channels.cutting import Cuts
    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.ranking import Ranking


def share(
    model: nn.Module,
    graph: ChannelGraph,
    candidate: Sequence[int],
    ranking: Ranking,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Returns a candidate in two halves: modules of its shapes, and differentiable slices of the model's tensors.

    `torch.func.functional_call(skeleton, tensors, inputs)` computes, bit for bit, what
    `slice_model(model, graph, candidate, ranking)(inputs)` does; a backward pass adds to the gradients of the model's
    own parameters, zero where entries do not stay.

    All state is in the tensors, none in the skeleton:

    - The skeleton is new with every call, with the model's modes, hooks and settings as they are now, so that nothing
      passes from one user to the next. Its own parameters and buffers hold no numbers (they are on the meta device):
      run without the tensors, it fails. Building it takes about as long as copying tensors in `slice_model`.
    - Parameters among the tensors are slices, or the model's parameters themselves where all of them stays. A frozen
      one (`requires_grad` False) gets no gradient here either.
    - Buffers among the tensors are copies. In training mode batch norms update these: what a step leaves is in
      `tensors` afterwards, the model's running statistics stay as they are, and the next call slices those anew.

    Args:
        model: the network that `graph` was traced on; not changed.
        graph: its channel groups.
        candidate: kept channels per prunable group, then, or not at all, 1 or 0 per block, as in `slice_model`.
        ranking: which channels are best.
        tensors: full-size tensors to slice in the place of the model's, by name: generated weights, or what `gate`
            returns. What is not among them is the model's. Of tied tensors the name is the first one, as in
            `model.named_parameters()`.

    Returns:
        The skeleton, and by name one tensor for each of its parameters and buffers.

    Raises:
        CandidateError: if the candidate does not fit the graph.
        ModelError: if `tensors` has a name that the network has not, or something of another shape under a name.
        RankingError: if the ranking belongs to another graph.
        TraceError: if the graph was traced on a network with other modules or parameters.
    """
    with no_collection():
        outline = outlined(model, graph, candidate, ranking)
        given = dict(tensors or {})
        _check(model, graph, given)
        cuts = {target.name: (target, axes) for target, axes in outline.cuts}
        moved = _Moved()
        empty = _Empty()
        shared: dict[str, torch.Tensor] = {}
        hollow: dict[int, torch.Tensor] = {}
        for name, tensor in outline.tensors.items():
            trained = type(tensor) is not torch.Tensor and isinstance(tensor, nn.Parameter)  # the first is quicker
            left = given.get(name, tensor)
            if name in cuts:
                target, axes = cuts[name]
                left = target.merged(cut(target.divided(left), axes if left.is_cpu else moved(axes, left.device)))
            elif not trained:
                left = left.clone()
            shared[name] = left
            nothing = empty[left.shape, left.dtype]
            hollow[id(tensor)] = parameter_of(nothing, tensor.requires_grad) if trained else nothing.detach()
        return assembled(model, graph, outline, hollow), shared


class _Moved(dict[tuple[int, torch.device], torch.Tensor]):
    """Entries to keep, on other devices: most axes share theirs with others, and each is moved once."""

    def __call__(self, axes: Cuts, device: torch.device) -> Cuts:
        """Returns the cuts with their entries on a device."""
        for _, kept in axes:
            if (id(kept), device) not in self:
                self[id(kept), device] = kept.to(device)
        return [(axis, self[id(kept), device]) for axis, kept in axes]


class _Empty(dict[tuple[torch.Size, torch.dtype], torch.Tensor]):
    """Tensors without numbers, one of each shape and type: what many share costs once."""

    def __missing__(self, key: tuple[torch.Size, torch.dtype]) -> torch.Tensor:
        self[key] = torch.empty(key[0], dtype=key[1], device="meta")
        return self[key]


def _check(model: nn.Module, graph: ChannelGraph, given: Mapping[str, torch.Tensor]) -> None:
    """Raises ModelError for a tensor with a name that the network has not, or of another shape."""
    for name, tensor in given.items():
        if name not in graph.sizes:
            first = _tied_to(model, name)
            hint = f"{name} is tied, give {first}" if first else unknown_name("tensor", name, graph.sizes)
            msg = f"tensors to slice are named as the network's parameters and buffers are: {hint}"
            raise ModelError(msg)
        shape = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        if shape != graph.sizes[name]:
            msg = (
                f"tensors to slice are full-size, as in the unpruned network: {name} has shape {graph.sizes[name]} "
                f"there, found {shape}"
            )
            raise ModelError(msg)


def _tied_to(model: nn.Module, name: str) -> str | None:
    """Returns the first name of a parameter or buffer that has several, if this is one of them."""
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    tensor = dict(every).get(name)
    return next((other for other, known in every if known is tensor), None)
