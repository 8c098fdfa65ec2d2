"""Catches what forward does: calls of torch, operations that bypass Python, calls of modules, attributes that are read.

Two modes of torch, which belong to one thread, and one change of nn.Module, which is undone whatever is raised.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from abcsearch.channels.recording import tensors_in
from abcsearch.channels.rules import ruled_class
from abcsearch.channels.vocabulary import FACTS, READS, SIZES, word_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from abcsearch.channels.recording import Recorder

# The attributes of layers that follow the number of channels; slicing sets them (`slicing.fit_attributes`).
SIZE_ATTRIBUTES = (
    "in_channels",
    "out_channels",
    "groups",
    "in_features",
    "out_features",
    "num_features",
    "num_embeddings",
    "embedding_dim",
    "num_parameters",
)


class Calls(TorchFunctionMode):
    """Tells a recorder of every call of a function or method of torch that forward makes."""

    def __init__(self, recorder: Recorder, bypassing: Bypassing) -> None:
        super().__init__()
        self._recorder, self._bypassing = recorder, bypassing

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - functions, methods and properties
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch calls it
        recorder, kwargs = self._recorder, kwargs or {}
        if recorder.depth:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        with inside(recorder, self._bypassing):
            if name in FACTS or not recorder.knows(tensors_in((args, kwargs)), (args, kwargs)):
                return func(*args, **kwargs)
            op, target, said, named = word_for(func, args, kwargs)
            if name in READS:
                return recorder.read_data(op, target, said, lambda: func(*args, **kwargs))
            if name == "__get__":
                value = func(*args)
                if said[1] not in SIZES and not isinstance(value, torch.Tensor):
                    return value
                return recorder.computed(op, target, said, named, lambda: value)
            return recorder.computed(op, target, said, named, lambda: func(*args, **kwargs))


class Bypassing(TorchDispatchMode):
    """Tells a recorder of operations that no call of Python's made: those of torch.jit and of extensions in C++."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - overloads of operations
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch calls it
        recorder, kwargs = self._recorder, kwargs or {}
        with torch._C.DisableTorchFunction():
            if recorder.depth or not recorder.knows(tensors_in((args, kwargs)), ()):
                return func(*args, **kwargs)
            return recorder.computed(
                "call_function", func, args, kwargs, lambda: func(*args, **kwargs)
            )


@contextlib.contextmanager
def inside(recorder: Recorder, bypassing: Bypassing) -> Iterator[None]:
    """Does not listen in the block: what happens there is one operation."""
    recorder.depth += 1
    stack = torch._C._len_torch_dispatch_stack()
    top = torch._C._pop_torch_dispatch_stack(None) if stack else None
    if top is not None and top is not bypassing:  # somebody else's, inside forward
        torch._C._push_on_torch_dispatch_stack(top)
        top = None
    try:
        yield
    finally:
        if top is not None:
            torch._C._push_on_torch_dispatch_stack(top)
        recorder.depth -= 1


@dataclass(frozen=True)
class Watched:
    """Which attributes of modules forward read, modules by id.

    Attributes:
        sizes: a size attribute or buffer of a layer that was read, outside of the layer.
        peeks: modules of which an attribute was read, and the modules in whose forward that happened.
        modes: modules that were asked whether they train.
    """

    sizes: dict[int, str] = field(default_factory=dict[int, str])
    peeks: set[tuple[int, tuple[int, ...]]] = field(
        default_factory=set[tuple[int, tuple[int, ...]]]
    )
    modes: set[int] = field(default_factory=set[int])
    calls: dict[str, tuple[Any, Any] | None] = field(
        default_factory=dict[str, "tuple[Any, Any] | None"]
    )


@contextlib.contextmanager
def listening(recorder: Recorder) -> Iterator[Watched]:
    """Tells a recorder of everything that happens in the block, in this thread."""
    bypassing, watched = Bypassing(recorder), Watched()
    look, thread = object.__getattribute__, threading.get_ident()

    def read(module: nn.Module, name: str) -> Any:  # noqa: ANN401 - attributes are anything
        if recorder.depth or not recorder.open or threading.get_ident() != thread:
            return look(module, name)
        if name == "forward":
            path = recorder.paths.get(id(module))
            if path is not None:
                return functools.partial(
                    _enter, recorder, watched, bypassing, module, path, look(module, name)
                )
        _watch(recorder, watched, module, name, look(module, "__dict__"))
        value = look(module, name)
        if _is_size(value) and name[:1] != "_" and id(module) in recorder.paths:
            return recorder.attribute(recorder.paths[id(module)], name, value)
        return value

    try:
        nn.Module.__getattribute__ = read
        with bypassing, Calls(recorder, bypassing):
            yield watched
    finally:
        recorder.open = False
        if "__getattribute__" in vars(nn.Module):
            del nn.Module.__getattribute__


def _is_size(value: object) -> bool:
    """Returns whether an attribute may be a number of channels, or a tuple with such."""
    several = type(value) is tuple and bool(value) and all(type(item) is int for item in value)
    return several or (type(value) is int and value > 1)


def _watch(
    recorder: Recorder, watched: Watched, module: nn.Module, name: str, attributes: dict[str, Any]
) -> None:
    """Notes that forward reads an attribute of a module."""
    if name == "training":
        watched.modes.add(id(module))
    elif name in SIZE_ATTRIBUTES or name in attributes.get("_buffers", ()):
        watched.sizes.setdefault(id(module), name)
    if (
        name in attributes
        and name[:1] != "_"
        and name != "training"
        and module is not recorder.active[-1]
    ):
        watched.peeks.add((id(module), tuple(map(id, recorder.active))))


def is_leaf(module: nn.Module) -> bool:
    """Returns whether a call of a module is one operation: it has a rule, or is a layer of torch's own."""
    if ruled_class(type(module)) is not None or isinstance(module, torch.jit.ScriptModule):
        return True
    home = type(module).__module__
    torchs = home.startswith(("torch.nn", "torch.ao.nn")) and home != "torch.nn.modules.transformer"
    return torchs and not isinstance(module, nn.Sequential)


def _scope_of(recorder: Recorder, module: nn.Module) -> str:
    """Returns the path of a layer that is called now: of several, one below the caller, or where none is, that of it.

    An activation that all blocks share belongs to each of them.
    """
    held = recorder.active[-1]._modules.items()
    name = next((name for name, child in held if child is module), None)
    if name is not None:
        return f"{recorder.scope}.{name}".lstrip(".")
    path, around = recorder.paths[id(module)], f"{recorder.scope}." if recorder.scope else ""
    return path if path.startswith(around) else recorder.scope


def _enter(
    recorder: Recorder,
    watched: Watched,
    bypassing: Bypassing,
    module: nn.Module,
    path: str,
    forward: Callable[..., Any],
    *args: Any,  # noqa: ANN401 - as forward takes them
    **kwargs: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401 - forward returns anything
    """Runs the forward of a module, as one operation or following it."""
    recorder.callers.setdefault(path, set()).add(recorder.scope)
    if path and is_leaf(module):
        with inside(recorder, bypassing), torch._C.DisableTorchFunction():
            run = functools.partial(forward, *args, **kwargs)
            return recorder.computed(
                "call_module", path, args, kwargs, run, scope=_scope_of(recorder, module)
            )
    single = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor)
    source = recorder.argument(args[0]) if single else None
    recorder.active.append(module)
    try:
        result = forward(*args, **kwargs)
    finally:
        recorder.active.pop()
    simple = path not in watched.calls and source is not None and isinstance(result, torch.Tensor)
    watched.calls[path] = (source, recorder.argument(result)) if simple else None
    return result
