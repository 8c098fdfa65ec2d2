"""Targets of the Makefile that measure only what is named: alone they draw the tables of the results that are there."""

import importlib
import re
import sys
from pathlib import Path

import pytest

MAKEFILE = (Path(__file__).parents[2] / "Makefile").read_text()


def module_and_words(target):
    """Returns the module that a target runs, and its words where there is no ARGS."""
    recipe = MAKEFILE.partition(f"\n{target}:")[2].partition("\n\n")[0]
    ((module, words),) = re.findall(r" -m ([\w.]+) (.*)$", recipe, flags=re.MULTILINE)
    words = re.sub(r"\$\(or \$\(ARGS\),(.*?)\)", r"\1", words).replace("$(ARGS)", "")
    return importlib.import_module(module), words.split()


@pytest.mark.parametrize(
    "target", ["bench-alpha", "bench-criteria", "bench-latency-winners", "bench-peers"]
)
def test_a_target_alone_draws_what_is_there(target, monkeypatch, capsys):
    module, words = module_and_words(target)
    monkeypatch.setattr(module, "into_page", lambda *_: None, raising=False)
    monkeypatch.setattr(sys, "argv", [target, *words])
    module.main()
    assert re.search(r"^[|] ?---", capsys.readouterr().out, flags=re.MULTILINE)
