"""A cluster of three Ray nodes on this machine, of which one is lost, or the head."""

import os
import secrets
import shutil
import tempfile

import pytest

from abcsearch.runs.folder import RunFolder
from tests.evaluators import Troubled
from tests.problems import assert_same_as, finished, loop, started, undisturbed, until_trials, written

pytestmark = pytest.mark.faults

N = 40


@pytest.fixture
def environment():
    """What every process of the cluster needs: a token, and a folder of its own, with a short name for its sockets."""
    folder = tempfile.mkdtemp(prefix="abc")
    values = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": folder}
    values |= {"RAY_USAGE_STATS_ENABLED": "0"}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    yield values
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(environment):
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1, wait=False)
    made.wait_for_nodes()
    yield made
    made.shutdown()


def driven(path, cluster, environment, **options):
    """Returns a driver on the cluster, on which evaluations take their time."""
    path.mkdir()
    (path / "attempts").mkdir()
    return started(
        path,
        n_trials=N,
        evaluator=Troubled(path / "attempts", seconds=0.3),
        window=6,
        workers=3,
        address=cluster.address,
        environment=environment,
        **options,
    )


def test_a_lost_node_changes_nothing(tmp_path, cluster, environment):
    expected = undisturbed(tmp_path, n_trials=N, window=6)
    driver = driven(tmp_path / "run", cluster, environment)
    until_trials(tmp_path / "run", 8)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    finished(driver)
    assert_same_as(tmp_path / "run", expected)
    assert "worker lost: its machine was lost" in (tmp_path / "run" / "log.txt").read_text()
    assert b'"lost"' not in (tmp_path / "run" / "journal.jsonl").read_bytes()  # no fault of the candidates


def test_a_lost_head_ends_the_run_with_a_clear_message_and_it_can_be_continued(tmp_path, cluster, environment):
    expected = undisturbed(tmp_path, n_trials=N, window=6)
    driver = driven(tmp_path / "run", cluster, environment)
    until_trials(tmp_path / "run", 8)
    before = written(tmp_path / "run")
    cluster.head_node.kill_gcs_server(check_alive=False)
    finished(driver, status=2)
    assert "the Ray head at 127.0.0.1" in (tmp_path / "run" / "log.txt").read_text()
    assert before.items() <= written(tmp_path / "run").items()
    loop(tmp_path / "run", n_trials=N, window=6).run()
    assert_same_as(tmp_path / "run", expected)


def test_a_lost_head_machine_ends_the_run_as_well(tmp_path, cluster, environment):
    driver = driven(tmp_path / "run", cluster, environment)
    until_trials(tmp_path / "run", 8)
    cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    finished(driver, status=2)
    assert RunFolder(tmp_path / "run").read_json("searcher.json")["told"] >= 8
