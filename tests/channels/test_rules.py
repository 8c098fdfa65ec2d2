"""Single rules: which channels end up together, and which uses they refuse."""

import importlib
import re
import warnings

import pytest
import torch
from torch import nn

from abcsearch.channels.flow import Flow
from abcsearch.channels.groups import UnsupportedOpWarning, trace_channels
from abcsearch.channels.operands import NoRuleError
from abcsearch.channels.rules import RULES
from tests.channels.oracle import images


class Small(nn.Module):
    """Two convolutions of one input, a function of both, and a convolution behind it (unless out is 0)."""

    def __init__(self, function, a=6, b=6, out=6, layer=None):
        super().__init__()
        self.function, self.layer = function, layer
        self.a, self.b = nn.Conv2d(3, a, 1), nn.Conv2d(3, b, 1)
        self.end = nn.Conv2d(out, 4, 1) if out else nn.Identity()

    def forward(self, x):
        return self.end(self.function(self, self.a(x), self.b(x)))


def groups(function, **sizes):
    model = Small(function, **sizes).double()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnsupportedOpWarning)
        graph = trace_channels(model, images(batch=1), renormalise=False)
    problems = "; ".join(graph.unsupported)
    assert [str(w.message) for w in caught] == (
        [f"channels touched by operations without a rule stay as they are: {problems}"]
        if problems
        else []
    )
    return {group.name: group for group in graph.groups if group.name != "end"}, problems


def lies_on(group):
    return sorted(
        (m.parameter, m.axis, m.entries.tolist(), m.channels.tolist()) for m in group.members
    )


@pytest.mark.parametrize(
    "add", [lambda m, a, b: a + b, lambda m, a, b: torch.add(a, other=b), lambda m, a, b: a.add(b)]
)
def test_additions_couple_a_stage(add):
    found, problems = groups(add)
    assert not problems
    assert list(found) == ["a"]
    assert found["a"].kind == "stage"
    every = list(range(6))
    assert lies_on(found["a"]) == [
        (name, axis, every, every)
        for name, axis in [
            ("a.bias", 0),
            ("a.weight", 0),
            ("b.bias", 0),
            ("b.weight", 0),
            ("end.weight", 1),
        ]
    ]


def test_products_couple_without_a_stage():
    found, _ = groups(lambda m, a, b: a * b)
    assert [(g.name, g.kind, g.channels) for g in found.values()] == [("a", "filter", 6)]


def test_of_a_tensor_whose_type_is_taken_shape_and_channels_do_not_count():
    # As detectors make their grids: numbers without channels, of the type of feature maps.
    def typed(m, a, b):
        grid = torch.arange(a.shape[2]).type_as(a)
        return a.type_as(b) + grid[:, None]

    found, problems = groups(typed, b=4)
    assert not problems
    assert list(found) == ["a", "b"]
    assert found["a"].fixed is None


def test_an_addition_to_itself_is_no_stage():
    found, _ = groups(lambda m, a, b: a + torch.relu(a))
    assert found["a"].kind == "filter"


def test_concatenation_keeps_parts_apart():
    found, _ = groups(lambda m, a, b: torch.cat([a, b, a], 1), a=2, b=3, out=7)
    assert lies_on(found["a"])[-1] == ("end.weight", 1, [0, 1, 5, 6], [0, 1, 0, 1])
    assert lies_on(found["b"])[-1] == ("end.weight", 1, [2, 3, 4], [0, 1, 2])


def test_concatenation_plus_addition_splits_a_layer():
    class Net(Small):
        def forward(self, x):
            return self.end(torch.cat([self.a(x), self.b(x)], 1) + self.wide(x))

    model = Net(None, a=2, b=3, out=5)
    model.wide = nn.Conv2d(3, 5, 1)
    graph = trace_channels(model.double(), images(batch=1))
    assert [(g.name, g.channels, g.kind) for g in graph.prunable] == [
        ("a", 2, "stage"),
        ("b", 3, "stage"),
    ]
    assert ("wide.weight", 0, [2, 3, 4], [0, 1, 2]) in lies_on(graph.prunable[1])


