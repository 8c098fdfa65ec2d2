"""The structures that one is given, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from abcsearch.searchers.base import Searcher

if TYPE_CHECKING:
    from abcsearch.space import Candidate
    from abcsearch.trial import Trial


@final
class Given(Searcher):
    """Proposes the structures that it is given, in their order, each once, and no others: no search.

    Those of `initial`, repaired into the budget where they are outside, come from a preparation, a paper, or another
    run; the search ends when all are evaluated. Needs no results.
    """

    name: ClassVar[str] = "given"
    needs_results: ClassVar[bool] = False
    overlaps: ClassVar[bool] = True

    def _propose(self) -> list[Candidate]:
        known = map(self._remember, self._warm)
        batch = [candidate for candidate in known if candidate is not None]
        self._warm.clear()
        return batch

    def _learn(self, batch: list[Trial]) -> None:
        """Learns nothing."""
