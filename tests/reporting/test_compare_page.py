"""What winners of several runs differ by, in words."""

from types import SimpleNamespace

import pytest
import torch

from abcsearch.data.split import Split
from abcsearch.reporting.compare_page import winner_cells, worth
from abcsearch.reporting.comparison import Comparison, Winner, _differences, _same_images
from abcsearch.results.intervals import packed_draws
from abcsearch.training.recipe import Recipe
from abcsearch.training.resampling import draws_of, mean_of

IMAGES = 40


def winner(name, after, **changes):
    own = {"searcher": "random", "seed": 0, "trials": 4, "failed": 0, "trial": 1, "fitness": 0.5}
    own |= {"macs": 10, "params": 10, "macs_share": 0.5, "params_share": 0.5, "times": ()}
    tests = {"psnr": {"before": after - 1, "after": after}}
    return Winner(run=name, tests=tests, metric="psnr", **{**own, **changes})


def found(differences=(), winners=()):
    own = {"labels": (), "runs": (), "groups": (), "warnings": ()}
    return Comparison(winners=tuple(winners), differences=tuple(differences), **own)


def compared(each, images=None):
    """The differences of runs whose winners have these values of every image."""
    split = Split(torch.zeros(IMAGES, 1, 2, 2), torch.arange(IMAGES) % 3)
    winners, runs, scores = [], [], []
    for number, (name, values) in enumerate(each.items()):
        data = (images or {}).get(name, split)
        task = SimpleNamespace(data=SimpleNamespace(test=data))
        runs.append(SimpleNamespace(run=SimpleNamespace(result=SimpleNamespace(task=task))))
        winners.append(winner(name, float(values.mean())))
        draws = torch.cat([torch.tensor(mean_of(values, c)) for c in draws_of(IMAGES)]).numpy()
        recipe = vars(Recipe(epochs=3 + (number == 3)))
        scores.append({"recipe": recipe, "resampled": {"psnr": packed_draws(draws, IMAGES)}})
    return winners, _differences(winners, runs, scores)


def values(shift):
    hard = torch.linspace(20, 40, IMAGES, dtype=torch.float64)
    noise = torch.randn(IMAGES, generator=torch.Generator().manual_seed(int(100 * shift)))
    return (hard + shift + 0.3 * noise).numpy()


def test_the_best_is_told_apart_or_not_from_each_other_one():
    winners, own = compared({"a": values(0.0), "b": values(2.0), "c": values(1.95)})
    assert [(one.first, one.second) for one in own] == [("b", "a"), ("b", "c")]
    assert [one.told_apart for one in own] == [True, False]
    (line,) = worth(found(own, winners))
    assert line.startswith("By test psnr after fine-tuning, b is better than a (+")
    assert "; b cannot be told apart from c (" in line
    assert "by 95 % intervals of the same images (bootstrap" in line


def test_other_images_and_other_recipes_are_not_compared():
    other = Split(torch.zeros(IMAGES, 1, 2, 2), torch.arange(IMAGES) % 4)
    runs = {"a": values(2.0), "b": values(0.0), "c": values(1.0), "d": values(0.5)}
    _, own = compared(runs, {"b": other})
    assert [one.second for one in own] == ["c"]  # the fourth has another recipe
    assert not _same_images(other, other.part(torch.arange(9)))
    assert worth(found()) == []


@pytest.mark.parametrize("ends", [None, (29.5, 31.25)])
def test_intervals_stand_beside_the_metric(ends):
    own = winner("a", 30.0, intervals={} if ends is None else {"psnr": ends})
    cell = winner_cells([own])[1][-1]
    assert cell == "29.00 dB ⇒ 30.00 dB" + ("" if ends is None else " (29.50 to 31.25)")
