"""Tasks beside classification, end to end: search, fine-tune, export, report, evaluate."""

import json
import re
import tomllib
import warnings

import pytest
from typer.testing import CliRunner

from abcsearch import cli, load
from abcsearch.config import parse_config
from abcsearch.data.registry import load_data
from abcsearch.runs.disk.setup import SetUp
from abcsearch.training.scoring import score
from tests.pages import CHAPTERS

COMMON = """
n_trials = 6
baselines = ["uniform"]
budget = {macs = 0.6}
searcher = {name = "bee_colony", n_sources = 2}
"""
CONFIGS = {
    "superresolution": """
model = {name = "small_edsr", channels = 8, blocks = 1}
data = {name = "superresolution_samples"}
pretrain = {epochs = 4, batch_size = 16, optimizer = "adamw", lr = 4e-3, weight_decay = 0, flip = true}
evaluator = {name = "adaptive_bn", calibration_images = 0}
finetune = {epochs = 1, batch_size = 16, optimizer = "adamw", lr = 1e-3, weight_decay = 0, flip = true}
""",
    "segmentation": """
model = {name = "small_fcn", widths = [6, 8]}
data = {name = "shape_masks", train = 90, test = 30}
pretrain = {epochs = 6, batch_size = 16, flip = true}
evaluator = {name = "adaptive_bn", calibration_images = 64, batch_size = 32}
finetune = {epochs = 2, batch_size = 16, lr = 0.02, flip = true, shift = 2, aux = 0.2}
""",
    "multilabel": """
model = {name = "small_resnet", in_channels = 3, classes = 3, widths = [6, 8], depths = [1, 1]}
data = {name = "shape_tags", train = 90, test = 30}
pretrain = {epochs = 3, batch_size = 16}
evaluator = {name = "adaptive_bn", calibration_images = 64, batch_size = 32}
finetune = {epochs = 1, batch_size = 16, lr = 0.02}
""",
}
SHOWN = {
    "superresolution": (
        r"PSNR \d\d\.\d\d dB against \d\d\.\d\d dB",
        "bicubic interpolation 29.79 dB",
    ),
    "segmentation": (r"mean IoU \d+\.\d\d\s% against \d+\.\d\d\s%", "chance 21.35 %"),
    "multilabel": (r"mean average precision \d+\.\d\d\s% against \d+\.\d\d\s%", "chance "),
}
METRICS = {
    "superresolution": ["psnr", "ssim"],
    "segmentation": ["miou", "pixel_accuracy"],
    "multilabel": ["macro_ap", "macro_f1", "micro_f1", "label_accuracy", "neg_bce"],
}


def call(*arguments):
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("task", CONFIGS)
@pytest.mark.usefixtures("no_pictures")
def test_the_whole_job(task, tmp_path):

    (tmp_path / "task.toml").write_text(COMMON + CONFIGS[task])
    run = tmp_path / "run"
    with warnings.catch_warnings():
        # Of networks that have hardly learnt anything
        warnings.filterwarnings("ignore", message="set-up: ")
        call("search", tmp_path / "task.toml", "--run-dir", run)
    call("finetune", run)
    call("export", run, "--out", tmp_path / "export")
    if task == "segmentation":  # whose files return the one output that is scored
        call("export", run, "--out", tmp_path / "model.onnx")
        assert "miou" in call("evaluate", tmp_path / "model.onnx")
    call("report", run)
    headline, reference = SHOWN[task]
    page = (run / "report.html").read_text()
    assert re.search(headline, page)
    found = json.loads((run / "setup.json").read_text())
    assert (
        reference
        in SetUp(**{key: found[key] for key in ("metric", "images", "loaded", "chance")}).words
    )
    report = json.loads((run / "report.json").read_text())
    assert [list(row["tests"]) for row in report["rows"]] == [METRICS[task]] * 3
    data = load_data(
        *[json.loads((run / "run.json").read_text())["settings"]["data"]["name"]], **_options(task)
    )
    again = score(load(tmp_path / "export"), data.test, objective=data.objective)
    assert report["rows"][-1]["after"] == pytest.approx(again[METRICS[task][0]], rel=1e-5)


def _options(task):
    return {} if task == "superresolution" else {"train": 90, "test": 30}


@pytest.mark.parametrize("number", [0, 1])
def test_the_examples_of_the_chapter_run(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example = re.findall(r"```python\n(.*?)```", CHAPTERS["segmentation"], flags=re.DOTALL)[number]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="set-up: ")
        exec(compile(example, f"segmentation {number}", "exec"), {})
    assert (
        capsys.readouterr().out.splitlines()[-1].startswith(("{", "torch.Size([30, 3]) multilabel"))
    )


def test_the_config_of_the_chapter_parses():
    (text,) = re.findall(r"```toml\n(.*?)```", CHAPTERS["super-resolution"], flags=re.DOTALL)
    config = parse_config({**tomllib.loads(text), "n_trials": 1, "budget": {"macs": 0.5}})
    assert config.model.options == {"channels": 64, "blocks": 16}
    assert config.data.options["patches"] == 20
