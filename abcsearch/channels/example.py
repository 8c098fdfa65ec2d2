"""An example of what a network takes: one batch, as positional and keyword arguments of forward, nested as it likes."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Example:
    """The arguments of one call of forward.

    Attributes:
        args: positional arguments: tensors, numbers, and lists, tuples, dicts and dataclasses of these.
        kwargs: keyword arguments, likewise.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, given: Any) -> Example:  # noqa: ANN401 - whatever is given as an example
        """Returns what is meant by a tensor, a tuple of positional arguments, or an example."""
        if isinstance(given, Example):
            return given
        return cls(given if isinstance(given, tuple) else (given,))

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors, in the order of the arguments."""
        return [leaf for leaf in _leaves((self.args, dict(self.kwargs))) if isinstance(leaf, torch.Tensor)]

    def mapped(self, change: Callable[[Any], Any]) -> Example:
        """Returns an example with every leaf (whatever is no list, tuple, dict or dataclass) changed."""
        return Example(_changed(self.args, change), _changed(dict(self.kwargs), change))

    def named(self, model: nn.Module) -> list[str]:
        """Returns a name for each leaf: that of the parameter of forward, with a number where it holds several.

        Raises:
            TypeError: if forward does not take these arguments.
        """
        bound = inspect.signature(model.forward).bind(*self.args, **self.kwargs)
        names: list[str] = []
        for name, value in bound.arguments.items():
            count = len(list(_leaves(value)))
            names += [name] if count == 1 else [f"{name}_{index}" for index in range(count)]
        return names


def _fields(item: Any) -> dict[str, Any] | None:  # noqa: ANN401 - arguments are anything
    """Returns the fields of an instance of a dataclass; None for anything else."""
    if not dataclasses.is_dataclass(item) or isinstance(item, type):
        return None
    return {each.name: getattr(item, each.name) for each in dataclasses.fields(item)}


def _leaves(item: Any) -> Iterator[Any]:  # noqa: ANN401 - arguments are anything
    """Yields what nested lists, tuples, dicts and dataclasses hold."""
    named = item if isinstance(item, dict) else _fields(item)
    if isinstance(item, torch.Size) or not (isinstance(item, tuple | list) or named is not None):
        yield item
        return
    for each in item if named is None else named.values():
        yield from _leaves(each)


def _changed(item: Any, change: Callable[[Any], Any]) -> Any:  # noqa: ANN401 - arguments are anything
    """Returns nested lists, tuples, dicts and dataclasses with every leaf changed."""
    if isinstance(item, dict):
        changed: dict[Any, Any] = copy.copy(item)
        for key, value in item.items():
            changed[key] = _changed(value, change)
        return changed
    if isinstance(item, tuple | list) and not isinstance(item, torch.Size):
        items = [_changed(value, change) for value in item]
        return type(item)(*items) if hasattr(item, "_fields") else type(item)(items)
    fields = _fields(item)
    if fields is not None:
        record = copy.copy(item)
        for name, value in fields.items():
            object.__setattr__(record, name, _changed(value, change))  # it may be frozen
        return record
    return change(item)
