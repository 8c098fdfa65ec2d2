"""The comparison with peers, in a tiny mode: rows are kept, what a peer cannot do is named, tables follow from rows."""

import json
import sys
from itertools import pairwise

import pytest

from abcsearch.errors import ConfigError
from experiments.benchmarks import kept, peers
from experiments.benchmarks.peer_methods import DEFAULT, packages

PROJECTED = "model.shortcut=projection"
SHARED = {"finetune": {"lr": 0.1}, "images": 1, "scored": 2}
STAMP = {"machine": "here", "versions": {"torch": "2.0", "torch-pruning": "1.5"}}


def row(method, seed=0, macs=0.5, **more):
    known = {"name": "net", "method": method, "evaluations": 4, "macs": macs, "seed": seed}
    if "skipped" in more:
        return known | more
    worth = {"scored": 4, "seconds": 1.5, "cost": 40, "of": 80, "full": 0.9, "before": 0.5}
    return known | worth | {"after": 0.8} | STAMP | more


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """The program on a tiny network of digits, its pieces one after the other in this process."""

    def one_by_one(pieces, _workers, done):
        for piece in pieces.values():
            done(piece())

    def called(*words):
        places = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "peers.json")]
        tiny = [
            "model.widths=[4, 6]",
            "model.depths=[1, 1]",
            "pretrain.epochs=1",
            "finetune.batch_size=64",
        ]
        given = [word for change in tiny for word in ("--set", change)]
        sizes = ["--evaluations", "3", "--images", "128", "--scored", "64", "--name", "tiny"]
        config = ["--config", "experiments/digits/config.toml"]
        argv = ["peers", *config, *given, *places, *sizes, "--seeds", "0", *words]
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(peers, "side_by_side", one_by_one)
        peers.main()
        return capsys.readouterr().out

    return called


def test_ours_is_a_row_and_a_peer_that_is_missing_is_named(call, tmp_path, monkeypatch):
    """What one cannot do keeps nothing from the others, and is tried again; what is known is not."""
    for module in ("modelopt.torch.prune", "torch_pruning"):
        monkeypatch.setitem(sys.modules, module, None)
    methods = ["--methods", "fastnas", "torch_pruning-global-l1", "random", "--macs", "0.5"]
    said = call(*methods)
    rows = {own["method"]: own for own in json.loads((tmp_path / "peers.json").read_text())["rows"]}
    assert list(rows) == ["fastnas", "torch_pruning-global-l1", "random"]
    for peer in ("fastnas", "torch_pruning-global-l1"):
        assert "ModuleNotFoundError" in rows[peer]["skipped"]
        assert rows[peer]["skipped"] in said
    ours = rows["random"]
    assert ours["scored"] == 3
    assert ours["cost"] <= 0.5 * ours["of"]
    assert 0 <= ours["before"] <= 1
    assert list(ours["versions"]) == ["abcsearch", "torch", "numpy"]
    before = (tmp_path / "peers.json").read_text()
    assert call(*methods) == said
    again = {
        own["method"]: own for own in json.loads((tmp_path / "peers.json").read_text())["rows"]
    }
    assert again == rows
    assert call("--redraw") == said
    assert (tmp_path / "peers.json").read_text() != ""
    assert json.loads(before)["settings"].keys() == {"tiny"}


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("criterion", ["l1", "l2", "group"])
def test_torch_pruning_meets_the_budget(call, tmp_path, scope, criterion):
    pytest.importorskip("torch_pruning", reason="Torch-Pruning needs the extra `bench`")
    call("--methods", f"torch_pruning-{scope}-{criterion}", "--macs", "0.6", "--set", PROJECTED)
    (known,) = json.loads((tmp_path / "peers.json").read_text())["rows"]
    assert 0.3 <= known["cost"] / known["of"] <= 0.6
    assert "torch-pruning" in known["versions"]


def test_tables_have_differences_seed_by_seed():
    """By hand: differences -2, -4 and -6 points have mean -4, deviation 2, and t(0.975, 2) = 4.303."""
    rows = [row(DEFAULT, seed, after=0.8 + seed / 100) for seed in range(3)]
    rows += [row("fastnas", seed, after=0.78 - seed / 100) for seed in range(3)]
    rows += [row("random", 1, after=0.85), row("torch_pruning-global-l1", skipped="no such thing")]
    text = peers.tables(rows)
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == ["random", DEFAULT, "fastnas"]
    assert lines[0].endswith("| 85.0 | +4.0 |")
    assert lines[1].endswith("| 81.0 ± 1.0 |  |")
    assert lines[2].endswith("| 77.0 ± 1.0 | -4.0 ± 5.0 |")
    assert lines[2].startswith("| `fastnas` | 3 | 4 | 2 | 50.0 ± 0.0 | 50.0 ± 0.0 |")
    assert "`torch_pruning-global-l1`: no such thing" in text


