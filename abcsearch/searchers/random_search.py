"""Random search: the baseline that every comparison needs at equal budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from abcsearch.errors import SearcherError
from abcsearch.records import check
from abcsearch.searchers.base import Searcher

if TYPE_CHECKING:
    from abcsearch.space import Candidate
    from abcsearch.trial import Trial

_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class RandomOptions:
    """Options of `RandomSearch`.

    Attributes:
        fill: whether draws below an upper bound are grown to spend most of it, as those of all other searchers are;
            without it the search is plain uniform sampling, repaired where a draw is outside.

    Raises:
        SearcherError: if an option is out of range.
    """

    fill: bool = True

    def __post_init__(self) -> None:
        """Checks the type."""
        check(self, "random", SearcherError)


@final
class RandomSearch(Searcher):
    """Draws every structure uniformly, repairs it into the budget and grows it to spend most of it; needs no results.

    Source: Li et al., EagleEye (ECCV 2020), section 3.3, and Li and Talwalkar, Random search (UAI 2019).

    Differences from the paper:
        - EagleEye draws continuous ratios and rejects until the cost is within 0.5 points of the target, which
          accepts 0.3 to 3.7 % of the draws; here a draw is repaired by random single steps, so each one counts.
        - Under an upper bound alone, draws are grown to spend most of it (`Constraint.fill`), unless `fill` is off.
        - Structures come from the same grid of widths as those of all other searchers.
    """

    name: ClassVar[str] = "random"
    Options: ClassVar[type] = RandomOptions
    options: RandomOptions
    needs_results: ClassVar[bool] = False
    overlaps: ClassVar[bool] = True

    def _propose(self) -> list[Candidate]:
        batch: list[Candidate] = []
        while len(batch) < _BATCH:
            candidate = self._fresh(
                self._random if self.options.fill else lambda: self.space.sample(self.rng)
            )
            if candidate is None:
                break
            batch.append(candidate)
        return batch

    def _learn(self, batch: list[Trial]) -> None:
        """Learns nothing."""
