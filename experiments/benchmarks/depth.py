"""What every command takes with networks of very many layers, and whether it works at all.

    python -m experiments.benchmarks.depth --layers 500 2000

The network is one stage of residual blocks of two 3x3 convolutions of 8 channels each, on scikit-learn's digits. It is
searched for a few trials, fine-tuned, reported and exported, each by the command, in a process of its own. Prints a
table of processor seconds; exit status 1 if a command fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from experiments.tables import processors, versions

CONFIG = """
n_trials = 4
baselines = ["uniform", "random"]
model = {{name = "small_resnet", widths = [8], depths = [{blocks}]}}
data = {{name = "digits"}}
pretrain = {{epochs = 1, batch_size = 128}}
budget = {{macs = 0.5}}
searcher = {{name = "bee_colony", n_sources = 2}}
evaluator = {{name = "adaptive_bn", calibration_images = 16, batch_size = 16}}
finetune = {{epochs = 1, batch_size = 128, lr = 0.001}}
"""
COMMANDS = (
    "inspect config.toml",
    "search config.toml --dry-run",
    "search config.toml --run-dir run",
    "status run",
    "finetune run --only bee_colony",
    "report run",
    "export run",
    "evaluate run/export",
)


def measured(folder: Path, command: str) -> tuple[int, float, float]:
    """Returns exit status, processor seconds and the largest memory in GB of a command in a folder."""
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        quiet = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os.execv(sys.executable, [sys.executable, "-m", "abcsearch", *command.split()])
    _, status, usage = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


def main() -> int:
    """Measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="What every command takes with networks of very many layers."
    )
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[500, 2000], help="convolutions of the networks"
    )
    layers = parser.parse_args().layers
    sys.stdout.write(f"{processors()}, {versions('torch')}; processor seconds (memory, GB)\n\n")
    cells = {command: [] for command in COMMANDS}
    failed = False
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    for count in layers:
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "config.toml").write_text(CONFIG.format(blocks=count // 2))
            for command in COMMANDS:
                status, seconds, memory = measured(Path(name), command)
                failed = failed or status != 0
                cells[command].append(
                    f"{seconds:.0f} ({memory:.1f})" if status == 0 else f"exit status {status}"
                )
                sys.stderr.write(f"{count} layers, {command}: {cells[command][-1]}\n")
    rows = [["command", *(f"{count} layers" for count in layers)], ["---"] * (len(layers) + 1)]
    rows += [[f"`{command}`", *texts] for command, texts in cells.items()]
    sys.stdout.writelines(f"| {' | '.join(row)} |\n" for row in rows)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
