"""The benchmark of criteria: the same structures for all, results that are kept, tables that say what they hold."""

import json
import re
import sys

import numpy as np
import pytest

from abcsearch.config import read_config
from abcsearch.errors import ConfigError
from experiments.benchmarks import criteria
from experiments.benchmarks.criteria import Bench, common, main, searched, table
from experiments.benchmarks.kept import PACKAGES, decided, stamped

ROW = {"name": "tiny", "macs": 0.5, "seed": 0, "number": 0, "kind": "common"}
WORTH = {"before": 0.5, "after": None, "full": 0.9, "candidate": [1], "cost": 1}
PAGE = criteria.HERE / "README.md"


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
    bench, tiny_config, tmp_path, monkeypatch, capsys
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
        rows.append(stamped({**known, **WORTH, "before": before, "after": after}))
    given = ["--name", "tiny", "--structures", "3", "--tuned", "3", "--searches", "--macs", "0.5"]
    given += ["--criteria", "reader_l2", "--repairs", "none", "--results", str(file)]
    given += ["--config", str(tiny_config)]
    shared = decided(tiny_config, []) | {"images": 8000, "scored": 2000}
    settings = {"tiny, common": shared, "tiny, search": shared | {"trials": 100}}
    file.write_text(json.dumps({"settings": settings, "rows": rows}))
    monkeypatch.setattr(criteria, "side_by_side", None)  # nothing is left to do
    monkeypatch.setattr(sys, "argv", ["criteria", *given])
    main()
    printed = capsys.readouterr().out
    winner = f"{100 * row['before']:.1f} | {100 * row['after']:.1f}"
    assert f"| reader_l2 | none | 60.0 ± 10.0 | 70.0 ± 10.0 | 0.33 | {winner} | 0.5 |" in printed
    full = f"{100 * row['full']:.1f}"
    assert f"full network 90.0 % (structures), {full} % (searches)" in printed
    assert printed.strip().endswith(f"torch {row['versions']['torch']}, numpy {np.__version__}.")
    assert table([]) == ""


def structure(**more):
    return stamped({**ROW, "criterion": "l1", "repair": "none", "seconds": 0.5, **WORTH, **more})


def test_structures_and_searches_have_settings_of_their_own_and_others_are_refused(tmp_path):
    """Structures scored on 1,500 images do not stand in one column with those scored on 2,000."""
    file = tmp_path / "criteria.json"
    results = criteria.read(file)
    results.begin("tiny, common", {"scored": 1500}, PACKAGES, anew=False)
    results.begin("tiny, search", {"scored": 2000}, PACKAGES, anew=False)
    results.add(structure())
    results.add(structure(kind="search", full=0.8, after=0.7))
    again = criteria.read(file)
    again.begin("tiny, search", {"scored": 2000}, PACKAGES, anew=False)
    with pytest.raises(ConfigError, match=r"tiny, common.*scored: 1500 there, 2000 now.*--anew"):
        again.begin("tiny, common", {"scored": 2000}, PACKAGES, anew=False)
    assert "full network 90.0 % (structures), 80.0 % (searches)" in criteria.written(again)
    again.begin("tiny, common", {"scored": 2000}, PACKAGES, anew=True)
    assert [row["kind"] for row in again.rows.values()] == ["search"]


def test_a_call_with_other_settings_is_refused_before_anything_is_measured(
    tiny_config, tmp_path, monkeypatch, capsys
):
    file = tmp_path / "criteria.json"
    shared = decided(tiny_config, []) | {"images": 8000, "scored": 1500}
    file.write_text(json.dumps({"settings": {"tiny, common": shared}, "rows": [structure()]}))
    before = file.read_bytes()
    monkeypatch.setattr(criteria, "side_by_side", None)
    words = ["--name", "tiny", "--config", str(tiny_config), "--results", str(file)]
    monkeypatch.setattr(sys, "argv", ["criteria", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "scored: 1500 there, 2000 now" in capsys.readouterr().err
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has no rows yet; without --redraw they are made"),
        ("", "is damaged"),
        ('{"rows": []', "is damaged"),
        ('{"machine": "here", "rows": []}', "is damaged"),
        (json.dumps({"settings": {}, "rows": [ROW]}), "is damaged"),
        (json.dumps({"settings": {}, "rows": [{**ROW, "kind": 3}]}), "is damaged"),
    ],
)
def test_results_that_are_missing_or_damaged_are_one_line_and_status_2(
    tmp_path, monkeypatch, capsys, text, said
):
    file = tmp_path / "criteria.json"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(sys, "argv", ["criteria", "--redraw", "--results", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {file} {said}")


def test_the_page_has_the_full_network_on_the_images_that_structures_are_scored_on():
    rows = criteria.read(criteria.HERE / "criteria.json").known()
    shares = {}
    for row in rows:
        if row["kind"] == "common":
            shares[row["name"], row["macs"]] = f"{100 * row['full']:.1f}"
    names = ("resnet20p", "resnet56", "shufflenet_v2_x0_5")
    stated = [shares[name, macs] for name in names for macs in (0.5, 0.3)]
    assert re.findall(r"^\| full network \| (.*) \|$", PAGE.read_text(), flags=re.MULTILINE) == [
        " | ".join(stated)
    ]
