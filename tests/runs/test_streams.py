"""A whole configured run on images that stay on disk."""

import numpy as np
import pytest
from PIL import Image

from abcsearch.config import read_config
from abcsearch.data.stream import Stream
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.open_run import open_run
from abcsearch.runs.config_run import run_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.resuming import resume

CONFIG = """
n_trials = 4
model = {{name = "small_resnet", in_channels = 3, classes = 2, widths = [4, 6], depths = [1, 1]}}
data = {{name = "image_folder", path = "{path}", size = 8, stream = {stream}, workers = 1}}
pretrain = {{epochs = 1, batch_size = 16}}
budget = {{macs = 0.6}}
criterion = "apoz"
searcher = {{name = "random"}}
evaluator = {{name = "adaptive_bn", calibration_images = 16, batch_size = 8}}
finetune = {{epochs = 1, batch_size = 16, lr = 0.02, flip = true}}
"""


@pytest.fixture
def images(tmp_path):
    draws = np.random.default_rng(0)
    for part, count in (("train", 30), ("val", 10)):
        for number, name in enumerate(("dark", "light")):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(count):
                array = draws.integers(60 * number, 196 + 60 * number, (9, 10, 3), dtype=np.uint8)
                Image.fromarray(array).save(tmp_path / "images" / part / name / f"{i}.png")
    return tmp_path / "images"


def test_a_streamed_run_searches_resumes_and_fine_tunes(images, tmp_path):
    config = tmp_path / "config.toml"
    found = {}
    for stream in ("true", "false"):
        config.write_text(CONFIG.format(path=images, stream=stream))
        folder = tmp_path / stream
        result = run_config(read_config(config), folder)
        assert isinstance(result.task.data.train, Stream) == (stream == "true")
        again = resume(folder)
        assert [t.evaluation.fitness for t in again.trials] == [
            t.evaluation.fitness for t in result.trials
        ]
        split = RunFolder(folder).header()["identity"]["split"]
        assert split == {
            "seed": 0,
            "train": 54,
            "validation": 6,
            "test": 20,
            "objective": "classification",
        }
        found[stream] = [t.candidate for t in result.trials]
    assert found["true"] == found["false"]
    run = open_run(tmp_path / "true")
    finetune_run(run)
    before, after = (run.scores(run.winner)[when] for when in ("before", "after"))
    assert set(before) == set(after) == {"top1", "top5", "neg_loss"}
