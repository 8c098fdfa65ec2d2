"""Labels that are refined: the update is the gradient's, and both sides meet."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from abcsearch.data.split import Split
from abcsearch.errors import ConfigError, DataError, ModelError
from abcsearch.testing import LessonContract
from abcsearch.training.recipe import Recipe
from abcsearch.training.refining import RECIPE, RefinedLabels, enlarged, refine
from abcsearch.training.scoring import predict


def network(seed, classes=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, classes),
        )  # fmt: skip


def split(n=8):
    images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Split(images, torch.arange(n) % 3)


class TestRefinedLabels(LessonContract):
    def make(self):
        return RefinedLabels(network(0), network(1), enlarged(split())[1])

    def others(self):
        return [RefinedLabels(network(0), network(1), (enlarged(split())[1] + 1) % 3)]

    def images(self):
        return enlarged(split())[0]


def begun(n=8):
    images, classes = enlarged(split(n))
    lesson = RefinedLabels(network(0), network(1), classes)
    lesson.begin(RECIPE, images)
    return lesson, images, classes


def test_the_update_of_labels_is_autograds():
    lesson, images, classes = begun()
    rows = torch.tensor([3, 11, 40])
    soft = predict(lesson.teacher, images)[rows].clone().requires_grad_()
    with torch.no_grad():
        outputs = lesson.model(images.images[rows])
    share = F.softmax(outputs, dim=1)
    divergence = (share * (share.log() - F.log_softmax(soft, dim=1))).sum(dim=1).mean()
    wanted = 0.7 * divergence + 0.3 * F.cross_entropy(outputs, classes[rows])
    wanted.backward()
    before = lesson.state_dict()["soft"].clone()
    loss = lesson.step(images.images[rows], rows, torch.Generator())
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    after = lesson.state_dict()["soft"]
    assert torch.allclose(after[rows], soft.detach() - soft.grad, atol=1e-6)
    others = [row for row in range(len(before)) if row not in rows]
    assert torch.equal(after[others], before[others])
    assert not torch.equal(after[rows], before[rows])


def test_labels_come_closer_to_a_network_that_stays():
    lesson, images, _ = begun()
    lesson.model.eval()
    with torch.no_grad():
        ours = F.softmax(lesson.model(images.images), dim=1)
        gaps = []
        for _ in range(60):
            lesson.step(images.images, images.labels, torch.Generator())
            gaps.append(float((F.softmax(lesson.state_dict()["soft"], dim=1) - ours).abs().sum()))
    assert all(later < earlier for earlier, later in itertools.pairwise(gaps))
    assert gaps[-1] < 0.9 * gaps[0]


def test_there_are_six_versions_of_every_image_with_its_class():
    few = split(4)
    images, classes = enlarged(few)
    assert images.images.shape == (24, 1, 8, 8)
    assert torch.equal(images.images[:4], few.images)
    assert torch.equal(classes, few.labels.repeat(6))
    assert torch.equal(images.labels, torch.arange(24))
    for first in range(4, 16, 4):  # tiles: the same pixels elsewhere
        for row in range(4):
            mine, source = images.images[first + row], few.images[row]
            assert torch.equal(mine.flatten().sort().values, source.flatten().sort().values)
    assert (images.images[16:20] == 0).any()
    assert torch.equal(enlarged(few)[0].images, images.images)
    assert not torch.equal(enlarged(few, seed=1)[0].images, images.images)


def test_a_network_is_trained_in_place_and_the_teacher_stays():
    model, teacher = network(0), network(1)
    before = copy.deepcopy(teacher.state_dict())
    first = model[0].weight.detach().clone()
    recipe = Recipe(epochs=2, batch_size=16, lr=0.01)
    trained = refine(model, split(), teacher, recipe, seed=3)
    assert len(trained.losses) == 2
    assert not torch.equal(model[0].weight, first)
    assert all(torch.equal(teacher.state_dict()[name], value) for name, value in before.items())
    again = refine(network(0), split(), teacher, recipe, seed=3)
    assert again.losses == trained.losses


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="soft as they are"):
        refine(network(0), split(), network(1), Recipe(distillation=0.5))
    with pytest.raises(DataError, match="of a classification"):
        refine(network(0), Split(torch.rand(4, 1, 8, 8), torch.rand(4, 2)), network(1))
    with pytest.raises(ModelError, match="the same classes"):
        refine(network(0), split(), network(1, classes=4), Recipe(epochs=1, batch_size=8))
    lesson = RefinedLabels(network(0), network(1), torch.arange(8) % 3)
    with pytest.raises(DataError, match="one image each"):
        lesson.begin(RECIPE, split())
