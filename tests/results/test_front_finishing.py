"""Fine-tuning, status, report and export of several budgets at once."""

import json
import math
import re
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from abcsearch.cli import app
from abcsearch.exporting import load
from abcsearch.results.front_answer import Standing, answer, interval, smallest_within
from abcsearch.results.front_pairs import Pair, pairs_text
from abcsearch.results.intervals import difference
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import read_journal
from tests.conftest import TINY_CONFIG

NAMES = ("1-macs-0.7", "2-macs-0.4")


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("front") / "front.toml"
    text = TINY_CONFIG.replace("budget = {macs = 0.5}", "budgets = [{macs = 0.7}, {macs = 0.4}]")
    text += 'peers = [{name = "of others", macs = 0.5, accuracy = 0.9}]\n'
    path.write_text(
        text.replace("n_trials = 24", "n_trials = 6").replace('"uniform", "random"', '"uniform"')
    )
    return path


@pytest.fixture(scope="module")
def searched(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched") / "run"
    said("search", config, "--run-dir", folder)
    return folder


@pytest.fixture(scope="module")
def tuned(searched, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "run"
    shutil.copytree(searched, folder)
    said("finetune", folder)
    return folder


def test_search_prints_the_winners_and_status_says_what_comes_next(searched):
    assert re.findall(r"\d-macs-0\.\d", said("status", searched)) == list(NAMES)
    assert f"searches finished; next: abcsearch finetune {searched}" in said("status", searched)
    plain = json.loads(said("status", searched, "--json"))
    assert list(plain["budgets"]) == list(NAMES)
    assert plain["evaluations"] == sum(
        own["searches"][0]["evaluated"] for own in plain["budgets"].values()
    )
    assert said("status", searched, "--watch").count("\n") >= len(NAMES)


def test_every_winner_is_fine_tuned_and_the_full_network_once(tuned):
    files = [tuned / "budgets" / name / "finetuned" / "full.safetensors" for name in NAMES]
    assert files[0].samefile(files[1])
    winners = [json.loads(path.with_name("bee_colony.json").read_text()) for path in files]
    assert winners[0]["candidate"] != winners[1]["candidate"]
    output = said("finetune", tuned)  # nothing is left to do
    assert "fine-tuning" not in output
    assert (
        len(
            re.findall(
                r"^\d-macs-0\.\d, (?:full|uniform|bee_colony): test top1 .* -> ",
                output,
                re.MULTILINE,
            )
        )
        == 6
    )


def test_fine_tuning_that_was_stopped_goes_on(searched, tuned, tmp_path):
    shutil.copytree(searched, tmp_path / "run")
    own = tmp_path / "run" / "budgets" / NAMES[1] / "finetuned"
    own.mkdir()
    # Its scores were to come
    shutil.copy(tuned / "budgets" / NAMES[1] / "finetuned" / "full.safetensors", own)
    said("finetune", tmp_path / "run")
    for name in NAMES:
        for kind in ("bee_colony", "full", "uniform"):
            files = [
                place / "budgets" / name / "finetuned" / f"{kind}.json"
                for place in (tmp_path / "run", tuned)
            ]
            ours, theirs = (json.loads(path.read_text()) for path in files)
            assert (ours["weights"], ours["after"]) == (theirs["weights"], theirs["after"])


def test_the_report_has_the_curve_and_the_answer(tuned, tmp_path):
    output = said("report", tuned, "--out", tmp_path / "page.html", "--loss", "100")
    report = json.loads((tmp_path / "page.json").read_text())
    kinds = [(row["budget"], row["kind"]) for row in report["rows"]]
    assert (kinds[0], kinds[-1]) == (("", "full"), ("of others", "peer"))
    assert report["rows"][-1]["macs"] == round(report["rows"][0]["macs"] / 2)
    assert sorted(kinds[1:-1]) == sorted(
        (name, kind) for name in NAMES for kind in ("winner", "uniform")
    )
    winners = [row for row in report["rows"] if row["kind"] == "winner"]
    assert [row["macs"] for row in winners] == sorted(
        (row["macs"] for row in winners), reverse=True
    )
    smallest = winners[-1]
    told = f"{smallest['budget']} with {smallest['macs']:,} MACs"
    assert f"At a loss of at most 100 points: {told}" in output
    assert "(test, after fine-tuning)" in output
    assert told in said("status", tuned, "--loss", "100")
    page = (tmp_path / "page.html").read_text()
    for text in (
        "Accuracy and MACs",
        "Accuracy and measured time",
        "test top1, fine-tuned",
        *NAMES,
    ):
        assert text in page
    assert {path.name for path in (tmp_path / "page").iterdir()} == {"macs.png", "time.png"}
    assert (
        (tmp_path / "page.md")
        .read_text()
        .startswith("# small_resnet on digits: bee_colony, 2 budgets, 6 trials each")
    )


def test_without_fine_tuning_it_is_fitness_and_says_so(searched, tmp_path):
    output = said("report", searched, "--out", tmp_path / "page.html")
    assert "search-validation, before fine-tuning: fitness" in output
    assert f"Not all winners are fine-tuned: abcsearch finetune {searched}" in output


def test_exports_are_a_folder_for_each_budget_or_one_by_name(tuned, tmp_path):
    said("export", tuned, "--out", tmp_path / "all")
    sizes = [sum(p.numel() for p in load(tmp_path / "all" / name).parameters()) for name in NAMES]
    budgets = json.loads(said("status", tuned, "--json"))["budgets"]
    assert sizes == [budgets[name]["searches"][0]["best"]["evaluation"]["params"] for name in NAMES]
    for budget in ("2", NAMES[1]):
        said("export", tuned, "--budget", budget, "--out", tmp_path / budget / "one")
        assert sum(p.numel() for p in load(tmp_path / budget / "one").parameters()) == sizes[1]
    assert "unknown budget '3'" in call("export", tuned, "--budget", "3").output
    assert (
        "is one file for 2 budgets" in call("export", tuned, "--out", tmp_path / "net.onnx").output
    )


def test_options_of_several_budgets_are_refused_for_one(tuned, searched):
    own = tuned / "budgets" / NAMES[0]
    assert "--loss 2 asks which of several budgets" in call("status", own, "--loss", "2").output
    assert (
        "--budget 1 chooses one of several budgets" in call("export", own, "--budget", "1").output
    )
    assert (
        "in points of accuracy, from 0 to 100, found -1"
        in call("status", tuned, "--loss", "-1").output
    )
    assert "is the folder of several budgets" in call("compare", tuned, own).output


def test_an_unfinished_front_is_continued_first(searched, tmp_path):
    shutil.copytree(searched, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "budgets" / NAMES[1])
    for command in ("finetune", "export"):
        result = call(command, tmp_path / "run")
        assert f"the search of {NAMES[1]} in" in result.output
        assert f"abcsearch resume {tmp_path / 'run'}" in result.output
    assert f"{NAMES[1]}: not begun" in said("status", tmp_path / "run")
    assert f"Not begun yet: {NAMES[1]}" in said(
        "report", tmp_path / "run", "--out", tmp_path / "page.html"
    )


def test_the_smallest_within_a_loss_is_that():
    draws = np.random.default_rng(0)
    for _ in range(200):
        own = [
            Standing(
                name=str(i), macs=int(draws.integers(1, 50)), accuracy=float(draws.uniform(0.5, 1))
            )
            for i in range(5)
        ]
        full, loss = float(draws.uniform(0.5, 1)), float(draws.uniform(0, 20))
        found = smallest_within(full, own, loss)
        inside = [one for one in own if one.accuracy >= full - loss / 100 - 1e-9]
        assert (found is None) == (not inside)
        assert found is None or found.macs == min(one.macs for one in inside)


def test_the_interval_holds_for_accuracies_of_independent_images():
    draws, images, p, q = np.random.default_rng(0), 500, 0.9, 0.85
    ones, others = (draws.binomial(images, share, 4000) / images for share in (p, q))
    covered = [
        abs((a - b) - (p - q)) <= interval(a, b, images) for a, b in zip(ones, others, strict=True)
    ]
    assert math.isclose(np.mean(covered), 0.95, abs_tol=0.015)


def test_the_answer_names_data_doubt_and_the_nearest():
    own = [
        Standing(name="a", macs=2000, accuracy=0.90),
        Standing(name="b", macs=1000, accuracy=0.85),
    ]
    told = answer(0.905, own, loss=1, images=1000, split="test, after fine-tuning")
    assert told.startswith(
        "at a loss of at most 1 point: a with 2,000 MACs, 90.00 % against 90.50 % of the full network"
    )
    assert told.endswith(
        "on 1,000 images (test, after fine-tuning); on so few images it may be more"
    )
    assert "no winner; the nearest is a" in answer(0.99, own, loss=1, images=1000, split="test")
    assert "may be more" not in answer(0.90, own, loss=20, images=10**6, split="test")


def test_status_answers_once_all_winners_are_fine_tuned_and_says_what_answers_before(
    searched, tuned, tmp_path
):
    asked = "at a loss of at most 30 points: "
    assert f"{asked}answered here once" in said("status", searched, "--loss", 30)
    assert f"abcsearch report {searched} --loss 30" in said("status", searched, "--loss", 30)
    shutil.copytree(tuned, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "budgets" / NAMES[1] / "finetuned")
    assert f"{asked}answered here once" in said("status", tmp_path / "run", "--loss", 30)
    assert "of the full network" in said("status", tuned, "--loss", 30)


def test_status_and_report_count_the_same_evaluations(config, tmp_path):
    said("search", config, "--run-dir", tmp_path / "run", "--set", 'baselines=["random"]')
    counted = r"(\d+) evaluations in all"
    told = [
        re.findall(counted, said(command, tmp_path / "run")) for command in ("status", "report")
    ]
    assert told[0] == told[1]


def pair(smaller, larger, change, *ends):
    return Pair(smaller=smaller, larger=larger, change=change, ends=ends or None)


def test_a_smaller_winner_is_as_good_only_beyond_the_interval():
    alike = "b cannot be told apart from a on these images, and is smaller."
    for change in (0.002, 0.0, -0.002):  # an image more or less of 500
        assert pairs_text([pair("b", "a", change, change - 0.02, change + 0.02)]) == alike
    better = [pair("b", "a", 0.1, 0.05, 0.15), pair("c", "a", -0.1, -0.15, -0.05)]
    assert pairs_text(better) == "b is at least as good as a, and smaller."
    told = pairs_text([better[0], pair("c", "a", 0.0, -0.1, 0.1), pair("c", "b", 0.0, -0.1, 0.1)])
    assert told == (
        "b is at least as good as a, and smaller; "
        "c cannot be told apart from a and b on these images, and is smaller."
    )
    unknown = pairs_text([pair("b", "a", 0.1), pair("c", "a", -0.1)])
    assert unknown == "b scores no less than a, and is smaller; whether by chance is not known."
    assert not pairs_text(better[1:])


def test_all_that_is_said_of_a_front_says_how_sure_each_winner_is(config, searched, tmp_path):
    outputs = [
        said("search", config, "--run-dir", searched),
        said("status", searched),
        said("status", searched, "--watch"),
        said("report", searched, "--out", tmp_path / "page.html"),
        (tmp_path / "page.md").read_text(),
        (tmp_path / "page.html").read_text(),
        (tmp_path / "page.json").read_text(),
    ]
    for name in NAMES:
        decisions = read_journal(searched / "budgets" / name / "journal.jsonl").decisions
        for output in outputs:
            assert decisions[6].words in output
    assert all(f"{NAMES[0]}: the best" in outputs[index] for index in (0, 3, 4, 5, 6))


def test_winners_are_compared_on_the_same_images(searched, tuned, tmp_path):
    said("report", searched, "--out", tmp_path / "before.html")
    said("report", tuned, "--out", tmp_path / "after.html")
    before, after = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("before", "after")
    )
    (fitness,), (test,) = before["pairs"], after["pairs"]
    sizes = {row["budget"]: row["macs"] for row in before["rows"] if row["kind"] == "winner"}
    names = sorted(NAMES, key=sizes.__getitem__, reverse=True)
    assert [fitness["larger"], fitness["smaller"]] == [test["larger"], test["smaller"]] == names
    journals = [read_journal(searched / "budgets" / name / "journal.jsonl") for name in names]
    winners = [journal.decisions[6].winner for journal in journals]
    means = [
        np.array(journal.groups[trial.number])
        for journal, trial in zip(journals, winners, strict=True)
    ]
    half = 2 * np.std(means[1] - means[0], ddof=1) / math.sqrt(len(means[0]))
    change = winners[1].fitness - winners[0].fitness
    assert fitness["change"] == pytest.approx(change)
    assert fitness["ends"] == pytest.approx([change - half, change + half])
    scores = [
        json.loads((tuned / "budgets" / name / "finetuned" / "bee_colony.json").read_text())
        for name in names
    ]
    shares = [one["after"]["top1"] for one in scores]
    images = after["images"][0]
    one = difference("top1", ("", shares[1], scores[1]), ("", shares[0], scores[0]), images)
    assert one.paired
    assert test["change"] == pytest.approx(shares[1] - shares[0])
    assert test["ends"] == pytest.approx([one.low, one.high])
    for report in (before, after):
        low, high = report["pairs"][0]["ends"]
        text = "\n".join(report["notes"])
        assert ("at least as good as" in text) == (low > 0)
        assert (f"{names[1]} cannot be told apart from {names[0]}" in text) == (low <= 0 <= high)


def test_winners_of_other_recipes_are_not_compared(tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "run")
    folder, name = RunFolder(tmp_path / "run" / "budgets" / NAMES[1]), "finetuned/bee_colony.json"
    scores = folder.read_json(name)
    for key in {"recipe", "asked"} & scores.keys():
        scores[key]["epochs"] += 1
    folder.write_json(name, scores)
    said("report", tmp_path / "run", "--out", tmp_path / "page.html")
    report = json.loads((tmp_path / "page.json").read_text())
    assert report["tuned"]
    assert not report["pairs"]
