"""Norms over channels, done over some of them: what a sliced network computes, in one that has all channels.

A mode of torch catches the calls that the trace has named: by what they compute, in whose forward, and how many of the
kind come before.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn
from torch.overrides import TorchFunctionMode

from abcsearch.errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from abcsearch.channels.group import ChannelNorm

# Reductions, from whose results norms are written by hand.
POOLS = ("mean", "sum", "var", "std", "norm", "linalg_vector_norm")
KINDS = (*POOLS, "layer_norm", "rms_norm", "group_norm", "local_response_norm", "normalize")
_LAYERS = {
    nn.LayerNorm: "layer_norm",
    nn.RMSNorm: "rms_norm",
    nn.GroupNorm: "group_norm",
    nn.LocalResponseNorm: "local_response_norm",
}


def kind_of(target: Any) -> str:  # noqa: ANN401 - functions, names of methods, classes
    """Returns what an operation computes, where that may be a norm; "" for all others."""
    name = (
        _LAYERS.get(target, "")
        if isinstance(target, type)
        else str(getattr(target, "__name__", target))
    )
    return name if name in KINDS else ""


@contextlib.contextmanager
def renormalised(model: nn.Module, norms: Mapping[ChannelNorm, torch.Tensor]) -> Iterator[None]:
    """Lets a network compute norms over channels with weights for a block.

    Args:
        model: of no other thread meanwhile; as it was afterwards.
        norms: (entries,) for each, the weight of every entry along its axis; 0 leaves it out.
    """
    if not norms:
        yield
        return
    active: list[str] = []
    handles: list[Any] = []
    wanted = {
        (norm.kind, norm.scope, norm.call): (norm, weights) for norm, weights in norms.items()
    }
    try:
        for path, module in model.named_modules():
            handles.append(
                module.register_forward_pre_hook(
                    functools.partial(_entered, active, path), prepend=True
                )
            )
            handles.append(
                module.register_forward_hook(functools.partial(_left, active), always_call=True)
            )
        with _Norms(wanted, active):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _entered(active: list[str], path: str, _module: nn.Module, _args: object) -> None:
    active.append(path)


def _left(active: list[str], _module: nn.Module, _args: object, _result: object) -> None:
    active.pop()


class _Norms(TorchFunctionMode):
    """Computes some calls of torch with weights."""

    def __init__(
        self,
        wanted: dict[tuple[str, str, int], tuple[ChannelNorm, torch.Tensor]],
        active: list[str],
    ) -> None:
        super().__init__()
        self._wanted, self._active = wanted, active
        self._seen: dict[tuple[str, str], int] = {}

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - functions and methods
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch calls it
        kwargs = kwargs or {}
        kind = kind_of(func)
        if not kind:
            return func(*args, **kwargs)
        key = (kind, self._active[-1] if self._active else "")
        self._seen[key] = self._seen.get(key, -1) + 1
        norm, weights = self._wanted.get((*key, self._seen[key]), (None, None))
        if norm is None or weights is None:
            return func(*args, **kwargs)
        x, *rest = args if args else (kwargs.pop("input"),)
        if x.ndim <= norm.axis or x.shape[norm.axis] != len(weights):
            msg = f"{kind} in {norm.scope or 'the network'} gets {tuple(x.shape)}, other than when it was traced"
            raise TraceError(msg)
        shape = [-1 if axis == norm.axis else 1 for axis in range(x.ndim)]
        return _COMPUTED[kind](x, weights.to(x).reshape(shape), norm.axis, *rest, **kwargs)


def _layer_norm(  # noqa: PLR0913 - as torch has it
    x: torch.Tensor,
    weights: torch.Tensor,
    axis: int,  # noqa: ARG001 - one of the last ones
    normalized_shape: Any,  # noqa: ANN401 - numbers
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,  # noqa: ARG001, FBT001, FBT002 - torch.layer_norm's
) -> torch.Tensor:
    """Returns F.layer_norm with weights."""
    axes = list(range(x.ndim - len(normalized_shape), x.ndim))
    y = _standardised(x, weights, axes, eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _rms_norm(
    x: torch.Tensor,
    weights: torch.Tensor,
    axis: int,  # noqa: ARG001 - one of the last ones
    normalized_shape: Any,  # noqa: ANN401 - numbers
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor:
    """Returns F.rms_norm with weights."""
    axes = list(range(x.ndim - len(normalized_shape), x.ndim))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = x * torch.rsqrt(_weighed(x.square(), weights, axes) + eps)
    return y if weight is None else y * weight


def _group_norm(  # noqa: PLR0913 - as torch has it
    x: torch.Tensor,
    weights: torch.Tensor,
    axis: int,
    num_groups: int,  # noqa: ARG001 - 1
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,  # noqa: ARG001, FBT001, FBT002 - torch.group_norm's
) -> torch.Tensor:
    """Returns F.group_norm of one group with weights."""
    y = _standardised(x, weights, list(range(1, x.ndim)), eps)
    shape = [-1 if a == axis else 1 for a in range(x.ndim)]
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def _standardised(
    x: torch.Tensor, weights: torch.Tensor, axes: list[int], eps: float
) -> torch.Tensor:
    """Returns x without its weighted mean, over its weighted deviation."""
    x = x - _weighed(x, weights, axes)
    return x * torch.rsqrt(_weighed(x.square(), weights, axes) + eps)


def _weighed(x: torch.Tensor, weights: torch.Tensor, axes: list[int]) -> torch.Tensor:
    """Returns the weighted mean over axes, which stay."""
    return (x * weights).sum(axes, keepdim=True) / _total(x, weights, axes)


def _total(x: torch.Tensor, weights: torch.Tensor, axes: list[int]) -> torch.Tensor:
    """Returns the sum of the weights of all entries over axes."""
    others = math.prod(x.shape[axis] for axis in axes if weights.shape[axis] == 1)
    return weights.sum() * others


def _local_response_norm(  # noqa: PLR0913 - as torch has it
    x: torch.Tensor,
    weights: torch.Tensor,
    axis: int,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> torch.Tensor:
    """Returns F.local_response_norm of the channels whose weight is not 0, which become neighbours; zeros elsewhere."""
    kept = weights.flatten().nonzero().flatten()
    y = F.local_response_norm(x.index_select(axis, kept), size, alpha, beta, k)
    return torch.zeros_like(x).index_copy(axis, kept, y)


def _normalize(  # noqa: PLR0913 - as torch has it
    x: torch.Tensor,
    weights: torch.Tensor,
    axis: int,  # noqa: ARG001 - dim
    p: float = 2.0,
    dim: int = 1,
    eps: float = 1e-12,
    out: None = None,  # noqa: ARG001
) -> torch.Tensor:
    """Returns F.normalize by the norm of x times the weights."""
    return x / (x * weights).norm(p, dim, keepdim=True).clamp_min(eps)


def _mean(
    x: torch.Tensor,
    weights: torch.Tensor,
    axis: int,
    /,
    *args: Any,  # noqa: ANN401
    **kwargs: Any,  # noqa: ANN401
) -> torch.Tensor:
    """Returns the mean with weights."""
    return (x * weights).mean(*args, **kwargs) * (x.shape[axis] / weights.sum())


def _sum(
    x: torch.Tensor,
    weights: torch.Tensor,
    axis: int,  # noqa: ARG001
    /,
    *args: Any,  # noqa: ANN401
    **kwargs: Any,  # noqa: ANN401
) -> torch.Tensor:
    """Returns the sum with weights."""
    return (x * weights).sum(*args, **kwargs)


def _norm(
    x: torch.Tensor,
    weights: torch.Tensor,
    axis: int,  # noqa: ARG001
    /,
    *args: Any,  # noqa: ANN401
    **kwargs: Any,  # noqa: ANN401
) -> torch.Tensor:
    """Returns the norm of x times the weights."""
    return (x * weights).norm(*args, **kwargs)


def _vector_norm(
    x: torch.Tensor,
    weights: torch.Tensor,
    axis: int,  # noqa: ARG001
    /,
    *args: Any,  # noqa: ANN401
    **kwargs: Any,  # noqa: ANN401
) -> torch.Tensor:
    """Returns the norm of x times the weights."""
    return torch.linalg.vector_norm(x * weights, *args, **kwargs)


def _var(
    x: torch.Tensor,
    weights: torch.Tensor,
    axis: int,  # noqa: ARG001
    /,
    *args: Any,  # noqa: ANN401
    **kwargs: Any,  # noqa: ANN401
) -> torch.Tensor:
    """Returns the variance with weights, which is that of all (not one less)."""
    dim = args[0] if args else kwargs.get("dim", kwargs.get("axis"))
    axes = [index % x.ndim for index in (dim if isinstance(dim, tuple | list) else [dim])]  # pyright: ignore
    return _weighed((x - _weighed(x, weights, axes)).square(), weights, axes)


def _std(
    x: torch.Tensor,
    weights: torch.Tensor,
    axis: int,
    /,
    *args: Any,  # noqa: ANN401
    **kwargs: Any,  # noqa: ANN401
) -> torch.Tensor:
    """Returns the deviation with weights."""
    return _var(x, weights, axis, *args, **kwargs).sqrt()


_COMPUTED: dict[str, Callable[..., torch.Tensor]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "local_response_norm": _local_response_norm,
    "normalize": _normalize,
    "mean": _mean,
    "sum": _sum,
    "norm": _norm,
    "linalg_vector_norm": _vector_norm,
    "var": _var,
    "std": _std,
}
