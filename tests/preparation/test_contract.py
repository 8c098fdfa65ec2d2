"""Every preparation of ours keeps its word: the same contract for all."""

import pytest

from abcsearch.preparation.registry import PREPARATIONS, make_preparation
from abcsearch.testing import PreparationContract

SHORT = {"epochs": 2, "batch_size": 16, "lr": 0.05, "device": "cpu"}
KINDS = [
    ("slimming", {"strength": 0.05}),
    ("slimming", {"strength": 0.05, "step": "subgradient", "start_gamma": 0.5}),
    ("slimmable", {}),
    ("slimmable", {"networks": 3, "widths": "uniform", "grow": 0.9, "distil": False}),
    ("group_lasso", {"strength": 0.05}),
    ("soft_pruning", {}),
    ("variational", {"prior": 0.05}),
    ("autopruner", {"gate_lr": 0.1}),
    ("taylor_iterative", {"batches": 2, "at_once": 1}),
    ("iterate", {"rounds": 2}),
    ("pruning_net", {}),
    ("pruning_net", {"form": "low_rank", "widths": "uniform"}),
    ("pruning_net", {"form": "published", "hidden": 8, "widths": "free"}),
    ("dmcp", {"networks": 3}),
    ("dmcp", {"split": 0.0, "structures": 2}),
    ("tas", {}),
    ("tas", {"samples": 3, "structures": 2, "weights": "trained"}),
    ("lfpc", {}),
    ("lfpc", {"criteria": ["l1", "taylor"], "ratio": 0.5}),
]


class TestBuiltIn(PreparationContract):
    @pytest.fixture(
        autouse=True,
        params=KINDS,
        ids=lambda kind: "-".join([kind[0], *map(str, kind[1].values())]),
    )
    def _kind(self, request):
        self.name, self.options = request.param

    def make(self):
        return make_preparation(self.name, recipe=SHORT, **self.options)


def test_none_is_left_out():
    assert {name for name, _ in KINDS} == set(PREPARATIONS)
