"""Settings as plain values and back."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abcsearch.budget import Budget
from abcsearch.errors import AbcSearchError, ConfigError, RunError, differences
from abcsearch.runs.settings import (
    ModelSettings,
    Part,
    RunConfig,
    SearchSettings,
    SpaceOptions,
    from_plain,
    to_plain,
)
from abcsearch.runs.settings_diff import complete
from abcsearch.searchers.bee_colony import BeeColonyOptions
from abcsearch.searchers.random_search import RandomSearch
from abcsearch.searchers.registry import SEARCHERS
from abcsearch.training.recipe import Recipe

shares = st.floats(0.01, 1)
bounds = st.one_of(
    shares, st.integers(1, 10**12), st.tuples(shares, shares).map(lambda pair: tuple(sorted(pair)))
)
options = st.dictionaries(
    st.text(max_size=5),
    st.none() | st.booleans() | st.integers() | shares | st.text() | st.lists(st.integers()),
)
parts = st.builds(Part, name=st.text(min_size=1), options=options)
common = {
    "budget": st.builds(Budget, macs=bounds, params=st.none() | bounds),
    "n_trials": st.integers(1, 10**6),
    "searcher": parts,
    "evaluator": parts,
    "space": st.builds(
        SpaceOptions,
        alpha=st.floats(0.1, 1),
        lowest=st.none() | st.floats(0.01, 0.1),
        levels=st.sampled_from([("filter",), ("stage", "filter")]),
        fixed=st.lists(st.text(), max_size=2).map(tuple),
    ),
    "criterion": st.sampled_from(["l1", "random"]),
    "seed": st.integers(0, 2**70),
    "max_failures": st.integers(0, 5),
}
recipes = st.builds(Recipe, lr=st.floats(1e-6, 10), flip=st.booleans())
searches = st.builds(SearchSettings, **common)
configs = st.builds(
    RunConfig,
    **common,
    model=st.builds(ModelSettings, name=st.text(), options=options),
    data=parts,
    pretrain=recipes,
    finetune=recipes,
    baselines=st.sampled_from([(), ("uniform",), ("random", "uniform")]),
)


@settings(max_examples=60, deadline=None)
@given(record=searches | configs)
def test_settings_come_back_from_a_json_file_as_they_were(record):
    plain = to_plain(record)
    text = json.dumps(plain)
    assert json.loads(text) == plain
    back = from_plain(type(record), json.loads(text))
    assert back == record
    assert type(back.budget.macs) is type(record.budget.macs)
    assert hash(back.space) == hash(record.space)  # tuples, not lists
    assert differences(plain, json.loads(text)) == []
    assert differences(plain, to_plain(back)) == []


def test_lists_and_tuples_are_the_same_settings():
    one, other = (
        SearchSettings(
            budget=Budget(macs=band), n_trials=1, searcher=Part(name="x", options={"a": deep})
        )
        for band, deep in (((0.4, 0.5), ((1, 2), 3)), ([0.4, 0.5], [[1, 2], 3]))
    )
    assert differences(to_plain(one), to_plain(other)) == []


def test_every_difference_is_named_with_both_values():
    before = {
        "seed": 0,
        "budget": {"macs": 1},
        "searcher": {"name": "a", "options": {"x": [1, 2], "old": 1}},
    }
    now = {
        "seed": 0,
        "budget": {"macs": 1.0},
        "searcher": {"name": "b", "options": {"x": [1, 3], "new": False}},
    }
    assert differences(before, now) == [
        "budget.macs: 1 in the folder, 1.0 now",
        "searcher.name: 'a' in the folder, 'b' now",
        "searcher.options.x: [1, 2] in the folder, [1, 3] now",
        "searcher.options.old: 1 in the folder, None now",
        "searcher.options.new: None in the folder, False now",
    ]


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Recipe)])
def test_a_change_of_any_field_of_a_recipe_is_a_difference(name):
    before = dataclasses.asdict(Recipe())
    match before[name]:
        case bool(flag):
            value = not flag
        case str(word):
            value = f"other {word}"
        case tuple(numbers):
            value = (*numbers, 0.9)
        case number:
            value = number + 0.125
    assert differences(before, {**before, name: value}) == [
        f"{name}: {before[name]!r} in the folder, {value!r} now"
    ]


def test_options_that_no_json_file_holds_are_refused():
    part = Part(name="random", options={"value": object()})
    with pytest.raises(ConfigError, match=r"plain JSON values.*object"):
        to_plain(SearchSettings(budget=Budget(macs=0.5), n_trials=1, searcher=part))


FAITHFUL = {"guide": 0, "rate": 0, "scale": 1, "decay": 0}


@pytest.mark.parametrize("options", [{}, {"n_sources": 4}, {"n_sources": 4, "scale": 0.5}])
def test_settings_from_before_the_colony_had_a_guide_are_those_of_one_without(options):
    now = SearchSettings(
        budget=Budget(macs=0.5), n_trials=1, searcher=Part(name="bee_colony", options=options)
    )
    plain = to_plain(now)
    assert plain["searcher"]["options"]["guide"] == BeeColonyOptions.guide > 0
    assert from_plain(SearchSettings, plain) == now
    before = from_plain(
        SearchSettings, {**plain, "searcher": {"name": "bee_colony", "options": options}}
    )
    assert before.searcher.options == {**FAITHFUL, **options}
    assert from_plain(SearchSettings, to_plain(before)) == before  # and they stay so
    assert any(
        text.startswith("searcher.options.guide: 0")
        for text in differences(to_plain(before), plain)
    )
    # Compared with what was written out, or left to the defaults, they are no different.
    old, new = (
        {**plain, "searcher": {"name": "bee_colony", "options": own}}
        for own in (options, before.searcher.options)
    )
    assert complete(old)["searcher"] == complete(new)["searcher"] != complete(plain)["searcher"]


def test_only_what_this_package_registers_has_a_past(monkeypatch):
    monkeypatch.setitem(SEARCHERS, "bee_colony", RandomSearch)
    for name in ("bee_colony", "random", "tests.problems:Own"):
        assert Part(name=name, options={"a": 1}).searching(former=True).options == {"a": 1}
        assert Part(name=name).searching(former=False).options == {}


def test_settings_of_another_version_are_refused():
    plain = to_plain(SearchSettings(budget=Budget(macs=0.5), n_trials=1))
    for changed in ({**plain, "new": 1}, {**plain, "space": {"beta": 1}}, {"seed": 1}):
        with pytest.raises(RunError, match=r"does not know.*another version"):
            from_plain(SearchSettings, changed)


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("random", Part(name="random")),
        ({"name": "random"}, Part(name="random")),
        ({"name": "bee_colony", "n_sources": 4}, Part(name="bee_colony", options={"n_sources": 4})),
    ],
)
def test_a_part_is_a_name_or_a_mapping_with_a_name(value, part):
    assert Part.of(value) == part


@pytest.mark.parametrize("value", [{}, {"nam": "random"}, {"name": 5}, 5, None, ["random"]])
def test_a_part_without_a_name_is_refused(value):
    with pytest.raises(ConfigError, match='a part is "name" or'):
        Part.of(value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"n_trials": 0}, "n_trials is at least 1, found 0"),
        ({"max_failures": -1}, "max_failures is at least 0, found -1"),
        ({"seed": -3}, "seed is at least 0, found -3"),
        (
            {"model": ModelSettings(name="x")},
            r"model.checkpoint or the table \[pretrain\], found neither",
        ),
        ({"model": ModelSettings(name="x", checkpoint="y"), "pretrain": Recipe()}, "found both"),
    ],
)
def test_settings_out_of_range_are_refused(values, words):
    base = {"budget": Budget(macs=0.5), "n_trials": 1, "data": Part(name="digits")}
    model = {"model": ModelSettings(name="x", checkpoint="y")}
    with pytest.raises(AbcSearchError, match=words):
        RunConfig(**{**base, **model, **values})


def test_a_part_moves_to_another_device_wherever_it_names_one():
    options = {
        "fraction": 0.5,
        "adaptive_bn": {"device": "cuda", "threads": 2},
        "short_training": {"epochs": 1},
    }
    cascade = Part(name="cascade", options=options)
    assert cascade.devices == ("cuda",)
    assert cascade.on("cpu").options == {**options, "adaptive_bn": {"device": "cpu", "threads": 2}}
    plain = Part(name="adaptive_bn", options={"threads": 1})
    assert (plain.devices, plain.on("cpu")) == ((), plain)
