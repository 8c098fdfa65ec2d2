"""Sliced networks equal the original with the removed channels' consumers zeroed; the original is untouched."""

import copy
import gc
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from abcsearch.channels import outline
from abcsearch.channels.groups import UnsupportedOpWarning, trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.channels.trace import SIZE_ATTRIBUTES
from abcsearch.errors import CandidateError, RankingError, TraceError, UnsupportedOpError
from tests.channels.expected import NAMED, PRUNES
from tests.channels.networks import MODULES, UNARY, Program, Step, programs, strange_network
from tests.channels.oracle import (
    assert_close,
    counted,
    counted_flops,
    few,
    images,
    random_candidate,
    zeroed,
)
from tests.channels.sharing import check_gates, check_shared
from tests.channels.strange import NOT_COUNTED, STRANGE

SEEDS = st.integers(0, 2**16)
PLAIN = Program(
    (
        Step("conv", (0,), "", 6),
        Step("module", (1,), "batch_norm"),
        Step("unary", (2,), "relu"),
        Step("conv", (3,), "no_bias", 6),
        Step("binary", (3, 4), "plus"),
        Step("depthwise", (5,), "", 2),
        Step("module", (6,), "prelu"),
        Step("cat", (7, 3), "list"),
    ),
    ("flatten", 5, True),
)


