"""What gates and shared slices are compared with: the sliced network, in evaluation and in training mode."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from abcsearch.channels.gates import gated
from abcsearch.channels.sharing import share
from abcsearch.channels.slicing import slice_model
from tests.channels.zoo import fingerprint

ROUNDING = 1e-12


def everything(out):
    """What a network returns, as one row per image."""
    parts = (
        list(out.values())
        if isinstance(out, dict)
        else list(out)
        if isinstance(out, tuple)
        else [out]
    )
    return torch.cat([part.flatten(1) for part in parts], dim=1)


class Undropped(TorchFunctionMode):
    """Switches dropout off that forward calls as a function: it would draw other numbers for other widths."""

    DROPOUTS = (
        *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout),
        *(F.feature_alpha_dropout, torch.dropout, torch.feature_dropout, torch.alpha_dropout),
    )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.DROPOUTS:
            return args[0] if args else kwargs["input"]
        return func(*args, **kwargs)


def seeded(run):
    """What a network returns without gradients and dropout, whatever else it draws being the same every time."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), Undropped():
        torch.manual_seed(0)
        return everything(run())


def hard_gates(graph, candidate, ranking):
    """Gates of 0 and 1 that keep what slicing keeps."""
    kept = [
        np.isin(np.arange(g.channels), ranking.kept(i, candidate[i]))
        for i, g in enumerate(graph.prunable)
    ]
    return [torch.from_numpy(flags).double() for flags in kept]


def moded(model, training):
    """A copy in a mode, with dropout off: it would draw other numbers for other widths."""
    twin = copy.deepcopy(model).train(training)
    for module in twin.modules():
        if "Drop" in type(module).__name__ or type(module).__name__ == "StochasticDepth":
            module.eval()
    return twin


def assert_near(a, b, rounding, where=""):
    """Equal up to rounding, relative to the largest value, and finite."""
    a, b = a.detach(), b.detach()
    assert bool(torch.isfinite(b).all()), where
    assert a.shape == b.shape, where
    scale = float(b.abs().max()) if b.numel() else 1.0
    assert float((a - b).abs().max() if b.numel() else 0) <= rounding * max(scale, 1e-30), where


MAGNIFIED = (
    1e-7  # no mistake is as small: what is allowed of rounding, whatever a network makes of it
)


def magnified(network, x):
    """What a network makes of rounding, ten times: how much its output changes with the last bit of its input."""
    twins = copy.deepcopy(network), copy.deepcopy(network)
    first = seeded(lambda: twins[0](x.clone()))
    other = seeded(lambda: twins[1](x * (1 + torch.finfo(x.dtype).eps)))
    return min(MAGNIFIED, 10 * float((first - other).abs().max() / first.abs().max()))


def check_gates(
    model, graph, candidate, ranking, x, rounding=ROUNDING, modes=(False, True), conditioned=False
):
    """Gates of 0 and 1 equal slicing: outputs, and statistics of the channels that stay.

    A deep network whose batch norms see few values magnifies rounding; `conditioned` allows as much as it does.
    """
    gates = hard_gates(graph, candidate, ranking)
    for training in modes:
        full = moded(model, training)
        small = slice_model(full, graph, candidate, ranking)
        allowed = max(rounding, magnified(small, x)) if conditioned and training else rounding
        with gated(full, graph, gates):
            actual = seeded(lambda: full(x.clone()))  # noqa: B023 - called at once
        assert_near(actual, seeded(lambda: small(x.clone())), allowed, f"training {training}")  # noqa: B023
        after = slice_model(full, graph, candidate, ranking)
        for (name, statistics), expected in zip(
            after.named_buffers(), small.buffers(), strict=True
        ):
            assert_near(statistics.double(), expected.double(), allowed, name)


def check_shared(model, graph, candidate, ranking, x, modes=(False, True)):
    """A shared slice equals the sliced network bit for bit, before and after a step; the model stays as it is."""
    mode = model.training
    for training in modes:
        model.train(training)
        before = fingerprint(model)
        small = slice_model(model, graph, candidate, ranking)
        skeleton, tensors = share(model, graph, candidate, ranking)
        assert_same_tensors(small, skeleton, tensors)
        actual = seeded(lambda: functional_call(skeleton, tensors, (x.clone(),)))  # noqa: B023 - called at once
        assert torch.equal(actual, seeded(lambda: small(x.clone())))  # noqa: B023
        assert_same_tensors(small, skeleton, tensors)
        assert fingerprint(model) == before
    model.train(mode)


def assert_same_tensors(small, skeleton, tensors):
    """The tensors are those of the sliced network, and the skeleton has their shapes and no numbers."""
    expected = dict([*small.named_parameters(), *small.named_buffers()])
    hollow = dict([*skeleton.named_parameters(), *skeleton.named_buffers()])
    assert tensors.keys() == expected.keys() == hollow.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor), name
        assert hollow[name].shape == tensor.shape
        assert hollow[name].is_meta
