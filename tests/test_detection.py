"""Detection from end to end by the command line, on a few small drawn images."""

import contextlib
import json
import re

import pytest
import torch
from typer.testing import CliRunner

from abcsearch import OUTPUTS, cli, load, resume
from abcsearch.results.open_run import open_run
from tests.pages import CHAPTERS

pytest.importorskip("torchmetrics", reason="mAP needs the extra `detection`")
pytest.importorskip("pycocotools", reason="mAP needs the extra `detection`")

CONFIG = """
n_trials = 6
baselines = ["uniform"]
model = {name = "tiny_ssd", width = 6, size = 32}
data = {name = "shapes", train = 160, test = 40, size = 32}
pretrain = {epochs = 12, batch_size = 16, optimizer = "adamw", lr = 0.01, flip = true, shift = 2}
budget = {macs = 0.6}
searcher = {name = "bee_colony", n_sources = 3}
evaluator = {name = "adaptive_bn", calibration_images = 64, batch_size = 32}
finetune = {epochs = 2, batch_size = 16, optimizer = "adamw", lr = 0.003, keep = "best"}
"""


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def said(*arguments):
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has been fine-tuned."""
    folder = tmp_path_factory.mktemp("detection")
    (folder / "config.toml").write_text(CONFIG)
    searched = said("search", folder / "config.toml", "--run-dir", folder / "run")
    assert re.search(
        r"full network: .*mAP [\d.]+ % as loaded, [\d.]+ % calibrated, chance [\d.]+ %", searched
    )
    said("finetune", folder / "run")
    return folder


def test_the_network_learns_and_the_search_is_of_map(run):
    assert "mAP50" in said("trials", run / "run", "--format", "csv")
    setup = json.loads((run / "run" / "setup.json").read_text())
    assert setup["metric"] == "mAP"
    assert setup["loaded"] > 5 * setup["chance"]
    assert setup["outputs"] is None


def test_the_report_reads_properly(run, no_pictures):
    text = said("report", run / "run", "--out", run / "report.html")
    (half,) = re.findall(
        r"mAP [\d.]+ % against [\d.]+ % \(±([\d.]+),(?: within noise)? on 40", text
    )
    report = json.loads((run / "report.json").read_text())
    assert report["metric"] == "mAP"
    assert [one["second"] for one in report["differences"]] == ["full", "uniform"]
    assert all(one["paired"] for one in report["differences"])
    first = report["differences"][0]
    longer = max(first["high"] - first["change"], first["change"] - first["low"])
    assert half == f"{100 * longer:.1f}"
    page = (run / "report.html").read_text()
    assert "test mAP" in page
    assert "Wilson" not in page  # of shares of images, which mAP is not
    assert "95 % interval (bootstrap)" in page
    for row in report["rows"]:
        assert set(row["intervals"]) == {"mAP", "mAP50", "mAP75"}
        low, high = row["intervals"]["mAP"]
        assert low <= row["after"] <= high
        assert low < high
    for name in ("mAP50", "mAP75"):
        assert name in page
    full, uniform, winner = report["rows"]
    setup = json.loads((run / "run" / "setup.json").read_text())
    assert full["after"] > 5 * setup["chance"]
    assert min(uniform["after"], winner["after"]) > 0


@pytest.mark.parametrize("format_", ["safetensors", "onnx"])
def test_files_hold_boxes_and_scores_of_all_places_and_score_as_the_network(run, format_):
    if format_ == "onnx":
        pytest.importorskip("onnxruntime")
    out = run / ("slim" if format_ == "safetensors" else f"slim.{format_}")
    assert "largest difference" in said("export", run / "run", "--format", format_, "--out", out)
    (value,) = re.findall(r"mAP ([\d.]+) %", said("evaluate", out))
    tuned = open_run(run / "run")
    assert value == f"{100 * tuned.tuned(tuned.winner).scores['after']['mAP']:.2f}"
    slim = load(out)
    with torch.no_grad():
        assert slim(torch.rand(2, 3, 32, 32)).shape == (2, 40, 7)
    if format_ == "safetensors":
        assert slim.classes == 3
        info = json.loads((out / "plan.json").read_text())["info"]
        assert (info["objective"], info["classes"], info["metric"]) == ("detection", 3, "mAP")
        assert set(info["test"]) == {"mAP", "mAP50", "mAP75"}


def test_a_run_that_is_continued_is_over(run):
    again = resume(run / "run")
    assert len(again.trials) == 6
    assert set(again.best.evaluation.metrics) >= {"mAP", "mAP50", "mAP75"}
    assert again.best.evaluation.fitness == again.best.evaluation.metrics["mAP"]


def test_racing_and_what_is_no_detector_are_refused_with_one_message(tmp_path):
    for change, message in (
        (
            ("evaluator.scoring=racing",),
            'scoring = "racing" compares candidates image by image, and mAP is one number',
        ),
        (
            ("model.name=small_resnet", "model.in_channels=3"),
            "must return, in evaluation mode, a list of dicts",
        ),
        (("pretrain.mixup=0.2",), "mixup and cutmix mix labels of a classification"),
        (("pretrain.label_smoothing=0.1",), "label_smoothing is of a loss on labels"),
        (("evaluator.metric=top1",), "unknown metric 'top1'"),
        (("model.classes=2",), "label 3 has no output: the model has 2 classes of objects"),
    ):
        (tmp_path / "config.toml").write_text(CONFIG)
        sets = [
            f"--set={item}"
            for item in (*change, "pretrain.epochs=1", "data.train=60", "data.test=8")
        ]
        if change[0].startswith("model.name"):
            (tmp_path / "config.toml").write_text(
                CONFIG.replace(", width = 6, size = 32}\ndata", "}\ndata")
            )
        done = call("search", tmp_path / "config.toml", "--run-dir", tmp_path / change[0], *sets)
        assert done.exit_code == 2, done.output
        assert message in " ".join(done.output.split()), done.output


def test_the_chapter_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    known = {"__name__": "chapter"}
    with caught_outputs():
        for block in re.findall(r"```python\n(.*?)```", CHAPTERS["detection"], flags=re.DOTALL):
            exec(block, known)
        assert known["corners"]((torch.arange(14.0).reshape(1, 7, 2), None)).shape == (1, 2, 7)
    task, best = known["result"].task, known["result"].best
    assert best.evaluation.macs <= task.graph.costs.macs([task.space.full])[0] / 2
    assert "mAP50" in capsys.readouterr().out
    f1 = known["F1"]()
    f1.add(torch.tensor([[0.0, 1], [1, 0], [0, 1]]), torch.tensor([1, 1, 0]))
    assert f1.finish() == 0.5


@contextlib.contextmanager
def caught_outputs():
    """Puts `OUTPUTS` back."""
    before = dict(OUTPUTS)
    yield
    OUTPUTS.clear()
    OUTPUTS.update(before)
