"""What counts as fine-tuned: status, export and report agree, whatever has become of the files."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from abcsearch.cli import app
from abcsearch.config import read_config
from abcsearch.errors import RunError
from abcsearch.files import CHECKSUM
from abcsearch.results.exports import export_run
from abcsearch.results.finetuned_files import read_tuned, tuned_names
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.open_run import open_run, open_so_far
from abcsearch.results.status import RunWatch
from abcsearch.runs.config_run import run_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.missing import AGAIN
from abcsearch.runs.disk.weights import tensors_writer
from abcsearch.runs.resuming import resume
from abcsearch.training.recipe import Recipe
from tests.conftest import TINY_CONFIG

pytestmark = pytest.mark.usefixtures("no_pictures")

SHORT = Recipe(epochs=2, batch_size=256, lr=0.05, keep="best")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A finished search, fine-tuned."""
    path = tmp_path_factory.mktemp("tuned")
    (path / "tiny.toml").write_text(TINY_CONFIG)
    run_config(read_config(path / "tiny.toml", ["n_trials=3"]), path / "run")
    finetune_run(open_run(path / "run"), SHORT)
    return path / "run"


@pytest.fixture
def run(tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "run")
    return open_run(tmp_path / "run")


def files_of(run):
    return {
        path.name: path.read_bytes()
        for path in (run.folder.path / "finetuned").iterdir()
        if path.is_file()
    }


