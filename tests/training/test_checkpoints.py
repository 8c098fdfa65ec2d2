"""A training that is stopped at any instant goes on as if it had not been."""

import math
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from abcsearch.data.registry import load_data
from abcsearch.data.splits import Data
from abcsearch.errors import CheckpointError, ModelError
from abcsearch.training import checkpoints
from abcsearch.training.finetuning import finetune
from abcsearch.training.loop import train
from abcsearch.training.recipe import Recipe
from tests.training.toys import linear, network, points, stripes, weights

ALL = {
    "ema": 0.9,
    "mixup": 0.2,
    "cutmix": 1.0,
    "clip_norm": 1.0,
    "distillation": 0.3,
    "label_smoothing": 0.1,
}
RECIPES = {
    "as before": Recipe(epochs=5, batch_size=16, lr=0.1, shift=1, flip=True),
    "all of it": Recipe(epochs=5, batch_size=16, lr=0.1, shift=1, flip=True, **ALL),
    "adamw, best": Recipe(
        epochs=5, batch_size=16, lr=0.01, optimizer="adamw", schedule="step", keep="best"
    ),
    "averaged, best": Recipe(epochs=5, batch_size=16, lr=0.05, ema=0.5, keep="best", randaugment=5),
}


class Stopped(Exception):
    pass


def stop_after(epoch):
    def on_epoch(done, total, loss):
        if done == epoch:
            raise Stopped

    return on_epoch


def call(recipe, **options):
    """Trains; returns weights and how it went."""
    model = network(classes=10)
    teacher = network(classes=10, seed=5) if recipe.distillation else None
    data = load_data("digits")
    some = torch.arange(96)
    found = train(
        model,
        data.train.part(some),
        recipe,
        teacher=teacher,
        validation=data.validation.part(some),
        **options,
    )
    return weights(model), found


def assert_same(one, other):
    assert torch.equal(one[0], other[0])
    for name in ("losses", "scores", "best_epoch"):
        assert getattr(one[1], name) == getattr(other[1], name)
    for name in ("best", "last"):
        state = getattr(one[1], name)
        assert all(
            torch.equal(tensor, state[key]) for key, tensor in getattr(other[1], name).items()
        )


@pytest.mark.parametrize("name", RECIPES)
def test_stopped_after_any_epoch_it_ends_with_the_same_bits(name, tmp_path):
    whole = call(RECIPES[name])
    assert_same(call(RECIPES[name], checkpoint=tmp_path / "undisturbed"), whole)
    file, seen = tmp_path / "training.checkpoint", []
    for epoch in (1, 2, 4):
        with pytest.raises(Stopped):
            call(RECIPES[name], checkpoint=file, on_epoch=stop_after(epoch))
    resumed = call(RECIPES[name], checkpoint=file, on_epoch=lambda done, *_: seen.append(done))
    assert seen == [5]
    assert_same(resumed, whole)
    # Once more after the end: nothing is trained, and it is there.
    assert_same(call(RECIPES[name], checkpoint=file, on_epoch=stop_after(5)), whole)


def _drive(path, name):
    call(RECIPES[name], checkpoint=path)


