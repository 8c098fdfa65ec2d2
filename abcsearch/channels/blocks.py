"""Residual blocks whose removal leaves an identity."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import fx, nn

from abcsearch.channels.group import Block
from abcsearch.channels.interception import is_leaf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from abcsearch.channels.trace import OperationGraph


_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS = (nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
# They return their input as it is in evaluation mode.
_PASSING = (nn.Identity, nn.Dropout, nn.Dropout2d, "contiguous", "clone")
_STOCHASTIC_DEPTH = "torchvision.ops.stochastic_depth"
# They keep a tensor without negative entries so.
_NONNEGATIVE = (
    *(
        nn.MaxPool2d,
        nn.AvgPool2d,
        nn.AdaptiveAvgPool2d,
        nn.AdaptiveMaxPool2d,
        F.max_pool2d,
        F.avg_pool2d,
    ),
    *(F.adaptive_avg_pool2d, torch.max_pool2d),
)


def find_blocks(
    operations: OperationGraph, training: OperationGraph | None = None
) -> tuple[Block, ...]:
    """Returns the residual blocks that can be dropped, in network order; the innermost where they nest.

    A block is a module with one tensor in and one out, whose output is its input plus something, once or several times;
    a ReLU may follow if the input has no negative entries, as between the blocks of a ResNet. So a block that changes
    the size (the first one of most stages) is none, nor is one that shares anything with the rest of the network, or
    that changes its input in place.

    Args:
        operations: of evaluation mode.
        training: of training mode, where that was traced; the module must be called alike there.
    """
    inside: dict[str, list[fx.Node]] = {}
    for node in operations.nodes:
        for path in _prefixes(operations.scopes[node]):
            inside.setdefault(path, []).append(node)
    index = {node: i for i, node in enumerate(operations.nodes)}
    ownership, signs = _Ownership(operations), _Signs(operations)
    blocks: list[Block] = []
    for path, nodes in inside.items():
        ends = _ends(operations, path, nodes)
        if ends is None or (training is not None and _call(training, path) is None):
            continue
        source, result = ends
        adds = _Identity(operations, signs, source, nodes).holds(result)
        if (
            adds
            and _unchanged(operations, source, result, nodes)
            and ownership.alone(path, set(nodes))
        ):
            blocks.append(Block(name=path, source=index[source], result=index[result]))
    inner = [b for b in blocks if not any(other.name.startswith(f"{b.name}.") for other in blocks)]
    return tuple(sorted(inner, key=lambda block: block.result))


def _prefixes(scope: str) -> Iterator[str]:
    """Yields a module path and those of the modules around it, without the root."""
    while scope:
        yield scope
        scope = scope.rpartition(".")[0]


def _call(operations: OperationGraph, path: str) -> tuple[fx.Node, fx.Node] | None:
    """Returns what goes into a module and what comes out, if it is called once, with one tensor in and one out."""
    ends = operations.calls.get(path)
    tensors = ends is not None and all(
        isinstance(operations.values[node], torch.Size) for node in ends
    )
    return ends if tensors else None


def _ends(
    operations: OperationGraph, path: str, nodes: list[fx.Node]
) -> tuple[fx.Node, fx.Node] | None:
    """Returns the operation before and the last operation of a module that takes and gives nothing else."""
    ends = _call(operations, path)
    if ends is None or operations.values[ends[0]] != operations.values[ends[1]]:
        return None
    inside = set(nodes)
    sources = {
        i for node in nodes for i in node.all_input_nodes if i not in inside and i.op != "get_attr"
    }
    results = {node for node in nodes if any(user not in inside for user in node.users)}
    memory = all(len(operations.storages[node]) == 1 for node in ends)
    return ends if sources == {ends[0]} and results == {ends[1]} and memory else None


def _unchanged(
    operations: OperationGraph, source: fx.Node, result: fx.Node, nodes: list[fx.Node]
) -> bool:
    """Returns whether nothing inside changes the block's input in place, and nothing behind it its output.

    Without the block, the two would be one.
    """
    members = set(nodes)
    enters, leaves = operations.storages[source], operations.storages[result]
    inside = {storage for node in nodes for storage in operations.changes.get(node, ())}
    behind = {
        s for node, storages in operations.changes.items() if node not in members for s in storages
    }
    return enters != leaves and inside.isdisjoint(enters) and behind.isdisjoint(leaves)


class _Ownership:
    """Where in the network every module, parameter and buffer is used."""

    def __init__(self, operations: OperationGraph) -> None:
        self._operations = operations
        self._places: dict[
            int, set[str]
        ] = {}  # paths by id of a module, or of a tensor: of the modules that hold it
        self._every = list(operations.modules[""].named_modules(remove_duplicate=False))
        for path, module in self._every:
            for thing in (
                module,
                *module.parameters(recurse=False),
                *module.buffers(recurse=False),
            ):
                self._places.setdefault(id(thing), set()).add(path)
        self._read = [
            (node, str(s.target))
            for node in operations.nodes
            for s in node.all_input_nodes
            if s.op == "get_attr"
        ]

    def alone(self, path: str, nodes: set[fx.Node]) -> bool:
        """Returns whether nothing under a path is used elsewhere, and no parameter from elsewhere under it."""
        o = self._operations
        inner = [module for name, module in self._every if _below(name, path)]
        # An activation without weights, which all blocks share, goes on in the others.
        held = [m for m in inner if m._parameters or m._buffers or not is_leaf(m)]
        things = [
            t for m in held for t in (m, *m.parameters(recurse=False), *m.buffers(recurse=False))
        ]
        shared = any(
            not _below(where, path) for thing in things for where in self._places[id(thing)]
        )
        borrowed = any((node in nodes) != _below(target, path) for node, target in self._read)
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in inner)
        read = any(_below(name, path) for name in o.read)
        peeked = any(_below(name, path) and path not in active for name, active in o.peeks)
        return not (shared or borrowed or hooked or read or peeked)


def _below(name: str, path: str) -> bool:
    """Returns whether a module path is `path` or inside it."""
    return name == path or name.startswith(f"{path}.")


class _Identity:
    """Whether a result would be the block's input if nothing were added to it."""

    def __init__(
        self, operations: OperationGraph, signs: _Signs, source: fx.Node, nodes: list[fx.Node]
    ) -> None:
        self._operations, self._signs, self._source = operations, signs, source
        # Whether a path of additions, and of what returns its input, leads back to the block's input. In the order of
        # execution, so that what goes into a node is known before: a call for each would be as deep as the network.
        self._reached = {source}
        self._reached.update(node for node in nodes if self._passes(node))

    def holds(self, result: fx.Node) -> bool:
        """Returns whether the result is the input plus something."""
        return result is not self._source and result in self._reached and self._adds(result)

    def _passes(self, node: fx.Node) -> bool:
        kind, sides = _kind(self._operations, node), _tensors(self._operations, node)
        if _adds_two(kind, node, sides):
            return (sides[0] in self._reached) != (sides[1] in self._reached)
        if not sides or sides[0] not in self._reached:
            return False
        if kind in (F.dropout, F.dropout2d) or getattr(kind, "__module__", "") == _STOCHASTIC_DEPTH:
            position = 2 if kind in (F.dropout, F.dropout2d) else 3  # on by default
            return (
                node.args[position]
                if len(node.args) > position
                else node.kwargs.get("training", True)
            ) is False
        return kind in _PASSING or (kind in _RELUS and self._signs.nonnegative(self._source))

    def _adds(self, node: fx.Node) -> bool:
        """Returns whether there is an addition on the path (there must be: else nothing can be dropped)."""
        while node is not self._source:
            if _kind(self._operations, node) in _ADDITIONS:
                return True
            node = _tensors(self._operations, node)[0]
        return False


