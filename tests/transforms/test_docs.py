"""The chapter on low rank runs as it stands."""

import re
from pathlib import Path

from abcsearch.transforms.factors import METHODS

PAGE = (Path(__file__).parents[2] / "docs/low-rank.md").read_text(encoding="utf-8")


def test_the_examples_run(tiny_model, tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    known = {"model": tiny_model, "data": tiny_data}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block, known)
    assert "of its MACs" in capsys.readouterr().out
    task, best = known["result"].task, known["result"].best
    assert best.evaluation.macs <= 0.5 * task.graph.costs.macs([task.space.full])[0]
    assert [d.kind for d in task.space.dimensions].count("rank") == len(task.graph.ranks) > 0


def test_every_method_is_in_the_table():
    assert all(f"| `{method}` |" in PAGE for method in METHODS)
