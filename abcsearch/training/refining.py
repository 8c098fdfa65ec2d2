"""Labels that are refined while a network learns them: the second stage of CURL's fine-tuning on small data."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from abcsearch.data.split import Split
from abcsearch.errors import ConfigError, DataError, ModelError
from abcsearch.example import run_on
from abcsearch.rng import torch_seeded
from abcsearch.training.jigsaw import versions
from abcsearch.training.lesson import Lesson
from abcsearch.training.loop import train
from abcsearch.training.objectives import output_of
from abcsearch.training.recipe import Recipe
from abcsearch.training.scoring import predict, score

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from abcsearch.data.split import Images
    from abcsearch.training.loop import OnEpoch
    from abcsearch.training.state import Trained

_WEIGHT, _RATE = 0.7, 1.0  # of the divergence from the soft labels; of what these are changed by
RECIPE = Recipe(
    epochs=16,
    batch_size=32,
    lr=1e-4,
    weight_decay=4e-5,
    nesterov=False,
    warmup_epochs=0,
    schedule="step",
    gamma=1.0,
)


class RefinedLabels(Lesson):
    """A network learns a soft label of every image, which begins as a teacher's answer and is changed as well.

    The loss of a batch is 0.7 KL(network || soft label) + 0.3 cross-entropy, and soft labels go down its gradient, too:
    where network and label disagree, they meet. Images are told apart by their numbers, so that the images of the
    training have these as labels, see `enlarged`. In one process alone.

    Source: Luo and Wu, Neural network pruning with residual-connections and limited-data (CVPR 2020), section 3.3, and
    its published code.

    Attributes:
        model: the network.
        teacher: whose logits soft labels begin as.
        classes: (images,) int64, the class of every image.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, classes: torch.Tensor) -> None:
        """Takes what is learned, and whose answers labels begin as."""
        self.model, self.teacher, self.classes = model, teacher, classes
        self.modules = {"model": model}
        self.teachers = {"teacher": teacher}
        self._soft = torch.zeros(0)

    def begin(self, recipe: Recipe, images: Images) -> None:
        """Asks the teacher once.

        Raises:
            DataError: if labels are no numbers of images.
        """
        del recipe
        if not torch.equal(images.labels.cpu(), torch.arange(len(self.classes))):
            msg = f"labels that are refined belong to one image each, numbered from 0 to {len(self.classes) - 1}: take "
            raise DataError(f"{msg}abcsearch.training.refining.enlarged(split)")
        self._soft = predict(self.teacher, images).float().clone()

    def step(
        self, images: torch.Tensor, labels: torch.Tensor, draws: torch.Generator
    ) -> torch.Tensor:
        """Returns the loss of a batch, after whose gradient its soft labels are changed."""
        del draws
        outputs = output_of(self.model, run_on(self.model, images))
        self._soft = self._soft.to(outputs.device)
        soft = self._soft[labels]
        if soft.shape != outputs.shape:
            msg = f"teacher and network must have the same classes, found outputs {tuple(soft.shape)} of the teacher "
            raise ModelError(f"{msg}and {tuple(outputs.shape)} of the network")
        logits = outputs.float()
        # KL(network || label): its gradient by the label's logits is softmax(label) - softmax(network), mean over images
        ours, theirs = F.log_softmax(logits, dim=1), F.log_softmax(soft, dim=1)
        divergence = F.kl_div(theirs, ours, reduction="batchmean", log_target=True)
        with torch.no_grad():
            gradient = _WEIGHT * (theirs.exp() - ours.exp()) / len(soft)
            self._soft[labels] = soft - _RATE * gradient
        classes = self.classes.to(labels.device)[labels]
        return _WEIGHT * divergence + (1 - _WEIGHT) * F.cross_entropy(logits, classes)

    def score(self, images: Images) -> float:
        """Returns top1; validation images have their classes as labels."""
        return score(self.model, images)["top1"]

    def same(self) -> Mapping[str, Any]:
        """Returns a hash of the classes."""
        content = self.classes.cpu().contiguous().numpy().tobytes()
        return {"classes": hashlib.sha256(content).hexdigest()[:16]}

    def state_dict(self) -> Mapping[str, Any]:
        """Returns the soft labels, (images, classes)."""
        return {"soft": self._soft}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up soft labels."""
        self._soft = state["soft"].clone()


def enlarged(split: Images, seed: int = 0) -> tuple[Split, torch.Tensor]:
    """Returns six versions of every image, numbered, and the classes of these: (6 n) images and (6 n,) int64.

    As they are, then in 2x2, 3x3 and 4x4 tiles in another order, blanked in a square, and turned.

    Args:
        split: images and their classes.
        seed: of what is drawn.

    Raises:
        DataError: if labels are no classes of whole images.
    """
    if split.labels.ndim != 1 or split.labels.is_floating_point():
        msg = "labels are refined of a classification, (n,) class numbers, found "
        raise DataError(f"{msg}{tuple(split.labels.shape)} {split.labels.dtype}")
    whole = split.loaded()
    with torch_seeded(seed, "enlarged"):
        images = torch.cat([whole.images, *versions(whole.images)])
    return Split(images, torch.arange(len(images))), whole.labels.repeat(6)


def refine(  # noqa: PLR0913 - all but the first three have a good default
    model: nn.Module,
    split: Images,
    teacher: nn.Module,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
    validation: Images | None = None,
    checkpoint: str | Path | None = None,
) -> Trained:
    """Trains a network in place on six versions of every image, with labels that are refined.

    CURL does so after the preset `small_data`: `refine(tuned.model, data.train, full_network)`.

    Args:
        model: a pruned network that has been fine-tuned.
        split: its training images.
        teacher: the full network.
        recipe: how; by default 16 epochs of SGD at 1e-4 in batches of 32.
        seed: the run's seed.
        on_epoch: as of `train`.
        validation: likewise.
        checkpoint: likewise.

    Raises:
        ConfigError: if the recipe distils, mixes or smooths: labels are soft here.
        DataError, ModelError, CheckpointError: as `train`, and if this is no classification.
    """
    recipe = recipe or RECIPE
    if recipe.distillation or recipe.mixup or recipe.cutmix or recipe.label_smoothing:
        msg = "labels that are refined are soft as they are: set distillation, mixup, cutmix and label_smoothing to 0"
        raise ConfigError(msg)
    images, classes = enlarged(split, seed)
    return train(
        RefinedLabels(model, teacher, classes),
        images,
        recipe,
        seed=seed,
        stream="refine",
        on_epoch=on_epoch,
        validation=validation,
        checkpoint=checkpoint,
    )
