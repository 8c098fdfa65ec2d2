"""The trained network of a configured run: from a checkpoint, or trained first, and kept in the folder."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING

from abcsearch.errors import CheckpointError, plural, quoted
from abcsearch.files import Anchor, replace_file
from abcsearch.formats import first_line
from abcsearch.runs.disk.early import early_path
from abcsearch.runs.disk.missing import AGAIN
from abcsearch.runs.disk.weights import checkpoint_path, load_checkpoint, weights_writer
from abcsearch.runs.progress import Progress, silent
from abcsearch.steps import doing
from abcsearch.training.loop import train
from abcsearch.training.recipe import identity_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from abcsearch.data.splits import Data
    from abcsearch.runs.settings import RunConfig


def train_base(
    config: RunConfig, file: Path, model: nn.Module, data: Data, progress: Progress = silent
) -> None:
    """Gives the network its trained weights: from a file, or as they are (a checkpoint's), or by training it now.

    Args:
        config: the run.
        file: of the weights, .safetensors; written if missing. A training that was stopped goes on from beside it.
        model: the config's network, changed in place.
        data: the config's.
        progress: of the training.

    Raises:
        AbcSearchError: of the kind that fits, as `train`.
    """
    early = early_path(file.parent, config.rewind)
    if not file.exists():
        anchor = Anchor.of(file.parent)
        if config.pretrain is not None:
            doing(f"training the base network, {plural(config.pretrain.epochs, 'epoch')}")

            def on_epoch(done: int, total: int, loss: float) -> None:
                if early is not None and done == config.rewind:
                    replace_file(early, weights_writer(model))
                progress("base network", done, total, f"loss {loss:.4f}")

            facts = (
                identity_of(config.pretrain),
                asdict(config.model),
                asdict(config.data),
                config.seed,
            )
            train(
                model,
                data.train,
                config.pretrain,
                seed=config.seed,
                stream="pretrain",
                objective=data.objective,
                on_epoch=on_epoch,
                validation=data.validation if config.pretrain.keep == "best" else None,
                checkpoint=checkpoint_path(file.with_suffix(""), *facts),
            )
        anchor.check()
        replace_file(file, weights_writer(model))
        # Also of settings that it has not become
        for done in file.parent.glob(f"{file.stem}-*.checkpoint"):
            done.unlink()
    # A kill came between, or it was not asked for then
    if early is not None and not early.exists():
        _train_early(config, early, data)
    load_base(model, file)
    model.eval()


class _EnoughError(Exception):
    """Ends a training after some epochs: its schedule is that of all of them."""


def _train_early(config: RunConfig, file: Path, data: Data) -> None:
    """Trains the network once more until the epoch that `rewind` names, and writes its weights: the same ones."""
    doing(
        f"training the base network once more, {plural(config.rewind, 'epoch')}, for its early weights"
    )
    model = config.space.plain(config.model.build(config.seed))

    def on_epoch(done: int, total: int, loss: float) -> None:
        del total, loss
        if done == config.rewind:
            raise _EnoughError

    assert config.pretrain is not None
    with contextlib.suppress(_EnoughError):
        train(
            model,
            data.train,
            config.pretrain,
            seed=config.seed,
            stream="pretrain",
            objective=data.objective,
            on_epoch=on_epoch,
            validation=data.validation if config.pretrain.keep == "best" else None,
        )
    replace_file(file, weights_writer(model))


def load_base(model: nn.Module, file: Path) -> None:
    """Loads the weights of a run's network, which the run can make again.

    Raises:
        CheckpointError: if the file is missing, damaged, or does not fit the network.
    """
    try:
        load_checkpoint(model, file)
    except CheckpointError as error:
        again = f"{AGAIN} abcsearch resume {quoted(file.parent)}"
        if not file.exists():
            msg = f"{file}, the weights of the trained network, is missing; {again}"
        elif error.__cause__ is None:
            msg = f"{error}; restore {file.name} from a copy, or delete it: {again}"
        else:
            reason = first_line(error.__cause__).removeprefix("damaged: ")
            msg = f"{file} is damaged: {reason}; restore it from a copy, or delete it: {again}"
        raise CheckpointError(msg) from error
