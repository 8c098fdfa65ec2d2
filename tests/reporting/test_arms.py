"""What winners are compared with in their own runs, and over runs: is it the structure or the weights?"""

import dataclasses
import json
import math
import re
import shutil
import statistics
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from abcsearch import cli
from abcsearch.config import read_config
from abcsearch.reporting.arm_tables import terminal_tables, verdicts
from abcsearch.reporting.arms import Arm, contrasts_of, missing, shown, unsound
from abcsearch.reporting.compare_page import compare_page
from abcsearch.reporting.comparison import Comparison, Group, compare_runs
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.intervals import Difference
from abcsearch.results.open_run import open_run
from abcsearch.runs.config_run import run_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("no_pictures")

TITLE = "Winners and baselines"
BASELINES = ["uniform", "scratch_e"]


def arm(run, network, after, **changes):
    kind = {"winner": "winner", "full": "full"}.get(network, "baseline")
    told = {
        "seed": sum(map(ord, run)),
        "macs": 10,
        "macs_share": 0.5,
        "epochs": 4,
        "cost": 2.0,
        "metric": "top1",
    }
    told |= {"before": 0.25, "after": after, "asked": {"epochs": 4}}
    return Arm(run=run, network=network, kind=kind, **{**told, **changes})


def compared(arms, name="ours (several runs)"):
    """The comparison of one group of runs that have these networks."""
    labels = tuple(dict.fromkeys(one.run for one in arms))
    group = Group(name=name, runs=labels, numbers=(), mean=(), low=(), high=())
    empty = {"labels": labels, "runs": (), "winners": (), "warnings": ()}
    contrasts = contrasts_of(name, labels, arms)
    return Comparison(groups=(group,), arms=tuple(arms), contrasts=contrasts, **empty)


ACCURACY = st.integers(0, 360).map(lambda right: right / 360)
PAIRS = st.lists(st.tuples(ACCURACY, ACCURACY), min_size=1, max_size=6)


@given(PAIRS, st.sets(st.integers(0, 5)))
def test_differences_are_those_within_runs_that_have_both(pairs, without):
    """Whatever runs lack the baseline; its mean is over the others, and says how many these are."""
    labels = [f"s{seed}" for seed in range(len(pairs))]
    arms = [arm(run, "winner", won) for run, (won, _) in zip(labels, pairs, strict=True)]
    having = {seed: pair for seed, pair in enumerate(pairs) if seed not in without}
    arms += [arm(f"s{seed}", "scratch_b", other) for seed, (_, other) in having.items()]
    winner, *others = contrasts_of("ours", labels, arms)
    assert (winner.network, winner.difference, winner.several) == ("winner", None, len(pairs))
    assert [one.network for one in others] == (["scratch_b"] if having else [])
    for one in others:
        apart = [won - other for won, other in having.values()]
        assert one.runs == tuple(f"s{seed}" for seed in having)
        assert one.difference.mean == pytest.approx(statistics.fmean(apart))
        assert (one.apart is None) == (len(apart) < 2)
        text = json.dumps(one.plain())
        assert json.loads(text, parse_constant=pytest.fail)["difference"]["count"] == len(apart)
    for seed, label in enumerate(labels):
        assert missing(labels, label, arms) == (
            ["scratch_b"] if having and seed not in having else []
        )


@given(st.lists(PAIRS, min_size=1, max_size=4))
def test_the_terminal_gets_80_columns_and_verdicts_agree_with_intervals(each):
    """Every network that is not the winner is told apart or not, exactly once, from three runs on."""
    arms = [arm(f"s{seed}", "winner", won) for seed, (won, _) in enumerate(each[0])]
    runs = {one.run for one in arms}
    for number, pairs in enumerate(each):
        name = f"a_baseline_with_a_long_name_{number}"
        rest = [arm(f"s{seed}", name, other) for seed, (_, other) in enumerate(pairs)]
        arms += [one for one in rest if one.run in runs]
    apart = Difference(first="w", second="b", change=-0.5, low=-0.6, high=-0.3, paired=True)
    told = {"difference": apart, "intervals": {"top1": (0.0, 1.0)}}
    made = compared([dataclasses.replace(one, **told) for one in arms])
    (_, (head, *rows)), *_ = terminal_tables(made)
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    assert sum(widths) + len(widths) + 1 <= 80
    line = "".join(verdicts(made))
    for one in made.contrasts:
        if one.kind == "baseline":
            assert line.count(f"{one.network} (") == (one.difference.count >= 3)
    if len(each) == 1 and line:
        apart = made.contrasts[1].apart
        assert ("not told apart" not in line) == apart.told_apart
        assert ("better than" in line) == (apart.low > 0)