def traced(model, *, renormalise=False):
    """The graph and the texts of the warnings about operations without a rule."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        graph = trace_channels(model, images(batch=1), renormalise=renormalise)
    return graph, [str(w.message) for w in caught if w.category is UnsupportedOpWarning]


def check_oracle(model, graph, rng, tries=2):
    """Slices at random and compares outputs and costs; returns the last sliced network."""
    sliced, x = model, images()
    ranking = rank_channels(model, graph, "random", seed=int(rng.integers(1000)))
    candidates = [random_candidate(graph, rng) for _ in range(tries)]
    for candidate in [*candidates, tuple(1 for _ in graph.prunable)]:
        sliced = slice_model(model, graph, candidate, ranking)
        with torch.no_grad():
            assert_close(sliced(x.clone()), zeroed(model, graph, candidate, ranking)(x.clone()))
        check_attributes(sliced)
    return sliced


def check_primitives(model, graph, modes):
    """Gates of 0 and 1, and a shared slice, equal slicing."""
    ranking = rank_channels(model, graph, "random", seed=0)
    candidate = random_candidate(graph, np.random.default_rng(0))
    check_gates(model, graph, candidate, ranking, images(4), modes=modes)
    check_shared(model, graph, candidate, ranking, images())


def check_costs(model, graph, rng):
    """Closed-form costs of the full network and of a sliced one are what torch counts."""
    ranking = rank_channels(model, graph, "random", seed=0)
    for candidate in (
        tuple(group.channels for group in graph.prunable),
        random_candidate(graph, rng),
    ):
        sliced = slice_model(model, graph, candidate, ranking)
        costs = graph.costs.macs([candidate])[0], graph.costs.params([candidate])[0]
        assert costs == counted(sliced, images(batch=1))


def check_attributes(model):
    """Every layer's size attributes agree with its tensors."""
    for module in model.modules():
        match module:
            case nn.modules.conv._ConvNd():
                sizes = module.out_channels, module.in_channels
                first, second = reversed(sizes) if module.transposed else sizes
                assert module.weight.shape == (first, second // module.groups, *module.kernel_size)
                assert first % module.groups == second % module.groups == 0
                assert module.bias is None or module.bias.shape == sizes[:1]
            case nn.Linear():
                assert module.weight.shape == (module.out_features, module.in_features)
            case nn.modules.batchnorm._NormBase():
                tensors = (module.weight, module.bias, module.running_mean, module.running_var)
                assert {t.shape[0] for t in tensors if t is not None} <= {module.num_features}
            case nn.GroupNorm():
                assert module.num_channels % module.num_groups == 0
                assert module.weight is None or module.weight.shape == module.bias.shape == (
                    module.num_channels,
                )
            case nn.PReLU():
                assert module.weight.shape == (module.num_parameters,)


@few(35)
@given(programs(), SEEDS)
def test_sliced_equals_zeroed(program, seed):
    model = program.build(seed)
    graph, problems = traced(model)
    assert not problems
    sliced = check_oracle(model, graph, np.random.default_rng(seed))
    again, _ = traced(sliced)
    check_oracle(sliced, again, np.random.default_rng(seed + 1), tries=1)


@few(20)
@given(programs(), SEEDS)
def test_candidates_of_the_space_slice_and_costs_are_exact(program, seed):
    model, rng = program.build(seed), np.random.default_rng(seed)
    graph, _ = traced(model)
    if not graph.prunable:
        return
    ranking = rank_channels(model, graph, "l2")
    space = graph.space()
    candidates = [space.sample(rng), random_candidate(graph, rng), space.full]
    costs = zip(graph.costs.macs(candidates), graph.costs.params(candidates), strict=True)
    for candidate, expected, flops in zip(
        candidates, costs, graph.costs.flops(candidates), strict=True
    ):
        sliced = slice_model(model, graph, candidate, ranking)
        assert counted(sliced, images(batch=1)) == expected
        assert counted_flops(sliced, images(batch=1)) == flops


@few(30)
@given(programs(strange=True, most=5), SEEDS)
def test_networks_with_strange_operations_are_never_sliced_wrong(program, seed):
    model = program.build(seed)
    graph, problems = traced(model)
    assert len(problems) <= 1
    check_oracle(model, graph, np.random.default_rng(seed))
    if not NOT_COUNTED & {step.name for step in program.steps}:
        check_costs(model, graph, np.random.default_rng(seed))


@pytest.mark.parametrize("name", sorted(STRANGE))
def test_an_odd_operation_is_sliced_right_or_refused_by_name(name):
    model = strange_network(name)
    graph, problems = traced(model)
    assert {re.sub(r" \(?[\w.]+\)?: ", ": ", text, count=1) for text in graph.unsupported} == {
        *NAMED.get(name, "").splitlines()
    }
    assert len(problems) == (name in NAMED)
    own = {
        group.name: group.channels
        for group in graph.prunable
        if group.name.startswith(("layers.0", "layers.3"))
    }
    assert own == PRUNES[name]
    assert {"layers.4", "layers.6"} & {group.name for group in graph.prunable}
    if name in NAMED:
        assert any(group.fixed in graph.unsupported for group in graph.groups)
        with pytest.raises(UnsupportedOpError, match=re.escape(NAMED[name].partition(":")[0])):
            trace_channels(model, images(batch=1), unknown="raise", renormalise=False)
    check_oracle(model, graph, np.random.default_rng(0), tries=3)
    # A function that draws numbers in training mode draws others for other widths.
    check_primitives(model, graph, modes=(False,) if name == "dropout_function" else (False, True))
    if name not in NOT_COUNTED:
        check_costs(model, graph, np.random.default_rng(0))


def test_every_odd_operation_has_expectations():
    assert PRUNES.keys() == STRANGE.keys()
    assert NAMED.keys() <= STRANGE.keys()


@pytest.mark.parametrize("kind", [*sorted(UNARY), *(f"module {name}" for name in sorted(MODULES))])
def test_every_rule_prunes(kind):
    step = Step("module", (1,), kind.split()[-1]) if " " in kind else Step("unary", (1,), kind)
    model = Program(
        (Step("conv", (0,), "", 6), step, Step("conv", (2,), "", 4)), ("mean", 4, False)
    ).build()
    graph, problems = traced(model)
    assert not problems
    assert [group.name for group in graph.prunable] == ["layers.0", "layers.2", "hidden"]


def state(model):
    """Everything about a network that slicing must leave as it is."""
    tensors = {
        name: (id(t), t.detach().clone()) for name, t in model.state_dict(keep_vars=True).items()
    }
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    rest = {
        path: (
            m.training,
            dict(m._forward_hooks),
            {k: getattr(m, k, None) for k in SIZE_ATTRIBUTES},
        )
        for path, m in model.named_modules()
    }
    return tensors, flags, rest


def assert_same_state(before, after):
    for name, (identity, tensor) in before[0].items():
        assert after[0][name][0] == identity
        assert torch.equal(after[0][name][1], tensor)
    assert before[1:] == after[1:]


def test_the_original_is_untouched():
    model = PLAIN.build()
    model.train()
    model.layers[1].eval()
    model.layers[3].weight.requires_grad_(False)
    model.register_forward_hook(lambda module, inputs, output: None)
    before, noise = state(model), torch.get_rng_state()
    graph, _ = traced(model)
    ranking = rank_channels(model, graph, "bn_gamma")
    sliced = slice_model(model, graph, tuple(2 for _ in graph.prunable), ranking)
    with torch.no_grad():
        for parameter in sliced.parameters():
            parameter.fill_(7.0)
    assert_same_state(before, state(model))
    assert torch.equal(noise, torch.get_rng_state())
    assert sliced.layers[1].training is False
    assert sliced.layers[2].training is True
    assert sliced.layers[3].weight.requires_grad is False
    assert len(sliced._forward_hooks) == 1


def test_keeping_everything_is_bit_identical():
    model = PLAIN.build()
    graph, _ = traced(model)
    full = tuple(group.channels for group in graph.prunable)
    same = slice_model(model, graph, full, rank_channels(model, graph))
    assert type(same) is type(model)
    for (name, tensor), (other, copied) in zip(
        model.state_dict().items(), same.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(tensor, copied)
        assert tensor.data_ptr() != copied.data_ptr()
    assert torch.equal(model(images()), same(images()))


@few(15)
@given(programs(), SEEDS)
def test_sliced_networks_train(program, seed):
    model = program.build(seed)
    graph, _ = traced(model)
    candidate = random_candidate(graph, np.random.default_rng(seed))
    sliced = slice_model(model, graph, candidate, rank_channels(model, graph)).train()
    assert [path for path, _ in sliced.named_modules()] == [
        path for path, _ in model.named_modules()
    ]
    assert sliced.state_dict().keys() == model.state_dict().keys()
    assert sum(p.numel() for p in sliced.parameters()) == graph.costs.params([candidate])[0]
    sliced(images(batch=4)).square().sum().backward()
    assert sliced.hidden.weight.grad.shape == sliced.hidden.weight.shape
    assert sliced.layers[0].weight.grad is not None or not reached(program)
    assert all(p.grad is None for p in model.parameters())


def reached(program):
    """Whether the first layer lies on the way to the output."""
    needed = {len(program.steps)}
    for index in range(len(program.steps), 0, -1):
        needed |= set(program.steps[index - 1].inputs) if index in needed else set()
    return 1 in needed


def test_dtype_memory_and_buffers_are_kept():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)).half().eval()
    model[1].register_buffer("note", torch.ones(6), persistent=False)
    graph = trace_channels(model, torch.zeros(1, 3, 5, 5).half())
    sliced = slice_model(model, graph, (2,), rank_channels(model, graph))
    assert sliced[0].weight.dtype == torch.float16
    assert isinstance(sliced[0].weight, nn.Parameter)
    assert not isinstance(sliced[1].running_mean, nn.Parameter)
    assert sliced[1].note.shape == (6,)
    assert sliced[1].num_batches_tracked.item() == 0


