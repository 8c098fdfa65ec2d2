"""What a network takes: one batch, a tensor or several of them, in arguments that are nested as they like."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn


@dataclass(frozen=True, eq=False)
class Example:
    """The arguments of one call of forward, and a batch of these: along their first axis it is used as a tensor is.

    Data sets of several inputs give their batches so. Every tensor that has as many rows as the batch is cut and
    repeated with it; others (a table that all images share) stay whole. A list of (channels, height, width) tensors, as
    detectors take it, is a batch of so many images.

    Attributes:
        args: positional arguments: tensors, numbers, and lists, tuples, dicts and dataclasses of these.
        kwargs: keyword arguments, likewise. Without positional ones, and where forward has no parameters of these
            names, they are one argument, a dict.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, given: Any) -> Example:  # noqa: ANN401 - whatever is given as an example
        """Returns what is meant by a tensor, a tuple of positional arguments, a dict of keyword ones, or an example."""
        if isinstance(given, Example):
            return given
        if type(given) is dict and given and all(isinstance(key, str) for key in given):
            return cls(kwargs=given)
        return cls(given if isinstance(given, tuple) else (given,))

    def __len__(self) -> int:
        """Returns how many images the batch holds: the rows of the first of the tensors that have the most axes."""
        return self._batch[0]

    def __bool__(self) -> bool:
        """Returns True: an example of no image is one."""
        return True

    @property
    def _batch(self) -> tuple[int, bool]:
        """The number of images, and whether these are the entries of lists."""
        listed = next(_lists((self.args, dict(self.kwargs))), None)
        if listed is not None:
            return len(listed), True
        tensors = [x for x in self.tensors if x.ndim]
        return (len(max(tensors, key=lambda x: x.ndim)) if tensors else 1), False

    @property
    def listed(self) -> bool:
        """Whether the images are the entries of lists, instead of the rows of tensors."""
        return self._batch[1]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors, in the order of the arguments."""
        return [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]

    @property
    def leaves(self) -> list[Any]:
        """All that is no list, tuple, dict or dataclass, in the order of the arguments."""
        return [leaf for _, leaf in paths((self.args, dict(self.kwargs)))]

    @property
    def device(self) -> torch.device:
        """Of the first tensor."""
        return next((x.device for x in self.tensors), torch.device("cpu"))

    @property
    def entries(self) -> dict[str, Any]:
        """All leaves by where they are: the number or keyword of the argument, then keys and numbers inside."""
        return {
            path: leaf
            for each in (tuple(self.args), dict(self.kwargs))
            for path, leaf in paths(each)
        }

    def mapped(self, change: Callable[[Any], Any]) -> Example:
        """Returns an example with every leaf (whatever is no list, tuple, dict or dataclass) changed."""
        return Example(changed(self.args, change), changed(dict(self.kwargs), change))

    def _tensorwise(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Example:
        return self.mapped(lambda x: change(x) if isinstance(x, torch.Tensor) else x)

    def rows(self, select: Callable[[Any], Any]) -> Example:
        """Returns an example of other images: `select` maps what has a row per image to what has these rows alone.

        Args:
            select: of a tensor along its first axis; of images in lists, of such a list.
        """
        count, listed = self._batch
        if listed:
            args, kwargs = self.args, dict(self.kwargs)
            return Example(_other_lists(args, count, select), _other_lists(kwargs, count, select))
        return self._tensorwise(lambda x: select(x) if x.ndim and len(x) == count else x)

    def __getitem__(self, index: Any) -> Example:  # noqa: ANN401 - as of a tensor
        """Returns some of the images: a slice, or with a tensor of positions or a mask."""
        return self.rows(lambda x: x[index])

    def split(self, size: int) -> list[Example]:
        """Returns the images in batches of so many; the last one is what is left."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def repeated(self, count: int) -> Example:
        """Returns a batch of so many images, those of this one over and over."""
        turns = -(-count // max(len(self), 1))
        return self.rows(
            lambda x: (x * turns if isinstance(x, list) else torch.cat([x] * turns))[:count]
        )

    def to(self, *args: Any, **kwargs: Any) -> Example:  # noqa: ANN401 - as of a tensor
        """Returns the batch on a device; arguments as of a tensor's."""
        return self._tensorwise(lambda x: x.to(*args, **kwargs))

    def clone(self) -> Example:
        """Returns a copy, for a forward that may change its input in place."""
        return self._tensorwise(lambda x: x.clone())

    def contiguous(self) -> Example:
        """Returns the batch with every tensor laid out row by row."""
        return self._tensorwise(lambda x: x.contiguous())

    def fitting(self, model: nn.Module) -> Example:
        """Returns the arguments as a network takes them: keywords alone are one dict where it has no such names."""
        if self.args or not self.kwargs:
            return self
        try:
            signature = inspect.signature(model.forward)
        except ValueError:  # Python cannot tell
            return self
        kinds = {parameter.kind for parameter in signature.parameters.values()}
        if inspect.Parameter.VAR_KEYWORD in kinds or not signature.parameters.keys().isdisjoint(
            self.kwargs
        ):
            return self
        return Example((dict(self.kwargs),))

    def run(self, model: nn.Module) -> Any:  # noqa: ANN401 - networks return anything
        """Returns what a network makes of the batch."""
        given = self.fitting(model)
        given = in_rows(given) if wants_rows(model) else given
        return model(*given.args, **given.kwargs)

    def named(self, model: nn.Module) -> list[str]:
        """Returns a name for each leaf: that of the parameter of forward, with a number where it holds several.

        Raises:
            TypeError: if forward does not take these arguments.
        """
        bound = inspect.signature(model.forward).bind(*self.args, **self.kwargs)
        names: list[str] = []
        for name, value in bound.arguments.items():
            count = len(list(paths(value)))
            names += [name] if count == 1 else [f"{name}_{index}" for index in range(count)]
        return names


Inputs = torch.Tensor | Example  # a batch of what a network takes
ROWS = "_abcsearch_rows"  # attribute of a network: whether it runs on batches that lie row by row alone


def wants_rows(model: Any) -> bool:  # noqa: ANN401 - a network, or what is called like one
    """Returns whether a network is known to run on batches that lie row by row alone."""
    return bool(getattr(model, "__dict__", {}).get(ROWS))


def run_on(model: Any, inputs: Inputs) -> Any:  # noqa: ANN401 - a network, or what is called like one
    """Returns what a network makes of a batch, whatever that consists of."""
    if isinstance(inputs, Example):
        return inputs.run(model)
    return model(in_rows(inputs) if wants_rows(model) else inputs)


_I = TypeVar("_I", bound=Inputs)


def in_rows(inputs: _I) -> _I:
    """Returns a batch whose tensors lie row by row, by their strides as well.

    Of a single channel either layout is "contiguous", and a convolution looks at the strides.
    """
    if isinstance(inputs, Example):
        return cast("_I", inputs.mapped(lambda x: in_rows(x) if isinstance(x, torch.Tensor) else x))
    if inputs.layout is not torch.strided:
        return inputs
    if inputs.stride() == torch.empty(inputs.shape, device="meta").stride():
        return inputs
    return cast("_I", inputs.clone(memory_format=torch.contiguous_format))


def repeated(inputs: Inputs, count: int) -> Inputs:
    """Returns a batch of so many copies of the first image, in memory of their own."""
    if isinstance(inputs, Example):
        return inputs[:1].repeated(count)
    return inputs[:1].expand(count, *[-1] * (inputs.dim() - 1)).clone()


def laid(inputs: Inputs) -> Inputs:
    """Returns a batch whose images of height and width are channels_last, the layout that convolutions are fastest in.

    Whatever has four axes is taken for such images: it has the same entries in either layout.
    """
    if isinstance(inputs, Example):
        return inputs.mapped(lambda x: laid(x) if isinstance(x, torch.Tensor) else x)
    layout = torch.channels_last if inputs.ndim == 4 else torch.contiguous_format
    return inputs.contiguous(memory_format=layout)


def sizes_of(inputs: Inputs) -> list[int] | dict[str, list[int]]:
    """Returns the shape of one image as plain values; of several inputs each by its name (see `Example.entries`)."""
    if isinstance(inputs, Example):
        return {
            name: list(x.shape[1:])
            for name, x in inputs.entries.items()
            if isinstance(x, torch.Tensor)
        }
    return list(inputs.shape[1:])


def described(inputs: Any, *, where: bool = True) -> str:  # noqa: ANN401 - arguments are anything
    """Returns shape, type and (where) device of a batch in words; of several inputs, of each by its name."""
    if isinstance(inputs, Example):
        entries = inputs.entries
        if list(entries) == ["0"]:
            return described(entries["0"], where=where)
        return (
            ", ".join(f"{name} {described(leaf, where=where)}" for name, leaf in entries.items())
            or "nothing"
        )
    if isinstance(inputs, torch.Tensor):
        return f"{tuple(inputs.shape)} {inputs.dtype}{f' on {inputs.device}' if where else ''}"
    return type(inputs).__name__


def line_of(error: BaseException) -> str:
    """Returns `file:line` of the innermost frame outside of torch and of this package: the user's line that fails."""
    torchs, ours = str(Path(torch.__file__).parent), str(Path(__file__).parent)
    networks = str(Path(__file__).parent / "models")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(networks) or not frame.filename.startswith((torchs, ours))
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "inside torch"


def _fields(item: Any) -> dict[str, Any] | None:  # noqa: ANN401 - arguments are anything
    """Returns the fields of an instance of a dataclass; None for anything else."""
    if not dataclasses.is_dataclass(item) or isinstance(item, type):
        return None
    return {each.name: getattr(item, each.name) for each in dataclasses.fields(item)}


def children(item: Any) -> dict[Any, Any] | None:  # noqa: ANN401 - arguments and results are anything
    """Returns what a list, tuple, dict or dataclass holds, by key, number or field; None for anything else."""
    if isinstance(item, dict):
        return item
    if isinstance(item, tuple | list) and not isinstance(item, torch.Size):
        return dict(enumerate(item))
    return _fields(item)


def paths(item: Any, before: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - arguments and results are anything
    """Yields what nested lists, tuples, dicts and dataclasses hold, each with its path: keys joined by dots."""
    inside = children(item)
    if inside is None:
        yield before, item
        return
    for key, value in inside.items():
        yield from paths(value, f"{before}.{key}" if before else str(key))


def changed(item: Any, change: Callable[[Any], Any]) -> Any:  # noqa: ANN401 - arguments are anything
    """Returns nested lists, tuples, dicts and dataclasses with every leaf changed."""
    if isinstance(item, dict):
        copied: dict[Any, Any] = copy.copy(item)
        for key, value in item.items():
            copied[key] = changed(value, change)
        return copied
    if isinstance(item, tuple | list) and not isinstance(item, torch.Size):
        items = [changed(value, change) for value in item]
        return type(item)(*items) if hasattr(item, "_fields") else type(item)(items)
    fields = _fields(item)
    if fields is not None:
        record = copy.copy(item)
        for name, value in fields.items():
            object.__setattr__(record, name, changed(value, change))  # it may be frozen
        return record
    return change(item)


def _is_listed(item: Any) -> bool:  # noqa: ANN401 - arguments are anything
    """Returns whether something is a list of images, one tensor (channels, height, width) each."""
    return (
        isinstance(item, list)
        and bool(item)
        and all(isinstance(x, torch.Tensor) and x.ndim == 3 for x in item)
    )


def _lists(item: Any) -> Iterator[list[torch.Tensor]]:  # noqa: ANN401 - arguments are anything
    """Yields the lists of images among arguments."""
    if _is_listed(item):
        yield item
        return
    for value in (children(item) or {}).values():
        yield from _lists(value)


def _other_lists(item: Any, count: int, select: Callable[[Any], Any]) -> Any:  # noqa: ANN401 - arguments are anything
    """Returns arguments with something else in place of every list of so many entries, in tuples and dicts."""
    if isinstance(item, list):
        return select(item) if len(item) == count else item
    if isinstance(item, dict):
        return {key: _other_lists(value, count, select) for key, value in item.items()}
    return (
        tuple(_other_lists(value, count, select) for value in item) if type(item) is tuple else item
    )
