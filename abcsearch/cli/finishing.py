"""What follows a search: finetune, report, compare, export and evaluate."""

from __future__ import annotations

from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from abcsearch.bars import progress_shown, wait_shown
from abcsearch.cli.options import AsJson, Loss, RunDir, Set, Trust
from abcsearch.errors import quoted
from abcsearch.terminal import answering, console, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from abcsearch.execution.ray_training import RayTraining

app = typer.Typer()


class _WithRecipe(TyperCommand):
    """Says how a setting of the recipe is given, where it is given as an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - of click, which typer may bring along
        """Parses the command line."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # NoSuchOption of click, see above
            from abcsearch.training.recipe import Recipe

            name = getattr(error, "option_name", "").lstrip("-").replace("-", "_")
            if name in {"preset", *(field.name for field in fields(Recipe))}:
                vars(error)["message"] += f"; it is a setting of the recipe: --set {name}=VALUE"
                vars(error)["possibilities"] = []
            raise


@app.command(
    cls=_WithRecipe,
    epilog="Example: abcsearch finetune runs/digits --set preset=cifar --set epochs=20 --workers 4",
)
def finetune(  # noqa: PLR0913 - one argument per option
    run_dir: RunDir,
    overrides: Set = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes of Ray Train that share every batch.", show_default=False
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="ADDR", help="Train on the Ray cluster there.", show_default=False),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Only these networks, e.g. bee_colony or full; repeatable.",
            show_default=False,
        ),
    ] = None,
    trust: Trust = False,  # noqa: FBT002 - an option
    replace: Annotated[  # noqa: FBT002 - an option
        bool,
        typer.Option(
            "--replace", help="Drop what another recipe has made, instead of keeping it beside."
        ),
    ] = False,
) -> None:
    """Fine-tunes the winner and the baselines with one recipe; --set changes fields of the recipe. It continues.

    --set preset=NAME takes a recipe of `abcsearch list recipes`, with further --set as changes to it. What another
    recipe has made is kept in RUN_DIR/finetuned/recipe-*, and put back when that recipe is asked for again.
    """
    only = [name for names in only or () for name in names.split(",")]
    options = [word for word_of in overrides or () for word in ("--set", word_of)]
    options += [] if workers is None else ["--workers", str(workers)]
    options += [] if ray_address is None else ["--ray-address", ray_address]
    options += [word for word_of in only for word in ("--only", word_of)]
    options += ["--replace"] if replace else []
    with answering(run_dir, "finetune", options), progress_shown() as progress:
        from abcsearch.cli.fronts import finetune_all, print_chain
        from abcsearch.config import parse_recipe
        from abcsearch.results.finetuning import finetune_run
        from abcsearch.results.open_run import open_run
        from abcsearch.runs.front_folder import is_front

        if is_front(run_dir):
            with_log = partial(_together, workers, ray_address)
            finetune_all(
                run_dir, overrides or (), with_log, only, progress, trust=trust, replace=replace
            )
            return
        run = open_run(run_dir, trust=trust)
        recipe = parse_recipe(overrides or (), run.config.finetune)
        together = _together(workers, ray_address, run.folder.log)
        finetune_run(
            run,
            recipe,
            workers=together,
            progress=progress,
            tell=console.print,
            only=only,
            replace=replace,
        )
        for structure in run.structures:
            scores = None if only and structure.name not in only else run.scores(structure)
            if scores is not None:
                console.print(f"{structure.name}: test {run.metric} {run.change(scores)}")
        print_chain(run)
        console.print(f"next: abcsearch report {quoted(run_dir)}")


def _together(
    workers: int | None, ray_address: str | None, log: Callable[[str], object]
) -> RayTraining | None:
    """Returns who trains, where it is not this process alone."""
    if ray_address is not None and workers is None:
        from abcsearch.errors import ConfigError

        msg = f"--ray-address {ray_address} without workers: say how many, e.g. --workers 4"
        raise ConfigError(msg)
    if workers is None or (workers == 1 and ray_address is None):
        return None
    from abcsearch.execution.ray_training import RayTraining

    return RayTraining(workers=workers, address=ray_address, log=log)


