"""The benchmark of racing: what it races is what it was given."""

import numpy as np

from experiments.benchmarks.racing import main, race
from tests.conftest import TINY_CONFIG


def test_what_is_clear_at_once_is_stopped_at_once_and_ties_never():
    draws = np.random.default_rng(0)
    clear = np.stack([draws.normal(mean, 0.1, 1000) for mean in (1.0, 0.0, 0.5, 1.2)])
    found = race(clear, 100, range(4))
    assert (found.stopped, found.lost) == (0.5, 0.0)
    assert found.images == (1000 + 100 + 100 + 1000) / 4000
    assert found.all_images == found.images + 2 * 1000 / 4000
    # All of one batch: there is nothing to race against
    assert race(clear, 100, [0] * 4).images == 1
    assert race(np.stack([clear[0]] * 3), 100, range(3)).images == 1


def test_a_search_is_kept_and_raced(tmp_path, capsys):
    (tmp_path / "tiny.toml").write_text(TINY_CONFIG)
    arguments = [
        str(tmp_path / "tiny.toml"),
        "--out",
        str(tmp_path / "out"),
        "--trials",
        "6",
        "--orders",
        "2",
    ]
    main(arguments)
    first = capsys.readouterr().out
    assert "| top1 | " in first
    assert "| neg_loss | " in first
    main(arguments)
    assert capsys.readouterr().out == first
    assert len(list((tmp_path / "out").glob("*.npz"))) == 6
