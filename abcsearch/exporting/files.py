"""Export and load: one network, four formats."""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from abcsearch.channels.layout import fitting
from abcsearch.errors import ExportError, quoted
from abcsearch.example import Example, Inputs
from abcsearch.exporting.checking import (
    Checks,
    Frozen,
    OutputOnly,
    Whole,
    copied,
    noise,
    run_checked,
    wrapped,
)
from abcsearch.exporting.interchange import (
    open_onnx,
    open_pt2,
    registering,
    traced,
    write_onnx,
    write_pt2,
)
from abcsearch.exporting.plan import load_plan, plain_json, write_export_folder
from abcsearch.exporting.plan_files import WEIGHTS, files_of
from abcsearch.exporting.structures import (
    call_outline,
    input_names,
    outline,
    plain,
    tensors_by_name,
)
from abcsearch.exporting.targets import FOLDERS, check_target, made_folder
from abcsearch.models.registry import Constructor
from abcsearch.scratch import owner, sweep
from abcsearch.training.scoring import device_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

TOLERANCE = (
    1e-4  # of a file's outputs, as a share of the largest: float32 in another order of summation
)
_SIZES = (2, 1, 5)  # of batches that files are checked on


@dataclass(frozen=True, kw_only=True)
class Exported(os.PathLike[str]):
    """What was written and how far it is from the network; itself a path.

    Attributes:
        path: the folder (safetensors, compressed) or file.
        format: one of `targets.FORMATS`.
        difference: the largest absolute difference of its outputs to the network's; 0 of folders, always.
        largest: the largest absolute output of the network on the same batches.
        size: bytes of what was written.
        needs: modules that register operations of a .pt2 file, to be imported before torch reads it.
    """

    path: Path
    format: str
    difference: float
    largest: float
    size: int
    needs: tuple[str, ...] = ()

    @property
    def how_to_load(self) -> str:
        """A line of Python that loads it: by abcsearch for a folder, otherwise by whatever reads such files."""
        path = repr(str(self.path))
        if self.format == "onnx":
            return f"import onnxruntime; session = onnxruntime.InferenceSession({path})"
        if self.format == "pt2":
            modules = ", ".join(("torch", *self.needs))
            return f"import {modules}; network = torch.export.load({path}).module()"
        return f"import abcsearch; network = abcsearch.load({path})"

    def __fspath__(self) -> str:
        """Returns the path."""
        return str(self.path)

    def __str__(self) -> str:
        """Returns path, size and difference in one line."""
        text = f"largest difference {self.difference:.2g} of outputs up to {self.largest:.3g}"
        return f"{self.path} ({self.size:,} bytes; {text})"


