"""Tracing: what is recorded, what is left alone, and what is said where a network cannot be traced."""

import operator
import re

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import prune

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.trace import trace_operations
from abcsearch.errors import ExampleError, TraceError
from tests.channels.oracle import images


class Wrapped(nn.Module):
    """A network around one function of the module and its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.function(self, x)


def trace(function, x=None, **arguments):
    return trace_operations(
        Wrapped(function).double(), images(batch=2) if x is None else x, **arguments
    )


def test_values_are_shapes_and_numbers():
    operations = trace(lambda m, x: m.conv(x).flatten(1) * x.shape[1] + x.size()[0])
    values = {node.name: operations.values[node] for node in operations.nodes}
    assert values["x"] == torch.Size([2, 3, 4, 4])
    assert values["conv"] == torch.Size([2, 4, 2, 2])
    assert values["flatten"] == torch.Size([2, 16])
    assert values["getitem"] == 3
    assert values["size"] == (2, 3, 4, 4)
    assert type(operations.modules["conv"]) is nn.Conv2d


def test_the_copy_is_traced_in_evaluation_mode():
    model = Wrapped(lambda m, x: F.dropout(m.norm(m.conv(x)), training=m.training)).double()
    assert model.training
    before = {name: t.clone() for name, t in model.state_dict().items()}
    operations = trace_operations(model, images())
    assert not any(module.training for module in operations.modules.values())
    assert [node.kwargs["training"] for node in operations.nodes if node.target is F.dropout] == [
        False
    ]
    assert all(module.training for module in model.modules())
    assert model.calls == 0
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_forward_in_training_mode_is_recorded_on_request():
    operations = trace(lambda m, x: m.norm(m.conv(x)) if m.training else m.conv(x), training=True)
    assert "norm" in [node.name for node in operations.nodes]
    assert not any(module.training for module in operations.modules.values())


@pytest.mark.parametrize(
    "random", [lambda m, x: x * torch.rand(1).item(), lambda m, x: F.dropout(x, 0.5)]
)
def test_the_global_random_state_stays(random):
    model = Wrapped(random).double()
    before = torch.get_rng_state()
    trace_operations(model, images())
    assert torch.equal(torch.get_rng_state(), before)


def test_what_forward_reads_of_layers_is_recorded():
    assert trace(lambda m, x: m.conv(x) / m.conv.out_channels).read == {"conv": "out_channels"}
    assert trace(lambda m, x: m.norm(m.conv(x)) * float(m.norm.running_var.sum())).read == {
        "norm": "running_var"
    }
    assert trace(lambda m, x: m.norm(m.conv(x))).read == {}
    assert "__getattribute__" not in vars(nn.Module)


@pytest.mark.parametrize(
    "error", [ValueError, KeyboardInterrupt, SystemExit, torch.OutOfMemoryError]
)
def test_nothing_stays_changed_after_an_error(error):
    def fail(m, x):
        raise error

    with pytest.raises((TraceError, KeyboardInterrupt, SystemExit)):
        trace(fail)
    assert "__getattribute__" not in vars(nn.Module)
    assert not torch.overrides._get_current_function_mode_stack()
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    assert trace(lambda m, x: m.conv(x)).nodes


def failing(module, x):
    return module.conv(x).reshape(7)  # the line that the message must name


def test_a_forward_that_fails_is_named_with_its_line():
    with pytest.raises(ExampleError) as caught:
        trace(failing)
    with open(__file__) as source:  # noqa: PTH123 - one line of this file
        number = next(i for i, text in enumerate(source, 1) if "# the line that" in text)
    assert f"(at reshape, {__file__}:{number})" in str(caught.value)
    assert "shape '[7]' is invalid" in str(caught.value)


def steps(function, x=None):
    """What a graph does with tensors, in order."""
    return [node.name for node in trace(function, x).nodes if node.op.startswith("call")]


def test_conditions_are_followed_as_they_are_on_the_example():
    def typed(m, x, extra=None):
        if (
            extra is None
            and torch.is_tensor(x)
            and isinstance(x, torch.Tensor)
            and x.shape[-1] == 4
        ):
            return m.norm(m.conv(x))
        return x

    assert [name for name in steps(typed) if name in ("conv", "norm")] == ["conv", "norm"]
    assert "conv" in steps(lambda m, x: m.conv(x) if x.mean() < 100 else x)
    assert "conv" not in steps(lambda m, x: m.conv(x) if x.mean() > 100 else x)
    assert [name for name in steps(lambda m, x: sum(row for row in x)) if "add" in name] == [
        "add",
        "add_1",
    ]


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (
            images(channels=4),
            "Wrapped does not run on the example input (2, 4, 4, 4) torch.float64 on cpu: ",
        ),
        (
            images().float(),
            "Wrapped does not run on the example input (2, 3, 4, 4) torch.float32 on cpu: ",
        ),
        ((images(), images()), "Wrapped takes 1 inputs (x), the example has 2"),
        (images(size=2), f"(at conv, {__file__}:"),
        (
            [1, 2],
            "the example input is a batch of at least one image as a tensor, or a tuple of inputs, found (list)",
        ),
        (
            images(batch=0),
            "of at least one image as a tensor, or a tuple of inputs, found ((0, 3, 4, 4))",
        ),
        (
            (),
            "the example input is a batch of at least one image as a tensor, or a tuple of inputs, found ()",
        ),
        (images().to("meta"), "the network is on cpu, the example input on meta: move one of them"),
    ],
)
def test_a_wrong_example_input_is_named(example, message):
    with pytest.raises(TraceError, match=re.escape(message)):
        trace(lambda m, x: m.conv(x), example)


def test_several_inputs_and_defaults():
    class Two(nn.Module):
        def forward(self, a, b, scale=None):
            return a + b if scale is None else a

    operations = trace_operations(Two(), (torch.zeros(1, 3), torch.zeros(1, 3)))
    assert [node.name for node in operations.nodes if node.op == "placeholder"] == ["a", "b"]


def test_models_that_cannot_be_copied():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    prune.random_unstructured(model[0], "weight", 0.5)
    with pytest.raises(TraceError, match=r"Sequential cannot be copied: .*made plain first"):
        trace_operations(model, images().float())
    prune.remove(model[0], "weight")
    trace_operations(model, images().float())


def test_lazy_models_are_refused():
    with pytest.raises(
        TraceError, match="Sequential has lazy layers without weights yet; run it once"
    ):
        trace_operations(nn.Sequential(nn.LazyConv2d(4, 3)), images().float())


def test_a_replaced_forward_is_followed():
    model = Wrapped(lambda m, x: x).double()
    model.forward = lambda x: x.flip(1)
    assert [node.name for node in trace_operations(model, images()).nodes] == [
        "x",
        "flip",
        "output",
    ]


def test_nodes_are_fx_nodes_in_execution_order():
    operations = trace(lambda m, x: m.norm(m.conv(x)))
    assert all(isinstance(node, fx.Node) for node in operations.nodes)
    assert [node.op for node in operations.nodes] == [
        "placeholder",
        "call_module",
        "call_module",
        "output",
    ]


def test_forward_that_assigns_a_buffer_is_refused_by_name():
    class Averages(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.register_buffer("ema", torch.zeros(4))

        def forward(self, x):
            out = self.conv(x)
            self.ema = 0.9 * self.ema + 0.1 * out.detach().mean(dim=(0, 2, 3))
            return out.mean(dim=(2, 3))

    with pytest.raises(TraceError, match="forward of Averages assigns ema anew"):
        trace_channels(Averages(), torch.zeros(1, 1, 8, 8))


def test_names_of_layers_may_be_anything():
    net = nn.Sequential()
    net.add_module('a"b', nn.Conv2d(3, 4, 3))
    net.add_module("head", nn.Conv2d(4, 2, 1))
    assert [group.name for group in trace_channels(net, images().float()).prunable] == ['a"b']


VIEWS = {
    "itself": lambda w: w,
    "data": lambda w: w.data,
    "detached": lambda w: w.detach(),
    "row": lambda w: w[0],
    "flat": lambda w: w.data.view(-1),
    "turned": lambda w: w.transpose(0, 1).detach()[1:],
}
WRITES = {
    "imul": lambda w: w.mul_(1.5),
    "copy_": lambda w: w.copy_(w / w.norm()),
    "clamp_": lambda w: w.clamp_(-1, 1),
    "iadd": lambda w: operator.iadd(w, 1.0),
    "setitem": lambda w: operator.setitem(w, 0, 0.0),
    "exp": lambda w: torch.exp(w, out=w),
    "constant_": lambda w: nn.init.constant_(w, 1.0),
}


class Writing(nn.Module):
    """Does something with one of its parameters before it is used."""

    def __init__(self, act):
        super().__init__()
        self.act, self.one, self.two = act, nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        self.act(self)
        return self.two(self.one(x).relu())


@pytest.mark.parametrize("name", ["one.weight", "two.weight"])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("view", VIEWS)
def test_parameters_that_forward_writes_to_are_refused_by_name(view, write, name):
    def act(model):
        with torch.no_grad():
            WRITES[write](VIEWS[view](model.get_parameter(name)))

    model = Writing(act)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        TraceError,
        match=rf"Writing writes to the parameter {name} in place \(.*{write}.*test_trace",
    ):
        trace_channels(model, images().float())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def replaced(model):
    model.one.weight.data = model.one.weight * 2


def test_parameters_whose_data_forward_replaces_are_refused_by_name():
    with pytest.raises(
        TraceError, match=r"the parameter one.weight in place \(\.data =, .*test_trace"
    ):
        trace_channels(Writing(replaced), images().float())


@pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
@pytest.mark.parametrize("view", VIEWS)
def test_parameters_that_forward_reads_are_no_obstacle(view):
    def act(model):
        (VIEWS[view](model.one.weight) * 2).add_(1).sum()

    graph = trace_channels(Writing(act), images().float())
    assert [group.name for group in graph.groups] == ["one", "two"]


@pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
def test_what_only_training_writes_to_is_no_obstacle():
    def act(model):
        if model.training:
            with torch.no_grad():
                model.two.bias.clamp_(-1, 1)

    graph = trace_channels(Writing(act), images().float())
    assert [group.name for group in graph.prunable] == ["one"]
