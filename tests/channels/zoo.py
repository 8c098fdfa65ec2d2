"""What is checked of a whole network, whichever it is."""

import zlib

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from tests.channels.oracle import keeping, random_candidate, zeroed

# What convolutions and linear layers run; attention runs bmm
LAYERS = ("aten.convolution", "aten.addmm", "aten.mm")
TOLERANCE = 1e-10


def settled(model, x):
    """Gives a network random weights and fitting statistics, so that all channels matter for what comes out.

    Without statistics of its own activations a deep network saturates: gates close, and the oracle sees nothing
    through them.
    """
    model = model.double().eval()
    norms = [
        m
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.1 if p.ndim < 2 else (len(p) / p.numel()) ** 0.5))
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        model(x)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.running_mean.add_(
                0.1 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt()
            )
            norm.running_var.mul_(0.9 + 0.4 * torch.rand_like(norm.running_var)).add_(
                1e-3 * norm.running_var.mean()
            )
    return model.eval()


# Torch's fused attention does not count what it multiplies.
torch.backends.mha.set_fastpath_enabled(False)


def outputs(model, x):
    """Returns everything that a network returns, as one row per image."""
    with torch.no_grad():
        found = model(x)
    found = list(found.values()) if isinstance(found, dict) else [found]
    return torch.cat([out.flatten(1) for out in found], dim=1)


def layer_macs(model, example):
    """Returns the macs of convolutions and linear layers, counted by torch; the example has batch 1."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    return (
        sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if str(op) in LAYERS)
        // 2
    )


def cost(graph, candidate):
    """Returns (macs, params) in closed form."""
    return int(graph.costs.macs([candidate])[0]), int(graph.costs.params([candidate])[0])


def counted(model, example, extra=0):
    """Returns (macs, params) as counted; `extra` macs are not the closed form's business."""
    return layer_macs(model, example) - extra, sum(
        parameter.numel() for parameter in model.parameters()
    )


def full(graph):
    """Returns the candidate that keeps everything."""
    return tuple(group.channels for group in graph.prunable)


def shares(graph):
    """Returns which share of the groups, and of the macs with one channel per group, can be removed."""
    macs = graph.costs.macs([full(graph), [1] * len(graph.prunable)])
    return len(graph.prunable) / len(graph.groups), 1 - macs[1] / macs[0]


def blind(model, graph, x):
    """Returns the groups in which a mistake would not be seen in what the network returns."""
    tensors = dict(model.named_parameters())
    with torch.enable_grad():
        found = model(x)
        found = torch.cat(
            [out.flatten() for out in (found.values() if isinstance(found, dict) else [found])]
        )
        (found * torch.randn_like(found)).sum().backward()
    seen = {
        name: float((p.grad * p.detach()).abs().max()) / float(found.detach().abs().max())
        for name, p in tensors.items()
        if p.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return [
        g.name
        for g in graph.prunable
        if max(seen.get(m.parameter, 0) for m in g.members) < 1e3 * TOLERANCE
    ]


def fingerprint(model):
    """Returns a checksum of every parameter and buffer."""
    return {
        name: zlib.crc32(t.contiguous().numpy())
        for name, t in model.state_dict().items()
        if t.numel()
    }


def assert_same(a, b):
    """Equal up to rounding in double precision, and finite."""
    assert bool(torch.isfinite(b).all())
    scale = float(b.abs().max())
    assert float((a - b).abs().max()) <= TOLERANCE * scale


def check_network(model, graph, x, *, structures=2, extra_macs=False):
    """The oracles of slicing and costs on random structures.

    Args:
        model: the network, in double precision.
        graph: its channel groups.
        x: a batch of images.
        structures: how many random ones to try.
        extra_macs: whether torch counts macs that the closed form leaves out (the projections inside of attention);
            they are the same for every structure.
    """
    before, expected = fingerprint(model), outputs(model, x)
    ranking = rank_channels(model, graph, "random", seed=1)
    assert torch.equal(outputs(slice_model(model, graph, full(graph), ranking), x), expected)
    extra = layer_macs(model, x[:1]) - cost(graph, full(graph))[0] if extra_macs else 0
    assert cost(graph, full(graph)) == counted(model, x[:1], extra)
    for seed in range(structures):
        candidate = random_candidate(graph, np.random.default_rng(seed))
        sliced = slice_model(model, graph, candidate, ranking)
        found = outputs(sliced, x)
        assert cost(graph, candidate) == counted(sliced, x[:1], extra)
        del sliced
        if graph.norms:
            with keeping(model, graph, candidate, ranking):
                assert_same(found, outputs(model, x))
        else:
            assert_same(found, outputs(zeroed(model, graph, candidate, ranking), x))
    assert fingerprint(model) == before
