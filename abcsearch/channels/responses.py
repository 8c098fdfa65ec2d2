"""What a trained network does on data: responses at the inputs of layers, gradients of the loss; one pass each.

All of it on a copy in evaluation mode: the caller's model, its statistics and gradients and torch's global random state
stay as they are, also when the data or the network raises.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from abcsearch.channels.onednn import pointwise_safely
from abcsearch.errors import AbcSearchError, RankingError, plural
from abcsearch.example import Example, described, line_of
from abcsearch.formats import first_line
from abcsearch.rng import torch_seeded
from abcsearch.shortages import shortage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.group import Member

BATCH_SIZE = 64  # images per pass where the caller gives two tensors instead of batches
_Layer = (
    nn.Conv1d
    | nn.Conv2d
    | nn.Conv3d
    | nn.ConvTranspose1d
    | nn.ConvTranspose2d
    | nn.ConvTranspose3d
    | nn.Linear
)

# Feature maps (images, channels, height, width) of one batch -> one number per image and channel.
PerImage = Callable[[torch.Tensor], torch.Tensor]
# Those numbers of all images, (images, channels) float64 -> (channels,) scores.
OverImages = Callable[[torch.Tensor], torch.Tensor]
# A weight and its gradient -> one number per element.
PerWeight = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of data.

    Attributes:
        given: what forward takes.
        labels: (n,) classes, where the data have them.
    """

    given: Example
    labels: torch.Tensor | None

    @classmethod
    def of(cls, value: object) -> Batch:
        """Returns the batch for images, (images,) or (images, labels); images may be several inputs, as of a data set.

        These are a tuple or a list (positional arguments), a dict (keyword arguments) or an `Example`.

        Raises:
            RankingError: if it is something else.
        """
        parts = tuple(value) if isinstance(value, tuple | list) else (value,)
        images, labels = (*parts, None, None)[:2]
        given = Example.of(tuple(images) if isinstance(images, list) else images)
        wrong = not given.leaves or any(
            not isinstance(x, torch.Tensor) or not x.ndim for x in given.leaves
        )
        if wrong or len(parts) > 2 or not isinstance(labels, torch.Tensor | None):
            kinds = ", ".join(type(piece).__name__ for piece in parts)
            msg = (
                f"a batch of data is images or (images, labels), all torch tensors, found ({kinds})"
            )
            raise RankingError(msg)
        return cls(given=given, labels=labels)

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """All tensors that forward takes, in the order of its arguments, images first."""
        return tuple(self.given.tensors)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.given)

    def run(self, network: nn.Module) -> Any:  # noqa: ANN401 - networks return anything
        """Returns what a network makes of the batch, which it may change in place."""
        return self.given.run(network)

    @property
    def text(self) -> str:
        """Names, shapes and types of the inputs, for messages."""
        return described(self.given, where=False)


def read_batches(data: Any) -> Iterator[Batch]:  # noqa: ANN401 - whatever the user brings
    """Yields the batches of some data, each once, in their order; batches without an image are skipped.

    Args:
        data: an iterable of batches (a DataLoader), or all of it in two tensors, (images, labels), which are cut into
            batches of `BATCH_SIZE`; images may be a dict of tensors or an `Example`. A batch is what `Batch.of` takes.

    Raises:
        RankingError: if it is something else, or there is no image in it.
    """
    if isinstance(data, torch.Tensor | Example):
        data = data.split(BATCH_SIZE)
    elif isinstance(data, tuple | list) and len(data) == 2 and _labelled(*data):
        images = Example.of(data[0]) if isinstance(data[0], dict) else data[0]
        data = zip(images.split(BATCH_SIZE), data[1].split(BATCH_SIZE), strict=True)
    if not isinstance(data, Iterable):
        msg = f"data is an iterable of (images, labels) batches, or two tensors, found {type(data).__name__}"
        raise RankingError(msg)
    count = 0
    for value in data:
        batch = Batch.of(value)
        if len(batch):
            count += 1
            yield batch
    if not count:
        msg = "data is empty: there is no image in it; an iterator can be used only once"
        raise RankingError(msg)


def _labelled(images: object, labels: object) -> bool:
    """Returns whether two things are all images and all labels, rather than two batches of images.

    Raises:
        RankingError: if they are, but not equally many.
    """
    if (
        not isinstance(images, torch.Tensor | dict | Example)
        or not isinstance(labels, torch.Tensor)
        or labels.ndim != 1
    ):
        return False
    count = len(Example.of(images))
    if count != len(labels):
        msg = f"data has {plural(count, 'image')} and {plural(len(labels), 'label')}"
        raise RankingError(msg)
    return True


