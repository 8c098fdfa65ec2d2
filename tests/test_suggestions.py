"""What messages suggest: names that are spelled otherwise or called otherwise, per cents, settings of no table."""

import pytest

from abcsearch import Budget
from abcsearch.bounds import meant
from abcsearch.catalog import KINDS, catalog
from abcsearch.config import parse_config
from abcsearch.errors import _ELSEWHERE, BudgetError, ConfigError, unknown_name
from tests.test_config import mistakes, plain

NAMES = sorted({entry.name for kind in KINDS for entry in catalog(kind)} - {"None"})


@pytest.mark.parametrize(
    "spelled",
    [str.upper, str.title, lambda name: name.replace("_", "-"), lambda n: n.replace("_", "")],
)
def test_a_name_of_the_same_letters_is_meant_whatever_the_case_and_the_signs(spelled):
    for name in NAMES:
        typed = spelled(name)
        if typed in NAMES:
            continue
        said = unknown_name("thing", typed, NAMES)
        # Another name may be as near, letter by letter, but one is always offered.
        assert "did you mean" in said, typed
        assert said.startswith(f"unknown thing {typed!r}; ")


@pytest.mark.parametrize(
    ("typed", "names", "words"),
    [
        ("abc", ["bee_colony", "random"], "did you mean 'bee_colony'?"),
        (
            "accuracy",
            ["top1", "pixel_accuracy"],
            "did you mean 'top1'?",
        ),  # not what only looks like it
        ("accuracy", ["miou", "pixel_accuracy"], "did you mean 'pixel_accuracy'?"),
        (
            "bee",
            ["bee_colony", "bee_colony_official", "random"],
            "'bee_colony' or 'bee_colony_official'? choose one of:",
        ),
        ("AdaptiveBN", ["adaptive_bn", "cascade"], "did you mean 'adaptive_bn'"),
        ("zebra", ["adaptive_bn", "cascade"], "; choose one of: adaptive_bn, cascade"),
        ("", ["adaptive_bn"], "; choose one of: adaptive_bn"),
        ("x", [], "; choose one of: (none)"),
    ],
)
def test_what_is_offered_for_a_name_that_is_far_off(typed, names, words):
    assert words in unknown_name("thing", typed, names)


def test_what_things_are_called_elsewhere_leads_to_names_that_there_are():
    settings = {"lr", "n_trials", "checkpoint", "adamw", "batch_size"}
    assert set(_ELSEWHERE.values()) <= settings | set(NAMES)


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        (50.0, "50 % of the full network is 0.5"),
        ("50%", "50 % of the full network is 0.5"),
        (" 12.5 % ", "12.5 % of the full network is 0.125"),
        ("0.5", "without quotation marks: 0.5"),
        ("0.5%", "0.5 % of the full network is 0.005"),
        (("40%", 0.5), ""),
        ("half", ""),
        (True, ""),
        (-3.0, ""),
        (float("nan"), ""),
    ],
)
def test_per_cents_are_told_how_they_are_written(bound, words):
    with pytest.raises(BudgetError) as caught:
        Budget(macs=bound)
    assert words in str(caught.value)
    assert words or "full network is" not in str(caught.value).partition("; 40")[0]


def test_per_cents_in_a_config_and_without_a_sign():
    mistakes(plain(budget={"macs": "50%"}), "50 % of the full network is 0.5")
    mistakes(plain(budget={"params": "0.5"}), "without quotation marks: 0.5")
    assert meant(50) == "; 50 % of the full network is 0.5"
    assert meant(1234) == meant(0.5) == meant("many") == ""


def test_settings_of_a_table_without_a_name_change_the_usual_one():
    config = parse_config(plain(searcher={"batch": 4}, evaluator={"calibration_images": 256}))
    assert (config.searcher.name, config.searcher.options["batch"]) == ("response_surface", 4)
    assert (config.evaluator.name, config.evaluator.options["calibration_images"]) == (
        "adaptive_bn",
        256,
    )
    mistakes(plain(searcher={"n_sources": 4}), "n_sources")  # of another one
    mistakes(plain(data={"path": "x"}), "[data] needs a name")


def test_no_run_is_known_by_an_empty_name():
    for known in ([""], ["runs/a", ""], ""):
        mistakes(plain(known=known), "known is a list of run folders")


def test_settings_of_several_budgets_are_among_those_that_there_are():
    mistakes(plain(budgetss=[]), "did you mean 'budgets'?")
    mistakes(plain(zzz=1), "budgets")
    mistakes(plain(peers=[]), "[[peers]] are drawn beside several budgets")
    with pytest.raises(ConfigError, match="known is a list"):
        parse_config(plain(known=[""]))
