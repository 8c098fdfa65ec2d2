"""A chain of transforms is killed at random instants; it goes on to the same bits, and loses no link."""

import time

import numpy as np
import pytest
import torch

from abcsearch import Recipe, apply_chain, chain_model, load_data
from abcsearch.models.registry import Constructor
from abcsearch.results import chain_costs
from abcsearch.results.links import read_link
from tests.problems import forks

pytestmark = pytest.mark.faults

OPTIONS = {"widths": [8, 16], "depths": [1, 1]}
LINKS = [
    {"name": "low_rank", "ranks": 0.7, "finetune": {}},
    {"name": "sparsify", "sparsity": 0.6, "finetune": {}},
    {"name": "codebook", "bits": 4, "finetune": {"lr": 0.01}},
]


def _apply(folder):
    torch.set_num_threads(1)
    # In no time, without onnxruntime
    chain_costs._SECONDS, chain_costs._session = (0.05, lambda *_: None)
    model = Constructor(name="small_resnet", options=OPTIONS).build().eval()
    recipe = Recipe(epochs=3, batch_size=64, lr=0.02)
    named = {"constructor": "small_resnet", "options": OPTIONS, "recipe": recipe}
    return apply_chain(model, load_data("digits"), LINKS, folder, **named)


def _whole(folder):
    """The links that are whole."""
    found = {}
    for place in sorted(folder.glob("*-*")) if folder.exists() else []:
        if place.is_dir():
            try:
                found[place.name] = read_link(place)
            except ValueError:  # killed before its record was written anew
                continue
    return {name: link for name, link in found.items() if link is not None}


def test_killed_at_random_instants_it_ends_with_the_same_bits(tmp_path):
    start = time.monotonic()
    expected = _apply(tmp_path / "whole")
    duration = time.monotonic() - start
    instants, kills = np.random.default_rng(), 0
    for number in range(3):
        folder = tmp_path / f"killed-{number}"
        for _ in range(3):
            victim = forks().Process(target=_apply, args=(folder,))
            victim.start()
            victim.join(instants.uniform(0.1, 0.9) * duration)
            before = _whole(folder)
            victim.kill()
            victim.join()
            kills += victim.exitcode == -9
            assert before.items() <= _whole(folder).items()
        again = _apply(folder)
        assert again.links == expected.links
        x = load_data("digits").test.images
        assert all(
            torch.equal(chain_model(again, number=n)(x), chain_model(expected, number=n)(x))
            for n in range(4)
        )
        assert {path.name for path in folder.iterdir()} == {
            path.name for path in expected.folder.iterdir()
        }
    assert kills
