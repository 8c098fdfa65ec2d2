"""Small networks for the tests of channels, and the oracle that sliced networks are compared with.

`programs()` draws random networks from operations that have a rule, and, if asked, from `STRANGE`: operations without
one, unusual spellings, and other things that must never be sliced silently wrong.
"""

import copy
import os
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

CLASSES = 3
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


# --- Operations with a rule: (batch, channels, size, size) to the same shape. ---

UNARY = {
    "relu": F.relu,
    "torch_relu": torch.relu,
    "method_relu": lambda x: x.relu(),
    "sigmoid": torch.sigmoid,
    "exp": lambda x: torch.exp(-x.abs()),
    "leaky": lambda x: F.leaky_relu(x, 0.3),
    "silu": lambda x: F.silu(input=x),
    "scaled": lambda x: x * 0.5,
    "shifted": lambda x: 2.0 - x / 3,
    "clamp": lambda x: x.clamp(min=-0.5),
    "max_pool": lambda x: F.max_pool2d(x, 3, 1, 1),
    "avg_pool": lambda x: F.avg_pool2d(x, kernel_size=3, stride=1, padding=1),
    "attention": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "peak": lambda x: x - x.amax(dim=(-1, -2), keepdim=True),
    "numbers": lambda x: x * (x.shape[0] + x.size(-1)) / x.shape[2:][0],
    "twice": lambda x: x + x,
}

# Two values of the same shape to one of that shape.
BINARY = {
    "plus": lambda a, b: a + b,
    "torch_add": lambda a, b: torch.add(a, b, alpha=2),
    "method_add": lambda a, b: a.clone().add_(b),
    "minus": lambda a, b: a - b,
    "gate": lambda a, b: torch.mul(a, torch.sigmoid(b)),
    "maximum": torch.maximum,
}

CAT = {
    "list": lambda *x: torch.cat(list(x), 1),
    "tuple": lambda *x: torch.cat(x, dim=1),
    "concat": lambda *x: torch.concat(x, dim=-3),
    "nested": lambda *x: torch.cat([torch.cat(x, 1), torch.relu(torch.cat(x[::-1], 1))], 1),
    "summed": lambda *x: torch.cat([*x, *x], 1) + torch.cat([*x, *x[::-1]], 1),
}

MODULES = {
    "relu": lambda c: nn.ReLU(),
    "prelu": nn.PReLU,
    "prelu_one": lambda c: nn.PReLU(),
    "batch_norm": nn.BatchNorm2d,
    "batch_norm_plain": lambda c: nn.BatchNorm2d(c, affine=False),
    "hardswish": lambda c: nn.Hardswish(),
    "max_pool": lambda c: nn.MaxPool2d(3, 1, 1),
    "avg_pool": lambda c: nn.AvgPool2d(3, 1, 1),
    "dropout": lambda c: nn.Dropout(0.3),
}

HEADS = {
    "flatten": lambda x: torch.flatten(x, 1),
    "method_flatten": lambda x: x.flatten(start_dim=1),
    "view": lambda x: x.contiguous().view(x.size(0), -1),
    "reshape": lambda x: torch.reshape(x, (x.shape[0], -1)),
    "mean": lambda x: x.mean([2, 3]),
    "torch_mean": lambda x: torch.mean(x, dim=(-2, -1)),
    "pooled": lambda x: torch.flatten(F.adaptive_avg_pool2d(x, 2), 1),
    "peak": lambda x: F.adaptive_max_pool2d(x, 1).flatten(1),
}
POOLED = {"mean": 1, "torch_mean": 1, "pooled": 4, "peak": 1}  # features per channel, where not size * size

TABLES = {"unary": UNARY, "binary": BINARY, "cat": CAT, "head": HEADS}


class Fn(nn.Module):
    """A function from one of the tables as a module."""

    def __init__(self, table, name):
        super().__init__()
        self.table, self.name = table, name

    def forward(self, *values):
        return TABLES[self.table][self.name](*values)


# --- Strange things: everything that slicing could get wrong. (batch, c, s, s) to the same number of channels. ---


