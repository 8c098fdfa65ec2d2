"""The Optuna study of a search: all trials once, as they were."""

import multiprocessing
import os
import random
from datetime import datetime

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from abcsearch.errors import ConfigError
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import encode_line
from abcsearch.runs.optuna_mirror import (
    OptunaMirror,
    _distribution,
    default_study_name,
    open_storage,
    optuna_watcher,
)
from abcsearch.space import Dimension, SearchSpace
from abcsearch.trial import Evaluation, Trial

SPACE = SearchSpace(
    (
        Dimension("layers.0.conv", "width", (2, 4, 6), 9),
        Dimension("layers.1.conv", "width", (5,), 5),
        Dimension("layers.1", "block", (0, 1)),
    )
)


def trial(number):
    draws = random.Random(number)
    candidate = (draws.choice((2, 4, 6, 9)), 5, draws.randrange(2))
    if number % 4 == 3:
        return Trial(number, candidate, Evaluation(None, macs=7, params=3, failure="out of memory"))
    return Trial(
        number, candidate, Evaluation(draws.random(), {"top1": 0.5}, macs=9, params=4, seconds=2.0)
    )


@pytest.fixture(params=["sqlite:///{}/studies.db", "{}/studies.log"])
def url(request, tmp_path):
    return request.param.format(tmp_path)


def study(url, name="name"):
    storage = url if url.startswith("sqlite") else JournalStorage(JournalFileBackend(url))
    return optuna.load_study(study_name=name, storage=storage)


def test_all_trials_are_there_once_and_as_they_were(url, capfd, tmp_path):
    optuna.logging.enable_default_handler()
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(
        b"".join(encode_line({**trial(n).to_plain(), "time": 1e9 + n}) for n in range(4))
    )
    first = OptunaMirror(url, "name", SPACE, journal)
    first.begin([trial(n) for n in range(4)], 9)
    for number in (6, 4):
        first.trial(trial(number), None)
    # Killed: no end(). What it had no time for is added by the next one.
    second = OptunaMirror(url, "name", SPACE, journal)
    second.begin([trial(n) for n in range(8)], 9)
    second.trial(trial(8), None)
    second.end()
    first.end()
    assert capfd.readouterr() == ("", "")
    made = study(url)
    assert [t.user_attrs["number"] for t in made.trials] == [0, 1, 2, 3, 6, 4, 5, 7, 8]
    for found in made.trials:
        one = trial(found.user_attrs["number"])
        e = one.evaluation
        assert tuple(found.params[d.name] for d in SPACE.dimensions) == one.candidate
        assert found.value == e.fitness
        assert found.state == (TrialState.FAIL if e.failure else TrialState.COMPLETE)
        assert found.user_attrs.get("failure") == e.failure
        assert found.user_attrs.get("top1") == e.metrics.get("top1")
        assert (found.user_attrs["macs"], found.user_attrs["params"]) == (e.macs, e.params)
        assert found.duration.total_seconds() == pytest.approx(e.seconds)
    assert made.best_value == max(
        t.evaluation.fitness for t in map(trial, range(9)) if t.evaluation.failure is None
    )
    finished = made.trials[1].datetime_complete.replace(tzinfo=None)
    assert abs((finished - datetime.fromtimestamp(1e9 + 1)).total_seconds()) < 1e-3


def test_a_study_of_something_else_is_refused_before_anything_is_written(url):
    first = OptunaMirror(url, "name", SPACE)
    first.begin([trial(0)], 1)
    first.end()
    other = SearchSpace((Dimension("layers.0.conv", "width", (2, 4, 8)),))
    with pytest.raises(ConfigError, match="the Optuna study 'name' exists with other parameters"):
        OptunaMirror(url, "name", other)
    OptunaMirror(url, "another", other).begin([], 1)
    storage = open_storage(url)
    optuna.create_study(storage=storage, study_name="downwards", direction="minimize")
    with pytest.raises(ConfigError, match="'downwards' exists with other parameters"):
        OptunaMirror(storage, "downwards", SPACE)
    own = optuna.create_study(storage=storage, study_name="by hand", direction="maximize")
    own.optimize(lambda asked: asked.suggest_int("x", 0, 9), n_trials=1)
    with pytest.raises(ConfigError, match="'by hand' exists with other parameters"):
        OptunaMirror(storage, "by hand", SPACE)
    assert len(study(url).trials) == 1


