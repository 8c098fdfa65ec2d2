"""Lessons of one's own are trained as safely as labels are, and what is none is refused."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from abcsearch.errors import CheckpointError, ConfigError, DataError, LessonError, ModelError
from abcsearch.testing import LessonContract
from abcsearch.training.lesson import Lesson, Supervised
from abcsearch.training.loop import train
from abcsearch.training.optimization import rate_share
from abcsearch.training.recipe import Recipe
from tests.training.toys import Gated, Gates, Net, network, stripes, weights

SHORT = Recipe(epochs=2, batch_size=16, lr=0.1, device="cpu")


class TestSupervised(LessonContract):
    def make(self):
        return Supervised(network())

    def others(self):
        return [Supervised(network(seed=1)), Supervised(network(), objective="segmentation")]


class TestGated(LessonContract):
    def make(self):
        return Gated()

    def others(self):
        return [Gated(penalty=0.5), Gated(passes_back=True), Gated(seed=1)]


class Shrunk(Supervised):
    """Learns labels with a penalty, as slimming does."""

    def step(self, images, labels, draws):
        return super().step(images, labels, draws) + 0.05 * self.model.bn.weight.abs().sum()


class TestShrunk(LessonContract):
    def make(self):
        return Shrunk(network(), teacher=network(seed=1))

    def recipe(self):
        return Recipe(epochs=3, batch_size=16, lr=0.05, distillation=0.5, mixup=0.2, device="cpu")

    def others(self):
        return [
            Shrunk(network(), teacher=network(seed=2)),
            Supervised(network(), teacher=network(seed=1)),
        ]


class Forgetful(Gated):
    """Has a state that it does not tell."""

    def state_dict(self):
        return {}


def test_the_contract_finds_a_state_that_is_not_saved_and_settings_that_are_not_told():
    class Contract(TestGated):
        def make(self):
            return Forgetful()

        def others(self):
            return [Forgetful()]

    with pytest.raises((AssertionError, KeyError)):
        Contract().test_stopped_after_any_epoch_it_ends_with_the_same_bits()


def test_the_contract_finds_settings_that_are_not_told():
    class Secretive(Gated):
        def same(self):
            return {}

    class Contract(LessonContract):
        def make(self):
            return Secretive()

        def others(self):
            return [Secretive(penalty=0.5)]

    with pytest.raises(AssertionError, match="return them from same"):
        Contract().test_another_lesson_does_not_continue_a_checkpoint()


def test_what_a_lesson_is_told_and_by_which_rates_it_learns():
    lesson, rates, recipe = (
        Gated(),
        [],
        Recipe(epochs=2, batch_size=48, lr=0.1, warmup_epochs=0, device="cpu"),
    )
    told = lesson.optimizers

    def optimizers(recipe):
        every = told(recipe)
        lesson.after_step = lambda progress: (
            rates.append([optimizer.param_groups[0]["lr"] for optimizer in every.values()]),
            Gated.after_step(lesson, progress),
        )
        return every

    lesson.optimizers = optimizers
    train(lesson, stripes(), recipe)
    assert lesson.told == [0.25, 0.5, 1, 0.75, 1.0, 2]
    shares = [rate_share(step / 2, recipe) for step in range(4)]
    assert rates == [[pytest.approx(0.1 * share), pytest.approx(0.01 * share)] for share in shares]


class Straight(Lesson):
    """The network of its first module, and the gates as a bias; plain steps by two optimisers."""

    def __init__(self):
        self.model, self.gates = network(), Gates(3)
        self.modules = {"model": self.model, "gates": self.gates}

    def optimizers(self, recipe):
        return {
            name: torch.optim.SGD(module.parameters(), lr=1.0)
            for name, module in self.modules.items()
        }

    def step(self, images, labels, draws):
        return F.cross_entropy(self.model(images) + self.gates.weight, labels)


def tensors_after(steps=1, **options):
    lesson = Straight()
    train(
        lesson,
        stripes(),
        Recipe(epochs=2, batch_size=96, warmup_epochs=0, device="cpu", **options),
        steps=steps,
    )
    return {
        f"{name}.{key}": t
        for name, m in lesson.modules.items()
        for key, t in m.state_dict().items()
    }


def test_gradients_are_clipped_together():
    before = tensors_after(clip_norm=1e-12)
    after_one = tensors_after(clip_norm=1e-3)
    moved = {
        key: float((after_one[key] - tensor).double().norm())
        for key, tensor in before.items()
        if "bn.r" not in key
    }
    assert math.hypot(*moved.values()) == pytest.approx(1e-3, rel=1e-3)
    assert moved["gates.weight"] > 1e-5 < moved["model.conv.weight"]


def test_the_average_is_that_of_all_modules():
    raw, averaged, first = tensors_after(), tensors_after(ema=0.9), tensors_after(clip_norm=1e-12)
    first = {
        **first,
        "model.bn.running_mean": torch.zeros(6),
        "model.bn.running_var": torch.ones(6),
    }
    for name, tensor in raw.items():
        wanted = (
            first[name] + (tensor - first[name]) * (1 - 2 / 11)
            if tensor.is_floating_point()
            else tensor
        )
        torch.testing.assert_close(averaged[name], wanted, rtol=1e-5, atol=1e-6)
    assert not torch.equal(raw["gates.weight"], averaged["gates.weight"])


def test_backward_called_by_the_lesson_is_the_gradient_of_the_loss():
    lessons = [Gated(passes_back=passes) for passes in (False, True)]
    losses = [
        train(lesson, stripes(), Recipe(epochs=1, batch_size=48, device="cpu"), steps=1).losses
        for lesson in lessons
    ]
    assert losses[0] == pytest.approx(losses[1])
    for one, other in zip(*(lesson.modules.values() for lesson in lessons), strict=True):
        torch.testing.assert_close(one.state_dict(), other.state_dict())


def test_the_best_epoch_is_by_the_score_of_the_lesson_and_holds_all_modules():
    class Rehearsed(Straight):
        scores = (0.1, 0.7, 0.7, 0.3)
        after = ()

        def score(self, images):
            self.after = (*self.after, copy.deepcopy(self.gates.weight.detach()))
            return self.scores[len(self.after) - 1]

    lesson = Rehearsed()
    recipe = Recipe(epochs=4, batch_size=48, keep="best", device="cpu")
    result = train(lesson, stripes(), recipe, validation=stripes(seed=1))
    assert (result.scores, result.best_epoch) == (Rehearsed.scores, 2)
    assert torch.equal(lesson.gates.weight, lesson.after[1])
    assert torch.equal(result.best["gates.weight"], lesson.after[1])
    assert torch.equal(result.last["gates.weight"], lesson.after[3])
    assert "model.conv.weight" in result.best


def test_a_subclass_of_labels_without_changes_is_the_same_training():
    class Same(Supervised):
        pass

    models = [network() for _ in range(2)]
    results = [
        train(lesson, stripes(), SHORT, validation=stripes(seed=1))
        for lesson in (Same(models[0]), Supervised(models[1]))
    ]
    assert torch.equal(*map(weights, models))
    assert results[0].scores == results[1].scores


def broken(**changes):
    """A lesson that is right but for some attributes or methods."""
    return type("Broken", (Straight,), changes)


def returning(value):
    return broken(step=lambda self, images, labels, draws: value(self, images))


def stepping(method):
    return broken(after_step=lambda self, progress: method(self))


def replace_parameter(lesson):
    lesson.gates.weight = nn.Parameter(torch.ones(3))


class NoStep(Lesson):
    def __init__(self):
        self.modules = {"model": network()}


class NoModules(Lesson):
    def step(self, images, labels, draws):
        return images.sum()


def with_modules(modules):
    class Broken(Straight):
        def __init__(self):
            super().__init__()
            self.modules = modules(self)

    return Broken


def optimizing(method):
    return broken(optimizers=lambda self, recipe: method(self))


def sgd(*modules):
    return torch.optim.SGD([p for module in modules for p in module.parameters()], lr=0.1)


BROKEN = [
    (
        NoStep,
        LessonError,
        r"NoStep lacks step\(images, labels, draws\); define it as abcsearch.Lesson says",
    ),
    (
        NoModules,
        LessonError,
        "NoModules.modules is a mapping of names to modules .*, found nothing; set it",
    ),
    (with_modules(lambda _: [Net()]), LessonError, "mapping of names to modules .*, found list"),
    (with_modules(lambda _: {}), LessonError, "says by name what is trained, found none"),
    (with_modules(lambda _: {"a": 3}), LessonError, "found int as 'a'"),
    (with_modules(lambda _: {1: Net()}), LessonError, "a name is a text without dots, found 1"),
    (
        with_modules(lambda _: {"a.b": Net()}),
        LessonError,
        r"a name is a text without dots, found 'a\.b'",
    ),
    (
        with_modules(lambda s: {"a": s.model, "type": s.gates}),
        LessonError,
        "torch does not take a name .*'type'",
    ),
    (
        with_modules(lambda s: {"a": s.model, "b": s.model}),
        LessonError,
        "names one module twice, 'a' and 'b'",
    ),
    (
        with_modules(lambda _: {"a": Net().requires_grad_(False), "b": nn.ReLU()}),
        ModelError,
        "Broken has no parameter to train",
    ),
    (broken(teachers={"a": "b"}), LessonError, "Broken.teachers is a mapping .*, found str as 'a'"),
    (
        broken(same=lambda _: {"a": {1}}),
        LessonError,
        r"same\(\) holds plain JSON values .*, found set as a",
    ),
    (broken(same=lambda _: {"a": {"b": {2: 1}}}), LessonError, "found the key 2 in a.b"),
    (
        broken(state_dict=lambda _: {}),
        LessonError,
        r"lacks load_state_dict\(state\), the counterpart",
    ),
    (
        broken(state_dict=lambda _: {"a": [nn.ReLU()]}, load_state_dict=lambda *_: None),
        LessonError,
        r"state_dict\(\) holds plain JSON values .*, found ReLU as a\[0\]",
    ),
    (
        broken(state_dict=lambda _: 1, load_state_dict=lambda *_: None),
        LessonError,
        "a mapping of names .*found int",
    ),
    (optimizing(lambda _: None), LessonError, "returns optimisers .* by name, found NoneType"),
    (optimizing(lambda _: {}), LessonError, "returns optimisers .* by name, found none"),
    (optimizing(lambda s: {"a": s.model}), LessonError, "found Net as 'a'"),
    (optimizing(lambda s: {"a.b": sgd(s.model)}), LessonError, "a name is a text without dots"),
    (
        optimizing(lambda _: {"a": sgd(Gates(4))}),
        LessonError,
        r"'a' changes a parameter \(4,\) that is in none of",
    ),
    (
        optimizing(lambda s: {"a": sgd(s.model), "b": sgd(s.gates, s.model)}),
        LessonError,
        r"a parameter \(6, 1, 3, 3\) is changed by 'a' and 'b'; give it to one of them",
    ),
    (
        returning(lambda *_: 0.5),
        LessonError,
        r"step\(\) returns the loss, one floating-point number .*, found float",
    ),
    (returning(lambda s, x: s.model(x)), LessonError, r"found \(16, 3\) torch.float32"),
    (returning(lambda *_: torch.tensor(3)), LessonError, r"found \(\) torch.int64"),
    (
        returning(lambda s, x: s.model(x).sum().detach()),
        LessonError,
        "has no gradient, and has called no backward",
    ),
    (
        returning(lambda s, x: (s.gates.weight.sum().backward(), s.model(x).sum())[1]),
        LessonError,
        r"has called backward and returns a loss that can be: return loss.detach\(\)",
    ),
    (
        returning(lambda s, x: s.model(x).sum() * math.nan),
        ModelError,
        "the training loss is nan in epoch 1; lower lr",
    ),
    (
        stepping(lambda s: setattr(s, "modules", {"model": s.model})),
        LessonError,
        "model, gates in the beginning, found",
    ),
    (
        stepping(lambda s: s.modules.update(gates=Gates(3))),
        LessonError,
        "found model, gates, some of them others",
    ),
    (stepping(replace_parameter), LessonError, "are the same parameters throughout a training"),
    (
        broken(begin=lambda s, *_: s.modules.update(c=Net())),
        LessonError,
        "in the beginning, found model, gates, c;",
    ),
    (
        broken(score=lambda *_: torch.tensor(1.0)),
        LessonError,
        r"score\(\) returns a number, .*, found Tensor",
    ),
]


@pytest.mark.parametrize(
    ("kind", "error", "words"), BROKEN, ids=[words[:50] for _, _, words in BROKEN]
)
def test_a_lesson_that_is_none_is_told_why_and_nothing_is_lost(kind, error, words, tmp_path):
    lesson, file = kind(), tmp_path / "training.checkpoint"
    modules = [module for module in vars(lesson).values() if isinstance(module, nn.Module)]
    for module in modules:
        module.eval()
    with pytest.raises(error, match=words):
        train(
            lesson,
            stripes(),
            SHORT,
            validation=stripes(seed=1) if "score" in vars(kind) else None,
            checkpoint=file,
        )
    assert not any(module.training for network in modules for module in network.modules())
    assert not file.exists()


@pytest.mark.parametrize(
    ("model", "options", "error", "words"),
    [
        (
            Net,
            {},
            LessonError,
            "what is trained is a network or a Lesson, found the class Net; derive",
        ),
        ("net", {}, LessonError, "found str"),
        (Straight(), {"teacher": Net()}, ConfigError, "a lesson has its own"),
        (Supervised(Net()), {"objective": "regression"}, ConfigError, "a lesson has its own"),
        (
            Straight(),
            {"validation": stripes()},
            LessonError,
            r"lacks score\(images\), which validation images need",
        ),
        (
            Straight(),
            {"recipe": Recipe(mixup=0.2, label_smoothing=0.1)},
            ConfigError,
            "label_smoothing = 0.1, mixup = 0.2",
        ),
        (Straight(), {"recipe": Recipe(keep="best")}, ConfigError, "needs validation images"),
        (Straight(), {"split": [1]}, DataError, "found list"),
        (
            Straight(),
            {"recipe": Recipe(randaugment=5)},
            DataError,
            "how these images were normalised is not known",
        ),
        (Supervised(Net(), teacher=Net()), {}, ConfigError, "distillation = 0 with a teacher"),
        (Supervised(Net(), objective="regresion"), {}, ConfigError, "did you mean 'regression'"),
    ],
)
def test_what_does_not_suit_a_lesson_is_refused(model, options, error, words):
    arguments = {"split": stripes(), "recipe": SHORT, **options}
    with pytest.raises(error, match=words):
        train(model, arguments.pop("split"), arguments.pop("recipe"), **arguments)


def test_a_lesson_that_breaks_half_way_goes_on_from_its_checkpoint(tmp_path):
    class Breaks(Gated):
        broken = True

        def after_epoch(self, epoch):
            super().after_epoch(epoch)
            if self.broken and epoch == 2:
                self.gates.weight = nn.Parameter(torch.zeros(6))

    file, seen = tmp_path / "training.checkpoint", []
    recipe = Recipe(epochs=3, batch_size=16, lr=0.1, device="cpu")
    with pytest.raises(LessonError, match=r"same parameters .* after epoch 2"):
        train(Breaks(), stripes(), recipe, checkpoint=file)
    Breaks.broken = False
    again, whole = Breaks(), Breaks()
    train(again, stripes(), recipe, checkpoint=file, on_epoch=lambda done, *_: seen.append(done))
    train(whole, stripes(), recipe)
    assert seen == [2, 3]
    assert torch.equal(weights(again.model), weights(whole.model))
    with pytest.raises(
        CheckpointError, match=r"lesson: 'test_a_lesson.*Breaks' there, 'Gated' now"
    ):
        train(Gated(), stripes(), recipe, checkpoint=file)


def test_plain_values_of_optimisers_are_saved_and_others_refused(tmp_path):
    class Counting(torch.optim.SGD):
        """Keeps a plain number per parameter, and steps by it."""

        note = 1

        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    state = self.state[p]
                    state["count"] = state.get("count", 0) + self.note
                    p.data.add_(p.grad, alpha=-group["lr"] / abs(state["count"]))

    class Counted(Straight):
        def optimizers(self, recipe):
            return {
                name: Counting(module.parameters(), lr=1.0) for name, module in self.modules.items()
            }

    class Contract(LessonContract):
        def make(self):
            return Counted()

    Contract().test_stopped_after_any_epoch_it_ends_with_the_same_bits()
    Counting.note = 1j
    with pytest.raises(
        LessonError, match=r"optimizers\(\) holds plain JSON values .*, found complex as values"
    ):
        train(Counted(), stripes(), SHORT, checkpoint=tmp_path / "training.checkpoint")
    Counting.note = 1
