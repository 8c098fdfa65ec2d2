"""Incomplete and wrong settings in run.json: a message that names what is missing, never an error of ours."""

import re
import shutil

import pytest
from safetensors.torch import save

from abcsearch.runs.disk.weights import load_tensors
from tests import headers
from tests.mutations import call, quick


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with quick():
        return headers.made(tmp_path_factory.mktemp("headers"))


def test_every_key_missing_or_wrong_is_no_error_of_ours(run):
    """Each key once, in one of the ways in turn; `make test-faults` tries them all with all commands."""
    folder, header = run
    for share, commands in ((1, ["status"]), (6, ["report"]), (5, ["resume"])):
        cases = []
        for number, path in enumerate(headers.keys(header)):
            ways = list(headers.wrong(header, path))
            if number % share == 0:
                cases.append((path, ways[(7 * number + share) % len(ways)]))
        with quick():
            assert not headers.failures(folder, header, cases, commands)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("settings.n_trials", headers.DELETED, "settings.n_trials is missing"),
        ("settings.searcher", headers.DELETED, "settings.searcher is missing"),
        ("settings.searcher.name", 5, "settings.searcher.name is a text, found 5"),
        ("settings.seed", True, "settings.seed is a whole number, found True"),
        ("settings.baselines", [1], "settings.baselines is a list of texts, found [1]"),
        ("environment.started", headers.DELETED, "environment.started is missing"),
        ("settings", headers.DELETED, "settings missing or wrong"),
        ("format", "1", "format missing or wrong"),
    ],
)
def test_what_is_missing_is_named_with_the_file(run, path, value, words):
    folder, header = run
    before = (folder / "run.json").read_text()
    (folder / "run.json").write_text(headers.changed(header, path.split("."), value))
    for command in (["status"], ["status", "--json"], ["report"]):
        status, text = call(command[0], folder, *command[1:])
        assert status == 2
        assert f"error: {folder / 'run.json'} is damaged: " in text
        assert words in text
    (folder / "run.json").write_text(before)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("settings.wonder", 1, "settings: got an unexpected keyword argument 'wonder'"),
        ("settings.space.wonder", 1, "space: "),
        ("settings.n_trials", 0, "n_trials is at least 1, found 0"),
        ("settings.criterion", 3, "criterion is a name, or a list of names, found 3"),
        ("settings.data.name", None, "data: a part is a name and a table of options, found None"),
        ("settings.model.options", [], "model: a model is a name, a table of options"),
        ("settings.baselines", ["uniform", "best"], "unknown baseline"),
        ("settings.finetune", None, "finetune: "),
    ],
)
@pytest.mark.parametrize("command", ["resume", "finetune", "export"])
def test_settings_that_are_unknown_here_are_named_with_the_file(run, path, value, words, command):
    folder, header = run
    before = (folder / "run.json").read_text()
    (folder / "run.json").write_text(headers.changed(header, path.split("."), value))
    status, text = call(command, folder)
    (folder / "run.json").write_text(before)
    assert status == 2
    assert f"error: {folder / 'run.json'} has settings " in text
    assert words in text


@pytest.mark.parametrize("command", ["status", "resume", "finetune", "report", "export", "compare"])
def test_what_is_no_run_folder_is_told_with_its_command(run, command, tmp_path):
    folder, _ = run
    for name in ("export/plan.json", "model.onnx", "notes.txt", "c.toml", "lost/journal.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    for name, words in (
        (
            "c.toml",
            f"is a config, not a run folder; start or continue its run with: abcsearch search {tmp_path}/c.toml",
        ),
        (
            "export",
            f"is an export, not a run folder; measure it with: abcsearch evaluate {tmp_path}/export",
        ),
        ("model.onnx", "is an export, not a run folder"),
        ("notes.txt", "is a file, not a run folder"),
        ("lost", "it was a run: restore run.json from a copy"),
    ):
        status, text = call(command, *([folder] if command == "compare" else []), tmp_path / name)
        assert (status, text.count("error: ")) == (2, 1)
        assert f"error: {tmp_path / name} {words}" in re.sub(
            r"\(it has no run.json\); ", "", text
        ).replace("is not a run folder it was", "it was")
    status, text = call(command, *([folder] if command == "compare" else []), folder / "baselines")
    assert status == 2
    assert f"the run folder is {folder}" in text


