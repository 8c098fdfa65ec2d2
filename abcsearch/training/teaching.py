"""What a teacher says of a batch, and where in a network it looks: the maps at the ends of its stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from abcsearch.errors import ModelError
from abcsearch.example import run_on
from abcsearch.training.objectives import output_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from torch import nn

    from abcsearch.example import Inputs


def taught_outputs(teacher: nn.Module, returned: object, outputs: torch.Tensor) -> torch.Tensor:
    """Returns the teacher's output out of what its forward pass returned.

    Raises:
        ModelError: if it has another shape than that of the network that learns.
    """
    wanted = output_of(teacher, returned)
    if wanted.shape != outputs.shape:
        msg = (
            f"teacher and network must return the same shape, found outputs {tuple(wanted.shape)} of the teacher and "
            f"{tuple(outputs.shape)} of the network"
        )
        raise ModelError(msg)
    return wanted


class Watch:
    """Notes what some modules of a network return while it runs: a block around a forward pass.

    Attributes:
        seen: by path, what a module returned last, in the order in which they returned.
    """

    def __init__(self, network: nn.Module, paths: Sequence[str] | None = None) -> None:
        """Takes the paths of modules; None: all of them."""
        modules = {} if paths is not None and not paths else dict(network.named_modules())
        self._modules = {path: modules[path] for path in (modules if paths is None else paths)}
        self.seen: dict[str, Any] = {}

    def __enter__(self) -> Self:
        """Begins to note."""

        def noted(path: str) -> Any:  # noqa: ANN401 - a hook
            def note(module: nn.Module, inputs: object, output: object) -> None:
                del module, inputs
                self.seen.pop(path, None)
                self.seen[path] = output

            return note

        self._handles = [
            module.register_forward_hook(noted(path)) for path, module in self._modules.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        """Notes no more."""
        for handle in self._handles:
            handle.remove()


def stage_ends(teacher: nn.Module, network: nn.Module, images: Inputs) -> list[str]:
    """Returns the paths of the modules that return the last map of each stage of a network.

    A stage is a stretch of a forward pass whose maps have one height and width, more than one position of them. Its end
    is the module that returns last in it, of those that both networks have.

    Args:
        teacher: in evaluation mode.
        network: that learns from it; what it has no module for, is no end.
        images: a batch.

    Raises:
        ModelError: if there is none.
    """
    there = {path for path, _ in network.named_modules()}
    with torch.no_grad(), Watch(teacher) as watch:
        run_on(teacher, images)
    ends: dict[int, str] = {}
    stage, size = 0, None
    for path, output in watch.seen.items():
        if not isinstance(output, torch.Tensor) or output.ndim != 4:
            continue
        if output.shape[2:] != size:
            stage, size = stage + 1, output.shape[2:]
        # The outermost: blocks inside of it may go. What the whole network returns is its output
        if path and path in there and output.shape[2:].numel() > 1:
            ends[stage] = path
    if not ends:
        msg = "distill_features compares maps (batch, channels, height, width) at the ends of stages, and "
        msg += f"{type(teacher).__name__} "
        raise ModelError(
            f"{msg}has none of more than one position; set it to 0, and distillation above"
        )
    return list(ends.values())


def attention_distance(maps: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Returns how differently two networks look at images, a scalar in [0, 2].

    A map says for every position how strong all channels are there together, whatever their number: the sum of their
    squares, as a vector of length 1. The distance is the squared one of both vectors, mean over images.

    Source: Zagoruyko and Komodakis, Paying more attention to attention (ICLR 2017), equation 2, with p = 2.

    Differences from the paper:
        - The squared distance, as in its published code, summed over positions; there it is their mean.

    Args:
        maps: (batch, channels, height, width).
        wanted: (batch, other channels, height, width), of the teacher.

    Raises:
        ModelError: if height, width or images differ.
    """
    if (maps.shape[0], *maps.shape[2:]) != (wanted.shape[0], *wanted.shape[2:]):
        msg = (
            f"distill_features compares maps of one size, found {tuple(maps.shape)} of the network and "
            f"{tuple(wanted.shape)} of the teacher; set it to 0"
        )
        raise ModelError(msg)
    ours, theirs = (
        F.normalize(each.float().square().sum(dim=1).flatten(1), dim=1) for each in (maps, wanted)
    )
    return (ours - theirs).square().sum(dim=1).mean()
