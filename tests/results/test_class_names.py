"""Names of classes: from the folders of images to plan.json, the model card and the line that is printed."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from abcsearch.cli import app
from abcsearch.results.card import _class_list, feeding

CONFIG = """
n_trials = 1
baselines = []
model = {{name = "small_resnet", widths = [4, 6], depths = [1, 1], in_channels = 3}}
data = {{name = "image_folder", path = {path}, validation = 0.5, workers = 0}}
pretrain = {{epochs = 1, batch_size = 8}}
budget = {{macs = 0.6}}
searcher = "random"
evaluator = {{name = "adaptive_bn", calibration_images = 8, batch_size = 8}}
finetune = {{epochs = 1, batch_size = 8, lr = 0.02}}
"""
NAMES = ["ants | <b>", "bees"]


def info(names=None, classes=2):
    told = {"class_names": names} if names else {}
    shape = {"shape": [3, 8, 8], "mean": None, "std": None}
    return {"objective": "classification", "classes": classes, "input": shape, **told}


def folders(root, names):
    draws = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for number in range(8):
                pixels = draws.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")


@pytest.mark.usefixtures("no_pictures")
def test_an_export_of_image_folders_knows_what_its_logits_are_called(tmp_path):
    folders(tmp_path / "images", NAMES)
    path = tmp_path / "folders.toml"
    path.write_text(CONFIG.format(path=json.dumps(str(tmp_path / "images"))))
    run = str(tmp_path / "run")
    done = CliRunner().invoke(app, ["search", str(path), "--run-dir", run])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["export", run, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    line = f"logits of 2 classes, in this order: {', '.join(NAMES)}; the largest is the answer"
    assert line in " ".join(done.output.split())
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["info"]["class_names"] == NAMES
    card = (tmp_path / "out" / "README.md").read_text()
    assert "in this order: ants \\| &lt;b>, bees" in card
    assert CliRunner().invoke(app, ["evaluate", str(tmp_path / "out")]).exit_code == 0


def test_few_names_are_all_said_of_many_the_first_and_the_last_and_older_exports_have_none():
    assert "2 classes, numbered as in the data set; the largest" in feeding(info())[-1]
    assert _class_list(info()) == []
    assert "2 classes, in this order: a, b; the largest" in feeding(info(["a", "b"]))[-1]
    assert _class_list(info(["a", "b"])) == []
    many = [f"class {n}" for n in range(100)]
    assert (
        "100 classes, from class 0 (0) to class 99 (99), all of them in the model card; the largest"
        in feeding(info(many, 100))[-1]
    )
    (_, table) = _class_list(info(many, 100))
    assert [line for line in table.splitlines() if "class 42" in line] == ["| 42 | class 42 |"]
    assert len(table.splitlines()) == 102
