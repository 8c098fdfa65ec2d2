"""Low rank: convolutions and linear layers of a network as products of smaller ones, in plain layers."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from abcsearch.channels.layout import fit_layout
from abcsearch.channels.moments import Reader, moments_of
from abcsearch.errors import ModelError, one_line, unknown_name
from abcsearch.example import Example
from abcsearch.transforms.factors import METHODS, Factorised, full_ranks, split, unfolded, widths
from abcsearch.transforms.ranks import by_energy, evbmf

if TYPE_CHECKING:
    from abcsearch.transforms.factors import Layer, Method

RULES = ("evbmf", "break_even", "full")
Ranks = str | float | Mapping[str, int | tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """How one layer was split.

    Attributes:
        path: of the layer.
        method: see `low_rank`.
        ranks: channels between the smaller layers.
        full: ranks at which nothing is lost.
        energy: share of the squared singular values that is kept, the least of the two of "tucker".
        macs: multiply-accumulates beside those of the layer before; with strides, as if height and width were divided
            by them exactly.
    """

    path: str
    method: Method
    ranks: tuple[int, ...]
    full: tuple[int, ...]
    energy: float
    macs: float


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """A network with factorised layers.

    Attributes:
        model: the network; its ranks are channels like others, to `trace_channels` and to a search.
        factors: of the layers that were split, in the order of the modules.
        left: by the path of every other convolution and linear layer, why it is what it was.
    """

    model: nn.Module
    factors: tuple[Factors, ...]
    left: Mapping[str, str]


def low_rank(
    model: nn.Module,
    example: Any,  # noqa: ANN401 - a tensor, a tuple, an Example
    *,
    method: str = "spatial",
    ranks: Ranks = 0.9,
    data: Any = None,  # noqa: ANN401 - see read_batches
    seed: int = 0,
) -> LowRank:
    """Returns a copy of a network whose layers are products of smaller ones, where that saves something.

    Convolutions of one conv group with a kernel of more than one position are split by `method`, 1 x 1 ones and linear
    layers in two. Batch norms stay behind the last of them; what they hold is right as long as outputs are: calibrate
    or fine-tune after lower ranks. Choose ranks together with widths by a search on the result of `ranks="full"` or
    `"break_even"`: its ranks are channel groups. It has more MACs than the network before, so give the budget as a
    number, not as a share.

    Args:
        model: the network, trained; not changed.
        example: a batch, as `trace_channels` takes it.
        method: "output", "input", "spatial" or "tucker", see `split` in abcsearch/transforms/factors.py.
        ranks: the share of the squared singular values that the fewest of them shall hold, in (0, 1]; or "evbmf", those
            that are more than noise would make, at least one; "break_even", as many as cost no more than the layer;
            "full", all; or a rank by the path of the layer, of "tucker" a pair (behind the first, in front of the
            last): other layers stay.
        data: with it, outputs on these images are met best, not weights: method "output", and linear layers.
        seed: of the positions of feature maps that are looked at.

    Raises:
        ModelError: if an argument is out of range, a layer of `ranks` does not exist or cannot be split, weights are
            not finite, or the network runs no more.

    Source: Jaderberg et al. (BMVC 2014), Denton et al. (NIPS 2014), Zhang et al. (TPAMI 2016), Kim et al. (ICLR 2016);
    that ranks are searched like widths is ours.
    """
    _check(method, ranks, data)
    example = Example.of(example)
    network = copy.deepcopy(model)
    layers, left = splittable(network, example)
    if isinstance(ranks, Mapping):
        _check_paths(ranks, layers, left, network)
    moments = (
        {}
        if data is None
        else moments_of(model, [_reader(*named) for named in layers.items()], data, seed=seed)
    )
    made: list[Factors] = []
    for path, layer in layers.items():
        if not torch.isfinite(layer.weight).all():
            msg = f"the weight of {path} is not finite; low rank needs the trained weights"
            raise ModelError(msg)
        split_by = _method(layer, method)
        factors = _factors(path, layer, split_by, ranks)
        if isinstance(factors, str):
            left[path] = factors
            continue
        known = moments.get(path)
        # Otherwise a warning has said so
        usable = known is not None and known.reader.form == "patches"
        network.set_submodule(
            path, split(layer, split_by, factors.ranks, known.gram[0] if known and usable else None)
        )
        made.append(factors)
    run_once(network, example)
    return LowRank(model=network, factors=tuple(made), left=left)


def check_ranks(model: nn.Module, example: Any, *, method: str, ranks: Ranks) -> None:  # noqa: ANN401 - as of `low_rank`
    """Raises ModelError where `low_rank` would refuse method, ranks, or layers that ranks are given for, by path.

    Ranks that a network allows may be too many for what it is pruned to: then `low_rank` refuses them.
    """
    _check(method, ranks, None)
    if isinstance(ranks, Mapping):
        layers, left = splittable(model, Example.of(example))
        _check_paths(ranks, layers, left, model)
        for path, given in ranks.items():
            _given(path, given, full_ranks(layers[path], _method(layers[path], method)))


def _check(method: str, ranks: object, data: object) -> None:
    """Raises ModelError for arguments that are out of range."""
    if method not in METHODS:
        raise ModelError(unknown_name("low-rank method", method, METHODS))
    if isinstance(ranks, str) and ranks not in RULES:
        raise ModelError(unknown_name("rule of ranks", ranks, RULES))
    if not isinstance(ranks, str | Mapping) and not (
        isinstance(ranks, int | float) and 0 < ranks <= 1
    ):
        msg = f"ranks are a share of the squared singular values, in (0, 1], one of {RULES}, or a rank for each path of "
        msg += f"a layer, found {ranks!r}"
        raise ModelError(msg)
    if data is not None and method != "output":
        msg = f"with data, outputs are met best, which only method 'output' can, found {method!r}; leave out data"
        raise ModelError(msg)


def _check_paths(
    ranks: Mapping[str, Any],
    layers: Mapping[str, nn.Module],
    left: Mapping[str, str],
    network: nn.Module,
) -> None:
    """Raises ModelError for ranks of what is no layer, or none that can be split."""
    modules = dict(network.named_modules())
    for path in ranks:
        if path in left:
            msg = f"ranks are given for {path}, which cannot be split: {left[path]}"
            raise ModelError(msg)
        if path not in layers:
            raise ModelError(_no_layer(path, modules.get(path), layers))


def _no_layer(path: str, module: nn.Module | None, layers: Iterable[str]) -> str:
    """Returns why ranks cannot be given for what is at a path, which is no layer that can be split."""
    if module is None:
        return unknown_name("layer of ranks:", path, layers)
    if isinstance(module, Factorised):
        return f"ranks are given for {path}, which is a product of smaller layers already: leave it out of ranks"
    if isinstance(module, nn.Identity):
        return f"ranks are given for {path}, which is an Identity: if that was dropped, leave it out of ranks"
    return f"{path} is a {type(module).__name__}, no convolution or linear layer"


def splittable(network: nn.Module, example: Example) -> tuple[dict[str, Layer], dict[str, str]]:
    """Returns the layers that can be split, by path; and why the others cannot."""
    every = {
        p: m
        for p, m in network.named_modules()
        if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)
    }
    called: set[nn.Module] = set()
    hooked = {m for m in every.values() if m._forward_hooks or m._forward_pre_hooks}
    handles = [m.register_forward_hook(lambda layer, *_: called.add(layer)) for m in every.values()]
    try:
        run_once(network, example)
    finally:
        for handle in handles:
            handle.remove()
    users = Counter(
        id(tensor) for module in network.modules() for tensor in module._parameters.values()
    )
    inside = {path for path, module in network.named_modules() if isinstance(module, Factorised)}
    layers: dict[str, Layer] = {}
    left: dict[str, str] = {}
    for path, layer in every.items():
        conv_groups = getattr(layer, "groups", 1)
        obstacles = {
            "it is a factor already": path.rpartition(".")[0] in inside,
            f"it is a {type(layer).__name__}, which is not split": type(layer)
            not in (nn.Conv2d, nn.Linear),
            "forward does not call it as a module": layer not in called,
            f"it has {conv_groups} conv groups": conv_groups > 1,
            "its weight is another module's, too": users[id(layer._parameters.get("weight"))] > 1,
            "it has hooks, which may change its weight": layer in hooked,
        }
        reason = next((text for text, applies in obstacles.items() if applies), "")
        if reason:
            left[path] = reason
        else:
            layers[path] = layer  # pyright: ignore[reportArgumentType]
    return layers, left


def _reader(path: str, layer: Layer) -> Reader:
    """Returns a layer as one whose inputs are looked at."""
    inputs, _ = widths(layer)
    entries = layer.weight[0].numel() // inputs
    return Reader(
        path=path,
        weight="",
        axis=1,
        conv_groups=1,
        units=inputs,
        entries=entries,
        divided=1,
        pattern=0,
        bias=False,
    )


def _method(layer: Layer, method: str) -> Method:
    """Returns how a layer is split: one whose kernel has one position, in two."""
    flat = isinstance(layer, nn.Linear) or layer.kernel_size == (1, 1)
    if flat:  # where a stride leaves out positions, first
        return "output"
    return method  # pyright: ignore[reportReturnType]


def _factors(path: str, layer: Layer, method: Method, ranks: Ranks) -> Factors | str:
    """Returns how a layer is split; or why it is not."""
    if isinstance(ranks, Mapping) and path not in ranks:
        return "no rank is given for it"
    matrices = unfolded(layer, method)
    values = [torch.linalg.svdvals(matrix).numpy() for matrix in matrices]
    full = tuple(len(each) for each in values)
    if isinstance(ranks, Mapping):
        chosen = _given(path, ranks[path], full)
    elif ranks == "full":
        chosen = full
    elif ranks == "break_even":
        chosen = _break_even(layer, method, full)
    else:
        pairs = zip(values, matrices, strict=True)
        chosen = tuple(
            max(1, evbmf(each, (len(m), len(m[0]))))
            if isinstance(ranks, str)
            else by_energy(each, ranks)
            for each, m in pairs
        )
    share = _cost(layer, method, chosen) / _cost(layer, method, None)
    if (
        share > 1 - (ranks != "break_even") * 1e-9
        and not isinstance(ranks, Mapping)
        and ranks != "full"
    ):
        shown = " and ".join(f"{rank} of {of}" for rank, of in zip(chosen, full, strict=True))
        return f"rank {shown} saves nothing"
    kept = [
        float((each[:rank] ** 2).sum() / ((each**2).sum() or 1))
        for each, rank in zip(values, chosen, strict=True)
    ]
    return Factors(path=path, method=method, ranks=chosen, full=full, energy=min(kept), macs=share)


def _given(path: str, ranks: Any, full: tuple[int, ...]) -> tuple[int, ...]:  # noqa: ANN401 - whatever was given
    """Returns ranks that were given for a layer."""
    chosen = ranks if isinstance(ranks, tuple) else (ranks,) * len(full)
    fits = len(chosen) == len(full) and all(
        type(r) is int and 1 <= r <= of for r, of in zip(chosen, full, strict=True)
    )
    if not fits:
        allowed = " and ".join(f"1 to {of}" for of in full)
        most = " and ".join(map(str, full))
        msg = f"the rank of {path} is a whole number from {allowed}, found {ranks!r}; set at most {most}, or, for all "
        msg += "layers, a share of the squared singular values such as ranks = 0.9"
        raise ModelError(msg)
    return chosen


def _break_even(layer: Layer, method: Method, full: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the highest ranks that cost no more than the layer, of "tucker" those of equal shares; at least 1."""
    before = _cost(layer, method, None)
    best = (1,) * len(full)
    for share in range(1, max(full) + 1):
        ranks = tuple(max(1, of * share // max(full)) for of in full)
        if _cost(layer, method, ranks) <= before:
            best = ranks
    return best


def _cost(layer: Layer, method: Method, ranks: tuple[int, ...] | None) -> float:
    """Returns multiply-accumulates per position of the output: of the layer, or of its factors at some ranks."""
    inputs, outputs = widths(layer)
    height, width = layer.kernel_size if isinstance(layer, nn.Conv2d) else (1, 1)
    down, across = layer.stride if isinstance(layer, nn.Conv2d) else (1, 1)
    if ranks is None:
        return inputs * outputs * height * width
    if method == "output":
        return ranks[0] * (inputs * height * width + outputs)
    if method == "input":
        return ranks[0] * (down * across * inputs + outputs * height * width)
    if method == "spatial":
        return ranks[0] * (across * inputs * height + outputs * width)
    first, last = ranks
    return down * across * inputs * first + first * last * height * width + last * outputs


def run_once(network: nn.Module, example: Example) -> None:
    """Runs a network once, in evaluation mode; its modules are in the modes that they were in afterwards.

    Raises:
        ModelError: if it cannot.
    """
    modes = {module: module.training for module in network.modules()}
    fit_layout(network, example)
    try:
        with torch.no_grad():
            example.run(network.eval())
    except Exception as error:  # of many kinds: the network's own
        msg = f"the network does not run on the example: {type(error).__name__}: {one_line(str(error), 300)}"
        raise ModelError(msg) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
