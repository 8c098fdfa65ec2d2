"""Runtimes of a user's own: one whose times are exact, so that what follows from them can be told; and wrong ones."""

import math

import torch
from torch import nn

STEP = 8  # channels that it computes at once
calls = []  # (module, batch, threads) of every call


def seconds_of(module, batch, step=STEP):
    """Returns a time that grows in steps of so many channels, for inputs and outputs of every layer."""
    total = [1e-4]

    def add(layer, _, output):
        weight = layer.weight
        apart = weight.ndim == 4 and layer.groups > 1
        wide = math.ceil(weight.shape[0] / step) * step
        deep = 1 if apart else math.ceil(weight.shape[1] / step) * step
        total.append(1e-9 * wide * deep * output[:, 0].numel() * math.prod(weight.shape[2:]))

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    with torch.inference_mode():
        module(batch)
    for hook in hooks:
        hook.remove()
    return sum(total)


def stepped(module, batch, threads):
    """Returns the seconds of one pass."""
    calls.append((module, batch, threads))
    return seconds_of(module, batch)


def smooth(module, batch, threads):
    """Returns a function that says how many seconds a pass took where it ran; there every width counts."""
    seconds = seconds_of(module, batch, step=1)
    return lambda: seconds


def running(module, batch, threads):
    """Returns a function that runs a pass, to be timed by who calls it."""
    return lambda: module(batch)


def negative(module, batch, threads):
    return -1.0


def nothing(module, batch, threads):
    return None


def endless(module, batch, threads):
    return lambda: math.nan


def broken(module, batch, threads):
    raise OSError("the phone is not connected")


def breaking(module, batch, threads):
    def run():
        raise OSError("the phone is not connected")

    return run
