"""Model and example input -> operation graph, by torch.fx and one forward pass on a copy of the model."""

from __future__ import annotations

import contextlib
import copy
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from abcsearch.channels.rules import RULES, find_rule
from abcsearch.errors import TraceError
from abcsearch.rng import torch_seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# The attributes of layers that follow the number of channels; slicing sets them (`slicing.fit_attributes`).
SIZE_ATTRIBUTES = (
    "in_channels",
    "out_channels",
    "groups",
    "in_features",
    "out_features",
    "num_features",
    "num_parameters",
)


@dataclass(frozen=True, kw_only=True)
class OperationGraph:
    """The operations of one forward pass in execution order.

    Attributes:
        nodes: the fx nodes.
        values: what each node returned on the example input: a torch.Size for a tensor, the value itself for numbers,
            plain tuples of these, None for anything else.
        scopes: the path of the innermost module in whose forward each node happens.
        macs: multiply-accumulates of linear layers and convolutions inside operations that have no rule but parameters.
        storages: numbers of the memory that each node's results lie in; views and in-place results share their
            argument's. Empty for what is no activation.
        storage_sizes: (node, which of its results, bytes) of the first result in every storage.
        modules: the traced copy's modules by path, in evaluation mode.
        read: path of every layer of which forward itself reads a size attribute or a buffer, and its name.
    """

    nodes: tuple[fx.Node, ...]
    values: Mapping[fx.Node, Any]
    scopes: Mapping[fx.Node, str]
    macs: Mapping[fx.Node, int]
    storages: Mapping[fx.Node, tuple[int, ...]]
    storage_sizes: tuple[tuple[fx.Node, int, int], ...]
    modules: Mapping[str, nn.Module]
    read: Mapping[str, str]


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what `OperationGraph.values` promises of every result."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}
        self.macs: dict[fx.Node, int] = {}
        self.storages: dict[fx.Node, tuple[int, ...]] = {}
        self.storage_sizes: list[tuple[fx.Node, int, int]] = []
        self.current = ""

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - an operation may return anything
        self.current = f"{n.op} {n.target}"
        if self._opaque(n):
            with FlopCounterMode(display=False) as counter:
                result = super().run_node(n)
            counts = counter.get_flop_counts().get("Global", {})
            self.macs[n] = sum(count for kind, count in counts.items() if kind in _LINEAR) // 2
        else:
            result = super().run_node(n)
        self.values[n] = _plain(result)
        self.storages[n] = () if n.op == "get_attr" else self._places(n, result)
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
            _storage(t) for source in n.all_input_nodes if source.op == "get_attr" for t in _tensors(self.env[source])
        }
        known = {
            _storage(tensor): number
            for source in n.all_input_nodes
            for tensor, number in zip(_tensors(self.env[source]), self.storages[source], strict=False)
        }
        for index, tensor in enumerate(_tensors(result)):
            key = _storage(tensor)
            if key not in known and key not in weights:
                known[key] = len(self.storage_sizes)
                self.storage_sizes.append((n, index, tensor.untyped_storage().nbytes()))
        return tuple(known[_storage(tensor)] for tensor in _tensors(result) if _storage(tensor) not in weights)


# What torch calls convolutions and linear layers, as opposed to products of activations.
_LINEAR = (torch.ops.aten.addmm, torch.ops.aten.mm, torch.ops.aten.convolution)


def _tensors(result: Any) -> list[torch.Tensor]:  # noqa: ANN401 - an operation may return anything
    """Returns a tensor, or the tensors in nested tuples, lists and dicts."""
    if isinstance(result, torch.Tensor):
        return [result]
    items = result.values() if isinstance(result, dict) else result
    return [t for item in items for t in _tensors(item)] if isinstance(result, tuple | list | dict) else []


def _storage(tensor: torch.Tensor) -> int:
    """Returns what identifies a tensor's memory while it is alive (also on the meta device)."""
    return tensor.untyped_storage()._cdata


