"""What every preparation keeps: what it makes follows from task, options and seed, however often it is stopped.

class TestMine(PreparationContract):
    def make(self):
        return MyPreparation()
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from abcsearch.budget import Budget
from abcsearch.data.splits import Data
from abcsearch.preparation.base import Trainer, besides, check_restored, run_preparation, unheard
from abcsearch.rng import torch_seeded
from abcsearch.runs.settings import SearchSettings
from abcsearch.runs.task import Task
from abcsearch.training.checkpoints import network_hash

if TYPE_CHECKING:
    from collections.abc import Callable

    from abcsearch.preparation.base import OnEpoch, Preparation, Prepared


class _StoppedError(BaseException):
    """A training is stopped here."""


class PreparationContract:
    """What every preparation keeps; override `make`, and `model` or `data` where yours needs others.

    Attributes:
        seed: of all that is prepared.
    """

    seed = 3

    def make(self) -> Preparation:
        """Returns a new preparation, the same at every call, of at least two epochs."""
        raise NotImplementedError

    def model(self) -> nn.Module:
        """Returns the trained network, the same at every call: by default two convolutions with batch norms."""
        with torch_seeded(0, "contract"):
            first = [nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()]
            second = [nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
            head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)]
            return nn.Sequential(*first, *second, *head).eval()

    def data(self) -> Data:
        """Returns data for the network: by default images of 6x6, noise with a bright half or without."""
        draws = torch.Generator().manual_seed(0)
        labels = torch.arange(120) % 2
        images = torch.randn(120, 1, 6, 6, generator=draws)
        images[labels == 1, :, :3] += 2
        return Data.from_tensors(
            (images[:80], labels[:80]), (images[80:], labels[80:]), validation=0.25
        )

    def task(self) -> Task:
        """Returns what is prepared for: the network with a budget of half its MACs."""
        return Task.of(
            self.model(),
            self.data(),
            SearchSettings(budget=Budget(macs=0.5), n_trials=1, seed=self.seed),
        )

    def test_it_keeps_its_word(self) -> None:
        """The lent network is unchanged, sources and starts fit the task, a continued run gets the same networks."""
        task, preparation = self.task(), self.make()
        preparation.check(task)
        assert "{" not in besides(preparation), "milder names an option that there is none of"
        before = torch.random.get_rng_state()
        made = run_preparation(preparation, task, Trainer(task.data.train, self.seed))
        assert torch.equal(before, torch.random.get_rng_state()), (
            "torch's global generator has been moved on"
        )
        check_restored(self.make(), self.task(), made.source, _states(made))

    def test_the_same_seed_makes_the_same(self) -> None:
        """Twice, by another object, whatever has been prepared before."""
        preparation = self.make()
        first, second = (self._prepared(lambda: preparation, path=None) for _ in range(2))
        assert first == second == self._prepared(self.make, path=None)

    def test_stopped_after_every_epoch_it_makes_the_same(self) -> None:
        """Each time in a new object, with nothing but the files of its trainings."""
        epochs: list[tuple[str, int]] = []

        def stop(name: str, done: int, total: int, loss: float) -> None:
            del total, loss
            epochs.append((name, done))
            raise _StoppedError

        stopped = None
        with tempfile.TemporaryDirectory(prefix="abcsearch-") as folder:
            while stopped is None:
                with contextlib.suppress(_StoppedError):
                    stopped = self._prepared(self.make, path=Path(folder), on_epoch=stop)
        assert stopped == self._prepared(self.make, path=None)
        assert len(epochs) == len(set(epochs)), "an epoch that was done has been trained again"

    def _prepared(
        self, make: Callable[[], Preparation], *, path: Path | None, on_epoch: OnEpoch = unheard
    ) -> tuple[object, ...]:
        """Returns what is prepared, to be compared."""
        task = self.task()

        trainer = Trainer(
            task.data.train,
            self.seed,
            checkpoint=lambda name, _: None if path is None else path / f"{name}.checkpoint",
            on_epoch=on_epoch,
        )
        made = run_preparation(make(), task, trainer)
        hashes = {name: network_hash(module) for name, module in made.source.modules.items()}
        kept = [order.tolist() for order in made.source.ranking.orders]
        return (
            hashes,
            kept,
            [tuple(start) for start in made.starts],
            json.loads(json.dumps(dict(made.facts))),
        )


def _states(made: Prepared) -> dict[str, dict[str, torch.Tensor]]:
    """Returns the states of a source's modules, as they are saved."""
    return {name: dict(module.state_dict()) for name, module in made.source.modules.items()}
