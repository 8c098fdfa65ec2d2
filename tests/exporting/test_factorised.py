"""Exports of networks whose layers are factorised, before and after pruning."""

import json

import pytest
import torch
from torch import nn

from abcsearch import rank_channels, slice_model, trace_channels
from abcsearch.errors import ExportError
from abcsearch.exporting import export, load
from abcsearch.models.resnet import SmallResNet
from abcsearch.transforms.factors import METHODS
from abcsearch.transforms.low_rank import low_rank
from tests.records import rewrite

X = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def resnet(classes=5):
    return SmallResNet(in_channels=3, classes=classes, widths=(8, 12), depths=(2, 1))


def pruned(model):
    graph = trace_channels(model, X)
    space = graph.space(levels=("filter", "stage", "block"))
    return slice_model(model, graph, (*space.uniform(0.6)[:-1], 0), rank_channels(model, graph))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = resnet().eval()
    for tensor in model.buffers():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_factorised_and_pruned_in_either_order_comes_back_bit_for_bit(tmp_path, trained, method):
    first = low_rank(trained, X, method=method, ranks=0.7)
    assert first.factors
    chains = {
        "factorised": first.model,
        "then pruned": pruned(low_rank(trained, X, method=method, ranks="full").model),
        "pruned first": low_rank(pruned(trained), X, method=method, ranks=0.7).model,
    }
    for name, model in chains.items():
        export(model, tmp_path / name, example_input=X, constructor=resnet)
        back = load(tmp_path / name)
        assert torch.equal(back(X), model(X)), name
        # What has come back is exported again from the first constructor.
        export(back, tmp_path / f"{name} again", example_input=X, constructor=resnet)
        assert torch.equal(load(tmp_path / f"{name} again")(X), model(X))


def test_formats_of_others(tmp_path, trained):
    pytest.importorskip("onnxruntime")
    made = low_rank(trained, X, ranks=0.7)
    for name in ("small.onnx", "small.pt2"):
        done = export(made.model, tmp_path / name, example_input=X)
        assert done.difference < 1e-4 * done.largest


def test_networks_without_factors_have_the_plan_of_before(tmp_path, trained):
    export(pruned(trained), tmp_path / "plain", example_input=X, constructor=resnet)
    assert "factorised" not in json.loads((tmp_path / "plain/plan.json").read_text())


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([], "factorised is \\[\\]"),
        ({"stem": "spatial"}, "does not build the network"),
        ({"nowhere": "spatial"}, "nowhere is nothing, no layer that low rank splits"),
        ({"classifier": "sideways"}, "factorised: classifier is 'sideways'"),
        ({"": "spatial"}, "factorised:  is 'spatial'"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, trained, table, words):
    export(
        low_rank(trained, X, ranks=0.7).model,
        tmp_path / "export",
        example_input=X,
        constructor=resnet,
    )
    rewrite(tmp_path / "export/plan.json", {"factorised": table}, kind="export")
    with pytest.raises(ExportError, match=words):
        load(tmp_path / "export")


def test_a_constructor_that_factorises_itself(tmp_path):
    torch.manual_seed(0)
    made = ready()
    export(made, tmp_path / "export", example_input=X, constructor=ready)
    assert torch.equal(load(tmp_path / "export")(X), made(X))


def ready():
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(800, 4)
    )
    return low_rank(layers.eval(), X, ranks={"1": 5}).model
