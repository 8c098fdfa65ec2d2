"""How good a network is on a split."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abcsearch.channels.layout import fit_layout
from abcsearch.errors import ConfigError, plural
from abcsearch.example import paths, run_on
from abcsearch.training.collected import Collection
from abcsearch.training.objectives import Objective, find_objective, output_of
from abcsearch.training.resampling import draws_of, mean_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import nn

    from abcsearch.data.split import Images
    from abcsearch.training.objectives import Metric


def scoring_batch(device: torch.device) -> int:
    """Returns how many images a pass takes: as many as keep a GPU busy, or as leave activations in a CPU's caches."""
    return 512 if device.type == "cuda" else 64


def score(
    model: nn.Module,
    split: Images,
    *,
    objective: str | Objective = "classification",
    full: torch.Tensor | None = None,
    batch_size: int | None = None,
) -> dict[str, float]:
    """Returns all metrics of a network on a split, means over its images or of them all; higher is better.

    Of a classifier: top1 and top5 in [0, 1], neg_loss (negative mean cross-entropy). Runs in evaluation mode without
    gradients, on the device of the network, and leaves the modes of the modules as they were.

    Args:
        model: maps (batch, channels, height, width), or several inputs, to what the objective expects, (batch, classes)
            of a classifier.
        split: images and labels, in memory or streamed.
        objective: one of `OBJECTIVES` by name, or your own.
        full: outputs of the full network on the split (see `predict`); with them neg_kl is among the metrics: minus
            the Kullback-Leibler divergence to the full network.
        batch_size: images per pass; by default `scoring_batch` of the device.

    Raises:
        ModelError: if the model does not return logits.
        DataError: if a label has no output.
        ConfigError: if the objective is unknown, or one of its metrics is none.
    """
    tally = Tally(find_objective(objective) if isinstance(objective, str) else objective)
    tally.add(model, split, full=full, batch_size=batch_size)
    return tally.means()


class Tally:
    """The metrics of a network on the images that it has been shown so far.

    Attributes:
        count: how many images these are.
    """

    def __init__(
        self, objective: Objective, kept: str | None = None, *, resampled: bool = False
    ) -> None:
        """Begins without any image.

        Args:
            objective: whose metrics are taken.
            kept: the metric whose values `values` returns, image by image; None: of none.
            resampled: whether `resampled` will be asked, for which values of all metrics are kept.
        """
        self.count = 0
        self._objective, self._kept = objective, kept
        self._every: list[torch.Tensor] | None = [] if resampled else None
        self._names: list[str] = []
        self._sums: torch.Tensor | None = None
        self._values: list[torch.Tensor] = []
        self._whole = Collection(objective.whole)
        self._finished: dict[str, float] | None = None

    def add(
        self,
        model: nn.Module,
        split: Images,
        *,
        full: torch.Tensor | None = None,
        batch_size: int | None = None,
    ) -> None:
        """Shows a network further images; arguments and errors as of `score`."""
        goal, first = self._objective, 0
        self._names = [*goal.metrics, *(goal.to_full if full is not None else ())]
        self._finished = None
        for outputs, labels in passes(model, split, batch_size, output=goal.output):
            goal.check(outputs, labels)
            self._whole.add(outputs, labels)
            each = [
                values_of(name, metric, outputs, labels) for name, metric in goal.metrics.items()
            ]
            if full is not None:
                theirs = full[first : first + len(labels)]
                each += [
                    values_of(name, metric, outputs, theirs)
                    for name, metric in goal.to_full.items()
                ]
            if each:
                sums = torch.stack([values.sum(dtype=torch.float64) for values in each])
                self._sums = sums + (0.0 if self._sums is None else self._sums)
            if each and self._every is not None:
                to_labels = each[: len(goal.metrics)]
                self._every.append(torch.stack([values.double() for values in to_labels]).cpu())
            if self._kept in self._names:
                self._values.append(each[self._names.index(self._kept)].double())
            first += len(labels)
        self.count += first

    def means(self) -> dict[str, float]:
        """Returns every metric: the mean over the images, which are one or more; of a whole data set, what it is."""
        means = [] if self._sums is None else (self._sums / self.count).tolist()
        if self._finished is None:
            self._finished = self._whole.finish()
        return {**self._finished, **dict(zip(self._names, means, strict=True))}

    def values(self) -> torch.Tensor | None:
        """Returns the values of the metric that is kept, in the order of the images: (count,) float64, on the CPU.

        None where it is a metric of a whole data set, of which images have no values.
        """
        return torch.cat(self._values).cpu() if self._values else None

    def resampled(self) -> dict[str, NDArray[np.float64]]:
        """Returns what metrics are of the same images drawn with replacement, by name (DRAWS,).

        Those to the full network are not among them, nor are losses, nor those of a whole data set that do not say.
        """
        names = list(self._objective.metrics)
        means = [name for name in names if not name.endswith("loss")] if self._every else []
        values = torch.cat(self._every, dim=1).numpy() if self._every else np.zeros((0, 0))
        drawn: list[dict[str, NDArray[np.float64]]] = []
        for counts in draws_of(self.count):
            some = {name: mean_of(values[names.index(name)], counts) for name in means}
            drawn.append({**self._whole.resampled(counts), **some})
        return {name: np.concatenate([some[name] for some in drawn]) for name in drawn[0]}


