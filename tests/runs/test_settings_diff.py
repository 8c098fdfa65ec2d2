"""In what runs differ: short, by name, and not where one of them writes a default out."""

import dataclasses

import pytest

from abcsearch.config import parse_config
from abcsearch.reporting.charts import timeline_chart
from abcsearch.reporting.compare_page import short_cells
from abcsearch.reporting.comparison import Winner
from abcsearch.reporting.curves import Cloud, Mark
from abcsearch.reporting.drawings import draw_pareto, draw_timeline
from abcsearch.reporting.tables import network_lines
from abcsearch.reporting.timeline import Bar, Timeline, outline
from abcsearch.reporting.words import time_change
from abcsearch.results.forward import ForwardTime
from abcsearch.results.report import Report
from abcsearch.results.rows import Row
from abcsearch.runs.settings import to_plain
from abcsearch.runs.settings_diff import complete, unlike

KEYS = (
    "model",
    "data",
    "pretrain",
    "budget",
    "space",
    "evaluator",
    "searcher",
    "execution",
    "latency",
)


def settings(**more):
    plain = {
        "n_trials": 3,
        "model": {"name": "small_resnet"},
        "data": {"name": "digits"},
        "pretrain": {"epochs": 3},
        "budget": {"macs": 0.5},
    }
    return to_plain(parse_config(plain | more))


def differences(one, other, metric="top1"):
    return unlike(complete(one, metric), complete(other, metric), KEYS)


def test_the_stages_of_a_cascade_have_defaults_as_well():
    plain = settings(evaluator={"name": "cascade"})
    written = settings(
        evaluator={"name": "cascade", "metric": "top1", "adaptive_bn": {"batch_size": 128}}
    )
    other = settings(evaluator={"name": "cascade", "adaptive_bn": {"batch_size": 64}})
    assert differences(plain, written) == []
    assert differences(plain, other) == ["evaluator.adaptive_bn.batch_size is 128 and 64"]


@pytest.mark.parametrize(
    "written",
    [
        {"evaluator": {"name": "adaptive_bn", "metric": "top1", "calibration_images": 512}},
        {"searcher": {"name": "response_surface", "batch": 8}},
    ],
)
def test_a_default_written_out_is_no_difference(written):
    assert settings() != settings(**written)
    assert differences(settings(), settings(**written)) == []


def test_settings_of_an_older_version_lack_what_came_later():
    older = settings()
    del older["space"]["lowest"], older["pretrain"]["ema"], older["latency"]
    assert differences(older, settings()) == []


def test_a_difference_is_named_as_in_a_config():
    other = settings(budget={"macs": 0.6}, evaluator={"name": "adaptive_bn", "metric": "top5"})
    assert differences(settings(), other) == [
        "budget.macs is 0.5 and 0.6",
        "evaluator.metric is top1 and top5",
    ]


def test_long_values_and_whole_tables_are_not_shown():
    one, other = settings(), settings()
    other["model"] |= {
        "sizes": {"layers": [["conv", 3]] * 500},
        "checkpoint": "/a/very/long/path" * 9,
    }
    other["pretrain"] = None
    found = differences(one, other)
    assert found == [
        "model.checkpoint differs",
        "another starting network (an export)",
        "pretrain is set and none",
    ]
    third = {
        key: value for key, value in settings().items() if key not in ("model", "data", "pretrain")
    }
    assert differences(one, third)[0] == "model is small_resnet and none"
    odd = settings(evaluator={"name": "adaptive_bn", "metric": "package.module:" + "f" * 50})
    assert differences(one, odd) == ["evaluator.metric differs"]


def test_of_very_many_differences_the_first_are_listed():
    one, other = settings(), settings()
    other["data"] = {"name": "digits", "options": {f"option{n}": n for n in range(100)}}
    found = differences(one, other)
    assert found[-1] == "and 88 more"
    assert len(found) == 13


def forward(median, low, high, batch=1):
    return ForwardTime(
        device="CPU", batch=batch, threads=1, median_ms=median, low_ms=low, high_ms=high, passes=30
    )


def test_times_whose_middle_halves_overlap_have_no_sign():
    assert time_change(forward(1.16, 1.07, 10.3), forward(1.22, 0.995, 12.8)) == "not told apart"
    assert time_change(forward(2.0, 1.9, 2.1), forward(1.0, 0.9, 1.1)) == "\u221250.0 %"
    assert time_change(forward(1.0, 0.9, 1.1), forward(2.0, 1.9, 2.1)) == "+100.0 %"


def test_the_table_of_networks_says_so_too():
    def row(name, *times):
        return Row(
            network=name,
            macs=9,
            flops=9,
            params=9,
            size_mb=1.0,
            latency_ms=1.0,
            times=times,
            fitness=0.5,
            before=None,
            after=None,
            tests={},
        )

    rows = (
        row("full", forward(1.2, 1, 9), forward(20, 19, 21, 64)),
        row("abc", forward(1.0, 1, 9), forward(5, 4, 6)),
    )
    report = Report(
        title="", rows=rows, widths=(), notes=(), against="macs", front=(), metric="top1"
    )
    lines = dict(network_lines(report))["Forward time, median (middle half of the passes)"]
    assert [line.cells[1][1] for line in lines] == ["not told apart", "\u221275.0 %"]


def test_bars_of_a_few_pixels_have_no_outline():
    def bar(length):
        return Bar(search="s", trial=0, lane=0, start=0, end=length, state="succeeded")

    assert outline(bar(10.0), 100.0) > 0
    assert outline(bar(0.1), 100.0) == 0
    found = Timeline(
        bars=(bar(10.0), bar(0.1)),
        lanes=1,
        cuts=(),
        seconds=100.0,
        busy=10.1,
        untimed=0,
        failures=(),
    )
    widths = timeline_chart(found).data[0].marker.line.width
    assert widths[0] > 0 == widths[1]
    drawn = [patch.get_linewidth() for patch in draw_timeline(found).axes[0].patches]
    assert drawn[0] > 0 == drawn[1]


def test_two_runs_fit_on_a_terminal():
    winner = Winner(
        run="digits-regularized-evolution-seed-3",
        searcher="bee_colony_official",
        seed=12,
        trials=1000,
        failed=0,
        trial=3,
        fitness=0.98765,
        macs=643_958,
        params=174_970,
        macs_share=0.3987,
        params_share=0.3987,
        times=(forward(1.2, 1, 2), forward(123.4, 100, 200, 64)),
        tests={name: {"before": 0.8, "after": 1.0} for name in ("top1", "top5")},
        metric="top1",
    )
    other = dataclasses.replace(winner, run="digits-nsga2-long")
    cells = short_cells([winner, other])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    assert sum(widths) + 2 * len(widths) <= 120
    assert len({row[0] for row in short_cells([winner, winner])}) == 3
    assert cells[1][-1] == "80.00\u21d2100.00%"


def test_a_network_in_one_panel_alone_is_in_the_legend():
    clouds = [
        Cloud(cost=cost, numbers=(0, 1), costs=(10.0, 20.0), fitness=(0.1, 0.2), front=(0, 1))
        for cost in ("macs", "params")
    ]
    costs = {"full": {"macs": 100.0, "params": 25.0}, "uniform": {"macs": 15.0, "params": 15.0}}
    marks = [Mark(name=name, fitness=0.1, costs=own) for name, own in costs.items()]
    (legend,) = draw_pareto(clouds, marks).legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "trials",
        "front",
        "uniform",
        "full",
    ]
