"""ShortTraining: score a sliced network after a little training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from abcsearch.channels.renewing import check_renewable, renew
from abcsearch.evaluation.dropout import Dropout
from abcsearch.evaluation.options import ShortTrainingOptions
from abcsearch.evaluation.sliced import SlicedEvaluator
from abcsearch.evaluation.utilisation import again_traced
from abcsearch.training.checks import check_images, fitted
from abcsearch.training.lesson import Supervised
from abcsearch.training.loop import train

if TYPE_CHECKING:
    from abcsearch.channels.source import Source
    from abcsearch.data.splits import Data

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class ShortTraining(SlicedEvaluator):
    """Slices the trained network, trains it for a few epochs or steps, and scores it on search-validation.

    The order of the images and their augmentation come from the evaluation's seed.

    Source: Lin et al., ABCPruner (IJCAI 2020), section 3.4.

    Differences from the paper:
        - Weights are inherited with everything that belongs to them, batch norms included; the published code
          initialises these anew: `fresh_norms`.
        - Search-validation is held out of the training images; the published code selects on the test set.
        - The learning rate follows a cosine down to 0, so that a short training ends settled.
    """

    Options = ShortTrainingOptions
    options: ShortTrainingOptions

    def __init__(
        self, source: Source, data: Data, options: ShortTrainingOptions | None = None
    ) -> None:
        """Prepares the evaluator; see `SlicedEvaluator`.

        Warns:
            UserWarning: if there are fewer training images than one batch.
        """
        options = options or ShortTrainingOptions()
        check_images(options.recipe(), data.train)
        if options.fresh_weights:
            check_renewable(source.model, "set fresh_weights = false")
        super().__init__(source, data, options)

    def prepare(self, network: nn.Module, seed: int, batch_divisor: int) -> None:
        """Trains the network."""
        if self.options.fresh_weights:
            renew(network, seed)
        if self.options.fresh_norms:
            for module in network.modules():
                if isinstance(module, _NORMS):
                    module.reset_parameters()
        train(
            self._lesson(network),
            self.data.train,
            fitted(
                self.options.recipe(batch_divisor), len(self.data.train)
            ),  # of which it was told once
            seed=seed,
            stream="short training",
            steps=self.options.steps,
        )

    def _lesson(self, network: nn.Module) -> Supervised:
        """Returns what a network is taught."""
        objective = self.data.objective
        if not self.options.dropout:
            return Supervised(network, objective=objective)
        graph = again_traced(network, self.data)
        return Dropout(network, graph, rate=self.options.dropout, objective=objective)
