"""The map of a run in its report: what each layer alone loses, against what searchers make of it."""

import html
import json
import math
import shutil
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from abcsearch import search
from abcsearch.budget import Budget
from abcsearch.cli import app
from abcsearch.config import read_config, read_run
from abcsearch.reporting.charts import page_charts
from abcsearch.reporting.curves import Layer
from abcsearch.reporting.drawings import draw_map
from abcsearch.reporting.gathering import Widths, gather
from abcsearch.reporting.layer_charts import map_chart
from abcsearch.reporting.layer_map import ROWS, layer_map
from abcsearch.reporting.report_page import MAP, report_page, write_page
from abcsearch.reporting.tables import map_cells
from abcsearch.runs.config_run import run_config, run_front_config
from abcsearch.runs.disk.journal import read_journal
from abcsearch.searchers.sensitivity_map import probes, sensitivity_map
from abcsearch.space import Dimension, SearchSpace
from abcsearch.trial import Evaluation, Trial
from tests.conftest import TINY_CONFIG
from tests.knowing import Mapped

SPACE = SearchSpace(
    (
        Dimension("a", "width", (1, 2, 4, 5, 8)),
        Dimension("b", "width", (2, 3, 9)),
        Dimension("c", "block", (0, 1)),
    )
)
LAYERS = [Layer(name="a", level="filter", full=10), Layer(name="b", level="stage", full=9)]
LAYERS.append(Layer(name="c", level="block", full=1))


def trials_of(fitness):
    """The probes of a map with these fitnesses, the largest structure first; None for a failure."""
    return [
        Trial(n, candidate, Evaluation(value, failure=None if value is not None else "no"))
        for n, (candidate, value) in enumerate(zip(probes(SPACE, 4), fitness, strict=True))
    ]


@given(st.integers(0, 4), st.lists(st.floats(0, 1), min_size=7, max_size=7))
def test_losses_are_those_that_searchers_go_by(failed, values):
    """Where nothing is cleaned up of noise: losses that rise as a layer gets narrower, and none below 0."""
    first = [None] * failed + sorted(values[failed:4])  # what is narrow fails first
    fitness = [2.0, *first, *sorted(values[4:6]), values[6]]
    trials = trials_of(fitness)
    made, oracle = layer_map(trials, LAYERS), sensitivity_map(SPACE, trials)
    assert made.largest == oracle.largest == 2.0
    assert made.failed == fitness.count(None)
    assert made.worst == pytest.approx(oracle.loss.max())
    for index, (dimension, probed) in enumerate(zip(SPACE.dimensions, made.layers, strict=True)):
        tried = [i for i, width in enumerate(dimension.choices) if width in probed.widths]
        assert tried == np.flatnonzero(oracle.probed[index]).tolist()
        for position, width in enumerate(dimension.choices):
            assert probed.at(width, made.worst) == pytest.approx(oracle.loss[index, position])


