"""What networks with norms over channels keep when channels go: at once, repaired, and after short training.

    python -m experiments.benchmarks.norms [--structures 6] [--macs 0.9 0.5] [--epochs 1 3]

A network like ConvNeXt and one like ViT are trained on scikit-learn's digits; random structures of a share of the MACs
are evaluated in several ways, the same ones each time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

from abcsearch import Budget, Data, Recipe, SpaceOptions, score, search, train
from experiments.tables import cell

WIDTH, HEADS, TOKENS = 48, 6, 16


class Last(nn.Module):
    """A layer norm over the channels of images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Takes (batch, channels, height, width)."""
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class ConvBlock(nn.Module):
    """A block of ConvNeXt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), Last(width)
        self.mlp = nn.Sequential(
            nn.Conv2d(width, 3 * width, 1), nn.GELU(), nn.Conv2d(3 * width, width, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Takes (batch, width, height, width)."""
        return x + self.mlp(self.norm(self.depthwise(x)))


def convnext() -> nn.Module:
    """Returns a network like ConvNeXt for images of 8 x 8."""
    stem = [
        nn.Conv2d(1, WIDTH // 2, 3, padding=1),
        Last(WIDTH // 2),
        ConvBlock(WIDTH // 2),
        ConvBlock(WIDTH // 2),
    ]
    down = [
        Last(WIDTH // 2),
        nn.Conv2d(WIDTH // 2, WIDTH, 2, 2),
        ConvBlock(WIDTH),
        ConvBlock(WIDTH),
    ]
    return nn.Sequential(
        *stem,
        *down,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(WIDTH),
        nn.Linear(WIDTH, 10),
    )


class TokenBlock(nn.Module):
    """A block of ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 3 * WIDTH), nn.GELU(), nn.Linear(3 * WIDTH, WIDTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Takes (batch, tokens, width)."""
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.behind(x))


class Transformer(nn.Module):
    """A network like ViT for images of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.places = (
            nn.Conv2d(1, WIDTH, 2, 2),
            nn.Parameter(0.02 * torch.randn(1, TOKENS, WIDTH)),
        )
        self.blocks = nn.Sequential(*[TokenBlock() for _ in range(3)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Takes (batch, 1, 8, 8)."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(x)).mean(1))


NETWORKS = {"like ConvNeXt": convnext, "like ViT": Transformer}


def digits() -> Data:
    """Returns scikit-learn's digits."""
    bunch: Any = load_digits()
    images, labels = (
        torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16,
        torch.tensor(bunch.target),
    )
    return Data.from_tensors(
        (images[:1400], labels[:1400]), (images[1400:], labels[1400:]), validation=0.25
    )


def main() -> None:
    """Prints a table: a row per network and share of the MACs, fitness of random structures in every way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--structures", type=int, default=6)
    parser.add_argument("--macs", type=float, nargs="+", default=[0.9, 0.5])
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3])
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = digits()
    ways: dict[str, dict[str, object]] = {
        "sliced": {"name": "adaptive_bn", "repair": "none"},
        "repaired": {"name": "adaptive_bn", "repair": "one_shot"},
        "repaired in turn": {"name": "adaptive_bn", "repair": "sequential"},
        **{
            f"{n} epochs": {"name": "short_training", "epochs": n, "lr": 0.02} for n in given.epochs
        },
    }
    sys.stdout.write(
        f"| network | MACs | full | {' | '.join(ways)} |\n|{' --- |' * (3 + len(ways))}\n"
    )
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        model = make()
        train(model, data.train, Recipe(epochs=20, lr=0.003, optimizer="adamw", batch_size=64))
        full = score(model, data.validation)["top1"]
        for macs in given.macs:
            cells: list[str] = []
            for way in ways.values():
                with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = search(
                        model,
                        data,
                        budget=Budget(macs=(macs - 0.05, macs)),
                        n_trials=given.structures,
                        searcher="random",
                        evaluator=way,
                        space=SpaceOptions(alpha=1.0, step=0.05, lowest=0.25),
                        run_dir=Path(folder) / "run",
                    )
                cells.append(
                    cell(fits := [trial.fitness for trial in result.trials], 3)
                    + f", best {max(fits):.3f}"
                )
            sys.stdout.write(f"| {name} | {macs:.0%} | {full:.3f} | {' | '.join(cells)} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
