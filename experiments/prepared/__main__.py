"""Does training before the search pay, and by which recipe? Slimmable networks of several recipes, at equal epochs.

    python -m experiments.prepared digits [--budgets 0.3] [--seeds 0 1 2 3 4] [--only RECIPE ...] [--set key=value ...]
        [--runs runs/prepared] [--results experiments/prepared]
    python -m experiments.prepared digits --redraw   # the table again, from the file of results
    python -m experiments.prepared --list

A row is one of `experiments.survey`, whose configs and columns these are: a preparation, a search in what it has
trained, and the winner's fine-tuning. Recipes differ in learning rate, in the share of epochs that are spent before
the search, in the widths that are drawn, in the networks of a step, and in what ranks channels. What is in NETWORK.json
is not run again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abcsearch.errors import AbcSearchError, ConfigError, unknown_name
from experiments.survey import __main__ as survey
from experiments.survey.measuring import Job
from experiments.survey.methods import KINDS, Method
from experiments.survey.results import Results, decided
from experiments.tables import cell, into_page

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
PLAIN = "as it is, no preparation"
_SEARCH = ("prepare=slimmable", "searcher=response_surface")
_HEAD = ("recipe", "seeds", "epochs", "before, %", "after, %", "- no preparation", "training")


@dataclass(frozen=True)
class Recipe(Method):
    """A preparation that gets another share of the epochs.

    Attributes:
        share: of all epochs, those before the search.
    """

    share: float = 0.5

    def plain(self, file: Path, given: Sequence[str] = ()) -> dict[str, Any]:
        """Returns the settings of its run, as of the base class."""
        plain = super().plain(file, given)
        if "prepare" in plain:
            before, after = plain["prepare"]["recipe"], plain["finetune"]
            total = before["epochs"] + after["epochs"]
            before["epochs"] = round(self.share * total)
            after["epochs"] = total - before["epochs"]
            if min(before["epochs"], after["epochs"]) < 1:
                msg = f"{self.name}: of {total} epochs none is left before or after the search: raise finetune.epochs"
                raise ConfigError(msg)
        return plain


def _recipe(name: str, *changes: str, share: float = 0.5) -> Recipe:
    return Recipe(name, KINDS[4], (*_SEARCH, *changes), share=share)


RECIPES: dict[str, Method] = {
    method.name: method
    for method in (
        Recipe(PLAIN, KINDS[3], ("searcher=response_surface",)),
        _recipe("slimmable, the survey's"),
        _recipe("a quarter of the epochs", share=0.25),
        _recipe("three quarters of the epochs", share=0.75),
        _recipe("lr / 4", "prepare.recipe.lr=0.005"),
        _recipe("lr * 2.5", "prepare.recipe.lr=0.05"),
        _recipe("lr * 5", "prepare.recipe.lr=0.1"),
        _recipe("any widths", "prepare.widths=free"),
        _recipe("three networks a step", "prepare.networks=3"),
        _recipe("labels, no distillation", "prepare.distil=false"),
        _recipe("ranked by reader_l2", "criterion=reader_l2"),
        _recipe(
            "ranked by reader_l2, repaired", "criterion=reader_l2", "evaluator.repair=one_shot"
        ),
    )
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=survey.NETWORKS, nargs="?", default="digits")
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[0.3], help="shares of the MACs"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", metavar="RECIPE", help="names; default: all")
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="of the config, for all"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/prepared"))
    parser.add_argument("--results", type=Path, default=HERE, help="folder of results and table")
    parser.add_argument("--redraw", action="store_true", help="only the table of what is there")
    parser.add_argument("--list", action="store_true", help="names the recipes")
    return parser.parse_args()


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the table of a budget, or of several, in Markdown: means and standard deviations over seeds."""
    lines: list[str] = []
    for budget in sorted({row["budget"] for row in rows}, reverse=True):
        lines += ["", f"**{budget:.0%} of the MACs**", "", f"| {' | '.join(_HEAD)} |"]
        lines.append("|" + " --- |" * len(_HEAD))
        there = [row for row in rows if row["budget"] == budget]
        plain = {row["seed"]: row["after"] for row in there if row["method"] == PLAIN}
        for name in (name for name in RECIPES if any(row["method"] == name for row in there)):
            many = [row for row in there if row["method"] == name]
            lines.append(f"| {' | '.join([name, *_cells(many, plain)])} |")
    return "\n".join(lines).strip("\n")


def _cells(many: list[dict[str, Any]], plain: dict[int, float]) -> list[str]:
    """Returns the cells of a recipe, or why it did not run."""
    whole = [row for row in many if "skipped" not in row]
    if not whole:
        return ["0", many[0]["skipped"], *[""] * (len(_HEAD) - 3)]
    ahead = [100 * (row["after"] - plain[row["seed"]]) for row in whole if row["seed"] in plain]
    return [
        str(len(whole)),
        " + ".join(map(str, whole[0]["epochs"])),
        cell([100 * row["before"] for row in whole], 1),
        cell([100 * row["after"] for row in whole], 1),
        cell(ahead, 1) if ahead and whole[0]["method"] != PLAIN else "",
        f"{cell([row['training'] for row in whole], 0).partition(' ')[0]}",
    ]


def _measure(arguments: argparse.Namespace, results: Results) -> None:
    """Runs what is missing."""
    file = survey.HERE / f"{arguments.network}.toml"
    results.begin(decided(file, arguments.set))
    names = arguments.only or list(RECIPES)
    for name in names:
        if name not in RECIPES:
            raise ConfigError(unknown_name("recipe", name, RECIPES))
    jobs = [
        Job(file, RECIPES[name], budget, seed, tuple(arguments.set), arguments.runs)
        for seed in arguments.seeds
        for budget in arguments.budgets
        for name in names
    ]
    survey.run_missing(results, jobs)


def main() -> None:
    """Makes what is missing, then the table."""
    arguments = _arguments()
    if arguments.list:
        sys.stdout.writelines(f"{name}: {' '.join(m.changes)}\n" for name, m in RECIPES.items())
        return
    try:
        results = Results(arguments.results / f"{arguments.network}.json")
        if not arguments.redraw:
            _measure(arguments, results)
        if not results.rows:
            msg = f"{results.file} has no rows yet; without --redraw they are made"
            raise ConfigError(msg)
        text = table(results.rows)
        into_page(arguments.results / "README.md", arguments.network, text)
        sys.stdout.write(f"{text}\n")
    except AbcSearchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
