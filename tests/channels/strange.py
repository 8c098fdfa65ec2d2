"""Everything that slicing could get wrong: operations without a rule, unusual spellings, sizes read in forward.

Each maps (batch, c, SIZE, SIZE) to as many channels. It is either covered, or what it touches is fixed by name.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from tests.channels import odd_layers, odd_movement
from tests.channels.oracle import SIZE


class Strange(nn.Module):
    """One odd operation; it may hold what `PARTS` gives it."""

    def __init__(self, name, c):
        super().__init__()
        self.name, self.c = name, c
        for key, part in PARTS.get(name, lambda _: {})(c).items():
            if isinstance(part, nn.Parameter | nn.Module):
                setattr(self, key, part)
            else:
                self.register_buffer(key, part)

    def forward(self, x):
        return STRANGE[self.name](self, x)


def _shuffle(m, x):
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def _unpacked(m, x):
    b, c, h, w = x.shape
    return x.view(b, c, h * w).view(b, c, h, w)


def _chunked(m, x):
    a, b = x.chunk(2, 1)
    return torch.cat([b, a], 1)


def _lengths(m, x):
    b, c = x.size()[:2]
    return x * c + b


def _squeezed(m, x):
    weights = F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)
    return x * weights.unsqueeze(2).unsqueeze(3)


STRANGE = {
    "flip": lambda m, x: x.flip(1),
    "roll": lambda m, x: torch.roll(x, 1, 1),
    "cumsum": lambda m, x: x.cumsum(1),
    "shuffle": _shuffle,
    "shuffle_literal": lambda m, x: (
        x.view(x.shape[0], 2, m.c // 2, x.shape[2], x.shape[3]).transpose(1, 2).reshape(x.shape)
    ),
    "chunk": _chunked,
    "split_cat": lambda m, x: torch.cat(torch.split(x, m.c // 2, 1), 1),
    "split_reversed": lambda m, x: torch.cat(x.split(1, 1)[::-1], dim=1),
    "first": lambda m, x: x[:, :1] + x,
    "half": lambda m, x: torch.cat([x[:, m.c // 2 :], x[:, : m.c // 2]], 1),
    "softmax": lambda m, x: x.softmax(1),
    "group_norm": lambda m, x: m.norm(x),
    "instance_norm": lambda m, x: m.norm(x),
    "layer_norm": lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "local_norm": lambda m, x: m.norm(x),
    "einsum": lambda m, x: torch.einsum("bchw,dc->bdhw", x, m.weight),
    "matmul": lambda m, x: (m.weight @ x.flatten(2)).view(x.shape),
    "conv_function": lambda m, x: F.conv2d(x, m.weight, padding=1),
    "conv_keywords": lambda m, x: F.conv2d(
        weight=m.conv.weight, input=m.conv(x), bias=m.conv.bias, padding=1
    ),
    "conv_reads": lambda m, x: m.conv(x) * m.conv.weight.abs().mean(),
    "conv_length": lambda m, x: m.conv(x) * m.conv.weight.shape[0],
    "conv_width": lambda m, x: m.conv(x) / m.conv.out_channels,
    "norm_reads": lambda m, x: m.norm(x) * float(m.norm.running_var.sum()),
    "layer_scale": lambda m, x: x * m.scale,
    "scalar_scale": lambda m, x: x * m.scale,
    "hook": lambda m, x: m.conv(x),
    "replaced": lambda m, x: m.conv(x),
    "container_hook": lambda m, x: m.layers(x),
    "weight_norm": lambda m, x: m.conv(x),
    "spectral_norm": lambda m, x: m.conv(x),
    "subclass": lambda m, x: m.conv(x),
    "grouped": lambda m, x: m.conv(x),
    "transposed": lambda m, x: m.conv(x),
    "transposed_function": lambda m, x: F.conv_transpose2d(x, m.weight, padding=1),
    "tied": lambda m, x: torch.relu(m.one(x)) - m.two(x),
    "tied_depthwise": lambda m, x: torch.relu(m.one(x)) - m.two(x),
    "tied_transposed": lambda m, x: m.two(torch.relu(m.one(x))),
    "shape": lambda m, x: x * x.shape[1],
    "shape_tail": lambda m, x: x * x.shape[1:][0],
    "shape_negative": lambda m, x: x / x.shape[-3:-1][0],
    "shape_slice": lambda m, x: x * x.shape[x.dim() - 3 :][0],
    "size": lambda m, x: x / x.size(1),
    "size_keyword": lambda m, x: x / x.size(dim=-3),
    "sizes": _lengths,
    "numel": lambda m, x: x / x.numel(),
    "unpacked": _unpacked,
    "power": lambda m, x: x * x.shape[1] ** -0.5,
    "mean_axis": lambda m, x: x - x.mean(axis=1, keepdim=True),
    "mean_all": lambda m, x: x - x.mean(),
    "mean_channels": lambda m, x: x - x.mean(1, keepdim=True),
    "cat_axis": lambda m, x: m.conv(torch.cat([x, x], axis=1)),
    "cat_keywords": lambda m, x: m.conv(torch.cat(dim=1, tensors=[x, x])),
    "zeros": lambda m, x: x + torch.zeros(1, m.c, 1, 1),
    "zeros_like": lambda m, x: x + torch.zeros_like(x),
    "zeros_cat": lambda m, x: m.conv(torch.cat([x, x.new_ones(x.shape[0], m.c, SIZE, SIZE)], 1)),
    "squeeze": _squeezed,
    "permute": lambda m, x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "linear_last": lambda m, x: m.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "linear_space": lambda m, x: m.linear(x.flatten(2)).view(x.shape),
    "view_literal": lambda m, x: x.view(x.shape[0], m.c, -1).view(
        x.shape[0], m.c, x.shape[2], x.shape[3]
    ),
    "view_batch": lambda m, x: x.view(-1, x.shape[1], x.shape[2], x.shape[3]) * 2,
    "flatten_batch": lambda m, x: x.flatten(0, 1).view(x.shape),
    "indices": lambda m, x: F.max_pool2d(x, 3, 1, 1, return_indices=True)[0],
    "indices_module": lambda m, x: m.pool(x)[0],
    "interpolate": lambda m, x: F.interpolate(x, size=x.shape[2:]),
    "unbatched": lambda m, x: x + m.conv(x[0]).unsqueeze(0),
    "where": lambda m, x: torch.where(x > 0, x, x * 0.1),
    "normalize": lambda m, x: F.normalize(x, dim=1),
    "channel_max": lambda m, x: x - x.max(1, keepdim=True)[0],
    "stacked": lambda m, x: torch.stack([x, x * 2], 1).sum(1),
    "repeat": lambda m, x: m.conv(x.repeat(1, 2, 1, 1)),
    "padded": lambda m, x: m.conv(F.pad(x, (0, 0, 0, 0, m.c // 2, m.c - m.c // 2))),
    "batch_cat": lambda m, x: m.conv(torch.cat([x, x * 2], 0))[: x.shape[0]],
    "index_fill": lambda m, x: x.clone().index_fill_(1, torch.tensor([0]), 0.0),
    "wide_broadcast": lambda m, x: x * m.one(x),
    "tensor_clamp": lambda m, x: x.clamp(min=m.one(x)),
    "out": lambda m, x: torch.add(x, 1, out=torch.empty(0, dtype=x.dtype)),
    "spatial": lambda m, x: x.flip(3),
    "shared_norm": lambda m, x: m.norm(m.one(x)) + m.norm(m.two(x)),
    "recurrent": lambda m, x: m.conv(torch.relu(m.conv(x))),
    "statless": lambda m, x: m.norm(m.one(x)),
    "data": lambda m, x: x.data * 2,
    "buffer": lambda m, x: x * m.scale,
}


class Doubled(nn.Conv2d):
    """A convolution whose forward does something else."""

    def forward(self, x):
        return super().forward(x).flip(1)


def _conv(c, out=None, **arguments):
    return nn.Conv2d(c, out or c, 3, padding=1, **arguments)


def _hooked(c):
    conv = _conv(c)
    conv.register_forward_hook(_flip)
    return {"conv": conv}


def _flip(module, inputs, output):
    return output.flip(1)


def _container_hooked(c):
    layers = nn.Sequential(_conv(c), nn.ReLU())
    layers.register_forward_hook(_flip)
    return {"layers": layers}


def _flipped_forward(x):
    return x.flip(1)


def _replaced(c):
    conv = _conv(c)
    conv.forward = _flipped_forward
    return {"conv": conv}


def _tied(c, one, two):
    two.weight = one.weight
    return {"one": one, "two": two}


def _weight(*size):
    return {"weight": nn.Parameter(torch.randn(*size))}


PARTS = {
    "group_norm": lambda c: {"norm": nn.GroupNorm(1, c)},
    "instance_norm": lambda c: {"norm": nn.InstanceNorm2d(c, affine=True)},
    "layer_norm": lambda c: {"norm": nn.LayerNorm(c)},
    "local_norm": lambda c: {"norm": nn.LocalResponseNorm(3)},
    "einsum": lambda c: _weight(c, c),
    "matmul": lambda c: _weight(c, c),
    "conv_function": lambda c: _weight(c, c, 3, 3),
    "conv_keywords": lambda c: {"conv": _conv(c)},
    "conv_reads": lambda c: {"conv": _conv(c)},
    "conv_length": lambda c: {"conv": _conv(c)},
    "conv_width": lambda c: {"conv": _conv(c)},
    "norm_reads": lambda c: {"norm": nn.BatchNorm2d(c)},
    "layer_scale": lambda c: {"scale": nn.Parameter(torch.rand(c, 1, 1))},
    "scalar_scale": lambda c: {"scale": nn.Parameter(torch.rand(1))},
    "hook": _hooked,
    "replaced": _replaced,
    "container_hook": _container_hooked,
    "weight_norm": lambda c: {"conv": parametrizations.weight_norm(_conv(c))},
    "spectral_norm": lambda c: {"conv": parametrizations.spectral_norm(_conv(c))},
    "subclass": lambda c: {"conv": Doubled(c, c, 3, padding=1)},
    "grouped": lambda c: {"conv": _conv(c, groups=2)},
    "transposed": lambda c: {"conv": nn.ConvTranspose2d(c, c, 3, padding=1)},
    "transposed_function": lambda c: _weight(c, c, 3, 3),
    "tied": lambda c: _tied(c, _conv(c, bias=False), _conv(c, bias=False)),
    "tied_depthwise": lambda c: _tied(
        c, _conv(c, groups=c, bias=False), _conv(c, groups=c, bias=False)
    ),
    "tied_transposed": lambda c: _tied(c, _conv(c), nn.ConvTranspose2d(c, c, 3, padding=1)),
    "cat_axis": lambda c: {"conv": _conv(2 * c, c)},
    "cat_keywords": lambda c: {"conv": _conv(2 * c, c)},
    "zeros_cat": lambda c: {"conv": _conv(2 * c, c)},
    "linear_last": lambda c: {"linear": nn.Linear(c, c)},
    "linear_space": lambda c: {"linear": nn.Linear(SIZE * SIZE, SIZE * SIZE)},
    "indices_module": lambda c: {"pool": nn.MaxPool2d(3, 1, 1, return_indices=True)},
    "unbatched": lambda c: {"conv": _conv(c)},
    "repeat": lambda c: {"conv": _conv(2 * c, c)},
    "padded": lambda c: {"conv": _conv(2 * c, c)},
    "batch_cat": lambda c: {"conv": _conv(c)},
    "wide_broadcast": lambda c: {"one": _conv(c, 1)},
    "tensor_clamp": lambda c: {"one": _conv(c)},
    "shared_norm": lambda c: {"one": _conv(c), "two": _conv(c), "norm": nn.BatchNorm2d(c)},
    "recurrent": lambda c: {"conv": _conv(c)},
    "statless": lambda c: {
        "one": _conv(c),
        "norm": nn.BatchNorm2d(c, affine=False, track_running_stats=False),
    },
    "buffer": lambda c: {"scale": torch.rand(1, c, 1, 1)},
}
# Products of activations, which macs leaves out by definition, an equation that is not read, and a convolution whose
# forward was replaced by something that does not convolve.
NOT_COUNTED = {"einsum_gram", "einsum_implicit", "matmul_gram", "replaced"}
STRANGE |= odd_layers.OPERATIONS | odd_movement.OPERATIONS
PARTS |= odd_layers.PARTS | odd_movement.PARTS
