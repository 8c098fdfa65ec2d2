"""The benchmark of fitness: its statistics, and a run of it on a tiny network."""

import re

import numpy as np
import pytest
from scipy.stats import kendalltau

from abcsearch.errors import ConfigError
from abcsearch.execution.serial import SerialExecutor
from abcsearch.models.resnet import SmallResNet
from experiments import processes
from experiments.benchmarks import agreement, evaluation, fitness, fitness_tables


def test_rank_statistics_of_orders_that_are_known():
    truth = [float(n) for n in range(10)]
    assert agreement.compared(truth, truth) == pytest.approx((1, 1))
    assert agreement.compared([-value for value in truth], truth) == pytest.approx((-1, 0))
    swapped = [*truth[:5], 9.0, 6.0, 7.0, 8.0, 5.0]
    tau, recall = agreement.compared(swapped, truth)
    assert tau == pytest.approx(1 - 2 * 7 / 45)
    assert recall == 1
    assert agreement.recall(np.array([9.0, *truth[1:]]), np.array(truth)) == 0.8
    assert agreement.recall(np.array(truth[:3]), np.array(truth[:3])) == 1


def test_a_cascade_is_both_stages_at_its_fraction():
    first, second = [0.1, 0.5, 0.3, 0.4, 0.2], [0.9, 0.6, 0.95, 0.55, 0.85]
    both = (fitness_tables.SCREEN, first, 1.0), ("short training, 1 epoch", second, 10.0)
    found = {
        "fitness": {
            f"{name}: {m}": (values, cost)
            for name, values, cost in both
            for m in fitness_tables.METRICS
        }
    }
    fitness_tables.add_cascade(found, 0.4)
    values, cost = found["fitness"]["cascade to short training, 1 epoch, best 40%: top1"]
    assert values == [0.1, 0.6, 0.3, 0.55, 0.2]
    assert cost == 5
    alone = {
        "fitness": {name: own for name, own in found["fitness"].items() if "AdaptiveBN" in name}
    }
    fitness_tables.add_cascade(alone)
    assert len(alone["fitness"]) == len(fitness_tables.METRICS)


def test_resampled_tau_is_that_of_the_structures_drawn():
    draws = np.random.default_rng(0)
    truth = [0.0, *draws.normal(size=9)]
    values = [0.0, 0.0, *draws.normal(size=8)]  # with a tie
    found = agreement.resampled(values, truth)
    drawn = agreement.numpy_stream(0, "resampled structures").integers(
        10, size=(agreement.RESAMPLES, 10)
    )
    for own, tau in zip(drawn[:50], found, strict=False):
        assert tau == pytest.approx(
            kendalltau(np.array(values)[own], np.array(truth)[own]).statistic
        )
    assert np.mean(found) == pytest.approx(agreement.compared(values, truth)[0], abs=0.05)
    assert agreement.interval(agreement.resampled(truth, truth)) == "1.00 to 1.00"
    worst = [-np.inf, *truth[1:]]
    assert agreement.resampled([-np.inf, -np.inf, *truth[2:]], worst) == pytest.approx(
        agreement.resampled([-9, -9, *truth[2:]], worst)
    )
    assert (
        agreement.compared([1.0] * 10, truth)[0]
        == agreement.resampled([1.0] * 10, truth).max()
        == 0
    )


def test_fitnesses_of_one_seed_are_held_against_the_default():
    truth = [0.5 + 0.01 * n for n in range(20)]
    worse = truth[10:] + truth[:10]
    own = {"macs": worse, "truth": [[one] for one in truth], "full": 0.9}
    own["fitness"] = {
        fitness_tables.DEFAULT: (truth, 7.0),
        "good too": (truth, 7.0),
        "worse": (worse, 90.0),
    }
    rows = [
        line.split(" | ")
        for line in fitness_tables.report({"criteria": {"l1": [own]}, "machine": ""}).splitlines()
    ]
    assert len({len(row) for row in rows[:6]}) == 1
    assert "- that of the default" in rows[0]
    assert rows[3][1:3] == ["1.00 (1.00 to 1.00)", ""]
    assert rows[4][1:3] == ["1.00 (1.00 to 1.00)", "+0.00 (+0.00 to +0.00)"]
    # What has the highest fitness is worth that
    assert [row[4] for row in rows[3:6]] == ["69.00", "69.00", "59.00"]
    assert rows[5][2].startswith(f"{2 * -100 / 190:+.2f} (-1.")
    several = fitness_tables.report({"criteria": {"l1": [own, own]}, "machine": ""}).splitlines()
    assert several[0] == "| fitness | Kendall's tau | top-5 recall | chosen, % | s per structure |"
    assert several[3].startswith(f"| {fitness_tables.DEFAULT} | 1.00 ± 0.00 | 1.00 ± 0.00 |")


