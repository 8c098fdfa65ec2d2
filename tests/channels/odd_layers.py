"""Odd spellings of layers: grouped, transposed and functional ones, norms, gates, scales, products with a parameter.

Each takes (module, x) with x (batch, c, SIZE, SIZE), c even, and returns as many channels.
"""

import operator

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth, stochastic_depth

from tests.channels.oracle import SIZE


def conv(c, out=None, **arguments):
    return nn.Conv2d(c, out or c, 3, padding=1, **arguments)


def held(**sizes):
    """Parameters that the module holds directly; the oracle knows from their names what they do."""
    return {name: nn.Parameter(torch.randn(*size)) for name, size in sizes.items()}


def thirds(c):
    """Three conv groups where they fit, otherwise as many as half the channels."""
    return 3 if c % 3 == 0 else c // 2


def pointwise(c):
    return {"one": nn.Conv2d(c, 2, 1), "two": nn.Conv2d(2, c, 1)}


def dense(c):
    return {"one": nn.Linear(c, 2), "two": nn.Linear(2, c)}


def there_and_back(m, x):
    return m.back(m.conv(x))


def gate(m, pooled):
    return torch.sigmoid(m.two(torch.relu(m.one(pooled))))


def se_view(m, x):
    b, c, _, _ = x.size()
    return x * gate(m, F.adaptive_avg_pool2d(x, 1).view(b, c)).view(b, c, 1, 1)


def se_expand(m, x):
    return x * gate(m, F.adaptive_avg_pool2d(x, 1).flatten(1)).view(x.size(0), -1, 1, 1).expand_as(
        x
    )


def last(m, x):
    """A block with channels last, as in ConvNeXt."""
    y = m.two(F.gelu(m.one(x.permute(0, 2, 3, 1))))
    return x + (m.scale * y).permute(0, 3, 1, 2)


def in_place(m, x):
    y = m.conv(x)
    y += x
    y *= 0.5
    y.add_(x).mul_(torch.sigmoid(x))
    return operator.imul(operator.iadd(y, x), x)


def selective(m, x):
    """Two branches weighted by a softmax over the branches, as in SKNet."""
    u = torch.stack([m.one(x), m.two(x)], 1)
    z = torch.relu(m.squeeze(u.sum(1).mean((2, 3))))
    weights = torch.softmax(torch.stack([m.a(z), m.b(z)], dim=1), dim=1)
    return (u * weights[..., None, None]).sum(dim=1)