def test_tied_parameters_stay_tied():
    model = strange_network("tied")
    graph, _ = traced(model)
    sliced = slice_model(
        model, graph, tuple(2 for _ in graph.prunable), rank_channels(model, graph)
    )
    assert sliced.layers[3].one.weight is sliced.layers[3].two.weight
    assert sliced.layers[3].two.in_channels == sliced.layers[3].one.in_channels == 2


def test_a_candidate_that_does_not_fit():
    model = PLAIN.build()
    graph, _ = traced(model)
    ranking = rank_channels(model, graph)
    full = tuple(group.channels for group in graph.prunable)
    with pytest.raises(CandidateError, match=rf"has {len(full)} values, found 1: \(3,\)"):
        slice_model(model, graph, (3,), ranking)
    for wrong in (0, full[0] + 1, 1.5, float("nan")):
        with pytest.raises(
            CandidateError,
            match=f"group 'layers.0' keeps {wrong} channels; allowed are 1 to {full[0]}",
        ):
            slice_model(model, graph, (wrong, *full[1:]), ranking)


def test_another_network_or_ranking_is_refused():
    model = PLAIN.build()
    graph, _ = traced(model)
    full = tuple(group.channels for group in graph.prunable)
    ranking = rank_channels(model, graph)
    other = copy.deepcopy(model)
    other.hidden = nn.Linear(7, 5)
    with pytest.raises(
        TraceError, match=r"another network: hidden.weight has shape .* there and .5, 7"
    ):
        slice_model(other, graph, full, ranking)
    with pytest.raises(
        TraceError, match=r"the network is Net there and Identity here; trace again"
    ):
        slice_model(nn.Identity(), graph, full, ranking)
    small = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)).double()
    strange = rank_channels(small, trace_channels(small, images()))
    with pytest.raises(
        RankingError, match=r"for groups of .2. channels, but the graph has groups of .6"
    ):
        slice_model(model, graph, tuple(1 for _ in full), strange)


def test_a_candidate_is_made_from_the_weights_as_they_are_now():
    model = PLAIN.build()
    graph, _ = traced(model)
    ranking = rank_channels(model, graph)
    candidate = tuple(max(1, group.channels - 1) for group in graph.prunable)
    slice_model(model, graph, candidate, ranking)
    for parameter in model.parameters():
        parameter.data.mul_(3.0)
    again, other = (
        slice_model(m, graph, candidate, ranking) for m in (model, copy.deepcopy(model))
    )
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), other.parameters(), strict=True)
    )
    kept = ranking.kept(0, candidate[0])
    assert torch.equal(again.layers[0].weight, model.layers[0].weight[kept])


def test_what_is_known_of_a_graph_goes_with_it():
    model = PLAIN.build()
    before = len(outline._PLANS)
    graph, _ = traced(model)
    ranking = rank_channels(model, graph)
    slice_model(model, graph, tuple(1 for _ in graph.prunable), ranking)
    assert len(outline._PLANS) == before + 1
    del graph
    gc.collect()
    assert len(outline._PLANS) == before


def test_parameters_that_have_been_tied_since_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)).double()
    graph, _ = traced(model)
    model[2].weight = model[1].weight
    with pytest.raises(TraceError, match=r"2.weight has shape .4, 4, 1, 1. there and None here"):
        slice_model(model, graph, (2, 2), rank_channels(model[:2], traced(model[:2])[0]))


def test_plain_attributes_that_are_sliced_tensors_follow():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)).double()
    graph, _ = traced(model)
    object.__setattr__(model[0], "alias", model[0].weight)
    model.list = [model[2], model[2].weight]
    sliced = slice_model(model, graph, (2,), rank_channels(model, graph))
    assert sliced[0].alias is sliced[0].weight
    assert sliced.list[0] is sliced[2]
    assert sliced.list[1] is sliced[2].weight
    assert sliced[2].weight.shape == (2, 2, 1, 1)
