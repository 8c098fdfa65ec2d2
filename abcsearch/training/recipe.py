"""Recipes: how to train, and the ones that have a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from abcsearch.errors import ConfigError, unknown_name
from abcsearch.records import problems, setting
from abcsearch.registry import Registry

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "step")
KEPT = ("last", "best")
PRECISIONS = ("float32", "tf32", "bf16")
TF32 = "precision tf32 is for CUDA, but the device is {}; set precision to float32 or bf16"
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
MAX_MAGNITUDE = 30  # of RandAugment
# Beyond these, float32 has no such numbers, or a step is infinite: no training would come to its end.
MAX_LR, MAX_DECAY = 1e30, 100.0
MAX_THREADS = 1024  # of torch; more are a slip
MIN_ALPHA, MAX_ALPHA = 0.001, 1000.0  # of Beta distributions
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
            rest. For objectives that have a divergence: all but detection.
        temperature: 0.01 to 1000, that both outputs are divided by for it, where they are logits.
        distill_features: weight of the distance of where the network and the full one look, at the ends of their stages
            (`attention_distance`), which is added to the loss; 0: none. For the same objectives.
        jigsaw: share of the images of every batch, in [0, 1], that are changed as CURL enlarges small data: each cut
            into 2x2, 3x3 or 4x4 tiles in another order, blanked in a square, or turned. 0: none.
        aux: weight of the loss of an auxiliary head, where a network returns {"out": ..., "aux": ...}; 0: it is not
            trained. Metrics never see it.
        keep: which weights count in the end: "last", or "best" on search-validation after each epoch.

    Raises:
        ConfigError: if a value is out of range, or the device or the precision unknown.
    """

    epochs: int = setting(30, at_least=1, unit="epochs")
    batch_size: int = setting(64, at_least=1, unit="images")
    lr: float = setting(0.1, above=0, at_most=MAX_LR)
    momentum: float = setting(0.9, at_least=0, below=1)
    weight_decay: float = setting(5e-4, at_least=0, at_most=MAX_DECAY)
    warmup_epochs: float = setting(1.0, at_least=0, unit="epochs")
    label_smoothing: float = setting(0.0, at_least=0, below=1)
    shift: int = setting(0, at_least=0, unit="pixels")
    flip: bool = False
    threads: int = setting(1, at_least=1, at_most=MAX_THREADS)
    device: str = "auto"
    precision: str = "float32"
    optimizer: str = setting("sgd", words=OPTIMIZERS)
    nesterov: bool = True
    schedule: str = setting("cosine", words=SCHEDULES)
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = setting(0.1, above=0, at_most=1)
    clip_norm: float = setting(0.0, at_least=0)
    ema: float = setting(0.0, at_least=0, below=1)
    mixup: float = setting(0.0, at_least=MIN_ALPHA, at_most=MAX_ALPHA, zero=True)
    cutmix: float = setting(0.0, at_least=MIN_ALPHA, at_most=MAX_ALPHA, zero=True)
    randaugment: int = setting(0, at_least=0, at_most=MAX_MAGNITUDE)
    distillation: float = setting(0.0, at_least=0, at_most=1)
    temperature: float = setting(4.0, at_least=MIN_TEMPERATURE, at_most=MAX_TEMPERATURE)
    distill_features: float = setting(0.0, at_least=0)
    jigsaw: float = setting(0.0, at_least=0, at_most=1)
    aux: float = setting(0.4, at_least=0)
    keep: str = setting("last", words=KEPT)

    @property
    def taught(self) -> bool:
        """Whether it takes a teacher."""
        return bool(self.distillation or self.distill_features)

    def __post_init__(self) -> None:
        """Checks the values, and turns a list of milestones (TOML, JSON) into a tuple."""
        wrong = problems(self)
        if not _rising(self.milestones):
            wrong.append(f"milestones are rising, above 0 and below 1, found {self.milestones}")
        if wrong:
            msg = f"training recipe: {'; '.join(wrong)}"
            raise ConfigError(msg)
        object.__setattr__(self, "milestones", tuple(self.milestones))
        check_computing(self.device, self.precision)


# Settings that came later, and what was done before there were any: left out of what a checkpoint is recognised by.
_LATER = {"jigsaw": 0.0, "aux": 0.4, "distill_features": 0.0}


def identity_of(recipe: Recipe) -> dict[str, Any]:
    """Returns what a training is recognised by, plain values: as before there were later settings, where it can be."""
    plain = asdict(recipe)
    return {
        name: value for name, value in plain.items() if name not in _LATER or value != _LATER[name]
    }


def check_computing(device: str, precision: str) -> None:
    """Raises ConfigError for a device or a precision that no machine has.

    What is asked for may be of another machine: a record is only read here. `find_device` looks at this one, where
    work begins.
    """
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f'device is "auto", "cpu", "cuda" or "cuda:1", found {device!r}'
        raise ConfigError(msg)
    if precision not in PRECISIONS:
        raise ConfigError(unknown_name("precision", precision, PRECISIONS))
    if precision == "tf32" and device == "cpu":
        raise ConfigError(TF32.format(device))


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
    try:
        made: object = value() if callable(value) else value
    except Exception as error:  # the user's code: anything can go wrong in it
        msg = f"preset {name!r} is a Recipe, or a function without arguments that returns one: {error}"
        raise ConfigError(msg) from error
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
    "small_data": Preset(
        recipe=Recipe(
            epochs=200,
            batch_size=32,
            lr=0.01,
            weight_decay=4e-5,
            nesterov=False,
            warmup_epochs=0,
            mixup=1.0,
            jigsaw=5 / 6,
            distillation=0.7,
            temperature=2.0,
        ),
        description="200 epochs on few images: mixup, distillation, images cut and put together anew",
        source="the published code of CURL (Luo and Wu, CVPR 2020), first stage of fine-tuning on small data",
        note=(
            "The code enlarges data to six times as many files before training; here a version is drawn for every "
            "image of a batch, so that an epoch is as long as the data are. Its second stage, labels that are refined, "
            "is abcsearch.refine. For fine-tuning of what was pruned: distillation takes the full network."
        ),
    ),
}


# Name -> recipe. `PRESETS["mine"] = Recipe(...)` makes one known by name; "package.module:NAME" needs no entry.
PRESETS: Registry[Preset] = Registry(
    "preset", f"{__name__}:PRESETS", _BUILT_IN, error=ConfigError, accept=_accept, callables=False
)


def check_shared(batch_size: int, workers: int) -> None:
    """Raises ConfigError unless workers that share a batch get the same number of images."""
    if workers < 1 or batch_size % workers:
        msg = f"workers share a batch equally: batch_size {batch_size} is no multiple of {workers} workers"
        raise ConfigError(msg)


def find_preset(name: str) -> Preset:
    """Returns a recipe by name or import path.

    Raises:
        ConfigError: if the name is unknown (with the nearest valid one), or the import path leads to none.
    """
    return PRESETS.find(name)
