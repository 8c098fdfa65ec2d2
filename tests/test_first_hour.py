"""The first hour of a new user, with a folder of images: what every command calls `next:` is what is run next."""

import json
import re
import shlex

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from abcsearch import cli
from abcsearch.evaluation.adaptive_bn import AdaptiveBN

SMALL = (
    "n_trials=6",
    "pretrain.epochs=2",
    "model.widths=[4,6]",
    "model.depths=[1,1]",
    "finetune.epochs=1",
)
SMALL += ("pretrain.flip=true",)


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def draw(folder, count, seed):
    """Writes images of two classes: a bright upper half or a dark one."""
    draws = np.random.default_rng(seed)
    for name, light in (("dark", 0), ("light", 90)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = draws.integers(0, 160, (10, 10, 3))
            pixels[:5] += light
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with images."""
    for place, (split, count) in enumerate((("train", 40), ("val", 20), ("test", 20))):
        draw(tmp_path / "shapes" / split, count, place)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def following(result, status=0):
    """Returns the command that a command says comes next."""
    assert result.exit_code == status, result.output
    pattern = r"next: abcsearch (.*)" if status == 0 else r"continue with: abcsearch (.*)"
    (command,) = re.findall(pattern, result.output)
    return shlex.split(command)


@pytest.mark.filterwarnings(
    "ignore:.*they are one batch"
)  # as few images as people try things with
def test_the_first_hour(here, monkeypatch):
    command = following(
        call("init", "--model", "small_resnet", "--data", "shapes", "--out", "mine.toml")
    )
    assert command == ["search", "mine.toml", "--dry-run"]
    assert (
        "2 classes; train/: training, val/: search-validation, test/: test"
        in (here / "mine.toml").read_text()
    )

    sets = [word for own in SMALL for word in ("--set", own)]
    rehearsed = call(*command, *sets)
    assert "full network: trained first, then scored" in rehearsed.output
    assert "alpha = 0.9" in rehearsed.output
    command = following(rehearsed)
    assert command == ["search", "mine.toml", *sets]
    assert not (here / "runs").exists()

    evaluate, calls = AdaptiveBN.__call__, []

    def stops(self, candidate, seed):
        calls.append(candidate)
        if len(calls) == 6:  # two of them are of the full network and of uniform widths
            raise KeyboardInterrupt
        return evaluate(self, candidate, seed)

    monkeypatch.setattr(AdaptiveBN, "__call__", stops)
    stopped = call(*command)
    assert "full network: 1/1, top1" in stopped.output
    command = following(stopped, status=130)
    assert command == ["resume", "runs/mine"]
    begun = len(calls)
    monkeypatch.setattr(AdaptiveBN, "__call__", evaluate)
    assert "next" not in call("status", "runs/mine").output  # it says resume by itself
    assert f"abcsearch {shlex.join(command)}" in call("status", "runs/mine").output

    seen = []
    while command[0] not in seen:
        seen.append(command[0])
        result = call(*command)
        if command[0] == "evaluate":
            break
        command = following(result)
    assert seen == ["resume", "finetune", "report", "export", "evaluate"]
    assert "top1" in result.output
    assert "top5" not in result.output  # of two classes
    assert begun == 6

    page = (here / "runs/mine/report.html").read_text()
    assert "accuracy" in re.findall(r'<p class="headline">(.*?)</p>', page)[0]
    assert "top5" not in json.dumps(
        json.loads((here / "runs/mine/report.json").read_text())["rows"]
    )
    rows = json.loads(call("trials", "runs/mine", "--format", "json").output)
    assert [row["number"] for row in rows] == list(range(6))
    assert (
        call("search", "mine.toml", *sets)
        .output.rstrip()
        .endswith("next: abcsearch export runs/mine")
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--model", "small_resnet", "--data", "nowhere"),
            "with train/CLASS/IMAGE and val/CLASS/IMAGE, which is not there",
        ),
        (
            ("--model", "small_resnet", "--data", "shapes/train"),
            "images lie in shapes/train/train/CLASS/IMAGE",
        ),
        (("--model", "small_resnt", "--data", "shapes"), "did you mean 'small_resnet'"),
        (("--data", "shapes"), "--model is missing, and there is no terminal to ask on"),
        (("--model", "small_resnet"), "--data is missing"),
        (
            ("--model", "small_resnet", "--data", "shapes", "--out", "there.toml"),
            "there.toml is there already",
        ),
    ],
)
def test_what_init_cannot_begin_with_is_told_and_nothing_is_written(here, arguments, words):
    (here / "there.toml").write_text("mine = 1\n")
    before = sorted(here.rglob("*"))
    told = call("init", *arguments)
    assert told.exit_code == 2, told.output
    assert words in told.output
    assert sorted(here.rglob("*")) == before
    assert (here / "there.toml").read_text() == "mine = 1\n"


@pytest.mark.parametrize(
    "name", ['odd "name"', "t\u00e4ler \U0001f332", "back\\slash", "#hash = 1"]
)
def test_init_writes_any_folders_name_as_it_is(here, name):
    (here / "shapes").rename(here / name)
    assert call("init", "--model", "resnet20", "--data", name).exit_code == 0
    from abcsearch.config import read_config

    assert read_config(here / "config.toml").data.options["path"] == str(here / name)


@pytest.mark.parametrize(
    ("model", "data", "lines"),
    [
        ("resnet20", "cifar100", ["classes = 100", 'path = "data/cifar100"']),
        ("torchvision.models:resnet18", "shapes", ["num_classes = 2", "# size = 224"]),
        ("tests.test_first_hour:plain", "shapes", ["# the data have 2 classes"]),
        ("small_resnet", "digits", ["in_channels = 1", "classes = 10"]),
    ],
)
def test_init_tells_the_network_of_its_data(here, model, data, lines):
    told = call("init", "--model", model, "--data", data, "--checkpoint", "mine.pt")
    assert told.exit_code == 0, told.output
    text = (here / "config.toml").read_text()
    for line in (*lines, 'checkpoint = "mine.pt"'):
        assert line in text
    assert "[pretrain]" not in text


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (
            "tests.test_first_hour:plain",
            "size = 30 ",
        ),  # of whatever it was trained with nobody knows
        ("torchvision.models:resnet18", "size = 224 "),
        ("resnet20", "size = 32 "),
    ],
)
def test_init_does_not_blow_small_images_up(here, model, line):
    """As they were, 40 x 36 pixels would be resized to 224 x 224: a search of hours instead of minutes."""
    for number, file in enumerate(sorted((here / "shapes").rglob("*.png"))):
        with Image.open(file) as image:
            image.resize((40, 30 if number % 3 else 36)).save(file)
    assert call("init", "--model", model, "--data", "shapes").exit_code == 0
    text = (here / "config.toml").read_text()
    assert f"\n{line}" in text


@pytest.mark.parametrize(("macs", "alpha"), [("0.5", "0.9"), ("0.8", "1.0")])
def test_init_leaves_no_budget_over(here, macs, alpha):
    assert call("init", "--model", "resnet20", "--data", "shapes", "--macs", macs).exit_code == 0
    assert f"\nalpha = {alpha} " in (here / "config.toml").read_text()


def plain():
    """A network without options."""