def killed(folder, drive, *arguments):
    """Kills processes that train, until three were killed of one file; returns the file.

    Args:
        folder: for files.
        drive: trains, given a file and the arguments.
        arguments: for it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.training.test_checkpoints", "abcsearch.training.loop", "torchvision"]
    )
    duration, kills, instants = 0.0, 0, np.random.default_rng()
    file = folder / "killed"
    for attempt in range(50):
        began, victim = time.monotonic(), context.Process(target=drive, args=(file, *arguments))
        victim.start()
        victim.join(instants.uniform(0.1, 1.0) * duration if duration else None)
        if victim.is_alive():
            os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        assert victim.exitcode in (0, -signal.SIGKILL)
        kills += victim.exitcode != 0
        if victim.exitcode == 0:  # kill the next one earlier: the machine's speed varies
            duration = min(duration or math.inf, time.monotonic() - began)
            file = folder / f"killed-{attempt}"
        elif kills > 2:
            break
    assert kills > 2
    return file


def test_killed_at_any_instant_it_ends_with_the_same_bits(tmp_path):
    """Kill -9 of a process, again and again, until it comes to its end; in the middle of writing as well."""
    whole = call(RECIPES["all of it"])
    assert_same(call(RECIPES["all of it"], checkpoint=killed(tmp_path, _drive, "all of it")), whole)


def _drive_killed_while_writing(path, count):
    """Dies at the count-th write, half of the file being written, or written but not yet in its place."""
    write, calls = checkpoints.replace_file, []

    def killing(target, writer, **options):
        calls.append(target)

        def half(sibling):
            writer(sibling)
            if len(calls) == count:
                os.truncate(
                    sibling, sibling.stat().st_size // 2 if count % 2 else sibling.stat().st_size
                )
                os.kill(os.getpid(), signal.SIGKILL)

        write(target, half, **options)

    checkpoints.replace_file = killing
    _drive(path, "all of it")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_killed_within_a_write_it_ends_with_the_same_bits(tmp_path, count):
    context = multiprocessing.get_context("forkserver")
    file = tmp_path / "training.checkpoint"
    victim = context.Process(target=_drive_killed_while_writing, args=(file, count))
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.glob(f".{file.name}.*.tmp"))) == 1
    assert file.exists() == (count > 1)
    assert_same(call(RECIPES["all of it"], checkpoint=file), call(RECIPES["all of it"]))
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]


def begun(path, **changes):
    """A training of a linear model that is stopped after its first epoch, or continued with changes."""
    options = {
        "model": linear(),
        "split": points(),
        "recipe": Recipe(epochs=3, batch_size=4, lr=0.1),
        **changes,
    }
    model, split, recipe = (options.pop(name) for name in ("model", "split", "recipe"))
    train(model, split, recipe, checkpoint=path, **options)
    return model


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": Recipe(epochs=4, batch_size=4, lr=0.1)}, "recipe.epochs: 3 there, 4 now"),
        (
            {"recipe": Recipe(epochs=3, batch_size=4, lr=0.2, ema=0.5)},
            "recipe.lr: 0.1 there, 0.2 now; recipe.ema: 0.0",
        ),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"stream": "finetune"}, "part: 'train' there, 'finetune' now"),
        ({"steps": 2}, "steps: None there, 2 now"),
        ({"model": linear(seed=1)}, "network: '"),
        ({"split": points(seed=1)}, "images: '"),
        ({"validation": points()}, "validation: None there"),
    ],
)
def test_nothing_is_continued_as_another_training_and_nothing_is_lost(tmp_path, changes, words):
    file = tmp_path / "training.checkpoint"
    with pytest.raises(Stopped):
        begun(file, on_epoch=stop_after(1))
    before = file.read_bytes()
    model = changes.get("model", linear())
    kept = weights(model)
    with pytest.raises(
        CheckpointError, match="holds another training, which has not been finished"
    ) as caught:
        begun(file, **{"model": model, **changes})
    assert words in str(caught.value)
    assert file.read_bytes() == before
    assert torch.equal(weights(model), kept)
    assert torch.equal(weights(begun(file)), weights(begun(None)))


@pytest.mark.parametrize("damage", [b"", b"torn", None])
def test_a_damaged_file_is_said_to_be_so(tmp_path, damage):
    file = tmp_path / "training.checkpoint"
    with pytest.raises(Stopped):
        begun(file, on_epoch=stop_after(1))
    file.write_bytes(file.read_bytes()[:-10] if damage is None else damage)
    with pytest.raises(
        CheckpointError,
        match=r"is no checkpoint of a training .*delete it to train from the beginning",
    ):
        begun(file)


def test_one_flipped_bit_anywhere_is_found(tmp_path):
    file = tmp_path / "training.checkpoint"
    with pytest.raises(Stopped):
        begun(file, on_epoch=stop_after(1))
    whole, wanted, places = file.read_bytes(), weights(begun(None)), np.random.default_rng()
    first = 8 + int.from_bytes(whole[:8], "little")  # of the tensors
    for place in [
        first,
        len(whole) - 1,
        *places.integers(first, len(whole), 10),
        *places.integers(first, size=10),
    ]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << places.integers(8)
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"training\.checkpoint .*delete"):
            begun(file)
        assert file.read_bytes() == damaged
        file.unlink()
    assert torch.equal(weights(begun(file)), wanted)  # as the message says


def test_checkpoints_of_before_have_no_checksum(tmp_path):
    file = tmp_path / "training.checkpoint"
    with pytest.raises(Stopped):
        begun(file, on_epoch=stop_after(1))
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(file), file, {"training": metadata["training"]})
    seen = []
    assert torch.equal(
        weights(begun(file, on_epoch=lambda done, *_: seen.append(done))), weights(begun(None))
    )
    assert seen == [2, 3]


def test_it_holds_no_pickle_and_is_replaced_every_epoch(tmp_path):
    file, sizes = tmp_path / "new" / "training.checkpoint", []
    begun(file, on_epoch=lambda *_: sizes.append(len(load_file(file))))
    assert len(sizes) == 3
    assert {"model.1.weight", "optimizer.0.momentum_buffer", "random.draws", "random.cpu"} == set(
        load_file(file)
    )


def test_a_training_that_diverges_is_not_continued_where_it_diverged(tmp_path):
    file = tmp_path / "training.checkpoint"
    model, recipe = network(), Recipe(epochs=3, batch_size=16, lr=1e30, warmup_epochs=0)
    with pytest.raises(
        ModelError,
        match=r"the training loss is .* in epoch \d; lower lr = 1e\+30, or limit gradients",
    ):
        train(model, stripes(), recipe, checkpoint=file)
    assert not file.exists()
    train(network(), stripes(), Recipe(epochs=1, batch_size=16), checkpoint=file)


def test_best_and_last_are_kept_by_search_validation_alone(tmp_path):
    data = Data(
        name="stripes", train=stripes(), validation=stripes(30, seed=1), test=stripes(60, seed=2)
    )
    model, results = network(), {}
    for keep in ("last", "best"):
        recipe = Recipe(epochs=6, batch_size=16, lr=3.0, warmup_epochs=0, keep=keep)
        results[keep] = found = finetune(model, data, recipe, checkpoint=tmp_path / keep)
        training = found.training
        assert len(training.scores) == len(training.losses) == 6
        assert training.best_epoch == 1 + training.scores.index(max(training.scores))
        kept = getattr(training, keep)
        assert all(
            torch.equal(tensor, kept[name]) for name, tensor in found.model.state_dict().items()
        )
        test = found.model(data.test.images).argmax(dim=1) == data.test.labels
        assert found.after["top1"] == pytest.approx(float(test.float().mean()))
    best, last = (results[keep].training for keep in ("best", "last"))
    assert best.scores == last.scores
    assert best.best_epoch < 6  # so that the two differ
    copied = network()
    copied.load_state_dict(best.best)
    hits = copied.eval()(data.validation.images).argmax(dim=1) == data.validation.labels
    assert float(hits.float().mean()) == pytest.approx(max(best.scores))
