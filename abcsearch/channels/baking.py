"""Weights that a network computes anew at every use, made plain: weight norm, spectral norm, pruning masks."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from abcsearch.errors import ModelError
from abcsearch.formats import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

SHOWN = 3  # names in a message
_SOURCES = ("_orig", "_g", "_v", "_u", "_mask")  # what hooks compute a tensor from, behind its name
_INSIDE = "parametrizations"  # where torch keeps what computes the tensors of a layer
_OF_EVERY_CLASS = ("__dict__", "__weakref__")
# By the ids of what a tensor was computed from: the tensor, and these, lest another one gets the id of one that is gone
Known = dict[tuple[int, ...], tuple[nn.Parameter, list[nn.Parameter]]]


def computed(model: nn.Module) -> dict[str, list[str]]:
    """Returns which tensors of which layers are computed by parametrisations, or by hooks of `torch.nn.utils`.

    Returns:
        Names of tensors by path of the layer; layers without such tensors are left out, and so is what is inside of
        parametrisations.
    """
    names = {
        path: _names(layer)
        for path, layer in model.named_modules()
        if _INSIDE not in path.split(".")
    }
    return {path: each for path, each in names.items() if each}


def bake(model: nn.Module, paths: Iterable[str]) -> None:
    """Makes plain tensors of those that layers compute, with the values of evaluation mode, in place.

    Layers that compute the same tensor from the same ones have it in common afterwards.

    Args:
        model: the network.
        paths: of the layers, of which each computes some, see `computed`.
    """
    known: Known = {}
    for path in paths:
        layer = model.get_submodule(path)
        modes = {module: module.training for module in layer.modules()}
        layer.eval()  # in which spectral norm does not go on with its iteration
        # What another one is computed from has that one's name, and more
        for name in sorted(_names(layer), key=len, reverse=True):
            _make_plain(layer, name, known)
        for module, mode in modes.items():
            module.training = mode


def baked(model: nn.Module) -> nn.Module:
    """Returns a copy in which all tensors are plain; the network itself where they are.

    Args:
        model: not changed.

    Raises:
        ModelError: if it cannot be copied, or a tensor cannot be computed.
    """
    layers = computed(model)
    lazy = any(nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers()))
    if not layers or lazy:  # whoever traces a network without weights says so
        return model
    try:
        plain = copy.deepcopy(model, dict(_histories(model)))
    except Exception as error:  # locks, open files, tensors of its own that have a history
        msg = f"{type(model).__name__} cannot be copied: {first_line(error)}"
        raise ModelError(msg) from error
    try:
        bake(plain, layers)
    except Exception as error:  # parametrisations are the user's own
        msg = f"{_shown(layers)} of {type(model).__name__} cannot be made plain: {first_line(error)}; "
        msg += "bake = false in [space] leaves what is computed as it is"
        raise ModelError(msg) from error
    return plain


def baked_words(model: nn.Module) -> str:
    """Returns what is said of a network whose tensors are made plain; "" where all are."""
    layers = computed(model)
    if not layers:
        return ""
    return (
        f"tensors of the network are computed, by weight norm, spectral norm, masks or the like ({_shown(layers)}): "
        "the copy that is searched has plain ones, and so has what comes of it (bake = false in [space] leaves such "
        "layers as they are)"
    )


def _shown(layers: Mapping[str, list[str]]) -> str:
    """Returns the first names of computed tensors, and how many more there are."""
    tensors = [f"{path}.{name}".lstrip(".") for path, names in layers.items() for name in names]
    more = f" and {len(tensors) - SHOWN} more" if len(tensors) > SHOWN else ""
    return ", ".join(tensors[:SHOWN]) + more


def _names(layer: nn.Module) -> list[str]:
    """Returns the names of the tensors that a layer computes."""
    parametrised: Any = layer.parametrizations if parametrize.is_parametrized(layer) else ()
    return list(dict.fromkeys([*parametrised, *(name for _, name in _hooks(layer))]))


def _hooks(layer: nn.Module) -> Iterator[tuple[int, str]]:
    """Yields key and name of the tensor of the hooks of `torch.nn.utils` that compute tensors of a layer."""
    for key, hook in layer._forward_pre_hooks.items():
        if isinstance(hook, WeightNorm | SpectralNorm):
            yield key, hook.name
        elif isinstance(hook, prune.BasePruningMethod):
            yield key, hook._tensor_name


def _make_plain(layer: nn.Module, name: str, known: Known) -> None:
    """Makes a tensor plain that a layer computes: a parameter, unless it is computed from a buffer.

    By hand, not by the functions of torch, which write to what the tensor is computed from, though other layers may
    have that as well, leave hooks behind, and make buffers of what is frozen.

    Args:
        layer: in evaluation mode.
        name: of the tensor.
        known: those that are plain by now.
    """
    keys = [key for key, computes in _hooks(layer) if computes == name]
    for key in keys:
        hook: Any = layer._forward_pre_hooks[key]
        hook(layer, ())
    value = getattr(layer, name).detach().clone()
    sources = _sources(layer, name, hooked=bool(keys))
    for key in keys:
        del layer._forward_pre_hooks[key]
    if keys:
        _remove_sources(layer, name)
    else:
        _remove_parametrizations(layer, name)
    for hooks in (layer._state_dict_hooks, layer._load_state_dict_pre_hooks):
        _remove_hooks(hooks)
    if not sources:
        layer.register_buffer(name, value)
        return
    ids = (*map(id, sources),)
    if ids not in known or not torch.equal(known[ids][0], value):
        trains = any(source.requires_grad for source in sources)
        known[ids] = nn.Parameter(value, trains), sources
    setattr(layer, name, known[ids][0])


def _sources(layer: nn.Module, name: str, *, hooked: bool) -> list[nn.Parameter]:
    """Returns the parameters that stand for a tensor which is computed from them."""
    if hooked:
        named = (layer._parameters.get(f"{name}{end}") for end in _SOURCES)
        return [parameter for parameter in named if parameter is not None]
    inside: Any = layer.parametrizations
    return [
        parameter
        for path, parameter in inside[name].named_parameters()
        if path.rpartition(".")[2].startswith("original")
    ]


def _remove_sources(layer: nn.Module, name: str) -> None:
    """Removes a tensor that a hook has computed, and what it computed it from."""
    for old in (name, *(f"{name}{end}" for end in _SOURCES)):
        if old in layer._parameters or old in layer._buffers or old in vars(layer):
            delattr(layer, old)


def _remove_parametrizations(layer: nn.Module, name: str) -> None:
    """Removes the attribute that a parametrisation computes, out of a class that copies of the layer may share."""
    inside: Any = layer.parametrizations
    del inside[name]
    kind: Any = type(layer)
    if len(inside):
        members = {
            key: value for key, value in vars(kind).items() if key not in (name, *_OF_EVERY_CLASS)
        }
        kind = type(kind.__name__, kind.__bases__, members)
    else:
        delattr(layer, _INSIDE)
        kind = kind.__bases__[0]
    layer.__class__ = kind


def _remove_hooks(hooks: dict[int, Callable[..., Any]]) -> None:
    """Removes hooks of `torch.nn.utils` on states: they look for what is gone."""
    for key, wrapped in list(hooks.items()):
        hook = getattr(wrapped, "hook", wrapped)
        module = getattr(hook, "__module__", None) or type(hook).__module__
        if module.startswith("torch.nn.utils."):
            del hooks[key]


def _histories(model: nn.Module) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields by id what stands, in a copy, for tensors that are computed with gradients: these cannot be copied.

    Layers that compute none keep what they have: nobody knows where that comes from.
    """
    for layer in filter(_names, model.modules()):
        for kept in vars(layer).values():
            for value in kept if isinstance(kept, list | tuple) else (kept,):
                if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                    yield id(value), value.detach().clone()
