"""The options of transforms, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from abcsearch.errors import ConfigError, unknown_name
from abcsearch.records import check, setting
from abcsearch.training.recipe import Recipe, find_preset

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True, kw_only=True)
class LinkOptions:
    """What options of transforms that train have in common.

    Attributes:
        finetune: how the network is trained after it: changes to the recipe of the fine-tuning before, {} for that one
            as it is, preset to take another one. None: not at all.
    """

    finetune: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: if one is of another type or out of range, or the recipe is none.
        """
        check(self, "transform")
        recipe_of(self, Recipe())

    @classmethod
    def of(cls, **plain: Any) -> Self:  # noqa: ANN401 - plain values
        """Returns the record of options; raises ConfigError for one that is unknown."""
        return record_with(cls, plain)


def record_with(kind: type, plain: Mapping[str, Any]) -> Any:  # noqa: ANN401 - the record
    """Returns a record of options.

    Raises:
        ConfigError: if an option is unknown.
    """
    known = [field.name for field in fields(kind)]
    for name in plain:
        if name not in known:
            raise ConfigError(unknown_name("option of the transform:", name, known))
    return kind(**plain)


def recipe_of(options: Any, usual: Recipe) -> Recipe | None:  # noqa: ANN401 - a record of options
    """Returns the recipe that a transform's options ask for; None where nothing is to be trained.

    Args:
        options: of a transform; of those without a field `finetune` nothing is trained.
        usual: the recipe that changes are made to where no preset is named.

    Raises:
        ConfigError: if it is none.
    """
    changes = getattr(options, "finetune", None)
    if changes is None:
        return None
    if not isinstance(changes, Mapping):
        msg = f"finetune of a transform is a table of changes to the recipe, found {changes!r:.80}"
        raise ConfigError(msg)
    plain = dict(changes)
    preset = plain.pop("preset", None)
    known = ["preset", *(field.name for field in fields(Recipe))]
    for name in plain:
        if name not in known:
            raise ConfigError(unknown_name("setting of a transform's finetune:", name, known))
    return replace(usual if preset is None else find_preset(str(preset)).recipe, **plain)


def plain_recipe(recipe: Recipe) -> dict[str, Any]:
    """Returns a recipe as plain JSON values."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(recipe).items()
    }


@dataclass(frozen=True, kw_only=True)
class FactoriseOptions(LinkOptions):
    """Options of `low_rank` as a link of a chain.

    Attributes:
        method: "output", "input", "spatial" or "tucker", see docs/low-rank.md.
        ranks: share of the squared singular values to keep, "evbmf", "break_even", "full", or ranks by the path of the
            layer, of "tucker" two: {"stage1.0.conv1" = 12}.
        data: whether outputs on training images are met best, instead of weights; with method "output".
        images: training images that are looked at for it, and that statistics of normalisations are taken of anew.
    """

    method: str = setting("spatial", words=("output", "input", "spatial", "tucker"))
    ranks: Any = 0.9
    data: bool = False
    images: int = setting(1024, at_least=1)

    def __post_init__(self) -> None:
        """Checks the values."""
        super().__post_init__()
        if isinstance(self.ranks, bool) or not isinstance(self.ranks, int | float | str | Mapping):
            msg = f"low_rank: ranks are a share, a rule, or a table of ranks by the path of a layer, found {self.ranks!r}"
            raise ConfigError(msg)
        if self.data and self.method != "output":
            msg = f"low_rank: with data, outputs are met best, which only method 'output' can, found {self.method!r}"
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class SparsifyOptions(LinkOptions):
    """Options of `sparsify`.

    Attributes:
        sparsity: share of the weights of convolutions and linear layers that become 0.
        scope: "layer", the same share of each; "global", the smallest of all of them together.
        fixed: paths of layers that stay as they are.
        images: training images that statistics of normalisations are taken of anew where nothing is trained.
    """

    sparsity: float = setting(0.8, above=0, below=1)
    scope: Literal["layer", "global"] = setting("layer", words=("layer", "global"))
    fixed: tuple[str, ...] = ()
    images: int = setting(1024, at_least=1)

    def __post_init__(self) -> None:
        """Turns a list (TOML, JSON) into a tuple, and checks the values."""
        object.__setattr__(self, "fixed", tuple(self.fixed))
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class CodebookOptions(LinkOptions):
    """Options of `codebook`.

    Differences from the paper: the gradient of a value is the mean of those of its weights, not their sum, so that the
    learning rates of weights suit; LZMA codes instead of Huffman's.

    Attributes:
        bits: of the number of a weight's value in convolutions: a layer has 2^bits values at most.
        linear_bits: the same of linear layers.
        fixed: paths of layers that stay as they are.
    """

    bits: int = setting(8, at_least=1, at_most=16)
    linear_bits: int = setting(5, at_least=1, at_most=16)
    fixed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Turns a list (TOML, JSON) into a tuple, and checks the values."""
        object.__setattr__(self, "fixed", tuple(self.fixed))
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """Options of `quantize` as a link of a chain.

    Attributes:
        images: training images on which ranges of activations are observed.
    """

    images: int = setting(256, at_least=1)

    def __post_init__(self) -> None:
        """Checks the values."""
        check(self, "quantize")
