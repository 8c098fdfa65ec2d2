"""The structures that one is given, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from abcsearch.searchers.base import Searcher

if TYPE_CHECKING:
    from abcsearch.space import Candidate
    from abcsearch.trial import Trial


@final
class Given(Searcher):
    """Proposes the warm starts in their order, repaired into the budget and each once, and then nothing: no search.

    For structures that come from elsewhere: from a preparation, a paper, or another run. Needs no results.
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