def test_concatenation_along_space_couples():
    found, _ = groups(lambda m, a, b: torch.cat([a, b], dim=-1))
    assert list(found) == ["a"]
    assert found["a"].fixed is None


def test_parts_of_a_layer_are_named_by_their_range():
    class Net(Small):
        def forward(self, x):
            return self.end(torch.cat([self.a(x), self.b(x)], 1) * torch.cat([x, self.c(x)], 1))

    model = Net(None, a=4, b=3, out=7)
    model.c = nn.Conv2d(3, 4, 1)
    graph = trace_channels(model.double(), images(batch=1))
    found = {g.name: (g.channels, g.fixed) for g in graph.groups}
    assert found["a[0:3]"] == (3, "cat (cat_1): one part is the network's input")
    assert found["a[3:4]"] == (1, "it has only one channel")
    assert found["b"] == (3, None)


def test_depthwise_passes_channels_through():
    found, _ = groups(
        lambda m, a, b: m.layer(a), layer=nn.Conv2d(6, 12, 3, groups=6, padding=1), out=12
    )
    assert ("layer.weight", 0, list(range(12)), [i // 2 for i in range(12)]) in lies_on(found["a"])
    assert ("layer.bias", 0, list(range(12)), [i // 2 for i in range(12)]) in lies_on(found["a"])


def test_batch_norm_and_prelu_lie_on_the_channels():
    for layer, names in (
        (nn.BatchNorm2d(6), ["bias", "running_mean", "running_var", "weight"]),
        (nn.PReLU(6), ["weight"]),
    ):
        found, _ = groups(lambda m, a, b: m.layer(a), layer=layer)
        own = [
            (name, entries)
            for name, axis, entries, _ in lies_on(found["a"])
            if name.startswith("layer.")
        ]
        assert own == [(f"layer.{name}", list(range(6))) for name in names]


def test_flatten_keeps_blocks_of_neighbours():
    found, _ = groups(
        lambda m, a, b: m.layer(torch.flatten(a, 1)), layer=nn.Linear(6 * 16, 5), out=0
    )
    assert ("layer.weight", 1, list(range(96)), [i // 16 for i in range(96)]) in lies_on(found["a"])


def plain_tensor():
    conv = nn.Conv2d(6, 6, 1)
    weight = conv.weight.detach().double()
    del conv.weight
    conv.weight = weight
    return conv


REFUSED = {
    "channels of a number": (
        lambda m, a, b: a * a.shape[1],
        "another argument depends on channels",
    ),
    "a clamp by a tensor": (lambda m, a, b: a.clamp(b), "another argument depends on channels"),
    "a mean over channels": (
        lambda m, a, b: a.mean((1, 2), keepdim=True) + b,
        "mean (mean): it reduces the channels",
    ),
    "a mean over all": (lambda m, a, b: a * b.mean(), "mean (mean): an axis is not a plain number"),
    "a sum with a parameter": (
        lambda m, a, b: a + m.a.bias.mean(),
        "mean (mean): an axis is not a plain number",
    ),
    "different axes": (
        lambda m, a, b: a[:, :4] + b[:, :4].transpose(1, 2),
        "add (add): the two sides have their channels at different axes",
    ),
    "parts at different axes": (
        lambda m, a, b: torch.stack([a[:, :4], b[:, :4].transpose(1, 2)]),
        "stack (stack): the parts have their channels at different axes",
    ),
    "linear over space": (
        lambda m, a, b: m.layer(a),
        "the channels are not the last axis",
        nn.Linear(4, 4),
    ),
    "channels as images": (
        lambda m, a, b: m.layer(a.transpose(0, 1)),
        "the input is not (batch, channels, space...)",
        nn.Conv2d(1, 6, 1),
    ),
    "pooling over channels": (
        lambda m, a, b: m.layer(a.mean(3)) + b.mean(3),
        "MaxPool2d layer: the input is not (batch, channels, space...)",
        nn.MaxPool2d(3, 1, 1),
    ),
    "plain tensor": (
        lambda m, a, b: m.layer(a),
        "a tensor that is neither a parameter nor a buffer",
        plain_tensor(),
    ),
    "hooked": (lambda m, a, b: m.layer(a), "ReLU layer: it has a forward hook", nn.ReLU()),
}
REFUSED["hooked"][2].register_forward_pre_hook(lambda module, inputs: None)
# Another operation on the way to these has fixed the channels before.
NOT_FIRST = {REFUSED[name][1] for name in ("different axes", "parts at different axes")}


@pytest.mark.parametrize("name", REFUSED)
def test_uses_that_a_rule_does_not_cover(name):
    function, reason, *layer = REFUSED[name]
    found, problems = groups(function, layer=layer[0] if layer else None, out=0)
    assert reason in problems
    assert re.search(r"^[\w.]+ [(\w][\w.)]*: ", problems)
    assert any(reason in (group.fixed or "") for group in found.values()) or reason in NOT_FIRST


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (lambda m, a, b: m.layer(a.view(1, 96)), []),
        (lambda m, a, b: m.layer(a.view(1, -1)), [("a", 6)]),
        (lambda m, a, b: m.layer(a.view(1, 6, -1).flatten(1)), []),
        (lambda m, a, b: m.layer(a.view(1, 6, 16).reshape(-1, 96)), []),
        (lambda m, a, b: m.layer(a.view(1, -1, 16).flatten(1)), [("a", 6)]),
        (lambda m, a, b: m.layer(a.reshape(1, a.shape[1] * 16)), [("a", 6)]),
        (lambda m, a, b: m.layer(a.reshape(1, b.shape[1] * 16)), []),
        (lambda m, a, b: m.layer((a + b).reshape(1, b.shape[1] * a.shape[2] * 4)), [("a", 6)]),
    ],
)
def test_a_size_written_in_forward_keeps_its_channels(function, kept):
    found, problems = groups(function, layer=nn.Linear(96, 5), out=0)
    assert [
        (g.name, g.channels) for g in found.values() if g.fixed is None and g.name != "b"
    ] == kept
    assert bool(problems) == (not kept)
    assert kept or found["a"].fixed.endswith("a size there would not follow the channels")


def test_one_channel_broadcast_over_others_is_fixed():
    found, problems = groups(lambda m, a, b: a * b, b=1)
    assert not problems
    assert found["a"].fixed is None
    assert found["b"].fixed == "a single channel that is broadcast over others"


def test_an_input_that_is_not_at_axis_one():
    class Vector(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.two(self.one(x))

    model = Vector()
    assert [g.name for g in trace_channels(model, torch.zeros(1, 5)).prunable] == ["one"]
    for shape in ((5,), (1, 7, 5), (2, 3, 4, 5)):
        graph = trace_channels(model, torch.zeros(shape), unknown="raise")
        assert [(g.name, g.channels) for g in graph.prunable] == [("one", 6)]


def test_the_table_has_no_names_that_torch_lacks():
    for key in RULES:
        if isinstance(key, str) and "." in key:
            module, _, name = key.rpartition(".")
            assert hasattr(importlib.import_module(module), name)
        else:
            assert not isinstance(key, str) or hasattr(torch.Tensor, key)


def test_a_parameter_must_be_as_long_as_the_channels():
    flow = Flow(canonical={}, sizes={"weight": (4, 3)})
    flow.parameter("weight", 0, flow.fresh(4))
    with pytest.raises(NoRuleError, match="axis 1 of weight has 3 entries for 2 channels"):
        flow.parameter("weight", 1, flow.fresh(2))
    assert list(flow.axes) == [("weight", 0)]
