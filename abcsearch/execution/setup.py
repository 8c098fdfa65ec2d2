"""What worker processes do before their first call, such as to register what a script has registered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from abcsearch.errors import RunError
from abcsearch.execution.ray_cluster import sent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_ADVICE = "what a script registers for workers must be picklable, or be registered by a module that they import"


class _Setup:
    """Callables that are called in the process where this is unpickled."""

    def __init__(self, calls: Sequence[Callable[[], object]]) -> None:
        self._calls = tuple(calls)

    def __reduce__(self) -> tuple[Any, ...]:
        return _call, self._calls


def _call(*calls: Callable[[], object]) -> None:
    for call in calls:
        call()


def sent_setup(calls: Mapping[str, Callable[[], object]]) -> Any:  # noqa: ANN401 - Ray's reference
    """Returns a reference whose value is None; a process that gets it makes the calls.

    Args:
        calls: by what they are called in messages.

    Raises:
        RunError: if one of them cannot be pickled.
    """
    try:
        return sent(_Setup([*calls.values()]), "what a script has registered", _ADVICE)
    except RunError:
        for name, call in calls.items():
            sent(call, name, _ADVICE)
        raise
