"""Model and example input -> operation graph, by recording one forward pass on a copy of the model."""

from __future__ import annotations

import contextlib
import inspect
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from abcsearch.channels.fast.cloning import clone, keeping_buffers
from abcsearch.channels.interception import SIZE_ATTRIBUTES, Watched, is_leaf, listening
from abcsearch.channels.layout import lay_rows
from abcsearch.channels.recording import Recorder
from abcsearch.errors import ExampleError, TraceError
from abcsearch.example import Example, described, in_rows, line_of
from abcsearch.formats import first_line
from abcsearch.rng import torch_seeded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["SIZE_ATTRIBUTES", "OperationGraph", "trace_operations"]

_LOCK = threading.Lock()  # tracing changes nn.Module itself while it lasts


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
        asks: whether forward asks if the network trains.
        unseen: operations that what never ran may work on, since forward decided on data there, and what that was.
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
    asks: bool
    unseen: Mapping[fx.Node, str]


def trace_operations(
    model: nn.Module,
    example_input: torch.Tensor | tuple[Any, ...] | Example,
    *,
    training: bool = False,
) -> OperationGraph:
    """Records one forward pass on a copy of the model; the model and the global random state stay as they are.

    Args:
        model: any module that runs.
        example_input: one batch as forward takes it (batch 1 is enough), a tuple of its positional arguments, or an
            `Example` with keyword arguments as well.
        training: records what forward does in training mode. The layers run in evaluation mode in any case.

    Raises:
        TraceError: if forward does not run on the example (with the line), or the model cannot be copied.
    """
    example = Example.of(example_input)
    _check(model, example)
    # Row by row, as every network runs that does at all
    example = in_rows(example.fitting(model))
    # Only outside of inference mode do tensors remember that they were changed in place.
    with torch.inference_mode(mode=False), torch_seeded(0, "trace"), keeping_buffers(model):
        twin = lay_rows(_twin(model)).train(training)
        leaves = {path: module for path, module in twin.named_modules() if path and is_leaf(module)}
        for leaf in leaves.values():
            leaf.eval()
        recorder, watched = _record(twin, example)
        twin.eval()
    paths = recorder.paths
    return OperationGraph(
        nodes=tuple(recorder.graph.nodes),
        values=recorder.values,
        scopes=recorder.scopes,
        macs=recorder.macs,
        storages=recorder.storages,
        storage_sizes=tuple(recorder.storage_sizes),
        changes=recorder.changes,
        calls=watched.calls,
        peeks=frozenset(
            (paths[m], tuple(paths[a] for a in active)) for m, active in watched.peeks if m in paths
        ),
        modules=dict(twin.named_modules()),
        read={paths[m]: name for m, name in watched.sizes.items() if paths.get(m) in leaves},
        asks=not watched.modes.isdisjoint(paths),
        unseen=_unseen(twin, recorder, watched),
    )


def _unseen(twin: nn.Module, recorder: Recorder, watched: Watched) -> dict[fx.Node, str]:
    """Returns the operations whose results forward had at hand where it decided on data, if something never ran there.

    What never ran may need all of their channels: the branch that was not taken on the example.
    """
    unseen: dict[fx.Node, str] = {}
    for scope, where in recorder.reads:
        prefix = f"{scope}." if scope else ""
        idle = [
            path
            for path, module in twin.named_modules()
            if path.startswith(prefix) and path not in recorder.callers and module._parameters
        ]
        if not idle:
            continue
        text = f"{where}: forward decides on data there, and {', '.join(idle[:3])} never ran"
        called = {path for path, callers in recorder.callers.items() if scope in callers}
        ends = {node for path in called for node in watched.calls.get(path) or ()}
        for node in recorder.graph.nodes:
            if recorder.scopes[node] in (scope, *called) and (
                node.op == "call_module" or recorder.scopes[node] == scope
            ):
                ends.add(node)
        for node in ends:
            for each in (node, *node.all_input_nodes):
                unseen.setdefault(each, text)
    return unseen


