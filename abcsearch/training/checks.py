"""What is refused before a training begins, or when a lesson does not keep what `Lesson` says."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from abcsearch.data.split import Images
from abcsearch.errors import (
    ConfigError,
    DataError,
    DivergedError,
    LessonError,
    ModelError,
    callers,
    plural,
)
from abcsearch.training.lesson import LOSS_SETTINGS, Lesson, Supervised, whole_of
from abcsearch.training.mixing import check_mixing
from abcsearch.training.objectives import find_objective

if TYPE_CHECKING:
    from collections.abc import Iterable

    from abcsearch.training.recipe import Recipe


def check_images(recipe: Recipe, split: Images) -> None:
    """Raises unless these are images; says so where they are fewer than one batch, which then has all of them.

    Raises:
        DataError: if it is no set of images, or there is none.

    Warns:
        UserWarning: if there are fewer images than one batch.
    """
    if not isinstance(split, Images):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"training takes a Split or Stream (data.train), found {type(split).__name__}"
        raise DataError(msg)
    if not len(split):
        raise DataError("there is no training image to learn from")
    if len(split) < recipe.batch_size:
        images = plural(len(split), "training image")
        msg = f"batch_size = {recipe.batch_size} is larger than the {images}: they are one batch"
        warnings.warn(msg, UserWarning, stacklevel=callers())


def fitted(recipe: Recipe, images: int, workers: int = 1) -> Recipe:
    """Returns a recipe whose batches there are images for; the same one where that is so already.

    Args:
        recipe: how to train.
        images: how many there are.
        workers: that share a batch equally.
    """
    most = max(images // workers * workers, workers)
    return recipe if recipe.batch_size <= images else replace(recipe, batch_size=most)


def check_training(
    recipe: Recipe, split: Images, objective: str, *, taught: bool, scored: bool
) -> None:
    """Raises unless a recipe suits what it is for.

    Args:
        recipe: how to train.
        split: training images.
        objective: what the network is for.
        taught: whether there is a teacher.
        scored: whether there are validation images.

    Raises:
        DataError: if it is no set of images, or RandAugment cannot have their pixels.
        ConfigError: if the objective is unknown or not that of a classification
            where it has to be, or a teacher or validation images are missing, or the teacher is one too many.
    """
    check_images(recipe, split)
    goal = find_objective(objective)
    check_mixing(recipe, split, objective)
    if recipe.label_smoothing and goal.taught is not None:
        msg = f"label_smoothing is of a loss on labels; under the objective {objective!r} the loss is the network's own, "
        raise ConfigError(f"{msg}found {recipe.label_smoothing:g}; set it to 0")
    name = (
        "distill_features"
        if recipe.distill_features and not recipe.distillation
        else "distillation"
    )
    if recipe.taught and goal.divergence is None:
        msg = f"{name} learns from another network's answers, and the objective {objective!r} has no divergence that says "
        msg += "how far two answers are apart"
        more = "" if goal.taught is not None else ", or give yours one: Objective(divergence=...)"
        raise ConfigError(f"{msg}; set {name} to 0{more}")
    if recipe.taught != taught:
        there = "no teacher" if recipe.taught else "a teacher"
        msg = (
            f"{name} = {getattr(recipe, name):g} with {there}: fine-tuning of pruned networks takes both (the full "
            "network is the teacher), training from the beginning neither"
        )
        raise ConfigError(msg)
    _check_kept(recipe, scored=scored)


def _check_kept(recipe: Recipe, *, scored: bool) -> None:
    """Raises ConfigError if the best weights are asked for, and nothing says which these are."""
    if recipe.keep == "best" and not scored:
        msg = 'keep = "best" needs validation images, which fine-tuning has; set keep to "last"'
        raise ConfigError(msg)


def check_lesson(lesson: Lesson, recipe: Recipe, split: Images, *, scored: bool) -> None:
    """Raises unless a lesson is whole, and the recipe suits it.

    Raises:
        LessonError: if a method or modules are missing, or something is not of its kind.
        ModelError: if there is nothing to train.
        ConfigError, DataError: as `check_training`; if the recipe sets what the lesson does not see to.
    """
    name = type(lesson).__name__
    if isinstance(lesson, Supervised):
        taught = lesson.teacher is not None
        check_training(recipe, split, lesson.objective, taught=taught, scored=scored)
    else:
        check_images(recipe, split)
        _check_heeded(lesson, recipe)
        check_mixing(recipe, split, "classification")
        _check_kept(recipe, scored=scored)
    _check_methods(lesson, scored=scored)
    _check_modules(name, "modules", getattr(lesson, "modules", None))
    _check_modules(name, "teachers", lesson.teachers)
    if not lesson.modules:
        msg = f"{name}.modules says by name what is trained, found none; put the network there: {{'network': network}}"
        raise LessonError(msg)
    check_plain(f"{name}.same()", lesson.same())
    saved_state(lesson)
    try:
        whole = whole_of(lesson.modules)
    except KeyError as error:
        msg = f"{name}.modules: torch does not take a name ({error.args[0]}); choose another one"
        raise LessonError(msg) from error
    if not any(p.requires_grad for p in whole.parameters()):
        called = type(whole).__name__ if len(lesson.modules) == 1 else name
        msg = f"{called} has no parameter to train: requires_grad is False everywhere"
        raise ModelError(msg)


def _check_heeded(lesson: Lesson, recipe: Recipe) -> None:
    """Raises ConfigError if a recipe sets something that would have no effect."""
    ignored = [name for name in LOSS_SETTINGS if getattr(recipe, name) and name not in lesson.heeds]
    if ignored:
        name = type(lesson).__name__
        settings = ", ".join(f"{setting} = {getattr(recipe, setting):g}" for setting in ignored)
        msg = f"{settings}: {name} does not say that it sees to that; set it to 0, or add it to {name}.heeds and do it"
        raise ConfigError(msg)


def _check_methods(lesson: Lesson, *, scored: bool) -> None:
    """Raises LessonError if a subclass does not define what it needs."""
    kind = type(lesson)
    lacking = {
        "step(images, labels, draws)": kind.step is Lesson.step,
        "score(images), which validation images need": scored and kind.score is Lesson.score,
        "load_state_dict(state), the counterpart of its state_dict()": (
            kind.state_dict is not Lesson.state_dict
        )
        and kind.load_state_dict is Lesson.load_state_dict,
    }
    missing = "; ".join(method for method, lacks in lacking.items() if lacks)
    if missing:
        msg = f"{kind.__name__} lacks {missing}; define it as abcsearch.Lesson says"
        raise LessonError(msg)


def _check_modules(lesson: str, attribute: str, modules: object) -> None:
    """Raises LessonError unless these are modules by name, each once."""
    where, rule = f"{lesson}.{attribute}", "is a mapping of names to modules (torch.nn.Module)"
    if not isinstance(modules, Mapping):
        msg = f"{where} {rule}, found {'nothing' if modules is None else type(modules).__name__}; set it"
        raise LessonError(msg)
    names: dict[int, str] = {}
    for name, module in cast("Mapping[Any, Any]", modules).items():
        check_name(where, name)
        if not isinstance(module, nn.Module):
            msg = f"{where} {rule}, found {type(module).__name__} as {name!r}"
            raise LessonError(msg)
        if id(module) in names:
            msg = (
                f"{where} names one module twice, {names[id(module)]!r} and {name!r}; name it once"
            )
            raise LessonError(msg)
        names[id(module)] = name


def check_name(where: str, name: object) -> None:
    """Raises LessonError unless a name can be one in a checkpoint."""
    if not isinstance(name, str) or not name or "." in name:
        msg = f"{where}: a name is a text without dots, found {name!r}"
        raise LessonError(msg)


def check_optimizers(lesson: Lesson, optimizers: object) -> None:
    """Raises LessonError unless these are optimisers by name, of parameters of the lesson's modules, each once."""
    where = f"{type(lesson).__name__}.optimizers()"
    if not isinstance(optimizers, Mapping) or not optimizers:
        kind = type(optimizers).__name__ if optimizers or optimizers is None else "none"
        msg = f"{where} returns optimisers (torch.optim) by name, found {kind}; leave it to Lesson for the recipe's one"
        raise LessonError(msg)
    known = {id(parameter) for parameter in whole_of(lesson.modules).parameters()}
    owners: dict[int, str] = {}
    for name, optimizer in cast("Mapping[Any, Any]", optimizers).items():
        check_name(where, name)
        if not isinstance(optimizer, torch.optim.Optimizer):
            msg = f"{where} returns optimisers (torch.optim) by name, found {type(optimizer).__name__} as {name!r}"
            raise LessonError(msg)
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            _check_owner(where, name, parameter, known, owners)


