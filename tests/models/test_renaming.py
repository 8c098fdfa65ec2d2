"""Public checkpoints: networks written by others' conventions load into ours and answer the same."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from abcsearch.errors import CheckpointError
from abcsearch.models.registry import MODELS
from abcsearch.models.renaming import RENAMINGS, own_names
from abcsearch.models.resnet import SmallResNet
from abcsearch.rng import torch_seeded
from abcsearch.runs.disk.weights import load_checkpoint

BENCHMARK = Path(__file__).parents[2] / "experiments" / "benchmarks" / "checkpoints.py"
SIZES = {"widths": (4, 8, 16), "depths": (1, 2, 1)}


class ForeignBlock(nn.Module):
    def __init__(self, inputs, outputs, projection):
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if projection and self.stride == 2:
            conv = nn.Conv2d(inputs, outputs, 1, 2, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.stride == 2:
            quarter = out.shape[1] // 4
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
        return F.relu(out + x)


class Foreign(nn.Module):
    """A CIFAR ResNet with the names of public repositories."""

    def __init__(self, *, projection, last):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(ForeignBlock(4, 4, projection))
        self.layer2 = nn.Sequential(ForeignBlock(4, 8, projection), ForeignBlock(8, 8, projection))
        self.layer3 = nn.Sequential(ForeignBlock(8, 16, projection))
        self.last = last
        self.add_module(last, nn.Linear(16, 10))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)

    def forward(self, x):
        out = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return getattr(self, self.last)(F.avg_pool2d(out, out.shape[3]).flatten(1))


def foreign(**options):
    with torch_seeded(0, "init"):
        return Foreign(**options).eval()


def without_counts(state):
    return {
        name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")
    }


def parallel(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


FORMATS = {
    # repository: (options of the foreign network, what its files look like)
    "akamaster": (
        {"projection": False, "last": "linear"},
        lambda state: {"state_dict": parallel(without_counts(state)), "best_prec1": 91.7},
    ),
    "chenyaofo": ({"projection": True, "last": "fc"}, lambda state: state),
    "distiller": (
        {"projection": True, "last": "fc"},
        lambda state: {
            "arch": "resnet",
            "epoch": 179,
            "state_dict": parallel(without_counts(state)),
        },
    ),
    "adapted": ({"projection": False, "last": "linear"}, lambda state: state),
}


@pytest.mark.parametrize("source", FORMATS)
def test_public_resnets_load_and_give_the_same_logits(tmp_path, source):
    options, wrap = FORMATS[source]
    theirs = foreign(**options)
    torch.save(wrap(theirs.state_dict()), tmp_path / "w.pth")
    ours = SmallResNet(
        in_channels=3, shortcut="projection" if options["projection"] else "pad", **SIZES
    ).eval()
    load_checkpoint(ours, tmp_path / "w.pth")
    images = 3 * torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
        assert theirs(images).std(dim=0).min() > 1e-2


def test_the_other_shortcut_is_refused_with_the_names_in_the_file(tmp_path):
    torch.save(parallel(foreign(projection=True, last="fc").state_dict()), tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(SmallResNet(in_channels=3, shortcut="pad", **SIZES), tmp_path / "w.pth")
    for word in (
        "unexpected: stages.1.0.shortcut.0.weight (layer2.0.downsample.0.weight in the file)",
        "right options?",
    ):
        assert word in str(caught.value)
    torch.save(foreign(projection=False, last="fc").state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"missing: stages\.1\.0\.shortcut\.0\.weight"):
        load_checkpoint(SmallResNet(in_channels=3, **SIZES), tmp_path / "w.pth")


def test_another_size_is_refused_with_both_shapes(tmp_path):
    torch.save(foreign(projection=False, last="fc").state_dict(), tmp_path / "w.pth")
    other = SmallResNet(in_channels=1, shortcut="pad", **SIZES)
    kept = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(
        CheckpointError,
        match=r"conv\.weight \(conv1\.weight in the file\) \(4, 3, 3, 3\) \(the model",
    ):
        load_checkpoint(other, tmp_path / "w.pth")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in other.state_dict().items())


def test_two_names_for_one_weight_are_refused(tmp_path):
    state = foreign(projection=False, last="fc").state_dict()
    torch.save({**state, "linear.weight": state["fc.weight"] + 1}, tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError,
        match=r"linear\.weight .* twice: as fc\.weight and as linear\.weight; remove",
    ):
        load_checkpoint(SmallResNet(in_channels=3, shortcut="pad", **SIZES), tmp_path / "w.pth")


def test_names_of_other_classes_and_names_like_them_stay():
    names = ["conv1.weight", "layer1.0.conv1.weight", "fc.bias"]
    assert own_names(nn.Linear(1, 1), names) == {name: name for name in names}
    strange = ["layer0.x", "my_conv1.weight", "xfc.bias", "stages.0.0.conv1.weight", "layer1x.0"]
    assert own_names(SmallResNet(), strange) == {name: name for name in strange}


def test_subclasses_have_the_rules_of_their_class():
    class Mine(SmallResNet):
        pass

    assert (
        own_names(Mine(), ["layer12.0.downsample.1.bias"]).popitem()[1]
        == "stages.11.0.shortcut.1.bias"
    )


def test_no_rule_touches_a_name_of_our_own():
    for make in MODELS.values():
        with torch.device("meta"):
            model = make()
        names = model.state_dict()
        assert own_names(model, names) == {name: name for name in names}


def test_rules_of_the_users_own_network_are_used(tmp_path, monkeypatch):
    class Mine(nn.Linear):
        pass

    monkeypatch.setitem(RENAMINGS, Mine, ((r"^head\.", ""),))
    model = Mine(2, 3)
    torch.save({"head.weight": torch.ones(3, 2), "head.bias": torch.zeros(3)}, tmp_path / "w.pth")
    load_checkpoint(model, tmp_path / "w.pth")
    assert model.weight.sum() == 6


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_of_checkpoints", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_benchmark_names_what_is_missing_and_ends(benchmark, tmp_path, capsys):
    (tmp_path / "weights" / "akamaster").mkdir(parents=True)
    (tmp_path / "weights" / "akamaster" / "resnet20-12fca82f.th").touch()
    assert benchmark.main(["--data", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "missing: cifar10-jpeg.tar.xz, weights/akamaster/resnet56-4bfd9763.th, " in err
    assert "resnet20-12fca82f" not in err
    assert benchmark.main(["--data", str(tmp_path / "nowhere")]) == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err


def test_the_benchmarks_networks_can_be_built(benchmark):
    for checkpoint in benchmark.CHECKPOINTS:
        with torch.device("meta"):
            MODELS[checkpoint.model](**checkpoint.options)


def unused(model, path, channels, scale):
    """Zeroes what a block's second convolution sees of some channels, and scales the weights that compute them."""
    block = model.get_submodule(path)
    with torch.no_grad():
        block.conv2.weight[:, channels] = 0
        block.conv1.weight[channels] *= scale
    return model


