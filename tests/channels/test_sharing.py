"""A shared slice is the sliced network bit for bit, and its gradients are those of the entries that stay."""

import copy
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from abcsearch.channels import sharing
from abcsearch.channels.fast.cutting import is_large
from abcsearch.channels.gates import gate
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.sharing import share
from abcsearch.channels.slicing import slice_model
from abcsearch.errors import CandidateError, ModelError, RankingError, TraceError
from abcsearch.models.resnet import SmallResNet
from tests.channels.networks import programs, strange_network
from tests.channels.oracle import few, images, random_candidate, scrambled
from tests.channels.sharing import assert_near, check_shared, hard_gates
from tests.channels.test_slicing import PLAIN, check_attributes, traced

SEEDS = st.integers(0, 2**16)


def loss(out):
    """A number that every output has a say in."""
    return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum()


def gradients(model):
    """By name the gradient of every parameter, zeros where there is none."""
    return {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()
    }


def check_gradients(model, graph, candidate, ranking, x):
    """What a backward pass leaves in the model, sliced, is what it leaves in the sliced network; the rest is zero."""
    small = slice_model(model, graph, candidate, ranking)
    skeleton, tensors = share(model, graph, candidate, ranking)
    loss(small(x.clone())).backward()
    model.zero_grad(set_to_none=True)
    loss(functional_call(skeleton, tensors, (x.clone(),))).backward()
    assert all(p.grad is None for p in skeleton.parameters())
    full, expected = gradients(model), gradients(small)
    like = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in like.named_parameters():
            parameter.copy_(full[name])
    for name, parameter in slice_model(like, graph, candidate, ranking).named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-12, atol=1e-12)
        assert (full[name] != 0).sum() == (parameter != 0).sum()
    model.zero_grad(set_to_none=True)


@few(20)
@given(programs(), SEEDS)
def test_shared_slices_of_random_networks(program, seed):
    model, rng = program.build(seed), np.random.default_rng(seed)
    graph, _ = traced(model)
    ranking = rank_channels(model, graph, "random", seed=seed)
    candidate = random_candidate(graph, rng)
    check_shared(model, graph, candidate, ranking, images(batch=4))
    check_gradients(model, graph, candidate, ranking, images())
    check_attributes(share(model, graph, candidate, ranking)[0])


@pytest.mark.parametrize(
    "name", ["tied", "tied_transposed", "tied_depthwise", "recurrent", "shared_norm", "grouped"]
)
def test_tied_weights_and_shared_modules(name):
    model = strange_network(name)
    graph, _ = traced(model)
    ranking = rank_channels(model, graph, "random", seed=1)
    candidate = tuple(2 for _ in graph.prunable)
    check_shared(model, graph, candidate, ranking, images(batch=4))
    check_gradients(model, graph, candidate, ranking, images())


@pytest.fixture(scope="module")
def residual():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = scrambled(SmallResNet(3, 5, (4, 6, 8), (3, 2, 2)))
    graph, _ = traced(model)
    assert len(graph.blocks) >= 3
    return model, graph, rank_channels(model, graph)


