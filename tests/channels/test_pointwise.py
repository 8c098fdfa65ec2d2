"""Strided 1x1 convolutions with few channels: the same numbers, and no gradient of a kernel that oneDNN gets wrong."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from abcsearch import Recipe, Split, rank_channels, trace_channels, train
from abcsearch.channels.pointwise import PointwiseSafely


class Recorded(TorchFunctionMode):
    """Notes the strides of 1x1 convolutions as they reach torch."""

    def __init__(self):
        super().__init__()
        self.strides = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.conv2d and args[1].shape[-1] == 1:
            self.strides.append(args[3])
        return func(*args, **(kwargs or {}))


def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 1, stride=2))
    return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def images():
    return torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3


@pytest.mark.parametrize("channels", [4, 15, 16, 24])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"stride": 2},
        {"stride": (2, 3)},
        {"stride": [3]},
        {"stride": 2, "padding": "valid"},
        {"stride": 2, "padding": (0, 1)},
        {"stride": 2, "padding": [0]},
        {"padding": "same"},
        {"stride": 2, "groups": 1, "dilation": 2},
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_torch(channels, kernel, given):
    # In double precision torch takes code of its own, so that it can be compared with.
    torch.manual_seed(0)
    weight, x = torch.randn(6, channels, kernel, kernel).double(), torch.randn(2, channels, 9, 8).double()
    found = []
    for block in (torch.enable_grad(), PointwiseSafely()):
        own = [tensor.clone().requires_grad_() for tensor in (x, weight, torch.ones(6).double())]
        with block:
            out = torch.conv2d(*own, **given)
        found.append([out, *torch.autograd.grad(out.square().sum(), own)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_grouped_channels_count_one_by_one():
    x, weight = torch.randn(2, 32, 8, 8), torch.randn(32, 8, 1, 1)
    with Recorded() as seen, PointwiseSafely():
        out = torch.conv2d(x, weight, None, 2, 0, 1, 4)
    assert seen.strides == [1]
    torch.testing.assert_close(out, torch.conv2d(x, weight, None, 2, 0, 1, 4))


def test_training_and_criteria_with_gradients_keep_off_that_kernel():
    x, labels = images()
    with Recorded() as seen:
        train(network(), Split(x, labels), Recipe(epochs=1, batch_size=16))
    assert seen.strides == [1, 1]
    model = network().eval()
    graph = trace_channels(model, x)
    with Recorded() as seen:
        rank_channels(model, graph, "taylor", data=(x, labels))
    assert seen.strides
    assert set(seen.strides) == {1}


def test_torch_survives_what_crashed_it():
    # Without the block this aborts or crashes on CPUs with AVX2 and without AVX512.
    code = """
import torch
from abcsearch.channels.pointwise import PointwiseSafely
conv = torch.nn.Conv2d(4, 8, 1, stride=2).to(memory_format=torch.channels_last)
for size in range(8, 40):
    x = torch.randn(32, 4, size, size).contiguous(memory_format=torch.channels_last)
    with PointwiseSafely():
        conv(x).square().sum().backward()
    del x
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "MALLOC_CHECK_": "3", "OMP_NUM_THREADS": "1"}
    )
