"""A folder that is renamed or deleted under a run: it stops, says so, and writes nothing where the folder was."""

import shutil

import pytest

from abcsearch.config import read_config
from abcsearch.errors import FolderGoneError
from abcsearch.files import Anchor
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.open_run import open_run
from abcsearch.runs.config_run import run_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.resuming import resume
from abcsearch.training.recipe import Recipe
from tests.evaluators import numbers, score
from tests.problems import assert_same_as, loop, undisturbed, written

N = 40


def renamed(path):
    path.rename(path.with_name("elsewhere"))


def deleted(path):
    shutil.rmtree(path)


def replaced(path):
    renamed(path)
    path.mkdir()
    (path / "thesis.tex").write_text("mine")
    (path / "journal.jsonl").write_text("not yours")


def left(path):
    """What is where the folder was."""
    return sorted(entry.name for entry in path.rglob("*")) if path.exists() else None


LEFT = {renamed: None, deleted: None, replaced: ["journal.jsonl", "thesis.tex"]}


@pytest.mark.parametrize("trouble", LEFT)
@pytest.mark.parametrize("options", [{}, {"window": 4}, {"schedule": "asynchronous"}])
def test_a_search_stops_and_goes_on_in_the_renamed_folder(tmp_path, trouble, options):
    expected = undisturbed(tmp_path, **options)
    path, elsewhere = tmp_path / "run", tmp_path / "elsewhere"

    def disturbed(candidate, seed):
        if numbers()[seed] == 11:
            trouble(path)
        return score(candidate, seed)

    path.mkdir()
    with RunFolder(path).locked(), pytest.raises(FolderGoneError) as raised:
        loop(path, evaluator=disturbed, **options).run()
    assert left(path) == LEFT[trouble]
    if trouble is deleted:
        assert f"{path / 'journal.jsonl'} was deleted while it was written to" in str(raised.value)
        return
    assert f"{path / 'journal.jsonl'} was renamed while it was written to" in str(raised.value)
    assert str(raised.value).endswith(f"continue with: abcsearch resume {elsewhere}")
    assert written(elsewhere).items() <= expected.items()
    assert len(written(elsewhere)) >= 8
    loop(elsewhere, **options).run()
    assert_same_as(elsewhere, expected)


def test_a_journal_that_is_deleted_alone_is_told_too(tmp_path):
    def disturbed(candidate, seed):
        (tmp_path / "run" / "journal.jsonl").unlink(missing_ok=True)
        return score(candidate, seed)

    with pytest.raises(FolderGoneError, match="was deleted while it was written to"):
        loop(tmp_path / "run", evaluator=disturbed).run()


def test_after_the_last_trial_it_is_told_as_well(tmp_path):
    path = tmp_path / "run"
    run = loop(path)
    run.progress = lambda _stage, done, total, _note: renamed(path) if done == total else None
    with pytest.raises(FolderGoneError, match="is not there any more"):
        run.run()
    assert not path.exists()
    assert written(tmp_path / "elsewhere") == undisturbed(tmp_path)


@pytest.mark.parametrize("trouble", LEFT)
def test_nothing_is_written_where_a_locked_folder_was(tmp_path, trouble):
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        trouble(folder.path)
        for write in (
            lambda: folder.write_json("best.json", {}),
            lambda: folder.write("finetuned/a.txt", lambda path: path.write_text("x")),
            lambda: folder.log("a line"),
            lambda: folder.write_progress("search", 1, 2, busy=1, workers=1),
        ):
            with pytest.raises(FolderGoneError, match=r"is not there any more: .* NEW_NAME"):
                write()
    assert left(folder.path) == LEFT[trouble]


def test_a_folder_that_was_never_there_is_not_made_by_writing_but_subfolders_are(tmp_path):
    with pytest.raises(FolderGoneError):
        RunFolder(tmp_path / "run").write_json("best.json", {})
    assert not (tmp_path / "run").exists()
    RunFolder(tmp_path).write_json("some/where/best.json", {})
    assert (tmp_path / "some" / "where" / "best.json").exists()


@pytest.mark.parametrize("trouble", LEFT)
@pytest.mark.parametrize("stage", ["base network", "bee_colony", "random baseline"])
def test_a_configured_run_stops_in_every_stage(tiny_config, tmp_path, stage, trouble):
    config = read_config(tiny_config, ["pretrain.epochs=3", "n_trials=8"])
    path, seen = tmp_path / "run", []

    def disturbed(now, done, total, note):
        if now == stage and done == 2:
            seen.append(now)
            trouble(path)

    with pytest.raises(FolderGoneError):
        run_config(config, path, progress=disturbed)
    assert seen == [stage]
    assert left(path) == LEFT[trouble]
    if trouble is renamed and stage != "base network":
        assert len(resume(tmp_path / "elsewhere").trials) == 8


@pytest.mark.parametrize("trouble", LEFT)
@pytest.mark.parametrize("when", [1, 2, 3])
def test_fine_tuning_stops_too(tiny_config, tmp_path, trouble, when):
    path = tmp_path / "run"
    run_config(read_config(tiny_config, ["n_trials=2", "baselines=[]"]), path)

    def disturbed(_stage, done, _total, _note):
        if done == when:
            trouble(path)

    with pytest.raises(FolderGoneError):
        finetune_run(open_run(path), Recipe(epochs=3, batch_size=256, lr=0.05), progress=disturbed)
    assert left(path) == LEFT[trouble]


def test_an_anchor_of_what_is_not_there_yet_is_the_nearest_folder_above(tmp_path):
    anchor = Anchor.of(tmp_path / "a" / "b")
    assert (anchor.path, anchor.holds) == (tmp_path, True)
    (tmp_path / "a").mkdir()
    anchor.check()
    inner = Anchor.of(tmp_path / "a" / "b")
    (tmp_path / "a").rmdir()
    (tmp_path / "a").write_text("a file")
    anchor.check()
    with pytest.raises(FolderGoneError):
        inner.check()
