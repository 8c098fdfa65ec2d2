"""The check at the end of tracing: one random structure of the network, sliced, computes what the gated original does.

Rules can be wrong, rules of the user's own above all, and a forward can do what no rule sees. So what was found out is
tried on a copy, with noise on weights that are all the same: a layer that starts at zero would hide mistakes.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abcsearch.channels.decisions import Decisions
from abcsearch.channels.fast.cloning import clone, keeping_buffers
from abcsearch.channels.gates import gated
from abcsearch.channels.layout import lay_rows
from abcsearch.channels.orders import Ranking
from abcsearch.channels.recording import returned_by
from abcsearch.channels.slicing import slice_model
from abcsearch.formats import first_line
from abcsearch.rng import numpy_stream, torch_seeded

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.example import Example

# What differs by less is right; what differs by more, in double precision, is wrong
_DOUBTFUL, _SURE = (0.7, 0.5)
_NOISE = 0.1  # added to a parameter that is the same everywhere


def misfits(model: nn.Module, graph: ChannelGraph, example: Example) -> dict[int, str]:
    """Returns the prunable groups whose channels cannot be removed after all, with the reason; none as a rule.

    That takes two forward passes, and about two per group if something is wrong. On the meta device only shapes are
    compared. Of a network that draws random numbers in forward, it only counts whether the smaller one runs.

    Args:
        model: the network; not changed.
        graph: its channel groups.
        example: an input.
    """
    if not graph.prunable:
        return {}
    with (
        torch.inference_mode(mode=False),
        torch.no_grad(),
        torch_seeded(0, "check"),
        keeping_buffers(model),
    ):
        trial = _Trial(lay_rows(clone(model, {})).eval(), graph, example)
        full, narrow = trial.full, trial.narrow
        if trial.difference(narrow) is None:
            return {}
        trial = trial.in_double() or trial
        trial.exponent = _SURE
        if trial.difference(narrow) is None:
            return {}
        if trial.is_random():
            trial.compares = False
            if trial.difference(narrow) is None:
                return {}
        wrong: dict[int, str] = {}
        widths = list(full)
        for index in range(len(full)):
            widths[index] = narrow[index]
            reason = trial.difference(widths)
            if reason is not None:
                wrong[index] = f"self-check: {reason}"
                widths[index] = full[index]
        return wrong


class _Trial:
    """A noisy copy of a network, and what it computes in two ways.

    Attributes:
        full: the width of every prunable group.
        narrow: a random one.
        exponent: power of the smallest relative step that differences by rounding stay below.
        compares: whether it matters what is computed, or only that the smaller network runs.
    """

    def __init__(
        self, noisy: nn.Module, graph: ChannelGraph, example: Example, *, shake: bool = True
    ) -> None:
        self._model, self._graph, self._example = noisy, graph, example
        self.compares, self.exponent = True, _DOUBTFUL
        rng = numpy_stream(0, "check")
        self.full = [group.channels for group in graph.prunable]
        self.narrow = [
            int(rng.integers(1, channels)) if channels > 1 else 1 for channels in self.full
        ]
        scores = tuple(rng.permutation(float(1) * np.arange(channels)) for channels in self.full)
        self._ranking = Ranking(criterion="random", scores=scores)
        if shake:
            for parameter in noisy.parameters():
                if parameter.is_floating_point() and not parameter.is_meta and parameter.numel():
                    low, high = parameter.aminmax()
                    if low == high:
                        parameter.add_(torch.randn_like(parameter) * _NOISE)

    def in_double(self) -> _Trial | None:
        """Returns the same in double precision, where rounding explains nothing; None if it does not run so."""
        example = self._example.mapped(lambda x: x.double() if _is_real(x) else x)
        trial = _Trial(clone(self._model, {}).double(), self._graph, example, shake=False)
        return None if isinstance(trial._run(trial._model, 0), str) else trial

    def is_random(self) -> bool:
        """Returns whether the network computes something else every time."""
        one, two = (self._run(self._model, seed) for seed in (1, 2))
        if isinstance(one, str) or isinstance(two, str):
            return False
        return any(not _same(a, b, 0.0) for a, b in zip(one, two, strict=False))

    def difference(self, widths: list[int]) -> str | None:
        """Returns how a slice with these widths differs from the original with gates; None if it does not.

        What differs in double precision is tried once more with the original's decisions wherever the numbers that it
        decides by are the same: among equal scores, rounding says which are kept (see `Decisions`).
        """
        reason = self._compared(widths, contextlib.nullcontext(), contextlib.nullcontext())
        if reason is None or self.exponent != _SURE:
            return reason
        first = Decisions()
        return self._compared(
            widths, first, Decisions(first.made, lambda a, b: _same(a, b, _step(b) ** _SURE))
        )

    def _compared(
        self,
        widths: list[int],
        first: AbstractContextManager[Any],
        second: AbstractContextManager[Any],
    ) -> str | None:
        """Returns the difference if the original runs in one context, and then its slice in another."""
        gates = []
        for index, width in enumerate(widths):
            kept = torch.zeros(self.full[index])
            kept[torch.from_numpy(self._ranking.kept(index, width))] = 1
            gates.append(kept)
        with gated(self._model, self._graph, gates), first:
            expected = self._run(self._model, 0)
        if isinstance(expected, str):
            return f"the network does not run where some of them are zero: {expected}"
        narrow = slice_model(self._model, self._graph, widths, self._ranking)
        with second:
            actual = self._run(narrow, 0)
        if isinstance(actual, str):
            return f"the network does not run without some of them: {actual}"
        if not self.compares:
            return None
        if [x.shape for x in actual] != [x.shape for x in expected]:
            return "the network returns tensors of other shapes without some of them"
        for a, b in zip(actual, expected, strict=True):
            if not _same(a, b, _step(b) ** self.exponent):
                return (
                    "the network without some of them does not compute what is left of the original"
                )
        return None

    def _run(self, network: nn.Module, seed: int) -> list[torch.Tensor] | str:
        """Returns the tensors that a network returns on the example, or why it does not run; it stays as it is."""
        given = self._example.mapped(lambda x: x.clone() if isinstance(x, torch.Tensor) else x)
        try:
            with torch_seeded(seed, "check"), keeping_buffers(network):
                return returned_by(network(*given.args, **given.kwargs))
        except Exception as error:  # noqa: BLE001 - it may fail in any way
            return first_line(error)


def _is_real(x: Any) -> bool:  # noqa: ANN401 - inputs are anything
    """Returns whether an input is a tensor of real numbers."""
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _same(a: torch.Tensor, b: torch.Tensor, rounding: float) -> bool:
    """Returns whether two tensors are equal up to rounding, relative to the largest entry."""
    if a.is_meta or b.is_meta or not b.numel():
        return True
    if not (b.is_floating_point() or b.is_complex()):
        return torch.equal(a, b)
    finite = torch.isfinite(b)  # a gate of 0 leaves what is not finite as it is
    if not finite.all():
        a, b = a[finite], b[finite]
    return not b.numel() or bool((a - b).abs().max() <= rounding * b.abs().max())


def _step(tensor: torch.Tensor) -> float:
    """Returns the smallest relative step between entries of a tensor; 0 for whole numbers."""
    real = tensor.is_floating_point() or tensor.is_complex()
    return torch.finfo(tensor.dtype).eps if real else 0.0
