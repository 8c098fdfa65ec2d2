"""Chains of transforms: every link loads back bit for bit in every format, and orders that lose are refused."""

import copy
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import tomllib
from typing import ClassVar

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from abcsearch import (
    Applied,
    Recipe,
    Transform,
    apply_chain,
    chain_model,
    export,
    load,
    load_data,
    score,
    train,
)
from abcsearch.cli import app
from abcsearch.config import parse_config, read_config
from abcsearch.errors import ConfigError, ExportError, ModelError, RunError
from abcsearch.models.registry import Constructor
from abcsearch.results.chained import known_chain, run_chain
from abcsearch.results.exports import export_run
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.links import read_chain, write_chain
from abcsearch.results.open_run import open_run
from abcsearch.results.report import make_report
from abcsearch.runs.config_run import run_config
from abcsearch.transforms.registry import TRANSFORMS, order_problems
from tests.pages import CHAPTERS

OPTIONS = {"widths": [8, 16], "depths": [1, 1]}
RECIPE = Recipe(epochs=2, batch_size=128, lr=0.02)
LOW_RANK = {"name": "low_rank", "ranks": 0.7, "finetune": {}}
DEEP = [
    {"name": "sparsify", "sparsity": 0.6, "finetune": {}},
    {"name": "codebook", "bits": 4, "finetune": {"lr": 0.01}},
]


def quick(patch, *, onnx=False):
    """Measures in no time, and without files for onnxruntime."""
    patch.setattr("abcsearch.results.chain_costs._SECONDS", 0.05)
    patch.setattr("abcsearch.results.card._SECONDS", 0.05)
    if not onnx:
        patch.setattr("abcsearch.results.chain_costs._session", lambda *_: None)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick(monkeypatch)


@pytest.fixture(scope="module")
def trained():
    """A network that knows digits, and these."""
    data = load_data("digits")
    model = Constructor(name="small_resnet", options=OPTIONS).build()
    train(model, data.train, Recipe(epochs=6, batch_size=64, lr=0.05))
    return model.eval(), data


def chained(trained, links, folder, **more):
    model, data = trained
    return apply_chain(
        model,
        data,
        links,
        folder,
        constructor="small_resnet",
        options=OPTIONS,
        recipe=RECIPE,
        **more,
    )


