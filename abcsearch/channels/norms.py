"""Bookkeeping of norms over channels while rules run: which calls of a forward pass compute over channels together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from abcsearch.channels.operands import Norm, NoRuleError, Op
from abcsearch.channels.renormalising import kind_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass
class Norms:
    """What the rules have said of norms over channels.

    Attributes:
        allowed: whether they are done over the channels that are left; otherwise they fix their channels.
        found: by the kind of call, the path of the module in whose forward, and how many of the kind come before there.
        pooled: of the operation that is running, the one whose numbers it returns, for others to scale by.
    """

    allowed: bool = True
    found: dict[tuple[str, str, int], Norm] = field(default_factory=dict)
    pooled: list[Norm] = field(default_factory=list)
    _called: dict[tuple[str, str], int] = field(default_factory=dict)

    def restart(self) -> None:
        """Says that another forward pass is looked at."""
        self._called.clear()

    def begin(self, op: Op) -> None:
        """Says that the rule of another operation runs now."""
        self.pooled.clear()
        key = (kind_of(op.target), op.path or op.scope)
        self._called[key] = self._called.get(key, -1) + 1

    def over(
        self,
        op: Op,
        axis: int,
        positions: NDArray[np.int64],
        why: str = "it normalises over channels together",
    ) -> Norm:
        """Says that an operation computes over channels together, in a sliced network over those that are left.

        Args:
            op: the operation.
            axis: of its input, that runs over channels.
            positions: of these.
            why: the reason for those channels where this is not allowed.

        Raises:
            NoRuleError: if it is not.
        """
        if not self.allowed:
            raise NoRuleError(why)
        key = (kind_of(op.target), op.path or op.scope)
        return self.found.setdefault(
            (*key, self._called[key]), Norm(axis, positions, f"{op.name}: {why}")
        )

    def pool(self, op: Op, axis: int, positions: NDArray[np.int64]) -> None:
        """Says that an operation reduces channels to one number, for others to scale or shift them by; see `over`."""
        self.pooled.append(self.over(op, axis, positions, "it reduces the channels"))
