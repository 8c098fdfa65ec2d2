"""What is done to a network after the search: `Transform`, to derive one's own from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from abcsearch.errors import ConfigError, ModelError, unknown_name
from abcsearch.training.lesson import Supervised

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from abcsearch.data.splits import Data

Layer = nn.modules.conv._ConvNd | nn.Linear


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What a transform has made.

    Attributes:
        model: the network, another one than it was given.
        facts: what was done, plain JSON values, by the path of the module.
        notes: what to know about it, a sentence each.
    """

    model: nn.Module
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Options of a transform that has none."""


class Transform(ABC):
    """Makes a network smaller after the search: a link of a chain.

    A subclass implements `apply`. What it makes follows from the network, the data, its options and the seed alone; it
    is loaded again by a plan (see `export`), so that modules keep their classes, or by a file where `ends` says that
    nothing can follow.

    Attributes:
        options: a record of class `Options`.
        Options: a frozen, keyword-only dataclass that checks its values; every one has a default. A field `finetune`
            says how the network is trained afterwards, see `LinkOptions`.
        makes: what it makes of a network, in a word, for those that come later.
        loses_after: by such a word, why this one loses after it.
        ends: why nothing can follow it; "" where something can.
        format: what a chain keeps its network as, of the formats of `export`.
        tolerance: how much outputs of an .onnx file of it may differ, see `export`.
        bits: of weights and activations where the network is computed in integers; 32 and 32 otherwise.
    """

    Options: ClassVar[type] = NoOptions
    makes: ClassVar[str] = ""
    loses_after: ClassVar[Mapping[str, str]] = {}
    ends: ClassVar[str] = ""
    format: ClassVar[str] = "safetensors"
    tolerance: ClassVar[float] = 1e-4
    bits: ClassVar[tuple[int, int]] = (32, 32)

    def __init__(self, options: Any = None) -> None:  # noqa: ANN401 - a record of class `Options`
        """Takes the options; None: the defaults.

        Raises:
            ConfigError: if they are another transform's.
        """
        self.options = self.Options() if options is None else options
        if not isinstance(self.options, self.Options):
            wanted, given = self.Options.__name__, type(self.options).__name__
            msg = f"options of {type(self).__name__} are {wanted}, found {given}"
            raise ConfigError(msg)

    def check(self, model: nn.Module, data: Data) -> None:  # noqa: B027 - not all have something to refuse
        """Raises what `apply` would, as far as that is known of the network before it is pruned."""

    @abstractmethod
    def apply(self, model: nn.Module, data: Data, seed: int) -> Applied:
        """Returns what is made of a network.

        Args:
            model: in evaluation mode, on the CPU; not changed.
            data: its data. Look at `data.train` only: search-validation and test are for others.
            seed: of the run.
        """

    def calibration(self) -> int:
        """Returns on how many training images statistics of normalisations are taken anew where nothing is trained."""
        return 0

    def lesson(self, model: nn.Module, objective: str, teacher: nn.Module | None) -> Supervised:
        """Returns how the network is taught afterwards, where it is; one that keeps what was made is a `Bound`."""
        return Supervised(model, objective=objective, teacher=teacher)


class Bound(Supervised):
    """A network learns the labels, and its weights stay what a transform has made of them (all zeros zero ...).

    Attributes:
        paths: of the layers whose weights are bound.
    """

    def __init__(
        self,
        model: nn.Module,
        paths: Sequence[str],
        *,
        objective: str = "classification",
        teacher: nn.Module | None = None,
    ) -> None:
        """Takes what is learned, and by what."""
        super().__init__(model, objective=objective, teacher=teacher)
        self.paths = tuple(paths)

    def settle(self) -> None:
        """Has the weights obey again, in place; called after every step, and once more after the training."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Has the weights obey after a step of the optimiser."""
        super().after_step(progress)
        self.settle()

    def same(self) -> Mapping[str, Any]:
        """Returns the objective, and what is bound."""
        return {**super().same(), "bound": list(self.paths)}


def weighted(model: nn.Module, fixed: Sequence[str] = ()) -> dict[str, Layer]:
    """Returns the convolutions and linear layers of a network by path, each weight once, but for those that stay.

    Args:
        model: the network.
        fixed: paths of layers that are left out.

    Raises:
        ModelError: if a path is that of no such layer, or a weight is not finite.
    """
    layers = dict(_layers(model))
    for path in fixed:
        if path not in layers:
            raise ModelError(unknown_name("layer of fixed:", path, layers))
    chosen = {path: layer for path, layer in layers.items() if path not in fixed}
    for path, layer in chosen.items():
        if not torch.isfinite(layer.weight).all():
            msg = f"the weight of {path} is not finite; train the network first"
            raise ModelError(msg)
    return chosen


def _layers(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Yields path and layer of every weight that is a plain parameter; tied ones once."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        # Not the attribute, which may be computed (parametrised)
        weight = module._parameters.get("weight")
        if isinstance(module, Layer) and weight is not None and id(weight) not in seen:
            seen.add(id(weight))
            yield path, module