def export(  # noqa: PLR0913 - all but two are optional
    model: nn.Module,
    path: str | Path,
    *,
    example_input: Any,  # noqa: ANN401 - whatever an `Example` is made of
    format: str | None = None,  # noqa: A002 - the option's name on the command line
    constructor: str | Callable[..., nn.Module] | None = None,
    options: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Writes a pruned network and checks that it loads back with the same outputs; until then an older export stays.

    safetensors: a folder with model.safetensors and plan.json, which `load` makes the very same module of: bit for bit
    the same outputs. compressed: the same in fewer bytes, the more so the fewer values weights have (`sparsify`,
    `codebook`); what is loaded is as dense as before, and no faster. onnx and pt2: one file with the traced computation
    in evaluation mode, for batches of any size, checked on three of them; it needs neither abcsearch nor the network's
    class.

    Args:
        model: the network, on any device; not changed. Files hold it as it is on the CPU.
        path: of safetensors and compressed a folder; otherwise a file that ends in .onnx or .pt2, or a folder for
            model.onnx or model.pt2. Made if missing.
        example_input: one batch: a tensor; a tuple of positional arguments, a dict of keyword ones, or an `Example`.
        format: "safetensors", "onnx", "pt2" or "compressed"; by default what the path ends in, else safetensors.
        constructor: what builds the original network: a class or function, "package.module:callable", or the name of
            a registered model. By default the model's class. For folders only.
        options: keyword arguments for it, plain JSON values.
        info: plain JSON values to keep with it, e.g. where the network comes from; see `open_export`.
        tolerance: how much outputs of an .onnx or .pt2 file may differ, as a share of the network's largest. An int8
            network in ONNX may round otherwise: 0.05.

    Returns:
        Path, largest difference and size.

    Raises:
        ExportError: if an argument is wrong, the network cannot be copied or traced, the constructor builds another
            network, a package is missing, the path is taken or cannot be written (see `check_target`), or what was
            written differs.
        ModelError: if the constructor cannot be found or called.
    """
    example = _checked_example(model, example_input)
    _check_arguments(options, info, tolerance)
    kind, target = check_target(path, format)
    facts = {"input_shape": _shapes(example), "info": dict(info or {})}
    plain_json(facts)
    record = _record(model, constructor, options or {}) if kind in FOLDERS else None
    folder, files = (target.parent, (target.name,)) if record is None else (target, files_of(kind))
    try:
        # Checked before it replaces an older export.
        with (
            made_folder(folder),
            tempfile.TemporaryDirectory(prefix=f".export-{owner()}-", dir=folder) as name,
        ):
            sweep(folder)  # of what exports that were killed have left
            draft = Path(name)
            if record is None:
                written = _write_file(model, draft / target.name, example, facts, tolerance)
            else:
                written = _write_folder(model, draft, example, facts, record, kind)
            size = sum((draft / file).stat().st_size for file in files)
            for file in files:
                (draft / file).replace(folder / file)
            for other in [
                name for format_, name in WEIGHTS.items() if record is not None and format_ != kind
            ]:
                (folder / other).unlink(missing_ok=True)  # of an export that has been replaced
    except OSError as error:
        msg = f"export folder {folder} cannot be written: {error}; choose another one"
        raise ExportError(msg) from error
    return Exported(path=target, format=kind, size=size, **written._asdict())


class _Written(NamedTuple):
    """What `Exported` says of the network that was written."""

    difference: float
    largest: float
    needs: tuple[str, ...] = ()


def _checked_example(model: nn.Module, given: Any) -> Inputs:  # noqa: ANN401 - whatever is given as an example
    """Returns the example: a tensor, or several inputs as forward takes them.

    Raises:
        ExportError: if it holds no image.
    """
    several = isinstance(given, tuple | dict | Example)
    example = Example.of(given)
    tensors = [x for x in example.tensors if x.ndim]
    if not tensors or any(0 in x.shape for x in tensors) or (not several and given.ndim < 2):
        given_as = (
            type(given).__name__
            if not example.tensors
            else ", ".join(str(tuple(x.shape)) for x in example.tensors)
        )
        msg = "example_input is one batch as a tensor, a tuple, a dict or an Example of several, of at least one input, "
        raise ExportError(f"{msg}found {given_as}")
    example = example.fitting(model)
    one = (
        len(example.args) == 1 and not example.kwargs and isinstance(example.args[0], torch.Tensor)
    )
    return fitting(model, example.args[0] if one else example)


def _shapes(example: Inputs) -> list[int] | dict[str, list[int]]:
    """Returns the shape of a batch, or of each of several inputs by name, as plain values."""
    if isinstance(example, Example):
        return {
            name: list(x.shape)
            for name, x in example.entries.items()
            if isinstance(x, torch.Tensor)
        }
    return list(example.shape)


def _check_arguments(options: object, info: object, tolerance: object) -> None:
    """Raises ExportError unless what `export` is given is of the kinds that it takes."""
    for name, value in (("options", options), ("info", info)):
        if value is not None and not isinstance(value, Mapping):
            msg = f"{name} is a table (a dict) of plain JSON values, found {type(value).__name__}"
            raise ExportError(msg)
    number = (
        math.nan
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float)
        else tolerance
    )
    if not 0 <= number < math.inf:
        msg = f"tolerance is a share of the largest output, a number from 0 (1e-4, 0.05), found {tolerance!r}"
        raise ExportError(msg)


class Opened(NamedTuple):
    """An export that has been read.

    Attributes:
        network: in evaluation mode.
        facts: input_shape and info as `export` was given them, or {} out of a file that others wrote.
        own: whether this user has written it: it is signed with the user's key.
    """

    network: nn.Module
    facts: dict[str, Any]
    own: bool


def load(
    path: str | Path | os.PathLike[str],
    constructor: Callable[..., nn.Module] | None = None,
    *,
    trust: bool = False,
) -> nn.Module:
    """Returns the network of an export, in evaluation mode on the CPU.

    Args:
        path: what `export` wrote: a folder gives the module itself, which can be trained and pruned again; of an .onnx
            file comes a module that onnxruntime computes, of a .pt2 file one of the traced computation. These two have
            one mode, and gradients of a .pt2 alone.
        constructor: what builds the original network of a folder. Without it the plan says so: any import path in one
            that you have written yourself, and in others a registered model, one of torchvision or timm, or a class of
            networks (see `Constructor.find_untrusted`).
        trust: takes a file from elsewhere at its word, as if you had written it: whatever it names is imported and
            called, and whatever it holds is read.

    Raises:
        ExportError: if files are missing or damaged, a package is missing, or the constructor builds another network.
        ModelError: if the constructor cannot be found or called.
    """
    return open_export(path, constructor, trust=trust).network


def open_export(
    path: str | Path | os.PathLike[str],
    constructor: Callable[..., nn.Module] | None = None,
    *,
    trust: bool = False,
) -> Opened:
    """Returns the network of an export, as `load` does, and what the export says of itself.

    Raises:
        ExportError, ModelError: see `load`.
    """
    where = Path(path)
    if not where.is_file():
        return Opened(*load_plan(where, constructor, trust=trust))
    readers = {".onnx": open_onnx, ".pt2": open_pt2}
    if where.suffix.lower() not in readers:
        msg = f"{path} is not an export: that is a folder with plan.json and weights, an .onnx or a .pt2 file; weights "
        msg += f"of your own: abcsearch evaluate {quoted(where)} --config CONFIG"
        raise ExportError(msg)
    return Opened(*readers[where.suffix.lower()](where, trust=trust))


def _record(
    model: nn.Module, constructor: str | Callable[..., nn.Module] | None, options: Mapping[str, Any]
) -> Constructor:
    """Returns what builds the original network.

    Raises:
        ExportError: if the network comes out of a file, or is an int8 one: nothing builds these.
        ModelError: if it cannot be named.
    """
    if isinstance(model, Frozen):
        msg = "this network is a traced computation without a class: it is exported as onnx or pt2, not as a folder"
        raise ExportError(msg)
    record = Constructor.of(constructor or type(model), options)
    if record.name.startswith("__main__:"):
        where = f"{record.name} is part of this script and cannot be found from elsewhere"
        warnings.warn(
            f"{where}; keep it in a module of its own, or load with constructor=", stacklevel=3
        )
    return record


def _write_folder(
    model: nn.Module,
    folder: Path,
    example_input: Inputs,
    facts: Mapping[str, Any],
    record: Constructor,
    kind: str,
) -> _Written:
    """Writes and checks a folder; returns the largest difference, which is 0, and the largest output."""
    write_export_folder(model, folder, record, facts, kind)
    loaded, _, _ = load_plan(folder, record.find())
    checks = Checks.of(copied(model), (example_input, noise(example_input, len(example_input))))
    gaps = checks.differences(loaded.to(device_of(model)))
    name, gap = max(gaps.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])
    if gap != 0:
        msg = f"the exported network loads with other outputs, the largest difference is {gap:g}{_at(name)}: "
        msg += "does the constructor build this network?"
        raise ExportError(msg)
    return _Written(gap, checks.largest)


def _at(name: str) -> str:
    """Returns which of several outputs is meant, for messages."""
    return "" if name == "output" else f" (of {name})"


def _write_file(
    model: nn.Module, path: Path, example_input: Inputs, facts: dict[str, Any], tolerance: float
) -> _Written:
    """Writes and checks an .onnx or .pt2 file; returns what is to be said of it."""
    twin, example_input = copied(model, "cpu"), example_input.to("cpu")
    batches = [example_input, *(noise(example_input, size) for size in _SIZES)]
    with torch.inference_mode():
        returned = run_checked(twin, example_input)
    whole = wrapped(twin, example_input, returned)
    checks = Checks.of(whole, batches)
    facts = {**facts, **_structures(twin, whole, example_input, returned)}
    write, read = (
        (write_onnx, open_onnx) if path.suffix.lower() == ".onnx" else (write_pt2, open_pt2)
    )
    program = traced(whole, batches[1])
    needs = registering(program) if write is write_pt2 else ()
    write(program, path, facts)
    try:
        read_back, _, _ = read(path)
    except ExportError as error:
        # Its path is a temporary one.
        msg = f"the {path.suffix} file is written but cannot be read back: {str(error).replace(str(path), path.name)}"
        if any(x.dtype == torch.float64 for x in Example.of(example_input).tensors):
            msg += "; the network is in double precision, which not everything computes: export it as model.float()"
        raise ExportError(msg) from error
    gaps, sizes = checks.differences(read_back), checks.sizes()
    for name, gap in gaps.items():
        if not gap <= tolerance * sizes.get(name, 0.0):
            msg = f"the {path.suffix} file computes other outputs: the largest difference is {gap:.3g}{_at(name)} of "
            msg += f"outputs up to {sizes.get(name, 0.0):.3g}, allowed is a share of {tolerance:g} (tolerance)"
            raise ExportError(msg)
    return _Written(max(gaps.values()), checks.largest, needs)


def _structures(
    twin: nn.Module,
    whole: nn.Module,
    example: Inputs,
    returned: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Returns how a file is called and what it returns, as plain JSON values; nothing of one input and one output."""
    if isinstance(whole, OutputOnly):
        return {}
    given = Example.of(example)
    returns: dict[str, Any] = {}
    if isinstance(whole, Whole) and not whole.single:
        outputs = plain(returned)
        returns["outputs"] = outline(outputs, iter(tensors_by_name(outputs)))
    return {"inputs": call_outline(given, input_names(twin, given)), **returns}
