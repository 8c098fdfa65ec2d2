"""A pruned network as files, and back: model.safetensors and plan.json.

The plan says how to build the original network (its constructor) and which sizes of its layers are smaller; the
weights fill them. Loading needs the constructor and nothing else: no tracing, no search, no pickle.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from abcsearch.channels.slicing import SIZE_ATTRIBUTES
from abcsearch.errors import ExportError, ModelError
from abcsearch.models.registry import Constructor

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
    record = Constructor.of(constructor or type(model), options or {})
    try:
        original = record.build()
    except ModelError as error:
        msg = f"{error} (pass constructor= and options=, the way you build the network before pruning)"
        raise ModelError(msg) from error
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    plan = {
        "format": FORMAT,
        "constructor": {"name": record.name, "options": dict(record.options)},
        "layers": _changed_sizes(original, model),
        "channels_last": _is_channels_last(model),
        "input_shape": list(example_input.shape),
        "info": dict(info or {}),
    }
    # Tied tensors share memory, which the format refuses: every name gets its own copy.
    tensors = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in _state(model).items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "plan.json").write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    loaded = load(folder, constructor=None if isinstance(constructor, str) else constructor)
    _verify(model, loaded, example_input)
    return folder


def load(directory: str | Path, constructor: Callable[..., nn.Module] | None = None) -> nn.Module:
    """Returns the network of an export, in evaluation mode on the CPU.

    Args:
        directory: what `export` wrote.
        constructor: what builds the original network, where its import path has changed since.

    Raises:
        ExportError: if files are missing or damaged, or the constructor builds another network.
        ModelError: if the constructor cannot be found or called.
    """
    folder = Path(directory)
    plan, tensors = _read(folder)
    record = Constructor(name=plan["constructor"]["name"], options=plan["constructor"]["options"])
    model = record.build() if constructor is None else constructor(**record.options)
    modules = dict(model.named_modules())
    for path, sizes in plan["layers"].items():
        if path not in modules:
            msg = f"{folder}: constructor {record.name} builds a network without layer {path!r}; it has changed"
            raise ExportError(msg)
        for attribute, value in sizes.items():
            setattr(modules[path], attribute, value)
    _resize(model, tensors)
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        msg = f"{folder}: constructor {record.name} builds another network: {error}"
        raise ExportError(msg) from error
    if plan["channels_last"]:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - overload without it
    return model.eval()


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Returns plan and tensors of an export."""
    for name in ("plan.json", "model.safetensors"):
        if not (folder / name).is_file():
            msg = f"{folder} is not an export: {name} is missing; write one with: abcsearch export RUN_DIR"
            raise ExportError(msg)
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "model.safetensors")
    except (ValueError, SafetensorError) as error:
        msg = f"export {folder} is damaged: {error}"
        raise ExportError(msg) from error
    if plan["format"] > FORMAT:
        msg = f"export {folder} has format {plan['format']}, this version reads up to {FORMAT}; update abcsearch"
        raise ExportError(msg)
    return plan, tensors


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the state dict, tensors only.

    Raises:
        ExportError: if the model keeps other objects in its state.
    """
    state = model.state_dict()
    other = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if other:
        msg = f"the state of the model holds objects that are not tensors: {', '.join(other)}"
        raise ExportError(msg)
    return state


def _changed_sizes(original: nn.Module, model: nn.Module) -> dict[str, dict[str, int]]:
    """Returns the size attributes in which the layers of a network differ from the original's.

    Raises:
        ExportError: if the two have other layers.
    """
    before, after = dict(original.named_modules()), dict(model.named_modules())
    if {p: type(m).__qualname__ for p, m in before.items()} != {p: type(m).__qualname__ for p, m in after.items()}:
        other = sorted(set(before) ^ set(after))[:3] or ["their classes differ"]
        msg = f"the constructor builds another network than the one to export: {', '.join(other)}"
        raise ExportError(msg)
    changed: dict[str, dict[str, int]] = {}
    for path, module in after.items():
        sizes = {a: getattr(module, a) for a in SIZE_ATTRIBUTES if isinstance(getattr(module, a, None), int)}
        differing = {a: value for a, value in sizes.items() if getattr(before[path], a, None) != value}
        if differing:
            changed[path] = differing
    return changed


def _resize(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Gives parameters and buffers the shapes and types of the saved ones; tied ones stay tied."""
    replaced: dict[int, torch.Tensor] = {}
    for path, module in model.named_modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                saved = tensors.get(f"{path}.{name}" if path else name)
                if tensor is None or saved is None or (saved.shape, saved.dtype) == (tensor.shape, tensor.dtype):
                    continue
                empty = torch.empty_like(saved)
                new = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
                own[name] = replaced.setdefault(id(tensor), new)  # pyright: ignore[reportArgumentType]


def _is_channels_last(model: nn.Module) -> bool:
    """Returns whether weights are laid out channels-last, which decides the order of summation."""
    return any(
        p.ndim == 4 and not p.is_contiguous() and p.is_contiguous(memory_format=torch.channels_last)
        for p in model.parameters()
    )


def _verify(model: nn.Module, loaded: nn.Module, example_input: torch.Tensor) -> None:
    """Raises ExportError unless both networks return the same bits on the example and on random numbers."""
    training = model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    noise = torch.rand(example_input.shape, generator=torch.Generator().manual_seed(0)).to(example_input.dtype)
    model.eval()
    try:
        with torch.inference_mode():
            for batch in (example_input.to(device), noise.to(device)):
                expected, found = model(batch), loaded.to(device)(batch)
                if not torch.equal(expected, found):
                    gap = float((expected - found).abs().max()) if expected.shape == found.shape else float("nan")
                    msg = f"the exported network loads with other outputs: the largest difference is {gap:g}"
                    raise ExportError(msg)
    finally:
        model.train(training)
