"""README and guide tell the truth: their Python runs, their commands exist, their paths are there."""

import copy
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from typer.main import get_command

import abcsearch
from abcsearch.budget import Budget
from abcsearch.channels.criteria import CRITERIA
from abcsearch.channels.groups import UnsupportedOpWarning, trace_channels
from abcsearch.channels.latency import in_turns
from abcsearch.channels.options import LatencyOptions
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.rules import RULES
from abcsearch.channels.slicing import slice_model
from abcsearch.cli import app
from abcsearch.config import parse_config
from abcsearch.data.registry import DATASETS, load_data
from abcsearch.data.split import Split
from abcsearch.data.user_data import PAIR_OPTIONS
from abcsearch.evaluation.registry import EVALUATORS
from abcsearch.execution.options import ExecutionOptions
from abcsearch.exporting.targets import FORMATS
from abcsearch.models.registry import MODELS
from abcsearch.preparation.registry import PREPARATIONS, make_preparation
from abcsearch.runs.entry import search
from abcsearch.runs.ranking import RANKING_IMAGES
from abcsearch.runs.settings import Part
from abcsearch.searchers.registry import SEARCHERS
from abcsearch.training.loop import train
from abcsearch.training.objectives import OBJECTIVES, OUTPUTS
from abcsearch.training.recipe import PRESETS, Recipe
from tests.pages import CHAPTERS, FRONT, GUIDE, PAGES, ROOT

README = GUIDE
EXTENDING = CHAPTERS["extending"]


def blocks(language, page=README):
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def block(language, words, page=README):
    """The one block with some words in it."""
    (found,) = (text for text in blocks(language, page) if words in text)
    return found


