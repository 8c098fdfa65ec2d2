"""Models by name or import path."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from abcsearch.errors import ModelError, unknown_name
from abcsearch.models.resnet import SmallResNet
from abcsearch.rng import torch_seeded

# Name -> constructor. `MODELS["mine"] = MyNet` makes a model known by name; "package.module:callable" needs no entry.
MODELS: dict[str, Callable[..., nn.Module]] = {"small_resnet": SmallResNet}


@dataclass(frozen=True, kw_only=True)
class Constructor:
    """How to build a network without weights: what an export records so that it can be loaded back.

    Attributes:
        name: a key of `MODELS`, or an import path "package.module:callable".
        options: keyword arguments, plain JSON values.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def find(self) -> Callable[..., nn.Module]:
        """Returns the callable.

        Raises:
            ModelError: if the name is unknown (with the nearest valid one), or the import path leads nowhere.
        """
        if ":" not in self.name:
            if self.name not in MODELS:
                hint = "; your own model is named by import path, package.module:callable"
                raise ModelError(unknown_name("model", self.name, MODELS) + hint)
            return MODELS[self.name]
        module, _, attribute = self.name.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            msg = f"model {self.name!r} cannot be imported: {error}; write package.module:callable"
            raise ModelError(msg) from error
        return found

    def check(self) -> Callable[..., nn.Module]:
        """Returns the callable if the options fit it, without calling it.

        Raises:
            ModelError: as `find`, or if an option is unknown or missing.
        """
        make = self.find()
        try:
            signature = inspect.signature(make)
        except ValueError:  # some builtins have none
            return make
        try:
            signature.bind(**self.options)
        except TypeError as error:
            known = [n for n, p in signature.parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
            wrong = [option for option in self.options if option not in known]
            hint = unknown_name("option", wrong[0], known) if wrong else str(error)
            msg = f"model {self.name!r}: {hint}"
            raise ModelError(msg) from error
        return make

    def build(self, seed: int = 0) -> nn.Module:
        """Returns a new network, initialised from the stream (seed, "init"); the global random state is left alone.

        Raises:
            ModelError: if the options do not fit, or the result is not a module.
        """
        make = self.check()
        with torch_seeded(seed, "init"):
            model = make(**self.options)
        if not isinstance(model, nn.Module):
            msg = f"model {self.name!r} returned {type(model).__name__}, expected a torch.nn.Module"
            raise ModelError(msg)
        return model

    @classmethod
    def of(cls, target: str | Callable[..., nn.Module], options: Mapping[str, Any]) -> Constructor:
        """Returns the record for a name, an import path, or a class or function found by import."""
        if isinstance(target, str):
            return cls(name=target, options=dict(options))
        if "<" in target.__qualname__:
            msg = f"{target.__qualname__} cannot be imported by name; define it at the top level of a module"
            raise ModelError(msg)
        return cls(name=f"{target.__module__}:{target.__qualname__}", options=dict(options))
