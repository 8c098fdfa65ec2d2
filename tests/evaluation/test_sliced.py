"""What evaluators share: metrics, subsets, memory, your own by import path."""

import copy
import gc
import pickle
import sys
import types
import warnings
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.source import Sliced
from abcsearch.data.splits import Data
from abcsearch.errors import ConfigError
from abcsearch.evaluation import sliced
from abcsearch.evaluation.adaptive_bn import AdaptiveBN, AdaptiveBNOptions, calibrate
from abcsearch.evaluation.base import evaluate
from abcsearch.evaluation.registry import make_evaluator
from abcsearch.evaluation.sliced import ScoringOptions, SlicedEvaluator
from abcsearch.training.objectives import OBJECTIVES, OUTPUTS, Objective
from abcsearch.training.scoring import score
from abcsearch.trial import Evaluation


@pytest.fixture
def parts(tiny_model, tiny_data):
    graph = trace_channels(tiny_model, tiny_data.example)
    return Sliced(tiny_model, graph, rank_channels(tiny_model, graph)), tiny_data


@pytest.fixture
def mine(monkeypatch):
    """An importable module of the user's."""
    module = types.ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", module)
    return module


def some(parts):
    return parts[0].graph.space().uniform(0.5)


def test_a_metric_of_ones_own_is_the_mean_over_images(parts, mine):
    mine.margin = lambda outputs, labels: (
        outputs.gather(1, labels[:, None])[:, 0] - outputs.mean(dim=1)
    )
    evaluator = AdaptiveBN(*parts, AdaptiveBNOptions(metric="mine:margin"))
    found = evaluator(some(parts), 0)
    network, validation = evaluator.build(some(parts)), parts[1].validation
    with torch.inference_mode():
        expected = mine.margin(network(validation.images), validation.labels).mean()
    assert found.fitness == found.metrics["mine:margin"] == pytest.approx(float(expected), rel=1e-5)
    assert {"top1", "neg_loss"} < found.metrics.keys()


def test_divergence_is_to_the_trained_network(parts):
    source, data = parts
    full = source.graph.space(alpha=1.0).full
    evaluator = AdaptiveBN(source, data, AdaptiveBNOptions(metric="neg_kl", calibration_images=0))
    assert evaluator(full, 0).fitness == pytest.approx(0, abs=1e-6)
    assert evaluator(some(parts), 0).fitness < -1e-4
    # Calibration changes even the full network (its statistics were moved away from those of the data).
    assert AdaptiveBN(*parts, AdaptiveBNOptions(metric="neg_kl"))(full, 0).fitness < 0


def test_without_calibration_candidates_keep_the_statistics_they_inherit(parts):
    evaluator = AdaptiveBN(*parts, AdaptiveBNOptions(calibration_images=0))
    network = evaluator.build(parts[0].graph.space(alpha=1.0).full)
    for name, value in parts[0].model.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)


def test_a_part_of_search_validation_is_the_same_for_all_and_no_more_than_there_is(parts):
    source, data = parts
    few = AdaptiveBN(source, data, AdaptiveBNOptions(metric="neg_loss", validation_images=20))
    again = AdaptiveBN(source, data, AdaptiveBNOptions(metric="neg_loss", validation_images=20))
    all_ = AdaptiveBN(source, data, AdaptiveBNOptions(metric="neg_loss", validation_images=10**6))
    assert few(some(parts), 0) == again(some(parts), 1)
    assert all_(some(parts), 0) == AdaptiveBN(*parts, AdaptiveBNOptions(metric="neg_loss"))(
        some(parts), 0
    )
    assert few(some(parts), 0).fitness != all_(some(parts), 0).fitness


MEMORY = {"limit": 10**9, "batches": []}


@torch.fx.wrap
def tight(x):
    """Passes on; runs out of memory for batches above a size, like a CUDA device would."""
    MEMORY["batches"].append(len(x))
    if len(x) > MEMORY["limit"]:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return x


class Tight(nn.Module):
    def forward(self, x):
        return tight(x)


