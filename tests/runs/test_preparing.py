"""What is trained before a search: stopped anywhere it is the same, kept in the folder, and what is damaged is told."""

import contextlib
import dataclasses
import json
import re
import shutil
import warnings

import pytest
import torch
from typer.testing import CliRunner

from abcsearch import Budget, load, resume, search
from abcsearch.cli import app
from abcsearch.config import parse_config, read_config
from abcsearch.errors import ConfigError, ModelError, PreparationError, RunError
from abcsearch.planning.dry_run import rehearse
from abcsearch.preparation.registry import make_preparation
from abcsearch.preparation.structures import INSIDE
from abcsearch.results.open_run import open_run, open_so_far
from abcsearch.results.prepared_facts import fact_text
from abcsearch.runs.config_run import run_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import read_journal
from abcsearch.runs.disk.spent import read_spent
from abcsearch.runs.disk.weights import load_checkpoint
from abcsearch.runs.entry import _part
from abcsearch.training.checkpoints import network_hash
from tests.conftest import TINY_CONFIG
from tests.preparation import own
from tests.problems import outcome
from tests.records import rewrite

HERE = "tests.preparation.own"
PREPARE = 'prepare = {name = "slimming", strength = 0.05, recipe = {epochs = 3, batch_size = 256, lr = 0.05}}\n'
CONFIG = TINY_CONFIG.replace("n_trials = 24", "n_trials = 6\nseed = 1") + PREPARE


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def trials(folder):
    return [outcome(read_journal(path).trials) for path in sorted(folder.rglob("journal.jsonl"))]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run by the command line, fine-tuned, and its config beside it."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "config.toml").write_text(CONFIG)
    for arguments in (
        ("search", folder / "config.toml", "--run-dir", folder / "run"),
        ("finetune", folder / "run"),
    ):
        done = call(*arguments)
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


def config(*overrides, made):
    return read_config(made / "config.toml", overrides)


# -- a whole run


def test_the_search_begins_with_what_was_prepared(made):
    """Its structure is trial 0, cut from the prepared weights; the random baseline has to find its own."""
    finished = open_run(made / "run")
    record = json.loads((made / "run" / "prepared.json").read_text())
    (start,) = map(tuple, record["starts"])
    assert finished.result.trials[0].candidate == start
    assert finished.result.task.constraint.allows(start)
    assert trials(made / "run")[0][0].candidate != start
    task = finished.result.task
    assert network_hash(task.source.model) != network_hash(task.base)
    assert record["facts"]["epochs"] == 3
    assert not list((made / "run").glob("*.checkpoint"))


def test_full_is_the_network_as_it_was_brought(made, tmp_path):
    """In tables and as a teacher; all others are slices of what was prepared."""
    finished = open_run(made / "run")
    full = finished.named("full")
    brought = finished.config.model.build(finished.config.seed)
    load_checkpoint(brought, made / "run" / "base.safetensors")
    assert network_hash(finished.network(full, tuned=False)) == network_hash(brought)
    run_config(
        dataclasses.replace(finished.config, prepare=None, n_trials=1, baselines=()),
        tmp_path / "plain",
    )
    plain = open_run(tmp_path / "plain")
    assert finished.fitness(full) == plain.fitness(plain.named("full"))


def test_the_commands_know_of_it(made, tmp_path):
    """Status, resume, report, export and evaluate of such a run."""
    assert "finished" in call("status", made / "run").output
    before = trials(made / "run")
    assert call("resume", made / "run").exit_code == 0
    assert trials(made / "run") == before
    shown = call("report", made / "run")
    assert shown.exit_code == 0, shown.output
    page, text = ((made / "run" / name).read_text() for name in ("report.html", "report.md"))
    facts = ("an idle scale shrinks by", "its structure, trial 0", "epochs since the base network")
    for words in (
        "Prepared before the search",
        "of CPU",
        "forward passes per step",
        *facts,
        "fitness of uniform widths, before and after",
    ):
        assert words in page
        assert words in text
    assert json.loads((made / "run" / "report.json").read_text())["prepared"][0] == [
        "by",
        "slimming",
    ]
    out = call("export", made / "run", "--out", tmp_path / "export")
    assert out.exit_code == 0, out.output
    finished = open_run(made / "run")
    example = finished.result.task.data.example
    expected = finished.network(finished.winner, tuned=True)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "export")(example), expected(example))
    shutil.copytree(made / "run", tmp_path / "same")
    compared = call("compare", made / "run", tmp_path / "same", "--out", tmp_path / "compare.html")
    assert compared.exit_code == 0, compared.output


