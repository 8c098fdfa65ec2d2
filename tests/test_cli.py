"""The command line: a whole job, every mistake, Ctrl-C, terminal and log."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import warnings

import pytest
import torch
from typer.testing import CliRunner

from abcsearch import UnsupportedOpWarning, cli, load
from abcsearch import __version__ as abcsearch_version
from abcsearch.catalog import KINDS, catalog
from abcsearch.cli import looking
from abcsearch.data.registry import load_data
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import read_journal
from abcsearch.searchers.registry import SEARCHERS
from abcsearch.space import Dimension, SearchSpace
from abcsearch.training.recipe import PRESETS, Recipe
from abcsearch.training.scoring import score
from tests.records import rewrite

COMMANDS = (
    "init",
    "search",
    "resume",
    "status",
    "finetune",
    "report",
    "compare",
    "export",
    "evaluate",
    "inspect",
    "list",
)


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run: searched, fine-tuned, exported, reported; with what each command printed."""
    folder = tmp_path_factory.mktemp("job")
    config = folder / "tiny.toml"
    from tests.conftest import TINY_CONFIG

    config.write_text(TINY_CONFIG)
    run = folder / "run"
    printed = {
        "search": call("search", config, "--run-dir", run),
        "finetune": call("finetune", run),
        "export": call("export", run),
        "report": call("report", run),
        "status": call("status", run),
        "resume": call("resume", run),
    }
    return run, config, printed


def test_every_command_of_a_whole_job_succeeds(finished):
    _, _, printed = finished
    assert {name: result.exit_code for name, result in printed.items()} == dict.fromkeys(printed, 0)


def test_search_prints_progress_and_the_winner(finished):
    run, _, printed = finished
    text = printed["search"].output
    best = json.loads((run / "best.json").read_text())
    assert "bee_colony: 24/24, best" in text
    assert "random baseline: 24/24" in text
    assert re.search(r"bee_colony: \d+/24, best [\d.]+.*?, \d+ s left", text)
    assert f"fitness {best['evaluation']['fitness']:.4f}" in text
    assert f"  conv: 4 => {best['candidate'][0]}" in text


def test_report_is_one_table_with_all_networks_and_columns(finished):
    run, _, printed = finished
    rows = {row["network"]: row for row in json.loads((run / "report.json").read_text())["rows"]}
    assert list(rows) == ["full", "uniform", "random", "bee_colony"]
    for name, row in rows.items():
        assert row["macs"] <= (1 if name == "full" else 0.5) * rows["full"]["macs"]
        exact = (
            f"{row['macs']:,}",
            f"{row['params']:,}",
            f"{row['fitness']:.4f}",
            f"{100 * row['after']:.2f} %",
        )
        counts = (
            f"{c / 1000:.3g} k" if c >= 1000 else str(c) for c in (row["macs"], row["params"])
        )
        short = (*counts, *exact[2:])
        assert all(cell in (run / "report.md").read_text() for cell in exact)
        assert all(cell in printed["report"].output for cell in short)
        assert row["latency_ms"] > 0


def test_report_has_the_front_of_fitness_against_macs(finished):
    run, _, printed = finished
    made = json.loads((run / "report.json").read_text())
    costs, fitness = ([point[key] for point in made["front"]] for key in ("cost", "fitness"))
    assert made["against"] == "macs"
    assert 0 < len(costs) <= 10
    assert (costs, fitness) == (sorted(set(costs)), sorted(set(fitness)))
    assert fitness[-1] == json.loads((run / "best.json").read_text())["evaluation"]["fitness"]
    point = made["front"][0]
    row = (
        str(point["trial"]),
        f"{point['cost']:,.0f} ({100 * point['share']:.3g} %)",
        f"{point['fitness']:.4f}",
    )
    assert point["share"] == point["cost"] / made["rows"][0]["macs"]
    assert f"| {' | '.join(row)} |" in (run / "report.md").read_text()
    assert all(cell in printed["report"].output for cell in row)


