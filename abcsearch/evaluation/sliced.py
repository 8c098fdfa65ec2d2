"""What evaluators share that get a candidate's network from a source and score it on search-validation."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch

from abcsearch.channels.fixed import Fixed
from abcsearch.channels.layout import fit_layout, laid_out
from abcsearch.channels.repair import Repaired
from abcsearch.channels.source import Sliced
from abcsearch.data.images import hardest
from abcsearch.errors import ConfigError, DataError, RankingError, plural, unknown_name
from abcsearch.evaluation import racing
from abcsearch.evaluation.options import ScoringOptions
from abcsearch.evaluation.utilisation import utilisation
from abcsearch.rng import torch_seeded, torch_stream
from abcsearch.training.collected import is_whole
from abcsearch.training.computing import computing, find_device
from abcsearch.training.objectives import METRICS, Objective, find_objective
from abcsearch.training.scoring import Tally, predict, repeats, score, scoring_batch
from abcsearch.transforms.ranked import Ranked
from abcsearch.trial import Evaluation

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from abcsearch.channels.repair import How
    from abcsearch.channels.source import Source
    from abcsearch.data.split import Split
    from abcsearch.data.splits import Data
    from abcsearch.space import Candidate

REPAIR_IMAGES = (
    384  # whose second moments repairs are fitted to: twice as many are worth 0.2 points
)


class SlicedEvaluator(ABC):
    """Gets the network of a candidate, prepares it in some way, and scores it on search-validation.

    The base of evaluators, also of your own: implement `prepare`. One that is called in its own way (`__call__`) is
    scored in full: what it makes of the metric need not be a mean over images.

    The network and the images are on the device of the options, images there once; a candidate exists only while it is
    evaluated. If CUDA runs out of memory, the evaluation is tried once more with half the batch size (its metrics then
    say so: `halved_batch` is 1); if that is not enough, it fails.

    Attributes:
        source: where networks come from, on the device of the options.
        data: prepares on `data.train`.
        options: of the evaluator.
        metric: what fitness is.
        device: where candidates are evaluated.
    """

    # The class of the options record, which an evaluator of your own with options of its own derives and names here.
    Options: ClassVar[type[ScoringOptions]] = ScoringOptions

    def __init__(self, source: Source, data: Data, options: ScoringOptions | None = None) -> None:
        """Prepares the evaluator.

        Args:
            source: where candidates' networks come from.
            data: prepares on `data.train`, scores on `data.validation`.
            options: see `ScoringOptions`.

        Raises:
            ConfigError: if the metric is unknown, or is none; if this machine has no such device.
            ModelError: if the network does not return what the objective needs.
            DataError: if a label has no output; if the first stage of racing is to show fewer images than there are
                classes, or more than there are images.
        """
        self.options = options = options or type(self).Options()
        objective = find_objective(data.objective)
        self.metric = options.metric or objective.headline
        self._objective = with_metric(objective, self.metric)
        fit_layout(
            source.model, data.example
        )  # which all candidates, and copies elsewhere, then have of it
        self.source, self.data = repaired(source, data, options.repair), data
        if self.metric in self._objective.whole and options.scoring == "racing":
            msg = f'evaluator: scoring = "racing" compares candidates image by image, and {self.metric} is one number of '
            raise ConfigError(
                f'{msg}all images, of which one image has no share; set scoring = "full"'
            )
        count = min(options.validation_images or len(data.validation), len(data.validation))
        self._order = torch.randperm(
            len(data.validation), generator=torch_stream(data.seed, "validation images")
        )
        chosen = self._order[:count].sort()
        whole = count == len(data.validation)
        self._validation = data.validation if whole else data.validation.part(chosen.values)
        self._stages: tuple[torch.Tensor, ...] = ()  # positions of the images of each
        if self.races:
            ends = racing.ends(count, _first_stage(data, count, options.stage_images))
            self._stages = chosen.indices.argsort().tensor_split(ends[:-1])
        self._settle()
        # What is wrong with all candidates is said once here, not by every trial; on a copy, since forward may have
        # side effects.
        highest = hardest(self._validation.labels)
        one, probe = self._validation.part(highest), copy.deepcopy(source.model)
        with torch_seeded(0, "probe"):
            score(probe, one, objective=self._objective)
            if not repeats(probe, one, objective=self._objective):
                msg = (
                    f"{type(source.model).__name__} draws random numbers in evaluation mode, so fitness cannot be "
                    "repeated; F.dropout needs training=self.training"
                )
                warnings.warn(msg, stacklevel=3)

    def _settle(self) -> None:
        """Moves network and images to the device of the options."""
        self.device = find_device(self.options.device, self.options.precision)
        self.source = self.source.to(self.device)
        self._validation = self._validation.to(self.device)

    def __getstate__(self) -> dict[str, Any]:
        """Returns all but what is computed when needed, on the CPU: the process that reads it has its own device."""
        state = {name: value for name, value in vars(self).items() if name != "_full"}
        source = self.source.source if isinstance(self.source, Ranked) else self.source
        if isinstance(source, Repaired):
            with computing(
                self.device, precision=self.options.precision, threads=self.options.threads
            ):
                source.moments()  # here, so that all processes have the same
        return {**state, "source": self.source.to("cpu")}  # splits pickle as arrays on the CPU

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the state, and moves network and images to this process's device."""
        vars(self).update(state)
        self._settle()

    @abstractmethod
    def prepare(self, network: nn.Module, seed: int, batch_divisor: int) -> None:
        """Makes the network of a candidate ready to be scored, in place.

        Args:
            network: on the device, channels_last.
            seed: of the evaluation.
            batch_divisor: batch sizes are divided by it.
        """

    def build(self, candidate: Candidate, seed: int = 0) -> nn.Module:
        """Returns the network that a candidate is scored by, in evaluation mode, on the CPU."""
        with computing(self.device, precision=self.options.precision, threads=self.options.threads):
            return self._build(candidate, seed, 1).cpu()

    def _build(self, candidate: Candidate, seed: int, batch_divisor: int) -> nn.Module:
        network = self.source.network(candidate, seed)
        # The layout decides the order of summation: one for all, whichever the trained network has in this process.
        laid_out(network)
        self.prepare(network, seed, batch_divisor)
        return network.eval()

    @cached_property
    def _full(self) -> torch.Tensor | None:
        """Outputs of the full network on the validation images, where the metric needs them."""
        return self._outputs(self._validation)

    def _outputs(self, images: Split) -> torch.Tensor | None:
        """Returns outputs of the full network on some images, where the metric needs them."""
        if self.metric not in self._objective.to_full:
            return None
        return predict(copy.deepcopy(self.source.full), images)

    @property
    def races(self) -> bool:
        """Whether it stops scoring candidates that have lost."""
        return self.options.scoring == "racing" and self._is_usual

    @property
    def finalists(self) -> int:
        """How many of the best trials are scored in full at the end of a search."""
        return self.options.finalists if self._is_usual else 0

    @property
    def _is_usual(self) -> bool:
        """Whether a call is that of this class, and not what a class derived from it makes of it."""
        return type(self).__call__ is SlicedEvaluator.__call__

    def complete(self, evaluation: Evaluation) -> bool:
        """Returns whether an evaluation is of all of search-validation."""
        seen = evaluation.metrics.get(racing.IMAGES, len(self._validation))
        return evaluation.fitness is None or seen >= len(self._order)

    def __call__(self, candidate: Candidate, seed: int) -> Evaluation:
        """Returns fitness and metrics on search-validation; a metric that is not finite is a failure."""
        return _once_more(lambda batch_divisor: self._evaluation(candidate, seed, batch_divisor))

    def race(self, candidate: Candidate, seed: int, bar: float) -> Evaluation:
        """Returns the same, of the images up to the end of the stage in which fitness is clearly below a bar.

        Args:
            candidate: the structure.
            seed: of the evaluation.
            bar: fitness of the incumbent; minus infinity where there is none.

        Returns:
            Metrics as `Racer` says.
        """
        return _once_more(
            lambda batch_divisor: self._evaluation(candidate, seed, batch_divisor, bar)
        )

    def in_full(self, candidate: Candidate, seed: int) -> Evaluation:
        """Returns the same on all of search-validation, where `validation_images` are fewer, too."""
        if len(self._validation) == len(self._order):
            return self.race(candidate, seed, -math.inf)
        every = self.data.validation
        return _once_more(
            lambda batch_divisor: self._evaluation(candidate, seed, batch_divisor, -math.inf, every)
        )

    def _evaluation(
        self,
        candidate: Candidate,
        seed: int,
        batch_divisor: int,
        bar: float | None = None,
        images: Split | None = None,
    ) -> Evaluation:
        with computing(self.device, precision=self.options.precision, threads=self.options.threads):
            network = self._build(candidate, seed, batch_divisor)
            tally = self._scored(network, batch_divisor, bar, images)
            diagnostics = self._diagnosed(network, candidate, seed)
        metrics = tally.means()
        costs = self.source.graph.costs
        macs, params = int(costs.macs([candidate])[0]), int(costs.params([candidate])[0])
        # A network that returns NaN still has a top1: its class 0 counts as the best one.
        wrong = [
            f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)
        ]
        if wrong:
            return Evaluation(
                fitness=None, metrics=metrics, macs=macs, params=params, failure=", ".join(wrong)
            )
        fitness = metrics[self.metric]
        if bar is not None:
            metrics |= self._spread(tally) | ({} if math.isinf(bar) else {racing.BAR: bar})
        return Evaluation(
            fitness=fitness, metrics=metrics, macs=macs, params=params, diagnostics=diagnostics
        )

    def _diagnosed(self, network: nn.Module, candidate: Candidate, seed: int) -> dict[str, float]:
        """Returns what the MACs of every layer are worth, where that is asked for."""
        if not self.options.utilisation:
            return {}
        return utilisation(
            network,
            self.source.graph,
            candidate,
            self.data,
            self._validation,
            base=self.options.noise,
            passes=self.options.utilisation,
            seed=seed,
        )

    def _scored(
        self, network: nn.Module, batch_divisor: int, bar: float | None, images: Split | None
    ) -> Tally:
        """Returns the metrics on some images, or on those of each stage until the bar is out of reach."""
        tally, size = (
            Tally(self._objective, self.metric),
            scoring_batch(self.device) // batch_divisor,
        )
        stages, shown = self._stages, self._validation
        if images is not None:
            stages, shown = (torch.arange(len(images)),), images
        full = self._full if images is None else self._outputs(images)
        if not stages:
            tally.add(network, shown, full=full, batch_size=size)
        for stage in stages:
            # Copied, and moved to the device, a batch at a time
            for positions in stage.split(size):
                theirs = None if full is None else full[positions]
                tally.add(network, shown.part(positions), full=theirs, batch_size=size)
            if self._is_lost(tally, bar):
                break
        return tally

    def _is_lost(self, tally: Tally, bar: float | None) -> bool:
        """Returns whether a candidate has failed already, or is behind a bar."""
        means = tally.means()
        if bar is None or not all(map(math.isfinite, means.values())):
            return bar is not None
        values = tally.values()
        return values is not None and racing.is_behind(
            means[self.metric], racing.standard_error(values), bar
        )

    def _spread(self, tally: Tally) -> dict[str, float]:
        """Returns on how many images a fitness was found, how sure it is, and how groups of all images did."""
        values = tally.values()
        if values is None:
            return {racing.IMAGES: float(tally.count)}
        error = racing.standard_error(values)
        spread = {racing.IMAGES: float(tally.count)} | (
            {} if error is None else {racing.ERROR: error}
        )
        if not self.finalists or tally.count < len(self._order):
            return spread
        # Scored in the order drawn
        in_turn = self._stages and len(self._validation) == len(self._order)
        return spread | racing.group_means(values if in_turn else values[self._order])


