"""What every lesson keeps."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abcsearch.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from abcsearch.data.split import Images
    from abcsearch.training.lesson import Lesson
    from abcsearch.training.recipe import Recipe
    from abcsearch.training.state import Trained


class LessonContract:
    """What every lesson keeps; override `make`, `others` where yours has settings, and `images` where it needs others.

    class TestMyLesson(LessonContract):
        def make(self):
            return MyLesson(network(seed=0))

        def others(self):
            return [MyLesson(network(seed=0), penalty=2.0)]
    """

    def make(self) -> Lesson:
        """Returns a new lesson, with modules of its own: every time the same weights and settings."""
        raise NotImplementedError

    def others(self) -> Sequence[Lesson]:
        """Returns lessons on the same weights with other settings: none may continue a checkpoint of `make`."""
        return ()

    def recipe(self) -> Recipe:
        """Returns a short recipe of at least three epochs."""
        from abcsearch.training.recipe import Recipe

        return Recipe(
            epochs=3,
            batch_size=16,
            lr=0.05,
            shift=1,
            flip=True,
            ema=0.9,
            clip_norm=1.0,
            device="cpu",
        )

    def images(self) -> Images:
        """Returns images and labels: by default 48 of noise, (1, 8, 8), in three classes."""
        import torch

        from abcsearch.data.split import Split

        noise = torch.rand(48, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        return Split(noise, torch.arange(48) % 3)

    def trained(self, lesson: Lesson, **options: Any) -> Trained:  # noqa: ANN401 - of `train`
        """Trains a lesson by the recipe on the images."""
        from abcsearch.training.loop import train

        return train(lesson, self.images(), self.recipe(), **options)

    def test_stopped_after_any_epoch_it_ends_with_the_same_bits(self) -> None:
        """Modules, losses and the lesson's own state are those of a training that was never stopped."""
        whole = self.make()
        losses = self.trained(whole).losses
        for epoch in range(1, self.recipe().epochs):
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "training.checkpoint"
                self._stopped(self.make(), file, epoch)
                again = self.make()
                assert self.trained(again, checkpoint=file).losses == losses, (
                    f"losses differ, stopped after {epoch}"
                )
                _assert_same(again, whole, f"stopped after epoch {epoch} and continued")

    def test_something_is_learned(self) -> None:
        """Steps change what is trained."""
        lesson, untrained = self.make(), self.make()
        self.trained(lesson)
        changed = [
            name
            for name, tensor in _tensors(lesson).items()
            if not tensor.equal(_tensors(untrained)[name])
        ]
        assert changed, "no tensor of its modules has changed"

    def test_modules_come_back_as_they_were_lent(self) -> None:
        """Modes and devices of all modules and teachers, also where the training is stopped, and random generators."""
        import torch

        for stop in (False, True):
            lesson = self.make()
            every = [*lesson.modules.values(), *lesson.teachers.values()]
            modes = [module for network in every for module in network.modules()]
            for number, module in enumerate(modes):
                module.training = number % 3 > 0
            before, asked = (
                torch.get_rng_state(),
                copy.deepcopy([network.state_dict() for network in every]),
            )
            with tempfile.TemporaryDirectory() as folder:
                if stop:
                    self._stopped(lesson, Path(folder) / "training.checkpoint", 1)
                else:
                    self.trained(lesson)
            assert [module.training for module in modes] == [
                number % 3 > 0 for number in range(len(modes))
            ]
            assert torch.equal(torch.get_rng_state(), before)
            devices = {
                tensor.device for network in every for tensor in network.state_dict().values()
            }
            assert devices <= {tensor.device for state in asked for tensor in state.values()}
            for network, state in zip(
                every[len(lesson.modules) :], asked[len(lesson.modules) :], strict=True
            ):
                assert all(
                    tensor.equal(state[name]) for name, tensor in network.state_dict().items()
                )

    def test_another_lesson_does_not_continue_a_checkpoint(self) -> None:
        """The file stays as it is, and its own lesson goes on from it."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "training.checkpoint"
            self._stopped(self.make(), file, 1)
            before = file.read_bytes()
            for lesson in self.others():
                try:
                    self.trained(lesson, checkpoint=file)
                except CheckpointError:
                    pass
                else:
                    msg = "a lesson with other settings continues the checkpoint: return them from same()"
                    raise AssertionError(msg)
                assert file.read_bytes() == before
            self.trained(self.make(), checkpoint=file)

    def _stopped(self, lesson: Lesson, file: Path, epoch: int) -> None:
        """Trains a lesson for some epochs."""

        def stop(done: int, *_: object) -> None:
            if done == epoch:
                raise _Stopped

        with contextlib.suppress(_Stopped):
            self.trained(lesson, checkpoint=file, on_epoch=stop)


class _Stopped(Exception):  # noqa: N818 - it is no error
    """Ends a training after an epoch."""


def _tensors(lesson: Lesson) -> dict[str, torch.Tensor]:
    """Returns the tensors of all modules by name."""
    return {
        f"{name}.{key}": tensor
        for name, module in lesson.modules.items()
        for key, tensor in module.state_dict().items()
    }


def _assert_same(one: Lesson, other: Lesson, when: str) -> None:
    """Asserts that two lessons are in the same state, bit for bit."""
    from abcsearch.training.checks import saved_state

    (ours, plain), (theirs, values) = saved_state(one), saved_state(other)
    for tensors, others in ((_tensors(one), _tensors(other)), (ours, theirs)):
        differing = [name for name, tensor in tensors.items() if not tensor.equal(others[name])]
        assert not differing, (
            f"{', '.join(differing)}: other numbers, {when}; what steps change belongs to the state"
        )
    assert plain == values, f"state_dict() differs, {when}: {plain} and {values}"
