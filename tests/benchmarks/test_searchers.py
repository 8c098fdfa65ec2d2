"""The benchmark of searchers, on a made-up table of 32 structures: what it counts, keeps and refuses."""

import gzip
import itertools
import json
import re
from dataclasses import dataclass, replace

import pytest

from abcsearch.errors import DataError
from abcsearch.searchers.base import Searcher
from abcsearch.searchers.registry import SEARCHERS, SearcherEntry
from experiments.benchmarks.searchers import bench, problems, report
from experiments.benchmarks.searchers.__main__ import main
from experiments.benchmarks.searchers.bench import Plan, benchmark
from experiments.benchmarks.searchers.play import Job, Played, play
from experiments.benchmarks.searchers.plots import median_regrets
from experiments.benchmarks.searchers.results import Results
from experiments.benchmarks.searchers.rows import Row
from experiments.benchmarks.searchers.tables import overview, summary

# Structure i of the table: layer0 is the highest bit of i
EVERY = list(itertools.product((8, 64), repeat=5))
BEST = {28: 70.79, 29: 70.8, 30: 71.0, 31: 70.9}  # per cent; the others have 40 + i
# By seed: what the scripted searcher proposes
ORDERS = {0: (0, 5, 29, 1), 1: (10, 28, 3, 31), 2: (7, 6, 8, 9)}


def accuracy(i):
    return BEST.get(i, 40 + i)


@dataclass(frozen=True, kw_only=True)
class ScriptedOptions:
    again: int = 0


class Scripted(Searcher):
    """Proposes structures by a list, two at a time, and claims to have asked for `again` known ones between batches."""

    name = "scripted"
    Options = ScriptedOptions

    def _begin(self):
        self.left = list(ORDERS.get(self.seed, range(32)))
        self.repeats = 0

    def _propose(self):
        if self.left and self._known:
            self.repeats += self.options.again
        batch, self.left = self.left[:2], self.left[2:]
        return [self._remember(EVERY[i]) for i in batch]

    def _learn(self, batch):
        pass


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    entry = SearcherEntry(home=f"{__name__}:Scripted", description="", source="")
    monkeypatch.setitem(SEARCHERS, "scripted", entry)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    columns = [
        f"{what}_{dataset}" for dataset in problems.DATASETS for what in ("params", "flops", "acc")
    ]
    lines = [",".join(["index", "arch", *columns])]
    for i, c in enumerate(EVERY):
        cells = [sum(c), sum(a * b for a, b in itertools.pairwise((3, *c))), accuracy(i)] * len(
            problems.DATASETS
        )
        lines.append(",".join(map(str, [i, ":".join(map(str, c)), *cells])))
    (folder / problems.TABLE).write_bytes(gzip.compress("\n".join(lines).encode()))
    return folder


@pytest.fixture
def plan(data):
    rows = [Row(name="scripted", searcher="scripted")]
    return Plan(rows=rows, tasks=["cifar10-free"], data=data, evaluations=4, seeds=3)


@pytest.fixture
def called(data, tmp_path, capsys):
    """Calls the command line; returns its status and what it wrote."""

    def call(*argv, folder=data):
        status = main(
            ["--data", str(folder), "--cache", str(tmp_path / "cache"), "--workers", "1", *argv]
        )
        return (status, *capsys.readouterr())

    return call


def job(**changes):
    made = Job(row="scripted", searcher="scripted", task="cifar10-free", seed=0, evaluations=4)
    return replace(made, **changes)


def cells(line):
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_a_run_is_the_winners_so_far(data):
    assert play(job(), data).steps == [(1, 40 / 100), (2, 45 / 100), (3, 70.8 / 100)]
    run = play(job(seed=1), data)
    assert run.steps == [(1, 50 / 100), (2, 70.79 / 100), (4, 70.9 / 100)]
    assert run.evaluations == 4
    assert play(job(seed=1, evaluations=3), data).steps == run.steps[:2]


