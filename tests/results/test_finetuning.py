"""Fine-tuning of a run: best and last, recipes by name, the teacher, and trainings that are killed."""

import dataclasses
import json
import os
import shlex
import signal
import types
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from abcsearch.cli import app
from abcsearch.config import read_config
from abcsearch.errors import ConfigError, RunError
from abcsearch.results.exports import export_run
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.open_run import open_run
from abcsearch.results.report import make_report
from abcsearch.runs.config_run import run_config
from abcsearch.training import checkpoints
from abcsearch.training.finetuning import finetune
from abcsearch.training.recipe import PRESETS, Recipe
from abcsearch.training.scoring import score
from tests.problems import forks
from tests.records import rewrite

pytestmark = pytest.mark.usefixtures("no_pictures")

SHORT = Recipe(epochs=3, batch_size=256, lr=0.05)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished search; every test copies it."""
    from tests.conftest import TINY_CONFIG

    path = tmp_path_factory.mktemp("finetuning")
    (path / "tiny.toml").write_text(TINY_CONFIG)
    run_config(
        read_config(path / "tiny.toml", ["n_trials=3", "baselines=['uniform']"]), path / "run"
    )
    return path


@pytest.fixture
def run(made, tmp_path):
    import shutil

    shutil.copytree(made / "run", tmp_path / "run")
    return open_run(tmp_path / "run")


def left(run):
    return sorted(entry.name for entry in (run.folder.path / "finetuned").iterdir())


@pytest.mark.parametrize("keep", ["last", "best"])
def test_best_and_last_lie_beside_each_other(run, keep):
    recipe = dataclasses.replace(SHORT, keep=keep, lr=1.0)
    finetune_run(run, recipe)
    other = "last" if keep == "best" else "best"
    names = ("bee_colony", "full", "uniform")
    assert left(run) == sorted(
        f"{n}.{end}" for n in names for end in ("json", "safetensors", f"{other}.safetensors")
    )
    again = finetune(
        run.network(run.winner, tuned=False), run.result.task.data, recipe, seed=run.config.seed
    )
    folder = run.folder.path / "finetuned"
    for file, state in (("bee_colony", keep), (f"bee_colony.{other}", other)):
        found = load_file(folder / f"{file}.safetensors")
        assert all(
            torch.equal(tensor, found[name])
            for name, tensor in getattr(again.training, state).items()
        )
    scores = json.loads((folder / "bee_colony.json").read_text())
    assert scores["after"] == again.after
    assert scores["validation"] == list(again.training.scores)
    assert scores["best_epoch"] == again.training.best_epoch
    assert {"top1", "top5", "neg_loss"} == set(scores["before"]) == set(scores["after"])
    finetune_run(run, dataclasses.replace(recipe, keep=other))
    assert not (folder / f"bee_colony.{other}.safetensors").exists()


def test_the_winner_comes_first(run):
    stages = []
    finetune_run(run, SHORT, progress=lambda stage, *_: stages.append(stage))
    assert list(dict.fromkeys(stages)) == [
        f"fine-tuning {name}" for name in ("bee_colony", "full", "uniform")
    ]


def test_only_those_that_are_named(run):
    finetune_run(run, SHORT, only=["full", "bee_colony"])
    assert {name.split(".")[0] for name in left(run)} == {"bee_colony", "full"}
    bytes_of = {name: (run.folder.path / "finetuned" / name).read_bytes() for name in left(run)}
    finetune_run(run, SHORT)
    assert {name.split(".")[0] for name in left(run)} == {"bee_colony", "full", "uniform"}
    assert all(
        (run.folder.path / "finetuned" / name).read_bytes() == old for name, old in bytes_of.items()
    )
    with pytest.raises(ConfigError, match="unknown network 'unifrom'; did you mean 'uniform'"):
        finetune_run(run, SHORT, only=["unifrom"])


def test_the_teacher_is_the_full_network_of_the_search(run):
    recipe = dataclasses.replace(SHORT, distillation=0.7, temperature=2.0)
    finetune_run(run, recipe)
    task = run.result.task
    sliced = run.network(run.winner, tuned=False)
    again = finetune(
        sliced,
        task.data,
        recipe,
        seed=run.config.seed,
        teacher=run.network(run.structures[0], tuned=False),
    )
    found = run.network(run.winner, tuned=True).state_dict()
    assert all(
        torch.equal(tensor, found[name]) for name, tensor in again.model.state_dict().items()
    )


def test_scores_of_before_count_as_those_of_the_same_recipe(run):
    """Written by a version whose recipes had fewer fields."""
    finetune_run(run, SHORT)
    path = run.folder.path / "finetuned" / "full.json"
    old = [field.name for field in dataclasses.fields(Recipe)][:12]
    rewrite(
        path, lambda scores: scores.update(recipe={name: scores["recipe"][name] for name in old})
    )
    before = path.stat().st_mtime_ns
    finetune_run(run, SHORT)
    assert path.stat().st_mtime_ns == before
    finetune_run(run, dataclasses.replace(SHORT, ema=0.5))
    assert path.stat().st_mtime_ns != before


SCORES = [b"{", b"5", b"[]", b'{"top1":"x"}', b"\xff", ("after", {}), ("before", 5), ("recipe", {})]
SCORES += [("after", {"top1": "x"})]
DAMAGES = [("json", how) for how in SCORES] + [
    ("safetensors", how) for how in (None, b"", b"torn", 0.5, "another")
]


def damage(path, how):
    """Spoils a file."""
    if how is None:
        path.unlink()
    elif how == "another":
        save_file({"weight": torch.zeros(3)}, path)
    elif isinstance(how, tuple):
        rewrite(path, {how[0]: how[1]})
    elif isinstance(how, float):
        path.write_bytes(path.read_bytes()[: int(how * path.stat().st_size)])
    else:
        path.write_bytes(how)


@pytest.fixture(scope="module")
def tuned(made):
    """The search, fine-tuned."""
    import shutil

    shutil.copytree(made / "run", made / "tuned")
    finetune_run(open_run(made / "tuned"), SHORT)
    return made / "tuned"


@pytest.mark.parametrize(("end", "how"), DAMAGES)
def test_a_damaged_file_counts_as_none_and_is_made_again(tuned, tmp_path, end, how):
    import shutil

    shutil.copytree(tuned, tmp_path / "run")
    run = open_run(tmp_path / "run")
    wanted, scores = _weights(run), run.scores(run.winner)
    path = run.folder.path / "finetuned" / f"{run.winner.name}.{end}"
    damage(path, how)
    again = f"abcsearch finetune {run.folder.path} --set epochs=3 --set lr=0.05"
    said = rf"{path.name} (is missing|is damaged: .+|is another file .+); .* run: {again}$"
    with pytest.warns(UserWarning, match=said):
        assert run.scores(run.winner) is None
    assert all(run.scores(other) is not None for other in run.structures[:-1])
    stages = []
    with pytest.warns(
        UserWarning,
        match=said.partition(" .* run: ")[0] + f" {run.winner.name} is fine-tuned again$",
    ):
        finetune_run(run, SHORT, progress=lambda stage, *_: stages.append(stage))
    assert set(stages) == {"fine-tuning bee_colony"}
    assert _weights(run) == wanted
    assert run.scores(run.winner) == scores


@pytest.mark.parametrize(
    ("end", "how"), [("json", b"{"), ("json", ("after", {})), ("safetensors", 0.5)]
)
def test_report_and_export_say_that_a_file_is_damaged(tuned, tmp_path, end, how):
    import shutil

    shutil.copytree(tuned, tmp_path / "run")
    path = tmp_path / "run" / "finetuned" / f"bee_colony.{end}"
    damage(path, how)
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged"):
        report = make_report(open_run(tmp_path / "run"))
    assert [row.after is None for row in report.rows] == [False, False, True]
    with pytest.raises(
        RunError, match=rf"{path.name} is damaged.* train it again with: abcsearch finetune"
    ):
        export_run(open_run(tmp_path / "run"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")  # as for users, who read it once
        make_report(open_run(tmp_path / "run"))
    assert len([own for own in said if path.name in str(own.message)]) == 1


def test_what_does_not_suit_the_data_is_refused_before_anything_is_trained(run):
    with pytest.raises(ConfigError, match="workers share a batch equally"):
        finetune_run(
            run, dataclasses.replace(SHORT, batch_size=63), workers=types.SimpleNamespace(workers=2)
        )
    assert not (run.folder.path / "finetuned").exists()


def test_presets_on_the_command_line(run):
    called = ["finetune", str(run.folder.path), "--set", "preset=digits", "--set", "epochs=1"]
    done = CliRunner().invoke(app, called)
    assert done.exit_code == 0, done.output
    scores = run.scores(run.winner)
    assert Recipe(**scores["recipe"]) == dataclasses.replace(PRESETS["digits"].recipe, epochs=1)
    wrong = CliRunner().invoke(app, [*called[:2], "--ray-address", "auto"])
    assert wrong.exit_code == 2
    assert "say how many, e.g. --workers 4" in wrong.output


def _killed_at(path, recipe, count):
    """Dies in the middle of the count-th checkpoint."""
    write, calls = checkpoints.replace_file, []

    def killing(target, writer, **options):
        calls.append(target)
        write(
            target,
            writer if len(calls) < count else lambda sibling: signal.raise_signal(signal.SIGKILL),
            **options,
        )

    checkpoints.replace_file = killing
    if recipe is None:
        run_config(
            read_config(path.parent / "tiny.toml", ["n_trials=3", "pretrain.epochs=3"]), path
        )
    else:
        finetune_run(open_run(path), recipe)


def _kill(path, recipe, count):
    victim = forks().Process(target=_killed_at, args=(path, recipe, count))
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL


def _weights(run):
    folder = run.folder.path / "finetuned"
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"
    }


def test_killed_and_run_again_it_ends_with_the_same_bits_and_trains_no_epoch_twice(
    run, made, tmp_path
):
    import shutil

    shutil.copytree(made / "run", tmp_path / "whole")
    whole = open_run(tmp_path / "whole")
    finetune_run(whole, SHORT)
    _kill(run.folder.path, SHORT, 3)  # two epochs of the winner are written
    assert [name.split("-")[0] for name in left(run) if name.endswith(".checkpoint")] == [
        "bee_colony"
    ]
    _kill(run.folder.path, SHORT, 3)  # its last epoch, and one of the full network
    # Another recipe in between: nothing of the first one is lost.
    finetune_run(run, dataclasses.replace(SHORT, epochs=1))
    epochs = []
    finetune_run(
        run, SHORT, progress=lambda stage, done, *_: epochs.append((stage.split()[-1], done))
    )
    assert [done for name, done in epochs if name == "full"] == [2, 3]
    assert _weights(run) == _weights(whole)
    assert not any(name.endswith(".checkpoint") for name in left(run))
    assert [run.scores(s) for s in run.structures] == [whole.scores(s) for s in whole.structures]


def said(done):
    """What a command printed, but for what it said that it was at."""
    return [line for line in done.output.splitlines() if not line.endswith(" ...")]


def state_of(run):
    """What status shows, as text and as JSON."""
    shown = [
        CliRunner().invoke(app, ["status", str(run.folder.path), *more])
        for more in ([], ["--json"])
    ]
    assert [done.exit_code for done in shown] == [0, 0]
    return shown[0].output.splitlines()[-1], json.loads(shown[1].output)


def test_status_shows_fine_tuning_under_way(run):
    seen, names = [state_of(run)], ("bee_colony", "full", "uniform")

    def progress(stage, done, total, note):
        seen.append(state_of(run))

    finetune_run(run, SHORT, progress=progress)
    seen.append(state_of(run))
    texts = [text for text, _ in seen]
    stages = [f"fine-tuning {name}, epoch {epoch} of 3" for name in names for epoch in (2, 3, 3)]
    path = run.folder.path
    done = f"finished; fine-tuned: bee_colony, full, uniform; next: abcsearch report {path}"
    assert texts == [
        f"finished; next: abcsearch finetune {path}",
        *(f"running now: {stage}" for stage in stages),
        done,
    ]
    assert [plain["pulse"]["stage"] for _, plain in seen[1:-1]] == stages
    assert [plain["finished"] for _, plain in seen] == [True, *[False] * 9, True]
    assert seen[-1][1]["pulse"] is seen[-1][1]["interrupted"] is None
    # The next writer is no fine-tuning, or has not said so yet.
    (run.folder.path / "progress.json").write_text(
        '{"stage": 3, "busy": 1, "workers": 1, "time": 0}'
    )
    with run.folder.locked():
        assert state_of(run)[0] == "running now"


def test_a_fine_tuning_that_was_killed_is_continued_by_the_command_that_status_names(run):
    recipe = dataclasses.replace(SHORT, schedule="step", milestones=(0.25, 0.5), flip=True)
    _kill(run.folder.path, recipe, 3)
    text, plain = state_of(run)
    assert (
        text
        == f"search finished; fine-tuning was interrupted: continue with: {plain['interrupted']}"
    )
    assert plain["finished"]
    command = shlex.split(plain["interrupted"])
    assert command[:3] == ["abcsearch", "finetune", str(run.folder.path)]
    assert "epochs=3" in command
    assert "batch_size=256" not in command  # as in the run's own recipe
    waiting = CliRunner().invoke(app, ["finetune", str(run.folder.path)])
    assert waiting.exit_code == 0, waiting.output
    first = said(waiting)[0]
    assert first.startswith(
        "bee_colony: a fine-tuning with other settings (epochs 3, not 1; lr 0.05, not 0.02; "
    )
    assert first.endswith(
        f" was stopped after epoch 2; it stays, continue it with: {plain['interrupted']}"
    )
    # What was stopped before that is not the last one
    assert state_of(run)[0].startswith("finished;")
    done = CliRunner().invoke(app, command[1:])
    assert done.exit_code == 0, done.output
    lines = said(done)
    assert lines[0].startswith(
        "bee_colony was fine-tuned by another recipe (epochs 1, not 3; lr 0.02, not 0.05; "
    )
    assert ["): kept in finetuned/recipe-" in line for line in lines[:4]] == [
        True,
        True,
        True,
        False,
    ]
    assert "fine-tuning bee_colony: 3/3" in lines[3]
    assert Recipe(**run.scores(run.winner)["recipe"]) == recipe
    assert state_of(run)[0].startswith("finished;")


@pytest.mark.parametrize(
    "more", [{}, {"only": ["uniform"]}, {"only": ["full", "uniform"], "replace": True}]
)
@pytest.mark.parametrize("epoch", [0, 2])
def test_status_names_the_command_that_does_what_was_asked_for(run, more, epoch):
    finetune_run(run, dataclasses.replace(SHORT, epochs=1), only=["full", "uniform"])

    def stop(stage, done, total, note):
        if (stage.endswith("uniform") and done == epoch) or not epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune_run(run, SHORT, progress=stop, **more)
    command = state_of(run)[1]["interrupted"]
    options = [word for name in more.get("only", []) for word in ("--only", name)] + [
        "--replace"
    ] * ("replace" in more)
    words = shlex.split(command)
    assert words[-len(options) :] == options or not options
    assert words.count("--only") == len(more.get("only", []))
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, done.output
    for structure in run.structures:
        tuned = run.scores(structure)
        asked = structure.name in more.get("only", [structure.name])
        assert (None if tuned is None else tuned["recipe"]["epochs"]) == (
            3 if asked else {"full": 1}.get(structure.name)
        )
    assert state_of(run)[0].startswith("finished;")


def test_what_is_damaged_is_said_to_be_trained_again_by_the_command_that_does_it(run):
    recipe = dataclasses.replace(SHORT, epochs=1, keep="best")
    finetune_run(run, recipe, only=["full"])
    for ending in ("safetensors", "json", "last.safetensors"):
        (run.folder.path / "finetuned" / f"full.{ending}").write_text("torn")
        with pytest.warns(UserWarning, match=r"full\..*; full is fine-tuned again$"):
            finetune_run(run, recipe, only=["full"])


def test_the_command_that_continues_one_network_replaces_no_other(run):
    finetune_run(run, dataclasses.replace(SHORT, epochs=1), only=["full"])
    _kill(run.folder.path, SHORT, 2)
    (
        run.folder.path / "finetuning.json"
    ).unlink()  # as of older versions: what was asked for is not known
    command = state_of(run)[1]["interrupted"]
    assert command.endswith(" --only bee_colony")
    scores = run.folder.path / "finetuned" / "full.json"
    sound = scores.read_text()
    scores.write_text("{torn")  # made again, so it is no reason to leave the others out
    os.utime(scores, (0, 0))  # before the checkpoint
    assert state_of(run)[1]["interrupted"] == command.removesuffix(" --only bee_colony")
    scores.write_text(sound)
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    assert run.scores(run.structures[0])["recipe"]["epochs"] == 1
    assert run.scores(run.winner)["recipe"]["epochs"] == 3


def test_scores_do_not_depend_on_the_precision_of_the_training(run):
    before = {}
    for precision in ("float32", "bf16"):
        finetune_run(
            run, dataclasses.replace(SHORT, epochs=1, precision=precision), only=["bee_colony"]
        )
        scores = run.scores(run.winner)
        before[precision] = scores["before"]
        network = run.network(run.winner, tuned=True)
        assert score(network, run.result.task.data.test)["neg_loss"] == pytest.approx(
            scores["after"]["neg_loss"], abs=1e-5
        )
    assert before["float32"] == before["bf16"]


def test_an_unreadable_checkpoint_still_says_that_it_was_interrupted(run):
    _kill(run.folder.path, SHORT, 2)
    (path,) = (run.folder.path / "finetuned").glob("*.checkpoint")
    path.write_bytes(b"torn")
    again = f"abcsearch finetune {run.folder.path} --set epochs=3 --set lr=0.05"
    assert state_of(run)[1]["interrupted"] == again


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--set", "preset=digits", "--set", "milestones=[0.2, 0.4]"],
        ["--set", "epochs=3", "--workers", "2", "--ray-address", "auto"],
        ["--only", "full", "--replace"],
    ],
)
def test_ctrl_c_names_the_whole_command(run, monkeypatch, options):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("abcsearch.results.finetuning.finetune_run", interrupted)
    monkeypatch.setattr("abcsearch.cli.finishing._together", lambda *_: None)
    command = ["finetune", str(run.folder.path), *options]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 130
    assert shlex.split(done.output.split("continue with: ")[1]) == ["abcsearch", *command]


def test_what_killed_workers_have_left_is_removed(run):
    stale = run.folder.path / "finetuned" / ".ray-abc" / "training"
    stale.mkdir(parents=True)
    (stale / "state.json").write_text("{}")
    finetune_run(run, dataclasses.replace(SHORT, epochs=1))
    assert not any(name.startswith(".ray-") for name in left(run))


def test_a_base_network_whose_training_is_killed_goes_on(made, tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tiny.toml").write_text((made / "tiny.toml").read_text())
    config = read_config(tmp_path / "whole" / "tiny.toml", ["n_trials=3", "pretrain.epochs=3"])
    run_config(config, tmp_path / "whole" / "run")
    path = tmp_path / "killed" / "run"
    _kill(path, None, 2)
    assert len(list(path.glob("base-*.checkpoint"))) == 1
    epochs = []
    run_config(
        config,
        path,
        progress=lambda stage, done, *_: epochs.append(done) if stage == "base network" else None,
    )
    assert epochs == [2, 3]
    assert (path / "base.safetensors").read_bytes() == (
        tmp_path / "whole" / "run" / "base.safetensors"
    ).read_bytes()
    assert not list(path.glob("*.checkpoint"))
