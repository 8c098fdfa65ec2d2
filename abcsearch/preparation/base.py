"""What is trained before a search: `Preparation`, to derive one's own from, and what it is given and gives."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import torch

from abcsearch.channels.source import Sliced, Source, check_source
from abcsearch.errors import (
    AbcSearchError,
    CandidateError,
    DivergedError,
    LessonError,
    ModelError,
    PreparationError,
    one_line,
)
from abcsearch.rng import torch_stream
from abcsearch.training.checkpoints import network_hash
from abcsearch.training.checks import check_name, check_plain
from abcsearch.training.loop import train
from abcsearch.training.together import train_together

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from abcsearch.budget import Constraint
    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.orders import Ranking
    from abcsearch.data.split import Images
    from abcsearch.data.splits import Data
    from abcsearch.preparation.needs import Needs
    from abcsearch.space import Candidate, SearchSpace
    from abcsearch.training.crew import Workers
    from abcsearch.training.lesson import Lesson
    from abcsearch.training.recipe import Recipe
    from abcsearch.training.state import Trained
    from abcsearch.trial import Evaluation

    Tensors = Mapping[str, torch.Tensor]
    # Called after every epoch with (name of the training, epochs done, epochs in all, mean training loss).
    OnEpoch = Callable[[str, int, int, float], None]


PASSES = "forward passes per step"  # the fact that says what a training step costs


class Pruning(Protocol):
    """What a preparation is for: the network of a run, and what is searched in it."""

    @property
    def base(self) -> nn.Module:
        """The trained network, in evaluation mode, on the CPU; lent: train a copy."""
        ...

    @property
    def graph(self) -> ChannelGraph:
        """Its channel groups."""
        ...

    @property
    def data(self) -> Data:
        """Its data. Fitness sees `data.validation`, reports `data.test`: train on the images of the trainer."""
        ...

    @property
    def space(self) -> SearchSpace:
        """The structures."""
        ...

    @property
    def constraint(self) -> Constraint:
        """The budget bound to the space."""
        ...

    def rank(self, model: nn.Module) -> Ranking:
        """Returns the ranking of a network of the same graph by the run's criterion."""
        ...

    def evaluator(self, source: Source) -> Callable[[Candidate, int], Evaluation]:
        """Returns the run's evaluator of structures whose networks come from a source; called with a seed as well."""
        ...


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a preparation has made.

    Attributes:
        source: where the networks of candidates come from.
        starts: structures of the space that the search begins with; those outside of the budget are repaired into it.
        facts: what the report shows: plain JSON values by name.
    """

    source: Source
    starts: Sequence[Candidate] = ()
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


def no_file(name: str, recipe: Recipe) -> Path | None:
    """Returns where a training is kept until all is prepared: nowhere."""
    del name, recipe


def unheard(name: str, done: int, total: int, loss: float) -> None:
    """Shows nothing."""
    del name, done, total, loss


class Trainer:
    """Trains what a preparation wants trained, as runs train: stopped at any instant, it goes on bit for bit.

    Attributes:
        images: of the training split, the only ones that a preparation trains on.
        seed: of the run; draw random numbers from streams of it (`abcsearch.rng`).
    """

    def __init__(
        self,
        images: Images,
        seed: int,
        *,
        checkpoint: Callable[[str, Recipe], Path | None] = no_file,
        on_epoch: OnEpoch = unheard,
        workers: Workers | None = None,
    ) -> None:
        """Begins with nothing trained.

        Args:
            images: of the training split.
            seed: of the run.
            checkpoint: name of a training and its recipe -> the file that it is kept in until all is prepared.
            on_epoch: progress.
            workers: several processes that train together; None: this one alone.
        """
        self.images, self.seed = images, seed
        self._checkpoint, self._on_epoch, self._workers = checkpoint, on_epoch, workers
        self._names: list[str] = []

    def train(
        self, lesson: Lesson, recipe: Recipe, *, name: str = "prepare", images: Images | None = None
    ) -> Trained:
        """Trains the modules of a lesson in place, see `abcsearch.train`.

        Args:
            lesson: what is taught.
            recipe: how.
            name: of the training; that of each in a preparation is another one.
            images: some of the trainer's, as `halves` returns them; None: all.

        Raises:
            PreparationError: if another training has the name.
            AbcSearchError: as `train`.
        """
        if name in self._names:
            msg = f"two trainings of a preparation are called {name!r}: the second would go on where the first ended; "
            msg += "give each a name of its own, trainer.train(..., name=...)"
            raise PreparationError(msg)
        self._names.append(name)
        return self._train(lesson, recipe, name, self.images if images is None else images)

    def _train(self, lesson: Lesson, recipe: Recipe, name: str, images: Images) -> Trained:
        """Trains; what `train` checks has been checked."""
        together: Any = {} if self._workers is None else {"workers": self._workers}
        return (train_together if together else train)(
            lesson,
            images,
            recipe,
            **together,
            seed=self.seed,
            stream=f"prepare {name}",
            on_epoch=lambda done, total, loss: self._on_epoch(name, done, total, loss),
            checkpoint=self._checkpoint(name, recipe),
        )

    def halves(self, share: float = 0.5) -> tuple[Images, Images]:
        """Returns two parts of the images, the second with a share of them: to train weights and a structure on."""
        order = torch.randperm(
            len(self.images), generator=torch_stream(self.seed, "structure split")
        )
        first = len(self.images) - round(share * len(self.images))
        return self.images.part(order[:first].sort().values), self.images.part(
            order[first:].sort().values
        )


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Options of a preparation that has none."""


