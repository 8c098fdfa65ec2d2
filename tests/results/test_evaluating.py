"""`abcsearch evaluate` and runs that start from an export."""

import json
import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from abcsearch import cli, low_rank
from abcsearch.data.registry import load_data
from abcsearch.exporting import export, load, open_export
from abcsearch.files import unsealed
from abcsearch.models.resnet import SmallResNet
from abcsearch.results import evaluating, open_run
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.resuming import resume
from abcsearch.training.scoring import score
from abcsearch.transforms.factors import Factorised
from tests.records import aged, rewrite


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run whose winner has been exported in all formats."""
    from tests.conftest import TINY_CONFIG

    folder = tmp_path_factory.mktemp("job")
    (folder / "tiny.toml").write_text(TINY_CONFIG.replace('"uniform", "random"', ""))
    assert call("search", folder / "tiny.toml", "--run-dir", folder / "run").exit_code == 0
    assert call("finetune", folder / "run").exit_code == 0
    for kind in ("safetensors", "onnx", "pt2"):
        done = call("export", folder / "run", "--format", kind)
        assert done.exit_code == 0, done.output
        assert "largest difference" in done.output
    return folder


def measured(*arguments):
    done = call("evaluate", *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


PLACES = ("", "model.onnx", "model.pt2")


@pytest.mark.parametrize("place", PLACES)
def test_all_formats_score_as_the_module_does_and_as_the_report_says(exported, place):
    pytest.importorskip("onnxruntime")
    path, data = exported / "run" / "export" / place, load_data("digits", seed=0)
    found = measured(path, "--batch", 3)
    after = json.loads((exported / "run" / "finetuned" / "bee_colony.json").read_text())["after"]
    expected = score(load(exported / "run" / "export"), data.test)
    assert expected == pytest.approx(after)
    assert found["metrics"] == pytest.approx(expected, abs=1e-5)
    assert found["metrics"]["top1"] == expected["top1"]
    assert list(found["latency_ms"]) == ["1", "3"]
    assert all(ms > 0 for ms in found["latency_ms"].values())
    best = json.loads((exported / "run" / "best.json").read_text())["evaluation"]
    assert (found["macs"], found["params"]) == (best["macs"], best["params"])
    files = [path] if place else [path / "model.safetensors", path / "plan.json"]
    assert found["bytes"] == sum(file.stat().st_size for file in files)
    info = open_export(path)[1]["info"]
    assert (info["classes"], info["input"]["shape"], info["metric"], info["fine_tuned"]) == (
        10,
        [1, 8, 8],
        "top1",
        True,
    )
    pixels = data.test.images * info["input"]["std"][0] + info["input"]["mean"][0]
    # Of digits, whole numbers from 0 to 16
    assert torch.allclose(16 * pixels, (16 * pixels).round(), atol=1e-3)


@pytest.mark.parametrize("name", ["", "model.onnx"])
def test_what_the_winner_is_compared_with_is_exported_beside_it(exported, name):
    pytest.importorskip("onnxruntime")
    folder = exported / "run" / "export"
    before = (folder / (name or "model.safetensors")).read_bytes()
    kind = "onnx" if name else "safetensors"
    done = call("export", exported / "run", "--network", "full", "--format", kind)
    assert done.exit_code == 0, done.output
    found, info = measured(folder / "full" / name), open_export(folder / "full" / name)[1]["info"]
    after = json.loads((exported / "run" / "finetuned" / "full.json").read_text())["after"]
    assert found["metrics"] == pytest.approx(after, abs=1e-5)
    assert found["params"] == sum(p.numel() for p in load(folder / "full").parameters())
    assert all(kept == full for kept, full in info["widths"].values())
    assert info["test"] == after
    assert (folder / (name or "model.safetensors")).read_bytes() == before
    wrong = call("export", exported / "run", "--network", "../ful")
    assert wrong.exit_code == 2
    assert "unknown network '../ful'; did you mean 'full'?" in wrong.output


def test_data_are_those_of_the_run_a_config_or_by_name(exported):
    path = exported / "run" / "export"
    own, validation = measured(path), measured(path, "--split", "validation")
    assert (own["images"], validation["images"]) == (360, 360)
    assert own["metrics"] != validation["metrics"]
    for data in (exported / "run", exported / "tiny.toml", "digits"):
        assert measured(path, "--data", data)["metrics"] == own["metrics"]
        assert (
            measured(path, "--data", data, "--split", "validation")["metrics"]
            == validation["metrics"]
        )
    other = measured(
        path,
        "--data",
        "digits",
        "--set",
        "validation=100",
        "--set",
        "data.seed=3",
        "--split",
        "validation",
    )
    assert other["images"] == 100
    text = call("evaluate", path).output
    assert f"360 test images: top1 {100 * own['metrics']['top1']:.2f} %" in text
    assert f"{own['params']:,} params" in text


def test_mistakes_are_one_message_and_exit_status_2(exported, tmp_path):
    run = exported / "run"
    torch.save({}, tmp_path / "net.pt")
    (tmp_path / "cut.pt2").write_bytes((run / "export" / "model.pt2").read_bytes()[:5000])
    model = SmallResNet(3, 10, (4,), (1,))
    bare = export(
        model,
        tmp_path / "bare",
        example_input=torch.zeros(1, 3, 8, 8),
        options={"in_channels": 3, "widths": [4], "depths": [1]},
    )
    few = export(
        SmallResNet(1, 4, (4,), (1,)),
        tmp_path / "few",
        example_input=torch.zeros(1, 1, 8, 8),
        options={"classes": 4, "widths": [4], "depths": [1]},
    )
    for arguments, words in [
        ([run], f"is a run folder, evaluated is an export of it; abcsearch evaluate {run}/export"),
        ([tmp_path / "net.pt"], "net.pt is not an export"),
        ([tmp_path / "nothing"], "nothing does not exist"),
        ([tmp_path / "cut.pt2"], "cut.pt2 is damaged, or no archive"),
        ([bare], "does not say what data it is for; give them: --data"),
        ([bare, "--data", "digits"], "does not take the images of digits, (1, 8, 8)"),
        ([few, "--data", "digits"], "label 9 has no output: the model has 4 classes"),
        ([run / "export", "--data", "digit"], "did you mean 'digits'"),
        ([run / "export", "--data", tmp_path], "run.json"),
        ([run / "export", "--set", "seed=1"], "give both"),
        ([run / "export", "--split", "train"], "split is test or validation, found 'train'"),
        ([run / "export" / "model.pt2", "--device", "meta"], "device is"),
    ]:
        done = call("evaluate", *[str(getattr(a, "path", a)) for a in arguments])
        assert done.exit_code == 2, (arguments, done.output)
        assert words in done.output.replace("\n", " "), (arguments, done.output)
        assert len(done.output.splitlines()) == 1


def test_what_an_export_does_not_say_is_noted_and_not_made_up(exported, tmp_path):
    place, options = tmp_path / "bare", {"widths": [4], "depths": [1]}
    model = SmallResNet(1, 10, (4,), (1,))
    export(model, place, example_input=torch.zeros(1, 1, 8, 8), options=options)
    lines = call("evaluate", place, "--data", "digits").output.splitlines()
    assert lines[-1] == f"note: {evaluating._NO_SCALE}"
    assert not any("MACs" in line for line in lines)
    assert measured(place, "--data", "digits")["notes"] == [evaluating._NO_SCALE]
    assert measured(exported / "run" / "export", "--data", "digits")["notes"] == []
    rewrite(place / "plan.json", {"info": {"macs": "many"}})
    done = call("evaluate", place, "--data", "digits")
    assert done.exit_code == 2
    assert "is damaged: info.macs is a whole number, found 'many'" in done.output


def test_a_run_folder_that_cannot_be_written_to_is_exported_elsewhere(
    exported, tmp_path, monkeypatch
):
    run, expected = exported / "run", load(exported / "run" / "export").state_dict()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def refused(*_arguments, **_options):
        raise PermissionError

    monkeypatch.setattr(open_run, "os", SimpleNamespace(access=lambda *_: False, W_OK=2))
    for name in ("locked", "write", "log"):
        monkeypatch.setattr(RunFolder, name, refused)
    done = call("export", run, "--out", tmp_path / "pruned")
    assert done.exit_code == 0, done.output
    found = load(tmp_path / "pruned").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_large_batches_are_timed_few_times(monkeypatch):
    class Slow(torch.nn.Module):
        passes = 0

        def forward(self, x):
            self.passes += 1
            time.sleep(0.02)
            return x

    slow = Slow()
    monkeypatch.setattr(evaluating, "_SECONDS", 0.05)
    assert evaluating._median_ms(slow, torch.zeros(1, 1), 1) >= 20
    assert slow.passes == 4  # the first does not count


AGAIN = """
n_trials = 6
baselines = []
model = {export = "pruned"}
data = {name = "digits"}
budget = {macs = 0.7}
searcher = {name = "random"}
evaluator = {name = "adaptive_bn", calibration_images = 64, batch_size = 64}
finetune = {epochs = 1, batch_size = 256, lr = 0.02}
"""


def test_an_export_whose_layers_are_products_is_pruned_again(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = unsealed((exported / "run" / "export" / "plan.json").read_text())[0]
    data = load_data("digits", seed=0)
    made = low_rank(load(exported / "run" / "export"), data.example, ranks=0.5)
    assert made.factors
    options = plan["constructor"]["options"]
    export(
        made.model,
        "pruned",
        example_input=data.example,
        constructor="small_resnet",
        options=options,
    )
    (tmp_path / "again.toml").write_text(AGAIN)
    done = call("search", "again.toml", "--run-dir", "again")
    assert done.exit_code == 0, done.output
    run = resume("again")
    assert torch.equal(run.task.source.model(data.example), made.model(data.example))
    done = call("export", "again", "--out", "twice")
    assert done.exit_code == 0, done.output
    twice = load("twice")
    assert torch.allclose(twice(data.example), run.model()(data.example), atol=1e-5)
    kinds = {path for path, module in twice.named_modules() if isinstance(module, Factorised)}
    assert kinds >= {factors.path for factors in made.factors}


def test_an_export_is_pruned_again_from_the_command_line(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported / "run" / "export", "pruned")
    (tmp_path / "again.toml").write_text(AGAIN)
    done = call("search", "again.toml", "--run-dir", "again")
    assert done.exit_code == 0, done.output
    first, data = load("pruned"), load_data("digits", seed=0)
    run = resume("again")
    assert torch.equal(run.task.source.model(data.example), first(data.example))
    weights = (tmp_path / "pruned" / "model.safetensors").read_bytes()
    (tmp_path / "pruned" / "model.safetensors").write_bytes(weights[:-4] + b"\0\0\0\1")
    refused = call("search", "again.toml", "--run-dir", "again")
    assert refused.exit_code == 2
    assert "pruned is damaged: in plan.json, weights is the hash of others" in refused.output
    with torch.no_grad():
        next(first.parameters()).zero_()
    plan = unsealed((tmp_path / "pruned" / "plan.json").read_text())[0]
    options = plan["constructor"]["options"]
    export(first, "pruned", example_input=data.example, constructor="small_resnet", options=options)
    refused = call("search", "again.toml", "--run-dir", "again")
    assert refused.exit_code == 2
    assert (
        f"the export that model.export names has changed: {tmp_path / 'pruned'} (hash"
        in refused.output
    )
    assert "checkpoint" not in refused.output
    shutil.rmtree("pruned")
    refused = call("search", "again.toml", "--run-dir", "again")
    assert refused.exit_code == 2
    assert "pruned does not exist" in refused.output
    for command in ("resume", "finetune", "export"):  # it keeps what it needs
        done = call(command, "again")
        assert done.exit_code == 0, done.output
    second, again = (
        load("again/export"),
        json.loads((tmp_path / "again" / "export" / "plan.json").read_text()),
    )
    assert again["constructor"] == plan["constructor"]
    assert sum(p.numel() for p in second.parameters()) < sum(p.numel() for p in first.parameters())
    assert measured("again/export")["macs"] <= 0.7 * measured(exported / "run" / "export")["macs"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('{export = "nowhere"}', "nowhere does not exist; write one with"),
        ('{export = "nowhere", name = "resnet20"}', "found also name: leave them out"),
        ("{export = 3}", "found 3"),
    ],
)
def test_a_wrong_export_in_a_config_is_one_of_its_mistakes(tmp_path, table, words):
    (tmp_path / "again.toml").write_text(
        AGAIN.replace('{export = "pruned"}', table) + "\n[space]\nalpa = 1\n"
    )
    done = call("search", tmp_path / "again.toml", "--run-dir", tmp_path / "run")
    assert done.exit_code == 2
    assert words in done.output
    assert "did you mean 'alpha'" in done.output


def test_an_older_run_folder_without_sizes_still_opens(exported, tmp_path):
    shutil.copytree(exported / "run", tmp_path / "run")
    rewrite(tmp_path / "run" / "run.json", lambda header: header["settings"]["model"].pop("sizes"))
    aged(tmp_path / "run" / "run.json")
    with pytest.warns(
        UserWarning, match="was written by an older version: its files have no checksums"
    ):
        assert len(resume(tmp_path / "run").trials) == 24