def _once_more(evaluation: Callable[[int], Evaluation]) -> Evaluation:
    """Returns an evaluation; if CUDA runs out of memory, that with half the batch size.

    Args:
        evaluation: of what batch sizes are divided by.
    """
    try:
        return evaluation(1)
    except torch.OutOfMemoryError:
        pass  # outside of this block nothing holds the failed evaluation's memory any more
    torch.cuda.empty_cache()
    again = evaluation(2)
    return replace(again, metrics={**again.metrics, "halved_batch": 1.0})


def _first_stage(data: Data, count: int, wanted: int | None) -> int:
    """Returns how many images the first stage of racing shows.

    Args:
        data: whose classes should all be among them.
        count: of all images that are shown.
        wanted: by the user; None: 128, or the first doubling of it that is enough.

    Raises:
        DataError: if so many are not there, or are fewer than there are classes.
    """
    classes = int(data.validation.labels.max()) + 1 if data.objective == "classification" else 1
    if wanted is None:
        first = racing.FIRST_STAGE
        while first < classes:
            first *= racing.GROWTH
        return first
    if not classes <= wanted <= count:
        few = (
            f"{plural(classes, 'class')} of {data.name}"
            if wanted < classes
            else f"{plural(count, 'image')} scored"
        )
        msg = f"evaluator: stage_images is from the number of classes to that of images, found {wanted} for the {few}; "
        msg += 'leave it out, or set scoring = "full"'
        raise DataError(msg)
    return wanted


