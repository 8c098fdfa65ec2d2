"""What alpha is worth: a small measurement, and its table."""

import json
import sys

import pytest

from experiments.benchmarks import alpha
from experiments.benchmarks.alpha import difference, main, table

CONFIG = """
n_trials = 3
model = {name = "small_resnet", widths = [4, 8], depths = [1, 1]}
data = {name = "digits"}
pretrain = {epochs = 1}
budget = {macs = 0.5}
finetune = {epochs = 1}
"""


def row(value, *, seed, kept):
    own = {"name": "net", "macs": 0.5, "alpha": value, "seed": seed, "layers": [kept, 4]}
    return own | {"fitness": 0.9 + 0.01 * seed + 0.02 * kept, "after": 0.95}


def test_differences_are_seed_by_seed_with_students_interval():
    assert difference([0.90, 0.80, 0.70], [0.91, 0.81, 0.71]) == "+1.00 ± 0.00"
    # Of 0, 1, 2: a standard error of 3 ** -0.5, times 4.303
    assert difference([0.90, 0.80, 0.70], [0.90, 0.81, 0.72]) == "+1.00 ± 2.48"
    assert difference([0.9], [0.91]) == ""


def test_the_table_takes_seeds_that_all_have():
    rows = [row(a, seed=s, kept=int(a)) for s in (0, 1, 2) for a in (0.9, 1.0)][:-1]
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2] == "| net | 50% | 0.9 | 2 | 0.0 of 4 | 90.50 |  | 95.00 |  |"
    assert (
        lines[3] == "| net | 50% | 1 | 2 | 1.0 of 4 | 92.50 | +2.00 ± 0.00 | 95.00 | +0.00 ± 0.00 |"
    )


def test_a_measurement_is_kept_and_not_made_again(tmp_path, monkeypatch, capsys):
    config, results = tmp_path / "config.toml", tmp_path / "alpha.json"
    config.write_text(CONFIG)
    words = ["alpha", "--name", "tiny", "--config", str(config), "--macs", "0.5", "--seeds", "0"]
    words += ["--trials", "3", "--epochs", "1", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", words)
    main()
    kept = json.loads(results.read_text())["rows"]
    assert [(one["alpha"], one["seed"]) for one in kept] == [(0.9, 0), (1.0, 0)]
    assert kept[0]["full"] == kept[1]["full"]
    assert kept[0]["layers"][0] == 0
    assert all(one["share"] <= 0.5 for one in kept)
    monkeypatch.setattr(alpha, "measured", None)  # not called again
    main()
    assert "| tiny | 50% | 0.9 | 1 |" in capsys.readouterr().out
    assert json.loads(results.read_text())["rows"] == kept


def test_a_network_has_a_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["alpha"])
    with pytest.raises(SystemExit):
        main()
    assert "--name is needed" in capsys.readouterr().err
