"""The options of evaluators, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from abcsearch.errors import ConfigError, unknown_name
from abcsearch.records import check, problems, setting
from abcsearch.training.named import METRICS, OBJECTIVES
from abcsearch.training.recipe import MAX_THREADS, Recipe, check_computing

REPAIRS = ("none", "one_shot", "sequential", "scalar")
SCORINGS = ("full", "racing")
# What runs did that do not say, since they were made before it could be said.
BEFORE: Mapping[str, Any] = {"repair": "none", "scoring": "full", "finalists": 0}


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """How candidates are scored.

    Attributes:
        metric: which metric is the fitness; None: the objective's first one. Of classifiers: "top1", "top5", "neg_loss"
            (negative cross-entropy, smoother: for accuracies near chance), "neg_kl" (minus the divergence to the full
            network's outputs); of other objectives: theirs; or your own by import path, package.module:function, which
            maps (outputs, labels) of a batch to one number per image.
        validation_images: how many of the search-validation images are looked at; None: all.
        scoring: "racing": a candidate is shown images in stages, each twice as long as the one before, and no more once
            its fitness is two standard errors below the best that the searcher knew when it proposed the candidate;
            "full": all images. See `abcsearch.evaluation.racing`.
        stage_images: images of the first stage of racing, no fewer than there are classes; None: 128, or the first
            doubling of it that is enough.
        finalists: so many of the best trials are scored on all images at the end of a search, which decides the winner;
            0: none.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1".
        precision: "float32", "bf16", or on CUDA "tf32".
        repair: whether what reads channels is first fitted to those that are left, on training images: "one_shot", all
            layers at once; "sequential", then one after the other, for many times the cost; "scalar", at once by one
            factor for each channel, as ThiNet; "none". See `Repaired`.
        threads: torch threads on the CPU; recorded, since they decide the order of summation.
        utilisation: passes over search-validation for each layer, with some of its channels silent, that say what its
            MACs are worth, in `Evaluation.diagnostics`: for searchers that look at it, such as `network_adjustment`.
            0: none. Published: 5.
        noise: share of the channels that are silent then, of a layer of the mean cost, in (0, 0.5]. Published: 0.05 on
            CIFAR, 0.2 on ImageNet.

    Raises:
        ConfigError: if the metric, the device, the precision or the scoring is unknown, or a number out of range.
    """

    metric: str | None = None
    validation_images: int | None = setting(None, at_least=1, unit="images")
    scoring: str = setting("full", words=SCORINGS)
    stage_images: int | None = setting(None, at_least=1, unit="images")
    finalists: int = setting(5, at_least=0)
    device: str = "auto"
    precision: str = "float32"
    repair: str = setting("one_shot", words=REPAIRS)
    threads: int = setting(1, at_least=1, at_most=MAX_THREADS)
    utilisation: int = setting(0, at_least=0, at_most=1000)
    noise: float = setting(0.05, above=0, at_most=0.5)

    def __post_init__(self) -> None:
        """Checks the values."""
        check(self, "evaluator")
        check_computing(self.device, self.precision)
        added = OBJECTIVES.added().values()
        known = {
            *METRICS,
            *(name for objective in added for name in (*objective.names, *objective.to_full)),
        }
        if self.metric is not None and ":" not in self.metric and self.metric not in known:
            raise ConfigError(unknown_name("metric", self.metric, known))


@dataclass(frozen=True, kw_only=True)
class AdaptiveBNOptions(ScoringOptions):
    """Options of `AdaptiveBN`, besides those of scoring.

    Attributes:
        calibration_images: training images that statistics are estimated on, at least one batch; rounded down to whole
            batches. 0 leaves the statistics as they were inherited, for comparison only.
        batch_size: images per calibration pass, at least 2.

    Raises:
        ConfigError: if a number is out of range.
    """

    calibration_images: int = setting(512, at_least=0, unit="images")
    batch_size: int = setting(128, at_least=2, unit="images")

    def __post_init__(self) -> None:
        """Checks the values."""
        super().__post_init__()
        if 0 < self.calibration_images < self.batch_size:
            msg = f"evaluator: calibration_images is at least one batch, batch_size = {self.batch_size}, found "
            msg += f"{self.calibration_images}"
            raise ConfigError(msg)


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
        fresh_weights: all weights do, drawn from the evaluation's seed: a training from the beginning, as in network
            adjustment.
        dropout: share of the channels of the last layer that are silent at the end of the training, in [0, 0.5]; fewer
            before, and in layers before it (`Dropout`). Published for network adjustment: 0.05, as is `noise`.

    Raises:
        ConfigError: if a number is out of range.
    """

    epochs: int = 2
    steps: int | None = setting(None, at_least=1)
    batch_size: int = setting(128, at_least=1, unit="images")
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    shift: int = 0
    flip: bool = False
    fresh_norms: bool = False
    fresh_weights: bool = False
    dropout: float = setting(0.0, at_least=0, at_most=0.5)

    def __post_init__(self) -> None:
        """Checks the values."""
        super().__post_init__()
        self.recipe()

    def recipe(self, batch_divisor: int = 1) -> Recipe:
        """Returns the recipe of the training loop, with the batch size divided by `batch_divisor`."""
        names = {option.name for option in fields(self)}
        values: dict[str, Any] = {
            f.name: getattr(self, f.name) for f in fields(Recipe) if f.name in names
        }
        values["batch_size"] = max(1, self.batch_size // batch_divisor)
        return Recipe(**values)


@dataclass(frozen=True, kw_only=True)
class CascadeOptions:
    """Options of `Cascade`.

    Attributes:
        fraction: share of the trials that are trained, in (0, 1].
        metric: the fitness of both stages; None: the objective's first metric.
        repair: of both stages, as of `ScoringOptions`.
        scoring: of the first stage, as of `ScoringOptions`; its candidates race against the last one of the best
            fraction. Those that are trained are scored in full.
        finalists: as of `ScoringOptions`; those that have not been trained are.
        adaptive_bn: options of the first stage, all but these.
        short_training: options of the second stage, all but these.

    Raises:
        ConfigError: if an option is unknown, or a number out of range.
    """

    fraction: float = setting(
        0.2, above=0, at_most=1, meaning="the share of trials that are trained"
    )
    metric: str | None = None
    repair: str = setting("one_shot", words=REPAIRS)
    scoring: str = setting("full", words=SCORINGS)
    finalists: int = setting(5, at_least=0)
    adaptive_bn: Mapping[str, Any] = field(default_factory=dict[str, Any])
    short_training: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        """Checks the values."""
        wrong = problems(self)
        for name in self.STAGES:
            if not isinstance(getattr(self, name), Mapping):
                wrong.append(f"{name} is a table of options, found {getattr(self, name)!r}")
        if wrong:
            msg = f"cascade: {'; '.join(wrong)}"
            raise ConfigError(msg)
        _ = self.first, self.second  # they check their own

    # The names of the stages, as evaluators and as tables of options.
    STAGES: ClassVar[tuple[str, str]] = ("adaptive_bn", "short_training")
    SHARED: ClassVar[tuple[str, ...]] = ("metric", "repair", "scoring", "finalists")

    def stages(self) -> tuple[tuple[str, dict[str, Any], float], ...]:
        """Returns the evaluator of each stage, its options, and the share of the trials that see it."""
        shares = (1.0, self.fraction)
        tables = ({**self._shared, **getattr(self, name)} for name in self.STAGES)
        return tuple(zip(self.STAGES, tables, shares, strict=True))

    @property
    def _shared(self) -> dict[str, Any]:
        """The options of both stages."""
        return {name: getattr(self, name) for name in self.SHARED}

    @property
    def first(self) -> AdaptiveBNOptions:
        """Options of the first stage."""
        return self._stage(AdaptiveBNOptions, "adaptive_bn", self.adaptive_bn)

    @property
    def second(self) -> ShortTrainingOptions:
        """Options of the second stage."""
        return self._stage(ShortTrainingOptions, "short_training", self.short_training)

    def _stage(self, kind: type, name: str, given: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a record
        known = [f.name for f in fields(kind) if f.name not in self._shared]
        for option in given:
            if option not in known:
                raise ConfigError(unknown_name(f"option of cascade.{name}:", option, known))
        try:
            return kind(**self._shared, **given)
        except ConfigError as error:
            msg = f"cascade.{name}: {error}"
            raise ConfigError(msg) from error


def completed(
    record: type | None, options: Mapping[str, Any], usual: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns options of an evaluator that say what would change with a default of ours.

    Args:
        record: of the evaluator's options.
        options: which may say so already.
        usual: by name, what is said otherwise, where the evaluator has such an option.
    """
    known = () if record is None else [option.name for option in fields(record)]
    return {**{name: value for name, value in usual.items() if name in known}, **options}