@app.command(epilog="Example: abcsearch report runs/digits")
def report(
    run_dir: RunDir,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page, elsewhere; pictures and numbers go beside it.", show_default=False
        ),
    ] = None,
    trust: Trust = False,  # noqa: FBT002 - an option
    loss: Loss = None,
) -> None:
    """Writes report.html: charts, and the table full / uniform / random / winner; also of an unfinished run.

    Of several budgets: a page of all, with the curve of accuracy against MACs and time, and one of each.
    """
    with answering(run_dir, "report"), wait_shown():
        from abcsearch.cli.fronts import check_loss, report_all
        from abcsearch.runs.front_folder import is_front

        check_loss(loss, several=is_front(run_dir))
        if is_front(run_dir):
            report_all(run_dir, out, trust=trust, loss=loss)
            return
        from abcsearch.reporting.gathering import gather
        from abcsearch.reporting.headline import doubts, headline
        from abcsearch.reporting.report_page import check_place, state_of, title_of, write_page
        from abcsearch.results.following import after_report
        from abcsearch.results.report import FRONT

        check_place(run_dir, out)
        gathered = gather(run_dir, trust=trust, out=out)
        path = write_page(gathered, out)
        console.print(title_of(gathered))
        if gathered.report is not None:
            console.print(headline(gathered.report))
            print_table(*gathered.report.cells(short=True))
            for note in (*doubts(gathered.report), *gathered.report.notes):
                console.print(note)
            console.print(FRONT)
            print_table(*gathered.report.front_cells())
            if gathered.report.prepared:
                print_table(*gathered.report.prepared_cells())
        else:
            console.print(f"{state_of(gathered)} No table of networks: {gathered.missing}")
        if gathered.history.note:
            console.print(gathered.history.note)
        console.print(f"written to {path}; the pictures as PNG files to {path.with_suffix('')}")
        console.print(f"next: {after_report(run_dir)}")


@app.command(epilog="Example: abcsearch compare runs/digits runs/digits-random --out compare.html")
def compare(
    run_dirs: Annotated[
        list[Path], typer.Argument(help="Run folders.", metavar="RUN_DIR RUN_DIR ...")
    ],
    out: Annotated[Path, typer.Option(help="The page; pictures and numbers go beside it.")] = Path(
        "compare.html"
    ),
    trust: Trust = False,  # noqa: FBT002 - an option
) -> None:
    """Puts several runs side by side: best fitness over trials, fronts, widths, and a table of the winners.

    Baselines and controls that are fine-tuned stand beside the winners, over runs that differ by their seeds as means.
    """
    with answering(), wait_shown():
        from abcsearch.reporting.arm_tables import COLUMNS, terminal_tables, verdicts
        from abcsearch.reporting.compare_page import short_cells, worth, write_comparison
        from abcsearch.reporting.comparison import compare_runs
        from abcsearch.reporting.page import check_page

        check_page(out, "compare.html")
        comparison = compare_runs(run_dirs, trust=trust)
        path = write_comparison(comparison, out)
        print_table(*short_cells(comparison.winners))
        for line in worth(comparison):
            console.print(line)
        for title, cells in terminal_tables(comparison):
            console.print(title)
            print_table(*cells)
        for line in (*verdicts(comparison), *([f"{COLUMNS}."] if comparison.arms else [])):
            console.print(line)
        for warning in comparison.warnings:
            console.print(f"note: {warning}")
        console.print(f"written to {path}")