@pytest.mark.parametrize(("limit", "fails"), [(64, False), (10, True)])
def test_out_of_memory_is_tried_once_more_with_half_the_batch(tiny_data, monkeypatch, limit, fails):
    network = nn.Sequential(
        Tight(),
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 4),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    graph = trace_channels(network, tiny_data.example)
    evaluator = AdaptiveBN(
        Sliced(network, graph, rank_channels(network, graph)),
        tiny_data,
        AdaptiveBNOptions(batch_size=100),
    )
    plain = evaluator(graph.space().full, 0)
    batches = []
    monkeypatch.setitem(MEMORY, "limit", limit)
    monkeypatch.setitem(MEMORY, "batches", batches)
    found = evaluate(evaluator, graph.space().full, 0)
    assert batches[:2] == [100, 50]
    if fails:
        assert found.failure == "OutOfMemoryError: CUDA out of memory"
        assert len(batches) == 2
    else:
        assert found.metrics["halved_batch"] == 1
        assert found.metrics["neg_loss"] == pytest.approx(plain.metrics["neg_loss"], rel=0.1)
        assert "halved_batch" not in plain.metrics


def test_nothing_of_a_failed_evaluation_is_kept_while_it_is_tried_again(parts, monkeypatch):
    made, alive = [], []

    def failing(network, *args, **kwargs):
        gc.collect()
        alive.append(sum(ref() is not None for ref in made))
        made.append(weakref.ref(network))
        raise torch.OutOfMemoryError

    evaluator = AdaptiveBN(*parts)
    monkeypatch.setattr(
        sliced.Tally, "add", lambda _, *given, **options: failing(*given, **options)
    )
    assert evaluate(evaluator, some(parts), 0).failure.startswith("OutOfMemoryError")
    assert alive == [0, 0]


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (
            lambda o, y: o.argmax(1, keepdim=True) == y,
            r"one number per image, \(1,\), found \(1, 1\) torch.bool",
        ),
        (lambda o, y: (o.argmax(1) == y).float().mean(), r"found \(\) torch.float32"),
        (lambda _o, _y: 0.5, "found float"),
        (lambda _o, _y: None, "found NoneType"),
        (lambda o, _y: o[:, 0] + 1j, "found .* torch.complex"),
        (
            lambda _o, _y: 1 / 0,
            r"metric 'mine:odd' failed on outputs \(1, 2\) and labels \(1,\): ZeroDivision",
        ),
    ],
)
def test_a_metric_that_is_none_is_refused_at_the_start(parts, mine, metric, words):
    mine.odd = metric
    with pytest.raises(ConfigError, match=words):
        AdaptiveBN(*parts, AdaptiveBNOptions(metric="mine:odd"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"calibration_images": 500.5}, "calibration_images is a whole number, found 500.5"),
        (
            {"batch_size": "8", "metric": 5},
            "metric is a text, found 5; .*batch_size is a whole number, found '8'",
        ),
        ({"validation_images": 2.5}, "validation_images is a whole number, found 2.5"),
        ({"device": None}, "device is a text, found None"),
        ({"device": "meta"}, "found 'meta'"),
        ({"threads": 10**11}, "threads is from 1 to 1024, found"),
    ],
)
def test_options_of_other_types_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        AdaptiveBNOptions(**options)


