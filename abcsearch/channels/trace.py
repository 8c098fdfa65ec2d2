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

from abcsearch.channels.rules import RULES
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
        modules: the traced copy's modules by path, in evaluation mode.
        read: path of every layer of which forward itself reads a size attribute or a buffer, and its name.
    """

    nodes: tuple[fx.Node, ...]
    values: Mapping[fx.Node, Any]
    scopes: Mapping[fx.Node, str]
    modules: Mapping[str, nn.Module]
    read: Mapping[str, str]


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what `OperationGraph.values` promises of every result."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}
        self.current = ""

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - an operation may return anything
        self.current = f"{n.op} {n.target}"
        result = super().run_node(n)
        self.values[n] = _plain(result)
        return result


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
    twin = _twin(model)
    with torch_seeded(0, "trace"):
        graph, read = _trace(twin.train(training))
        values = _record(fx.GraphModule(twin.eval(), graph, class_name=type(model).__name__), inputs)
    modules = dict(twin.named_modules())
    scopes = {node: _scope(node) for node in graph.nodes}
    return OperationGraph(nodes=tuple(graph.nodes), values=values, scopes=scopes, modules=modules, read=read)


def _scope(node: fx.Node) -> str:
    """Returns the path of the innermost module in whose forward a node was recorded."""
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return str(stack[-1]) if stack else ""


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
            "or hide it in a function marked with torch.fx.wrap"
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


def _record(traced: fx.GraphModule, inputs: tuple[Any, ...]) -> dict[fx.Node, Any]:
    """Returns what `OperationGraph.values` promises, from one run on the example input."""
    recorder = _Recorder(traced)
    names = [str(node.target) for node in traced.graph.nodes if node.op == "placeholder"]
    if len(inputs) > len(names) and not any(name.startswith("*") for name in names):
        msg = f"{traced._get_name()} takes {len(names)} inputs ({', '.join(names)}), the example has {len(inputs)}"
        raise TraceError(msg)
    try:
        with torch.no_grad():
            recorder.run(*inputs)
    except Exception as error:
        shapes = ", ".join(f"{tuple(x.shape)} {x.dtype} on {x.device}" for x in inputs if isinstance(x, torch.Tensor))
        msg = (
            f"{traced._get_name()} does not run on the example input {shapes or inputs}: {_first_line(error)} "
            f"(at {recorder.current}); pass one batch as forward takes it"
        )
        raise TraceError(msg) from error
    return recorder.values


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
