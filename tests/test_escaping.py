"""What files hold is shown with every character to be seen: nothing in them steers a terminal."""

import functools
import html
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
import tomllib
import unicodedata
import warnings
from unittest import mock

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs
from typer.testing import CliRunner

from abcsearch import cli, terminal
from abcsearch.budget import Budget
from abcsearch.errors import escaped
from abcsearch.files import CHECKSUM
from abcsearch.reporting import report_page
from abcsearch.reporting.page import Page, Section, code, network_table, paragraph, table
from abcsearch.reporting.plotting import figure_of
from abcsearch.reporting.repeating import config_toml
from abcsearch.reporting.tables import Line
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.entry import search
from abcsearch.trial import Evaluation
from tests.conftest import TINY_CONFIG

# Sets the title, colours (also by the one byte of 8-bit terminals), moves the cursor, returns, rings, turns the line.
PLANT = "\x1b]0;title\x07 \x9b31m \x1b[9;9H \r \b \x7f \u202e turned \u2066 \u2028 \x85"


def unseen(text):
    """Returns the characters of a text that are not seen, but newlines and tabs."""
    return {
        c
        for c in text
        if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    }


def call(*arguments):
    """Runs a command without a terminal; returns its exit status and what it printed, warnings as the command does."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = terminal._show_warning
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def clean(*arguments, status=(0, 2)):
    """Returns what a command prints, with no character in it that is not seen."""
    code, text = call(*arguments)
    assert code in status, text
    assert not unseen(text), text
    assert text.strip()
    return text


def texts(value, path=()):
    """Yields the path of every text in plain JSON values."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict | list):
        for key, own in value.items() if isinstance(value, dict) else enumerate(value):
            yield from texts(own, (*path, key))


def plant(value, path):
    """Changes the text at a path in plain JSON values."""
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] += PLANT


def own_text(page):
    """Returns a page without the library that draws its charts, and with the texts of the charts as they are shown.

    "" where there is none.
    """
    if not page.exists():
        return ""
    text = page.read_text(encoding="utf-8").replace(get_plotlyjs(), "")
    (charts,) = re.findall(
        r'<script type="application/json" id="charts">(.*?)</script>', text, re.DOTALL
    )
    plain = json.loads(charts)
    shown = [functools.reduce(lambda value, key: value[key], path, plain) for path in texts(plain)]
    return html.unescape(text) + "\n".join(shown)


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.sampled_from(["\x1b[31m", "\u202e", "\x9b"]),
)
def test_every_text_of_a_page_shows(text, steering):
    """Of the page itself, wherever it is put, and of a chart."""
    text += steering
    figure = figure_of(
        [{"type": "scatter", "y": [1.0], "name": html.escape(text), "customdata": [[text]]}],
        text,
        text,
    )
    body = (
        code(text)
        + table([[text], [text]])
        + network_table([text], [(text, [Line(name=text, cells=((text, text),))])], [0])
    )
    section = Section(title=text, lead=text, hint=text, chart="one", body=body + paragraph(text))
    page = Page(
        title=text,
        subtitle=text,
        tiles=[(text, text)],
        warnings=[text],
        sections=[section],
        charts={"one": figure},
    )
    with mock.patch("abcsearch.reporting.page.get_plotlyjs", return_value=""):
        shown = page.html()
    assert not unseen(html.unescape(shown))
    (charts,) = re.findall(
        r'<script type="application/json" id="charts">(.*?)</script>', shown, re.DOTALL
    )
    assert not unseen("".join(json.loads(charts)["one"]["data"][0]["customdata"][0]))


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.text(st.characters(exclude_categories=["Cs"])),
    )
)
def test_settings_show_whole_and_are_read_again(settings):
    text = config_toml({"space": settings})
    assert not unseen(text)
    assert tomllib.loads(text) == {"space": settings}


@given(st.text(st.characters(), max_size=30))
def test_every_character_of_an_escaped_text_shows_and_nothing_else_changes(text):
    shown = escaped(text)
    assert not unseen(shown)
    shown.encode()
    if not unseen(text):
        assert shown == text
    assert shown.count("\n") == text.count("\n")


def test_escapes_are_those_of_python():
    assert (
        escaped("a\x1b[1m\r\u202e\U000e0001\udc9b\tb\n")
        == "a\\x1b[1m\\x0d\\u202e\\U000e0001\\udc9b\tb\n"
    )
    assert escaped("é ⇒ 网络 👍") == "é ⇒ 网络 👍"