def trained():
    """A residual network whose batch norms are not the identity."""
    with torch_seeded(1, "init"):
        model = SmallResNet(in_channels=3, **SIZES).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                nn.init.normal_(module.bias)
    return model.double()


def test_unused_channels_go_and_no_output_changes(benchmark):
    model = unused(unused(trained(), "stages.1.0", [1, 6], 0.01), "stages.2.0", [0, 3, 15], 0.01)
    images = torch.rand(8, 3, 8, 8, dtype=torch.float64)
    shrunk = benchmark.without_unused(model, images[:1])
    assert shrunk.rows == (("stages.1.0.conv1", 8, 2, 2), ("stages.2.0.conv1", 16, 3, 3))
    assert shrunk.model.get_submodule("stages.1.0").conv1.out_channels == 6
    assert shrunk.model.get_submodule("stages.2.0").conv2.in_channels == 13
    with torch.no_grad():
        torch.testing.assert_close(shrunk.model(images), model(images), rtol=0, atol=1e-12)


def test_unused_channels_that_l1_ranks_before_others_stay(benchmark):
    model = unused(unused(trained(), "stages.1.0", [2], 0.01), "stages.1.0", [5], 100)
    images = torch.rand(8, 3, 8, 8, dtype=torch.float64)
    shrunk = benchmark.without_unused(model, images[:1])
    assert shrunk.rows == (("stages.1.0.conv1", 8, 2, 1),)
    with torch.no_grad():
        torch.testing.assert_close(shrunk.model(images), model(images), rtol=0, atol=1e-12)


def test_one_channel_stays_where_all_are_unused(benchmark):
    model = unused(trained(), "stages.0.0", list(range(4)), 1)
    shrunk = benchmark.without_unused(model, torch.rand(1, 3, 8, 8, dtype=torch.float64))
    assert shrunk.rows == (("stages.0.0.conv1", 4, 3, 3),)


def test_channels_without_weights_of_their_own_are_still_seen(benchmark):
    # Computed by zeros, and yet batch norm makes a constant of them that the next layer sees.
    model = trained()
    with torch.no_grad():
        model.stages[0][0].conv1.weight[1] = 0
    assert benchmark.without_unused(model, torch.rand(1, 3, 8, 8, dtype=torch.float64)).rows == ()
