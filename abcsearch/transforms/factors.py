"""One layer as a product of smaller ones: singular values of its weight, and the layers that replace it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Layer = nn.Conv2d | nn.Linear

Method = Literal["output", "input", "spatial", "tucker"]
METHODS: tuple[Method, ...] = get_args(Method)
_SWEEPS = 10  # of Tucker's alternating fit, which settles in a few
_NOTHING = 1e-12  # singular values below this share of the largest are rounding


class Factorised(nn.Sequential):
    """The smaller layers that stand for one convolution or linear layer, applied one after the other.

    Attributes:
        method: how it was split, one of `METHODS`.
    """

    method: Method

    def __init__(self, *layers: nn.Module, method: Method) -> None:
        """Takes the layers in the order in which they are applied."""
        super().__init__(*layers)
        self.method = method

    @property
    def ranks(self) -> tuple[int, ...]:
        """Channels between the layers."""
        return tuple(widths(layer)[1] for layer in list(self.children())[:-1])


def widths(layer: nn.Module) -> tuple[int, int]:
    """Returns how many channels a convolution or linear layer reads and makes."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    assert isinstance(layer, nn.Linear)
    return layer.in_features, layer.out_features


def unfolded(layer: Layer, method: Method) -> tuple[torch.Tensor, ...]:
    """Returns the matrices whose ranks a method lowers, float64: one, or two of "tucker" (inputs, then outputs)."""
    w = layer.weight.detach().double().cpu()
    if w.ndim == 2:
        w = w[:, :, None, None]
    by_output, by_input = w.flatten(1), w.movedim(1, 0).flatten(1)
    if method == "tucker":
        return by_input, by_output
    if method == "spatial":
        return (
            w.permute(1, 2, 0, 3).flatten(2).flatten(0, 1),
        )  # (inputs * height, outputs * width)
    return (by_output if method == "output" else by_input,)


def full_ranks(layer: Layer, method: Method) -> tuple[int, ...]:
    """Returns the ranks at which the product is the layer itself."""
    return tuple(min(matrix.shape) for matrix in unfolded(layer, method))


def split(
    layer: Layer, method: Method, ranks: tuple[int, ...], moments: torch.Tensor | None = None
) -> Factorised:
    """Returns the layers whose product is nearest to a layer's weight (Frobenius norm).

    Singular values go to both factors alike, as their square roots, so that the channels between them come in the order
    of their norms. The stride is where the fewest products are computed, the bias in the last layer.

    Args:
        layer: a convolution of one conv group, or a linear layer; not changed.
        method: "output", a layer of the same kernel with fewer outputs, then a 1 x 1 one; "input", the other way round;
            "spatial", height, then width; "tucker", 1 x 1, the kernel, 1 x 1.
        ranks: channels between the layers, of "tucker" two: behind the first, and in front of the last.
        moments: (inputs, inputs) means of products of what one output is computed from, in the order of the flattened
            weight; with them the outputs are met best, not the weight. Of method "output" only.

    Returns:
        Layers of the same type, device and training mode; frozen where the weight is.

    Source: Jaderberg et al. (BMVC 2014) for "spatial", Denton et al. (NIPS 2014) for "output" and "input"; Zhang et
    al., Accelerating very deep convolutional networks (TPAMI 2016) for `moments`; Kim et al. (ICLR 2016) for "tucker".
    """
    weights = (
        _FACTORS[method](layer, ranks) if moments is None else _by_outputs(layer, ranks[0], moments)
    )
    made = skeleton(layer, method, ranks)
    with torch.no_grad():
        for smaller, weight in zip(made.children(), weights, strict=True):
            smaller.weight.copy_(weight.reshape(smaller.weight.shape))  # pyright: ignore[reportCallIssue, reportArgumentType]
        if layer.bias is not None:
            made[-1].bias.copy_(layer.bias)  # pyright: ignore[reportCallIssue]
    return made.train(layer.training).requires_grad_(layer.weight.requires_grad)


def skeleton(layer: Layer, method: Method, ranks: tuple[int, ...]) -> Factorised:
    """Returns the layers of `split` with whatever weights the memory holds; nothing is drawn."""
    inputs, outputs = widths(layer)
    sizes = [inputs, *ranks, outputs]
    last = len(ranks)
    pairs = itertools.pairwise(sizes)
    if isinstance(layer, nn.Linear):
        kind: dict[str, Any] = {"device": "meta", "dtype": layer.weight.dtype}
        linear = [
            nn.Linear(a, b, bias=i == last and layer.bias is not None, **kind)
            for i, (a, b) in enumerate(pairs)
        ]
        return Factorised(*linear, method=method).to_empty(device=layer.weight.device)
    layers = [
        _convolution(layer, a, b, _AXES[method][i], i == last) for i, (a, b) in enumerate(pairs)
    ]
    return Factorised(*layers, method=method).to_empty(device=layer.weight.device)


