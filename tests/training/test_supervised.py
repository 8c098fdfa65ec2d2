"""Labels are learned as before there were other lessons, bit for bit."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torchvision.transforms import v2

from abcsearch.rng import torch_seeded, torch_stream
from abcsearch.training.loop import train
from abcsearch.training.optimization import rate_share
from abcsearch.training.recipe import Recipe
from abcsearch.training.scoring import score
from tests.training.toys import exact_network, exact_stripes, weights

GOLDEN = Path(__file__).parent / "golden"
ALL = {
    "ema": 0.9,
    "mixup": 0.2,
    "cutmix": 1.0,
    "clip_norm": 1.0,
    "distillation": 0.3,
    "label_smoothing": 0.1,
}
# What the golden checkpoints are of; each was written after epoch 2 by the commit before there were lessons.
RECIPES = {
    "sgd": Recipe(
        epochs=4, batch_size=16, lr=0.1, shift=1, flip=True, device="cpu", keep="best", **ALL
    ),
    "adamw": Recipe(
        epochs=4, batch_size=16, lr=0.01, optimizer="adamw", schedule="step", device="cpu"
    ),
}
SEED = 3


class Written:
    """The training of labels in plain torch, as long as it is: what `train` has to agree with, bit for bit."""

    def __init__(self, recipe, model, split, teacher=None, validation=None):
        self.recipe, self.model, self.split, self.teacher, self.validation = (
            recipe,
            model,
            split,
            teacher,
            validation,
        )
        every = list(model.parameters())
        groups = [
            {"params": [p for p in every if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = (
            torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))
            if recipe.optimizer == "adamw"
            else torch.optim.SGD(
                groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov
            )
        )
        self.average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.draws, self.epoch, self.steps, self.losses, self.scores, self.best = (
            None,
            0,
            0,
            [],
            [],
            None,
        )

    def take_up(self, file):
        """Goes on from the tensors of a checkpoint."""
        with safe_open(file, framework="pt") as opened:
            told = json.loads(opened.metadata()["training"])["state"]
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        parts = {name.partition(".")[0]: {} for name in tensors}
        for name, tensor in tensors.items():
            parts[name.partition(".")[0]][name.partition(".")[2]] = tensor
        self.model.load_state_dict(parts["model"])
        states = {}
        for name, tensor in parts["optimizer"].items():
            states.setdefault(int(name.partition(".")[0]), {})[name.partition(".")[2]] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})
        self.average, self.best = parts.get("average", self.average), parts.get("best")
        self.losses, self.scores, self.steps = told["losses"], told["scores"], told["averaged"]
        self.epoch = len(self.losses)
        self.random = parts["random"]

    def run(self):
        self.model.to(memory_format=torch.channels_last).train()
        with torch_seeded(SEED, "train-forward"):
            self.draws = torch_stream(SEED, "train-batches")
            if self.epoch:
                self.draws.set_state(self.random["draws"])
                torch.set_rng_state(self.random["cpu"])
            while self.epoch < self.recipe.epochs:
                self.one_epoch()
        if self.recipe.keep == "best":
            self.model.load_state_dict(self.best)
        elif self.recipe.ema:
            self.model.load_state_dict(self.average)
        return weights(self.model), tuple(self.losses), tuple(self.scores)

    def one_epoch(self):
        recipe, total = self.recipe, torch.zeros(())
        batches = list(
            self.split.shuffled(recipe.batch_size, self.draws, shift=recipe.shift, flip=recipe.flip)
        )
        for number, (images, labels) in enumerate(batches):
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.lr * rate_share(self.epoch + number / len(batches), recipe)
            loss = self.loss(images, labels)
            self.optimizer.zero_grad()
            loss.backward()
            if recipe.clip_norm:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
            self.optimizer.step()
            self.steps += 1
            decay = min(recipe.ema, (1 + self.steps) / (10 + self.steps))
            for name, tensor in self.model.state_dict().items():
                if tensor.is_floating_point():
                    self.average[name].lerp_(tensor, 1 - decay)
                else:
                    self.average[name].copy_(tensor)
            total += loss.detach()
        self.epoch += 1
        self.losses.append(float(total) / len(batches))
        if self.validation is not None:
            scored = copy.deepcopy(self.model)
            scored.load_state_dict(self.average if recipe.ema else self.model.state_dict())
            self.scores.append(score(scored, self.validation)["top1"])
            if self.best is None or self.scores[-1] > max(self.scores[:-1]):
                self.best = copy.deepcopy(scored.state_dict())

    def loss(self, images, labels):
        recipe, wanted = self.recipe, labels
        if recipe.mixup:
            mix = v2.RandomChoice(
                [
                    v2.MixUp(alpha=recipe.mixup, num_classes=3),
                    v2.CutMix(alpha=recipe.cutmix, num_classes=3),
                ]
            )
            images, wanted = mix(images, labels)
            images = images.contiguous(memory_format=torch.channels_last)
        outputs = self.model(images)
        loss = F.cross_entropy(outputs, wanted, label_smoothing=recipe.label_smoothing)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            taught = F.log_softmax(self.teacher.eval()(images) / recipe.temperature, dim=1)
        ours = F.log_softmax(outputs / recipe.temperature, dim=1)
        divergence = recipe.temperature**2 * F.kl_div(
            ours, taught, reduction="batchmean", log_target=True
        )
        return (1 - recipe.distillation) * loss + recipe.distillation * divergence


def golden_options(name):
    return (
        {"teacher": exact_network(5), "validation": exact_stripes(24, 13)} if name == "sgd" else {}
    )


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("stopped", [False, True], ids=["whole", "golden"])
def test_labels_are_learned_as_before_there_were_lessons(name, stopped, tmp_path):
    """Bit for bit, from the beginning, and from a checkpoint that the code of before has written."""
    file, seen, model = tmp_path / "training.checkpoint", [], exact_network()
    written = Written(RECIPES[name], exact_network(), exact_stripes(), **golden_options(name))
    if stopped:
        shutil.copy(GOLDEN / f"{name}.checkpoint", file)
        written.take_up(file)
    result = train(
        model,
        exact_stripes(),
        RECIPES[name],
        seed=SEED,
        checkpoint=file,
        on_epoch=lambda done, *_: seen.append(done),
        **golden_options(name),
    )
    bits, losses, scores = written.run()
    assert seen == ([3, 4] if stopped else [1, 2, 3, 4])
    assert torch.equal(weights(model), bits)
    assert (result.losses, result.scores) == (losses, scores)


class Ends(Exception):
    pass


def after(epoch):
    def on_epoch(done, *_):
        if done == epoch:
            raise Ends

    return on_epoch


@pytest.mark.parametrize("name", RECIPES)
def test_checkpoints_of_labels_have_the_entries_of_before(name, tmp_path):
    """So that the code of before continues them, too."""
    with pytest.raises(Ends):
        train(
            exact_network(),
            exact_stripes(),
            RECIPES[name],
            seed=SEED,
            checkpoint=tmp_path / "new",
            on_epoch=after(2),
            **golden_options(name),
        )
    contents = []
    for file in (tmp_path / "new", GOLDEN / f"{name}.checkpoint"):
        with safe_open(file, framework="pt") as opened:
            told = json.loads(opened.metadata()["training"])
            shapes = {key: tuple(opened.get_tensor(key).shape) for key in opened.keys()}  # noqa: SIM118
        contents.append(
            (told["identity"], set(told["state"]), len(told["state"]["losses"]), shapes)
        )
    assert contents[0] == contents[1]
