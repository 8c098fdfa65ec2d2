"""Transforms by name, and which of them may follow which, without torch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from abcsearch.errors import AbcSearchError, ConfigError
from abcsearch.records import is_record
from abcsearch.registry import Home, Registry
from abcsearch.transforms.options import (
    CodebookOptions,
    FactoriseOptions,
    QuantizeOptions,
    SparsifyOptions,
    record_with,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abcsearch.transforms.base import Transform


@dataclass(frozen=True, kw_only=True)
class TransformEntry:
    """One registered transform.

    Attributes:
        make: the class, called with its options.
        options: the class of its options record.
        makes: what it makes of a network, for those that come later: "factorised", "sparse" ...
        loses_after: by what an earlier one has made of the network, why this one loses after it.
        ends: why nothing can follow it; "" where something can.
        description: one line.
        source: paper.
    """

    make: type[Transform] | Home
    options: type
    makes: str = ""
    loses_after: Mapping[str, str] = field(default_factory=dict[str, str])
    ends: str = ""
    description: str = ""
    source: str = ""

    @property
    def transform(self) -> type[Transform]:
        """The class, imported."""
        return self.make.value if isinstance(self.make, Home) else self.make


def _accept(name: str, value: Any) -> TransformEntry:  # noqa: ANN401 - whatever a name leads to
    """Returns the entry for what a name leads to: an entry, or a whole subclass of `Transform`."""
    if isinstance(value, TransformEntry):
        return value
    from abcsearch.transforms.base import Transform

    if not isinstance(value, type) or not issubclass(value, Transform) or inspect.isabstract(value):
        msg = f"transform {name!r} is a class derived from abcsearch.Transform with a method apply, found {value!r:.80}"
        raise ConfigError(msg)
    if not is_record(value.Options):
        msg = f"transform {name!r}: Options is a frozen dataclass, or left out, found {value.Options!r:.80}"
        raise ConfigError(msg)
    traits = {"makes": value.makes, "loses_after": value.loses_after, "ends": value.ends}
    return TransformEntry(make=value, options=value.Options, **traits)


_BUILT_IN: dict[str, TransformEntry | Home] = {
    "low_rank": TransformEntry(
        make=Home(path="abcsearch.transforms.factorise:Factorise"),
        options=FactoriseOptions,
        makes="factorised",
        loses_after={
            "sparse": "products of smaller layers have all of their weights, so that what was set to 0 comes back",
            "shared": "factors are other numbers than the weights, so that what these have in common is lost",
        },
        description="convolutions and linear layers as products of smaller ones: fewer MACs, fewer bytes",
        source="Jaderberg et al., BMVC 2014; Denton et al., NIPS 2014; Kim et al., ICLR 2016; Zhang et al., TPAMI 2016",
    ),
    "sparsify": TransformEntry(
        make=Home(path="abcsearch.transforms.sparse:Sparsify"),
        options=SparsifyOptions,
        makes="sparse",
        loses_after={
            "shared": "the values of the codebook were fitted to weights that this takes away"
        },
        description="the smallest weights become 0 and stay so: fewer bytes in the format compressed, not less time",
        source="Han et al., NIPS 2015, and Deep Compression, ICLR 2016",
    ),
    "codebook": TransformEntry(
        make=Home(path="abcsearch.transforms.codebook:Codebook"),
        options=CodebookOptions,
        makes="shared",
        loses_after={
            "shared": "the weights have a codebook already: set its bits where it is made"
        },
        description="few values for all weights of a layer: fewer bytes in the format compressed, not less time",
        source="Han et al., Deep Compression, ICLR 2016",
    ),
    "quantize": TransformEntry(
        make=Home(path="abcsearch.exporting.quantizing:Quantize"),
        options=QuantizeOptions,
        makes="int8",
        loses_after={
            "shared": "int8 rounds every channel by itself: the shared values are other ones afterwards"
        },
        ends="an int8 network is a traced computation without weights that could be changed: quantise last",
        description="int8, per channel, by ranges on training images; files .pt2 and .onnx only, nothing follows it",
        source="Jacob et al., CVPR 2018",
    ),
}

# Name -> transform. `TRANSFORMS["mine"] = MyTransform` makes one known by name; an import path needs no entry.
TRANSFORMS: Registry[TransformEntry] = Registry(
    "transform", f"{__name__}:TRANSFORMS", _BUILT_IN, error=ConfigError, accept=_accept
)


def make_transform(name: str, options: Mapping[str, Any]) -> Transform:
    """Returns a transform by name, or your own by import path, with its options.

    Raises:
        ConfigError: if the name or an option is unknown (with the nearest valid one), or out of range.
    """
    entry = TRANSFORMS.find(name)
    try:
        return entry.transform(record_with(entry.options, options))
    except AbcSearchError as error:
        raise type(error)(f"transform {name!r}: {error}") from error
    except Exception as error:  # the user's code: anything can go wrong in it
        msg = f"transform {name!r} cannot be made: {type(error).__name__}: {error}"
        raise ConfigError(msg) from error


def order_problems(names: Sequence[str]) -> list[str]:
    """Returns why links lose in the order in which they are named, each with what to do; [] where none does."""
    entries = [TRANSFORMS.find(name) for name in names]
    told: list[str] = []
    for late, entry in enumerate(entries):
        for early in range(late):
            before = entries[early]
            reason = before.ends or entry.loses_after.get(before.makes, "")
            if reason and names[early] == names[late]:
                told.append(f"transform {names[late]!r} is there twice: {reason}; leave one out")
            elif reason:
                told.append(
                    f"transform {names[late]!r} loses after {names[early]!r}: {reason}; put it in front of that, or "
                    "leave one of them out"
                )
    return list(dict.fromkeys(told))