def test_pictures_are_of_the_medians_regrets(plan, tmp_path, called):
    (found,) = benchmark(plan, Results(tmp_path), 1)
    assert median_regrets(found, "scripted", [1, 2, 4]) == pytest.approx([24, 24, 0.2])
    picture = tmp_path / "means.png"
    status, *_ = called(
        "--searchers",
        "random",
        "--tasks",
        "cifar10-free",
        "--seeds",
        "1",
        "--picture",
        str(picture),
    )
    assert status == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_medians_regrets_and_evaluations_needed(plan, tmp_path):
    (found,) = benchmark(plan, Results(tmp_path), 1)
    assert found.optimum == pytest.approx(0.71)
    runs = found.runs["scripted"]
    one = summary(runs, found.optimum, (1, 2, 4))
    # Of 40, 50, 47; of 45, 70.79, 47; of 70.8, 70.9, 49
    assert one.accuracy == pytest.approx({1: 47, 2: 47, 4: 70.8})
    assert one.regret == pytest.approx({1: 24, 2: 24, 4: 0.2})
    # Of 3, 4, never: 70.8 is within 0.2 of 71, 70.79 is not
    assert (one.seeds, one.needed) == (3, 4)
    assert summary(runs[:1], found.optimum, (4,)).needed == 3
    assert summary(runs[2:], found.optimum, (4,)).needed == float("inf")
    # Over two tasks: mean regret, on how many tasks the median run is near the optimum.
    never = summary(runs[2:], found.optimum, (4,))
    near = summary(runs, found.optimum, (4,))
    line = overview([{"a": near, "b": never}, {"a": never, "b": never}]).splitlines()[2:]
    assert [cells(each) for each in line] == [
        ["a", "1", "11.10", "1 of 2"],
        ["b", "1", "22.00", "0 of 2"],
    ]


def test_before_the_first_evaluation_there_is_no_accuracy():
    late = Played(steps=[(3, 0.5)], evaluations=4, seconds=1.0)
    assert summary([late], 0.5, (2, 3)).accuracy == {2: 0, 3: 50}


def test_the_report_holds_the_same_numbers(called):
    status, out, err = called(
        "--searchers", "scripted", "--tasks", "*-free", "--seeds", "3", "--evaluations", "4"
    )
    assert status == 0
    assert "9/9 runs" in err
    assert "**cifar10-free**, optimum 71.00 %" in out
    lines = [cells(line) for line in out.splitlines() if line.startswith("| scripted")]
    assert lines[0] == ["scripted", "3", "0.20", "3 of 3"]
    assert [line[:4] for line in lines[1:]] == [["scripted", "3", "70.80 (0.20)", "4"]] * 3


def test_repeated_evaluations_are_charged_before_the_batch_that_is_asked_next(data, monkeypatch):
    monkeypatch.setitem(ORDERS, 0, (0, 1, 2, 3, 29, 30))
    assert [n for n, _ in play(job(evaluations=6), data).steps] == [1, 2, 3, 4, 5, 6]
    run = play(job(evaluations=7, options={"again": 2}), data)
    assert [n for n, _ in run.steps] == [1, 2, 5, 6]  # the third batch would be at 9 and 10
    assert run.evaluations == 7
    run = play(job(evaluations=9, options={"again": 2}), data)
    assert run.steps[-1] == (9, pytest.approx(0.708))


def test_what_a_searcher_wants_to_know_first_is_charged_told_and_cannot_win(data):
    probed = play(job(searcher="sensitivity", evaluations=12, options={"levels": 1}), data)
    # After five dimensions' smallest choices and the largest structure
    assert probed.steps[0][0] == 7
    assert probed.evaluations == 12
    unfinished = play(job(searcher="sensitivity", evaluations=6, options={"levels": 1}), data)
    assert (unfinished.steps, unfinished.evaluations) == ([], 6)


def test_a_run_ends_when_everything_inside_the_budget_is_known(data):
    run = play(job(searcher="random", task="cifar10-50", evaluations=100), data)
    task = problems.problem("cifar10-50", data)
    inside = sum(task.constraint.allows(c) for c in EVERY)
    assert run.evaluations == inside < 32
    assert (
        run.steps[-1][1]
        == task.optimum
        == task.truths([c for c in EVERY if task.constraint.allows(c)]).max()
    )


def test_winners_are_chosen_by_what_is_seen_and_scored_by_the_truth(data):
    task = problems.problem("landscape30-50", data)
    seen = []

    def noisy(candidate, seed):
        seen.append((task.evaluator(candidate, seed).fitness, task.truths([candidate])[0]))
        return task.evaluator(candidate, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "experiments.benchmarks.searchers.play.problem",
            lambda *_: replace(task, evaluator=noisy),
        )
        run = play(job(searcher="random", evaluations=40), data)
    expected = [
        (n + 1, true)
        for n, (fitness, true) in enumerate(seen)
        if fitness > max([0, *(f for f, _ in seen[:n])])
    ]
    assert run.steps == expected


