"""Streams are reproducible and independent; global random state is put back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abcsearch.rng import derived_seed, numpy_stream, torch_seeded, torch_stream

KEYS = st.tuples(st.integers(0, 2**63), st.text(max_size=8), st.integers(0, 2**31))


@given(KEYS)
def test_seeds_fit_every_generator(key):
    assert 0 <= derived_seed(*key) < 2**63
    assert derived_seed(*key) == derived_seed(*key)
    assert numpy_stream(*key).random() == numpy_stream(*key).random()
    assert torch.equal(
        torch.rand(2, generator=torch_stream(*key)), torch.rand(2, generator=torch_stream(*key))
    )


def test_streams_differ():
    keys = [
        (s, part, n) for s in range(10) for part in ("searcher", "split", "") for n in range(50)
    ]
    assert len({derived_seed(*key) for key in keys}) == len(keys)
    firsts = np.array([numpy_stream(*key).random() for key in keys])
    assert abs(firsts.mean() - 0.5) < 0.03
    assert len(np.unique(firsts)) == len(keys)


def test_seeds_are_the_same_in_every_version():
    assert derived_seed(0, "searcher") == 7986470061257870055
    assert derived_seed(7, "split", 3) == 4680538368134917608


def test_global_state_is_put_back():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch_seeded(1, "weights"):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with torch_seeded(1, "weights"):
        assert torch.equal(torch.rand(3), first)
    with torch_seeded(1, "weights", 1):
        assert not torch.equal(torch.rand(3), first)


def test_global_state_is_put_back_after_an_exception():
    before = torch.get_rng_state()
    with pytest.raises(IndexError), torch_seeded(1, "weights"):
        torch.rand(3)[3]
    assert torch.equal(torch.get_rng_state(), before)


def test_numpy_and_torch_globals_are_not_touched():
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002 - the global state is the point
    numpy_stream(1, "a").random()
    torch.rand(1, generator=torch_stream(1, "a"))
    assert (np.random.get_state()[1] == before[0]).all()  # noqa: NPY002 - likewise
    assert torch.equal(torch.get_rng_state(), before[1])
