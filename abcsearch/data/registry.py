"""Data sets by name or import path."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from abcsearch.data.named import DATASETS
from abcsearch.data.splits import Data
from abcsearch.data.user_data import PAIR_OPTIONS, call_own
from abcsearch.errors import AbcSearchError, DataError, option_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def load_data(name: str | Callable[..., Any], **options: Any) -> Data:  # noqa: ANN401 - each data set has its own
    """Returns a data set by name, by import path, or by the function that loads it.

    Args:
        name: a key of `DATASETS`; or your own function, or "package.module:callable" that leads to it. It returns
            `Data`, or two map-style Datasets of PyTorch, (train, test), with items (image tensor, label). Two Datasets
            are read into memory and split here; validation, seed, objective, stream and workers then say how (see
            `from_datasets`).
        options: of the data set.

    Raises:
        DataError: if the name or an option is unknown (with the nearest valid one), one is missing, or loading fails.
    """
    name = DATASETS.name_of(name)
    check_data_options(name, options)
    function = DATASETS.find(name)
    try:
        data: object = call_own(name, function, options) if ":" in name else function(**options)
    except DataError as error:
        msg = f"data set {name!r}: {error}"
        raise DataError(msg) from error
    except AbcSearchError:
        raise
    except (
        Exception
    ) as error:  # the user's loader, or an option of the wrong type: anything can go wrong
        given = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
        msg = f"data set {name!r} cannot be loaded with {given}: {type(error).__name__}: {error}"
        raise DataError(msg) from error
    if not isinstance(data, Data):
        pair = " or two Datasets (train, test)" if ":" in name else ""
        msg = f"data set {name!r} returned {type(data).__name__}, expected abcsearch.Data (see Data.from_tensors){pair}"
        raise DataError(msg)
    return data


def check_data_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises DataError for an unknown name, or with all unknown and missing options, without loading anything."""
    function = DATASETS.find(name)
    parameters = _parameters(function)
    given = [
        option
        for option in options
        if ":" not in name or option not in PAIR_OPTIONS or option in parameters
    ]
    problems = option_problems(function, given)
    if problems:
        raise DataError("\n".join(f"data set {name!r}: {problem}" for problem in problems))


def takes_seed(name: str) -> bool:
    """Returns whether the split of a data set is decided by an option `seed`.

    Raises:
        DataError: if the name is unknown.
    """
    return ":" in name or "seed" in _parameters(DATASETS.find(name))


def reads_files(name: str) -> bool:
    """Returns whether a data set is imported by name, or reads files that its options name.

    Raises:
        DataError: if the name is unknown.
    """
    return ":" in name or "path" in _parameters(DATASETS.find(name))


def _parameters(function: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except ValueError:  # some builtins have none
        return {}
