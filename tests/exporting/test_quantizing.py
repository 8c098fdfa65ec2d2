"""Int8: about as accurate, smaller, and a file like others."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from abcsearch.budget import Budget
from abcsearch.data.registry import load_data
from abcsearch.data.splits import Data
from abcsearch.errors import ExportError
from abcsearch.exporting import export, load
from abcsearch.exporting.quantizing import quantize
from abcsearch.models.registry import Constructor
from abcsearch.rng import torch_seeded
from abcsearch.runs.entry import search
from abcsearch.training.finetuning import finetune
from abcsearch.training.loop import train
from abcsearch.training.recipe import Recipe
from abcsearch.training.scoring import score

pytest.importorskip("torchao", reason="torchao is not installed: pip install 'abcsearch[quantize]'")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A network that has been trained on digits, pruned and fine-tuned; and the digits."""
    data = load_data("digits")
    with torch_seeded(0, "init"):
        model = Constructor(
            name="small_resnet", options={"widths": [16, 32], "depths": [2, 1]}
        ).build()
    train(model, data.train, Recipe(epochs=8, batch_size=64, lr=0.05))
    result = search(
        model,
        data,
        budget=Budget(macs=0.5),
        n_trials=8,
        searcher="random",
        run_dir=tmp_path_factory.mktemp("run"),
    )
    return finetune(result.model(), data, Recipe(epochs=4, batch_size=64, lr=0.02)).model, data


@pytest.fixture(scope="module")
def quantised(pruned):
    return quantize(*pruned)


def test_a_pruned_network_in_int8_is_within_two_points(pruned, quantised):
    network, data = pruned
    before, after = score(network, data.test)["top1"], score(quantised, data.test)["top1"]
    assert before > 0.9
    assert abs(after - before) <= 0.02
    weights = [tensor for tensor in quantised.state_dict().values() if tensor.dtype == torch.int8]
    assert weights
    # 255 * 64 * 2 < 2**15: CPUs that add two products in 16 bits do not overflow.
    assert min(int(tensor.min()) for tensor in weights) >= -64
    assert 32 < max(int(tensor.max()) for tensor in weights) < 64
    assert not torch.equal(quantised(data.example), network(data.example))


def test_the_network_is_left_alone(pruned):
    network, data = pruned
    before, state = copy.deepcopy(network), torch.get_rng_state()
    quantize(network.train(), data, images=8)
    assert network.training
    network.eval()
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(network.state_dict().values(), before.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_an_int8_network_is_a_smaller_file_that_computes_the_same(pruned, quantised, tmp_path):
    network, data = pruned
    whole = export(network, tmp_path / "whole.pt2", example_input=data.example)
    made = export(quantised, tmp_path / "int8.pt2", example_input=data.example)
    assert made.difference == 0
    assert made.size < whole.size  # of so few weights most is the graph
    stored = [sum(t.nbytes for t in net.state_dict().values()) for net in (quantised, network)]
    assert stored[0] < 0.35 * stored[1]
    found = load(made)
    with torch.inference_mode():
        assert torch.equal(found(data.test.images), quantised(data.test.images))
    code = f"{made.how_to_load}; print(network(torch.rand(3, 1, 8, 8)).shape)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    again = export(found, tmp_path / "again.pt2", example_input=data.example)
    assert again.needs == made.needs


@pytest.fixture(scope="module")
def in_onnx(pruned, quantised, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("onnx") / "int8.onnx"
    return export(quantised, path, example_input=pruned[1].example, tolerance=0.05)


def test_an_int8_network_in_onnx_is_checked_with_a_wider_tolerance(pruned, quantised, in_onnx):
    _, data = pruned
    assert score(load(in_onnx), data.test)["top1"] == pytest.approx(
        score(quantised, data.test)["top1"], abs=0.01
    )


def test_onnxruntime_computes_every_convolution_in_integers(pruned, in_onnx, tmp_path):
    """Also those in front of residual additions and of the mean, whose outputs torchao would leave unrounded."""
    onnxruntime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    network, _ = pruned
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(in_onnx.path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert kinds.count("QLinearConv") == convolutions
    assert not {"Conv", "FusedConv", "Add"} & {*kinds}


class Shared(nn.Module):
    """One activation called three times, a concatenation, depthwise and plain convolutions without batch norm."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.relu, self.head = nn.ReLU(), nn.Linear(8, 2)

    def forward(self, x):
        x = self.relu(self.a(x))
        x = torch.cat([x, self.relu(self.b(x) + x)], dim=1)
        return self.head(self.relu(x).flatten(2).mean(dim=2))


def test_activations_that_are_called_several_times_and_concatenations_can_be_quantised(tiny_data):
    with torch_seeded(0, "init"):
        network = Shared().eval()
    found = quantize(network, tiny_data)
    with torch.inference_mode():
        expected = network(tiny_data.test.images)
        assert float((found(tiny_data.test.images) - expected).abs().max()) < 0.1 * float(
            expected.abs().max()
        )


def test_ranges_are_those_of_training_images_only(tiny_data):
    """Images of the other splits may be anything: the int8 network is the same."""
    with torch_seeded(0, "init"):
        network = Shared().eval()
    others = {
        part: type(tiny_data.test)(1000 * split.images, split.labels)
        for part, split in vars(tiny_data).items()
        if part in ("validation", "test")
    }
    strange = Data(name="strange", train=tiny_data.train, **others)
    one, other = quantize(network, tiny_data, images=20), quantize(network, strange, images=20)
    assert torch.equal(one(tiny_data.example), other(tiny_data.example))
    few = quantize(network, tiny_data, images=1)
    assert not torch.equal(one(tiny_data.test.images), few(tiny_data.test.images))


def test_mistakes_are_one_clear_error(tiny_data, tiny_model, monkeypatch):
    with pytest.raises(ExportError, match="at least 1 image, found images = 0"):
        quantize(tiny_model, tiny_data, images=0)
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e", None)
    with pytest.raises(ExportError, match=r"pip install 'abcsearch\[quantize\]'"):
        quantize(tiny_model, tiny_data)
