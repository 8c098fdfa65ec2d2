"""Made-up accuracies of networks of 30 to 60 dimensions, in closed form: for searching where no table can be complete.

A landscape has layers of full widths W_i, kept widths w_i, and convolutions e between two of them (the image before the
first and the classes behind the last are layers as well, never pruned). With keep ratios r = w / W, a convolution with
input ratio r_in and output ratio r_out has

    effective ratio  u_e = sqrt(min(r_in, r_out) * sqrt(r_in * r_out))        half a bottleneck, half a geometric mean
    gain             g_e = (1 - exp(-u_e / s_e)) / (1 - exp(-1 / s_e))         saturates; 1 at full width
    accuracy         10 % + 84 % * prod_e g_e ** a_e * prod_b exp(-c_b) ** (1 - z_b)

over the convolutions that are not in a dropped block; z_b is the switch of block b. Drawn from the landscape's seed:
scales s_e, log-uniform in 0.08 ... 0.6; weights a_e, exponential, sum 1; costs c_b of dropping a block, log-uniform in
0.002 ... 0.06. What a searcher sees is accuracy plus normal noise of 0.7 points, a function of structure and evaluation
seed: as much as a score on some thousands of images has after statistics are estimated anew.

macs_e = k_e^2 * w_in * w_out * (spatial size)^2, params_e the same without the spatial size; 0 in a dropped block.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from abcsearch.rng import numpy_stream
from abcsearch.space import Candidate, Dimension, SearchSpace
from abcsearch.trial import Evaluation

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

NOISE = 0.007  # standard deviation of an evaluation, in accuracy
_CHANCE, _GAIN = 0.10, 0.84
_CHOICES = 10  # widths per layer: 10 %, 20 % ... 100 %
_STAGES = 3  # width doubles and spatial size halves from stage to stage
_IMAGE, _CLASSES = 3, 10


@dataclass(frozen=True)
class Layout:
    """What a landscape consists of.

    Attributes:
        stem: layers in a chain per stage; the last one is what the blocks of the stage are added to.
        blocks: residual blocks per stage, of two layers and a switch each.
    """

    stem: int
    blocks: int


LAYOUTS = {30: Layout(10, 0), 45: Layout(3, 4), 60: Layout(20, 0)}


@dataclass
class _Builder:
    """Dimensions and convolutions while they are put together."""

    dimensions: list[Dimension] = field(default_factory=list[Dimension])
    convolutions: list[tuple[int, int, int, int]] = field(
        default_factory=list[tuple[int, int, int, int]]
    )

    def layer(self, stage: int) -> int:
        """Adds a layer of a stage; returns its dimension."""
        full = 40 * 2**stage
        choices = tuple(full * (i + 1) // _CHOICES for i in range(_CHOICES))
        self.dimensions.append(Dimension(f"layer{len(self.dimensions)}", "width", choices))
        return len(self.dimensions) - 1

    def block(self, stage: int, stream: int) -> None:
        """Adds a block of two layers on a stream."""
        first, second = self.layer(stage), self.layer(stage)
        switch = len(self.dimensions)
        self.dimensions.append(Dimension(f"block{switch}", "block", (0, 1)))
        for start, end in itertools.pairwise((stream, first, second, stream)):
            self.convolutions.append((start, end, stage, switch))


class Landscape:
    """One landscape, drawn from a seed: space, costs, evaluations with noise, and the truth.

    An evaluator, and the costs of its space.

    Attributes:
        space: the structures.
    """

    def __init__(self, n_dims: int, seed: int) -> None:
        """Draws a landscape.

        Args:
            n_dims: a key of LAYOUTS.
            seed: decides scales, weights and costs of blocks.
        """
        layout, builder = LAYOUTS[n_dims], _Builder()
        # Columns behind the dimensions: constants
        image, classes, always = (n_dims, n_dims + 1, n_dims + 2)
        before = image
        for stage in range(_STAGES):
            for _ in range(layout.stem):
                here = builder.layer(stage)
                builder.convolutions.append((before, here, stage, always))
                before = here
            for _ in range(layout.blocks):
                builder.block(stage, before)
        builder.convolutions.append((before, classes, _STAGES - 1, always))
        self.space = SearchSpace(tuple(builder.dimensions))
        self._start, self._end, stages, self._switch = np.array(builder.convolutions).T
        kernels = np.where(self._end == classes, 1, 9)
        self._params_factor = kernels
        self._macs_factor = kernels * np.where(self._end == classes, 1, (32 >> stages) ** 2)
        self._constants = np.array([_IMAGE, _CLASSES, 1])
        self._full = np.array([*self.space.full, *self._constants], dtype=np.float64)
        rng = numpy_stream(seed, "landscape", n_dims)
        n = len(stages)
        self._scales = np.exp(rng.uniform(np.log(0.08), np.log(0.6), n))
        self._top = 1 - np.exp(-1 / self._scales)
        weights = rng.exponential(size=n)
        self._weights = weights / weights.sum()
        self._blocks = np.flatnonzero([d.kind == "block" for d in self.space.dimensions])
        self._dropped = np.exp(rng.uniform(np.log(0.002), np.log(0.06), len(self._blocks)))

    def _columns(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns candidates with the constants behind: (n, n_dims) to (n, n_dims + 3)."""
        rows = np.asarray(candidates, dtype=np.int64)
        return np.concatenate([rows, np.broadcast_to(self._constants, (len(rows), 3))], axis=1)

    def _products(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns input times output width of every convolution, 0 in dropped blocks: (n, n_convolutions)."""
        rows = self._columns(candidates)
        return rows[:, self._start] * rows[:, self._end] * rows[:, self._switch]

    def macs(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns multiply-accumulates: (n, n_dims) to (n,) int64."""
        return self._products(candidates) @ self._macs_factor

    def flops(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns the survey's count, twice the macs as there are no biases: (n, n_dims) to (n,) int64."""
        return 2 * self.macs(candidates)

    def params(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns the number of parameters: (n, n_dims) to (n,) int64."""
        return self._products(candidates) @ self._params_factor

    def truths(self, candidates: ArrayLike) -> NDArray[np.float64]:
        """Returns accuracies without noise: (n, n_dims) to (n,) float64 in [0.1, 0.94]."""
        rows = self._columns(candidates)
        ratios = rows / self._full
        start, end = ratios[:, self._start], ratios[:, self._end]
        effective = np.sqrt(np.minimum(start, end) * np.sqrt(start * end))
        gains = np.log((1 - np.exp(-effective / self._scales)) / self._top) * rows[:, self._switch]
        exponent = gains @ self._weights - (1 - rows[:, self._blocks]) @ self._dropped
        return _CHANCE + _GAIN * np.exp(exponent)

    def __call__(self, candidate: Candidate, seed: int) -> Evaluation:
        """Returns accuracy with noise as fitness and as metric top1."""
        noise = numpy_stream(
            seed, "noise", zlib.crc32(np.array(candidate, dtype=np.int64).tobytes())
        ).normal()
        fitness = float(np.clip(self.truths([candidate])[0] + NOISE * noise, 0, 1))
        macs, params = int(self.macs([candidate])[0]), int(self.params([candidate])[0])
        return Evaluation(fitness=fitness, metrics={"top1": fitness}, macs=macs, params=params)