def test_finished_runs_are_kept(plan, tmp_path, monkeypatch):
    (first,) = benchmark(plan, Results(tmp_path), 1)
    monkeypatch.setattr(bench, "play", lambda *_, **__: pytest.fail("made again"))
    assert benchmark(plan, Results(tmp_path), 1) == [first]


def test_a_cut_file_of_results_is_continued(plan, tmp_path, monkeypatch):
    (first,) = benchmark(plan, Results(tmp_path), 1)
    (file,) = tmp_path.iterdir()
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    file.write_text(lines[0] + lines[1][:-20])
    made = []
    monkeypatch.setattr(
        bench, "play", lambda job, data: (made.append(job.seed), play(job, data))[1]
    )
    (second,) = benchmark(plan, Results(tmp_path), 1)
    assert made == [1, 2]
    assert [run.steps for run in second.runs["scripted"]] == [
        run.steps for run in first.runs["scripted"]
    ]
    assert second.runs["scripted"][0] == first.runs["scripted"][0]  # its time as well
    assert [json.loads(line)["key"] for line in file.read_text().splitlines()] == [
        json.loads(x)["key"] for x in lines
    ]


@pytest.mark.parametrize("change", ["code", "table", "evaluations", "options"])
def test_other_runs_are_not_taken_for_finished_ones(plan, tmp_path, monkeypatch, change):
    benchmark(plan, Results(tmp_path), 1)
    if change == "code":
        monkeypatch.setattr(bench, "code_fingerprint", lambda _: 1)
    if change == "table":
        monkeypatch.setattr(problems, "fingerprint", lambda *_: 1)
    if change == "evaluations":
        plan = replace(plan, evaluations=3)
    if change == "options":
        plan = replace(plan, rows=[replace(plan.rows[0], options={"again": 1})])
    benchmark(plan, Results(tmp_path), 1)
    (file,) = tmp_path.iterdir()
    assert len(file.read_text().splitlines()) == 6


def test_a_damaged_line_is_named(plan, tmp_path):
    benchmark(plan, Results(tmp_path), 1)
    (file,) = tmp_path.iterdir()
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + "{torn\n" + "".join(lines[1:]))
    with pytest.raises(DataError, match=r"jsonl, line 2 is damaged: .*; delete the line"):
        benchmark(plan, Results(tmp_path), 1)


def test_again_makes_runs_again(called, tmp_path):
    wanted = (
        "--searchers",
        "scripted",
        "--tasks",
        "cifar10-free",
        "--seeds",
        "2",
        "--evaluations",
        "4",
    )
    assert "2/2 runs" in called(*wanted)[2]
    assert "runs" not in called(*wanted)[2]
    assert "2/2 runs" in called(*wanted, "--again")[2]
    assert len((tmp_path / "cache" / "scripted.jsonl").read_text().splitlines()) == 2


def test_seeds_are_those_of_the_row(plan):
    row = replace(plan.rows[0], seeds=(5, 2))
    own = replace(plan, seeds=None)
    assert [one.seed for one in own.jobs(row, "cifar10-50")] == [0, 1, 2, 3, 4]
    assert [one.seed for one in own.jobs(row, "landscape30-50")] == [0, 1]


def test_tuning_sees_cifar10_and_landscapes_of_its_own_only(called, data, monkeypatch, tmp_path):
    seen = []
    table, landscape = problems._table, problems._landscape
    monkeypatch.setattr(
        problems, "_table", lambda *asked: (seen.append(asked[1]), table(*asked))[1]
    )
    monkeypatch.setattr(
        problems, "_landscape", lambda *asked: (seen.append(asked[1]), landscape(*asked))[1]
    )
    monkeypatch.setattr(bench, "oracle", lambda *_, **__: 0.94)
    problems.problem.cache_clear()
    status, out, _ = called("--tune", "--searchers", "random", "--seeds", "1", "--evaluations", "2")
    assert status == 0
    assert set(seen) == {"cifar10", 1000}
    assert "cifar100" not in out
    assert "imagenet16" not in out
    keys = [
        json.loads(json.loads(line)["key"])[0]
        for line in (tmp_path / "cache" / "random.jsonl").read_text().splitlines()
    ]
    assert {key["seed"] for key in keys} == {1000}
    assert {key["task"] for key in keys} == set(problems.TUNING_TASKS)
    problems.problem.cache_clear()


def test_tuning_landscapes_are_not_the_final_ones(data):
    for task in problems.LANDSCAPE_TASKS:
        final, tuning = problems.problem(task, data), problems.problem(f"tuning-{task}", data)
        asked = [final.space.uniform(0.5)]
        assert final.space == tuning.space
        assert final.truths(asked)[0] != tuning.truths(asked)[0]


