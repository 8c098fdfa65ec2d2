"""Second moments of what the layers of a network read: one pass, from which criteria and repairs are algebra."""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from abcsearch.channels.outline import parts_of, plan_of
from abcsearch.channels.responses import run_batches, twin_of
from abcsearch.errors import RankingError, callers
from abcsearch.rng import derived_seed
from abcsearch.shortages import check_memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.outline import Target
    from abcsearch.channels.responses import Batch

Form = Literal["patches", "pooled"]
POSITIONS = 24  # of a feature map that are looked at, per image
LESS = (
    'fix the layers that are that wide ([space] fixed), or take repair = "none" and a criterion that looks at weights '
    "alone (reader_l2, l1)"
)
LARGEST = 4608  # inputs of a reader, 3 x 3 x 512: their Gram matrix has 170 MB
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A layer that reads channels which can be removed.

    Its weight is looked at as (conv_groups, outputs, units, entries): units lie along the axis that reads, one for each
    channel there, and have as many entries as the kernel has positions, or as a flattened channel has.

    Attributes:
        path: of the module.
        weight: the name of its weight in the graph.
        axis: of the weight that reads.
        conv_groups: of a convolution; 1 of others.
        units: channels that one conv group reads.
        entries: of the weight, per output and unit.
        divided: the same axis of the weight as the graph's plan divides it, see `outline.Target`.
        pattern: which of the plan's patterns says what channel each unit is.
        bias: whether it has one that may change: no other module's, and not frozen where the weight is not.
        norm: path of the batch norm that takes its outputs directly, and so any constant in them; "" where none does.
    """

    path: str
    weight: str
    axis: int
    conv_groups: int
    units: int
    entries: int
    divided: int
    pattern: int
    bias: bool
    norm: str = ""

    @property
    def centred(self) -> bool:
        """Whether something behind it takes up a constant per output.

        Not of transposed convolutions, whose outputs get a constant through more or fewer entries by their place.
        """
        return self.axis == 1 and (self.bias or bool(self.norm))

    @property
    def form(self) -> Form:
        """What an input is; see `Moments`."""
        small = self.axis == 1 and self.units * self.entries <= LARGEST
        return "patches" if small else "pooled"

    @property
    def inputs(self) -> int:
        """Of how many numbers there are moments, in each of its conv groups."""
        return self.units * (self.entries if self.form == "patches" else 1)

    @property
    def memory(self) -> int:
        """Bytes of its second moments."""
        return 8 * self.conv_groups * self.inputs**2

    def split(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns its weight, or what is left of it, as (conv_groups, outputs, units, entries)."""
        rows = weight.movedim(self.axis, 1).flatten(1)
        return rows.reshape(self.conv_groups, len(rows) // self.conv_groups, -1, self.entries)

    def merged(self, split: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Returns the inverse of `split`, in the shape of a weight."""
        return split.reshape(like.movedim(self.axis, 1).shape).movedim(1, self.axis)


@dataclass(frozen=True, eq=False, kw_only=True)
class Moments:
    """First and second moments of the inputs of one reader, float64.

    Attributes:
        reader: the layer.
        rows: how many inputs were looked at.
        mean: (conv_groups, inputs). Of the form "patches", an input is all that one output is computed from, units *
            entries numbers with the entries of a unit side by side; of the form "pooled", the units alone, whose
            entries are so many inputs.
        gram: (conv_groups, inputs, inputs), means of products; not centred.
    """

    reader: Reader
    rows: int
    mean: torch.Tensor = field(repr=False)
    gram: torch.Tensor = field(repr=False)

    @property
    def covariance(self) -> torch.Tensor:
        """(conv_groups, inputs, inputs), centred."""
        return self.gram - self.mean[:, :, None] * self.mean[:, None, :]


def readers_of(model: nn.Module, graph: ChannelGraph) -> tuple[Reader, ...]:
    """Returns the layers that read channels of prunable groups, in the order of the network's modules.

    These are the convolutions, transposed ones without conv groups among them, and linear layers, with torch's own
    forward, whose weight is a parameter that the graph knows, read along one axis and nothing else, no other module's,
    and not used by forward besides: a tied weight cannot be fitted to one of its uses.

    Args:
        model: the network that `graph` was traced on.
        graph: its channel groups.

    Raises:
        TraceError: if the graph was traced on another network.
    """
    modules, tensors = parts_of(model, graph)
    targets = {
        id(tensors[target.name]): target
        for target in plan_of(graph).targets
        if len(target.sums) == 1 and target.name not in graph.bare
    }
    users = users_of(modules)
    makes = {
        (m.parameter, m.axis) for group in graph.prunable for m in group.members if not m.reads
    }
    shared = {key for key, paths in users.items() if len(paths) > 1}
    shared |= {id(tensors[name]) for name in graph.bare}
    readers = [
        _reader(path, modules[path], targets[key], tied=id(modules[path].bias) in shared)
        for key, (path, *others) in users.items()
        if key in targets and not others and _fits(modules[path])
    ]
    order = {path: number for number, path in enumerate(modules)}
    return tuple(
        sorted((r for r in readers if (r.weight, r.axis) not in makes), key=lambda r: order[r.path])
    )


def users_of(modules: Mapping[str, nn.Module]) -> dict[int, list[str]]:
    """Returns by the id of every parameter the paths of the modules that have it: several, where it is shared."""
    users: dict[int, list[str]] = {}
    for path, module in modules.items():
        for tensor in module._parameters.values():
            users.setdefault(id(tensor), []).append(path)
    return users


def _fits(layer: nn.Module) -> bool:
    """Returns whether a module is a layer whose inputs are understood, and which does with them what torch's does."""
    if isinstance(layer, _TRANSPOSED) and layer.groups > 1:
        return False
    kinds = (kind for kind in (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear) if isinstance(layer, kind))
    return any(
        all(_is_method(layer, kind, name) for name in ("forward", "_conv_forward"))
        for kind in kinds
    )


def _is_method(layer: nn.Module, kind: type[nn.Module], name: str) -> bool:
    """Returns whether what a layer has by a name is the method of its kind, or neither has any."""
    return getattr(getattr(layer, name, None), "__func__", None) is getattr(kind, name, None)


def _reader(path: str, layer: Any, target: Target, *, tied: bool) -> Reader:  # noqa: ANN401 - a layer that fits
    """Returns a layer as a reader, given whether its bias is another module's, too."""
    axis = 0 if isinstance(layer, _TRANSPOSED) else 1
    divided, pattern = target.sums[0]
    # A flattened channel has several entries side by side along the axis; the divided weight has an axis of channels.
    units = target.split[divided] if target.split else layer.weight.shape[axis]
    outputs = layer.weight.shape[1 - axis]
    return Reader(
        path=path,
        weight=target.name,
        axis=axis,
        conv_groups=getattr(layer, "groups", 1),
        units=units,
        entries=layer.weight.numel() // (outputs * units),
        divided=divided,
        pattern=pattern,
        bias=layer.bias is not None
        and not tied
        and (layer.bias.requires_grad or not layer.weight.requires_grad),
    )


class Sample:
    """Which inputs of a layer are looked at: the same ones whenever the same batch comes, also in a pruned network."""

    def __init__(self, reader: Reader, seed: int, positions: int = POSITIONS) -> None:
        """Takes the reader, the seed, and how many positions of a feature map are looked at per image."""
        self._reader, self._positions = reader, positions
        self._seed = derived_seed(seed, f"moments {reader.path}")

    def inputs(self, layer: Any, x: torch.Tensor, batch: int) -> torch.Tensor:  # noqa: ANN401 - a layer that fits
        """Returns what outputs at some positions are computed from.

        Args:
            layer: the reader, or the same layer of a pruned network.
            x: its input.
            batch: the number of the batch.

        Returns:
            (conv_groups, rows, inputs), the type of x.
        """
        reader = self._reader
        if reader.form == "pooled":
            return self._pooled(layer, x, batch)
        if isinstance(layer, nn.Linear):
            rows = x.reshape(len(x), -1, x.shape[-1])
            return self._chosen(rows, batch).flatten(0, 1)[None]
        windows = _windows(layer, x if x.ndim > layer.weight.ndim - 1 else x[None])
        spatial = windows.shape[2 : 2 + layer.weight.ndim - 2]
        at = self._at(math.prod(spatial), len(x), batch).to(x.device)
        index = torch.unravel_index(at, spatial)
        chosen = windows.movedim(1, -1)[(torch.arange(len(x), device=x.device)[:, None], *index)]
        patches = chosen.movedim(-1, 2).flatten(3)  # (images, positions, channels, entries)
        split = patches.unflatten(2, (reader.conv_groups, -1)).flatten(0, 1)
        return split.movedim(1, 0).flatten(2)

    def outputs(self, layer: Any, y: torch.Tensor, batch: int) -> torch.Tensor:  # noqa: ANN401 - a layer that fits
        """Returns outputs at the positions of `inputs`: (rows, channels); only where inputs are patches."""
        if isinstance(layer, nn.Linear):
            return self._chosen(y.reshape(len(y), -1, y.shape[-1]), batch).flatten(0, 1)
        y = y if y.ndim > layer.weight.ndim - 1 else y[None]
        return self._chosen(y.flatten(2).movedim(1, 2), batch).flatten(0, 1)

    def _pooled(self, layer: Any, x: torch.Tensor, batch: int) -> torch.Tensor:  # noqa: ANN401 - a layer that fits
        """Returns the units at some positions, (conv_groups, rows, units)."""
        if isinstance(layer, nn.Linear):
            maps = x.reshape(-1, x.shape[-1] // self._reader.entries, self._reader.entries).movedim(
                1, 2
            )
        else:
            x = x if x.ndim > layer.weight.ndim - 1 else x[None]
            # A unit may be several channels side by side that come and go together.
            maps = x.reshape(len(x), self._reader.conv_groups * self._reader.units, -1).movedim(
                1, 2
            )
        rows = self._chosen(maps, batch).flatten(0, 1)  # (rows, channels)
        return rows.unflatten(1, (self._reader.conv_groups, -1)).movedim(1, 0)

    def _chosen(self, rows: torch.Tensor, batch: int) -> torch.Tensor:
        """Returns some of the rows of each image: (images, all, features) to (images, some, features)."""
        at = self._at(rows.shape[1], len(rows), batch).to(rows.device)
        return rows.gather(1, at[:, :, None].expand(-1, -1, rows.shape[2]))

    def _at(self, positions: int, images: int, batch: int) -> torch.Tensor:
        """Returns which positions of each image are looked at, (images, some) int64; all where there are few."""
        if positions <= self._positions:
            return torch.arange(positions).expand(images, -1)
        draws = torch.Generator().manual_seed((self._seed + batch) % 2**63)
        return torch.randint(positions, (images, self._positions), generator=draws)


def _windows(layer: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - a convolution
    """Returns a view of what every output of a convolution is computed from.

    Returns:
        (images, channels, *positions, *kernel).
    """
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
    elif isinstance(layer.padding, str):
        x = F.pad(x, layer._reversed_padding_repeated_twice)
    else:
        x = F.pad(x, [side for padding in reversed(layer.padding) for side in (padding, padding)])
    for axis, (kernel, stride, dilation) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2
    ):
        x = x.unfold(axis, (kernel - 1) * dilation + 1, stride)[..., ::dilation]
    return x


class _Sums:
    """What has been summed up of one reader's inputs."""

    def __init__(self, reader: Reader, sample: Sample) -> None:
        self.reader, self.sample = reader, sample
        self.rows = 0
        self.total = torch.zeros(reader.conv_groups, reader.inputs, dtype=torch.float64)
        self.products = torch.zeros(
            reader.conv_groups, reader.inputs, reader.inputs, dtype=torch.float64
        )

    def see(self, layer: nn.Module, x: torch.Tensor, batch: int) -> None:
        """Takes in the layer's input of one batch."""
        if not x.is_floating_point() or not bool(torch.isfinite(x).all()):
            msg = f"the input of {self.reader.path} ({layer}) is not finite; check the trained weights and the data"
            raise RankingError(msg)
        rows = self.sample.inputs(layer, x, batch).double()
        self.rows += rows.shape[1]
        self.total += rows.sum(dim=1).cpu()
        self.products += (rows.mT @ rows).cpu()


class _Watch:
    """Hooks on a network that take in what its readers get, and see which batch norms their outputs go to."""

    def __init__(self, network: nn.Module, readers: Sequence[Reader], seed: int) -> None:
        self._sums = {reader.path: _Sums(reader, Sample(reader, seed)) for reader in readers}
        self._batch = -1
        # Outputs of readers in this pass and their versions, by id; they are kept, so that no other tensor gets that.
        self._made: dict[int, tuple[str, torch.Tensor, int]] = {}
        self._taken: dict[
            str, set[str]
        ] = {}  # by the path of a norm, the readers whose outputs it takes
        for path, module in network.named_modules():
            if path in self._sums:
                module.register_forward_hook(functools.partial(self._look, path), with_kwargs=True)
            elif isinstance(module, NORMS) and module.running_mean is not None:
                module.register_forward_pre_hook(
                    functools.partial(self._take, path), with_kwargs=True
                )

    def begin(self) -> None:
        """Begins the next batch."""
        self._batch += 1
        self._made.clear()

    def _look(
        self,
        path: str,
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        y: torch.Tensor,
    ) -> None:
        self._sums[path].see(layer, args[0] if args else kwargs["input"], self._batch)
        self._made[id(y)] = path, y, y._version

    def _take(
        self, path: str, _norm: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        x = args[0] if args else kwargs["input"]
        reader, y, version = self._made.get(id(x), ("", x, 0))
        if reader and y._version == version:  # nothing has changed it in place
            self._taken.setdefault(path, set()).add(reader)

    def moments(self) -> dict[str, Moments]:
        """Returns what was taken in, by the path of the reader."""
        every = [reader for taken in self._taken.values() for reader in taken]
        alone = {norm: next(iter(taken)) for norm, taken in self._taken.items() if len(taken) == 1}
        behind = {reader: norm for norm, reader in alone.items() if every.count(reader) == 1}
        moments: dict[str, Moments] = {}
        for path, sums in self._sums.items():
            if sums.rows:
                reader = replace(sums.reader, norm=behind.get(path, ""))
                moments[path] = Moments(
                    reader=reader,
                    rows=sums.rows,
                    mean=sums.total / sums.rows,
                    gram=sums.products / sums.rows,
                )
        return moments


def reader_moments(
    model: nn.Module,
    graph: ChannelGraph,
    data: Any,  # noqa: ANN401 - see read_batches
    *,
    seed: int = 0,
) -> dict[str, Moments]:
    """Returns moments of what every reader of prunable channels reads, see `moments_of`.

    Args:
        model: the network; not changed.
        graph: its channel groups.
        data: as `read_batches` takes it; labels are not needed.
        seed: of the positions, see also `run_batches`.

    Raises:
        RankingError: as `moments_of`.
        TraceError: if the graph was traced on another network.

    Warns:
        UserWarning: of a reader that is too large for moments of its patches.
    """
    return moments_of(model, readers_of(model, graph), data, seed=seed)


@torch.inference_mode(mode=False)  # in it, tensors have no versions
def moments_of(
    model: nn.Module,
    readers: Sequence[Reader],
    data: Any,  # noqa: ANN401 - see read_batches
    *,
    seed: int = 0,
) -> dict[str, Moments]:
    """Returns moments of what some layers read, of some positions per image; one pass in evaluation mode.

    Sums are float64, in the order of the data: the same bits wherever they are computed alike. A reader takes 8 bytes
    times the square of its inputs, and as much again for a batch; one of more than `LARGEST` is looked at in pooled form.

    Args:
        model: the network; not changed.
        readers: the layers.
        data: as `read_batches` takes it; labels are not needed.
        seed: of the positions, see also `run_batches`.

    Returns:
        Moments by the reader's path, in the order of the readers; those that forward does not call as modules have
        none.

    Raises:
        RankingError: if the data are none, do not fit the network, or make it compute what is not finite; if they take
            more memory than there is.

    Warns:
        UserWarning: of a reader that is too large for moments of its patches.
    """
    _check_room(readers)
    twin = twin_of(model)
    for reader in readers:
        if reader.axis == 1 and reader.form == "pooled" and reader.entries > 1:
            inputs = reader.units * reader.entries
            msg = (
                f"{reader.path} reads {inputs:,} numbers for every output, whose second moments would take "
                f"{8 * reader.conv_groups * inputs**2 / 2**30:.1f} GiB: only {reader.units:,} channels are looked at"
            )
            warnings.warn(msg, stacklevel=callers())
    watch = _Watch(twin, readers, seed)

    def step(seen: Batch) -> None:
        watch.begin()
        with torch.no_grad():
            seen.run(twin)

    run_batches(twin, data, seed, step)
    return watch.moments()


def _check_room(readers: Sequence[Reader]) -> None:
    """Raises RankingError if this machine has less memory than the second moments of some layers take."""
    largest = max(readers, key=lambda reader: reader.memory, default=None)
    if largest is not None:
        all_of_them = sum(reader.memory for reader in readers) + largest.memory
        what = f"second moments of what layers read ({largest.path}: {largest.inputs:,} numbers)"
        check_memory(all_of_them, what, LESS)
