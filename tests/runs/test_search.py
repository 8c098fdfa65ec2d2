"""search and resume on the caller's own objects."""

import dataclasses
import json
import re
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from abcsearch import (
    AbcSearchError,
    Budget,
    Evaluation,
    SpaceOptions,
    make_searcher,
    resume,
    search,
)
from abcsearch.errors import ConfigError, FailuresError, RunError, SearcherError
from abcsearch.evaluation.adaptive_bn import AdaptiveBN, AdaptiveBNOptions
from abcsearch.runs.disk.journal import read_journal
from abcsearch.searchers.random_search import RandomSearch
from abcsearch.searchers.response_surface import ResponseSurface


def by_sum(candidate, seed):
    """Few channels are good, so that the optimum is known; every fifth seed fails."""
    if seed % 5 == 0:
        raise ValueError("made to fail")
    return Evaluation(fitness=float(-sum(candidate)), metrics={"seed": float(seed % 1000)})


def seedless(candidate, seed):
    return Evaluation(fitness=float(-sum(candidate)))


def outcome(result):
    """All that must not depend on when and where a run was done."""
    return [
        (t.number, t.candidate, dataclasses.replace(t.evaluation, seconds=0.0))
        for t in result.trials
    ], result.best.number


def run(model, data, folder, **changes):
    settings = {"budget": Budget(macs=0.6), "n_trials": 20, "evaluator": by_sum, **changes}
    return search(model, data, run_dir=folder, **settings)


def test_result_holds_trials_in_order_inside_the_budget(tiny_model, tiny_data, tmp_path):
    result = run(tiny_model, tiny_data, tmp_path / "run")
    full = result.task.graph.costs.macs([result.task.space.full])[0]
    assert [t.number for t in result.trials] == list(range(20))
    assert {t.evaluation.failure for t in result.trials} == {None, "ValueError: made to fail"}
    for t in result.trials:
        macs, params = (
            int(f([t.candidate])[0])
            for f in (result.task.graph.costs.macs, result.task.graph.costs.params)
        )
        assert macs <= 0.6 * full
        if t.evaluation.failure is None:
            assert (t.evaluation.macs, t.evaluation.params) == (macs, params)
    assert result.best.fitness == max(t.fitness for t in result.trials)


@pytest.mark.parametrize("repair", ["none", "one_shot", "sequential"])
def test_winner_is_sliced_repaired_in_turn_calibrated_and_scores_its_fitness(
    tiny_model, tiny_data, tmp_path, repair
):
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    scoring = {"name": "adaptive_bn", "metric": "neg_loss", "repair": repair}
    result = run(tiny_model, tiny_data, tmp_path / "run", evaluator=scoring)
    network = result.model()
    assert sum(p.numel() for p in network.parameters()) == result.best.evaluation.params
    with torch.no_grad():
        logits = network(tiny_data.validation.images)
        loss = torch.nn.functional.cross_entropy(logits, tiny_data.validation.labels)
    expected = result.best.fitness
    if repair == "one_shot":  # of which few are built, and can be repaired for longer
        options = AdaptiveBNOptions(metric="neg_loss", repair="sequential")
        expected = AdaptiveBN(result.task.source, tiny_data, options)(
            result.best.candidate, 0
        ).fitness
    assert float(-loss) == pytest.approx(expected, abs=1e-5)
    assert all(
        torch.equal(before[name], tensor) for name, tensor in tiny_model.state_dict().items()
    )


def test_pareto_is_what_no_other_trial_beats(tiny_model, tiny_data, tmp_path):
    result = run(
        tiny_model,
        tiny_data,
        tmp_path / "run",
        evaluator="adaptive_bn",
        budget=Budget(macs=0.9),
        n_trials=30,
    )
    points = {
        t.number: (t.evaluation.macs, -t.evaluation.metrics["neg_loss"]) for t in result.trials
    }
    front = {t.number for t in result.pareto("macs", "neg_loss")}
    for number, (macs, loss) in points.items():
        beaten = any(
            (m <= macs and v <= loss) and (m, v) != (macs, loss) for m, v in points.values()
        )
        assert beaten == (number not in front) or points[number] in {points[n] for n in front}
    with pytest.raises(
        RunError, match=r"has no 'top9'; it has: fitness, macs, params, seconds, .*flops, peak_act"
    ):
        result.pareto(y="top9")
    with pytest.raises(RunError, match="has no 'latency_ms'"):
        result.pareto("latency_ms")


