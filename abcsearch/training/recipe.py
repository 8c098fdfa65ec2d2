"""Recipes: how to train, and the ones that have a name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from abcsearch.errors import ConfigError, type_problems, unknown_name
from abcsearch.registry import Registry

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "step")
KEPT = ("last", "best")
MAX_MAGNITUDE = 30  # of RandAugment
MAX_LR, MAX_DECAY = 1e30, 100.0
MAX_THREADS = 1024  # of torch; more are a slip
ALPHAS = "0, or 0.001 to 1000"
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 1000.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: passes over the training images, at least 1.
        batch_size: images per step, at least 1; an incomplete last batch is left out of its epoch. Several workers
            share it.
        lr: highest learning rate, > 0 and at most 1e30; reached after the warm-up, then lowered as `schedule` says.
        momentum: in [0, 1): of SGD; the decay of AdamW's mean of gradients.
        weight_decay: L2 penalty on weights (of AdamW: decoupled), not on biases and norm parameters; 0 to 100.
        warmup_epochs: epochs of linear warm-up, may be a fraction.
        label_smoothing: in [0, 1).
        shift: augmentation: random translation by up to so many pixels in both directions, zeros coming in.
        flip: augmentation: random horizontal mirror image.
        threads: torch threads on the CPU; part of the recipe since it decides the order of summation.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1".
        precision: "float32", "bf16", or on CUDA "tf32".
        optimizer: "sgd" or "adamw".
        nesterov: whether the momentum of SGD is Nesterov's.
        schedule: "cosine" down to 0, or "step": times `gamma` at each of the `milestones`.
        milestones: when, as shares of all epochs: rising, in (0, 1).
        gamma: in (0, 1].
        clip_norm: longest gradient, of all parameters together; longer ones are scaled down to it. 0: no limit.
        ema: decay of the exponential moving average of weights and statistics, in [0, 1), that is scored and kept
            instead of them; after step t it is at most (1 + t) / (10 + t), so that the beginning is forgotten. 0: none.
        mixup: alpha of the Beta distribution that images and labels of a batch are blended by, 0.001 to 1000; 0: not.
            For classification, as the next.
        cutmix: alpha of the Beta distribution of the area that is pasted from another image; 0: not. With both, one of
            them is drawn for every batch.
        randaugment: magnitude, 0 to 30, of two random operations on every image's colours and geometry; 0: none.
        distillation: weight in [0, 1] of the divergence from the full network's outputs; the loss on labels has the
            rest. For classification.
        temperature: 0.01 to 1000, that both outputs are divided by for it.
        keep: which weights count in the end: "last", or "best" on search-validation after each epoch.

    Raises:
        ConfigError: if a value is out of range, or the device does not have the precision.
    """

    epochs: int = 30
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    shift: int = 0
    flip: bool = False
    threads: int = 1
    device: str = "auto"
    precision: str = "float32"
    optimizer: str = "sgd"
    nesterov: bool = True
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    clip_norm: float = 0.0
    ema: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    randaugment: int = 0
    distillation: float = 0.0
    temperature: float = 4.0
    keep: str = "last"

    def __post_init__(self) -> None:
        """Checks the values, and turns a list of milestones (TOML, JSON) into a tuple."""
        wrong = type_problems(self)
        problems = [f": {text}" for text in wrong or self._unknown()] + ([] if wrong else self._out_of_range())
        if problems:
            raise ConfigError("; ".join(f"training recipe{text}" for text in problems))
        object.__setattr__(self, "milestones", tuple(self.milestones))
        check_computing(self.precision, self.device)

    def _unknown(self) -> list[str]:
        """Returns the message for every word that is none of its kind."""
        known = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "keep": KEPT}
        return [
            unknown_name(name, getattr(self, name), words)
            for name, words in known.items()
            if getattr(self, name) not in words
        ]

    def _out_of_range(self) -> list[str]:
        """Returns one message that names every number out of its range, if there is any."""
        wrong = [
            f"{name} = {getattr(self, name)} ({words})"
            for name, (holds, words) in _RANGES.items()
            if not (holds(own := getattr(self, name)) and math.isfinite(own))
        ]
        if not _rising(self.milestones):
            wrong.append(f"milestones = {self.milestones} (rising, > 0 and < 1)")
        return [f" out of range: {', '.join(wrong)}"] if wrong else []


def check_computing(precision: str, device: str) -> None:
    """Checks a device and its precision; what every machine has needs no look at torch.

    Raises:
        ConfigError: for a device that is not there, an unknown precision, or one that the device does not have.
    """
    if precision == "float32" and device in ("auto", "cpu"):
        return
    from abcsearch.training.computing import check_precision, find_device

    check_precision(precision, find_device(device))


def _is_alpha(value: float) -> bool:
    """Returns whether a Beta distribution can be drawn from with this, or need not be."""
    return value == 0 or 1e-3 <= value <= 1e3


