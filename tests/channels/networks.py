"""Small random networks from operations that have a rule and, if asked, from those in `strange`."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from tests.channels.oracle import SIZE, scrambled
from tests.channels.strange import STRANGE, Strange

CLASSES = 3

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
# Features per channel, where not size * size
POOLED = {"mean": 1, "torch_mean": 1, "pooled": 4, "peak": 1}

TABLES = {"unary": UNARY, "binary": BINARY, "cat": CAT, "head": HEADS}


class Fn(nn.Module):
    """A function from one of the tables as a module."""

    def __init__(self, table, name):
        super().__init__()
        self.table, self.name = table, name

    def forward(self, *values):
        return TABLES[self.table][self.name](*values)


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
                return nn.Conv2d(
                    c, step.number, 3, padding=1, bias=step.name != "no_bias"
                ), step.number
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
                return Fn("cat", step.name), sum(widths) * (
                    2 if step.name in ("nested", "summed") else 1
                )
            case kind:
                return Fn(kind, step.name), c

    def forward(self, x):
        values = [x]
        for step, layer in zip(self.program.steps, self.layers, strict=True):
            values.append(layer(*[values[i] for i in step.inputs]))
        # Never cut off, so that mistakes show
        x = F.silu(self.norm(self.hidden(self.flatten(values[-1]))))
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
        inputs = (
            source,
            *(
                self.pick(self._values(1, 8) or [source])
                for _ in range(self.draw(st.integers(1, 2)))
            ),
        )
        name = self.pick(CAT)
        # It adds the parts in another order
        if name == "summed" and len({self.widths[i] for i in inputs}) > 1:
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


COMMON = (
    "conv",
    "unary",
    "module",
    "residual",
    "projection",
    "cat",
    "binary",
    "depthwise",
    "shared",
)


@st.composite
def programs(draw, strange=False, most=7):
    """Draws a program; with `strange`, up to three of its steps are from `STRANGE`."""
    drawing = Drawing(draw)
    drawing.conv(0)
    left = 3 if strange else 0
    for _ in range(draw(st.integers(1, most))):
        last = len(drawing.widths) - 1
        getattr(drawing, drawing.pick(COMMON))(draw(st.integers(max(1, last - 2), last)))
        if (
            left
            and drawing.widths[-1] <= 24
            and drawing.widths[-1] % 2 == 0
            and draw(st.booleans())
        ):
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
