"""Fine-tuning by another recipe keeps what it replaces; a kill at any instant loses neither the old nor the new."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from abcsearch.cli import app
from abcsearch.config import read_config
from abcsearch.errors import RunError
from abcsearch.results import shelf
from abcsearch.results.finetuned_files import read_tuned, refusal
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.open_run import open_run
from abcsearch.results.status import RunWatch
from abcsearch.runs.config_run import run_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.training import checkpoints
from abcsearch.training.recipe import Recipe
from tests.conftest import TINY_CONFIG

pytestmark = pytest.mark.usefixtures("no_pictures")

ONE = Recipe(epochs=1, batch_size=256, lr=0.05)
TWO = Recipe(epochs=2, batch_size=256, lr=0.05, keep="best")
FILES = {"bee_colony.json", "bee_colony.safetensors"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished search whose winner is fine-tuned: by one recipe, and elsewhere by two others."""
    path = tmp_path_factory.mktemp("shelf")
    (path / "tiny.toml").write_text(TINY_CONFIG)
    run_config(
        read_config(path / "tiny.toml", ["n_trials=3", "baselines=['uniform']"]), path / "run"
    )
    for name, recipe in (("one", ONE), ("two", TWO)):
        shutil.copytree(path / "run", path / name)
        finetune_run(open_run(path / name), recipe, only=["bee_colony"])
    return path


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made / "one", tmp_path / "run")
    return open_run(tmp_path / "run")


def tune(run, recipe, **options):
    """Fine-tunes the winner; returns the stages of it that were trained."""
    stages = []
    finetune_run(
        run, recipe, only=["bee_colony"], progress=lambda stage, *_: stages.append(stage), **options
    )
    return stages


