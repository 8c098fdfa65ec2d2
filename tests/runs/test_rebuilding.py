"""run.json is lost: it is made again from the config of the run, and from no other one."""

import json
import shutil
import warnings
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abcsearch.config import read_config
from abcsearch.errors import RunError
from abcsearch.runs.config_run import run_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import read_journal
from abcsearch.runs.header import held_header
from abcsearch.runs.rebuilding import _id_before
from tests.conftest import TINY_CONFIG


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run and its config."""
    folder = tmp_path_factory.mktemp("rebuilt")
    config = folder / "tiny.toml"
    config.write_text(TINY_CONFIG)
    run_config(read_config(config), folder / "run")
    return folder / "run", config


@pytest.fixture
def left(run, tmp_path):
    """A copy of it without run.json."""
    shutil.copytree(run[0], tmp_path / "left")
    (tmp_path / "left" / "run.json").unlink()
    return tmp_path / "left"


def lines(folder, name="journal.jsonl"):
    """The trials of a journal without times."""
    trials = read_journal(folder / name).trials
    return [
        (n, t.candidate, t.evaluation.fitness, t.evaluation.macs) for n, t in sorted(trials.items())
    ]


def keep(folder, count):
    """Leaves the first trials of the journal, without baselines, as a kill does."""
    journal = folder / "journal.jsonl"
    lines_ = journal.read_bytes().splitlines(keepends=True)
    ends = [place for place, line in enumerate(lines_, start=1) if b'"event"' not in line]
    journal.write_bytes(b"".join(lines_[: ends[count - 1] if count else 0]))
    shutil.rmtree(folder / "baselines")
    (folder / "best.json").unlink()


def settings(run, *overrides):
    return read_config(run[1], overrides)


def files(folder):
    """Every file of a folder but the log, and what the lock leaves."""
    paths = (p for p in folder.rglob("*") if p.is_file() and p.name not in ("log.txt", ".lock"))
    return {path.relative_to(folder): path.read_bytes() for path in paths}


@pytest.mark.parametrize("damage", ["missing", "empty", "torn", "bit"])
def test_a_lost_header_is_made_again_with_the_id_of_the_run(run, left, damage):
    whole = (run[0] / "run.json").read_bytes()
    torn = {
        "empty": b"",
        "torn": whole[: len(whole) // 2],
        "bit": whole.replace(b'"seed": 0', b'"seed": 1', 1),
    }
    if damage in torn:
        (left / "run.json").write_bytes(torn[damage])
    state = "missing" if damage == "missing" else "damaged"
    with pytest.warns(
        UserWarning, match=rf"run\.json is {state}: made again from the config; the 24 trials"
    ):
        result = run_config(settings(run), left)
    before, now = RunFolder(run[0]).header(), RunFolder(left).header()
    assert {key: before[key] for key in ("id", "settings", "identity")} == {
        key: now[key] for key in ("id", "settings", "identity")
    }
    assert now["environment"]["rebuilt"]
    assert len(result.trials) == 24
    assert lines(left) == lines(run[0])
    if damage in torn:
        assert (left / "run.json.damaged").read_bytes() == torn[damage]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left to be said
        run_config(settings(run), left)


def test_a_stopped_search_goes_on_as_if_its_header_had_never_been_lost(run, left):
    keep(left, 9)  # the snapshot is ahead of it, and has the options of the searcher
    with pytest.warns(UserWarning, match="the 9 trials of the journal follow from it"):
        run_config(settings(run), left)
    assert lines(left) == lines(run[0])
    assert lines(left, "baselines/random/journal.jsonl") == lines(
        run[0], "baselines/random/journal.jsonl"
    )


OTHERS = {
    "seed=1": "seed",
    "budget.macs=0.3": "outside of its budget",
    "searcher.n_sources=5": "n_sources: 4 in the folder, 5 now",
    "searcher=random": "searcher",
    "space.step=0.2": "another space",
    "model.depths=[1,2]": "another space",
    "model.widths=[4,8]": "another space",
    "n_trials=23": "n_trials=24",
    "execution.schedule=asynchronous": "execution.schedule = 'rounds'",
}


@pytest.mark.parametrize(
    "change", [*OTHERS, *(f"{name}, no snapshot" for name in ("seed=1", "model.depths=[1,2]"))]
)
def test_the_config_of_another_run_is_refused_and_nothing_is_changed(run, left, change):
    change, _, without = change.partition(", no ")
    shutil.rmtree(left / "baselines")
    if without:
        (left / "searcher.json").unlink()
    before = files(left)
    for sure in (False, True):
        with pytest.raises(RunError, match="is not that of the run in this folder") as refused:
            run_config(settings(run, change), left, rebuild=sure)
        assert without or OTHERS[change] in str(refused.value)
        assert "restore run.json from a copy" in str(refused.value)
    assert files(left) == before


@pytest.mark.parametrize(
    "change", ["criterion=l2", "evaluator.calibration_images=128", "data.seed=3"]
)
def test_what_a_fitness_alone_shows_needs_the_word_of_the_user(run, left, change):
    shutil.rmtree(left / "baselines")
    before = files(left)
    with pytest.raises(RunError, match=r"evaluated again, has .* now.*--rebuild"):
        run_config(settings(run, change), left)
    assert files(left) == before
    with pytest.warns(UserWarning, match=r"not shown: trial \d+, evaluated again"):
        run_config(settings(run, change, "baselines=[]"), left, rebuild=True)


def test_a_baseline_tells_the_settings_of_its_run(run, left):
    with pytest.raises(
        RunError, match="its baseline random has criterion: 'reader_l2' in the folder, 'l2' now"
    ):
        run_config(settings(run, "criterion=l2"), left, rebuild=True)


def test_weights_that_another_config_trained_do_not_stay(run, left):
    shutil.rmtree(left / "baselines")
    (left / "base.safetensors").unlink()
    with pytest.raises(RunError, match="cannot be shown"):
        run_config(settings(run, "pretrain.epochs=2"), left)
    assert not (left / "base.safetensors").exists()
    with pytest.warns(UserWarning, match="made again"):
        run_config(settings(run), left)
    assert (left / "base.safetensors").read_bytes() == (run[0] / "base.safetensors").read_bytes()


def test_without_a_snapshot_the_options_of_an_unfinished_search_need_the_word_of_the_user(
    run, left
):
    keep(left, 9)
    (left / "searcher.json").unlink()
    with pytest.raises(RunError, match=r"no snapshot of the searcher .*--rebuild"):
        run_config(settings(run), left)
    with pytest.warns(UserWarning, match="made again"):
        run_config(settings(run), left, rebuild=True)
    assert lines(left) == lines(run[0])
    assert zlib.crc32(RunFolder(left).header()["id"].encode()) == int(
        (left / "journal.jsonl").read_bytes()[:8], 16
    )


def test_a_journal_without_trials_shows_nothing(run, left):
    keep(left, 0)
    with pytest.raises(RunError, match=r"no trial that succeeded.*--rebuild"):
        run_config(settings(run), left)


def test_a_damaged_journal_is_said_together_with_the_header(run, left):
    journal = left / "journal.jsonl"
    text = journal.read_bytes()
    journal.write_bytes(text[:300] + b"#" + text[301:])
    with pytest.raises(
        RunError, match=rf"run.json is missing, and {journal}, line \d+ of \d+ is damaged; restore"
    ):
        run_config(settings(run), left, rebuild=True)


def test_everybody_else_says_how_it_is_made_again(run, left):
    again = f"abcsearch search CONFIG --run-dir {left}"
    with pytest.raises(RunError, match=again):
        held_header(RunFolder(left), settings(run), {})
    with pytest.raises(RunError, match=again):
        RunFolder(left).header()
    (left / "run.json").write_text(json.dumps({"format": 2})[:-1])
    with pytest.raises(RunError, match=again):
        RunFolder(left).header()


@given(st.integers(0, 2**32 - 1))
def test_there_is_an_id_for_every_journal(check):
    name = _id_before(check)
    assert zlib.crc32(name.encode()) == check
    assert name.isalnum()
