"""The options of preparations, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from abcsearch.errors import ConfigError, unknown_name
from abcsearch.records import problems, setting
from abcsearch.training.recipe import Recipe, find_preset


@dataclass(frozen=True, kw_only=True)
class SlimmingOptions:
    """Options of `Slimming`.

    Attributes:
        strength: lambda, of the penalty: strength * sum of |gamma|; > 0. The default is the published one (VGG; 1e-5
            for ResNet-164) for 125,000 steps. A gamma that no loss defends shrinks by the sum of lr * strength /
            (1 - momentum) over all steps, which the report says and which should exceed what gammas are: shorter
            trainings need more strength.
        step: how the penalty acts: "proximal", which reaches 0, or "subgradient", as published, which does not.
        start_gamma: what all penalised gammas begin with, > 0; published: 0.5, of a network that is trained from the
            beginning. None: what they are.
        recipe: of the training: a table as [finetune], preset and changes to it; by default 30 epochs of SGD at 0.02.

    Raises:
        ConfigError: if an option is of another type or out of range.
    """

    strength: float = setting(1e-4, above=0)
    step: str = setting("proximal", words=("proximal", "subgradient"))
    start_gamma: float | None = setting(None, above=0)
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        """Checks the values."""
        wrong = problems(self)
        if not isinstance(self.recipe, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            wrong.append(f"recipe is a table, found {self.recipe!r:.80}")
        if wrong:
            msg = f"slimming: {'; '.join(wrong)}"
            raise ConfigError(msg)
        if self.training.ema:
            msg = f"slimming: ema = {self.training.ema} averages gammas that are 0 with what they were; set it to 0"
            raise ConfigError(msg)

    @property
    def training(self) -> Recipe:
        """The recipe of the training."""
        changes = dict(self.recipe)
        preset = changes.pop("preset", None)
        known = ["preset", *(f.name for f in fields(Recipe))]
        for name in changes:
            if name not in known:
                raise ConfigError(unknown_name("setting of slimming.recipe:", name, known))
        return replace(Recipe(lr=0.02) if preset is None else find_preset(str(preset)).recipe, **changes)