def test_the_metric_is_the_objectives_first_one_unless_it_is_given(tiny_model):
    images = torch.rand(300, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    values = images.mean(dim=(2, 3)).expand(-1, 2).contiguous()
    data = Data.from_tensors(
        (images[:250], values[:250]), (images[250:], values[250:]), objective="regression"
    )
    graph = trace_channels(tiny_model, data.example)
    found = AdaptiveBN(Sliced(tiny_model, graph, rank_channels(tiny_model, graph)), data)(
        graph.space().full, 0
    )
    assert found.fitness == found.metrics["neg_mse"] < 0


def smooth(outputs, labels):
    return nn.functional.smooth_l1_loss(outputs, nn.functional.one_hot(labels, 2).float())


def largest(outputs, _labels):
    return outputs.amax(dim=1)


def test_objectives_of_ones_own_go_to_other_processes(tiny_model, tiny_data, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "own", Objective(loss=smooth, metrics={"largest": largest}))
    parts = [getattr(tiny_data, name) for name in ("train", "validation", "test")]
    data = Data(name="own", train=parts[0], validation=parts[1], test=parts[2], objective="own")
    graph = trace_channels(tiny_model, data.example)
    evaluator = AdaptiveBN(Sliced(tiny_model, graph, rank_channels(tiny_model, graph)), data)
    candidate = graph.space().uniform(0.5)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        found = pool.submit(evaluate, evaluator, candidate, 0).result()
    assert found.fitness == evaluator(candidate, 0).fitness


def test_threads_that_train_at_the_same_time_find_what_one_finds(tiny_data):
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 4, 3),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(16, 2),
    )
    graph = trace_channels(network, tiny_data.example)
    options = {"steps": 3, "batch_size": 32, "metric": "neg_loss"}
    evaluator = make_evaluator(
        "short_training",
        Sliced(network, graph, rank_channels(network, graph)),
        tiny_data,
        **options,
    )
    candidates = [graph.space().sample(np.random.default_rng(seed)) for seed in range(6)]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(3) as pool:
        found = [e.fitness for e in pool.map(evaluator, candidates, range(6))]
    assert found == [evaluator(c, seed).fitness for seed, c in enumerate(candidates)]
    assert torch.equal(torch.get_rng_state(), before)


class Frozen(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)


