"""A pruned network as a folder, and back: plan.json, and model.safetensors or model.compressed.

The plan says how to build the original network (its constructor) and which of its layers and tensors are smaller; the
weights fill them. Loading needs the constructor and nothing else: no tracing, no search, no pickle.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import nn

from abcsearch.channels.baking import bake, computed
from abcsearch.errors import ExportError, ModelError
from abcsearch.exporting.compressed import pack
from abcsearch.exporting.plan_checks import unfit_sizes
from abcsearch.exporting.plan_files import FORMAT, PLAN, WEIGHTS, read_plan
from abcsearch.files import CHECKSUM, sealed
from abcsearch.importing import leave_working_folder
from abcsearch.models.registry import Constructor
from abcsearch.signing import signed, written_here
from abcsearch.training.checkpoints import tensors_hash
from abcsearch.transforms.factors import Factorised, full_ranks, skeleton

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from abcsearch.transforms.factors import Method


def write_export_folder(
    model: nn.Module,
    folder: Path,
    record: Constructor,
    facts: Mapping[str, Any],
    kind: str = "safetensors",
) -> None:
    """Writes a network to a folder that is there.

    Args:
        model: the network.
        folder: the files of the format in it are replaced.
        record: what builds the original network.
        facts: plain JSON values that the plan holds beside: input_shape and info.
        kind: "safetensors" or "compressed".

    Raises:
        ExportError: if the constructor builds another network, or its options are no plain JSON values.
        ModelError: if the constructor cannot be found or called.
    """
    try:
        original = record.build()
    except ModelError as error:
        msg = f"{error} (pass constructor= and options=, the way you build the network before pruning)"
        raise ModelError(msg) from error
    tensors = _tensors(model)
    plan = {
        "format": FORMAT,
        "constructor": {"name": record.name, "options": dict(record.options)},
        **_baked(original, model),
        "dropped": _drop(original, model),
        **_split(original, model),
        "layers": _changed_sizes(original, model),
        "tensors": _changed_shapes(original, tensors),
        "strides": _strides(tensors),
        **({} if kind == "safetensors" else {"file": WEIGHTS[kind]}),
        **facts,
    }
    plain_json(plan)
    # Tied tensors share memory, which the format refuses: every name gets its own copy.
    contiguous = {
        n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()
    }
    weights = tensors_hash(contiguous)
    try:
        content = (save if kind == "safetensors" else pack)(contiguous, {CHECKSUM: weights})
    except ValueError as error:
        msg = f"the network cannot be written as {kind}: {error}"
        raise ExportError(msg) from error
    (folder / WEIGHTS[kind]).write_bytes(content)
    plan = signed("export", {**plan, "weights": weights})
    (folder / PLAN).write_text(sealed(plan), encoding="utf-8")


def plain_json(values: Mapping[str, Any]) -> str:
    """Returns plain values as JSON.

    Raises:
        ExportError: if they are none.
    """
    try:
        return json.dumps(values)
    except (TypeError, ValueError) as error:
        msg = f"options and info of an export are plain JSON values (numbers, texts, lists, tables): {error}"
        raise ExportError(msg) from error


def load_plan(
    folder: Path, constructor: Callable[..., nn.Module] | None = None, *, trust: bool = False
) -> tuple[nn.Module, dict[str, Any], bool]:
    """Returns the network of a folder (see `load`), its facts, and whether it is one's own.

    Raises:
        ExportError: if files are missing or damaged, or the constructor builds another network.
        ModelError: if the constructor cannot be found or called.
    """
    plan, tensors, trusted = read_plan(folder)
    record = Constructor(name=plan["constructor"]["name"], options=plan["constructor"]["options"])
    if not (trust or written_here(plan)):
        leave_working_folder()
    make = constructor or (None if trusted or trust else record.find_untrusted())
    try:
        model = record.build(make=make)
    except ModelError as error:
        msg = f"{folder}: {error} (pass constructor=, what builds the network before pruning)"
        raise ModelError(msg) from error
    _reshape(model, plan, tensors, f"{folder}: {record.name}")
    return model.eval(), {key: plan[key] for key in ("input_shape", "info") if key in plan}, trusted


def read_sizes(folder: Path, *, trust: bool = False) -> tuple[Constructor, dict[str, Any]]:
    """Returns what builds the original network of a folder, and the sizes in which the exported one differs.

    Args:
        folder: of the export.
        trust: whether its constructor is taken at its word although it comes from elsewhere.

    Returns:
        Its constructor; and plain JSON values for `with_sizes`.

    Raises:
        ExportError: if files are missing or damaged.
        ModelError: if it is from elsewhere and its constructor is not one that such a file may name.
    """
    plan, tensors, trusted = read_plan(folder)
    sizes = {
        key: plan[key]
        for key in ("baked", "dropped", "factorised", "layers", "strides")
        if key in plan
    }
    shapes = {
        name: [plan["tensors"][name], list(tensors[name].shape)]
        for name in plan["tensors"]
        if name in tensors
    }
    record = Constructor(**plan["constructor"])
    if not (trust or written_here(plan)):
        leave_working_folder()
    if not (trusted or trust):
        record.find_untrusted()
    return record, {**sizes, "shapes": shapes}


def with_sizes(model: nn.Module, sizes: Mapping[str, Any], where: str) -> nn.Module:
    """Gives a new network the sizes of an exported one; its weights are then anything, to be loaded afterwards.

    Args:
        model: what the constructor builds; changed in place.
        sizes: what `read_sizes` returned.
        where: for messages.

    Returns:
        The same network.

    Raises:
        ExportError: if the constructor builds another network than it did for the export.
    """
    missing = {"dropped", "layers", "shapes", "strides"} - sizes.keys()
    if missing:
        msg = f"{where}: the sizes of the export that it starts from are damaged: {', '.join(sorted(missing))} missing"
        raise ExportError(msg)
    before = {name: shape for name, (shape, _) in sizes["shapes"].items()}
    after = {name: shape for name, (_, shape) in sizes["shapes"].items()}
    inside = tuple(f"{path}." for path in sizes["dropped"])
    # Its tensors are those of the baked layers and of the factors
    _bake(model, sizes.get("baked", []))
    _factorise(model, sizes.get("factorised", {}))
    tensors = {
        name: torch.zeros(after.get(name, t.shape), dtype=t.dtype)
        for name, t in _tensors(model).items()
        if not name.startswith(inside)
    }
    _reshape(model, {**sizes, "tensors": before}, tensors, where)
    return model


def _reshape(
    model: nn.Module, plan: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], where: str
) -> None:
    """Drops blocks, changes sizes and fills tensors of a new network as a plan says.

    Raises:
        ExportError: if it is another network than the plan was written for, or its numbers contradict its tensors.
    """
    problems = _bake(model, plan.get("baked", []))
    problems += _factorise(model, plan.get("factorised", {}))
    modules = dict(model.named_modules())
    problems += [
        f"{path} is missing" for path in (*plan["dropped"], *plan["layers"]) if path not in modules
    ]
    problems += [
        f"{path} has no number {name}"
        for path, sizes in plan["layers"].items()
        for name, value in sizes.items()
        if path in modules and not _is_size(vars(modules[path]).get(name), value)
    ]
    for path in plan["dropped"] if not problems else ():
        model.set_submodule(path, nn.Identity())
    problems += _fill(model, tensors, plan)
    if problems:
        shown = "; ".join(problems[:5]) + (
            f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        )
        msg = f"{where} does not build the network that was exported, has it changed? {shown}"
        raise ExportError(msg)
    for path, sizes in plan["layers"].items():
        for attribute, value in sizes.items():
            setattr(modules[path], attribute, tuple(value) if isinstance(value, list) else value)
    unfit = [
        problem
        for path, sizes in plan["layers"].items()
        for problem in unfit_sizes(path, modules[path], sizes)
    ]
    if unfit:
        msg = f"{where}: the plan of the export is damaged: {'; '.join(unfit[:3])}"
        raise ExportError(f"{msg}; write it again with: abcsearch export RUN_DIR")


def _is_size(attribute: object, value: int | list[int]) -> bool:
    """Returns whether an attribute is a number, or as many numbers, as the value that it is to have."""
    if isinstance(value, list):
        return (
            _are_sizes(attribute) and isinstance(attribute, tuple) and len(attribute) == len(value)
        )
    return type(attribute) is int


def _listed(value: int | tuple[int, ...]) -> int | list[int]:
    """Returns a size as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def _are_sizes(attribute: object) -> bool:
    """Returns whether an attribute is a number or a tuple of numbers."""
    return type(attribute) is int or (
        isinstance(attribute, tuple) and all(type(item) is int for item in attribute)
    )


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns all parameters and buffers by name, tied ones under each of their names.

    Raises:
        ExportError: if the model keeps other things in its state.
    """
    named = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    tensors = dict(named)
    other = [name for name in model.state_dict() if name not in tensors]
    if other:
        msg = f"the state of the model holds more than parameters and buffers: {', '.join(other)}"
        raise ExportError(msg)
    return tensors


def _baked(original: nn.Module, model: nn.Module) -> dict[str, list[str]]:
    """Bakes in the original the layers whose weights are plain in the network to export; returns their paths."""
    plain = {path for path, _ in model.named_modules()} - computed(model).keys()
    paths = [path for path in computed(original) if path in plain]
    bake(original, paths)
    return {"baked": paths} if paths else {}


def _bake(model: nn.Module, paths: Sequence[str]) -> list[str]:
    """Makes weights plain that layers compute; returns what is not there."""
    modules = dict(model.named_modules())
    bake(model, [path for path in paths if path in modules])
    return [f"{path} is missing" for path in paths if path not in modules]


def _drop(original: nn.Module, model: nn.Module) -> list[str]:
    """Replaces in the original what is an identity in the network to export; returns the paths."""
    before = dict(original.named_modules())
    dropped = [
        path
        for path, module in model.named_modules()
        if type(module) is nn.Identity and path in before and type(before[path]) is not nn.Identity
    ]
    for path in dropped:
        original.set_submodule(path, nn.Identity())
    return dropped


def _split(original: nn.Module, model: nn.Module) -> dict[str, dict[str, Method]]:
    """Factorises in the original what is factorised in the network to export; returns the methods by path."""
    factorised = {
        path: module for path, module in model.named_modules() if isinstance(module, Factorised)
    }
    methods: dict[str, Method] = {path: module.method for path, module in factorised.items()}
    _factorise(original, methods)
    return {"factorised": methods} if methods else {}


def _factorise(model: nn.Module, methods: Mapping[str, Method]) -> list[str]:
    """Replaces layers by smaller ones, of full rank and any weights; returns what is not there to be replaced."""
    modules = dict(model.named_modules())
    problems: list[str] = []
    for path, method in methods.items():
        layer = modules.get(path)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            model.set_submodule(path, skeleton(layer, method, full_ranks(layer, method)))
        elif not isinstance(layer, Factorised):
            problems.append(f"{path} is {_kind(layer)}, no layer that low rank splits")
    return problems


def _changed_sizes(original: nn.Module, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Returns the attributes of layers (out_channels, padding ...) in which a network differs from the original.

    Raises:
        ExportError: if the two have other layers.
    """
    before, after = dict(original.named_modules()), dict(model.named_modules())
    other = [
        f"{path or 'the network'} is {_kind(after.get(path))}, the constructor builds {_kind(before.get(path))}"
        for path in {**before, **after}
        if _kind(before.get(path)) != _kind(after.get(path))
    ]
    if other:
        msg = (
            f"the constructor builds another network than the one to export: {'; '.join(other[:3])}"
        )
        raise ExportError(msg)
    changed: dict[str, dict[str, Any]] = {}
    for path, module in after.items():
        sizes = {name: value for name, value in vars(module).items() if _are_sizes(value)}
        # What only forward makes, such as the shape of its last input, is not there
        built = vars(before[path])
        known = {
            name: value
            for name, value in sizes.items()
            if _is_size(built.get(name), _listed(value))
        }
        differing = {name: value for name, value in known.items() if built[name] != value}
        if differing:
            changed[path] = differing
    return changed


