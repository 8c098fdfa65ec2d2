"""A chain of transforms after the search: applied, trained, scored and kept link by link; killed, it goes on."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.channels.baking import baked
from abcsearch.errors import AbcSearchError, ConfigError, ModelError, plural
from abcsearch.evaluation.adaptive_bn import calibrate, statistics
from abcsearch.exporting import export, open_export
from abcsearch.models.registry import Constructor
from abcsearch.results.chain_costs import measured, timed
from abcsearch.results.links import (
    CHAIN,
    LINK,
    START,
    Chain,
    Link,
    digits,
    file_hashes,
    identity_of,
    link_folder,
    read_chain,
    read_link,
    write_chain,
    write_record,
)
from abcsearch.runs.chain_check import check_chain
from abcsearch.runs.disk.weights import checkpoint_path
from abcsearch.runs.progress import Progress, silent
from abcsearch.runs.settings import Part
from abcsearch.steps import doing
from abcsearch.training.checkpoints import network_hash
from abcsearch.training.loop import train
from abcsearch.training.objectives import find_objective
from abcsearch.training.recipe import Recipe
from abcsearch.training.scoring import score
from abcsearch.transforms.base import Applied, Bound, Transform
from abcsearch.transforms.options import plain_recipe, recipe_of
from abcsearch.transforms.registry import make_transform

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from abcsearch.data.splits import Data


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What a chain works with.

    Attributes:
        data: of the network.
        folder: of the chain.
        constructor: what builds the network before it was pruned.
        recipe: that links change.
        seed: of the run.
        teacher: whose outputs are learned, where a recipe distils.
        progress: of trainings.
        tell: takes a line.
    """

    data: Data
    folder: Path
    constructor: Constructor
    recipe: Recipe
    seed: int
    teacher: nn.Module | None
    progress: Progress
    tell: Callable[[str], object]

    def opened(self, folder: Path, link: Link) -> nn.Module:
        """Returns the network of a link."""
        return _opened(folder, link, self.constructor.find())


def apply_chain(  # noqa: PLR0913 - all but the first four have a good default
    model: nn.Module,
    data: Data,
    transforms: Sequence[str | Mapping[str, Any] | Part],
    folder: str | Path,
    *,
    constructor: str | Callable[..., nn.Module] | None = None,
    options: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    threads: int = 1,
    teacher: nn.Module | None = None,
    progress: Progress = silent,
    tell: Callable[[str], object] = str,
) -> Chain:
    """Applies transforms to a network one after the other, and measures what each of them is worth.

    Each link is made of what the one before it has written, and kept in a folder of its own with a record that vouches
    for it: a chain that was killed goes on after the last whole epoch, with the same bits. Links that are there already
    are left alone; those that another network, order, option or recipe has made are replaced.

    Args:
        model: the network, trained, on the CPU; not changed.
        data: trained and calibrated on `data.train`; `data.test` is only scored.
        transforms: of `TRANSFORMS`, or by import path: names, or tables {"name": "low_rank", "ranks": 0.8}.
        folder: of the chain; made if missing.
        constructor: what builds the network before it was pruned, see `export`; by default its class.
        options: keyword arguments for it.
        recipe: that `finetune` of a link changes; by default `Recipe(lr=0.02)`.
        seed: of what is random in transforms and trainings.
        threads: of the CPU, for forward times.
        teacher: whose outputs are learned, where a recipe distils.
        progress: shown after every epoch.
        tell: takes a line for what is done.

    Returns:
        The links, the network that the chain begins with first; see `chain_model`.

    Raises:
        ConfigError: if links lose in this order, or an option is unknown or out of range.
        ModelError, ExportError, DataError: as the transforms, `train` and `export`.
    """
    transforms_ = [chosen if isinstance(chosen, Part) else Part.of(chosen) for chosen in transforms]
    recipe = recipe or Recipe(lr=0.02)
    model = baked(model)
    check_chain(transforms_, model, data, recipe)
    work = _Work(
        data=data,
        folder=Path(folder),
        constructor=Constructor.of(constructor or type(model), options or {}),
        recipe=recipe,
        seed=seed,
        teacher=teacher,
        progress=progress,
        tell=tell,
    )
    work.folder.mkdir(parents=True, exist_ok=True)
    links = [_begun(copy.deepcopy(model).cpu().eval(), work)]
    for number, chosen in enumerate(transforms_, start=1):
        transform = make_transform(chosen.name, chosen.options)
        links.append(_linked(number, chosen, transform, links[-1], work))
    known = _known(work.folder)
    goal = find_objective(data.objective)
    chain = Chain(
        folder=work.folder,
        links=tuple(links),
        metric=goal.headline,
        images=len(data.test),
        threads=threads,
    )
    if known is not None and known.links == chain.links:
        return known
    doing("measuring forward time of all links in turns")
    chain = timed(chain, work.opened, work.data)
    _tidy(chain)
    write_chain(chain)
    return chain