@pytest.fixture(autouse=True, scope="module")
def _undrawn():
    """Pictures take most of the time of a report."""
    with mock.patch.object(report_page, "drawings", return_value={}):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run in a folder of such a name."""
    folder = tmp_path_factory.mktemp("escapes")
    (folder / "tiny.toml").write_text(TINY_CONFIG.replace("n_trials = 24", "n_trials = 6"))
    path = folder / f"run{PLANT.replace('/', '')}"
    text = clean("search", folder / "tiny.toml", "--run-dir", path, status=(0,))
    assert "run\\x1b]0;title\\x07" in text
    for command in ("finetune", "report", "export", "status"):
        clean(command, path, status=(0,))
    return path


def test_folder_names_in_every_message(run, tmp_path):
    clean("compare", run, run, "--out", run.parent / f"page{PLANT}.html")
    clean("compare", run, run, "--out", run.parent / f"page{PLANT}")
    clean("evaluate", run, status=(2,))
    clean("evaluate", run / "export", status=(0,))
    clean("evaluate", run / "export" / PLANT, status=(2,))
    clean("export", run, "--out", run / "report.html" / "x", status=(2,))
    clean("export", run, "--network", PLANT, status=(2,))
    clean("search", tmp_path / f"{PLANT}.toml", status=(2,))
    clean("list", PLANT, status=(2,))
    clean("list", "models", PLANT, status=(2,))
    clean("inspect", PLANT, status=(2,))
    for command in ("status", "resume", "finetune", "report", "export"):
        clean(command, tmp_path / PLANT, status=(2,))
    with RunFolder(run).locked():
        clean("resume", run, status=(2,))
    assert not unseen((run / "report.md").read_text())


def commands_of(run):
    """Yields commands that read a run."""
    yield from (
        ["status", run],
        ["status", run, "--watch"],
        ["status", run, "--json"],
        ["resume", run],
        ["report", run],
    )
    yield from (["export", run], ["compare", run, run, "--out", run.parent / "page.html"])


def test_every_text_of_the_header(run):
    """Those of the environment at once, those of the settings one by one: most of them are refused."""
    path = run / "run.json"
    before = path.read_bytes()
    header = json.loads(before)
    del header[CHECKSUM]
    try:
        changed = json.loads(json.dumps(header))
        for where in texts(header["environment"]):
            plant(changed["environment"], where)
        RunFolder(run).write_json("run.json", changed)
        assert "started 20" in clean("status", run)
        clean("report", run)
        assert not unseen((run / "report.md").read_text())
        assert not unseen(own_text(run / "report.html"))
        for where in [("settings", *where) for where in texts(header["settings"])]:
            changed = json.loads(json.dumps(header))
            plant(changed, where)
            RunFolder(run).write_json("run.json", changed)
            (run / "report.html").unlink(missing_ok=True)
            for arguments in (["status", run], ["resume", run], ["report", run]):
                clean(*arguments)
            assert not unseen(own_text(run / "report.html"))
        for damaged in (PLANT, json.dumps(PLANT), json.dumps({"format": PLANT})):
            path.write_text(damaged)
            for arguments in commands_of(run):
                clean(*arguments, status=(2,))
    finally:
        path.write_bytes(before)


def test_failures_and_log_lines_and_what_a_running_search_says_of_itself(
    tiny_model, tiny_data, tmp_path
):
    path = tmp_path / f"run{PLANT}"

    def fails(candidate, seed):
        return Evaluation(None, failure=PLANT) if seed % 2 else Evaluation(0.5)

    search(
        tiny_model,
        tiny_data,
        budget=Budget(macs=0.6),
        n_trials=6,
        run_dir=path,
        evaluator=fails,
        searcher="random",
    )
    log = path / "log.txt"
    assert not unseen(log.read_text())
    # A reason is one line without them as soon as there is one
    assert " failed: ]0;title" in log.read_text()
    with log.open("ab") as file:
        file.write(PLANT.encode() + b"\n\xff\xfe\x9b\n")
    folder = RunFolder(path)
    folder.write_progress(PLANT, 1, 6, busy=1, workers=1)
    state = folder.read_json("searcher.json")
    (path / "searcher.json").unlink()  # so that it runs
    with folder.locked():
        assert "running now: \\x1b]0;title" in clean("status", path, status=(0,))
        clean("status", path, "--json", status=(0,))
        assert_clean_on_a_terminal(path, "running now: \\x1b]0;title")
    folder.write_json("searcher.json", state)
    clean("report", path, status=(0,))
    assert "x1b]0;title" in own_text(path / "report.html")  # the reason, and the folder's name
    shutil.copytree(path, tmp_path / f"other{PLANT}")
    clean("compare", path, tmp_path / f"other{PLANT}", "--out", tmp_path / "page.html", status=(0,))
    for page in (path / "report.html", tmp_path / "page.html"):
        assert not unseen(own_text(page))
    assert_clean_on_a_terminal(path, "finished")


def assert_clean_on_a_terminal(path, words):
    """The screen of --watch has no bytes of the planted text that would steer; rich's own are allowed."""
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "abcsearch", "status", path, "--watch"],
        stdout=other,
        stderr=other,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "400", "OMP_NUM_THREADS": "1"},
    )
    os.close(other)
    shown, deadline = b"", time.monotonic() + 60
    try:
        while words.encode() not in shown and time.monotonic() < deadline:
            if select.select([main], [], [], 1)[0]:
                shown += os.read(main, 65536)
    except OSError:  # it has ended
        pass
    finally:
        process.kill()
        process.wait()
        os.close(main)
    text = shown.decode(errors="replace")
    assert words in text, text
    for steering in (
        "\x1b]",
        "\x07",
        "\x9b",
        "\x1b[9;9H",
        "\b",
        "\x7f",
        "\u202e",
        "\u2066",
        "\u2028",
        "\x85",
        "\x1b[31m",
    ):
        assert steering not in text, repr(text)
    assert not [
        line for line in text.split("\r\n") if "\r" in line.replace("\r\x1b[", "").lstrip("\r")
    ]