class _Signs:
    """Which tensors have no negative entries."""

    def __init__(self, operations: OperationGraph) -> None:
        self._operations = operations
        self._order = {node: i for i, node in enumerate(operations.nodes)}
        self._known: dict[fx.Node, bool] = {}
        self._changes: dict[object, list[fx.Node]] = {}  # operations in place, by what they change
        for node, storages in operations.changes.items():
            for storage in storages:
                self._changes.setdefault(storage, []).append(node)

    def nonnegative(self, node: fx.Node) -> bool:
        """Returns whether a tensor certainly has no negative entries, whatever is done to it in place."""
        # Each waits for those above it: calls in its place would be as deep as the network
        waiting = [node]
        while waiting:
            last = waiting[-1]
            kind = _kind(self._operations, last) if last.op != "get_attr" else None
            sides = _tensors(self._operations, last)
            keeps = kind in _NONNEGATIVE or kind in _PASSING or _adds_two(kind, last, sides)
            needed = sides if keeps and kind not in _RELUS else []
            missing = [side for side in needed if side not in self._known]
            if missing:
                waiting += missing
                continue
            good = kind in _RELUS or (bool(needed) and all(self._known[side] for side in needed))
            # A ReLU in place, and what comes before it, does no harm; nor does adding what is not negative.
            self._known[last] = good and all(
                self._harmless(change, last) for change in self._changing(last)
            )
            waiting.pop()
        return self._known[node]

    def _changing(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yields the operations that change a tensor in place."""
        for storage in self._operations.storages[node]:
            yield from self._changes.get(storage, ())

    def _harmless(self, change: fx.Node, node: fx.Node) -> bool:
        """Returns whether an operation in place leaves a tensor without negative entries so, or comes before it."""
        return self._order[change] <= self._order[node] or _kind(self._operations, change) in _RELUS


def _tensors(operations: OperationGraph, node: fx.Node) -> list[fx.Node]:
    """Returns the tensors among a node's arguments, in order, repeated where they are."""
    tensors = [arg for arg in node.args if isinstance(arg, fx.Node)]
    return [arg for arg in tensors if isinstance(operations.values[arg], torch.Size)]


def _adds_two(kind: object, node: fx.Node, sides: list[fx.Node]) -> bool:
    """Returns whether a node adds two tensors and does nothing else."""
    return kind in _ADDITIONS and len(sides) == len(node.args) == 2 and not node.kwargs


def _kind(operations: OperationGraph, node: fx.Node) -> object:
    """Returns the class of the module that a node calls, its function, or the name of its method."""
    return type(operations.modules[str(node.target)]) if node.op == "call_module" else node.target
