"""report.html and compare.html of real runs: whole, self-contained, escaped; and in a browser where there is one."""

import dataclasses
import html
import json
import os
import re
import shutil
import struct
import subprocess
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from plotly.offline import get_plotlyjs
from typer.testing import CliRunner

from abcsearch import Budget, Evaluation, cli, search
from abcsearch.config import read_config
from abcsearch.errors import RunError
from abcsearch.reporting.charts import page_charts, thinned_note
from abcsearch.reporting.comparison import compare_runs
from abcsearch.reporting.curves import cost_cloud, fitness_curve
from abcsearch.reporting.drawings import drawings
from abcsearch.reporting.gathering import gather
from abcsearch.reporting.history import read_history
from abcsearch.reporting.page import Page, Section, table
from abcsearch.reporting.plotting import figure_of
from abcsearch.reporting.report_page import report_page, write_page
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.open_run import open_run
from abcsearch.runs.config_run import run_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.trial import Trial

CHARTS = {"fitness", "pareto", "widths", "sensitivity", "parallel", "timeline"}
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole small run, fine-tuned, with its report."""
    from tests.conftest import TINY_CONFIG

    folder = tmp_path_factory.mktemp("report")
    (folder / "tiny.toml").write_text(TINY_CONFIG)
    run_config(read_config(folder / "tiny.toml", ["n_trials=40"]), folder / "run")
    finetune_run(open_run(folder / "run"))
    result = call("report", folder / "run")
    assert result.exit_code == 0, result.output
    return folder / "run"


def without_library(page):
    """The page without plotly itself, whose code names addresses that it does not fetch for these charts.

    Unpacked as the page's script does, digit by digit.
    """
    (found,) = re.finditer(r'data-bytes="(\d+)" data-digits="([^"]+)">([^<&]+)</script>', page)
    size, digits, text = int(found[1]), found[2], found[3]
    assert len(set(digits)) == len(digits) == 85
    values = {digit: value for value, digit in enumerate(digits)}
    numbers = [
        sum(values[own] * 85 ** (4 - place) for place, own in enumerate(text[start : start + 5]))
        for start in range(0, len(text), 5)
    ]
    assert (
        zlib.decompress(struct.pack(f">{len(numbers)}I", *numbers)[:size]).decode()
        == get_plotlyjs()
    )
    return page.replace(text, "")


def test_a_page_is_small(run):
    assert (run / "report.html").stat().st_size < 2_000_000


def embedded(page):
    (text,) = re.findall(
        r'<script type="application/json" id="charts">(.*?)</script>', page, flags=re.DOTALL
    )
    return json.loads(text)


def test_the_page_is_one_file_with_all_charts(run):
    page = (run / "report.html").read_text()
    own = without_library(page)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", own)
    assert not re.findall(r"<(?:link|script|img|iframe)[^>]+(?:src|href)=[\"'](?!data:)", own)
    assert set(embedded(page)) == CHARTS
    assert set(re.findall(r'class="chart" id="(\w+)"', own)) == CHARTS
    assert {path.stem for path in (run / "report").glob("*.png")} == CHARTS
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (run / "report").iterdir())


def test_the_page_has_the_numbers_of_the_run(run):
    text = html.unescape((run / "report.html").read_text()).replace("\u00a0", " ")
    made = json.loads((run / "report.json").read_text())
    full, winner = made["rows"][0], made["rows"][-1]
    change = 100 * (winner["macs"] - full["macs"]) / full["macs"]
    for number in (
        f"\u2212{-change:.1f} %",
        f"{100 * winner['tests']['top1']['after']:.2f} %",
        f"{100 * winner['tests']['top5']['before']:.2f} %",
        f"{winner['fitness']:.4f}",
        f"{winner['size_mb']:.3g} MB",
        *(f"{time['median_ms']:#.3g} ms" for time in winner["times"]),
        f"abcsearch export {run}",
        'name = "bee_colony"',
        "conv</td>",
    ):
        assert number in text, number
    assert [(time["device"], time["batch"]) for time in winner["times"]][:2] == [
        ("CPU", 1),
        ("CPU", 64),
    ]
    assert all(time["low_ms"] <= time["median_ms"] <= time["high_ms"] for time in winner["times"])


def test_the_charts_show_what_the_journal_holds(run):
    charts = embedded((run / "report.html").read_text())
    made = json.loads((run / "report.json").read_text())["charts"]
    own = next(
        trace for trace in charts["fitness"]["data"] if trace["name"] == "bee_colony: trials"
    )
    assert own["y"] == made["fitness"][0]["fitness"]
    bars = [trace for trace in charts["timeline"]["data"] if trace["type"] == "bar"]
    assert sum(len(trace["x"]) for trace in bars) == len(made["timeline"]["bars"])
    shown = [trace for trace in charts["pareto"]["data"] if trace["visible"]]
    assert {"front", "full", "uniform", "random", "bee_colony (winner)"} <= {
        trace["name"] for trace in shown
    }
    for trace in shown:  # what would squeeze the rest is off at first
        far = trace["x"][0] > 1.5 * max(made["pareto"]["clouds"][0]["costs"])
        assert trace["visible"] == ("legendonly" if far else True)
        assert far == (trace["name"] == "full")
    (bound,) = charts["pareto"]["layout"]["shapes"]
    assert bound["x0"] == made["pareto"]["clouds"][0]["bound"][1]
    widths = {trace["name"]: trace["y"] for trace in charts["widths"]["data"]}
    assert widths["full"] == [layer["full"] for layer in made["widths"]["layers"]]


def test_a_run_is_reported_as_far_as_it_is(run, tmp_path):
    """One trial, none fine-tuned, no random baseline yet: and the folder is only read."""
    copy = tmp_path / "half"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "finetuned")
    shutil.rmtree(copy / "baselines")
    journal = (copy / "journal.jsonl").read_bytes().splitlines(keepends=True)
    first = next(place for place, line in enumerate(journal) if b'"event"' not in line)
    (copy / "journal.jsonl").write_bytes(b"".join(journal[: first + 1]))
    (copy / "searcher.json").unlink()
    before = (copy / "run.json").read_bytes()
    result = call("report", copy)
    assert result.exit_code == 0, result.output
    assert "1 of 40 trials so far" in result.output
    page = html.unescape((copy / "report.html").read_text())
    assert "The search is not finished" in page
    assert "Not shown: " in page
    assert set(embedded((copy / "report.html").read_text())) == CHARTS - {"sensitivity"}
    assert [row["network"] for row in json.loads((copy / "report.json").read_text())["rows"]] == [
        "full",
        "uniform",
        "bee_colony",
    ]
    assert (copy / "run.json").read_bytes() == before
    assert (copy / "journal.jsonl").read_bytes() == b"".join(journal[: first + 1])


def test_what_is_not_at_hand_leaves_the_charts(run, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(run, copy)
    (copy / "base.safetensors").unlink()
    result = call("report", copy)
    assert result.exit_code == 0, result.output
    assert "base.safetensors, the weights of the trained network, is missing" in result.output
    found = gather(copy)
    assert found.report is None
    assert next(layer.name for layer in found.widths.layers) == "conv"
    assert set(embedded((copy / "report.html").read_text())) == CHARTS


def evil(candidate, seed):
    if seed % 3 == 0:
        raise ValueError("<script>alert(1)</script> & 'quotes' </script> $x_$")
    return Evaluation(float(sum(candidate)))


def test_a_run_from_python_with_failures_and_strange_names(tiny_model, tiny_data, tmp_path):
    folder = tmp_path / "<img src=x onerror=alert(1)> $\\frac"
    search(
        tiny_model,
        tiny_data,
        budget=Budget(macs=0.6),
        n_trials=12,
        run_dir=folder,
        evaluator=evil,
        searcher="random",
    )
    found = gather(folder)
    page = write_page(found).read_text()
    own = without_library(page)
    assert "<img src=x" not in own
    assert "alert(1)</script>" not in own
    assert own.count("</script>") == 3  # charts, plotly, and what unpacks and draws
    assert "started from Python" in html.unescape(own)
    (failures,) = found.timeline.failures
    assert (
        len(failures.trials)
        == sum(trial.evaluation.failure is not None for trial in found.history.own.trials)
        > 0
    )
    assert all(path.stat().st_size > 1000 for path in (folder / "report").iterdir())


def test_a_run_in_which_every_trial_failed(tiny_model, tiny_data, tmp_path):
    def failing(candidate, seed):
        raise ValueError("no")

    with pytest.raises(RunError, match="no trial of"):
        search(
            tiny_model,
            tiny_data,
            budget=Budget(macs=0.6),
            n_trials=3,
            run_dir=tmp_path / "run",
            evaluator=failing,
        )
    result = call("report", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert set(embedded((tmp_path / "run" / "report.html").read_text())) == {"fitness", "timeline"}


def test_ten_thousand_trials_stay_small_and_say_so(run):
    found = gather(run, measure=False)
    draws = np.random.default_rng(0)
    own = found.history.own
    trials = tuple(
        Trial(n, own.trials[0].candidate, Evaluation(float(f), macs=int(100 * f) + 1, seconds=0.5))
        for n, f in enumerate(draws.random(10_000))
    )
    large = dataclasses.replace(own, trials=trials, finished={n: float(n) for n in range(10_000)})
    cloud = cost_cloud("macs", trials, [trial.evaluation.macs for trial in trials])
    found = dataclasses.replace(
        found,
        history=dataclasses.replace(found.history, searches=(large,)),
        curves=(fitness_curve(large),),
        clouds=(cloud,),
    )
    assert "about 3,000 are drawn" in thinned_note(found)
    charts = page_charts(found)
    assert len(charts["fitness"].data[1].x) < 3100
    assert max(charts["fitness"].data[1].y) == max(trial.fitness for trial in trials)
    assert len(report_page(found).html()) < 3_000_000


def test_names_of_hundreds_of_layers_are_thinned_in_charts_and_pictures(run):
    found = gather(run, measure=False)
    layer = found.widths.layers[0]
    layers = tuple(
        dataclasses.replace(layer, name=f"features.$denseblock.<b>{n}") for n in range(300)
    )
    widths = dataclasses.replace(found.widths, layers=layers, kept={"bee_colony": (1,) * 300})
    found = dataclasses.replace(found, widths=widths)
    axis = page_charts(found)["widths"].layout.xaxis
    assert len(axis.ticktext) == 75
    assert "<b>" not in "".join(axis.ticktext)
    drawings(found)["widths"]().savefig("/dev/null", format="png")


def test_runs_side_by_side(run, tmp_path):
    config = read_config(run.parent / "tiny.toml", ["n_trials=40", "seed=1"])
    run_config(config, tmp_path / "other-seed")
    run_config(
        dataclasses.replace(config, budget=Budget(macs=0.6), n_trials=5), tmp_path / "other-budget"
    )
    out = tmp_path / "out" / "compare.html"
    result = call("compare", run, tmp_path / "other-seed", tmp_path / "other-budget", "--out", out)
    assert result.exit_code == 0, result.output
    assert "budget.macs is 0.5 and 0.6" in result.output
    assert "seeds differ" in result.output
    page = out.read_text()
    assert set(embedded(page)) == {"fitness", "pareto", "widths"}
    assert {path.stem for path in out.with_suffix("").glob("*.png")} == {
        "fitness",
        "pareto",
        "widths",
    }
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", without_library(page))
    made = json.loads(out.with_suffix(".json").read_text())
    both, alone = made["groups"]
    assert both["runs"] == ["run", "other-seed"]
    assert alone["runs"] == ["other-budget"]
    best = [
        [t.fitness for t in read_history(path).own.trials]
        for path in (run, tmp_path / "other-seed")
    ]
    best = np.maximum.accumulate(np.array(best), axis=1)
    assert both["mean"] == pytest.approx(best.mean(axis=0).tolist())
    assert both["low"] == best.min(axis=0).tolist()
    assert both["high"] == best.max(axis=0).tolist()
    assert [winner["macs_share"] <= 0.5 for winner in made["winners"][:2]] == [True, True]
    assert (
        made["winners"][0]["tests"]["top1"]
        == json.loads((run / "report.json").read_text())["rows"][-1]["tests"]["top1"]
    )


def test_compare_replaces_nothing_of_a_run_and_no_folder(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    before = {path: path.stat().st_mtime_ns for path in [*run.rglob("*"), *other.rglob("*")]}
    (tmp_path / "folder.html").mkdir()
    for out, words in (
        (run / "report.html", "is in a run folder"),
        (tmp_path / "page.txt", "does not end in .html"),
        (tmp_path / "folder.html", "is a folder"),
    ):
        result = call("compare", run, other, "--out", out)
        assert result.exit_code == 2
        assert words in result.output
    assert before == {
        path: path.stat().st_mtime_ns for path in [*run.rglob("*"), *other.rglob("*")]
    }
    assert {path.name for path in tmp_path.iterdir()} == {"other", "folder.html"}


def test_the_report_of_a_folder_that_cannot_be_written_to_goes_elsewhere(
    run, tmp_path, monkeypatch
):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode != os.W_OK or Path(path) != run)
    refused = call("report", run)
    assert refused.exit_code == 2
    assert f"error: {run} cannot be written to" in refused.output
    assert f"abcsearch report {run} --out report.html" in refused.output
    out = tmp_path / "new" / "page.html"
    done = call("report", run, "--out", out)
    assert done.exit_code == 0, done.output
    assert f"written to {out}" in done.output
    assert {path.name for path in out.parent.iterdir()} == {
        "page",
        "page.html",
        "page.json",
        "page.md",
    }
    assert set(embedded(out.read_text())) == CHARTS
    there, here = (
        json.loads(path.read_text())["rows"]
        for path in (run / "report.json", out.parent / "page.json")
    )
    assert [row["after"] for row in there] == [row["after"] for row in here]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_file_of_an_older_report_that_cannot_be_written_is_named(run, monkeypatch):
    def refuse(_, name, *__, **___):
        raise PermissionError(13, "Permission denied", str(run / name))

    found = gather(run, measure=False)
    monkeypatch.setattr(RunFolder, "write", refuse)
    with pytest.raises(
        RunError, match=rf"{run}/report.* cannot be written: Permission denied; .*--out report.html"
    ):
        write_page(found)


def test_a_run_without_a_finished_trial_is_not_reported(run, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(run / "run.json", begun)
    for empty in (False, True):
        if empty:
            (begun / "journal.jsonl").touch()
        result = call("report", begun)
        assert result.exit_code == 2
        assert "no trial in" in result.output
        assert "has finished yet" in result.output


def test_on_paper_there_are_no_hints_and_headings_stay_with_what_they_head():
    page = Page(
        title="t",
        subtitle="",
        tiles=[("91.67 %", "test; full 93.61 %")],
        charts={"c": figure_of([], "x", "y")},
        sections=[
            Section(title="drawn", lead="seen", hint="Press the buttons.", chart="c"),
            Section(
                title="written",
                body=table([["run", "MACs"], ["abc", "657 k (39.8 %)"]], [1], "dense"),
            ),
        ],
    )
    text = without_library(page.html())
    assert '<p class="no-print">Press the buttons.</p>' in text
    assert '<div class="keep"><h2>drawn' in text
    assert '<div class="keep head"><h2>written' in text
    assert "<b>91.67\u00a0%</b><span>test; full 93.61\u00a0%</span>" in text
    assert '<table class="dense">' in text
    assert "657\u00a0k (39.8\u00a0%)" in text
    (paper,) = re.findall(r"@media print \{(.*?)\n\}", text, flags=re.DOTALL)
    assert re.search(r"h1, h2, h3, \.head, tr\.part \{ break-after: avoid", paper)
    assert re.search(r"\.no-print[^{]*\{ display: none", paper)


def test_compare_refuses_one_run_and_twice_the_same(run):
    for folders, words in (([run], "two run folders or more"), ([run, run], "is there twice")):
        with pytest.raises(RunError, match=words):
            compare_runs(folders)
    assert call("compare", run, run.parent).exit_code == 2


def test_runs_that_are_compared_share_their_data(run, tmp_path):
    one, other = compare_runs([run, shutil.copytree(run, tmp_path / "other")]).runs
    assert one.run.result.task.data is other.run.result.task.data


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_draws_all_charts_without_errors(run, tmp_path):
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=20000",
    ]
    address = (run / "report.html").resolve().as_uri()
    done = subprocess.run(
        [CHROMIUM, *options, "--enable-logging=stderr", "--v=0", "--dump-dom", address],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    drawn = re.findall(r'class="chart js-plotly-plot" id="(\w+)"', done.stdout)
    assert set(drawn) == CHARTS


def test_reports_warn_of_nothing(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gather(run)
        assert found.missing is None
        assert RunFolder(run).in_use() is False
