"""Trials as tables, results as people see them, several seeds, and what people pass by mistake."""

import csv
import io
import json
import math
import statistics
import sys

import pytest
from scipy.stats import ttest_1samp
from typer.testing import CliRunner

from abcsearch import Budget, ExecutionOptions, cli, make_searcher, populations, search
from abcsearch.errors import ConfigError, ModelError, RunError
from abcsearch.runs.seeds import SeedsResult, Spread
from abcsearch.runs.trials import FORMATS, format_of, rows_of
from abcsearch.trial import Evaluation, Trial


def by_width(candidate, seed):
    if seed % 7 == 3:
        raise ValueError("=cmd|' /C calc'!A1")
    return Evaluation(sum(candidate) / 100, metrics={"top1": 0.5, "odd": float("nan")})


def run(model, data, folder, **changes):
    settings = {
        "budget": Budget(macs=0.8),
        "n_trials": 20,
        "evaluator": by_width,
        "searcher": "random",
        **changes,
    }
    return search(model, data, run_dir=folder, **settings)


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def result(tiny_model, tiny_data, tmp_path):
    return run(tiny_model, tiny_data, tmp_path / "run")


def test_the_table_has_every_number_of_every_trial(result):
    told = call("trials", result.run_dir, "--format", "json")
    assert told.exit_code == 0, told.output
    rows = json.loads(told.output)
    names = [dimension.name for dimension in result.task.space.dimensions]
    assert len(rows) == len(result.trials) == 20
    best = -math.inf
    for row, trial in zip(rows, result.trials, strict=True):
        own = trial.evaluation
        assert [row[f"width.{name}"] for name in names] == list(trial.candidate)
        assert (row["number"], row["fitness"], row["macs"], row["params"]) == (
            trial.number,
            own.fitness,
            own.macs,
            own.params,
        )
        best = best if own.fitness is None else max(best, own.fitness)
        assert row["best_so_far"] == (None if best == -math.inf else best)
        assert (row["failure"] is None) == (own.fitness is not None)
        assert row.keys() == rows[0].keys()
    assert {row["metric.top1"] for row in rows} == {0.5, None}
    assert {row["metric.odd"] for row in rows} == {None}  # JSON has no NaN


def test_csv_is_read_back_and_holds_no_formula(result, tmp_path):
    out = tmp_path / "deep" / "trials.csv"
    told = call("trials", result.run_dir, "--out", out)
    assert told.exit_code == 0, told.output
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [int(row["number"]) for row in rows] == list(range(20))
    failed = [row["failure"] for row in rows if row["failure"]]
    assert failed
    assert not [cell for row in rows for cell in row.values() if cell[:1] in "=+@" and cell]
    assert out.read_text() == call("trials", result.run_dir).output


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_run_without_names_or_trials_has_a_table(kind):
    assert FORMATS[kind]([])
    (row,) = rows_of([Trial(0, (3, 1), Evaluation(0.5))])
    assert (row["width.layer 1"], row["width.layer 2"]) == (3, 1)
    (row,) = rows_of([Trial(0, (3, 1, 1, 0), Evaluation(0.5))], ("a", "b"), ("l1", "l2"))
    assert (row["criterion.a"], row["criterion.b"]) == ("l2", "l1")


def test_formats_by_name_and_by_ending(tmp_path):
    assert [
        format_of(None, None),
        format_of(tmp_path / "x.json", None),
        format_of(tmp_path / "x.json", "csv"),
    ] == ["csv", "json", "csv"]
    with pytest.raises(ConfigError, match=r"unknown format 'xls'"):
        format_of(tmp_path / "x.xls", None)
    with pytest.raises(ConfigError, match=r"--out trials.parquet"):
        format_of(None, "parquet")


@pytest.mark.parametrize(("package", "kind"), [("pandas", None), ("pyarrow", "parquet")])
def test_a_package_that_is_not_there_is_named(result, tmp_path, monkeypatch, package, kind):
    monkeypatch.setitem(sys.modules, package, None)
    words = rf"needs {package}, which is not installed .*pip install 'abcsearch\[tables\]'"
    with pytest.raises(ConfigError, match=words):
        FORMATS[kind]([]) if kind else result.trials_frame()


def test_the_frame_is_the_table(result):
    pytest.importorskip("pandas", reason="an extra: pip install 'abcsearch[tables]'")
    frame = result.trials_frame()
    assert list(frame.index) == [trial.number for trial in result.trials]
    assert frame["fitness"].idxmax() == result.best.number
    assert frame["best_so_far"].iloc[-1] == result.best.fitness


def test_parquet_holds_the_same(result, tmp_path):
    parquet = pytest.importorskip(
        "pyarrow.parquet", reason="an extra: pip install 'abcsearch[tables]'"
    )
    assert call("trials", result.run_dir, "--out", tmp_path / "t.parquet").exit_code == 0
    read = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert [row["fitness"] for row in read] == [trial.evaluation.fitness for trial in result.trials]


def test_several_budgets_are_one_table(tiny_model, tiny_data, tmp_path):
    budgets = [Budget(macs=0.8), Budget(macs=0.5)]
    front = search(
        tiny_model,
        tiny_data,
        budgets=budgets,
        n_trials=4,
        run_dir=tmp_path / "f",
        evaluator=by_width,
        searcher="random",
    )
    rows = json.loads(call("trials", tmp_path / "f", "--format", "json").output)
    assert [row["budget"] for row in rows] == [name for name in front.names for _ in range(4)]
    assert "1-macs-0.8" in repr(front)