class Strange(nn.Module):
    """An operation without a rule; it may hold what `parts` gives it."""

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
    "conv_keywords": lambda m, x: F.conv2d(weight=m.conv.weight, input=m.conv(x), bias=m.conv.bias, padding=1),
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
    "view_literal": lambda m, x: x.view(x.shape[0], m.c, -1).view(x.shape[0], m.c, x.shape[2], x.shape[3]),
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
    "tied_depthwise": lambda c: _tied(c, _conv(c, groups=c, bias=False), _conv(c, groups=c, bias=False)),
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
    "statless": lambda c: {"one": _conv(c), "norm": nn.BatchNorm2d(c, affine=False, track_running_stats=False)},
    "buffer": lambda c: {"scale": torch.rand(1, c, 1, 1)},
}
BATCH = 2
SIZE = 4
# Multiplications that are neither a convolution nor a linear layer, so that macs leaves them out by definition, and a
# convolution whose forward was replaced by something that does not convolve.
NOT_COUNTED = {"einsum", "matmul", "spectral_norm", "replaced"}


# --- Random networks. ---


@dataclass(frozen=True)
class Step:
    """One layer of a program: what it is, which earlier values it takes, and its variant."""

    kind: str
    inputs: tuple[int, ...]
    name: str = ""
    number: int = 0


