"""How good, how fast and how large an exported network is, or one of the user's own checkpoints."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from abcsearch.channels.latency import forward_times, torch_threads
from abcsearch.data.registry import load_data, reads_files
from abcsearch.errors import ConfigError, ExportError, ModelError, one_line, plural, quoted
from abcsearch.example import Example, described, repeated, run_on
from abcsearch.exporting import open_export
from abcsearch.exporting.plan_files import export_files
from abcsearch.runs.config_run import load_run_data
from abcsearch.runs.disk.weights import load_brought
from abcsearch.runs.settings import Part
from abcsearch.runs.setup_check import Asked, look_at
from abcsearch.training.computing import find_device
from abcsearch.training.objectives import metric_text
from abcsearch.training.scoring import score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from abcsearch.data.splits import Data
    from abcsearch.example import Inputs
    from abcsearch.runs.settings import RunConfig

SPLITS = ("test", "validation")
_NO_SCALE = "the export does not say how its pixels were normalised; these are the data set's"
_NOT_TUNED = "this network had not been fine-tuned when it was exported"
_SECONDS = 20.0  # for timing one size of batch, beyond which three passes do


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How an export is evaluated.

    Attributes:
        batch: images per pass when time is measured, beside single ones.
        split: "test", or "validation": that of the search.
        device: "auto", "cpu" or "cuda:0"; files run on the CPU.
        threads: of the CPU, when time is measured.

    Raises:
        ConfigError: if a value is out of range.
    """

    batch: int = 64
    split: str = "test"
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        """Checks the values."""
        for name, value in (("batch", self.batch), ("threads", self.threads)):
            if value < 1:
                msg = f"{name} is at least 1, found {value}"
                raise ConfigError(msg)
        if self.split not in SPLITS:
            msg = f"split is {' or '.join(SPLITS)}, found {self.split!r}"
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an export is worth.

    Attributes:
        path: its folder or file.
        data: name of the data set.
        split: which part of it.
        images: how many there are.
        metrics: by name, means over the images, as in the report.
        latency_ms: median forward time, by batch size.
        threads: of the CPU, when that was measured.
        device: where it ran.
        bytes: of its files.
        macs: of one image, where the export says it.
        params: number of parameters, likewise.
        notes: what to know about these numbers.
    """

    path: str
    data: str
    split: str
    images: int
    metrics: dict[str, float]
    latency_ms: dict[int, float]
    threads: int
    device: str
    bytes: int
    macs: int | None
    params: int | None
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Returns what people read."""
        scores = ", ".join(
            f"{name} {metric_text(name, value)}" for name, value in self.metrics.items()
        )
        times = ", ".join(
            f"{ms:.2f} ms for a batch of {size}" for size, ms in self.latency_ms.items()
        )
        costs = [
            f"{value:,} {name}"
            for name, value in (("MACs", self.macs), ("params", self.params))
            if value
        ]
        return [
            f"{self.data}, {plural(self.images, f'{self.split} image')}: {scores}",
            f"latency: {times} ({self.device}, {self.threads} thread(s))",
            f"size: {', '.join([f'{self.bytes:,} bytes', *costs])}",
            *(f"note: {note}" for note in self.notes),
        ]


def evaluate_export(
    path: str | Path,
    data: Part | None = None,
    options: EvaluationOptions | None = None,
    *,
    trust: bool = False,
) -> Measured:
    """Scores an export on a split of its data and measures its forward time.

    Args:
        path: what `export` wrote: a folder, an .onnx or a .pt2 file.
        data: the data set; by default that of the run that the export comes from, as the export says.
        options: how.
        trust: takes a file from elsewhere at its word (see `load`), also of its data.

    Raises:
        ExportError: if there is no export, it is damaged, or says nothing of its data and none is given; or if it is
            from elsewhere and its data would be imported by name, or read from a path.
        DataError, ModelError: if the data cannot be read, or do not fit the network.
    """
    where, options = Path(path), options or EvaluationOptions()
    _refuse_run(where)
    with torch_threads(options.threads):
        model, facts, trusted = open_export(where, trust=trust)
    device = find_device(options.device)
    if where.is_file() and device.type != "cpu":
        msg = f"{where} runs on the CPU, found device {options.device!r}; the format safetensors runs on others"
        raise ConfigError(msg)
    info = facts.get("info", {})
    _check_costs(info, where)
    named = _data_of(where, info, vouched=trusted or trust) if data is None else data
    loaded = load_data(named.name, **named.options)
    counted = sum(parameter.numel() for parameter in model.parameters()) if where.is_dir() else None
    files = export_files(where) if where.is_dir() else [where]
    facts = {"macs": info.get("macs"), "params": info.get("params", counted)}
    return _measured(
        model,
        loaded,
        where,
        options,
        files=files,
        **facts,
        notes=_notes(info, given=data is not None),
    )


