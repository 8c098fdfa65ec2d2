"""What networks were fine-tuned with: compared, said, and asked for again."""

import json
import shlex
import shutil
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from abcsearch import cli
from abcsearch.config import parse_recipe, read_config
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.open_run import open_run
from abcsearch.results.report import make_report
from abcsearch.runs.config_run import run_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.recipes import changed, filled, finetune_command
from abcsearch.training.recipe import Recipe
from tests.conftest import TINY_CONFIG
from tests.records import rewrite

pytestmark = pytest.mark.usefixtures("no_pictures")

recipes = st.builds(
    Recipe,
    epochs=st.integers(1, 99),
    lr=st.floats(1e-5, 1),
    flip=st.booleans(),
    schedule=st.sampled_from(["cosine", "step"]),
    milestones=st.sampled_from([(0.5, 0.75), (0.3,)]),
)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A small run, fine-tuned with its own recipe."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "tiny.toml").write_text(TINY_CONFIG)
    run_config(read_config(folder / "tiny.toml", ["n_trials=10"]), folder / "run")
    finetune_run(open_run(folder / "run"))
    return folder / "run"


def stopped(tuned, folder, *names):
    """A copy in which a second fine-tuning, of 2 epochs, has come as far as these structures."""
    shutil.copytree(tuned, folder)
    for name in names:
        path = folder / "finetuned" / f"{name}.json"
        rewrite(path, lambda scores: scores["recipe"].update(epochs=2))
    return folder


@given(recipes, recipes)
def test_the_command_asks_for_the_very_recipe(one, usual):
    parts = shlex.split(finetune_command("a run", asdict(one), asdict(usual)))
    assert parts[:3] == ["abcsearch", "finetune", "a run"]
    assert set(parts[3::2]) <= {"--set"}
    assert parse_recipe(parts[4::2], usual) == one
    assert len(parts[4::2]) == len(changed(asdict(one), asdict(usual)))


def test_only_what_differs_is_named_and_older_files_lack_what_came_later():
    usual = filled(asdict(Recipe()))
    assert changed({**usual, "epochs": 20, "keep": "best"}, usual) == (
        "epochs 20, not 30",
        "keep best, not last",
    )
    assert changed({"epochs": 30}, usual) == ()


def test_one_recipe_for_all_is_said_only_where_it_is_so(tuned, tmp_path):
    assert "Fine-tuned: 1 epoch with one recipe for all." in make_report(open_run(tuned)).notes[0]
    folder = stopped(tuned, tmp_path / "half", "bee_colony", "full")
    report = make_report(open_run(folder))
    note = report.notes[0]
    assert "one recipe" not in note
    assert "uniform: epochs 1, not 2. random: epochs 1, not 2" in note
    assert f"abcsearch finetune {folder} --set epochs=2" in note
    rows = {row.network: row for row in report.rows}
    assert rows["uniform"].after is rows["random"].after is None
    assert None not in (rows["full"].after, rows["bee_colony"].after, rows["uniform"].before)
    assert "after" in rows["uniform"].tests["top1"]  # report.json keeps it
    cells = {row[0]: row[-1] for row in report.cells()}
    assert (cells["uniform"], cells["random"]) == ("-", "-")
    assert "%" in cells["full"]
    assert note in report.markdown()


def test_networks_that_are_not_fine_tuned_are_no_mistake(tuned, tmp_path):
    folder = tmp_path / "one"
    shutil.copytree(tuned, folder)
    for path in [*folder.glob("finetuned/full.*"), *folder.glob("finetuned/uniform.*")]:
        path.unlink()
    note = make_report(open_run(folder)).notes[0]
    assert (
        f"Fine-tuned: 1 epoch with one recipe; not yet: full, uniform (abcsearch finetune {folder})."
        in note
    )
    done = CliRunner().invoke(cli.app, ["finetune", str(folder), "--only", "full"])
    assert done.exit_code == 0, done.output
    assert "full: test top1" in done.output
    assert "bee_colony: test" not in done.output


def test_the_page_names_the_recipe_that_was_used(tuned, tmp_path):
    folder = stopped(tuned, tmp_path / "half", "bee_colony", "full", "random")
    result = CliRunner().invoke(cli.app, ["report", str(folder)])
    assert result.exit_code == 0, result.output
    page = (folder / "report.html").read_text()
    assert "abcsearch finetune NEW_FOLDER --set epochs=2" in page
    loading = page[page.index("How to load the network") :]
    # It has been
    assert "abcsearch finetune" not in loading[: loading.index("from abcsearch import load")]
    assert "uniform: epochs 1, not 2" in page
    assert "uniform: epochs 1, not 2" in result.output
    made = json.loads((folder / "report.json").read_text())
    assert made["recipe"]["epochs"] == 2
    assert [row["otherwise"] for row in made["rows"]] == [[], ["epochs 1, not 2"], [], []]


def test_a_winner_that_is_not_fine_tuned_is_said(tuned, tmp_path):
    folder = stopped(tuned, tmp_path / "none")
    for path in folder.glob("finetuned/bee_colony.*"):
        path.unlink()
    note = make_report(open_run(folder)).notes[0]
    status = CliRunner().invoke(cli.app, ["status", str(folder)]).output
    assert "finished; fine-tuned: full, random, uniform" in " ".join(status.split())
    assert f"bee_colony not yet (abcsearch finetune {folder})" in note
    assert "one recipe" not in note


def test_compare_warns_of_winners_of_other_recipes(tuned, tmp_path):
    folder = stopped(tuned, tmp_path / "other", "bee_colony")
    out = tmp_path / "compare.html"
    result = CliRunner().invoke(cli.app, ["compare", str(tuned), str(folder), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "were fine-tuned by different recipes" in result.output
    assert "other has epochs 2, not 1" in result.output
    assert f"abcsearch finetune {RunFolder(folder).path}\n" in result.output
    shutil.copytree(tuned, tmp_path / "same")
    result = CliRunner().invoke(
        cli.app, ["compare", str(tuned), str(tmp_path / "same"), "--out", str(out)]
    )
    assert "different recipes" not in result.output
