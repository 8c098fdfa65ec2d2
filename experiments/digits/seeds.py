"""Runs the digits experiment with several seeds and prints its table: mean and spread over seeds.

    python -m experiments.digits.seeds [--seeds 0 1 2 3 4] [--runs runs/digits-seeds]

Every seed is a run folder of its own, so that a stopped call continues where it was. Writes results.json beside itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from abcsearch.config import read_config
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.open_run import open_run
from abcsearch.results.report import make_report, write_report
from abcsearch.runs.config_run import run_config
from experiments.tables import machine_of

HERE = Path(__file__).parent
COLUMNS = {
    "macs": ("MACs", 1, "{:,.0f}", "{:,.0f}"),
    "params": ("params", 1, "{:,.0f}", "{:,.0f}"),
    "latency_ms": ("latency, ms", 1, "{:.2f}", "{:.2f}"),
    "fitness": ("fitness", 1, "{:.4f}", "{:.4f}"),
    "before": ("test before, %", 100, "{:.2f}", "{:.2f}"),
    "after": ("test after, %", 100, "{:.2f}", "{:.2f}"),
}


def run_seed(seed: int, runs: Path) -> dict[str, dict[str, Any]]:
    """Returns the rows of one seed's report by network."""
    folder = runs / f"seed-{seed}"
    run_config(read_config(HERE / "config.toml", [f"seed={seed}"]), folder)
    run = open_run(folder)
    finetune_run(run)
    report = make_report(run)
    write_report(report, run.folder)
    sys.stderr.write(f"seed {seed} done\n")
    return {row.network: asdict(row) for row in report.rows}


def table(rows: dict[int, dict[str, dict[str, Any]]]) -> str:
    """Returns the Markdown table: mean +- standard deviation over seeds."""
    lines = [
        "| network | " + " | ".join(title for title, *_ in COLUMNS.values()) + " |",
        "|" + " --- |" * 7,
    ]
    for network in next(iter(rows.values())):
        cells = []
        for name, (_, scale, mean, spread) in COLUMNS.items():
            values = [scale * seed[network][name] for seed in rows.values()]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(
                mean.format(statistics.mean(values))
                + (f" ± {spread.format(deviation)}" if deviation else "")
            )
        lines.append(f"| {network} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs all seeds, prints the table, writes results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs/digits-seeds"))
    arguments = parser.parse_args()
    rows = {seed: run_seed(seed, arguments.runs) for seed in arguments.seeds}
    machine, versions = machine_of(arguments.runs / f"seed-{arguments.seeds[0]}")
    result = {"machine": machine, "versions": versions, "seeds": rows}
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(f"{table(rows)}\n\n{machine}; {versions}; seeds {', '.join(map(str, rows))}\n")


if __name__ == "__main__":
    main()
