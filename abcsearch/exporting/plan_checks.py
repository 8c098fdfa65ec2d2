"""Whether a plan.json holds what it should: it may have been damaged, or edited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from abcsearch.exporting.structures import outline_problem
from abcsearch.training.checkpoints import tensors_hash
from abcsearch.transforms.factors import METHODS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def plan_problems(plan: Any, tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:  # noqa: ANN401 - any JSON value
    """Yields what a plan holds that it should not; the first one is enough to refuse it.

    Args:
        plan: out of plan.json.
        tensors: out of model.safetensors, by name.
    """
    if not isinstance(plan, dict):
        yield "it is not a table"
        return
    kinds = {"constructor": dict, "dropped": list, "layers": dict, "tensors": dict, "strides": dict}
    for key in ("format", *kinds):
        if key not in plan:
            yield f"{key} is missing"
            return
    if type(plan["format"]) is not int or plan["format"] < 1:
        yield f"format is {plan['format']!r}"
    wrong = [
        f"{key} is {plan[key]!r:.80}"
        for key, kind in kinds.items()
        if not isinstance(plan[key], kind)
    ]
    yield from wrong
    if not wrong:
        yield from _constructor(plan["constructor"])
        yield from _baked(plan.get("baked", []))
        yield from _dropped(plan["dropped"])
        yield from _factorised(plan.get("factorised", {}), plan["dropped"])
        yield from _layers(plan["layers"])
        yield from _tensors(plan, tensors)
        if plan.get("weights", "older") not in ("older", tensors_hash(tensors)):
            yield "weights is the hash of others than model.safetensors holds: one of the two is damaged or changed"
        yield from facts_problems(plan)


def facts_problems(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong in what an export says of itself: input_shape and info, where they are there."""
    if not isinstance(facts.get("info", {}), dict):
        yield f"info is {facts['info']!r:.80}"
    shape = facts.get("input_shape", [])
    if not all(map(_whole, shape.values() if isinstance(shape, dict) else [shape])):
        yield f"input_shape is {shape!r:.80}"
    for key in ("inputs", "outputs"):
        problem = outline_problem(facts.get(key))
        if problem is not None:
            yield f"{key}: {problem}"
    call = facts.get("inputs")
    if call is not None and not (isinstance(call, dict) and _is_call(call)):
        yield f"inputs is {call!r:.80}"


def unfit_sizes(path: str, layer: nn.Module, names: Mapping[str, Any]) -> Iterator[str]:
    """Yields the numbers of a plain layer that its weight contradicts.

    Args:
        path: of the layer, for messages.
        layer: filled, and with the numbers of the plan.
        names: of the numbers that the plan has set.
    """
    # Not the attribute, which may be computed (parametrised)
    weight = layer._parameters.get("weight")
    if weight is None:
        return
    shape = tuple(weight.shape)
    expected = _sizes_of(layer, shape)
    looked_at = {*expected} if "groups" in names else {*names}
    for name in sorted(looked_at & expected.keys()):
        if getattr(layer, name) != expected[name]:
            yield f"{path}.{name} is {getattr(layer, name)}, its weight of shape {shape} says {expected[name]}"


def _sizes_of(layer: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Returns the numbers of a plain layer that its weight, of this shape, says."""
    kind, groups = type(layer), getattr(layer, "groups", 1)
    if kind in _CONVOLUTIONS:
        return {"out_channels": shape[0], "in_channels": shape[1] * groups}
    if kind in _TRANSPOSED:
        return {"in_channels": shape[0], "out_channels": shape[1] * groups}
    if kind is nn.Linear:
        return {"out_features": shape[0], "in_features": shape[1]}
    if kind in (nn.Embedding, nn.EmbeddingBag):
        return {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    return {"num_features": shape[0]} if kind in _NORMS else {}


def _constructor(table: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong in plan["constructor"]."""
    for key, kind in (("name", str), ("options", dict)):
        if not isinstance(table.get(key), kind):
            yield (
                f"constructor.{key} is {table[key]!r:.80}"
                if key in table
                else f"constructor.{key} is missing"
            )


def _baked(paths: Any) -> Iterator[str]:  # noqa: ANN401 - any JSON value
    """Yields what is wrong in plan["baked"]: paths of modules."""
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        yield f"baked is {paths!r:.80}"


def _dropped(paths: list[Any]) -> Iterator[str]:
    """Yields what is wrong in plan["dropped"]: paths of modules, none inside another."""
    wrong = [path for path in paths if not isinstance(path, str) or not path]
    if not wrong:
        wrong = [path for path in paths if any(path.startswith(f"{other}.") for other in paths)]
    if wrong:
        yield f"dropped holds {wrong[0]!r:.80}"


def _factorised(methods: Any, dropped: list[str]) -> Iterator[str]:  # noqa: ANN401 - any JSON value
    """Yields what is wrong in plan["factorised"]: path -> method, none of them inside another or a dropped block."""
    if not isinstance(methods, dict):
        yield f"factorised is {methods!r:.80}"
        return
    for path, method in methods.items():
        inside = any(
            path == other or path.startswith(f"{other}.")
            for other in (*dropped, *methods)
            if other != path
        )
        if not path or path in dropped or inside or method not in list(METHODS):
            yield f"factorised: {path} is {method!r:.80}"


def _layers(layers: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong in plan["layers"]: path -> attribute -> a whole number, or several."""
    for path, sizes in layers.items():
        if not isinstance(sizes, dict):
            yield f"layers: {path} is {sizes!r:.80}"
            continue
        for name, value in sizes.items():
            if type(value) is not int and not _whole(value):
                yield f"layers: {path}.{name} is {value!r:.80}"


def _tensors(plan: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Yields what is wrong in plan["tensors"], shapes by name, and plan["strides"], strides by name."""
    for key in ("tensors", "strides"):
        for name, value in plan[key].items():
            if name not in tensors:
                yield f"{key}: {name} is not in model.safetensors"
            elif (
                not _whole(value) or len(value) != tensors[name].dim() or min(value, default=0) < 0
            ):
                yield f"{key}: {name} is {value!r:.80}, its shape is {tuple(tensors[name].shape)}"
            elif key == "strides" and not _dense(tuple(tensors[name].shape), value):
                yield f"strides: {name} is {value!r:.80}, which do not lay out its shape {tuple(tensors[name].shape)}"


def _whole(value: object) -> bool:
    """Returns whether a JSON value is a list of whole numbers."""
    return isinstance(value, list) and all(type(item) is int for item in value)


def _is_call(call: Mapping[str, Any]) -> bool:
    """Returns whether an outline is one of positional and keyword arguments."""
    kinds = [item.get("kind") if isinstance(item, dict) else None for item in call["items"]]
    return call["kind"] == "tuple" and kinds == ["tuple", "dict"]


def _dense(shape: tuple[int, ...], strides: list[int]) -> bool:
    """Returns whether strides lay out a tensor without gaps and without overlaps."""
    expected = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(strides, shape, strict=True) if size != 1
    ):
        if stride != expected:
            return 0 in shape
        expected *= size
    # Those of sizes of 1 do not matter, if torch can read them
    return max(strides, default=0) < 2**31
