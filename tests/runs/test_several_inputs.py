"""A network of two inputs, of which an item of its data is a dict: the whole way, in Python and on the command line."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from abcsearch import (
    Budget,
    Data,
    Recipe,
    cli,
    export,
    finetune,
    load,
    score,
    search,
    trace_channels,
)
from abcsearch.channels.options import LatencyOptions
from abcsearch.channels.ranking import rank_channels
from abcsearch.data.named import DATASETS
from abcsearch.errors import ExampleError, ExportError, TraceError
from abcsearch.models.named import MODELS
from abcsearch.preparation.base import Trainer, run_preparation
from abcsearch.preparation.registry import make_preparation
from abcsearch.rng import torch_seeded
from abcsearch.runs.settings import SearchSettings
from abcsearch.runs.task import Task

pytest.importorskip("onnx")


class Both(nn.Module):
    """Looks at a picture, and at numbers that come with it."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.numbers = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Linear(3, 8)
        self.mixed, self.head = nn.Linear(14, 10), nn.Linear(10, 2)

    def forward(self, image, *, meta):
        seen = torch.relu(self.bn(self.conv(image))).mean(dim=(2, 3))
        logits = self.head(
            torch.relu(self.mixed(torch.cat([seen, torch.relu(self.numbers(meta))], 1)))
        )
        return {"logits": logits, "twice": 2 * logits}


class Items:
    """Brightness and numbers say the class together."""

    def __init__(self, count, seed):
        self.count, self.seed = count, seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        draws = np.random.default_rng([self.seed, index])
        label = index % 2
        image = draws.normal(label, 1.0, (1, 6, 6))
        return {
            "image": image,
            "meta": torch.full((3,), label - 0.5) + torch.from_numpy(draws.normal(0, 1, 3)),
        }, label


def items():
    return Items(120, 0), Items(40, 1)


@pytest.fixture(scope="module")
def data():
    return Data.of(*items(), validation=0.25)


@pytest.fixture(scope="module")
def model():
    with torch_seeded(0, "both"):
        return Both()


def test_searched_tuned_exported_and_loaded(model, data, tmp_path):
    options = {"batch_size": 30, "repair": "sequential"}
    found = search(
        model,
        data,
        budget=Budget(
            macs=0.6, latency_ms=10_000
        ),  # the best are inside of it on a busy machine too
        latency=LatencyOptions(repeats=1),
        n_trials=3,
        run_dir=tmp_path / "run",
        searcher="random",
        evaluator={"name": "adaptive_bn", **options},
    )
    assert {"conv", "numbers", "mixed"} <= set(found.widths)
    tuned = finetune(
        found.model(),
        data,
        Recipe(epochs=3, lr=0.1, batch_size=16, distillation=0.5),
        teacher=model,
    )
    assert tuned.after["neg_loss"] > tuned.before["neg_loss"]
    expected = [data.test.images[:7].run(tuned.model)[name] for name in ("logits", "twice")]
    for name in ("net", "net.onnx", "net.pt2"):
        export(tuned.model, tmp_path / name, example_input=data.example, constructor=Both)
        loaded = load(tmp_path / name)
        for key, wanted in zip(("logits", "twice"), expected, strict=True):
            torch.testing.assert_close(
                data.test.images[:7].run(loaded)[key], wanted, rtol=1e-4, atol=1e-5
            )
        assert score(loaded, data.test)["top1"] == tuned.after["top1"]


def test_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "both", Both)
    monkeypatch.setitem(DATASETS, "items", lambda: Data.of(*items(), validation=0.25))
    config, run = tmp_path / "both.toml", tmp_path / "run"
    config.write_text(
        'n_trials = 3\nbaselines = ["uniform"]\n[model]\nname = "both"\n[data]\nname = "items"\n[budget]\nmacs = 0.6\n'
        '[searcher]\nname = "random"\n[evaluator]\nname = "adaptive_bn"\nbatch_size = 30\n'
        "[pretrain]\nepochs = 2\nlr = 0.1\nbatch_size = 16\n"
        "[finetune]\nepochs = 1\nlr = 0.05\nbatch_size = 16\n"
    )

    def call(*arguments):
        made = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        assert made.exit_code == 0, made.output
        return made.output

    assert "image 1x6x6, meta 3" in call("search", config, "--dry-run")
    call("search", config, "--run-dir", run)
    call("finetune", run)
    for kind in ("safetensors", "pt2"):
        call("export", run, "--format", kind)
    call("report", run)
    plan = json.loads((run / "export" / "plan.json").read_text())
    assert plan["info"]["input"]["shape"] == {"image": [1, 6, 6], "meta": [3]}
    for made in (run / "export", run / "export" / "model.pt2"):
        assert "top1" in call("evaluate", made, "--data", config)


@pytest.mark.parametrize("criterion", ["taylor", "nisp", "curl", "apoz"])
def test_criteria_that_look_at_data_take_batches_of_several_inputs(data, criterion):
    class Plain(Both):
        def forward(self, image, *, meta):
            return super().forward(image, meta=meta)["logits"]

    with torch_seeded(0, "both"):
        network = Plain()
    graph = trace_channels(network, data.example)
    whole = (data.train.images, data.train.labels)
    batches = [
        ({"image": x.kwargs["image"], "meta": x.kwargs["meta"]}, y)
        for x, y in data.train.batches(64)
    ]
    one, two = (rank_channels(network, graph, criterion, data=given) for given in (whole, batches))
    for a, b in zip(one.scores, two.scores, strict=True):
        np.testing.assert_allclose(a, b)


@pytest.mark.parametrize(
    ("example", "error", "words"),
    [
        ({"image": torch.ones(1, 1, 6, 6)}, TraceError, r"1 inputs \(image\) and keywords \(meta\), the example: "),
        ({"image": torch.ones(1, 1, 6, 6), "more": torch.ones(1, 3)}, TraceError, "'meta'; it has image, more"),
        ({"image": torch.ones(1, 2, 6, 6), "meta": torch.ones(1, 3)}, ExampleError, r"image \(1, 2, 6, 6\).*_several"),
        ({"image": torch.ones(1, 1, 6, 6), "meta": torch.ones(2, 3)}, ExampleError, r"meta \(2, 3\) .*_several_inp"),
        ({"image": torch.ones(1, 1, 6, 6).long(), "meta": torch.ones(1, 3)}, ExampleError, "int64 .*weights are"),
        ({"image": torch.ones(1, 1, 6, 6, device="meta"), "meta": torch.ones(1, 3)}, TraceError, "on meta"),
        ({"image": torch.ones(0, 1, 6, 6), "meta": torch.ones(0, 3)}, TraceError, "a batch of at least one image"),
    ],
)  # fmt: skip
def test_examples_of_another_shape_type_device_or_structure_are_told(
    model, tmp_path, example, error, words
):
    with pytest.raises(error, match=words):
        trace_channels(model, example)
    before = list(tmp_path.iterdir())
    if example["image"].device.type == "cpu":
        with pytest.raises(ExportError):
            export(model, tmp_path, example_input=example)
    assert list(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["slimmable", "dmcp", "autopruner", "soft_pruning"])
def test_preparations_feed_all_inputs(data, model, name):
    task = Task.of(model.eval(), data, SearchSettings(budget=Budget(macs=0.6), n_trials=1))
    preparation = make_preparation(
        name, recipe={"epochs": 2, "batch_size": 30, "lr": 0.02, "device": "cpu"}
    )
    preparation.check(task)
    assert task.constraint.allows(
        run_preparation(preparation, task, Trainer(data.train, 0)).starts[0]
    )
