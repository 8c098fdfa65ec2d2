"""One forward pass, operation by operation: what each returns, where it lies in memory, what it costs inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from abcsearch.channels.rules import find_rule


class Recorder(fx.Interpreter):
    """Runs a graph and keeps what `OperationGraph` promises of every result."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}
        self.macs: dict[fx.Node, int] = {}
        self.storages: dict[fx.Node, tuple[int, ...]] = {}
        self.storage_sizes: list[tuple[fx.Node, int, int]] = []
        self.changes: dict[fx.Node, tuple[int, ...]] = {}
        self.current = ""

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401, D102 - torch.fx calls it; an operation may return anything
        self.current = f"{n.op} {n.target}"
        arguments = [t for source in n.all_input_nodes for t in tensors_in(self.env[source])]
        before = [(t, t._version) for t in arguments if not t.is_inference()]
        if self._opaque(n):
            with FlopCounterMode(display=False) as counter:
                result = super().run_node(n)
            counts = counter.get_flop_counts().get("Global", {})
            self.macs[n] = sum(count for kind, count in counts.items() if kind in _LINEAR) // 2
        else:
            result = super().run_node(n)
        self.values[n] = _plain(result)
        self.storages[n] = () if n.op == "get_attr" else self._places(n, result)
        changed = {_storage(tensor) for tensor, version in before if tensor._version != version}
        if changed:
            numbers = self._numbers(n)
            self.changes[n] = tuple(numbers[key] for key in changed if key in numbers)
        return result

    def _opaque(self, n: fx.Node) -> bool:
        """Returns whether a node computes with parameters in a way that no rule describes."""
        if n.op == "call_module":
            module = self.fetch_attr(str(n.target))
            return find_rule(type(module)) is None and any(True for _ in module.parameters())
        uses = any(source.op == "get_attr" for source in n.all_input_nodes)
        return n.op == "call_function" and uses and find_rule(n.target) is None

    def _places(self, n: fx.Node, result: Any) -> tuple[int, ...]:  # noqa: ANN401 - an operation may return anything
        """Returns the numbers of the storages of a node's results, new ones where they are in none of its arguments."""
        weights = {
            _storage(t) for source in n.all_input_nodes if source.op == "get_attr" for t in tensors_in(self.env[source])
        }
        known = self._numbers(n)
        for index, tensor in enumerate(tensors_in(result)):
            key = _storage(tensor)
            if key not in known and key not in weights:
                known[key] = len(self.storage_sizes)
                # An input may be a part of a whole data set.
                whole = tensor.untyped_storage().nbytes() if n.op != "placeholder" else tensor.nbytes
                self.storage_sizes.append((n, index, whole))
        return tuple(known[_storage(tensor)] for tensor in tensors_in(result) if _storage(tensor) not in weights)

    def _numbers(self, n: fx.Node) -> dict[int, int]:
        """Returns the numbers of the storages of a node's arguments."""
        return {
            _storage(tensor): number
            for source in n.all_input_nodes
            for tensor, number in zip(tensors_in(self.env[source]), self.storages[source], strict=False)
        }


# What torch calls convolutions and linear layers, as opposed to products of activations.
_LINEAR = (torch.ops.aten.addmm, torch.ops.aten.mm, torch.ops.aten.convolution)


def tensors_in(result: Any) -> list[torch.Tensor]:  # noqa: ANN401 - an operation may return anything
    """Returns a tensor, or the tensors in nested tuples, lists and dicts."""
    if isinstance(result, torch.Tensor):
        return [result]
    items = result.values() if isinstance(result, dict) else result
    return [t for item in items for t in tensors_in(item)] if isinstance(result, tuple | list | dict) else []


def _storage(tensor: torch.Tensor) -> int:
    """Returns what identifies a tensor's memory while it is alive (also on the meta device)."""
    return tensor.untyped_storage()._cdata


def _plain(value: Any) -> Any:  # noqa: ANN401 - an operation may return anything
    """Returns numbers and tuples of numbers as they are, shapes of tensors, and None for everything else."""
    if isinstance(value, torch.Tensor):
        return value.shape
    if isinstance(value, int | float | torch.dtype | torch.device):
        return value
    if isinstance(value, tuple | list):
        items = tuple(_plain(item) for item in value)
        return None if None in items else items
    return None
