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
    renamed: dict[str, str] = {}
    for name in names:
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new, count=1)
        renamed[name] = new
    return renamed


_DEEPEST = (
    4  # words of a prefix: more wrappers than DataParallel in torch.compile in a LightningModule
)


def wrapper_prefix(model: nn.Module, names: Iterable[str]) -> str:
    """Returns the prefix under which a checkpoint has the names of a network, as wrappers give them; mostly "".

    So do DataParallel ("module."), torch.compile ("_orig_mod."), and a LightningModule whose attribute the network is
    ("model.", "net."): the prefix with most of the network's names, of several the shortest.

    Args:
        model: the network.
        names: in a state dict.
    """
    names = list(names)
    wanted = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
    if wanted <= set(own_names(model, names).values()):
        return ""
    prefixes = {""}
    for name in names:
        words = name.split(".")
        prefixes |= {
            ".".join(words[:count]) + "." for count in range(1, min(len(words), _DEEPEST + 1))
        }

    def there(prefix: str) -> int:
        inside = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
        return len(wanted & set(own_names(model, inside).values()))

    return max(sorted(prefixes, key=lambda prefix: (len(prefix), prefix)), key=there)
