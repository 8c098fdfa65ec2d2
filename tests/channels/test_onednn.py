"""Strided 1x1 convolutions with few channels: the same numbers, and no gradient of a kernel that oneDNN gets wrong."""

import contextlib
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from abcsearch import Recipe, Split, export, load, rank_channels, trace_channels, train
from abcsearch.channels.onednn import pointwise_safely


class Recorded(TorchDispatchMode):
    """Notes the strides of 1x1 convolutions whose gradients torch computes, wherever they are called from."""

    def __init__(self):
        super().__init__()
        self.strides = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default and args[2].shape[-1] == 1:
            self.strides.append(args[4])
        return func(*args, **(kwargs or {}))


def network():
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 1, stride=2)
    )
    return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def images():
    return torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(
        32
    ) % 3


class Checkpointed(nn.Module):
    """The network, computed a second time for its gradients."""

    def __init__(self, reentrant):
        super().__init__()
        self.stem, *body = network()
        self.body, self.reentrant = nn.Sequential(*body), reentrant

    def forward(self, x):
        return checkpoint(self.body, self.stem(x), use_reentrant=self.reentrant)


@pytest.mark.parametrize("channels", [4, 15, 16, 24])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"stride": 2},
        {"stride": (2, 3)},
        {"stride": 3, "bias": False},
        {"stride": 2, "padding": "valid"},
        {"stride": 2, "padding": (0, 1)},
        {"stride": 2, "padding": 1, "padding_mode": "circular"},
        {"padding": "same"},
        {"stride": 2, "groups": 1, "dilation": 2},
        {"stride": 2, "groups": -1},
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_torch(channels, kernel, given):
    # In double precision torch takes code of its own, so that it can be compared with.
    torch.manual_seed(0)
    groups = channels if given.get("groups") == -1 else 1
    conv = nn.Conv2d(channels, 2 * channels, kernel, **{**given, "groups": groups}).double()
    x = torch.randn(2, channels, 9, 8).double().requires_grad_()
    found = []
    for block in (contextlib.nullcontext, pointwise_safely):
        with block(conv):
            out = conv(x)
            found.append([out, *torch.autograd.grad(out.square().sum(), [x, *conv.parameters()])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert "_conv_forward" not in vars(conv)


def out_of_a_file(folder):
    export(network(), folder / "network.pt2", example_input=images()[0][:2])
    return load(folder / "network.pt2")


MADE = {
    "modules": lambda _: network(),
    "out of a .pt2": out_of_a_file,
    "checkpoint": lambda _: Checkpointed(False),
    "reentrant checkpoint": lambda _: Checkpointed(True),
}


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.parametrize("kind", MADE)
def test_training_keeps_off_that_kernel(kind, tmp_path):
    model = MADE[kind](tmp_path)
    with Recorded() as seen:
        losses = train(model, Split(*images()), Recipe(epochs=2, batch_size=16)).losses
    assert seen.strides == [[1, 1]] * 4
    with torch.backends.mkldnn.flags(enabled=False):
        assert losses == pytest.approx(
            train(
                MADE[kind](tmp_path / "again"), Split(*images()), Recipe(epochs=2, batch_size=16)
            ).losses
        )
        with Recorded() as seen:
            model(images()[0]).sum().backward()
    assert seen.strides == [[2, 2]]  # as it was before


def test_criteria_with_gradients_keep_off_that_kernel():
    x, labels = images()
    for model in (network(), Checkpointed(False)):
        graph = trace_channels(model.eval(), x)
        with Recorded() as seen:
            rank_channels(model, graph, "taylor", data=(x, labels))
        assert seen.strides
        assert all(strides == [1, 1] for strides in seen.strides)


def test_convolutions_of_other_kinds_are_left_alone():
    class Scaled(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(x, weight / 2, bias)

    for conv in (
        Scaled(4, 8, 1, stride=2),
        nn.ConvTranspose2d(4, 8, 1, stride=2),
        nn.Conv2d(4, 8, 1),
    ):
        x = torch.randn(2, 4, 8, 8)
        expected = conv(x)
        with pointwise_safely(conv):
            assert torch.equal(conv(x), expected)


def test_torch_survives_what_crashed_it():
    # Without the block this aborts or crashes on CPUs with AVX2 and without AVX512.
    code = """
import torch
from abcsearch.channels.onednn import pointwise_safely
conv = torch.nn.Conv2d(4, 8, 1, stride=2).to(memory_format=torch.channels_last)
for size in range(8, 40):
    x = torch.randn(32, 4, size, size).contiguous(memory_format=torch.channels_last)
    with pointwise_safely(conv):
        conv(x).square().sum().backward()
    del x
"""
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={**os.environ, "MALLOC_CHECK_": "3", "OMP_NUM_THREADS": "1"},
    )


def test_a_block_inside_a_block_leaves_the_outer_one_alone():
    network = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2), nn.Conv2d(4, 4, 3))
    with pointwise_safely(network):
        outer = vars(network[0])["_conv_forward"]
        with pointwise_safely(network):
            assert vars(network[0])["_conv_forward"] is outer
        assert vars(network[0])["_conv_forward"] is outer
    assert "_conv_forward" not in vars(network[0])
