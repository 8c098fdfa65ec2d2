"""Networks as one file that loads without abcsearch and without the network's class: .onnx and .pt2.

Both hold the traced computation with a batch of any size, and under the name `abcsearch` what the file expects.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.errors import ExportError, one_line
from abcsearch.exporting.checking import Frozen
from abcsearch.exporting.plan_checks import facts_problems

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

FACTS = "abcsearch"  # key of the metadata in either file
_INT8 = b"quantized_decomposed."  # operations that torch knows once torchao is imported


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Runs a block of torch's exporters without what they say of their own insides: errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def traced(model: nn.Module, example_input: torch.Tensor) -> torch.export.ExportedProgram:
    """Returns the computation of a network for batches of any size.

    Args:
        model: on the CPU, in evaluation mode.
        example_input: a batch of at least two: torch takes sizes of one for constants.

    Raises:
        ExportError: if torch.export cannot follow the network, or it fixes the size of the batch.
    """
    sizes = ({0: torch.export.Dim("batch")},)
    try:
        # torch prints the graph as far as it came, to either, before it raises.
        hidden = io.StringIO()
        with quiet(), contextlib.redirect_stdout(hidden), contextlib.redirect_stderr(hidden):
            program = torch.export.export(model, (example_input,), dynamic_shapes=sizes)
    except Exception as error:  # of many kinds
        text = str(error)
        if "Constraints violated" in text or "specialized" in text:
            msg = "the network fixes the size of the batch, so it cannot be exported for any: read it off the input "
            msg += f"(x.shape[0], flatten(1)) instead of writing a number; torch says: {one_line(text, 400)}"
            raise ExportError(msg) from error
        msg = f"torch.export cannot follow the network: {type(error).__name__}: {one_line(text, 400)}; "
        raise ExportError(msg + "the format safetensors needs no tracing") from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
    program.example_inputs = None  # would be pickled
    return program


def write_pt2(program: torch.export.ExportedProgram, path: Path, facts: dict[str, Any]) -> None:
    """Writes a traced network as .pt2, the facts as extra file abcsearch.json."""
    with quiet():
        torch.export.save(program, path, extra_files={f"{FACTS}.json": json.dumps(facts)})


def write_onnx(program: torch.export.ExportedProgram, path: Path, facts: dict[str, Any]) -> None:
    """Writes a traced network as one .onnx file, the facts in its metadata, and has it checked by onnx.

    Raises:
        ExportError: if a package is missing, or an operation has no counterpart.
    """
    onnx, _ = _onnx()
    sizes = ({0: torch.export.Dim("batch")},)
    try:
        with quiet():
            made = torch.onnx.export(program, (), dynamo=True, dynamic_shapes=sizes, verbose=False)
            proto = made.model_proto  # pyright: ignore[reportOptionalMemberAccess] - dynamo returns one
    except Exception as error:  # of many kinds
        msg = f"torch.onnx cannot write the network: {type(error).__name__}: {one_line(str(error), 400)}"
        raise ExportError(msg) from error
    _named_batch(proto)
    onnx.helper.set_model_props(proto, {FACTS: json.dumps(facts)})
    try:
        path.write_bytes(proto.SerializeToString())
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # more than 2 GB, or a graph that is none
        msg = f"the network is no valid ONNX file: {one_line(str(error), 400)}"
        raise ExportError(msg) from error


def _named_batch(proto: Any) -> None:  # noqa: ANN401 - a protocol buffer
    """Names the batch dimension of inputs and outputs "batch" where torch has given it a symbol."""
    graph = proto.graph
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param == symbol:
                size.dim_param = "batch"


def _onnx() -> tuple[Any, Any]:
    """Returns the packages onnx and onnxruntime.

    Raises:
        ExportError: if one is missing.
    """
    try:
        with quiet():
            import onnx
            import onnxruntime
            import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        msg = f"ONNX needs a package that is not installed ({error.name}): pip install 'abcsearch[onnx]'"
        raise ExportError(msg) from error
    return onnx, onnxruntime


def open_onnx(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the network of an .onnx file, run by onnxruntime on the CPU, and its facts.

    Raises:
        ExportError: if a package is missing, or the file is none of a network with one input and one output.
    """
    _, onnxruntime = _onnx()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many kinds
        msg = f"{path} is no ONNX file that onnxruntime can read: {one_line(str(error), 300)}"
        msg += "; write it again with: abcsearch export RUN_DIR --format onnx"
        raise ExportError(msg) from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(session.get_outputs()) != 1:
        msg = f"{path}: a network has one input and one output, found {len(inputs)} and {len(session.get_outputs())}"
        raise ExportError(msg)

    def run(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {inputs[0].name: x.numpy()})[0])

    return Frozen(run), _facts(session.get_modelmeta().custom_metadata_map.get(FACTS), path)


def open_pt2(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the network of a .pt2 file, on the device that it was traced on, and its facts.

    Raises:
        ExportError: if the file is no traced network, or an int8 one and torchao is not installed.
    """
    extra = {f"{FACTS}.json": ""}
    try:
        _know_operations(path)
        with quiet():
            program = torch.export.load(path, extra_files=extra)
            return Frozen(program.module()), _facts(extra[f"{FACTS}.json"], path)
    except ExportError:
        raise
    except Exception as error:  # of many kinds
        msg = f"{path} is no file of torch.export.save that can be read: {one_line(str(error), 300)}"
        raise ExportError(msg) from error


def _know_operations(path: Path) -> None:
    """Imports torchao where a .pt2 file needs its operations.

    Raises:
        ExportError: if it is not installed, or the file is no traced network.
    """
    with zipfile.ZipFile(path) as archive:
        graphs = [name for name in archive.namelist() if "/models/" in name and name.endswith(".json")]
        if not graphs:
            msg = f"{path} holds no traced network (a .pt2 is written by torch.export.save)"
            raise ExportError(msg)
        if any(_INT8 in archive.read(name) for name in graphs):
            torchao()


def torchao() -> None:
    """Imports what int8 networks are made and read with.

    Raises:
        ExportError: if it is not installed.
    """
    try:
        with quiet():
            import torchao.quantization.pt2e  # noqa: F401 - it registers operations
    except ImportError as error:
        msg = f"int8 networks need torchao, which is not installed ({error.name}): pip install 'abcsearch[quantize]'"
        raise ExportError(msg) from error


def _facts(text: str | None, path: Path) -> dict[str, Any]:
    """Returns the facts in a file, or none in one that was not written here.

    Raises:
        ExportError: if they are damaged.
    """
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        msg = f"{path} is damaged: its metadata are no JSON: {error}"
        raise ExportError(msg) from error
    facts = found if isinstance(found, dict) else {}
    problem = next(facts_problems(facts), None)
    if problem is not None:
        msg = f"{path} is damaged: in its metadata, {problem}; write it again with: abcsearch export RUN_DIR"
        raise ExportError(msg)
    return facts