@pytest.mark.parametrize("cost", ["flops", "peak_activation"])
def test_pareto_takes_any_cost_in_closed_form(tiny_model, tiny_data, tmp_path, cost):
    result = run(tiny_model, tiny_data, tmp_path / "run", evaluator=seedless)
    front = result.pareto(cost)
    costs = getattr(result.task.graph.costs, cost)([trial.candidate for trial in front])
    assert costs.tolist() == sorted(set(costs.tolist()))
    assert [result.number(trial, cost) for trial in front] == costs.tolist()
    assert front[-1].fitness == result.best.fitness
    assert len(result.pareto("macs", cost)) >= 1


@pytest.mark.parametrize("searcher", [3, None, ["random"], ("random", {}), 2.5])
def test_strange_searchers_and_evaluators_are_named(tiny_model, tiny_data, tmp_path, searcher):
    with pytest.raises(
        ConfigError,
        match=rf"searcher is a name, .* or a new Searcher, found {re.escape(repr(searcher))}",
    ):
        run(tiny_model, tiny_data, tmp_path / "run", searcher=searcher)
    with pytest.raises(ConfigError, match=r"evaluator is a name, .* or a function, found"):
        run(tiny_model, tiny_data, tmp_path / "run", evaluator=searcher)
    with pytest.raises(
        SearcherError, match=r"a function of \(space, constraint\) returns a new Searcher, found 3"
    ):
        run(tiny_model, tiny_data, tmp_path / "run", searcher=lambda *_: 3)


def test_numbers_of_numpy_are_as_good_as_plain_ones(tiny_model, tiny_data, tmp_path):
    ones = {"n_sources": np.int64(5), "initial": [np.float32(0.5), np.float64(0.25)]}
    others = {"n_sources": 5, "initial": [0.5, 0.25]}
    found = [
        run(
            tiny_model,
            tiny_data,
            tmp_path / str(i),
            searcher={"name": "bee_colony", **options},
            budget=budget,
        )
        for i, (options, budget) in enumerate(
            [(ones, Budget(macs=np.float32(0.5))), (others, Budget(macs=0.5))]
        )
    ]
    assert outcome(found[0]) == outcome(found[1])


@pytest.mark.parametrize("searcher", ["bee_colony", "random"])
@pytest.mark.parametrize("stop", [1, 4, 9, 17])
def test_interrupted_anywhere_and_called_again_is_as_uninterrupted(
    tiny_model, tiny_data, tmp_path, searcher, stop
):
    whole = run(tiny_model, tiny_data, tmp_path / "whole", searcher=searcher)
    calls = []

    def breaking(candidate, seed):
        calls.append(candidate)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return by_sum(candidate, seed)

    breaking.__qualname__, breaking.__module__ = by_sum.__qualname__, by_sum.__module__
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tiny_data, tmp_path / "broken", searcher=searcher, evaluator=breaking)
    again = run(tiny_model, tiny_data, tmp_path / "broken", searcher=searcher, evaluator=breaking)
    assert outcome(again) == outcome(whole)
    assert len(calls) == 21  # the interrupted one twice, nothing else


def test_lost_searcher_state_is_replayed_from_the_journal(tiny_model, tiny_data, tmp_path):
    whole = run(tiny_model, tiny_data, tmp_path / "whole", n_trials=30)
    run(tiny_model, tiny_data, tmp_path / "lost")
    (tmp_path / "lost" / "searcher.json").unlink()
    again = run(tiny_model, tiny_data, tmp_path / "lost", n_trials=30)
    assert outcome(again) == outcome(whole)
    states = [
        json.loads((tmp_path / name / "searcher.json").read_text()) for name in ("whole", "lost")
    ]
    assert states[0]["state"]["known"] == states[1]["state"]["known"]


def test_journal_shorter_than_the_state_is_replayed(tiny_model, tiny_data, tmp_path):
    whole = run(tiny_model, tiny_data, tmp_path / "whole")
    run(tiny_model, tiny_data, tmp_path / "cut")
    journal = tmp_path / "cut" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-500])
    kept = read_journal(journal).trials
    assert len(kept) < 20
    assert outcome(run(tiny_model, tiny_data, tmp_path / "cut")) == outcome(whole)
    assert "cut off a torn last line" in (tmp_path / "cut" / "log.txt").read_text()