def test_a_rehearsal_says_how_long_it_takes_and_writes_nothing(made, tmp_path):
    shown = call("search", made / "config.toml", "--run-dir", tmp_path / "run", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert re.search(r"^preparing: about .* s", shown.output, re.MULTILINE)
    assert not (tmp_path / "run").exists()
    given = rehearse(config("searcher=given", made=made), tmp_path / "run")
    assert given.total > given.preparing.seconds > 0


def test_who_watches_sees_the_epochs(made, tmp_path, monkeypatch):
    seen = []
    write = RunFolder.write_progress
    monkeypatch.setattr(
        RunFolder, "write_progress", lambda self, *a, **o: (write(self, *a, **o), look(self))
    )

    def look(folder):
        if len(seen) < 4:
            seen.append(call("status", folder.path).output)

    run_config(config("n_trials=1", "baselines=[]", made=made), tmp_path / "run")
    assert "running now: preparing: slimming\n" in seen[0]
    for epoch, output in zip((1, 2, 3), seen[1:], strict=True):
        assert f"running now: preparing: slimming, epoch {epoch} of 3" in output
    assert "preparing: slimming: 2/3, loss" in (tmp_path / "run" / "log.txt").read_text()


def test_a_structure_outside_of_the_budget_is_warned_of_once(made, tmp_path):
    """Blocks have to go, and one threshold for all channels keeps them."""
    outside = config(
        *("model.widths=[4, 6, 8]", "model.depths=[2, 2, 2]", "budget.macs=0.2", "n_trials=1"),
        *("space.lowest=0.6", 'space.levels=["filter", "stage", "block"]', "baselines=[]"),
        *("prepare.recipe.epochs=1", "pretrain.epochs=1"),
        made=made,
    )
    words = r"preparation slimming: its structure is outside of the budget \(macs [\d,]+, not at most [\d,]+\): .*"
    with pytest.warns(UserWarning, match=words + r"space\.lowest"):
        run_config(outside, tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert len(re.findall("warning: " + words, log)) == 1
    assert json.loads((tmp_path / "run" / "prepared.json").read_text())["facts"][INSIDE] is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_config(outside, tmp_path / "run")


# -- stopped, and gone on with


class Stopping:
    """Ctrl-C after every epoch of a preparation."""

    def __init__(self):
        self.epochs = []

    def __call__(self, stage, done, total, note):
        if stage.startswith("preparing"):
            self.epochs.append(done)
            raise KeyboardInterrupt


def test_stopped_after_every_epoch_it_is_the_same_run(made, tmp_path):
    stopping = Stopping()
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run_config(config(made=made), tmp_path / "run", progress=stopping)
        assert "not running" in call("status", tmp_path / "run").output
    assert call("resume", tmp_path / "run").exit_code == 0
    assert stopping.epochs == [1, 2, 3]
    for name in ("prepared.json", "prepared.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (made / "run" / name).read_bytes()
    assert trials(tmp_path / "run") == trials(made / "run")
    spent, at_once = (read_spent(RunFolder(run)) for run in (tmp_path / "run", made / "run"))
    assert (spent.processes, at_once.processes) == (4, 1)
    assert f"prepared in {spent.line}" in call("status", tmp_path / "run").output


@pytest.mark.parametrize("damage", ["gone", "empty", "shape", "numbers", "another"])
def test_a_folder_that_does_not_say_what_it_cost_shows_nothing(run, damage):
    """As those of earlier versions, or what was prepared by other settings."""
    path = run / "prepared-seconds.json"
    if damage == "gone":
        path.unlink()
    elif damage in ("empty", "shape"):
        path.write_text("" if damage == "empty" else "[1, 2]")
    else:
        values = {"seconds": "long"} if damage == "numbers" else {"of": "00000000"}
        rewrite(path, lambda record: record.update(values))
    assert "prepared in" not in "".join(call("status", run).output.splitlines()[:-5])
    assert call("report", run).exit_code == 0
    names = [name for name, _ in json.loads((run / "report.json").read_text())["prepared"]]
    assert "time" not in names
    assert "forward passes per step" in names


def test_killed_between_the_two_files_it_is_made_again(made, tmp_path, monkeypatch):
    write = RunFolder.write_json

    def killed(self, name, value, **options):
        if name == "prepared.json":
            raise KeyboardInterrupt
        write(self, name, value, **options)

    monkeypatch.setattr(RunFolder, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        run_config(config(made=made), tmp_path / "run")
    monkeypatch.undo()
    run_config(config(made=made), tmp_path / "run", progress=Stopping())  # nothing is left to train
    assert trials(tmp_path / "run") == trials(made / "run")


def test_prepared_again_after_it_was_deleted(run, made):
    for name in ("prepared.json", "prepared.safetensors"):
        (run / name).unlink()
    with pytest.raises(RunError, match=r"prepared\.json is missing.*abcsearch resume"):
        open_so_far(run)
    run_config(config(made=made), run)
    assert (run / "prepared.safetensors").read_bytes() == (
        made / "run" / "prepared.safetensors"
    ).read_bytes()


def damage(name, what):
    def do(run):
        path = run / name
        content = path.read_bytes()
        if what == "gone":
            path.unlink()
        else:
            path.write_bytes(
                content[: len(content) // 2]
                if what == "cut"
                else content[:-9] + b"x" + content[-8:]
            )

    return do


def other_settings(run):
    """Of a run with another strength, whose two files somebody has put here."""

    def change(record):
        record["of"] = "00000000"
        record["settings"]["prepare"]["options"]["strength"] = 0.1
        record["settings"]["seed"] = 7

    rewrite(run / "prepared.json", change)


def starts(values):
    return lambda run: rewrite(run / "prepared.json", lambda record: record.update(values))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (damage("prepared.json", "gone"), None),
        (damage("prepared.json", "cut"), r"prepared\.json is damaged"),
        (damage("prepared.json", "bit"), r"prepared\.json is damaged"),
        (damage("prepared.safetensors", "gone"), r"prepared\.safetensors is missing"),
        (damage("prepared.safetensors", "cut"), r"prepared\.safetensors is damaged"),
        (damage("prepared.safetensors", "bit"), r"prepared\.safetensors is damaged"),
        (
            lambda run: shutil.copy(run / "base.safetensors", run / "prepared.safetensors"),
            "holds other weights than",
        ),
        (starts({"starts": [[1, 2]]}), "damaged: starts: a candidate of this space"),
        (starts({"starts": [[0.5] * 4]}), "damaged: starts"),
        (starts({"starts": "all"}), "starts missing or wrong"),
        (starts({"facts": None}), "facts missing or wrong"),
        (starts({"of": "00000000"}), "is of another run: of another network or other data"),
        (other_settings, r"is of another run: prepare\.options\.strength: 0\.1 there, 0\.05 now; "),
    ],
)
def test_what_is_damaged_or_another_is_refused_and_what_to_do_is_said(run, made, change, words):
    change(run)
    told = call("status", run).output
    if "another run" not in (words or "") and "damaged: starts" not in (words or ""):
        assert re.search(words or "prepared.json is missing", told)
        assert told.count("or delete both: all is then prepared again") == 1
    if words is None:  # as after a kill before it was written
        run_config(config(made=made), run)
        return
    for go_on in (lambda: open_so_far(run), lambda: run_config(config(made=made), run)):
        with pytest.raises(RunError, match=words) as raised:
            go_on()
        assert "or delete both: all is then prepared again with the same result" in str(
            raised.value
        )
    assert call("resume", run).exit_code == 2


def test_other_starts_than_the_run_began_with_are_refused(run, made):
    """Whole files, in whose place others with a checksum of their own have been put."""
    record = json.loads((run / "prepared.json").read_text())
    starts({"starts": [[own - 1 or 1 for own in record["starts"][0]]]})(run)
    with pytest.raises(RunError):
        open_so_far(run)
    with pytest.raises(RunError, match="prepared"):
        run_config(config(made=made), run)


def test_a_run_is_prepared_from_its_beginning_or_never(run, made, tmp_path):
    with pytest.raises(
        RunError, match=r"already holds a different run: prepare: .* in the folder, None now"
    ):
        run_config(dataclasses.replace(config(made=made), prepare=None), run)
    with pytest.raises(
        RunError, match=r"different run: prepare\.options\.strength: 0\.05 in the folder, 0\.1 now"
    ):
        run_config(config("prepare.strength=0.1", made=made), run)
    plain = dataclasses.replace(config("n_trials=1", "baselines=[]", made=made), prepare=None)
    run_config(plain, tmp_path / "plain")
    with pytest.raises(
        RunError, match=r"different run: prepare: None in the folder, {.*slimming.*} now"
    ):
        run_config(
            dataclasses.replace(plain, prepare=config(made=made).prepare), tmp_path / "plain"
        )


def test_with_run_json_lost_it_is_made_again(run, made):
    (run / "run.json").unlink()
    with pytest.warns(UserWarning, match="made again from the config"):
        run_config(config(made=made), run)
    assert trials(run) == trials(made / "run")


# -- only what is given


def test_given_evaluates_what_was_prepared_and_ends(made, tmp_path):
    result = run_config(
        config("searcher=given", "n_trials=50", "baselines=[]", made=made), tmp_path / "run"
    )
    record = json.loads((tmp_path / "run" / "prepared.json").read_text())
    assert [list(trial.candidate) for trial in result.trials] == record["starts"]
    assert "finished: " in call("status", tmp_path / "run").output
    assert open_run(tmp_path / "run").winner.candidate == result.best.candidate


def test_given_nothing_is_refused(made, tmp_path):
    with pytest.raises(
        ConfigError, match=r"searcher 'given' proposes what it is given, and is given nothing"
    ):
        dataclasses.replace(config("searcher=given", made=made), prepare=None)
    without = config("searcher=given", f"prepare={HERE}:Twice", "prepare.start=false", made=made)
    with pytest.raises(
        PreparationError, match="proposes no structure, and searcher 'given' has no other"
    ):
        run_config(without, tmp_path / "run")


# -- one's own, and from Python


def test_ones_own_by_import_path(made, tmp_path):
    """Trainings one after the other, and a source of two modules."""
    mine = config(
        f"prepare={HERE}:Twice", "prepare.epochs=1", "n_trials=2", "baselines=[]", made=made
    )
    stopping = Stopping()
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            run_config(mine, tmp_path / "stopped", progress=stopping)
    run_config(mine, tmp_path / "stopped")
    run_config(mine, tmp_path / "run")
    assert trials(tmp_path / "stopped") == trials(tmp_path / "run")
    source = open_run(tmp_path / "run").result.task.source
    assert float(source.kept.count) == 2


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        ("slimming", None),
        ({"name": "slimmming"}, "did you mean 'slimming'"),
        ({"name": "slimming", "strenght": 1}, "did you mean 'strength'"),
        ({"name": "slimming", "recipe": {"epochs": "x"}}, "epochs"),
        ({"name": "nowhere.at:All"}, "cannot be imported"),
        ({"name": f"{HERE}:Lacking"}, "lacks prepare"),
        ({"strength": 1}, r"\[prepare\] needs a name"),
        (3, r"\[prepare\] is a table, found"),
        (
            [{"name": "slimming"}, {"name": "group_lasso"}],
            r"\[prepare\] is a table, of one preparation",
        ),
    ],
)
def test_configs_name_it_and_say_what_is_wrong(prepare, words):
    plain = {
        "n_trials": 1,
        "budget": {"macs": 0.5},
        "model": "small_resnet",
        "data": "digits",
        "pretrain": {},
    }
    if words is None:
        assert parse_config({**plain, "prepare": prepare}).prepare.name == "slimming"
        return
    with pytest.raises(ConfigError, match=words):
        parse_config({**plain, "prepare": prepare})


def test_options_that_came_later_are_recorded_where_they_are_not_the_default():
    """Runs from before go on: what they have not recorded is no difference."""
    plain = _part("prepare", make_preparation("dmcp")).options
    assert {"workers", "blocks"} & set(plain) == set()
    # In the order in which they have been, since a record's hash depends on it
    assert [*plain] == [
        *("networks", "full_share", "split", "chain_lr", "weight", "structures", "recipe")
    ]
    changed = _part("prepare", make_preparation("dmcp", workers=2, blocks=False)).options
    assert changed == {**plain, "workers": 2, "blocks": False}


def test_from_python_by_name_and_as_an_object(tiny_model, tiny_data, tmp_path):
    options = {
        "strength": 0.05,
        "recipe": {"epochs": 2, "batch_size": 32, "lr": 0.05, "device": "cpu"},
    }
    common = {"budget": Budget(macs=0.6), "n_trials": 3, "searcher": "random"}
    before = network_hash(tiny_model)
    named = search(
        tiny_model,
        tiny_data,
        **common,
        prepare={"name": "slimming", **options},
        run_dir=tmp_path / "named",
    )
    mine = make_preparation("slimming", **options)
    brought = search(tiny_model, tiny_data, **common, prepare=mine, run_dir=tmp_path / "brought")
    assert trials(tmp_path / "named") == trials(tmp_path / "brought")
    assert network_hash(tiny_model) == before == network_hash(named.task.base)
    assert named.trials[0].candidate == named.task.starts[0] == brought.task.starts[0]
    header = RunFolder(tmp_path / "brought").header()
    assert header["settings"]["prepare"] == {
        "name": "abcsearch.preparation.slimming:Slimming (object)",
        "options": {"step": "proximal", "start_gamma": None, **options},
    }
    with pytest.raises(RunError, match=r"pass the same ones: resume\('.*', prepare=\.\.\.\)"):
        resume(tmp_path / "brought", model=tiny_model, data=tiny_data)

    again = resume(tmp_path / "brought", model=tiny_model, data=tiny_data, prepare=mine)
    assert outcome(again.trials) == outcome(brought.trials)
    with pytest.raises(ConfigError, match=r"prepare is a name, .* or a Preparation, found 3"):
        search(tiny_model, tiny_data, **common, prepare=3, run_dir=tmp_path / "wrong")


def test_what_cannot_be_prepared_is_refused_before_a_folder_is_made(
    tiny_model, tiny_data, tmp_path
):
    for module in tiny_model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.requires_grad = False
    with pytest.raises(PreparationError, match="has none that is trained"):
        search(
            tiny_model,
            tiny_data,
            budget=Budget(macs=0.6),
            n_trials=3,
            prepare="slimming",
            run_dir=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_says_what_to_lower(tiny_model, tiny_data, tmp_path):
    prepare = {
        "name": "group_lasso",
        "recipe": {"epochs": 2, "batch_size": 45, "lr": 1e20, "device": "cpu"},
    }
    with pytest.raises(
        ModelError, match=r"preparation GroupLasso: the training loss is nan in epoch 1; lower lr"
    ):
        search(
            tiny_model,
            tiny_data,
            budget=Budget(macs=0.6),
            n_trials=3,
            prepare=prepare,
            run_dir=tmp_path / "run",
        )


def test_one_that_breaks_its_word_stops_the_run(tiny_model, tiny_data, tmp_path):
    with pytest.raises(PreparationError, match="Greedy has changed the network"):
        search(
            tiny_model,
            tiny_data,
            budget=Budget(macs=0.6),
            n_trials=3,
            prepare=own.Greedy(),
            run_dir=tmp_path / "run",
        )
    assert not (tmp_path / "run" / "prepared.json").exists()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (0.123456, "0.1235"),
        ("a", "a"),
        (True, "yes"),
        (None, "-"),
        ([1, 0.25], "1, 0.25"),
        ({"a": 1, "b": [False]}, "a 1, b no"),
    ],
)
def test_facts_are_words(value, text):
    assert fact_text(value) == text


