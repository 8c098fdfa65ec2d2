"""What the command line shows: progress at any width, and a run that is watched."""

import contextlib
import io
import json
import re
import time

import pytest
from rich.console import Console

from abcsearch import bars, terminal
from abcsearch.results.status import RunWatch
from abcsearch.results.tail import JournalTail
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import Journal
from abcsearch.runs.pace import Note
from abcsearch.runs.run_state import Standing
from abcsearch.steps import doing
from abcsearch.trial import Evaluation, Trial


@pytest.fixture
def shown(monkeypatch):
    """Makes a console of some width that writes into the text it returns."""

    def make(width, *, is_terminal):
        text = io.StringIO()
        options = {
            "force_terminal": is_terminal,
            "color_system": None,
            "highlight": False,
            "soft_wrap": True,
        }
        made = Console(file=text, width=width, height=40, **options)
        monkeypatch.setattr(terminal, "console", made)
        return text

    return make


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    settings = {"searcher": {"name": "bee_colony"}, "n_trials": 6, "seed": 0}
    environment = {"started": "2026-01-01 10:00:00"}
    folder.write_json(
        "run.json", {"format": 1, "settings": settings, "identity": {}, "environment": environment}
    )
    (folder.path / ".lock").touch()
    return folder


def add(folder, numbers):
    with Journal(folder.journal) as journal:
        for number in numbers:
            failure = "no" if number == 1 else None
            found = Evaluation(
                None if failure else number / 10, macs=812_345 + number, failure=failure
            )
            journal.append(Trial(number, (1,), found))
    folder.write_json("searcher.json", {"told": max(numbers) + 1, "exhausted": False})


def test_json_for_scripts_has_no_numbers_that_are_not_finite(shown, run):
    """Also of a whole run: no parser but Python's own reads NaN and Infinity."""
    text = shown(80, is_terminal=False)
    with Journal(run.journal) as journal:
        metrics = {"a": float("nan"), "b": float("inf"), "c": 0.5, "d": -float("inf")}
        journal.append(Trial(0, (1,), Evaluation(0.5, metrics=metrics)))

    def refuse(constant):
        raise AssertionError(constant)

    terminal.print_status(RunWatch(run.path), as_json=True)
    found = json.loads(text.getvalue(), parse_constant=refuse)
    own = found["searches"][0]["best"]["evaluation"]["metrics"]
    assert own == {"a": None, "b": None, "c": 0.5, "d": None}


@pytest.mark.parametrize(
    ("is_terminal", "switches", "seen"),
    [(True, (), True), (True, ("quiet",), False), (False, (), False)],
)
def test_a_wait_is_shown_on_a_terminal_alone(shown, monkeypatch, is_terminal, switches, seen):
    text = shown(80, is_terminal=is_terminal)
    monkeypatch.setattr(terminal, "_switches", set(switches))
    with bars.wait_shown("measuring"):
        pass
    assert ("measuring" in text.getvalue()) == seen


def test_a_warning_stands_above_the_spinner(shown, monkeypatch):
    text = shown(80, is_terminal=True)
    monkeypatch.setattr(terminal, "_err", Console(stderr=True, force_terminal=True))
    with bars.wait_shown("measuring"):
        terminal._show_warning("odd [red]")
    lines = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", text.getvalue()).replace("\r", "\n").splitlines()
    assert "warning: odd [red]" in lines


def test_a_table_stands_above_the_spinner_whole(shown):
    text = shown(40, is_terminal=True)
    with bars.wait_shown("measuring"):
        terminal.print_table(["name", "value"], ["x" * 60, "y"])
    plain = re.sub(r"\x1b\[2K", "\n", text.getvalue())  # what is erased is not seen
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", plain).replace("\r", "\n").splitlines()
    (row,) = (line for line in lines if "xxx" in line)
    assert row.split() == ["x" * 60, "y"]
    assert "measuring" not in row


