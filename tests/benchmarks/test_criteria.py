"""The benchmark of criteria: the same structures for all, results that are kept, tables that say what they hold."""

import json
import sys

import pytest

from abcsearch.config import read_config
from experiments.benchmarks import criteria
from experiments.benchmarks.criteria import Bench, common, main, searched, table

ROW = {"name": "tiny", "macs": 0.5, "seed": 0, "number": 0, "kind": "common"}


@pytest.fixture
def bench(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(criteria, "_loaded", {})
    config = read_config(tiny_config, ["pretrain.batch_size=512"])
    return Bench(config=config, images=600, scored=50, trials=3, runs=tmp_path / "runs")


def test_all_criteria_have_the_same_structures_and_repair_changes_what_they_are_worth(bench):
    rows = [
        common(bench, {**ROW, "criterion": criterion, "repair": repair}, tuned=repair == "none")
        for criterion in ("l1", "reader_l2")
        for repair in ("none", "one_shot")
    ]
    assert len({tuple(row["candidate"]) for row in rows}) == 1
    assert len({(row["full"], row["cost"]) for row in rows}) == 1
    assert len({row["before"] for row in rows}) > 1
    assert [row["after"] is None for row in rows] == [False, True] * 2
    other = common(bench, {**ROW, "number": 1, "criterion": "l1", "repair": "none"}, tuned=False)
    assert other["candidate"] != rows[0]["candidate"]


def test_a_search_is_a_row_and_what_is_known_is_not_measured_again(
    bench, tmp_path, monkeypatch, capsys
):
    row = searched(bench, {**ROW, "kind": "search", "criterion": "reader_l2", "repair": "none"})
    assert row["after"] is not None
    assert row["fitness"] > 0
    file = tmp_path / "criteria.json"
    rows = [row]
    for number, (before, after) in enumerate([(0.5, 0.6), (0.6, 0.8), (0.7, 0.7)]):
        known = {
            **ROW,
            "number": number,
            "criterion": "reader_l2",
            "repair": "none",
            "seconds": 0.5,
        }
        rows.append(
            {**known, "before": before, "after": after, "full": 0.9, "candidate": [1], "cost": 1}
        )
    file.write_text(json.dumps({"machine": "here", "rows": rows}))
    monkeypatch.setattr(criteria, "side_by_side", None)  # nothing is left to do
    given = ["--name", "tiny", "--structures", "3", "--tuned", "3", "--searches", "--macs", "0.5"]
    given += ["--criteria", "reader_l2", "--repairs", "none", "--results", str(file)]
    monkeypatch.setattr(sys, "argv", ["criteria", *given])
    main()
    printed = capsys.readouterr().out
    winner = f"{100 * row['before']:.1f} | {100 * row['after']:.1f}"
    assert f"| reader_l2 | none | 60.0 ± 10.0 | 70.0 ± 10.0 | 0.33 | {winner} | 0.5 |" in printed
    assert printed.strip().endswith("here")
    assert table([]) == ""
