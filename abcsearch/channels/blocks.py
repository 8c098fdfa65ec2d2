"""Residual blocks whose removal leaves an identity."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import fx, nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from abcsearch.channels.trace import OperationGraph


@dataclass(frozen=True, kw_only=True)
class Block:
    """A module that adds something to its input; without it, the input goes on as it is.

    Attributes:
        name: path of the module.
        source: index of the operation whose result enters the block, in execution order.
        result: index of the operation whose result leaves it.
    """

    name: str
    source: int
    result: int


_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS = (nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
# They return their input as it is in evaluation mode.
_PASSING = (nn.Identity, nn.Dropout, nn.Dropout2d, F.dropout, F.dropout2d, "contiguous", "clone")
_STOCHASTIC_DEPTH = "torchvision.ops.stochastic_depth"
# They keep a tensor without negative entries so.
_NONNEGATIVE = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, F.max_pool2d, F.avg_pool2d),
    *(F.adaptive_avg_pool2d, torch.max_pool2d),
)


def find_blocks(operations: OperationGraph) -> tuple[Block, ...]:
    """Returns the residual blocks that can be dropped, in network order; the innermost where they nest.

    A block is a module with one tensor in and one out, whose output is its input plus something, once or several times;
    a ReLU may follow if the input has no negative entries, as between the blocks of a ResNet. So a block that changes
    the size (the first one of most stages) is none, nor is one that shares parameters with the rest of the network.
    """
    inside: dict[str, list[fx.Node]] = {}
    for node in operations.nodes:
        for path in _prefixes(operations.scopes[node]):
            inside.setdefault(path, []).append(node)
    index = {node: i for i, node in enumerate(operations.nodes)}
    found: list[Block] = []
    for path, nodes in inside.items():
        ends = _ends(operations, nodes)
        if ends is None:
            continue
        source, result = ends
        adds = _Identity(operations, source, frozenset(nodes)).holds(result)
        if adds and _alone(operations.modules, path) and _unread(operations, path):
            found.append(Block(name=path, source=index[source], result=index[result]))
    inner = [b for b in found if not any(other.name.startswith(f"{b.name}.") for other in found)]
    return tuple(sorted(inner, key=lambda block: block.result))


def _prefixes(scope: str) -> Iterator[str]:
    """Yields a module path and those of the modules around it, without the root."""
    while scope:
        yield scope
        scope = scope.rpartition(".")[0]


def _ends(operations: OperationGraph, nodes: list[fx.Node]) -> tuple[fx.Node, fx.Node] | None:
    """Returns the operation before and the last operation of a module with one tensor in and one of that shape out."""
    own = set(nodes)
    sources = {i for node in nodes for i in node.all_input_nodes if i not in own and i.op != "get_attr"}
    results = {node for node in nodes if any(user not in own for user in node.users)}
    if len(sources) != 1 or len(results) != 1:
        return None
    (source,), (result,) = sources, results
    shape = operations.values[source]
    same = isinstance(shape, torch.Size) and operations.values[result] == shape
    return (source, result) if same and result.op != "get_attr" else None


def _alone(modules: Mapping[str, nn.Module], path: str) -> bool:
    """Returns whether no module or tensor under a path is used elsewhere in the network."""
    under = {name for name in modules if name == path or name.startswith(f"{path}.")}
    own = {id(m) for name, m in modules.items() if name in under}
    tensors = _tensors([modules[name] for name in under])
    rest = [(name, m) for name, m in modules[""].named_modules(remove_duplicate=False) if not _below(name, path)]
    return not any(id(m) in own for _, m in rest) and not tensors & _tensors([m for _, m in rest])


def _below(name: str, path: str) -> bool:
    """Returns whether a module path is `path` or inside it."""
    return name == path or name.startswith(f"{path}.")


def _tensors(modules: list[nn.Module]) -> set[int]:
    """Returns the ids of the parameters and buffers that modules hold themselves."""
    return {id(t) for m in modules for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))}


def _unread(operations: OperationGraph, path: str) -> bool:
    """Returns whether nothing hangs on the modules under a path but their calls."""
    hooked = any(
        m._forward_hooks or m._forward_pre_hooks for name, m in operations.modules.items() if _below(name, path)
    )
    return not hooked and not any(_below(name, path) for name in operations.read)


@dataclass(frozen=True)
class _Identity:
    """Whether a result would be the block's input if nothing were added to it."""

    operations: OperationGraph
    source: fx.Node
    own: frozenset[fx.Node]

    def holds(self, result: fx.Node) -> bool:
        """Returns whether the result is the input plus something."""
        return result in self.own and self._reaches(result) and self._adds(result)

    def _reaches(self, node: fx.Node) -> bool:
        """Returns whether a path of additions, and of what returns its input, leads back to the block's input."""
        if node is self.source:
            return True
        if node not in self.own:
            return False
        kind, sides = _kind(self.operations, node), self._tensors(node)
        if kind in _ADDITIONS and len(sides) == 2 and not node.kwargs:
            return self._reaches(sides[0]) != self._reaches(sides[1])
        if kind in _PASSING or getattr(kind, "__module__", "") == _STOCHASTIC_DEPTH:
            return bool(sides) and self._reaches(sides[0])
        return kind in _RELUS and self._reaches(sides[0]) and _nonnegative(self.operations, self.source)

    def _adds(self, node: fx.Node) -> bool:
        """Returns whether there is an addition on the path (there must be: else nothing can be dropped)."""
        if node is self.source:
            return False
        if _kind(self.operations, node) in _ADDITIONS:
            return True
        return self._adds(self._tensors(node)[0])

    def _tensors(self, node: fx.Node) -> list[fx.Node]:
        """Returns the tensors among a node's arguments, in order, repeated where they are."""
        found = [arg for arg in node.args if isinstance(arg, fx.Node)]
        return [arg for arg in found if isinstance(self.operations.values[arg], torch.Size)]


def _kind(operations: OperationGraph, node: fx.Node) -> object:
    """Returns the class of the module that a node calls, its function, or the name of its method."""
    return type(operations.modules[str(node.target)]) if node.op == "call_module" else node.target


def _nonnegative(operations: OperationGraph, node: fx.Node) -> bool:
    """Returns whether a tensor certainly has no negative entries."""
    kind = _kind(operations, node) if node.op != "get_attr" else None
    if kind in _RELUS:
        return True
    sides = [arg for arg in node.all_input_nodes if isinstance(operations.values[arg], torch.Size)]
    keeps = kind in (*_NONNEGATIVE, *_ADDITIONS, *_PASSING) or kind is torch.cat
    return keeps and bool(sides) and all(_nonnegative(operations, side) for side in sides)
