"""A config to begin with: what `abcsearch init` writes for a network and a folder of images, every line explained."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from abcsearch.errors import ConfigError, unknown_name
from abcsearch.models.registry import IMAGENET_SHAPE, INPUT_SHAPES, MODELS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# What constructors call the number of classes and of input channels.
_CLASSES, _CHANNELS = (
    ("classes", "num_classes", "n_classes"),
    ("in_channels", "in_chans", "channels"),
)
_NUMBERED = ("torchvision.", "timm.")  # whose functions take num_classes by **kwargs
_MILD = 0.7  # share of the MACs
_LOOKED_AT = 20  # images whose size is looked at
_SPLITS = ("train", "val", "valid", "validation", "test")
# Data sets that say their classes
_BUILT_IN = {"digits": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000}

_TEXT = """\
# A search for a smaller network, to be changed as you like. What there is to set, with defaults and papers:
#   abcsearch list searchers|evaluators|criteria|baselines|recipes|space|budget, and README.md
# Before anything is trained or searched: abcsearch search {out} --dry-run
seed = 0
n_trials = {trials}            # structures that are evaluated; more find better ones
baselines = ["uniform"]  # the winner is compared with; "random" takes as long as the search once more

[model]
name = {model}  # a name of `abcsearch list models`, or package.module:callable
{model_lines}
{pretrain}
[data]
name = {data}  # a name of `abcsearch list datasets`, or package.module:function
{data_lines}

[budget]
macs = {macs}  # share of the full network's multiply-accumulates; or params, flops, peak_activation, latency_ms

# Which widths there are{defaults}.
[space]
alpha = {alpha}                    # the largest share of its channels that a layer keeps; 1.0: all may stay
step = 0.1                     # shares between
levels = ["filter", "stage"]   # inside blocks, whole stages; "block": whole blocks may go
# divisor = 8                  # widths in multiples of 8 are faster on many machines

[searcher]
name = "response_surface"

[evaluator]
name = "adaptive_bn"  # fitness: accuracy on search-validation once channels are gone, without training

# What the winner, and what it is compared with, are trained by in the end: abcsearch finetune
[finetune]
epochs = 30
lr = 0.02
# flip = true  # mirror images
# shift = 4    # random translation by so many pixels
"""
_PRETRAIN = """
# Without a checkpoint the network is trained first. With one, set checkpoint in [model] and delete this table.
[pretrain]
epochs = 60
lr = 0.1
"""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a config is to be for.

    Attributes:
        model: a network's name or import path.
        data: a data set's name or import path, a folder of images, or an .npz file.
        checkpoint: trained weights of the network; None: it is trained first.
        macs: share of the multiply-accumulates that may be left.
        trials: structures to evaluate.
    """

    model: str
    data: str
    checkpoint: str | None = None
    macs: float = 0.5
    trials: int = 200


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What was seen of the data.

    Attributes:
        name: of the data set.
        path: of its files; None without any.
        classes: their number, or None where that is not seen.
        channels: of an image, likewise.
        size: height and width that all images share, or None.
        shorter: the shorter side that half of the images reach; None where none was looked at.
        notes: what there is to say of it.
    """

    name: str
    path: str | None = None
    classes: int | None = None
    channels: int | None = None
    size: int | None = None
    shorter: int | None = None
    notes: tuple[str, ...] = ()


def starter(wish: Wish, out: str = "config.toml") -> str:
    """Returns the text of a config.

    Args:
        wish: what it is for.
        out: what the file will be called.

    Raises:
        ConfigError: if the data are not there, or are no images in folders of classes.
        ModelError: if there is no network of that name.
    """
    seen = _seen(wish.data)
    options = _parameters(wish.model)
    return _TEXT.format(
        out=out,
        trials=wish.trials,
        # Beyond it layers that keep 0.9 at most leave MACs over
        alpha=1.0 if wish.macs > _MILD else 0.9,
        defaults="" if wish.macs > _MILD else "; these are the defaults",
        macs=wish.macs,
        model=_text(wish.model),
        model_lines="\n".join(_model_lines(wish, seen, options)),
        pretrain=_PRETRAIN if wish.checkpoint is None else "",
        data=_text(seen.name),
        data_lines="\n".join(_data_lines(wish, seen)),
    )


def _model_lines(wish: Wish, seen: _Seen, options: Mapping[str, object]) -> Iterator[str]:
    """Yields the lines of [model] after the name."""
    for names, value, what in (
        (_CLASSES, seen.classes, "classes"),
        (_CHANNELS, seen.channels, "channels"),
    ):
        option = next((name for name in names if name in options), None)
        if option is not None and value is not None:
            yield f"{option} = {value}"
        elif option is None and what == "classes" and value is not None:
            yield f"# the data have {value} classes; how the network is told is its constructor's to say"
    if wish.checkpoint is not None:
        yield f"checkpoint = {_text(wish.checkpoint)}  # .safetensors, or a state dict of torch.save"


def _data_lines(wish: Wish, seen: _Seen) -> Iterator[str]:
    """Yields the lines of [data] after the name."""
    yield from (f"# {note}" for note in seen.notes)
    if seen.path is not None:
        yield f"path = {_text(seen.path)}"
    if seen.name == "image_folder":
        wanted = INPUT_SHAPES.get(wish.model, IMAGENET_SHAPE)[1]
        # Of a network of the user's own nobody knows what it was trained with
        known = wish.model in INPUT_SHAPES or wish.model.startswith(_NUMBERED)
        if seen.size is None and not known and seen.shorter is not None and seen.shorter < wanted:
            yield f"size = {seen.shorter}  # images are resized to it: about as large as they are; larger ones take longer"
        elif seen.size is None:
            yield f"size = {wanted}  # images are resized to it: what the network was trained with"
        else:
            yield f"# size = {wanted}  # to resize them; as they are, all are {seen.size}x{seen.size}"
    if seen.path is not None and wish.checkpoint is not None:
        yield "# mean = [0.485, 0.456, 0.406]  # what the network was trained with, of pixels in [0, 1]; by default"
        yield "# std = [0.229, 0.224, 0.225]   # those of the training images"


def _parameters(model: str) -> Mapping[str, object]:
    """Returns the options of a network's constructor, as far as it says them."""
    try:
        parameters = dict(inspect.signature(MODELS.find(model)).parameters)
    except ValueError:  # some builtins have none
        return {}
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return (
        {**parameters, "num_classes": None}
        if anything and model.startswith(_NUMBERED)
        else parameters
    )


