"""What each link of a chain is worth: pruned, then factorised, int8, sparse, with a codebook.

    python -m experiments.chain.links [--config experiments/chain/digits.toml] [--run-dir runs/chain]
        [--chains low_rank_int8 deep low_rank_deep] [--epochs 10] [--set key=value ...]

One search and fine-tuning, then every chain from its winner: MACs, bytes, bit operations, accuracy with its interval,
and forward time in PyTorch and ONNX Runtime of each link, one thread, all in turns. What is there is not done again.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abcsearch import Recipe, apply_chain
from abcsearch.config import read_config
from abcsearch.errors import AbcSearchError
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.open_run import open_run
from abcsearch.runs.config_run import run_config
from experiments.processes import at_least_one
from experiments.tables import processors, versions

if TYPE_CHECKING:
    from collections.abc import Sequence

_TUNED = {"epochs": 10, "lr": 0.02}
CHAINS: dict[str, list[dict[str, Any]]] = {
    "low_rank_int8": [{"name": "low_rank", "ranks": 0.9, "finetune": _TUNED}, {"name": "quantize"}],
    "deep": [
        {"name": "sparsify", "sparsity": 0.5, "finetune": _TUNED},
        {"name": "sparsify", "sparsity": 0.8, "finetune": _TUNED},
        {
            "name": "codebook",
            "bits": 5,
            "linear_bits": 5,
            "finetune": {**_TUNED, "epochs": 5, "lr": 0.005},
        },
    ],
    "low_rank_deep": [
        {"name": "low_rank", "ranks": 0.9, "finetune": _TUNED},
        {"name": "sparsify", "sparsity": 0.6, "finetune": _TUNED},
        {
            "name": "codebook",
            "bits": 5,
            "linear_bits": 5,
            "finetune": {**_TUNED, "epochs": 5, "lr": 0.005},
        },
    ],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the chains and prints a Markdown table of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="experiments/chain/digits.toml", help="of the search")
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=Path("runs/chain"),
        help="folder of the run and of the chains",
    )
    parser.add_argument(
        "--chains", nargs="+", choices=CHAINS, default=list(CHAINS), help="which of them"
    )
    parser.add_argument(
        "--epochs", type=at_least_one, help="of each link; default: 10, of a codebook 5"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="of the config"
    )
    options = parser.parse_args(arguments)
    try:
        folder = options.run_dir / "search"
        run_config(read_config(options.config, options.set), folder)
        run = open_run(folder)
        finetune_run(run, progress=_say)
        sys.stdout.write(
            f"{processors()}; {versions('abcsearch', 'torch', 'onnxruntime', 'torchao')}\n\n"
        )
        for name in options.chains:
            _chain(run, name, options.run_dir, options.epochs)
    except AbcSearchError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _chain(run: Any, name: str, folder: Path, epochs: int | None) -> None:  # noqa: ANN401 - a run
    """Applies a chain to the winner and prints its table; its links are trained for so many epochs."""
    scores = run.scores(run.winner)
    links = [
        link
        if epochs is None or "finetune" not in link
        else {**link, "finetune": {**link["finetune"], "epochs": epochs}}
        for link in CHAINS[name]
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chain = apply_chain(
            run.network(run.winner, tuned=True),
            run.result.task.data,
            links,
            folder / name,
            constructor=run.config.model.name,
            options=run.config.model.options,
            recipe=Recipe(**scores["recipe"]),
            seed=run.config.seed,
            progress=_say,
        )
    full = run.scores(run.structures[0])
    sys.stdout.write(
        f"### {name}\n\nfull network: test {run.metric} {full['after'][run.metric]:.4f}\n\n"
    )
    head, *rows = ["| " + " | ".join(row) + " |" for row in chain.cells()]
    table = [
        head,
        "|" + " --- |" * len(chain.cells()[0]),
        *rows,
        "",
        *(f"- {line}" for line in chain.lines()),
        "",
    ]
    sys.stdout.write("\n".join(table) + "\n")


def _say(stage: str, done: int, total: int, note: str) -> None:
    """Shows how far a training is."""
    sys.stderr.write(f"{stage}: {done}/{total}, {note}\n")


if __name__ == "__main__":
    sys.exit(main())