@pytest.mark.parametrize("command", ["status", "report", "compare"])
@pytest.mark.parametrize("name", ["seed", "budgets/1-macs"])
def test_a_folder_of_runs_names_them(run, command, tmp_path, name):
    """What `--seeds` leaves, a folder with a run folder for each, and several budgets without their front.json."""
    folder, runs = run[0], tmp_path / "of seeds"
    for seed in range(7):
        (runs / f"{name}-{seed}").mkdir(parents=True)
        shutil.copy(folder / "run.json", runs / f"{name}-{seed}")
    status, text = call(command, *([folder] if command == "compare" else []), runs)
    named = ", ".join(f"'{runs}/{name}-{seed}'" for seed in range(5))
    assert status == 2
    assert (
        f"error: {runs} is not a run folder, but holds some: {named} and 2 more; name these" in text
    )


def test_a_run_folder_is_no_config(run):
    status, text = call("search", run[0])
    assert status == 2
    assert (
        f"{run[0]} is a run folder, not a config; continue its run with: abcsearch resume {run[0]}"
        in text
    )


def test_a_report_says_that_the_random_baseline_is_not_finished(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    with quick():
        assert "not finished" not in call("report", folder)[1]
        journal = folder / "baselines/random/journal.jsonl"
        lines = journal.read_bytes().splitlines(keepends=True)
        last = max(place for place, line in enumerate(lines) if b'"event"' not in line)
        journal.write_bytes(b"".join(lines[:last]))
        note = f"The random baseline is not finished, 3 of 4 trials: abcsearch resume {folder}"
        status, text = call("report", folder)
    assert status == 0
    assert note in text
    assert note in (folder / "report.html").read_text()


def test_damaged_base_weights_are_told_with_what_deleting_them_leads_to(run, tmp_path):
    """Also without a checksum, as in old files: the run knows the hash of what it began with."""
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    base = folder / "base.safetensors"
    whole, weights = base.read_bytes(), load_tensors(base)
    weights["conv.weight"][0, 0, 0, 0] += 1
    again = "delete it: it is then loaded from the checkpoint, or trained again with the same result, by: abcsearch resume"
    for damaged, words in (
        (whole[:-1], "is damaged: "),
        (
            whole[:-1] + bytes([whole[-1] ^ 1]),
            "is damaged: its checksum is not that of its content; ",
        ),
        (save(weights), "are others than those that the run began with; "),
    ):
        base.write_bytes(damaged)
        for command in ("resume", "finetune", "export"):
            status, text = call(command, folder)
            assert status == 2, text
            assert f"{base} {words}" in text
            assert f"{again} {folder}" in text
        with quick():
            assert str(base) in call("report", folder)[1]
    base.unlink()
    assert call("resume", folder)[0] == 0
    assert base.read_bytes() == whole


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_baseline_without_its_header_says_that_it_can_be_searched_again(run, tmp_path, damage):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    baseline = folder / "baselines" / "random"
    header, journal = baseline / "run.json", (baseline / "journal.jsonl").read_bytes()
    header.unlink() if damage == "missing" else header.write_text(
        header.read_text().replace("4", "5", 1)
    )
    status, text = call("resume", folder)
    assert status == 2
    assert f"delete {baseline}: this baseline is then searched again" in text
    shutil.rmtree(baseline)
    assert call("resume", folder)[0] == 0
    assert len((baseline / "journal.jsonl").read_bytes().splitlines()) == len(journal.splitlines())
