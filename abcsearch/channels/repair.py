"""Repair of pruned networks: what reads channels is solved anew for those that are left, by least squares."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch

from abcsearch.channels.moments import LESS, reader_moments, readers_of, users_of
from abcsearch.channels.outline import outlined, parts_of
from abcsearch.channels.sequential import fit_in_turn, goals_of
from abcsearch.channels.slicing import fill
from abcsearch.channels.source import Sliced
from abcsearch.errors import ConfigError, RankingError, plural, unknown_name
from abcsearch.example import Example
from abcsearch.shortages import machine_suffices

if TYPE_CHECKING:
    from torch import nn

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.moments import Moments
    from abcsearch.channels.outline import Outline
    from abcsearch.channels.sequential import Goal
    from abcsearch.example import Inputs
    from abcsearch.space import Candidate

How = Literal["one_shot", "sequential", "scalar"]
RIDGE = 0.05  # times the mean of the diagonal; experiments/benchmarks/README.md has the figures
_ROUNDING = (
    1e-14  # times inputs: the share of second moments that rounding may take when they are centred
)
_MEMORY = 2**30  # bytes of solutions that are kept


def solve(
    moments: Moments, weight: torch.Tensor, units: torch.Tensor, *, scalar: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the weight with which some of what a reader reads comes nearest to what it computes from all of it.

    It minimises E||W x - W' x_kept - c||^2 + r ||W'||^2, where c is a constant per output, 0 unless something behind
    the reader takes it up, and r is `RIDGE` times the mean of the diagonal of the second moments. Of pooled moments,
    the channels that are gone are replaced by combinations of those that are left, the same ones at every entry.

    Source: He et al., Channel Pruning for Accelerating Very Deep Neural Networks (ICCV 2017), section 3.1, step (ii);
    `scalar`: Luo et al., ThiNet (ICCV 2017), section 3.2.3, with a ridge that pulls factors to 1.

    Args:
        moments: of all that it reads.
        weight: its whole weight.
        units: (k,) int64, those that are left, ascending.
        scalar: whether W' is W with one factor for each unit, in place of any weight.

    Returns:
        W' in the shape of the whole weight, zero at the units that are gone, float64; and c, (outputs,) float64.
    """
    reader, device = moments.reader, weight.device
    second = (moments.covariance if reader.centred else moments.gram).to(device)
    count = reader.entries if reader.form == "patches" else 1
    rows = (units[:, None] * count + torch.arange(count)).flatten().to(device)
    full = reader.split(weight.detach().double())  # (conv_groups, outputs, units, entries)
    # (conv_groups, 1, outputs, inputs), or of pooled moments (conv_groups, entries, outputs, units): fitted alike.
    full = full.movedim(3, 1) if reader.form == "pooled" else full.flatten(2)[:, None]
    if scalar:
        read = (full.mT @ full).sum(dim=1)
        products, sizes = (
            _of_units(one * read, count) for one in (second, moments.gram.to(device))
        )
        factors = _factors(products, sizes, units.to(device))
        solved = full[..., rows] * factors.repeat_interleave(count, dim=1)[:, None, None]
    else:
        kept = _with_ridge(second[:, rows][:, :, rows], moments.gram.to(device))[0]
        solved = torch.cholesky_solve(
            (full @ second[:, None, :, rows]).mT, torch.linalg.cholesky(kept)[:, None]
        ).mT
    means = moments.mean.to(device)[:, None, None]
    lost = ((full * means).sum(dim=3) - (solved * means[..., rows]).sum(dim=3)).sum(dim=1)
    whole = torch.zeros_like(full)
    whole[..., rows] = solved
    split = whole.movedim(1, 3) if reader.form == "pooled" else whole[:, 0]
    return reader.merged(split, weight), lost.flatten()


