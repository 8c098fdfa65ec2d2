"""Recipes of preparations, in a tiny mode: equal epochs in all, shares as named, and a table from the file alone."""

import json
import sys

import pytest

from experiments.prepared import __main__ as prepared
from experiments.survey import __main__ as survey
from tests.experiments.test_survey import TINY

FILE = survey.HERE / "digits.toml"


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Calls the script with a small network and few epochs."""

    def called(*words, tiny=(*TINY, "finetune.epochs=4")):
        places = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path), "--seeds", "0"]
        settings = [word for setting in tiny for word in ("--set", setting)]
        monkeypatch.setattr(sys, "argv", ["prepared", "digits", *places, *words, *settings])
        prepared.main()

    return called


@pytest.mark.parametrize("name", prepared.RECIPES)
def test_every_recipe_is_a_run_of_as_many_epochs_as_named(name):
    method = prepared.RECIPES[name]
    config = method.config(FILE, 0.3, 1)
    before = 0 if config.prepare is None else config.prepare.options["recipe"]["epochs"]
    assert before + config.finetune.epochs == 12
    assert before == {
        prepared.PLAIN: 0,
        "a quarter of the epochs": 3,
        "three quarters of the epochs": 9,
    }.get(name, 6)


def test_rows_are_kept_and_the_table_is_drawn_again(call, tmp_path, capsys, monkeypatch):
    (tmp_path / "README.md").write_text("before\n<!-- digits -->\n<!-- /digits -->\nafter\n")
    wanted = ["--only", prepared.PLAIN, "three quarters of the epochs"]
    call(*wanted)
    rows = json.loads((tmp_path / "digits.json").read_text())["rows"]
    assert [row["epochs"] for row in rows] == [[0, 4], [3, 1]]
    monkeypatch.setattr(survey, "measured", None)  # nothing is run again
    call(*wanted)
    capsys.readouterr()
    call("--redraw")
    drawn = (tmp_path / "README.md").read_text()
    assert drawn.startswith("before\n<!-- digits -->\n**30% of the MACs**")
    assert capsys.readouterr().out.strip() in drawn
    plain, other = (line for line in drawn.splitlines() if line.startswith(("| as", "| three")))
    assert "| 0 + 4 |" in plain
    assert f"| {100 * (rows[1]['after'] - rows[0]['after']):.1f} |" in other


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "slimable"], "unknown recipe 'slimable'"),
        (["--redraw"], "has no rows yet; without --redraw they are made"),
    ],
)
def test_bad_calls_are_one_line(call, words, said):
    with pytest.raises(SystemExit, match=said):
        call(*words)


def test_a_share_that_leaves_no_epochs_is_a_row_that_says_so(call, capsys):
    call("--only", "a quarter of the epochs", tiny=(*TINY, "finetune.epochs=2"))
    assert "of 2 epochs none is left before or after the search" in capsys.readouterr().out