def test_python_example_runs_and_is_short(tmp_path):
    net, example, *_ = blocks("python")
    assert net.startswith("# mynet.py\n")
    (tmp_path / "mynet.py").write_text(net)
    (tmp_path / "example.py").write_text(example)
    script = [sys.executable, "-W", "error", "-c"]
    count = "sum(p.numel() for p in abcsearch.load('pruned').parameters())"
    printed = []
    # The second time it continues, and ends the same; and the export is there before anything is run.
    for code in ("import example", f"import abcsearch; print({count}); import example"):
        done = subprocess.run(
            [*script, code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.splitlines())
    parameters = int(printed[1].pop(0))
    assert printed[0] == printed[1]
    before, after = map(float, printed[0][-1].split())
    assert 0 < before < 1
    assert after > 0.85
    assert 0 < parameters < 22_346  # of the full network
    assert len([line for line in example.splitlines() if line.strip()]) <= 20


def test_commands_exist():
    known = get_command(app).commands
    used = re.findall(r"^abcsearch (\w+)", README, flags=re.MULTILINE)
    assert set(used) == set(known)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", README, flags=re.MULTILINE):
        assert "".join(target) in targets


def test_paths_exist():
    texts = (CHAPTERS["structure"], (ROOT / "CONTRIBUTING.md").read_text())
    paths = {
        path for text in texts for path in re.findall(r"`([\w./]+(?:/|\.py|\.md|\.ipynb))`", text)
    }
    assert len(paths) > 100
    where = (ROOT, ROOT / "abcsearch")
    assert [path for path in paths if not any((place / path).exists() for place in where)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        if not re.match(r"[a-z]+:", path):
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in _anchors(target.read_text()), link


def test_the_front_page_is_short_and_every_chapter_is_in_the_contents():
    assert len(FRONT.splitlines()) <= 200
    contents = re.findall(r"^([\w./-]+)$", CHAPTERS["index"], flags=re.MULTILINE)
    assert {name for name in CHAPTERS if name not in contents} == {"index"}


def test_every_public_name_is_in_the_reference():
    page = CHAPTERS["api"]
    names = [
        name
        for name in abcsearch.__all__
        if f" abcsearch.{name}\n" not in page and f"`{name}`" not in page
    ]
    assert not names


def _anchors(page):
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_every_searcher_is_in_the_table():
    table = README.split("## Algorithms")[1].split("## ")[0]
    for name in SEARCHERS:
        assert f"`{name}`" in table


def test_every_network_is_named():
    named = README.split("Networks by name:")[1].split("Public checkpoints")[0]
    assert set(MODELS) <= set(re.findall(r"`(\w+)`", named))


def test_every_criterion_is_in_the_table():
    table = README.split("## Criteria")[1].split("## ")[0]
    for name, entry in CRITERIA.items():
        row = f"| `{name}` | {entry.description} | {entry.needs or 'no'} | {entry.source} |"
        assert row.replace("  |", " |") in table, row
    assert f"data get {RANKING_IMAGES} unaugmented training images" in table


def test_budget_and_ask_tell_examples_run(tiny_model, tiny_data):
    known = {"model": tiny_model, "data": tiny_data}
    exec(block("python", "constraint.repair"), known)
    assert known["constraint"].allows(known["candidate"])
    assert not known["constraint"].allows(known["space"].uniform(0.8))
    known["score"] = lambda candidate: float(sum(candidate))
    exec(block("python", "Trial("), known)
    assert [trial.number for trial in known["trials"]] == list(range(len(known["trials"])))
    assert 60 <= len(known["trials"]) < 68
    assert all(known["constraint"].allows(trial.candidate) for trial in known["trials"])


def test_runtime_example_is_one_and_the_table_shows_every_setting(tiny_model, monkeypatch):
    module = ModuleType("mymodule")
    exec(block("python", "def bfloat16("), vars(module))
    monkeypatch.setitem(sys.modules, "mymodule", module)
    table = tomllib.loads(block("toml", "[latency]"))
    assert table["latency"].keys() == {field.name for field in fields(LatencyOptions)}
    usual = LatencyOptions(**{**table["latency"], "runtime": "torch"})
    assert usual == LatencyOptions()
    own = LatencyOptions(runtime="mymodule:bfloat16", repeats=2)
    turns = in_turns([tiny_model], copy.deepcopy(tiny_model), torch.zeros(1, 1, 8, 8), own)
    assert turns.shares > 0
    assert next(tiny_model.parameters()).dtype == torch.float32


def test_objective_example_runs(tiny_model, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "angles", None)  # so that they are gone afterwards
    monkeypatch.setitem(OUTPUTS, type(tiny_model), None)
    exec(block("python", "OBJECTIVES["), {"model": tiny_model})
    outputs, labels = torch.tensor([[1.0, 2.0], [0.0, 5.0]]), torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert OBJECTIVES["angles"].metrics["neg_error"](outputs, labels).tolist() == [-1, -4]
    assert OBJECTIVES["angles"].loss(outputs, labels) > 0


def test_several_inputs_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(block("python", "class Patient"), {"__name__": "patients"})
    assert "picture.0" in capsys.readouterr().out


def test_int8_example_runs(tiny_model, tiny_data, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torchao")
    monkeypatch.chdir(tmp_path)
    exec(block("python", "quantize("), {"model": tiny_model, "data": tiny_data})
    assert {path.name for path in tmp_path.iterdir()} == {"int8.pt2", "int8.onnx"}
    assert abs(float(capsys.readouterr().out.split()[-1])) <= 0.1


def test_watcher_example_hears_of_every_trial(tiny_model, tiny_data, tmp_path):
    names = {}
    exec(block("python", "class Watcher"), names)
    heard, own = [], names["Watcher"]
    own.trial = lambda self, trial, best, before=own.trial: heard.append(
        (trial.number, before(self, trial, best))
    )
    options = {
        "budget": Budget(macs=0.8),
        "n_trials": 3,
        "searcher": "random",
        "evaluator": lambda c, seed: sum(c),
    }
    search(tiny_model, tiny_data, run_dir=tmp_path / "run", **options, **names["watched"])
    assert heard == [(number, None) for number in range(3)]


def test_every_export_format_is_in_the_table():
    table = README.split("## Exports")[1].split("## ")[0]
    assert all(f"| `{name}` |" in table for name in FORMATS)


def test_every_evaluator_is_in_the_table_and_its_config_parses():
    section = README.split("## Fitness")[1].split("## ")[0]
    assert all(f"| `{name}` |" in section for name in EVALUATORS)
    plain = tomllib.loads(block("toml", "[evaluator]"))
    config = {
        "n_trials": 1,
        "model": "small_resnet",
        "data": "digits",
        "pretrain": {"epochs": 1},
        "budget": {"macs": 0.5},
    }
    assert parse_config({**config, **plain}).evaluator.name == "cascade"


def test_every_setting_of_execution_is_shown_and_parses():
    section = README.split("## From laptop to cluster")[1].split("## ")[0]
    plain = tomllib.loads(block("toml", "[execution]"))
    assert all(f"{own.name} =" in section for own in fields(ExecutionOptions))
    parsed = ExecutionOptions(**plain["execution"])
    config = {"n_trials": 1, "model": "small_resnet", "data": "digits", "pretrain": {"epochs": 1}}
    assert parse_config({**config, "budget": {"macs": 0.5}, **plain}).execution == parsed
    assert parsed.window >= 2 * parsed.workers


def test_criterion_example_runs(tiny_model, tiny_data, monkeypatch):
    example = block("python", "CRITERIA[")
    graph = trace_channels(tiny_model, tiny_data.example)
    split = tiny_data.train
    known = {"model": tiny_model, "graph": graph, "images": split.images, "labels": split.labels}
    (name,) = re.findall(r'CRITERIA\["(\w+)"\]', example)
    monkeypatch.setitem(CRITERIA, name, None)  # so that it is gone afterwards
    exec(example, known)
    assert known["ranking"].criterion == name


class Reverse(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(channels))

    def forward(self, x):
        if x.sum() > -1e9:  # a sum over channels, which no rule covers
            return x.flip(1) * self.weight[:, None, None]
        raise ValueError


def test_rule_example_makes_a_module_prunable():
    model = (
        torch.nn.Sequential(torch.nn.Conv2d(3, 6, 1), Reverse(6), torch.nn.Conv2d(6, 2, 1))
        .double()
        .eval()
    )
    x = torch.rand(1, 3, 4, 4).double()
    with pytest.warns(UnsupportedOpWarning, match="sum"):
        assert not trace_channels(model, x).prunable
    example = block("python", "@rule_for")
    try:
        exec(example, {"Reverse": Reverse})
        graph = trace_channels(model, x, unknown="raise")
    finally:
        RULES.pop(Reverse, None)
    assert [group.channels for group in graph.prunable] == [6]
    ranking = rank_channels(model, graph)
    sliced = slice_model(model, graph, (2,), ranking)
    kept = set(ranking.kept(0, 2).tolist())
    with torch.no_grad():
        for channel in set(range(6)) - kept:
            model[2].weight[:, 5 - channel] = 0
        assert torch.allclose(sliced(x), model(x))


SEVERAL = """
import sys
from abcsearch.cli import main

for words in {commands!r}:
    print("==", words[0], flush=True)
    sys.argv = ["abcsearch", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, words
"""


def test_parts_of_ones_own_take_part_in_a_whole_run(tmp_path):
    """The search in one process, what follows in another."""
    (tmp_path / "mine.py").write_text(block("python", "# mine.py", EXTENDING))
    (tmp_path / "mine.toml").write_text(block("toml", '"mine:spread"', EXTENDING))
    folder = tmp_path / "run"
    said = "== search\n"
    search_it = ["-m", "abcsearch", "search", "mine.toml", "--run-dir", "run"]
    later = (
        ["finetune", "run"],
        ["export", "run", "--out", "export"],
        ["resume", "run", "--n-trials", "9"],
    )
    for words in (search_it, ["-c", SEVERAL.format(commands=(["status", "run"], *later))]):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-W", "ignore:set-up", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        said += done.stdout
    printed = dict(text.split("\n", 1) for text in said.split("== ")[1:])
    assert "best of 8 trials" in printed["search"]
    assert "best of 9 trials" in printed["resume"]
    for name in ("full", "uniform", "thinnest", "scratch", "Climb"):
        assert f"{name}: test top1" in printed["finetune"]
    scratch, best = (
        json.loads((folder / "finetuned" / f"{name}.json").read_text())
        for name in ("scratch", "Climb")
    )
    assert scratch["candidate"] == best["candidate"]
    assert (scratch["recipe"]["epochs"], best["recipe"]["epochs"]) == (2, 1)
    facts = json.loads((folder / "prepared.json").read_text())["facts"]
    assert facts.keys() == {"loss in the end"}
    uniform = json.loads((folder / "prepared.json").read_text())["starts"]
    assert len(uniform) == 1
    elsewhere = subprocess.run(
        [sys.executable, "-m", "abcsearch", "resume", str(folder), "--n-trials", "10"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "another user")},
    )
    assert elsewhere.returncode == 2
    for name in ("spread", "Climb", "Rounded", "Decayed", "thinnest", "scratch"):
        assert f"'mine:{name}' imported" in elsewhere.stderr.replace("\n", " ")


def test_lesson_examples_run_and_keep_the_contract(tmp_path, monkeypatch):
    known = {"train": train, "Recipe": Recipe}
    for words in ("class Slimming", "class Gated", "class TestGated"):
        exec(block("python", words, EXTENDING), known)
    contract, sums = known["TestGated"](), []
    with torch.random.fork_rng():
        for name in dir(contract):
            if name.startswith("test_"):
                getattr(contract, name)()
        network = contract.make().model
    images = Split(
        torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
    )
    for penalty in (0.0, 1.0):
        lesson = known["Slimming"](copy.deepcopy(network), penalty)
        train(lesson, images, Recipe(epochs=2))
        sums.append(lesson.model[1].weight.detach().abs().sum())
    assert sums[1] < sums[0]
    (call,) = re.findall(r"`(train\(Gated.*?\))` trains", EXTENDING)
    monkeypatch.chdir(tmp_path)
    exec(call, {**known, "model": network, "data": SimpleNamespace(train=images)})
    assert [path.name for path in tmp_path.iterdir()] == ["gated.checkpoint"]


def test_preparation_example_runs_and_keeps_its_contract(
    tmp_path, monkeypatch, tiny_model, tiny_data
):
    text = block("python", "# noisy.py", EXTENDING)
    (tmp_path / "noisy.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    plain = tomllib.loads(block("toml", "noisy:Noisy", EXTENDING))["prepare"]
    known = {"Noisy": type(make_preparation(**plain))}
    exec(block("python", "class TestNoisy", EXTENDING), known)
    contract = known["TestNoisy"]()
    for name in dir(contract):
        if name.startswith("test_"):
            getattr(contract, name)()
    for call in re.findall(r"`(search\(\.\.\., prepare=.*?\))`", EXTENDING + README):
        options = eval(call, {"search": lambda *_, **options: options, **known})
        Part.of(options["prepare"]) if isinstance(options["prepare"], dict) else options[
            "prepare"
        ].check(None)
    found = search(
        tiny_model,
        tiny_data,
        budget=Budget(macs=0.6),
        n_trials=2,
        prepare=known["Noisy"](),
        run_dir=tmp_path / "run",
    )
    assert [trial.candidate for trial in found.trials] == [*found.task.starts]


def test_every_preparation_is_in_the_table_and_the_config_is_one():
    section = README.split("## Preparation\n")[1].split("\n## ")[0]
    for name, entry in PREPARATIONS.items():
        assert re.search(rf"^\| `{name}` \| .* \|$", section, re.MULTILINE)
        assert entry.source.rpartition(", ")[2] in section
    plain = tomllib.loads(block("toml", '[prepare]\nname = "slimming"'))
    config = {
        "n_trials": 1,
        "model": "small_resnet",
        "data": "digits",
        "pretrain": {},
        "budget": {"macs": 0.5},
    }
    assert parse_config({**config, **plain}).prepare.options["recipe"] == {"preset": "digits"}


def test_every_data_set_is_in_the_table():
    table = README.split("## Data\n")[1].split("```")[0]
    for name in DATASETS:
        assert f"`{name}`" in table


def test_data_example_runs(tmp_path, monkeypatch):
    text = block("python", "# mydata.py")
    (tmp_path / "mydata.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    options = tomllib.loads(block("toml", "mydata:stripes"))["data"]
    data = load_data(**options)
    assert data.example.shape == (1, 1, 16, 16)
    assert (len(data.train), len(data.validation), len(data.test)) == (320, 80, 100)
    assert set(re.findall(r"also (.*)\n", README.split("## Data\n")[1])[0].split(", ")) <= set(
        PAIR_OPTIONS
    )
    streamed = load_data(**options, stream=True, workers=0)
    assert torch.equal(streamed.train.loaded().images, data.train.images)


def test_config_example_parses(tmp_path, monkeypatch):
    text = block("toml", "mypackage.nets:MyNet")
    package = tmp_path / "mypackage"
    package.mkdir()
    (package / "nets.py").write_text("def MyNet(classes): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = parse_config({**tomllib.loads(text), "n_trials": 1, "budget": {"macs": 0.5}})
    assert config.model.checkpoint == str(Path("mynet.pt").absolute())
    assert config.data.options == {"path": str(Path("data/flowers").absolute()), "size": 64}


@pytest.mark.parametrize("path", sorted(ROOT.glob("abcsearch/**/*.py")), ids=lambda path: path.name)
def test_files_stay_small_enough_to_read(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 480


def test_every_recipe_and_every_setting_of_one_is_in_the_tables():
    section = README.split("## Fine-tuning\n")[1].split("\n## ")[0]
    for name, preset in PRESETS.items():
        (row,) = re.findall(rf"^\| `{name}` \| (.*) \| (.*) \|$", section, flags=re.MULTILINE)
        assert row[0].startswith(preset.description)
        assert row[1] == preset.source
    for own in fields(Recipe):
        assert re.search(rf"`{own.name}[` ]", section), own.name
    plain = tomllib.loads(block("toml", "[finetune]"))
    config = {
        "n_trials": 1,
        "model": "small_resnet",
        "data": "digits",
        "pretrain": {},
        "budget": {"macs": 0.5},
    }
    assert parse_config({**config, **plain}).finetune == replace(
        PRESETS["cifar"].recipe, epochs=100, ema=0.999
    )