def test_report_of_nsga2_is_against_its_own_cost(tiny_config, tmp_path):
    sets = (
        "searcher={name = 'nsga2', population = 12, against = 'peak_activation'}",
        "baselines=[]",
        "n_trials=36",
        "evaluator.metric=neg_loss",
        "pretrain.epochs=6",
    )
    arguments = [part for change in sets for part in ("--set", change)]
    assert call("search", tiny_config, "--run-dir", tmp_path / "run", *arguments).exit_code == 0
    printed = call("report", tmp_path / "run")
    made = json.loads((tmp_path / "run" / "report.json").read_text())
    assert made["against"] == "peak_activation"
    assert f"{made['front'][0]['cost']:,.0f} bytes (" in printed.output
    assert len(made["front"]) > 1


def test_fitness_and_accuracies_of_the_report_are_those_of_the_networks(finished):
    run, _, _ = finished
    rows = {row["network"]: row for row in json.loads((run / "report.json").read_text())["rows"]}
    assert (
        rows["bee_colony"]["fitness"]
        == json.loads((run / "best.json").read_text())["evaluation"]["fitness"]
    )
    exported = load(run / "export")
    data = load_data("digits", seed=0)
    assert score(exported, data.test)["top1"] == pytest.approx(rows["bee_colony"]["after"])
    assert sum(p.numel() for p in exported.parameters()) == rows["bee_colony"]["params"]


def test_fine_tuning_again_does_nothing_and_another_recipe_does_it_again(finished):
    run, _, _ = finished
    first = (run / "finetuned" / "uniform.safetensors").stat().st_mtime_ns
    assert call("finetune", run).exit_code == 0
    assert (run / "finetuned" / "uniform.safetensors").stat().st_mtime_ns == first
    assert call("finetune", run, "--set", "lr=0.01").exit_code == 0
    assert (run / "finetuned" / "uniform.safetensors").stat().st_mtime_ns != first
    assert call("finetune", run).exit_code == 0


def test_status_reads_a_finished_and_a_running_folder(finished):
    run, _, printed = finished
    assert (run / "log.txt").read_text().count(
        "search finished"
    ) == 1  # whatever has read the run since
    assert "bee_colony: 24 of 24 trials, 0 failed, best" in printed["status"].output
    assert "baseline random: 24 of 24 trials" in printed["status"].output
    tuned = "finished; fine-tuned: bee_colony, full, random, uniform"
    assert printed["status"].output.splitlines()[-1] == f"{tuned}; next: abcsearch export {run}"
    with RunFolder(run).locked():
        assert "running now" in call("status", run).output
        refused = call("resume", run)
    assert refused.exit_code == 2
    assert "is in use by process" in refused.output


def test_json_is_for_scripts(finished, tmp_path):
    run, _, _ = finished
    status = json.loads(call("status", run, "--json").output)
    assert (status["finished"], status["running"]) == (True, False)
    assert [(search["done"], search["total"]) for search in status["searches"]] == [
        (24, 24),
        (24, 24),
    ]
    best = json.loads((run / "best.json").read_text())
    assert status["searches"][0]["best"]["candidate"] == best["candidate"]
    assert status["searches"][0]["best"]["evaluation"]["fitness"] == best["evaluation"]["fitness"]
    (line,) = call("status", run, "--watch", "--json").output.splitlines()
    assert json.loads(line) == status
    for kind in KINDS:
        assert [entry["name"] for entry in json.loads(call("list", kind, "--json").output)] == [
            entry.name for entry in catalog(kind)
        ]
    (one,) = json.loads(call("list", "searchers", "ddpg", "--json").output)
    assert one["text"] == catalog("searchers", "ddpg")[0].text
    inspected = json.loads(
        call("inspect", "resnet20", "--json", "--png", tmp_path / "widths.png").output
    )
    assert (inspected["costs"]["macs"], inspected["shape"]) == (40551040, [3, 32, 32])
    assert {group["level"] for group in inspected["groups"]} == {"filter", "stage", "block"}
    assert (tmp_path / "widths.png").stat().st_size


def test_watching_a_finished_run_ends_by_itself(finished):
    run, _, _ = finished
    watched = call("status", run, "--watch")
    assert watched.exit_code == 0
    lines = watched.output.splitlines()
    assert re.match(
        r"bee_colony: 24 of 24 trials, 0 failed, best [\d.]+ \(trial \d+, [\d,]+ MACs\)$", lines[1]
    )
    # Others of these tests may have fine-tuned it by another recipe before.
    over = re.split("; by other recipes|; next: ", lines[-1])[0]
    assert over == "finished; fine-tuned: bee_colony, full, random, uniform"


