"""The check of whole packages finds slices that are wrong, keeps what it knows, and names what fails."""

import json
import sys

import pytest
import torch
from torch import nn

from abcsearch import trace_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.example import Example
from experiments.benchmarks import packages
from experiments.benchmarks.package_networks import IMPORTED, Network
from experiments.benchmarks.packages import Row


class Pair(nn.Module):
    """Returns tensors in a dictionary in a list, the second one from what is drawn."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Conv2d(8, 4, 3)

    def forward(self, x):
        made = self.second(self.first(x))
        return [{"made": made}, made.sum((2, 3)) + torch.rand(1)]


def measured(model):
    example = Example((torch.rand(1, 3, 8, 8),))
    graph = trace_channels(model, example)
    return packages.exactness(model, graph, example, torch.float64)


def test_slices_that_are_right_are_exact_and_others_are_not(monkeypatch):
    error, moved = measured(Pair().eval())
    assert error < packages.EXACT < 1e-3 < moved

    def wrong(model, graph, candidate, ranking):
        sliced = slice_model(model, graph, candidate, ranking)
        if candidate != tuple(group.channels for group in graph.prunable):
            with torch.no_grad():
                sliced.first[1].bias[0] += 1e-3
        return sliced

    monkeypatch.setattr(packages, "slice_model", wrong)
    error, _ = measured(Pair().eval())
    assert error > packages.EXACT


def test_numbers_that_are_not_finite_are_no_agreement(monkeypatch):
    """The largest of some numbers and NaN is not NaN: what is not finite has to be looked for."""

    def broken(model, graph, candidate, ranking):
        sliced = slice_model(model, graph, candidate, ranking)
        if candidate != tuple(group.channels for group in graph.prunable):
            with torch.no_grad():
                sliced.first[1].bias[0] = torch.nan
        return sliced

    monkeypatch.setattr(packages, "slice_model", broken)
    with pytest.raises(ValueError, match="not finite"):
        measured(Pair().eval())


@pytest.mark.parametrize(
    "row",
    [
        Row(name="smp/FPN-resnet18", prunable=0, error=0.0, moved=0.0),
        Row(name="smp/FPN-resnet18", prunable=3, error=0.0, moved=0.0),
        Row(name="smp/FPN-resnet18", prunable=3, error=1e-3, moved=0.5),
    ],
)
def test_networks_in_which_nothing_was_checked_are_not_exact(row):
    assert not row.exact


def test_slices_of_other_shapes_are_refused(monkeypatch):
    def wider(model, _graph, _candidate, _ranking):
        return nn.Sequential(model, nn.Identity()) if isinstance(model, nn.Linear) else nn.Flatten()

    monkeypatch.setattr(packages, "slice_model", wider)
    with pytest.raises(ValueError, match=r"a slice returns tensors of shapes \[\(1, 192\)\]"):
        measured(Pair().eval())


def test_rows_are_kept_and_what_fails_is_named(tmp_path, monkeypatch, capsys):
    """A network that cannot be built is a row that says so, and is tried again; what is known is not."""

    def fails():
        message = "no\nsuch layer"
        raise RuntimeError(message)

    known = {
        "torchvision/pair": Network(Pair, ((1, 3, 8, 8),)),
        "torchvision/none": Network(fails, ((1, 3),)),
        "facenet/away": Network(fails, ((1, 3),)),
    }
    monkeypatch.setitem(IMPORTED, "facenet", "no_such_package")
    monkeypatch.setattr(packages, "NETWORKS", known)
    built = []

    def one_by_one(pieces, _workers, done):
        for name, piece in pieces.items():
            built.append(name)
            done(piece())

    monkeypatch.setattr(packages, "side_by_side", one_by_one)
    file = tmp_path / "deep" / "rows.jsonl"
    monkeypatch.setattr(sys, "argv", ["packages", "--rows", str(file), "--detail"])
    packages.main()
    said = capsys.readouterr().out
    packages.main()
    assert capsys.readouterr().out == said
    assert built == ["torchvision/pair", "torchvision/none", "torchvision/none"]
    assert "torchvision/none: RuntimeError: no such layer" in said
    assert "| torchvision (2) | 1 | 87.5, 87.5 |" in said
    rows = [Row(**json.loads(line)) for line in file.read_text().splitlines()]
    assert [row.exact for row in rows] == [True, False, False]


def test_the_table_counts_networks_whose_slices_are_exact():
    names = ["smp/Unet-resnet18", "smp/FPN-resnet18", "smp/PAN-resnet18", "facenet/PNet"]
    shares = [0.9, 0.8, 0.7]
    rows = [
        Row(
            name=name,
            groups=3,
            prunable=2,
            macs=share,
            moved=0.5,
            seconds=1.0,
            reasons={"mean (mean_1): no rule": 1},
        )
        for name, share in zip(names, shares, strict=False)
    ]
    rows[2] = Row(name=names[2], error=1e-3)
    rows.append(Row(name=names[3], failed="ValueError: no"))
    lines = packages.table(rows).splitlines()
    assert lines[2] == "| smp (3) | 2 | 85.0, 80.0 | 1.0, 1.0 | no rule |"
    assert lines[3] == "| facenet (1) | 0 | | | |"