@pytest.fixture(scope="module")
def deep(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep")
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        return chained(trained, [LOW_RANK, *DEEP], folder)


def test_every_link_is_measured_and_keeps_what_the_links_before_made(trained, deep):
    model, data = trained
    start, low, sparse, shared = deep.links
    assert deep.labels == ("start", "low_rank", "sparsify", "codebook")
    assert start.macs > low.macs == sparse.macs == shared.macs
    assert start.params > low.params
    assert low.nonzero == low.params > sparse.nonzero == shared.nonzero
    assert low.weight_bytes > sparse.weight_bytes > shared.weight_bytes
    assert low.bit_operations == low.macs * 32 * 32
    split = set(low.facts["layers"])
    assert {
        path.rpartition(".")[0]
        for path in sparse.facts["layers"]
        if path.rpartition(".")[0] in split
    } == split
    for number, link in enumerate(deep.links):
        network = chain_model(deep, number=number)
        assert score(network, data.test) == pytest.approx(link.test)
        assert bool(link.untrained) == (link.recipe is not None)
    assert score(model, data.test) == pytest.approx(start.test)
    final = chain_model(deep)
    kinds = {path: m for path, m in final.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    for path, facts in shared.facts["layers"].items():
        assert (
            len(kinds[path].weight.unique())
            <= facts["values"]
            <= (32 if isinstance(kinds[path], nn.Linear) else 16)
        )
        assert int((kinds[path].weight == 0).sum()) >= sparse.facts["layers"][path]["zeros"]
    rows = deep.cells()
    assert [row[0] for row in rows] == ["link", *deep.labels]
    assert len({len(row) for row in rows}) == 1
    assert "save bytes, not time" in " ".join(deep.lines())


@pytest.mark.parametrize("number", range(4))
def test_every_link_comes_back_bit_for_bit_in_every_format(deep, trained, tmp_path, number):
    _, data = trained
    network = chain_model(deep, number=number)
    x = data.test.images
    for kind in ("safetensors", "compressed"):
        export(
            network,
            tmp_path / kind,
            example_input=data.example,
            constructor="small_resnet",
            options=OPTIONS,
            format=kind,
        )
        assert torch.equal(load(tmp_path / kind)(x), network(x))
    export(network, tmp_path / "net.pt2", example_input=data.example)
    again = load(tmp_path / "net.pt2")
    assert torch.allclose(again(x), network(x), atol=1e-5)
    # Pruned again: what has come back is traced, and its factors and widths are channels.
    from abcsearch import rank_channels, slice_model, trace_channels

    back = load(tmp_path / "compressed")
    graph = trace_channels(back, data.example)
    half = slice_model(back, graph, graph.space().uniform(0.5), rank_channels(back, graph))
    export(
        half,
        tmp_path / "half",
        example_input=data.example,
        constructor="small_resnet",
        options=OPTIONS,
    )
    assert torch.equal(load(tmp_path / "half")(x), half(x))


def test_a_chain_that_is_there_is_left_alone_and_another_replaces_what_differs(
    trained, deep, tmp_path
):
    folder = tmp_path / "chain"
    shutil.copytree(deep.folder, folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = chained(trained, [LOW_RANK, *DEEP], folder)
    assert again.links == deep.links
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == times
    told = []
    other = chained(trained, [LOW_RANK, {**DEEP[0], "sparsity": 0.3}], folder, tell=told.append)
    assert other.links[:2] == deep.links[:2]
    assert other.links[2].nonzero > deep.links[2].nonzero
    assert sorted(path.name for path in folder.iterdir()) == [
        "0-start",
        "1-low_rank",
        "2-sparsify",
        "chain.json",
    ]
    assert [line.split()[0] for line in told] == [str(folder / "2-sparsify")]
    (file,) = (folder / "1-low_rank").glob("model.*")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="1-low_rank is damaged: .*; it is made again"):
        mended = chained(trained, [LOW_RANK, {**DEEP[0], "sparsity": 0.3}], folder)
    assert mended.links == other.links


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_chain_that_is_stopped_goes_on_to_the_same_bits(trained, deep, tmp_path, epochs):
    seen = []

    def stop(stage, done, total, note):
        seen.append(stage)
        if len(seen) == epochs:
            raise Killed

    with pytest.raises(Killed):
        chained(trained, [LOW_RANK, *DEEP], tmp_path / "chain", progress=stop)
    assert read_chain(tmp_path / "chain") is None
    seen.extend(range(99))
    again = chained(trained, [LOW_RANK, *DEEP], tmp_path / "chain", progress=stop)
    assert again.links == deep.links


def test_int8_ends_a_chain(trained, tmp_path, monkeypatch):
    pytest.importorskip("torchao")
    monkeypatch.undo()
    quick(monkeypatch, onnx=True)
    _, data = trained
    chain = chained(trained, ["quantize"], tmp_path / "chain")
    start, int8 = chain.links
    assert int8.format == "pt2"
    assert (int8.macs, int8.bit_operations * 16) == (start.macs, start.bit_operations)
    assert int8.weight_bytes < 0.5 * start.weight_bytes
    assert {(time.runtime, time.batch) for time in chain.times} == {
        (r, b) for r in ("torch", "onnxruntime") for b in (1, 64)
    }
    assert all(ms > 0 for time in chain.times for ms in time.median_ms)
    network, x = chain_model(chain), data.test.images
    made = export(network, tmp_path / "again.pt2", example_input=data.example)
    assert torch.equal(load(made)(x), network(x))


def test_why_onnxruntime_has_no_time_of_a_link_is_kept_and_said(trained, tmp_path, monkeypatch):
    monkeypatch.undo()
    quick(monkeypatch, onnx=True)

    def refused(network, path, **options):
        raise ExportError(f"{path} cannot be: of {len(list(network.parameters()))} tensors")

    monkeypatch.setattr("abcsearch.results.chain_costs.export", refused)
    chain = chained(trained, [{"name": "sparsify", "sparsity": 0.5}], tmp_path / "chain")
    assert {time.runtime for time in chain.times} == {"torch"}
    assert chain.lines()[-1].startswith("no time by onnxruntime of start: 0.onnx cannot be: of ")
    assert sum("no time by" in line for line in chain.lines()) == 1
    assert read_chain(tmp_path / "chain") == chain
    before = dataclasses.replace(
        chain, untimed=()
    )  # of a chain whose links have all times, or of earlier versions
    write_chain(before)
    assert "untimed" not in (tmp_path / "chain" / "chain.json").read_text()
    assert read_chain(tmp_path / "chain") == before
    assert not any("onnxruntime" in line for line in before.lines())


ORDERS = [
    (["quantize", "low_rank"], "traced computation without weights"),
    (["quantize", "sparsify"], "'sparsify' loses after 'quantize'"),
    (["sparsify", "low_rank"], "what was set to 0 comes back"),
    (["codebook", "sparsify"], "fitted to weights that this takes away"),
    (["codebook", "low_rank"], "what these have in common is lost"),
    (["codebook", "quantize"], "rounds every channel by itself"),
    (["codebook", "codebook"], "'codebook' is there twice"),
    (["quantize", "quantize"], "leave one out"),
]


@pytest.mark.parametrize(("order", "words"), ORDERS)
def test_orders_that_lose_are_refused_with_the_reason(order, words, trained, tmp_path):
    with pytest.raises(ConfigError) as caught:
        chained(trained, order, tmp_path / "chain")
    assert words in str(caught.value)
    assert not (tmp_path / "chain").exists()
    plain = {
        "n_trials": 2,
        "model": "small_resnet",
        "data": "digits",
        "budget": {"macs": 0.5},
        "pretrain": {},
    }
    with pytest.raises(ConfigError, match="mistake") as caught:
        parse_config({**plain, "transform": order})
    assert words in str(caught.value)


def test_orders_that_do_not_lose():
    for order in (
        ["low_rank", "quantize"],
        ["low_rank", "sparsify", "codebook"],
        ["sparsify", "sparsify"],
        ["sparsify", "quantize"],
    ):
        assert not order_problems(order)


WRONG = [
    ({"name": "low_rnk"}, "did you mean 'low_rank'"),
    ({"name": "low_rank", "rnks": 0.5}, "rnks"),
    ({"name": "low_rank", "method": "spatail"}, "method"),
    ({"name": "low_rank", "data": True}, "only method 'output' can"),
    ({"name": "sparsify", "sparsity": 1.0}, "sparsity"),
    ({"name": "sparsify", "scope": "all"}, "scope"),
    ({"name": "codebook", "bits": 0}, "bits"),
    ({"name": "quantize", "images": 0}, "images"),
    ({"name": "low_rank", "finetune": {"epoch": 3}}, "did you mean 'epochs'"),
    ({"name": "low_rank", "finetune": {"preset": "cifr"}}, "cifar"),
    ({"name": "low_rank", "finetune": {"epochs": 0}}, "epochs"),
    ({"name": "low_rank", "finetune": 3}, "finetune"),
    ({"ranks": 0.5}, "needs a name"),
    (7, "table"),
]


@pytest.mark.parametrize(("table", "words"), WRONG)
def test_mistakes_in_a_config_are_said_at_once(table, words):
    plain = {
        "n_trials": 2,
        "model": "small_resnet",
        "data": "digits",
        "budget": {"macs": 0.5},
        "pretrain": {},
    }
    with pytest.raises(ConfigError) as caught:
        parse_config({**plain, "transform": [table], "seed": -1})
    assert words in str(caught.value)
    assert "transform[0]" in str(caught.value)
    assert "seed" in str(caught.value)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"name": "low_rank", "ranks": {"nowhere": 3}}, "unknown layer of ranks: 'nowhere'"),
        (
            {"name": "low_rank", "ranks": {"stages.0.0.bn1": 3}},
            "stages.0.0.bn1 is a BatchNorm2d, no convolution",
        ),
        ({"name": "low_rank", "ranks": 1.5}, r"in \(0, 1\]"),
        ({"name": "sparsify", "fixed": ["nowhere"]}, "unknown layer of fixed: 'nowhere'"),
        ({"name": "low_rank", "finetune": {"distillation": 0.5}}, "no teacher"),
    ],
)
def test_what_does_not_suit_the_network_is_refused(trained, tmp_path, table, words):
    with pytest.raises((ModelError, ConfigError), match=words):
        chained(trained, [table], tmp_path / "chain")