def test_other_fine_tuning_can_be_the_truth():
    def made(count, truth):
        one = {"macs": list(range(count)), "truth": [[value] for value in truth], "full": 0.9}
        one["fitness"] = {fitness_tables.DEFAULT: (list(range(count)), 7.0)}
        return {"criteria": {"l1": [one]}, "machine": "here"}

    found = fitness_tables.judged_by(
        made(5, [0.5, 0.4, 0.3, 0.2, 0.9]), made(4, [0.1, 0.2, 0.3, 0.4])
    )
    lines = fitness_tables.report(found).splitlines()
    assert lines[3].startswith(f"| {fitness_tables.DEFAULT} | 1.00 (1.00 to 1.00) |")
    assert lines[4].startswith("| fine-tuning as in --results | -1.00 (-1.00 to -1.00) |")
    assert lines[4].endswith("|  |")
    assert "4 structures, fine-tuned 10.0 to 40.0 %" in lines[-1]
    with pytest.raises(ConfigError, match="the 4 structures there are not the first"):
        fitness_tables.judged_by(found, {"criteria": {"l1": [{"macs": [3, 2, 1, 0], "truth": []}]}})
    with pytest.raises(ConfigError, match=r"--truth: 2 seed\(s\) there, 1 in --results"):
        fitness_tables.judged_by(found, {"criteria": {"l1": [{}, {}]}})


def test_it_runs_and_goes_on(tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        fitness,
        "SCORED",
        {name: fitness.SCORED[name] for name in (fitness_tables.SCREEN, fitness_tables.TRAINED[0])},
    )
    monkeypatch.setattr(processes, "ProcessPoolExecutor", lambda *_, **__: SerialExecutor())
    call = [
        "fitness",
        "--config",
        str(tiny_config),
        "--structures",
        "6",
        "--seeds",
        "0",
        "--criteria",
        "l2",
    ]
    printed = []
    for _ in range(2):
        monkeypatch.setattr("sys.argv", [*call, "--runs", str(tmp_path / "runs")])
        fitness.main()
        printed.append(capsys.readouterr())
        monkeypatch.setattr(fitness, "measured", lambda *_: pytest.fail("it is known"))
    assert printed[0].out == printed[1].out
    for words in (
        "MACs alone",
        "AdaptiveBN, 1024 images: neg_kl",
        "cascade to short training, 2 epochs, best 20%",
        "| l2 |",
        "Full network",
    ):
        assert words in printed[0].out
    files = [
        tmp_path / "runs" / f"0-{criterion}-{number}.json"
        for criterion in ("reader_l2", "l2")
        for number in range(6)
    ]
    assert sorted(line.partition(" ")[2] for line in printed[0].err.splitlines()) == sorted(
        f"{file}: done" for file in files
    )
    made = fitness.gathered(files[:6])
    assert np.shape(made["truth"]) == (6, 2)
    monkeypatch.setattr(
        "sys.argv", ["fitness", "--redraw", "--results", str(tmp_path / "runs" / "results.json")]
    )
    fitness.main()
    assert capsys.readouterr().out == printed[0].out
    monkeypatch.setattr("sys.argv", ["fitness", "--redraw", "--results", str(tmp_path)])
    with pytest.raises(SystemExit):
        fitness.main()
    assert f"--results is a file, found the folder {tmp_path}" in capsys.readouterr().err
    # Two are measured again, the first of them as the last of five, by a process that has not measured the others: the
    # same, but for the time it took.
    monkeypatch.undo()
    for file in files[4:6]:
        file.unlink()
    fitness._benches.clear()
    monkeypatch.setattr(
        fitness,
        "SCORED",
        {name: fitness.SCORED[name] for name in (fitness_tables.SCREEN, fitness_tables.TRAINED[0])},
    )
    monkeypatch.setattr(processes, "ProcessPoolExecutor", lambda *_, **__: SerialExecutor())
    for more in (["--structures", "5"], []):
        monkeypatch.setattr("sys.argv", [*call, "--runs", str(tmp_path / "runs"), *more])
        fitness.main()
    again = fitness.gathered(files[:6])
    assert again["truth"] == made["truth"]
    assert all(values == made["fitness"][name][0] for name, (values, _) in again["fitness"].items())
    # What was measured with other settings is not taken for the same.
    monkeypatch.setattr(
        "sys.argv", [*call, "--runs", str(tmp_path / "runs"), "--macs", "0.4", "0.5"]
    )
    with pytest.raises(
        SystemExit,
        match=r"macs: \[0.05, 0.4\] in the folder, \[0.4, 0.5\] now; give another --runs",
    ):
        fitness.main()