def flipped(path):
    """The last bit of the weights."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def unlike(path):
    """Whole weights of the same shapes, but other ones."""
    tensors_writer({name: tensor + 1 for name, tensor in load_file(path).items()})(path)


def unmarked(path):
    """The same without a checksum."""
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)


def torn(path):
    path.write_bytes(path.read_bytes()[:-40])


def swapped(ending):
    """Files of two networks change places."""

    def change(path):
        other = path.with_name(f"full{ending}")
        one, two = path.read_bytes(), other.read_bytes()
        path.write_bytes(two)
        other.write_bytes(one)

    return change


def claiming(key, value):
    """Scores that say something else, with a checksum of their own."""

    def change(path):
        folder, name = RunFolder(path.parent.parent), f"finetuned/{path.name}"
        folder.write_json(name, {**folder.read_json(name), key: value})

    return change


WINNER, NONE = {"bee_colony"}, set()
# Of the winner: which file, what happens to it, which networks do not count then, what is said.
DAMAGES = [
    ("json", lambda path: path.unlink(), WINNER, "is there without its scores"),
    ("json", flipped, WINNER, "json is damaged: "),
    (
        "json",
        claiming("model", "0123456789abcdef"),
        WINNER,
        "json is damaged: it is of another run",
    ),
    ("json", claiming("weights", 3), WINNER, "json is damaged: weights are no hashes"),
    (
        "json",
        claiming("weights", {}),
        WINNER,
        "json is damaged: its scores are those of no weights",
    ),
    (
        "json",
        swapped(".json"),
        WINNER | {"full"},
        "json is damaged: its scores are those of full.safetensors",
    ),
    ("safetensors", lambda path: path.unlink(), WINNER, "safetensors is missing"),
    ("safetensors", flipped, WINNER, "safetensors is damaged: its checksum"),
    ("safetensors", torn, WINNER, "safetensors is damaged: "),
    ("safetensors", unlike, WINNER, "safetensors is another file than that of its scores"),
    ("safetensors", unmarked, WINNER, "safetensors is another file than that of its scores"),
    (
        "safetensors",
        swapped(".safetensors"),
        WINNER | {"full"},
        "safetensors is another file than that of its scores",
    ),
    ("last.safetensors", flipped, NONE, "last.safetensors is damaged: its checksum"),
    ("last.safetensors", unlike, NONE, "last.safetensors is another file than"),
    ("last.safetensors", lambda path: path.unlink(), NONE, ""),
    ("json", claiming("candidate", [1, 1, 1, 1]), WINNER, ""),
]
warned = pytest.mark.filterwarnings(
    "ignore:.*counts as not fine-tuned",
    "ignore:.*it is made again by",
    "ignore:.*is fine-tuned again",
)


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@warned
@pytest.mark.parametrize(("ending", "how", "gone", "words"), DAMAGES)
def test_status_and_export_agree_whatever_is_damaged_and_it_is_made_again(
    run, ending, how, gone, words
):
    whole, folder = files_of(run), run.folder.path
    path = folder / "finetuned" / f"bee_colony.{ending}"
    how(path)
    names = {structure.name for structure in run.structures} - gone
    assert set(RunWatch(folder).look().tuned) == names
    said = [
        line for line in call("status", folder).output.splitlines() if line.startswith("warning: ")
    ]
    assert len(said) == (len(gone) or 1) * bool(words)
    assert all("abcsearch finetune" in line for line in said)
    assert words in "".join(said)
    assert {
        structure.name for structure in run.structures if run.scores(structure) is not None
    } == names
    done = call("export", folder)
    if gone and words:
        assert done.exit_code == 2
        assert words in done.output
        assert (
            f"train it again with: abcsearch finetune {folder} --set epochs=2 --set lr=0.05"
            in done.output
        )
        assert not (folder / "export").exists()
        with pytest.raises(RunError, match="It is not passed over"):
            run.network(run.winner, tuned=True)
    else:
        assert done.exit_code == 0, done.output
        assert ("not fine-tuned yet" in done.output) is bool(gone)
    finetune_run(run, SHORT)
    lost = {path.name} if not gone and not words else NONE  # nobody needs it
    assert files_of(run) == {name: content for name, content in whole.items() if name not in lost}


@warned
@pytest.mark.parametrize(("ending", "how", "gone", "words"), [DAMAGES[0], DAMAGES[7], DAMAGES[12]])
def test_a_report_goes_on_and_says_what_is_damaged(run, ending, how, gone, words):
    how(run.folder.path / "finetuned" / f"bee_colony.{ending}")
    assert call("report", run.folder.path).exit_code == 0
    for name in ("report.html", "report.md", "report.json"):
        assert words in (run.folder.path / name).read_text()
    rows = json.loads((run.folder.path / "report.json").read_text())["rows"]
    assert {row["network"] for row in rows if not row["tests"]} == gone


def test_a_comparison_says_what_is_damaged(run, tuned, tmp_path):
    flipped(run.folder.path / "finetuned" / "bee_colony.safetensors")
    done = call("compare", run.folder.path, tuned, "--out", tmp_path / "compare.html")
    assert done.exit_code == 0, done.output
    assert "note: " in done.output
    assert "bee_colony.safetensors is damaged: its checksum" in done.output
    assert (
        "bee_colony.safetensors is damaged: its checksum" in (tmp_path / "compare.html").read_text()
    )


@warned
def test_the_command_that_an_error_names_makes_the_file_again(run):
    whole = files_of(run)
    flipped(run.folder.path / "finetuned" / "bee_colony.safetensors")
    said = call("export", run.folder.path).output
    command = said.split("train it again with: ")[1].split(";")[0].split()
    assert command[3:] == ["--set", "epochs=2", "--set", "lr=0.05", "--set", "keep=best"]
    done = call(*command[1:])
    assert done.exit_code == 0, done.output
    assert "warning" not in said
    assert files_of(run) == whole


def test_a_winner_that_has_been_beaten_is_not_fine_tuned(tuned, tmp_path):
    """The search went on after fine-tuning."""
    shutil.copytree(tuned, tmp_path / "run")
    before = open_run(tmp_path / "run")
    old = files_of(before)
    resume(tmp_path / "run", n_trials=40)
    run = open_run(tmp_path / "run")
    assert run.winner != before.winner
    stale = {structure.name for structure in set(before.structures) - set(run.structures)}
    names = sorted({"bee_colony", "full", "random", "uniform"} - stale)
    assert list(RunWatch(tmp_path / "run").look().tuned) == names
    assert [s.name for s in run.structures if run.scores(s) is not None] == [
        s.name for s in run.structures if s.name in names
    ]
    assert not export_run(run).tuned
    finetune_run(run, SHORT)
    kept = (tmp_path / "run" / "finetuned").glob("recipe-*/*")
    assert {path.name: path.read_bytes() for path in kept} == {
        name: content for name, content in old.items() if name.split(".")[0] in stale
    }
    shutil.copytree(tuned, tmp_path / "back")  # where the older winner is the winner
    shutil.rmtree(tmp_path / "back" / "finetuned")
    shutil.copytree(tmp_path / "run" / "finetuned", tmp_path / "back" / "finetuned")
    stages, back = [], open_run(tmp_path / "back")
    finetune_run(back, SHORT, progress=lambda stage, *_: stages.append(stage))
    assert not stages
    assert files_of(back) == old


def test_a_search_under_way_has_no_fine_tuned_winner_before_its_first_trial(run):
    settings = run.folder.header()["settings"]
    best = {"bee_colony": None, "random": run.structures[2].candidate}
    assert tuned_names(run.folder, settings, best) == ["full", "random", "uniform"]


def test_old_scores_without_hashes_still_count(run, tuned):
    """As today: only what the weights themselves say is looked at."""
    folder = run.folder
    plain = folder.read_json("finetuned/bee_colony.json")
    old = {key: value for key, value in plain.items() if key not in ("weights", "model", "workers")}
    (folder.path / "finetuned" / "bee_colony.json").write_text(json.dumps(old))
    assert run.scores(run.winner) == old
    assert "bee_colony" in RunWatch(folder.path).look().tuned
    before = files_of(run)
    finetune_run(run, SHORT)
    assert files_of(run) == before
    assert export_run(run).tuned
    path = folder.path / "finetuned" / "bee_colony.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    assert "does not fit the network" in run.tuned(run.winner).wrong
    path.write_bytes((tuned / "finetuned" / "bee_colony.safetensors").read_bytes())
    flipped(path)
    assert "its checksum" in run.tuned(run.winner).wrong
    assert CHECKSUM not in json.loads((folder.path / "finetuned" / "bee_colony.json").read_text())


def test_weights_are_hashed_once_while_they_stay_the_same(run, monkeypatch):
    """Of a run that is watched."""
    watch = RunWatch(run.folder.path)
    assert len(watch.look().tuned) == 4
    monkeypatch.setattr("abcsearch.stored.mmap.mmap", None)
    assert len(watch.look().tuned) == 4
    monkeypatch.undo()
    flipped(run.folder.path / "finetuned" / "full.safetensors")
    assert len(watch.look().tuned) == 3


def test_a_run_that_is_not_finished_is_asked_likewise(run):
    assert read_tuned(
        run.folder, "bee_colony", candidate=open_so_far(run.folder.path).winner.candidate
    ).scores


def test_an_export_of_a_network_that_is_not_fine_tuned_says_so(run):
    shutil.rmtree(run.folder.path / "finetuned")
    assert call("export", run.folder.path).exit_code == 0
    shown = call("evaluate", run.folder.path / "export")
    assert "note: this network had not been fine-tuned when it was exported" in shown.output


def test_a_network_that_is_fine_tuned_anew_while_it_is_exported_is_refused(run, monkeypatch):
    network = type(run).network

    def meanwhile(self, structure, *, tuned):
        monkeypatch.undo()
        made = network(self, structure, tuned=tuned)
        finetune_run(run, Recipe(epochs=1, batch_size=256, lr=0.05), only=["bee_colony"])
        return made

    monkeypatch.setattr(type(run), "network", meanwhile)
    with pytest.raises(RunError, match="fine-tuned anew while it was exported"):
        export_run(run)


@pytest.mark.parametrize("state", ["unfinished", "deleted"])
def test_the_winner_is_exported_whatever_has_become_of_the_random_baseline(run, tmp_path, state):
    path = run.folder.path
    baseline = run.folder.baseline("random")
    if state == "deleted":
        shutil.rmtree(path / "baselines")
    else:
        baseline.cut(2)
    before = {
        file: file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != ".lock"
    }
    for name in ("full", "uniform", None):
        more = [] if name is None else ["--network", name]
        made = call("export", path, "--out", tmp_path / str(name), *more)
        assert made.exit_code == 0, made.output
        assert "\nfine-tuned" in made.output
    assert {
        file: file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != ".lock"
    } == before
    refused = call("export", path, "--network", "random")
    assert refused.exit_code == 2
    assert f"continue it with: abcsearch resume {path}" in refused.output
    said = call("status", path).output.splitlines()[-1]
    assert (
        said
        == f"search finished, its random baseline is not; continue with: abcsearch resume {path}"
    )


@pytest.mark.parametrize("damage", ["flipped", "torn", "missing", "other", "large"])
def test_status_names_a_damaged_network_and_what_to_do(run, damage, monkeypatch):
    path, base = run.folder.path, run.folder.base
    assert "warning" not in call("status", path).output
    if damage == "large":
        monkeypatch.setattr("abcsearch.results.damage._LARGEST", 10)
        assert "warning" not in call("status", path).output
    {
        "flipped": flipped,
        "torn": torn,
        "large": torn,
        "missing": lambda file: file.unlink(),
        "other": unlike,
    }[damage](base)
    (line,) = [
        line for line in call("status", path).output.splitlines() if line.startswith("warning: ")
    ]
    words = {
        "missing": "is missing",
        "other": "holds other weights than those that the run began with",
    }
    assert f"{base} {words.get(damage, 'is damaged: ')}" in line
    assert line.endswith(f"restore it from a copy, or delete it: {AGAIN} abcsearch resume {path}")
    assert json.loads(call("status", path, "--json").output)["damaged"] == [
        line.removeprefix("warning: ")
    ]
    with run.folder.locked():
        assert "warning" not in call("status", path).output  # it may be about to be mended


def test_status_says_which_recipes_fine_tunings_are_of(run):
    assert (
        "fine-tuned with epochs 2, not 1; lr 0.05, not 0.02; keep best, not last: bee_colony, full, random, uniform"
        in (call("status", run.folder.path).output.splitlines())
    )
    finetune_run(run, only=["full"])
    (kept,) = RunWatch(run.folder.path).look().kept
    lines = call("status", run.folder.path).output.splitlines()
    names = f"bee_colony, random, uniform, {kept}/full"
    assert (
        f"fine-tuned with epochs 2, not 1; lr 0.05, not 0.02; keep best, not last: {names}" in lines
    )
    finetune_run(run, SHORT, only=["full"])
    (kept,) = RunWatch(run.folder.path).look().kept
    assert (
        f"fine-tuned with the recipe of the run: {kept}/full"
        in call("status", run.folder.path).output.splitlines()
    )