def chain_model(
    chain: Chain, constructor: Callable[..., nn.Module] | None = None, number: int = -1
) -> nn.Module:
    """Returns the network of a link, in evaluation mode on the CPU.

    Args:
        chain: that `apply_chain` returned.
        constructor: as of `load`.
        number: of the link, 0 for the network that the chain begins with, -1 for the last one.
    """
    number %= len(chain.links)
    return _opened(chain.place(number), chain.links[number], constructor)


def _opened(folder: Path, link: Link, constructor: Callable[..., nn.Module] | None) -> nn.Module:
    """Returns the network of a link's folder."""
    (file,) = [name for name in link.files if name.endswith(".pt2")] or [None]
    return open_export(
        folder if file is None else folder / file, None if file else constructor
    ).network


def _known(folder: Path) -> Chain | None:
    """Returns the chain that a folder holds; a record that is damaged counts as none."""
    try:
        return read_chain(folder)
    except AbcSearchError:
        return None


def _begun(model: nn.Module, work: _Work) -> Link:
    """Returns the network that the chain begins with as its first link, written if it is not there."""
    identity = digits([network_hash(model), work.data.fingerprint(), work.constructor.name])
    applied = Applied(model=model, facts={"weights": network_hash(model)})
    made = _Made(name=START, identity=identity, model=model, applied=applied)
    return _kept(0, START, identity, work) or _written(0, made, None, work)


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A link before it is written.

    Attributes:
        name: of its transform.
        identity: see `Link`.
        model: its network.
        transform: None for the start.
        part: its name and options.
        applied: facts and notes.
        recipe: how it was trained; None: not.
        untrained: metrics on the test images before that.
    """

    name: str
    identity: str
    model: nn.Module
    transform: Transform | None = None
    part: Part | None = None
    applied: Applied | None = None
    recipe: Recipe | None = None
    untrained: Mapping[str, float] | None = None


def _linked(number: int, chosen: Part, transform: Transform, before: Link, work: _Work) -> Link:
    """Returns a link: that which is there, or a new one."""
    recipe = recipe_of(transform.options, work.recipe)
    plain = None if recipe is None else plain_recipe(recipe)
    identity = identity_of(before.identity, chosen.name, dict(chosen.options), plain, work.seed)
    known = _kept(number, chosen.name, identity, work)
    if known is not None:
        return known
    doing(f"link {number}, {chosen.name}")
    model = work.opened(link_folder(work.folder, number - 1, before.name), before)
    applied = _applied(chosen.name, transform, model, work)
    made, untrained = applied.model.eval(), None
    if recipe is not None:
        untrained = score(made, work.data.test, objective=work.data.objective)
        made = _trained(number, chosen.name, transform, made, recipe, identity, work)
    elif transform.calibration():
        _calibrated(made, work.data, transform.calibration())
    link = _Made(
        name=chosen.name,
        identity=identity,
        model=made,
        transform=transform,
        part=chosen,
        applied=applied,
        recipe=recipe,
        untrained=untrained,
    )
    written = _written(number, link, before, work)
    for checkpoint in work.folder.glob(f"{number}-*.checkpoint"):
        checkpoint.unlink()
    return written


def _applied(name: str, transform: Transform, model: nn.Module, work: _Work) -> Applied:
    """Returns what a transform makes of a network.

    Raises:
        ModelError: if the user's transform fails, or returns something else.
    """
    try:
        applied: object = transform.apply(model, work.data, work.seed)
    except AbcSearchError as error:
        raise type(error)(f"transform {name!r}: {error}") from error
    except Exception as error:  # the user's code: anything can go wrong in it
        msg = f"transform {name!r} failed: {type(error).__name__}: {error}"
        raise ModelError(msg) from error
    if not isinstance(applied, Applied) or not isinstance(applied.model, torch.nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"transform {name!r} returns {type(applied).__name__}, expected abcsearch.Applied(model=...)"
        raise ModelError(msg)
    return applied


def _trained(  # noqa: PLR0913 - what is trained, and how
    number: int,
    name: str,
    transform: Transform,
    model: nn.Module,
    recipe: Recipe,
    identity: str,
    work: _Work,
) -> nn.Module:
    """Returns the network of a link after it has been trained."""
    stage = f"chain, {name}"
    data, teacher = work.data, work.teacher if recipe.taught else None
    if recipe.taught and teacher is None:
        msg = f"transform {name!r}: its recipe distils, and there is no teacher: pass teacher=, or set distillation to 0"
        raise ConfigError(msg)
    lesson = transform.lesson(model, data.objective, teacher)
    doing(f"{stage}: the first of {plural(recipe.epochs, 'epoch')}")
    train(
        lesson,
        data.train,
        recipe,
        seed=work.seed,
        stream=f"link {number}",
        on_epoch=lambda done, total, loss: work.progress(stage, done, total, f"loss {loss:.4f}"),
        validation=data.validation,
        checkpoint=checkpoint_path(work.folder / f"{number}-link", identity),
        same={"link": identity},
    )
    if isinstance(lesson, Bound):
        lesson.settle()
    return model.cpu().eval()


def _calibrated(model: nn.Module, data: Data, images: int) -> None:
    """Takes statistics of normalisations anew, on training images that are evenly spread over all."""
    if not statistics(model):
        return
    places = torch.linspace(0, len(data.train) - 1, min(images, len(data.train))).round().long()
    seen = data.train.part(places).loaded().images
    calibrate(model, seen, batch_size=min(128, len(seen)))


def _kept(number: int, name: str, identity: str, work: _Work) -> Link | None:
    """Returns a link that is there already, whole and the very same one.

    Warns:
        UserWarning: if it is damaged; it is then made again.
    """
    folder = link_folder(work.folder, number, name)
    try:
        return read_link(folder, identity)
    except ValueError as error:
        warnings.warn(f"{folder} is damaged: {error}; it is made again", UserWarning, stacklevel=2)
        return None


def _written(number: int, made: _Made, before: Link | None, work: _Work) -> Link:
    """Writes a link, loads and scores what was written, and returns its record, which is written last."""
    folder = link_folder(work.folder, number, made.name)
    if (folder / LINK).exists():
        work.tell(f"{folder} is of another network or other settings: it is replaced")
    (folder / LINK).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    form = "safetensors" if made.transform is None else made.transform.format
    whole = form in ("safetensors", "compressed")
    export(
        made.model,
        folder if whole else folder / f"model.{form}",
        example_input=work.data.example,
        format=form,
        **(
            {"constructor": work.constructor.name, "options": work.constructor.options}
            if whole
            else {}
        ),
    )
    names = sorted(path.name for path in folder.iterdir())
    link = Link(
        name=made.name,
        identity=made.identity,
        format=form,
        files=file_hashes(folder, names),
        options={} if made.part is None else dict(made.part.options),
        facts={} if made.applied is None else dict(made.applied.facts),
        notes=() if made.applied is None else tuple(made.applied.notes),
        recipe=None if made.recipe is None else plain_recipe(made.recipe),
        bits=(32, 32) if made.transform is None else made.transform.bits,
        untrained=made.untrained or {},
        file_bytes=sum((folder / name).stat().st_size for name in names),
        **measured(folder, work.opened, before, work.data),
    )
    write_record(folder / LINK, _plain(link))
    return Link.of(_plain(link))  # as it will be read


def _plain(link: Link) -> dict[str, Any]:
    """Returns the record of a link as plain JSON values.

    Raises:
        ModelError: if the user's transform has facts that are none.
    """
    try:
        return json.loads(json.dumps(asdict(link)))
    except (TypeError, ValueError) as error:
        msg = f"transform {link.name!r} has facts that are no plain JSON values: {error}"
        raise ModelError(msg) from error


def _tidy(chain: Chain) -> None:
    """Removes links and checkpoints of another chain that was there before."""
    mine = {chain.place(number).name for number in range(len(chain.links))}
    for path in chain.folder.iterdir():
        if path.is_dir() and (path / LINK).exists() and path.name not in mine:
            shutil.rmtree(path)
        elif path.suffix == ".checkpoint":
            path.unlink()
    (chain.folder / CHAIN).unlink(missing_ok=True)