def run_batches(twin: nn.Module, data: Any, seed: int, step: Callable[[Batch], None]) -> None:  # noqa: ANN401
    """Calls `step` on a copy of every batch, on the device of a network, and says which batch did not do.

    Args:
        twin: a copy of the user's network.
        data: as `read_batches` takes it.
        seed: of what the data and forward draw from torch's global generators (shuffling, dropout that is always on).
        step: runs the network.

    Raises:
        RankingError: if the data are none, or the network does not run on them.
        Exception: whatever tells that the machine is short of something.
    """
    device = next(
        (tensor.device for tensor in (*twin.parameters(), *twin.buffers())), torch.device("cpu")
    )
    with torch_seeded(seed, "ranking data"):
        for batch in read_batches(data):
            # The layout decides the order of summation: one for all, whatever the data come in. A copy, since forward
            # may change its input in place.
            given = batch.given.to(device).contiguous().clone()
            try:
                step(Batch(given=given, labels=batch.labels))
            except AbcSearchError:
                raise
            except Exception as error:  # forward is the user's: anything can go wrong in it
                if shortage(error) is not None:
                    raise
                why = f"{first_line(error)} ({line_of(error)})"
                msg = f"data do not fit the network: it fails on images {batch.text}: {why}"
                raise RankingError(msg) from error


def _applied(
    name: str, function: Callable[..., torch.Tensor], *values: torch.Tensor
) -> torch.Tensor:
    """Calls a criterion's function; raises RankingError with its name where it fails."""
    try:
        return function(*values)
    except Exception as error:  # it may be the user's
        msg = f"{name} of the criterion fails on {', '.join(str(tuple(v.shape)) for v in values)}: {first_line(error)}"
        raise RankingError(msg) from error


def twin_of(model: nn.Module) -> nn.Module:
    """Returns a copy of a network in evaluation mode, its weights in one layout."""
    twin = copy.deepcopy(model).eval()
    return twin.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue] - overload without it


def mean_over_images(values: torch.Tensor) -> torch.Tensor:
    """Returns the mean over images: (images, channels) -> (channels,)."""
    return values.mean(dim=0)


