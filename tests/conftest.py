"""Small problems that many tests share."""

import contextlib
import functools
import gc
import os

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

from abcsearch.data.splits import Data
from abcsearch.models.resnet import SmallResNet
from abcsearch.rng import torch_seeded

# A busy machine is no mistake: neither a slow example nor slow draws of one.
settings.register_profile("abcsearch", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("abcsearch")

gc.disable()  # until all is imported: none of it goes again, and looking through it again and again takes seconds


def pytest_collection_finish():
    """Has later collections leave out what was imported."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item):
    """Skips what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU of CUDA")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _not_onto_the_disk():
    """Without waiting for disks, which takes a quarter of the time of tests of runs: here the power does not fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _key_of_the_tests(tmp_path_factory):
    """A key that is not the user's: tests sign what they write, and read what they call foreign."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("configuration")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_table_of_operators():
    """Exports to ONNX share torch's table of operators, which it makes anew for each: half of the time of one."""
    export = torch.onnx.export

    def exported(*arguments, **options):
        _share_the_table()
        return export(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", exported)
        yield


@functools.cache
def _share_the_table():
    """Has torch keep that table, if this version has it where it is known to be; importing it takes a second."""
    with contextlib.suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))


@pytest.fixture
def no_pictures(monkeypatch):
    """Reports without PNG files, which take most of their time."""
    for page, name in (
        ("report_page", "drawings"),
        ("front_page", "drawings"),
        ("compare_page", "compare_drawings"),
    ):
        monkeypatch.setattr(f"abcsearch.reporting.{page}.{name}", lambda _: {})


@pytest.fixture(scope="session")
def tiny_data():
    """Two classes of 6x6 noise with a bright half: learnt in a few steps."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 2
    images = torch.randn(240, 1, 6, 6, generator=draws)
    images[labels == 1, :, :3] += 2
    return Data.from_tensors(
        (images[:180], labels[:180]), (images[180:], labels[180:]), validation=0.25
    )


@pytest.fixture
def tiny_model():
    """A residual network with two stages, untrained, statistics not the default ones."""
    with torch_seeded(0, "init"):
        model = SmallResNet(in_channels=1, classes=2, widths=(6, 8), depths=(1, 1))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.add_(0.1)
    return model.eval()


TINY_CONFIG = """
n_trials = 24
baselines = ["uniform", "random"]
model = {name = "small_resnet", widths = [4, 6], depths = [1, 1]}
data = {name = "digits"}
pretrain = {epochs = 1, batch_size = 256}
budget = {macs = 0.5}
searcher = {name = "bee_colony", n_sources = 4}
evaluator = {name = "adaptive_bn", calibration_images = 64, batch_size = 64}
finetune = {epochs = 1, batch_size = 256, lr = 0.02}
"""


@pytest.fixture
def tiny_config(tmp_path):
    """A config of a whole run that takes a second or two."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_CONFIG)
    return path