def content(folder):
    """The files of a folder by name."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def flipped(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


def shelves(run):
    return [content(path) for path in sorted((run.folder.path / "finetuned").glob("recipe-*"))]


def test_what_is_replaced_is_kept_and_taken_from_there_again(run, made):
    home = run.folder.path / "finetuned"
    one, two = content(made / "one" / "finetuned"), content(made / "two" / "finetuned")
    lines = []
    assert tune(run, TWO, tell=lines.append)
    assert content(home) == two
    assert shelves(run) == [one]
    (name,) = (path.name for path in home.glob("recipe-*"))
    assert lines == [
        f"bee_colony was fine-tuned by another recipe (epochs 1, not 2; keep last, not best): kept in finetuned/{name}"
    ]
    assert RunWatch(run.folder.path).look().kept == (name,)
    assert f"finished; fine-tuned: bee_colony; by other recipes, in finetuned: {name}" in status(
        run
    )
    assert not tune(run, TWO)
    assert not tune(run, ONE, tell=lines.append)
    assert (
        lines[-1] == f"bee_colony has been fine-tuned by this recipe: taken from finetuned/{name}"
    )
    assert content(home) == one
    assert shelves(run) == [two]
    kept = RunWatch(run.folder.path).look().kept[0]
    # And nothing of an interruption
    assert status(run).endswith(f"{kept}; next: abcsearch report {run.folder.path}")
    assert not tune(run, dataclasses.replace(TWO, warmup_epochs=1))  # a number is a number
    assert content(home) == two


def status(run):
    done = CliRunner().invoke(app, ["status", str(run.folder.path)])
    assert done.exit_code == 0, done.output
    return done.output.strip()


def test_other_networks_lie_on_the_same_shelf(run):
    finetune_run(run, ONE, only=["full"])
    finetune_run(run, TWO)
    assert [set(names) for names in shelves(run)] == [
        {
            f"{n}{end}"
            for n in ("bee_colony", "full")
            for end in (".json", ".safetensors", ".best.safetensors")
        }
    ]
    tune(run, ONE)
    assert sorted({name.split(".")[0] for name in names} for names in shelves(run)) in (
        [{"full"}, {"bee_colony"}],
        [{"bee_colony"}, {"full"}],
    )


def test_replace_drops_it(run, made):
    done = CliRunner().invoke(
        app,
        [
            "finetune",
            str(run.folder.path),
            "--replace",
            "--set",
            "epochs=2",
            "--set",
            "lr=0.05",
            "--only",
            "bee_colony",
        ],
    )
    assert done.exit_code == 0, done.output
    assert "another recipe (epochs 1, not 2): replaced\n" in done.output
    assert shelves(run) == []
    tune(run, TWO)
    tune(run, ONE)
    assert len(shelves(run)) == 2
    tune(run, TWO, replace=True)
    assert len(shelves(run)) == 1
    assert content(run.folder.path / "finetuned") == content(made / "two" / "finetuned")


def test_what_is_damaged_on_a_shelf_is_trained_again_with_a_warning(run, made):
    tune(run, TWO)
    (path,) = (run.folder.path / "finetuned").glob("recipe-*/bee_colony.safetensors")
    flipped(path)
    with pytest.warns(
        UserWarning,
        match=r"recipe-.*/bee_colony.safetensors is damaged: .*; bee_colony is fine-tuned again",
    ):
        assert tune(run, ONE)
    assert content(run.folder.path / "finetuned") == content(made / "one" / "finetuned")
    assert shelves(run) == [content(made / "two" / "finetuned")]


def test_an_error_names_what_is_kept(run):
    tune(run, TWO)
    path = run.folder.path / "finetuned" / "bee_colony.safetensors"
    flipped(path)
    done = CliRunner().invoke(app, ["export", str(run.folder.path)])
    assert done.exit_code == 2
    (kept,) = RunWatch(run.folder.path).look().kept
    again = f"abcsearch finetune {run.folder.path} --set lr=0.05"
    assert f"take what was fine-tuned by another recipe: {kept}: {again}\n" in done.output


class Killed(BaseException):
    """Instead of a kill: nothing is done any more, not even tidied up."""


@pytest.fixture
def instants(monkeypatch):
    """Ends the process's writing just before the n-th change of files; returns whether it came as far."""
    state = {"left": -1}
    calls = [
        (os, "replace"),
        (os, "unlink"),
        (os, "link"),
        (os, "rename"),
        (os, "rmdir"),
        (os, "mkdir"),
    ]
    calls += [(Path, "write_bytes"), (Path, "write_text")]
    for owner, name in calls:
        real = getattr(owner, name)

        def counted(*arguments, _real=real, **options):
            where = next(str(one) for one in arguments if isinstance(one, str | os.PathLike))
            if "finetuned" in where and ".checkpoint" not in where:
                if state["left"] == 0:
                    raise Killed
                state["left"] -= 1
            return _real(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    def arm(count):
        before, state["left"] = state["left"], count
        return before

    return arm


def wholes(run):
    """The recipes of which there is a whole fine-tuning, in its place or on a shelf."""
    home = run.folder.path / "finetuned"
    places = ["finetuned", *(f"finetuned/{path.name}" for path in home.glob("recipe-*"))]
    states = [read_tuned(run.folder, "bee_colony", where=place) for place in places]
    return [state.scores["recipe"]["epochs"] for state in states if state.scores is not None]


@pytest.mark.faults
@pytest.mark.parametrize("replace", [False, True])
def test_killed_at_any_instant_the_old_or_the_new_is_whole_and_is_had_again(
    run, made, instants, replace
):
    one, two = (content(made / name / "finetuned") for name in ("one", "two"))
    home, before = run.folder.path / "finetuned", run.folder.path / "before"
    tune_two = {"recipe": TWO, "only": ["bee_colony"], "replace": replace}

    def stop(stage, done, total, note):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):  # the training is over, and nothing of it has been put anywhere
        finetune_run(run, **tune_two, progress=stop)
    shutil.copytree(home, before)
    assert [path.suffix for path in before.glob("*.checkpoint")] == [".checkpoint"]
    for count in range(100):
        shutil.rmtree(home)
        shutil.copytree(before, home)
        instants(count)
        try:
            finetune_run(run, **tune_two)
        except Killed:
            instants(-1)
        else:
            break
        assert wholes(run), count
        now = run.tuned(run.winner)
        # It is never taken for one that has not been fine-tuned
        assert now.scores or now.wrong, count
        if now.wrong:  # the command of the new recipe goes on
            assert "--set epochs=2 --set lr=0.05 --set keep=best" in refusal(
                run.folder, "bee_colony", now
            )
        assert RunWatch(run.folder.path).look().tuned == (("bee_colony",) if now.scores else ())
        if not replace and count % 2:
            assert not tune(run, ONE), count
            assert content(home).items() >= one.items()
        assert not tune(run, TWO, replace=replace), count
        assert content(home) == two, count
        assert shelves(run) == ([] if replace else [one]), count
    instants(-1)
    assert count > 12
    assert content(home) == two


