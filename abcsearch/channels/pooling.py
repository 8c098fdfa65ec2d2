"""Responses of channels to whole images, pooled where layers read them: second moments, also with targets."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from abcsearch.channels.moments import readers_of
from abcsearch.channels.outline import plan_of
from abcsearch.channels.responses import class_labels, run_batches, twin_of
from abcsearch.errors import RankingError, callers, plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.moments import Reader
    from abcsearch.channels.responses import Batch

Pool = Literal["max", "mean"]
CONSTANT = (
    1e-12  # a variance that is at most this much of the mean square is the rounding of float32
)


class FewSamplesWarning(UserWarning):
    """There are fewer samples of what a layer reads than numbers in it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Pooled:
    """Moments of what one reader gets, one number per image and unit; float64, centred.

    Attributes:
        reader: the layer.
        images: how many were looked at.
        covariance: (conv_groups, units, units); rows and columns of what is constant are zero.
        cross: (conv_groups, units, targets), the covariances with the targets; no targets where none were asked for.
        spread: the sum of the variances of the targets.
    """

    reader: Reader
    images: int
    covariance: torch.Tensor = field(repr=False)
    cross: torch.Tensor = field(repr=False)
    spread: float


class _Sums:
    """What has been summed up of one reader: of its responses, with a one and the targets beside them."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.images = 0
        self.products = torch.zeros(())  # (conv_groups, units + 1 + targets, the same)

    def see(self, responses: torch.Tensor, targets: torch.Tensor) -> None:
        """Takes in (images, conv_groups, units) and (images, targets)."""
        groups = responses.shape[1]
        ones = torch.ones(len(responses), groups, 1, dtype=torch.float64)
        rows = torch.cat([responses, ones, targets[:, None].expand(-1, groups, -1)], dim=2).movedim(
            1, 0
        )
        self.images += len(responses)
        self.products = self.products + rows.mT @ rows

    def moments(self) -> Pooled:
        """Returns what was taken in."""
        units = self.reader.units
        every = self.products / self.images
        square, mean = every.diagonal(dim1=1, dim2=2), every[:, units]
        centred = every - mean[:, :, None] * mean[:, None, :]
        varies = centred.diagonal(dim1=1, dim2=2) > CONSTANT * square
        centred = centred * varies[:, :, None] * varies[:, None, :]
        return Pooled(
            reader=self.reader,
            images=self.images,
            covariance=centred[:, :units, :units],
            cross=centred[:, :units, units + 1 :],
            spread=float(centred[0].diagonal()[units + 1 :].sum()),
        )


def pooled_moments(
    model: nn.Module,
    graph: ChannelGraph,
    data: Any,  # noqa: ANN401 - see read_batches
    *,
    seed: int = 0,
    pool: Pool = "max",
    targets: bool = False,
) -> dict[str, Pooled]:
    """Returns moments of the responses that every reader gets, pooled over space; one pass in evaluation mode.

    Args:
        model: the network; not changed.
        graph: its channel groups.
        data: as `read_batches` takes it.
        seed: see `run_batches`.
        pool: how the numbers of one image and channel become one.
        targets: whether covariances with the labels are wanted too: classes as one-hot vectors, other numbers as they
            are.

    Returns:
        By the reader's path; readers that forward does not call as modules, or, if targets are wanted, on other than
        one input for each image, have none.

    Raises:
        RankingError: if the data are none, do not fit the network, make it compute what is not finite, or lack labels
            that are wanted.
        TraceError: if the graph was traced on another network.
    """
    twin = twin_of(model)
    sums = {reader.path: _Sums(reader) for reader in readers_of(twin, graph)}
    seen: list[tuple[str, torch.Tensor]] = []

    def look(path: str, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        seen.append(
            (path, _responses(sums[path].reader, layer, args[0] if args else kwargs["input"], pool))
        )

    for path, module in twin.named_modules():
        if path in sums:
            module.register_forward_pre_hook(functools.partial(look, path), with_kwargs=True)

    def step(batch: Batch) -> None:
        seen.clear()
        with torch.inference_mode():
            outputs = batch.run(twin)
            wanted = _targets(outputs, batch) if targets else None
            for path, responses in seen:
                if wanted is None:
                    sums[path].see(responses, responses.new_zeros(len(responses), 0))
                elif len(wanted) == len(responses):
                    sums[path].see(responses, wanted)

    run_batches(twin, data, seed, step)
    return {path: total.moments() for path, total in sums.items() if total.images}


def _responses(reader: Reader, layer: Any, x: torch.Tensor, pool: Pool) -> torch.Tensor:  # noqa: ANN401 - a layer
    """Returns the pooled input of a layer, (images, conv_groups, units) float64."""
    spatial = layer.weight.ndim - 2
    x = x if x.ndim > spatial + 1 else x[None]
    if isinstance(layer, nn.Linear):
        x = x.movedim(-1, 1)
    # A unit may be several channels side by side that come and go together.
    maps = x.reshape(len(x), reader.conv_groups, reader.units, -1)
    if not maps.is_floating_point() or not bool(torch.isfinite(maps).all()):
        msg = f"the input of {reader.path} ({layer}) is not finite; check the trained weights and the data"
        raise RankingError(msg)
    values = maps.amax(dim=3).double() if pool == "max" else maps.mean(dim=3, dtype=torch.float64)
    return values.cpu()


def _targets(outputs: object, batch: Batch) -> torch.Tensor:
    """Returns what a network should have said of a batch, (images, targets) float64."""
    labels, images = batch.labels, len(batch)
    if labels is None or not labels.is_floating_point():
        classes, count = class_labels(outputs, batch)
        return F.one_hot(classes, count).double().cpu()
    if len(labels) != images or not bool(torch.isfinite(labels).all()):
        shape = tuple(labels.shape)
        msg = f"targets are finite numbers, one or more for each of {plural(images, 'image')}, found {shape}"
        raise RankingError(msg)
    return labels.reshape(images, -1).double().cpu()


def warn_of_few(reads: Mapping[str, tuple[int, int]], what: str, then: str) -> None:
    """Warns once if layers read more than there are samples of.

    Args:
        reads: by the path of the layer: how many samples of what it reads there are, and how many numbers it reads.
        what: the samples are.
        then: what follows from their being few.

    Warns:
        FewSamplesWarning: of the layer where they are fewest by number.
    """
    short = {path: counts for path, counts in reads.items() if counts[0] < counts[1]}
    if short:
        path, (samples, inputs) = max(short.items(), key=lambda item: item[1][1] - item[1][0])
        others = f" (likewise {plural(len(short) - 1, 'other layer')})" if len(short) > 1 else ""
        msg = f"{samples:,} {what} are fewer than the {inputs:,} numbers that {path} reads{others}: {then}"
        warnings.warn(msg, FewSamplesWarning, stacklevel=callers())


def units_by_group(graph: ChannelGraph, readers: Iterable[Reader]) -> list[dict[str, torch.Tensor]]:
    """Returns which units of every reader are the channels of each prunable group.

    Returns:
        Per group, by the path of the reader: (channels, units of each) int64; a channel of which a reader gets several
        versions has several units.
    """
    plan = plan_of(graph)
    units: list[dict[str, torch.Tensor]] = [{} for _ in plan.channels]
    for reader in readers:
        pattern = plan.patterns[reader.pattern]
        for group, (start, channels) in enumerate(zip(plan.starts, plan.channels, strict=False)):
            where = np.flatnonzero((pattern >= start) & (pattern < start + channels))
            if len(where):
                by_channel = where[np.argsort(pattern[where], kind="stable")]
                units[group][reader.path] = torch.from_numpy(by_channel.reshape(channels, -1))
    return units


def by_channel(matrix: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """Returns second moments of channels as shares of all, from those of units: every unit of a channel is a sample.

    Args:
        matrix: (conv_groups, units, units).
        units: (channels, units of each).

    Returns:
        (channels, channels), of trace 1; zeros where there is none.
    """
    summed = sum(
        (matrix[:, rows][:, :, rows].sum(dim=0) for rows in units.T),
        torch.zeros((), dtype=matrix.dtype),
    )
    trace = summed.trace()
    return summed / trace if trace > 0 else summed


def response_covariances(
    model: nn.Module,
    graph: ChannelGraph,
    data: Any,  # noqa: ANN401 - see read_batches
    *,
    seed: int = 0,
) -> list[NDArray[np.float64] | None]:
    """Returns how the channels of every prunable group vary together over images.

    Responses are the largest of each feature map, where layers read them; of a group that several layers read, the
    covariances are added, each as a share of its trace.

    Args:
        model: the network; not changed.
        graph: its channel groups.
        data: as `read_batches` takes it; labels are not needed.
        seed: see `run_batches`.

    Returns:
        Per group (channels, channels), or None where no convolution or linear module reads it.

    Raises:
        RankingError: as `pooled_moments`, and TraceError.

    Warns:
        FewSamplesWarning: if there are fewer images than channels.
    """
    seen = pooled_moments(model, graph, data, seed=seed)
    few = {path: (pooled.images, pooled.reader.units) for path, pooled in seen.items()}
    then = "correlations are partly chance, and widths by them at most one less than that; take more images"
    warn_of_few(few, "images", then)
    covariances: list[NDArray[np.float64] | None] = []
    for units in units_by_group(graph, (pooled.reader for pooled in seen.values())):
        each = [by_channel(seen[path].covariance, which) for path, which in units.items()]
        covariances.append(torch.stack(each).sum(dim=0).numpy() if each else None)
    return covariances
