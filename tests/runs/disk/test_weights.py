"""Checkpoints: what is read, and what is refused with the reason."""

import argparse
import os
import re
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from abcsearch.errors import CheckpointError
from abcsearch.runs.disk.weights import load_brought, load_checkpoint, weights_writer


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.LazyLinear(2))
        model(torch.rand(2, 1, 5, 5))
    return model


def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def prefixed(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        dict,
        prefixed,
        lambda state: {"state_dict": state, "epoch": 3, "best": 0.5},
        lambda state: {"model": prefixed(state)},
        lambda state: {"state_dict": {"model": state}},
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_state_dicts_are_read_bare_nested_and_prefixed(tmp_path, wrap, legacy):
    trained, model = network(0), network(1)
    torch.save(
        wrap(trained.state_dict()), tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy
    )
    load_checkpoint(model, tmp_path / "w.pth")
    assert same(model, trained)


def test_safetensors_are_read_also_with_prefix_and_in_half_precision(tmp_path):
    trained, model = network(0), network(1)
    save_file(
        {
            name: t.half() if t.is_floating_point() else t
            for name, t in prefixed(trained.state_dict()).items()
        },
        tmp_path / "w.safetensors",
    )
    load_checkpoint(model, str(tmp_path / "w.safetensors"))
    assert same(model, trained.half().float())
    assert model[0].weight.dtype == torch.float32


def test_what_is_written_comes_back_bit_for_bit_in_either_layout_and_is_a_snapshot(tmp_path):
    trained = network(0).to(memory_format=torch.channels_last)
    writer = weights_writer(trained)
    kept = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    with torch.no_grad():
        trained[0].weight += 1
    writer(tmp_path / "w.safetensors")
    found = load_file(tmp_path / "w.safetensors")
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    for layout in (torch.contiguous_format, torch.channels_last):
        model = network(1).to(memory_format=layout)
        load_checkpoint(model, tmp_path / "w.safetensors")
        assert torch.equal(model[0].weight, kept["0.weight"])


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.backbone.", "module._orig_mod.model.0."]
)
def test_the_prefix_of_any_wrapper_is_taken_off_and_what_is_beside_the_network_named(
    tmp_path, prefix
):
    trained, model = network(0), network(1)
    state = {f"{prefix}{name}": tensor for name, tensor in trained.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    load_checkpoint(model, tmp_path / "w.ckpt")
    assert same(model, trained)
    more = {"criterion.weight": torch.ones(2), "ema_model.0.weight": torch.ones(3, 1, 3, 3)}
    torch.save({"state_dict": {**more, **state}}, tmp_path / "w.ckpt")
    model = network(1)
    with pytest.warns(
        UserWarning, match=r"under '.*' in it; left out: criterion.weight, ema_model.0.weight"
    ):
        load_checkpoint(model, tmp_path / "w.ckpt")
    assert same(model, trained)


def test_a_network_whose_own_names_have_a_wrappers_prefix_keeps_them(tmp_path):
    trained, model = (nn.ModuleDict({"module": nn.Linear(2, 2)}) for _ in range(2))
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    load_checkpoint(model, tmp_path / "w.pt")
    assert same(model, trained)


class Whole(nn.Module):
    """What people save whole."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize("kind", ["whole", "lightning", "script"])
def test_what_holds_more_than_weights_is_not_unpickled_and_what_to_do_does_it(
    tmp_path, monkeypatch, kind
):
    trained, file = Whole(), tmp_path / "w.pt"
    here = types.ModuleType("brought")
    here.Whole = type("Whole", (Whole,), {"__module__": "brought"})
    monkeypatch.setitem(sys.modules, "brought", here)
    if kind == "whole":
        trained.__class__ = here.Whole
        torch.save(trained, file)
    elif kind == "lightning":
        prefixed = {f"model.{name}": tensor for name, tensor in trained.state_dict().items()}
        torch.save({"state_dict": prefixed, "hyper_parameters": argparse.Namespace(a=1)}, file)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.trace(trained, torch.zeros(1, 2)), file)
    with pytest.raises(
        CheckpointError, match="reading such things can run code, so it is not done here"
    ) as refused:
        load_checkpoint(Whole(), file)
    program = str(refused.value).partition('python -c "')[2].removesuffix('"')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(program, {})
    model = Whole()
    load_checkpoint(model, tmp_path / "w-weights.pt")
    assert same(model, trained)


def test_tied_weights_are_written_and_read(tmp_path):
    model, other = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2))
    for tied in (model, other):
        tied[1].weight = tied[0].weight
    weights_writer(model)(tmp_path / "w.safetensors")
    load_checkpoint(other, tmp_path / "w.safetensors")
    assert same(model, other)


def test_counts_of_batches_may_be_missing_and_nothing_else_may(tmp_path):
    trained, model = network(0), network(1)
    state = {
        name: t
        for name, t in trained.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    torch.save(state, tmp_path / "w.pth")
    load_checkpoint(model, tmp_path / "w.pth")
    assert torch.equal(model[3].weight, trained[3].weight)


def test_every_key_that_does_not_fit_is_named_and_nothing_is_loaded(tmp_path):
    state = network(0).state_dict()
    state["0.wieght"] = state.pop("0.weight")
    state["3.weight"] = state["3.weight"][:1]
    state["other"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pth")
    model, untouched = network(1), network(1)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, tmp_path / "w.pth")
    for word in (
        "w.pth does not fit Sequential",
        "missing: 0.weight",
        "unexpected: 0.wieght, other",
        "other shapes: 3.weight (1, 27) (the model has (2, 27))",
    ):
        assert word in str(caught.value)
    assert same(model, untouched)


def test_of_many_keys_that_do_not_fit_the_rest_is_counted(tmp_path):
    torch.save({f"x{n}": torch.zeros(1) for n in range(20)}, tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError, match=r"unexpected: x0, x1, x2, x3, x4 and 15 more; missing: .* and 3 more"
    ):
        load_checkpoint(network(), tmp_path / "w.pth")


class Runs:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_is_refused_and_never_run(tmp_path, legacy):
    content = {"state_dict": network().state_dict(), "code": Runs(str(tmp_path / "made"))}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"w\.pth cannot be read: .*save a state dict"):
        load_checkpoint(network(), tmp_path / "w.pth")
    assert not (tmp_path / "made").exists()


def test_a_whole_pickled_network_is_refused(tmp_path):
    torch.save(network(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="holds pickled objects"):
        load_checkpoint(network(), tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.zeros(3), "found Tensor"),
        ([torch.zeros(3)], "found list"),
        ({"nets": {"a": torch.zeros(3)}, "epoch": 3}, r"\['nets', 'epoch'\] are not tensors"),
        ({0: torch.zeros(3)}, r"\[0\] are not tensors"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=f"holds no state dict.*{words}"):
        load_checkpoint(network(), tmp_path / "w.pth")


def test_missing_files_and_folders_are_refused(tmp_path):
    for path, wrong in (
        (tmp_path / "none.pth", "does not exist"),
        (tmp_path, "is a folder, not a file"),
    ):
        with pytest.raises(CheckpointError, match=wrong):
            load_checkpoint(network(), path)


@pytest.mark.parametrize(
    ("name", "legacy"), [("w.pth", False), ("w.pth", True), ("w.safetensors", False)]
)
def test_a_damaged_file_is_refused_or_read_but_never_an_accident(tmp_path, name, legacy):
    path, draws = tmp_path / name, np.random.default_rng(0)
    if name == "w.safetensors":
        weights_writer(network())(path)
    else:
        torch.save(network().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    sound = path.read_bytes()
    damaged = [b"", b"\x80", b"text", sound[:10], sound[: len(sound) // 2], sound[:-1]]
    places = draws.integers(0, min(len(sound), 1500), 60)
    damaged += [
        sound[:at] + bytes([sound[at] ^ int(draws.integers(1, 256))]) + sound[at + 1 :]
        for at in places
    ]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            load_checkpoint(network(), path)
        except CheckpointError:
            refused += 1
    assert refused >= 6


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_of_a_training_that_has_diverged_are_named(tmp_path, wrong):
    state = network().state_dict()
    name = next(name for name, tensor in state.items() if tensor.ndim == 4)
    state[name].view(-1)[:2] = wrong
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        load_brought(network(), tmp_path / "w.pth")
    assert f"NaN or infinite: {name} (2 of {state[name].numel():,})" in str(caught.value)
    load_checkpoint(network(), tmp_path / "w.pth")  # of a run's own: what a training has made of it


@pytest.mark.parametrize("content", [b"hello", b"{}", b"e", bytes(100)])
def test_what_is_no_file_of_torchs_is_said_in_words(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_brought(network(), tmp_path / "w.pth")
    reason = re.findall(r"cannot be read: (.*?); save a state dict", str(caught.value))
    assert len(reason[0]) > 5