def _check_owner(
    where: str, name: str, parameter: torch.Tensor, known: set[int], owners: dict[int, str]
) -> None:
    """Raises LessonError if a parameter is none of the modules', or has an optimiser already; notes its one."""
    what = f"a parameter {tuple(parameter.shape)}"
    if id(parameter) not in known:
        msg = f"{where}: {name!r} changes {what} that is in none of the lesson's modules; add its module to them"
        raise LessonError(msg)
    if id(parameter) in owners:
        msg = f"{where}: {what} is changed by {owners[id(parameter)]!r} and {name!r}; give it to one of them"
        raise LessonError(msg)
    owners[id(parameter)] = name


def check_loss(lesson: Lesson, loss: object, parameters: Iterable[torch.Tensor]) -> None:
    """Raises LessonError unless a lesson has returned a loss, and either that or the parameters have gradients."""
    where = f"{type(lesson).__name__}.step()"
    if not isinstance(loss, torch.Tensor) or loss.shape != () or not loss.is_floating_point():
        what = (
            f"{tuple(loss.shape)} {loss.dtype}"
            if isinstance(loss, torch.Tensor)
            else type(loss).__name__
        )
        msg = f"{where} returns the loss, one floating-point number as a tensor of shape (), found {what}"
        raise LessonError(msg)
    passed_back = any(parameter.grad is not None for parameter in parameters)
    if loss.requires_grad and passed_back:
        msg = f"{where} has called backward and returns a loss that can be: return loss.detach(), or do not call it"
        raise LessonError(msg)
    if not loss.requires_grad and not passed_back:
        msg = (
            f"{where} returns a loss that has no gradient, and has called no backward: it depends on no parameter that "
            "is trained; look for detach(), torch.no_grad() and requires_grad in what it calls"
        )
        raise LessonError(msg)


