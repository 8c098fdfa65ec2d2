"""Commands that messages and pages suggest can be pasted: what names a folder may have is one word of them."""

import ast
import html
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import abcsearch
from abcsearch import cli
from abcsearch.errors import quoted
from abcsearch.reporting import report_page
from abcsearch.reporting.gathering import gather
from abcsearch.runs.disk.folder import RunFolder
from tests.conftest import TINY_CONFIG

NAME = "$(touch PWNED) `touch PWNED` \"b\" 'c'\ntouch PWNED\n; touch PWNED & d"
_COMMAND = re.compile(r"abcsearch [a-z]+ |chmod \d+ |--run-dir ")
_CUT = re.compile(r"(abcsearch [a-z]+|chmod \d+|--run-dir) (\{.*|%s.*)?$")
_QUOTING = {"quoted", "shlex.quote", "shlex.join", "finetune_command"}
_NUMBERS = {"now", "sound", "self._loss"}  # of --n-trials, --until and --loss
_WORDS = {
    "known",
    "options",
}  # of `list`: the kinds, names of our own; options with numbers of our own


def bare(text, value):
    """Returns whether a value stands as it is in the command that the text before it has begun, and not yet ended."""
    begun = [found.end() for found in _COMMAND.finditer(text)]
    if not begun or re.search(r"[;,.:()#\n]", text[begun[-1] :]):
        return False
    called = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
    return called not in _QUOTING and ast.unparse(value) not in _NUMBERS | _WORDS


def unquoted(tree):
    """Yields line and text of every value that stands in a suggested command as it is, and of a text cut within one."""
    within = {
        id(one) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for one in node.values
    }
    for node in ast.walk(tree):
        text = ""
        if isinstance(node, ast.JoinedStr):
            for one in node.values:
                if isinstance(one, ast.FormattedValue) and bare(text, one.value):
                    yield node.lineno, ast.unparse(one.value)
                text += one.value if isinstance(one, ast.Constant) else "VALUE"
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in within
        ):
            text = node.value
        if _CUT.search(text):
            yield node.lineno, text


def test_no_message_of_the_package_has_a_name_in_a_command_as_it_is():
    package = Path(abcsearch.__file__).parent
    there = [
        f"{path.relative_to(package)}:{line}: {text}"
        for path in sorted(package.rglob("*.py"))
        for line, text in unquoted(ast.parse(path.read_text()))
    ]
    assert not there


@pytest.mark.parametrize(
    "source",
    [
        'f"go on: abcsearch resume {path}"',
        'f"go on: " f"abcsearch resume {path}, or not"',
        'f"abcsearch resume {quoted(path)} --only {name}"',
        'f"abcsearch search CONFIG --run-dir {path}"',
        'f"chmod 600 {path}"',
        'f"abcsearch export {str(path)}; then: abcsearch evaluate {quoted(path)}"',
        '"abcsearch resume " + str(path)',
        'f"{path}: abcsearch resume " + str(path)',
        '"abcsearch resume {}".format(path)',
        '"abcsearch resume %s" % path',
    ],
)
def test_what_is_refused(source):
    assert [*unquoted(ast.parse(source))]


def test_what_is_taken():
    source = (
        'f"{path}: abcsearch resume {quoted(path)}, in {path}; abcsearch export RUN_DIR ({path})"'
    )
    assert not [*unquoted(ast.parse(source))]


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_quoted_word_is_one_word_of_a_shell(word):
    assert shlex.split(quoted(word)) == [word]


def test_ordinary_paths_stay_as_they_are():
    assert quoted(Path("/runs/digits-1_a.b@c")) == "/runs/digits-1_a.b@c"


def call(*arguments):
    """Runs a command; returns what it printed."""
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments]).output


def suggested(text):
    """Returns the commands in a text with their first words, as a shell takes them; RUN_DIR and the like left out."""
    commands = []
    for found in re.finditer(r"abcsearch ([a-z]+) (?:CONFIG --run-dir )?(?=[^a-zA-Z ])", text):
        lexer = shlex.shlex(text[found.end() :], posix=True, punctuation_chars=False)
        lexer.whitespace_split, lexer.commenters = True, ""
        commands.append((found[1], lexer.get_token().rstrip(",;)")))
    return commands


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run, and the folder that it is in."""
    folder = tmp_path_factory.mktemp("pasting")
    (folder / "tiny.toml").write_text(TINY_CONFIG.replace("n_trials = 24", "n_trials = 6"))
    text = call("search", folder / "tiny.toml", "--run-dir", folder / NAME)
    assert suggested(text) == [("finetune", str(folder / NAME))], text
    return folder / NAME


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    """A copy of it by the same name."""
    shutil.copytree(made, tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report_page, "drawings", lambda _: {})  # they take most of the time
    return tmp_path / NAME


def stopped(run):
    """Has a run be one that was stopped before its last trial."""
    (run / "searcher.json").unlink()
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (run / "journal.jsonl").write_bytes(b"".join(lines[:-1]))


def test_commands_of_a_finished_run(run):
    path = str(run)
    assert suggested(call("export", run)) == [("finetune", path), ("evaluate", str(run / "export"))]
    assert suggested(call("evaluate", run)) == [("evaluate", str(run / "export"))]
    shutil.rmtree(run / "export")
    assert suggested(call("evaluate", run)) == [("export", path), ("evaluate", str(run / "export"))]
    assert suggested(call("search", run)) == [("resume", path)]
    call("report", run)
    page = html.unescape((run / "report.html").read_text())
    (block,) = [
        own for own in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL) if "from abcsearch" in own
    ]
    assert suggested(block) == [("finetune", path), ("export", path)]
    shell = 'abcsearch() { printf "%s\\0" "$@"; };' + block.split("# then")[0]
    done = subprocess.run(["sh", "-c", shell], capture_output=True, check=True, timeout=60)
    assert done.stdout.decode() == f"finetune\0{path}\0export\0{path}\0"
    assert not Path("PWNED").exists()


def test_commands_of_a_stopped_run(run):
    stopped(run)
    again = [("resume", str(run))]
    for command in ("status", "finetune", "export"):
        assert suggested(call(command, run)) == again, command
    report_page.write_page(gather(run))
    warnings = re.findall(
        r'<p class="warning">(.*?)</p>', (run / "report.html").read_text(), re.DOTALL
    )
    assert again[0] in suggested(html.unescape("\n".join(warnings)))


def test_commands_of_a_damaged_run(run):
    stopped(run)
    again = [("resume", str(run))]
    file = run / "base.safetensors"
    assert file.exists()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert suggested(call("resume", run)) == again
    file.write_bytes(whole)
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (run / "journal.jsonl").write_bytes(b"".join([lines[0], b"{}\n", *lines[2:]]))
    for command in ("resume", "status", "report", "finetune", "export"):
        text = call(command, run)
        # Status goes on past the damage, and says how the run does as well
        assert suggested(text) == again * (2 if command == "status" else 1), text
    (run / "journal.jsonl").write_bytes(b"")
    assert suggested(call("report", run)) == [("status", str(run)), *again]


def test_commands_of_what_is_no_run(run):
    missing = run / "is not there"
    assert suggested(call("status", missing)) == [("search", str(missing))]
    export = run / "export"
    call("export", run)
    assert suggested(call("resume", export)) == [("evaluate", str(export))]
    with RunFolder(run).locked():
        assert suggested(call("resume", run)) == [("status", str(run))]
