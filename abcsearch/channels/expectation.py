"""Expected products of widths that are not decided yet: what differentiable costs are made of.

A parameter has as many elements as the product of its axes' lengths, and each length is a constant plus a weighted sum
of independent widths. The expectation of such a product is a sum over all partitions of its axes, of products over
their parts of joint cumulants; the joint cumulant of sums of independent variables is the sum of their own cumulants
times the weights. So a layer with one group at both ends gets E[w^2], not E[w]^2, without a special case.

Source: Leonov and Shiryaev 1959 (moments of products by cumulants).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING

import torch

from abcsearch.errors import CandidateError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Distribution = float | torch.Tensor | tuple[Sequence[int] | torch.Tensor, torch.Tensor]
_SLACK = 1e-3  # how far probabilities may be off: float16 has three digits


def cumulants(name: str, channels: int, distribution: Distribution, most: int) -> torch.Tensor:
    """Returns the cumulants of a width, (most,) float64: its mean, its variance, and so on.

    Args:
        name: what the width is of, for messages ("dimension 3").
        channels: full width of the dimension.
        distribution: a number or a tensor () is a width that is certain (it need not be whole); a tensor (channels,)
            has the probability that each channel is kept, independent of the others; a pair of widths (n,) and their
            probabilities (n,) is a distribution over widths.
        most: how many.

    Raises:
        CandidateError: if it is none of these, or probabilities are not in [0, 1] or those of widths do not add up to
            one.
    """
    match distribution:
        case bool():
            pass
        case Real():
            return _certain(torch.tensor(float(distribution), dtype=torch.float64), most)
        case torch.Tensor() if distribution.is_floating_point() and distribution.ndim == 0:
            return _certain(distribution.double(), most)
        case torch.Tensor() if distribution.is_floating_point() and distribution.shape == (
            channels,
        ):
            _check_range(name, distribution)
            kept = distribution.double()
            # 0 ** k and 1 ** k: every moment is the mean
            return _of_moments(kept.expand(most, channels)).sum(dim=1)
        case (choices, torch.Tensor() as probabilities) if probabilities.is_floating_point():
            widths = _numbers(choices, probabilities.device)
            if widths is not None and widths.ndim == 1 and widths.shape == probabilities.shape:
                _check_choices(name, widths, channels)
                _check_range(name, probabilities)
                _check_sum(name, probabilities)
                powers = torch.stack([widths**k for k in range(1, most + 1)])
                return _of_moments(powers @ probabilities.double())
        case _:
            pass
    msg = (
        f"{name} is a width (a floating-point tensor ()), the keep probabilities of its channels ({channels},), "
        f"or a pair (widths (n,), probabilities (n,)), found {_described(distribution)}"
    )
    raise CandidateError(msg)


def expected_products(factors: NDArray, constant: NDArray, orders: torch.Tensor) -> torch.Tensor:
    """Returns E[product over axes of (c0 + c1 w1 + c2 w2 ...)] for many parameters at once, (n_parameters,) float64.

    Args:
        factors: (n_axes, n_parameters, 1 + n_dims), the coefficients c of every axis.
        constant: (n_parameters,), what the product is multiplied by.
        orders: (most, n_dims) float64, cumulants of the independent widths; at least as many as there are axes.
    """
    rows = torch.from_numpy(factors).to(orders.device)
    total = orders.new_zeros(len(constant))
    for partition in _partitions(list(range(len(rows)))):
        product = torch.from_numpy(constant).to(orders.device)
        for axes in partition:
            joint = rows[axes, :, 1:].prod(dim=0) @ orders[len(axes) - 1]
            product = product * (joint + rows[axes[0], :, 0] if len(axes) == 1 else joint)
        total = total + product
    return total


def _partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """Yields every way to divide items into parts."""
    if not items:
        yield []
        return
    first, *rest = items
    for partition in _partitions(rest):
        yield [[first], *partition]
        for index, members in enumerate(partition):
            yield [*partition[:index], [first, *members], *partition[index + 1 :]]


def _certain(width: torch.Tensor, most: int) -> torch.Tensor:
    """Returns the cumulants of a number: the number, then zeros."""
    return torch.cat([width[None], width.new_zeros(most - 1)])


def _of_moments(moments: torch.Tensor) -> torch.Tensor:
    """Returns the cumulants, (most, ...), that belong to the moments E[w], E[w^2] ... along the first axis."""
    orders: list[torch.Tensor] = []
    for n, moment in enumerate(moments):
        lower = (math.comb(n, k) * orders[k] * moments[n - 1 - k] for k in range(n))
        orders.append(moment - sum(lower, torch.zeros_like(moment)))
    return torch.stack(orders)


def _numbers(values: object, device: torch.device) -> torch.Tensor | None:
    """Returns numbers as a float64 tensor; None for what holds something else."""
    try:
        return torch.as_tensor(values, dtype=torch.float64, device=device)
    except (TypeError, ValueError):
        return None


def _check_choices(name: str, widths: torch.Tensor, channels: int) -> None:
    """Raises CandidateError for widths outside of 0 to all channels."""
    wrong = widths[~((widths >= 0) & (widths <= channels))]
    if len(wrong):
        msg = f"widths of {name} are 0 to {channels}, found {float(wrong[0]):g}"
        raise CandidateError(msg)


def _check_range(name: str, probabilities: torch.Tensor) -> None:
    """Raises CandidateError for probabilities outside [0, 1]."""
    values = probabilities.detach()
    wrong = values[~((values >= -_SLACK) & (values <= 1 + _SLACK))]  # not a number is neither
    if len(wrong):
        msg = f"probabilities of {name} are in [0, 1], found {float(wrong[0])}; use a sigmoid or a softmax"
        raise CandidateError(msg)


def _check_sum(name: str, probabilities: torch.Tensor) -> None:
    """Raises CandidateError for probabilities that do not add up to one."""
    total = float(probabilities.detach().double().sum())
    if not abs(total - 1) <= _SLACK:
        msg = f"probabilities of {name} add up to 1, found {total:.6g}; use a softmax"
        raise CandidateError(msg)


def _described(value: object) -> str:
    """Returns what something is, for messages."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, tuple | list):
        return f"({', '.join(_described(entry) for entry in value)})"
    return f"{type(value).__name__} {value!r:.40}"
