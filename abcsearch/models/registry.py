"""Models by name or import path."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from abcsearch.errors import ModelError, option_problems
from abcsearch.importing import import_class
from abcsearch.models.named import MODELS
from abcsearch.rng import torch_seeded

# Shape of one input, (channels, height, width), where it is not that of an ImageNet photo.
INPUT_SHAPES: dict[str, tuple[int, int, int]] = {
    **dict.fromkeys((name for name in MODELS if name != "mobilenet_v1"), (3, 32, 32)),
    "small_resnet": (1, 8, 8),
    "tiny_ssd": (3, 64, 64),
}
IMAGENET_SHAPE = (3, 224, 224)

# Where networks of files from elsewhere come from
_PACKAGES = frozenset({"abcsearch", "timm", "torch", "torchvision"})
# Options that begin so load files, or code
_LOADING = ("weights", "pretrained", "checkpoint", "cache", "trust")


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
        return MODELS.find(self.name)

    def find_untrusted(self) -> Callable[..., nn.Module]:
        """Returns the callable for a record out of a file from elsewhere, which must not decide what code runs.

        That is a registered model, a registered factory of torchvision or timm, or a class of networks. What the name
        leads to decides, not how it is spelt; what is certainly none is not even imported (see `import_class`).

        Raises:
            ModelError: if it is nothing of these, or an option would have weights or code loaded.
        """
        advice = "; pass constructor=, or trust the file: trust=True, --trust, in a config model.trust = true"
        loading = [
            name for name, value in self.options.items() if name.startswith(_LOADING) and value
        ]
        if loading:
            msg = f"{self.name} is not called: its option {loading[0]} would have something loaded{advice}"
            raise ModelError(msg)
        if self.name in MODELS:
            return MODELS[self.name]
        try:
            made = import_class(self.name, _PACKAGES)
        except ValueError as error:
            msg = f"{self.name} is not imported: {error}{advice}"
            raise ModelError(msg) from error
        if isinstance(made, type) and issubclass(made, nn.Module):
            return made
        if callable(made) and _is_factory(made):
            downloads = "weights_backbone" in inspect.signature(made).parameters
            if not downloads or self.options.get("weights_backbone", "the usual") is None:
                return cast("Callable[..., nn.Module]", made)
        msg = (
            f"{self.name} is not called: it is no class of networks and no registered model{advice}"
        )
        raise ModelError(msg)

    def check(self) -> Callable[..., nn.Module]:
        """Returns the callable if the options fit it, without calling it.

        Raises:
            ModelError: as `find`, or with all options that are unknown or missing.
        """
        make = self.find()
        problems = option_problems(make, self.options)
        if problems:
            raise ModelError("\n".join(f"model {self.name!r}: {problem}" for problem in problems))
        return make

    def build(self, seed: int = 0, make: Callable[..., nn.Module] | None = None) -> nn.Module:
        """Returns a new network, initialised from the stream (seed, "init"); the global random state is left alone.

        Args:
            seed: the run's seed.
            make: called instead of what the name stands for.

        Raises:
            ModelError: if the options do not fit, the call fails, or the result is not a module.
        """
        make = self.check() if make is None else make
        try:
            with torch_seeded(seed, "init"):
                model = make(**self.options)
        except Exception as error:  # the user's code: anything can go wrong in it
            given = (
                ", ".join(f"{name}={value!r}" for name, value in self.options.items())
                or "no options"
            )
            msg = (
                f"model {self.name!r} cannot be built with {given}: {type(error).__name__}: {error}"
            )
            raise ModelError(msg) from error
        if not isinstance(model, nn.Module):
            msg = f"model {self.name!r} returned {type(model).__name__}, expected a torch.nn.Module"
            raise ModelError(msg)
        return model

    @classmethod
    def of(cls, target: str | Callable[..., nn.Module], options: Mapping[str, Any]) -> Constructor:
        """Returns the record for a name, an import path, or a class or function found by import.

        Raises:
            ModelError: if a callable has no name to import it by (a lambda, a local class, a functools.partial).
        """
        if isinstance(target, str):
            return cls(name=target, options=dict(options))
        name = getattr(target, "__qualname__", repr(target))
        if "<" in name:
            msg = f"{name} cannot be imported by name; define it at the top level of a module"
            raise ModelError(msg)
        return cls(name=f"{target.__module__}:{name}", options=dict(options))


def _is_factory(made: Callable[..., object]) -> bool:
    """Returns whether a function is a model that this package, torchvision or timm has registered."""
    if any(made is known for known in MODELS.values()):
        return True
    name = getattr(made, "__name__", "")
    if "torchvision" in sys.modules:
        from torchvision.models import get_model_builder, list_models

        if any(get_model_builder(known) is made for known in list_models()):
            return True
    if "timm" in sys.modules:
        from timm.models import is_model, model_entrypoint  # pyright: ignore[reportMissingImports] - an extra

        return bool(is_model(name)) and model_entrypoint(name) is made
    return False
