"""Precision: what this machine is slow in is said."""

import warnings

import pytest
import torch

from abcsearch.evaluation.adaptive_bn import AdaptiveBNOptions
from abcsearch.training.computing import find_device, slow_in_bf16
from abcsearch.training.recipe import Recipe
from tests.training.toys import network, stripes


@pytest.mark.parametrize("slow", [False, True])
def test_a_precision_that_would_take_ten_times_as_long_is_warned_of(slow, monkeypatch):
    monkeypatch.setattr("abcsearch.training.computing.slow_in_bf16", lambda: slow)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for precision in ("bf16", "float32"):
            for options in (Recipe, AdaptiveBNOptions):  # which are only read, here or elsewhere
                options(precision=precision, device="cpu")
            find_device("cpu", precision)
    assert len(said) == slow
    assert all("set precision to float32" in str(one.message) for one in said)
    assert all(one.filename == __file__ for one in said)


def test_whether_bf16_is_slow_is_what_torch_does():
    model, images = network(), stripes().images.to(torch.bfloat16)
    with torch.profiler.profile() as seen:
        model.bfloat16().conv(images.contiguous(memory_format=torch.channels_last))
    called = {event.key for event in seen.key_averages()}
    assert "aten::convolution" in called
    assert slow_in_bf16() == any("slow_conv" in name for name in called)