@given(st.sets(st.integers(1, 60), min_size=1), st.integers(0, 64))
def test_a_parameter_takes_every_choice_and_the_full_width(choices, full):
    dimension = Dimension("a", "width", tuple(sorted(choices)), full)
    distribution = _distribution(dimension)
    assert all(
        distribution._contains(distribution.to_internal_repr(v)) for v in (*choices, dimension.full)
    )
    assert (distribution.low, distribution.high) == (min(choices), dimension.full)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:/wrong.db", "'sqlite:/wrong.db' cannot be opened: Could not parse SQLAlchemy URL"),
        ("sqlite:////no/such/folder/s.db", "unable to open database file"),
        ("nosuch://user:secret@host/x", r"'nosuch://user:\*\*\*@host/x' cannot be opened"),
        ("redis://localhost", "cannot be opened"),
        ("/no/such/folder/s.log", "No such file or directory"),
        ("", "No such file or directory"),
    ],
)
def test_a_wrong_storage_is_one_message_before_the_search(url, words):
    with pytest.raises(ConfigError, match=words) as raised:
        optuna_watcher(url)
    assert "give a URL such as sqlite:///studies.db, or the path of a journal file" in str(
        raised.value
    )
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "s.db").write_bytes(bytes(range(256)) * 20)
    for url in (f"sqlite:///{tmp_path}/s.db", f"{tmp_path}/s.db", str(tmp_path)):
        with pytest.raises(ConfigError, match="cannot be opened"):
            open_storage(url)


def test_runs_have_studies_of_their_own(tmp_path, monkeypatch):
    def name(path, started):
        folder = RunFolder(tmp_path / path)
        folder.path.mkdir(parents=True, exist_ok=True)
        header = {"format": 1, "settings": {}, "identity": {}, "environment": {"started": started}}
        folder.write_json("run.json", header)
        return default_study_name(folder)

    names = [name("a/digits", "10:00"), name("b/digits", "10:00"), name("a/digits", "11:00")]
    assert len(set(names)) == 3
    assert all(one.startswith("digits-") for one in names)
    monkeypatch.chdir(tmp_path)
    assert name("a/digits", "11:00") == default_study_name(RunFolder("a/digits")) == names[2]


def test_the_watcher_of_a_run(tmp_path):
    folder = RunFolder(tmp_path / "digits")
    folder.path.mkdir()
    header = {"format": 1, "settings": {}, "identity": {}, "environment": {"started": "now"}}
    folder.write_json("run.json", header)

    class Task:
        space = SPACE

    url = f"{tmp_path}/studies.log"
    make = optuna_watcher(url)
    assert optuna.get_all_study_names(open_storage(url)) == []
    watcher = make(Task(), folder)
    watcher.end()  # one that never began
    watcher.begin([trial(0)], 1)
    watcher.end()
    assert len(study(url, default_study_name(folder)).trials) == 1


def opened_together(url, barrier, results):
    """Opens a storage at the same instant as others, and writes into it."""
    for number in range(ROUNDS):
        barrier.wait(60)
        try:
            mirror = OptunaMirror(url.format(number), f"search {os.getpid()}", SPACE)
            mirror.begin([trial(n) for n in range(2)], 9)
            mirror.trial(trial(2), None)
            mirror.end()
        except Exception as error:  # noqa: BLE001 - of whatever kind
            results.put(f"{number}: {error!r}")
    results.put(None)


ROUNDS, TOGETHER = 8, 4


@pytest.mark.parametrize("kind", ["sqlite:///{}/{}.db", "{}/{}.log"])
def test_searches_that_make_a_storage_at_the_same_instant_all_live(kind, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.runs.test_optuna_mirror"])
    barrier, results = context.Barrier(TOGETHER), context.Queue()
    url = kind.replace("{}", str(tmp_path), 1)
    searches = [
        context.Process(target=opened_together, args=(url, barrier, results))
        for _ in range(TOGETHER)
    ]
    for search in searches:
        search.start()
    answers = [results.get(timeout=120)]
    while answers.count(None) < TOGETHER:
        answers.append(results.get(timeout=120))
    for search in searches:
        search.join(60)
    assert [answer for answer in answers if answer is not None] == []
    for number in range(ROUNDS):
        names = optuna.get_all_study_names(open_storage(url.format(number)))
        assert sorted(names) == sorted(f"search {search.pid}" for search in searches)
        for name in names:
            assert [t.user_attrs["number"] for t in study(url.format(number), name).trials] == [
                0,
                1,
                2,
            ]