# Beyond the highest ones, float32 has no such numbers, or a step is infinite: no training would come to its end.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": (lambda v: v >= 1, ">= 1"),
    "batch_size": (lambda v: v >= 1, ">= 1"),
    "lr": (lambda v: 0 < v <= MAX_LR, f"> 0, at most {MAX_LR:g}"),
    "momentum": (lambda v: 0 <= v < 1, ">= 0 and < 1"),
    "weight_decay": (lambda v: 0 <= v <= MAX_DECAY, f">= 0, at most {MAX_DECAY:g}"),
    "warmup_epochs": (lambda v: v >= 0, ">= 0"),
    "label_smoothing": (lambda v: 0 <= v < 1, ">= 0 and < 1"),
    "shift": (lambda v: v >= 0, ">= 0"),
    "threads": (lambda v: 1 <= v <= MAX_THREADS, f">= 1, at most {MAX_THREADS}"),
    "gamma": (lambda v: 0 < v <= 1, "> 0, at most 1"),
    "clip_norm": (lambda v: v >= 0, ">= 0"),
    "ema": (lambda v: 0 <= v < 1, ">= 0 and < 1"),
    "mixup": (_is_alpha, ALPHAS),
    "cutmix": (_is_alpha, ALPHAS),
    "randaugment": (lambda v: 0 <= v <= MAX_MAGNITUDE, f">= 0, at most {MAX_MAGNITUDE}"),
    "distillation": (lambda v: 0 <= v <= 1, ">= 0, at most 1"),
    "temperature": (lambda v: MIN_TEMPERATURE <= v <= MAX_TEMPERATURE, f"{MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"),
}


def _rising(values: object) -> bool:
    """Returns whether these are rising numbers in (0, 1)."""
    if not isinstance(values, Sequence) or not all(isinstance(v, int | float) for v in values):
        return False
    return all(low < high for low, high in zip((0, *values), (*values, 1), strict=True))


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A recipe with a name.

    Attributes:
        recipe: how to train.
        description: one line.
        source: whose it is.
        note: what differs from the source, and what else there is to know.
    """

    recipe: Recipe
    description: str
    source: str
    note: str


def _accept(name: str, value: Any) -> Preset:  # noqa: ANN401 - whatever a name leads to
    """Returns the preset for what a name leads to: one, a recipe, or a function without arguments that returns it."""
    made: object = value() if callable(value) else value
    if isinstance(made, Preset):
        return made
    if isinstance(made, Recipe):
        return Preset(recipe=made, description="", source="", note="")
    msg = f"preset {name!r} is a Recipe, or a function that returns one, found {made!r:.80}"
    raise ConfigError(msg)


_BUILT_IN = {
    "cifar": Preset(
        recipe=Recipe(
            epochs=150,
            batch_size=128,
            lr=0.01,
            nesterov=False,
            warmup_epochs=0,
            schedule="step",
            milestones=(1 / 3, 2 / 3),
            shift=4,
            flip=True,
        ),
        description="150 epochs of SGD at 0.01, a tenth of it after 50 and after 100",
        source="the published code of ABCPruner (Lin et al., IJCAI 2020): the defaults in its README",
        note=(
            "For CIFAR-10 and CIFAR-100 in batches of 128, weight decay 5e-4; random crops of images padded by 4, and "
            "mirror images. Weight decay spares biases and norm parameters here."
        ),
    ),
    "imagenet": Preset(
        recipe=Recipe(
            epochs=90,
            batch_size=256,
            lr=0.1,
            weight_decay=1e-4,
            nesterov=False,
            warmup_epochs=0,
            schedule="step",
            milestones=(1 / 3, 2 / 3),
        ),
        description="90 epochs of SGD at 0.1, a tenth of it after 30 and after 60",
        source="torchvision, references/classification (ResNet)",
        note=(
            "Batches of 256, weight decay 1e-4. Crops and mirror images are the data set's own (see imagenet among the "
            "datasets). Weight decay spares biases and norm parameters here."
        ),
    ),
    "digits": Preset(
        recipe=Recipe(epochs=20, lr=0.02, shift=1),
        description="20 epochs of SGD with Nesterov momentum at 0.02, a cosine down to 0",
        source="ours: experiments/digits/config.toml",
        note="For scikit-learn's digits, in seconds on a CPU; batches of 64, shifts by up to one pixel.",
    ),
}


# Name -> recipe. `PRESETS["mine"] = Recipe(...)` makes one known by name; "package.module:NAME" needs no entry.
PRESETS: Registry[Preset] = Registry(
    "preset", f"{__name__}:PRESETS", _BUILT_IN, error=ConfigError, accept=_accept, callables=False
)


def find_preset(name: str) -> Preset:
    """Returns a recipe by name or import path.

    Raises:
        ConfigError: if the name is unknown (with the nearest valid one), or the import path leads to none.
    """
    return PRESETS.find(name)
