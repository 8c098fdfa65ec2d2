"""The benchmarks of forward time: what the tables are made of, without measuring for minutes."""

import json
import sys

import torch
from torch import nn

from experiments.benchmarks import divisors, latency, memory


def printed(module, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    module.main()
    return [
        line.strip("| ").split(" | ")
        for line in capsys.readouterr().out.splitlines()
        if "|" in line
    ]


def test_errors_are_of_structures_that_were_not_fitted_and_winners_apart(
    tmp_path, monkeypatch, capsys
):
    file = tmp_path / "latency.jsonl"
    record = {
        "network": "resnet20",
        "runtime": "torch",
        "batch": 64,
        "full_ms": 10.0,
        "count": 2,
        "measured": [0.5, 0.25, 0.8, 0.8, 0.4, 0.55],
        "expected": [0.55, 0.275, 0.8, 0.96, 0.5, 0.5],
        "plain": [0.75, 0.375, 0.8, 0.8, 0.5, 0.5],
        "macs": [0.25, 0.125, 0.4, 0.4, 0.2, 0.2],
        "cross_validated": 0.02,
    }
    file.write_text(json.dumps(record) + "\n")
    head, _, row = printed(latency, monkeypatch, capsys, "--out", file, "--only-table")
    told = dict(zip(head, row, strict=True))
    assert told["random, %"] == told["half the MACs, %"] == "10.0"
    assert told["worst, %"] == "20"
    assert told["by MACs, %"] == "0.0"
    assert told["without multiples, %"] == "25.0"
    assert (told["inside"], told["largest"]) == ("50%", "0.550")


def test_rows_that_are_there_are_not_measured_again(tmp_path, monkeypatch, capsys):
    file = tmp_path / "divisors.jsonl"
    record = dict.fromkeys(("choices", "inside", "of"), 3)
    record |= dict.fromkeys(("macs", "time", "fitness", "before", "after", "latency_ms"), 0.5)
    record |= {"network": "small_resnet", "divisor": 0, "seed": 1}
    file.write_text(json.dumps(record) + "\n")
    monkeypatch.setattr(divisors, "trained", None)
    wanted = ["--networks", "small_resnet", "--divisors", 0, "--seeds", 1, "--out", file]
    _, _, row = printed(divisors, monkeypatch, capsys, *wanted)
    assert row[:3] == ["small_resnet", "hardware", "1"]
    assert row[-1] == "50.00"


def test_memory_is_that_of_results_that_are_alive_at_once():
    images = torch.rand(4, 3, 8, 8)
    chain = nn.Sequential(*[nn.Softplus() for _ in range(5)])
    # What one reads and what it makes; the images are not of the pass
    assert memory.allocated(chain, images) == 2 * images.nbytes
    assert (
        memory.allocated(nn.Sequential(nn.ReLU(), nn.ReLU(inplace=True)), images) == images.nbytes
    )
