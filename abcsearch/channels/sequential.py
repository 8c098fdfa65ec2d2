"""Repair of a pruned network layer after layer, each on what it reads there once those before it are repaired."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from abcsearch.channels.fast.cutting import cut
from abcsearch.channels.moments import NORMS, Moments, Reader, Sample
from abcsearch.channels.responses import twin_of
from abcsearch.example import run_on
from abcsearch.rng import torch_seeded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from abcsearch.channels.outline import Outline
    from abcsearch.example import Inputs


@dataclass(frozen=True, eq=False)
class Goal:
    """What a layer computes in the full network, which it is fitted to.

    Attributes:
        reader: the layer.
        sample: which of its inputs and outputs are looked at.
        outputs: (rows, outputs), there.
    """

    reader: Reader
    sample: Sample
    outputs: torch.Tensor = field(repr=False)


@torch.no_grad()
def goals_of(
    model: nn.Module, moments: Mapping[str, Moments], images: Inputs, seed: int
) -> dict[str, Goal]:
    """Returns the goals of the layers whose moments are those of patches, by path; one pass with all images at once.

    Args:
        model: the full network; not changed.
        moments: of what they read.
        images: (n, channels, height, width).
        seed: of the positions.
    """
    twin = twin_of(model)
    goals: dict[str, Goal] = {}

    def look(path: str, reader: Reader, layer: nn.Module, _args: object, y: torch.Tensor) -> None:
        if path not in goals:  # of a layer that is called several times, the first
            sample = Sample(reader, seed)
            goals[path] = Goal(reader, sample, sample.outputs(layer, y, 0).clone())

    modules = dict(twin.named_modules())
    for path, one in moments.items():
        if one.reader.form == "patches":
            modules[path].register_forward_hook(functools.partial(look, path, one.reader))
    with torch_seeded(seed, "repair"):
        run_on(twin, images.clone())  # forward may change its input in place
    return goals


@torch.no_grad()
def fit_in_turn(
    network: nn.Module,
    outline: Outline,
    goals: Mapping[str, Goal],
    images: Inputs,
    ridge: float,
    seed: int = 0,
) -> None:
    """Fits the layers of a pruned network to their goals, in the order in which forward calls them; in one pass.

    Every layer starts from the weights that it has. Batch norms take the statistics of the images meanwhile, and keep
    them; but for those that get a single value per channel, which has none.

    Args:
        network: changed in place; on the device of the images.
        outline: what is left in it.
        goals: by path.
        images: those that the goals are of.
        ridge: pulls towards the weights that a layer has; times the mean of the diagonal of what it reads.
        seed: of what forward draws, the one of the goals.
    """
    done: set[str] = set()

    def fit(
        path: str,
        goal: Goal,
        layer: Any,  # noqa: ANN401
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        if path not in done:
            done.add(path)
            _fit(
                goal,
                layer,
                args[0] if args else kwargs["input"],
                _outputs_left(goal, outline),
                ridge,
            )

    def measure(norm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ANN401 - a batch norm
        x = args[0] if args else kwargs["input"]
        norm.train(x.numel() > x.shape[1])

    modules = dict(network.named_modules())
    norms: list[Any] = [
        m for m in modules.values() if isinstance(m, NORMS) and m.running_mean is not None
    ]
    handles = [
        modules[path].register_forward_pre_hook(
            functools.partial(fit, path, goal), with_kwargs=True
        )
        for path, goal in goals.items()
        if path in modules
    ]
    handles += [norm.register_forward_pre_hook(measure, with_kwargs=True) for norm in norms]
    modes = [(module, module.training) for module in modules.values()]
    momenta = [(norm, norm.momentum) for norm in norms]
    try:
        network.eval()
        for norm in norms:
            norm.momentum = 1.0
        with torch_seeded(seed, "repair"):
            run_on(network, images.clone())
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
        for norm, momentum in momenta:
            norm.momentum = momentum


def _outputs_left(goal: Goal, outline: Outline) -> torch.Tensor:
    """Returns which outputs of a layer are left, (k,) int64 ascending."""
    every = torch.arange(goal.outputs.shape[1])
    cuts = next(
        ((target, axes) for target, axes in outline.cuts if target.name == goal.reader.weight), None
    )
    if cuts is None:
        return every
    # A weight that holds the numbers of its outputs, cut likewise.
    target, axes = cuts
    full = outline.tensors[target.name]
    numbers = every.reshape(-1, *[1] * (full.ndim - 1)).expand(full.shape)
    return target.merged(cut(target.divided(numbers), axes)).flatten(1)[:, 0]


def _fit(goal: Goal, layer: Any, x: torch.Tensor, kept: torch.Tensor, ridge: float) -> None:  # noqa: ANN401 - a reader
    """Fits one layer to its goal, given its input and which of the outputs are left."""
    reader = goal.reader
    rows = goal.sample.inputs(layer, x, 0).double()  # (conv_groups, rows, inputs)
    wanted = goal.outputs[:, kept.to(x.device)].double()
    wanted = wanted.unflatten(1, (reader.conv_groups, -1)).movedim(1, 0)
    weight = reader.split(layer.weight.double()).flatten(2)
    rest = wanted - rows @ weight.mT
    stays: torch.Tensor | None = None if reader.bias else layer.bias
    if stays is not None:
        rest -= stays.double().reshape(reader.conv_groups, 1, -1)
    middle = rows.mean(dim=1, keepdim=True) if reader.centred else torch.zeros_like(rows[:, :1])
    constant = rest.mean(dim=1, keepdim=True) if reader.centred else torch.zeros_like(rest[:, :1])
    second = (rows - middle).mT @ (rows - middle)
    weighed = ridge * second.diagonal(dim1=1, dim2=2).mean(dim=1, keepdim=True)
    second.diagonal(dim1=1, dim2=2).add_(torch.where(weighed > 0, weighed, 1.0))
    change = torch.cholesky_solve(
        (rows - middle).mT @ (rest - constant), torch.linalg.cholesky(second)
    ).mT
    layer.weight.copy_(
        reader.merged((weight + change).unflatten(2, (-1, reader.entries)), layer.weight)
    )
    if reader.bias:
        layer.bias.copy_((constant - middle @ change.mT).flatten())
