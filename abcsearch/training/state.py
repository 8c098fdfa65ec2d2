"""A training under way: what changes from step to step, and all that a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.errors import CheckpointError
from abcsearch.training.checkpoints import Saved
from abcsearch.training.optimization import Average, make_optimizer
from abcsearch.training.scoring import device_of, score

if TYPE_CHECKING:
    from torch import nn

    from abcsearch.data.images import Images
    from abcsearch.training.objectives import Objective
    from abcsearch.training.recipe import Recipe

    State = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a training went.

    Attributes:
        losses: mean training loss of every epoch.
        scores: the first metric of the objective on the validation images after every epoch; () without such images.
        best_epoch: the first epoch with the highest score, from 1; 0 without scores.
        best: the state of the network after that epoch, on the CPU; None without scores.
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
        model: the network, on its device, with the weights that steps change.
        optimizer: what changes them.
        average: their moving average, if the recipe has one.
        draws: the generator of order and augmentation.
        losses: of the epochs that are done.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, draws: torch.Generator) -> None:
        """Begins."""
        self.model, self.draws = model, draws
        self.optimizer = make_optimizer(model, recipe)
        self.average = Average(model, recipe.ema) if recipe.ema else None
        self.losses: list[float] = []
        self._scores: list[float] = []
        self._best: State = {}
        self._keep = recipe.keep

    @property
    def done(self) -> int:
        """The number of epochs done."""
        return len(self.losses)

    def after_epoch(self, loss: float, validation: Images | None, objective: Objective) -> None:
        """Notes what an epoch has led to, and keeps the weights if they are the best."""
        self.losses.append(loss)
        if validation is None:
            return
        with torch.no_grad():
            torch.clear_autocast_cache()  # scoring makes tensors that cannot be trained with
            if self.average is None:
                found = score(self.model, validation, objective=objective)
            else:
                with self.average.applied():
                    found = score(self.model, validation, objective=objective)
            torch.clear_autocast_cache()
        value = found[objective.headline]
        if not self._scores or value > max(self._scores):
            self._best = self._state()
        self._scores.append(value)

    def _state(self) -> State:
        """Returns a copy of what counts as the network now: its average if there is one."""
        tensors = self.model.state_dict() if self.average is None else self.average.tensors
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def finished(self) -> Trained:
        """Ends: the network gets the weights that the recipe keeps."""
        if not self._scores:
            if self.average is not None:
                self.model.load_state_dict(self.average.tensors)
            return Trained(losses=tuple(self.losses))
        last = self._state()
        self.model.load_state_dict(self._best if self._keep == "best" else last)
        return Trained(
            losses=tuple(self.losses),
            scores=tuple(self._scores),
            best_epoch=1 + self._scores.index(max(self._scores)),
            best=self._best,
            last=last,
        )

    # -- on disk

    def saved(self) -> Saved:
        """Returns all that is needed to go on exactly."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        for number, own in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{k}": value for k, value in own.items() if value is not None}
        tensors |= {f"random.{name}": state for name, state in self._random_states().items()}
        state = {"losses": self.losses, "scores": self._scores}
        return Saved(tensors=tensors, state=state | {"averaged": 0 if self.average is None else self.average.steps})

    def _random_states(self) -> State:
        """Returns the states of all generators that training draws from."""
        states = {"draws": self.draws.get_state(), "cpu": torch.get_rng_state()}
        place = device_of(self.model)
        return states if place.type == "cpu" else states | {"device": torch.cuda.get_rng_state(place)}

    def load(self, saved: Saved) -> None:
        """Takes a training up where it was left.

        Raises:
            CheckpointError: if it was on another kind of device.
        """
        parts: dict[str, State] = {"model": {}, "best": {}, "average": {}, "optimizer": {}, "random": {}}
        for name, tensor in saved.tensors.items():
            part, _, own = name.partition(".")
            parts[part][own] = tensor
        random = parts["random"]
        if random.keys() != self._random_states().keys():
            msg = (
                "a training on CUDA is continued on CUDA, and one on the CPU there; set device as it was, or delete it"
            )
            raise CheckpointError(msg)
        self.model.load_state_dict(parts["model"])
        if self.average is not None:
            self.average.load(parts["average"], saved.state["averaged"])
        self._load_optimizer(parts["optimizer"])
        self._best = parts["best"]
        self.losses, self._scores = list(saved.state["losses"]), list(saved.state["scores"])
        self.draws.set_state(random["draws"])
        torch.set_rng_state(random["cpu"])
        if "device" in random:
            torch.cuda.set_rng_state(random["device"], device_of(self.model))

    def _load_optimizer(self, tensors: State) -> None:
        """Gives the optimiser its state back, laid out in memory as the parameters are."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        states: dict[int, Any] = {}
        for name, tensor in tensors.items():
            number, _, key = name.partition(".")
            like = parameters[int(number)]
            own = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
            states.setdefault(int(number), {})[key] = own.detach()
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
