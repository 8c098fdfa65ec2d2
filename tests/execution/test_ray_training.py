"""Two workers of Ray Train do what one process does.

Starting them takes 10 seconds of two cores and more: what does not depend on Ray is shown with `Forks` every day,
which start in a moment, and with Ray by `make test-faults`.
"""

import functools
import os
import pickle
import signal
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from abcsearch.data.splits import Data
from abcsearch.errors import ConfigError, DataError, RunError
from abcsearch.execution import ray_training
from abcsearch.execution.ray_cluster import connect
from abcsearch.execution.ray_training import RayTraining
from abcsearch.training.finetuning import finetune
from abcsearch.training.lesson import Lesson
from abcsearch.training.loop import train
from abcsearch.training.optimization import make_optimizer
from abcsearch.training.recipe import Recipe
from abcsearch.training.together import train_together
from tests.together import Forks
from tests.training.toys import Gates, network, stripes, weights

pytest.importorskip("ray.train", reason="needs the extra train", exc_type=ImportError)

RECIPE = Recipe(
    epochs=4, batch_size=16, lr=0.1, shift=1, flip=True, ema=0.5, clip_norm=1.0, distillation=0.3
)


class Plain(nn.Module):
    """Without batch norm, of which every worker would have its own, and without draws."""

    def __init__(self, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.linear = nn.Linear(6, classes)

    def forward(self, x):
        return self.linear(torch.relu(self.conv(x)).mean(dim=(2, 3)))


class Uneven(Plain):
    """Has a head that the loss does not see, a frozen layer, and branches: one of every other step, one never taken."""

    def __init__(self):
        super().__init__()
        self.head, self.branch, self.never = nn.Linear(3, 2), nn.Linear(3, 3), nn.Linear(3, 3)
        self.conv.requires_grad_(False)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        out = super().forward(x)
        if self.training and self.calls % 2:
            out = self.branch(out)
        return {"out": out, "aux": self.head(out)}


class Masked(Lesson):
    """Two modules and two optimisers; weights are used past their module's forward pass, or in some processes only.

    Its state follows the batches, of which every process has others; with a marker, it decides what is learned, and a
    process is killed once, in the third epoch.
    """

    def __init__(self, marker=None):
        self.model, self.gates, self.calls, self.marker = network(Plain), nn.Linear(3, 3), 0, marker
        self.gates.load_state_dict({"weight": torch.eye(3), "bias": torch.zeros(3)})
        self.never = Gates(2)
        self.modules = {"model": self.model, "gates": self.gates, "never": self.never}
        self.seen = torch.zeros(2)

    def optimizers(self, recipe):
        every = [*self.gates.parameters(), *self.never.parameters()]
        return {
            "model": make_optimizer(self.model, recipe),
            "gates": torch.optim.SGD(every, lr=0.05, momentum=0.5, weight_decay=0.1),
        }

    def step(self, images, labels, draws):
        self.calls += 1
        if self.marker is not None and self.calls == 30 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        kept = torch.arange(6) < torch.randint(2, 7, (), generator=draws)
        tensors = {"conv.weight": self.model.conv.weight * kept[:, None, None, None]}
        losses = F.cross_entropy(
            torch.func.functional_call(self.model, tensors, (images,)), labels, reduction="none"
        )
        first = labels == 0
        if first.any():  # not in every half of a batch
            losses = losses + first * self.gates(self.model(images)).square().sum(dim=1)
        self.seen += torch.stack([losses.detach().mean(), images.mean()])
        return losses.mean() * (1 if self.marker is None else 1 + self.seen[1].sigmoid())

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen.copy_(state["seen"])


class Wordless(Exception):
    def __str__(self):
        raise ValueError("no words")


class WrongInTraining(Plain):
    """Scoring before it passes."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error or DataError("an image is torn")

    def forward(self, x):
        if self.training and self.error == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.training and (
            not isinstance(self.error, SystemExit) or torch.distributed.get_rank() == 1
        ):
            raise self.error
        return super().forward(x)


def faults(*values):
    """Returns a case that is too slow for every day."""
    return pytest.param(*values, marks=pytest.mark.faults)


by_both = pytest.mark.parametrize(
    "workers", [Forks(2), faults(RayTraining(workers=2))], ids=["forks", "ray"]
)


@pytest.fixture(scope="module")
def _ray():
    """Ray as the first one starts it; the tests that train with it borrow it."""
    cluster = connect(None, 2, 0, lambda line: None)
    yield
    cluster.close()


def data():
    return Data(
        name="stripes", train=stripes(), validation=stripes(30, seed=1), test=stripes(60, seed=2)
    )


def tuned(recipe=RECIPE, model=None, **options):
    teacher = network(Plain, seed=1) if recipe.distillation else None
    return finetune(model or network(Plain), data(), recipe, teacher=teacher, **options)


@pytest.mark.usefixtures("_ray")
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


@by_both
def test_parameters_without_gradient_change_as_with_one_process(workers):
    recipe = Recipe(epochs=2, batch_size=16, lr=0.1, momentum=0.9, weight_decay=0.1, clip_norm=1.0)
    alone = tuned(recipe, network(Uneven))
    two = tuned(recipe, network(Uneven), workers=workers)
    assert not torch.equal(alone.model.branch.weight, network(Uneven).branch.weight)
    assert torch.equal(two.model.never.weight, network(Uneven).never.weight)
    torch.testing.assert_close(weights(two.model), weights(alone.model), rtol=1e-4, atol=1e-5)
    assert two.training.losses == pytest.approx(alone.training.losses, rel=1e-4)


def taught(lesson, workers=None, epochs=2, **options):
    """Trains a lesson by one process or several; returns its modules' tensors, and how it went."""
    recipe = Recipe(epochs=epochs, batch_size=4, lr=0.1, weight_decay=0.1, ema=0.5, clip_norm=1.0)
    trained_by = train if workers is None else functools.partial(train_together, workers=workers)
    result = trained_by(lesson, stripes(48), recipe, **options)
    return torch.cat([weights(module) for module in lesson.modules.values()]), result


@by_both
def test_two_workers_teach_a_lesson_as_one_process_does(workers):
    """Gradients of all modules are averaged, those that some processes have none of with zeros."""
    alone, two = Masked(), Masked()
    (one, by_one), (other, by_two) = taught(alone), taught(two, workers=workers)
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    assert by_two.losses == pytest.approx(by_one.losses, rel=1e-4)
    assert torch.equal(two.never.weight, torch.ones(2))
    assert not torch.equal(two.gates.weight, torch.eye(3))
    assert not torch.allclose(two.seen, alone.seen)
    assert float(two.seen.abs().sum()) > 0


WORDS = [
    (ValueError("first line\n  second: 2"), "ValueError: first line\n  second: 2"),
    (Wordless(), "Wordless: (its text cannot be had: ValueError)"),
    (SystemExit(3), "SystemExit: 3"),
    (
        torch.OutOfMemoryError("CUDA out of memory.\nTried"),
        "OutOfMemoryError: CUDA out of memory.\nTried",
    ),
    (DataError("an image is torn"), None),
]


@pytest.mark.parametrize(
    ("error", "words"), WORDS, ids=["lines", "wordless", "exit", "memory", "ours"]
)
def test_what_a_worker_failed_of_is_said_whole(monkeypatch, error, words):
    """By what every worker runs, and what is made of it here; Ray between them is for `make test-faults`."""
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    def task(rank, size):
        raise error

    monkeypatch.setattr("ray.train.get_context", mock.Mock)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(ray_training.ray, "get", lambda reference: task)
    with pytest.raises(RunError if words else DataError) as failed:
        ray_training._work({"paths": [], "setup": None, "task": None})
    sent = pickle.loads(pickle.dumps(failed.value))
    group = WorkerGroupError(
        "one of many lines", {0: UserExceptionWithTraceback(sent, "Traceback")}
    )
    said = (
        f"a worker of the training failed: {words}; run it again to go on"
        if words
        else "an image is torn"
    )
    assert str(ray_training._cause(group)) == said


@pytest.mark.faults
@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize(
    ("error", "words"),
    [
        *WORDS[:4],
        ("kill", "its worker process died (killed, out of memory, or a crash in native code)"),
    ],
    ids=["lines", "wordless", "exit of one", "memory", "kill"],
)
def test_what_a_worker_of_ray_failed_of_is_said_whole(error, words):
    with pytest.raises(RunError) as failed:
        tuned(
            Recipe(epochs=1, batch_size=16), WrongInTraining(error), workers=RayTraining(workers=2)
        )
    assert str(failed.value) == f"a worker of the training failed: {words}; run it again to go on"


@pytest.mark.faults
@pytest.mark.usefixtures("_ray")
def test_errors_of_workers_are_those_of_training():
    with pytest.raises(DataError, match="an image is torn"):
        tuned(Recipe(epochs=1, batch_size=16), WrongInTraining(), workers=RayTraining(workers=2))


def test_what_cannot_be_shared_is_refused_before_workers_are_started():
    with pytest.raises(ConfigError, match="batch_size 16 is no multiple of 3 workers"):
        tuned(Recipe(epochs=1, batch_size=16), workers=RayTraining(workers=3))
    with pytest.raises(ConfigError, match="at least 1, found 0"):
        RayTraining(workers=0)
