"""Uses of operations that look covered, but where the numbers or tensors in forward would not follow the channels."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from abcsearch.channels.groups import UnsupportedOpWarning, trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from tests.channels.odd_layers import conv, held
from tests.channels.oracle import assert_close, images, keeping, random_candidate, scrambled, zeroed


class Attacked(nn.Module):
    """A convolution, a function of the module and its output, and a convolution behind it."""

    def __init__(self, function, parts, c=6, out=6):
        super().__init__()
        self.function = function
        self.a, self.end = conv(3, c), nn.Conv2d(out, 4, 1)
        for name, part in parts.items():
            setattr(self, name, part)
        if "tied" in parts:
            self.tied.weight = self.a.weight

    def forward(self, x):
        return self.end(torch.relu(self.function(self, self.a(x))))


def two_pads(m, x):
    return m.mix(torch.cat([m.pad(x) + m.one(x), m.pad(m.y(x)) * m.two(x)], 1))


def swapped_pairs(m, x):
    a, b = x.chunk(x.shape[1] // 2, 1)
    return torch.cat([b, a], 1)


def ramp(channels):
    return torch.linspace(0, 1, 16 * channels, dtype=torch.float64).view(1, channels, 4, 4)


CASES = {
    # Several axes are normalised, the channels among them.
    "normalize over channels and space": (lambda m, x: F.normalize(x, dim=(1, 2, 3)), {}),
    # A number that follows channels says which rows of space are taken, or how a layer works.
    "narrow by channels": (lambda m, x: x + x.narrow(2, 0, x.shape[1] - 3), {}, 4, 4),
    "select by channels": (lambda m, x: x + x.select(2, x.shape[1] - 3).unsqueeze(2), {}),
    "padding by channels": (
        lambda m, x: F.conv2d(x, m.weight, padding=x.shape[1] - 5),
        held(weight=(6, 6, 3, 3)),
    ),
    "dilation by channels": (
        lambda m, x: F.conv2d(x, m.weight, dilation=x.shape[1] - 5),
        held(weight=(6, 6, 3, 3)),
    ),
    "conv_groups by channels": (
        lambda m, x: F.conv2d(x, m.weight, groups=x.shape[1] - 5),
        held(weight=(6, 6, 3, 3)),
    ),
    "two conv_groups by channels": (
        lambda m, x: F.conv2d(x.repeat(1, 8, 1, 1), m.weight, groups=x.shape[1]),
        held(weight=(6, 8, 3, 3)),
        2,
    ),
    "pixels by channels": (
        lambda m, x: F.avg_pool2d(F.pixel_shuffle(x, x.shape[1] - 6), 2),
        {},
        8,
        2,
    ),
    "chunks by channels": (swapped_pairs, {}, 4, 4),
    "more parts than before": (lambda m, x: torch.cat(x.split(x.shape[1] - 2, 1)[::-1], 1), {}),
    "epsilon by channels": (lambda m, x: F.layer_norm(x, (4,), None, None, x.shape[1] * 0.125), {}),
    # Tensors beside the first.
    "slopes computed": (lambda m, x: F.prelu(x, m.scale.abs()), held(scale=(6,))),
    "slopes of another layer": (lambda m, x: F.prelu(x, m.o(x).mean((0, 2, 3))), {"o": conv(6)}),
    "scale and weight of a norm over space": (
        lambda m, x: F.layer_norm(x, (4,), m.scale) * m.scale.view(1, -1, 1, 1),
        held(scale=(4,)),
        4,
        4,
    ),
    "a third tensor in einsum": (
        lambda m, x: torch.einsum("bchw,dc,d->bdhw", x, m.weight, m.scale),
        held(weight=(6, 6), scale=(6,)),
    ),
    "a single channel broadcast by einsum": (
        lambda m, x: torch.einsum("bchw,bchw->bchw", x, m.o(x)),
        {"o": conv(6, 1)},
    ),
    "a shape in which channels mix with images": (
        lambda m, x: (
            x * x[:1].view_as(x[:1].permute(3, 1, 2, 0)).mean((0, 2, 3))[None, :, None, None]
        ),
        {},
    ),
    # One module or parameter for tensors with different channels.
    "a shared norm without parameters": (
        lambda m, x: m.mix(torch.cat([m.norm(m.o(x)), m.norm(x)], 1)),
        {"o": conv(6), "norm": nn.GroupNorm(3, 6, affine=False), "mix": conv(12, 6)},
    ),
    "a shared norm of a constant": (
        lambda m, x: m.norm(x) * m.norm(ramp(6)).amax(),
        {"norm": nn.GroupNorm(3, 6, affine=False)},
    ),
    "a shared norm with parameters of a constant": (
        lambda m, x: m.norm(x) * m.norm(ramp(6)).amax(),
        {"norm": nn.BatchNorm2d(6)},
    ),
    "shared padding": (
        two_pads,
        {
            "pad": nn.ZeroPad3d((0, 0, 0, 0, 2, 4)),
            "y": conv(6),
            "mix": conv(24, 6),
            "one": conv(6, 12),
            "two": conv(6, 12),
        },
    ),
    "shared padding of a constant": (
        lambda m, x: m.mix((m.pad(x) + m.one(x)) * m.pad(ramp(6)).mean()),
        {"pad": nn.ZeroPad3d((0, 0, 0, 0, 2, 4)), "one": conv(6, 12), "mix": conv(12, 6)},
    ),
    "one weight in two layers": (
        lambda m, x: m.mix(torch.relu(m.tied(x))),
        {"tied": nn.ConvTranspose2d(6, 3, 3, padding=1), "mix": conv(3, 6)},
    ),
    # Spellings that are read wrongly.
    "conv_groups by place": (
        lambda m, x: F.conv_transpose2d(x, m.transposed, None, 1, 1, 0, 2),
        held(transposed=(6, 3, 3, 3)),
    ),
    "an axis that is a truth value": (lambda m, x: x * torch.relu(x.std(False)), {}),
    "a view as the same type": (lambda m, x: x.view(x.dtype), {}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [1, 2])
def test_nothing_is_sliced_wrong(name, batch):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = scrambled(Attacked(*CASES[name]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsupportedOpWarning)
        graph = trace_channels(model, images(batch=batch))
    for seed in range(4):
        ranking = rank_channels(model, graph, "random", seed=seed)
        ones = tuple(1 for _ in graph.prunable)
        candidate = random_candidate(graph, np.random.default_rng(seed)) if seed else ones
        sliced = slice_model(model, graph, candidate, ranking)
        with torch.no_grad():
            outputs = sliced(images())
            if graph.norms:
                with keeping(model, graph, candidate, ranking):
                    assert_close(outputs, model(images()))
            else:
                assert_close(outputs, zeroed(model, graph, candidate, ranking)(images()))


def test_names_are_unique_where_one_weight_is_used_in_two_ways():
    def there_and_back(m, x):
        return m.mix(torch.relu(F.conv_transpose2d(x, m.a.weight, padding=1)))

    model = Attacked(there_and_back, {"mix": conv(3, 6)}).double()
    graph = trace_channels(model, images(batch=1))
    assert len({group.name for group in graph.groups}) == len(graph.groups)
    assert [(group.name, group.channels) for group in graph.prunable] == [("a", 6), ("mix", 6)]
