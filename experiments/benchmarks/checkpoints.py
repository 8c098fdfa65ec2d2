"""Loads public CIFAR-10 checkpoints, evaluates them, and removes channels that one of them has for nothing.

    python experiments/benchmarks/checkpoints.py --data DIR

DIR holds cifar10-jpeg.tar.xz (an archive of test/CLASS/NNNN.jpg) and, under weights/, the checkpoints by the paths in
`CHECKPOINTS`. The exit status is 0 if all accuracies are the stated ones and nothing changed where nothing may, 1 if
not, and 2 if a file is missing. Nothing is written.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from abcsearch import Split, rank_channels, score, slice_model, trace_channels
from abcsearch.models.registry import Constructor
from abcsearch.runs.disk.weights import load_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from abcsearch import ChannelGroup

IMAGES = "cifar10-jpeg.tar.xz"
# Mean and standard deviation of the three colours, as each source normalised its training images.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PROJECTION = {"shortcut": "projection"}
BATCH = 128  # its activations stay in the cache: twice as fast as 512 on one core


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file, the network that it fits, and what is known about it.

    Attributes:
        file: path under DIR/weights.
        model: a key of `MODELS`.
        normalisation: means and standard deviations of the colours of images in [0, 1].
        options: of the model.
        stated: top-1 on these JPEG images in percent, if known (7 to 12 points below that on the original images).
    """

    file: str
    model: str
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    options: dict[str, Any] = field(default_factory=dict)
    stated: float | None = None


ZEROED = Checkpoint(
    file="distiller/checkpoint_trained_ch_regularized_dense.pth.tar",
    model="resnet20",
    options=PROJECTION,
    normalisation=HALF,
)
CHECKPOINTS = (
    Checkpoint(
        file="akamaster/resnet20-12fca82f.th",
        model="resnet20",
        normalisation=IMAGENET,
        stated=81.03,
    ),
    Checkpoint(
        file="akamaster/resnet56-4bfd9763.th",
        model="resnet56",
        normalisation=IMAGENET,
        stated=83.20,
    ),
    Checkpoint(
        file="chenyaofo/cifar10_resnet20-4118986f.pt",
        model="resnet20",
        options=PROJECTION,
        normalisation=CIFAR,
        stated=81.05,
    ),
    Checkpoint(
        file="chenyaofo/cifar10_resnet56-187c023a.pt",
        model="resnet56",
        options=PROJECTION,
        normalisation=CIFAR,
        stated=83.67,
    ),
    Checkpoint(
        file="chenyaofo/cifar10_shufflenetv2_x0_5-1308b4e9.pt",
        model="shufflenet_v2_x0_5_cifar",
        normalisation=CIFAR,
        stated=83.38,
    ),
    Checkpoint(
        file="jpeg-adapted/resnet20-jpeg.pt", model="resnet20", normalisation=IMAGENET, stated=87.97
    ),
    Checkpoint(
        file="jpeg-adapted/resnet56-jpeg.pt", model="resnet56", normalisation=IMAGENET, stated=88.19
    ),
    ZEROED,
)