def test_ranks_above_break_even_are_said(trained, tmp_path):
    chain = chained(
        trained, [{"name": "low_rank", "ranks": {"stages.1.0.conv2": 40}}], tmp_path / "chain"
    )
    assert "rank 40 of stages.1.0.conv2 is above break-even: it costs" in " ".join(chain.lines())
    assert chain.links[1].macs > chain.links[0].macs


class Scaled(Transform):
    """One of one's own: all weights of the first layer times a number."""

    loses_after: ClassVar = {"sparse": "of no reason but this test"}

    def apply(self, model, data, seed):
        made = copy.deepcopy(model)
        next(iter(made.parameters())).data *= 1.1
        return Applied(model=made, facts={"conv": {"kind": "scaled"}})


class Failing(Transform):
    def apply(self, model, data, seed):
        raise ZeroDivisionError("of its own")


class Nothing(Transform):
    def apply(self, model, data, seed):
        return model


def test_transforms_of_ones_own(trained, tmp_path):
    name = f"{__name__}:Scaled"
    chain = chained(trained, [name], tmp_path / "chain")
    assert chain.links[1].facts == {"conv": {"kind": "scaled"}}
    assert not torch.equal(
        chain_model(chain)(trained[1].test.images), trained[0](trained[1].test.images)
    )
    with pytest.raises(ConfigError, match="of no reason but this test"):
        chained(trained, ["sparsify", name], tmp_path / "other")
    for wrong, words in (
        ("Failing", "failed: ZeroDivisionError: of its own"),
        ("Nothing", "expected abcsearch.Applied"),
    ):
        with pytest.raises(ModelError, match=words):
            chained(trained, [f"{__name__}:{wrong}"], tmp_path / wrong)
    with pytest.raises(ConfigError, match=r"derived from abcsearch\.Transform"):
        TRANSFORMS.find(f"{__name__}:chained")


