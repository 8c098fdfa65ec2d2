"""Whatever happens to one file of a run, `status` says so and shows the rest; only without run.json there is no run."""

import json
import random
import shutil

import pytest

from abcsearch.config import read_run
from abcsearch.runs.config_run import run_front_config
from tests.conftest import TINY_CONFIG
from tests.mutations import call

RUN = (
    TINY_CONFIG.replace("n_trials = 24", "n_trials = 4").replace(
        '{name = "bee_colony", n_sources = 4}', '{name = "sensitivity", levels = 2}'
    )
    + 'prepare = {name = "slimming", strength = 0.05, recipe = {epochs = 1, batch_size = 256, lr = 0.05}}\n'
)
FRONT = TINY_CONFIG.replace("budget = {macs = 0.5}", "budgets = [{macs = 0.7}, {macs = 0.4}]")


def _other_types(content):
    """Returns JSON with the same names whose values are all of another type; nonsense of anything else."""
    try:
        return json.dumps(_turned(json.loads(content))).encode()
    except ValueError:
        return b'{"number": [], "candidate": "x"}\n'


def _turned(value):
    if isinstance(value, dict):
        return {name: _turned(inner) for name, inner in value.items() if name != "checksum"}
    return {} if isinstance(value, str | list) else "1"


DRAWS = random.Random(0)
DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "random bytes": lambda content: DRAWS.randbytes(max(len(content), 40)),
    "a table": lambda _: b"{}\n",
    "a list": lambda _: b"[1, 2]\n",
    "other types": _other_types,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with a map, something prepared, baselines, what is fine-tuned."""
    path = tmp_path_factory.mktemp("whole")
    (path / "run.toml").write_text(RUN)
    for arguments in (
        ("search", path / "run.toml", "--run-dir", path / "run"),
        ("finetune", path / "run"),
    ):
        code, text = call(*arguments)
        assert code == 0, text
    return path / "run"


def _files(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    return sorted(path.relative_to(folder) for path in files)


def _status(folder):
    code, text = call("status", folder)
    return code, text.replace("\n", " ")


def test_each_file_of_a_run_damaged_in_each_way(run, tmp_path):
    folder, silent = tmp_path / "run", []
    shutil.copytree(run, folder)
    assert {"map", "baselines", "finetuned"} <= {file.parts[0] for file in _files(folder)}
    for file in _files(folder):
        path = folder / file
        content = path.read_bytes()
        for kind, damage in DAMAGES.items():
            path.write_bytes(damage(content))
            code, text = _status(folder)
            if str(file) == "run.json":
                assert code == 2, (kind, text)
                assert (text.count("error: "), "run.json" in text) == (1, True), (kind, text)
            else:
                assert code == 0, (file, kind, text)
                assert "Traceback" not in text
                assert "of 4 trials" in text, (file, kind, text)
            if kind == "other types":
                assert call("status", folder, "--json")[0] == code
            silent += [] if path.name in text or "damaged" in text else [(str(file), kind)]
        path.write_bytes(content)
    # Of a journal that ends with it, it is a line that was not whole when the run was stopped
    assert not [one for one in silent if one[0] in ("map/run.json", "baselines/random/run.json")]


@pytest.mark.parametrize("name", ["map/run.json", "map/journal.jsonl"])
def test_of_a_damaged_map_it_says_what_to_do(run, tmp_path, name):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / name).write_text("{}\n" * 3)
    code, text = _status(tmp_path / "run")
    assert code == 0
    assert f"warning: the map is damaged: {tmp_path / 'run' / name}" in text
    assert f"delete {tmp_path / 'run' / 'map'}" in text


def test_a_budget_that_cannot_be_read_is_named_and_the_others_are_shown(tmp_path):
    path = tmp_path / "front.toml"
    path.write_text(FRONT.replace("n_trials = 24", "n_trials = 3"))
    run_front_config(read_run(path, ["baselines=[]"]), tmp_path / "run")
    for file in (
        *(tmp_path / "run" / "budgets").glob("1-*/*.json*"),
        tmp_path / "run" / "front.json",
    ):
        content = file.read_bytes()
        for kind, damage in DAMAGES.items():
            file.write_bytes(damage(content))
            code, text = _status(tmp_path / "run")
            assert code == (2 if file.name == "front.json" else 0), (kind, text)
            assert code or "2-macs-0.4: 3 of 3 trials" in text
            assert file.name != "run.json" or f"1-macs-0.7: {file}" in text, (kind, text)
        file.write_bytes(content)
