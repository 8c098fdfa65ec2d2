"""Is the set-up right? Every way in which it can be wrong is told before anything is searched, and no other."""

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from abcsearch import cli
from abcsearch.budget import Budget
from abcsearch.data.registry import load_data
from abcsearch.data.split import Split
from abcsearch.data.splits import Data
from abcsearch.evaluation.registry import make_evaluator
from abcsearch.models.resnet import SmallResNet
from abcsearch.rng import torch_seeded
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import read_journal
from abcsearch.runs.disk.setup import FILE, SetUp, read_setup, write_setup
from abcsearch.runs.entry import search
from abcsearch.runs.resuming import resume
from abcsearch.runs.setup_check import Asked, look_at
from abcsearch.training.loop import train
from abcsearch.training.objectives import OBJECTIVES, Objective
from abcsearch.training.recipe import Recipe
from abcsearch.training.scoring import score
from abcsearch.trial import Evaluation
from tests.mutations import quick

CLASSES = 4


def striped(count, seed=0):
    """Images of four classes, which are bright in one quarter each; easy."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = torch.randn(count, 1, 8, 8, generator=draws)
    for label in range(CLASSES):
        row, column = 4 * (label // 2), 4 * (label % 2)
        images[labels == label, :, row : row + 4, column : column + 4] += 1.5
    return images, labels


def network(outputs=CLASSES):
    with torch_seeded(0, "init"):
        layers = [
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        ]
        return nn.Sequential(*layers, nn.Linear(32, outputs)).eval()


@pytest.fixture(scope="module")
def trained():
    """A network that has seen its training images alone, and the data."""
    data = Data.from_tensors(striped(600), striped(80, seed=1), validation=0.4)
    model = network()
    train(model, data.train, Recipe(epochs=4, lr=0.2, batch_size=16))
    return model, data


def changed(data, change, part=("train", "validation")):
    """Returns the data with other images or labels."""
    splits = {name: getattr(data, name) for name in ("train", "validation", "test")}
    made = {
        name: Split(*change(split.images, split.labels)) if name in part else split
        for name, split in splits.items()
    }
    return Data(name=data.name, **made, held_out=data.held_out)


def looked(model, data, **asked):
    return look_at(model, data, 10_000, Asked(**{"brought": True, **asked}))


def test_a_set_up_that_is_right_is_told_by_its_scores_alone(trained):
    model, data = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = looked(model, data)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (found.images, found.metric) == (len(data.validation), "top1")
    assert found.loaded == pytest.approx(score(model, data.validation)["top1"])
    assert found.training == pytest.approx(score(model, data.train)["top1"])
    assert found.loaded > 0.85
    assert abs(found.calibrated - found.loaded) < 0.05
    assert found.chance == pytest.approx(0.25, abs=0.01)
    assert (found.outputs, found.classes) == (4, 4)
    assert found.warnings == ()
    assert found.lines[0] == f"full network: {found.words}"


def renumbered(images, labels):
    return images, (labels + 1) % CLASSES


def unnormalised(images, labels):
    return images / 4 + 1, labels


def as_bytes(images, labels):
    return (images + 3) * 40, labels


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            renumbered,
            ("near chance", "Check that the checkpoint", "another order", "label 0 as 3, 1 as 0"),
        ),
        (unnormalised, ("calibration brings", "mean, std and size", "inputs have a mean of")),
        (as_bytes, ("bytes that were not normalised",)),
        (lambda images, labels: (images.roll(1, 0), labels), ("near chance",)),
    ],
)
def test_what_is_wrong_is_told_with_what_to_check(trained, change, words):
    model, data = trained
    found = looked(model, changed(data, change))
    text = " ".join(found.warnings)
    assert all(word in text for word in words), text


def test_a_network_that_answers_nothing_but_one_class_is_told(trained):
    _, data = trained
    model = network()
    with torch.no_grad():
        model[-1].bias[2] += 100
    (text,) = looked(model, data).warnings
    assert "near chance: top1 25.00 %, where one answer for all images has 25.00 %" in text
    assert "answers class 2 for 100 % of the images" in text
    (own,) = looked(model, data, brought=False).warnings
    assert "[pretrain]: epochs, lr" in own


def test_outputs_that_no_label_has_are_told(trained):
    model, data = trained
    wide = network(outputs=10)
    wide.load_state_dict({**model.state_dict(), "5.weight": wide[5].weight, "5.bias": wide[5].bias})
    with torch.no_grad():
        wide[5].weight[:4], wide[5].bias[:4] = model[5].weight, model[5].bias
        wide[5].bias[4:] -= 100
    (text,) = looked(wide, data).warnings
    assert "10 outputs and the data have 4 classes" in text
    assert "outputs 4 to 9 are never right" in text


def test_weights_that_are_not_finite_are_told(trained):
    _, data = trained
    model = network()
    with torch.no_grad():
        model[-1].bias[:] = torch.nan
    assert "near chance" in looked(model, data).warnings[0]
    regression = Data(
        name="x", **{p: Split(*parts) for p, parts in values().items()}, objective="regression"
    )
    (text,) = looked(model, regression).warnings
    assert "neg_mse of the full network is nan" in text


def values(noise=0.1):
    """Images and the sums of their quarters."""
    images = {
        name: striped(count)[0]
        for name, count in (("train", 400), ("validation", 100), ("test", 100))
    }
    sums = {name: nn.functional.avg_pool2d(own, 4).flatten(1) for name, own in images.items()}
    return {name: (own, sums[name] + noise) for name, own in images.items()}


def test_other_objectives_have_their_own_metrics_and_chance_where_it_is_defined():
    data = Data(
        name="sums",
        **{name: Split(*parts) for name, parts in values().items()},
        objective="regression",
    )
    model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())
    found = looked(model, data)
    mean = data.train.labels.mean(dim=0)
    assert found.metric == "neg_mse"
    assert found.loaded == pytest.approx(-0.01)
    assert found.chance == pytest.approx(
        -float(((data.validation.labels - mean) ** 2).mean()), rel=1e-4
    )
    assert (found.calibrated, found.outputs, found.classes, found.warnings) == (
        None,
        None,
        None,
        (),
    )
    assert "calibrated" not in found.lines[0]
    bad = looked(nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Threshold(1e9, 0.0)), data)
    assert "near chance" in bad.warnings[0]


def test_segmentation_is_compared_with_the_commonest_class():
    images, _ = striped(60)
    labels = (images[:, 0] > 1).long()
    labels[:, 0] = -100
    splits = {name: Split(images[some], labels[some]) for name, some in PARTS.items()}
    data = Data(name="bright", **splits, objective="segmentation")
    model = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        model.weight[:], model.bias[:] = (
            torch.tensor([0.0, 1.0])[:, None, None, None],
            torch.tensor([0.0, -1.0]),
        )
    found = looked(model, data)
    counted = labels[PARTS["validation"]]
    assert found.loaded == 1
    # Of two classes, the commonest has its share of all pixels, the other one none.
    share = float((counted == 0).sum() / (counted >= 0).sum())
    assert found.chance == pytest.approx(share / 2)
    assert (found.outputs, found.classes) == (2, 2)


PARTS = {"train": slice(0, 40), "validation": slice(40, 50), "test": slice(50, 60)}


def test_an_objective_of_the_users_has_no_chance(trained, monkeypatch):
    model, data = trained
    goal = Objective(
        loss=nn.functional.cross_entropy, metrics={"sure": lambda o, labels: o.softmax(1).amax(1)}
    )
    monkeypatch.setitem(OBJECTIVES, "sure", goal)
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    found = looked(model, Data(name="x", **splits, objective="sure"))
    assert (found.metric, found.chance, found.warnings) == ("sure", None, ())
    assert "chance" not in found.words


def by_heart(split):
    """Returns a network that has learned images of noise by heart."""
    with torch_seeded(0, "init"):
        wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, CLASSES))
    train(wide, split, Recipe(epochs=25, lr=0.1, batch_size=16))
    return wide


def test_search_validation_that_may_have_been_seen_is_noted_and_only_then(trained):
    draws = torch.Generator().manual_seed(1)
    labels = torch.arange(240) % CLASSES
    images = torch.randn(len(labels), 1, 8, 8, generator=draws)
    splits = {
        "train": Split(images[:160], labels[:160]),
        "validation": Split(images[160:], labels[160:]),
    }
    noise = Data(name="noise", **splits, test=trained[1].test, held_out=True)
    seen, honest = by_heart(Split(images, labels)), by_heart(noise.train)
    (note,) = looked(seen, noise).notes
    assert "has seen it, and fitness is then optimistic" in note
    assert looked(seen, noise, brought=False).notes == ()
    assert looked(seen, Data(name="noise", **splits, test=trained[1].test)).notes == ()
    found = looked(honest, noise)
    assert (found.training, found.notes) == (1.0, ())
    assert found.warnings  # search-validation itself is noise


def test_the_check_is_kept_shown_and_done_once_and_changes_no_trial(trained, tmp_path, monkeypatch):
    model, data = trained
    told = []
    options = {"budget": Budget(macs=0.5), "n_trials": 3, "searcher": "random"}
    options["evaluator"] = {"name": "adaptive_bn", "batch_size": 64}
    with pytest.warns(UserWarning, match=r"^set-up: the full network is near chance"):
        search(model, changed(data, renumbered), **options, run_dir=tmp_path / "wrong")
    result = search(
        model, data, **options, run_dir=tmp_path / "run", progress=lambda *step: told.append(step)
    )
    kept = read_setup(RunFolder(tmp_path / "run"))
    assert told[0] == ("full network", 1, 1, kept.words)
    task = result.task
    evaluator = make_evaluator("adaptive_bn", task.source, data, batch_size=64)
    assert [kept.full, kept.uniform] == [
        evaluator(one, 0).fitness for one in (task.space.full, task.uniform())
    ]
    assert f"(full {kept.full:.4f}, uniform {kept.uniform:.4f})" in told[-1][3]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert kept.words in log
    monkeypatch.setattr(
        "abcsearch.runs.setup_check.look_at", lambda *_: pytest.fail("looked at again")
    )
    (tmp_path / "run" / FILE).unlink()
    resume(tmp_path / "run", model=model, data=data, n_trials=4)
    assert read_setup(RunFolder(tmp_path / "run")) is None
    monkeypatch.setattr("abcsearch.runs.search.check_setup", lambda *_: None)
    search(model, data, **options, run_dir=tmp_path / "without")
    one, other = (
        read_journal(tmp_path / name / "journal.jsonl").trials for name in ("run", "without")
    )
    assert [one[n].evaluation.metrics for n in other] == [
        other[n].evaluation.metrics for n in other
    ]


def test_a_network_that_only_the_users_evaluator_understands_is_searched_all_the_same(
    trained, tmp_path
):
    _, data = trained

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return [self.net(x)]

    found = search(
        Odd(),
        data,
        budget=Budget(macs=0.5),
        n_trials=2,
        searcher="random",
        evaluator=lambda candidate, seed: Evaluation(fitness=float(sum(candidate))),
        run_dir=tmp_path / "run",
    )
    assert len(found.trials) == 2
    assert "full network: not looked at: ModelError" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    "spoil",
    [
        {"loaded": "0.5"},
        {"loaded": float("inf")},
        {"images": "many"},
        {"mean": 3},
        {"warnings": 7},
        {"metric": 1},
    ],
)
def test_a_record_that_is_damaged_is_told_and_left_out(tmp_path, spoil):
    folder = RunFolder(tmp_path)
    good = SetUp(metric="top1", images=3, loaded=float("nan"), mean=(0.5,), std=(1.0,))
    write_setup(folder, good)
    assert read_setup(folder).mean == (0.5,)
    assert "nan" in read_setup(folder).words
    plain = json.loads((tmp_path / FILE).read_text())
    plain.pop("checksum")
    folder.write_json(FILE, {**plain, **spoil})
    with pytest.warns(UserWarning, match=r"setup.json is damaged"):
        assert read_setup(folder) is None


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


CONFIG = """
n_trials = 2
searcher = "random"
baselines = ["uniform"]
model = {name = "small_resnet", widths = [4, 6], depths = [1, 1], checkpoint = "CHECKPOINT"}
data = {name = "digits"}
evaluator = {name = "adaptive_bn", calibration_images = 64, batch_size = 64}
budget = {macs = 0.7}
"""


def test_a_checkpoint_of_ones_own_is_scored_before_anything_is_searched(tmp_path):
    data = load_data("digits", seed=0)
    with torch_seeded(0, "init"):
        model = SmallResNet(in_channels=1, widths=(4, 6), depths=(1, 1))
    train(model, data.train, Recipe(epochs=4, lr=0.1, batch_size=64))
    torch.save(
        {"state_dict": {f"model.{n}": t for n, t in model.state_dict().items()}},
        tmp_path / "mine.ckpt",
    )
    (tmp_path / "c.toml").write_text(CONFIG.replace("CHECKPOINT", str(tmp_path / "mine.ckpt")))
    told = call("evaluate", tmp_path / "mine.ckpt", "--config", tmp_path / "c.toml", "--batch", 2)
    assert told.exit_code == 0, told.output
    assert f"360 test images: top1 {100 * score(model, data.test)['top1']:.2f} %" in told.output
    assert "full network: top1" in told.output
    alone = call("evaluate", tmp_path / "mine.ckpt")
    assert alone.exit_code == 2
    assert "--config CONFIG" in alone.output
    both = call(
        "evaluate", tmp_path / "mine.ckpt", "--config", tmp_path / "c.toml", "--data", "digits"
    )
    assert (both.exit_code, "leave one of them out" in both.output) == (2, True)
    dry = call("search", tmp_path / "c.toml", "--dry-run", "--run-dir", tmp_path / "run")
    line = next(line for line in dry.output.splitlines() if line.startswith("full network: "))
    assert "chance 10." in line
    assert call("search", tmp_path / "c.toml", "--run-dir", tmp_path / "run").exit_code == 0
    status = call("status", tmp_path / "run").output
    assert line in status
    with quick():
        assert line in call("report", tmp_path / "run").output
