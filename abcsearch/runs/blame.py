"""Whose mistake it is when a searcher fails."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from abcsearch.errors import AbcSearchError, SearcherError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from abcsearch.searchers.base import Searcher


def is_users(searcher: Searcher) -> bool:
    """Returns whether a searcher is one of the user's own."""
    return not type(searcher).__module__.startswith("abcsearch.")


@contextlib.contextmanager
def named(searcher: Searcher) -> Iterator[None]:
    """Runs a block that calls a searcher; what goes wrong in one of the user's own is told as that.

    Raises:
        SearcherError: if it does.
    """
    try:
        yield
    except AbcSearchError:
        raise
    except Exception as error:
        if not is_users(searcher):
            raise
        msg = f"searcher {type(searcher).__qualname__} failed: {type(error).__name__}: {one_line(str(error))}"
        raise SearcherError(msg) from error
