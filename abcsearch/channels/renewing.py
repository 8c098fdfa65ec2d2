"""New weights in the place of trained ones, for networks that are trained from the beginning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from abcsearch.errors import ModelError
from abcsearch.rng import torch_seeded

if TYPE_CHECKING:
    from collections.abc import Callable

_RESETS = ("reset_parameters", "_reset_parameters")  # the second is that of torch's attention


def check_renewable(model: nn.Module, instead: str) -> None:
    """Raises unless all parameters of a network can be drawn anew.

    Args:
        model: the network.
        instead: what else can be done, for the message.

    Raises:
        ModelError: if a module has parameters, and nothing that draws them anew.
    """
    lacking = [
        path or "the network itself"
        for path, m in model.named_modules()
        if m._parameters and not _reset(m)
    ]
    lacking = [path for path in lacking if not _inside_attention(model, path)]
    if lacking:
        others = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        msg = f"{lacking[0]}{others} has parameters and no method reset_parameters, which draws new ones: write "
        raise ModelError(f"{msg}one, or {instead}")


def renew(network: nn.Module, seed: int) -> None:
    """Draws all parameters of a network anew, in place.

    Args:
        network: of modules that `check_renewable` does not refuse.
        seed: decides them.
    """
    with torch_seeded(seed, "fresh weights"):
        for module in network.modules():
            reset = _reset(module) if module._parameters else None
            if reset is not None:
                reset()


def _reset(module: nn.Module) -> Callable[[], object] | None:
    """Returns what draws a module's parameters anew; None where nothing does."""
    methods = (getattr(module, name, None) for name in _RESETS)
    return next((method for method in methods if callable(method)), None)


def _inside_attention(model: nn.Module, path: str) -> bool:
    """Returns whether a module is torch's attention's, which draws its parameters itself."""
    parent = path.rpartition(".")[0]
    return isinstance(model.get_submodule(parent) if parent else model, nn.MultiheadAttention)