@pytest.mark.parametrize(
    "tasks", ["cifar100-*", "imagenet16-50", "landscape30-50", "cifar10-50,landscape*"]
)
def test_tuning_refuses_tasks_of_the_final_table(called, tasks):
    status, out, err = called("--tune", "--tasks", tasks)
    assert (status, out) == (2, "")
    assert err.startswith("unknown task ")


PARTS = [
    "--tune",
    "--set batch=3",
    "--tasks cifar10-*",
    "--searchers random",
    "--seeds 3",
    "--evaluations 50",
]


@pytest.mark.parametrize("part", [*PARTS, "--seeds 3 --tasks cifar10-*"])
def test_only_the_whole_is_written(called, capsys, part):
    with pytest.raises(SystemExit, match="2"):
        called("--write", *part.split())
    options = [f"--{word.split()[0]}" for word in part.split("--")[1:]]
    err = capsys.readouterr().err
    assert "--write replaces the published tables, which are of everything: leave out " in err
    assert set(re.findall(r"--[a-z]+", err.split("leave out")[1])) == set(options)


def test_a_missing_folder_is_one_clear_message(called, tmp_path):
    status, out, err = called(folder=tmp_path / "nowhere")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert f"{tmp_path / 'nowhere' / problems.TABLE} is missing" in err
    assert "--data" in err


def test_landscapes_need_no_folder(called, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "oracle", lambda *_, **__: 0.5)
    wanted = (
        "--tasks",
        "landscape30-50",
        "--searchers",
        "random",
        "--seeds",
        "1",
        "--evaluations",
        "3",
    )
    status, out, _ = called(*wanted, folder=tmp_path / "nowhere")
    assert status == 0
    assert "**landscape30-50**, best known " in out


def test_a_damaged_table_is_one_clear_message(called, tmp_path):
    (tmp_path / problems.TABLE).write_text("index,arch\n0,8:8\n")
    status, _, err = called("--searchers", "random", folder=tmp_path)
    assert status == 2
    assert err.count("\n") == 1
    assert f"{problems.TABLE}, line 1: a table needs the columns" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--searchers", "randon"), "unknown searcher 'randon'; did you mean 'random'?"),
        (("--searchers", "random,scriptd"), "unknown searcher 'scriptd'; did you mean 'scripted'?"),
        (("--tasks", "cifar01-free"), "unknown task 'cifar01-free'; did you mean 'cifar10-free'?"),
        (("--set", "again"), "--set takes option=value, found 'again'"),
        (("--searchers", "scripted", "--set", "agin=1"), "did you mean 'again'?"),
    ],
)
def test_mistakes_on_the_command_line_are_named(called, argv, message):
    status, out, err = called(*argv)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_settings_are_a_row_of_their_own(called):
    wanted = (
        "--searchers",
        "scripted",
        "--tasks",
        "cifar10-free",
        "--seeds",
        "1",
        "--evaluations",
        "4",
    )
    status, out, _ = called(*wanted, "--set", "again=2")
    assert status == 0
    assert "| scripted again=2 | 1 | 45.00 (26.00) | >4 |" in out


def test_the_report_goes_between_the_marks_of_a_readme(plan, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "draw", lambda *asked: drawn.append(asked[2].name))
    found = benchmark(plan, Results(tmp_path / "cache"), 1)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(tmp_path, found, 4)
    content = readme.read_text()
    assert content.startswith(f"before\n{report.BEGIN}")
    assert content.endswith(f"{report.END}\nafter\n")
    assert "old" not in content
    assert drawn == ["tables.png"]
    assert report.text(found, 4) in content
    readme.write_text("no marks")
    with pytest.raises(DataError, match="has no marks"):
        report.write(tmp_path, found, 4)


def test_what_a_searcher_finds_is_the_best_known_where_the_oracle_found_less(
    plan, tmp_path, monkeypatch
):
    rows = [Row(name="random", searcher="random")]
    plan = replace(plan, rows=rows, tasks=["landscape30-50"], evaluations=20)
    for oracle, better in ((0.2, False), (0.95, True)):
        monkeypatch.setattr(bench, "oracle", lambda *_, value=oracle, **__: value)
        (found,) = benchmark(plan, Results(tmp_path), 1)
        best = max(value for run in found.runs["random"] for _, value in run.steps)
        assert found.optimum == (oracle if better else best)
