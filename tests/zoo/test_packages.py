"""Whole packages: slices of their networks are exact, and most of what they compute can go: `make test-zoo`."""

import pytest

from experiments.benchmarks.package_networks import IMPORTED, NETWORKS
from experiments.benchmarks.packages import checked, installed

# Networks of which less than half of the MACs can be pruned, and how much can.
LESS: dict[str, float] = {}


@pytest.mark.zoo
@pytest.mark.parametrize("name", NETWORKS)
def test_slices_of_whole_packages_are_exact(name):
    if not installed(name):
        pytest.skip(f"{IMPORTED[name.partition('/')[0]]} is not installed: pip install '.[zoo]'")
    row = checked(name)
    assert row.exact, f"off by {row.error}"
    assert row.moved > 1e3 * row.error  # or the check would not see a slice that is wrong
    assert row.macs >= LESS.get(name, 0.5)
