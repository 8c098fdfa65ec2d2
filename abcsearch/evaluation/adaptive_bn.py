"""AdaptiveBN: score a sliced network after re-estimating its batch-norm statistics."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from abcsearch.channels.latency import torch_threads
from abcsearch.channels.slicing import slice_model
from abcsearch.errors import ConfigError, unknown_name
from abcsearch.rng import torch_stream
from abcsearch.training.scoring import METRICS, modes_kept, score
from abcsearch.trial import Evaluation

if TYPE_CHECKING:
    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.ranking import Ranking
    from abcsearch.data.splits import Data
    from abcsearch.space import Candidate


@dataclass(frozen=True, kw_only=True)
class AdaptiveBNOptions:
    """Options of `AdaptiveBN`.

    Attributes:
        metric: which metric is the fitness: "top1", "top5" or "neg_loss" (smoother, for accuracies near chance).
        calibration_images: training images that statistics are estimated on, at least 2; rounded down to whole batches.
        batch_size: images per calibration pass, at least 2.
        threads: torch threads; recorded, since it decides the order of summation.

    Raises:
        ConfigError: if the metric is unknown or a number is out of range.
    """

    metric: str = "top1"
    calibration_images: int = 2048
    batch_size: int = 128
    threads: int = 1

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.metric not in METRICS:
            raise ConfigError(unknown_name("metric", self.metric, METRICS))
        for name, lowest in (("calibration_images", 2), ("batch_size", 2), ("threads", 1)):
            if getattr(self, name) < lowest:
                msg = f"adaptive_bn: {name} is at least {lowest}, found {getattr(self, name)}"
                raise ConfigError(msg)


class AdaptiveBN:
    """Slices the trained network, re-estimates batch-norm statistics, and scores it on search-validation.

    Deterministic: the calibration images are the same for every candidate, and the seed of an evaluation is not used.
    A network without batch norm is scored as it is: there is nothing to calibrate.

    Source: Li et al., EagleEye (ECCV 2020), section 3.2.

    Differences from the paper:
        - Statistics are the plain average over all calibration batches. With the paper's momentum of 0.1 the last
          20 of 102 batches carry 88 % of the weight.
        - The calibration images are unaugmented training images; search-validation is held out of the training
          images, so that the test set is never selected on.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        ranking: Ranking,
        data: Data,
        options: AdaptiveBNOptions | None = None,
    ) -> None:
        """Prepares the evaluator.

        Args:
            model: the trained network; never changed.
            graph: its channel groups.
            ranking: which channels a candidate keeps.
            data: calibrates on `data.train`, scores on `data.validation`.
            options: see `AdaptiveBNOptions`.

        Raises:
            ModelError: if the network does not return logits.
            DataError: if a label has no output.
        """
        self.options = options or AdaptiveBNOptions()
        self._model, self._graph, self._ranking, self._data = model, graph, ranking, data
        self._calibration = calibration_images(data, self.options.calibration_images)
        self._batch_size = min(self.options.batch_size, len(self._calibration))
        # Said once here, not by every trial; on a copy, since forward may have side effects.
        highest = data.validation.labels.argmax()[None]
        score(copy.deepcopy(model), data.validation.part(highest))

    def build(self, candidate: Candidate) -> nn.Module:
        """Returns the sliced and calibrated network of a candidate, in evaluation mode."""
        network = slice_model(self._model, self._graph, candidate, self._ranking)
        # The layout decides the order of summation: one for all, whichever the trained network has in this process.
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - overload without it
        with torch_threads(self.options.threads):
            calibrate(network, self._calibration, batch_size=self._batch_size)
        return network.eval()

    def __call__(self, candidate: Candidate, seed: int) -> Evaluation:
        """Returns fitness and metrics on search-validation; a metric that is not finite is a failure."""
        del seed
        network = self.build(candidate)
        with torch_threads(self.options.threads):
            metrics = score(network, self._data.validation)
        costs = self._graph.costs
        macs, params = int(costs.macs([candidate])[0]), int(costs.params([candidate])[0])
        # A network that returns NaN still has a top1: its class 0 counts as the best one.
        wrong = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
        if wrong:
            return Evaluation(fitness=None, metrics=metrics, macs=macs, params=params, failure=", ".join(wrong))
        return Evaluation(fitness=metrics[self.options.metric], metrics=metrics, macs=macs, params=params)


def calibration_images(data: Data, count: int) -> torch.Tensor:
    """Returns (up to) `count` unaugmented training images, drawn once per data split: (n, channels, height, width)."""
    order = torch.randperm(len(data.train), generator=torch_stream(data.seed, "calibration"))
    return data.train.images[order[:count]].contiguous(memory_format=torch.channels_last)


def calibrate(model: nn.Module, images: torch.Tensor, *, batch_size: int = 128) -> None:
    """Re-estimates the running statistics of every batch norm in place: the exact average over equal batches.

    Modes and momenta are as before afterwards, also on failure.

    Args:
        model: the network; only running statistics change.
        images: (n, channels, height, width) calibration images; an incomplete last batch is left out.
        batch_size: images per pass, at most n.

    Raises:
        ConfigError: if there are fewer images than one batch.
    """
    if not 1 <= batch_size <= len(images):
        msg = f"calibration needs a batch_size from 1 to the number of images, {len(images)}, found {batch_size}"
        raise ConfigError(msg)
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    try:
        with modes_kept(model), torch.inference_mode():
            model.eval()
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # cumulative average
                norm.train()
            for batch in images[: len(images) // batch_size * batch_size].split(batch_size):
                model(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
