"""What networks take and return besides one tensor, in files: nested tuples, lists and dicts of tensors by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.errors import ExportError
from abcsearch.example import Example, children, paths

if TYPE_CHECKING:
    from torch import nn

_DEEPEST = 20  # levels of an outline that is read out of a file


def plain(returned: Any) -> Any:  # noqa: ANN401 - networks return anything
    """Returns what a network returned as tuples, lists and dicts, which files can hold: of a class its fields.

    What is no tensor is left out of dicts, and None elsewhere.
    """
    if isinstance(returned, torch.Tensor):
        return returned
    fields = returned._asdict() if hasattr(returned, "_asdict") else returned  # a named tuple
    inside = children(fields)
    if inside is None:
        return None
    items = {key: plain(value) for key, value in inside.items()}
    if isinstance(fields, tuple | list):
        return (tuple if isinstance(fields, tuple) else list)(items.values())
    return {key: value for key, value in items.items() if value is not None}


def tensors_by_name(returned: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401 - what `plain` returns
    """Returns all tensors by where they are: keys and numbers joined by dots; one tensor alone as "output"."""
    if isinstance(returned, torch.Tensor):
        return {"output": returned}
    return {path: leaf for path, leaf in paths(returned) if isinstance(leaf, torch.Tensor)}


def outline(value: Any, names: Iterator[str]) -> Any:  # noqa: ANN401 - what `plain` returns
    """Returns the structure of tuples, lists and dicts as plain JSON values, with a name at every tensor."""
    if isinstance(value, torch.Tensor):
        return next(names)
    inside = children(value)
    if inside is None:
        return None
    kind = "dict" if isinstance(value, dict) else type(value).__name__
    return {
        "kind": kind,
        "keys": list(inside),
        "items": [outline(item, names) for item in inside.values()],
    }


def outline_problem(value: Any, depth: int = 0) -> str | None:  # noqa: ANN401 - any JSON value
    """Returns what is wrong with an outline out of a file, or None."""
    if value is None or isinstance(value, str):
        return None
    good = (
        isinstance(value, dict)
        and value.get("kind") in ("tuple", "list", "dict")
        and depth < _DEEPEST
    )
    keys, items = (value.get("keys"), value.get("items")) if good else (None, None)
    if not isinstance(keys, list) or not isinstance(items, list) or len(keys) != len(items):
        return f"a structure is {value!r:.80}"
    if any(type(key) not in (str, int) for key in keys):
        return f"a structure has the keys {keys!r:.80}"
    return next((problem for item in items if (problem := outline_problem(item, depth + 1))), None)


def names_in(structure: Any) -> list[str]:  # noqa: ANN401 - as `outline` returns it
    """Returns the names of an outline's tensors, in their order."""
    if isinstance(structure, dict):
        return [name for item in structure["items"] for name in names_in(item)]
    return [] if structure is None else [structure]


def filled(structure: Any, tensors: Mapping[str, torch.Tensor]) -> Any:  # noqa: ANN401 - as `outline` returns it
    """Returns tensors in the structure of an outline."""
    if not isinstance(structure, dict):
        return None if structure is None else tensors[structure]
    items = [filled(item, tensors) for item in structure["items"]]
    if structure["kind"] == "dict":
        return dict(zip(structure["keys"], items, strict=True))
    return tuple(items) if structure["kind"] == "tuple" else items


def named_by(structure: Any, value: Any, where: str = "") -> Iterator[tuple[str, torch.Tensor]]:  # noqa: ANN401
    """Yields name and tensor of arguments that have the structure of an outline.

    Raises:
        ExportError: if they have another one.
    """
    if structure is None:
        return
    if isinstance(structure, str):
        if not isinstance(value, torch.Tensor):
            msg = f"{structure} is a tensor, found {type(value).__name__}"
            raise ExportError(msg)
        yield structure, value
        return
    inside = children(value) or {}
    wanted = dict(zip(structure["keys"], structure["items"], strict=True))
    if inside.keys() != wanted.keys():
        both = [", ".join(map(str, each)) or "none" for each in (wanted, inside)]
        msg = f"the network takes the inputs {both[0]}{where}, found {both[1]}"
        raise ExportError(msg)
    for key, item in wanted.items():
        yield from named_by(item, inside[key], f" in {key}")


def input_names(network: nn.Module, example: Example) -> list[str]:
    """Returns a name for each leaf of a network's arguments: that of forward's parameter, and the path inside of it."""
    signature = inspect.signature(network.forward)
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    names: list[str] = []
    for name, value in signature.bind(*example.args, **example.kwargs).arguments.items():
        before = "" if kinds[name] is inspect.Parameter.VAR_KEYWORD else name
        names += [path for path, _ in paths(value, before)]
    return names


def call_outline(example: Example, names: list[str]) -> Any:  # noqa: ANN401 - plain JSON values
    """Returns the structure of a call's arguments, a tuple of the positional and a dict of the keyword ones."""
    return outline((tuple(example.args), dict(example.kwargs)), iter(names))


def arranged(
    structure: Any,  # noqa: ANN401 - plain JSON values
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns arguments as a network with such a call takes them: keywords are one dict where it takes just that."""
    if structure is None or args or not kwargs or structure["items"][1]["keys"]:
        return args, dict(kwargs)
    return (dict(kwargs),), {}
