"""Where exports go: nothing of others is overwritten, and mistyped names are refused before anything slow is done."""

import pytest
import torch
from torch import nn

from abcsearch.errors import AbcSearchError, ExportError
from abcsearch.exporting import export, load
from abcsearch.exporting.targets import check_target


def network():
    return nn.Conv2d(3, 4, 1)


OPTIONS = {"in_channels": 3, "out_channels": 4, "kernel_size": 1}
EXAMPLE = torch.rand(2, 3, 4, 4)


def written(path, **others):
    return export(network(), path, example_input=EXAMPLE, options=OPTIONS, **others)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (
            {"model.safetensors": b"weights", "config.json": b"{}"},
            "model.safetensors",
        ),  # as of Hugging Face
        ({"plan.json": b'{"steps": []}'}, "plan.json"),
        ({"plan.json": b"no json", "model.safetensors": b""}, "plan.json"),
        ({"plan.json": b"[]"}, "plan.json"),
    ],
)
def test_files_of_others_are_not_overwritten(tmp_path, files, named):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ExportError, match=rf"{named} would be overwritten.*choose a new folder, or remove the file"
    ):
        written(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_an_older_export_is_replaced_also_where_it_is_half_there(tmp_path):
    written(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "notes.txt").write_text("mine")
    made = written(tmp_path)
    assert torch.equal(load(made)(EXAMPLE).isfinite(), torch.ones(2, 4, 4, 4, dtype=torch.bool))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_export_whose_plan_is_lost_is_written_again(tmp_path):
    written(tmp_path)
    (tmp_path / "plan.json").unlink()
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # whose it is, nothing says
    with pytest.raises(ExportError, match="would be overwritten"):
        written(tmp_path)
    weights.write_bytes(whole)
    written(tmp_path)
    assert (tmp_path / "plan.json").is_file()
    load(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[]", "{"])
def test_what_holds_another_plan_is_not_overwritten(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ExportError, match=r"plan.json would be overwritten"):
        written(tmp_path)
    assert (tmp_path / "plan.json").read_text() == text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digits.onx", r"unknown ending '.onx'; did you mean '.onnx'\? a folder has none"),
        ("digits.ONX", "did you mean '.onnx'"),
        ("digits.pt", r"unknown ending '.pt'; did you mean '.pt2'\? a folder has none"),
        ("digits.pth", "did you mean '.pt2'"),
        (
            "digits.zip",
            r"unknown ending '.zip'; an export is a folder, or a file that ends in .onnx or .pt2; a folder",
        ),
        ("digits.tflite", "unknown ending '.tflite'"),
        ("digits.safetensors", "unknown ending '.safetensors'"),
        ("", "path of an export is empty; give a folder"),
    ],
)
@pytest.mark.parametrize("kind", [None, "onnx"])
def test_names_that_are_no_exports_are_refused(tmp_path, monkeypatch, name, words, kind):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=words):
        check_target(name, kind)
    with pytest.raises(ExportError, match=words):
        written(name, format=kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["run-1.2", "v2.0", "net.small", "2026.11.22", ".hidden", "a.b.c", "digits.txt2"]
)
def test_names_with_dots_are_folders(tmp_path, name):
    assert check_target(tmp_path / name, None) == ("safetensors", tmp_path / name)
    assert check_target(tmp_path / name, "onnx") == ("onnx", tmp_path / name / "model.onnx")
    (tmp_path / "old.zip").mkdir()  # the user's own name
    assert check_target(tmp_path / "old.zip", None)[1] == tmp_path / "old.zip"


def test_a_folder_for_a_file_and_a_file_for_a_folder_are_refused_first(tmp_path):
    (tmp_path / "dir.onnx").mkdir()
    (tmp_path / "dir" / "model.pt2").mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    for path, kind, words in [
        ("dir.onnx", None, "dir.onnx is a folder, but onnx is one file"),
        ("dir", "pt2", "model.pt2 is a folder, but pt2 is one file"),
        ("file", None, "file is a file; give another name, or one that ends in .onnx or .pt2"),
        ("file", "onnx", "cannot be written: .*file is a file; give another name"),
        ("file/below/it", None, "below/it cannot be written: .*file is a file"),
    ]:
        with pytest.raises(ExportError, match=words):
            check_target(tmp_path / path, kind)
    with pytest.raises(ExportError, match="is a file; give another name"):
        written(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", ["safetensors", "pt2"])
def test_a_failed_export_leaves_no_new_folder_behind(tmp_path, kind):
    (tmp_path / "old").mkdir()
    for path in ("new/below", "old", "old/new"):
        with pytest.raises(AbcSearchError):
            export(nn.LSTM(3, 3), tmp_path / path, example_input=torch.rand(2, 3), format=kind)
    with pytest.raises(ExportError, match="finite"):
        export(
            nn.Conv2d(3, 4, 1),
            tmp_path / "new" / "one",
            example_input=EXAMPLE * torch.inf,
            options=OPTIONS,
        )
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]
