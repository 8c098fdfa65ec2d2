"""The criteria that have a name, without torch; see `abcsearch.channels.criteria`."""

from __future__ import annotations

from typing import Any, cast

from abcsearch.errors import RankingError
from abcsearch.registry import Home, Registry

_IN = "abcsearch.channels.criteria"

# Name -> criterion. `CRITERIA["mine"] = ...` makes one of your own known by name.
CRITERIA: Registry[Any] = Registry(
    "criterion",
    f"{__name__}:CRITERIA",
    {
        "random": Home(
            path=f"{_IN}.base:RANDOM",
            description="a random order: the baseline",
        ),
        "l1": Home(
            path=f"{_IN}.weights:L1",
            description="sum of absolute weights",
            source="Li et al., ICLR 2017",
        ),
        "l2": Home(
            path=f"{_IN}.weights:L2",
            description="Euclidean norm of the weights",
            source="He et al., IJCAI 2018",
        ),
        "bn_gamma": Home(
            path=f"{_IN}.weights:BN_GAMMA",
            description="absolute batch-norm scale",
            source="Liu et al., ICCV 2017",
        ),
        "fpgm": Home(
            path=f"{_IN}.weights:FPGM",
            description="sum of distances to the other filters of the layer",
            source="He et al., CVPR 2019",
        ),
        "scsp": Home(
            path=f"{_IN}.clusters:SCSP",
            description="filters are clustered, one of each cluster stays",
            source="Zhuo et al., 2018",
        ),
        "reader_l2": Home(
            path=f"{_IN}.readers:READER_L2",
            description="Euclidean norm of the weights that read the channel",
            source="FastNAS of NVIDIA's Model Optimizer",
        ),
        "reader_l2_gamma": Home(
            path=f"{_IN}.readers:READER_L2_GAMMA",
            description="reader_l2 times bn_gamma",
            source="a combination of the two",
        ),
        "reader_l2_filters": Home(
            path=f"{_IN}.readers:READER_L2_FILTERS",
            description="reader_l2 times l2",
            source="a combination of the two",
        ),
        "apoz": Home(
            path=f"{_IN}.activations:APOZ",
            description="share of responses that are not zero",
            source="Hu et al., 2016",
        ),
        "hrank": Home(
            path=f"{_IN}.activations:HRANK",
            description="mean rank of the feature maps",
            source="Lin et al., CVPR 2020",
        ),
        "entropy": Home(
            path=f"{_IN}.activations:ENTROPY",
            description="entropy of the mean response over images",
            source="Luo and Wu, 2017",
        ),
        "nisp": Home(
            path=f"{_IN}.propagation:NISP",
            description="importance of the last features, propagated back through absolute weights",
            source="Yu et al., CVPR 2018",
        ),
        "taylor": Home(
            path=f"{_IN}.gradients:TAYLOR",
            description="squared gradient times weight, summed",
            source="Molchanov et al., CVPR 2019",
        ),
        "taylor_gate": Home(
            path=f"{_IN}.gradients:TAYLOR_GATE",
            description="squared gradient of a gate on the channel",
            source="Molchanov et al., CVPR 2019",
        ),
        "curl": Home(
            path=f"{_IN}.outputs:CURL",
            description="divergence of the answers without the channel from those with it",
            source="Luo and Wu, CVPR 2020",
        ),
        "refit": Home(
            path=f"{_IN}.reading:REFIT",
            description="what the next layers lose if their weights are fitted anew, channel by channel",
            source="after Hassibi and Stork, NIPS 1992",
        ),
        "thinet": Home(
            path=f"{_IN}.contributions:THINET",
            description="what the next layers lose without the channels that add least to them",
            source="Luo et al., ICCV 2017",
        ),
        "thinet_tpami": Home(
            path=f"{_IN}.contributions:THINET_TPAMI",
            description="what the next layers lack without it and better ones, each with a factor that fits",
            source="Luo et al., TPAMI 2019",
        ),
        "lasso": Home(
            path=f"{_IN}.contributions:LASSO",
            description="the penalty at which a lasso fit of what the next layers compute takes it in",
            source="He et al., ICCV 2017",
        ),
        "pfa": Home(
            path=f"{_IN}.redundancy:PFA",
            description="distance from the channel that is most correlated with it",
            source="Suau et al., 2018",
        ),
        "subspace": Home(
            path=f"{_IN}.redundancy:SUBSPACE",
            description="distance from the cluster of channels that express each other",
            source="Wang et al., 2018",
        ),
        "discriminant": Home(
            path=f"{_IN}.redundancy:DISCRIMINANT",
            description="what the channels that are left say no longer of the labels",
            source="Hou and Kung, ICASSP 2020",
        ),
    },
    error=RankingError,
    accept=Home(path=f"{_IN}.user_criteria:as_criterion"),
    callables=False,
)


def names_of(criterion: Any) -> str | tuple[str, ...]:  # noqa: ANN401 - whatever the caller brought
    """Returns what records call a criterion, or the criteria that every layer chooses from.

    Args:
        criterion: a name, an import path, or your own; or a list of these. A list of one is the same as that one.

    Raises:
        RankingError: if a list is empty, or holds one twice.
    """
    if not isinstance(criterion, list | tuple):
        return CRITERIA.name_of(criterion)
    names = [CRITERIA.name_of(one) for one in cast("list[Any]", criterion)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if not names or twice is not None:
        why = (
            "the list is empty"
            if twice is None
            else f"{twice!r} is there {names.count(twice)} times, once is enough"
        )
        msg = f"criterion is a name, or a list of those that every layer chooses from: {why}"
        raise RankingError(msg)
    return tuple(names) if len(names) > 1 else names[0]