EXECUTION = ["--workers", "0", "--ray-address", 'ray://head:10001/"x"']


def test_options_of_search_reach_the_run(tiny_config, tmp_path, monkeypatch):
    read, ran = [], []
    monkeypatch.setattr(
        "abcsearch.config.read_run", lambda path, overrides: read.append(overrides) or "settings"
    )
    monkeypatch.setattr(
        "abcsearch.runs.config_run.run_config", lambda *given, **named: ran.append((given, named))
    )
    monkeypatch.setattr(cli.searching, "_print_best", lambda result: None)
    assert call("search", tiny_config, "--run-dir", tmp_path / "run").exit_code == 0
    arguments = [
        "--set",
        "n_trials=5",
        *EXECUTION,
        "--tensorboard",
        "--optuna-storage",
        tmp_path / "studies.log",
    ]
    result = call("search", tiny_config, "--run-dir", tmp_path / "run", *arguments)
    assert result.exit_code == 0, result.output
    assert read[0] == []
    plain = tomllib.loads("\n".join(read[1]))
    assert plain == {
        "n_trials": 5,
        "execution": {"workers": 0, "ray_address": 'ray://head:10001/"x"'},
    }
    assert [given for given, _ in ran] == [("settings", tmp_path / "run")] * 2
    assert ran[0][1].keys() == {"progress"}
    assert ran[1][1].keys() == {"progress", "watchers"}
    assert_watchers(ran[1][1]["watchers"], tmp_path)