NOTE = "best 0.9312, 2 failed, 3 of 4 workers busy"


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_a_bar_shows_all_its_words_at_any_width(shown, width):
    text = shown(width, is_terminal=True)
    with bars.progress_shown() as progress:
        for stage, total in (("base network", 3), ("regularized_evolution", 1200)):
            for done in (1, 2, 3):
                progress(stage, done, total, NOTE)
                time.sleep(0.01)
    last = (
        re.sub(r"\x1b\[[\d?]*[A-Za-z]", "", text.getvalue())
        .replace("\r", "\n")
        .split("base network")[-1]
    )
    lines = ["base network" + last.split("\n")[0], *last.split("\n")[1:]]
    assert max(map(len, lines)) <= width
    assert width < 120 or len([line for line in lines if line.strip()]) == 2  # one line each
    words = " ".join(lines).split()
    for word in set(NOTE.split()):
        assert words.count(word) >= 2 * NOTE.split().count(word), word
    assert words.count("left") == 1  # the finished stage has nothing left
    assert "3/1200" in " ".join(words)


def left(text, stage):
    """Returns the times left that were shown for a stage, in order, each once."""
    plain = re.sub(r"\x1b\[[\d?]*[A-Za-z]", "", text.getvalue()).replace("\r", "\n")
    found = re.findall(rf"^{stage}.* ([\d:]+(?: s)?) left", plain, re.MULTILINE)
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("is_terminal", [True, False])
def test_time_left_does_not_count_what_came_before_the_first_step(shown, monkeypatch, is_terminal):
    """Workers that start, or a journal that is read: the first step says nothing of how long steps take."""
    text = shown(120, is_terminal=is_terminal)
    now = [1000.0]
    monkeypatch.setattr(bars.time, "time", lambda: now[0])
    with bars.progress_shown() as progress:
        progress("training", 0, 5, "starting")
        for passed in (500.0, 7.0, 7.0, 7.0, 7.0):
            now[0] += passed
            progress("training", round(1 + (now[0] - 1500) / 7), 5, "loss")
            if is_terminal:
                progress._progress.refresh()
    assert left(text, "training") == ["21 s", "14 s", "7 s"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_time_left_is_what_the_search_itself_says(shown, monkeypatch, is_terminal):
    text = shown(120, is_terminal=is_terminal)
    monkeypatch.setattr(bars.time, "time", lambda: 1000.0)  # steps take no time at all
    with bars.progress_shown() as progress:
        for done, seconds in ((1, None), (2, 187.0), (3, 59.0), (4, 12.0)):
            progress("search", done, 4, Note.of("best 0.9", seconds if done < 4 else 99.0))
            if is_terminal:
                progress._progress.refresh()
    assert left(text, "search") == ["3:07", "59 s"]  # and nothing once all is done


def test_bar_and_status_have_the_same_time_left(run, monkeypatch):
    """Both by the pace of the trials, told from inside and from the journal."""
    now, told = [1000.0], []
    monkeypatch.setattr("abcsearch.runs.run_state.time.time", lambda: now[0])
    monkeypatch.setattr("abcsearch.runs.disk.journal.time.time", lambda: now[0], raising=False)
    monkeypatch.setattr("abcsearch.runs.pace.time", lambda: now[0])
    standing = Standing(
        folder=run,
        n_trials=6,
        max_failures=9,
        watchers=(),
        progress=lambda *said: told.append(said[3].left),
        stage="s",
    )
    with run.locked(), Journal(run.journal) as journal:
        for number in range(4):
            now[0] += 7.0 + number
            trial = Trial(number, (1,), Evaluation(0.5, macs=1, params=1, seconds=3.0))
            journal.append(trial)
            standing._count = lambda trial, standing=standing: bool(
                setattr(standing, "_done", standing._done + 1)
            )
            standing.add(trial, (2, 2))
            tail = JournalTail(run.journal, 6)
            tail.look()
            assert tail.pace.left(6 - number - 1, 2) == pytest.approx(told[-1])
    assert len(told) == 4


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_is_being_done_is_shown_until_a_stage_tells(shown, is_terminal):
    text = shown(100, is_terminal=is_terminal)
    with bars.progress_shown() as progress:
        assert "loading PyTorch" in text.getvalue()  # at once: nothing has been imported for it
        for _ in range(3):
            doing("tracing the network\x1b[2J" if is_terminal else "tracing the network")
        if is_terminal:
            progress._progress.refresh()
        assert (
            "tracing the network\\x1b[2J" if is_terminal else "tracing the network ..."
        ) in text.getvalue()
        progress("search", 1, 2, "best")
        if is_terminal:
            progress._progress.refresh()
    doing("unheard")
    assert "unheard" not in text.getvalue()
    assert is_terminal or text.getvalue().count("tracing") == 1
    if is_terminal:
        last = text.getvalue().split("\x1b[2K")[-1]
        assert "search" in last
        assert "tracing" not in last


def test_steps_are_said_to_nobody_unless_asked(capsys):
    doing("tracing the network")
    assert capsys.readouterr() == ("", "")


def test_progress_lines_are_the_milestones(shown):
    text = shown(40, is_terminal=False)
    with bars.progress_shown() as progress:
        for done in range(95, 201):
            progress("bee_colony", done, 200, NOTE)
    lines = text.getvalue().splitlines()
    assert lines.pop(0) == f"{bars.START} ..."
    assert [line.split(",")[0] for line in lines] == [
        "bee_colony: 95/200",
        *(f"bee_colony: {n}/200" for n in range(100, 201, 20)),
    ]
    assert lines[0].endswith("3 of 4 workers busy")
    assert lines[1].endswith(" left")


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (0.25, "4.0 trials/s"),
        (1, "1.0 trials/s"),
        (5, "12.0 trials/min"),
        (600, "6.0 trials/h"),
        (7200, "0.5 trials/h"),
    ],
)
def test_paces(interval, text):
    assert terminal._pace(interval) == text


