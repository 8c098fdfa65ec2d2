"""Weights that a network computes anew at every use, made plain: weight norm, spectral norm, pruning masks."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from abcsearch.errors import ModelError, callers
from abcsearch.formats import first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


SHOWN = 3  # names in a message
_OF_EVERY_CLASS = ("__dict__", "__weakref__")


def computed(model: nn.Module) -> dict[str, list[str]]:
    """Returns which tensors of which layers are computed by parametrisations, or by hooks of `torch.nn.utils`.

    Returns:
        Names of tensors by path of the layer; layers without such tensors are left out.
    """
    names = {path: _names(layer) for path, layer in model.named_modules()}
    return {path: each for path, each in names.items() if each}


def bake(model: nn.Module, paths: Iterable[str]) -> None:
    """Makes plain tensors of those that layers compute, with the values of evaluation mode, in place.

    Args:
        model: the network.
        paths: of the layers, of which each computes some, see `computed`.
    """
    for path in paths:
        layer = model.get_submodule(path)
        trains = layer.training
        layer.eval()  # in which spectral norm does not go on with its iteration
        for name in _names(layer):
            _make_plain(layer, name)
        layer.train(trains)


def baked(model: nn.Module) -> nn.Module:
    """Returns a copy in which all tensors are plain; the network itself where they are.

    Args:
        model: not changed.

    Raises:
        ModelError: if it cannot be copied.

    Warns:
        UserWarning: if it is a copy, naming layers.
    """
    layers = computed(model)
    if not layers:
        return model
    try:
        plain = copy.deepcopy(model, dict(_histories(model)))
    except Exception as error:  # locks, open files, tensors of its own that have a history
        msg = f"{type(model).__name__} cannot be copied: {first_line(error)}"
        raise ModelError(msg) from error
    bake(plain, layers)
    warnings.warn(_said(layers), UserWarning, stacklevel=callers())
    return plain


def _said(layers: Mapping[str, list[str]]) -> str:
    """Returns what has been done to the layers, in words."""
    tensors = [f"{path}.{name}".lstrip(".") for path, names in layers.items() for name in names]
    more = f" and {len(tensors) - SHOWN} more" if len(tensors) > SHOWN else ""
    return (
        f"tensors of the network are computed, by weight norm, spectral norm, masks or the like "
        f"({', '.join(tensors[:SHOWN])}{more}): the copy that is searched has plain ones, and so has what comes of it "
        "(bake = false in [space] leaves such layers as they are)"
    )


def _names(layer: nn.Module) -> list[str]:
    """Returns the names of the tensors that a layer computes."""
    parametrised: Any = layer.parametrizations if parametrize.is_parametrized(layer) else ()
    return [*parametrised, *_hooks(layer)]


def _hooks(layer: nn.Module) -> dict[str, object]:
    """Returns the hooks of `torch.nn.utils` that compute tensors of a layer, by name of the tensor."""
    hooks: dict[str, object] = {}
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm):
            hooks[hook.name] = hook
        elif isinstance(hook, prune.BasePruningMethod):
            hooks[hook._tensor_name] = hook
    return hooks


def _make_plain(layer: nn.Module, name: str) -> None:
    """Makes a tensor plain that a layer computes: a parameter, unless it is computed from buffers alone."""
    before, hook = dict(layer.named_parameters()), _hooks(layer).get(name)
    if hook is None:
        _remove_parametrizations(layer, name)
    elif isinstance(hook, WeightNorm):
        remove_weight_norm(layer, name)
    elif isinstance(hook, SpectralNorm):
        remove_spectral_norm(layer, name)
        _remove_loading(layer, name)
    else:
        prune.remove(layer, name)
    left = dict(layer.named_parameters())
    sources = [parameter for key, parameter in before.items() if key not in left]
    if sources:  # else torch makes a buffer of what is frozen, or trains it
        value, trains = getattr(layer, name).detach(), any(p.requires_grad for p in sources)
        delattr(layer, name)
        layer.register_parameter(name, nn.Parameter(value, requires_grad=trains))


def _remove_parametrizations(layer: nn.Module, name: str) -> None:
    """Makes a tensor plain that is parametrised, without a trace in other layers."""
    # Copies of a layer have its class in common, out of which torch takes the computed attribute: theirs as well
    kind = type(layer)
    members = {key: value for key, value in vars(kind).items() if key not in _OF_EVERY_CLASS}
    layer.__class__ = type(kind.__name__, kind.__bases__, members)  # pyright: ignore[reportAttributeAccessIssue]
    # And it writes to what the tensor is computed from, which other layers may have as well
    parametrizations: Any = layer.parametrizations
    source = parametrizations[name]._parameters.get("original")
    if source is not None:
        parametrizations[name].original = nn.Parameter(
            source.detach().clone(), source.requires_grad
        )
    parametrize.remove_parametrizations(layer, name)


def _remove_loading(layer: nn.Module, name: str) -> None:
    """Removes the hook that asks every state for what spectral norm had; torch looks for it without its wrapper."""
    for key, wrapped in list(layer._load_state_dict_pre_hooks.items()):
        hook = getattr(wrapped, "hook", wrapped)
        if isinstance(hook, SpectralNormLoadStateDictPreHook) and hook.fn.name == name:
            del layer._load_state_dict_pre_hooks[key]


def _histories(model: nn.Module) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields by id what stands, in a copy, for tensors that a hook has computed with gradients: these cannot be copied."""
    for layer in model.modules():
        for name in _names(layer):
            value = vars(layer).get(name)
            if isinstance(value, torch.Tensor):
                yield id(value), value.detach().clone()