def lost(kind, home):
    """Takes the folder away."""
    if kind == "removed":
        shutil.rmtree(home)
    elif kind == "run renamed":
        home.parent.rename(home.parent.with_name("elsewhere"))
    else:
        home.rename(home.with_name("elsewhere"))
        if kind == "another":
            home.mkdir()


@pytest.mark.parametrize("kind", ["renamed", "removed", "another", "run renamed"])
@pytest.mark.parametrize(
    "when", [1, 2]
)  # in the middle of a training, or just before it is put in its place
def test_a_folder_that_is_lost_meanwhile_is_one_message_and_is_not_made_again(
    run, made, kind, when
):
    home = run.folder.path / "finetuned"

    def progress(stage, done, total, note):
        if done == when:
            lost(kind, home)

    words = f"{home} has been moved, removed or replaced .* abcsearch finetune"
    if kind == "run renamed":
        words = f"{home.parent} is not there any more.* give the command again with its name"
    with pytest.raises(RunError, match=words):
        finetune_run(run, TWO, only=["bee_colony"], progress=progress)
    if kind == "another":
        assert [path.suffix for path in home.iterdir()] in ([], [".checkpoint"])
        shutil.rmtree(home)
    assert not home.exists()
    assert run.folder.path.exists() == (kind != "run renamed")
    if kind == "removed":
        return
    if kind == "run renamed":
        home.parent.with_name("elsewhere").rename(home.parent)
    else:
        home.with_name("elsewhere").rename(home)
    seen = []
    finetune_run(run, TWO, only=["bee_colony"], progress=lambda stage, done, *_: seen.append(done))
    assert seen == ([2] if when == 1 else [])
    assert content(home) == content(made / "two" / "finetuned")


def test_between_two_networks_it_is_not_made_again_either(run):
    home = run.folder.path / "finetuned"

    def progress(stage, done, total, note):
        if stage.endswith("full"):
            raise AssertionError("it went on")

    def tell(line):
        lost("renamed", home)

    with pytest.raises(RunError, match="has been moved"):
        finetune_run(run, TWO, progress=progress, tell=tell)
    assert not home.exists()


def test_a_checkpoint_that_is_lost_meanwhile_is_written_whole_again(run, made):
    home = run.folder.path / "finetuned"

    def progress(stage, done, total, note):
        for path in home.glob("*.checkpoint"):
            path.unlink()

    finetune_run(run, TWO, only=["bee_colony"], progress=progress)
    assert content(home) == content(made / "two" / "finetuned")


def test_what_cannot_be_written_is_one_message_and_the_old_stays(run, made, monkeypatch):
    home = run.folder.path / "finetuned"

    def refused(target, writer, **options):
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(checkpoints, "replace_file", refused)
    done = CliRunner().invoke(app, ["finetune", str(run.folder.path), "--only", "bee_colony"])
    assert done.exit_code == 2
    assert "checkpoint cannot be written: Permission denied; mend that, then go on" in done.output
    assert done.output.strip().endswith(f"abcsearch finetune {run.folder.path} --only bee_colony")
    assert content(home) == content(made / "one" / "finetuned")
    monkeypatch.undo()
    monkeypatch.setattr(shelf, "replace_file", refused)
    with pytest.raises(RunError, match=r"bee_colony\S* cannot be written: Permission denied"):
        tune(run, TWO)
    assert wholes(run).count(1) == 1
    monkeypatch.undo()
    tune(run, TWO)
    assert content(home) == content(made / "two" / "finetuned")


def test_files_that_cannot_have_two_names_are_copied(run, made, monkeypatch):
    def refused(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    tune(run, TWO)
    assert shelves(run) == [content(made / "one" / "finetuned")]
    assert content(run.folder.path / "finetuned") == content(made / "two" / "finetuned")


def test_shelves_are_by_recipe_workers_and_where_that_is_taken_by_candidate(run):
    folder = RunFolder(run.folder.path)
    scores = run.scores(run.winner)
    changes = [{}, {"recipe": {**scores["recipe"], "lr": 1}}, {"workers": 2}]
    names = [shelf.shelf_of(folder, "bee_colony", scores | change) for change in changes]
    assert len(set(names)) == 3
    assert names[1] == shelf.shelf_of(
        folder, "bee_colony", scores | {"recipe": {**scores["recipe"], "lr": 1.0}}
    )
    tune(run, TWO)
    other = shelf.shelf_of(folder, "bee_colony", scores | {"candidate": [1, 1, 1, 1]})
    assert other.startswith(f"{names[0]}-")
    assert shelf.shelf_of(folder, "bee_colony", scores) == names[0]
