"""Metrics that are no means over images: what a network answers is collected, and the metrics follow from all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from abcsearch.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@runtime_checkable
class Collected(Protocol):
    """Takes in what a network answers, batch by batch, and says in the end how good all of it is.

    Made anew for each scoring, by `Objective.collected`.
    """

    def add(self, outputs: Any, targets: Any) -> None:  # noqa: ANN401 - whatever the objective is about
        """Takes the outputs of a batch, on the device of the network, and the labels that belong to them."""
        ...

    def finish(self) -> dict[str, float]:
        """Returns all metrics of what was added so far, higher is better; changes nothing, so it may be asked again."""
        ...


def finished(collected: Collected, names: Sequence[str]) -> dict[str, float]:
    """Returns the metrics of what was collected, in the order of their names.

    Raises:
        ConfigError: if they are not numbers of these names.
    """
    values: object = collected.finish()
    if isinstance(values, dict) and set(values) == set(names) and all(map(_is_number, values.values())):
        return {name: float(values[name]) for name in names}
    msg = f"{type(collected).__name__}.finish() returns a number each of {', '.join(names)}, found {_shown(values)}"
    raise ConfigError(msg)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(values: object) -> str:
    if not isinstance(values, dict):
        return f"{values!r:.80}"
    shown: Mapping[Any, Any] = values
    return ", ".join(f"{name} = {value!r:.20}" for name, value in shown.items()) or "nothing"


def by_images(metric: str, image_metrics: Sequence[str]) -> None:
    """Raises ConfigError for a metric that is no mean over images where scoring in stages needs one."""
    if metric in image_metrics:
        return
    others = f", or choose another metric: {', '.join(image_metrics)}" if image_metrics else ""
    msg = f'evaluator: scoring = "racing" stops early by means over images, and {metric} is of a whole data set; set '
    raise ConfigError(f'{msg}scoring = "full"{others}')
