"""The format compressed: bit for bit, small where values are few, and data only."""

import json
import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from abcsearch import codebook, load, sparsify
from abcsearch.errors import CheckpointError, ExportError
from abcsearch.exporting import export
from abcsearch.exporting.compressed import MAGIC, pack, unpack
from abcsearch.models.resnet import SmallResNet
from abcsearch.runs.disk.weights import load_checkpoint
from abcsearch.runs.settings import ModelSettings

TYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.int64,
    torch.int8,
]
X = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@st.composite
def tensors(draw):
    """Of any size and type, of few values or many, mostly one of them or not, with what is no number."""
    shape = draw(st.lists(st.integers(0, 9), max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    size = math.prod(shape)
    values = draw(st.sampled_from([1, 2, 200, 300, 10**6]))
    x = rng.integers(0, values, size) * 0.37 - 5
    x[rng.random(size) < draw(st.sampled_from([0.0, 0.5, 0.99, 1.0]))] = draw(
        st.sampled_from([0.0, -0.0, 3.0])
    )
    made = torch.from_numpy(x).reshape(shape).to(draw(st.sampled_from(TYPES)))
    if made.is_floating_point() and draw(st.booleans()):
        made = made.where(
            torch.from_numpy(rng.random(shape)) > 0.1, draw(st.sampled_from([math.nan, math.inf]))
        )
    return made.transpose(0, 1).contiguous().transpose(0, 1) if made.ndim > 1 else made


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor.numel()


@settings(max_examples=80, deadline=None)
@given(st.lists(tensors(), max_size=3))
def test_what_is_read_is_what_was_written_bit_for_bit(many):
    named = {f"t{i}": tensor for i, tensor in enumerate(many)}
    back, metadata = unpack(pack(named, {"a": "ü"}))
    assert metadata == {"a": "ü"}
    assert back.keys() == named.keys()
    for name, tensor in named.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        assert np.array_equal(bits(back[name]), bits(tensor))


@pytest.mark.parametrize("gap", [254, 255, 256, 509, 510, 511, 1000])
def test_entries_may_lie_far_from_each_other(gap):
    x = torch.zeros(3 * gap + 5)
    x[0] = x[gap] = x[2 * gap] = 1.5
    assert torch.equal(unpack(pack({"x": x}, {}))[0]["x"], x)


def test_few_values_take_little_more_than_their_entropy():
    """Within 6 % of the fewest bytes that values without any order can take, header and all."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(300, 1000, generator=draws)
    x[x.abs() < 1.645] = 0  # nine in ten
    x = (x * 8).round() / 8
    _, counts = x.unique(return_counts=True)
    shares = counts.double() / len(x.flatten())
    entropy = float(-(shares * shares.log2()).sum()) * x.numel() / 8
    assert entropy < len(pack({"x": x}, {})) < 1.06 * entropy
    assert len(pack({"x": x}, {})) < x.numel() * 4 / 25


def broken(content, change):
    """A file whose header has been changed."""
    length = int.from_bytes(content[8:16], "little")
    header = json.loads(zlib.decompress(content[16 : 16 + length]))
    header = change(header) or header
    packed = zlib.compress(json.dumps(header).encode())
    return MAGIC + len(packed).to_bytes(8, "little") + packed + content[16 + length :]


CHANGES = {
    "a type": lambda h: h["tensors"]["x"].update(dtype="object"),
    "a size below 0": lambda h: h["tensors"]["x"].update(shape=[-1]),
    "a size of another kind": lambda h: h["tensors"]["x"].update(shape=[True]),
    "no size": lambda h: h["tensors"]["x"].update(shape=None),
    "a size that entries go beyond": lambda h: h["tensors"]["x"].update(shape=[900]),
    "terabytes": lambda h: h["tensors"]["x"].update(shape=[2**40]),
    "more values than there are": lambda h: h["tensors"]["x"].update(values=5000),
    "fewer values": lambda h: h["tensors"]["x"].update(values=1),
    "fewer gaps": lambda h: h["tensors"]["x"].update(gaps=0),
    "fewer bytes": lambda h: h["tensors"]["x"].update(bytes=0),
    "another key": lambda h: h["tensors"]["x"].update(code="import os"),
    "a list": lambda h: [h],
    "no tensors": lambda h: {"metadata": {}},
    "no texts": lambda h: h.update(metadata={"a": 1}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_header_that_is_wrong_is_refused_before_anything_is_made(change):
    x = torch.zeros(1000)
    x[::7] = torch.arange(143) % 5
    content = pack({"x": x}, {})
    with pytest.raises(ValueError, match=r"x |header|it is "):
        unpack(broken(content, CHANGES[change]))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_never_ends_in_anything_but_a_message(data):
    x = torch.zeros(300)
    x[::9] = torch.arange(34) % 3
    content = bytearray(pack({"x": x, "y": torch.arange(20.0)}, {}))
    how = data.draw(st.sampled_from(["flip", "cut", "more"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if how == "flip":
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        content = content[:place] if how == "cut" else content + b"x"
    try:
        back, _ = unpack(bytes(content))
    except ValueError:
        return
    assert how == "flip"  # of a value: what the checksum of an export tells
    assert {t.shape for t in back.values()} == {(300,), (20,)}


def resnet():
    torch.manual_seed(0)
    return SmallResNet(in_channels=3, classes=5, widths=(8, 12), depths=(1, 1))


def test_an_export_comes_back_as_the_same_dense_module_in_fewer_bytes(tmp_path):
    model = codebook(sparsify(resnet().eval(), 0.8), bits=4)
    sizes = {}
    for kind in ("safetensors", "compressed"):
        made = export(model, tmp_path / kind, example_input=X, constructor=resnet, format=kind)
        assert made.difference == 0
        assert made.how_to_load.startswith("import abcsearch; network = abcsearch.load(")
        back = load(made)
        assert torch.equal(back(X), model(X))
        assert all(
            torch.equal(bits(t), bits(back.state_dict()[n])) for n, t in model.state_dict().items()
        )
        sizes[kind] = sum(file.stat().st_size for file in (tmp_path / kind).glob("model.*"))
    assert sizes["compressed"] < 0.5 * sizes["safetensors"]
    # Another format in the same folder replaces the one before; the plan says which it is.
    export(resnet().eval(), tmp_path / "compressed", example_input=X, constructor=resnet)
    assert sorted(p.name for p in (tmp_path / "compressed").iterdir()) == [
        "model.safetensors",
        "plan.json",
    ]
    assert not torch.equal(load(tmp_path / "compressed")(X), model(X))


def test_a_search_begins_with_a_compressed_export(tmp_path):
    model = sparsify(resnet().eval(), 0.5)
    export(model, tmp_path / "e", example_input=X, constructor=SmallResNet, format="compressed",
           options={"in_channels": 3, "classes": 5, "widths": [8, 12], "depths": [1, 1]})  # fmt: skip
    settings_ = ModelSettings.of_export(tmp_path / "e")
    built = settings_.build()
    load_checkpoint(built, settings_.checkpoint)
    assert torch.equal(built.eval()(X), model(X))
    path = tmp_path / "e/model.compressed"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises((CheckpointError, ExportError), match=r"model\.compressed|damaged"):
        load(tmp_path / "e")
    with pytest.raises(CheckpointError):
        load_checkpoint(built, path)


def test_what_the_format_does_not_hold_is_said(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("w", torch.zeros(2, dtype=torch.complex128))

        def forward(self, x):
            return x.flatten(1) + self.w.real.sum()

    with pytest.raises(ValueError, match=r"w is of type torch\.complex128"):
        pack(dict(Odd().named_buffers()), {})
