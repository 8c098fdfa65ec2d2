"""Networks as one file that loads without abcsearch and without the network's class: .onnx and .pt2.

Both hold the traced computation with a batch of any size, and under the name `abcsearch` what the file expects.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.errors import ExportError, one_line
from abcsearch.example import Example
from abcsearch.exporting.archives import FACTS, checked_archive, content_of, facts_in, read_entries
from abcsearch.exporting.checking import Frozen
from abcsearch.exporting.plan_checks import facts_problems
from abcsearch.exporting.structures import filled, named_by, names_in
from abcsearch.files import sealed, unsealed
from abcsearch.signing import is_own, signed, unsigned

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import nn

    from abcsearch.example import Inputs

_CONTENT = "content"  # of the facts: length and hash of the network beside them
_CHANGED = (
    "{} is not what was written: it is damaged, or another program has changed it; write it again with: abcsearch "
    "export RUN_DIR. If that program was meant to change it, have it remove the metadata 'abcsearch' as well"
)
# Operations, by their name space, that torch knows once a module is imported
_REGISTERED = {"quantized_decomposed": "torchao.quantization.pt2e", "torchvision": "torchvision"}


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


def traced(model: nn.Module, example_input: Inputs) -> torch.export.ExportedProgram:
    """Returns the computation of a network for batches of any size.

    Args:
        model: on the CPU, in evaluation mode.
        example_input: a batch of at least two: torch takes sizes of one for constants. Several inputs as forward takes
            them (see `Example.fitting`).

    Raises:
        ExportError: if torch.export cannot follow the network, or it fixes the size of the batch.
    """
    example = Example.of(example_input)
    sizes = _dynamic(example)
    try:
        # torch prints the graph as far as it came, to either, before it raises.
        hidden = io.StringIO()
        with quiet(), contextlib.redirect_stdout(hidden), contextlib.redirect_stderr(hidden):
            program = torch.export.export(
                model, example.args, dict(example.kwargs), dynamic_shapes=sizes
            )
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
    # Python code that says that inputs have equally many rows, which is not read out of files from elsewhere.
    program._guards_code = []
    return program


def _dynamic(example: Example) -> Any:  # noqa: ANN401 - a class of torch
    """Returns which sizes of a call's arguments are those of the batch."""
    sizes, batch = torch.export.ShapesCollection(), torch.export.Dim("batch")
    for x in example.tensors:
        if x.ndim and len(x) == len(example):
            sizes[x] = {0: batch}
    return sizes


def write_pt2(program: torch.export.ExportedProgram, path: Path, facts: dict[str, Any]) -> None:
    """Writes a traced network as .pt2, the facts as extra file abcsearch.json."""
    with quiet():
        torch.export.save(program, path)
        content = content_of(read_entries(path))
        text = sealed(signed("file", {**facts, _CONTENT: content}))
        torch.export.save(program, path, extra_files={f"{FACTS}.json": text})


def write_onnx(program: torch.export.ExportedProgram, path: Path, facts: dict[str, Any]) -> None:
    """Writes a traced network as one .onnx file, the facts in its metadata, and has it checked by onnx.

    Inputs and outputs have the names that the facts give them under `inputs` and `outputs`, if they do.

    Raises:
        ExportError: if a package is missing, or an operation has no counterpart.
    """
    onnx, _ = _onnx()
    takes, returns = (
        names_in(facts[key]) if key in facts else None for key in ("inputs", "outputs")
    )
    try:
        with quiet():
            made = torch.onnx.export(
                program, (), dynamo=True, verbose=False, input_names=takes, output_names=returns
            )
            proto = made.model_proto  # pyright: ignore[reportOptionalMemberAccess] - dynamo returns one
    except Exception as error:  # of many kinds
        msg = f"torch.onnx cannot write the network: {type(error).__name__}: {one_line(str(error), 400)}"
        raise ExportError(msg) from error
    _named_batch(proto)
    try:
        content = proto.SerializeToString()
        text = sealed(signed("file", {**facts, _CONTENT: _content(content)}))
        path.write_bytes(content + _appended(text))
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # more than 2 GB, or a graph that is none
        msg = f"the network is no valid ONNX file: {one_line(str(error), 400)}"
        raise ExportError(msg) from error


def _named_batch(proto: Any) -> None:  # noqa: ANN401 - a protocol buffer
    """Names the batch dimension of inputs and outputs "batch" where torch has given it a symbol."""
    graph = proto.graph
    first = [
        value.type.tensor_type.shape.dim[0].dim_param
        for value in graph.input
        if value.type.tensor_type.shape.dim
    ]
    symbol = next(filter(None, first), None)
    if symbol is None:
        return
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


def _appended(text: str) -> bytes:
    """Returns the metadata of an .onnx file as bytes: behind a model without, they make one that has them."""
    onnx, _ = _onnx()
    proto = onnx.ModelProto()
    onnx.helper.set_model_props(proto, {FACTS: text})
    return proto.SerializeToString()


def _content(content: bytes) -> list[Any]:
    """Returns length and hash of bytes."""
    return [len(content), hashlib.sha256(content).hexdigest()[:16]]