def test_options_of_resume_reach_the_run(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(
        "abcsearch.runs.resuming.resume", lambda *given, **named: ran.append((given, named))
    )
    monkeypatch.setattr(cli.searching, "_print_best", lambda result: None)
    assert call("resume", tmp_path).exit_code == 0
    given = [
        *EXECUTION,
        "--until",
        "0",
        "--n-trials",
        "9",
        "--tensorboard",
        "--optuna-storage",
        tmp_path / "s.log",
    ]
    assert call("resume", tmp_path, *given).exit_code == 0
    assert call("resume", tmp_path, "--workers", "3").exit_code == 0
    assert call("resume", tmp_path, "--retry-failed", "--shorten").exit_code == 0
    assert [given for given, _ in ran] == [(tmp_path,)] * 4
    named = [
        {key: value for key, value in options.items() if key != "progress"} for _, options in ran
    ]
    assert_watchers(named[1].pop("watchers"), tmp_path)
    execution = {"workers": 0, "ray_address": 'ray://head:10001/"x"'}
    last = {"retry_failed": True, "shorten": True}
    assert named == [
        {},
        {"n_trials": 9, "until": 0, "execution": execution},
        {"execution": {"workers": 3}},
        last,
    ]


def assert_watchers(factories, path):
    """They are TensorBoard and the mirror, once made for a run folder."""

    class Task:
        space = SearchSpace((Dimension("a", "width", (1, 2)),))

    folder = RunFolder(path / "watched")
    folder.path.mkdir(exist_ok=True)
    folder.write_json("run.json", {"format": 1, "settings": {}, "identity": {}, "environment": {}})
    assert [type(make(Task(), folder)).__name__ for make in factories] == [
        "TensorBoard",
        "OptunaMirror",
    ]


@pytest.mark.parametrize("command", ["search", "resume"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--optuna-storage", "sqlite:/x.db"], "Optuna storage 'sqlite:/x.db' cannot be opened"),
        (["--workers", "-1"], "--workers"),
    ],
)
def test_wrong_options_are_answered_before_the_search(
    tiny_config, tmp_path, command, options, words
):
    run = tmp_path / "run"
    result = call(
        command, *([tiny_config, "--run-dir", run] if command == "search" else [run]), *options
    )
    assert result.exit_code == 2
    assert words in result.output
    assert not run.exists()


def test_a_search_that_ran_out_of_structures_says_so(tiny_config, tmp_path):
    sets = ("space={step = 0.5, alpha = 0.5}", "budget.macs=1.0", "searcher=random", "baselines=[]")
    arguments = [part for change in sets for part in ("--set", change)]
    searched = call("search", tiny_config, "--run-dir", tmp_path / "run", *arguments)
    assert searched.exit_code == 0, searched.output
    n = len(read_journal(tmp_path / "run" / "journal.jsonl").trials)
    assert n < 24
    assert f"all structures inside the budget are evaluated: {n}" in searched.output
    assert (
        f"finished: all structures inside the budget are evaluated: {n}"
        in call("status", tmp_path / "run").output
    )
    assert json.loads((tmp_path / "run" / "searcher.json").read_text())["exhausted"] is True


def test_searching_again_changes_nothing_and_another_run_is_refused(finished):
    run, config, _ = finished
    journal = (run / "journal.jsonl").read_bytes()
    assert call("search", config, "--run-dir", run).exit_code == 0
    refused = call(
        "search", config, "--run-dir", run, "--set", "budget.macs=0.6", "--set", "seed=3"
    )
    assert refused.exit_code == 2
    assert (
        "already holds a different run: budget.macs: 0.5 in the folder, 0.6 now; seed: 0 in the folder, 3 now"
        in (refused.output)
    )
    assert (run / "journal.jsonl").read_bytes() == journal


def test_base_network_follows_the_checkpoint(finished, tmp_path):
    run, config, _ = finished
    changes = ("--set", f"model.checkpoint={run / 'base.safetensors'}", "--set", "n_trials=4")
    text = config.read_text().replace("pretrain = {epochs = 1, batch_size = 256}\n", "")
    (tmp_path / "checkpoint.toml").write_text(text)
    assert (
        call(
            "search", tmp_path / "checkpoint.toml", "--run-dir", tmp_path / "run", *changes
        ).exit_code
        == 0
    )
    assert (tmp_path / "run" / "base.safetensors").read_bytes() == (
        run / "base.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["n_trial=5"], "unknown setting 'n_trial'; did you mean 'n_trials'?"),
        (["n_trials=0"], "n_trials is at least 1, found 0"),
        (["searcher.name=bee_colny"], "unknown searcher 'bee_colny'; did you mean 'bee_colony'?"),
        (
            ["searcher.n_source=3"],
            "unknown setting in [searcher]: 'n_source'; did you mean 'n_sources'?",
        ),
        (["evaluator.metric=top2"], "unknown metric 'top2'"),
        (["model.name=small_resnt"], "unknown model 'small_resnt'; did you mean 'small_resnet'?"),
        (["model.width=[4]"], "unknown option 'width'; did you mean 'widths'?"),
        (["model.name=no_such_module:Net"], "model 'no_such_module:Net' cannot be imported"),
        (["data.name=digit"], "unknown data set 'digit'; did you mean 'digits'?"),
        (["data.name=image_folder", "data.path=/no/such/folder"], "/no/such/folder is missing"),
        (["budget.macs=0.0001"], "cannot be reached"),
        (["budget.macs=1.5"], "a float is a fraction in (0, 1]"),
        (["budget.mac=0.5"], "unknown setting in [budget]: 'mac'; did you mean 'macs'?"),
        (["space.alpha=1.2"], "alpha is the largest keep ratio, above 0 and at most 1, found 1.2"),
        (["space.step=0"], "step"),
        (["space.fixed=['conv1']"], "unknown module in fixed 'conv1'"),
        (["criterion=l7"], "unknown criterion 'l7'"),
        (["pretrain.lr=fast"], "pretrain.lr = 'fast'"),
        (["model.checkpoint=base.pt"], "set model.checkpoint or the table [pretrain], found both"),
        (["nonsense"], "--set takes dotted.key=value, found 'nonsense'"),
        (["n_trials=1\nseed=5"], "--set changes one setting at a time"),
        (
            ["model.chekpoint=w.pt"],
            "unknown setting in [model]: 'chekpoint'; did you mean 'checkpoint'?",
        ),
        (
            ["searcher.name=random"],
            "'n_sources'; choose one of: fill; left over from another searcher? --set searcher=random replaces",
        ),
    ],
)
def test_mistakes_get_one_message_exit_2_and_leave_nothing(tiny_config, tmp_path, changes, words):
    sets = [part for change in changes for part in ("--set", change)]
    result = call("search", tiny_config, "--run-dir", tmp_path / "run", *sets)
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "run" / "run.json").exists()


