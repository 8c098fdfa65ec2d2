"""What comes next, and what is exported, whatever the record of a run holds."""

import json
import shutil
from pathlib import Path

import pytest

from abcsearch.files import CHECKSUM
from tests import headers

GOLDEN = Path(__file__).parents[1] / "golden" / "run"


@pytest.mark.parametrize("value", [*headers.KINDS, [{"name": "low_rank"}], [["name"]]])
def test_status_goes_on_where_transforms_are_no_list_of_tables(tmp_path, value):
    run = tmp_path / "run"
    shutil.copytree(GOLDEN, run)
    header = json.loads((run / "run.json").read_text())
    header.pop(CHECKSUM, None)
    header["settings"].setdefault("transform", [])
    assert not headers.failures(run, header, [(("settings", "transform"), value)], ["status"])


@pytest.mark.parametrize("value", [None, True, "x", ["x"], {"x": 1}])
def test_a_run_whose_versions_are_no_table_is_exported(tmp_path, value):
    run = tmp_path / "run"
    shutil.copytree(GOLDEN, run)
    header = json.loads((run / "run.json").read_text())
    header.pop(CHECKSUM, None)
    assert not headers.failures(run, header, [(("environment", "versions"), value)], ["export"])