# -- how it is shown


def test_status_says_where_a_preparation_was_stopped(made, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_config(config(made=made), tmp_path / "run", progress=Stopping())
    again = f"continue with: abcsearch resume {tmp_path / 'run'}"
    said = call("status", tmp_path / "run").output
    assert re.search(
        rf"stopped while preparing: slimming, epoch 2 of 3, loss \d\.\d{{4}}; {re.escape(again)}",
        said,
    )
    plain = json.loads(call("status", tmp_path / "run", "--json").output)
    assert re.fullmatch(r"preparing: slimming, epoch 2 of 3, loss \d\.\d{4}", plain["preparing"])
    assert not plain["finished"]
    run_config(config("n_trials=1", "baselines=[]", made=made), tmp_path / "run")
    assert json.loads(call("status", tmp_path / "run", "--json").output)["preparing"] is None


def test_status_says_that_a_preparation_has_failed(made, tmp_path, monkeypatch):
    def failing(self, task, trainer):
        raise ValueError("no such thing")

    monkeypatch.setattr("abcsearch.preparation.slimming.Slimming.prepare", failing)
    folder = tmp_path / "run"
    with pytest.raises(PreparationError, match="no such thing"):
        run_config(config(made=made), folder)
    why = "preparing failed: preparation Slimming failed: ValueError: no such thing"
    said = call("status", folder).output
    assert f"not running, {why}; change [prepare] and search into this folder again" in said
    assert f"or, if something else was wrong, continue with: abcsearch resume {folder}" in said
    assert f" {why}\n" in (folder / "log.txt").read_text()
    assert json.loads(call("status", folder, "--json").output)["preparing"] == why
    with RunFolder(folder).locked():  # as while the network is read that is prepared again
        assert call("status", folder).output.rstrip().endswith("running now")


def diverging(made):
    return config("prepare.recipe.lr=1e20", "n_trials=1", "baselines=[]", made=made)


def test_after_a_loss_that_is_not_finite_other_settings_go_on_in_the_same_folder(made, tmp_path):
    """From the network that was trained before, to what a folder of its own would hold; from 2 epochs likewise."""
    folder, milder = tmp_path / "run", config("n_trials=1", "baselines=[]", made=made)
    with pytest.raises(ModelError, match=r"lower lr"):
        run_config(diverging(made), folder)
    base = (folder / "base.safetensors").read_bytes()
    with pytest.raises(KeyboardInterrupt):  # half of other settings, whose checkpoint stays
        run_config(
            config("prepare.strength=0.1", "n_trials=1", "baselines=[]", made=made),
            folder,
            progress=Stopping(),
        )
    assert len(list(folder.glob("prepared-*.checkpoint"))) == 1
    run_config(milder, folder)
    run_config(milder, tmp_path / "alone")
    assert (folder / "base.safetensors").read_bytes() == base
    assert not list(folder.glob("prepared-*.checkpoint"))
    weights = [(at / "prepared.safetensors").read_bytes() for at in (folder, tmp_path / "alone")]
    assert weights[0] == weights[1]
    assert trials(folder) == trials(tmp_path / "alone")
    settings = RunFolder(folder).header()["settings"]
    assert settings["prepare"]["options"]["recipe"]["lr"] == 0.05
    assert call("resume", folder).exit_code == 0


def test_other_settings_than_of_prepare_are_refused_as_ever_after_it_failed(made, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ModelError):
        run_config(diverging(made), folder)
    with pytest.raises(RunError, match=r"different run: seed: 1 in the folder, 2 now; prepare"):
        run_config(config("seed=2", made=made), folder)


def test_what_is_refused_once_it_is_prepared_names_the_network_that_can_be_taken(
    run, made, tmp_path
):
    """Which has to be what is said: a config that names it has the same network."""
    with pytest.raises(RunError, match="Choose another folder, or delete this one") as raised:
        run_config(config("prepare.strength=0.1", made=made), run)
    line = re.search(r"checkpoint = (\S+) in \[model\], without \[pretrain\]", str(raised.value))
    (tmp_path / "again.toml").write_text(
        CONFIG.replace("pretrain = {epochs = 1, batch_size = 256}\n", "").replace(
            "[4, 6],", f"[4, 6], checkpoint = {line[1]},"
        )
    )
    changes = ("prepare.strength=0.1", "n_trials=1", "baselines=[]")
    again = read_config(tmp_path / "again.toml", changes)
    result = run_config(again, tmp_path / "other")
    assert network_hash(result.task.base) == network_hash(open_run(run).result.task.base)


def test_a_rehearsal_names_preparation_and_baselines(made, tmp_path):
    found = rehearse(
        config('baselines=["uniform", "global_threshold"]', made=made),
        tmp_path / "run",
        patience=0.01,
    )
    lines = "\n".join(found.lines)
    assert (
        "preparation: slimming (strength = 0.05, recipe = {'epochs': 3, 'batch_size': 256, 'lr': 0.05})"
        in lines
    )
    assert "baselines: uniform, global_threshold" in lines
    plain = found.to_plain()
    assert plain["prepare"]["name"] == "slimming"
    assert list(plain["baselines"]) == ["uniform", "global_threshold"]