def test_more_trials_continue_and_fewer_are_the_first_ones(tiny_model, tiny_data, tmp_path):
    whole = run(tiny_model, tiny_data, tmp_path / "whole", n_trials=30)
    run(tiny_model, tiny_data, tmp_path / "grown", n_trials=7)
    assert outcome(run(tiny_model, tiny_data, tmp_path / "grown", n_trials=30)) == outcome(whole)
    short = run(tiny_model, tiny_data, tmp_path / "whole", n_trials=7)
    assert outcome(short)[0] == outcome(whole)[0][:7]


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(tiny_model, tiny_data, tmp_path, workers):
    serial = run(tiny_model, tiny_data, tmp_path / "serial")
    with ThreadPoolExecutor(workers) as pool:
        threads = run(tiny_model, tiny_data, tmp_path / "threads", executor=pool)
    assert outcome(threads) == outcome(serial)


def test_processes_change_nothing(tiny_model, tiny_data, tmp_path):
    serial = run(tiny_model, tiny_data, tmp_path / "serial", evaluator="adaptive_bn", n_trials=8)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        processes = run(
            tiny_model,
            tiny_data,
            tmp_path / "pool",
            evaluator="adaptive_bn",
            n_trials=8,
            executor=pool,
        )
    assert outcome(processes) == outcome(serial)


def test_small_space_ends_when_everything_is_evaluated(tiny_model, tiny_data, tmp_path):
    space = SpaceOptions(alpha=1.0, step=0.5, levels=("filter",))
    result = run(
        tiny_model,
        tiny_data,
        tmp_path / "run",
        evaluator=seedless,
        budget=Budget(macs=1.0),
        space=space,
        n_trials=50,
    )
    assert len(result.trials) == result.task.space.size == 4
    assert (
        len(
            run(
                tiny_model,
                tiny_data,
                tmp_path / "run",
                evaluator=seedless,
                budget=Budget(macs=1.0),
                space=space,
                n_trials=50,
            ).trials
        )
        == 4
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed: 0 in the folder, 1 now"),
        ({"budget": Budget(macs=0.5)}, "budget.macs: 0.6 in the folder, 0.5 now"),
        ({"searcher": "random"}, "searcher.name: 'response_surface' in the folder, 'random' now"),
        (
            {"searcher": {"name": "response_surface", "batch": 5}},
            "searcher.options.batch: None in the folder, 5 now",
        ),
        ({"evaluator": seedless}, "evaluator.name"),
        ({"criterion": "l2"}, "criterion"),
        ({"space": SpaceOptions(alpha=0.8)}, "space.alpha"),
    ],
)
def test_a_folder_with_another_run_is_refused_and_kept(
    tiny_model, tiny_data, tmp_path, changes, words
):
    first = run(tiny_model, tiny_data, tmp_path / "run", n_trials=5)
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    with pytest.raises(RunError, match="already holds a different run") as error:
        run(tiny_model, tiny_data, tmp_path / "run", n_trials=5, **changes)
    assert words in str(error.value)
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == before
    assert outcome(run(tiny_model, tiny_data, tmp_path / "run", n_trials=5)) == outcome(first)


def test_a_run_that_takes_a_folder_over_takes_no_fitness_of_the_one_before(
    tiny_model, tiny_data, tmp_path
):
    run(tiny_model, tiny_data, tmp_path / "run", n_trials=2)
    (tmp_path / "run" / "journal.jsonl").unlink()
    kept = tmp_path / "run" / "fitness.json"
    kept.write_text("{}")
    run(tiny_model, tiny_data, tmp_path / "run", n_trials=3)  # the same run
    assert kept.exists()
    (tmp_path / "run" / "journal.jsonl").unlink()
    run(tiny_model, tiny_data, tmp_path / "run", n_trials=2, seed=1)
    assert not kept.exists()


def test_other_weights_or_data_are_another_run(tiny_model, tiny_data, tmp_path):
    run(tiny_model, tiny_data, tmp_path / "run", n_trials=3)
    other = dataclasses.replace(tiny_data, test=tiny_data.train)
    with pytest.raises(RunError, match="the data have other images or labels"):
        run(tiny_model, other, tmp_path / "run", n_trials=3)
    with torch.no_grad():
        tiny_model.linear.bias += 1e-3
    with pytest.raises(RunError, match="the model has other weights"):
        run(tiny_model, tiny_data, tmp_path / "run", n_trials=3)