class _Tracer(fx.Tracer):
    """Does not trace into modules whose class has a rule."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in RULES or super().is_leaf_module(m, module_qualified_name)


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


def trace_operations(
    model: nn.Module, example_input: torch.Tensor | tuple[torch.Tensor, ...], *, training: bool = False
) -> OperationGraph:
    """Traces the model on a copy; the model and the global random state stay as they are.

    Args:
        model: any module that torch.fx can trace.
        example_input: one batch as forward takes it (batch 1 is enough), or a tuple of its positional arguments.
        training: records what forward does in training mode. The layers run in evaluation mode in any case.

    Raises:
        TraceError: if forward depends on data in its control flow (with the line), or does not run on the example.
    """
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    _check(model, inputs)
    twin = _twin(model)
    with torch_seeded(0, "trace"):
        graph, read = _trace(twin.train(training))
        recorder = _record(fx.GraphModule(twin.eval(), graph, class_name=type(model).__name__), inputs)
    modules = dict(twin.named_modules())
    scopes = {node: _scope(node) for node in graph.nodes}
    return OperationGraph(
        nodes=tuple(graph.nodes),
        values=recorder.values,
        scopes=scopes,
        macs=recorder.macs,
        storages=recorder.storages,
        storage_sizes=tuple(recorder.storage_sizes),
        modules=modules,
        read=read,
    )


def _scope(node: fx.Node) -> str:
    """Returns the path of the innermost module in whose forward a node was recorded."""
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return str(stack[-1]) if stack else ""


def _check(model: object, inputs: tuple[object, ...]) -> None:
    """Raises TraceError for what is no network, a wrapper around one, or no example of its input."""
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        msg = f"a network is a torch.nn.Module, found {'the class ' + repr(model) if isinstance(model, type) else kind}"
        raise TraceError(msg)
    inner = "_orig_mod" if hasattr(model, "_orig_mod") else "module"
    if inner == "_orig_mod" or kind in _WRAPPERS:
        msg = f"{kind} is a wrapper around the network: pass model.{inner}, and wrap the pruned network again"
        raise TraceError(msg)
    if isinstance(model, torch.jit.ScriptModule):
        msg = f"{kind} is compiled by torch.jit and cannot be changed: pass the network that it was made of"
        raise TraceError(msg)
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    if not tensors or any(not x.ndim or not len(x) for x in tensors):
        found = ", ".join(str(tuple(x.shape)) if isinstance(x, torch.Tensor) else type(x).__name__ for x in inputs)
        msg = f"the example input is a batch of at least one image as a tensor, or a tuple of inputs, found ({found})"
        raise TraceError(msg)
    devices = {str(t.device) for t in (*model.parameters(), *model.buffers())}
    others = {str(x.device) for x in tensors} - devices
    if devices and others:
        found = f"{', '.join(sorted(devices))}, the example input on {', '.join(sorted(others))}"
        msg = f"the network is on {found}: move one of them"
        raise TraceError(msg)


_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")


def _twin(model: nn.Module) -> nn.Module:
    """Returns a copy of the model; raises TraceError if it cannot be copied, or if its copy would not be traced."""
    if any(nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        msg = f"{type(model).__name__} has lazy layers without weights yet; run it once on a batch, then trace it"
        raise TraceError(msg)
    if "forward" in vars(model):
        msg = f"{type(model).__name__} has a forward of its own besides its class's; tracing sees only the class's"
        raise TraceError(msg)
    try:
        return copy.deepcopy(model)
    except Exception as error:
        msg = (
            f"{type(model).__name__} cannot be copied: {_first_line(error)}; weights that are computed by a hook "
            "(weight_norm, pruning masks) must be made plain first, with the matching remove function"
        )
        raise TraceError(msg) from error


def _trace(twin: nn.Module) -> tuple[fx.Graph, dict[str, str]]:
    """Returns the graph of a module's forward, and the layers of which forward reads sizes or buffers."""
    tracer = _Tracer()
    try:
        with _listed(twin), _watched() as seen:
            graph = tracer.trace(twin)
    except Exception as error:
        msg = (
            f"{type(twin).__name__} cannot be traced by torch.fx: {_first_line(error)} ({_place(error)}); "
            "control flow may depend on settings of the module, not on tensors: move the condition out of forward, "
            "hide it in a function marked with torch.fx.wrap, or register a rule for the module that holds it "
            "(abcsearch.channels.rules.rule_for)"
        )
        raise TraceError(msg) from error
    assigned = [name for name, tensor in _state(twin).items() if not isinstance(tensor, torch.Tensor)]
    if assigned:
        msg = (
            f"forward of {type(twin).__name__} assigns {', '.join(assigned)} anew; update it in place, or outside of "
            "forward"
        )
        raise TraceError(msg)
    paths = {id(module): path for path, module in twin.named_modules() if tracer.is_leaf_module(module, path)}
    return graph, {paths[module]: name for module, name in seen.items() if module in paths}


