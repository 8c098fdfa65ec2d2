"""Folders that somebody has put together: files of other runs, pipes and devices, right checksums over nonsense."""

import json
import os
import re
import shutil
import warnings
import zlib

import pytest
from typer.testing import CliRunner

from abcsearch import cli
from abcsearch.config import read_config
from abcsearch.errors import RunError
from abcsearch.files import is_there
from abcsearch.results.open_run import open_so_far
from abcsearch.results.status import RunWatch
from abcsearch.results.tail import JournalTail
from abcsearch.runs.config_run import run_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import read_journal
from abcsearch.runs.disk.lines import Chain, Success, decode_event, encode_line, run_id, trial_of
from abcsearch.signing import is_own, signed
from tests.conftest import TINY_CONFIG

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def made(path, seed):
    text = TINY_CONFIG.replace("n_trials = 24", f"n_trials = 6\nseed = {seed}")
    file = path.with_suffix(".toml")
    file.write_text(text)
    run_config(read_config(file), path)
    return path


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Two runs of one config, with two seeds."""
    root = tmp_path_factory.mktemp("originals")
    return made(root / "r0", 0), made(root / "r1", 1)


@pytest.fixture
def runs(originals, tmp_path):
    return tuple(shutil.copytree(path, tmp_path / path.name) for path in originals)


def said(*arguments):
    """Returns the exit status of a command and all that it says, in one line."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    return result.exit_code, " ".join((result.output + (result.stderr or "")).split())


def header_of(path):
    return json.loads((path / "run.json").read_text())


COMMANDS = ("status", "resume", "report", "finetune", "export")


def test_every_run_has_an_id_of_its_own_which_it_keeps(runs):
    folders = [path / sub for path in runs for sub in (".", "baselines/random")]
    ids = [run_id(folder) for folder in folders]
    assert len(set(ids)) == len(ids)
    assert all(ids)
    assert said("resume", runs[0], "--n-trials", "8")[0] == 0
    assert [run_id(folder) for folder in folders] == ids
    assert len(read_journal(runs[0] / "journal.jsonl").trials) == 8


@pytest.mark.parametrize("command", COMMANDS)
def test_the_journal_of_another_run_is_refused(runs, command):
    for name in ("journal.jsonl", "searcher.json", "best.json"):
        shutil.copy(runs[1] / name, runs[0] / name)
    code, text = said(command, runs[0])
    assert code == (0 if command == "status" else 2), text
    assert command != "status" or ": 0 of 6 trials" in text  # which says so, and takes none of it
    assert "another" in text
    assert "journal.jsonl" in text
    assert "internal error" not in text


def test_a_refused_journal_can_be_put_aside(runs):
    shutil.copy(runs[1] / "journal.jsonl", runs[0] / "journal.jsonl")
    before = (runs[1] / "best.json").read_bytes()
    code, text = said("resume", runs[0], "--until", "0")
    assert code == 0, text
    assert (runs[0] / "best.json").read_bytes() != before


def test_the_snapshot_of_another_run_counts_for_nothing(runs):
    shutil.copy(runs[1] / "searcher.json", runs[0] / "searcher.json")
    assert not RunFolder(runs[0]).finished(6)
    assert RunFolder(runs[1]).finished(6)
    code, text = said("resume", runs[0])
    assert code == 0, text
    assert RunFolder(runs[0]).finished(6)


def test_older_runs_without_ids_and_without_chains_are_read(runs):
    folder = RunFolder(runs[0])
    header = {
        key: value for key, value in header_of(runs[0]).items() if key not in ("id", "checksum")
    }
    events = [
        decode_event(line[18:-1]) for line in folder.journal.read_bytes().splitlines(keepends=True)
    ]
    folder.write_json("run.json", signed("run", header))
    folder.journal.write_bytes(b"".join(encode_line(event) for event in events))
    assert len(read_journal(folder.journal).trials) == 6
    code, text = said("resume", runs[0], "--n-trials", "8")
    assert code == 0, text
    assert run_id(runs[0]) is None
    assert len(read_journal(folder.journal).trials) == 8


def test_a_kept_fitness_counts_for_its_own_run_alone(runs):
    run = open_so_far(runs[0])
    full = next(structure for structure in run.structures if structure.name == "full")
    key = ",".join(map(str, full.candidate))
    for own, believed in ((run_id(runs[0]), True), (run_id(runs[1]), False), (None, False)):
        run.folder.write_json("fitness.json", {key: 123.0, "id": own})
        assert (run.fitness(full) == 123.0) is believed
    assert json.loads((runs[0] / "fitness.json").read_text())["id"] == run_id(runs[0])


def test_the_baseline_of_another_run_is_told(runs):
    shutil.rmtree(runs[0] / "baselines")
    shutil.copytree(runs[1] / "baselines", runs[0] / "baselines")
    code, text = said("status", runs[0])
    assert (code, "belongs to another run" in text) == (2, True)
    with pytest.warns(UserWarning, match="belongs to another run .* It is left out"):
        names = [structure.name for structure in open_so_far(runs[0]).structures]
    assert "random" not in names
    with pytest.warns(UserWarning, match="belongs to another run .* It is left out"):
        assert said("report", runs[0])[0] == 0


def fifo(path):
    os.mkfifo(path)


