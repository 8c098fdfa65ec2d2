"""Networks that hide things from the recorder: never a wrong slice, never another error, nothing left changed."""

import collections
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.errors import TraceError
from tests.channels.oracle import images, scrambled

C = 8


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


@pytest.mark.parametrize("finish", [lambda y: (z for z in [y]), lambda y: map(abs, [y]), lambda y: lambda: y])
def test_results_that_hide_their_tensors_are_refused(finish):
    with pytest.raises(TraceError, match="hides the tensors"):
        trace_channels(scrambled(Net(finish)), images(1))
