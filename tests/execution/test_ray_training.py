"""Two workers of Ray Train do what one process does."""

import pytest
import torch
from torch import nn

from abcsearch.data.splits import Data
from abcsearch.errors import ConfigError, DataError
from abcsearch.execution.ray_cluster import connect
from abcsearch.execution.ray_training import RayTraining
from abcsearch.training.finetuning import finetune
from abcsearch.training.recipe import Recipe
from tests.training.toys import network, stripes, weights

pytest.importorskip("ray.train", reason="needs the extra train", exc_type=ImportError)

RECIPE = Recipe(epochs=4, batch_size=16, lr=0.1, shift=1, flip=True, ema=0.5, clip_norm=1.0, distillation=0.3)


class Plain(nn.Module):
    """Without batch norm, of which every worker would have its own, and without draws."""

    def __init__(self, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.linear = nn.Linear(6, classes)

    def forward(self, x):
        return self.linear(torch.relu(self.conv(x)).mean(dim=(2, 3)))


class WrongInTraining(Plain):
    """Scoring before it passes."""

    def forward(self, x):
        if self.training:
            raise DataError("an image is torn")
        return super().forward(x)


@pytest.fixture(scope="module", autouse=True)
def _ray():
    """Ray as the first one starts it; all tests borrow it."""
    cluster = connect(None, 2, 0, lambda line: None)
    yield
    cluster.close()


def data():
    return Data(name="stripes", train=stripes(), validation=stripes(30, seed=1), test=stripes(60, seed=2))


def tuned(recipe=RECIPE, model=None, **options):
    teacher = network(Plain, seed=1) if recipe.distillation else None
    return finetune(model or network(Plain), data(), recipe, teacher=teacher, **options)


def test_two_workers_agree_with_one_process_to_rounding(tmp_path):
    seen = []
    alone = tuned()
    two = tuned(workers=RayTraining(workers=2), on_epoch=lambda *found: seen.append(found))
    torch.testing.assert_close(weights(two.model), weights(alone.model), rtol=1e-4, atol=1e-5)
    assert [found[:2] for found in seen] == [(epoch, 4) for epoch in range(1, 5)]
    assert two.training.losses == pytest.approx(alone.training.losses, rel=1e-4)
    assert [found[2] for found in seen] == list(two.training.losses)
    assert two.training.scores == pytest.approx(alone.training.scores)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_workers_are_those_of_training():
    with pytest.raises(DataError, match="an image is torn"):
        tuned(Recipe(epochs=1, batch_size=16), WrongInTraining(), workers=RayTraining(workers=2))


def test_what_cannot_be_shared_is_refused_before_workers_are_started():
    with pytest.raises(ConfigError, match="batch_size 16 is no multiple of 3 workers"):
        tuned(Recipe(epochs=1, batch_size=16), workers=RayTraining(workers=3))
    with pytest.raises(ConfigError, match="at least 1, found 0"):
        RayTraining(workers=0)
