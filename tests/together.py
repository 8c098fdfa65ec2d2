"""Processes that train together without Ray, which start in a moment; they can be made to die on the way."""

import os
import pickle
from dataclasses import dataclass

from torch import distributed

from abcsearch.errors import RunError
from abcsearch.training.checkpoints import Checkpoint
from tests.problems import finished, forks


@dataclass(frozen=True)
class Forks:
    """Processes that torch.distributed connects.

    Attributes:
        workers: how many.
        lives: epochs after which the first one is gone, and the training with it; 0: it ends as it should.
    """

    workers: int
    lives: int = 0

    def run(self, task, folder, *, gpu, setup):
        # Torch would have both share the weights, as an argument
        sent = pickle.dumps((task, list(setup.values())))
        meeting = folder / f"meeting-{self.lives}"
        processes = [
            forks().Process(target=_shared, args=(sent, rank, self.workers, meeting, self.lives))
            for rank in range(self.workers)
        ]
        for process in processes:
            process.start()
        if self.lives:
            finished(processes[0], status=9)
            for process in processes[1:]:
                process.kill()
                process.join()
            raise RunError("a worker is gone")
        for process in processes:
            finished(process)


def _shared(sent, rank, size, meeting, lives):
    task, setup = pickle.loads(sent)
    for call in setup:
        call()
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size
    )
    write, written = Checkpoint.write, []

    def dying(self, saved):
        write(self, saved)
        written.append(saved)
        if len(written) == lives:
            os._exit(9)

    Checkpoint.write = dying
    task(rank, size)
    distributed.destroy_process_group()
