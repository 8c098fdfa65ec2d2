"""What was found of the full network before a search: the record that the run folder keeps, and its words."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from abcsearch.errors import RunError, plural
from abcsearch.records import problems
from abcsearch.runs.disk.lines import run_id
from abcsearch.training.named import metric_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from abcsearch.runs.disk.folder import RunFolder

FILE = "setup.json"


@dataclass(frozen=True, kw_only=True)
class SetUp:
    """How the full network does on its data before anything is searched.

    Scores are of the metric that reports show, in evaluation mode, on the same search-validation images.

    Attributes:
        metric: the metric.
        images: how many search-validation images were scored, and as many training images at most.
        loaded: score with the weights as they were loaded; None where they are not there yet.
        calibrated: the same with statistics of normalisations taken anew; None where there are none.
        training: score as loaded on unaugmented training images.
        chance: score of the best constant answer, of super-resolution that of bicubic interpolation; None where the
            objective has none.
        outputs: of the network, of a classification or segmentation.
        classes: of the data, likewise.
        mean: of the inputs, per channel, over training images.
        std: likewise.
        full: fitness of the full network by the run's evaluator; None where that is not cheap.
        uniform: likewise, of uniform widths inside the budget.
        warnings: what looks wrong, with what to check.
        notes: what cannot be told from these images.
    """

    metric: str
    images: int
    loaded: float | None = None
    calibrated: float | None = None
    training: float | None = None
    chance: float | None = None
    outputs: int | None = None
    classes: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    full: float | None = None
    uniform: float | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The scores in words."""
        if self.loaded is None:
            return "trained first, then scored"
        texts = [f"{metric_text(self.metric, self.loaded)} as loaded"]
        if self.calibrated is not None:
            texts.append(f"{metric_text(self.metric, self.calibrated)} calibrated")
        if self.chance is not None:
            texts.append(f"{chance_name(self.metric)} {metric_text(self.metric, self.chance)}")
        seen = (
            ""
            if self.training is None
            else f"; {metric_text(self.metric, self.training)} on training images"
        )
        return f"{self.metric} {', '.join(texts)} ({plural(self.images, 'search-validation image')}{seen})"

    @property
    def lines(self) -> tuple[str, ...]:
        """The scores, warnings and notes, a line each."""
        warned = (f"warning: {text}" for text in self.warnings)
        return (f"full network: {self.words}", *warned, *(f"note: {text}" for text in self.notes))

    @property
    def against(self) -> str:
        """The fitness that the best one is seen against, in a few words; "" without any."""
        known = {"full": self.full, "uniform": self.uniform}
        return ", ".join(
            f"{name} {value:.4f}" for name, value in known.items() if value is not None
        )


def chance_name(metric: str) -> str:
    """Returns what a network has to be better than, in words."""
    return "bicubic interpolation" if metric == "psnr" else "chance"


def write_setup(folder: RunFolder, setup: SetUp) -> None:
    """Keeps what was found in the run folder."""
    folder.write_json(FILE, {"id": run_id(folder.path), **asdict(setup)})


def read_setup(folder: RunFolder) -> SetUp | None:
    """Returns what was found before a run's search; None where nothing is kept, or it is another run's.

    Warns:
        UserWarning: if the file is damaged.
    """
    try:
        plain: Any = folder.read_json(FILE)
        if not isinstance(plain, dict) or plain.pop("id", None) != run_id(folder.path):
            return None
        return _record(plain)
    except (RunError, OSError, TypeError, ValueError):
        path = folder.path / FILE
        msg = f"{path} is damaged, what was found of the full network is left out; nothing else needs it: delete it"
        warnings.warn(msg, UserWarning, stacklevel=2)
        return None


def _record(plain: dict[str, Any]) -> SetUp:
    """Returns the record of plain values.

    Raises:
        ValueError, TypeError: if a value is of another kind.
    """
    lists: dict[str, Callable[[Any], Any]] = {
        "mean": float,
        "std": float,
        "warnings": str,
        "notes": str,
    }
    values: dict[str, Any] = dict(plain)
    for key, kind in lists.items():
        values[key] = tuple(map(kind, plain.get(key, ())))
    setup = SetUp(**{one.name: values[one.name] for one in fields(SetUp) if one.name in values})
    wrong = problems(setup)
    scores = (
        setup.loaded,
        setup.calibrated,
        setup.training,
        setup.chance,
        setup.full,
        setup.uniform,
    )
    if wrong or any(isinstance(score, str) or math.isinf(score or 0) for score in scores):
        raise ValueError("; ".join(wrong))
    return setup
