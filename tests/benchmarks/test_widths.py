"""The benchmark of widths: its networks, and a run of it."""

import pytest
import torch

from abcsearch import trace_channels
from abcsearch.models.registry import INPUT_SHAPES, MODELS
from abcsearch.models.resnet import SmallResNet
from experiments import tables
from experiments.benchmarks import widths


@pytest.fixture
def tiny(monkeypatch):
    """A network of few channels, known by name."""
    monkeypatch.setitem(MODELS, "tiny", lambda: SmallResNet(3, 10, (16, 32), (1, 1)))
    monkeypatch.setitem(INPUT_SHAPES, "tiny", (3, 8, 8))
    monkeypatch.setattr(widths, "BATCHES", (1, 2))


def test_all_networks_are_in_the_band_and_their_widths_are_multiples(tiny):
    made, macs = widths.networks("tiny", (1, 8), 3, (0.4, 0.5))
    assert macs[0] == 1
    assert all(0.4 <= share <= 0.5 for share in macs[1:])
    full, *found = [
        [m.out_channels for m in own.modules() if isinstance(m, torch.nn.Conv2d)] for own in made
    ]
    assert full[0] == 16
    assert len(found) == 6
    assert any(width % 8 for own in found[:3] for width in own)
    assert not any(width % 8 for own in found[3:] for width in own)
    full, last = (trace_channels(own, torch.zeros(1, 3, 8, 8)) for own in (made[0], made[-1]))
    one, other = (int(graph.costs.macs([graph.space(alpha=1.0).full])[0]) for graph in (full, last))
    assert other / one == pytest.approx(macs[-1])


def test_files_compute_what_networks_compute(tiny):
    made, _ = widths.networks("tiny", (8,), 1, (0.4, 0.5))
    images = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        for network, file in zip(made, tables.in_onnxruntime(made, images[:1]), strict=True):
            assert torch.allclose(network(images), file(images), atol=1e-4)


def test_it_prints_a_table(tiny, monkeypatch, capsys):
    call = [
        "widths",
        "--models",
        "tiny",
        "--divisors",
        "1",
        "8",
        "--structures",
        "2",
        "--repeats",
        "1",
    ]
    monkeypatch.setattr("sys.argv", [*call, "--macs", "0.4", "0.5"])
    widths.main()
    rows = [
        line.split("|")[1:-1]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("|")
    ]
    assert [[cell.strip() for cell in row[:2]] for row in rows[2:]] == [
        ["tiny", "1"],
        ["tiny", "8"],
    ]
    assert {len(row) for row in rows} == {7}
    monkeypatch.setattr("sys.argv", [*call, "--macs", "0.00001", "0.00002"])
    with pytest.raises(SystemExit, match=r"error: .*macs"):
        widths.main()
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "onnxscript" else name
    )
    with pytest.raises(
        SystemExit, match=r"error: forward times need onnxscript: pip install 'abcsearch\[onnx\]'"
    ):
        widths.main()
