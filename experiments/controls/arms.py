"""The arms of the comparison, and the one that the package has not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from abcsearch.rng import numpy_stream

if TYPE_CHECKING:
    from abcsearch.space import Candidate

WINNER = "winner"
# Name -> what it is, in the order of the table
ARMS = {
    "full": "the network as it was trained, trained further",
    WINNER: "of the search, with its weights",
    "uniform": "all layers keep the same ratio",
    "random_structure": "one drawn at random inside the budget",
    "random_channels": "the winner's widths, random channels of the trained network",
    "rewound": "the winner's channels with early weights",
    "scratch_e": "the winner's structure, new weights, as many epochs as the base network",
    "scratch_b": "the same for as many MACs as the base network",
}
NEW_WEIGHTS = (
    "rewound",
    "scratch_e",
    "scratch_b",
)  # whose training does not go on from the base network's end


def random_structure(task: Any) -> Candidate:  # noqa: ANN401 - a task
    """Returns a structure that is drawn from the seed, and brought inside the budget as a random search does it."""
    rng = numpy_stream(task.settings.seed, "random structure")
    inside = task.constraint.repair(task.space.sample(rng), rng)
    return task.constraint.fill(inside, rng)