def values_of(
    name: str, metric: Metric, outputs: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    """Returns one number per image, (n,).

    Raises:
        ConfigError: if the metric, which may be the user's, fails or returns something else.
    """
    try:
        values: object = metric(outputs, wanted)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        given = (
            tuple(outputs.shape)
            if isinstance(outputs, torch.Tensor)
            else f"of {plural(len(outputs), 'image')}"
        )
        msg = (
            f"metric {name!r} failed on outputs {given} and labels {tuple(wanted.shape)}: {error!r}"
        )
        raise ConfigError(msg) from error
    if (
        isinstance(values, torch.Tensor)
        and values.shape == (len(outputs),)
        and not values.is_complex()
    ):
        return values
    what = (
        f"{tuple(values.shape)} {values.dtype}"
        if isinstance(values, torch.Tensor)
        else type(values).__name__
    )
    msg = (
        f"metric {name!r} returns a tensor of one number per image, ({len(outputs)},), found {what}"
    )
    raise ConfigError(msg)


def predict(model: nn.Module, split: Images, *, batch_size: int | None = None) -> torch.Tensor:
    """Returns the outputs of a network on all images of a split, on its device: (n, ...).

    Raises:
        ModelError: if the model does not return a tensor.
    """
    return torch.cat([outputs for outputs, _ in passes(model, split, batch_size)])


def passes(
    model: nn.Module,
    split: Images,
    batch_size: int | None = None,
    *,
    output: Callable[[nn.Module, Any], Any] = output_of,
) -> Iterator[tuple[Any, torch.Tensor]]:
    """Yields outputs and labels, batch by batch, in evaluation mode without gradients.

    Args:
        model: left in the modes that it has.
        split: images and labels.
        batch_size: images per pass; by default `scoring_batch` of the device.
        output: (network, what its forward pass returned) to its output, as of `Objective`.
    """
    device = device_of(model)
    with modes_kept(model), torch.inference_mode():
        model.eval()
        for images, labels in split.batches(batch_size or scoring_batch(device), device=device):
            fit_layout(model, images[:1])
            # A copy, since forward may change its input in place: images are the data set's own.
            yield output(model, run_on(model, images.clone())), labels


def repeats(model: nn.Module, split: Images, *, objective: Objective) -> bool:
    """Returns whether a network answers the same when it is asked again; NaN is the same as NaN."""
    first, second = ([*passes(model, split, output=objective.output)] for _ in range(2))
    return all(_same(one, other) for (one, _), (other, _) in zip(first, second, strict=True))


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401 - outputs of two kinds
    """Returns whether outputs are the same: tensors, or what lists, tuples and dicts hold."""
    pairs = [dict(paths(item)) for item in (one, other)]
    if pairs[0].keys() != pairs[1].keys():
        return False
    return all(
        torch.equal(x.nan_to_num(), pairs[1][name].nan_to_num()) for name, x in pairs[0].items()
    )


def device_of(model: nn.Module) -> torch.device:
    """Returns the device that a network's first parameter is on; the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Runs a block and puts the training mode of every module back afterwards."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