def _state(twin: nn.Module) -> dict[str, object]:
    """Returns every parameter and buffer by name, whatever forward has put in its place."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, module in twin.named_modules()
        for name, value in [*module._parameters.items(), *module._buffers.items()]
        if value is not None
    }


def _record(traced: fx.GraphModule, inputs: tuple[Any, ...]) -> _Recorder:
    """Returns the recorder of one run on the example input."""
    recorder = _Recorder(traced)
    names = [str(node.target) for node in traced.graph.nodes if node.op == "placeholder"]
    if len(inputs) > len(names) and not any(name.startswith("*") for name in names):
        msg = f"{traced._get_name()} takes {len(names)} inputs ({', '.join(names)}), the example has {len(inputs)}"
        raise TraceError(msg)
    try:
        with torch.no_grad(), _plain_attention():
            recorder.run(*inputs)
    except Exception as error:
        shapes = ", ".join(f"{tuple(x.shape)} {x.dtype} on {x.device}" for x in inputs if isinstance(x, torch.Tensor))
        own = ", ".join({str(p.dtype) for p in traced.parameters()} or {"none"})
        msg = (
            f"{traced._get_name()} does not run on the example input {shapes or inputs}: {_first_line(error)} "
            f"(at {recorder.current}); pass one batch as forward takes it (its weights are {own})"
        )
        raise TraceError(msg) from error
    return recorder


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Switches off the fused attention in the block: what it does inside could not be counted."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def _watched() -> Iterator[dict[int, str]]:
    """Yields a dict that collects, by id of the module, which size attribute or buffer is read in the block.

    A tracer does not enter the forward of torch's own layers: what is read of them meanwhile, the user's forward
    reads. It reaches the graph as a constant, but changes when the layer is sliced.
    """
    seen: dict[int, str] = {}

    def read(module: nn.Module, name: str) -> Any:  # noqa: ANN401 - attributes are anything
        if name in SIZE_ATTRIBUTES or name in object.__getattribute__(module, "__dict__").get("_buffers", ()):
            seen.setdefault(id(module), name)
        return object.__getattribute__(module, name)

    nn.Module.__getattribute__ = read
    try:
        yield seen
    finally:
        del nn.Module.__getattribute__


@contextlib.contextmanager
def _listed(twin: nn.Module) -> Iterator[None]:
    """Lists the tensors of a traced copy once: torch.fx walks all modules again for every one that forward reads."""

    def kept(name: str) -> Callable[..., Iterator[tuple[str, torch.Tensor]]]:
        own = getattr(twin, name)
        found = list(own())
        return lambda *args, **options: own(*args, **options) if args or options else iter(found)

    vars(twin).update(named_parameters=kept("named_parameters"), named_buffers=kept("named_buffers"))
    try:
        yield
    finally:
        del vars(twin)["named_parameters"], vars(twin)["named_buffers"]


def _first_line(error: Exception) -> str:
    """Returns the first line of an error's text, or its class where there is no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _place(error: Exception) -> str:
    """Returns `file:line` of the innermost frame outside torch: the line of forward that cannot be traced."""
    own = Path(__file__)
    library = Path(torch.__file__).parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if library not in Path(frame.filename).parents and Path(frame.filename) != own
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "inside torch"