def open_onnx(path: Path, *, trust: bool = False) -> tuple[nn.Module, dict[str, Any], bool]:
    """Returns the network of an .onnx file, run by onnxruntime on the CPU, its facts, and whether it is one's own.

    Args:
        path: of the file.
        trust: whether it is read although it would have other files read.

    Raises:
        ExportError: if a package is missing, the file is none, it is not what was written, or it would have other
            files read.
    """
    _, onnxruntime = _onnx()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    content = path.read_bytes()
    try:
        if not trust:
            _refuse_references(content, path)
        session = onnxruntime.InferenceSession(
            str(path) if trust else content, options, providers=["CPUExecutionProvider"]
        )
    except ExportError:
        raise
    except Exception as error:  # of many kinds
        msg = f"{path} is no ONNX file that onnxruntime can read: {one_line(str(error), 300)}"
        msg += "; write it again with: abcsearch export RUN_DIR --format onnx"
        raise ExportError(msg) from error
    text = session.get_modelmeta().custom_metadata_map.get(FACTS)
    facts, trusted = _facts(text, path)
    written = facts.pop(_CONTENT, None)
    if written is not None:
        known = content[: written[0]]
        if _content(known) != written or known + _appended(text) != content:
            raise ExportError(_CHANGED.format(path))
    return (
        Frozen(_Session(session, facts), facts.get("inputs")),
        facts,
        trusted and written is not None,
    )


class _Session:
    """What onnxruntime computes, called as the network that the file was made of.

    A file that does not say how that was called takes its inputs in their order or by name, and returns its output, or
    several by name.
    """

    def __init__(self, session: Any, facts: Mapping[str, Any]) -> None:  # noqa: ANN401 - of onnxruntime
        self._session, self._takes, self._returns = (
            session,
            facts.get("inputs"),
            facts.get("outputs"),
        )
        self._inputs, self._outputs = (
            [x.name for x in both] for both in (session.get_inputs(), session.get_outputs())
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the network
        if self._takes is not None:
            given = dict(named_by(self._takes, (args, kwargs)))
        else:
            given = {**dict(zip(self._inputs, args, strict=False)), **kwargs}
        if given.keys() != set(self._inputs) and not (
            self._takes is not None and given.keys() > set(self._inputs)
        ):
            msg = f"the network takes the inputs {', '.join(self._inputs)}, found {', '.join(given) or 'none'}"
            raise ExportError(msg)
        feed = {name: given[name].numpy() for name in self._inputs}
        outputs = {
            n: torch.from_numpy(x)
            for n, x in zip(self._outputs, self._session.run(None, feed), strict=True)
        }
        if self._returns is not None:
            return filled(self._returns, outputs)
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))


def _refuse_references(content: bytes, path: Path) -> None:
    """Raises ExportError if an .onnx file would have other files read: tensors may lie in any that it names."""
    onnx, _ = _onnx()
    todo: list[Any] = [onnx.load_model_from_string(content)]
    while todo:
        message = todo.pop()
        if isinstance(message, onnx.TensorProto):
            if message.external_data or message.data_location == onnx.TensorProto.EXTERNAL:
                msg = f"{path} is not read: it would have other files read, for {message.name!r:.60}; write it as one "
                raise ExportError(f"{msg}file, or trust it: trust=True, --trust")
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                todo.extend(value if hasattr(value, "extend") else [value])


def open_pt2(path: Path, *, trust: bool = False) -> tuple[nn.Module, dict[str, Any], bool]:
    """Returns the network of a .pt2 file, on the device that it was traced on, its facts, and whether it is one's own.

    Args:
        path: of the file.
        trust: whether it is read although it holds what could run code.

    Raises:
        ExportError: if the file is no traced network, or an int8 one and torchao is not installed.
    """
    entries = read_entries(path)
    facts, trusted = _facts(facts_in(entries), path)
    written = facts.pop(_CONTENT, None)
    trusted = trusted and written is not None
    if written is not None and content_of(entries) != written:
        raise ExportError(_CHANGED.format(path))
    try:
        for space, module in _REGISTERED.items():
            if any(f"{space}.".encode() in entry for entry in entries.values()):
                _registered(module)
        packed = (
            io.BytesIO(path.read_bytes()) if trusted or trust else checked_archive(entries, path)
        )
        with quiet():
            return Frozen(torch.export.load(packed).module(), facts.get("inputs")), facts, trusted
    except ExportError:
        raise
    except Exception as error:  # of many kinds
        msg = (
            f"{path} is no file of torch.export.save that can be read: {one_line(str(error), 300)}"
        )
        raise ExportError(msg) from error


def registering(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """Returns the modules that register operations of a traced network, which torch alone does not know."""
    spaces = {
        getattr(node.target, "namespace", "")
        for module in program.graph_module.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
    }
    return tuple(module for space, module in _REGISTERED.items() if space in spaces)


def torchao() -> None:
    """Imports what int8 networks are made and read with.

    Raises:
        ExportError: if it is not installed.
    """
    _registered(_REGISTERED["quantized_decomposed"])


def _registered(module: str) -> None:
    """Imports a module that registers operations; raises ExportError if it is not installed."""
    try:
        with quiet():
            importlib.import_module(module)
    except ImportError as error:
        msg = f"int8 networks need torchao, which is not installed ({error.name}): pip install 'abcsearch[quantize]'"
        raise ExportError(msg) from error


def _facts(text: str | None, path: Path) -> tuple[dict[str, Any], bool]:
    """Returns the facts in a file, none in one that was not written here, and whether they are the user's.

    Raises:
        ExportError: if they are damaged.
    """
    try:
        value = unsealed(text or "{}")[0]
    except (ValueError, RecursionError) as error:
        msg = f"{path} is damaged: its metadata are not what was written: {error}"
        raise ExportError(f"{msg}; write it again with: abcsearch export RUN_DIR") from error
    facts: dict[str, Any] = value if isinstance(value, dict) else {}
    content = facts.get(_CONTENT, [0, ""])
    problem = next(facts_problems(facts), None)
    if not isinstance(content, list) or [type(item) for item in content] != [int, str]:
        problem = f"{_CONTENT} is {content!r:.80}"
    if problem is not None:
        msg = f"{path} is damaged: in its metadata, {problem}; write it again with: abcsearch export RUN_DIR"
        raise ExportError(msg)
    return unsigned(facts), is_own("file", facts)