KINDS = {
    "pipe": fifo,
    "folder": lambda path: path.mkdir(),
    "zeros": lambda path: path.symlink_to("/dev/zero"),
}
FILES = (
    "run.json",
    "journal.jsonl",
    "searcher.json",
    "log.txt",
    "progress.json",
    "base.safetensors",
    "fitness.json",
)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*FILES, "finetuned/full.json"])
def test_only_regular_files_are_read(runs, name, kind):
    file = runs[0] / name
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    KINDS[kind](file)
    needed = name in ("run.json", "journal.jsonl")
    code, text = said("status", runs[0])
    assert code == (2 if name == "run.json" else 0), text
    assert not needed or file.name in text
    for command in ("resume", "export"):
        code, text = said(command, runs[0])
        assert code in (0, 2), text
        assert not needed or (code == 2 and file.name in text)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_no_file_and_nothing_is_none(tmp_path):
    fifo(tmp_path / "pipe")
    with pytest.raises(RunError, match="pipe is a pipe, device or socket, not a file"):
        is_there(tmp_path / "pipe")
    assert not is_there(tmp_path / "none")


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"a": value}
    return value


HEADERS = {
    "array": lambda header: header["settings"]["searcher"]["options"].update(
        x={"__array__": "<i8", "shape": [1], "data": "AAAAAAAAAAA="}
    ),
    "deep": lambda header: header["settings"]["searcher"]["options"].update(x=nested(900)),
    "up": lambda header: header["settings"].update(baselines=["../.."]),
    "slash": lambda header: header["settings"]["searcher"].update(name="a/b"),
    "number": lambda header: header["settings"].update(baselines=[["x"]]),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_nonsense_in_run_json_is_damage(runs, kind):
    header = header_of(runs[0])
    del header["checksum"]
    HEADERS[kind](header)
    RunFolder(runs[0]).write_json("run.json", header)
    for command in COMMANDS:
        code, text = said(command, runs[0])
        assert code == 2, (command, text)
        assert "run.json" in text or "baselines" in text


def test_what_cannot_be_signed_is_nobodys():
    signed("run", {})
    assert not is_own("run", {"x": object(), "signature": "0" * 64})


TRIAL = (
    '{"number": 6, "candidate": [1, 2], "evaluation": {"fitness": 0.5, "metrics": {"a": 0.25}, "macs": 5, "params": 6,'
    ' "seconds": 1.5, "failure": null}, "time": 1.5}'
)
NONSENSE = {
    "seconds too large": ("1.5, ", "1e400, "),
    "seconds not a number": ("1.5, ", "NaN, "),
    "seconds a text": ("1.5, ", '"1.5", '),
    "very many digits": ('"macs": 5', f'"macs": {"7" * 5001}'),
    "many digits": ('"macs": 5', f'"macs": {"7" * 4001}'),
    "fitness no number": ("0.5", ".e+-"),
    "fitness infinite": ("0.5", "Infinity"),
    "fitness too large": ("0.5", "1e999"),
    "fitness a truth": ("0.5", "true"),
    "no candidate": ("[1, 2]", "[, ,]"),
    "candidate a text": ("[1, 2]", '"12"'),
    "candidate of fractions": ("[1, 2]", "[1.5, 2]"),
    "metrics a list": ('{"a": 0.25}', "[1]"),
    "metrics no JSON": ('{"a": 0.25}', "{a}"),
    "a metric a text": ("0.25", '"x"'),
    "a metric a list": ("0.25", "[]"),
    "number a text": ('"number": 6', '"number": "6"'),
    "number infinite": ('"number": 6', '"number": Infinity'),
    "number negative": ('"number": 6', '"number": -6'),
    "time a text": ('"time": 1.5', '"time": "now"'),
    "time infinite": ('"time": 1.5', '"time": 1e400'),
    "failure a number": ("null", "5"),
    "no evaluation": ('"evaluation": ', '"evaluation": [], "x": '),
    "entries unknown": ('"failure"', '"error": 1, "failure"'),
    "brackets": (TRIAL, "[" * 100_000),
    "a list": (TRIAL, "[]"),
    "a number": (TRIAL, "5"),
}


def put(journal, text):
    """Appends a line with a right checksum, and one more behind it."""
    for line in (text, TRIAL.replace('"number": 6', '"number": 7')):
        lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
        last = int(lines[-1][9:17], 16) if lines else Chain.of(journal).last
        chain = encode_raw(line.encode(), last)
        with journal.open("ab") as file:
            file.write(chain)


def encode_raw(text, before):
    return b"%08x-%08x %s\n" % (before, zlib.crc32(text, before), text)


@pytest.mark.parametrize("kind", NONSENSE)
def test_a_line_of_nonsense_is_damage_for_the_quick_reader_and_the_slow_one(tmp_path, kind):
    old, new = NONSENSE[kind]
    assert TRIAL.count(old) == 1
    journal = tmp_path / "journal.jsonl"
    text = TRIAL.replace(old, new)
    assert Success.of(text.encode()) is None
    put(journal, text)
    with pytest.raises(RunError, match="line 1 of 2 is not an event of a run"):
        read_journal(journal)
    with pytest.raises(RunError, match="line 1 of 2 is not an event of a run"):
        JournalTail(journal, 100).look()


def test_a_line_of_sense_is_read_by_both():
    assert Success.of(TRIAL.encode()).trial() == trial_of(json.loads(TRIAL))


@pytest.mark.parametrize(
    "kind", ["seconds too large", "very many digits", "metrics a list", "brackets"]
)
def test_every_command_says_that_a_line_is_damaged(runs, kind):
    put(runs[0] / "journal.jsonl", TRIAL.replace(*NONSENSE[kind]))
    for command in COMMANDS:
        code, text = said(command, runs[0])
        assert code == (0 if command == "status" else 2), (command, text)
        assert re.search(r"line \d+ of \d+ is not an event of a run", text)


def test_a_watch_of_a_sound_run_is_undisturbed(runs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        status = RunWatch(runs[0]).look()
    assert status.finished
    assert [search.done for search in status.searches] == [6, 6]