def test_without_a_terminal_a_line_says_what_changed_until_the_run_is_finished(
    shown, run, monkeypatch
):
    text = shown(40, is_terminal=False)
    add(run, [0])
    lock = contextlib.ExitStack()
    steps = iter(
        (
            lambda: None,
            lambda: lock.enter_context(run.locked()),
            lambda: add(run, [1, 2]),
            lambda: None,
            lambda: add(run, [3, 4, 5]),
            lock.close,
        )
    )
    monkeypatch.setattr(time, "sleep", lambda seconds: next(steps)())
    terminal.watch(RunWatch(run.path))
    assert not list(steps)
    lines = [re.sub(r", [\d:]+( s)? left$", "", line) for line in text.getvalue().splitlines()]
    assert lines[0] == f"{run.path}: bee_colony, seed 0, started 2026-01-01 10:00:00"
    assert lines[1:] == [
        "bee_colony: 1 of 6 trials, 0 failed, best 0.0000 (trial 0, 812,345 MACs)",
        f"not running; continue with: abcsearch.resume({str(run.path)!r}, model=..., data=...) in Python, "
        "with the same objects",
        "running now",
        "bee_colony: 3 of 6 trials, 1 failed, best 0.2000 (trial 2, 812,347 MACs)",
        "bee_colony: 6 of 6 trials, 1 failed, best 0.5000 (trial 5, 812,350 MACs)",
        "finished",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_of_a_run_fits(shown, run, width):
    text = shown(width, is_terminal=True)
    baseline = RunFolder(run.path / "baselines" / "random")
    baseline.path.mkdir(parents=True)
    baseline.write_json("run.json", run.read_json("run.json"))
    add(run, range(5))
    add(baseline, range(2))
    run.log("long " * 60)
    run.write_json(
        "progress.json",
        {"stage": "random baseline", "busy": 3, "workers": 4, "time": time.time(), "done": 2},
    )
    watched = RunWatch(run.path)
    with run.locked():
        terminal.console.print(terminal._screen(watched.look(), watched), soft_wrap=False)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines[1:])) <= width  # the first one has the folder's path, however long
    found = "\n".join(lines)
    assert "5/6" in found
    assert "2/6" in found
    assert "1 failed, best 0.4000 (trial 4, 812,349 MACs)" in found
    assert "running now: random baseline, 3 of 4 workers busy" in found


@pytest.mark.parametrize("is_terminal", [True, False])
def test_ctrl_c_only_ends_the_watching(shown, run, monkeypatch, is_terminal):
    text = shown(80, is_terminal=is_terminal)

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    terminal.watch(RunWatch(run.path))
    assert "not running" in text.getvalue()