def _kind(module: nn.Module | None) -> str:
    """Returns the name of a layer's class."""
    return "nothing" if module is None else type(module).__qualname__


def _changed_shapes(
    original: nn.Module, tensors: Mapping[str, torch.Tensor]
) -> dict[str, list[int]]:
    """Returns the original's shape of every tensor that has another shape.

    Raises:
        ExportError: if the original has other tensors.
    """
    before = _tensors(original)
    other = sorted(set(before) ^ set(tensors))
    if other:
        msg = f"the constructor builds a network with other parameters or buffers: {', '.join(other[:5])}"
        raise ExportError(msg)
    return {
        name: list(before[name].shape)
        for name, t in tensors.items()
        if before[name].shape != t.shape
    }


def _fill(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], plan: Mapping[str, Any]
) -> list[str]:
    """Gives a new network the saved tensors: shape, type, memory layout and values; tied ones stay tied.

    Returns:
        What does not fit, if anything: the network must have the shapes that it had when it was exported.
    """
    built = _tensors(model)
    problems = [f"{name} is missing" for name in tensors if name not in built]
    for name, tensor in built.items():
        if name not in tensors:
            problems.append(f"{name} is new")
        elif list(tensor.shape) != plan["tensors"].get(name, list(tensors[name].shape)):
            problems.append(f"{name} has shape {tuple(tensor.shape)}")
    if not problems:
        for name, tensor in built.items():
            saved = tensors[name]
            strides = plan["strides"].get(name, saved.stride())
            tensor.data = torch.empty_strided(saved.shape, strides, dtype=saved.dtype).copy_(saved)
    return problems


def _strides(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    """Returns the strides of every tensor that is not laid out row by row, which decides the order of summation."""
    strides = {name: torch.empty_like(t, device="meta").stride() for name, t in tensors.items()}
    plain = {name: torch.empty(t.shape, device="meta").stride() for name, t in tensors.items()}
    return {name: list(stride) for name, stride in strides.items() if stride != plain[name]}
