"""Where networks are timed: torch, ONNX Runtime, a function of the user's own; and what is none of these."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.channels import runtimes
from abcsearch.channels.latency import in_turns
from abcsearch.channels.options import LatencyOptions
from abcsearch.channels.runtimes import check_runtime, prepared_pass
from abcsearch.errors import ModelError
from abcsearch.example import Example
from tests import own_runtimes


class Clocked(nn.Module):
    """Takes so many seconds of a clock."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds, self.seen = clock, seconds, []

    def forward(self, x):
        self.seen.append(
            (self.training, torch.is_inference_mode_enabled(), torch.get_num_threads())
        )
        self.clock.seconds += self.seconds
        return x


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes forward as it is told, whatever the machine does meanwhile; a thread's own stands still."""
    told = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(
        runtimes,
        "time",
        SimpleNamespace(
            perf_counter=lambda: told.seconds, thread_time=lambda: 1000 + told.seconds / 2
        ),
    )
    return told


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4)).eval()


@pytest.mark.parametrize(("threads", "share"), [(1, 0.5), (2, 1.0)])
def test_one_thread_is_timed_by_what_it_computes_and_several_by_the_wall(clock, threads, share):
    one, full = Clocked(clock, 0.01), Clocked(clock, 0.04)
    turns = in_turns([one], full, torch.zeros(1, 3), LatencyOptions(threads=threads, repeats=3))
    assert turns.shares == pytest.approx([0.25])
    assert turns.full_ms == pytest.approx(40 * share)
    assert set(one.seen) == {(False, True, threads)}


def test_a_slow_minute_of_the_machine_changes_no_share(clock, monkeypatch):
    slow = iter([1.0] * 4 + [3.0] * 4 + [1.0] * 100)
    one, full = Clocked(clock, 0.01), Clocked(clock, 0.02)
    forward = Clocked.forward

    def slowed(self, x):
        if self is full:
            self.factor = next(slow)
        clock.seconds += self.seconds * (full.factor - 1)
        return forward(self, x)

    monkeypatch.setattr(Clocked, "forward", slowed)
    turns = in_turns([one], full, torch.zeros(1, 3), LatencyOptions(repeats=12, threads=2))
    assert turns.shares == pytest.approx([0.5])


@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_runtime_computes_the_same_network(network, batch, monkeypatch):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    import onnxruntime

    seen = []
    run = onnxruntime.InferenceSession.run

    def spied(self, names, feed):
        seen.append((feed, run(self, names, feed)))
        return seen[-1][1]

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", spied)
    images = torch.rand(batch, 3, 6, 6)
    took = prepared_pass(network, images, LatencyOptions(runtime="onnxruntime", batch=batch))()
    assert took > 0
    ((feed, (output,)),) = seen
    assert [x.shape for x in feed.values()] == [(batch, 3, 6, 6)]
    torch.testing.assert_close(torch.from_numpy(output), network(images).detach())


def test_onnx_runtime_takes_several_inputs_by_their_names():
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

    class Two(nn.Module):
        def forward(self, image, scale):
            return image * scale + 1

    example = Example((torch.rand(2, 3),), {"scale": torch.rand(2, 1)})
    assert prepared_pass(Two(), example, LatencyOptions(runtime="onnxruntime"))() > 0


def test_a_network_that_cannot_be_written_as_onnx_says_so():
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.svd(x)[1]

    options = LatencyOptions(runtime="onnxruntime")
    with pytest.raises(ModelError, match=r'cannot write the network .*runtime = "torch", or with'):
        prepared_pass(Odd(), torch.rand(1, 3, 3), options)


def test_a_runtime_that_is_not_installed_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"not installed \(onnx, .*pip install 'abcsearch\[onnx\]'"
    ):
        check_runtime(LatencyOptions(runtime="onnxruntime"))
    check_runtime(LatencyOptions(runtime="torch"))


def own(name):
    return LatencyOptions(runtime=f"tests.own_runtimes:{name}", threads=2, batch=2)


def test_a_function_of_the_users_own_says_how_long_a_pass_takes(network):
    own_runtimes.calls.clear()
    run = prepared_pass(network, torch.zeros(2, 3, 6, 6), own("stepped"))
    # 8 * 8 * 9 products at each of 36 places of 2 images, and 8 * 8 of the linear layer
    assert run() == run() == pytest.approx(1e-4 + 2e-9 * (64 * 9 * 36 + 64))
    ((module, batch, threads),) = own_runtimes.calls
    assert (module, tuple(batch.shape), threads) == (network, (2, 3, 6, 6), 2)
    smooth = prepared_pass(network, torch.zeros(2, 3, 6, 6), own("smooth"))
    assert smooth() == pytest.approx(1e-4 + 2e-9 * (24 * 9 * 36 + 32))


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_seconds_may_be_a_number_of_numpys(kind, network, monkeypatch):
    monkeypatch.setattr(own_runtimes, "numpys", lambda *_: kind(2), raising=False)
    run = prepared_pass(network, torch.zeros(1, 1, 8, 8), own("numpys"))
    assert (run(), type(run())) == (2.0, float)


def test_a_function_that_it_returns_is_timed(clock):
    network = Clocked(clock, 0.25)
    assert prepared_pass(network, torch.zeros(1), own("running"))() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("negative", "returned -1.0; it returns a function without arguments"),
        ("nothing", "returned None; .* or the seconds of one pass: a number above 0"),
        ("endless", "returned nan"),
        ("broken", "failed: OSError: the phone is not connected; it is called with"),
        ("breaking", "failed: OSError: the phone is not connected"),
        ("STEP", "is not a class or function but 8"),
        ("steped", "has no 'steped'; did you mean 'tests.own_runtimes:stepped'"),
    ],
)
def test_a_function_that_does_not_keep_its_word_is_named(network, name, message):
    with pytest.raises(ModelError, match=f"runtime 'tests.own_runtimes:{name}' .*{message}"):
        prepared_pass(network, torch.zeros(2, 3, 6, 6), own(name))()


def test_a_name_of_no_runtime_is_refused():
    with pytest.raises(ModelError, match=r"unknown runtime 'onnx'; did you mean 'onnxruntime'"):
        LatencyOptions(runtime="onnx")
    with pytest.raises(ModelError, match=r"package\.module:function"):
        LatencyOptions(runtime="tensorrt")