def _with_ridge(kept: torch.Tensor, gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns second moments of what is left with a ridge, (conv_groups, k, k), and the ridges, (conv_groups,)."""
    ridge = RIDGE * kept.diagonal(dim1=1, dim2=2).mean(dim=1)
    # Of inputs that hardly vary, rounding leaves covariances that are not positive definite.
    sizes = gram.diagonal(dim1=1, dim2=2).mean(dim=1)
    ridge = torch.maximum(ridge, _ROUNDING * kept.shape[1] * sizes)
    # A layer that gets nothing but zeros has nothing to fit: its weights end as zeros.
    ridge = torch.where(ridge > 0, ridge, 1.0)
    return kept + torch.diag_embed(ridge[:, None].expand(-1, kept.shape[1])), ridge


def _of_units(products: torch.Tensor, count: int) -> torch.Tensor:
    """Returns sums of products of inputs over those of a unit, `count` side by side: (conv_groups, units, units)."""
    return products.unflatten(1, (-1, count)).sum(dim=2).unflatten(2, (-1, count)).sum(dim=3)


def _factors(products: torch.Tensor, gram: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """Returns the factor of every unit that is left, (conv_groups, k).

    Args:
        products: (conv_groups, units, units), E of the products of what two units contribute to an output, summed over
            all outputs.
        gram: the same, without any means taken away.
        units: (k,) those that are left.
    """
    kept, ridge = _with_ridge(products[:, units][:, :, units], gram)
    wanted = products[:, units].sum(dim=2) + ridge[:, None]
    return torch.cholesky_solve(wanted[:, :, None], torch.linalg.cholesky(kept))[:, :, 0]


class Repaired(Sliced):
    """Slices of the trained network in which every layer that has lost inputs is fitted to those that are left.

    Weights and biases are solved anew so that a layer's outputs come nearest to those of the full network on training
    images, see `solve`: at once for all layers, each on what it reads in the full network ("one_shot"); or one layer
    after the other, each on what it reads in the pruned network so far ("sequential"), after that; or at once by one
    factor for every channel and layer ("scalar"). Where no bias takes
    up the constant, the running mean of the batch norm right behind does.

    Left as they are: layers that lose no input ("one_shot"); weights and biases that several layers share, or that
    forward uses otherwise than as a module; layers with a forward of their own, which may make something else of their
    input; weights and biases that are frozen (`requires_grad` is False) in a network where others are not.

    Moments of the full network are computed when first needed, once, and go with the source into other processes.
    Solutions are kept, up to 1 GiB of them: a layer's depends on which of its inputs are left alone.

    Source: the least-squares step of He et al. (ICCV 2017), here for every layer that reads a group's channels.

    Differences from the paper:
        - No channel is chosen by it; the ranking says which are left.
        - "one_shot" reads the full network's inputs, not the pruned network's, so that one pass serves all candidates.
        - "sequential" fits a layer to its own outputs in the full network also where a shortcut is added to them.

    Attributes:
        images: what moments are of: (n, channels, height, width) training images, or several inputs.
        how: "one_shot", "sequential" or "scalar".
    """

    def __init__(
        self, sliced: Sliced, images: Inputs, how: How = "one_shot", *, seed: int = 0
    ) -> None:
        """Takes a source of slices, training images without augmentation, how to repair, and the seed of positions.

        Raises:
            ConfigError: if it is not known how.
            RankingError: if the images are no tensor.
        """
        if how not in get_args(How):
            raise ConfigError(unknown_name("repair", how, get_args(How)))
        if not isinstance(images, torch.Tensor | Example):  # pyright: ignore[reportUnnecessaryIsInstance] - the user's own
            msg = "images that a repair looks at are one tensor (n, channels, height, width) or an Example, found "
            raise RankingError(msg + type(images).__name__)
        super().__init__(sliced.model, sliced.graph, sliced.ranking)
        if sliced.full is not sliced.model:
            vars(self)["_full"] = sliced.full
        self.images, self.how, self._seed = images, how, seed
        self._known: dict[str, Moments] | None = None
        self._goals: tuple[Inputs, dict[str, Goal]] | None = None
        self._solved: OrderedDict[tuple[str, bytes], dict[str, torch.Tensor]] = OrderedDict()

    @property
    def _device(self) -> torch.device:
        return next(iter(self.model.state_dict().values())).device

    def moments(self) -> dict[str, Moments]:
        """Returns moments of what every layer reads that is repaired, by its path; computed at the first call.

        Raises:
            RankingError: if the network does not run on the images, computes what is not finite, or the machine has too
            little memory.
        """
        if self._known is None:
            # The same numbers, whatever the caller computes in
            with (
                torch.autocast(self._device.type, enabled=False),
                machine_suffices("second moments for repair", LESS),
            ):
                every = reader_moments(self.model, self.graph, self.images, seed=self._seed)
            tensors = dict(self.model.named_parameters())
            some = any(tensor.requires_grad for tensor in tensors.values())
            self._known = {
                path: one
                for path, one in every.items()
                if tensors[one.reader.weight].requires_grad or not some
            }
        return self._known

    def lines(self) -> list[str]:
        """Returns in words which layers are fitted anew, which are left as they are and why, and of what there is little.

        Raises:
            RankingError: as `moments`.
        """
        moments = self.moments()
        alone: dict[str, list[str]] = {}
        for path, why in left_alone(self.model, self.graph, set(moments)).items():
            alone.setdefault(why, []).append(path)
        left = "; ".join(f"{', '.join(paths)} ({why})" for why, paths in alone.items())
        lines = [
            f"repair: {plural(len(moments), 'layer')} fitted anew; left as they are: {left or 'none'}"
        ]
        few = {path: one for path, one in moments.items() if one.rows < one.reader.inputs}
        if few:
            path, one = max(few.items(), key=lambda item: item[1].reader.inputs - item[1].rows)
            others = f" (likewise {plural(len(few) - 1, 'other layer')})" if len(few) > 1 else ""
            lines.append(
                f"repair: {path} reads {one.reader.inputs:,} numbers, of which there are {one.rows:,} samples{others}: "
                "the ridge decides between the ways to fit them"
            )
        return lines

    def in_turn(self) -> Self:
        """Returns the source with its networks repaired layer after layer as well, unless by factors alone."""
        if self.how == "scalar":
            return self
        other = copy.copy(self)
        other.how, other._goals = "sequential", None
        return other

    def network(self, candidate: Candidate, seed: int = 0) -> nn.Module:
        """Returns the sliced network, repaired; the seed is not used."""
        network = super().network(candidate, seed)
        outline = outlined(self.model, self.graph, candidate, self.ranking)
        fill(network, outline, self._changes(outline))
        # Else there is nothing to repair
        if self.how == "sequential" and (outline.cuts or outline.dropped):
            images, goals = self._aims()
            with torch.autocast(images.device.type, enabled=False):
                fit_in_turn(network, outline, goals, images, RIDGE, self._seed)
        return network

    def _aims(self) -> tuple[Inputs, dict[str, Goal]]:
        """Returns the images on the network's device, and what the layers of the full network make of them."""
        if self._goals is None:
            images = self.images.to(self._device)
            with torch.autocast(images.device.type, enabled=False):
                self._goals = images, goals_of(self.model, self.moments(), images, self._seed)
        return self._goals

    def _changes(self, outline: Outline) -> dict[str, torch.Tensor]:
        """Returns by name what replaces tensors of the full network before it is sliced."""
        kept = {target.name: dict(cuts) for target, cuts in outline.cuts}
        changes: dict[str, torch.Tensor] = {}
        for path, moments in self.moments().items():
            units = kept.get(moments.reader.weight, {}).get(moments.reader.divided)
            if units is not None and path in outline.modules:
                changes.update(self._solution(path, moments, units, outline.tensors))
        return changes

    def _solution(
        self, path: str, moments: Moments, units: torch.Tensor, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Returns by name what replaces a layer's tensors where some of its inputs are left; the last ones are kept."""
        key = path, units.numpy().tobytes()
        if key in self._solved:
            self._solved.move_to_end(key)
            return self._solved[key]
        reader = moments.reader
        with torch.autocast(self._device.type, enabled=False):
            weight, constant = solve(
                moments, tensors[reader.weight], units, scalar=self.how == "scalar"
            )
        solution = {reader.weight: weight.to(tensors[reader.weight])}
        name, sign = (f"{path}.bias", 1) if reader.bias else (f"{reader.norm}.running_mean", -1)
        if reader.centred:
            solution[name] = (tensors[name].detach().double() + sign * constant).to(tensors[name])
        self._solved[key] = solution
        while len(self._solved) > 1 and _bytes(self._solved) > _MEMORY:
            self._solved.popitem(last=False)
        return solution

    def _lent(self) -> tuple[object, ...]:
        """Moments and images are looked at as they are."""
        return *super()._lent(), self._known, self.images

    def to(self, device: torch.device | str) -> Self:
        """Returns the source on a device; moments are the same there."""
        moved = super().to(device)
        if moved is not self:
            moved._solved = OrderedDict()
            moved._goals = None
        return moved

    def __getstate__(self) -> dict[str, Any]:
        """Returns all but what is computed again when needed; moments go along, so that they are the same elsewhere."""
        self.moments()
        return {**vars(self), "_solved": OrderedDict(), "_goals": None}


def left_alone(model: nn.Module, graph: ChannelGraph, fitted: set[str]) -> dict[str, str]:
    """Returns why layers that read channels of prunable groups are not fitted anew, by their paths.

    Args:
        model: the network that `graph` was traced on.
        graph: its channel groups.
        fitted: the paths of those that are.
    """
    modules, tensors = parts_of(model, graph)
    readers = {reader.weight: reader.path for reader in readers_of(model, graph)}
    users = users_of(modules)
    members = [member for group in graph.prunable for member in group.members]
    makes = {(member.parameter, member.axis) for member in members if not member.reads}
    reasons: dict[str, str] = {}
    for member in members:
        name, tensor = member.parameter, tensors[member.parameter]
        paths = users.get(id(tensor), [])
        if not member.reads or not fitted.isdisjoint(paths):
            continue
        held_back = {
            "forward computes with the weight itself": name in graph.bare,
            "they share a weight": len(paths) > 1,
            "frozen": name in readers and not tensor.requires_grad,
            "not called by forward as a module": name in readers,
            "makes the channels that it reads": (name, member.axis) in makes,
            "of a kind of its own": True,
        }
        why = next(why for why, holds in held_back.items() if holds)
        reasons.update(dict.fromkeys(paths or [name], why))
    return reasons


def _bytes(solved: OrderedDict[tuple[str, bytes], dict[str, torch.Tensor]]) -> int:
    """Returns how much memory solutions take."""
    return sum(tensor.nbytes for solution in solved.values() for tensor in solution.values())
