"""A pruned network as files, and back: model.safetensors and plan.json.

The plan says how to build the original network (its constructor) and which of its layers and tensors are smaller; the
weights fill them. Loading needs the constructor and nothing else: no tracing, no search, no pickle.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import tempfile
import warnings
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from abcsearch.errors import ExportError, ModelError
from abcsearch.models.registry import MODELS, Constructor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FORMAT = 1


def export(
    model: nn.Module,
    directory: str | Path,
    *,
    example_input: torch.Tensor,
    constructor: str | Callable[..., nn.Module] | None = None,
    options: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a pruned network to a folder and checks that it loads back with the same outputs.

    Args:
        model: the network.
        directory: made if missing; model.safetensors and plan.json in it are replaced.
        example_input: one batch; the loaded network must return exactly what the model returns on it and on random
            numbers of that shape.
        constructor: what builds the original network: a class or function, "package.module:callable", or the name of
            a registered model. By default the model's class.
        options: keyword arguments for it, plain JSON values.
        info: plain JSON values to keep with it, e.g. where the network comes from.

    Returns:
        The folder.

    Raises:
        ExportError: if the constructor builds another network, or the loaded network differs.
        ModelError: if the constructor cannot be found or called.
    """
    if not isinstance(example_input, torch.Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"example_input is one batch as a tensor, found {type(example_input).__name__}"
        raise ExportError(msg)
    record = Constructor.of(constructor or type(model), options or {})
    if record.name.startswith("__main__:"):
        where = f"{record.name} is part of this script and cannot be found from elsewhere"
        warnings.warn(f"{where}; keep it in a module of its own, or load with constructor=", stacklevel=2)
    try:
        original = record.build()
    except ModelError as error:
        msg = f"{error} (pass constructor= and options=, the way you build the network before pruning)"
        raise ModelError(msg) from error
    tensors = _tensors(model)
    plan = {
        "format": FORMAT,
        "constructor": {"name": record.name, "options": dict(record.options)},
        "dropped": _drop(original, model),
        "layers": _changed_sizes(original, model),
        "tensors": _changed_shapes(original, tensors),
        "strides": _strides(tensors),
        "input_shape": list(example_input.shape),
        "info": dict(info or {}),
    }
    try:
        text = json.dumps(plan, indent=1)
    except (TypeError, ValueError) as error:
        msg = f"options and info of an export are plain JSON values (numbers, texts, lists, tables): {error}"
        raise ExportError(msg) from error
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Checked before it replaces an older export.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as name:
            # Tied tensors share memory, which the format refuses: every name gets its own copy.
            contiguous = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
            (Path(name) / "model.safetensors").write_bytes(save(contiguous))
            (Path(name) / "plan.json").write_text(text + "\n", encoding="utf-8")
            loaded = load(name, constructor=record.find())
            _verify(model, loaded, example_input)
            for file in ("model.safetensors", "plan.json"):
                (Path(name) / file).replace(folder / file)
    except OSError as error:
        msg = f"export folder {folder} cannot be written: {error}"
        raise ExportError(msg) from error
    return folder


def load(directory: str | Path, constructor: Callable[..., nn.Module] | None = None) -> nn.Module:
    """Returns the network of an export, in evaluation mode on the CPU.

    Args:
        directory: what `export` wrote.
        constructor: what builds the original network, where its import path has changed since. Without it the plan
            decides what is imported and called: load exports of people whose code you would run.

    Raises:
        ExportError: if files are missing or damaged, or the constructor builds another network.
        ModelError: if the constructor cannot be found or called.
    """
    folder = Path(directory)
    plan, tensors = _read(folder)
    record = Constructor(name=plan["constructor"]["name"], options=plan["constructor"]["options"])
    try:
        model = record.build(make=constructor or _network_maker(record))
    except ModelError as error:
        msg = f"{folder}: {error} (pass constructor=, what builds the network before pruning)"
        raise ModelError(msg) from error
    modules = dict(model.named_modules())
    problems = [f"{path} is missing" for path in (*plan["dropped"], *plan["layers"]) if path not in modules]
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
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        msg = f"{folder}: {record.name} does not build the network that was exported, has it changed? {shown}"
        raise ExportError(msg)
    for path, sizes in plan["layers"].items():
        for attribute, value in sizes.items():
            setattr(modules[path], attribute, tuple(value) if isinstance(value, list) else value)
    return model.eval()


def _is_size(found: object, value: int | list[int]) -> bool:
    """Returns whether an attribute is a number, or as many numbers, as the value that it is to have."""
    if isinstance(value, list):
        return _are_sizes(found) and isinstance(found, tuple) and len(found) == len(value)
    return type(found) is int


def _are_sizes(found: object) -> bool:
    """Returns whether an attribute is a number or a tuple of numbers."""
    return type(found) is int or (isinstance(found, tuple) and all(type(item) is int for item in found))


def _network_maker(record: Constructor) -> Callable[..., nn.Module]:
    """Returns the constructor that a plan names.

    A plan may come from anywhere, so it cannot call what certainly makes no networks: anything of the standard library,
    classes that are no modules, and functions annotated to return something else.

    Raises:
        ModelError: if it is one of these.
    """
    found = record.find()
    made: object = found
    if isinstance(found, FunctionType):
        made = nn.Module
        with contextlib.suppress(NameError, TypeError, AttributeError):  # annotations that cannot be resolved
            made = get_type_hints(found).get("return", nn.Module)
    package = record.name.partition(":")[0].partition(".")[0]
    standard = package in sys.stdlib_module_names and package != "__main__"
    if record.name in MODELS or (not standard and isinstance(made, type) and issubclass(made, nn.Module)):
        return found
    msg = f"{record.name} is not called: it does not make networks"
    raise ModelError(msg)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Returns plan and tensors of an export."""
    for name in ("plan.json", "model.safetensors"):
        if not (folder / name).is_file():
            msg = f"{folder} is not an export: {name} is missing; write one with: abcsearch export RUN_DIR"
            raise ExportError(msg)
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "model.safetensors")
        if plan["format"] > FORMAT:
            msg = f"export {folder} has format {plan['format']}, this version reads up to {FORMAT}; update abcsearch"
            raise ExportError(msg)
        plan.setdefault("dropped", [])
        if not all(isinstance(plan[key], dict) for key in ("constructor", "layers", "tensors", "strides")):
            msg = "plan.json does not hold what it should"
            raise TypeError(msg)
        return {**plan, "constructor": {key: plan["constructor"][key] for key in ("name", "options")}}, tensors
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        msg = f"export {folder} is damaged: {error!r}; write it again with: abcsearch export RUN_DIR"
        raise ExportError(msg) from error


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns all parameters and buffers by name, tied ones under each of their names.

    Raises:
        ExportError: if the model keeps other things in its state.
    """
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    tensors = dict(named)
    other = [name for name in model.state_dict() if name not in tensors]
    if other:
        msg = f"the state of the model holds more than parameters and buffers: {', '.join(other)}"
        raise ExportError(msg)
    return tensors


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
        msg = f"the constructor builds another network than the one to export: {'; '.join(other[:3])}"
        raise ExportError(msg)
    changed: dict[str, dict[str, Any]] = {}
    for path, module in after.items():
        sizes = {name: value for name, value in vars(module).items() if _are_sizes(value)}
        differing = {name: value for name, value in sizes.items() if vars(before[path]).get(name) != value}
        if differing:
            changed[path] = differing
    return changed


def _kind(module: nn.Module | None) -> str:
    """Returns the name of a layer's class."""
    return "nothing" if module is None else type(module).__qualname__


def _changed_shapes(original: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    """Returns the original's shape of every tensor that has another shape.

    Raises:
        ExportError: if the original has other tensors.
    """
    before = _tensors(original)
    other = sorted(set(before) ^ set(tensors))
    if other:
        msg = f"the constructor builds a network with other parameters or buffers: {', '.join(other[:5])}"
        raise ExportError(msg)
    return {name: list(before[name].shape) for name, t in tensors.items() if before[name].shape != t.shape}


def _fill(model: nn.Module, tensors: Mapping[str, torch.Tensor], plan: Mapping[str, Any]) -> list[str]:
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


def _verify(model: nn.Module, loaded: nn.Module, example_input: torch.Tensor) -> None:
    """Raises ExportError unless both networks return the same bits on the example and on random numbers."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    noise = torch.rand(example_input.shape, generator=torch.Generator().manual_seed(0)).to(example_input.dtype)
    twin = copy.deepcopy(model).eval()  # forward may have side effects
    with torch.inference_mode():
        for batch in (example_input.to(device), noise.to(device)):
            try:
                expected = twin(batch)
            except Exception as error:
                msg = f"the network does not run on the example input {tuple(batch.shape)} {batch.dtype}: {error}"
                raise ExportError(msg) from error
            if not isinstance(expected, torch.Tensor) or not bool(torch.isfinite(expected).all()):
                what = "numbers that are not finite" if isinstance(expected, torch.Tensor) else type(expected).__name__
                msg = f"only networks that return one finite tensor can be exported, this one returns {what}"
                raise ExportError(msg)
            try:
                found = loaded.to(device)(batch)
            except Exception as error:  # the user's forward, on a network of other sizes
                msg = f"the exported network loads but cannot be run: {error}; does the constructor build this network?"
                raise ExportError(msg) from error
            if not torch.equal(expected, found):
                gap = float((expected - found).abs().max()) if expected.shape == found.shape else float("nan")
                msg = (
                    f"the exported network loads with other outputs, the largest difference is {gap:g}: "
                    f"does the constructor build this network?"
                )
                raise ExportError(msg)
