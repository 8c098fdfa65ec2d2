"""Recipes that networks were fine-tuned with: in what they differ, and the command that asks for one."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from abcsearch.errors import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def filled(recipe: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever files hold
    """Returns a recipe as plain JSON values, with the defaults of what older files lack."""
    from abcsearch.training.recipe import Recipe  # imports torch, which status does without

    return json.loads(
        json.dumps({**asdict(Recipe()), **(recipe if isinstance(recipe, dict) else {})})
    )


def asked(plain: Mapping[str, Any]) -> Any:  # noqa: ANN401 - whatever files hold
    """Returns the recipe that was asked for when a network was fine-tuned: that of a baseline may be another one.

    Args:
        plain: scores, or the identity of a checkpoint.
    """
    return plain.get("asked", plain.get("recipe"))


def changed(recipe: Any, usual: Any) -> tuple[str, ...]:  # noqa: ANN401 - whatever files hold
    """Returns the settings in which a recipe differs from another one: "epochs 20, not 30"."""
    one, other = _filled_alike(recipe, usual)
    return tuple(
        f"{key} {_text(value)}, not {_text(other.get(key))}"
        for key, value in one.items()
        if _other(key, one, other)
    )


def finetune_command(
    run_dir: object,
    recipe: Any,  # noqa: ANN401 - whatever files hold
    usual: Any,  # noqa: ANN401
    workers: int = 1,
    only: Sequence[str] = (),
    *,
    replace: bool = False,
) -> str:
    """Returns the command that fine-tunes a run with a recipe, so that nothing is done again that has it already.

    Args:
        run_dir: the folder.
        recipe: how; None: with the run's own.
        usual: the run's own, from its table [finetune].
        workers: processes that train together.
        only: networks that are to be trained; none: all.
        replace: whether what another recipe has made is dropped.
    """
    one, other = _filled_alike(usual if recipe is None else recipe, usual)
    options = [
        f"--set {quoted(f'{key}={_text(value)}')}"
        for key, value in one.items()
        if _other(key, one, other)
    ]
    options += [f"--workers {workers}"] if workers > 1 else []
    options += [f"--only {quoted(name)}" for name in only]
    options += ["--replace"] if replace else []
    return " ".join(["abcsearch finetune", quoted(run_dir), *options])


def _filled_alike(recipe: Any, usual: Any) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: ANN401
    """Returns two recipes, filled only where one lacks what the other has: the defaults take long to import."""
    if isinstance(recipe, dict) and isinstance(usual, dict) and recipe.keys() == usual.keys():
        return json.loads(json.dumps(recipe)), json.loads(json.dumps(usual))
    return filled(recipe), filled(usual)


def _other(key: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Returns whether a setting differs; 1 and 1.0 do not."""
    return one[key] != other.get(key)


def _text(value: Any) -> str:  # noqa: ANN401 - a plain JSON value
    """Returns a value as --set takes it."""
    return value if isinstance(value, str) else json.dumps(value)
