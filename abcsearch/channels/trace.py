"""Model and example input -> operation graph, by torch.fx and one forward pass on a copy of the model."""

from __future__ import annotations

import copy
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from abcsearch.errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class OperationGraph:
    """The operations of one forward pass in execution order.

    Attributes:
        nodes: the fx nodes.
        values: what each node returned on the example input: a torch.Size for a tensor, the value itself for numbers
            and (as plain tuples) tuples of numbers, None for anything else.
        modules: the traced copy's modules by path, in evaluation mode.
    """

    nodes: tuple[fx.Node, ...]
    values: Mapping[fx.Node, Any]
    modules: Mapping[str, nn.Module]


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what `OperationGraph.values` promises of every result."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}
        self.current = ""

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - an operation may return anything
        self.current = f"{n.op} {n.target}"
        result = super().run_node(n)
        self.values[n] = result.shape if isinstance(result, torch.Tensor) else _plain(result)
        return result


def _plain(value: Any) -> Any:  # noqa: ANN401 - an operation may return anything
    """Returns numbers and tuples of numbers as they are and None for everything else."""
    if isinstance(value, int | float | torch.dtype | torch.device):
        return value
    if isinstance(value, tuple | list):
        items = tuple(_plain(item) for item in value)
        return None if None in items else items
    return None


def trace_operations(model: nn.Module, example_input: torch.Tensor | tuple[torch.Tensor, ...]) -> OperationGraph:
    """Traces the model in evaluation mode on a copy; the model and the global random state stay as they are.

    Args:
        model: any module that torch.fx can trace.
        example_input: one batch as forward takes it (batch 1 is enough), or a tuple of its positional arguments.

    Raises:
        TraceError: if forward depends on data in its control flow (with the line), or does not run on the example.
    """
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    twin = copy.deepcopy(model).eval()
    try:
        graph = fx.Tracer().trace(twin)
    except Exception as error:
        msg = (
            f"{type(model).__name__} cannot be traced by torch.fx: {_first_line(error)} ({_place(error)}); "
            "control flow may depend on settings of the module, not on tensors: move the condition out of forward, "
            "or hide it in a function marked with torch.fx.wrap"
        )
        raise TraceError(msg) from error
    recorder = _Recorder(fx.GraphModule(twin, graph))
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            recorder.run(*inputs)
    except Exception as error:
        shapes = ", ".join(f"{tuple(x.shape)} {x.dtype} on {x.device}" for x in inputs if isinstance(x, torch.Tensor))
        msg = (
            f"{type(model).__name__} does not run on the example input {shapes or inputs}: {_first_line(error)} "
            f"(at {recorder.current}); pass one batch as forward takes it"
        )
        raise TraceError(msg) from error
    return OperationGraph(nodes=tuple(graph.nodes), values=recorder.values, modules=dict(twin.named_modules()))


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
