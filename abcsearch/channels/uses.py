"""What rules note of a network besides its channels: uses of weights, which cost, and numbers that slicing must set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Call:
    """One use of a weight in a convolution or linear layer: macs = times * (elements of the weight).

    Attributes:
        weight: canonical name, or the number of elements where the weight is computed in forward.
        bias: likewise, or None.
        times: how often each element is used per image.
        outputs: how often each element of the bias is used per image.
        scope: the path of the module in whose forward it happens.
        in_channels: channels, or features, of its input.
        height: of its input; 1 for a linear layer.
        width: of its input; 1 for a linear layer.
        stride: along the height; 1 for a linear layer.
    """

    weight: str | int
    bias: str | int | None
    times: float
    outputs: float
    scope: str = ""
    in_channels: int = 0
    height: int = 1
    width: int = 1
    stride: int = 1


@dataclass(frozen=True)
class Setting:
    """A number among a module's attributes that must follow channels.

    Attributes:
        path: of the module.
        attribute: its name.
        index: which entry of the attribute, where that is a tuple; None where it is a number.
        positions: the attribute is the number of channels kept among them.
    """

    path: str
    attribute: str
    index: int | None
    positions: NDArray[np.int64]