OPERATIONS = {
    "grouped_wide": there_and_back,
    "grouped_thirds": there_and_back,
    "grouped_narrow": there_and_back,
    "grouped_double": lambda m, x: m.back(m.conv(m.conv(x))),
    "depthwise_wide": there_and_back,
    "depthwise_function": lambda m, x: F.conv2d(x, m.filters, groups=x.shape[1], padding=1),
    "depthwise_literal": lambda m, x: F.conv2d(x, m.filters, None, 1, 1, 1, m.c),
    "grouped_function": lambda m, x: F.conv2d(x, m.weight, m.shift, groups=2, padding="same"),
    "conv_function_bias": lambda m, x: F.conv2d(x, m.weight, m.shift, 1, (1, 1)),
    "conv_1d": lambda m, x: m.conv(x.flatten(2)).unflatten(2, (SIZE, SIZE)),
    "conv_3d": lambda m, x: m.conv(x.unsqueeze(2)).squeeze(2),
    "transposed_lanes": there_and_back,
    "transposed_whole": there_and_back,
    "transposed_depthwise": there_and_back,
    "transposed_function_grouped": lambda m, x: m.back(
        F.conv_transpose2d(x, m.transposed, groups=2, padding=1)
    ),
    "linear_function": lambda m, x: F.linear(x.movedim(1, -1), m.weight, bias=m.shift).movedim(
        -1, 1
    ),
    "batch_norm_function": lambda m, x: F.batch_norm(x, m.mean, m.var, m.scale, bias=m.shift),
    "instance_function": lambda m, x: F.instance_norm(x, weight=m.scale, bias=m.shift),
    "prelu_function": lambda m, x: F.prelu(x, m.scale),
    "group_norm_two": lambda m, x: m.norm(x),
    "group_norm_pairs": lambda m, x: m.norm(x),
    "group_norm_each": lambda m, x: m.norm(x),
    "group_norm_plain": lambda m, x: m.norm(m.conv(x)),
    "group_norm_function": lambda m, x: F.group_norm(x, 2, m.scale, m.shift),
    "instance_tracked": lambda m, x: m.norm(x),
    "instance_plain": lambda m, x: m.norm(m.conv(x)),
    "layer_norm_space": lambda m, x: m.norm(x),
    "layer_norm_function": lambda m, x: F.layer_norm(x, x.shape[2:]),
    "layer_norm_channels": lambda m, x: F.layer_norm(x, x.shape[1:]),
    "rms_norm_space": lambda m, x: m.norm(x),
    "local_norm_one": lambda m, x: m.norm(x),
    "local_function_one": lambda m, x: F.local_response_norm(x, size=1),
    "se_view": se_view,
    "se_expand": se_expand,
    "se_index": lambda m, x: x * gate(m, x.mean(dim=(2, 3)))[:, :, None, None],
    "se_unsqueeze": lambda m, x: gate(m, x.mean(3).mean(2)).unsqueeze(-1).unsqueeze(-1) * x,
    "se_conv": lambda m, x: torch.mul(x, gate(m, x.mean((2, 3), keepdim=True))),
    "se_conv_expand": lambda m, x: (
        x * gate(m, F.adaptive_max_pool2d(x, (1, 1))).expand(-1, -1, SIZE, SIZE)
    ),
    "selective": selective,
    "channels_last": last,
    "scale_batch": lambda m, x: m.scale * x,
    "scale_view": lambda m, x: x * m.scale.view(1, -1, 1, 1),
    "scale_index": lambda m, x: x + m.shift[:, None, None],
    "scale_index_batch": lambda m, x: x - m.shift[None, :, None, None],
    "scale_sized": lambda m, x: x * m.scale.reshape(1, x.shape[1], 1, 1),
    "scale_expand": lambda m, x: torch.addcmul(x, m.scale.expand(x.shape[0], -1, -1, -1), x),
    "scale_place": lambda m, x: x * m.table,
    "einsum_rows": lambda m, x: torch.einsum("bchw,cd->bdhw", x, m.rows),
    "einsum_first": lambda m, x: torch.einsum("oc, bchw -> bohw", m.weight, x),
    "einsum_list": lambda m, x: torch.einsum("bchw,oc->bohw", [x, m.weight]),
    "einsum_scale": lambda m, x: torch.einsum("bchw,c->bchw", x, m.scale),
    "einsum_gate": lambda m, x: x + torch.einsum("bchw,c->bhw", x, m.vector).unsqueeze(1),
    "einsum_space": lambda m, x: torch.einsum("bchw,wv->bchv", x, m.table),
    "einsum_two": lambda m, x: torch.einsum("bchw,bchw->bchw", x, m.conv(x)),
    "einsum_gram": lambda m, x: torch.einsum("bchw,bdhw->bcd", x, x).sum() + x,
    "einsum_sum": lambda m, x: x + torch.einsum("bchw->bhw", x).unsqueeze(1),
    "einsum_implicit": lambda m, x: torch.einsum("bchw,dc", x, m.weight),
    "matmul_rows": lambda m, x: torch.matmul(x.permute(0, 2, 3, 1), m.rows).permute(0, 3, 1, 2),
    "matmul_first": lambda m, x: (m.weight @ x.flatten(2)).unflatten(2, (SIZE, SIZE)),
    "matmul_space": lambda m, x: x.flatten(2).matmul(m.square).view_as(x),
    "matmul_gram": lambda m, x: x + (x.flatten(2) @ x.flatten(2).transpose(1, 2)).mean(),
    "upsampled": lambda m, x: F.avg_pool2d(m.up(x), 2),
    "interpolated": lambda m, x: F.max_pool2d(
        F.interpolate(x, scale_factor=2.0, mode="bilinear"), 2
    ),
    "stochastic": lambda m, x: x + m.drop(m.conv(x)),
    "stochastic_function": lambda m, x: (
        x + stochastic_depth(m.conv(x), 0.5, "row", training=m.training)
    ),
    "dropout_function": lambda m, x: F.dropout2d(m.conv(x), 0.2, training=m.training),
    "glu": lambda m, x: m.glu(m.conv(x)),
    "glu_function": lambda m, x: F.glu(m.conv(x), dim=1),
    "in_place": in_place,
    "shared_twice": lambda m, x: m.conv(x) * torch.sigmoid(m.conv(x.flip(-1))),
}

