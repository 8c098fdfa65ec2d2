"""ShortTraining: score a sliced network after a little training."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from abcsearch.evaluation.sliced import ScoringOptions, SlicedEvaluator
from abcsearch.training.checks import check_images
from abcsearch.training.loop import train
from abcsearch.training.recipe import Recipe

if TYPE_CHECKING:
    from abcsearch.channels.source import Source
    from abcsearch.data.splits import Data

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True, kw_only=True)
class ShortTrainingOptions(ScoringOptions):
    """Options of `ShortTraining`, besides those of scoring.

    Attributes:
        epochs: passes over the training images, at least 1.
        steps: optimiser steps, instead of epochs; None: whole epochs.
        batch_size: images per step.
        lr: highest learning rate; a cosine brings it down to 0.
        momentum: Nesterov momentum, in [0, 1).
        weight_decay: L2 penalty on weights.
        warmup_epochs: epochs of linear warm-up, may be a fraction.
        label_smoothing: in [0, 1).
        shift: augmentation: random translation by up to so many pixels.
        flip: augmentation: random horizontal mirror image.
        fresh_norms: batch norms begin anew instead of inheriting, as in ABCPruner's published code.

    Raises:
        ConfigError: if a number is out of range.
    """

    epochs: int = 2
    steps: int | None = None
    batch_size: int = 128
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    shift: int = 0
    flip: bool = False
    fresh_norms: bool = False

    LOWEST: ClassVar[dict[str, float]] = {**ScoringOptions.LOWEST, "steps": 1, "batch_size": 1}

    def __post_init__(self) -> None:
        """Checks the values."""
        super().__post_init__()
        self.recipe()

    def recipe(self, shrink: int = 1) -> Recipe:
        """Returns the recipe of the training loop, with the batch size divided by `shrink`."""
        own = {option.name for option in fields(self)}
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(Recipe) if f.name in own}
        values["batch_size"] = max(1, self.batch_size // shrink)
        return Recipe(**values)


class ShortTraining(SlicedEvaluator):
    """Slices the trained network, trains it for a few epochs or steps, and scores it on search-validation.

    The order of the images and their augmentation come from the evaluation's seed.

    Source: Lin et al., ABCPruner (IJCAI 2020), section 3.4.

    Differences from the paper:
        - Weights are inherited with everything that belongs to them, batch norms included; the published code
          initialises these anew: `fresh_norms`.
        - Search-validation is held out of the training images; the published code selects on the test set.
        - The learning rate follows a cosine down to 0, so that a short training ends settled.
    """

    Options = ShortTrainingOptions
    options: ShortTrainingOptions

    def __init__(self, source: Source, data: Data, options: ShortTrainingOptions | None = None) -> None:
        """Prepares the evaluator; see `SlicedEvaluator`.

        Raises:
            ConfigError: if there are fewer training images than one batch.
        """
        options = options or ShortTrainingOptions()
        check_images(options.recipe(), data.train)
        super().__init__(source, data, options)

    def prepare(self, network: nn.Module, seed: int, shrink: int) -> None:
        """Trains the network."""
        if self.options.fresh_norms:
            for module in network.modules():
                if isinstance(module, _NORMS):
                    module.reset_parameters()
        train(
            network,
            self.data.train,
            self.options.recipe(shrink),
            seed=seed,
            stream="short training",
            objective=self.data.objective,
            steps=self.options.steps,
        )
