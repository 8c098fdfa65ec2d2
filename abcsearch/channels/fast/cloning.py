"""What `copy.deepcopy` makes of a module, in a fraction of the time.

deepcopy asks every object for its reduction: for a module with forty mostly empty attributes that is most of the cost
of building a candidate. Here the types that modules are made of are copied directly; everything else, and every class
that has its own idea of being copied, goes to deepcopy with the same memo, so that the result is the same.
"""

from __future__ import annotations

import contextlib
import copy
import copyreg
from collections import OrderedDict
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Memo = dict[Any, Any]


@contextlib.contextmanager
def keeping_buffers(module: nn.Module) -> Iterator[None]:
    """Puts back at the end what changed in a module's buffers in the block.

    A copy may still call its original, in a lambda that an attribute holds, and update statistics there.

    Args:
        module: any module.
    """
    dense = [
        tensor
        for tensor in module.buffers()
        if tensor.layout is torch.strided and not tensor.is_meta
    ]
    before = [tensor.clone() for tensor in dense]
    try:
        yield
    finally:
        for tensor, value in zip(dense, before, strict=True):
            if not torch.equal(tensor, value):
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    tensor.copy_(value)


# Types whose values deepcopy shares; a subclass may think otherwise, so only exact types count.
_ATOMS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, type, FunctionType, BuiltinFunctionType}
)
# What a class, or an instance, can define to be copied in its own way. `__getstate__` and `__setstate__` are not among
# them: they are called here as well.
_PROTOCOL = frozenset(
    {"__deepcopy__", "__reduce_ex__", "__reduce__", "__getnewargs__", "__getnewargs_ex__"}
)
_GETSTATE = nn.Module.__dict__.get("__getstate__")
# They take the state as it is, and add what states of older versions lack: nothing, for one of today.
_COMPLETING = (nn.Module.__setstate__, nn.modules.conv._ConvNd.__setstate__)


def clone(module: nn.Module, memo: Memo) -> nn.Module:
    """Returns `copy.deepcopy(module, memo)`.

    Args:
        module: any module; not changed.
        memo: by the id of a tensor or module inside: what stands in its place, wherever it is referred to. Afterwards,
            the copy of every other one is there as well.
    """
    return _copy(module, memo)


def _copy(x: Any, memo: Memo) -> Any:  # noqa: ANN401 - anything can be an attribute
    """Returns what `copy.deepcopy(x, memo)` returns, and leaves in the memo what that would leave there."""
    if type(x) in _ATOMS:
        return x
    known = memo.get(id(x), memo)
    return _copy_new(x, memo) if known is memo else known


def _copy_new(x: Any, memo: Memo) -> Any:  # noqa: ANN401 - anything can be an attribute
    """Does that for what is not in the memo yet."""
    cls = type(x)
    copier = _COPIERS.get(cls)
    if copier is not None:
        return copier(x, memo)
    # Found out once per class and call: later, somebody may have changed the class
    plain = memo.get(cls)
    if plain is None:
        plain = memo[cls] = _is_plain(cls)
    return _copy_module(x, memo) if plain else copy.deepcopy(x, memo)


def _is_plain(cls: type) -> bool:
    """Returns whether copying an object of a class means a new module with a copy of its state."""
    return (
        issubclass(cls, nn.Module)
        and all(getattr(cls, name, None) is getattr(object, name, None) for name in _PROTOCOL)
        and cls.__getattribute__
        is object.__getattribute__  # lists and dicts, with entries, have their own
        and cls.__getattr__
        is nn.Module.__getattr__  # another one may answer when asked for the protocol
        and cls not in copyreg.dispatch_table
    )


def _copy_module(module: nn.Module, memo: Memo) -> nn.Module:
    if not module.__dict__.keys().isdisjoint(_PROTOCOL):
        return copy.deepcopy(module, memo)
    cls = type(module)
    memo[id(module)] = new = cls.__new__(cls)
    state: Any = module.__getstate__()
    if cls.__getstate__ is _GETSTATE and state is not module.__dict__:
        _replace_values(state, memo)  # a copy of __dict__ that nobody else has seen
    else:
        # As deepcopy does, lest something else gets an id in the memo
        memo.setdefault(id(memo), []).append(state)
        state = _copy(state, memo)
    if cls.__setstate__ in _COMPLETING and type(state) is dict:
        object.__setattr__(new, "__dict__", state)
    elif state is not None:
        new.__setstate__(state)
    return new


