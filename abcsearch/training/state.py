"""A training under way: what changes from step to step, and all that a checkpoint holds."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from abcsearch.errors import CheckpointError, LessonError
from abcsearch.rng import torch_stream
from abcsearch.training.checkpoints import Saved
from abcsearch.training.checks import check_optimizers, check_plain, check_score, saved_state
from abcsearch.training.lesson import whole_of
from abcsearch.training.optimization import Average, Optimizers
from abcsearch.training.scoring import device_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from abcsearch.data.split import Images
    from abcsearch.training.crew import Crew
    from abcsearch.training.lesson import Lesson
    from abcsearch.training.recipe import Recipe

    State = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a training went.

    Attributes:
        losses: mean training loss of every epoch.
        scores: the first metric of the objective, or the lesson's score, on the validation images after every epoch;
            () without such images.
        best_epoch: the first epoch with the highest score, from 1; 0 without scores.
        best: the state of the network after that epoch, on the CPU; of several modules of a lesson, with their names
            before those of tensors. None without scores.
        last: the state after the last epoch, likewise.
    """

    losses: tuple[float, ...]
    scores: tuple[float, ...] = ()
    best_epoch: int = 0
    best: State | None = field(default=None, repr=False)
    last: State | None = field(default=None, repr=False)


class Training:
    """A training under way.

    Attributes:
        lesson: what is taught.
        whole: its modules as one, on their device, with the weights that steps change.
        optimizers: what changes them.
        average: their moving average, if the recipe has one.
        draws: the generator of order and augmentation.
        chance: the generator that the lesson draws from.
        losses: of the epochs that are done.
    """

    def __init__(
        self,
        lesson: Lesson,
        modules: Mapping[str, nn.Module],
        recipe: Recipe,
        seed: int,
        stream: str,
    ) -> None:
        """Begins.

        Args:
            lesson: prepared.
            modules: its ones before that, on their device.
            recipe: how.
            seed: the run's seed.
            stream: name of the random stream.

        Raises:
            LessonError: if the lesson has other modules now, or its optimisers are none, or of other parameters.
        """
        self.lesson, self.whole, self._modules = lesson, whole_of(modules), modules
        self._check_modules()
        self.draws, self.chance = (
            torch_stream(seed, f"{stream}-batches"),
            torch_stream(seed, f"{stream}-lesson"),
        )
        named = lesson.optimizers(recipe)
        check_optimizers(lesson, named)
        self.optimizers, self._parameters = Optimizers(named), list(self.whole.parameters())
        self.average = Average(self.whole, recipe.ema) if recipe.ema else None
        self.losses: list[float] = []
        self._scores: list[float] = []
        self._best: State = {}
        self._keep = recipe.keep
        self._untouched = self.chance.get_state()

    @property
    def done(self) -> int:
        """The number of epochs done."""
        return len(self.losses)

    def before_step(self) -> None:
        """Empties all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def after_step(self, progress: float) -> None:
        """Lets the lesson and the moving average take note of a step.

        Raises:
            LessonError: if the lesson has other modules than in the beginning.
        """
        self.lesson.after_step(progress)
        self._check_modules()
        if self.average is not None:
            self.average.update()

    def _check_modules(self) -> None:
        """Raises LessonError if the lesson has other modules than in the beginning."""
        now, first = dict(self.lesson.modules), self._modules
        if now.keys() != first.keys() or any(
            now[name] is not module for name, module in first.items()
        ):
            name = type(self.lesson).__name__
            msg = (
                f"{name}.modules are the same ones throughout a training: {', '.join(first)} in the beginning, found "
                f"{', '.join(now) or 'none'}{'' if now.keys() != first.keys() else ', some of them others'}; change "
                f"what is in them, or have all of them there when {name} is made"
            )
            raise LessonError(msg)

    def after_epoch(self, crew: Crew | None) -> None:
        """Lets the lesson take note of an epoch.

        Args:
            crew: the processes that train together, if what each has now may differ; all go on with the first one's.

        Raises:
            LessonError: if a parameter that is trained has been replaced by another one, or one has come to them.
        """
        self.lesson.after_epoch(self.done + 1)
        if not self.optimizers.intact(self.whole):
            msg = (
                f"{type(self.lesson).__name__}: what is trained are the same parameters throughout a training, found "
                f"others in the modules or the optimisers after epoch {self.done + 1}; change numbers in place "
                "(parameter.data.copy_), replace and add no parameters"
            )
            raise LessonError(msg)
        if crew is not None and crew.size > 1:
            tensors, plain = saved_state(self.lesson)
            plain = crew.agree([*self.whole.state_dict().values(), *tensors.values()], plain)
            self.lesson.load_state_dict(
                {**{name: tensor.cpu() for name, tensor in tensors.items()}, **plain}
            )

    def note(self, loss: float, validation: Images | None) -> None:
        """Notes what an epoch has led to, and keeps the weights if they are the best."""
        self.losses.append(loss)
        if validation is None:
            return
        with torch.no_grad():
            torch.clear_autocast_cache()  # scoring makes tensors that cannot be trained with
            with contextlib.nullcontext() if self.average is None else self.average.applied():
                value = check_score(self.lesson, self.lesson.score(validation))
            torch.clear_autocast_cache()
        if not self._scores or value > max(self._scores):
            self._best = self._state()
        self._scores.append(value)

    def _state(self) -> State:
        """Returns a copy of what counts as the modules now: their average if there is one."""
        tensors = self.whole.state_dict() if self.average is None else self.average.tensors
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def finished(self) -> Trained:
        """Ends: the modules get the weights that the recipe keeps."""
        if not self._scores:
            if self.average is not None:
                self.whole.load_state_dict(self.average.tensors)
            return Trained(losses=tuple(self.losses))
        last = self._state()
        self.whole.load_state_dict(self._best if self._keep == "best" else last)
        return Trained(
            losses=tuple(self.losses),
            scores=tuple(self._scores),
            best_epoch=1 + self._scores.index(max(self._scores)),
            best=self._best,
            last=last,
        )

    # -- on disk

    def saved(self) -> Saved:
        """Returns all that is needed to go on exactly.

        Raises:
            LessonError: if the lesson's state, or that of an optimiser of its own, cannot be saved.
        """
        lesson, plain = saved_state(self.lesson)
        optimizers, options = self.optimizers.saved()
        check_plain(f"{type(self.lesson).__name__}.optimizers()", options)
        tensors = {f"model.{name}": tensor for name, tensor in self.whole.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizers.items()}
        tensors |= {f"lesson.{name}": tensor for name, tensor in lesson.items()}
        tensors |= {f"random.{name}": state for name, state in self._random_states().items()}
        if not torch.equal(chance := self.chance.get_state(), self._untouched):
            tensors["random.lesson"] = chance
        state = {"losses": self.losses, "scores": self._scores}
        state |= {"averaged": 0 if self.average is None else self.average.steps}
        state |= {
            name: values for name, values in (("lesson", plain), ("optimizers", options)) if values
        }
        return Saved(tensors=tensors, state=state)

    def _random_states(self) -> State:
        """Returns the states of all generators that every training draws from."""
        states = {"draws": self.draws.get_state(), "cpu": torch.get_rng_state()}
        device = device_of(self.whole)
        return (
            states
            if device.type == "cpu"
            else states | {"device": torch.cuda.get_rng_state(device)}
        )

    def load(self, saved: Saved) -> None:
        """Takes a training up where it was left.

        Raises:
            CheckpointError: if it was on another kind of device.
        """
        kinds: dict[str, State] = {}
        for name, tensor in saved.tensors.items():
            kind, _, rest = name.partition(".")
            kinds.setdefault(kind, {})[rest] = tensor
        random = kinds["random"]
        if random.keys() - {"lesson"} != self._random_states().keys():
            msg = "a training on CUDA is continued on CUDA, and one on the CPU there; set device as it was, or delete it"
            raise CheckpointError(msg)
        self.whole.load_state_dict(kinds["model"])
        if self.average is not None:
            self.average.load(kinds["average"], saved.state["averaged"])
        self.optimizers.load(kinds.get("optimizer", {}), saved.state.get("optimizers", {}))
        self.lesson.load_state_dict({**kinds.get("lesson", {}), **saved.state.get("lesson", {})})
        self._best = kinds.get("best", {})
        self.losses, self._scores = list(saved.state["losses"]), list(saved.state["scores"])
        self.draws.set_state(random["draws"])
        self.chance.set_state(random.get("lesson", self._untouched))
        torch.set_rng_state(random["cpu"])
        if "device" in random:
            torch.cuda.set_rng_state(random["device"], device_of(self.whole))
