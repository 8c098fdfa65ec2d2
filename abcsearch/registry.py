"""Parts by name: one registry for every kind of thing that a config can name.

    MODELS["mine"] = MyNet                 # known by name from here on
    MODELS.find("mine")                    # by name
    MODELS.find("package.module:MyNet")    # by import path, which needs no entry
    MODELS.find(MyNet)                     # itself

What comes with this package is named by its `Home`, and imported when it is first used: names, descriptions and sources
can be listed without torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter, setitem
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from abcsearch.errors import unknown_name
from abcsearch.importing import import_callable, import_named

if TYPE_CHECKING:
    from abcsearch.errors import AbcSearchError

T = TypeVar("T")
OBJECT = (
    " (object)"  # ends the names of parts that the caller brought: they cannot be made from a name
)


@dataclass(frozen=True, kw_only=True)
class Home:
    """Where something of this package is that has a name.

    Attributes:
        path: "module:name"; it is imported when it is first used.
        description: one line; "" where its docstring says it.
        source: paper, or "".
    """

    path: str
    description: str = ""
    source: str = ""

    @cached_property
    def value(self) -> Any:  # noqa: ANN401 - whatever it is
        """What is there."""
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)

    def __call__(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - as what is there
        """Calls what is there."""
        return self.value(*args, **options)

    @property
    def words(self) -> dict[str, str]:
        """Description and source, for what keeps them itself."""
        return {"description": self.description, "source": self.source}


def _as_it_is(name: str, value: Any) -> Any:  # noqa: ANN401 - any kind of part
    """Returns what is found by a name; every kind of object will do."""
    del name
    return value


class Registry(MutableMapping[str, T], Generic[T]):
    """Names of one kind of part, as a mapping, and everything else that such a part may be named by.

    Attributes:
        kind: what a name stands for, in the singular ("searcher").
        error: raised for a name that leads nowhere.
        homes: what comes with this package: entries, or where they are.
    """

    def __init__(
        self,
        kind: str,
        home: str,
        homes: Mapping[str, T | Home],
        *,
        error: type[AbcSearchError],
        accept: Callable[[str, Any], T] = _as_it_is,
        callables: bool = True,
    ) -> None:
        """Begins with what comes with this package.

        Args:
            kind: what a name stands for.
            home: where the registry itself is, "module:NAME".
            homes: entries by name.
            error: raised for a name that leads nowhere.
            accept: (name, object) to an entry: of an object that a name or an import path leads to, or that the caller
                brought; raises `error` for one of another kind.
            callables: whether only classes and functions are taken by import path.
        """
        self.kind, self.error = kind, error
        self.homes: dict[str, Any] = dict(homes)
        self._home = home
        self._entries: dict[str, T | Home] = dict(homes)
        self._objects: dict[str, Any] = {}
        self._accept, self._callables = accept, callables

    def __getitem__(self, name: str) -> T:
        value: Any = self._entries[name]
        return value.value if isinstance(value, Home) else value

    def __setitem__(self, name: str, value: T) -> None:
        home = self.homes.get(name)
        self._entries[name] = home if isinstance(home, Home) and home.value is value else value

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        """Returns whether there is an entry of that name; nothing is imported for it."""
        return isinstance(name, str) and name in self._entries

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process it is the registry of that process."""
        return _registry, (self._home,)

    def register(self, name: str, value: T) -> None:
        """Adds an entry, as assignment does, but for a name that is taken.

        Raises:
            AbcSearchError: of the registry's kind, if the name stands for something else, or is none.
        """
        if not isinstance(name, str) or not name or ":" in name:  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"the name of a {self.kind} is a text without ':', which import paths have, found {name!r}"
            raise self.error(msg)
        if name in self and self[name] is not value:
            msg = f"{self.kind} {name!r} is registered already, as {self[name]!r:.80}; choose another name"
            raise self.error(msg)
        self[name] = value

    def find(self, named: str | Any) -> T:  # noqa: ANN401 - whatever the caller brought
        """Returns the entry for a name, an import path, or an object that the caller brought.

        Raises:
            AbcSearchError: of the registry's kind, if the name is unknown (with the nearest valid one), the import path
                leads nowhere, or the object is of another kind.
        """
        if not isinstance(named, str):
            return self._accept(self.name_of(named), named)
        if named in self:
            return self._accept(named, self[named])
        if named.endswith(OBJECT):
            return self._accept(named, self._brought(named))
        if ":" not in named:
            raise self.error(self.unknown(named))
        return self._accept(named, self.imported(named))

    def imported(self, path: str) -> Any:  # noqa: ANN401 - whatever it leads to
        """Returns what an import path leads to, as it is.

        Raises:
            AbcSearchError: of the registry's kind, if it leads nowhere, or to something that cannot be called.
        """
        return (import_callable if self._callables else import_named)(self.kind, path, self.error)

    def unknown(self, name: object) -> str:
        """Returns the message for a name that is none, with the nearest valid one."""
        last = "callable" if self._callables else "name"
        return f"{unknown_name(self.kind, str(name), self)}; your own is named by import path, package.module:{last}"

    def _brought(self, name: str) -> Any:  # noqa: ANN401 - whatever the caller brought
        """Returns the object that a record names; it has to have been brought to this process before."""
        if name not in self._objects:
            msg = f"{self.kind} {name!r} was passed in Python, and has no name to import it by: pass it again"
            raise self.error(msg)
        return self._objects[name]

    def where(self, name: str) -> Home | None:
        """Returns where an entry of this package is; None of one that is here already, or has been added."""
        value: Any = self._entries[name]
        return value if isinstance(value, Home) else None

    def name_of(self, value: str | Any) -> str:  # noqa: ANN401 - whatever the caller brought
        """Returns what records call it: the name or import path, or that of its class or function and `OBJECT`.

        What cannot be imported by name is kept, so that `find` finds it in this process.
        """
        if isinstance(value, str):
            return value
        name = import_path(value)
        if name is not None:
            return name
        name = object_name(value)
        self._objects[name] = value
        return name

    def added(self) -> dict[str, T]:
        """Returns what has been added in this process, or put in the place of what comes with the package."""
        return {
            name: self[name]
            for name, value in self._entries.items()
            if value is not self.homes.get(name)
        }

    def sent(self) -> dict[str, Callable[[], object]]:
        """Returns calls that add the same in another process, by what messages call them.

        They may be pickled if what has been added can be.
        """
        variable = self._home.partition(":")[2]
        return {
            f"{variable}[{name!r}]": partial(setitem, self, name, value)
            for name, value in self.added().items()
        }


def _registry(home: str) -> Registry[Any]:
    """Returns a registry of this process."""
    return Home(path=home).value


def import_path(value: object) -> str | None:
    """Returns the import path that leads to a class or function in every process, or None where there is none."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "<object>")
    if not isinstance(module, str) or module == "__main__" or "<" in name:
        return None
    try:
        reached = attrgetter(name)(sys.modules[module])
    except (KeyError, AttributeError):
        return None
    return f"{module}:{name}" if reached is value else None


def object_name(value: object) -> str:
    """Returns what records call an object that cannot be imported: the name of its class or function, and `OBJECT`."""
    named: Any = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}:{named.__qualname__}{OBJECT}"