def evaluate_checkpoint(
    path: str | Path, config: RunConfig, options: EvaluationOptions | None = None
) -> Measured:
    """Scores a checkpoint, as its network is, on a split of a config's data, and measures its forward time.

    Args:
        path: weights of the config's network, which `load_brought` reads.
        config: of the network and the data.
        options: how.

    Raises:
        CheckpointError: if the file is missing or unreadable, or does not fit the network.
        DataError, ModelError: if the data cannot be read, or do not fit the network.
    """
    where, options = Path(path), options or EvaluationOptions()
    model = config.model.build(config.seed)
    load_brought(model, where)
    data = load_run_data(config)
    _check_fit(model.eval(), data, where)
    # It need not be one that can be pruned
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run_on(model, data.example.clone())
    macs = counter.get_total_flops() // 2
    looked = look_at(model, data, macs, Asked(brought=True, device=find_device(options.device)))
    params = sum(parameter.numel() for parameter in model.parameters())
    notes = (
        f"search would begin with the full network: {looked.words}",
        *looked.warnings,
        *looked.notes,
    )
    return _measured(
        model, data, where, options, files=[where], macs=macs, params=params, notes=notes
    )


def _measured(  # noqa: PLR0913 - what is measured, and what is known of it
    model: nn.Module,
    data: Data,
    where: Path,
    options: EvaluationOptions,
    *,
    files: Sequence[Path],
    macs: int | None,
    params: int | None,
    notes: tuple[str, ...],
) -> Measured:
    """Returns what a network is worth on its data, and how long its passes take."""
    device = find_device(options.device)
    _check_fit(model, data, where)
    images = data.test if options.split == "test" else data.validation
    metrics = score(model.to(device), images, objective=data.objective)
    if "top5" in metrics and data.objective == "classification" and data.classes <= 5:
        del metrics["top5"]  # always 1
    example = data.example
    sizes = sorted({1, options.batch})
    batches = {size: repeated(example, size).to(device) for size in sizes}
    latency = {n: _median_ms(model, batch, options.threads) for n, batch in batches.items()}
    return Measured(
        path=str(where),
        data=data.name,
        split=options.split,
        images=len(images),
        metrics=metrics,
        latency_ms=latency,
        threads=options.threads,
        device=str(device),
        bytes=sum(file.stat().st_size for file in files),
        macs=macs,
        params=params,
        notes=notes,
    )


def _median_ms(model: nn.Module, batch: Inputs, threads: int) -> float:
    """Returns the median forward time in milliseconds: of 30 passes, or as many as fit into the time, but of three."""
    return statistics.median(forward_times([model], batch, threads=threads, seconds=_SECONDS)[0])


def _notes(info: Mapping[str, Any], *, given: bool) -> tuple[str, ...]:
    """Returns what to know about the numbers of an export.

    Args:
        info: what it says of itself.
        given: whether its data were given, instead of those that it names.
    """
    notes = (_NO_SCALE,) if given and not _says_scale(info) else ()
    return (*notes, _NOT_TUNED) if info.get("fine_tuned") is False else notes


def _says_scale(info: Mapping[str, Any]) -> bool:
    """Returns whether an export says how its pixels were normalised."""
    table = info.get("input")
    return isinstance(table, Mapping) and table.get("mean") is not None


def _check_costs(info: Mapping[str, Any], where: Path) -> None:
    """Raises ExportError where an export says of its costs what is no number."""
    for name in ("macs", "params"):
        if type(info.get(name, 0)) not in (int, type(None)):
            msg = f"export {where} is damaged: info.{name} is a whole number, found {info[name]!r:.80}"
            raise ExportError(f"{msg}; write it again with: abcsearch export RUN_DIR")


def _refuse_run(where: Path) -> None:
    """Raises ExportError for a run folder, which is not the export in it."""
    if (where / "run.json").is_file() and not (where / "plan.json").is_file():
        there = (where / "export" / "plan.json").is_file()
        todo = "" if there else f"first: abcsearch export {quoted(where)}; then: "
        todo += f"abcsearch evaluate {quoted(where / 'export')}"
        msg = f"{where} is a run folder, evaluated is an export of it; {todo}"
        raise ExportError(msg)


def _data_of(where: Path, info: Mapping[str, Any], *, vouched: bool) -> Part:
    """Returns the name and options of the data that an export says its run had.

    Raises:
        ExportError: if it says nothing of them; or if nobody vouches for it, and they would be imported by name or read
            from a path.
    """
    named = info.get("data")
    if not isinstance(named, Mapping) or not isinstance(named.get("name"), str):
        msg = f"{where} does not say what data it is for; give them: --data, a config, a run folder or a data set"
        raise ExportError(msg)
    data = Part.of(named)
    if not vouched and reads_files(data.name):
        msg = f"{where} comes from elsewhere and says that its data are {data.name!r}, {dict(data.options)!r:.200}; an "
        msg += "export does not decide what is imported or read: give them (--data), or trust it (--trust)"
        raise ExportError(msg)
    return data


def _check_fit(model: nn.Module, data: Data, where: Path) -> None:
    """Raises ModelError unless a network takes the images of some data."""
    try:
        with torch.inference_mode():
            run_on(model, data.example.clone())
    except Exception as error:  # of the network, or of what runs the file
        example, shape = data.example, described(data.example[:1])
        shape = shape if isinstance(example, Example) else tuple(example.shape[1:])
        msg = f"{where} does not take the images of {data.name}, {shape}: {one_line(str(error), 300)}; see --data"
        raise ModelError(msg) from error