def _seen(data: str) -> _Seen:
    """Returns what is seen of data: a folder, a file, or a name."""
    path = Path(data).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".npz" or path.is_file():
        if not path.is_file() or path.suffix != ".npz":
            msg = f"--data {data} is no folder of images and no .npz file that is there"
            raise ConfigError(msg)
        note = "train_images, train_labels, test_images and test_labels are arrays of it"
        return _Seen(name="npz", path=str(path), notes=(note,))
    if ":" in data:
        return _Seen(name=data)
    if data not in _BUILT_IN:
        msg = unknown_name("data set or folder", data, _BUILT_IN)
        raise ConfigError(
            f"{msg}; or a folder with train/CLASS/IMAGE and val/CLASS/IMAGE, which is not there"
        )
    channels = 1 if data == "digits" else 3
    where = None if data == "digits" else f"data/{data}"
    notes = () if where is None else ("where the unpacked files are: change it",)
    return _Seen(name=data, path=where, classes=_BUILT_IN[data], channels=channels, notes=notes)


def _folder(path: Path) -> _Seen:
    """Returns what is seen of a folder of images.

    Raises:
        ConfigError: if there is no train/CLASS/IMAGE in it, or nothing beside that.
    """
    there = [name for name in _SPLITS if (path / name).is_dir()]
    classes = _classes(path / "train")
    if not classes or len(there) < 2:
        listing = ", ".join(sorted(entry.name for entry in islice(path.iterdir(), 8))) or "nothing"
        msg = f"--data {path}: images lie in {path}/train/CLASS/IMAGE and {path}/val/CLASS/IMAGE (and {path}/test, if "
        raise ConfigError(f"{msg}there is one), found {listing}: sort them so")
    sizes = [
        size for folder in classes for size in _sizes(folder, max(1, _LOOKED_AT // len(classes)))
    ]
    width, height = sizes[0] if len(set(sizes)) == 1 else (0, 1)
    shorter = sorted(min(size) for size in sizes)
    roles = {"train": "training", "test": "test, seen in the end only"}
    held = [name for name in there if name not in roles]
    if held:
        roles[held[0]] = (
            "search-validation"
            if "test" in there
            else "test; search-validation is held out of train"
        )
    notes = ", ".join(f"{name}/: {roles[name]}" for name in there if name in roles)
    summary = f"{len(classes)} classes; {notes}"
    return _Seen(
        name="image_folder",
        path=str(path),
        classes=len(classes),
        channels=3,  # whatever the files have: they are read as RGB
        size=width if width == height else None,
        shorter=shorter[len(shorter) // 2] if shorter else None,
        notes=(summary,),
    )


def _classes(path: Path) -> list[Path]:
    """Returns the folders of classes."""
    if not path.is_dir():
        return []
    return sorted(
        folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith(".")
    )


def _sizes(path: Path, most: int) -> Iterator[tuple[int, int]]:
    """Yields width and height of some images of a folder; what is no image is passed over."""
    for file in islice(sorted(path.iterdir()), most):
        try:
            with Image.open(file) as image:
                yield image.size
        except (UnidentifiedImageError, OSError):
            continue


def _text(value: str) -> str:
    """Returns a text as TOML writes it."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
