"""Records carry their rules: ranges, words, and what a run may change."""

import math
from dataclasses import asdict, dataclass, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abcsearch.errors import ConfigError, SearcherError
from abcsearch.evaluation.options import AdaptiveBNOptions, CascadeOptions, ShortTrainingOptions
from abcsearch.execution.options import ExecutionOptions
from abcsearch.records import Rule, check, check_value, names, problems, rule_of, setting
from abcsearch.runs.settings import Part, RunConfig, deciding
from abcsearch.searchers.registry import SEARCHERS
from abcsearch.training.recipe import Recipe

RECORDS = [AdaptiveBNOptions, ShortTrainingOptions, CascadeOptions, ExecutionOptions, Recipe]
RECORDS += [entry.options for entry in SEARCHERS.values()]


@dataclass(frozen=True, kw_only=True)
class Toy:
    size: int = setting(5, at_least=1, at_most=10)
    part: int = setting(2, at_least=1, at_most="size")
    share: float = setting(0.5, above=0, below=1, meaning="the share that is kept")
    alpha: float = setting(0.0, at_least=0.5, zero=True)
    word: str = setting("red", words=("red", "green"), decides=False)
    limit: int | None = setting(None, at_least=1, compared=True)
    on: bool = False


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": 0}, "size is from 1 to 10, found 0"),
        ({"size": 10**400}, "size is from 1 to 10, found 1000"),
        ({"size": 2.0}, "size is a whole number, found 2.0"),
        ({"size": True}, "size is a whole number, found True"),
        ({"size": None}, "size is a whole number, found None"),
        ({"size": 4, "part": 5}, "part is from 1 to 4, found 5"),
        ({"share": 0}, "share is the share that is kept, above 0 and below 1, found 0"),
        ({"share": math.nan}, "share is the share that is kept, above 0 and below 1, found nan"),
        ({"alpha": 0.2}, "alpha is 0, or at least 0.5, found 0.2"),
        ({"alpha": math.inf}, "alpha is 0, or at least 0.5, found inf"),
        ({"word": "geen"}, "unknown word 'geen'; did you mean 'green'?"),
        ({"word": 5}, "word is a text, found 5"),
        ({"word": ["red"]}, "word is a text, found ['red']"),
        ({"limit": 0}, "limit is at least 1, found 0"),
        ({"on": 1}, "on is true or false, found 1"),
    ],
)
def test_a_broken_rule_is_named(values, words):
    (told,) = problems(Toy(**values))
    assert told.startswith(words)
    with pytest.raises(SearcherError) as caught:
        check(Toy(**values), "toy", SearcherError)
    assert str(caught.value).startswith(f"toy: {words}")


def test_all_mistakes_are_named_at_once_and_none_where_there_is_none():
    assert len(problems(Toy(size="5", part=0, share=2, word="", on=None))) == 5
    assert problems(Toy()) == problems(Toy(alpha=0.5, limit=1, share=1e-300)) == []
    with pytest.raises(ConfigError, match=r"^size is from 1 to 10, found 11$"):
        check_value(Toy, "size", 11)
    check_value(Toy, "part", 11)  # whose bound is another field


def test_names_by_what_they_decide():
    assert names(Toy, decides=False) == ("word",)
    assert names(Toy, compared=True) == ("limit",)
    assert names(Toy) == tuple(own.name for own in fields(Toy))


@given(st.floats(allow_nan=True), st.floats(-5, 5), st.floats(-5, 5))
def test_a_range_holds_what_lies_inside(value, low, high):
    assert (Rule(at_least=low, at_most=high).problem("x", value) == "") == (low <= value <= high)
    assert (Rule(above=low, below=high).problem("x", value) == "") == (low < value < high)


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_what_is_just_outside_is_refused_by_the_records_of_this_package(kind):
    """By name, with the value that was found, whatever else the record checks."""
    usual = kind()
    for own in fields(kind):
        rule = rule_of(own)
        ends = [rule.at_least - 1 if rule.at_least is not None else None, rule.above, rule.below]
        ends += [rule.at_most * 2 + 1 if isinstance(rule.at_most, int | float) else None]
        ends = [int(end) if own.type.startswith("int") else end for end in ends if end is not None]
        for value in ends:
            if rule.zero and value == 0:
                continue
            with pytest.raises((ConfigError, SearcherError), match=rf"\b{own.name} is .*found"):
                kind(**{**asdict(usual), own.name: value})


def test_a_run_keeps_what_decides_its_trials():
    free = {"n_trials", "max_failures", "finetune", "baselines", "transform", "rewind"}
    assert set(names(RunConfig, decides=False)) == free
    assert names(ExecutionOptions, decides=True) == ("schedule", "window")
    plain = {own.name: own.name for own in fields(RunConfig)} | {
        "execution": asdict(ExecutionOptions(workers=2))
    }
    plain["evaluator"] = asdict(Part(name="adaptive_bn", options={"device": "cuda", "threads": 2}))
    kept = deciding(plain)
    assert kept.keys() == plain.keys() - free
    assert kept["execution"] == {"schedule": "rounds", "window": 0}
    elsewhere = deciding(
        {**plain, "evaluator": {"name": "adaptive_bn", "options": {"device": "cpu", "threads": 2}}}
    )
    assert (
        elsewhere
        == kept
        == deciding({**plain, "evaluator": {"name": "adaptive_bn", "options": {"threads": 2}}})
    )
    assert kept != deciding(
        {**plain, "evaluator": {"name": "adaptive_bn", "options": {"threads": 1}}}
    )
    assert {
        "model",
        "data",
        "budget",
        "space",
        "criterion",
        "evaluator",
        "latency",
        "pretrain",
        "prepare",
    } == {*names(RunConfig, compared=True)}
