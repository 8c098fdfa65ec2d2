"""A worker that trains is killed: one epoch is lost, and no bit is another one."""

import os
import signal

import pytest
import torch

from abcsearch.errors import RunError
from abcsearch.execution.ray_training import RayTraining
from abcsearch.training.recipe import Recipe
from tests.execution.test_ray_training import Plain, tuned
from tests.training.toys import network, weights

pytest.importorskip("ray.train", reason="needs the extra train", exc_type=ImportError)
pytestmark = pytest.mark.faults


class Dies(Plain):
    """Its process is killed once, in the second epoch."""

    def __init__(self, marker):
        super().__init__()
        self.marker, self.calls = marker, 0

    def forward(self, x):
        self.calls += self.training
        if self.calls == 8 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def test_a_worker_that_is_killed_costs_an_epoch_at_most_and_changes_no_bit(tmp_path):
    recipe = Recipe(epochs=3, batch_size=16, lr=0.1)
    (tmp_path / "never").touch()
    whole = tuned(recipe, network(Dies, marker=tmp_path / "never"), workers=RayTraining(workers=2))
    file = tmp_path / "training.checkpoint"
    model, seen = network(Dies, marker=tmp_path / "once"), []
    with pytest.raises(RunError, match="run it again to go on"):
        tuned(recipe, model, workers=RayTraining(workers=2), checkpoint=file)
    again = tuned(
        recipe, model, workers=RayTraining(workers=2), checkpoint=file, on_epoch=lambda done, *_: seen.append(done)
    )
    assert seen == [2, 3]
    assert torch.equal(weights(again.model), weights(whole.model))
