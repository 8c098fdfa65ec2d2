"""What calls of torch are called in a graph: operators, functions, names of methods, attributes."""

from __future__ import annotations

import operator
from typing import Any

import torch

# They say nothing that depends on widths or data.
_FACTS = """
    dim ndimension is_floating_point is_complex is_contiguous is_signed is_inference is_pinned is_shared is_conj
    is_neg is_coalesced get_device element_size data_ptr storage_offset untyped_storage storage __hash__ __repr__
    __str__ __format__ __dir__ register_hook retain_grad _is_view is_grad_enabled set_grad_enabled
    _set_grad_enabled get_default_dtype is_autocast_enabled
"""
FACTS = frozenset(_FACTS.split())
# They take data out of a tensor.
_READS = "__bool__ __int__ __float__ __complex__ __index__ __contains__ item tolist numpy __array__ equal allclose"
READS = frozenset([*_READS.split(), "is_nonzero"])

_OPERATORS: dict[str, Any] = {
    **{
        name: getattr(operator, name)
        for name in ("add", "sub", "mul", "pow", "matmul", "gt", "lt", "ge", "le")
    },
    **{
        f"__{name}__": getattr(operator, name)
        for name in ("eq", "ne", "floordiv", "getitem", "setitem", "pow")
    },
    **{f"__{name}__": getattr(operator, f"{name}_") for name in ("and", "or")},
    **{f"{name}_": getattr(operator, f"i{name}") for name in ("add", "sub", "mul")},
    "div": operator.truediv,
    "div_": operator.itruediv,
    "__xor__": operator.xor,
    "__matmul__": operator.matmul,
}
_SWAPPED = {
    f"__r{name}__": getattr(operator, name)
    for name in ("sub", "mul", "pow", "matmul", "floordiv", "truediv", "mod")
} | {"__rdiv__": operator.truediv}
_CONVERTED = {
    "__bool__": bool,
    "__int__": int,
    "__float__": float,
    "__complex__": complex,
    "__index__": operator.index,
}
# Properties that follow widths; of the others, those that are tensors are noted.
SIZES = ("shape", "nbytes")


def word_for(
    func: Any,  # noqa: ANN401 - functions, methods and properties
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[str, Any, tuple[Any, ...], dict[str, Any]]:
    """Returns what a call is in a graph: (op, target, args, kwargs).

    Args:
        func: what torch hands to a function mode.
        args: of the call.
        kwargs: of the call.
    """
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        access = getattr if name == "__get__" else setattr
        return (
            "call_function",
            access,
            (args[0], attribute_of(func), *args[1:][: name == "__set__"]),
            {},
        )
    if getattr(torch.Tensor, name, None) is not func:
        return "call_function", func, args, kwargs
    if name in _SWAPPED:
        return "call_function", _SWAPPED[name], args[::-1], kwargs
    plain = len(args) == (3 if name == "__setitem__" else 2) and not kwargs
    if name in _OPERATORS and plain:
        return "call_function", _OPERATORS[name], args, kwargs
    if name == "neg":
        return "call_function", operator.neg, args, kwargs
    if name in _CONVERTED:
        return "call_function", _CONVERTED[name], args, kwargs
    return ("call_method", name, args, kwargs) if args else ("call_function", func, args, kwargs)


def attribute_of(func: Any) -> str:  # noqa: ANN401 - what torch hands to a function mode
    """Returns the name of the property that a call reads or sets."""
    owner: Any = func.__self__
    return str(
        getattr(owner.fget, "__name__", "") if isinstance(owner, property) else owner.__name__
    )