def _convolution(
    layer: nn.Conv2d,
    inputs: int,
    outputs: int,
    axes: tuple[int, ...],
    last: bool,  # noqa: FBT001
) -> nn.Conv2d:
    """Returns a convolution with some axes of another's kernel, of no size along the others, without weights."""

    def along(numbers: Sequence[int], otherwise: int) -> Any:  # noqa: ANN401 - a pair, whose length types cannot tell
        return tuple(number if axis in axes else otherwise for axis, number in enumerate(numbers))

    return nn.Conv2d(
        inputs,
        outputs,
        along(layer.kernel_size, 1),
        along(layer.stride, 1),
        layer.padding if isinstance(layer.padding, str) else along(layer.padding, 0),
        along(layer.dilation, 1),
        bias=last and layer.bias is not None,
        padding_mode=layer.padding_mode,
        device="meta",
        dtype=layer.weight.dtype,
    )


# Which axes of the kernel each layer has: 0 is the height, 1 the width.
_AXES: dict[Method, tuple[tuple[int, ...], ...]] = {
    "output": ((0, 1), ()),
    "input": ((), (0, 1)),
    "spatial": ((0,), (1,)),
    "tucker": ((), (0, 1), ()),
}


def _halves(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (n, rank) and (rank, m) whose product is nearest to a matrix (n, m)."""
    if rank < min(matrix.shape):
        # The first directions alone, of the smaller side: two to five times as fast
        if len(matrix) > matrix.shape[1]:
            wide, tall = _halves(matrix.T, rank)
            return tall.T, wide.T
        _, vectors = torch.linalg.eigh(matrix @ matrix.T)
        basis = vectors.flip(1)[:, :rank]
        seen = basis.T @ matrix
        root = seen.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
        return basis * root, seen / root[:, None]
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


def _output(layer: Layer, ranks: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    second, first = _halves(unfolded(layer, "output")[0], ranks[0])
    return first, second


def _input(layer: Layer, ranks: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    inner, outer = _halves(
        unfolded(layer, "input")[0], ranks[0]
    )  # (inputs, rank), (rank, outputs * kernel)
    return inner.T, outer.reshape(ranks[0], widths(layer)[1], -1).movedim(0, 1)


def _spatial(layer: Layer, ranks: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    inputs, outputs = widths(layer)
    tall, wide = _halves(unfolded(layer, "spatial")[0], ranks[0])
    return tall.reshape(inputs, -1, ranks[0]).permute(2, 0, 1), wide.reshape(
        ranks[0], outputs, -1
    ).movedim(0, 1)


def _tucker(layer: Layer, ranks: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Higher-order orthogonal iteration: each side's basis in turn, seen through that of the other."""
    inputs, outputs = widths(layer)
    w = layer.weight.detach().double().cpu().reshape(outputs, inputs, -1)
    inside, outside = (torch.linalg.svd(m, full_matrices=False) for m in unfolded(layer, "tucker"))
    (u, s), (v, t) = (
        (basis[:, :r], values[:r])
        for (basis, values, _), r in zip((inside, outside), ranks, strict=True)
    )
    for _ in range(_SWEEPS if (len(s), len(t)) != (inputs, outputs) else 0):
        u, s = _basis(torch.einsum("oik,or->irk", w, v), ranks[0])
        v, t = _basis(torch.einsum("oik,ir->ork", w, u), ranks[1])
    core = torch.einsum("oik,or,is->rsk", w, v, u)
    root, stem = (torch.where(x > _NOTHING * x[:1], x, 1.0).sqrt() for x in (s, t))
    return (u * root).T, core / stem[:, None, None] / root[:, None], v * stem


def _basis(tensor: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the first directions of a tensor along its first axis, (n, rank), and their singular values.

    Where the other side's rank leaves fewer directions, those that are missing are 0.
    """
    u, s, _ = torch.linalg.svd(tensor.flatten(1), full_matrices=False)
    missing = max(0, rank - len(s))
    return F.pad(u[:, :rank], (0, missing)), F.pad(s[:rank], (0, missing))


def _by_outputs(layer: Layer, rank: int, moments: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Projects outputs on the directions in which they vary most: the rows of the weight, seen through the inputs."""
    w = unfolded(layer, "output")[0]
    _, vectors = torch.linalg.eigh(w @ moments.double() @ w.T)
    u = vectors.flip(1)[:, :rank]
    first = u.T @ w
    root = first.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return first / root[:, None], u * root


_FACTORS: dict[Method, Callable[[Layer, tuple[int, ...]], tuple[torch.Tensor, ...]]] = {
    "output": _output,
    "input": _input,
    "spatial": _spatial,
    "tucker": _tucker,
}
