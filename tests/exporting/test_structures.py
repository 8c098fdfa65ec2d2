"""Exports of networks with several inputs or outputs: every tensor is compared, named, and comes back where it was."""

import json
import shutil
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from abcsearch.errors import ExportError
from abcsearch.example import Example
from abcsearch.exporting import export, load, open_export, plan_checks
from abcsearch.exporting.structures import (
    filled,
    named_by,
    names_in,
    outline,
    outline_problem,
    plain,
    tensors_by_name,
)
from abcsearch.files import sealed, unsealed
from abcsearch.rng import torch_seeded
from abcsearch.signing import is_own


@dataclass
class Found:
    logits: torch.Tensor
    maps: list
    loss: object = None


class Sides(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


KINDS = {
    "pyramid": lambda a, b: OrderedDict([("p2", a), ("p3", b)]),
    "dataclass": lambda a, b: Found(a.mean((2, 3)), [a, (b,)]),
    "tuple": lambda a, b: (a, [b]),
    "named tuple": Sides,
    "list": lambda a, b: [a, b],
}


class Both(nn.Module):
    """Takes a dict, returns one of KINDS; remembers sizes that only forward knows, as YOLO's Detect does."""

    shape = None

    def __init__(self, kind="pyramid"):
        super().__init__()
        self.conv, self.kind, self.last, self.scale = nn.Conv2d(3, 4, 3, padding=1), kind, None, 1.0

    def forward(self, batch):
        a = self.conv(batch["image"])
        self.shape, self.last = tuple(a.shape), a.shape[2]
        return KINDS[self.kind](
            a, self.scale * a[:, :, ::2, ::2] * batch["more"]["factor"][:, None, None, None]
        )


def both(kind, scale=1.0):
    with torch_seeded(0, "both"):
        network = Both(kind).eval()
    network.scale = scale
    return network


def batch(rows):
    draws = torch.Generator().manual_seed(rows)
    image, factor = torch.randn(rows, 3, 8, 8, generator=draws), torch.randn(rows, generator=draws)
    return {"image": image, "more": {"factor": factor}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["net", "net.pt2", "net.onnx"])
def test_what_comes_back_is_what_was_returned(tmp_path, kind, file):
    if file == "net.onnx":
        pytest.importorskip("onnx")
        if kind not in ("pyramid", "dataclass"):  # a second each
            return
    network = both(kind)
    network(batch(2))  # what only forward makes is there, and of other sizes than a new network's
    made = export(network, tmp_path / file, example_input=batch(2), options={"kind": kind})
    loaded = load(made)
    for rows in (1, 3):
        expected, found = network(batch(rows)), loaded(batch(rows))
        if file == "net":
            assert type(found) is type(expected)
        wanted = tensors_by_name(plain(expected))
        back = tensors_by_name(plain(found))
        assert list(back) == list(wanted)
        for name, tensor in wanted.items():
            torch.testing.assert_close(back[name], tensor, rtol=1e-5, atol=1e-5)
        both_ways = Example.of(batch(rows)).run(loaded)  # keywords are its only argument
        assert list(tensors_by_name(plain(both_ways))) == list(wanted)


def test_a_file_names_its_inputs_and_outputs_for_other_programs(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    made = export(both("dataclass"), tmp_path / "net.onnx", example_input=Example((batch(2),)))
    session = runtime.InferenceSession(str(made.path))
    assert [(x.name, x.shape[0]) for x in session.get_inputs()] == [
        ("batch.image", "batch"),
        ("batch.more.factor", "batch"),
    ]
    assert [x.name for x in session.get_outputs()] == ["logits", "maps.0", "maps.1.0"]
    loaded = load(made)
    with pytest.raises(
        ExportError, match=r"the network takes the inputs image, more in 0, found image$"
    ):
        loaded({"image": torch.ones(1, 3, 8, 8)})
    with pytest.raises(ExportError, match=r"batch.more.factor is a tensor, found float"):
        loaded({"image": torch.ones(1, 3, 8, 8), "more": {"factor": 1.0}})


def test_a_file_without_facts_takes_inputs_in_order_or_by_name(tmp_path):
    onnx = pytest.importorskip("onnx")
    made = export(both("tuple"), tmp_path / "net.onnx", example_input=Example((batch(2),)))
    proto = onnx.load(made.path)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "other.onnx")
    loaded, given = load(tmp_path / "other.onnx"), batch(2)
    one = loaded(given["image"], given["more"]["factor"])
    two = loaded(**{"batch.image": given["image"], "batch.more.factor": given["more"]["factor"]})
    for found in (one, two):
        torch.testing.assert_close(found["0"], both("tuple")(given)[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(
        ExportError, match=r"takes the inputs batch\.image, batch\.more\.factor, found batch\.image"
    ):
        loaded(given["image"])


class Built(Both):
    """What the constructor builds differs in one output only, the smaller one."""

    def __init__(self, kind="pyramid"):
        super().__init__(kind)
        self.scale = 1.0 + 2**-20


def test_every_output_is_compared(tmp_path):
    network = both("pyramid")
    with pytest.raises(
        ExportError, match=r"loads with other outputs, the largest difference is .* \(of p3\)"
    ):
        export(network, tmp_path, example_input=batch(2), constructor=_of_scale)
    assert not list(tmp_path.iterdir())


def _of_scale():
    return both("pyramid", 1.0 + 2**-20)


class Hidden(nn.Module):
    """A file of it differs in one output, which is small beside the other."""

    def forward(self, x):
        big = 1000 * x.mean(dim=(2, 3))
        return big, big * 0 + 1e-3 * (2 if torch.compiler.is_exporting() else 1)


def test_outputs_of_files_are_compared_each_by_its_own_size(tmp_path):
    with pytest.raises(
        ExportError,
        match=r"other outputs: the largest difference is 0.001 \(of 1\) of outputs up to",
    ):
        export(Hidden(), tmp_path / "net.pt2", example_input=torch.ones(2, 3, 4, 4))


class Failing(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 3, 1)

    def forward(self, image, meta):
        return super().forward(image) + meta[:, None]


def test_a_forward_that_fails_is_told_with_the_line_and_the_inputs(tmp_path):
    words = r"does not run on a batch image \(2, 3, 4, 4\) .*, meta \(2, 5\) .*\(.*test_structures.py:\d+\)"
    for file in ("net", "net.pt2"):
        with pytest.raises(ExportError, match=words):
            export(
                Failing(),
                tmp_path / file,
                example_input={"image": torch.ones(2, 3, 4, 4), "meta": torch.ones(2, 5)},
            )


def test_a_file_from_elsewhere_is_checked_before_its_structure_is_used(tmp_path, monkeypatch):
    export(both("tuple"), tmp_path / "net", example_input=batch(2), options={"kind": "tuple"})
    shutil.copytree(tmp_path / "net", tmp_path / "copy")
    path = tmp_path / "copy" / "plan.json"
    plan = unsealed(path.read_text())[0]
    assert plan["input_shape"] == {"0.image": [2, 3, 8, 8], "0.more.factor": [2]}
    path.write_text(sealed({**plan, "input_shape": {"image": "x"}}))
    with pytest.raises(ExportError, match="input_shape is"):
        load(tmp_path / "copy", constructor=Both)
    deep = "x"
    for _ in range(50):
        deep = {"kind": "tuple", "keys": [0], "items": [deep]}
    for wrong in (
        {"kind": "set", "keys": [], "items": []},
        3,
        {"kind": "dict", "keys": [1.5], "items": ["a"]},
        deep,
    ):
        assert any(plan_checks.facts_problems({"outputs": wrong}))
        assert any(plan_checks.facts_problems({"inputs": wrong}))
    assert any(
        plan_checks.facts_problems({"inputs": {"kind": "tuple", "keys": [0], "items": ["x"]}})
    )
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another user"))
    export(both("tuple"), tmp_path / "net.pt2", example_input=batch(2))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "me"))
    opened = open_export(tmp_path / "net.pt2")
    assert not opened.own
    assert len(opened.network(batch(3))) == 2
    assert not is_own("file", opened.facts)


def trees():
    leaf = st.integers(0, 3).map(torch.ones)
    return st.recursive(
        st.one_of(leaf, leaf, st.none()),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(
                st.one_of(st.sampled_from("abc"), st.integers(0, 3)), inner, max_size=3
            ),
        ),
        max_leaves=6,
    )


@given(trees())
def test_an_outline_brings_back_any_structure(tree):
    value = plain(tree)
    names = [f"t{number}" for number, _ in enumerate(tensors_by_name((value,)))]
    structure = json.loads(json.dumps(outline(value, iter(names))))
    assert outline_problem(structure) is None
    assert names_in(structure) == names
    tensors = dict(named_by(structure, value))
    assert list(tensors) == names
    back = filled(structure, tensors)
    assert outline(back, iter(names)) == outline(value, iter(names))
    assert list(map(id, tensors_by_name((back,)).values())) == list(map(id, tensors.values()))
