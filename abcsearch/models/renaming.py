"""Names of weights in public checkpoints -> names in our networks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from abcsearch.models.resnet import SmallResNet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn

# A regular expression, and what its match becomes.
Rule = tuple[str, "str | Callable[[re.Match[str]], str]"]

# Class -> rules, each applied once to every name. A rule must match none of the network's own names, so that our own
# files pass unchanged. `RENAMINGS[MyNet] = ...` makes foreign checkpoints of your own network readable.
#
# Public CIFAR ResNets (akamaster/pytorch_resnet_cifar10, chenyaofo/pytorch-cifar-models, IntelLabs/distiller) have the
# names of torchvision's ResNet: conv1, bn1, layer1 ..., with downsample for the projection, and fc or linear last.
# MobileNetV2 and ShuffleNetV2 of chenyaofo/pytorch-cifar-models have the names of torchvision's classes, as ours have.
RENAMINGS: dict[type[nn.Module], tuple[Rule, ...]] = {
    SmallResNet: (
        (r"^conv1\.", "conv."),
        (r"^bn1\.", "bn."),
        (r"^layer([1-9]\d*)\.", lambda match: f"stages.{int(match[1]) - 1}."),
        (r"\.downsample\.", ".shortcut."),
        (r"^fc\.", "linear."),
    ),
}


def own_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Returns what each name of a checkpoint is called in the network, by the rules for its class; others stay.

    Args:
        model: an instance of a class in `RENAMINGS`, or of any other.
        names: names in a state dict, without the prefix of DataParallel.
    """
    rules = next((RENAMINGS[kind] for kind in type(model).__mro__ if kind in RENAMINGS), ())
    found: dict[str, str] = {}
    for name in names:
        own = name
        for pattern, replacement in rules:
            own = re.sub(pattern, replacement, own, count=1)
        found[name] = own
    return found
