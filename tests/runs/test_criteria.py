"""Runs in which every layer chooses its criterion: searched, killed, continued, fine-tuned, exported, reported."""

import dataclasses
import json
import shutil

import numpy as np
import optuna
import pytest
import torch
from torch import nn

from abcsearch import Budget, Evaluation, SpaceOptions, load, resume, search
from abcsearch.baselines.checks import checked_structure
from abcsearch.baselines.registry import BASELINES
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.channels.source import Sliced
from abcsearch.config import read_config
from abcsearch.data.splits import Data
from abcsearch.errors import AbcSearchError, DataError, PreparationError, RunError
from abcsearch.preparation.base import Preparation, Prepared
from abcsearch.reporting.gathering import gather
from abcsearch.results.exports import export_run
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.open_run import open_run
from abcsearch.runs.config_run import run_config
from abcsearch.runs.optuna_mirror import OptunaMirror
from abcsearch.runs.settings_diff import unlike
from tests.conftest import TINY_CONFIG
from tests.records import rewrite
from tests.test_cli import call

pytestmark = pytest.mark.usefixtures("no_pictures")

NAMES = ["l1", "taylor", "reader_l2"]
CHANGES = [
    f"criterion={json.dumps(NAMES)}",
    "n_trials=14",
    "searcher=response_surface",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run, fine-tuned."""
    folder = tmp_path_factory.mktemp("criteria")
    (folder / "tiny.toml").write_text(TINY_CONFIG)
    run_config(read_config(folder / "tiny.toml", CHANGES), folder / "run")
    finetune_run(open_run(folder / "run"))
    return folder / "run"


def decided(journal):
    lines = [json.loads(line.partition(" ")[2]) for line in journal.read_text().splitlines()]
    trials = [line for line in lines if "event" not in line]
    return [
        (line["number"], line["candidate"], {**line["evaluation"], "seconds": 0}) for line in trials
    ]


def test_what_a_run_records_of_criteria(run):
    opened = open_run(run)
    result, space = opened.result, opened.result.task.space
    assert json.loads((run / "run.json").read_text())["settings"]["criterion"] == NAMES
    widths = [dimension.name for dimension in space.dimensions if dimension.kind == "width"]
    assert list(result.criteria) == widths
    assert set(result.criteria.values()) <= set(NAMES)
    tried = np.array([trial.candidate for trial in result.trials])[:, ~space.ordered]
    assert all(len(np.unique(column)) > 1 for column in tried.T)
    for member in json.loads((run / "population.json").read_text())["members"]:
        assert list(member["criteria"]) == widths
        assert not set(member["widths"]) & {
            d.name for d in space.dimensions if d.kind == "criterion"
        }


def test_the_winners_network_is_sliced_by_its_own_criteria(run):
    result = open_run(run).result
    task, best, count = result.task, result.best.candidate, len(result.task.graph.prunable)
    every = [task.source.ranking, *task.source.ranking.others]
    assert [ranking.criterion for ranking in every] == NAMES
    scores = [every[number].scores[group] for group, number in enumerate(best[-count:])]
    own = dataclasses.replace(task.source.ranking, scores=tuple(scores), others=())
    expected = slice_model(task.base, task.graph, best[:-count], own).state_dict()
    found = task.source.network(best).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_baselines_have_the_first_criterion_but_for_the_search(run):
    opened = open_run(run)
    task = opened.result.task
    short = tuple(3 for _ in task.graph.prunable)  # of a user who knows nothing of criteria
    names = ("global_threshold", "global_threshold_per_mac", "pfa_widths")
    made = {name: BASELINES.find(name).structure for name in names} | {"mine": lambda _: short}
    structures = [opened.named("full").candidate, opened.named("uniform").candidate]
    structures += [checked_structure(name, structure, task) for name, structure in made.items()]
    for structure in structures:
        assert set(task.space.criteria(structure).values()) == {"l1"}
        task.source.network(structure)
    assert structures[-1][: len(short)] == short
    count = len(task.graph.prunable)
    drawn = {
        tuple(candidate[-count:])
        for _, candidate, _ in decided(run / "baselines/random/journal.jsonl")
    }
    assert len(drawn) > 3


def test_stopped_and_continued_it_is_the_same_run(run, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY_CONFIG)
    config = read_config(tmp_path / "tiny.toml", [*CHANGES, "baselines=[]"])

    def stop(stage, done, *_):
        if stage == "response_surface" and done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_config(config, tmp_path / "run", progress=stop)
    assert 9 <= len(decided(tmp_path / "run/journal.jsonl")) < 14
    resume(tmp_path / "run")
    assert decided(tmp_path / "run/journal.jsonl") == decided(run / "journal.jsonl")
    for other in ('["l1", "taylor"]', '["taylor", "l1", "reader_l2"]', "l1"):
        with pytest.raises(RunError, match="criterion: "):
            run_config(
                read_config(tmp_path / "tiny.toml", [*CHANGES, f"criterion={other}"]),
                tmp_path / "run",
            )


def test_an_export_says_which_and_computes_what_the_run_does(run):
    opened = open_run(run)
    done = export_run(opened)
    made, tuned = done.made, done.tuned
    assert tuned
    infos = [json.loads(path.read_text()) for path in made.path.glob("*.json")]
    assert any(opened.result.criteria in _tables(info) for info in infos)
    x = opened.result.task.data.test.images[:8]
    network = load(made.path)
    with torch.no_grad():
        assert torch.equal(network(x), opened.network(opened.winner, tuned=True)(x))


def _tables(value):
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _tables(inner)


def test_reports_show_which_was_chosen_with_and_without_the_network(run, tmp_path):
    result = call("report", run)
    assert result.exit_code == 0, result.output
    chosen = open_run(run).result.criteria
    text = (run / "report.md").read_text()
    assert "| layer | level | channels | criterion |" in text
    plain = json.loads((run / "report.json").read_text())
    assert plain["criteria"] == chosen
    for name, label in chosen.items():
        assert any(
            line.startswith(f"| {name} |") and line.endswith(f"| {label} |")
            for line in text.splitlines()
        )
    found = gather(run, measure=False)
    names = [layer.name for layer in found.widths.layers]
    shown = dict(zip(names, found.widths.criteria["response_surface"], strict=True))
    assert shown == {**dict.fromkeys(names, ""), **chosen}
    assert not any("criterion of" in name for name in names)
    assert not any("criterion of" in effect.name for effect in found.sensitivity.effects)

    def nowhere(config):
        raise DataError("not at hand")

    bare = gather(run, load=nowhere)
    assert bare.run is None
    assert [layer.name for layer in bare.widths.layers] == names
    assert bare.widths.criteria == {"response_surface": found.widths.criteria["response_surface"]}
    assert bare.widths.kept["response_surface"] == found.widths.kept["response_surface"]
    assert len(bare.best.median) == len(names)
    page = (run / "report.html").read_text()
    assert "criterion of the winner" in page
    shutil.copytree(run, tmp_path / "other")
    compared = call("compare", run, tmp_path / "other", "--out", tmp_path / "compared.html")
    assert compared.exit_code == 0, compared.output
    page = (tmp_path / "compared.html").read_text()
    for name, (kept, _) in open_run(run).result.widths.items():
        assert name not in chosen or f"{kept}, {chosen[name]}" in page


def test_a_damaged_number_of_a_criterion_is_shown_as_none(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    # Of three
    rewrite(folder / "run.json", lambda record: record["settings"].update(criterion=NAMES[:2]))

    def nowhere(config):
        raise DataError("not at hand")

    shown = gather(folder, load=nowhere).widths.criteria["response_surface"]
    assert set(shown) <= {*NAMES[:2], ""}


def test_runs_that_differ_in_their_criteria_are_not_alike():
    lines = unlike({"criterion": NAMES}, {"criterion": "l1"}, ("criterion",))
    assert lines == ['criterion is ["l1", "taylor", "reader_l2"] and l1']


def test_a_study_of_optuna_calls_criteria_by_their_names(run):
    result = open_run(run).result
    storage = optuna.storages.InMemoryStorage()
    for _ in range(2):  # the second finds all as they are
        mirror = OptunaMirror(storage, "name", result.task.space)
        mirror.begin(result.trials, len(result.trials))
    study = optuna.load_study(study_name="name", storage=storage)
    assert len(study.trials) == len(result.trials)
    for frozen, trial in zip(study.trials, result.trials, strict=True):
        chosen = {
            f"criterion of {name}": label
            for name, label in result.task.space.criteria(trial.candidate).items()
        }
        assert chosen.items() <= frozen.params.items()


# A network whose two layers have four channels each, of which the first two of the one and the last two of the other
# count for nothing.
def halves():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 2)
    ).eval()
    with torch.no_grad():
        model[2].weight[:, :2] = 0
        model[4].weight[:, 2:] = 0
    return model


def right(tensors, group):
    """The channels that count in both layers."""
    return np.array([0.0, 1, 2, 3] if group.name == "0" else [3.0, 2, 1, 0])


def wrong(tensors, group):
    """The others."""
    return -right(tensors, group)


def first(tensors, group):
    """Right of the first layer, wrong of the second."""
    return right(tensors, group) if group.name == "0" else wrong(tensors, group)


def second(tensors, group):
    """The other way round."""
    return -first(tensors, group)


@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        ([wrong, right], {"0": "right", "2": "right"}),
        ([second, first], {"0": "first", "2": "second"}),
    ],
)
@pytest.mark.parametrize(
    "searcher", ["response_surface", {"name": "bee_colony", "n_sources": 4}, "random"]
)
def test_a_search_finds_the_criterion_that_is_right_by_construction(
    criteria, expected, searcher, tmp_path
):
    """LFPC's toy: one criterion is an oracle, the other its complement; here of real slices of a network."""
    model = halves()
    draws = torch.Generator().manual_seed(0)
    images, labels = torch.randn(60, 1, 6, 6, generator=draws), torch.arange(60) % 2
    data = Data.from_tensors((images[:40], labels[:40]), (images[40:], labels[40:]), validation=0.5)
    graph = trace_channels(model, images[:1])
    ranking = rank_channels(model, graph, criteria)
    with torch.no_grad():
        wanted = model(images)

    def error(candidate, seed):
        with torch.no_grad():
            found = slice_model(model, graph, candidate, ranking)(images)
        return Evaluation(fitness=-float((found - wanted).abs().max()))

    options = {
        "budget": Budget(macs=0.5),
        "n_trials": 24,
        "run_dir": tmp_path / "run",
        "searcher": searcher,
    }
    space = SpaceOptions(alpha=0.75, step=0.25)
    result = search(model, data, evaluator=error, criterion=criteria, space=space, **options)
    assert result.best.fitness == pytest.approx(0, abs=1e-5)
    found = {name: label.rpartition(":")[2] for name, label in result.criteria.items()}
    assert found == expected
    assert set(result.settings.criterion) == set(ranking.criteria)
    again = resume(tmp_path / "run", model=model, data=data, evaluator=error, n_trials=26)
    assert [trial.candidate for trial in again.trials[:24]] == [
        trial.candidate for trial in result.trials
    ]


def test_criteria_without_a_name_are_asked_for_again(tiny_model, tiny_data, tmp_path):
    def inner(tensors, group):
        return right(tensors, group) if group.channels == 4 else np.arange(group.channels)

    options = {
        "budget": Budget(macs=0.6),
        "n_trials": 3,
        "searcher": "random",
        "run_dir": tmp_path / "run",
    }
    search(tiny_model, tiny_data, **options, criterion=["l1", inner])
    with pytest.raises(RunError, match=r"pass the same ones: resume\(.*, criterion=...\)"):
        resume(tmp_path / "run", model=tiny_model, data=tiny_data)
    found = resume(
        tmp_path / "run", model=tiny_model, data=tiny_data, criterion=["l1", inner], n_trials=4
    )
    assert len(found.trials) == 4


class Alone(Preparation):
    """Ranks by a criterion of its own."""

    def prepare(self, task, trainer):
        source = Sliced(task.base, task.graph, rank_channels(task.base, task.graph, "l2"))
        return Prepared(source=source)


def test_preparations_that_rank_by_one_criterion_are_refused(tiny_model, tiny_data, tmp_path):
    options = {
        "budget": Budget(macs=0.6),
        "n_trials": 3,
        "criterion": ["l1", "l2"],
        "searcher": "random",
    }
    with pytest.raises(
        PreparationError, match="ranks channels by the scales that it trains, so criteria cannot"
    ):
        search(tiny_model, tiny_data, **options, prepare="slimming", run_dir=tmp_path / "a")
    with pytest.raises(
        PreparationError, match="preparation Alone ranks channels by l2 alone, and the space has 2"
    ):
        search(tiny_model, tiny_data, **options, prepare=Alone(), run_dir=tmp_path / "b")


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        ([], "the list is empty"),
        (["l1", "l1"], "'l1' is there 2 times, once is enough"),
        (["l1", "taylr"], "unknown criterion 'taylr'; did you mean 'taylor'"),
        (["l1", "nowhere:criterion"], "cannot be imported"),
        ([{"name": "l1"}, "l2"], "criterion"),
        (["l1", 5], "criterion"),
    ],
)
def test_lists_with_a_mistake_are_refused_before_anything_is_written(
    criterion, words, tiny_model, tiny_data, tmp_path
):
    options = {
        "budget": Budget(macs=0.6),
        "n_trials": 3,
        "run_dir": tmp_path / "run",
        "searcher": "random",
    }
    with pytest.raises(AbcSearchError, match=words):
        search(tiny_model, tiny_data, **options, criterion=criterion)
    assert not (tmp_path / "run").exists()


def test_inspect_says_how_the_space_grows(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY_CONFIG)
    plain = call("inspect", tmp_path / "tiny.toml").output
    several = call("inspect", tmp_path / "tiny.toml", "--set", 'criterion=["l1", "refit"]').output
    assert "structures in the space\n" in plain
    before = plain.rpartition(" structures in the space")[0].rpartition("\n")[2]
    assert f"in the space: {before} structures, and a criterion per group of l1, refit" in several
