"""What a forward pass does, as a graph: operations in order, what each returns, where it lies, what it costs inside.

The recorder knows nothing of how calls are caught (`interception`): it is told of each, runs it, and keeps account.
A tensor carries its own account, so that what forward lets go is freed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Set, ValuesView
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from abcsearch.channels.remembered import Number, Pending, place_in_forward, plain, remembered
from abcsearch.channels.rules import find_rule, ruled_class
from abcsearch.errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Callable

# What torch calls convolutions and linear layers, as opposed to products of activations.
_LINEAR = (torch.ops.aten.addmm, torch.ops.aten.mm, torch.ops.aten.convolution)
# They may rescale the rows that they look up (`max_norm`): their rule says what becomes of that.
_LOOKUPS = (F.embedding, F.embedding_bag)
_MARK = "_recorded"  # the attribute of a tensor that holds its `_Mark`


class _Mark:
    """What is known of a tensor: the operation that it comes from, and the number of the memory that it lies in."""

    __slots__ = ("pending", "storage")

    def __init__(self, pending: Pending, storage: tuple[int, ...]) -> None:
        self.pending, self.storage = pending, storage


class Recorder:
    """Keeps what `trace.OperationGraph` promises of one forward pass.

    Attributes:
        graph: the operations so far.
        active: the modules in whose forward the pass is, the innermost last.
        depth: above 0 inside an operation that is recorded as a whole.
        open: whether the pass goes on.
        callers: paths of the modules that were called, and of those in whose forward.
        reads: where forward read data: (path of the module in whose forward, file and line).
        current: what is being done, for messages.
    """

    def __init__(self, root: nn.Module) -> None:
        """Begins a pass of a network."""
        self.graph = fx.Graph()
        self.root = root
        self.paths = {id(module): path for path, module in root.named_modules()}
        self.active: list[nn.Module] = [root]
        self.depth, self.open, self.thread = 0, True, threading.get_ident()
        self.callers: dict[str, set[str]] = {}
        self.reads: list[tuple[str, str]] = []
        self.current = "the first operation"
        self.values: dict[fx.Node, Any] = {}
        self.scopes: dict[fx.Node, str] = {}
        self.macs: dict[fx.Node, int] = {}
        self.storages: dict[fx.Node, tuple[int, ...]] = {}
        self.storage_sizes: list[tuple[fx.Node, int, int]] = []
        self.changes: dict[fx.Node, tuple[int, ...]] = {}
        self._names: dict[int, str] = {}
        for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
            self._names.setdefault(id(tensor), name)
        self._written_as = {_storage(p): name for name, p in reversed([*root.named_parameters()])}
        self._attributes: dict[
            int, fx.Node
        ] = {}  # of parameters, buffers and constants, by the id of the tensor
        self._constants: list[torch.Tensor] = []  # kept, so that ids stay theirs

    @property
    def listens(self) -> bool:
        """Whether what happens now is forward's doing, and to be noted."""
        return self.open and not self.depth

    @property
    def scope(self) -> str:
        """The path of the innermost module in whose forward the pass is."""
        return self.paths.get(id(self.active[-1]), "")

    # --- Nodes. ---

    def add(
        self,
        op: str,
        target: Any,  # noqa: ANN401 - functions and names
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        value: Any,  # noqa: ANN401 - shapes and numbers
        scope: str | None = None,
    ) -> fx.Node:
        """Makes a node. Its arguments may hold tensors, numbers and pending operations, nested."""
        node = self.graph.create_node(op, target, self.argument(args), self.argument(kwargs))
        self.values[node] = value
        self.scopes[node] = self.scope if scope is None else scope
        self.storages[node] = ()
        return node

    def note(self, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Makes a node of something that forward did with numbers and that leaves nothing to compute with."""
        self.add("call_function", target, args, {}, None)

    def argument(self, item: Any) -> Any:  # noqa: ANN401 - arguments are anything
        """Returns an argument as fx has it: nodes in the place of what the graph knows."""
        if isinstance(item, torch.Tensor):
            return self._node_of(item)
        if isinstance(item, Number):
            return item.pending.node if item.pending.recorder is self else plain(item)
        if isinstance(item, Pending):
            return item.node
        if isinstance(item, tuple):
            items = [self.argument(each) for each in item]
            return type(item)(*items) if hasattr(item, "_fields") else tuple(items)
        if isinstance(item, list):
            return [self.argument(each) for each in item]
        if isinstance(item, dict):
            return {key: self.argument(each) for key, each in item.items()}
        if isinstance(item, slice):
            return slice(
                self.argument(item.start), self.argument(item.stop), self.argument(item.step)
            )
        return item

    def attribute(self, path: str, name: str, value: int | tuple[int, ...]) -> Any:  # noqa: ANN401 - an int, or some
        """Returns a whole number among the attributes of a module, or a tuple of some, with their memory."""
        if isinstance(value, tuple):
            return tuple(
                self.attribute(path, f"{name}[{i}]", n) if n > 1 else n for i, n in enumerate(value)
            )
        return remembered(
            value, Pending(self, "get_attr", f"{path}.{name}".lstrip("."), (), {}, value)
        )

    def _node_of(self, tensor: torch.Tensor) -> fx.Node:
        """Returns what a tensor comes from: an operation, or an attribute of the network."""
        mark = self._mark(tensor)
        if mark is not None:
            node = mark.pending.node
            # Of one result among several, when it is used
            self.storages[node] = self.storages[node] or mark.storage
            return node
        node = self._attributes.get(id(tensor))
        if node is None:
            name = self._names.get(id(tensor)) or self._constant(tensor)
            node = self._attributes[id(tensor)] = self.add("get_attr", name, (), {}, tensor.shape)
        return node

    def _constant(self, tensor: torch.Tensor) -> str:
        """Returns the path of a tensor that is no part of the network's state; puts it there if it has none."""
        for path, module in self.root.named_modules():
            for name, value in vars(module).items():
                if value is tensor:
                    return f"{path}.{name}".lstrip(".")
        name = f"_tensor_constant{len(self._constants)}"
        self._constants.append(tensor)
        vars(self.root)[name] = tensor.detach().clone()  # forward may change it
        return name

    def _mark(self, tensor: torch.Tensor) -> _Mark | None:
        """Returns what this pass knows of a tensor."""
        mark = getattr(tensor, _MARK, None)
        return mark if mark is not None and mark.pending.recorder is self else None

    # --- What is given and returned. ---

    def given(self, name: str, item: Any) -> Any:  # noqa: ANN401 - inputs are anything
        """Returns one input of the network as forward gets it: of a tensor a copy, which forward may change."""
        value = item.clone() if isinstance(item, torch.Tensor) else item
        node = self.add("placeholder", name, (), {}, _shapes(value))
        if isinstance(value, torch.Tensor):
            self._settle(
                Pending(self, "placeholder", name, (), {}, value.shape),
                node,
                value,
                [],
                whole=value.nbytes,
            )
        return value

    def returned(self, result: Any) -> None:  # noqa: ANN401 - forward returns anything
        """Ends the graph with what forward returned."""
        self.add("output", "output", (_tensors_within(result),), {}, None)

    def knows(self, tensors: list[torch.Tensor], args: Any) -> bool:  # noqa: ANN401 - arguments are anything
        """Returns whether any of the tensors, or of the numbers in arguments, belongs to the graph."""
        if any(
            self._mark(t) is not None or id(t) in self._names or id(t) in self._attributes
            for t in tensors
        ):
            return True
        return any(number.pending.recorder is self for number in _numbers_in(args))

    def computed(
        self,
        op: str,
        target: Any,  # noqa: ANN401 - functions and names
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        run: Callable[[], Any],
        *,
        scope: str | None = None,
    ) -> Any:  # noqa: ANN401 - operations return anything
        """Runs an operation, makes a node of it, and returns its result, of which everything is known afterwards.

        Of an operation that returns numbers the node is made when one is used.
        """
        tensors = tensors_in((args, kwargs))
        versions = [_version(tensor) for tensor in tensors]
        self.current = str(getattr(target, "__name__", target))
        # What forward passes may be changed in place by the operation itself.
        given = self.argument(args), self.argument(kwargs)
        macs, result = self._run(op, target, tensors, run)
        changed = [t for t, before in zip(tensors, versions, strict=True) if _version(t) != before]
        if not (op == "call_module" or self.root.training or target in _LOOKUPS):
            self._refuse_writes(target, args, changed)
        pending = Pending(self, op, target, *given, _shapes(result))
        if not changed and _is_numeric(result):
            return self._numbers(result, pending)
        node = pending.node
        if scope is not None:
            self.scopes[node] = scope
        if macs:
            self.macs[node] = macs
        self._settle(pending, node, result, tensors)
        touched = {number for tensor in changed for number in self._places(tensor)}
        if touched:
            self.changes[node] = tuple(sorted(touched))
        return result

    def _refuse_writes(self, target: Any, args: Any, changed: list[torch.Tensor]) -> None:  # noqa: ANN401
        """Raises TraceError if an operation has written to a parameter, or to memory that is one's (`weight.data`)."""
        replaced = target is setattr and args[1] == "data"
        names = [self._written_as.get(_storage(tensor)) for tensor in changed]
        names += [self._names.get(id(args[0]))] if replaced else []
        written = next((name for name in names if name), None)
        if written is not None:
            msg = (
                f"forward of {type(self.root).__name__} writes to the parameter {written} in place "
                f"({'.data =' if replaced else self.current}, {place_in_forward()}); compute a tensor from it instead, "
                "or write it outside of forward (if only the first pass does so, run the network once before)"
            )
            raise TraceError(msg)

    def _run(
        self,
        op: str,
        target: Any,  # noqa: ANN401 - functions and names
        tensors: list[torch.Tensor],
        run: Callable[[], Any],
    ) -> tuple[int, Any]:
        """Runs an operation; returns the multiply-accumulates of layers inside where no rule says them, and its result.

        That is an operation without a rule that computes with parameters.
        """
        uses = any(id(tensor) in self._names for tensor in tensors)
        if op == "call_module":
            module = self.root.get_submodule(target)
            opaque = ruled_class(type(module)) is None and any(True for _ in module.parameters())
        else:
            opaque = op == "call_function" and uses and find_rule(target) is None
        if not opaque:
            return 0, run()
        with FlopCounterMode(display=False) as counter:
            result = run()
        counts = counter.get_flop_counts().get("Global", {})
        return sum(count for kind, count in counts.items() if kind in _LINEAR) // 2, result

    def _settle(
        self,
        pending: Pending,
        node: fx.Node,
        result: Any,  # noqa: ANN401 - operations return anything
        tensors: list[torch.Tensor],
        whole: int | None = None,
    ) -> None:
        """Marks the tensors of a result, and numbers the memory that they lie in: new where no argument lies there."""
        pending._node = node
        known: dict[int, tuple[int, ...]] = {}
        for tensor in tensors:
            known[_storage(tensor)] = () if id(tensor) in self._names else self._places(tensor)
        numbers: list[int] = []
        for index, (tensor, path) in enumerate(_paths_in(result)):
            key = _storage(tensor)
            if key not in known:
                known[key] = (len(self.storage_sizes),)
                size = tensor.untyped_storage().nbytes() if whole is None else whole
                self.storage_sizes.append((node, index, size))
            numbers += known[key]
            if id(tensor) not in self._names:
                source = pending
                for step, value in path:
                    source = source.item(step, value)
                setattr(tensor, _MARK, _Mark(source, known[key]))
        self.storages[node] = tuple(numbers)

    def _places(self, tensor: torch.Tensor) -> tuple[int, ...]:
        """Returns the number of the memory that a tensor lies in; none for what is no activation."""
        mark = self._mark(tensor)
        return () if mark is None else mark.storage

    def _numbers(self, result: Any, pending: Pending) -> Any:  # noqa: ANN401 - operations return anything
        """Returns numbers with their memory."""
        if not isinstance(result, tuple):
            return remembered(result, pending)
        items = [
            remembered(value, pending.item(index, value)) for index, value in enumerate(result)
        ]
        return type(result)(items)

    def read_data(self, op: str, target: Any, args: tuple[Any, ...], run: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Runs an operation that takes data out of a tensor, which forward then may decide by."""
        self.reads.append((self.scope, place_in_forward()))
        result = run()
        if type(result) in (int, float) and op == "call_method":
            return remembered(result, Pending(self, op, target, self.argument(args), {}, result))
        self.add(op, target, args, {}, _shapes(result))
        return result


def tensors_in(item: Any) -> list[torch.Tensor]:  # noqa: ANN401 - arguments are anything
    """Returns the tensors in nested tuples, lists, dicts and slices."""
    return [tensor for tensor, _ in _paths_in(item)]


def returned_by(result: Any) -> list[torch.Tensor]:  # noqa: ANN401 - forward returns anything
    """Returns all tensors in what forward returned: nested lists, tuples, dicts and objects."""
    return tensors_in(_tensors_within(result))


def _paths_in(
    item: Any,  # noqa: ANN401
    path: tuple[Any, ...] = (),
) -> Iterator[tuple[torch.Tensor, tuple[Any, ...]]]:
    """Yields the tensors in nested results, each with the steps that lead to it: (index or key, what is there)."""
    if isinstance(item, torch.Tensor):
        yield item, path
    elif isinstance(item, torch.Size):
        return
    elif isinstance(item, tuple | list):
        for index, each in enumerate(item):
            yield from _paths_in(each, (*path, (index, _shapes(each))))
    elif isinstance(item, dict):
        for key, each in item.items():
            yield from _paths_in(each, (*path, (key, _shapes(each))))


def _numbers_in(item: Any) -> Iterator[Number]:  # noqa: ANN401 - arguments are anything
    """Yields the remembering numbers in nested arguments."""
    if isinstance(item, Number):
        yield item
    elif isinstance(item, tuple | list):
        for each in item:
            yield from _numbers_in(each)
    elif isinstance(item, dict):
        for each in item.values():
            yield from _numbers_in(each)
    elif isinstance(item, slice):
        yield from _numbers_in((item.start, item.stop, item.step))


def _is_numeric(result: Any) -> bool:  # noqa: ANN401 - operations return anything
    """Returns whether a result is an int, a float, or a tuple of ints."""
    if isinstance(result, tuple):
        return all(type(item) is int for item in result) and (
            bool(result) or isinstance(result, torch.Size)
        )
    return type(result) in (int, float)


def _tensors_within(result: Any, around: tuple[int, ...] = ()) -> Any:  # noqa: ANN401 - forward returns anything
    """Returns a result with objects replaced by dicts of what they hold.

    Args:
        result: of forward, or something in it.
        around: ids of what it lies in: what an object says of one of these is known already.

    Raises:
        TraceError: for what gives its tensors only later, and may give any.
    """
    if isinstance(result, torch.Tensor | Number):
        return result
    if isinstance(result, Iterator) or (isinstance(result, FunctionType) and not around):
        msg = (
            f"forward returns a {type(result).__name__}, which hides the tensors that it gives later; return a list, "
            "a tuple, a dict or a dataclass of tensors"
        )
        raise TraceError(msg)
    if id(result) in around or isinstance(result, nn.Module | type):
        return None
    around = (*around, id(result))
    if isinstance(result, tuple | list | Set | ValuesView | deque):
        items = [_tensors_within(item, around) for item in result]
        return items if isinstance(result, list) else tuple(items)
    held = result if isinstance(result, Mapping) else _attributes_of(result)
    return {str(key): _tensors_within(item, around) for key, item in held.items()} or None


def _attributes_of(thing: object) -> dict[str, Any]:
    """Returns the attributes of an object, those in slots among them."""
    held: dict[str, Any] = dict(getattr(thing, "__dict__", {}))
    for kind in type(thing).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(thing, name):
                held[name] = getattr(thing, name)
    return held


def _version(tensor: torch.Tensor) -> int:
    """Returns how often a tensor was changed in place."""
    return 0 if tensor.is_inference() else tensor._version


def _storage(tensor: torch.Tensor) -> int:
    """Returns what identifies a tensor's memory while it is alive (also on the meta device)."""
    return tensor.untyped_storage()._cdata


def _shapes(value: Any) -> Any:  # noqa: ANN401 - an operation may return anything
    """Returns numbers and tuples of numbers as they are, shapes of tensors, and None for everything else."""
    if isinstance(value, torch.Tensor):
        return value.shape
    if isinstance(value, int | float | torch.dtype | torch.device):
        return plain(value)
    if isinstance(value, tuple | list):
        items = tuple(_shapes(item) for item in value)
        # Attention gives None in the place of weights that nobody asked for.
        given = [item for item, each in zip(items, value, strict=True) if each is not None]
        return None if None in given or not given else items
    return None