class Preparation(ABC):
    """Trains something before the search: the source of candidates, or structures to begin with, or both.

    A subclass implements `prepare`; if its source is not `Sliced` from a network of the same graph by the run's
    criterion, also `source`, from which continued runs get it. What it makes follows from the task, its options and the
    trainer's seed alone. `PreparationContract` tests that.

    Attributes:
        options: a record of class `Options`.
        Options: a frozen, keyword-only dataclass that checks its values; every one has a default.
        milder: what to change, besides lr, where a loss is not finite, such as "lower strength = {strength}": names of
            options stand for their values. "": nothing.
    """

    Options: ClassVar[type] = NoOptions
    milder: ClassVar[str] = ""

    def __init__(self, options: Any = None) -> None:  # noqa: ANN401 - a record of class `Options`
        """Takes the options; None: the defaults.

        Raises:
            PreparationError: if they are another preparation's.
        """
        self.options = self.Options() if options is None else options
        if not isinstance(self.options, self.Options):
            wanted, given = self.Options.__name__, type(self.options).__name__
            msg = f"options of {type(self).__name__} are {wanted}, found {given}"
            raise PreparationError(msg)

    @property
    def passes(self) -> int | None:
        """Forward passes that a training step takes; those of the options, or None: nothing is said of them."""
        return getattr(self.options, "passes", None)

    def check(self, task: Pruning) -> None:  # noqa: B027 - not all have something to refuse
        """Raises what `prepare` would, as far as that is known before the network is trained."""

    def needs(self, task: Pruning) -> Needs | None:
        """Returns what it takes of a machine besides a network's training; None: nothing worth mentioning.

        It is said by a dry run and before `prepare` is called, and refused where the machine has less.
        """
        del task

    @abstractmethod
    def prepare(self, task: Pruning, trainer: Trainer) -> Prepared:
        """Returns what is prepared. The network of the task is lent: train a copy.

        Args:
            task: the network, and what is searched.
            trainer: trains; whatever it trains goes on where it was stopped.
        """

    def source(self, task: Pruning, modules: Mapping[str, Tensors]) -> Source:
        """Returns the source that `prepare` made, from what is saved of it.

        Args:
            task: as for `prepare`.
            modules: the states of the source's `modules`, by their names.
        """
        network = loaded(task.base, modules["network"])
        return Sliced(network, task.graph, task.rank(network))


def loaded(like: nn.Module, state: Tensors) -> nn.Module:
    """Returns a copy of a module with a state in it, in evaluation mode."""
    module = copy.deepcopy(like)
    module.load_state_dict(dict(state))
    return module.eval()


