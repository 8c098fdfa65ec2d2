"""What a training step teaches: `Lesson`, to derive one's own from, and `Supervised`, the loss on labels."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from abcsearch.data.images import hardest
from abcsearch.errors import ConfigError, LessonError
from abcsearch.example import run_on
from abcsearch.training.checkpoints import network_hash
from abcsearch.training.crew import ALONE, Crew
from abcsearch.training.mixing import Mixing, widened
from abcsearch.training.objectives import aux_of, find_objective
from abcsearch.training.optimization import make_optimizer
from abcsearch.training.scoring import score
from abcsearch.training.teaching import Watch, attention_distance, stage_ends, taught_outputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from abcsearch.data.split import Images
    from abcsearch.training.objectives import Objective
    from abcsearch.training.recipe import Recipe

# Of a recipe: what the loop leaves to a lesson
LOSS_SETTINGS = ("label_smoothing", "mixup", "cutmix", "distillation", "distill_features")


class Lesson:
    """What a training teaches: modules, their optimisers, and the loss of a batch. `train(lesson, ...)` does the rest.

    Batches, learning rates, precision, clipping, moving averages, checkpoints and several processes are the training's.
    Stopped at any instant and continued, it ends with the same bits if all that a lesson changes while it is taught is
    in its modules, in what `state_dict` returns, or among the options of its optimisers. A subclass sets `modules` and
    overrides `step`, and what else it needs.

    Attributes:
        modules: by name: what is trained. All are saved in checkpoints, belong to what a checkpoint is of, are on the
            recipe's device and in training mode while they are taught, and are put back afterwards.
        teachers: by name: networks that are asked and not trained; on the device in evaluation mode, and put back.
        heeds: which of `LOSS_SETTINGS` `step` sees to; recipes with others are refused.
        crew: this process among those that train together, while they do; all steps see a part of each batch, and the
            training averages gradients after them. `crew.mean(tensor)` is the mean of what else was seen of a batch,
            `crew.picked(...)` draws from images of the lesson's own.
    """

    modules: Mapping[str, nn.Module]
    teachers: Mapping[str, nn.Module] = MappingProxyType({})
    heeds: tuple[str, ...] = ()
    crew: Crew = ALONE

    def begin(self, recipe: Recipe, images: Images) -> None:
        """Prepares for a training; called whenever one begins or is continued, before a state is loaded.

        Args:
            recipe: how it will be.
            images: of the training.
        """
        del recipe, images

    def optimizers(self, recipe: Recipe) -> Mapping[str, torch.optim.Optimizer]:
        """Returns the optimisers by name; by default the recipe's one, of all parameters that are trained.

        The learning rate of every group is its highest one; the training multiplies it by the schedule. Gradients are
        clipped together. Parameters that no optimiser has stay as they are.
        """
        return {"all": make_optimizer(whole_of(self.modules), recipe)}

    def step(
        self, images: torch.Tensor, labels: torch.Tensor, draws: torch.Generator
    ) -> torch.Tensor:
        """Returns the loss of a batch, a scalar; the training calls its backward pass and steps the optimisers.

        A lesson of several passes may call `backward` for each of them itself, so that they need not be in memory at
        once: then it returns the loss detached. Gradients are empty when it is called. In bf16, call
        `torch.clear_autocast_cache()` between a pass without gradients and one with them through the same weights.

        Args:
            images: (batch, channels, height, width), on the device, shifted, mirrored and changed as the recipe says.
                Of several inputs an `Example`, which runs a network: `images.run(network)`.
            labels: of these.
            draws: a generator on the CPU for what the lesson draws, the same in all processes that train together; its
                state is in checkpoints.
        """
        del images, labels, draws
        raise LessonError(_missing(self, "step(images, labels, draws)"))

    def after_step(self, progress: float) -> None:
        """Is called after every step of the optimisers.

        Args:
            progress: steps done as a share of those of the whole training, in (0, 1].
        """
        del progress

    def after_epoch(self, epoch: int) -> None:
        """Is called after every epoch, before it is scored and saved.

        Args:
            epoch: epochs done, from 1.
        """
        del epoch

    def score(self, images: Images) -> float:
        """Returns how good the modules are on validation images, higher is better; draws nothing.

        Needed where a training is given validation images. A moving average is in the modules where there is one.
        """
        del images
        raise LessonError(_missing(self, "score(images)"))

    def same(self) -> Mapping[str, Any]:
        """Returns the lesson's settings, plain JSON values: with others, a checkpoint is not continued."""
        return {}

    def state_dict(self) -> Mapping[str, Any]:
        """Returns by name what `step`, `after_step` and `after_epoch` change besides modules: tensors, JSON values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned; tensors are on the CPU, tuples have become lists."""
        del state

    def _identity(self) -> dict[str, Any]:
        """Returns what makes this lesson this very one, as it is written to checkpoints."""
        return {
            "lesson": type(self).__qualname__,
            "settings": dict(self.same()),
            "modules": {name: network_hash(module) for name, module in self.modules.items()},
            "teachers": {name: network_hash(module) for name, module in self.teachers.items()},
        }

    def _joined(self, crew: Crew) -> bool:
        """Returns whether what the lesson calls averages gradients over processes; otherwise the training does."""
        del crew
        return False


