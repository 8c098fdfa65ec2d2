"""What full scores have decided, as people and files are told."""

import json

import pytest

from abcsearch.results.open_run import open_run
from abcsearch.runs.disk.decision import Decision, Timed, scored
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import cut_journal, encode_line, lines_of, read_journal
from abcsearch.trial import Evaluation, Trial
from tests.conftest import TINY_CONFIG
from tests.test_cli import call

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose trials saw 90 of 360 images, and most of them fewer; its output, too."""
    folder = tmp_path_factory.mktemp("decided")
    (folder / "tiny.toml").write_text(TINY_CONFIG)
    few = (
        "evaluator.scoring=racing",
        "evaluator.validation_images=90",
        "evaluator.stage_images=15",
        "evaluator.metric=neg_loss",
    )
    result = call(
        "search",
        folder / "tiny.toml",
        "--run-dir",
        folder / "run",
        *(word for one in few for word in ("--set", one)),
    )
    assert result.exit_code == 0, result.output
    return folder / "run", result.output


def words(text):
    return " ".join(text.split())


def test_everybody_says_who_has_won_and_how_sure_that_is(finished):
    run, output = finished
    contents = read_journal(run / "journal.jsonl")
    decision = contents.decisions[24]
    assert decision.words in words(output)
    assert f"trial {decision.winner.number}, fitness {decision.winner.fitness:.4f}" in words(output)
    assert len(contents.final) == 5
    status = call("status", run).output
    assert decision.words in words(status)
    assert "baseline random: " in status
    search = json.loads(call("status", run, "--json").output)["searches"][0]
    assert search["best"]["evaluation"]["fitness"] == decision.winner.fitness
    assert search["decision"]["among"] == list(decision.among)
    assert search["undecided"] is False
    assert call("report", run).exit_code == 0
    page, plain = (run / "report.html").read_text(), (run / "report.md").read_text()
    for text in (page, plain):
        assert decision.words[1:] in text
        assert "stopped early" in text
    rows = {row["network"]: row for row in json.loads((run / "report.json").read_text())["rows"]}
    assert rows["bee_colony"]["fitness"] == decision.winner.fitness
    baseline = read_journal(run / "baselines" / "random" / "journal.jsonl").best(24)
    assert rows["random"]["fitness"] == baseline.fitness
    assert json.loads((run / "best.json").read_text())["number"] == decision.winner.number


def test_all_rows_of_the_report_are_of_the_same_images(finished):
    run = open_run(finished[0])
    evaluator = run._evaluator
    for structure in run.structures:
        full = evaluator.in_full(structure.candidate, 0)
        assert run.fitness(structure) == pytest.approx(full.fitness, rel=1e-6)


def test_a_run_that_was_stopped_before_it_was_decided_says_so(finished):
    run = finished[0]
    folder = RunFolder(run)
    lines = lines_of(folder.journal)
    keep = next(place for place, line in enumerate(lines) if b'"final"' in line)
    whole, state = folder.journal.read_bytes(), (run / "searcher.json").read_bytes()
    cut_journal(folder.journal, keep + 2)
    saved = folder.read_json("searcher.json")
    folder.write_json("searcher.json", {**saved, "decided": False, "journal": [0, 0]})
    assert (
        "the best are still to be scored in full or measured; continue with: abcsearch resume"
        in words(call("status", run).output)
    )
    refused = call("report", run).output, call("export", run, "--out", run / "out")
    assert "are still to be scored in full" in words(refused[1].output)
    assert refused[1].exit_code == 2
    result = call("resume", run)
    assert result.exit_code == 0, result.output
    assert read_journal(folder.journal).decisions[24].among == decided(whole, run).among
    assert "still to be" not in call("status", run).output
    folder.journal.write_bytes(whole)
    (run / "searcher.json").write_bytes(state)


def decided(journal, run):
    copy = run / "copy.jsonl"
    copy.write_bytes(journal)
    try:
        return read_journal(copy).decisions[24]
    finally:
        copy.unlink()


@pytest.mark.parametrize(
    ("alike", "words"),
    [
        (
            (4,),
            "the best 5 trials scored in full: trial 4 wins by more than twice the standard error",
        ),
        (
            (4, 1),
            "the best 5 trials scored in full: 1 other cannot be told apart from it on these images",
        ),
        (
            (4, 1, 2, 3, 0),
            "the best five cannot be told apart on these images (trials 4, 1, 2, 3, 0)",
        ),
    ],
)
def test_what_is_noise_is_called_noise(alike, words):
    winner = Trial(4, (1,), Evaluation(fitness=0.5, metrics={"standard_error": 0.01}))
    assert Decision(winner=winner, among=(4, 1, 2, 3, 0), alike=alike).words.startswith(words)
    assert scored([winner], None) == ""


def test_of_a_metric_of_a_whole_data_set_nobody_knows_what_is_noise():
    winner = Trial(4, (1,), Evaluation(fitness=0.5, metrics={"images": 200.0}))
    words = Decision(winner=winner, among=(4, 1, 2), alike=(4,)).words
    assert words.startswith("the best 3 trials scored in full: trial 4 is ahead; ")
    assert "standard error" not in words


@pytest.mark.parametrize("metrics", [{"standard_error": 0.01}, {"images": 200.0}])
@pytest.mark.parametrize("times", [(), (0,), (0, 2)])
def test_one_trial_alone_is_not_said_to_be_better_than_others(metrics, times):
    decision = Decision(
        winner=Trial(0, (1,), Evaluation(fitness=0.5, metrics=metrics)),
        among=(0,),
        alike=(0,),
        times={number: Timed(share=0.5, full_ms=2.0) for number in times},
        where="torch",
    )
    assert decision.words.startswith("trial 0 is the only one ")
    assert ("inside of the budget that was scored" in decision.words) == (len(times) > 1)
    for word in ("wins", "ahead", "difference", "told apart", "1 trial"):
        assert word not in decision.words


@pytest.mark.parametrize(
    "wrong",
    [
        {"among": 3},
        {"alike": [1.5]},
        {"of": -1},
        {"evaluation": None},
        {"candidate": "x"},
        {"number": True},
    ],
)
def test_a_decision_that_is_none_is_damage(tmp_path, wrong):
    good = Decision(
        winner=Trial(0, (1,), Evaluation(fitness=0.5)), among=(0,), alike=(0,)
    ).to_plain()
    path = tmp_path / "journal.jsonl"
    path.write_bytes(encode_line({"event": "winner", **good, "of": 1}, 0))
    assert read_journal(path).best(1).number == 0
    path.write_bytes(encode_line({"event": "winner", **good, "of": 1, **wrong}, 0) * 2)
    with pytest.raises(Exception, match="is not an event of a run"):
        read_journal(path)


def test_a_decision_keeps_what_was_measured_and_refuses_what_is_no_time():
    winner = Trial(3, (4, 2), Evaluation(fitness=0.5, metrics={}, macs=1, params=1, seconds=0.0))
    decision = Decision(
        winner=winner,
        among=(3,),
        alike=(3,),
        times={3: Timed(share=0.48, full_ms=2.0), 7: Timed(share=0.53, full_ms=2.0)},
        where="onnxruntime, 1 thread, batches of 1 image",
        scored=False,
    )
    assert Decision.of(json.loads(json.dumps(decision.to_plain()))) == decision
    assert decision.words == (
        "the best 2 trials measured in turns with the full network (onnxruntime, 1 thread, batches of 1 image): "
        "trial 3 takes 0.480 of its time, 0.96 ms of 2 ms; outside of the budget: 7 (0.530)"
    )
    wrong = [[], {"share": 0.5}, {"share": -0.5, "full_ms": 1.0}, {"share": "1", "full_ms": 1.0}]
    for time in wrong:
        with pytest.raises(ValueError, match="share and full_ms of a measured time are numbers"):
            Decision.of({**decision.to_plain(), "times": {"3": time}})
    with pytest.raises(ValueError, match="times are those of trials, by number"):
        Decision.of({**decision.to_plain(), "times": {"best": {"share": 0.5, "full_ms": 1.0}}})
