"""Things of the user's, named by import path: package.module:callable."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from abcsearch.errors import AbcSearchError


def import_callable(what: str, path: str, kind: type[AbcSearchError]) -> Callable[..., Any]:
    """Returns the class or function that "package.module:callable" leads to.

    Args:
        what: what it stands for, for messages ("model").
        path: as the user wrote it; the callable may be an attribute of a class.
        kind: the error to raise.

    Raises:
        AbcSearchError: of that kind, if the path leads nowhere, or to something that cannot be called.
    """
    module, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # the user's module runs here: anything can go wrong in it
        msg = f"{what} {path!r} cannot be imported: {error!r}; write package.module:callable"
        raise kind(msg) from error
    if not callable(found):
        msg = f"{what} {path!r} is not a class or function but {found!r:.50}; write package.module:callable"
        raise kind(msg)
    return found
