"""AdaptiveBN: the statistics are the plain average over batches, and nothing else changes."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.repair import Repaired
from abcsearch.channels.source import Sliced
from abcsearch.data.splits import Data
from abcsearch.errors import AbcSearchError, ConfigError, SearcherError
from abcsearch.evaluation.adaptive_bn import AdaptiveBN, AdaptiveBNOptions, calibrate
from abcsearch.evaluation.base import evaluate
from abcsearch.evaluation.options import REPAIRS
from abcsearch.evaluation.registry import EVALUATORS, make_evaluator
from abcsearch.evaluation.sliced import REPAIR_IMAGES, calibration_images
from abcsearch.models.resnet import SmallResNet
from abcsearch.training.loop import train
from abcsearch.training.recipe import Recipe
from abcsearch.training.scoring import score
from abcsearch.trial import Evaluation


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 3
    images = torch.randn(400, 2, 6, 6, generator=generator) + labels[:, None, None, None]
    images[:, 0] *= 1 + labels[:, None, None]
    return Data.from_tensors(
        (images[:320], labels[:320]), (images[320:], labels[320:]), validation=0.25
    )


@pytest.fixture(scope="module")
def model(data):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallResNet(in_channels=2, classes=3, widths=(6, 8), depths=(1, 1))
    train(network, data.train, Recipe(epochs=2, batch_size=40, lr=0.05), seed=0, stream="pretrain")
    return network.eval()


def evaluator(model, data, **options):
    graph = trace_channels(model, data.example)
    return AdaptiveBN(
        Sliced(model, graph, rank_channels(model, graph)), data, AdaptiveBNOptions(**options)
    )


def candidates(model, data, n=4):
    space, draws = trace_channels(model, data.example).space(), np.random.default_rng(0)
    return [space.sample(draws) for _ in range(n)]


def norms(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


def everything(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_statistics_are_the_exact_average_over_batches(model, data):
    network = copy.deepcopy(model)
    images = data.train.images[:100]
    seen = {name: [] for name in norms(network)}
    for name, norm in norms(network).items():
        norm.register_forward_pre_hook(
            lambda _module, inputs, name=name: seen[name].append(
                inputs[0].double().transpose(0, 1).flatten(1)
            )
        )
    calibrate(network, images, batch_size=30)
    for name, norm in norms(network).items():
        assert [batch.shape[1] // (batch.shape[1] // 30) for batch in seen[name]] == [
            30
        ] * 3  # the last 10 are left out
        means = torch.stack([batch.mean(dim=1) for batch in seen[name]])
        variances = torch.stack([batch.var(dim=1, unbiased=True) for batch in seen[name]])
        torch.testing.assert_close(
            norm.running_mean.double(), means.mean(dim=0), rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(
            norm.running_var.double(), variances.mean(dim=0), rtol=1e-5, atol=1e-6
        )
        assert int(norm.num_batches_tracked) == 3


def test_what_was_there_before_does_not_matter_and_only_statistics_change(model, data):
    one, other = copy.deepcopy(model), copy.deepcopy(model)
    for norm in norms(other).values():
        norm.running_mean.fill_(1e6)
        norm.running_var.fill_(math.nan)
    before = everything(one)
    for network in (one, other):
        calibrate(network, data.train.images, batch_size=60)
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )
    changed = {
        name for name, tensor in one.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {
        f"{n}.{b}"
        for n in norms(one)
        for b in ("running_mean", "running_var", "num_batches_tracked")
    }


class Shared(set):
    def __deepcopy__(self, memo):
        return self


class Tripwire(nn.Module):
    """Passes on and notes the number of threads; raises when it is armed."""

    def __init__(self):
        super().__init__()
        self.armed, self.threads = False, set()

    def forward(self, x):
        self.threads.add(torch.get_num_threads())
        if self.armed:
            raise ZeroDivisionError
        return x


class Wired(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.linear = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 3)
        self.wire = Tripwire()

    def forward(self, x):
        return self.linear(self.wire(torch.relu(self.bn(self.conv(x)))).mean(dim=(2, 3)))


@pytest.mark.parametrize("fails", [False, True])
def test_modes_momenta_and_random_state_are_as_before_also_on_failure(fails):
    network = nn.Sequential(
        nn.BatchNorm2d(2, momentum=0.3),
        nn.Dropout(0.5),
        nn.BatchNorm2d(2, momentum=None),
        Tripwire(),
        nn.Conv2d(2, 2, 1),
    )
    network.train()
    network[2].eval()
    network[3].armed = fails
    images = torch.rand(8, 2, 3, 3)
    before = (
        [m.training for m in network.modules()],
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    )
    if fails:
        with pytest.raises(ZeroDivisionError):
            calibrate(network, images, batch_size=4)
    else:
        calibrate(network, images, batch_size=4)
    assert (
        [m.training for m in network.modules()],
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    ) == before
    assert (network[0].momentum, network[2].momentum) == (0.3, None)


def test_a_calibrated_network_can_be_trained(model, data):
    network = copy.deepcopy(model)
    calibrate(network, data.train.images, batch_size=60)
    train(network, data.train, Recipe(epochs=1), seed=0, stream="finetune")


@pytest.mark.parametrize("batch_size", [0, 9])
def test_a_batch_that_is_larger_than_the_images_is_refused(batch_size):
    with pytest.raises(ConfigError, match=f"from 1 to the number of images, 8, found {batch_size}"):
        calibrate(nn.BatchNorm2d(1), torch.rand(8, 1, 2, 2), batch_size=batch_size)


def test_layers_without_statistics_are_left_alone(data):
    network = nn.Sequential(
        nn.BatchNorm2d(2, track_running_stats=False), nn.InstanceNorm2d(2), nn.Conv2d(2, 2, 1)
    )
    before = everything(network)
    calibrate(network, data.train.images, batch_size=60)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_calibration_images_are_unaugmented_training_images_drawn_once_per_split(data):
    def rows(images):
        return [image.contiguous().numpy().tobytes() for image in images]

    known = set(rows(data.train.images))
    found = rows(calibration_images(data, 50).images)
    assert len(set(found)) == 50
    assert set(found) <= known
    assert (
        found
        == rows(calibration_images(data, 60).images)[:50]
        == rows(calibration_images(data, 50).images)
    )
    assert len(calibration_images(data, 10**6)) == len(data.train)
    other = copy.copy(data)
    object.__setattr__(other, "seed", 1)
    assert rows(calibration_images(other, 50).images) != found


@pytest.mark.parametrize("repair", REPAIRS)
def test_fitness_is_the_score_of_the_sliced_repaired_and_calibrated_network_on_search_validation(
    model, data, repair
):
    graph = trace_channels(model, data.example)
    source = Sliced(model, graph, rank_channels(model, graph))
    if repair != "none":
        source = Repaired(
            source, calibration_images(data, REPAIR_IMAGES).images, repair, seed=data.seed
        )
    for metric in ("top1", "top5", "neg_loss"):
        evaluate_ = evaluator(
            model, data, metric=metric, calibration_images=120, batch_size=50, repair=repair
        )
        for candidate in candidates(model, data, 2):
            found = evaluate_(candidate, 0)
            network = source.network(candidate).to(memory_format=torch.channels_last)
            calibrate(network, calibration_images(data, 120).images[:100], batch_size=50)
            expected = score(network, data.validation)
            assert found.metrics == pytest.approx(expected, rel=1e-6)  # in another order
            assert found.fitness == found.metrics[metric]
            full = replace(evaluate_.options, scoring="full")
            assert AdaptiveBN(source, data, full)(candidate, 0).metrics == expected
            assert found.params == sum(p.numel() for p in network.parameters())
            assert found.macs == int(graph.costs.macs([candidate])[0]) > 0
            assert found.failure is None


def test_the_test_images_are_never_touched(model, data):
    spoiled = copy.copy(data)
    object.__setattr__(spoiled, "test", None)
    candidate = candidates(model, data, 1)[0]
    assert evaluator(model, spoiled)(candidate, 0) == evaluator(model, data)(candidate, 0)


def test_evaluations_are_deterministic_and_leave_the_trained_network_alone(model, data):
    before, modes = everything(model), [m.training for m in model.modules()]
    chosen = candidates(model, data)
    one, other = evaluator(model, data), evaluator(model, data)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    found = [one(candidate, 0) for candidate in chosen]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert [other(candidate, seed) for seed, candidate in reversed(list(enumerate(chosen)))][
        ::-1
    ] == found
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert len({evaluation.metrics["neg_loss"] for evaluation in found}) == len(chosen)


def test_the_layout_of_the_trained_network_in_memory_does_not_matter(model, data):
    """A network that was just trained is channels-last, the same one loaded from a file is not."""
    plain, last = (
        copy.deepcopy(model).to(memory_format=layout)
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    full = trace_channels(model, data.example).space().full
    for candidate in [full, *candidates(model, data)]:
        one, other = (evaluator(network, data).build(candidate) for network in (plain, last))
        with torch.inference_mode():
            assert torch.equal(one(data.validation.images), other(data.validation.images))


def test_threads_of_the_options_are_those_of_the_evaluation(data):
    network, before = Wired(), torch.get_num_threads()
    full = trace_channels(network, data.example).space().full
    evaluate_ = evaluator(network, data, threads=before + 1)
    # Deep copies of the network, which are what is evaluated, share this set.
    network.wire.threads = Shared()
    evaluate_(full, 0)
    assert network.wire.threads == {before + 1}
    assert torch.get_num_threads() == before


def test_calibration_brings_a_network_with_wrong_statistics_back(model, data):
    """The idea of re-estimation: statistics of other activations spoil even the full network; calibration heals it."""
    spoiled = copy.deepcopy(model)
    for norm in norms(spoiled).values():
        norm.running_mean.add_(3.0)
        norm.running_var.mul_(30.0)
    full = trace_channels(model, data.example).space().full
    assert (
        score(spoiled, data.validation)["neg_loss"]
        < score(model, data.validation)["neg_loss"] - 0.3
    )
    healed = evaluator(spoiled, data, metric="neg_loss")(full, 0).fitness
    assert healed == evaluator(model, data, metric="neg_loss")(full, 0).fitness
    assert abs(healed - score(model, data.validation)["neg_loss"]) < 0.3


def test_a_network_without_batch_norm_is_scored_as_it_is(data):
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    full = trace_channels(network, data.example).space().full
    with pytest.warns(
        UserWarning, match="Sequential has no running statistics: nothing to calibrate"
    ):
        scored = evaluator(network, data)
    found = scored(full, 0)
    expected = score(network, data.validation)
    assert found.metrics["top1"] == expected["top1"]
    assert found.metrics["neg_loss"] == pytest.approx(expected["neg_loss"], rel=1e-5)


@pytest.mark.parametrize("metric", ["top1", "top5", "neg_loss"])
def test_a_network_that_returns_nan_is_a_failed_trial_whatever_the_metric(model, data, metric):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.linear.bias[0] = math.nan
    full = trace_channels(model, data.example).space().full
    found = evaluate(evaluator(broken, data, metric=metric), full, 0)
    assert found.fitness is None
    assert found.failure == "neg_loss is nan"
    assert found.macs > 0


def test_a_forward_pass_that_raises_is_a_failed_trial(data):
    network = Wired()
    evaluate_ = evaluator(network, data)
    full = trace_channels(network, data.example).space().full
    assert evaluate(evaluate_, full, 0).failure is None
    network.wire.armed = True
    found = evaluate(evaluate_, full, 0)
    assert (found.fitness, found.failure) == (None, "ZeroDivisionError")
    assert found.seconds > 0


def test_a_candidate_of_another_space_is_a_failed_trial_that_says_so(model, data):
    found = evaluate(evaluator(model, data), (1, 2), 0)
    assert found.fitness is None
    assert found.failure.startswith("CandidateError: ")


def test_evaluate_times_and_passes_seed_and_candidate_on():
    seen = []

    def mine(candidate, seed):
        seen.append((candidate, seed))
        return Evaluation(
            fitness=np.float32(0.5), metrics={"a": torch.tensor(2.0)}, macs=np.int64(7), seconds=1e9
        )

    found = evaluate(mine, (1, 2), 99)
    assert seen == [((1, 2), 99)]
    assert (found.fitness, found.metrics, found.macs) == (0.5, {"a": 2.0}, 7)
    # Plain numbers, so that the journal can write them.
    assert (type(found.fitness), type(found.metrics["a"]), type(found.macs)) == (float, float, int)
    assert 0 < found.seconds < 1e3


@pytest.mark.parametrize(
    "result",
    [
        "0.5",
        True,
        np.zeros(2),
        np.bool_(1),
        torch.zeros(2),
        None,
        {"fitness": 1.0},
        Evaluation(fitness=1.0, metrics={"a": "b"}),
        Evaluation(1.0, metrics=[1]),
    ],
)
def test_an_evaluator_that_returns_something_else_is_a_mistake_in_its_code(result):
    with pytest.raises(SearcherError, match="an evaluator returns an Evaluation"):
        evaluate(lambda _candidate, _seed: result, (1,), 0)


@pytest.mark.parametrize(
    "number", [3, 0.5, np.float32(0.5), np.int64(2), torch.tensor(0.25), np.array([1.5])[0]]
)
def test_a_number_is_a_fitness_and_one_that_is_not_finite_a_failure(number):
    found = evaluate(lambda _candidate, _seed: number, (1,), 0)
    assert (found.fitness, found.failure, type(found.fitness)) == (float(number), None, float)
    for wrong in (float("nan"), np.float32("inf"), torch.tensor(float("-inf"))):
        found = evaluate(lambda _candidate, _seed, wrong=wrong: wrong, (1,), 0)
        assert (found.fitness, found.failure) == (None, f"the fitness is {float(wrong)}")


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA out of memory"), AbcSearchError("x"), SystemExit(3)]
)
def test_what_an_evaluator_raises_is_the_reason(error):
    def mine(_candidate, _seed):
        raise error

    found = evaluate(mine, (1,), 0)
    assert (found.fitness, found.failure) == (None, f"{type(error).__name__}: {error}")


def test_control_c_passes_through():
    def mine(_candidate, _seed):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(mine, (1,), 0)


def test_by_name_with_options(model, data):
    graph = trace_channels(model, data.example)
    ranking = rank_channels(model, graph)
    found = make_evaluator(
        "adaptive_bn", Sliced(model, graph, ranking), data, metric="neg_loss", batch_size=40
    )
    candidate = candidates(model, data, 1)[0]
    assert found(candidate, 0) == evaluator(model, data, metric="neg_loss", batch_size=40)(
        candidate, 0
    )
    assert all(entry.description and entry.source for entry in EVALUATORS.values())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("adaptive_nb", {}, "unknown evaluator 'adaptive_nb'; did you mean 'adaptive_bn'"),
        (
            "adaptive_bn",
            {"metrics": "top1"},
            "option of evaluator 'adaptive_bn': 'metrics'; did you mean 'metric'",
        ),
        ("adaptive_bn", {"metric": "top2"}, "unknown metric 'top2'; did you mean 'top"),
        ("adaptive_bn", {"batch_size": 1}, "batch_size is at least 2, found 1"),
        (
            "adaptive_bn",
            {"calibration_images": 1},
            "calibration_images is at least one batch, batch_size = 128, found 1",
        ),
        ("adaptive_bn", {"calibration_images": -1}, "calibration_images is at least 0, found -1"),
        ("adaptive_bn", {"validation_images": 0}, "validation_images is at least 1, found 0"),
        (
            "adaptive_bn",
            {"precision": "float31"},
            "unknown precision 'float31'; did you mean 'float32'",
        ),
        (
            "adaptive_bn",
            {"precision": "tf32", "device": "cpu"},
            "precision tf32 is for CUDA, but the device is cpu",
        ),
        ("adaptive_bn", {"device": "cqu"}, 'device is "auto", "cpu".*found \'cqu\''),
        ("adaptive_bn", {"metric": "os:nothing"}, "metric 'os:nothing' cannot be imported"),
        ("adaptive_bn", {"metric": "os:sep"}, "metric 'os:sep' is not a class or function"),
        (
            "adaptive_bn",
            {"metric": "miou"},
            "unknown metric 'miou'; choose one of: neg_kl, neg_loss, top1, top5",
        ),
        ("adaptive_bn", {"threads": 0}, "threads is from 1 to 1024, found 0"),
    ],
)
def test_names_and_options_that_do_not_exist_are_refused(model, data, name, options, words):
    graph = trace_channels(model, data.example)
    with pytest.raises(ConfigError, match=words):
        make_evaluator(name, Sliced(model, graph, rank_channels(model, graph)), data, **options)


def test_bf16_says_nearly_what_float32_says(model, data):
    exact, rounded = evaluator(model, data), evaluator(model, data, precision="bf16")
    for candidate in candidates(model, data):
        one, other = (each(candidate, 0).metrics["neg_loss"] for each in (exact, rounded))
        assert one != other
        assert one == pytest.approx(other, abs=0.02)
        for name, tensor in exact.build(candidate).state_dict().items():
            near = rounded.build(candidate).state_dict()[name]
            assert near.dtype == tensor.dtype
            torch.testing.assert_close(near, tensor, rtol=0.05, atol=0.02)