class Taught(NamedTuple):
    """What a network was shown, and how it did.

    Attributes:
        images: of the batch, mixed where the recipe mixes.
        labels: likewise.
        outputs: of the network; None where the loss is the network's own and it returns nothing else.
        loss: of them, a scalar.
    """

    images: torch.Tensor
    labels: torch.Tensor
    outputs: Any
    loss: torch.Tensor


class Supervised(Lesson):
    """A network learns the labels, with the recipe's mixing, smoothing and distillation.

    Attributes:
        model: the network.
        objective: of `OBJECTIVES`: what the loss is.
        teacher: the network whose outputs are learned, if the recipe distils.
    """

    heeds = LOSS_SETTINGS

    def __init__(
        self,
        model: nn.Module,
        *,
        objective: str = "classification",
        teacher: nn.Module | None = None,
    ) -> None:
        """Takes what is learned by what."""
        self.model, self.objective, self.teacher = model, objective, teacher
        self.modules = {"model": model}
        self.teachers = {} if teacher is None else {"teacher": teacher}

    def begin(self, recipe: Recipe, images: Images) -> None:
        """Prepares the mixing and the loss."""
        self._recipe, self._images = recipe, images
        self._goal: Objective = find_objective(self.objective)
        self._mixing = Mixing(recipe, images) if recipe.mixup or recipe.cutmix else None
        self._smoothing = (
            {"label_smoothing": recipe.label_smoothing} if recipe.label_smoothing else {}
        )
        self._called: nn.Module = self.model
        self._checked = False
        self._ends: list[str] | None = None  # where features are compared

    def step(
        self, images: torch.Tensor, labels: torch.Tensor, draws: torch.Generator
    ) -> torch.Tensor:
        """Returns the loss of a batch, a scalar; the first one is checked."""
        del draws  # mixing and the network draw from torch's global generators, which are the training's meanwhile
        return self._taught(images, labels).loss

    def _taught(self, images: torch.Tensor, labels: torch.Tensor) -> Taught:
        """Shows the network a batch."""
        wanted = labels
        if self._mixing is not None:
            images, wanted = self._mixing(images, labels)
        if self._goal.taught is not None:
            outputs, loss = self._goal.learned(self.model, self._called, (images, labels))
            return Taught(images, labels, outputs, loss)
        with Watch(self.model, self._compared(images)) as watch:
            returned = run_on(self._called, images)
        outputs = self._goal.output(self.model, returned)
        if not self._checked:
            self._check(outputs, labels)
        if self._mixing is not None:
            wanted = widened(wanted, outputs)
        loss = self._goal.loss(outputs, wanted, **self._smoothing)
        aux = aux_of(returned) if self._goal.aux and self._recipe.aux else None
        if aux is not None:
            loss = loss + self._recipe.aux * self._goal.loss(aux, wanted, **self._smoothing)
        if self.teacher is not None:
            loss = self._told(self.teacher, images, outputs, watch.seen, loss)
        return Taught(images, wanted, outputs, loss)

    def _compared(self, images: torch.Tensor) -> list[str]:
        """Returns the paths of the modules whose features are compared with the teacher's; found at the first call."""
        if self._ends is None:
            features = self.teacher is not None and self._recipe.distill_features
            self._ends = stage_ends(self.teacher, self.model, images[:1]) if features else []  # pyright: ignore[reportArgumentType]
        return self._ends

    def _told(
        self,
        teacher: nn.Module,
        images: torch.Tensor,
        outputs: torch.Tensor,
        features: Mapping[str, torch.Tensor],
        loss: torch.Tensor,
    ) -> torch.Tensor:
        """Returns the loss with what a teacher says of a batch.

        Args:
            teacher: in evaluation mode.
            images: of the batch.
            outputs: of the network.
            features: of the network, by path.
            loss: on labels.
        """
        recipe = self._recipe
        with torch.no_grad(), Watch(teacher, self._ends) as watch:
            wanted = taught_outputs(teacher, run_on(teacher, images), outputs)
        if recipe.distillation:
            assert self._goal.divergence is not None
            apart = self._goal.divergence(outputs, wanted, recipe.temperature)
            loss = (1 - recipe.distillation) * loss + recipe.distillation * apart
        if features:
            distances = [attention_distance(features[path], watch.seen[path]) for path in features]
            loss = loss + recipe.distill_features * torch.stack(distances).mean()
        return loss

    def _check(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Checks the outputs of the first batch, also with the highest label that any batch will have."""
        self._goal.check(outputs, labels)
        every = self._images.labels
        highest = hardest(every)
        self._goal.check(outputs[:1], every[highest].to(outputs.device))
        self._checked = True

    def score(self, images: Images) -> float:
        """Returns the first metric of the objective."""
        return score(self.model, images, objective=self._goal)[self._goal.headline]

    def same(self) -> Mapping[str, Any]:
        """Returns the objective."""
        return {"objective": self.objective}

    def _identity(self) -> dict[str, Any]:
        """Returns what checkpoints of before there were lessons say, so that these are continued."""
        if type(self) is not Supervised:
            return super()._identity()
        teacher = None if self.teacher is None else network_hash(self.teacher)
        return {
            "objective": self.objective,
            "network": network_hash(self.model),
            "teacher": teacher,
        }

    def _joined(self, crew: Crew) -> bool:
        """Calls the network through torch's DistributedDataParallel, which averages while the backward pass runs.

        What a subclass adds to the loss may read weights past the network's forward pass, which that does not see; nor
        does it take a network whose forward pass returns losses.
        """
        if type(self) is not Supervised or self._goal.taught is not None:
            return False
        self._called = crew.joined(self.model)
        return True


def lesson_of(model: nn.Module | Lesson, objective: str, teacher: nn.Module | None) -> Lesson:
    """Returns what a training teaches: the lesson, or that of a network.

    Raises:
        LessonError: if it is neither a network nor a lesson.
        ConfigError: if a lesson comes with an objective or a teacher.
    """
    if isinstance(model, Lesson):
        if objective != "classification" or teacher is not None:
            msg = "objective and teacher are those of a network's training; a lesson has its own, "
            msg += "Supervised(model, objective=..., teacher=...) these: leave them out"
            raise ConfigError(msg)
        return model
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"what is trained is a network or a Lesson, found {_described(model)}; derive yours from abcsearch.Lesson"
        raise LessonError(msg)
    return Supervised(model, objective=objective, teacher=teacher)


def whole_of(modules: Mapping[str, nn.Module]) -> nn.Module:
    """Returns the modules of a lesson as one: the only one as it is, several with their names before those of tensors.

    Raises:
        KeyError: if torch does not take a name.
    """
    return nn.ModuleDict(dict(modules)) if len(modules) > 1 else next(iter(modules.values()))


def _missing(lesson: Lesson, method: str) -> str:
    """Returns the message for a method that a lesson lacks."""
    return f"{type(lesson).__name__} lacks {method}, see abcsearch.Lesson; define it"


def _described(value: object) -> str:
    """Returns a value's type, or a class by its name."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