def test_a_map_is_read_of_structures_with_one_narrow_layer():
    fitness = [0.9, None, 0.5, 0.8, 0.92, 0.6, 0.7, 0.85]
    more = [Trial(50, (4, 3, 1), Evaluation(0.1)), Trial(51, (2, 9, 1), Evaluation(0.7))]
    made = layer_map([*trials_of(fitness), *more], LAYERS)
    first, second, block = made.layers
    assert first.widths == (1, 2, 4, 5)
    assert first.losses == pytest.approx((None, 0.9 - (0.5 + 0.7) / 2, 0.1, -0.02))
    assert (second.widths, block.widths, block.losses) == ((2, 3), (0,), (pytest.approx(0.05),))
    assert first.largest == 8
    grid = made.grid
    assert len(grid) == ROWS
    assert grid[-1][0] is None  # the space has no more than 8 of 10
    assert grid[0][0] is None  # and nothing below 1 of 10
    assert grid[2][0] == made.worst == pytest.approx(0.3)  # which failed
    assert grid[10][0] == 0.0  # better narrower
    assert [row[2] for row in grid] == [pytest.approx(0.05)] * (ROWS // 2) + [0.0] * (ROWS // 2)
    kept = Widths(layers=tuple(LAYERS), kept={"full": (10, 9, 1), "best": (4, 9, 0)})
    head, *rows = map_cells(made, kept)
    assert head[2] == "best keeps"
    assert rows[0][2:] == ["10 ⇒ 4", "1: failed", "2: 0.3000", "4: 0.1000", "5: \u22120.0200"]
    assert rows[2][2:] == ["dropped", "dropped: 0.0500", "", "", ""]


def test_without_the_largest_structure_the_best_stands_in_for_it():
    made = layer_map(trials_of([None, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]), LAYERS)
    assert (made.largest, made.known) == (0.7, False)
    assert layer_map(trials_of([0.9] + [None] * 7), LAYERS).reason is not None
    assert layer_map([], LAYERS).layers == ()


def test_of_hundreds_of_layers_the_picture_can_be_read():
    layers = [Layer(name=f"features.$<b>{n}", level="filter", full=8) for n in range(300)]
    whole = (8,) * 300
    cut = [(*whole[:n], 1, *whole[n + 1 :]) for n in range(300)]
    trials = [Trial(n, c, Evaluation(-n / 300)) for n, c in enumerate([whole, *cut])]
    made = layer_map(trials, layers)
    widths = Widths(layers=tuple(layers), kept={"best": (4,) * 300})
    chart = map_chart(made, widths)
    assert len(chart.layout.xaxis.ticktext) == 75
    assert "<b>" not in "".join(chart.layout.xaxis.ticktext)
    colors, tried, winner = chart.data
    assert (len(colors.z), len(colors.z[0])) == (ROWS, 300)
    assert (len(tried.x), len(winner.x)) == (300, 300)
    draw_map(made, widths).savefig("/dev/null", format="png")


def failing(candidate, seed):
    if candidate[0] == 1 or seed < 0:
        raise ValueError("<script>alert(1)</script>")
    return Evaluation(math.log(sum(candidate)))


def test_failed_evaluations_are_marked(tiny_model, tiny_data, tmp_path):
    search(
        tiny_model,
        tiny_data,
        run_dir=tmp_path / "run",
        searcher=Mapped,
        evaluator=failing,
        budget=Budget(macs=0.5),
        n_trials=6,
    )
    gathered = gather(tmp_path / "run")
    failed = [None in probed.losses for probed in gathered.layer_map.layers]
    assert failed == [True] + [False] * (len(failed) - 1)
    assert "of its evaluations 1 failed" in report_page(gathered).html().lower()
    names = [trace.name for trace in page_charts(gathered)["map"].data]
    assert names == [None, "tried", "failed", "winner"]
    write_page(gathered)
    assert (tmp_path / "run" / "report" / "map.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A configured run with a map."""
    folder = tmp_path_factory.mktemp("mapped")
    (folder / "tiny.toml").write_text(TINY_CONFIG)
    changes = ["searcher={name='sensitivity', levels=1}", "n_trials=3", "baselines=['uniform']"]
    run_config(read_config(folder / "tiny.toml", changes), folder / "run")
    return folder / "run"


def reported(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 0, result.output
    return html.unescape((folder / "report.html").read_text()), (folder / "report.md").read_text()


def test_the_report_of_a_run_has_its_map(run):
    page, markdown = reported(run)
    assert f"<h2>{MAP}</h2>" in page
    assert f"## {MAP}" in markdown
    assert (run / "report" / "map.png").exists()
    trials = read_journal(run / "map" / "journal.jsonl").trials
    made = json.loads((run / "report.json").read_text())["charts"]["map"]
    assert made["largest"] == trials[0].fitness
    for trial in list(trials.values())[1:]:
        (index,) = [i for i, width in enumerate(trials[0].candidate) if trial.candidate[i] != width]
        probed = made["layers"][index]
        assert probed["widths"] == [trial.candidate[index]]
        assert probed["losses"] == [trials[0].fitness - trial.fitness]
        assert (
            f"{trial.candidate[index]}: {probed['losses'][0]:.4f}".replace("-", "\u2212")
            in markdown
        )
    assert len(trials) == 1 + len(made["layers"])


def test_every_budget_has_the_map_that_they_share(tmp_path):
    text = TINY_CONFIG.replace("budget = {macs = 0.5}", "budgets = [{macs = 0.7}, {macs = 0.4}]")
    (tmp_path / "front.toml").write_text(text)
    changes = ["searcher={name='sensitivity', levels=1}", "n_trials=2", "baselines=[]"]
    found = run_front_config(read_run(tmp_path / "front.toml", changes), tmp_path / "run")
    first, second = (result.run_dir for result in found.results)
    assert not (second / "map").exists()
    maps = [gather(folder, measure=False).layer_map for folder in (first, second)]
    assert maps[0].largest == maps[1].largest
    for one, other in zip(*(made.layers for made in maps), strict=True):
        # Trials of the first budget may be of one narrow layer, too
        losses = [dict(zip(probed.widths, probed.losses, strict=True)) for probed in (one, other)]
        assert losses[0]
        assert losses[0].items() <= losses[1].items()
    page, markdown = reported(second)
    assert f"<h2>{MAP}</h2>" in page
    assert f"## {MAP}" in markdown
    assert "All of it was known from other runs" in page
    assert (second / "report" / "map.png").exists()
    (second / "known.json").unlink()
    assert gather(second, measure=False).layer_map is None


@pytest.mark.parametrize("what", ["gone", "journal gone", "journal damaged", "record damaged"])
def test_a_map_that_is_gone_or_damaged_leaves_the_rest(run, tmp_path, what):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "map" / ("run.json" if "record" in what else "journal.jsonl")
    if what == "gone":
        shutil.rmtree(copy / "map")
    elif "damaged" in what:
        path.write_bytes(b"{" + path.read_bytes()[5:])
    else:
        path.unlink()
    shutil.rmtree(copy / "report", ignore_errors=True)
    page, markdown = reported(copy)
    assert "Fitness over trials" in page
    assert f"## {MAP}" not in markdown
    assert not (copy / "report" / "map.png").exists()
    if what == "gone":
        assert MAP not in page
    else:
        assert str(path if "journal" in what else copy / "map") in page.split(MAP)[1]
        assert "Not shown: " in page.split(MAP)[1]