def test_all_mistakes_of_a_config_at_once(tiny_config, tmp_path):
    sets = (
        "--set",
        "n_trial=5",
        "--set",
        "searcher.n_source=3",
        "--set",
        "budget.macs='half'",
        "--set",
        "pretrain.epochs=1.5",
    )
    output = call("search", tiny_config, "--run-dir", tmp_path / "run", *sets).output
    assert "has 4 mistake(s)" in output
    for words in ("'n_trial'", "'n_source'", "budget.macs = 'half'", "pretrain.epochs = 1.5"):
        assert words in output


@pytest.mark.parametrize("command", ["resume", "status", "finetune", "report", "export"])
def test_a_folder_without_a_run_is_refused(command, tmp_path):
    for folder, words in (
        (tmp_path, "is not a run folder"),
        (tmp_path / "nowhere", "does not exist"),
    ):
        result = call(command, folder)
        assert result.exit_code == 2
        assert words in result.output


def test_missing_config_and_checkpoint(tiny_config, tmp_path):
    assert "no.toml cannot be read: No such file" in call("search", tmp_path / "no.toml").output
    text = tiny_config.read_text().replace("pretrain = {epochs = 1, batch_size = 256}\n", "")
    tiny_config.write_text(text)
    other = {"conv.weight": torch.zeros(3, 3), "head.weight": torch.zeros(2)}
    torch.save(other, tmp_path / "other.pt")
    for path, words in (
        (tmp_path / "no.pt", "no.pt does not exist"),
        (tmp_path / "other.pt", "missing: bn.weight"),
        (tmp_path / "other.pt", "unexpected: head.weight"),
        (tmp_path / "other.pt", "other shapes: conv.weight (3, 3) (the model has (4, 1, 3, 3))"),
    ):
        result = call(
            "search",
            tiny_config,
            "--run-dir",
            tmp_path / "run",
            "--set",
            f"model.checkpoint={path}",
        )
        assert result.exit_code == 2
        assert words in result.output.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def test_unfinished_search_is_not_fine_tuned(tiny_config, tmp_path):
    run = tmp_path / "run"
    assert call("search", tiny_config, "--run-dir", run, "--set", "n_trials=5").exit_code == 0
    rewrite(run / "run.json", lambda header: header["settings"].update(n_trials=10))
    for command in ("finetune", "export"):
        result = call(command, run)
        assert result.exit_code == 2
        assert "is not finished; continue it with: abcsearch resume" in result.output
    assert call("resume", run).exit_code == 0
    assert call("export", run, "--format", "onx").exit_code == 2


def test_a_run_folder_is_not_inspected(finished):
    result = call("inspect", finished[0])
    assert result.exit_code == 2
    assert "is a run folder; inspect takes a config, or a network by name" in result.output
    assert f"abcsearch report {finished[0]}" in result.output


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_has_a_short_name_everywhere(command):
    assert call(*command, "-h").output == call(*command, "--help").output


def test_help_of_every_command_has_an_example():
    assert "abcsearch search experiments/digits/config.toml" in call("--help").output
    for command in COMMANDS:
        result = call(command, "--help")
        assert result.exit_code == 0
        assert f"Example: abcsearch {command}" in result.output


