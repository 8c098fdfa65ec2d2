"""What a baseline brings, called and looked at: a structure, a source of networks, a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from abcsearch.channels.source import Source, check_source
from abcsearch.errors import AbcSearchError, ConfigError, one_line
from abcsearch.training.recipe import Recipe
from abcsearch.transforms.ranked import with_products

if TYPE_CHECKING:
    from collections.abc import Callable

    from abcsearch.space import Candidate


def checked_structure(name: str, structure: Callable[[Any], Any], task: Any) -> Candidate:  # noqa: ANN401 - a task
    """Returns the structure of a baseline, as the space of the run has structures.

    Args:
        name: of the baseline.
        structure: its function.
        task: of the run.

    Raises:
        ConfigError: if the user's function fails, or returns something that no network of the task can be sliced to.
    """
    try:
        candidate = tuple(int(width) for width in structure(task))
        task.graph.structure(candidate)
    except Exception as error:  # the user's code: anything can go wrong in it
        msg = f"baseline {name!r} gives no structure of this network (kept channels per dimension): {error!r}"
        raise ConfigError(msg) from error
    # Where criteria or ranks are searched, a structure that names none has the first, and whole layers.
    more = task.graph.ranks or not task.space.ordered.all()
    return (*candidate, *task.space.full[len(candidate) :]) if more else candidate


def checked_networks(name: str, networks: Callable[[Any], Any], task: Any) -> Source:  # noqa: ANN401 - a task
    """Returns the source that the network of a baseline comes from.

    Args:
        name: of the baseline.
        networks: its function.
        task: of the run.

    Raises:
        ConfigError: if the user's function fails, or returns something else, or a source of another graph.
        ModelError: if the source does not keep its word, see `check_source`.
    """
    made = _called(f"networks of baseline {name!r}", networks, task)
    if not isinstance(made, Source) or made.graph is not task.graph:
        msg = f"networks of baseline {name!r} is a function of the task that returns a Source of task.graph, "
        raise ConfigError(
            msg
            + f"found {type(made).__name__}{' of another graph' if isinstance(made, Source) else ''}"
        )
    made = with_products(made)
    check_source(made)
    return made


def checked_recipe(
    name: str,
    change: Callable[[Recipe, Any, Candidate], Any],
    recipe: Recipe,
    task: Any,  # noqa: ANN401 - a task
    structure: Candidate,
) -> Recipe:
    """Returns the recipe that a baseline makes of the one that is asked for.

    Args:
        name: of the baseline.
        change: its function.
        recipe: what is asked for.
        task: of the run.
        structure: of the baseline.

    Raises:
        ConfigError: if the user's function fails, or returns something else.
    """
    made = _called(f"recipe of baseline {name!r}", change, recipe, task, structure)
    if not isinstance(made, Recipe):
        msg = f"recipe of baseline {name!r} is a function (recipe, task, structure) that returns a Recipe, "
        raise ConfigError(msg + f"found {made!r:.80}")
    return made


def _called(what: str, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 - the user's
    """Returns what the user's function returns; raises ConfigError if it fails."""
    try:
        return function(*arguments)
    except AbcSearchError:
        raise
    except Exception as error:  # the user's code: anything can go wrong in it
        msg = f"{what} fails: {type(error).__name__}: {one_line(str(error))}"
        raise ConfigError(msg) from error
