"""AdaptiveBN: score a sliced network after re-estimating its batch-norm statistics."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.errors import ConfigError, plural
from abcsearch.evaluation.options import AdaptiveBNOptions
from abcsearch.evaluation.sliced import SlicedEvaluator, calibration_images
from abcsearch.example import run_on
from abcsearch.training.scoring import modes_kept

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from abcsearch.channels.source import Source
    from abcsearch.data.split import Split
    from abcsearch.data.splits import Data
    from abcsearch.example import Inputs


class AdaptiveBN(SlicedEvaluator):
    """Slices the trained network, re-estimates batch-norm statistics, and scores it on search-validation.

    Deterministic: the calibration images are the same for every candidate, and the seed of an evaluation is not used.
    A network without running statistics is scored as it is: there is nothing to calibrate, and a warning says so.

    Source: Li et al., EagleEye (ECCV 2020), section 3.2.

    Differences from the paper:
        - Statistics are the plain average over all calibration batches. With the paper's momentum of 0.1 the last
          20 of 102 batches carry 88 % of the weight.
        - The calibration images are unaugmented training images; search-validation is held out of the training
          images, so that the test set is never selected on.
        - Any layer that keeps running statistics is calibrated: batch norms of all dimensions and kinds, and instance
          norms that track statistics.
    """

    Options = AdaptiveBNOptions
    options: AdaptiveBNOptions

    def __init__(
        self, source: Source, data: Data, options: AdaptiveBNOptions | None = None
    ) -> None:
        """Prepares the evaluator; see `SlicedEvaluator`.

        Warns:
            UserWarning: if nothing is to be calibrated, or there are fewer training images than one batch.
        """
        options = options or AdaptiveBNOptions()
        self._calibration: Split | None = None
        super().__init__(source, data, options)
        if options.calibration_images and not statistics(source.model):
            name = type(source.model).__name__
            msg = (
                f"{name} has no running statistics: nothing to calibrate, candidates are scored as "
            )
            msg += "sliced" if options.repair == "none" else "sliced and repaired"
            warnings.warn(msg, stacklevel=2)
        elif options.calibration_images:
            if len(data.train) < options.batch_size:
                images = f"{plural(len(data.train), 'training image')} of {data.name}"
                msg = f"adaptive_bn: batch_size = {options.batch_size} is larger than the {images}: they are one batch"
                warnings.warn(msg, stacklevel=2)
            self._calibration = calibration_images(data, options.calibration_images).to(self.device)

    def _settle(self) -> None:
        """Moves the calibration images as well."""
        super()._settle()
        if self._calibration is not None:
            self._calibration = self._calibration.to(self.device)

    def prepare(self, network: nn.Module, seed: int, batch_divisor: int) -> None:
        """Re-estimates the statistics."""
        del seed
        if self._calibration is not None:
            images = self._calibration.images
            calibrate(
                network,
                images,
                batch_size=min(self.options.batch_size, len(images)) // batch_divisor,
            )


def statistics(model: nn.Module) -> list[Any]:
    """Returns the layers of a network that keep running statistics of their inputs."""
    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, "running_mean", None), torch.Tensor)
        and hasattr(module, "momentum")
        and hasattr(module, "reset_running_stats")
    ]


def calibrate(model: nn.Module, images: Inputs, *, batch_size: int = 128) -> None:
    """Re-estimates the running statistics of every normalisation in place: the exact average over equal batches.

    Modes and momenta are as before afterwards, and on failure the statistics as well.

    Args:
        model: the network; only running statistics change.
        images: (n, channels, height, width) calibration images, or several inputs; an incomplete last batch is left
            out.
        batch_size: images per pass, at most n.

    Raises:
        ConfigError: if there are fewer images than one batch.
    """
    if not 1 <= batch_size <= len(images):
        msg = f"calibration needs a batch_size from 1 to the number of images, {len(images)}, found {batch_size}"
        raise ConfigError(msg)
    norms = statistics(model)
    if not norms:
        return
    with modes_kept(model):
        model.eval()
        for norm in norms:
            norm.train()
        learning = [norm for norm in norms if norm.training]  # some refuse: they are frozen
        with _averaging(learning), torch.inference_mode():
            for batch in images[: len(images) // batch_size * batch_size].split(batch_size):
                run_on(model, batch.clone())  # forward may change its input in place


@contextlib.contextmanager
def _averaging(norms: list[Any]) -> Iterator[None]:
    """Resets normalisations, and has them average what passes in the block.

    Those that nothing passes are as before; if the block fails, all are.
    """
    before = [
        (norm, norm.momentum, {k: v.clone() for k, v in norm.named_buffers(recurse=False)})
        for norm in norms
    ]
    passes = dict.fromkeys(map(id, norms), 0)

    def average(norm: Any, _inputs: object) -> None:  # noqa: ANN401 - any normalisation
        # The n-th pass counts 1 / n. Momentum None would do the same in batch norms, but waits for the device at every
        # layer to read n, and means no update at all in instance norms.
        passes[id(norm)] += 1
        norm.momentum = 1 / passes[id(norm)]

    hooks = [norm.register_forward_pre_hook(average) for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
        yield
        _restore([entry for entry in before if not passes[id(entry[0])]])
    except BaseException:
        _restore(before)
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum, _ in before:
            norm.momentum = momentum


@torch.no_grad()
def _restore(before: list[tuple[Any, Any, dict[str, torch.Tensor]]]) -> None:
    """Gives normalisations their buffers back."""
    for norm, _, buffers in before:
        for name, value in norm.named_buffers(recurse=False):
            value.copy_(buffers[name])