def script(arguments, cwd, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", "from abcsearch.cli import main; main()", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_quiet_shows_no_progress_and_verbose_the_log(tiny_config, tmp_path):
    printed = {}
    for switch in ("--quiet", "-v"):
        arguments = [
            switch,
            "search",
            tiny_config,
            "--run-dir",
            switch.strip("-"),
            "--set",
            "n_trials=6",
        ]
        process = script([*arguments, "--set", "baselines=[]"], tmp_path)
        printed[switch] = process.communicate(timeout=120)
        assert process.returncode == 0, printed
    assert printed["--quiet"][0].startswith("run folder: quiet\nbest of 6 trials")
    assert all(line.startswith("warning: ") for line in printed["--quiet"][1].splitlines())
    output, log = printed["-v"]
    assert output.startswith("run folder: v\nbest of 6 trials")
    assert output.endswith("\nnext: abcsearch finetune v\n")
    assert log.count("bee_colony: 6/6") == 1
    assert "search finished: 6 trials" in log
    assert [line[20:] for line in (tmp_path / "v" / "log.txt").read_text().splitlines()] == [
        line for line in log.splitlines() if not line.startswith("warning: set-up")
    ]


def test_the_shell_completes_commands_and_kinds(tmp_path):
    done = {}
    for words in ("abcsearch fin", "abcsearch list cri"):
        environment = {
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
            "_ABCSEARCH_COMPLETE": "complete_bash",
        }
        code = "import sys; sys.argv = ['abcsearch']; from abcsearch.cli import main; main()"
        done[words] = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()
    assert done == {"abcsearch fin": ["finetune"], "abcsearch list cri": ["criteria"]}
    assert looking.KINDS == KINDS


HEAVY = ("torch", "sklearn", "scipy", "optuna", "pandas", "ray", "plotly", "matplotlib")


def test_help_imports_nothing_heavy(tmp_path):
    code = f"import sys; from abcsearch import cli; print([m for m in {(*HEAVY, 'numpy')} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_lists_are_there_without_torch(tmp_path):
    """Searchers come last: of their options, Optuna's are those of its samplers."""
    code = f"""
import sys
from typer.testing import CliRunner
from abcsearch import cli
assert "abcsearch list searchers" in CliRunner().invoke(cli.app, ["list"]).output
for kind in {[*(kind for kind in KINDS if kind != "searchers"), "searchers"]}:
    loaded = [m for m in {HEAVY} if m in sys.modules]
    done = CliRunner().invoke(cli.app, ["list", kind])
    assert done.exit_code == 0, done.output
    assert not loaded, (kind, loaded)
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "signals", [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT, signal.SIGINT)], ids=str
)
def test_ctrl_c_saves_and_exits_130_and_resume_finishes(tiny_config, tmp_path, signals):
    process = script(
        ["search", tiny_config, "--run-dir", "run", "--set", "n_trials=4000"], tmp_path
    )
    journal = tmp_path / "run" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while (not journal.exists() or journal.stat().st_size < 2000) and time.monotonic() < deadline:
        time.sleep(0.05)
    for number in signals:
        process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "what is under way is dropped, the rest is saved" in errors
    assert "continue with: abcsearch resume run" in errors or len(signals) > 1
    assert "Traceback" not in errors
    assert "not running" in call("status", tmp_path / "run").output
    done = journal.read_bytes()
    assert done.endswith(b"\n")


def test_debug_shows_the_traceback_and_internal_errors_exit_1(tmp_path, monkeypatch):
    process = script(["status", "nowhere", "--debug"], tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Traceback" in errors

    def broken(path):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("abcsearch.runs.disk.folder.RunFolder.header", broken)
    result = call("status", tmp_path)
    assert result.exit_code == 1
    assert (
        "internal error: ZeroDivisionError: ours; please report it with what --debug prints"
        in result.output
    )


def test_own_model_by_import_path_from_the_working_directory(tiny_config, tmp_path):
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n"
        "def net(width=8):\n"
        "    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 8, 3),\n"
        "                         nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))\n"
    )
    text = tiny_config.read_text().replace(
        '{name = "small_resnet", widths = [4, 6], depths = [1, 1]}',
        '{name = "mynet:net", width = 12}',
    )
    tiny_config.write_text(text)
    for arguments in (
        ["search", tiny_config, "--run-dir", "run", "--set", "n_trials=5"],
        ["export", "run"],
    ):
        process = script(arguments, tmp_path)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, output + errors
    plan = json.loads((tmp_path / "run" / "export" / "plan.json").read_text())
    assert plan["constructor"] == {"name": "mynet:net", "options": {"width": 12}}


NETS = """
from torch import nn

class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 10, 3)
    def forward(self, x):
        out = self.conv(x)
        return out.view(-1, 7)  # the line to name