CONFIG = """
n_trials = 4
baselines = []
model = {name = "small_resnet", widths = [8, 12], depths = [1, 1]}
data = {name = "digits"}
pretrain = {epochs = 4, batch_size = 128}
budget = {macs = 0.6}
searcher = "random"
evaluator = {name = "adaptive_bn", calibration_images = 64, batch_size = 64}
finetune = {epochs = 1, batch_size = 128, lr = 0.02}
transform = [{name = "low_rank", ranks = 0.7, finetune = {epochs = 1}}, {name = "sparsify", sparsity = 0.5}]
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    path = tmp_path_factory.mktemp("searched")
    (path / "chain.toml").write_text(CONFIG)
    run_config(read_config(path / "chain.toml"), path / "run")
    return path


@pytest.mark.parametrize(
    ("method", "ranks", "words"),
    [
        ("spatial", 300, "from 1 to 24, found 300; set at most 24, or, for all layers, a share"),
        ("output", 9, "from 1 to 8, found 9; set at most 8, or"),
        ("tucker", [9, 8], r"from 1 to 8 and 1 to 8, found \(9, 8\); set at most 8 and 8, or"),
        ("tucker", [8], r"found \(8,\)"),
        ("spatial", 0, "found 0"),
        ("spatial", True, "found True"),
    ],
)
def test_ranks_that_no_pruned_network_can_have_are_refused_before_the_search(
    tmp_path, method, ranks, words
):
    link = {"name": "low_rank", "method": method, "ranks": {"stages.0.0.conv1": ranks}}
    changed = f"transform = {tomlish([link])}"
    config = read_config(written(tmp_path, CONFIG[: CONFIG.index("transform")] + changed))
    with pytest.raises(ModelError, match=f"'low_rank': the rank of stages.0.0.conv1 .* {words}"):
        run_config(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ranks_that_the_pruned_network_cannot_have_say_that_what_is_fine_tuned_stays(
    searched, tmp_path
):
    """And what is said to be done works."""
    path = tmp_path / "run"
    shutil.copytree(searched / "run", path)
    finetune_run(open_run(path))
    link = {"name": "low_rank", "ranks": {"stages.0.0.conv1": 24}}
    text = CONFIG[: CONFIG.index("transform")]
    config = written(tmp_path, text + f"transform = {tomlish([link])}")
    again = ("search", str(config), "--run-dir", str(path))
    assert CliRunner().invoke(app, again).exit_code == 0
    refused = CliRunner().invoke(app, ["finetune", str(path)])
    assert refused.exit_code == 2
    said = " ".join(refused.output.split())
    most = re.search(r"set at most (\d+), or, for all layers, a share", said)
    way_on = f"abcsearch search CONFIG --run-dir {path}, and abcsearch finetune {path}"
    assert (
        f"trials and what is fine-tuned stay: change transform in the config, then {way_on}" in said
    )
    before = {file: file.stat().st_mtime_ns for file in (path / "finetuned").glob("*.safetensors")}
    assert before
    link["ranks"] = {"stages.0.0.conv1": int(most[1])}
    written(tmp_path, text + f"transform = {tomlish([link])}")
    for words in (again, ("finetune", str(path))):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    assert {file: file.stat().st_mtime_ns for file in before} == before


def written(folder, text):
    (folder / "chain.toml").write_text(text)
    return folder / "chain.toml"


def tomlish(value):
    """Plain values as TOML has them inline."""
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(f"{json.dumps(key)} = {tomlish(each)}" for key, each in value.items())
            + "}"
        )
    return f"[{', '.join(map(tomlish, value))}]" if isinstance(value, list) else json.dumps(value)


@pytest.mark.usefixtures("no_pictures")
def test_a_run_from_its_config_to_the_file(searched):
    """Each command says what comes next; the export is the last link, another with --link."""
    path = searched / "run"

    def call(*words):
        done = CliRunner().invoke(app, [*words[:1], str(path), *words[1:]])
        assert done.exit_code == 0, done.output
        return done.output

    before = call("export", "--out", str(searched / "before"))
    assert "not fine-tuned yet (abcsearch finetune" in before
    assert " applies low_rank, sparsify as well" in before
    with pytest.raises(RunError, match="has not been fine-tuned, which comes before the chain"):
        run_chain(open_run(path))
    assert "next: abcsearch finetune" in call("status")
    told = call("finetune")
    assert "sparsify" in told
    run = open_run(path)
    chain = known_chain(run)
    assert [link.name for link in chain.links] == ["start", "low_rank", "sparsify"]
    shutil.rmtree(path / "chain")
    assert "next: abcsearch finetune" in call("status")
    with pytest.raises(
        RunError,
        match=r"chain of random \(low_rank, sparsify\) is not finished; run: abcsearch finetune",
    ):
        export_run(run)
    assert export_run(run, searched / "without", link="0").link == ""
    call("finetune")
    assert known_chain(run).links == chain.links
    said = call("report", "--out", str(searched / "page.html"))
    assert "The chain after the winner" in (searched / "page.html").read_text()
    assert make_report(run).chain_cells()[3][0] == "sparsify"
    said = call("export")
    for words in (
        "fine-tuned, after sparsify",
        "float32 of shape (batch, 1, 8, 8)",
        "mean [0.305",
        "model card: ",
    ):
        assert words in said
    assert sorted(file.name for file in (path / "export").iterdir()) == [
        "README.md",
        "model.compressed",
        "plan.json",
    ]
    x = run.result.task.data.test.images
    assert torch.equal(load(path / "export")(x), chain_model(chain)(x))
    plan = json.loads((path / "export/plan.json").read_text())
    assert {facts["kind"] for facts in plan["info"]["chain"][0]["facts"]["layers"].values()} <= {
        "spatial",
        "output",
    }
    assert plan["info"]["macs"] == chain.links[-1].macs
    call("export", "--link", "low_rank", "--out", str(searched / "low"))
    assert torch.equal(load(searched / "low")(x), chain_model(chain, number=1)(x))
    with pytest.raises(ConfigError, match="did you mean 'low_rank'"):
        export_run(run, searched / "x", link="lowrank")
    with pytest.raises(ConfigError, match="link '1' is one of the chain"):
        export_run(run, searched / "x", network="full", link="1")
    measured = json.loads(
        CliRunner().invoke(app, ["evaluate", str(path / "export"), "--json"]).output
    )
    assert measured["metrics"]["top1"] == pytest.approx(chain.links[-1].test["top1"])
    assert measured["macs"] == chain.links[-1].macs


@pytest.mark.usefixtures("no_pictures")
def test_the_model_card(searched):
    run = open_run(searched / "run")
    finetune_run(run)
    full = export_run(run, searched / "carded", network="full", licence="MIT <b>| x")
    card = full.card.read_text()
    assert full.card == searched / "carded/README.md"
    front = card.split("---")[1]
    assert 'license: "MIT <b>| x"' in front
    assert "| licence of the weights | MIT &lt;b>\\| x |" in card
    for words in (
        "## Numbers",
        "## How to feed it",
        "## How to load it",
        "trtexec --onnx=model.onnx",
        "random, 4 trials",
    ):
        assert words in card
    # What somebody else has written stays.
    (searched / "carded/README.md").write_text("mine")
    again = export_run(run, searched / "carded", network="full")
    assert again.card == searched / "carded/model-card.md"
    assert (searched / "carded/README.md").read_text() == "mine"
    pytest.importorskip("onnxruntime")
    file = export_run(run, searched / "net.onnx")
    assert file.card == searched / "net.onnx.md"
    # Its code runs as it is written.
    codes = [block.split("```")[0] for block in file.card.read_text().split("```python\n")[1:]]
    feed = "import numpy, torch\nbatch = torch.zeros(2, 1, 8, 8)\n"
    for code in codes:
        done = subprocess.run(
            [sys.executable, "-c", feed + code],
            cwd=searched,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_the_chapter_tells_the_truth(tiny_model, tiny_data, tmp_path, monkeypatch):
    """Its Python runs, its configs are read, its tables name every transform."""
    blocks = re.findall(r"```(python|toml)\n(.*?)```", CHAPTERS["chain"], flags=re.DOTALL)
    plain, deep = (tomllib.loads(text) for language, text in blocks if language == "toml")
    rest = {"model": "small_resnet", "data": "digits", "pretrain": {}}
    assert [part.name for part in parse_config({**plain, **rest}).transform] == [
        "low_rank",
        "quantize",
    ]
    assert [part.name for part in parse_config({**plain, **rest, **deep}).transform] == [
        "sparsify",
        "sparsify",
        "codebook",
    ]
    call, mine = (text for language, text in blocks if language == "python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = {"model": tiny_model, "data": tiny_data}
    call = call.replace("recipe=", 'constructor="small_resnet", options=OWN, recipe=')
    exec(
        call, names | {"OWN": {"in_channels": 1, "classes": 2, "widths": [6, 8], "depths": [1, 1]}}
    )
    (tmp_path / "rounding.py").write_text(mine)
    links = [{"name": "rounding:Rounded", "bits": 4, "finetune": {"epochs": 1, "batch_size": 32}}]
    own = {"in_channels": 1, "classes": 2, "widths": [6, 8], "depths": [1, 1]}
    chain = apply_chain(
        tiny_model, tiny_data, links, tmp_path / "mine", constructor="small_resnet", options=own
    )
    assert chain.links[1].facts == {"bits": 4}
    rows = re.findall(r"^\| `(\w+)` \|", CHAPTERS["chain"], flags=re.MULTILINE)
    assert set(rows) - {"name"} == set(TRANSFORMS.homes)