def test_a_folder_with_foreign_files_is_refused(tiny_model, tiny_data, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"not empty and holds no run \(thesis.tex\)"):
        run(tiny_model, tiny_data, tmp_path)


def test_bad_budget_leaves_no_folder_behind(tiny_model, tiny_data, tmp_path):
    with pytest.raises(AbcSearchError, match="cannot be reached"):
        run(tiny_model, tiny_data, tmp_path / "run", budget=Budget(macs=0.0001))
    assert not (tmp_path / "run").exists()


def test_too_many_failures_in_a_row_stop_the_run_and_keep_it(tiny_model, tiny_data, tmp_path):
    def broken(candidate, seed):
        raise ValueError(f"no room for {len(candidate)} layers")

    with pytest.raises(
        FailuresError,
        match=r"4 evaluations failed in a row \(max_failures = 3\): ValueError: no room",
    ):
        run(tiny_model, tiny_data, tmp_path / "run", evaluator=broken, max_failures=3)
    trials = read_journal(tmp_path / "run" / "journal.jsonl").trials
    assert len(trials) == 4
    assert all(t.evaluation.failure for t in trials.values())


def test_failures_that_are_not_in_a_row_do_not_stop_the_run(tiny_model, tiny_data, tmp_path):
    calls = []

    def shaky(candidate, seed):
        calls.append(candidate)
        if len(calls) % 3:
            raise ValueError("made to fail")
        return seedless(candidate, seed)

    result = run(tiny_model, tiny_data, tmp_path / "run", evaluator=shaky, max_failures=2)
    assert sum(t.evaluation.failure is not None for t in result.trials) == 14


def test_when_every_trial_fails_there_is_no_winner_but_a_reason(tiny_model, tiny_data, tmp_path):
    def broken(candidate, seed):
        return Evaluation(fitness=None, failure="always")

    with pytest.raises(RunError, match=r"no trial of .* succeeded: always"):
        run(tiny_model, tiny_data, tmp_path / "run", evaluator=broken, n_trials=4)


def test_an_evaluator_that_returns_no_evaluation_is_a_mistake_of_its_code(
    tiny_model, tiny_data, tmp_path
):
    with pytest.raises(AbcSearchError, match=r"returns an Evaluation, or a fitness, .* found str"):
        run(tiny_model, tiny_data, tmp_path / "run", evaluator=lambda candidate, seed: "0.5")


def test_an_evaluator_may_return_its_fitness_and_a_metric_be_a_function(
    tiny_model, tiny_data, tmp_path
):
    found = run(
        tiny_model, tiny_data, tmp_path / "run", evaluator=lambda candidate, seed: -sum(candidate)
    )
    assert [trial.fitness for trial in found.trials] == [
        -sum(trial.candidate) for trial in found.trials
    ]
    options = {"name": "adaptive_bn", "batch_size": 16, "calibration_images": 16}
    halved = lambda outputs, labels: (outputs.argmax(dim=1) == labels) / 2  # noqa: E731 - what people pass
    own = run(
        tiny_model, tiny_data, tmp_path / "own", evaluator={**options, "metric": halved}, n_trials=3
    )
    top1 = run(
        tiny_model,
        tiny_data,
        tmp_path / "top1",
        evaluator={**options, "metric": "top1"},
        n_trials=3,
    )
    pairs = zip(own.trials, top1.trials, strict=True)
    assert all(
        2 * one.evaluation.fitness == other.evaluation.metrics["top1"] for one, other in pairs
    )


def test_own_searcher_as_object_and_as_function(tiny_model, tiny_data, tmp_path):
    named = run(tiny_model, tiny_data, tmp_path / "named")
    made = run(
        tiny_model,
        tiny_data,
        tmp_path / "made",
        searcher=lambda space, budget: ResponseSurface(space, budget, seed=0),
    )
    assert outcome(made) == outcome(named)
    used = make_searcher("random", named.task.space, named.task.constraint)
    assert len(run(tiny_model, tiny_data, tmp_path / "object", searcher=used).trials) == 20
    with pytest.raises(SearcherError, match="must be new"):
        run(tiny_model, tiny_data, tmp_path / "again", searcher=used)