def test_the_same_structures_are_measured_after_a_preparation(
    tiny_config, tmp_path, monkeypatch, capsys
):
    """Cut out of other weights: MACs are the same, what they score is not."""
    monkeypatch.setattr(processes, "ProcessPoolExecutor", lambda *_, **__: SerialExecutor())
    monkeypatch.setattr(
        fitness, "SCORED", {fitness_tables.SCREEN: fitness.SCORED[fitness_tables.SCREEN]}
    )
    recipe = "prepare.recipe={epochs=1, batch_size=256}"
    ways = {"plain": [], "slimmable": ["--set", "prepare=slimmable", "--set", recipe]}
    for name, words in ways.items():
        fitness._benches.clear()
        call = ["--config", str(tiny_config), "--runs", str(tmp_path / name), "--seeds", "0"]
        call += ["--structures", "3", "--turns", "1", "--criteria"]
        monkeypatch.setattr("sys.argv", ["fitness", *call, *words])
        fitness.main()
    plain, slimmable = (
        fitness.gathered(sorted((tmp_path / name).glob("0-reader_l2-*.json"))) for name in ways
    )
    assert plain["macs"] == slimmable["macs"]
    assert plain["full"] == slimmable["full"]
    loss = f"{fitness_tables.SCREEN}: neg_loss"
    assert plain["fitness"][loss][0] != slimmable["fitness"][loss][0]
    assert "3 structures, fine-tuned" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--structures", "0"], "argument --structures: at least 1, found '0'"),
        (["--turns", "0"], "argument --turns: at least 1"),
        (["--macs", "0.4", "0.05"], "error: budget"),
        (["--criteria", "l3"], "error: unknown criterion 'l3'; choose one of: apoz, bn_gamma"),
        (["--config", "nope.toml"], "error: config nope.toml cannot be read"),
        (["--truth", "nope.json"], "error: nope.json does not exist"),
        (["--truth", "tests"], "error: tests does not exist, or is a folder"),
    ],
)
def test_mistakes_are_said_first(words, said, tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv",
        ["fitness", "--config", str(tiny_config), "--runs", str(tmp_path / "runs"), *words],
    )
    with pytest.raises(SystemExit) as stopped:
        fitness.main()
    assert said in f"{stopped.value.code} {capsys.readouterr().err}"
    assert not (tmp_path / "runs").exists()


def test_a_band_with_too_few_structures_is_said(tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(processes, "ProcessPoolExecutor", lambda *_, **__: SerialExecutor())
    monkeypatch.setattr(fitness, "DRAWS", 3)
    fitness._benches.clear()
    call = [
        "--config",
        str(tiny_config),
        "--runs",
        str(tmp_path),
        "--seeds",
        "0",
        "--criteria",
        "l1",
    ]
    monkeypatch.setattr(
        "sys.argv", ["fitness", *call, "--macs", "0.605", "0.609", "--structures", "9"]
    )
    with pytest.raises(SystemExit, match="when that is mended"):
        fitness.main()
    assert re.search(
        r"--structures 9: \d+ found with --macs 0.605 0.609; widen it", capsys.readouterr().err
    )


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text('{"machine": ')
    monkeypatch.setattr("sys.argv", ["fitness", "--redraw", "--runs", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: .*results.json is damaged .* delete it"):
        fitness.main()
    for text in (
        "{}",
        "[]",
        "null",
        '{"machine": "x", "criteria": {}}',
        '{"criteria": {"l2": [1]}}',
        '{"criteria": [], "machine": ""}',
    ):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(
            SystemExit, match=r"results.json holds something else than results of this benchmark"
        ):
            fitness.main()


def test_evaluations_are_compared_with_bare_passes(monkeypatch, capsys):
    case = evaluation.Case(
        build=lambda: SmallResNet(3, 10, (4, 6), (1, 1)), size=8, images=(32, 32, 32), batch=16
    )
    monkeypatch.setattr(evaluation, "CASES", {"tiny": case})
    monkeypatch.setattr(
        "sys.argv",
        ["evaluation", "--networks", "tiny", "--repeats", "1", "--workers", "--evaluations", "0"],
    )
    evaluation.main()
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert len(row.split("|")) == 12


def test_a_bare_evaluation_is_what_the_evaluator_does(monkeypatch):
    """The same statistics come out of both: the comparison is fair."""
    case = evaluation.Case(
        build=lambda: SmallResNet(3, 10, (4, 6), (1, 1)), size=8, images=(32, 32, 32), batch=16
    )
    monkeypatch.setattr(evaluation, "CASES", {"tiny": case})
    bench = evaluation.prepare("tiny", "cpu")
    seen = []
    monkeypatch.setattr(
        evaluation, "slice_model", lambda *args: seen.append(slice_model(*args)) or seen[-1]
    )
    evaluation.bare_evaluation(bench)()
    ours = bench.evaluator.build(bench.candidate)
    assert seen[0].bn.num_batches_tracked == ours.bn.num_batches_tracked == 2


slice_model = evaluation.slice_model