@given(PAIRS.filter(lambda pairs: len(pairs) > 1), st.randoms(use_true_random=False))
def test_runs_of_the_same_seed_tell_nothing_apart(pairs, random):
    """Copies of a run differ by nothing, and would tell anything apart."""
    seeds = [*range(len(pairs) - 1), 0]
    random.shuffle(seeds)
    arms = [
        arm(f"r{index}", name, after, seed=seeds[index])
        for index, pair in enumerate(pairs)
        for name, after in zip(("winner", "uniform"), pair, strict=True)
    ]
    assert verdicts(compared(arms)) == []


def test_what_was_trained_by_another_recipe_is_in_no_mean():
    other = {"epochs": 9}
    arms = [arm(run, name, 0.5) for run in "ab" for name in ("winner", "uniform")]
    arms += [arm("c", name, 1.0, asked=other) for name in ("winner", "uniform")]
    arms[1] = dataclasses.replace(arms[1], asked=other)
    winner, uniform = contrasts_of("ours", "abc", arms)
    assert (winner.runs, uniform.runs, uniform.several) == (("a", "b"), ("b",), 3)
    assert uniform.after.mean == 0.5


def test_a_group_without_a_baseline_is_not_shown():
    arms = [arm(run, name, 0.5) for run in "abc" for name in ("winner", "full")]
    arms.append(arm("b", "uniform", 0.5))
    assert {one.run for one in shown(["ab", "c"], arms)} == {"a", "b"}
    assert shown(["ab", "c"], arms[:-1]) == ()