class Mixes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 10, 3)
    def forward(self, x):
        return self.last(self.conv(x).cumsum(1)).mean(dim=(2, 3))
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Fails", ("Fails does not run on the example input", "(at view, ", "badnets.py:10")),
        (
            "Mixes",
            (
                "nothing can be pruned",
                "conv (filter, 8 channels): cumsum (cumsum): it mixes the channels",
                "the network's output",
            ),
        ),
    ],
)
def test_a_model_that_cannot_be_pruned_is_refused_before_training(
    tiny_config, tmp_path, monkeypatch, name, words
):
    (tmp_path / "badnets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "badnets", raising=False)
    model = 'model = {name = "badnets:' + name + '"}'
    tiny_config.write_text(
        re.sub(r"^model = .*$", model, tiny_config.read_text(), flags=re.MULTILINE)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsupportedOpWarning)
        result = call("search", tiny_config, "--run-dir", tmp_path / "run")
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in result.output
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_no_fault_of_ours(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device", "journal.jsonl")

    monkeypatch.setattr("abcsearch.runs.disk.folder.RunFolder.header", full)
    result = call("status", tmp_path)
    assert result.exit_code == 2
    assert (
        "error: journal.jsonl: No space left on device; what is finished is kept" in result.output
    )


def test_python_runs_the_package(tmp_path):
    command = [sys.executable, "-m", "abcsearch", "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == abcsearch_version


def test_version():
    result = call("--version")
    assert (result.exit_code, result.output.strip()) == (0, abcsearch_version)


def test_inspect_a_model_and_a_config_and_draw_it(finished, tmp_path):
    _, config, _ = finished
    shown = call("inspect", "resnet20", "--png", tmp_path / "widths.png", "--set", "classes=7")
    assert shown.exit_code == 0, shown.output
    assert re.search(
        r"^ ?stages\.0\.0\.conv1 +filter +16 +1 \.\.\. 14 \(9\) +10\.9% +1\.6%",
        shown.output,
        re.MULTILINE,
    )
    assert re.search(r"^ ?linear +filter +7 +the network's output", shown.output, re.MULTILINE)
    assert "12 of 13 groups prunable, 7 blocks can be dropped" in shown.output
    assert (tmp_path / "widths.png").read_bytes().startswith(b"\x89PNG")
    from_config = call("inspect", config)
    assert from_config.exit_code == 0, from_config.output
    assert "conv" in from_config.output
    narrow = call(
        "inspect", "resnet20", "--set", "space.levels=['filter']", "--set", "space.step=0.3"
    )
    assert re.search(r"stages\.0\.0\.conv1 +filter +16 +4 \.\.\. 14 \(3\)", narrow.output)
    smaller = call("inspect", "resnet20", "--input", "3x16x16")
    assert "for one 3x16x16 input" in smaller.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet21"], "unknown model 'resnet21'; did you mean"),
        (
            ["resnet20", "--input", "3x"],
            "--input is the shape of one input, such as 3x224x224, found '3x'",
        ),
        (["resnet20", "--input", "4x32x32"], "resnet20 does not run on one input of 4x32x32; say "),
        (["resnet20", "--set", "clases=3"], "unknown option 'clases'; did you mean 'classes'?"),
        (
            ["resnet20", "--set", "space.alfa=3"],
            "unknown setting in [space]: 'alfa'; did you mean 'alpha'?",
        ),
        (["nowhere.toml"], "config nowhere.toml cannot be read"),
        (["torch.nn:Linear"], "model 'torch.nn:Linear': "),
    ],
)
def test_inspect_says_what_is_wrong(arguments, message):
    result = call("inspect", *arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("given", "hint"),
    [("--epochs", "epochs"), ("--weight-decay", "weight_decay"), ("--preset", "preset")],
)
def test_settings_of_the_recipe_given_as_options_are_named(given, hint):
    result = call("finetune", "run", given, "3")
    assert result.exit_code == 2
    assert f"setting of the recipe: --set {hint}=VALUE" in " ".join(
        re.findall(r"[^\s│╭╮╰╯─]+", result.output)
    )
    assert (
        "--set" not in call("finetune", "run", "--nothing", "3").output.split("No such option")[1]
    )


def test_list_alone_names_the_kinds():
    shown = call("list")
    assert shown.exit_code == 0, shown.output
    assert shown.output.split() == [word for kind in KINDS for word in ("abcsearch", "list", kind)]
    assert json.loads(call("list", "--json").output) == list(KINDS)


def test_recipes_are_listed_as_a_config_has_them():
    shown = call("list", "recipes").output
    assert 'flip=true, nesterov=false, schedule="step", milestones=[0.333, 0.667]' in shown
    for name, preset in PRESETS.items():
        listed = [
            line
            for line in call("list", "recipes", name).output.splitlines()
            if re.match(r"\w+ = ", line)
        ]
        found = Recipe(**tomllib.loads("\n".join(listed)))
        assert found.milestones == pytest.approx(preset.recipe.milestones, abs=1e-3)
        assert dataclasses.replace(found, milestones=preset.recipe.milestones) == preset.recipe


def test_list_names_everything_with_its_options():
    shown = call("list", "searchers")
    assert shown.exit_code == 0, shown.output
    for name, entry in SEARCHERS.items():
        assert re.search(
            rf"^{name}: {re.escape(entry.description)} \(.*\)$", shown.output, re.MULTILINE
        )
    assert "    n_sources=10, abandonment_limit=5, genes_changed=2" in shown.output
    for kind in KINDS:
        listed = call("list", kind)
        assert listed.exit_code == 0, listed.output
        assert len(re.findall(r"^\w+: \S", listed.output, re.MULTILINE)) == len(catalog(kind))
        assert (
            call("list", kind, catalog(kind)[0].name).output.strip()
            == catalog(kind)[0].text.strip()
        )
    whole = call("list", "searchers", "bee_colony").output
    assert "Differences from the paper:" in whole
    assert (
        "\nDefaults: n_sources=10, abandonment_limit=5, guide=1.5, rate=1.0, "
        "genes_changed=2, scale=0.5, elite=0.5, decay=0.2\n"
    ) in whole
    assert (
        "\nRanges: n_sources from 2 to 10000, abandonment_limit at least 1, guide from 0 to 10"
        in whole
    )
    assert "\nRange: above 0 and at most 1\n" in call("list", "space", "alpha").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["searcher"], "unknown kind 'searcher'; did you mean 'searchers'?"),
        (
            ["searchers", "bee_colny"],
            "unknown name among the searchers: 'bee_colny'; did you mean 'bee_colony'?",
        ),
        (["models", "zebra"], "choose one of: densenet40"),
    ],
)
def test_list_says_what_is_wrong(arguments, message):
    result = call("list", *arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize("shape", [None, "3x8x8"])
def test_inspect_asks_for_the_input_of_a_network_of_yours(shape):
    target = [
        "torch.nn:Conv2d",
        "--set",
        "in_channels=1",
        "--set",
        "out_channels=4",
        "--set",
        "kernel_size=3",
    ]
    refused = call("inspect", *target, *([] if shape is None else ["--input", shape]))
    assert refused.exit_code == 2
    said = f"torch.nn:Conv2d does not run on one input of {shape or '3x224x224'}; say what one of its inputs is: --input"
    assert said in refused.output
    assert "--input 1x28x28" in refused.output
    assert "forward" not in refused.output
    assert call("inspect", *target, "--input", "1x28x28").exit_code == 0


def test_ctrl_c_while_the_command_line_is_imported_ends_it_without_a_word():
    for module in ("typer", "abcsearch.terminal", "rich.console"):
        code = (
            # Those who start the tests in the background of a shell have it ignored.
            "import builtins, os, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "before = builtins.__import__\n"
            f"def find(name, *given, **named):\n    if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
            "    return before(name, *given, **named)\n"
            "from abcsearch.__main__ import main; builtins.__import__ = find; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_script_is_what_can_be_interrupted_from_its_first_line():
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"abcsearch": "abcsearch.__main__:main"}


@pytest.mark.parametrize("leads", [True, False])
def test_a_link_in_finetuned_is_named_with_the_command_that_replaces_it(finished, tmp_path, leads):
    import shutil

    run = tmp_path / "a run"
    shutil.copytree(finished[0], run)
    link = run / "finetuned" / "full.safetensors"
    if leads:
        link.rename(tmp_path / "elsewhere")
    else:
        link.unlink()
    link.symlink_to(tmp_path / "elsewhere")
    refused = call("export", run, "--out", tmp_path / "out")
    assert refused.exit_code == 2
    command = re.search(r"if that is yours \((.*)\), or", refused.output.replace("\n", ""))[1]
    subprocess.run(command, shell=True, check=True)
    assert not link.is_symlink()
    assert link.exists() == leads
    assert call("export", run, "--out", tmp_path / "out").exit_code == 0