def test_every_text_of_an_export(run, tmp_path):
    plan = run / "export" / "plan.json"
    before = plan.read_text()
    value = json.loads(before)
    value.pop(CHECKSUM, None)
    try:
        for where in texts(value):
            changed = json.loads(json.dumps(value))
            plant(changed, where)
            plan.write_text(json.dumps(changed, indent=1))
            clean("evaluate", run / "export")
    finally:
        plan.write_text(before)
    assert call("export", run, "--format", "onnx", "--out", tmp_path / "model.onnx")[0] == 0
    model = onnx.load(tmp_path / "model.onnx")
    (prop,) = model.metadata_props
    facts = json.loads(prop.value)
    for planted in (PLANT, json.dumps(PLANT), *(json.dumps(one) for one in facts_with(facts))):
        prop.value = planted
        onnx.save(model, tmp_path / "planted.onnx")
        clean("evaluate", tmp_path / "planted.onnx")


def facts_with(facts):
    """Yields the facts of an export with one text changed."""
    for where in texts(facts):
        changed = json.loads(json.dumps(facts))
        plant(changed, where)
        yield changed


def test_names_and_errors_of_a_network(tmp_path, monkeypatch):
    (tmp_path / "steering.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, size=8):\n"
        "        super().__init__()\n"
        f"        self.add_module({PLANT.replace('.', '')!r}, torch.nn.Conv2d(3, size, 3))\n"
        "    def forward(self, x):\n"
        "        return next(self.children())(x).mean((2, 3))\n"
        "def fails():\n"
        f"    raise ValueError({PLANT!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("Net", "fails"):
        clean("inspect", f"steering:{name}", "--input", "3x16x16")
    clean(
        "inspect",
        "steering:Net",
        "--set",
        f"size={json.dumps(PLANT)}",
        "--input",
        "3x16x16",
        status=(2,),
    )


def test_warnings_and_usage_errors_of_the_script(tmp_path):
    """As the installed command runs: with typer's own messages, and Python's warnings."""
    for arguments in (["status", "a", PLANT.replace("\0", "")], [PLANT], ["status", f"--{PLANT}"]):
        done = subprocess.run(
            [sys.executable, "-m", "abcsearch", *arguments],
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 2
        assert not unseen(done.stderr.decode()), done.stderr
    code = (
        "import logging, warnings; from abcsearch import terminal; terminal.set_up();"
        f"warnings.warn({PLANT!r}); terminal._LogLines().emit(logging.makeLogRecord({{'msg': {PLANT!r}}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert not unseen(done.stderr.decode())
    assert done.stderr.count(b"turned") == 2