def repaired(source: Source, data: Data, how: str) -> Source:
    """Returns a source whose networks are repaired on training images, where it slices the trained network.

    Args:
        source: whose networks come from elsewhere are left as they are; so are repaired ones.
        data: of whose training images moments are taken.
        how: one of `REPAIRS`.
    """
    if isinstance(source, Ranked):
        return Ranked(repaired(source.source, data, how))
    if how == "none" or type(source) not in (Sliced, Fixed):
        return source
    return Repaired(
        cast("Sliced", source),
        calibration_images(data, REPAIR_IMAGES).images,
        cast("How", how),
        seed=data.seed,
    )


def repair_lines(evaluator: object) -> list[str]:
    """Returns what repair does to the candidates of an evaluator, in words; none where it is not one of ours, or none.

    What keeps repair from working, the first evaluation says.
    """
    source = getattr(evaluator, "source", None)
    source = source.source if isinstance(source, Ranked) else source
    with contextlib.suppress(RankingError):
        return source.lines() if isinstance(source, Repaired) else []
    return []


def calibration_images(data: Data, count: int) -> Split:
    """Returns (up to) `count` unaugmented training images in memory, drawn once per data split."""
    order = torch.randperm(len(data.train), generator=torch_stream(data.seed, "calibration"))
    return data.train.part(order[:count]).loaded()


def with_metric(objective: Objective, metric: str) -> Objective:
    """Returns the objective with the user's own metric, from `METRICS` or by import path, among its own.

    Raises:
        ConfigError: if the metric is unknown, or its import path leads nowhere.
    """
    known = [*objective.names, *objective.to_full, *METRICS.added()]
    if metric in (*objective.names, *objective.to_full):
        return objective
    if metric not in known and ":" not in metric:
        raise ConfigError(unknown_name("metric", metric, known))
    made: Any = METRICS.find(metric)
    if is_whole(made):
        return replace(objective, whole={**objective.whole, metric: made})
    return replace(objective, metrics={**objective.metrics, metric: made})
