"""Whole packages: slices of their networks are exact, and most of what they compute can go: `make test-zoo`."""

import pytest

from abcsearch.errors import TraceError
from experiments.benchmarks.package_networks import IMPORTED, NETWORKS
from experiments.benchmarks.packages import checked, installed

pytestmark = pytest.mark.zoo

# Networks of which less than half of the MACs can be pruned, and how much can.
LESS = {
    "monai/ViT": 0.48,
    "pytorchcv/dicenet_w1": 0.15,
    "pytorchcv/mixnet_s": 0.24,
    "pytorchcv/xdensenet40_2_k24_bc_cifar10": 0.1,
    "spandrel/PLKSR": 0.47,
}
# Weights that are standardised, made of signs or put together in forward; channels that are picked by numbers.
NOTHING = (
    "pytorchcv/condensenet74_c4_g4",
    "pytorchcv/octresnet10_ad2",
    "pytorchcv/wrn20_10_1bit_cifar10",
    "transformers/Bit",
)
REFUSED = {
    "spandrel/SPAN": "writes to the parameter conv_1.eval_conv.weight in place",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_slices_of_whole_packages_are_exact(name):
    if not installed(name):
        package = IMPORTED[name.partition("/")[0]]
        pytest.skip(f"{package} is not installed: pip install '.[zoo]'")
    if name in REFUSED:
        with pytest.raises(TraceError, match=REFUSED[name]):
            checked(name)
        return
    row = checked(name)
    if name in NOTHING:
        assert not row.prunable
        assert row.error == 0
        return
    assert row.exact, f"off by {row.error} of {row.moved}"
    assert row.macs >= LESS.get(name, 0.5)