def test_norms_that_do_not_learn_or_are_not_used_keep_their_statistics():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.unused, self.bn = Frozen(2), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, x):
            return self.bn(self.frozen(x))

    network = Odd().eval()
    for norm in network.children():
        norm.running_mean.fill_(0.3)
    images = torch.rand(8, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    calibrate(network, images, batch_size=4)
    assert (
        float(network.frozen.running_mean[0])
        == float(network.unused.running_mean[0])
        == pytest.approx(0.3)
    )
    assert network.bn.num_batches_tracked == 2
    # The one behind the frozen one sees what that one makes of the images with its own statistics.
    behind = (images - 0.3).mean(dim=(0, 2, 3)) / (1 + network.frozen.eps) ** 0.5
    torch.testing.assert_close(network.bn.running_mean, behind)


def test_an_evaluator_by_import_path_is_called_with_the_parts(parts, mine):
    seen = []

    def fitness(source, data, *, scale=1.0):
        seen.append((source, data))
        return lambda candidate, seed: Evaluation(fitness=scale * sum(candidate) + seed)

    mine.fitness = fitness
    assert make_evaluator("mine:fitness", *parts, scale=2.0)((1, 2), 5).fitness == 11
    assert all(a is b for a, b in zip(seen[0], parts, strict=True))
    for options, words in (
        ({"scales": 1}, "unexpected keyword argument 'scales'"),
        ({}, "returned int, expected a fun"),
    ):
        if not options:
            mine.fitness = lambda *_: 1
        with pytest.raises(ConfigError, match=words):
            make_evaluator("mine:fitness", *parts, **options)
    mine.fitness = lambda model, graph, ranking, data: None
    with pytest.raises(
        ConfigError, match=r"what were model, graph and ranking are now source\.model"
    ):
        make_evaluator("mine:fitness", *parts)
    mine.fitness = lambda only: None
    with pytest.raises(
        ConfigError, match=r"is called with \(source, data, \*\*options\): too many"
    ):
        make_evaluator("mine:fitness", *parts)
    with pytest.raises(ConfigError, match="evaluator 'mine:nothing' cannot be imported"):
        make_evaluator("mine:nothing", *parts)


def test_an_evaluator_by_import_path_may_be_derived_with_options_of_its_own(parts, mine):
    @dataclass(frozen=True, kw_only=True)
    class Noisy(ScoringOptions):
        noise: float = 0.0

    class Mine(SlicedEvaluator):
        """Scores candidates after their first weights have been made smaller."""

        Options = Noisy

        def prepare(self, network, seed, batch_divisor):
            with torch.no_grad():
                next(network.parameters()).mul_(1 - self.options.noise)

    mine.Mine = Mine
    candidate = some(parts)
    plain = make_evaluator("mine:Mine", *parts, metric="neg_loss")(candidate, 0)
    assert plain == AdaptiveBN(*parts, AdaptiveBNOptions(metric="neg_loss", calibration_images=0))(
        candidate, 0
    )
    assert (
        make_evaluator("mine:Mine", *parts, metric="neg_loss", noise=1.0)(candidate, 0).fitness
        != plain.fitness
    )
    with pytest.raises(
        ConfigError, match="unknown option of evaluator 'mine:Mine': 'nose'; did you mean 'noise'"
    ):
        make_evaluator("mine:Mine", *parts, nose=1.0)


def test_calibration_covers_every_layer_with_running_statistics():
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.InstanceNorm2d(6, track_running_stats=True, momentum=0.2),
        nn.BatchNorm2d(6),
        nn.Flatten(2),
        nn.BatchNorm1d(6),
        nn.Flatten(),
        nn.Linear(96, 2),
    ).eval()
    images = torch.randn(40, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    calibrate(network, images, batch_size=10)
    inputs = network[0](images)
    means = inputs.mean(dim=(2, 3))  # of every image
    torch.testing.assert_close(network[1].running_mean, means.mean(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        network[1].running_var, inputs.var(dim=(2, 3)).mean(dim=0), rtol=1e-4, atol=1e-5
    )
    assert all(int(network[i].num_batches_tracked) == 4 for i in (2, 4))
    assert network[1].momentum == 0.2


def test_a_norm_that_is_used_twice_averages_both_uses():
    norm = nn.BatchNorm2d(1)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = norm

        def forward(self, x):
            self.norm(x)
            return self.norm(x + 10)

    images = torch.zeros(8, 1, 2, 2)
    calibrate(Twice(), images, batch_size=4)
    assert float(norm.running_mean) == pytest.approx(5)
    assert not norm._forward_pre_hooks


def test_a_calibration_that_fails_leaves_the_statistics_as_they_were(
    tiny_model, tiny_data, monkeypatch
):
    monkeypatch.setitem(MEMORY, "limit", 3)
    network = nn.Sequential(tiny_model, Tight())
    before = copy.deepcopy(network.state_dict())
    seen = []
    tiny_model.bn.register_forward_hook(lambda *_: seen.append(1))
    images = tiny_data.train.images
    with pytest.raises(torch.OutOfMemoryError):
        calibrate(network, images, batch_size=4)
    assert seen
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Dictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.linear = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        features = torch.relu(self.bn(self.conv(x)))
        scores = self.linear(features.mean(dim=(2, 3)))
        return {"doubled": 2 * scores, "scores": scores}


def test_networks_that_return_more_than_logits(tiny_data, monkeypatch):
    network = Dictionary()
    graph = trace_channels(network, tiny_data.example)
    ranking = rank_channels(network, graph)
    with pytest.raises(
        Exception, match=r"found a dict with doubled, scores; .*OUTPUTS\[Dictionary\]"
    ):
        AdaptiveBN(Sliced(network, graph, ranking), tiny_data)
    monkeypatch.setitem(OUTPUTS, Dictionary, lambda returned: returned["scores"])
    evaluator = AdaptiveBN(Sliced(network, graph, ranking), tiny_data)
    found = evaluator(graph.space().uniform(0.5), 0)
    expected = score(evaluator.build(graph.space().uniform(0.5)), tiny_data.validation)
    assert found.metrics == pytest.approx(expected, rel=1e-6)  # in another order


class Restless(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.linear = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        return nn.functional.dropout(self.linear(self.bn(self.conv(x)).mean(dim=(2, 3))), 0.5)


def test_a_network_that_draws_in_evaluation_mode_is_warned_of(tiny_data):
    network = Restless()
    graph = trace_channels(network, tiny_data.example)
    before = torch.get_rng_state()
    with pytest.warns(
        UserWarning,
        match=r"Restless draws random numbers in evaluation mode, .* training=self.training",
    ):
        AdaptiveBN(Sliced(network, graph, rank_channels(network, graph)), tiny_data)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_training_set_smaller_than_a_batch_is_one_batch(parts, tiny_data):
    small = Data(
        name="small",
        train=tiny_data.train.part(torch.arange(9)),
        validation=tiny_data.validation,
        test=tiny_data.test,
    )
    words = "batch_size = 128 is larger than the 9 training images of small: they are one batch"
    with pytest.warns(UserWarning, match=words):
        evaluator = AdaptiveBN(parts[0], small)
    full = parts[0].graph.space().full
    same = AdaptiveBN(parts[0], small, AdaptiveBNOptions(batch_size=9))
    assert evaluator(full, 0) == same(full, 0)


def test_repairs_are_computed_alike_here_and_for_other_processes(parts, monkeypatch):
    asked = []
    computing = sliced.computing

    def noting(device, **how):
        asked.append(how)
        return computing(device, **how)

    monkeypatch.setattr(sliced, "computing", noting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = AdaptiveBN(*parts, AdaptiveBNOptions(precision="bf16", threads=2))
    evaluator(some(parts), 0)  # moments are computed when they are first needed, or to be sent
    pickle.dumps(evaluator)
    assert len(asked) > 1
    assert all(how == {"precision": "bf16", "threads": 2} for how in asked)


@pytest.mark.parametrize("repair", ["none", "one_shot", "sequential"])
def test_a_forward_that_changes_its_images_changes_no_data(tiny_data, repair):
    found = []
    every = [tiny_data.train, tiny_data.validation, tiny_data.test]
    before = [split.images.clone() for split in every]
    for in_place in (False, True):
        torch.manual_seed(0)
        layers = [
            nn.Hardtanh(-0.1, 0.5, inplace=in_place),
            nn.Conv2d(1, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
        ]
        model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(10))
        model(tiny_data.example.clone())
        graph = trace_channels(model.eval(), tiny_data.example)
        source = Sliced(model, graph, rank_channels(model, graph))
        evaluator = AdaptiveBN(source, tiny_data, AdaptiveBNOptions(repair=repair, batch_size=32))
        found += [evaluator((3,), 0).metrics for _ in range(2)]
        score(model, tiny_data.test)
        assert all(
            torch.equal(split.images, images) for split, images in zip(every, before, strict=True)
        )
    assert all(metrics == found[0] for metrics in found)


def _shared(evaluator):
    return [
        split.images.is_shared()
        for split in (evaluator._calibration, evaluator._validation, evaluator.data.train)
    ]


def test_workers_of_one_machine_share_the_images(parts):
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(_shared, AdaptiveBN(*parts)).result() == [True] * 3


@pytest.mark.parametrize("fresh", [False, True])
def test_norms_are_inherited_or_begin_anew(parts, fresh):
    model = copy.deepcopy(parts[0].model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 2)
            nn.init.constant_(module.bias, 3)
    options = {"steps": 1, "batch_size": 32, "lr": 1e-9, "weight_decay": 0.0, "fresh_norms": fresh}
    network = make_evaluator(
        "short_training", Sliced(model, parts[0].graph, parts[0].ranking), parts[1], **options
    ).build(parts[0].graph.space(alpha=1.0).full)
    for name, module in network.named_modules():
        inherited = model.get_submodule(name)
        if isinstance(module, nn.BatchNorm2d):
            torch.testing.assert_close(
                module.weight, torch.ones_like(module.weight) if fresh else inherited.weight
            )
            torch.testing.assert_close(
                module.bias, torch.zeros_like(module.bias) if fresh else inherited.bias
            )
        elif isinstance(module, nn.Conv2d):
            torch.testing.assert_close(module.weight, inherited.weight)


@pytest.mark.parametrize("name", ["adaptive_bn", "short_training", "cascade"])
def test_nothing_is_left_of_an_evaluation(parts, name):
    options = (
        {"short_training": {"steps": 1}}
        if name == "cascade"
        else {"steps": 1}
        if name == "short_training"
        else {}
    )
    evaluator, space, draws = (
        make_evaluator(name, *parts, **options),
        parts[0].graph.space(),
        np.random.default_rng(0),
    )

    def living():
        gc.collect()
        return sum(type(thing) in (torch.Tensor, nn.Parameter) for thing in gc.get_objects())

    few, counts = [space.sample(draws) for _ in range(3)], []
    for number in range(12):
        evaluator(few[number % 3], number)  # solutions of repairs are kept
        if number in (2, 11):  # later ones may need what the first ones have made
            counts.append(living())
    assert counts[0] == counts[1]
