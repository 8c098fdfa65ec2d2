"""Odd spellings of what moves channels without mixing them: parts, wholes, shuffles, reshapes, padding, sizes.

Each takes (module, x) with x (batch, c, SIZE, SIZE), c even, and returns as many channels.
"""

import operator

import torch
import torch.nn.functional as F
from torch import nn

from tests.channels.odd_layers import conv
from tests.channels.oracle import SIZE


def shuffled(m, x):
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).permute(0, 2, 1, 3, 4).reshape(b, -1, h, w)


def ghost(m, x):
    """Half of the channels computed, the other half derived from them."""
    half = m.conv(x)
    return torch.cat([half, m.cheap(half)], dim=1)[:, : m.c]


def swap(cut):
    """Takes channels apart in two and puts them together the other way round."""

    def run(m, x):
        a, b = cut(m, x)
        return torch.cat([b, torch.relu(a)], 1)

    return run


def halves(m, x):
    c = x.shape[1]
    return x[:, : c // 2], x[:, c // 2 :]


def rows(m, x):
    parts = x.unbind(2)
    return torch.stack([parts[i] * (i + 1) for i in range(SIZE)], dim=2)


def tokens(m, x):
    b, _, h, w = x.shape
    return m.linear(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(b, -1, h, w)


def tokens_residual(m, x):
    y = m.linear(x.flatten(2).transpose(1, 2))
    return x + y.transpose(-1, -2).view(x.shape)


def windows(m, x):
    """Windows of 2 x 2 places as images of their own, and back."""
    b, c, h, w = x.shape
    y = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 2, 2)
    y = m.conv(y)
    y = y.view(b, h // 2, w // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return y.reshape(b, -1, h, w)


def shortcut(m, x):
    """The shortcut without weights of the CIFAR residual networks, and a wider path."""
    return m.back(m.pad(x[:, :, ::2, ::2]) + m.wide(x))


def option_a(c):
    pad = nn.ZeroPad3d((0, 0, 0, 0, c // 2, c - c // 2))
    return {
        "pad": pad,
        "wide": conv(c, 2 * c, stride=2),
        "back": nn.ConvTranspose2d(2 * c, c, 2, 2),
    }


def wide(c):
    return {"conv": conv(2 * c, c)}


OPERATIONS = {
    "chunk_keywords": swap(lambda m, x: x.chunk(chunks=2, dim=1)),
    "chunk_function": swap(lambda m, x: torch.chunk(x, 2, dim=-3)),
    "chunk_space": lambda m, x: torch.cat(x.chunk(2, 2)[::-1], 2),
    "chunk_uneven": lambda m, x: torch.cat(x.chunk(4, 1), 1),
    "chunk_all": lambda m, x: torch.cat(x.chunk(x.shape[1], 1), 1),
    "split_size": swap(lambda m, x: x.split(x.shape[1] // 2, dim=1)),
    "split_sizes": swap(
        lambda m, x: torch.split(x, [x.size(1) // 2, x.size(1) - x.size(1) // 2], 1)
    ),
    "split_whole": lambda m, x: x.split(m.c, 1)[0],
    "split_beyond": lambda m, x: x.split(m.c + 3, dim=1)[0],
    "split_space": lambda m, x: torch.cat(x.split([1, 3], 2), 2),
    "split_keywords": swap(
        lambda m, x: torch.split(tensor=x, split_size_or_sections=m.c // 2, dim=1)
    ),
    "split_method": swap(lambda m, x: x.split(split_size=m.c // 2, dim=1)),
    "split_quarter": lambda m, x: torch.cat(
        x.split([x.shape[1] // 4, x.shape[1] - x.shape[1] // 4], 1), 1
    ),
    "tensor_split": swap(lambda m, x: x.tensor_split(2, dim=1)),
    "tensor_split_at": swap(lambda m, x: torch.tensor_split(x, (2,), dim=1)),
    "unbind_space": rows,
    "unbind_channels": lambda m, x: torch.stack(x.unbind(1), 1),
    "halves": swap(halves),
    "halves_last": lambda m, x: torch.cat(
        [x[:, -(x.shape[1] // 2) :], x[:, : -(x.shape[1] // 2)]], 1
    ),
    "all_but_one": lambda m, x: torch.cat([x[:, 1:], x[:, :1]], 1),
    "last_one": lambda m, x: torch.cat([x[:, -1:], x[:, :-1]], 1),
    "all_but_one_sized": lambda m, x: torch.cat(
        [x[:, : x.shape[1] - 1], x[:, x.shape[1] - 1 :]], 1
    ),
    "up_to_all": lambda m, x: x[:, : m.c] + x[:, : x.shape[1]] + x[:, :1000],
    "strided": lambda m, x: torch.cat([x[:, ::2], x[:, 1::2]], 1),
    "listed": lambda m, x: x[:, list(range(m.c))[::-1]],
    "masked": lambda m, x: x[:, torch.arange(m.c) >= 0],
    "one_channel": lambda m, x: x * x[:, 0].unsqueeze(1),
    "places": lambda m, x: x + x[:, :, 0, 0][:, :, None, None] + x[..., -1:] + x[:, :, :1, 1:2],
    "new_axis": lambda m, x: x[..., None].squeeze(-1) + x[:, :, None][:, :, 0] + x[None][0],
    "narrow_space": lambda m, x: x + x.narrow(2, 1, 1) + x.select(3, 0).unsqueeze(3),
    "narrow_channels": lambda m, x: torch.cat([x.narrow(1, 0, 1), x.narrow(1, 1, m.c - 1)], 1),
    "index_select": lambda m, x: x + x.index_select(2, torch.tensor([0])),
    "index_select_channels": lambda m, x: x.index_select(1, torch.arange(m.c)),
    "copy": lambda m, x: torch.zeros_like(x).copy_(x),
    "shuffle_minus": lambda m, x: (
        x.reshape(x.size(0), 2, -1, SIZE, SIZE).transpose(1, 2).flatten(1, 2)
    ),
    "shuffle_sizes": shuffled,
    "shuffle_module": lambda m, x: m.shuffle(x),
    "shuffle_function": lambda m, x: F.channel_shuffle(x, 2),
    "unflatten": lambda m, x: x.unflatten(1, (2, -1)).flip(1).flatten(1, 2),
    "unflatten_module": lambda m, x: torch.flatten(torch.sin(m.parts(x)), 1, 2),
    "unflatten_sizes": lambda m, x: (
        torch.unflatten(x, 1, (2, x.shape[1] // 2)).amax(1).repeat(1, 2, 1, 1)
    ),
    "pixel_shuffle": lambda m, x: F.avg_pool2d(m.shuffle(m.conv(x)), 2),
    "pixel_unshuffle": lambda m, x: F.pixel_shuffle(m.conv(F.pixel_unshuffle(x, 2)), 2),
    "shortcut": shortcut,
    "padded_before": lambda m, x: m.conv(m.pad(x)),
    "padded_sized": lambda m, x: m.conv(F.pad(x, (0, 0, 0, 0, 0, x.shape[1]))),
    "padded_circular": lambda m, x: m.conv(F.pad(x, (0, 0, 0, 0, 1, m.c - 1), mode="circular")),
    "padded_space": lambda m, x: F.avg_pool2d(m.pad(F.pad(x, (1, 1, 1, 1), value=0.5)), 3, 1)[
        :, :, 1:-1, 1:-1
    ],
    "cropped": lambda m, x: m.conv(F.pad(x, [0, 0, 0, 0, -1, 0])),
    "flat_linear": lambda m, x: m.linear(x.flatten(1)).view(x.shape[0], -1, SIZE, SIZE),
    "tokens": tokens,
    "tokens_residual": tokens_residual,
    "windows": windows,
    "permute_keywords": lambda m, x: torch.permute(
        input=m.linear(x.permute(dims=(0, 2, 3, 1))), dims=(0, 3, 1, 2)
    ),
    "swapped": lambda m, x: m.linear(x.swapaxes(1, -1)).transpose(dim0=-1, dim1=1),
    "view_keywords": lambda m, x: x.view(size=(x.shape[0], -1, SIZE * SIZE)).reshape(shape=x.shape),
    "view_sizes": lambda m, x: x.reshape(operator.add(x.shape[:2], (SIZE * SIZE,))).view(x.size()),
    "view_as": lambda m, x: x.flatten(2).view_as(x),
    "view_mixed": lambda m, x: x.view(x.shape[0], SIZE, -1, SIZE).view(x.shape),
    "view_pairs": lambda m, x: x.view(x.shape[0], -1, 2, SIZE, SIZE).flip(2).flatten(1, 2),
    "flatten_keywords": lambda m, x: torch.flatten(input=x, start_dim=2).unflatten(
        dim=2, sizes=(SIZE, SIZE)
    ),
    "stack_flatten": lambda m, x: m.conv(torch.stack([x, torch.sin(x)], 1).flatten(1, 2)),
    "stack_interleave": lambda m, x: m.conv(
        torch.stack((x, x * 2), dim=2).view(x.shape[0], -1, SIZE, SIZE)
    ),
    "stack_sum": lambda m, x: torch.stack([m.one(x), m.two(x)]).sum(0),
    "tile": lambda m, x: m.conv(x.tile((1, 2, 1, 1))),
    "repeat_interleave": lambda m, x: m.conv(x.repeat_interleave(2, dim=1)),
    "repeat_space": lambda m, x: F.avg_pool2d(x.repeat(1, 1, 2, 2), 2),
    "expand": lambda m, x: x * x.mean((2, 3), keepdim=True).expand(-1, -1, SIZE, SIZE),
    "expand_sizes": lambda m, x: x - x.mean((2, 3), keepdim=True).expand(x.shape),
    "expand_one": lambda m, x: x * m.one(x).expand(-1, m.c, -1, -1),
    "roll_space": lambda m, x: torch.roll(x, 1, 2),
    "flip_keywords": lambda m, x: torch.flip(x, dims=[1, -1]),
    "cumsum_space": lambda m, x: x.cumsum(dim=2),
    "softmax_space": lambda m, x: torch.softmax(x, -1) + F.log_softmax(x, dim=2),
    "normalize_space": lambda m, x: F.normalize(x, dim=2),
    "peak_indices": lambda m, x: (
        x - x.max(3, keepdim=True)[0] + torch.max(x, dim=2)[0].unsqueeze(2)
    ),
    "peak_values": lambda m, x: x - x.max(3, keepdim=True).values,
    "maximum": lambda m, x: torch.max(x, m.one(x)) + x.min(m.two(x)),
    "where_scalar": lambda m, x: torch.where(x.gt(0), m.one(x), 0.5).masked_fill(x < -1, 0.1),
    "batch_axis": lambda m, x: (
        torch.cat([x, x.flip(0)], 0).chunk(2, 0)[0] + x.mean(0, keepdim=True) + x[0]
    ),
    "twice_in_cat": lambda m, x: m.conv(torch.cat([x, x.flip(1)], 1)),
    "cat_part": lambda m, x: m.conv(torch.cat([x, x.chunk(2, 1)[0], x[:, x.shape[1] // 2 :]], 1)),
    "cat_itself": lambda m, x: torch.cat([m.less(x), torch.relu(m.less(x))], 1) + x,
    "ghost": ghost,
    "floor_of_third": lambda m, x: torch.cat(
        [x[:, : x.shape[1] // 3 * 3], x[:, x.shape[1] // 3 * 3 :]], 1
    ),
    "half_rounded_up": lambda m, x: torch.cat(
        [x[:, : (x.shape[1] + 1) // 2], x[:, (x.shape[1] + 1) // 2 :]], 1
    ),
    "size_of_another": lambda m, x: torch.cat([x[:, : m.less(x).shape[1]], m.less(x)], 1),
    "width_as_channels": lambda m, x: torch.cat(
        [x[:, : x.shape[3] - 2], x[:, x.shape[3] - 2 :]], 1
    ),
    "iadd": lambda m, x: operator.iadd(m.one(x), m.two(x)),
}


PARTS = {
    "shuffle_module": lambda c: {"shuffle": nn.ChannelShuffle(2)},
    "unflatten_module": lambda c: {"parts": nn.Unflatten(1, (2, -1))},
    "pixel_shuffle": lambda c: {"conv": conv(c, 4 * c), "shuffle": nn.PixelShuffle(2)},
    "pixel_unshuffle": lambda c: {"conv": conv(4 * c)},
    "shortcut": option_a,
    "padded_before": lambda c: {"pad": nn.ConstantPad3d((0, 0, 0, 0, c, 0), 0.7), **wide(c)},
    "padded_space": lambda c: {"pad": nn.ReflectionPad2d(1)},
    "cropped": lambda c: {"conv": conv(c - 1, c)},
    "flat_linear": lambda c: {"linear": nn.Linear(c * SIZE * SIZE, c * SIZE * SIZE)},
    **dict.fromkeys(
        ("tokens", "tokens_residual", "permute_keywords", "swapped"),
        lambda c: {"linear": nn.Linear(c, c)},
    ),
    "windows": lambda c: {"conv": conv(c)},
    **dict.fromkeys(
        (
            "padded_sized",
            "padded_circular",
            "tile",
            "stack_flatten",
            "stack_interleave",
            "repeat_interleave",
        ),
        wide,
    ),
    **dict.fromkeys(("twice_in_cat", "cat_part"), wide),
    **dict.fromkeys(
        ("stack_sum", "maximum", "where_scalar", "iadd"), lambda c: {"one": conv(c), "two": conv(c)}
    ),
    "expand_one": lambda c: {"one": conv(c, 1)},
    "ghost": lambda c: {"conv": conv(c, c // 2), "cheap": conv(c // 2, groups=c // 2)},
    "cat_itself": lambda c: {"less": conv(c, c // 2)},
    "size_of_another": lambda c: {"less": conv(c, c // 2)},
}
