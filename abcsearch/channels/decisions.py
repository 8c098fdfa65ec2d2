"""What a forward decides by the data, taken once and taken again: of equal scores, rounding alone says which is first.

Detectors keep the best of many boxes. Two networks that compute the same up to rounding may so return different ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from abcsearch.channels.recording import tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable

_COMPARISONS = {"gt", "ge", "lt", "le", "eq", "ne", "isin", "bucketize", "searchsorted"}
_ORDERS = {
    "topk",
    "sort",
    "argsort",
    "argmax",
    "argmin",
    "max",
    "min",
    "nms",
    "kthvalue",
    "median",
    "cummax",
    "cummin",
}
_ROUNDINGS = {"floor", "ceil", "round", "trunc", "floor_divide", "_local_scalar_dense"}
_DECIDING = _COMPARISONS | _ORDERS | _ROUNDINGS


@dataclass(frozen=True)
class Decision:
    """One operation that chooses among numbers.

    Attributes:
        operation: its name in torch's dispatcher.
        given: the numbers.
        result: what it returned.
    """

    operation: str
    given: list[torch.Tensor]
    result: Any


class Decisions(TorchDispatchMode):
    """Notes every decision in the block; or takes those of another block again where the numbers are the same.

    Attributes:
        made: in the order in which they were made.
    """

    def __init__(
        self,
        made: list[Decision] | None = None,
        same: Callable[[torch.Tensor, torch.Tensor], bool] = torch.equal,
    ) -> None:
        """Begins a block.

        Args:
            made: decisions to be taken again, in this order; None: none are.
            same: whether numbers, and those of the other block, are the same up to rounding.
        """
        super().__init__()
        self.made: list[Decision] = []
        self._before, self._same = made, same

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - operations of torch
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - operations return anything
        kwargs = kwargs or {}
        if func._opname not in _DECIDING:
            return func(*args, **kwargs)
        given = [x.detach().clone() for x in tensors_in((args, kwargs))]
        result = self._again(str(func), given, len(self.made))
        result = func(*args, **kwargs) if result is None else result
        self.made.append(Decision(str(func), given, result))
        return result

    def _again(self, operation: str, given: list[torch.Tensor], number: int) -> Any:  # noqa: ANN401
        """Returns what was decided before by the same numbers; None where that was not so."""
        before = (
            self._before[number]
            if self._before is not None and number < len(self._before)
            else None
        )
        if before is None or before.operation != operation or len(before.given) != len(given):
            return None
        alike = all(
            a.shape == b.shape and a.dtype == b.dtype and self._same(a, b)
            for a, b in zip(given, before.given, strict=True)
        )
        return before.result if alike else None
