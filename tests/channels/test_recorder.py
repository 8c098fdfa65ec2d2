"""Forwards written as people write them: what the recorder follows is sliced exactly, whatever the style."""

import threading
import warnings
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn
from torchvision.ops import FrozenBatchNorm2d

from abcsearch.channels.gates import gated
from abcsearch.channels.groups import UnsupportedOpWarning, trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.errors import TraceError
from abcsearch.example import Example
from tests.channels.oracle import few, images, scrambled
from tests.channels.test_activation import measured
from tests.channels.test_slicing import check_oracle

C = 8


@dataclass
class Pair:
    """What a block may return."""

    first: torch.Tensor
    second: torch.Tensor


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Renamed(nn.Conv2d):
    """A convolution that only is made in another way."""

    def __init__(self, c):
        super().__init__(c, c, 3, padding=1)

    def extra(self):
        return self.out_channels


class Styled(nn.Module):
    """One block in some style, with parts that a style may use."""

    def __init__(self, style):
        super().__init__()
        self.two = 2
        self.style, self.c, self.half, self.parts, self.each, self.factor = (
            style,
            C,
            C // 2,
            2,
            C // 2,
            3,
        )
        self.a, self.b = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 1)
        self.halves = nn.ModuleList(nn.Conv2d(C // 2, C // 2, 1) for _ in range(2))
        self.frozen, self.renamed = FrozenBatchNorm2d(C), Renamed(C)
        self.filters = nn.Parameter(torch.randn(C, 1, 3, 3))
        self.plain = [nn.Conv2d(C, C, 1)]

    def forward(self, x, extra=None, **options):
        return STYLES[self.style](self, x)

    def pair(self, x):
        return Pair(self.a(x), second=self.b(x))


def head_and_tail(m, x):
    first, *rest = m.a(x).chunk(2, 1)
    return torch.cat([*rest, first], dim=1)


def checked(m, x):
    assert x.shape[1] == m.a.in_channels == m.c
    b, _, *places = x.size()
    if m.b(x).shape != x.shape or len(x) != b:
        raise ValueError
    return F.interpolate(m.a(x), [2 * n for n in places])[:, :, :: m.parts, ::2]


def until_small(m, x):
    y = m.a(x)
    while y.shape[-1] > 2:
        y = F.avg_pool2d(y, 2)
    return F.interpolate(y, size=(x.shape[2], int(x.shape[3])))


def shifted(m, x):
    y = torch.zeros_like(x)
    y[:, :, 1:] = m.a(x)[:, :, :-1]
    return y


def padded(m, x):
    y = m.a(x)
    return torch.cat([y, y.new_zeros(len(y), y.shape[1], 1, y.size(3))], 2)[:, :, :-1]


def by_names(m, x):
    found = {"low": m.a(x)}
    found["high"] = torch.sigmoid(found["low"]) if "low" in found else x
    return sum(found.values())


def normalised(m, x):
    y = m.a(x)
    return y / y.abs().max().item()


def typed(m, x):
    y = m.a(x) if isinstance(x, torch.Tensor) and torch.is_tensor(x) else x
    return y * (y.shape[-1] / max(x.shape[2:])) ** 0.5


def relu_and_one(x):
    return torch.relu(x) + 1


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # torch.jit goes, but networks use it
    scripted = torch.jit.script(relu_and_one)


def one_number(m, x):
    """Padding is the number of groups: neither can change."""
    c = m.c
    return F.conv2d(m.a(x), m.filters, padding=c, groups=c)[..., c - 1 : 1 - c, c - 1 : 1 - c]


STYLES = {
    "head and tail": head_and_tail,
    "checked": checked,
    "until small": until_small,
    "shifted": shifted,
    "padded": padded,
    "by names": by_names,
    "normalised by data": normalised,
    "typed": typed,
    "zip": lambda m, x: torch.cat(
        [f(part) for f, part in zip(m.halves, m.a(x).chunk(2, 1), strict=True)], 1
    ),
    "map": lambda m, x: torch.cat(list(map(F.relu, m.a(x).split(m.half, 1))), 1),
    "split sizes": lambda m, x: torch.cat(m.a(x).split((m.half, m.c - m.half), 1)[::-1], 1),
    "written size": lambda m, x: (
        m.a(x).view(-1, m.c, 4 * 4).reshape(len(x), m.a.out_channels, *x.shape[2:])
    ),
    "half": lambda m, x: m.a(torch.cat([x[:, : m.half].relu(), x[:, m.half :]], 1)),
    "heads": lambda m, x: (
        m.a(x).view(len(x), m.parts, m.each, -1).flip(3).reshape(len(x), -1, *x.shape[2:])
    ),
    "depthwise": lambda m, x: F.conv2d(m.a(x), m.filters, padding=1, groups=m.c),
    "dilated": lambda m, x: F.conv2d(
        m.a(x), m.filters, padding=(m.two, m.two), dilation=m.two, groups=m.c
    ),
    "one number for both": one_number,
    "scaled": lambda m, x: m.a(x) * m.factor,
    "record": lambda m, x: (pair := m.pair(x)).first * pair.second,
    "rows": lambda m, x: torch.stack([m.a(row[None])[0] for row in x]),
    "autograd": lambda m, x: Doubling.apply(m.a(x)),
    "scripted": lambda m, x: m.b(scripted(m.a(x))),
    "frozen": lambda m, x: m.frozen(m.a(x)),
    "renamed": lambda m, x: m.renamed(x),
    "plain list": lambda m, x: m.b(m.plain[0](m.a(x))),
    "option": lambda m, x: x if m.a(x).mean() > 1e9 else m.b(x),
    "direct": lambda m, x: m.a.forward(x),
    "closure": lambda m, x: (lambda f: f(f(x)))(m.a),
}
# What they touch stays, by name
LOST = ("shifted", "normalised by data", "scripted", "plain list", "option")


class Net(nn.Module):
    """Convolutions with styled blocks in between."""

    def __init__(self, styles):
        super().__init__()
        self.stem = nn.Conv2d(3, C, 3, padding=1)
        self.blocks = nn.ModuleList(Styled(style) for style in styles)
        self.between = nn.ModuleList(nn.Conv2d(C, C, 3, padding=1) for _ in styles)
        self.end = nn.Linear(C, 3)

    def forward(self, x):
        x = self.stem(x)
        for block, conv in zip(self.blocks, self.between, strict=True):
            x = conv(F.silu(block(x)))
        return {"logits": [self.end(x.flatten(2).mean(-1).view(x.size(0), -1))]}


class Logits(nn.Module):
    """What the oracle compares of a network."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)["logits"][0]


def built(*styles):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Logits(Net(styles))
        for block in model.net.blocks:
            block.plain[0].double()
        return scrambled(model)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
def test_every_style_is_exact(style):
    model = built(style)
    graph = trace_channels(model, images(batch=1))
    check_oracle(model, graph, np.random.default_rng(0))
    names = {group.name for group in graph.prunable}
    assert "net.between.0" in names
    assert "net.stem" in names or style in LOST
    assert bool(graph.unsupported) == (style in LOST)
    assert not any("self-check" in text for text in graph.unsupported)


@few(6)
@given(st.lists(st.sampled_from(sorted(STYLES)), min_size=2, max_size=4), st.integers(0, 99))
@pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
def test_styles_together_are_exact(styles, seed):
    model = built(*styles)
    graph = trace_channels(model, images(batch=2))
    check_oracle(model, graph, np.random.default_rng(seed), tries=1)


def test_attributes_that_count_channels_are_set():
    model = built("written size", "half")
    graph = trace_channels(model, images(batch=1))
    sliced = slice_model(
        model, graph, tuple(2 for _ in graph.prunable), rank_channels(model, graph)
    )
    assert [block.c for block in sliced.net.blocks] == [2, C]
    assert [block.half for block in sliced.net.blocks] == [C // 2, 2]
    assert model.net.blocks[0].c == C


def test_a_condition_on_widths_is_named_with_its_line():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, C, 1), nn.Conv2d(C, 2, 1)

        def forward(self, x):
            y = self.one(x)
            return self.two(y) if y.shape[1] > 4 else x  # the condition

    with pytest.warns(UnsupportedOpWarning, match="forward would go another way there"):
        graph = trace_channels(Wide(), images(1).float())
    with open(__file__) as source:  # noqa: PTH123 - one line of this file
        number = next(i for i, text in enumerate(source, 1) if text.endswith("# the condition\n"))
    assert (
        graph.groups[0].fixed
        == f"{__file__}:{number}: with other channels, forward would go another way there"
    )


def test_a_branch_that_never_ran_keeps_what_it_may_read():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.other, self.end = (nn.Conv2d(C, C, 1) for _ in range(4))
            self.stem = nn.Conv2d(3, C, 1)

        def forward(self, x):
            y = self.one(self.stem(x))
            y = self.two(y) if x.sum() < 1e9 else self.other(y)
            return self.end(y)

    with pytest.warns(
        UnsupportedOpWarning, match="forward decides on data there, and other never ran"
    ):
        graph = trace_channels(Branching(), images(1).float())
    assert not graph.prunable


def test_lists_dicts_and_keywords_as_inputs():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, C, 1), nn.Conv2d(C, 2, 1)

        def forward(self, pictures, *, scales=None, more=()):
            y = sum(self.one(picture) for picture in pictures["all"]) * scales[0]
            return [self.two(y), *more]

    example = Example(
        ({"all": [images(1), images(1)]},), {"scales": (torch.ones(1, 1, 1, 1).double(),)}
    )
    graph = trace_channels(scrambled(Several()), example)
    assert [group.name for group in graph.prunable] == ["one"]
    with pytest.raises(TraceError, match="takes 1 inputs"):
        trace_channels(Several().double(), Example((images(1), images(1))))


def test_other_threads_run_networks_as_ever_while_one_is_traced():
    class Waiting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.end = nn.Conv2d(3, C, 1), nn.Conv2d(C, 2, 1)

        def forward(self, x):
            other = nn.Sequential(nn.Conv2d(3, 2, 1)).double()
            kinds = []
            thread = threading.Thread(target=lambda: kinds.append(type(other(images(1)).shape[0])))
            thread.start()
            thread.join()
            assert kinds == [int]
            return self.end(self.conv(x))

    assert [group.name for group in trace_channels(Waiting().double(), images(1)).prunable] == [
        "conv"
    ]


def test_tensors_that_forward_drops_are_freed():
    dropped = []

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(9))

        def forward(self, x):
            made = []
            for layer in self.layers:
                x = layer(x).relu()
                made.append(weakref.ref(x))
            dropped.append([each() is None for each in made])
            return x

    trace_channels(Deep().double(), images(1), check=False)
    assert dropped == [[True] * 8 + [False]]


def test_a_result_among_several_keeps_the_memory_of_all():
    class Shuffling(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.end = nn.Conv2d(3, 2 * C, 1), nn.Conv2d(2 * C, 2, 1)

        def forward(self, x):
            first, second = self.stem(x).chunk(2, 1)
            return self.end(torch.cat([second.relu(), first], 1))

    model = scrambled(Shuffling())
    costs = trace_channels(model, images(1)).costs
    assert costs.peak_activation([(C,)])[0] == measured(model, images(1))


def test_networks_of_torch_fx_are_sliced_though_each_copy_has_a_class_of_its_own():
    """Also inside of another network, as those of torchvision's `create_feature_extractor` are."""

    class Around(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body, self.head = body, nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.body(x).mean((2, 3)))

    body = fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3)))
    x = torch.randn(2, 1, 8, 8)
    for network, widths in ((body, (2,)), (Around(body), (2, 3))):
        graph = trace_channels(network.eval(), x)
        ranking = rank_channels(network, graph)
        sliced = slice_model(network, graph, widths, ranking)
        gates = [
            torch.zeros(group.channels).index_fill(0, torch.as_tensor(ranking.kept(i, width)), 1.0)
            for i, (group, width) in enumerate(zip(graph.prunable, widths, strict=True))
        ]
        with gated(network, graph, gates):
            expected = network(x)
        torch.testing.assert_close(sliced(x), expected)