@dataclass(frozen=True)
class Program:
    """A network as data. `head` is (how to flatten, hidden features, with batch norm)."""

    steps: tuple[Step, ...]
    head: tuple[str, int, bool]

    def build(self, seed=0):
        """Returns the network in double precision, evaluation mode, with random weights and statistics."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return scrambled(Net(self))


class Net(nn.Module):
    """Interprets a program."""

    def __init__(self, program):
        super().__init__()
        self.program = program
        self.layers = nn.ModuleList()
        widths = [3]
        for step in program.steps:
            layer, width = self._layer(step, [widths[i] for i in step.inputs])
            self.layers.append(layer)
            widths.append(width)
        name, hidden, norm = program.head
        self.flatten = Fn("head", name)
        features = widths[-1] * POOLED.get(name, SIZE * SIZE)
        self.hidden = nn.Linear(features, hidden)
        self.norm = nn.BatchNorm1d(hidden) if norm else nn.Identity()
        self.classifier = nn.Linear(hidden, CLASSES)

    def _layer(self, step, widths):
        c = widths[0]
        match step.kind:
            case "conv":
                return nn.Conv2d(c, step.number, 3, padding=1, bias=step.name != "no_bias"), step.number
            case "depthwise":
                return nn.Conv2d(c, c * step.number, 3, padding=1, groups=c), c * step.number
            case "module":
                return MODULES[step.name](c), c
            case "shared":
                layer = self.layers[step.number]
                return layer, layer.out_channels
            case "strange":
                return Strange(step.name, c), c
            case "cat":
                return Fn("cat", step.name), sum(widths) * (2 if step.name in ("nested", "summed") else 1)
            case kind:
                return Fn(kind, step.name), c

    def forward(self, x):
        values = [x]
        for step, layer in zip(self.program.steps, self.layers, strict=True):
            values.append(layer(*[values[i] for i in step.inputs]))
        x = torch.relu(self.norm(self.hidden(self.flatten(values[-1]))))
        return self.classifier(x)


class Drawing:
    """A program in the making."""

    def __init__(self, draw):
        self.draw, self.steps, self.widths = draw, [], [3]

    def pick(self, names):
        return self.draw(st.sampled_from(sorted(names)))

    def add(self, kind, inputs, width, name="", number=0):
        self.steps.append(Step(kind, inputs, name, number))
        self.widths.append(width)
        return len(self.widths) - 1

    def conv(self, source):
        width = 2 * self.draw(st.integers(1, 3))
        return self.add("conv", (source,), width, self.pick(["", "no_bias"]), width)

    def unary(self, source):
        self.add("unary", (source,), self.widths[source], self.pick(UNARY))

    def module(self, source):
        self.add("module", (source,), self.widths[source], self.pick(MODULES))

    def depthwise(self, source):
        number = self.draw(st.integers(1, 2)) if self.widths[source] <= 12 else 1
        self.add("depthwise", (source,), self.widths[source] * number, "", number)

    def residual(self, source):
        c = self.widths[source]
        inner = self.add("conv", (self.conv(source),), c, "", c)
        self.add("binary", (source, inner), c, self.pick(BINARY))

    def projection(self, source):
        one = self.conv(source)
        c = self.widths[one]
        two = self.add("conv", (source,), c, "no_bias", c)
        self.add("binary", (one, two), c, self.pick(BINARY))

    def binary(self, source):
        c = self.widths[source]
        self.add("binary", (source, self.pick(self._values(c, c))), c, self.pick(BINARY))

    def cat(self, source):
        if self.widths[source] > 12:
            return
        inputs = (source, *(self.pick(self._values(1, 8) or [source]) for _ in range(self.draw(st.integers(1, 2)))))
        name = self.pick(CAT)
        if name == "summed" and len({self.widths[i] for i in inputs}) > 1:  # it adds the parts in another order
            name = "list"
        width = sum(self.widths[i] for i in inputs) * (2 if name in ("nested", "summed") else 1)
        self.add("cat", inputs, width, name)

    def shared(self, source):
        convs = [i for i, step in enumerate(self.steps) if step.kind == "conv"]
        fitting = [i for i in convs if self.widths[self.steps[i].inputs[0]] == self.widths[source]]
        if fitting:
            index = self.pick(fitting)
            self.add("shared", (source,), self.steps[index].number, "", index)

    def strange(self, source):
        self.add("strange", (source,), self.widths[source], self.pick(STRANGE))

    def _values(self, lowest, highest):
        return [i for i, width in enumerate(self.widths) if lowest <= width <= highest and i]


COMMON = ("conv", "unary", "module", "residual", "projection", "cat", "binary", "depthwise", "shared")


@st.composite
def programs(draw, strange=False, most=7):
    """Draws a program; with `strange`, up to three of its steps are from `STRANGE`."""
    drawing = Drawing(draw)
    drawing.conv(0)
    left = 3 if strange else 0
    for _ in range(draw(st.integers(1, most))):
        last = len(drawing.widths) - 1
        getattr(drawing, drawing.pick(COMMON))(draw(st.integers(max(1, last - 2), last)))
        if left and drawing.widths[-1] <= 24 and drawing.widths[-1] % 2 == 0 and draw(st.booleans()):
            drawing.strange(len(drawing.widths) - 1)
            left -= 1
    head = (draw(st.sampled_from(sorted(HEADS))), draw(st.integers(2, 5)), draw(st.booleans()))
    return Program(tuple(drawing.steps), head)


def strange_network(name, width=6):
    """A network around one strange operation, with prunable layers before and behind it."""
    steps = (
        Step("conv", (0,), "", width),
        Step("module", (1,), "batch_norm"),
        Step("unary", (2,), "relu"),
        Step("strange", (3,), name),
        Step("conv", (4,), "", 4),
        Step("unary", (5,), "relu"),
        Step("conv", (6,), "", 4),
        Step("binary", (5, 7), "plus"),
    )
    return Program(steps, ("flatten", 4, True)).build()


# --- What sliced networks are compared with. ---


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
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed)).double()


def zeroed(model, graph, candidate, ranking):
    """The original network with the consumers of the removed channels set to zero: the oracle of slicing."""
    twin = copy.deepcopy(model)
    tensors = dict(twin.named_parameters())
    with torch.no_grad():
        for index, (group, width) in enumerate(zip(graph.prunable, candidate, strict=True)):
            kept = set(ranking.kept(index, width).tolist())
            for member in group.members:
                if member.axis != 1:
                    continue
                for entry, channel in zip(member.entries.tolist(), member.channels.tolist(), strict=True):
                    if channel not in kept:
                        tensors[member.parameter][:, entry] = 0
    return twin


def random_candidate(graph, rng):
    """Any width from 1 to all channels, for every prunable group."""
    return tuple(int(rng.integers(1, group.channels + 1)) for group in graph.prunable)


def counted(model, example):
    """Returns (macs, params) of a network, counted by torch; the example has batch 1."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    return counter.get_total_flops() // 2, sum(parameter.numel() for parameter in model.parameters())


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
    np.testing.assert_allclose((a / scale).detach().numpy(), (b / scale).detach().numpy(), rtol=0, atol=1e-11)
