"""Networks of a run as files."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abcsearch.data.images import class_count
from abcsearch.errors import ConfigError, RunError, quoted
from abcsearch.example import sizes_of
from abcsearch.exporting import Exported, export
from abcsearch.exporting.checking import Frozen
from abcsearch.exporting.files import TOLERANCE
from abcsearch.results.card import feeding, write_card
from abcsearch.results.chained import chain_facts, chain_network, known_chain, link_number
from abcsearch.results.finetuned_files import problems, refusal
from abcsearch.results.links import START, Chain, Time
from abcsearch.runs.config_run import seeded_data
from abcsearch.training.detections import POST_PROCESSING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from abcsearch.data.splits import Data
    from abcsearch.results.open_run import FinishedRun, Structure

_INT8 = 0.05  # tolerance of an int8 network in ONNX, where rounding is another one here and there


@dataclass(frozen=True, kw_only=True)
class RunExport:
    """What was exported of a run.

    Attributes:
        made: what was written.
        tuned: whether the network was fine-tuned.
        card: the model card.
        feeding: how to feed it, a line each.
        link: the link of the chain that it is; "" of none.
        waiting: transforms of the config that have not been applied, since it is not fine-tuned.
    """

    made: Exported
    tuned: bool
    card: Path
    feeding: tuple[str, ...]
    link: str = ""
    waiting: tuple[str, ...] = ()


def export_run(
    run: FinishedRun,
    path: str | Path | None = None,
    *,
    format: str | None = None,  # noqa: A002 - as of `export`
    network: str | None = None,
    link: str | None = None,
    licence: str = "unknown",
) -> RunExport:
    """Exports the winner or what it is compared with, fine-tuned if it has been, with a model card.

    Where the config has transforms, the winner is what the last of them has made of it.

    Args:
        run: the run.
        path: folder or file; by default `export_folder`, in which every format has files of its own.
        format: see `export`; by default that of the path, or of the link.
        network: name of a structure of the run, e.g. full or uniform; by default the winner.
        link: number or name of the link of the chain that is exported; "0" or "start" for the winner before it.
        licence: of the weights, for the card.

    Raises:
        ConfigError: if the run has no structure, or its chain no link, of that name.
        RunError: if that is a link in the run folder; if it has been fine-tuned and what there is of that is damaged,
            which is not passed over; or if the chain is not finished.
        ExportError: see `export`.

    Warns:
        UserWarning: if the weights that are not kept are damaged.
    """
    if path is None:
        run.folder.inside(str(export_folder(Path(), network)))
    structure = run.winner if network is None else run.named(network)
    tuned = run.tuned(structure)
    if tuned.wrong:
        raise RunError(refusal(run.folder, structure.name, tuned))
    for line in problems(run.folder, structure.name, tuned):
        warnings.warn(line, UserWarning, stacklevel=2)
    scores = tuned.scores
    model, chain = _picked(run, structure, scores, link)
    if run.tuned(structure) != tuned:
        msg = f"{structure.name} has been fine-tuned anew while it was exported; run it again"
        raise RunError(msg)
    info = _info(run, structure, scores) | _chain_info(chain)
    target = export_folder(run.folder.path, network) if path is None else Path(path)
    one_file = target.suffix.lower() in (".onnx", ".pt2")
    frozen = isinstance(model, Frozen)
    made = export(
        model,
        target,
        format=format or (None if one_file or chain is None else chain.links[-1].format),
        example_input=run.result.task.data.example,
        constructor=None if frozen else run.config.model.name,
        options=None if frozen else run.config.model.options,
        info=info,
        tolerance=_INT8 if frozen else TOLERANCE,
    )
    waits = structure is run.winner and scores is None
    return RunExport(
        made=made,
        tuned=scores is not None,
        card=write_card(run, structure, model, made, info, scores, chain, licence),
        feeding=tuple(feeding(info)),
        link="" if chain is None else chain.labels[len(chain.links) - 1],
        waiting=tuple(transform.name for transform in run.config.transform) if waits else (),
    )


def _picked(
    run: FinishedRun, structure: Structure, scores: Mapping[str, Any] | None, link: str | None
) -> tuple[nn.Module, Chain | None]:
    """Returns the network that is exported, and the chain up to the link that it is; None of no link."""
    chain = _chain(run, structure, scores, link)
    number = 0 if chain is None else link_number(chain, link)
    if chain is None or not number:
        return run.network(structure, tuned=scores is not None), None
    links, times = chain.links[: number + 1], _shortened(chain.times, number + 1)
    return chain_network(run, chain, number), replace(chain, links=links, times=times)


def _chain_info(chain: Chain | None) -> dict[str, Any]:
    """Returns what an export says of the last link of a chain; {} without one."""
    if chain is None:
        return {}
    number = len(chain.links) - 1
    last = chain.links[number]
    costs = {"macs": last.macs, "params": last.params, "test": dict(last.test)}
    return costs | {"chain": chain_facts(chain, number)}


def _chain(
    run: FinishedRun, structure: Structure, scores: object, link: str | None
) -> Chain | None:
    """Returns the chain that a structure is exported from; None where there is none.

    Raises:
        ConfigError: if a link is asked for where there is no chain.
        RunError: if the chain is not finished, and not asked to be left out.
    """
    of_winner = structure is run.winner and run.config.transform and scores is not None
    if not of_winner:
        if link not in (None, "0", START):
            msg = f"link {link!r} is one of the chain of the fine-tuned winner, which this run has not, or not yet: "
            msg += "leave it out; a chain is made by [[transform]] in the config, and abcsearch finetune"
            raise ConfigError(msg)
        return None
    chain = known_chain(run)
    if chain is None and link not in ("0", START):
        names = ", ".join(transform.name for transform in run.config.transform)
        msg = f"the chain of {run.winner.name} ({names}) is not finished; run: "
        msg += f"abcsearch finetune {quoted(run.folder.path)}; or export the network before it: --link 0"
        raise RunError(msg)
    return chain


def _shortened(times: tuple[Time, ...], count: int) -> tuple[Time, ...]:
    """Returns times of the first so many links."""
    return tuple(replace(time, median_ms=time.median_ms[:count]) for time in times)


def export_folder(run_dir: Path, network: str | None = None) -> Path:
    """Returns where a run keeps its exports: of the winner, or of another network by name."""
    return run_dir / "export" / (network or "")


def _info(
    run: FinishedRun, structure: Structure, scores: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns what an export says of its network: what it expects, what it is, where it comes from.

    Costs are those of one image; mean and std are of pixels in [0, 1], per channel, null where that is not known.
    """
    config, task, data = run.config, run.result.task, run.result.task.data
    named = seeded_data(config.data, config.seed)
    scale = getattr(data.train, "scale", None)
    return {
        "model": config.model.name,
        "data": {"name": named.name, **named.options},
        "objective": data.objective,
        "classes": _classes(data),
        **({"class_names": list(data.class_names)} if data.class_names else {}),
        "input": {
            "shape": sizes_of(data.example),
            "mean": list(scale.mean) if scale and scale.mean else None,
            "std": list(scale.std) if scale and scale.std else None,
        },
        **({"post_processing": POST_PROCESSING} if _has_places(run) else {}),
        "candidate": list(structure.candidate),
        "widths": {
            name: list(pair)
            for name, pair in task.space.widths(task.graph.settled(structure.candidate)).items()
        },
        **({"criteria": chosen} if (chosen := task.space.criteria(structure.candidate)) else {}),
        "macs": int(task.graph.costs.macs([structure.candidate])[0]),
        "params": int(task.graph.costs.params([structure.candidate])[0]),
        "fine_tuned": scores is not None,
        "metric": run.metric,
        "test": None if scores is None else scores["after"],
    }


def _has_places(run: FinishedRun) -> bool:
    """Returns whether detections are made of what the network returns, by whoever runs its export."""
    task = run.result.task
    return task.data.objective == "detection" and hasattr(task.base, "losses")


def _classes(data: Data) -> int | None:
    """Returns the number of classes; None where labels are values."""
    return None if class_count(data.train.labels) is None else data.classes
