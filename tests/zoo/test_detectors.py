"""Detectors of others the whole way, in minutes: torchvision's, and YOLOv8n of ultralytics from its yaml."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from abcsearch import Budget, Recipe, finetune, search, train
from abcsearch.data.registry import load_data
from abcsearch.rng import torch_seeded

pytest.importorskip("torchmetrics", reason="mAP needs the extra `detection`")
pytest.importorskip("pycocotools", reason="mAP needs the extra `detection`")

YOLO = """
import torch
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from abcsearch import OUTPUTS


class Yolo(DetectionModel):
    def __init__(self, classes=3):
        super().__init__("yolov8n.yaml", nc=classes, verbose=False)
        self.args = DEFAULT_CFG  # weights of the losses

    def losses(self, outputs, targets):
        boxes = torch.cat([own["boxes"] for own in targets])
        batch = {
            "batch_idx": torch.cat([torch.full((len(own["labels"]),), float(n)) for n, own in enumerate(targets)]),
            "cls": torch.cat([own["labels"] for own in targets]).float() - 1,
            "bboxes": torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1) / 64,
        }
        return {"all": self.init_criterion()(outputs, batch)[0].sum()}


def corners(returned):
    middle, size, scores = returned[0].transpose(1, 2).split([2, 2, returned[0].shape[1] - 4], dim=-1)
    return torch.cat([middle - size / 2, middle + size / 2, scores], dim=-1)


OUTPUTS[Yolo] = corners
"""
REHEARSED = """
n_trials = 4
budget = {macs = 0.5}
model = {name = "yolonet:Yolo"}
data = {name = "shapes", train = 64, test = 16}
pretrain = {epochs = 1, batch_size = 8, lr = 0.01}
evaluator = {name = "adaptive_bn", calibration_images = 32, batch_size = 16}
finetune = {epochs = 1, batch_size = 8, lr = 0.01}
"""


@pytest.mark.zoo
def test_yolov8n_is_rehearsed_from_its_yaml(tmp_path):
    if importlib.util.find_spec("ultralytics") is None:
        pytest.skip("ultralytics, whose license is AGPL, is in no extra; pip install ultralytics")
    (tmp_path / "yolonet.py").write_text(YOLO)
    (tmp_path / "config.toml").write_text(REHEARSED)
    # In a process of its own: it changes settings of PyTorch and OpenCV, and writes settings of its own to its home.
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "abcsearch", "search", "config.toml", "--dry-run"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": paths,
            "HOME": str(tmp_path),
            "XDG_CONFIG_HOME": str(tmp_path),
            "YOLO_OFFLINE": "true",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = " ".join(done.stdout.split())
    assert re.search(r"groups: 4\d of 5\d prunable; 6 blocks could be dropped", text)
    assert "base network: about" in text
    assert "next: abcsearch search" in text


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore:channels touched", "ignore:the full network is near chance")
def test_a_detector_of_torchvision_goes_the_whole_way(tmp_path):
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn as network

    with torch_seeded(0, "detector"):
        model = network(
            weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=64
        )
    data = load_data("shapes", train=40, test=8)
    recipe = Recipe(epochs=1, batch_size=8, lr=0.005)
    trained = train(model, data.train, recipe, objective="detection")
    assert trained.losses[0] > 0
    evaluator = {"name": "adaptive_bn", "calibration_images": 16, "batch_size": 8}
    budget, run_dir = Budget(macs=0.6), tmp_path / "run"
    result = search(
        model,
        data,
        searcher="random",
        evaluator=evaluator,
        budget=budget,
        n_trials=2,
        run_dir=run_dir,
    )
    assert len(result.trials) == 2
    assert not any(trial.evaluation.failure for trial in result.trials)
    tuned = finetune(result.model(), data, recipe)
    assert set(tuned.after) == {"mAP", "mAP50", "mAP75"}
