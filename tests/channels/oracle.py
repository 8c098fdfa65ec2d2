"""What sliced networks and closed-form costs are compared with; written without looking at how they are made."""

import copy
import os

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from abcsearch.channels.gates import gated

BATCH = 2
SIZE = 4
HUNT = os.environ.get("HYPOTHESIS_EXAMPLES")  # set it to look for new counterexamples


def few(examples):
    """Settings of a property over networks: the same examples in every run, unless hunting."""
    return settings(
        deadline=None,
        max_examples=int(HUNT or examples),
        derandomize=not HUNT,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        database=None,
    )


def scrambled(model):
    """Gives a network random weights and statistics (no zeros, no ones), double precision and evaluation mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return model.double().eval()


def images(batch=BATCH, size=SIZE, seed=1, channels=3):
    """A batch of random images, double precision."""
    return torch.randn(
        batch, channels, size, size, generator=torch.Generator().manual_seed(seed)
    ).double()


def keeping(model, graph, candidate, ranking):
    """A block in which the original has gates of 0 and 1, and norms over channels are restricted to those of 1."""
    gates = []
    for index, (group, width) in enumerate(zip(graph.prunable, candidate, strict=False)):
        kept = torch.as_tensor(ranking.kept(index, width))
        gates.append(torch.zeros(group.channels).double().index_fill(0, kept, 1))
    return gated(model, graph, gates)


def zeroed(model, graph, candidate, ranking):
    """The original network with the consumers of the removed channels set to zero: the oracle of slicing."""
    twin = copy.deepcopy(model)
    tensors = dict(twin.named_parameters())
    axes = consumer_axes(twin)
    with torch.no_grad():
        for index, (group, width) in enumerate(zip(graph.prunable, candidate, strict=True)):
            kept = set(ranking.kept(index, width).tolist())
            for member in group.members:
                if member.axis not in axes.get(member.parameter, ()):
                    continue
                for entry, channel in zip(
                    member.entries.tolist(), member.channels.tolist(), strict=True
                ):
                    if channel not in kept:
                        tensors[member.parameter].select(member.axis, entry).zero_()
    return twin


# Parameters that forward uses without a layer: what those of each name do with the channels along an axis.
HELD = {"weight": {1}, "rows": {0}, "vector": {0}, "transposed": {0}}


def consumer_axes(model):
    """Which axes of a weight run over the input's channels; nothing else of a network is set to zero."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for module in model.modules():
        for path, parameter in module.named_parameters(recurse=False):
            match module:
                case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
                    axes = {0}
                case nn.Conv1d() | nn.Conv2d() | nn.Conv3d() | nn.Linear():
                    axes = {1}
                case _ if getattr(module, "name", "").startswith("transposed_function"):
                    axes = {0}
                case _:
                    axes = HELD.get(path, set())
            if parameter.ndim > 1 or path == "vector":
                found.setdefault(names[id(parameter)], set()).update(axes)
    return found


def random_candidate(graph, rng):
    """Any width from 1 to all channels, for every prunable group."""
    return tuple(int(rng.integers(1, group.channels + 1)) for group in graph.prunable)


def counted(model, example):
    """Returns (macs, params) of a network, counted by torch; the example has batch 1."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    return counter.get_total_flops() // 2, sum(
        parameter.numel() for parameter in model.parameters()
    )


def counted_flops(model, example):
    """Returns the survey's flops of a network: 2 * macs and the bias terms, seen by hooks on its layers."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        weight = module.weight
        places = output.numel() // weight.shape[0]
        total += 2 * weight.numel() * places + (output.numel() if module.bias is not None else 0)

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(example)
    for handle in handles:
        handle.remove()
    return total


def assert_close(a, b):
    """Equal up to rounding in double precision, and finite."""
    assert bool(torch.isfinite(b).all())
    scale = max(1.0, float(b.abs().max()))
    np.testing.assert_allclose(
        (a / scale).detach().numpy(), (b / scale).detach().numpy(), rtol=0, atol=1e-11
    )
