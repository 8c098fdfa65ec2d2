"""What a user takes home with an export: how to feed the file, and a model card in Markdown beside it."""

from __future__ import annotations

import copy
import json
import statistics
from typing import TYPE_CHECKING, Any

from abcsearch.channels.latency import forward_times, in_turns
from abcsearch.errors import ModelError, escaped, one_line, plural
from abcsearch.example import Example, repeated
from abcsearch.exporting.targets import FOLDERS
from abcsearch.files import replace_file
from abcsearch.formats import first_line
from abcsearch.results.forward import BATCHES
from abcsearch.results.intervals import difference, difference_text, ends_of, method_of
from abcsearch.runs.disk.environment import versions_text
from abcsearch.training.named import metric_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from abcsearch.exporting import Exported
    from abcsearch.results.links import Chain
    from abcsearch.results.open_run import FinishedRun, Structure

_MARK = "<!-- written by abcsearch export; the next one replaces it -->"
_FEW = 10  # classes that a line names
_SECONDS = 3.0  # for both networks together, per batch
_SHAPES = {2: "numbers", 3: "length", 4: "height, width", 5: "depth, height, width"}


def feeding(info: Mapping[str, Any]) -> list[str]:
    """Returns how to feed an exported network, a line each.

    Args:
        info: that the export holds, see `export_run`.
    """
    shape, mean, std = (info["input"][key] for key in ("shape", "mean", "std"))
    if isinstance(shape, dict):
        several = ", ".join(
            f"{name} (batch, {', '.join(map(str, sizes))})" for name, sizes in shape.items()
        )
        return [f"input: several, by name: {several}", f"output: {_output(info)}"]
    layout = _SHAPES.get(len(shape) + 1)
    sizes = ", ".join(map(str, shape))
    order = f", NCHW: batch, channels, {layout}" if layout and len(shape) > 1 else ""
    lines = [f"input: float32 of shape (batch, {sizes}){order}; a batch of any size"]
    if mean and std:
        how = f"(x - mean) / std for each channel, mean {_listed(mean)}, std {_listed(std)}"
        lines.append(f"pixels: scaled to [0, 1], then {how}")
    else:
        lines.append(
            "values: as the data set of the run gives them; how these were normalised is not known"
        )
    return [*lines, f"output: {_output(info)}"]


def _output(info: Mapping[str, Any]) -> str:
    """Returns what comes out."""
    if info["objective"] == "classification" and info["classes"]:
        return f"logits of {info['classes']} classes, {_named(info)}; the largest is the answer"
    return f"as the objective {info['objective']} has it"


def _named(info: Mapping[str, Any]) -> str:
    """Returns which classes there are in their order, as far as a line can say; older exports do not know."""
    names: Sequence[str] = info.get("class_names", ())
    if not names:
        return "numbered as in the data set"
    if len(names) <= _FEW:
        return f"in this order: {', '.join(names)}"
    return f"from {names[0]} (0) to {names[-1]} ({len(names) - 1}), all of them in the model card"


def _class_list(info: Mapping[str, Any]) -> list[str]:
    """Returns the names of all classes with their numbers, where a line has not said them; [] otherwise."""
    names: Sequence[str] = info.get("class_names", ())
    if len(names) <= _FEW:
        return []
    return [
        "## Classes",
        _table([["logit", "class"], *([str(n), name] for n, name in enumerate(names))]),
    ]


def _listed(numbers: Sequence[float]) -> str:
    return f"[{', '.join(f'{number:.6g}' for number in numbers)}]"


def write_card(  # noqa: PLR0913 - what it is about
    run: FinishedRun,
    structure: Structure,
    model: nn.Module,
    made: Exported,
    info: Mapping[str, Any],
    scores: Mapping[str, Any] | None,
    chain: Chain | None,
    licence: str,
) -> Path:
    """Writes the model card of an export, and returns where: README.md in its folder, or beside a file.

    A README.md that somebody else has written stays: the card is then model-card.md.

    Args:
        run: that the export comes from.
        structure: what was exported.
        model: its network.
        made: what was written.
        info: that the export holds.
        scores: of its fine-tuning; None without.
        chain: up to what was exported; None where that is not a link of one.
        licence: of the weights, as the user says.
    """
    path = _place(made)
    lines = [
        *_front_matter(run, info, licence),
        _MARK,
        f"# {run.config.model.name}, pruned on {run.config.data.name}"
        if structure is run.winner
        else f"# {run.config.model.name}: {structure.name}",
        _what(run, structure, info),
        "## Numbers",
        _table(_numbers(run, structure, model, info, scores, chain)),
        _intervals(run, info),
        *_links(chain),
        "## How to feed it",
        "\n".join(f"- {_cell(line)}" for line in feeding(info)),
        *_class_list(info),
        "## How to load it",
        *_loading(made, info),
        "## Where it comes from",
        _table(_origin(run, structure, info, licence)),
    ]
    text = escaped("\n\n".join(line for line in lines if line) + "\n")
    replace_file(path, lambda file: file.write_text(text, encoding="utf-8"))
    return path


