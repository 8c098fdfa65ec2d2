"""Settings of execution: every rule says what it found, all at once."""

import http.server
import threading
from dataclasses import replace

import pytest

from abcsearch.config import parse_config, read_config
from abcsearch.errors import ConfigError, RunError
from abcsearch.execution.options import ExecutionOptions
from abcsearch.runs.config_run import run_config
from abcsearch.runs.workers import changed_execution


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": -1}, "workers is at least 0, found -1"),
        ({"workers": 2.5}, "workers is a whole number, found 2.5"),
        (
            {"workers": 1, "gpus": -0.5},
            "gpus is a share of a GPU per worker, at least 0, found -0.5",
        ),
        ({"workers": 1, "gpus": 1.5}, "gpus above 1 is a whole number, found 1.5"),
        ({"workers": 1, "timeout": 0}, "timeout is a number of seconds, above 0, found 0"),
        (
            {"timeout": 5.0},
            "timeout needs workers: an evaluation in this process cannot be stopped",
        ),
        (
            {"schedule": "async"},
            "unknown schedule 'async'; did you mean 'asynchronous'? choose one of",
        ),
        ({"window": -3}, "window is at least 0, found -3"),
        ({"schedule": "asynchronous", "window": 3}, "window = 3 is for the schedule rounds"),
        ({"ray_address": "auto"}, "ray_address = 'auto' without workers"),
        ({"workers": 2, "ray_address": "ray://h:10001"}, "is of the Ray client"),
        (
            {"workers": -1, "window": -1},
            "workers is at least 0, found -1; window is at least 0, found -1",
        ),
    ],
)
def test_wrong_settings_are_named_with_what_was_found(options, words):
    with pytest.raises(ConfigError) as error:
        ExecutionOptions(**options)
    assert words in str(error.value)


def test_a_config_has_them_and_names_typos():
    plain = {
        "n_trials": 1,
        "model": "small_resnet",
        "data": "digits",
        "pretrain": {"epochs": 1},
        "budget": {"macs": 1},
    }
    made = parse_config({**plain, "execution": {"workers": 2, "timeout": 60}}).execution
    assert made == ExecutionOptions(workers=2, timeout=60)
    with pytest.raises(ConfigError, match=r"'worker'; did you mean 'workers'"):
        parse_config({**plain, "execution": {"worker": 2}})


@pytest.mark.parametrize(
    ("execution", "words"),
    [
        (
            {"workers": 1, "ray_address": "nonsense"},
            "ray_address is host:port or auto, found 'nonsense'",
        ),
        (
            {"workers": 1, "ray_address": "127.0.0.1:70000"},
            "is host:port or auto, found '127.0.0.1:70000'",
        ),
        ({"workers": 1, "ray_address": "127.0.0.1:1"}, "no Ray cluster answers at 127.0.0.1:1"),
        ({"workers": 1, "ray_address": "127.0.0.1:WEB"}, "is not a Ray cluster"),
        ({"workers": 1, "gpus": 0.5}, "this machine has no GPU"),
    ],
)
def test_what_cannot_work_is_found_before_anything_is_trained(
    tiny_config, tmp_path, monkeypatch, execution, words
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as web:
        threading.Thread(target=web.handle_request, daemon=True).start()
        web.RequestHandlerClass.log_message = lambda *_: None
        address = str(execution.get("ray_address")).replace("WEB", str(web.server_port))
        given = {**execution, "ray_address": address} if "ray_address" in execution else execution
        config = replace(read_config(tiny_config), execution=ExecutionOptions(**given))
        with pytest.raises(RunError) as error:
            run_config(config, tmp_path / "run")
    assert words in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_needs_no_cluster(tiny_config, tmp_path):
    """Everybody has left it by then."""
    config = replace(read_config(tiny_config), baselines=())
    best = run_config(config, tmp_path / "run").best
    gone = replace(config, execution=ExecutionOptions(workers=1, ray_address="127.0.0.1:1"))
    assert run_config(gone, tmp_path / "run").best == best


def test_a_continued_run_may_change_where_but_not_what():
    before = ExecutionOptions(workers=4, ray_address="auto", timeout=60, window=8)
    assert changed_execution(before, {}) == before
    assert changed_execution(before, {"workers": 0}) == ExecutionOptions(window=8)
    changed = changed_execution(before, {"workers": 2, "gpus": 0.5})
    assert changed == ExecutionOptions(
        workers=2, ray_address="auto", timeout=60, gpus=0.5, window=8
    )
    with pytest.raises(
        ConfigError, match=r"execution.window decides the trials: 8 in the folder, 9 now"
    ):
        changed_execution(before, {"window": 9})
    with pytest.raises(ConfigError, match=r"'wrkers'; did you mean 'workers'"):
        changed_execution(before, {"wrkers": 2})
