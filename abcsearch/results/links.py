"""What a chain of transforms has left in a folder: a record for each link, which vouches for its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from abcsearch.bounds import short_count
from abcsearch.errors import RunError
from abcsearch.files import replace_file, sealed, unsealed
from abcsearch.results.intervals import ends_of
from abcsearch.training.named import metric_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FOLDER = "chain"  # in that of a run
CHAIN, LINK = "chain.json", "link.json"
_COUNTS = {
    "macs": "MACs",
    "params": "params",
    "nonzero": "not 0",
    "weight_bytes": "bytes of weights",
    "file_bytes": "bytes of files",
    "bit_operations": "bit operations",
}
START = "start"  # the name of the network that the chain begins with


@dataclass(frozen=True, kw_only=True)
class Link:
    """What one transform has made of a network.

    Attributes:
        name: of the transform, or "start": the network that the chain begins with.
        identity: what it was made of and how: another network, order, option, recipe or seed gives another one.
        format: of its files, see `export`.
        files: hashes of its files by name.
        options: of the transform.
        facts: what was done, by the path of the module.
        notes: what to know about it.
        recipe: how it was trained; None: not at all.
        macs: multiply-accumulates of one image; computed in full, zeros or not.
        params: number of parameters.
        nonzero: how many of these are not 0.
        weight_bytes: of its parameters and buffers: as they are stored, in the format compressed as packed.
        file_bytes: of all of its files.
        bits: of weights and of activations that are multiplied.
        untrained: metrics on the test images before it was trained; {} where it was not.
        test: metrics on the test images.
        hits: which test images are answered rightly, as `packed`; () where the metric does not say so.
        resampled: what the metric is of test images drawn with replacement, by name, as `packed_draws`; {} of shares of
            images, and of links of earlier versions.
    """

    name: str
    identity: str
    format: str
    files: Mapping[str, str]
    macs: int
    params: int
    nonzero: int
    weight_bytes: int
    file_bytes: int
    test: Mapping[str, float]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    notes: tuple[str, ...] = ()
    recipe: Mapping[str, Any] | None = None
    bits: tuple[int, int] = (32, 32)
    untrained: Mapping[str, float] = field(default_factory=dict[str, float])
    hits: tuple[Any, ...] = field(default=(), repr=False)
    resampled: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)

    @property
    def bit_operations(self) -> int:
        """MACs times the bits of both numbers that are multiplied."""
        return self.macs * self.bits[0] * self.bits[1]

    @property
    def counts(self) -> tuple[int, ...]:
        """Its costs, in the order of tables."""
        return tuple(getattr(self, name) for name in _COUNTS)

    @classmethod
    def of(cls, plain: Any) -> Link:  # noqa: ANN401 - any JSON value
        """Returns the record of plain JSON values.

        Raises:
            ValueError: if they are none.
        """
        kinds: dict[str, Any] = {
            "name": str,
            "identity": str,
            "format": str,
            "files": Mapping,
            "test": Mapping,
        }
        kinds |= {
            "options": Mapping,
            "facts": Mapping,
            "notes": list,
            "recipe": Mapping | None,
            "bits": list,
        }
        kinds |= {"untrained": Mapping, "hits": list, "resampled": Mapping}
        if isinstance(plain, Mapping):
            plain = {"resampled": {}, **plain}  # which links of earlier versions do not have
        if not isinstance(plain, Mapping) or plain.keys() != {
            field_.name for field_ in fields(cls)
        }:
            msg = f"it is no link of a chain: {plain!r:.80}"
            raise ValueError(msg)
        wrong = [key for key, value in plain.items() if not isinstance(value, kinds.get(key, int))]
        numbers = (
            [*plain["test"].values(), *plain["untrained"].values(), *plain["bits"]]
            if not wrong
            else []
        )
        if (
            wrong
            or not all(isinstance(number, int | float) for number in numbers)
            or len(plain["bits"]) != 2
        ):
            msg = f"it is no link of a chain: {', '.join(wrong) or 'a number'} is of another kind"
            raise ValueError(msg)
        return cls(**{**plain, **{key: tuple(plain[key]) for key in ("notes", "bits", "hits")}})


@dataclass(frozen=True, kw_only=True)
class Time:
    """How long a pass of every network of a chain takes.

    Attributes:
        runtime: "torch" or "onnxruntime".
        batch: images per pass.
        median_ms: for the whole batch, by the place of the network, the start first; None where it does not run.
    """

    runtime: str
    batch: int
    median_ms: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A network, and what a chain of transforms has made of it, link by link.

    Attributes:
        folder: where the networks are.
        links: in their order; the first is the network that it begins with.
        metric: of `Link.test` that tables show.
        images: number of test images.
        times: forward times.
        threads: of the CPU, when these were measured.
        untimed: by the place of the network, why onnxruntime has no time of it; "" where it has, or nothing is known.
    """

    folder: Path
    links: tuple[Link, ...]
    metric: str
    images: int
    times: tuple[Time, ...] = ()
    threads: int = 1
    untimed: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each link: its transform, numbered where there are several."""
        names = [link.name for link in self.links]
        return tuple(
            n if names.count(n) == 1 else f"{n} {names[: i + 1].count(n)}"
            for i, n in enumerate(names)
        )

    def place(self, number: int) -> Path:
        """Returns the folder of a link, 0 of the network that it begins with."""
        return link_folder(self.folder, number, self.links[number].name)

    def cells(self, *, short: bool = False) -> list[list[str]]:
        """Returns the table as text, one list per row, the header first.

        Args:
            short: counts as 1.65 M instead of 1,648,256.
        """
        count = short_count if short else "{:,}".format
        start = self.links[0]
        head = ["link", *_COUNTS.values(), f"test {self.metric}"]
        rows = [[*head, *(f"{time.runtime}, batch {time.batch}" for time in self.times)]]
        for index, (label, link) in enumerate(zip(self.labels, self.links, strict=True)):
            times = [time.median_ms[index] for time in self.times]
            rows.append(
                [
                    label,
                    *(
                        f"{count(now)} ({100 * now / before:.3g} %)" if before else count(now)
                        for now, before in zip(link.counts, start.counts, strict=True)
                    ),
                    self._score(link),
                    *("-" if ms is None else f"{ms:.3g} ms" for ms in times),
                ]
            )
        return rows

    def _score(self, link: Link) -> str:
        """Returns the metric, with its interval where that is known."""
        value = link.test[self.metric]
        text = metric_text(self.metric, value)
        ends = ends_of(self.metric, value, self.images, link.resampled)
        if ends is not None:
            text += f" ({' to '.join(metric_text(self.metric, end) for end in ends)})"
        return text

    def lines(self) -> list[str]:
        """Returns what to know about the links, a line each."""
        told = [
            f"{label}: {note}"
            for label, link in zip(self.labels, self.links, strict=True)
            for note in link.notes
        ]
        sparse = any(link.format == "compressed" for link in self.links)
        told += (
            ["links of the format compressed save bytes, not time: what is loaded is dense"]
            if sparse
            else []
        )
        int8 = any(link.bits != (32, 32) for link in self.links)
        told += ["torch computes int8 in float32, onnxruntime in integers"] if int8 else []
        reasons = [pair for pair in zip(self.labels, self.untimed, strict=False) if pair[1]]
        return [*told, *(f"no time by onnxruntime of {name}: {why}" for name, why in reasons[:1])]

    def to_plain(self) -> dict[str, Any]:
        """Returns plain JSON values, without the folder."""
        return {
            **{key: value for key, value in asdict(self).items() if key != "folder"},
            "cells": self.cells(),
        }


def link_folder(folder: Path, number: int, name: str) -> Path:
    """Returns where a link is kept."""
    letters = "".join(
        letter if letter.isalnum() or letter in "_-" else "_" for letter in name.rpartition(":")[2]
    )
    return folder / f"{number}-{letters}"


def identity_of(before: str, name: str, options: Mapping[str, Any], recipe: Any, seed: int) -> str:  # noqa: ANN401 - plain
    """Returns what a link is recognised by: 16 hex digits.

    Args:
        before: of the link before it.
        name: of the transform.
        options: of it, plain JSON values.
        recipe: how it is trained, plain JSON values; None: not at all.
        seed: of the run.
    """
    return digits([before, name, options, recipe, seed])


def digits(value: Any) -> str:  # noqa: ANN401 - plain JSON values
    """Returns 16 hex digits that stand for plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def file_hashes(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Returns the hashes of files in a folder, by name."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest()[:16] for name in names}


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Replaces a record, with a checksum."""
    text = sealed(record)
    replace_file(path, lambda file: file.write_text(text, encoding="utf-8"))


def read_link(folder: Path, identity: str | None = None) -> Link | None:
    """Returns the record of a link whose files are whole; None where there is none, or that of another identity.

    Args:
        folder: of the link.
        identity: that it is to have.

    Raises:
        ValueError: if the record, or a file that it vouches for, is damaged or missing.
    """
    try:
        link = Link.of(unsealed((folder / LINK).read_text(encoding="utf-8"))[0])
    except FileNotFoundError:
        return None
    except (OSError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if identity not in (None, link.identity):
        return None
    others = [name for name in link.files if "/" in name or not (folder / name).is_file()]
    if others or file_hashes(folder, list(link.files)) != dict(link.files):
        msg = (
            f"{others[0] if others else 'a file'} is missing or another one than that of the record"
        )
        raise ValueError(msg)
    return link


def read_chain(folder: Path) -> Chain | None:
    """Returns the chain that a folder holds; None where there is none that is finished.

    Raises:
        RunError: if its record is damaged.
    """
    path = folder / CHAIN
    try:
        plain: Any = unsealed(path.read_text(encoding="utf-8"))[0]
        links = tuple(Link.of(link) for link in plain["links"])
        times = tuple(
            Time(**{**time, "median_ms": tuple(time["median_ms"])}) for time in plain["times"]
        )
        chain = Chain(
            folder=folder,
            links=links,
            metric=plain["metric"],
            images=plain["images"],
            times=times,
            threads=plain["threads"],
            untimed=tuple(f"{why!s:.2000}" for why in plain.get("untimed", ())),
        )
        chain.cells()
    except FileNotFoundError:
        return None
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        RecursionError,
    ) as error:
        msg = f"{path} is damaged: {error!s:.200}; delete it, and the chain is put together again by: abcsearch finetune"
        raise RunError(msg) from error
    return chain


def chain_for(
    folder: Path, transforms: Sequence[tuple[str, Mapping[str, Any]]], weights: str | None
) -> Chain | None:
    """Returns the chain that a folder holds if it is that of a network and these transforms; else None.

    Args:
        folder: of the chain.
        transforms: names and options, in their order.
        weights: hash of the network that it begins with.
    """
    try:
        chain = read_chain(folder)
    except RunError:
        return None
    if chain is None or chain.links[0].facts.get("weights") != weights:
        return None
    there = [(link.name, link.options) for link in chain.links[1:]]
    return chain if there == [(name, _plain(options)) for name, options in transforms] else None


def _plain(options: Mapping[str, Any]) -> Any:  # noqa: ANN401 - plain JSON values
    """Returns options as they come out of a file: tuples are lists."""
    return json.loads(json.dumps(options))


def write_chain(chain: Chain) -> None:
    """Writes the record of a chain that is finished."""
    plain = {"metric": chain.metric, "images": chain.images, "threads": chain.threads}
    plain["links"] = [asdict(link) for link in chain.links]
    plain["times"] = [asdict(time) for time in chain.times]
    if any(chain.untimed):
        plain["untimed"] = list(chain.untimed)
    write_record(chain.folder / CHAIN, plain)