def run_preparation(preparation: Preparation, task: Pruning, trainer: Trainer) -> Prepared:
    """Returns what a preparation makes, and among its facts what a step costs, after a look at whether it keeps its word.

    Raises:
        PreparationError: if it changes the network that it was lent, returns something else, or what it returns does
            not fit the task.
        AbcSearchError: whatever its training raises.
    """
    name = type(preparation).__name__
    before = _traits(task.base)
    try:
        made: object = preparation.prepare(task, trainer)
    except ModelError as error:  # a loss that is not finite, for one: it says what to lower
        diverged = isinstance(error, DivergedError)
        msg = f"preparation {name}: {error}{besides(preparation) if diverged else ''}"
        raise (DivergedError if diverged else ModelError)(msg) from error
    except AbcSearchError:
        raise
    except Exception as error:  # the user's code: anything can go wrong in it
        msg = f"preparation {name} failed: {type(error).__name__}: {one_line(str(error))}"
        raise PreparationError(msg) from error
    if _traits(task.base) != before:
        msg = f"preparation {name} has changed the network that it was lent: train copy.deepcopy(task.base)"
        raise PreparationError(msg)
    if not isinstance(made, Prepared):
        msg = f"preparation {name} returns {type(made).__name__}, expected abcsearch.Prepared(source=..., starts=...)"
        raise PreparationError(msg)
    check_source(made.source)
    _check_fits(name, made, task)
    passes = preparation.passes
    return made if passes is None else replace(made, facts={PASSES: passes, **made.facts})


def besides(preparation: Preparation) -> str:
    """Returns which options of a preparation may be the cause where a loss is not finite, to end a message, or ""."""
    options = preparation.options
    values = {entry.name: getattr(options, entry.name) for entry in fields(options)}
    return preparation.milder and f", or {preparation.milder.format_map(values)}"


def check_restored(
    preparation: Preparation, task: Pruning, source: Source, states: Mapping[str, Tensors]
) -> None:
    """Raises PreparationError unless `Preparation.source` makes of saved states what `prepare` returned."""
    name = type(preparation).__name__
    again: object = preparation.source(task, states)
    if not isinstance(again, Source):
        msg = f"{name}.source(task, modules) returns {type(again).__name__}, expected a Source"
        raise PreparationError(msg)
    full = task.graph.space(alpha=1.0).full
    for candidate in (full, (1,) * len(full)):
        if network_hash(again.network(candidate)) != network_hash(source.network(candidate)):
            msg = (
                f"{name}.source(task, modules) gives {candidate} another network than the source that prepare "
                "returned: continued runs would have other results; make it of `modules` alone, as prepare does"
            )
            raise PreparationError(msg)


def _check_fits(name: str, made: Prepared, task: Pruning) -> None:
    """Raises PreparationError unless names, starts and facts are of their kind, and of this task."""
    wanted, given = [len(d.labels) for d in task.space.dimensions], made.source.ranking.criteria
    if max(wanted) > len(given):
        msg = (
            f"preparation {name} ranks channels by {', '.join(given)} alone, and the space has {max(wanted)} criteria "
            "to choose from: rank with task.rank(network), or set criterion to one name"
        )
        raise PreparationError(msg)
    if made.source.graph is not task.graph:
        msg = f"preparation {name} returns a source of another graph: the space is that of task.graph, use it"
        raise PreparationError(msg)
    if not isinstance(made.starts, Sequence) or not isinstance(made.facts, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        given = f"{type(made.starts).__name__} and {type(made.facts).__name__}"
        msg = f"preparation {name}: starts are a list of structures and facts values by name, found {given}"
        raise PreparationError(msg)
    try:
        for module in made.source.modules:
            check_name(f"preparation {name}: source.modules", module)
        check_plain(f"preparation {name}: facts", made.facts)
        for start in made.starts:
            check_start(task.space, start)
    except (LessonError, CandidateError) as error:
        msg = (
            str(error)
            if str(error).startswith("preparation")
            else f"preparation {name}: starts: {error}"
        )
        raise PreparationError(msg) from error


def check_start(space: SearchSpace, start: object) -> None:
    """Raises CandidateError unless a start is a structure of the space, of whole numbers."""
    space.check(cast("Candidate", start))
    if not all(type(value) is int for value in cast("Candidate", start)):
        msg = f"a structure is a tuple of whole numbers, found {start!r:.80}"
        raise CandidateError(msg)


def _traits(network: nn.Module) -> list[object]:
    """Returns weights, modes, hooks and what is trained of a network, to be compared."""
    modes = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()
    ]
    return [
        network_hash(network),
        modes,
        [parameter.requires_grad for parameter in network.parameters()],
    ]
