"""What other runs have found: taken as it was, never evaluated again, refused where it is of another kind."""

import dataclasses
import shutil

import pytest
import torch

from abcsearch import Budget, Data, Evaluation, SpaceOptions, resume, search
from abcsearch.channels.options import LatencyOptions
from abcsearch.config import parse_config
from abcsearch.errors import ConfigError, RunError
from abcsearch.results.status import RunWatch
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.known import read_known
from abcsearch.searchers.random_search import RandomSearch
from tests.knowing import Mapped
from tests.runs.test_knowledge import LOG, by_width, mapped, run
from tests.runs.test_search import outcome


@pytest.fixture
def other(tiny_model, tiny_data, tmp_path):
    """Another run, of a larger budget, with a map."""
    return run(tiny_model, tiny_data, tmp_path / "other", budget=Budget(macs=0.9), n_trials=60)


def test_trials_and_map_of_another_run_are_told_and_not_evaluated_again(
    other, tiny_model, tiny_data, tmp_path
):
    found = run(tiny_model, tiny_data, tmp_path / "run", known=[tmp_path / "other"], n_trials=100)
    there = [*mapped(tmp_path / "other"), *(trial.candidate for trial in other.trials)]
    assert not set(LOG) & set(there)  # neither probes nor trials
    assert not (tmp_path / "run" / "map").exists()
    assert any(trial.candidate in there for trial in found.trials)
    known = read_known(RunFolder(tmp_path / "run"))
    assert [trial.candidate for trial in known.trials] == list(dict.fromkeys(there))
    state = RunFolder(tmp_path / "run").read_json("searcher.json")["state"]
    assert [tuple(trial["candidate"]) for trial in state["knowledge"]] == list(dict.fromkeys(there))


def test_it_goes_on_as_it_was_when_the_other_run_has_grown_or_gone(
    other, tiny_model, tiny_data, tmp_path
):
    whole = run(tiny_model, tiny_data, tmp_path / "whole", known=[tmp_path / "other"])
    begun = run(tiny_model, tiny_data, tmp_path / "run", known=[tmp_path / "other"], n_trials=5)
    assert outcome(begun)[0] == outcome(whole)[0][:5]
    objects = {"model": tiny_model, "data": tiny_data, "searcher": Mapped, "evaluator": by_width}
    resume(tmp_path / "other", n_trials=70, **objects)
    resume(tmp_path / "run", n_trials=8, **objects)
    shutil.rmtree(tmp_path / "other")
    assert outcome(resume(tmp_path / "run", n_trials=12, **objects)) == outcome(whole)


def test_what_a_known_run_knew_is_known(other, tiny_model, tiny_data, tmp_path):
    run(tiny_model, tiny_data, tmp_path / "second", known=[tmp_path / "other"])
    run(
        tiny_model,
        tiny_data,
        tmp_path / "third",
        known=[tmp_path / "second"],
        budget=Budget(macs=0.3),
    )
    assert not set(LOG) & set(mapped(tmp_path / "other"))


def test_another_seed_is_known_but_evaluated_again(other, tiny_model, tiny_data, tmp_path):
    options = {"known": [tmp_path / "other"], "budget": Budget(macs=0.9), "n_trials": 150}
    found = run(tiny_model, tiny_data, tmp_path / "run", seed=1, **options)
    there = {trial.candidate for trial in other.trials}
    again = {trial.candidate for trial in found.trials} & there
    assert again
    assert again <= set(LOG)
    assert not set(LOG[:1]) & set(mapped(tmp_path / "other"))  # no map, which is known
    (line,) = RunWatch(tmp_path / "run").look().known
    assert line.startswith("known: ")
    assert line.endswith("of another seed (0): evaluated again where they are proposed")


def test_failed_trials_and_those_of_another_space_are_left_out_and_counted(
    tiny_model, tiny_data, tmp_path
):
    def fails(candidate, seed):
        if seed % 3 == 0:
            raise ValueError("made to fail")
        return by_width(candidate, seed)

    other = run(
        tiny_model,
        tiny_data,
        tmp_path / "other",
        evaluator=fails,
        searcher=RandomSearch,
        n_trials=20,
    )
    failed = sum(trial.evaluation.failure is not None for trial in other.trials)
    run(tiny_model, tiny_data, tmp_path / "run", evaluator=fails, known=[tmp_path / "other"])
    source = read_known(RunFolder(tmp_path / "run")).sources[0]
    assert (source.failed, source.foreign, len(source.trials)) == (failed, 0, 20 - failed)
    assert failed
    text = (tmp_path / "run" / "log.txt").read_text()
    assert (
        f"known: {20 - failed} structures of {tmp_path / 'other'} ({failed} failed left out)"
        in text
    )


DIFFERENT = {
    "criterion is reader_l2 and l1": {"criterion": "l1"},
    r"space.step is 0.25 and 0.1": {"space": SpaceOptions(step=0.1)},
    r"evaluator is .*by_width.* and adaptive_bn": {
        "evaluator": {"name": "adaptive_bn", "calibration_images": 128}
    },
}