@pytest.mark.parametrize("kept", [0, 1])
def test_dropped_blocks(residual, kept):
    model, graph, ranking = residual
    for dropped in range(len(graph.blocks)):
        blocks = tuple(kept if i == dropped else 1 - kept for i in range(len(graph.blocks)))
        candidate = (*(max(1, group.channels // 2) for group in graph.prunable), *blocks)
        check_shared(model, graph, candidate, ranking, images(batch=4))
        check_gradients(model, graph, candidate, ranking, images())


def test_large_tensors_are_cut_alike(monkeypatch):
    """Both ways of cutting give the same numbers, gradients and gradients of gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 20, 1), nn.Flatten(), nn.Linear(320, 420), nn.SiLU(), nn.Linear(420, 320)
        )
        model.extend([nn.SiLU(), nn.Linear(320, 2)])
    graph, _ = traced(scrambled(model))
    ranking = rank_channels(model, graph, "random", seed=1)
    candidate = tuple(group.channels // 2 for group in graph.prunable)
    check_shared(model, graph, candidate, ranking, images())
    check_gradients(model, graph, candidate, ranking, images())
    slopes = []
    for large in (is_large, lambda tensor: False):
        monkeypatch.setattr(sharing, "is_large", large)
        skeleton, tensors = share(model, graph, candidate, ranking)
        assert ("_MatrixCut" in type(tensors["4.weight"].grad_fn).__name__) == (large is is_large)
        first = loss(functional_call(skeleton, tensors, (images(),)).square())
        first = torch.autograd.grad(first, list(model.parameters()), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), list(model.parameters()))
        slopes.append([*first, *second])
    assert all(torch.equal(a, b) for a, b in zip(*slopes, strict=True))


def test_keeping_everything_shares_the_parameters_themselves(residual):
    model, graph, ranking = residual
    _, tensors = share(model, graph, graph.space().full, ranking)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    assert all(tensors[name] is parameter for name, parameter in parameters.items())
    assert all(torch.equal(tensors[name], buffer) for name, buffer in buffers.items())
    assert all(tensors[name].data_ptr() != buffer.data_ptr() for name, buffer in buffers.items())


def test_a_step_in_training_mode_changes_the_tensors_and_nothing_else(residual):
    model, graph, ranking = residual
    model = copy.deepcopy(model).train()
    candidate = tuple(2 for _ in graph.prunable)
    small = slice_model(model, graph, candidate, ranking)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    skeleton, tensors = share(model, graph, candidate, ranking)
    fresh = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for _ in range(2):
        functional_call(skeleton, tensors, (images(4),))
        small(images(4))
    changed = {name for name, tensor in tensors.items() if not torch.equal(tensor, fresh[name])}
    assert changed == dict(model.named_buffers()).keys()
    assert all(torch.equal(tensors[name], buffer) for name, buffer in small.named_buffers())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    again = share(model, graph, candidate, ranking)[1]
    assert all(torch.equal(again[name], tensor) for name, tensor in fresh.items())


def test_nothing_passes_from_one_user_to_the_next(residual):
    model, graph, ranking = residual
    candidate = tuple(2 for _ in graph.prunable)
    skeleton, tensors = share(model, graph, candidate, ranking)
    skeleton.train().register_forward_hook(lambda module, inputs, output: output * 0)
    with torch.no_grad():
        for parameter in skeleton.parameters():
            parameter.fill_(3.0)
        for tensor in tensors.values():
            if not isinstance(tensor, nn.Parameter):
                tensor.zero_()
    check_shared(model, graph, candidate, ranking, images(batch=4))
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    norm.momentum, before = 0.5, norm.momentum
    check_shared(model, graph, candidate, ranking, images(batch=4))
    norm.momentum = before


def test_the_skeleton_alone_does_not_run(residual):
    model, graph, ranking = residual
    skeleton, _ = share(model, graph, tuple(1 for _ in graph.prunable), ranking)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        skeleton(images())


def test_frozen_parameters_get_no_gradient(residual):
    model, graph, ranking = residual
    model = copy.deepcopy(model)
    frozen = {
        name
        for name, _ in model.named_parameters()
        if "norm" in name or "bn" in name or name.endswith("bias")
    }
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    skeleton, tensors = share(model, graph, tuple(2 for _ in graph.prunable), ranking)
    loss(functional_call(skeleton, tensors, (images(),))).backward()
    assert frozen
    assert {
        name for name, parameter in model.named_parameters() if parameter.grad is None
    } == frozen
    assert {
        name for name, parameter in skeleton.named_parameters() if not parameter.requires_grad
    } == frozen


def test_networks_without_numbers_are_shared_as_well(residual):
    model, graph, ranking = residual
    skeleton, tensors = share(
        copy.deepcopy(model).to("meta"), graph, tuple(2 for _ in graph.prunable), ranking
    )
    assert functional_call(skeleton, tensors, (images().to("meta"),)).shape == (2, 5)


@pytest.mark.gpu
def test_networks_on_another_device(residual):
    model, graph, ranking = residual
    model = copy.deepcopy(model).cuda()
    candidate = tuple(2 for _ in graph.prunable)
    skeleton, tensors = share(model, graph, candidate, ranking)
    expected = slice_model(model, graph, candidate, ranking)(images().cuda())
    torch.testing.assert_close(functional_call(skeleton, tensors, (images().cuda(),)), expected)


def test_generated_tensors_are_sliced_in_place_of_the_models(residual):
    model, graph, ranking = residual
    candidate = tuple(2 for _ in graph.prunable)
    code = torch.ones((), dtype=torch.double, requires_grad=True)
    generated = {n: p.detach() * code * 1.5 for n, p in model.named_parameters() if p.ndim > 1}
    generated |= {
        n: b.detach() * 0.5 for n, b in model.named_buffers() if n.endswith("running_mean")
    }
    other = copy.deepcopy(model)
    other.load_state_dict({**model.state_dict(), **generated})
    skeleton, tensors = share(model, graph, candidate, ranking, generated)
    actual = functional_call(skeleton, tensors, (images(),))
    assert torch.equal(actual, slice_model(other, graph, candidate, ranking)(images()))
    (slope,) = torch.autograd.grad(loss(actual), code)
    assert float(slope) != 0


def test_gates_and_shared_slices_compose():
    """Gated by the widths of one structure and sliced to a wider one: the narrower of both."""
    model = PLAIN.build()
    graph, _ = traced(model)
    ranking = rank_channels(model, graph, "random", seed=3)
    narrow = tuple(max(1, group.channels // 3) for group in graph.prunable)
    wide = tuple(max(1, 2 * group.channels // 3) for group in graph.prunable)
    gates = [values.requires_grad_() for values in hard_gates(graph, narrow, ranking)]
    skeleton, tensors = share(model, graph, wide, ranking, gate(model, graph, gates))
    actual = functional_call(skeleton, tensors, (images(),))
    assert_near(actual, slice_model(model, graph, narrow, ranking)(images()), 1e-12)
    slopes = torch.autograd.grad(loss(actual), gates)
    for index, slope in enumerate(slopes):
        gone = np.setdiff1d(
            np.arange(graph.prunable[index].channels), ranking.kept(index, wide[index])
        )
        assert not bool(slope[gone].any())
        assert bool(slope.any())


WRONG = {
    "unknown": (
        lambda t: {"linear.weigth": t["linear.weight"]},
        "unknown tensor 'linear.weigth'; did you mean 'linear.weight'?",
    ),
    "sliced": (
        lambda t: {"linear.weight": t["linear.weight"][:, :2]},
        "linear.weight has shape (5, 8) there, found (5, 2)",
    ),
    "number": (
        lambda t: {"linear.weight": 1.0},
        "linear.weight has shape (5, 8) there, found float",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_tensors_that_do_not_fit_are_refused(residual, name):
    model, graph, ranking = residual
    change, message = WRONG[name]
    with pytest.raises(ModelError, match=re.escape(message)):
        share(
            model,
            graph,
            tuple(1 for _ in graph.prunable),
            ranking,
            change(dict(model.named_parameters())),
        )


def test_the_second_name_of_a_tied_tensor_is_refused():
    model = strange_network("tied")
    graph, _ = traced(model)
    given = {"layers.3.two.weight": model.layers[3].two.weight}
    with pytest.raises(ModelError, match=r"layers.3.two.weight is tied, give layers.3.one.weight"):
        share(model, graph, tuple(1 for _ in graph.prunable), rank_channels(model, graph), given)


def test_what_does_not_belong_together_is_refused(residual):
    model, graph, ranking = residual
    full = graph.space().full
    with pytest.raises(CandidateError, match="keeps 0 channels; allowed are 1 to"):
        share(model, graph, (0, *full[1:]), ranking)
    with pytest.raises(
        TraceError, match="the network is SmallResNet there and Identity here; trace again"
    ):
        share(nn.Identity(), graph, full, ranking)
    small = strange_network("tied")
    with pytest.raises(RankingError, match="but the graph has groups of"):
        share(model, graph, full, rank_channels(small, traced(small)[0]))