class _Consumer:
    """The input of one layer: which entries of it are a group's channels, and what has been seen of them."""

    def __init__(
        self, member: Member, channels: int, per_image: PerImage, over_images: OverImages
    ) -> None:
        order = np.argsort(member.channels, kind="stable")
        self._entries = torch.from_numpy(member.entries[order])
        self._channels = channels
        self._per_image, self._over_images = per_image, over_images
        self._total = torch.zeros(channels, dtype=torch.float64)
        self._count = 0
        self._kept: list[torch.Tensor] = []

    def see(self, layer: _Layer, x: torch.Tensor) -> None:
        """Takes in the input of the layer on one batch."""
        maps = self._maps(x, spatial=layer.weight.ndim - 2)
        if not bool(torch.isfinite(maps).all()):
            msg = f"the input of {layer} is not finite; check the trained weights and the data"
            raise RankingError(msg)
        values = _applied("per_image", self._per_image, maps)
        if values.shape != maps.shape[:2]:
            msg = (
                f"per_image returns one number per image and channel, {tuple(maps.shape[:2])}, for feature maps "
                f"{tuple(maps.shape)}, found {tuple(values.shape)}"
            )
            raise RankingError(msg)
        values = values.double().cpu()
        self._count += len(values)
        if self._over_images is mean_over_images:
            # Nothing to keep: any number of images in the same memory
            self._total += values.sum(dim=0)
        else:
            self._kept.append(values)

    def _maps(self, x: torch.Tensor, spatial: int) -> torch.Tensor:
        """Returns the group's channels in an input as (images, channels, height, width).

        Several entries of a channel and all but the last axis are stacked along the height. Where a linear layer reads
        flattened maps, their height and width are not known: the most square ones are taken.
        """
        x = x if x.ndim > spatial + 1 else x[None]
        x = x.movedim(-1 - spatial, 1).index_select(1, self._entries.to(x.device))
        each = len(self._entries) // self._channels
        *rest, width = x.shape[2:] if x.ndim > 2 else (each // _side(each),)
        height = math.prod(rest) * each if x.ndim > 2 else _side(each)
        return x.reshape(len(x), self._channels, height, width)

    def scores(self) -> torch.Tensor | None:
        """Returns (channels,) scores over all that was seen; None if the layer was not used."""
        if not self._count:
            return None
        if self._over_images is mean_over_images:
            return self._total / self._count
        return _applied("over_images", self._over_images, torch.cat(self._kept))


def _side(count: int) -> int:
    """Returns the largest divisor of a number that is not above its square root."""
    return next(side for side in range(math.isqrt(count), 0, -1) if count % side == 0)


def response_scores(
    model: nn.Module,
    graph: ChannelGraph,
    data: Any,  # noqa: ANN401 - see read_batches
    seed: int,
    per_image: PerImage,
    over_images: OverImages,
) -> list[NDArray[np.float64] | None]:
    """Returns scores of every prunable group from what the layers that read its channels get.

    Looked at are the inputs of convolution (plain and transposed, one conv_group) and `Linear` modules; where several
    read a group's channels, the score is the mean over them, which keeps its unit and does not favour a channel for
    the number of its readers.

    Args:
        model: the network; not changed.
        graph: its channel groups.
        data: as `read_batches` takes it.
        seed: see `run_batches`.
        per_image: see `PerImage`.
        over_images: see `OverImages`.

    Returns:
        Per prunable group (channels,) float64, or None where no such module reads it.

    Raises:
        RankingError: if the data are none, do not fit the network, or make it return what is not finite.
    """
    twin = twin_of(model)
    tensors = graph.tensors(twin)
    consumers: list[list[_Consumer]] = []
    readers: dict[int, list[_Consumer]] = {}
    for group in graph.prunable:
        members = [m for m in group.members if m.reads]
        consumers.append([_Consumer(m, group.channels, per_image, over_images) for m in members])
        for member, consumer in zip(members, consumers[-1], strict=True):
            readers.setdefault(id(tensors[member.parameter]), []).append(consumer)

    def look(layer: _Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for consumer in readers[id(layer.weight)]:
            consumer.see(layer, args[0] if args else kwargs["input"])

    for module in twin.modules():
        if (
            isinstance(module, _Layer)
            and getattr(module, "groups", 1) == 1
            and id(module.weight) in readers
        ):
            module.register_forward_pre_hook(look, with_kwargs=True)

    def step(batch: Batch) -> None:
        with torch.inference_mode():
            batch.run(twin)

    run_batches(twin, data, seed, step)
    scores = [
        [s for consumer in on_group if (s := consumer.scores()) is not None]
        for on_group in consumers
    ]
    return [torch.stack(each).mean(dim=0).numpy() if each else None for each in scores]


def gradient_scores(
    model: nn.Module,
    graph: ChannelGraph,
    data: Any,  # noqa: ANN401 - see read_batches
    seed: int,
    per_weight: PerWeight,
) -> dict[tuple[str, int], torch.Tensor]:
    """Returns sums over filters of a function of weights and gradients of the loss, averaged over batches.

    The loss is the mean cross-entropy of a batch; batches count by their number of images.

    Args:
        model: the network; maps images to logits (n, classes). Not changed.
        graph: its channel groups.
        data: as `read_batches` takes it, with labels.
        seed: see `run_batches`.
        per_weight: see `PerWeight`.

    Returns:
        By name and axis of every parameter that makes or scales channels of a prunable group: (entries of that axis,)
        float64.

    Raises:
        RankingError: if the data are none, have no labels, or do not fit the network.
    """
    twin = twin_of(model)
    tensors = graph.tensors(twin)
    made = [
        m
        for group in graph.prunable
        for m in group.members
        if not m.reads and m.parameter in graph.trainable
    ]
    weights = {m.parameter: tensors[m.parameter].requires_grad_() for m in made}
    totals = {
        (m.parameter, m.axis): torch.zeros(weights[m.parameter].shape[m.axis], dtype=torch.float64)
        for m in made
    }
    count = 0

    def step(batch: Batch) -> None:
        nonlocal count
        with torch.enable_grad():  # the caller may be in a block without gradients
            loss = mean_loss(batch.run(twin), batch)
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        images = len(batch)
        count += images
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is not None:
                values = _applied(
                    "per_weight", per_weight, weight.detach().double(), gradient.double()
                )
                if values.shape != weight.shape:
                    msg = f"per_weight returns one number per element, {tuple(weight.shape)}, found {tuple(values.shape)}"
                    raise RankingError(msg)
                for (parameter, axis), total in totals.items():
                    if parameter == name:
                        total += (
                            images
                            * values.movedim(axis, 0).reshape(len(total), -1).sum(dim=1).cpu()
                        )

    with pointwise_safely(twin):
        run_batches(twin, data, seed, step)
    return {key: total / count for key, total in totals.items()}


def mean_loss(logits: object, batch: Batch) -> torch.Tensor:
    """Returns the mean cross-entropy of a batch; raises as `class_labels`."""
    labels, _ = class_labels(logits, batch)
    return F.cross_entropy(checked_logits(logits, len(labels)), labels)


def class_labels(logits: object, batch: Batch) -> tuple[torch.Tensor, int]:
    """Returns the classes of a batch, (n,) int64 where the logits are, and how many classes there are.

    Raises:
        RankingError: if there are no labels, the network does not return logits, or a label has no output.
    """
    labels, images = batch.labels, len(batch)
    if labels is None:
        msg = "labels are missing: each batch of data must be (images, labels)"
        raise RankingError(msg)
    if labels.shape != (images,) or labels.is_floating_point() or labels.is_complex():
        msg = f"labels are ({images},) classes for {plural(images, 'image')}, found {tuple(labels.shape)} {labels.dtype}"
        raise RankingError(msg)
    logits = checked_logits(logits, images)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        wrong = low if low < 0 else high
        msg = f"label {wrong} has no output: the model has {plural(logits.shape[1], 'class')}, counted from 0"
        raise RankingError(msg)
    return labels.to(logits.device).long(), logits.shape[1]


def checked_logits(logits: object, images: int) -> torch.Tensor:
    """Returns what a network has returned; raises RankingError unless it is logits (images, classes)."""
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != images:
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        msg = f"the model must return logits (batch, classes) for {plural(images, 'image')}, found {shape}"
        raise RankingError(msg)
    return logits