def check_finite(what: str, values: torch.Tensor) -> None:
    """Raises DivergedError unless what is learned beside the weights is finite: losses of before do not tell.

    Args:
        what: they are, in the plural.
        values: of any shape.
    """
    if not torch.isfinite(values.detach()).all():
        msg = f"{what} are not finite after a step of the training; lower lr"
        raise DivergedError(msg)


def check_score(lesson: Lesson, value: object) -> float:
    """Returns a score; raises LessonError if it is no number."""
    if not isinstance(value, int | float):
        msg = f"{type(lesson).__name__}.score() returns a number, higher is better, found {type(value).__name__}"
        raise LessonError(msg)
    return value


def saved_state(lesson: Lesson) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Returns a lesson's state: its tensors, and its plain values.

    Raises:
        LessonError: if it holds something else.
    """
    where = f"{type(lesson).__name__}.state_dict()"
    state: object = lesson.state_dict()
    if not isinstance(state, Mapping):
        msg = f"{where} returns a mapping of names to tensors and plain JSON values, found {type(state).__name__}"
        raise LessonError(msg)
    entries = dict(cast("Mapping[Any, Any]", state))
    tensors = {name: value for name, value in entries.items() if isinstance(value, torch.Tensor)}
    plain = {name: value for name, value in entries.items() if name not in tensors}
    check_plain(where, dict.fromkeys(entries))
    check_plain(where, plain)
    return tensors, plain


def check_plain(where: str, value: object, path: str = "") -> None:
    """Raises LessonError unless a value comes back from JSON as it was, but for tuples, which become lists."""
    if isinstance(value, Mapping):
        for key, entry in cast("Mapping[Any, Any]", value).items():
            if not isinstance(key, str):
                msg = f"{where} holds plain JSON values by text, found the key {key!r}{path and f' in {path}'}"
                raise LessonError(msg)
            check_plain(where, entry, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, entry in enumerate(cast("list[Any]", value)):
            check_plain(where, entry, f"{path}[{number}]")
    elif value is not None and type(value) not in (bool, int, float, str):
        kinds = "numbers, text, true and false, None, and lists and mappings of these"
        msg = f"{where} holds plain JSON values ({kinds}), found {type(value).__name__} as {path}"
        raise LessonError(msg)