def _check(model: object, example: Example) -> None:
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
    tensors = example.tensors
    if all(not x.ndim for x in tensors) or any(x.ndim and not len(x) for x in tensors):
        inputs = [*example.args, *example.kwargs.values()]
        given = ", ".join(
            str(tuple(x.shape)) if isinstance(x, torch.Tensor) else type(x).__name__ for x in inputs
        )
        msg = f"the example input is a batch of at least one image as a tensor, or a tuple of inputs, found ({given})"
        raise TraceError(msg)
    layouts = {str(x.layout) for x in tensors} - {"torch.strided"}
    if layouts:
        msg = f"the example input has the layout {', '.join(sorted(layouts))}; pass it dense, with .to_dense()"
        raise TraceError(msg)
    devices = {str(t.device) for t in (*model.parameters(), *model.buffers())}
    others = {str(x.device) for x in tensors} - devices
    if devices and others:
        given = f"{', '.join(sorted(devices))}, the example input on {', '.join(sorted(others))}"
        msg = f"the network is on {given}: move one of them"
        raise TraceError(msg)


_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")


def _twin(model: nn.Module) -> nn.Module:
    """Returns a copy of the model; raises TraceError if it cannot be copied."""
    if any(nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        msg = f"{type(model).__name__} has lazy layers without weights yet; run it once on a batch, then trace it"
        raise TraceError(msg)
    try:
        return clone(model, {})
    except Exception as error:
        msg = (
            f"{type(model).__name__} cannot be copied: {first_line(error)}; weights that are computed by a hook "
            "(weight_norm, pruning masks) must be made plain first, with the matching remove function"
        )
        raise TraceError(msg) from error


def _record(twin: nn.Module, example: Example) -> tuple[Recorder, Watched]:
    """Returns what one forward pass did, and which attributes it read."""
    kind, before = type(twin).__name__, _state(twin)
    names = iter(_names(twin, example))
    recorder = Recorder(twin)
    given = example.mapped(lambda item: recorder.given(next(names), item))
    try:
        with _LOCK, torch.no_grad(), _plain_attention(), listening(recorder) as watched:
            result = twin(*given.args, **given.kwargs)
    except TraceError:
        raise
    except Exception as error:
        dtypes = ", ".join({str(p.dtype) for p in twin.parameters()} or {"none"})
        msg = (
            f"{kind} does not run on the example input {described(example)}: {first_line(error)} "
            f"(at {recorder.current}, {line_of(error)}); pass one batch as forward takes it (its weights are {dtypes})"
        )
        raise ExampleError(msg) from error
    after = _state(twin)
    assigned = [name for name, tensor in before.items() if after.get(name) is not tensor]
    if assigned:
        msg = f"forward of {kind} assigns {', '.join(assigned)} anew; update it in place, or outside of forward"
        raise TraceError(msg)
    recorder.returned(result)
    return recorder, watched


def _names(twin: nn.Module, example: Example) -> list[str]:
    """Returns the names of the inputs; raises TraceError if forward takes others."""
    try:
        return example.named(twin)
    except TypeError as error:
        parameters = inspect.signature(twin.forward).parameters.values()
        taken = [
            p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        names = f"{type(twin).__name__} takes {len(taken)} inputs ({', '.join(taken)})"
        if keywords:
            names += f" and keywords ({', '.join(keywords)})"
        count = len(example.args) + len(example.kwargs)
        reason = (
            f"the example has {count}"
            if len(example.args) > len(taken)
            else f"the example: {error}"
        )
        if example.kwargs and len(example.args) <= len(taken):
            reason += f"; it has {', '.join(example.entries)}"
        msg = f"{names}, {reason}"
        raise TraceError(msg) from error


def _state(twin: nn.Module) -> dict[str, object]:
    """Returns every parameter and buffer by name, whatever forward has put in its place."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, module in twin.named_modules()
        for name, value in [*module._parameters.items(), *module._buffers.items()]
        if value is not None
    }


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Switches off the fused attention in the block: what it does inside could not be counted."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
