"""Metrics of a whole data set, which are no means over its images: batches are added, then it is finished."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from abcsearch.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Metrics(ABC):
    """One or more metrics of a whole data set; higher is better. A new one is made for every network that is scored.

    Named in `Objective.whole`, or by a config as any metric is: `metric = "package.module:MyMetrics"`. What is called
    so without saying that it is one (`__call__`) is a metric per image.
    """

    @abstractmethod
    def add(self, outputs: Any, labels: torch.Tensor) -> None:  # noqa: ANN401 - what the objective's networks return
        """Takes a batch; what is kept of it should be small, and on the CPU.

        Args:
            outputs: of the network, as `Objective.output` makes them.
            labels: of the batch, see `abcsearch.data.split.Images`.
        """

    @abstractmethod
    def finish(self) -> Mapping[str, float] | float:
        """Returns the metrics of all that was added: by name, or one alone."""

    def resampled(self, counts: NDArray[np.int64]) -> Mapping[str, NDArray[np.float64]] | None:
        """Returns what `finish` would be of images that are drawn with replacement: by name (draws,); None if unknown.

        From it reports have intervals. By default None: they then say that they know none.

        Args:
            counts: (draws, images), how often each draw has each image, in the order in which these were added.
        """
        del counts
        return None


class Collection:
    """The metrics of a whole data set that an objective has, while batches come in."""

    def __init__(self, whole: Mapping[str, type[Metrics]]) -> None:
        """Makes one of each kind; several names may be of one."""
        self._whole = whole
        self._made: dict[type[Metrics], tuple[str, Metrics]] = {}  # with the first of its names
        for name, kind in whole.items():
            if kind not in self._made:
                self._made[kind] = name, _called(name, kind)

    def add(self, outputs: Any, labels: torch.Tensor) -> None:  # noqa: ANN401 - as of `Metrics`
        """Takes a batch."""
        for name, metrics in self._made.values():
            _called(name, metrics.add, outputs, labels)

    def finish(self) -> dict[str, float]:
        """Returns all metrics by name.

        Raises:
            ConfigError: if one of them is not among what is returned, or no number.
        """
        returned = {
            kind: _called(name, metrics.finish) for kind, (name, metrics) in self._made.items()
        }
        return {name: _number(name, returned[kind]) for name, kind in self._whole.items()}

    def resampled(self, counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Returns the metrics of images that are drawn, as `Metrics.resampled`, of those that say so.

        Raises:
            ConfigError: if one of them fails, or returns something else.
        """
        drawn: dict[str, NDArray[np.float64]] = {}
        for name, metrics in self._made.values():
            returned: Any = _called(name, metrics.resampled, counts) or {}
            for metric, values in returned.items():
                if np.shape(values) != (len(counts),):
                    msg = f"metric {metric!r}: resampled() returns one number per draw, ({len(counts)},), found "
                    raise ConfigError(f"{msg}{np.shape(values)}")
                drawn[metric] = np.asarray(values, dtype=float)
        return {name: drawn[name] for name in self._whole if name in drawn}


def _called(name: str, function: Any, *args: Any) -> Any:  # noqa: ANN401 - the user's
    """Returns what a call into metrics returns, which may be the user's.

    Raises:
        ConfigError: if it fails.
    """
    try:
        return function(*args)
    except (torch.OutOfMemoryError, ConfigError, ModelError):
        raise
    except Exception as error:
        msg = f"metric {name!r} of the whole data set failed: {error!r}"
        raise ConfigError(msg) from error


def _number(name: str, returned: Any) -> float:  # noqa: ANN401 - the user's
    """Returns one metric out of what `finish` returned."""
    value: object = returned
    if isinstance(returned, Mapping):
        values = cast("Mapping[str, object]", returned)
        value = (
            values[name]
            if name in values
            else next(iter(values.values()))
            if len(values) == 1
            else None
        )
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, int | float):
        return float(value)
    given = sorted(map(str, returned)) if isinstance(returned, Mapping) else type(returned).__name__
    msg = f"metric {name!r}: finish() returns a number, or numbers by name with {name!r} among them, found {given}"
    raise ConfigError(msg)


def is_whole(metric: object) -> bool:
    """Returns whether a metric is of a whole data set: a class derived from `Metrics`."""
    return isinstance(metric, type) and issubclass(metric, Metrics)
