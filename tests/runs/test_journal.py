"""The journal: cut it anywhere, and what is left is a prefix that can be continued."""

import json
import math
import zlib
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abcsearch.errors import RunError
from abcsearch.runs.journal import Contents, Journal, read_journal
from abcsearch.trial import Evaluation, Trial

numbers = st.floats(allow_nan=True, allow_infinity=True)
evaluations = st.builds(
    lambda fitness, failure, metrics, macs, seconds: Evaluation(
        fitness=None if failure is not None else fitness, metrics=metrics, macs=macs, seconds=seconds, failure=failure
    ),
    fitness=st.floats(allow_nan=False, allow_infinity=False),
    failure=st.none() | st.text(max_size=20),
    metrics=st.dictionaries(st.text(max_size=5), numbers, max_size=2),
    macs=st.integers(0, 2**60),
    seconds=st.floats(0, 1e6),
)
trials = st.lists(st.tuples(st.lists(st.integers(0, 99), max_size=4), evaluations), max_size=5).map(
    lambda drawn: [Trial(n, tuple(candidate), evaluation) for n, (candidate, evaluation) in enumerate(drawn)]
)


def written(path, records):
    with mock.patch("time.time", return_value=1.5), Journal(path) as journal:
        for trial in records:
            journal.append(trial)
    return path.read_bytes()


def same(found, records):
    """Equality in which NaN is NaN."""
    return repr(list(found)) == repr(records)


@settings(max_examples=80, deadline=None)
@given(records=trials, extra=evaluations, data=st.data())
def test_a_journal_cut_at_any_byte_holds_a_prefix_and_goes_on(tmp_path_factory, records, extra, data):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    whole = written(path, records)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    with Journal(path) as journal:
        assert same(journal.trials.values(), records[:kept])
        assert journal.repaired == cut - len(b"".join(whole.splitlines(keepends=True)[:kept]))
        journal.append(Trial(99, (1, 2), extra))
        assert 99 in journal.trials
    found = read_journal(path)
    assert same(found.trials.values(), [*records[:kept], Trial(99, (1, 2), extra)])
    assert found.sound == path.stat().st_size


@settings(max_examples=80, deadline=None)
@given(records=trials.filter(len), data=st.data())
def test_any_changed_byte_is_found(tmp_path_factory, records, data):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    whole = written(path, records)
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytes([whole[at] ^ data.draw(st.integers(1, 255))])
    path.write_bytes(whole[:at] + changed + whole[at + 1 :])
    line = whole[:at].count(b"\n")
    if line == len(records) - 1 and changed != b"\n":
        assert same(read_journal(path).trials.values(), records[:-1])
        return
    try:
        found = read_journal(path).trials
    except RunError as error:
        assert f"{path}, line {line + 1} of" in str(error)  # noqa: PT017 - both outcomes are right
    else:
        assert same(found.values(), records[: len(found)])
        assert whole[at : at + 1] == b"\n"  # it has joined the last two lines
        assert line == len(records) - 2


def test_damage_in_the_middle_is_an_error_that_names_the_line_and_leaves_the_file_alone(tmp_path):
    path = tmp_path / "journal.jsonl"
    whole = written(path, [Trial(n, (n,), Evaluation(fitness=n / 7)) for n in range(4)])
    damaged = whole.replace(b'"number": 2', b'"number": 3')
    path.write_bytes(damaged)
    with pytest.raises(RunError, match=r"line 3 of 4 is damaged; restore .* keep the 2 lines before it .* --until 2$"):
        Journal(path)
    assert path.read_bytes() == damaged


def test_a_last_line_of_garbage_is_cut_off_whatever_bytes_are_in_it(tmp_path):
    path = tmp_path / "journal.jsonl"
    records = [Trial(0, (1,), Evaluation(fitness=0.5))]
    whole = written(path, records)
    for garbage in (b"\0" * 100, b"ab\rcd\x0bef\x1c", b"{}", b"\xff\xfe"):
        path.write_bytes(whole + garbage)
        with Journal(path) as journal:
            assert same(journal.trials.values(), records)
            assert journal.repaired == len(garbage)
        assert path.read_bytes() == whole


def test_a_number_that_is_there_twice_is_an_error(tmp_path):
    path = tmp_path / "journal.jsonl"
    whole = written(path, [Trial(0, (1,), Evaluation(fitness=0.5))])
    path.write_bytes(2 * whole)
    with pytest.raises(RunError, match="line 2 of 2 is not an event of a run: trial 0 is there twice"):
        Journal(path)


def test_a_missing_journal_is_empty_and_opening_it_creates_it(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert read_journal(path) == Contents()
    assert not path.exists()
    with Journal(path) as journal:
        assert (journal.trials, journal.repaired) == ({}, 0)
    assert path.read_bytes() == b""


def test_a_finished_trial_is_on_disk_before_append_returns(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        for number in range(3):
            journal.append(Trial(number, (number,), Evaluation(fitness=0.1)))
            assert list(read_journal(path).trials) == list(range(number + 1))


def test_each_line_is_a_checksum_and_json(tmp_path):
    evaluation = Evaluation(fitness=None, metrics={"loss": math.inf}, failure="line\nbreak \udc80")
    for line in written(tmp_path / "journal.jsonl", [Trial(7, (3, 4), evaluation)]).splitlines():
        check, _, text = line.partition(b" ")
        assert int(check, 16) == zlib.crc32(text)
        event = json.loads(text)
        assert (event["number"], event["candidate"]) == (7, [3, 4])
        assert event["evaluation"]["failure"] == evaluation.failure
        assert event["evaluation"]["metrics"] == {"loss": math.inf}
