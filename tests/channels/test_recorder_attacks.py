"""Networks that hide things from the recorder: never a wrong slice, never another error, nothing left changed."""

import collections
import types
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.errors import TraceError
from abcsearch.example import Example
from tests.channels.oracle import images, scrambled

C = 8


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class Net(nn.Module):
    """Two convolutions, and something that a test wants to do with what comes out."""

    def __init__(self, finish):
        super().__init__()
        self.finish, self.one, self.two = finish, nn.Conv2d(3, C, 3), nn.Conv2d(C, 4, 1)

    def forward(self, x):
        return self.finish(self.two(self.one(x).relu()))


@dataclass(slots=True)
class Slotted:
    """What has no `__dict__`."""

    value: object


class Knot:
    """What refers to itself."""

    def __init__(self, value):
        self.value, self.me = value, self


RESULTS = {
    "slots": Slotted,
    "itself": Knot,
    "deque": lambda y: collections.deque([y]),
    "set": lambda y: {y},
    "values": lambda y: {"y": y}.values(),
    "mapping": lambda y: collections.UserDict(y=y),
    "nested": lambda y: [Slotted((Knot(y), None))],
}


@pytest.mark.parametrize("kind", RESULTS)
@pytest.mark.parametrize("check", [True, False])
def test_outputs_keep_their_channels_whatever_holds_them(kind, check):
    graph = trace_channels(scrambled(Net(RESULTS[kind])), images(1), check=check)
    assert [group.name for group in graph.prunable] == ["one"]


@pytest.mark.parametrize(
    "finish", [lambda y: (z for z in [y]), lambda y: map(abs, [y]), lambda y: lambda: y]
)
def test_results_that_hide_their_tensors_are_refused(finish):
    with pytest.raises(TraceError, match="hides the tensors"):
        trace_channels(scrambled(Net(finish)), images(1))


class Wrong(nn.Module):
    """Divides by a number of channels in a way that no recorder sees, between what a test asks for."""

    def __init__(self, start=lambda m, x: x, end=lambda m, y: y, width=C):
        super().__init__()
        self.start, self.end = start, end
        self.one, self.two = nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 3, padding=1)
        self.three = nn.Conv2d(width, 4, 1)
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x):
        y = F.silu(self.one(self.start(self, x)))
        return self.end(self, self.three(F.silu(self.two(y / y.shape.numel()))))


def cast(m, x):
    return x.float()


def bounded(m, y):
    return torch.cat([y, torch.full_like(y, -torch.inf)], 1)


def counting(m, x):
    m.runs += 1
    return x * m.runs


def spectrum(m, y):
    return torch.fft.rfft2(y)


HIDING = {
    "types": {"start": cast},
    "infinite": {"end": bounded},
    "state": {"start": counting},
    "complex": {"end": spectrum},
}


@pytest.mark.parametrize("how", HIDING)
@pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
def test_the_self_check_finds_what_is_wrong_whatever_else_forward_does(how):
    graph = trace_channels(scrambled(Wrong(**HIDING[how])).float(), images(1).float())
    assert [group.name for group in graph.prunable] == ["two"]
    assert any("one: self-check: the network without some" in text for text in graph.unsupported)


class Plain(Wrong):
    """Without the mistake."""

    def forward(self, x):
        return self.end(self, self.three(F.silu(self.two(F.silu(self.one(self.start(self, x)))))))


@pytest.mark.parametrize("how", HIDING)
@pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
def test_the_self_check_finds_nothing_where_nothing_is_wrong(how):
    graph = trace_channels(scrambled(Plain(**HIDING[how], width=64)).float(), images(1).float())
    assert [group.name for group in graph.prunable] == ["one", "two"]


@pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
def test_what_random_networks_cannot_do_without_channels_is_found():
    def noisy(m, y):
        return F.dropout(y, 0.5, training=True)

    class Picky(Plain):
        def forward(self, x):
            return super().forward(x) * {"8": 1.0}[str(self.one(x).shape[1])]

    assert len(trace_channels(scrambled(Plain(end=noisy)), images(1)).prunable) == 2
    graph = trace_channels(scrambled(Picky(end=noisy)), images(1))
    assert [group.name for group in graph.prunable] == ["two"]


@pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
@pytest.mark.parametrize("when", [2, 3, 4])
def test_a_forward_that_fails_later_on_is_a_reason_not_an_error(when):
    calls = []

    def failing(m, x):
        calls.append(1)
        if len(calls) >= when:
            raise RuntimeError("not again")
        return x

    graph = trace_channels(scrambled(Wrong(start=failing)), images(1))
    assert "one" not in {group.name for group in graph.prunable}
    assert any("not again" in text for text in graph.unsupported)


@pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
def test_complex_outputs_are_compared_up_to_rounding():
    def seen(m, y):
        return torch.fft.rfft2(y.mean(1))

    graph = trace_channels(scrambled(Plain(end=seen)), images(1), fixed=["three"])
    assert [group.name for group in graph.prunable] == ["one", "two"]


@pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
@pytest.mark.parametrize("check", [True, False])
def test_the_users_network_stays_as_it_is_where_a_copy_still_calls_it(check):
    class Closed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.norm, self.two = (
                nn.Conv2d(3, C, 1),
                nn.BatchNorm2d(C),
                nn.Conv2d(C, 2, 1),
            )
            self.first = lambda x: self.norm(self.one(x))  # copies share it

        def forward(self, x):
            return self.two(self.first(x))

    model = Closed().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace_channels(model, images(1).float(), check=check)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.norm.training


def test_the_forward_of_an_instance_says_what_it_takes():
    def scaled(m, image, *, factor):
        return Plain.forward(m, image) * factor

    model = scrambled(Plain())
    model.forward = types.MethodType(scaled, model)
    graph = trace_channels(model, Example((images(1),), {"factor": 2.0}))
    assert [group.name for group in graph.prunable] == ["one", "two"]
    with pytest.raises(TraceError, match=r"takes 1 inputs \(image\) and keywords \(factor\)"):
        trace_channels(model, images(1))


@dataclass
class Request:
    """With a field that is not given."""

    image: torch.Tensor
    scale: float = field(default=2.0, init=False)


class Options(dict):
    """A dict that is made in another way."""

    def __init__(self, name, **items):
        super().__init__(**items)
        self.name = name


CONTAINERS = {
    "field": lambda x: [Request(x)],
    "defaultdict": lambda x: collections.defaultdict(list, {0: Request(x)}),
    "dict": lambda x: (options := Options("a"), options.update({0: Request(x)}))[0],
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_examples_may_be_in_any_container(kind):
    class Asking(Plain):
        def forward(self, requests):
            return super().forward(requests[0].image) * requests[0].scale

    given = CONTAINERS[kind](images(1))
    graph = trace_channels(scrambled(Asking()), Example((given,)))
    assert [group.name for group in graph.prunable] == ["one", "two"]


def test_sparse_examples_are_refused_with_a_message():
    with pytest.raises(TraceError, match="sparse"):
        trace_channels(scrambled(Plain()), images(1).to_sparse())
