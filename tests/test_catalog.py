"""The catalog: all that can be named, read without what it names."""

import inspect
import subprocess
import sys
from dataclasses import fields

import pytest

from abcsearch import catalog as whole
from abcsearch.budget import Budget
from abcsearch.catalog import KINDS, catalog
from abcsearch.channels.criteria import CRITERIA
from abcsearch.channels.options import LatencyOptions, SpaceOptions
from abcsearch.data.registry import DATASETS
from abcsearch.execution.options import ExecutionOptions
from abcsearch.models.registry import MODELS
from abcsearch.searchers.random_search import RandomSearch
from abcsearch.searchers.registry import SEARCHERS
from abcsearch.training.objectives import METRICS, OBJECTIVES

TABLES = {
    "space": SpaceOptions,
    "budget": Budget,
    "latency": LatencyOptions,
    "execution": ExecutionOptions,
}


def test_listing_imports_no_torch():
    """Neither the overview nor any kind, all that there is to say included."""
    code = f"""
import sys
from abcsearch.cli import app
single = [["searchers", "ddpg"], ["models", "resnet20", "--json"], ["criteria", "thinet"]]
for arguments in ([], *([kind] for kind in {KINDS!r}), *single):
    app(["list", *arguments], standalone_mode=False)
print([name for name in ("torch", "torchvision", "sklearn", "scipy.linalg", "ray") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("registry", [MODELS, DATASETS], ids=["models", "datasets"])
def test_what_is_read_from_source_is_what_is_imported(registry):
    for name in registry:
        home = registry.where(name)
        assert whole._options(home) == whole._options(home.value)
        assert whole._doc(home) == whole._doc(home.value) != ""


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_says_what_it_is(kind):
    entries = catalog(kind)
    assert entries
    for entry in entries:
        assert len(entry.description) > 10, entry
        assert "\n" not in entry.description
        assert entry.description in entry.text or entry.options
        assert catalog(kind, entry.name) == [entry]


@pytest.mark.parametrize(("kind", "record"), TABLES.items())
def test_settings_of_tables_are_listed_with_their_defaults(kind, record):
    entries = catalog(kind)
    assert [entry.name for entry in entries] == [f.name for f in fields(record)]
    assert all(entry.options[0].startswith(f"{entry.name}=") for entry in entries)


def test_criteria_say_what_they_score_and_how_they_differ_from_the_paper():
    for entry in catalog("criteria"):
        made = CRITERIA[entry.name]
        functions = [
            value
            for value in vars(made).values()
            if inspect.isfunction(value) and ".criteria." in value.__module__ + "."
        ]
        for described in functions or [type(made)]:
            assert inspect.getdoc(described) in entry.text, entry.name
    assert "Differences from the paper:" in catalog("criteria", "thinet").pop().text


def test_metrics_say_which_objectives_have_them():
    for name in METRICS:
        having = [key for key, goal in OBJECTIVES.items() if name in (*goal.names, *goal.to_full)]
        (entry,) = catalog("metrics", name)
        assert entry.description.startswith(f"{', '.join(having)}: ")
        for key in having:
            assert name in catalog("objectives", key)[0].description.split("judged by ")[1].split(
                ", "
            )


def test_what_the_user_has_added_is_listed_too(monkeypatch):
    class Walk(RandomSearch):
        """Random draws under another name."""

    monkeypatch.setitem(SEARCHERS, "walk", Walk)
    (entry,) = catalog("searchers", "walk")
    assert (entry.description, entry.options) == (
        "Random draws under another name.",
        ("fill=true",),
    )
