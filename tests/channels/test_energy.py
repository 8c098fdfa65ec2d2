"""Widths from eigenvalues: every tau is on one nested path."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abcsearch.budget import Budget
from abcsearch.channels.energy import pfa_path, pfa_widths
from abcsearch.errors import RankingError
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing import ToyCosts


def space_of(*channels):
    return SearchSpace(
        tuple(
            Dimension(f"w{i}", "width", tuple(range(1, c + 1)), c) for i, c in enumerate(channels)
        )
    )


def spectra(rng, channels):
    """Covariances of given eigenvalues, in random directions, and the eigenvalues as shares, the largest first."""
    shares = [np.sort(rng.dirichlet(np.full(c, 0.5)))[::-1] for c in channels]
    turns = [np.linalg.qr(rng.normal(size=(c, c)))[0] for c in channels]
    scales = rng.lognormal(size=len(channels))
    return [
        s * turn @ np.diag(e) @ turn.T for s, turn, e in zip(scales, turns, shares, strict=True)
    ], shares


@given(
    st.integers(0, 2**16),
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.floats(0.02, 0.98),
)
def test_widths_of_every_tau_are_on_the_path(seed, channels, tau):
    covariances, shares = spectra(np.random.default_rng(seed), channels)
    path = pfa_path(covariances, space_of(*channels))
    enough = [int(np.argmax(np.cumsum(s) >= tau)) + 1 for s in shares]
    assert enough in path.tolist()
    assert path[0].tolist() == channels
    for before, after in itertools.pairwise(path):
        assert (before - after).sum() == 1


@given(
    st.integers(0, 2**16), st.lists(st.integers(2, 7), min_size=1, max_size=4), st.floats(0.1, 1.5)
)
def test_widths_of_every_share_are_on_the_path_of_kl(seed, channels, share):
    covariances, shares = spectra(np.random.default_rng(seed), channels)
    path = pfa_path(covariances, space_of(*channels), "kl")
    entropies = [-np.sum(s * np.log(s)) for s in shares]  # C (1 - KL / log C) = C * entropy / log C
    widths = [share * c * e / np.log(c) for c, e in zip(channels, entropies, strict=True)]
    assert [min(c, int(np.ceil(w))) for c, w in zip(channels, widths, strict=True)] in path.tolist()


def test_copies_and_what_does_not_vary_go_first():
    copies = np.kron(np.ones((2, 2)), np.eye(4))
    path = pfa_path([copies, np.zeros((5, 5)), np.eye(4), None], space_of(8, 5, 4, 3)).tolist()
    assert [4, 1, 4, 3] in path
    # The copies vary as much as four channels do: the paper's other form says 8 * log 4 / log 8.
    paper = [round(8 * np.log(4) / np.log(8) + 0.5), 1, 4, 3]
    assert (
        paper
        in pfa_path(
            [copies, np.diag([3.0, 0, 0, 0, 0]), np.eye(4), None], space_of(8, 5, 4, 3), "kl"
        ).tolist()
    )


def test_the_largest_inside_the_budget_is_taken():
    covariances, _ = spectra(np.random.default_rng(0), [6, 5, 4])
    space = space_of(6, 5, 4)
    constraint = Budget(macs=0.4).bind(space, ToyCosts())
    for form in ("energy", "kl"):
        path = [tuple(row) for row in pfa_path(covariances, space, form).tolist()]
        assert pfa_widths(covariances, constraint, form) == next(
            c for c in path if constraint.allows(c)
        )


@pytest.mark.parametrize(
    ("covariances", "words"),
    [
        ([np.eye(3)], "a covariance of all channels is needed for every width"),
        (
            [np.eye(3), np.ones(2)],
            r"every width: \[\(3, 3\), \(2,\)\], the space has widths of \[3, 2\]",
        ),
        ([np.eye(3), np.full((2, 2), np.nan)], "a covariance of 2 channels is not finite"),
    ],
)
def test_mistakes_are_named(covariances, words):
    with pytest.raises(RankingError, match=words):
        pfa_path(covariances, space_of(3, 2))