PARTS = {
    "grouped_wide": lambda c: {"conv": conv(c, 2 * c, groups=2), "back": conv(2 * c, c)},
    "grouped_thirds": lambda c: {"conv": conv(c, 2 * c, groups=thirds(c)), "back": conv(2 * c, c)},
    "grouped_narrow": lambda c: {"conv": conv(c, c // 2, groups=c // 2), "back": conv(c // 2, c)},
    "grouped_double": lambda c: {"conv": conv(c, groups=2), "back": conv(c)},
    "depthwise_wide": lambda c: {"conv": conv(c, 3 * c, groups=c), "back": conv(3 * c, c)},
    "depthwise_function": lambda c: held(filters=(c, 1, 3, 3)),
    "depthwise_literal": lambda c: held(filters=(c, 1, 3, 3)),
    "grouped_function": lambda c: held(weight=(c, c // 2, 3, 3), shift=(c,)),
    "conv_function_bias": lambda c: held(weight=(c, c, 3, 3), shift=(c,)),
    "conv_1d": lambda c: {"conv": nn.Conv1d(c, c, 3, padding=1)},
    "conv_3d": lambda c: {"conv": nn.Conv3d(c, c, (1, 3, 3), padding=(0, 1, 1))},
    "transposed_lanes": lambda c: {
        "conv": nn.ConvTranspose2d(c, 2 * c, 3, padding=1, groups=2),
        "back": conv(2 * c, c),
    },
    "transposed_whole": lambda c: {
        "conv": nn.ConvTranspose2d(c, 2 * c, 3, padding=1, groups=thirds(c)),
        "back": conv(2 * c, c),
    },
    "transposed_depthwise": lambda c: {
        "conv": nn.ConvTranspose2d(c, 2 * c, 3, padding=1, groups=c, bias=False),
        "back": conv(2 * c, c),
    },
    "transposed_function_grouped": lambda c: {
        **held(transposed=(c, c, 3, 3)),
        "back": conv(2 * c, c),
    },
    "linear_function": lambda c: held(weight=(c, c), shift=(c,)),
    "batch_norm_function": lambda c: {
        **held(scale=(c,), shift=(c,)),
        "mean": torch.randn(c),
        "var": torch.rand(c) + 0.5,
    },
    "instance_function": lambda c: held(scale=(c,), shift=(c,)),
    "prelu_function": lambda c: held(scale=(c,)),
    "group_norm_two": lambda c: {"norm": nn.GroupNorm(2, c)},
    "group_norm_pairs": lambda c: {"norm": nn.GroupNorm(max(c // 2, 2), c)},
    "group_norm_each": lambda c: {"norm": nn.GroupNorm(c, c)},
    "group_norm_plain": lambda c: {
        "conv": conv(c),
        "norm": nn.GroupNorm(max(c // 2, 2), c, affine=False),
    },
    "group_norm_function": lambda c: held(scale=(c,), shift=(c,)),
    "instance_tracked": lambda c: {
        "norm": nn.InstanceNorm2d(c, affine=True, track_running_stats=True)
    },
    "instance_plain": lambda c: {"conv": conv(c), "norm": nn.InstanceNorm2d(c)},
    "layer_norm_space": lambda c: {"norm": nn.LayerNorm((SIZE, SIZE))},
    "rms_norm_space": lambda c: {"norm": nn.RMSNorm(SIZE)},
    "local_norm_one": lambda c: {"norm": nn.LocalResponseNorm(1)},
    **dict.fromkeys(("se_view", "se_expand", "se_index", "se_unsqueeze"), dense),
    **dict.fromkeys(("se_conv", "se_conv_expand"), pointwise),
    "selective": lambda c: {
        "one": conv(c),
        "two": nn.Conv2d(c, c, 1),
        "squeeze": nn.Linear(c, 3),
        "a": nn.Linear(3, c),
        "b": nn.Linear(3, c),
    },
    "channels_last": lambda c: {"one": nn.Linear(c, 5), "two": nn.Linear(5, c), **held(scale=(c,))},
    "scale_batch": lambda c: held(scale=(1, c, 1, 1)),
    "scale_view": lambda c: held(scale=(c,)),
    "scale_index": lambda c: held(shift=(c,)),
    "scale_index_batch": lambda c: held(shift=(c,)),
    "scale_sized": lambda c: held(scale=(c,)),
    "scale_expand": lambda c: held(scale=(c, 1, 1)),
    "scale_place": lambda c: held(table=(c, SIZE, SIZE)),
    "einsum_rows": lambda c: held(rows=(c, c)),
    "einsum_scale": lambda c: held(scale=(c,)),
    "einsum_gate": lambda c: held(vector=(c,)),
    "einsum_space": lambda c: held(table=(SIZE, SIZE)),
    "einsum_two": lambda c: {"conv": conv(c)},
    **dict.fromkeys(
        ("einsum_first", "einsum_list", "einsum_implicit", "matmul_first"),
        lambda c: held(weight=(c, c)),
    ),
    "matmul_rows": lambda c: held(rows=(c, c)),
    "matmul_space": lambda c: held(square=(SIZE * SIZE, SIZE * SIZE)),
    "upsampled": lambda c: {"up": nn.Upsample(scale_factor=2)},
    "stochastic": lambda c: {"conv": conv(c), "drop": StochasticDepth(0.5, "batch")},
    "stochastic_function": lambda c: {"conv": conv(c)},
    "dropout_function": lambda c: {"conv": conv(c)},
    "glu": lambda c: {"conv": conv(c, 2 * c), "glu": nn.GLU(1)},
    "glu_function": lambda c: {"conv": conv(c, 2 * c)},
    "in_place": lambda c: {"conv": conv(c)},
    "shared_twice": lambda c: {"conv": conv(c)},
}