def _place(made: Exported) -> Path:
    """Returns where the card of an export is written."""
    if made.format not in FOLDERS and made.path.stem != "model":
        return made.path.with_name(f"{made.path.name}.md")
    path = (made.path if made.format in FOLDERS else made.path.parent) / "README.md"
    return (
        path.with_name("model-card.md")
        if path.exists() and _MARK not in path.read_text("utf-8", "replace")
        else path
    )


def _front_matter(run: FinishedRun, info: Mapping[str, Any], licence: str) -> list[str]:
    """Returns the metadata that hubs of models read."""
    tags = ["pruning", "abcsearch", *(link["name"] for link in info.get("chain", ()))]
    fields = {
        "license": licence,
        "library_name": "pytorch",
        "tags": tags,
        "datasets": [run.config.data.name],
    }
    return [
        "\n".join(
            [
                "---",
                *(
                    f"{key}: {json.dumps(value, ensure_ascii=False)}"
                    for key, value in fields.items()
                ),
                "---",
            ]
        )
    ]


def _what(run: FinishedRun, structure: Structure, info: Mapping[str, Any]) -> str:
    """Returns what it is, in a paragraph."""
    bounds = ", ".join(f"{name} {bound}" for name, bound in run.config.budget.bounds.items())
    who = (
        f"the winner of a search by {run.config.searcher.name}"
        if structure is run.winner
        else f"the network {structure.name}"
    )
    chain = [link["name"] for link in info.get("chain", ())]
    then = f" After that: {', then '.join(chain)}." if chain else ""
    tuned = "fine-tuned" if info["fine_tuned"] else "not fine-tuned"
    return f"{_cell(run.config.model.name)}, {who} under the budget {bounds}, {tuned}.{then}"


def _numbers(
    run: FinishedRun,
    structure: Structure,
    model: nn.Module,
    info: Mapping[str, Any],
    scores: Mapping[str, Any] | None,
    chain: Chain | None,
) -> list[list[str]]:
    """Returns the numbers beside those of the full network."""
    full = run.structures[0]
    costs = {
        name: int(getattr(run.result.task.graph.costs, name)([full.candidate])[0])
        for name in ("macs", "params")
    }
    rows = [["", "full network", "this one"]]
    rows += [[label, f"{costs[key]:,}", f"{info[key]:,} ({100 * info[key] / costs[key]:.3g} %)"]
             for key, label in (("macs", "MACs of one image"), ("params", "parameters"))]  # fmt: skip
    tuned = run.tuned(full).scores if structure is not full else None
    before = None if tuned is None else tuned["after"][run.metric]
    after = None if info["test"] is None else info["test"][run.metric]
    link = None if chain is None else chain.links[-1]
    last = scores if link is None else {"hits": list(link.hits), "resampled": dict(link.resampled)}
    rows.append([f"test {run.metric}", _score(run, before, tuned), _score(run, after, last)])
    if before is not None and after is not None and tuned is not None and last is not None:
        change = _difference(run, (before, tuned), (after, last))
        rows += [["difference, 95 %", "", change]] if change else []
    for batch, times in _times(run, model).items():
        rows.append([f"forward time in torch, batch {batch}", *(f"{ms:.3g} ms" for ms in times)])
    return [*rows, *_budgeted(run, model)]


def _budgeted(run: FinishedRun, model: nn.Module) -> list[list[str]]:
    """Returns the forward times where the budget bounds them, measured now in turns; none where it does not."""
    options, data = run.config.latency, run.result.task.data
    if "latency_ms" not in run.config.budget.bounds:
        return []
    full, pruned = copy.deepcopy(run.result.task.base), copy.deepcopy(model)
    try:
        turns = in_turns([pruned], full, data.example[:1], options, seconds=_SECONDS)
    except ModelError as error:  # it may have been measured on another machine
        return [[f"forward time in {options.where}", "", f"not measured here: {first_line(error)}"]]
    share = float(turns.shares[0])
    ms = f"{share * turns.full_ms:.3g} ms ({share:.3f} of it)"
    return [[f"forward time in {options.where}", f"{turns.full_ms:.3g} ms", ms]]


def _score(run: FinishedRun, value: float | None, scores: Mapping[str, Any] | None) -> str:
    """Returns a metric with its interval, where that is known."""
    if value is None:
        return "-"
    text = metric_text(run.metric, value)
    resampled = (scores or {}).get("resampled")
    ends = ends_of(run.metric, value, len(run.result.task.data.test), resampled)
    if ends is None:
        return text
    return f"{text} ({' to '.join(metric_text(run.metric, end) for end in ends)})"


def _difference(
    run: FinishedRun,
    full: tuple[float, Mapping[str, Any]],
    this: tuple[float, Mapping[str, Any]],
) -> str:
    """Returns how a network differs from the full one on the same images; "" where that is not known."""
    images = len(run.result.task.data.test)
    one = difference(run.metric, ("this", *this), ("full", *full), images)
    if one is None or not one.paired:
        return ""
    text = difference_text(run.metric, one)
    return text if one.told_apart else f"{text}: within noise"