def test_own_evaluator_as_object(tiny_model, tiny_data, tmp_path):
    named = run(tiny_model, tiny_data, tmp_path / "named", evaluator="adaptive_bn")
    task = named.task
    own = AdaptiveBN(task.source, task.data)
    assert outcome(run(tiny_model, tiny_data, tmp_path / "own", evaluator=own)) == outcome(named)


def test_resume_needs_the_same_objects(tiny_model, tiny_data, tmp_path):
    whole = run(tiny_model, tiny_data, tmp_path / "whole")
    with pytest.raises(
        RunError, match=r"resume\('.*', model=\.\.\., data=\.\.\., evaluator=\.\.\.\)"
    ):
        resume(tmp_path / "whole")
    again = resume(tmp_path / "whole", model=tiny_model, data=tiny_data, evaluator=by_sum)
    assert outcome(again) == outcome(whole)
    with pytest.raises(RunError, match="does not exist"):
        resume(tmp_path / "nowhere")


def test_unknown_names_are_refused_with_the_nearest_one(tiny_model, tiny_data, tmp_path):
    for changes, words in (
        ({"searcher": "bee_colny"}, "did you mean 'bee_colony'"),
        ({"searcher": {"name": "bee_colony", "n_source": 3}}, "did you mean 'n_sources'"),
        ({"evaluator": "adaptivebn"}, "did you mean 'adaptive_bn'"),
        ({"criterion": "l3"}, "unknown criterion 'l3'"),
        ({"n_trials": 0}, "n_trials is at least 1, found 0"),
        ({"space": SpaceOptions(fixed=("stages.0.0.conv_1",))}, "did you mean 'stages.0.0.conv1'"),
    ):
        with pytest.raises(AbcSearchError) as error:
            run(tiny_model, tiny_data, tmp_path / "run", **changes)
        assert words in str(error.value)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("content", [b"", b'{"told": 20, "sta', b"\x00\xff"])
def test_a_damaged_searcher_state_is_replayed_from_the_journal(
    tiny_model, tiny_data, tmp_path, content
):
    whole = run(tiny_model, tiny_data, tmp_path / "whole", n_trials=26)
    run(tiny_model, tiny_data, tmp_path / "damaged")
    (tmp_path / "damaged" / "searcher.json").write_bytes(content)
    assert outcome(run(tiny_model, tiny_data, tmp_path / "damaged", n_trials=26)) == outcome(whole)


def test_a_model_on_another_device_is_refused_at_the_start(tiny_model, tiny_data, tmp_path):
    with pytest.raises(AbcSearchError, match=r"the model is on meta; pass model\.cpu\(\)"):
        run(tiny_model.to("meta"), tiny_data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_forward_with_side_effects_leaves_the_model_as_it_was(tiny_model, tiny_data, tmp_path):
    class Counts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny_model
            self.register_buffer("steps", torch.zeros(()))
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            self.steps += 1
            return self.net(x)

    model = Counts()
    result = run(model, tiny_data, tmp_path / "run", evaluator="adaptive_bn", n_trials=3)
    result.model()
    assert (model.calls, float(model.steps)) == (0, 0.0)
    assert outcome(
        run(model, tiny_data, tmp_path / "run", evaluator="adaptive_bn", n_trials=3)
    ) == outcome(result)


class Repeating(RandomSearch):
    """Proposes every structure of a batch twice, and all of them again in the next: what a foreign searcher may do."""

    def ask(self, n):  # pyright: ignore
        self.batch = getattr(self, "batch", None) or super().ask(3)
        return [*self.batch, *self.batch][:n]

    def tell(self, trials):  # pyright: ignore
        del trials


def test_a_structure_is_evaluated_once_however_often_it_is_proposed(
    tiny_model, tiny_data, tmp_path
):
    asked = []

    def noted(candidate, seed):
        asked.append(candidate)
        return Evaluation(fitness=float(seed % 1000))

    result = run(
        tiny_model, tiny_data, tmp_path / "run", searcher=Repeating, evaluator=noted, n_trials=12
    )
    assert len(result.trials) == 12
    assert len(asked) == len(set(asked)) == 3
    fitness = {}
    for trial in result.trials:
        assert fitness.setdefault(trial.candidate, trial.fitness) == trial.fitness
    assert sum(trial.evaluation.seconds == 0 for trial in result.trials) == 9
