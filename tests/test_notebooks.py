"""Every notebook runs in its short form, draws, warns of nothing, and is stored without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Jupyter packages themselves
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, monkeypatch, tmp_path):
    monkeypatch.setenv("ABCSEARCH_SHORT", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Networks of the short form are hardly trained
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:set-up")
    notebook = nbformat.read(path, as_version=4)
    # A busy machine is no mistake
    options = {"timeout": 600, "startup_timeout": 600, "kernel_name": "python3"}
    NotebookClient(notebook, **options, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    assert [
        output.text for output in outputs if output.get("name") == "stderr"
    ] == []  # no warning litters the page
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert not any(cell.outputs or cell.execution_count for cell in cells)
