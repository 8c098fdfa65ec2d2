"""In what the settings of two runs differ: defaults filled in, one short text for each difference."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from abcsearch.channels.options import LatencyOptions
from abcsearch.evaluation.options import BEFORE, CascadeOptions
from abcsearch.evaluation.registry import EVALUATORS
from abcsearch.execution.options import ExecutionOptions
from abcsearch.preparation.registry import PREPARATIONS
from abcsearch.runs.recipes import filled
from abcsearch.runs.settings import UNSAID, Part, SpaceOptions
from abcsearch.searchers.registry import SEARCHERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LONGEST = 40  # of a value that is shown
_MOST = 12  # differences that are listed


def complete(settings: Mapping[str, Any], metric: str | None = None) -> dict[str, Any]:
    """Returns plain settings with the defaults of what they leave out, so that a default written out is none other.

    Args:
        settings: as `to_plain` has them; also those of an older version.
        metric: what fitness is where the evaluator's metric is left open; None: not known.
    """
    settings_ = dict(settings)
    records = {
        "space": SpaceOptions(),
        "latency": LatencyOptions(),
        "execution": ExecutionOptions(),
    }
    for key, usual in records.items():
        # What it was before it was asked
        dated = UNSAID.get(key, {}) if settings_.get(key) else {}
        settings_[key] = json.loads(
            json.dumps({**asdict(usual), **dated, **(settings_.get(key) or {})})
        )
    for key in ("pretrain", "finetune"):
        if settings_.get(key):
            settings_[key] = filled(settings_[key])
    registries = {"searcher": SEARCHERS, "evaluator": EVALUATORS, "prepare": PREPARATIONS}
    for key in filter(settings_.get, registries):
        table = _dated(key, settings_[key])
        settings_[key] = {
            **table,
            "options": {
                **_defaults(registries[key], table["name"]),
                **(table.get("options") or {}),
            },
        }
    options = settings_["evaluator"]["options"]
    if "metric" in options and options["metric"] is None:
        options["metric"] = metric
    for stage in _stages(settings_["evaluator"]["name"]):
        usual = {
            key: value
            for key, value in _defaults(EVALUATORS, stage).items()
            if key not in CascadeOptions.SHARED
        }
        options[stage] = {**usual, **options[stage]}
    return settings_


def _dated(kind: str, plain: dict[str, Any]) -> dict[str, Any]:
    """Returns a plain part of a kind with the options that earlier versions did not have, as these had their effect."""
    if kind == "evaluator":
        return asdict(Part(**plain).completed(BEFORE))
    return asdict(Part(**plain).searching(former=True)) if kind == "searcher" else plain


def _stages(evaluator: str) -> tuple[str, ...]:
    """Returns the names of the stages of a registered evaluator, () of one without and of any other."""
    entry = EVALUATORS.get(evaluator)
    return getattr(entry.options, "STAGES", ()) if entry is not None else ()


def _defaults(registry: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the default options of a registered part; {} of any other, and of one that is not installed."""
    try:
        kind: Any = registry[name].options if name in registry else None
    except ImportError:
        return {}
    return {} if kind is None else json.loads(json.dumps(asdict(kind())))


def unlike(one: Mapping[str, Any], other: Mapping[str, Any], keys: tuple[str, ...]) -> list[str]:
    """Returns in what settings differ: "budget.macs is 0.5 and 0.6"; a long value is not shown.

    Args:
        one: complete settings.
        other: likewise.
        keys: which of them count.
    """
    lines = [line for key in keys for line in _lines(one.get(key), other.get(key), key)]
    lines = list(dict.fromkeys(lines))
    return lines[:_MOST] + ([f"and {len(lines) - _MOST} more"] if len(lines) > _MOST else [])


def _lines(one: Any, other: Any, where: str) -> Iterator[str]:  # noqa: ANN401 - plain values
    """Yields a text for every plain value in which two settings differ."""
    if one == other:
        return
    if where == "model.sizes":
        yield "another starting network (an export)"
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            # Options stand beside the name in a config
            inner = where if key == "options" else f"{where}.{key}"
            yield from _lines(one.get(key), other.get(key), inner)
    else:
        first, second = _short(one), _short(other)
        known = first is not None and second is not None and first != second
        yield f"{where} is {first} and {second}" if known else f"{where} differs"


def _short(value: Any) -> str | None:  # noqa: ANN401 - a plain value
    """Returns a value in a few words, or None if it is too long for that."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return _short(value.get("name", "set"))
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else None
