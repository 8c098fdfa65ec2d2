"""The journal: cut it anywhere, and what is left is a prefix that can be continued."""

import json
import math
import os
import zlib
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abcsearch.errors import RunError
from abcsearch.results.tail import JournalTail
from abcsearch.runs.disk.journal import Contents, Journal, cut_journal, read_journal
from abcsearch.runs.disk.lines import Success, encode_line, successful_trial
from abcsearch.runs.watching import finish_times
from abcsearch.trial import Evaluation, Trial, best_trial

numbers = st.floats(allow_nan=True, allow_infinity=True)
evaluations = st.builds(
    lambda fitness, failure, metrics, macs, seconds: Evaluation(
        fitness=None if failure is not None else fitness,
        metrics=metrics,
        macs=macs,
        seconds=seconds,
        failure=failure,
    ),
    fitness=st.floats(allow_nan=False, allow_infinity=False),
    failure=st.none() | st.text(max_size=20),
    metrics=st.dictionaries(st.text(max_size=5), numbers, max_size=2),
    macs=st.integers(0, 2**60),
    seconds=st.floats(0, 1e6),
)
trials = st.lists(st.tuples(st.lists(st.integers(0, 99), max_size=4), evaluations), max_size=5).map(
    lambda drawn: [
        Trial(n, tuple(candidate), evaluation) for n, (candidate, evaluation) in enumerate(drawn)
    ]
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
def test_a_journal_cut_at_any_byte_holds_a_prefix_and_goes_on(
    tmp_path_factory, records, extra, data
):
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
    with pytest.raises(
        RunError,
        match=r"line 3 of 4 is damaged; restore .* keep the 2 lines before it .* --until 2$",
    ):
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


@pytest.mark.parametrize("chained", [True, False])
def test_a_number_that_is_there_twice_is_an_error(tmp_path, chained):
    path = tmp_path / "journal.jsonl"
    event = {**Trial(0, (1,), Evaluation(fitness=0.5)).to_plain(), "time": 1.5}
    first = encode_line(event, 0 if chained else None)
    path.write_bytes(first + encode_line(event, int(first[9:17], 16) if chained else None))
    with pytest.raises(
        RunError, match="line 2 of 2 is not an event of a run: trial 0 is there twice"
    ):
        Journal(path)


def older(path, records):
    """Writes a journal as versions before the chain did."""
    lines = [{**trial.to_plain(), "time": 1.5} for trial in records]
    path.write_bytes(b"".join(map(encode_line, lines)))
    return path.read_bytes()


def moved(lines, i, j):
    rest = lines[:i] + lines[i + 1 :]
    return [*rest[:j], lines[i], *rest[j:]]


SHUFFLES = {
    "lost": lambda lines, i, j: lines[:i] + lines[i + 1 :],
    "doubled": lambda lines, i, j: lines[: i + 1] + lines[i:],
    "moved": moved,
    "swapped": lambda lines, i, j: [lines[{i: j, j: i}.get(n, n)] for n in range(len(lines))],
    "several lost": lambda lines, i, j: lines[: min(i, j)] + lines[max(i, j) + 1 :],
    "doubled elsewhere": lambda lines, i, j: [*lines[:j], lines[i], *lines[j:]],
}


@settings(max_examples=200, deadline=None)
@given(
    what=st.sampled_from(sorted(SHUFFLES)),
    n=st.integers(2, 7),
    old=st.integers(0, 3),
    draws=st.randoms(),
    data=st.data(),
)
def test_lines_that_are_lost_doubled_or_moved_are_told(tmp_path_factory, what, n, old, draws, data):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    records = [
        Trial(number, (number, 3), Evaluation(fitness=number / 7)) for number in range(old + n)
    ]
    before = older(path, records[:old])
    whole = written(path, records[old:])
    assert whole.startswith(before)
    lines = whole.splitlines(keepends=True)
    i, j = (data.draw(st.integers(old, old + n - 1)) for _ in range(2))
    changed = SHUFFLES[what](lines, i, j)
    path.write_bytes(b"".join(changed))
    first = next(
        (k for k, line in enumerate(changed) if k >= len(lines) or line != lines[k]), len(changed)
    )
    tail = JournalTail(path, 1000)
    if first == len(changed):  # whole lines are missing at the end, or nothing is: as after a kill
        assert same(read_journal(path).trials.values(), records[: len(changed)])
        tail.look()
        assert tail.done == len(changed)
        return
    with pytest.raises(RunError) as raised:
        read_journal(path)
    rule = "follow the line before it" if first else "begin the journal of this run"
    assert f"line {first + 1} of {len(changed)} does not {rule}" in str(raised.value)
    assert str(raised.value).endswith(f"--until {first}")
    with pytest.raises(RunError, match=r"does not (follow|begin)"):
        tail.look()
    cut_journal(path, first)
    with Journal(path) as journal:
        assert same(journal.trials.values(), records[:first])


@settings(max_examples=50, deadline=None)
@given(records=trials, kept=st.integers(0, 5), sessions=st.integers(1, 3))
def test_an_older_journal_goes_on_chained_and_everybody_reads_both(
    tmp_path_factory, records, kept, sessions
):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    before = older(path, records[:kept])
    rest = records[kept:]
    for session in range(sessions):
        written(path, rest[session::sessions])
    assert path.read_bytes().startswith(before)
    assert same(sorted(read_journal(path).trials.values(), key=lambda trial: trial.number), records)
    tail = JournalTail(path, 1000)
    tail.look()
    assert tail.done == len(records)
    # NaN is not itself
    assert repr(tail.best) == repr(best_trial(list(read_journal(path).trials.values())))
    assert finish_times(path) == {trial.number: 1.5 for trial in records}
    path.write_bytes(path.read_bytes() + before)  # older lines do not come after chained ones
    if before and rest:
        with pytest.raises(RunError, match="does not follow the line before it"):
            read_journal(path)


@given(evaluation=evaluations, candidate=st.lists(st.integers(-99, 99), max_size=4))
def test_a_line_is_read_fast_as_json_reads_it(evaluation, candidate):
    trial = Trial(3, tuple(candidate), evaluation)
    text = encode_line({**trial.to_plain(), "time": 1e9}, 0)[18:-1]
    fast = Success.of(text)
    assert repr(Trial.from_plain(json.loads(text))) == repr(trial)
    assert (successful_trial(text) is None) == (fast is None)
    if fast is not None:
        assert repr(successful_trial(text)) == repr(trial)
        assert repr(fast.trial()) == repr(trial)
        assert (fast.number, fast.fitness, fast.seconds, fast.time) == (
            3,
            trial.fitness,
            evaluation.seconds,
            1e9,
        )
    simple = (
        evaluation.failure is None and candidate and min(candidate) >= 0 and not evaluation.metrics
    )
    assert fast is not None or not simple or abs(evaluation.fitness) > 1e279


def test_an_older_journal_with_numbers_that_are_no_json_is_read(tmp_path):
    path = tmp_path / "journal.jsonl"
    plain = Trial(
        0, (1,), Evaluation(fitness=0.5, metrics={"a": 1.0, "b": 2.0, "c": 3.0})
    ).to_plain()
    text = (
        json.dumps({**plain, "time": 1.5})
        .replace("1.0", "NaN")
        .replace("2.0", "Infinity")
        .replace("3.0", "-Infinity")
    )
    path.write_bytes(b"%08x %s\n" % (zlib.crc32(text.encode()), text.encode()))
    with Journal(path) as journal:
        metrics = journal.trials[0].evaluation.metrics
        assert repr(dict(metrics)) == "{'a': nan, 'b': inf, 'c': -inf}"


def test_a_missing_journal_is_empty_and_opening_it_creates_it(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert read_journal(path) == Contents()
    assert not path.exists()
    with Journal(path) as journal:
        assert (journal.trials, journal.repaired) == ({}, 0)
    assert path.read_bytes() == b""


def test_a_finished_trial_is_on_disk_before_append_returns(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    with Journal(path) as journal:
        for number in range(3):
            journal.append(Trial(number, (number,), Evaluation(fitness=0.1)))
            assert list(read_journal(path).trials) == list(range(number + 1))
            assert synced[number:] == [path.stat().st_size]


def test_each_line_is_the_checksum_of_the_one_before_its_own_and_json(tmp_path):
    evaluation = Evaluation(fitness=None, metrics={"loss": math.inf}, failure="line\nbreak \udc80")
    before = 0
    for line in written(
        tmp_path / "journal.jsonl", [Trial(n, (3, 4), evaluation) for n in (7, 8)]
    ).splitlines():
        checks, _, text = line.partition(b" ")
        assert checks == b"%08x-%08x" % (before, zlib.crc32(text, before))
        before = zlib.crc32(text, before)
        event = json.loads(text)
        assert event["candidate"] == [3, 4]
        assert event["evaluation"]["failure"] == evaluation.failure
        assert event["evaluation"]["metrics"] == {"loss": "inf"}
