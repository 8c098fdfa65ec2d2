"""Whether a chain of transforms can work, as far as that is known before the search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abcsearch.errors import AbcSearchError, ConfigError
from abcsearch.training.checks import check_training
from abcsearch.transforms.options import recipe_of
from abcsearch.transforms.registry import make_transform, order_problems

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from abcsearch.data.splits import Data
    from abcsearch.runs.settings import Part
    from abcsearch.training.recipe import Recipe


def check_chain(parts: Sequence[Part], model: nn.Module, data: Data, recipe: Recipe) -> None:
    """Refuses a chain that cannot work, as far as that is known before the network is pruned.

    Raises:
        ConfigError: if links lose in this order, an option is wrong, or a recipe does not suit the data.
        ModelError, ExportError: as the transforms refuse.
    """
    if told := order_problems([chosen.name for chosen in parts]):
        raise ConfigError("\n".join(told))
    for chosen in parts:
        transform = make_transform(chosen.name, chosen.options)
        try:
            transform.check(model, data)
        except AbcSearchError as error:
            raise type(error)(f"transform {chosen.name!r}: {error}") from error
        recipe_ = recipe_of(transform.options, recipe)
        if recipe_ is not None:
            check_training(recipe_, data.train, data.objective, taught=recipe_.taught, scored=True)