def test_rows_of_other_numbers_of_evaluations_are_rows_of_their_own():
    rows = [row(DEFAULT, seed) for seed in range(2)] + [row(DEFAULT, 0, evaluations=110, after=0.9)]
    rows += [row("random", seed) for seed in range(2)]
    lines = [line for line in peers.tables(rows).splitlines() if line.startswith("| `")]
    assert [line.split("|")[2].strip() for line in lines] == ["1", "2", "2"]
    assert {line.split("|")[-2].strip() for line in lines} == {"", "+0.0 ± 0.0"}


@pytest.mark.parametrize(
    "method", ["fastnas-defualt", "torch_pruning-global", "respons", "+repair"]
)
def test_methods_that_are_none_are_refused(call, method):
    with pytest.raises(SystemExit, match=f"there is no method {method!r}".replace("+", "[+]")):
        call("--methods", method)


def test_without_rows_there_is_no_table(call):
    with pytest.raises(SystemExit, match="has no rows yet"):
        call("--redraw")


def test_runs_of_other_settings_go_to_other_folders(call, tmp_path):
    """Measured anew is measured, not taken from a run folder of before."""
    call("--methods", "random", "--macs", "0.5")
    call("--methods", "random", "--macs", "0.5", "--set", "pretrain.lr=0.01", "--anew")
    assert len(list((tmp_path / "runs").iterdir())) == 2
    with pytest.raises(SystemExit, match=r"pretrain\.lr: 0\.01 there, 0\.02 now.*\(--anew\)"):
        call("--methods", "random", "--macs", "0.5", "--set", "pretrain.lr=0.02")


@pytest.fixture
def now(monkeypatch):
    """Versions that are said to be installed."""
    versions = {"abcsearch": "0.1.0", "torch": "2.0", "numpy": "2.4", "torch-pruning": "1.5"}
    monkeypatch.setattr(
        kept, "installed", lambda names: {n: versions[n] for n in names if n in versions}
    )
    return versions


def test_rows_of_other_settings_are_refused(tmp_path, now):
    file = tmp_path / "peers.json"
    results = peers.read(file)
    results.begin("net", SHARED, packages("random"), anew=False)
    results.add(row("random"))
    with pytest.raises(ConfigError, match=r"images: 1 there, 3 now.*--anew"):
        peers.read(file).begin("net", SHARED | {"images": 3}, packages("random"), anew=False)
    other = peers.read(file)
    other.begin("another", SHARED | {"images": 3}, packages("random"), anew=False)
    assert len(other.rows) == 1
    other.begin("net", SHARED | {"images": 3}, packages("random"), anew=True)
    assert not other.rows


@pytest.mark.parametrize("package", ["torch", "torch-pruning"])
def test_rows_of_other_versions_are_refused_and_the_page_has_those_of_the_rows(
    tmp_path, now, package
):
    """A newer torch, or a newer peer, does not join older rows, nor take their place in what the page states."""
    file, method = tmp_path / "peers.json", "torch_pruning-global-l1"
    results = peers.read(file)
    results.begin("net", SHARED, packages(method), anew=False)
    results.add(row(method))
    before = file.read_bytes()
    old, now[package] = now[package], "9.9"
    with pytest.raises(ConfigError, match=rf"{package}: {old} there, 9\.9 now.*--name.*--anew"):
        peers.read(file).begin("net", SHARED, packages(method), anew=False)
    assert file.read_bytes() == before
    assert peers.written(peers.read(file)).endswith("here; torch 2.0, torch-pruning 1.5.")


def test_a_peer_that_is_not_asked_for_may_have_another_version(tmp_path, now):
    results = peers.read(tmp_path / "peers.json")
    results.begin("net", SHARED, packages("torch_pruning-global-l1"), anew=False)
    results.add(row("torch_pruning-global-l1"))
    now["torch-pruning"] = "9.9"
    results.begin("net", SHARED, packages("random"), anew=False)
    assert len(results.rows) == 1


def test_the_page_is_that_of_the_results_beside_it():
    results = peers.read(peers.HERE / "peers.json")
    assert f"<!-- peers -->\n{peers.written(results)}\n<!-- /peers -->" in peers.PAGE.read_text()


def test_the_results_beside_the_page_go_on_with_its_command(now):
    """Options that are new since then, as `bake` in [space] was, are no other settings."""
    page = peers.PAGE.read_text()
    command = page.partition('make bench-peers ARGS="')[2].partition('"`')[0].split()
    given = [word for before, word in pairwise(command) if before == "--set"]
    shared = kept.decided(command[command.index("--config") + 1], given)
    now["torch"] = "2.14.1"
    results = peers.read(peers.HERE / "peers.json")
    results.begin(
        command[command.index("--name") + 1],
        shared | {"images": 8000, "scored": 2000},
        packages("random"),
        anew=False,
    )
    assert len(results.rows) == 55


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"rows": 3}',
        '{"rows": [{}], "settings": {}}',
        json.dumps({"settings": {"net": {}}, "rows": [row("random") | {"versions": 3}]}),
        json.dumps({"settings": {"net": {}}, "rows": [row("random") | {"name": "other"}]}),
    ],
)
def test_damaged_results_are_refused(tmp_path, text):
    (tmp_path / "peers.json").write_text(text)
    with pytest.raises(ConfigError, match="is damaged"):
        peers.read(tmp_path / "peers.json")