def read_images(archive: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the test images (n, 3, h, w) float32 in [0, 1] and labels (n,) int64: classes in alphabetical order."""
    images: list[torch.Tensor] = []
    classes: list[str] = []
    with tarfile.open(archive) as tar:
        for entry in tar:
            parts = PurePosixPath(entry.name).parts
            content = tar.extractfile(entry) if entry.isfile() and parts[0] == "test" else None
            if content is not None:
                pixels = np.array(Image.open(io.BytesIO(content.read())).convert("RGB"))
                images.append(torch.from_numpy(pixels).permute(2, 0, 1))
                classes.append(parts[1])
            elif images and parts[0] != "test":
                break  # the training images, fifty thousand of them, come behind
    index = {name: label for label, name in enumerate(sorted(set(classes)))}
    return torch.stack(images).float() / 255, torch.tensor([index[name] for name in classes])


def normalised(images: torch.Tensor, labels: torch.Tensor, checkpoint: Checkpoint) -> Split:
    """Returns the images as the checkpoint's network wants them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in checkpoint.normalisation)
    return Split(((images - mean) / std).contiguous(memory_format=torch.channels_last), labels)


def sizes(model: nn.Module, example: torch.Tensor) -> tuple[int, int]:
    """Returns parameters, and MACs of convolutions and linear layers for one image, counted as they run."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def load(checkpoint: Checkpoint, data: Path) -> nn.Module:
    """Returns the network with the weights of the file, in evaluation mode."""
    model = Constructor(name=checkpoint.model, options=checkpoint.options).build()
    load_checkpoint(model, data / "weights" / checkpoint.file)
    return model.eval().to(memory_format=torch.channels_last)


def unused_channels(group: ChannelGroup, tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """Returns (channels,) bool: which channels of a group no layer looks at, because its weights there are all zero.

    A channel that is computed by zero weights is another matter: what batch norm adds to it can still be seen.
    """
    unused = np.full(group.channels, any(m.axis == 1 for m in group.members))
    for m in group.members:
        if m.axis == 1:
            seen = tensors[m.parameter].detach().transpose(0, 1).flatten(1).abs().amax(dim=1) > 0
            unused[m.channels[seen.numpy()[m.entries]]] = False
    return unused


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """A network without its unused channels.

    Attributes:
        model: the network.
        rows: per group that has unused channels: name, channels, unused, how many of them l1 ranks last.
    """

    model: nn.Module
    rows: tuple[tuple[str, int, int, int], ...]


def without_unused(model: nn.Module, example: torch.Tensor) -> Shrunk:
    """Returns the network without the unused channels that the l1 ranking puts behind all others of their group.

    l1 looks at the weights that compute a channel, not at those that use it. It still finds unused channels where
    weight decay was at work in training: nothing else moves the weights of a channel that nobody looks at. Where that
    is not so, an unused channel in front of one that is used stays.
    """
    graph = trace_channels(model, example)
    ranking = rank_channels(model, graph, "l1")
    tensors = graph.tensors(model)
    candidate: list[int] = []
    rows: list[tuple[str, int, int, int]] = []
    for group, order in zip(graph.prunable, ranking.orders, strict=True):
        unused = unused_channels(group, tensors)
        unused[order[0]] &= not unused.all()  # one channel must stay
        last = int(np.argmin(unused[order[::-1]])) if unused.any() else 0
        candidate.append(group.channels - last)
        if unused.any():
            rows.append((group.name, group.channels, int(unused.sum()), last))
    return Shrunk(model=slice_model(model, graph, candidate, ranking), rows=tuple(rows))


def accuracies(data: Path, images: torch.Tensor, labels: torch.Tensor) -> bool:
    """Prints one row per checkpoint; returns whether all accuracies are the stated ones to 0.05 points."""
    say(
        "| file | model | params | MACs | stated, % | found, % |\n| --- | --- | --- | --- | --- | --- |"
    )
    right = True
    for checkpoint in CHECKPOINTS:
        model, split = load(checkpoint, data), normalised(images, labels, checkpoint)
        params, macs = sizes(model, split.images[:1])
        measured = 100 * score(model, split, batch_size=BATCH)["top1"]
        stated = "-" if checkpoint.stated is None else f"{checkpoint.stated:.2f}"
        right = right and (checkpoint.stated is None or abs(measured - checkpoint.stated) <= 0.05)
        model_name = " ".join([checkpoint.model, *checkpoint.options.values()])
        say(
            f"| {checkpoint.file} | {model_name} | {params:,} | {macs:,} | {stated} | {measured:.2f} |"
        )
    return right


def removal(data: Path, images: torch.Tensor, labels: torch.Tensor) -> bool:
    """Prints what goes and what changes in `ZEROED`; returns whether all unused channels go and no output changes.

    Sums of fewer terms are rounded otherwise, so outputs are compared in double precision on some images, and by their
    accuracy in single precision on all.
    """
    model, split = load(ZEROED, data), normalised(images, labels, ZEROED)
    shrunk = without_unused(model, split.images[:1])
    say(f"\n{ZEROED.file}: channels that no weight looks at\n")
    say("| group | channels | unused | ranked last by l1 |\n| --- | --- | --- | --- |")
    for name, channels, unused, last in shrunk.rows:
        say(f"| {name} | {channels} | {unused} ({100 * unused / channels:.0f} %) | {last} |")
    say("\n| network | params | MACs | found, % |\n| --- | --- | --- | --- |")
    for name, network in (("as it is", model), ("without them", shrunk.model)):
        params, macs = sizes(network, split.images[:1])
        say(
            f"| {name} | {params:,} | {macs:,} | {100 * score(network, split, batch_size=BATCH)['top1']:.2f} |"
        )
    some = split.images[::20].double()
    with torch.inference_mode():
        before, after = model.double()(some), shrunk.model.double()(some)
    largest = float((before - after).abs().max())
    say(f"\nLargest change of a logit over {len(some)} images, in double precision: {largest:.1e}")
    return (
        largest < 1e-9
        and bool(shrunk.rows)
        and all(unused == last for *_, unused, last in shrunk.rows)
    )


def say(text: str) -> None:
    """Writes lines at once, so that a waiting reader sees how far it is."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints both tables; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder with images and weights"
    )
    data: Path = parser.parse_args(arguments).data
    missing = [
        path
        for path in (IMAGES, *(f"weights/{c.file}" for c in CHECKPOINTS))
        if not (data / path).is_file()
    ]
    if missing:
        sys.stderr.write(
            f"{data} does not hold all that this benchmark needs; missing: {', '.join(missing)}\n"
        )
        return 2
    images, labels = read_images(data / IMAGES)
    right = accuracies(data, images, labels)
    return 0 if removal(data, images, labels) and right else 1


if __name__ == "__main__":
    sys.exit(main())