@pytest.mark.parametrize("value", [7.5, -0.1, math.nan, math.inf])
def test_what_no_accuracy_can_be_is_named_and_left_out(tmp_path, value):
    scores = {"before": {"top1": 0.5}, "after": {"top1": value}, "recipe": {"epochs": 1}}
    folder = RunFolder(tmp_path)
    run = SimpleNamespace(metric="top1", folder=folder, config=SimpleNamespace(finetune=Recipe()))
    told = unsound(run, {"uniform": SimpleNamespace(scores=scores)})
    assert f"top1 0.5 => {value} cannot be" in told["uniform"]
    assert not unsound(run, {"uniform": SimpleNamespace(scores={**scores, "after": {"top1": 1.0}})})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs that differ by their seeds, fine-tuned, each with baselines."""
    from tests.conftest import TINY_CONFIG

    folder = tmp_path_factory.mktemp("arms")
    (folder / "tiny.toml").write_text(TINY_CONFIG)
    made = []
    for seed in range(3):
        settings = ["n_trials=3", f"seed={seed}", f"baselines={BASELINES}"]
        run_config(read_config(folder / "tiny.toml", settings), folder / f"s{seed}")
        finetune_run(open_run(folder / f"s{seed}"))
        made.append(folder / f"s{seed}")
    return made


@pytest.fixture
def copies(runs, tmp_path):
    return [shutil.copytree(run, tmp_path / run.name) for run in runs[:2]]


def after(run, name):
    return json.loads((run / "finetuned" / f"{name}.json").read_text())["after"]["top1"]


def test_compare_shows_what_fine_tuning_left_of_every_run(runs, tmp_path):
    out = tmp_path / "compare.html"
    result = CliRunner().invoke(cli.app, ["compare", *map(str, runs), "--out", str(out)])
    assert result.exit_code == 0, result.output
    winner = next(one.network for one in compare_runs(runs).arms if one.kind == "winner")
    plain = json.loads(out.with_suffix(".json").read_text(), parse_constant=pytest.fail)
    names = {"winner": winner, "full": "full", **{name: name for name in BASELINES}}
    assert [one["network"] for one in plain["contrasts"]] == [*names]
    for one in plain["contrasts"]:
        mine = [after(run, names[one["network"]]) for run in runs]
        assert one["after"]["mean"] == pytest.approx(statistics.fmean(mine))
        apart = [after(run, winner) - value for run, value in zip(runs, mine, strict=True)]
        if one["kind"] != "winner":
            assert one["difference"]["mean"] == pytest.approx(statistics.fmean(apart))
            assert re.search(rf"^ {one['network']} .* 3 *$", result.output, re.MULTILINE)
    for one in plain["arms"]:
        assert one["cost"] == pytest.approx(one["epochs"] * one["macs_share"])
        assert set(one["intervals"]) == set(one["tests"])
        assert (one["difference"] is None) == (one["kind"] == "winner")
    page = out.read_text()
    for title in (f"{TITLE} over runs", f"{TITLE} run by run"):
        assert title in page
    assert "by test top1 after fine-tuning, the winner is" in result.output


def test_what_is_damaged_in_one_run_is_named_once_and_loses_nothing_else(copies):
    whole = compare_runs(copies)
    (copies[1] / "finetuned" / "scratch_e.json").write_text("{")
    made = compare_runs(copies)
    assert [one for one in whole.arms if (one.run, one.network) != ("s1", "scratch_e")] == [
        *made.arms
    ]
    assert {one.network: len(one.runs) for one in made.contrasts} == {
        "winner": 2,
        "full": 2,
        "uniform": 2,
        "scratch_e": 1,
    }
    (line,) = [line for line in made.warnings if "scratch_e" in line]
    assert "scratch_e.json is damaged" in line
    assert "1 of 2" in compare_page(made).html()


@pytest.mark.parametrize("epochs", [math.nan, math.inf, -5, 0, 2.5, True, "2", None])
def test_epochs_that_no_recipe_has_are_damage(copies, epochs):
    name, folder = "finetuned/scratch_e.json", RunFolder(copies[0])
    plain = folder.read_json(name)
    folder.write_json(name, {**plain, "recipe": {**plain["recipe"], "epochs": epochs}})
    made = compare_runs(copies)
    assert any("scratch_e.json is damaged: recipe is none" in line for line in made.warnings)
    assert compare_page(made).html()


def test_a_baseline_that_a_run_has_not_is_named(copies):
    for path in (copies[0] / "finetuned").glob("uniform*"):
        path.unlink()
    made = compare_runs(copies)
    (line,) = [line for line in made.warnings if "uniform" in line]
    assert line.startswith("s0 has no fine-tuned uniform, ")
    (_, rows), *_ = terminal_tables(made)
    assert rows[-1][-1] == "1/2"


def test_runs_without_baselines_look_as_before(copies):
    for run in copies:
        for name in BASELINES:
            for path in (run / "finetuned").glob(f"{name}*"):
                path.unlink()
    made = compare_runs(copies)
    assert (made.arms, made.contrasts, [*terminal_tables(made)]) == ((), (), [])
    assert TITLE not in compare_page(made).html()
    assert len(made.warnings) == 1  # seeds differ


def test_a_run_that_is_not_fine_tuned_leaves_the_other_as_it_is(copies):
    shutil.rmtree(copies[1] / "finetuned")
    made = compare_runs(copies)
    assert {one.run for one in made.arms} == {"s0"}
    assert all(one.difference is None or one.difference.count == 1 for one in made.contrasts)


def test_the_same_seed_twice_is_told(runs, tmp_path):
    again = [shutil.copytree(runs[0], tmp_path / name) for name in ("again", "once-more")]
    made = compare_runs([runs[0], *again])
    assert verdicts(made) == []
    assert any("s0 and again have the same settings and seed" in line for line in made.warnings)
