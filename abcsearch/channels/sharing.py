"""Slices that share: a candidate whose weights are differentiable slices of the full network's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from abcsearch.channels.fast.cutting import cut, cut_into, is_large, left_shape
from abcsearch.channels.fast.memory import Memory, room
from abcsearch.channels.outline import outlined
from abcsearch.channels.slicing import assembled, no_collection, parameter_of
from abcsearch.errors import ModelError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from abcsearch.channels.fast.cutting import Cuts
    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.orders import Ranking
    from abcsearch.channels.outline import Target


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
        candidate: kept channels and what follows, as in `slice_model`.
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
        full = {name: given.get(name, tensor) for name, tensor in outline.tensors.items()}
        slices = _slices(full, outline.cuts)
        empty = _Empty()
        shared: dict[str, torch.Tensor] = {}
        hollow: dict[int, torch.Tensor] = {}
        for name, tensor in outline.tensors.items():
            # The first is quicker
            trained = type(tensor) is not torch.Tensor and isinstance(tensor, nn.Parameter)
            left = slices.get(name)
            if left is None:
                left = full[name] if trained else full[name].clone()
            shared[name] = left
            nothing = empty[left.shape, left.dtype]
            hollow[id(tensor)] = (
                parameter_of(nothing, tensor.requires_grad) if trained else nothing.detach()
            )
        return assembled(model, graph, outline, hollow), shared


def shared_network(
    model: nn.Module,
    graph: ChannelGraph,
    candidate: Sequence[int],
    ranking: Ranking,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> nn.Module:
    """Returns a candidate as a module that holds differentiable slices of the model's tensors, to be run at once.

    What it computes is what both halves of `share` do together, in less time: nothing has to be put in its place for a
    call. Like the tensors there, it is of the model's weights as they are now, its slices are no parameters of its
    own, and a backward pass adds to the gradients of the model's; its buffers are copies.

    Args:
        model: as in `share`, and the others likewise.
        graph: its channel groups.
        candidate: kept channels and what follows.
        ranking: which channels are best.
        tensors: what is sliced in the place of the model's.

    Raises:
        CandidateError, ModelError, RankingError, TraceError: as `share`.
    """
    with no_collection():
        outline = outlined(model, graph, candidate, ranking)
        given = dict(tensors or {})
        _check(model, graph, given)
        full = {name: given.get(name, tensor) for name, tensor in outline.tensors.items()}
        slices = _slices(full, outline.cuts)
        held: dict[int, torch.Tensor] = {}
        for name, tensor in outline.tensors.items():
            whole = full[name] if isinstance(tensor, nn.Parameter) else full[name].clone()
            held[id(tensor)] = slices.get(name, whole)
        return assembled(model, graph, outline, held)


def _slices(
    tensors: Mapping[str, torch.Tensor], every: Sequence[tuple[Target, Cuts]]
) -> dict[str, torch.Tensor]:
    """Returns by name what is left of every tensor that becomes shorter; gradients reach the tensor."""
    slices: dict[str, torch.Tensor] = {}
    matrices: list[tuple[Target, torch.Tensor, Cuts]] = []
    moved = _Moved()
    for target, cuts in every:
        whole = target.divided(tensors[target.name])
        # One axis of a large tensor after another would take several times as long.
        if len(cuts) == 2 and cuts[0][0] == 0 and cuts[1][0] == 1 and is_large(whole):
            matrices.append((target, whole, cuts))
        else:
            slices[target.name] = target.merged(
                cut(whole, cuts if whole.is_cpu else moved.cuts(cuts, whole.device))
            )
    memory = Memory(sum(room(left_shape(whole, cuts), whole.dtype) for _, whole, cuts in matrices))
    for target, whole, cuts in matrices:
        slices[target.name] = target.merged(_cut_matrix(memory, whole, *(kept for _, kept in cuts)))
    return slices


class _Moved(dict[tuple[int, torch.device], torch.Tensor]):
    """Entries to keep, on other devices: most axes share theirs with others, and each is moved once."""

    def cuts(self, cuts: Cuts, device: torch.device) -> Cuts:
        """Returns the cuts with their entries on a device."""
        for _, kept in cuts:
            if (id(kept), device) not in self:
                self[id(kept), device] = kept.to(device)
        return [(axis, self[id(kept), device]) for axis, kept in cuts]


class _MatrixCut(torch.autograd.Function):
    """`cut_into` and its gradient: that of what is left, among zeros."""

    @staticmethod
    def forward(
        memory: Memory, tensor: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
    ) -> torch.Tensor:
        cuts = [(0, rows), (1, columns)]
        left = memory.empty(left_shape(tensor, cuts), tensor.dtype)
        cut_into(left, tensor, cuts)
        return left

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:  # noqa: ANN401, ARG004 - torch's
        _, tensor, ctx.rows, ctx.columns = inputs
        ctx.shape = tensor.shape

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, torch.Tensor, None, None]:  # noqa: ANN401 - torch's
        (gradient,) = gradients
        full = gradient.new_zeros(ctx.shape)
        full[ctx.rows[:, None], ctx.columns] = gradient
        return None, full, None, None


_cut_matrix: Callable[..., torch.Tensor] = _MatrixCut.apply


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
            hint = (
                f"{name} is tied, give {first}"
                if first
                else unknown_name("tensor", name, graph.sizes)
            )
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
    every = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    tensor = dict(every).get(name)
    return next((other for other, known in every if known is tensor), None)