def _times(run: FinishedRun, model: nn.Module) -> dict[int, tuple[float, ...]]:
    """Returns the median forward times of the full network and of this one in milliseconds, by batch, in turns."""
    networks = [run.result.task.base, model]
    threads = int(run.config.evaluator.options.get("threads", 1))
    by_batch: dict[int, tuple[float, ...]] = {}
    for batch in BATCHES:
        images = repeated(run.result.task.data.example, batch)
        images = images if isinstance(images, Example) else images.contiguous()
        times = forward_times(networks, images, threads=threads, seconds=_SECONDS)
        by_batch[batch] = tuple(statistics.median(each) for each in times)
    return by_batch


def _intervals(run: FinishedRun, info: Mapping[str, Any]) -> str:
    """Returns what the numbers mean."""
    test = plural(len(run.result.task.data.test), "test image")
    share = f" In brackets: 95 % intervals ({method_of(run.metric)})."
    int8 = " torch computes int8 in float32; onnxruntime in integers." if _is_int8(info) else ""
    return f"Scores are of {test}, which nothing was chosen by.{share} Times are of this machine's CPU, in turns.{int8}"


def _is_int8(info: Mapping[str, Any]) -> bool:
    return any(link["name"] == "quantize" for link in info.get("chain", ()))


def _links(chain: Chain | None) -> list[str]:
    """Returns the table of the chain."""
    if chain is None or len(chain.links) < 2:
        return []
    return [
        "## Link by link",
        _table(chain.cells()),
        "\n".join(f"- {_cell(line)}" for line in chain.lines()),
    ]


def _loading(made: Exported, info: Mapping[str, Any]) -> list[str]:
    """Returns how the files are loaded: in PyTorch, ONNX Runtime and TensorRT."""
    shape = info["input"]["shape"]
    name = made.path.name
    int8 = ", tolerance=0.05" if _is_int8(info) else ""
    needed = "".join(f"import {module}  # its operations\n" for module in made.needs)
    pytorch = {
        "pt2": f"import torch\n{needed}network = torch.export.load({name!r}).module()",
        "onnx": f"from abcsearch import load\nnetwork = load({name!r})  # computed by onnxruntime",
    }.get(
        made.format,
        f"from abcsearch import load\nnetwork = load({name!r})  # a torch.nn.Module, to train or prune again",
    )
    file = name if made.format == "onnx" else "model.onnx"
    write = f"from abcsearch import export, load\n\nexport(load({name!r}), 'model.onnx', example_input=batch{int8})\n\n"
    write = "" if made.format == "onnx" else write
    runtime = f"{write}import onnxruntime\n\nsession = onnxruntime.InferenceSession({file!r})\n"
    runtime += "outputs = session.run(None, {session.get_inputs()[0].name: batch.numpy()})"
    told = ["In PyTorch:", _code("python", pytorch), "In ONNX Runtime:", _code("python", runtime)]
    if isinstance(shape, dict):
        return told
    sizes = [f"x:{n}x{'x'.join(map(str, shape))}" for n in (1, 1, 64)]
    flags = " ".join(
        f"--{key}Shapes={value}" for key, value in zip(("min", "opt", "max"), sizes, strict=True)
    )
    kind = "--int8 --fp16" if _is_int8(info) else "--fp16"
    command = f"trtexec --onnx={file} --saveEngine=model.engine {kind} {flags}"
    note = "In TensorRT (x is the name of the input, as session.get_inputs() has it; not run here):"
    return [*told, note, _code("", command)]


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _origin(
    run: FinishedRun, structure: Structure, info: Mapping[str, Any], licence: str
) -> list[list[str]]:
    """Returns data, search and versions."""
    config, data, header = run.config, run.result.task.data, run.folder.header()
    options = ", ".join(f"{key} {value}" for key, value in info["data"].items() if key != "name")
    versions = versions_text(header)
    counts = f"{len(data.train):,} training, {len(data.validation):,} search-validation, "
    counts += plural(len(data.test), "test image")
    bounds = ", ".join(f"{name} {bound}" for name, bound in config.budget.bounds.items())
    rows = [
        ["data", f"{config.data.name}{f' ({options})' if options else ''}: {counts}"],
        ["budget", bounds],
        [
            "search",
            f"{config.searcher.name}, {plural(len(run.result.trials), 'trial')}, seed {config.seed}",
        ],
        ["fitness", config.evaluator.name],
        ["channels kept by", ", ".join(config.criteria)],
        [
            "widths",
            ", ".join(f"{name} {kept} of {of}" for name, (kept, of) in info["widths"].items()),
        ],
        ["network", structure.name],
        ["licence of the weights", licence],
        ["made with", versions],
    ]
    return [["", ""], *rows]


def _cell(text: str) -> str:
    """Returns a text as one cell of a table, without what Markdown or HTML would take for more."""
    return one_line(text, 4000).replace("|", "\\|").replace("<", "&lt;")


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; the first row is the header."""
    head, *others = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *others])