@app.command(epilog="Example: abcsearch export runs/digits --format onnx --out digits.onnx")
def export(  # noqa: PLR0913 - one argument per option
    run_dir: RunDir,
    format: Annotated[  # noqa: A002 - the option's name
        str | None,
        typer.Option(
            help="safetensors: a folder for abcsearch.load; compressed: the same in fewer bytes; onnx; pt2: for "
            "torch.export.load. By default what --out ends in, else safetensors, or what the last link needs.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Folder or file; by default in RUN_DIR/export.", show_default=False
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Another than the winner, e.g. full or uniform.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of several budgets only this one, by name or place.",
            show_default=False,
        ),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(
            metavar="LINK",
            help="Of a chain of transforms another link than the last; 0: before it.",
            show_default=False,
        ),
    ] = None,
    licence: Annotated[str, typer.Option(help="Of the weights, for the model card.")] = "unknown",
    trust: Trust = False,  # noqa: FBT002 - an option
) -> None:
    """Exports a network, fine-tuned if it has been, and checks that it loads back with the same outputs.

    Beside it lies a model card: README.md in a folder. Where the config has [[transform]], the last link is exported.

    Where the files of fine-tuning are damaged, that is an error: they are not passed over. Of several budgets, a folder
    for each is written.
    """
    with answering(run_dir, "export"), wait_shown():
        from abcsearch.cli.fronts import export_all, state_of
        from abcsearch.runs.front_folder import is_front

        if is_front(run_dir):
            chosen = {"network": network, "link": link, "licence": licence, "format": format}
            export_all(run_dir, out, chosen, budget=budget, trust=trust)
            return
        _check_budget(budget)
        from abcsearch.exporting.targets import check_target
        from abcsearch.results.exports import export_folder, export_run
        from abcsearch.results.open_run import open_run
        from abcsearch.runs.disk.folder import RunFolder

        RunFolder(run_dir).header()  # before its folder is taken for that of an export
        check_target(export_folder(run_dir, network) if out is None else out, format)
        run = open_run(run_dir, trust=trust, baselines=network == "random")
        done = export_run(run, out, format=format, network=network, link=link, licence=licence)
        console.print(f"exported to {done.made}")
        console.print(f"{state_of(done, run_dir)}; load it with: {done.made.how_to_load}")
        for line in done.feeding:
            console.print(line)
        console.print(f"model card: {done.card}")
        console.print(f"next: abcsearch evaluate {quoted(done.made.path)}")


def _check_budget(budget: str | None) -> None:
    """Raises ConfigError if a budget is named where there is one."""
    if budget is not None:
        from abcsearch.errors import ConfigError

        msg = (
            f"--budget {budget} chooses one of several budgets; this is a run of one: leave it out"
        )
        raise ConfigError(msg)


@app.command(epilog="Example: abcsearch evaluate digits.onnx --data runs/digits")
def evaluate(  # noqa: PLR0913 - one argument per option
    model: Annotated[
        Path,
        typer.Argument(
            help="What export wrote: a folder, an .onnx or a .pt2 file; with --config a checkpoint of your own.",
            metavar="MODEL",
            show_default=False,
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG",
            help="MODEL has weights of its network, for its data.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG|RUN_DIR|NAME",
            help="Its data; by default those of its run.",
            show_default=False,
        ),
    ] = None,
    overrides: Set = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per pass when time is measured.")] = 64,
    split: Annotated[str, typer.Option(help="test or validation (that of the search).")] = "test",
    device: Annotated[
        str, typer.Option(help="cpu, cuda, or auto; .onnx and .pt2 run on the CPU.")
    ] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU when time is measured.")] = 1,
    trust: Trust = False,  # noqa: FBT002 - an option
    as_json: AsJson = False,  # noqa: FBT002 - an option
) -> None:
    """Prints metrics on the test images, forward time and size of an export; --set changes options of --data.

    With --config CONFIG, those of a checkpoint of your own: weights that CONFIG's network is to be searched with.
    """
    with answering(), wait_shown():
        from abcsearch.asked import read_data
        from abcsearch.config import read_config
        from abcsearch.errors import ConfigError
        from abcsearch.results.evaluating import (
            EvaluationOptions,
            evaluate_checkpoint,
            evaluate_export,
        )

        options = EvaluationOptions(batch=batch, split=split, device=device, threads=threads)
        if config is not None and data is not None:
            msg = "--config says network and data, --data those of an export: leave one of them out"
            raise ConfigError(msg)
        if config is not None:
            evaluated = evaluate_checkpoint(model, read_config(config, overrides or ()), options)
        else:
            evaluated = evaluate_export(
                model, read_data(data, overrides or (), trust=trust), options, trust=trust
            )
        if as_json:
            print_json(asdict(evaluated))
            return
        for line in evaluated.lines():
            console.print(line)