@pytest.mark.parametrize("text", DIFFERENT)
def test_runs_of_another_kind_are_refused_with_the_difference(
    tiny_model, tiny_data, tmp_path, text
):
    space = {"space": SpaceOptions(step=0.25)}
    run(
        tiny_model, tiny_data, tmp_path / "other", searcher="random", **{**space, **DIFFERENT[text]}
    )
    with pytest.raises(
        RunError, match=rf"known run .*other is of another kind: {text}.*\(here and there\)"
    ):
        run(tiny_model, tiny_data, tmp_path / "run", known=[tmp_path / "other"], **space)
    assert not LOG  # before anything is evaluated
    # Nothing is lost: without it, the folder is taken
    run(tiny_model, tiny_data, tmp_path / "run", **space)


def test_options_of_the_evaluator_are_compared_with_defaults_and_without_devices(
    tiny_model, tiny_data, tmp_path
):
    base = {"name": "adaptive_bn", "calibration_images": 32, "batch_size": 32}
    run(tiny_model, tiny_data, tmp_path / "other", searcher="random", evaluator=base, n_trials=4)
    known = {"known": [str(tmp_path / "other")], "searcher": "random", "n_trials": 4}
    same = {**base, "threads": 1, "device": "cpu"}
    found = run(tiny_model, tiny_data, tmp_path / "same", evaluator=same, **known)
    assert all(trial.evaluation.seconds == 0 for trial in found.trials)
    with pytest.raises(RunError, match=r"evaluator\.calibration_images is 64 and 32"):
        run(
            tiny_model,
            tiny_data,
            tmp_path / "run",
            evaluator={**base, "calibration_images": 64},
            **known,
        )


def test_another_network_and_other_data_are_refused(other, tiny_model, tiny_data, tmp_path):
    with torch.no_grad():
        tiny_model.linear.bias += 1
    with pytest.raises(RunError, match=r"the network \(its trained weights\) is \w+ and \w+"):
        run(tiny_model, tiny_data, tmp_path / "run", known=[tmp_path / "other"])
    images, labels = torch.randn(200, 1, 6, 6), torch.arange(200) % 2
    data = Data.from_tensors((images, labels), (images[:50], labels[:50]), validation=0.25)
    with pytest.raises(RunError, match=r"the data \(other images, or another split\)"):
        run(tiny_model, data, tmp_path / "run", known=[tmp_path / "other"])


def test_what_is_no_run_or_the_run_itself_is_named(tiny_model, tiny_data, tmp_path):
    with pytest.raises(RunError, match="nowhere does not exist"):
        run(tiny_model, tiny_data, tmp_path / "run", known=[tmp_path / "nowhere"])
    with pytest.raises(RunError, match="known names the run itself"):
        run(tiny_model, tiny_data, tmp_path / "run", known=str(tmp_path / "run"))
    with pytest.raises(
        ConfigError, match=r'known is a list of run folders, e.g. \["runs/other"\], found 3'
    ):
        run(tiny_model, tiny_data, tmp_path / "run", known=3)


@pytest.mark.parametrize("damage", ["damaged", "missing"])
def test_a_copy_that_is_damaged_or_missing_is_never_passed_over(
    other, tiny_model, tiny_data, tmp_path, damage
):
    run(tiny_model, tiny_data, tmp_path / "run", known=[tmp_path / "other"])
    path = tmp_path / "run" / "known.json"
    if damage == "damaged":
        path.write_text(path.read_text().replace("1", "2", 1))
    else:
        path.unlink()
    objects = {"model": tiny_model, "data": tiny_data, "searcher": Mapped, "evaluator": by_width}
    with pytest.raises(RunError, match=rf"known.json is {damage}.* restore it from a copy"):
        resume(tmp_path / "run", n_trials=14, **objects)


def test_other_known_runs_are_another_run(other, tiny_model, tiny_data, tmp_path):
    run(tiny_model, tiny_data, tmp_path / "run", known=[tmp_path / "other"])
    with pytest.raises(
        RunError,
        match=r"already holds a different run: known: \[.*other'\] in the folder, \[\] now",
    ):
        run(tiny_model, tiny_data, tmp_path / "run")


def test_configs_name_known_runs_as_one_text_or_a_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = {
        "n_trials": 1,
        "model": "small_resnet",
        "data": "digits",
        "budget": {"macs": 0.5},
        "pretrain": {},
    }
    for known in ("runs/a", ["runs/a"], ["runs/a", "../x/runs/a", "runs/../runs/a"]):
        config = parse_config({**plain, "known": known})
        assert config.known[0] == str(tmp_path / "runs/a")
        assert len(config.known) == (2 if len(known) == 3 else 1)
    assert dataclasses.replace(config, known=("a",)).known == ("a",)
    with pytest.raises(ConfigError, match="known"):
        parse_config({**plain, "known": [1]})


def test_a_measured_time_is_not_taken_from_what_was_not_measured(tiny_model, tiny_data, tmp_path):
    def known(candidate, seed):
        return Evaluation(fitness=float(sum(candidate)))

    search(
        tiny_model,
        tiny_data,
        budget=Budget(macs=0.9),
        n_trials=6,
        run_dir=tmp_path / "other",
        evaluator=known,
    )
    found = search(
        tiny_model,
        tiny_data,
        budget=Budget(latency_ms=10_000),  # whatever a busy machine measures
        n_trials=6,
        run_dir=tmp_path / "run",
        evaluator=known,
        known=[tmp_path / "other"],
        latency=LatencyOptions(check=True),
    )
    assert all(
        trial.evaluation.failure or "latency_ms" in trial.evaluation.metrics
        for trial in found.trials
    )
