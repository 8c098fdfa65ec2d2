"""What evaluators share that get a candidate's network from a source and score it on search-validation."""

from __future__ import annotations

import copy
import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch

from abcsearch.channels.repair import Repaired
from abcsearch.channels.source import Sliced
from abcsearch.errors import ConfigError, unknown_name
from abcsearch.evaluation.options import ScoringOptions
from abcsearch.rng import torch_seeded, torch_stream
from abcsearch.training.computing import computing, find_device
from abcsearch.training.objectives import METRICS, Objective, find_objective
from abcsearch.training.scoring import predict, score, scoring_batch
from abcsearch.trial import Evaluation

if TYPE_CHECKING:
    from torch import nn

    from abcsearch.channels.repair import How
    from abcsearch.channels.source import Source
    from abcsearch.data.splits import Data, Split
    from abcsearch.space import Candidate

REPAIR_IMAGES = 384  # whose second moments repairs are fitted to: twice as many are worth 0.2 points


class SlicedEvaluator(ABC):
    """Gets the network of a candidate, prepares it in some way, and scores it on search-validation.

    The base of evaluators, also of your own: implement `prepare`.

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
            DataError: if a label has no output.
        """
        self.options = options = options or type(self).Options()
        objective = find_objective(data.objective)
        self.metric = options.metric or objective.headline
        self._objective = with_metric(objective, self.metric)
        self.source, self.data = repaired(source, data, options.repair), data
        count = options.validation_images or len(data.validation)
        order = torch.randperm(len(data.validation), generator=torch_stream(data.seed, "validation images"))
        chosen = data.validation if count >= len(data.validation) else data.validation.part(order[:count].sort().values)
        self._validation = chosen
        self._settle()
        # What is wrong with all candidates is said once here, not by every trial; on a copy, since forward may have
        # side effects.
        labels = self._validation.labels
        highest = labels.reshape(len(labels), -1).amax(dim=1).argmax()[None]
        one, probe = self._validation.part(highest), copy.deepcopy(source.model)
        with torch_seeded(0, "probe"):
            score(probe, one, objective=self._objective)
            if not torch.equal(*(predict(probe, one).nan_to_num() for _ in range(2))):
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
        if isinstance(self.source, Repaired):
            with computing(self.device, precision=self.options.precision, threads=self.options.threads):
                self.source.moments()  # here, so that all processes have the same
        return {**state, "source": self.source.to("cpu")}  # splits pickle as arrays on the CPU

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the state, and moves network and images to this process's device."""
        vars(self).update(state)
        self._settle()

    @abstractmethod
    def prepare(self, network: nn.Module, seed: int, shrink: int) -> None:
        """Makes the network of a candidate ready to be scored, in place.

        Args:
            network: on the device, channels_last.
            seed: of the evaluation.
            shrink: batch sizes are divided by it.
        """

    def build(self, candidate: Candidate, seed: int = 0) -> nn.Module:
        """Returns the network that a candidate is scored by, in evaluation mode, on the CPU."""
        with computing(self.device, precision=self.options.precision, threads=self.options.threads):
            return self._build(candidate, seed, 1).cpu()

    def _build(self, candidate: Candidate, seed: int, shrink: int) -> nn.Module:
        network = self.source.network(candidate, seed)
        # The layout decides the order of summation: one for all, whichever the trained network has in this process.
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - overload without it
        self.prepare(network, seed, shrink)
        return network.eval()

    @cached_property
    def _full(self) -> torch.Tensor | None:
        """Outputs of the full network on the validation images, where the metric needs them."""
        if self.metric not in self._objective.to_full:
            return None
        return predict(copy.deepcopy(self.source.full), self._validation)

    def __call__(self, candidate: Candidate, seed: int) -> Evaluation:
        """Returns fitness and metrics on search-validation; a metric that is not finite is a failure."""
        try:
            return self._evaluation(candidate, seed, 1)
        except torch.OutOfMemoryError:
            pass  # outside of this block nothing holds the failed evaluation's memory any more
        torch.cuda.empty_cache()
        found = self._evaluation(candidate, seed, 2)
        return replace(found, metrics={**found.metrics, "halved_batch": 1.0})

    def _evaluation(self, candidate: Candidate, seed: int, shrink: int) -> Evaluation:
        with computing(self.device, precision=self.options.precision, threads=self.options.threads):
            network = self._build(candidate, seed, shrink)
            metrics = score(
                network,
                self._validation,
                objective=self._objective,
                full=self._full,
                batch_size=scoring_batch(self.device) // shrink,
            )
        costs = self.source.graph.costs
        macs, params = int(costs.macs([candidate])[0]), int(costs.params([candidate])[0])
        # A network that returns NaN still has a top1: its class 0 counts as the best one.
        wrong = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
        if wrong:
            return Evaluation(fitness=None, metrics=metrics, macs=macs, params=params, failure=", ".join(wrong))
        return Evaluation(fitness=metrics[self.metric], metrics=metrics, macs=macs, params=params)


def repaired(source: Source, data: Data, how: str) -> Source:
    """Returns a source whose networks are repaired on training images, where it slices the trained network.

    Args:
        source: whose networks come from elsewhere are left as they are; so are repaired ones.
        data: of whose training images moments are taken.
        how: one of `REPAIRS`.
    """
    if how == "none" or type(source) is not Sliced:
        return source
    return Repaired(source, calibration_images(data, REPAIR_IMAGES).images, cast("How", how), seed=data.seed)


def calibration_images(data: Data, count: int) -> Split:
    """Returns (up to) `count` unaugmented training images in memory, drawn once per data split."""
    order = torch.randperm(len(data.train), generator=torch_stream(data.seed, "calibration"))
    return data.train.part(order[:count]).loaded()


def with_metric(objective: Objective, metric: str) -> Objective:
    """Returns the objective with the user's own metric, from `METRICS` or by import path, among its own.

    Raises:
        ConfigError: if the metric is unknown, or its import path leads nowhere.
    """
    known = [*objective.metrics, *objective.to_full, *METRICS.added()]
    if metric in (*objective.metrics, *objective.to_full):
        return objective
    if metric not in known and ":" not in metric:
        raise ConfigError(unknown_name("metric", metric, known))
    return replace(objective, metrics={**objective.metrics, metric: METRICS.find(metric)})