_EMPTIES = frozenset({OrderedDict, dict, set})


def _replace_values(state: dict[str, Any], memo: Memo) -> None:
    """Replaces the values of a module's state by their copies."""
    for name, value in state.items():
        cls = type(value)
        # As _copy does; most values are atoms or hooks that nobody has set, and not worth a call.
        if cls in _ATOMS:
            continue
        if cls in _EMPTIES and not value and (cls is not OrderedDict or not value.__dict__):
            state[name] = memo.setdefault(id(value), cls())
        elif cls is not tuple or not _ATOMS.issuperset(map(type, value)):
            known = memo.get(id(value), memo)
            state[name] = _copy_new(value, memo) if known is memo else known


def _copy_dict(old: dict[Any, Any], memo: Memo) -> dict[Any, Any]:
    memo[id(old)] = new = {}
    if old:
        _fill(new, old, memo)
    return new


def _copy_ordered(old: OrderedDict[Any, Any], memo: Memo) -> OrderedDict[Any, Any]:
    if old.__dict__:
        return copy.deepcopy(old, memo)
    memo[id(old)] = new = OrderedDict()
    if old:
        _fill(new, old, memo)
    return new


def _fill(new: dict[Any, Any], old: dict[Any, Any], memo: Memo) -> None:
    for key, value in old.items():
        known = memo.get(id(value), memo)
        value = _copy(value, memo) if known is memo else known
        new[key if type(key) is str else _copy(key, memo)] = value


def _copy_list(old: list[Any], memo: Memo) -> list[Any]:
    new: list[Any] = []
    memo[id(old)] = new
    for value in old:
        new.append(_copy(value, memo))  # noqa: PERF401 - an entry may refer to the list, as far as it is filled
    return new


def _copy_tuple(old: tuple[Any, ...], memo: Memo) -> tuple[Any, ...]:
    if _ATOMS.issuperset(map(type, old)):
        return old
    entries = [_copy(value, memo) for value in old]
    if id(old) in memo:  # an entry refers to the tuple
        return memo[id(old)]
    if all(a is b for a, b in zip(entries, old, strict=True)):
        return old
    memo[id(old)] = new = tuple(entries)
    return new


def _copy_set(old: set[Any], memo: Memo) -> set[Any]:
    if not _ATOMS.issuperset(map(type, old)):
        return copy.deepcopy(old, memo)
    memo[id(old)] = new = set(old)
    return new


def _copy_parameter(old: nn.Parameter, memo: Memo) -> torch.Tensor:
    return old.__deepcopy__(memo)


def _copy_tensor(old: torch.Tensor, memo: Memo) -> torch.Tensor:
    storage = old.untyped_storage() if _is_ordinary(old) else None
    # deepcopy copies storages, each once, so that views of one remain views of one; it keeps account of them here.
    storages = memo.setdefault("torch", {})
    if storage is None or storage._cdata in storages or storage.nbytes() != old.nbytes:
        return copy.deepcopy(old, memo)
    memo[id(old)] = new = old.clone()
    storages[storage._cdata] = new.untyped_storage()
    return new


def _is_ordinary(tensor: torch.Tensor) -> bool:
    """Returns whether numbers in memory, one after another, are all there is to a tensor."""
    return (
        tensor.layout is torch.strided
        and (tensor.is_cpu or tensor.is_cuda)
        and tensor.is_contiguous()
        and not tensor.requires_grad
        and tensor.grad is None
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not tensor.__dict__
    )


_COPIERS: dict[type, Callable[[Any, Memo], Any]] = {
    dict: _copy_dict,
    OrderedDict: _copy_ordered,
    list: _copy_list,
    tuple: _copy_tuple,
    set: _copy_set,
    nn.Parameter: _copy_parameter,
    torch.Tensor: _copy_tensor,
}
