"""Model and example input -> operation graph, by torch.fx and one forward pass on a copy of the model."""

from __future__ import annotations

import contextlib
import copy
import operator
import re
import threading
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from abcsearch.channels.recording import Recorder
from abcsearch.channels.rules import RULES
from abcsearch.errors import ExampleError, TraceError
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


_LOCK = threading.Lock()  # tracing changes nn.Module itself while it lasts; torch.fx does, too


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
        changes: numbers of the storages that a node changes in place.
        calls: how modules that were traced into are called, see `_Tracer`.
        peeks: (path of a module, paths of the modules in whose forward the tracer was): attributes read from outside.
        modules: the traced copy's modules by path, in evaluation mode.
        read: path of every layer of which forward itself reads a size attribute or a buffer, and its name.
    """

    nodes: tuple[fx.Node, ...]
    values: Mapping[fx.Node, Any]
    scopes: Mapping[fx.Node, str]
    macs: Mapping[fx.Node, int]
    storages: Mapping[fx.Node, tuple[int, ...]]
    storage_sizes: tuple[tuple[fx.Node, int, int], ...]
    changes: Mapping[fx.Node, tuple[int, ...]]
    calls: Mapping[str, tuple[fx.Node, fx.Node] | None]
    peeks: frozenset[tuple[str, tuple[str, ...]]]
    modules: Mapping[str, nn.Module]
    read: Mapping[str, str]


class _Proxy(fx.Proxy):
    """Records `a += b` as what it is; torch.fx makes `a = a + b` of it, which leaves the tensor behind `a` alone."""


def _in_place(function: Callable[[Any, Any], Any]) -> Callable[[_Proxy, Any], fx.Proxy]:
    def method(self: _Proxy, other: Any) -> fx.Proxy:  # noqa: ANN401 - tensors and numbers
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"):
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    """Does not trace into modules whose class has a rule; keeps how the others are called.

    Attributes:
        active: the modules in whose forward the tracer is, the innermost last.
        calls: per module path, the operation whose result goes in and the one whose result comes out, if it is called
            once, with one positional argument, and returns one thing; None for any other use.
    """

    def __init__(self) -> None:
        super().__init__()
        self.active: list[nn.Module] = []
        self.calls: dict[str, tuple[fx.Node, fx.Node] | None] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in RULES or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:  # noqa: ANN401 - forward returns anything
        self.active.append(m)
        try:
            result = super().call_module(m, forward, args, kwargs)
        finally:
            self.active.pop()
        path = self.path_of_module(m)
        ends = (*args, result)
        simple = path not in self.calls and len(ends) == 2 and not kwargs and all(isinstance(e, fx.Proxy) for e in ends)
        self.calls[path] = (args[0].node, result.node) if simple else None
        return result


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
    # Only outside of inference mode do tensors remember that they were changed in place.
    with torch.inference_mode(mode=False), torch_seeded(0, "trace"):
        # Forward may change them in place, too.
        inputs = tuple(x.clone() if isinstance(x, torch.Tensor) else x for x in inputs)
        twin = _twin(model)
        tracer, graph, watched = _trace(twin.train(training))
        recorder = _record(_module(twin.eval(), graph, type(model).__name__), inputs)
    modules = dict(twin.named_modules())
    paths = {id(module): path for path, module in modules.items()}
    leaves = {id(module) for path, module in modules.items() if tracer.is_leaf_module(module, path)}
    scopes = {node: _scope(node) for node in graph.nodes}
    return OperationGraph(
        nodes=tuple(graph.nodes),
        values=recorder.values,
        scopes=scopes,
        macs=recorder.macs,
        storages=recorder.storages,
        storage_sizes=tuple(recorder.storage_sizes),
        changes=recorder.changes,
        calls=tracer.calls,
        peeks=frozenset((paths[m], tuple(paths[a] for a in active)) for m, active in watched.peeks if m in paths),
        modules=modules,
        read={paths[module]: name for module, name in watched.sizes.items() if module in leaves},
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


def _trace(twin: nn.Module) -> tuple[_Tracer, fx.Graph, _Watched]:
    """Returns the graph of a module's forward, how it was traced, and which attributes forward reads."""
    tracer = _Tracer()
    try:
        tracer.active.append(twin)
        with _LOCK, _listed(twin), _watched(tracer.active) as watched:
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
    return tracer, graph, watched


def _module(twin: nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    """Returns what runs the graph; raises TraceError if torch.fx cannot write its code."""
    try:
        return fx.GraphModule(twin, graph, class_name=name)
    except SyntaxError as error:
        odd = [path for path, _ in twin.named_modules() if not re.fullmatch(r"[\w.]*", path)]
        msg = (
            f"torch.fx cannot write the code of {name}: {error.msg}; give layers names of letters, digits and _ "
            f"instead of {', '.join(map(repr, odd))}"
        )
        raise TraceError(msg) from error


def _state(twin: nn.Module) -> dict[str, object]:
    """Returns every parameter and buffer by name, whatever forward has put in its place."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, module in twin.named_modules()
        for name, value in [*module._parameters.items(), *module._buffers.items()]
        if value is not None
    }


def _record(traced: fx.GraphModule, inputs: tuple[Any, ...]) -> Recorder:
    """Returns the recorder of one run on the example input."""
    recorder = Recorder(traced)
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
        raise ExampleError(msg) from error
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


@dataclass(frozen=True)
class _Watched:
    """Which attributes of modules were read, modules by id.

    Attributes:
        sizes: a size attribute or buffer that was read. A tracer does not enter the forward of torch's own layers: what
            is read of them, the user's forward reads. It reaches the graph as a constant, but changes with slicing.
        peeks: modules of which an attribute was read, and the modules in whose forward that happened.
    """

    sizes: dict[int, str] = field(default_factory=dict[int, str])
    peeks: set[tuple[int, tuple[int, ...]]] = field(default_factory=set[tuple[int, tuple[int, ...]]])


@contextlib.contextmanager
def _watched(active: list[nn.Module]) -> Iterator[_Watched]:
    """Yields what collects the attributes that are read in the block; `active` are the modules being traced."""
    watched = _Watched()

    def read(module: nn.Module, name: str) -> Any:  # noqa: ANN401 - attributes are anything
        own = object.__getattribute__(module, "__dict__")
        if name in SIZE_ATTRIBUTES or name in own.get("_buffers", ()):
            watched.sizes.setdefault(id(module), name)
        if name in own and name[:1] != "_" and name != "training" and module is not active[-1]:
            watched.peeks.add((id(module), tuple(map(id, active))))
        return object.__getattribute__(module, name)

    nn.Module.__getattribute__ = read
    try:
        yield watched
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
