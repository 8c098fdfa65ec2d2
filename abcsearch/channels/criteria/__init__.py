"""The criteria by which channels are kept, by name; all give scores per channel, higher is more worth keeping.

A criterion of your own is an entry of `CRITERIA`; whoever names it then gets it, a config file too:

    CRITERIA["strength"] = ActivationCriterion(lambda maps: maps.abs().mean(dim=(2, 3)))

`WeightCriterion` sees weights only, `ActivationCriterion` the feature maps that the next layers get,
`GradientCriterion` weights and their gradients; a subclass of `Criterion` sees everything. So does a function of one
argument, the `Subject`, that returns the scores of every prunable group; one of two, (tensors, group), is what a
`WeightCriterion` calls. All of these are also taken by import path, package.module:name, or as they are.

`base` holds what a criterion is; the other files have the criteria by what they look at: `weights` of what
makes a channel, `clusters` of them, `readers`, `propagation` through these, `activations`, `gradients`, `outputs`;
`reading`, second moments of what layers read, `contributions` to what they compute, and `redundancy`, which channels
say the same; `user_criteria` takes yours.
"""

from abcsearch.channels import named
from abcsearch.channels.criteria.activations import (
    APOZ,
    ENTROPY,
    HRANK,
    ActivationCriterion,
    apoz,
    entropy,
    hrank,
    pooled,
)
from abcsearch.channels.criteria.base import (
    RANDOM,
    Criterion,
    Needs,
    RandomCriterion,
    Subject,
    Tensors,
)
from abcsearch.channels.criteria.contributions import (
    LASSO,
    THINET,
    THINET_TPAMI,
    ContributionCriterion,
    Lasso,
    ThiNet,
    ThiNetTpami,
)
from abcsearch.channels.criteria.gradients import TAYLOR, GradientCriterion, taylor
from abcsearch.channels.criteria.reading import REFIT, ReadingCriterion, RefitCriterion
from abcsearch.channels.criteria.redundancy import (
    DISCRIMINANT,
    PFA,
    SUBSPACE,
    Discriminant,
    Pfa,
    Subspace,
)
from abcsearch.channels.criteria.user_criteria import FunctionCriterion, as_criterion
from abcsearch.channels.criteria.weights import (
    BN_GAMMA,
    FPGM,
    L1,
    L2,
    WeightCriterion,
    bn_gamma,
    fpgm,
    l1,
    l2,
)
from abcsearch.registry import Registry

CRITERIA: Registry[Criterion] = named.CRITERIA

__all__ = [
    "APOZ",
    "BN_GAMMA",
    "CRITERIA",
    "DISCRIMINANT",
    "ENTROPY",
    "FPGM",
    "HRANK",
    "L1",
    "L2",
    "LASSO",
    "PFA",
    "RANDOM",
    "REFIT",
    "SUBSPACE",
    "TAYLOR",
    "THINET",
    "THINET_TPAMI",
    "ActivationCriterion",
    "ContributionCriterion",
    "Criterion",
    "Discriminant",
    "FunctionCriterion",
    "GradientCriterion",
    "Lasso",
    "Needs",
    "Pfa",
    "RandomCriterion",
    "ReadingCriterion",
    "RefitCriterion",
    "Subject",
    "Subspace",
    "Tensors",
    "ThiNet",
    "ThiNetTpami",
    "WeightCriterion",
    "apoz",
    "as_criterion",
    "bn_gamma",
    "entropy",
    "fpgm",
    "hrank",
    "l1",
    "l2",
    "pooled",
    "taylor",
]

# Records name parts of the user's own by their class, and functions by where they are: here, whichever file has them.
for _value in (
    Criterion,
    ActivationCriterion,
    FunctionCriterion,
    GradientCriterion,
    RandomCriterion,
    WeightCriterion,
):
    _value.__module__ = __name__
for _value in (ReadingCriterion, RefitCriterion, ContributionCriterion, Lasso, ThiNet, ThiNetTpami):
    _value.__module__ = __name__
for _value in (Discriminant, Pfa, Subspace):
    _value.__module__ = __name__
for _value in (l1, l2, bn_gamma, fpgm):
    _value.__module__ = __name__
