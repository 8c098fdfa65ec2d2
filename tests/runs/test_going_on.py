"""What a message says continues a run does so as it stands, of a run from Python with its objects put in."""

import re

import pytest
from typer.testing import CliRunner

import abcsearch
from abcsearch import Budget, Evaluation
from abcsearch.cli import app
from abcsearch.errors import FailuresError
from abcsearch.registry import OBJECT
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.going_on import going_on


def test_what_is_said_of_a_run_from_python_that_failed_goes_on_with_it(
    tiny_model, tiny_data, tmp_path
):
    """The call as it is printed, with the objects put in; status says how, too."""
    broken = []

    def shaky(candidate, seed):
        if not broken:
            raise ValueError("not yet")
        return Evaluation(0.5)

    with pytest.raises(FailuresError) as raised:
        abcsearch.search(
            tiny_model,
            tiny_data,
            run_dir=tmp_path / "it's",
            evaluator=shaky,
            budget=Budget(macs=0.6),
            n_trials=6,
            max_failures=3,
        )
    broken.append("mended")
    call = re.search(r"abcsearch\.resume\(.*\)", str(raised.value))[0]
    shown = CliRunner().invoke(app, ["status", str(tmp_path / "it's")]).output
    assert call in shown.replace("\n", "")
    objects = {"model": tiny_model, "data": tiny_data, "evaluator": shaky}
    for name in objects:
        call = call.replace(f"{name}=...", f"{name}={name}")
    assert "..." not in call
    result = eval(call, {"abcsearch": abcsearch, **objects})
    assert all(trial.evaluation.failure is None for trial in result.trials)
    shown = CliRunner().invoke(app, ["resume", str(tmp_path / "it's")]).output
    assert "evaluator=..." in shown.replace("\n", "")


def test_all_objects_that_settings_do_not_name_are_asked_for(tmp_path):
    """Of a baseline or map it is the run that goes on; of a config, and where nothing can be read, the command."""
    folder, own = RunFolder(tmp_path / "run"), {"name": f"Mine{OBJECT}"}
    (tmp_path / "run" / "map").mkdir(parents=True)
    settings = {"searcher": own, "evaluator": {"name": "adaptive_bn"}, "prepare": own}
    record = {"format": 2, "identity": {}, "environment": {}}
    folder.write_json(
        "run.json", {**record, "settings": {**settings, "criterion": ["l1", f"f{OBJECT}"]}}
    )
    call = f"abcsearch.resume({str(folder.path)!r}, model=..., data=..., searcher=..., prepare=..., criterion=..."
    assert going_on(folder) == f"{call}) in Python, with the same objects"
    assert (
        going_on(folder.map, n_trials="9")
        == f"{call}, n_trials=9) in Python, with the same objects"
    )
    folder.write_json("run.json", {**record, "settings": {**settings, "model": {}}})
    command = f"abcsearch resume {folder.path} --n-trials 9 --retry-failed"
    assert going_on(folder, n_trials="9", retry_failed=True) == command
    (folder.path / "run.json").write_text("{")
    assert going_on(folder, n_trials="9", retry_failed=True) == command
