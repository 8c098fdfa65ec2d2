"""Fine-tuning of a pruned network: training, and its test before and after."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from abcsearch.data.splits import Data
from abcsearch.errors import DataError
from abcsearch.training.computing import computing, find_device
from abcsearch.training.loop import train
from abcsearch.training.objectives import find_objective
from abcsearch.training.recipe import Recipe
from abcsearch.training.scoring import Tally, device_of, score
from abcsearch.training.together import train_together

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from abcsearch.training.crew import Workers
    from abcsearch.training.loop import OnEpoch
    from abcsearch.training.state import Trained


@dataclass(frozen=True, kw_only=True)
class FineTuned:
    """A fine-tuned network and its test scores.

    Attributes:
        model: the network with the weights that the recipe keeps, in evaluation mode.
        before: metrics on the test split before fine-tuning (see `score`).
        after: metrics on the test split after it.
        training: losses, scores on search-validation, and both the best and the last weights.
        hits: (n,) bool, which test images it answers rightly after it, where the metric that reports show says so
            (top1 of a classifier); None of other metrics.
        resampled: what metrics after it are of the test images drawn with replacement, by name (1000,), always the same
            draws for as many images; for intervals. Metrics of a whole data set that do not say so are not among them.
    """

    model: nn.Module = field(repr=False)
    before: dict[str, float]
    after: dict[str, float]
    training: Trained
    hits: torch.Tensor | None = field(default=None, repr=False)
    resampled: Mapping[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)


def finetune(  # noqa: PLR0913 - all but the first two have a good default
    model: nn.Module,
    data: Data,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
    teacher: nn.Module | None = None,
    checkpoint: str | Path | None = None,
    workers: Workers | None = None,
    same: Mapping[str, Any] | None = None,
) -> FineTuned:
    """Trains a copy of a pruned network on the training split and scores both on the test split.

    After every epoch it is scored on search-validation, so that the best weights are known; test is touched before and
    after the whole training only, and decides nothing.

    Args:
        model: the network; not changed.
        data: trains on `data.train`, scores epochs on `data.validation`; `data.test` is only scored.
        recipe: how; by default `Recipe(lr=0.02)`.
        seed: the run's seed.
        on_epoch: progress, called with (epochs done, epochs in all, mean loss).
        teacher: the full network, if the recipe distils; not changed.
        checkpoint: a file that the training is saved to after every epoch and continued from, bit for bit; it stays.
        workers: several processes that train it together, `RayTraining(workers=4)`; by default this one alone.
        same: as for `train`.

    Raises:
        ConfigError, ModelError, DataError, CheckpointError: as `train` and `score`.
    """
    recipe = recipe or Recipe(lr=0.02)
    if not isinstance(data, Data):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"fine-tuning takes a Data, with train and test splits, found {type(data).__name__}"
        raise DataError(msg)
    home, device = device_of(model), find_device(recipe.device)
    tuned, goal = copy.deepcopy(model).to(device), data.objective
    # In float32 whatever the recipe trains in: what a network scores does not depend on how it is trained next.
    with computing(device, threads=recipe.threads):
        before = score(tuned, data.test, objective=goal)
    trained_by = train if workers is None else functools.partial(train_together, workers=workers)
    training = trained_by(
        tuned,
        data.train,
        recipe,
        seed=seed,
        stream="finetune",
        objective=goal,
        on_epoch=on_epoch,
        teacher=teacher,
        validation=data.validation,
        checkpoint=checkpoint,
        same=same,
    )
    objective = find_objective(goal)
    tally = Tally(objective, kept=objective.headline, resampled=True)
    with computing(device, threads=recipe.threads):
        tally.add(tuned, data.test)
    values = tally.values()
    binary = values is not None and values.ndim == 1 and bool(((values == 0) | (values == 1)).all())
    hits = values.bool() if values is not None and binary else None
    return FineTuned(
        model=tuned.eval().to(home),
        before=before,
        after=tally.means(),
        training=training,
        hits=hits,
        resampled=tally.resampled(),
    )
