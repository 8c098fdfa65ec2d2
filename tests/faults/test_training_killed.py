"""What trains is killed, a worker or the whole: one epoch is lost, and no bit is another one."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from abcsearch.errors import RunError
from abcsearch.execution.ray_training import RayTraining
from abcsearch.training.loop import train
from abcsearch.training.recipe import Recipe
from tests.execution.test_ray_training import Masked, Plain, taught, tuned
from tests.training.test_checkpoints import killed
from tests.training.toys import Gated, network, stripes, weights

pytest.importorskip("ray.train", reason="needs the extra train", exc_type=ImportError)
pytestmark = pytest.mark.faults

LONG = Recipe(
    epochs=12, batch_size=16, lr=0.05, shift=1, flip=True, ema=0.9, clip_norm=1.0, device="cpu"
)


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
        recipe,
        model,
        workers=RayTraining(workers=2),
        checkpoint=file,
        on_epoch=lambda done, *_: seen.append(done),
    )
    assert seen == [2, 3]
    assert torch.equal(weights(again.model), weights(whole.model))


def test_a_lesson_of_two_modules_loses_no_bit_with_a_worker_that_is_killed(tmp_path):
    """Its state differs among workers, and is that of the first one after every epoch, also when it goes on."""
    (tmp_path / "never").touch()
    whole, kept = Masked(tmp_path / "never"), tmp_path / "whole.checkpoint"
    wanted, result = taught(whole, workers=RayTraining(workers=2), epochs=3, checkpoint=kept)
    lesson, file, seen = Masked(tmp_path / "once"), tmp_path / "training.checkpoint", []
    with pytest.raises(RunError, match="run it again to go on"):
        taught(lesson, workers=RayTraining(workers=2), epochs=3, checkpoint=file)
    bits, again = taught(
        lesson,
        workers=RayTraining(workers=2),
        epochs=3,
        checkpoint=file,
        on_epoch=lambda done, *_: seen.append(done),
    )
    assert seen == [3]
    assert torch.equal(bits, wanted)
    assert again.losses == result.losses
    assert torch.equal(lesson.seen, whole.seen)
    ours, theirs = load_file(file), load_file(kept)
    assert {name for name, tensor in theirs.items() if not torch.equal(tensor, ours[name])} == set()
    assert (
        ours.keys()
        == theirs.keys()
        >= {"lesson.seen", "random.lesson", "optimizer.gates.0.momentum_buffer"}
    )


def _drive(file):
    train(Gated(), stripes(), LONG, checkpoint=file)


def test_a_lesson_of_two_optimisers_that_is_killed_at_any_instant_ends_with_the_same_bits(tmp_path):
    whole = Gated()
    losses = train(whole, stripes(), LONG).losses
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        file, lesson = killed(tmp_path / str(number), _drive), Gated()
        assert train(lesson, stripes(), LONG, checkpoint=file).losses == losses
        for one, other in zip(lesson.modules.values(), whole.modules.values(), strict=True):
            assert torch.equal(weights(one), weights(other))
        assert (lesson.sharpness, lesson.mean.tolist()) == (whole.sharpness, whole.mean.tolist())
