"""Networks that run on batches that lie row by row alone, as those whose forward flattens by `view`, go the whole way."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from abcsearch import (
    Budget,
    Data,
    Recipe,
    Sliced,
    export,
    finetune,
    load,
    rank_channels,
    score,
    search,
    slice_model,
    trace_channels,
    train,
)
from abcsearch.channels.latency import forward_times
from abcsearch.channels.layout import fit_layout, laid_out, lay_rows
from abcsearch.channels.options import LatencyOptions
from abcsearch.channels.turns import in_turns
from abcsearch.evaluation.adaptive_bn import AdaptiveBN, AdaptiveBNOptions
from abcsearch.example import ROWS, Example, in_rows, run_on, wants_rows
from abcsearch.rng import torch_seeded
from abcsearch.transforms.low_rank import low_rank


class Viewing(nn.Module):
    """As LeNet is written in a hundred tutorials."""

    def __init__(self, channels=2):
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 6, 3), nn.Conv2d(6, 8, 3)
        self.norm, self.hidden, self.head = nn.BatchNorm2d(8), nn.Linear(32, 12), nn.Linear(12, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.relu(self.norm(self.second(x)))
        return self.head(F.relu(self.hidden(x.view(x.size(0), -1))))


class Lines(Viewing):
    """The same for signals, which forward makes images of."""

    def forward(self, x):
        return super().forward(x.unflatten(2, (10, 10)).expand(-1, 2, -1, -1))


def viewing(kind=Viewing, **options):
    with torch_seeded(0, "layout"):
        return kind(**options)


def data_of(*shape):
    draws = torch.Generator().manual_seed(0)
    x, y = torch.randn(90, *shape, generator=draws), torch.arange(90) % 3
    return Data.from_tensors((x[:60], y[:60]), (x[60:], y[60:]), validation=0.3)


CASES = {
    "colours": (Viewing, {}, (2, 10, 10)),
    "grey": (Viewing, {"channels": 1}, (1, 10, 10)),
    "signals": (Lines, {}, (1, 100)),
}
QUICK = {"calibration_images": 32, "batch_size": 16}


@pytest.fixture(params=CASES, scope="module")
def case(request):
    kind, options, shape = CASES[request.param]
    return lambda: viewing(kind, **options), data_of(*shape), kind, options


def test_it_is_trained_scored_searched_exported_and_loaded(case, tmp_path):
    make, data, kind, options = case
    model, recipe = make(), Recipe(epochs=1, batch_size=16, lr=0.02)
    trained = train(model, data.train, recipe)
    del trained
    before = score(make(), data.test)
    assert before == score(make(), data.test)
    found = search(
        model,
        data,
        budget=Budget(macs=0.5),
        n_trials=3,
        run_dir=tmp_path / "run",
        searcher="random",
        criterion="taylor",
        evaluator={"name": "adaptive_bn", "repair": "sequential", **QUICK},
    )
    assert [d.name for d in found.task.space.dimensions] == ["first", "second", "hidden"]
    tuned = finetune(
        found.model(), data, Recipe(epochs=1, batch_size=16, distillation=0.5), teacher=model
    ).model
    wanted = score(tuned, data.test)
    for name in ("net", "net.onnx", "net.pt2"):
        export(
            tuned,
            tmp_path / name,
            example_input=data.example,
            constructor=kind,
            options=options if name == "net" else {},
        )
        assert score(load(tmp_path / name), data.test)["top1"] == wanted["top1"]
    low_rank(load(tmp_path / "net"), data.example, ranks=0.5)


def test_a_new_network_is_traced_evaluated_and_measured(case):
    make, data, *_ = case
    model, example = make().eval(), data.example
    graph = trace_channels(model, example)
    assert len(graph.prunable) == 3
    ranking = rank_channels(model, graph, "taylor", data=(data.train.images, data.train.labels))
    source = Sliced(model, graph, ranking)
    assert AdaptiveBN(source, data, AdaptiveBNOptions(**QUICK))((3, 4, 6), 0).fitness is not None
    sliced = slice_model(model, graph, (3, 4, 6), ranking)
    options = LatencyOptions(batch=2, repeats=1)
    assert in_turns([sliced], model, example, options).shares.shape == (1,)
    assert forward_times([make().eval(), sliced], example, threads=1, seconds=0.0)


def test_it_is_found_out_once_for_all_candidates(tiny_model, tiny_data, monkeypatch):
    model, runs = copy.deepcopy(tiny_model), []
    graph = trace_channels(model, tiny_data.example)
    source = Sliced(model, graph, rank_channels(model, graph))
    evaluator = AdaptiveBN(source, tiny_data, AdaptiveBNOptions(**QUICK))
    monkeypatch.setattr("abcsearch.channels.layout.laid", runs.append)
    full = [group.channels for group in graph.prunable]
    for taken in (1, 2):
        evaluator(tuple(max(1, count - taken) for count in full), 0)
    assert runs == []


def test_copies_and_slices_remember(case):
    make, data, *_ = case
    model = make().eval()
    graph = trace_channels(model, data.example)
    ranking = rank_channels(model, graph, "l1")
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        slice_model(model, graph, (3, 4, 6), ranking),
    ):
        assert wants_rows(other)
        laid_out(other)
        run_on(other, data.test.images[:2])


def test_others_stay_channels_last(tiny_model, tiny_data):
    model = copy.deepcopy(tiny_model)
    fit_layout(model, tiny_data.example)
    assert vars(model)[ROWS] is False
    laid_out(model)
    weight = next(p for p in model.parameters() if p.dim() == 4 and min(p.shape) > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    fit_layout(linear, torch.zeros(1, 4))
    assert ROWS not in vars(linear)


def test_the_network_itself_computes_and_trains_as_before(case):
    """Also where nothing can be differentiated when its layout is found out."""
    make, data, *_ = case
    model, x = make(), in_rows(data.test.images[:4])
    with torch.no_grad():
        before = lay_rows(make()).eval()(x)
    with torch.inference_mode():
        fit_layout(model, data.example)
    assert torch.equal(model.eval()(x), before)
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in make().named_parameters()
    ]
    model.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_statistics_and_draws_stay_as_they_are():
    model = viewing().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    fit_layout(model, torch.randn(2, 2, 10, 10, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.rand(1), wanted)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Erasing(Viewing):
    def forward(self, x):
        logits = super().forward(x)
        x.zero_()
        return logits


def test_images_stay_whatever_forward_does_with_them():
    x = torch.randn(2, 2, 10, 10).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    for given in (x, Example((x,))):
        fit_layout(viewing(Erasing), given)
    fit_layout(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(2, 2, 1)), x)
    assert torch.equal(x, before)


def test_what_does_not_run_in_either_way_is_left_to_others():
    model = viewing()
    fit_layout(model, torch.zeros(1, 5, 10, 10))
    assert ROWS not in vars(model)
    fit_layout(model, Example((torch.zeros(1, 2, 10, 10),)))
    assert wants_rows(model)