def test_results_are_seen_in_a_few_lines(result):
    lines = repr(result).splitlines()
    assert len(lines) == 6  # the class, and five
    assert f"{result.best.fitness:.4f}" in repr(result)
    assert str(result.run_dir) in lines[1]
    shown = result._repr_html_()
    assert shown.count("<tr>") == 5
    assert "=&gt;" in shown  # escaped


def winner(result):
    return result.best.number, result.best.candidate, result.best.fitness


def test_several_seeds_are_what_each_alone_finds(tiny_model, tiny_data, tmp_path):
    found = run(tiny_model, tiny_data, tmp_path / "seeds", seeds=range(3))
    assert isinstance(found, SeedsResult)
    alone = [run(tiny_model, tiny_data, tmp_path / f"alone-{seed}", seed=seed) for seed in range(3)]
    assert [winner(own) for own in found.results] == [winner(own) for own in alone]
    assert [own.run_dir.name for own in found.results] == ["seed-0", "seed-1", "seed-2"]
    fitness = found.table()[0]
    assert fitness.mean == pytest.approx(statistics.fmean(own.best.fitness for own in alone))
    again = run(tiny_model, tiny_data, tmp_path / "seeds", seeds=range(3))  # continued
    assert [winner(own) for own in again.results] == [winner(own) for own in alone]
    assert "0, 1, 2" in repr(found)


def test_the_interval_of_a_mean_is_students():
    values = [0.5, 0.7, 0.65, 0.9]
    own = Spread.of("fitness", values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (own.mean - own.half, own.mean + own.half) == pytest.approx(
        (expected.low, expected.high)
    )
    assert own.deviation == pytest.approx(statistics.stdev(values))
    alone = Spread.of("fitness", [0.5])
    assert (alone.deviation, alone.half) == (0, math.inf)
    assert "inf" not in " ".join(alone.cells)


@pytest.mark.parametrize("seeds", [[], [0, 0], [-1], [0.5], 3, [True], ["0"]])
def test_what_are_no_seeds_is_refused(tiny_model, tiny_data, tmp_path, seeds):
    with pytest.raises(ConfigError, match="seeds are whole numbers from 0"):
        run(tiny_model, tiny_data, tmp_path / "seeds", seeds=seeds)
    assert not (tmp_path / "seeds").exists()


def test_what_people_pass_by_mistake_is_told(tiny_model, tiny_data, tmp_path, capsys):
    with pytest.raises(ModelError, match=r"found a state dict of weights \(conv.weight"):
        run(tiny_model.state_dict(), tiny_data, tmp_path / "run")
    with pytest.raises(ConfigError, match="progress is True, or a function"):
        run(tiny_model, tiny_data, tmp_path / "run", progress=3)
    assert not (tmp_path / "run").exists()
    run(tiny_model, tiny_data, tmp_path / "run", progress=True, n_trials=3)
    assert "search: 3/3, best" in capsys.readouterr().out
    run(tiny_model, tiny_data, tmp_path / "quiet", progress=False, n_trials=3)
    assert not capsys.readouterr().out


def test_seeds_on_the_command_line_take_all_numbers(tiny_config, tmp_path, monkeypatch):
    seen = []

    def run_config(config, folder, **options):
        seen.append((config.seed, folder.name))
        raise KeyboardInterrupt

    monkeypatch.setattr("abcsearch.runs.config_run.run_config", run_config)
    call("search", "--seeds", "3", "1", tiny_config, "--run-dir", tmp_path / "runs")
    assert seen == [(3, "seed-3")]
    refused = call("search", tiny_config, "--seeds", "0", "1", "--dry-run")
    assert refused.exit_code == 2
    assert "leave --seeds out" in refused.output


@pytest.mark.parametrize(
    "searcher",
    [
        {"name": "bee_colony", "n_sources": 3},
        {
            "name": "evolution",
            "population": 6,
            "archive": 6,
            "parents": 3,
            "mutations": 3,
            "crossovers": 3,
        },
    ],
)
def test_populations_are_what_the_searcher_had(tiny_model, tiny_data, tmp_path, searcher):
    """The last one is that of the run folder, which the search itself has written."""
    result = run(tiny_model, tiny_data, tmp_path / "run", searcher=searcher, n_trials=17)
    rounds = populations(result)
    assert [trial for own in rounds for trial in own.trials] == list(result.trials)
    assert [own.number for own in rounds] == list(range(len(rounds)))
    assert len(rounds) > 1
    kept = json.loads((tmp_path / "run" / "population.json").read_text())["members"]
    assert [trial.number for trial in rounds[-1].population] == [member["trial"] for member in kept]
    before = set()
    for own in rounds:  # nobody is in it who has not been evaluated
        before |= {trial.number for trial in own.trials}
        assert {trial.number for trial in own.population} <= before
        fitness = [trial.fitness for trial in own.population]
        assert fitness == sorted(fitness, reverse=True)


def test_a_search_without_rounds_has_no_populations(tiny_model, tiny_data, tmp_path):
    def made(space, constraint):
        return make_searcher("evolution", space, constraint)

    windowed = {"execution": ExecutionOptions(window=4), "searcher": "evolution"}
    for name, changes in (("window", windowed), ("own", {"searcher": made})):
        result = run(tiny_model, tiny_data, tmp_path / name, n_trials=6, **changes)
        with pytest.raises(RunError, match="in rounds whose searcher has a name"):
            populations(result)


@pytest.mark.parametrize(
    ("values", "low_to_high"),
    [
        ([612.0, 764.0], "612 to 764"),
        ([0.25, 1.0], "0.2500 to 1.0000"),
        ([1500.5, 2e6], "1,500 to 2,000,000"),
    ],
)
def test_whole_numbers_of_seeds_have_no_digits_behind_the_point(values, low_to_high):
    *_, ends = Spread.of("params", values).cells
    assert ends == low_to_high
