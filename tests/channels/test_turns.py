"""Latency: median forward times, and everything as it was afterwards."""

import statistics
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from abcsearch.channels import turns
from abcsearch.channels.turns import measure_latency, torch_threads
from abcsearch.errors import ModelError


class Taking(nn.Module):
    """Takes so many seconds of a clock, and those of what is called in it."""

    def __init__(self, clock, seconds, inner=None):
        super().__init__()
        self.clock, self.seconds, self.inner = clock, seconds, inner or nn.Identity()

    def forward(self, x):
        self.clock.seconds += self.seconds
        return self.inner(x)


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes forward as it is told, whatever the machine does meanwhile."""
    told = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(turns, "_reading", lambda: (told.seconds, told.seconds, told.seconds, 0))
    monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=lambda: told.seconds))
    return told


class Counting(nn.Module):
    def __init__(self, fails_at=None):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.seen, self.fails_at = [], fails_at

    def forward(self, x):
        self.seen.append(
            (self.training, torch.is_inference_mode_enabled(), torch.get_num_threads())
        )
        if len(self.seen) == self.fails_at:
            raise RuntimeError("out of memory")
        return self.norm(x)


def test_models_take_turns_and_medians_are_in_milliseconds(monkeypatch):
    order = []
    durations = iter([9.0, 9.0, 0.001, 0.5, 0.003, 0.7, 0.002, 0.6])

    def timed(model, example):
        order.append(model)
        return next(durations)

    monkeypatch.setattr(turns, "_timed", timed)
    one, two = nn.Identity(), nn.Identity()
    found = measure_latency([one, two], torch.zeros(1), repeats=3, warmup=1)
    assert found == pytest.approx([2.0, 600.0])
    assert order == [one, two] * 4
    assert statistics.median([0.5, 0.7, 0.6]) == 0.6


def test_a_pass_takes_what_the_clock_says(clock):
    found = measure_latency([Taking(clock, 0.001), Taking(clock, 0.25)], torch.zeros(1), repeats=5)
    assert found == pytest.approx([1.0, 250.0])


@pytest.mark.parametrize(
    ("passed", "counts"),  # on the wall, of the process, of the thread; how often it waited
    [
        ((5.0, 1.0, 1.0, 0), 1.0),  # others had the processor meanwhile
        ((1.0, 1.0, 1.0, 0), 1.0),
        ((0.6, 1.0, 0.5, 0), 0.6),  # two threads computed
        ((5.0, 2.0, 1.0, 0), 5.0),
        ((5.0, 1.0, 1.0, 1), 5.0),  # it waited for something else
        ((5.0, 1.0, 1.0, float("nan")), 5.0),  # the system does not say whether
    ],
)
def test_waiting_for_a_processor_does_not_count_where_one_thread_computes(
    monkeypatch, passed, counts
):
    readings = iter([(0.0, 0.0, 0.0, 0), passed])
    monkeypatch.setattr(turns, "_reading", lambda: next(readings))
    (found,) = measure_latency([nn.Identity()], torch.zeros(1), repeats=1, warmup=0)
    assert found == pytest.approx(1000 * counts)


def test_a_pass_that_waits_takes_as_long_as_on_the_wall():
    class Waiting(nn.Module):
        def forward(self, x):
            time.sleep(0.02)
            return x

    assert measure_latency([Waiting()], torch.zeros(1), repeats=1, warmup=0)[0] >= 20


def test_a_real_pass_takes_time():
    assert measure_latency([nn.Linear(400, 400)], torch.zeros(8, 400), repeats=5)[0] > 0


@pytest.mark.parametrize("fails_at", [None, 3])
def test_modes_threads_and_statistics_are_put_back(fails_at):
    model = Counting(fails_at).train()
    model.norm.eval()
    other = Counting()
    before = torch.get_num_threads()
    if fails_at:
        with pytest.raises(RuntimeError, match="out of memory"):
            measure_latency([model, other], torch.ones(2, 3, 2, 2), threads=1, repeats=3)
    else:
        measure_latency([model, other], torch.ones(2, 3, 2, 2), threads=1, repeats=3, warmup=2)
        assert len(model.seen) == 5
    assert set(model.seen) == {(False, True, 1)}
    assert (model.training, model.norm.training, other.norm.training) == (True, False, True)
    assert model.norm.running_mean.tolist() == other.norm.running_mean.tolist() == [0, 0, 0]
    assert torch.get_num_threads() == before
    assert not torch.is_inference_mode_enabled()


def test_threads_are_put_back_after_an_exception():
    before = torch.get_num_threads()
    with pytest.raises(IndexError), torch_threads(before + 1):
        torch.zeros(torch.get_num_threads())[before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("arguments", [{"threads": 0}, {"repeats": 0}, {"warmup": -1}])
def test_settings_out_of_range(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(
        ModelError, match=f"latency needs at least 1 thread, .* found .*{name}={value}"
    ):
        measure_latency([nn.Identity()], torch.zeros(1), **arguments)
