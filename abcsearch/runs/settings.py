"""What a run is: frozen records, and the same as plain JSON values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from abcsearch.baselines.registry import BASELINES
from abcsearch.budget import Budget
from abcsearch.channels.named import names_of
from abcsearch.channels.options import LatencyOptions, SpaceOptions
from abcsearch.errors import AbcSearchError, ConfigError, RunError
from abcsearch.evaluation.options import BEFORE, ScoringOptions, completed
from abcsearch.evaluation.registry import EVALUATORS
from abcsearch.execution.options import ExecutionOptions
from abcsearch.exporting.plan import read_sizes, with_sizes
from abcsearch.exporting.plan_files import export_files
from abcsearch.models.registry import Constructor
from abcsearch.records import check_value, names, problems, setting
from abcsearch.searchers.registry import is_diagnosed, with_former
from abcsearch.training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

S = TypeVar("S", bound="SearchSettings")


def _plain(value: Any) -> Any:  # noqa: ANN401 - an option
    """Returns an option with numpy's numbers and arrays as plain numbers and lists."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


@dataclass(frozen=True, kw_only=True)
class Part:
    """An interchangeable part by name, with its options.

    Attributes:
        name: a registered name.
        options: plain JSON values; numpy's numbers become such.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        """Makes numbers plain."""
        if not isinstance(self.name, str) or not isinstance(self.options, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"a part is a name and a table of options, found {self.name!r:.80} and {self.options!r:.80}"
            raise ConfigError(msg)
        object.__setattr__(self, "options", _plain(self.options))

    @classmethod
    def of(cls, value: str | Mapping[str, Any]) -> Part:
        """Returns the part for "name" or {"name": "name", "option": value, ...}.

        Raises:
            ConfigError: if the mapping has no name.
        """
        if isinstance(value, str):
            return cls(name=value)
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f'a part is "name" or {{"name": "name", "option": value}}, found {value!r}'
            raise ConfigError(msg)
        return cls(
            name=value["name"], options={key: v for key, v in value.items() if key != "name"}
        )

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that the options of a registered evaluator name, also those of the stages of a cascade.

        What another evaluator calls a device may be what it measures.
        """
        record = EVALUATORS[self.name].options if self.name in EVALUATORS else None
        if record is None or not (issubclass(record, ScoringOptions) or hasattr(record, "STAGES")):
            return ()
        tables = [
            self.options,
            *(value for value in self.options.values() if isinstance(value, Mapping)),
        ]
        return tuple(table["device"] for table in tables if "device" in table)

    def completed(self, usual: Mapping[str, Any]) -> Part:
        """Returns the part with options of a registered evaluator that its options do not say: see `BEFORE`."""
        record = EVALUATORS[self.name].options if self.name in EVALUATORS else None
        return replace(self, options=completed(record, self.options, usual))

    def searching(self, *, former: bool) -> Part:
        """Returns the part with options that say whether a searcher is that of an earlier version (`with_former`)."""
        return replace(self, options=with_former(self.name, self.options, former=former))

    def on(self, device: str | None) -> Part:
        """Returns the part with another device wherever its options name one; None: without."""
        return replace(self, options=_on(self.options, device)) if self.devices else self


def _on(options: Mapping[str, Any], device: str | None) -> dict[str, Any]:
    """Returns options with another device, or without one, wherever they name one."""
    changed = {
        name: _on(value, device) if isinstance(value, Mapping) else value
        for name, value in options.items()
    }
    if changed.pop("device", None) is not None and device is not None:
        changed["device"] = device
    return changed


_OF_PYTHON = {
    "budget": (Budget, "a Budget, e.g. Budget(macs=0.5)"),
    "space": (SpaceOptions, 'a SpaceOptions, e.g. SpaceOptions(levels=("filter",))'),
    "latency": (LatencyOptions, 'a LatencyOptions, e.g. LatencyOptions(runtime="onnxruntime")'),
    "execution": (ExecutionOptions, "an ExecutionOptions, e.g. ExecutionOptions(workers=4)"),
}


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What decides the trials of a search.

    Attributes:
        budget: how small the network must get.
        n_trials: structures to evaluate, at least 1.
        searcher: who proposes.
        evaluator: what fitness is.
        space: which widths there are.
        criterion: by which channels are kept; several: every layer chooses between them.
        latency: how forward time is measured where the budget bounds it.
        seed: of everything random.
        max_failures: more failed evaluations than this in a row stop the run.
        execution: where evaluations run, and when the searcher hears of them.
        prepare: what is trained before the search; None: nothing.
        known: folders of other runs of the same network, data, space, criterion and evaluator: what these found, the
            searcher is told before it begins. Relative ones are seen from the run folder.

    Raises:
        ConfigError: if n_trials or max_failures is out of range, or the searcher is to propose what it is given, and
            is given nothing; if known is no list of folders.
    """

    budget: Budget = setting(compared=True)
    n_trials: int = setting(at_least=1, decides=False)
    searcher: Part = Part(name="response_surface")
    evaluator: Part = setting(Part(name="adaptive_bn"), compared=True)
    space: SpaceOptions = setting(make=SpaceOptions, compared=True)
    criterion: tuple[str, ...] | str = setting("reader_l2", compared=True)
    latency: LatencyOptions = setting(make=LatencyOptions, compared=True)
    seed: int = setting(0, at_least=0)
    max_failures: int = setting(10, at_least=0, decides=False)
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)
    prepare: Part | None = setting(None, compared=True)
    known: tuple[str, ...] = ()

    @property
    def criteria(self) -> tuple[str, ...]:
        """The names of the criteria that every layer chooses from; one where there is no choice."""
        return (self.criterion,) if isinstance(self.criterion, str) else self.criterion

    def __post_init__(self) -> None:
        """Checks the numbers, and makes known a tuple of names."""
        object.__setattr__(self, "known", names_of_runs(self.known))
        for name, (kind, wanted) in _OF_PYTHON.items():
            if not isinstance(getattr(self, name), kind):
                msg = f"{name} is {wanted}, found {getattr(self, name)!r:.200}"
                raise ConfigError(msg)
        for name in ("n_trials", "max_failures", "seed"):
            check_value(SearchSettings, name, getattr(self, name))
        listed: Any = [self.criterion] if isinstance(self.criterion, str) else self.criterion
        if not isinstance(listed, list | tuple) or not all(
            isinstance(name, str) for name in listed
        ):
            msg = f"criterion is a name, or a list of names, found {self.criterion!r:.80}"
            raise ConfigError(msg)
        object.__setattr__(self, "criterion", names_of(self.criterion))
        # Recorded, so that a run which does not say has been made before there was such an option.
        usual = {name: getattr(ScoringOptions, name) for name in BEFORE}
        object.__setattr__(self, "evaluator", self.evaluator.completed(usual))
        # Likewise: a run which does not say has been made before the searcher was what it is.
        object.__setattr__(self, "searcher", self.searcher.searching(former=False))
        if (
            self.searcher.name == "given"
            and self.prepare is None
            and not self.searcher.options.get("initial")
        ):
            msg = "searcher 'given' proposes what it is given, and is given nothing: set searcher.initial, or [prepare]"
            raise ConfigError(msg)
        check_diagnosed(self.searcher, self.evaluator)
        if self.space.ranks:
            check_ranked(self)


def check_ranked(settings: SearchSettings) -> None:
    """Raises ConfigError for what cannot be together with searched ranks."""
    tables = [settings.evaluator.options, *settings.evaluator.options.values()]
    measured = any(isinstance(table, Mapping) and table.get("utilisation") for table in tables)
    reasons = {
        "a preparation ([prepare], [iterate])": (
            settings.prepare is not None,
            "prepares widths and says nothing of ranks: leave one of them out",
        ),
        "a budget of latency_ms": (
            settings.budget.latency_ms is not None,
            "knows the forward time of whole layers only: bound macs, which are counted exactly",
        ),
        "evaluator.utilisation": (
            measured,
            "looks at the channels of whole layers: leave it out, and take another searcher than network_adjustment",
        ),
    }
    for what, (there, reason) in reasons.items():
        if there:
            msg = f"ranks = true in [space] searches ranks with widths, and {what} {reason}"
            raise ConfigError(msg)


NO_LATENCY = (
    "space.hardware = true offers the widths that are fast where the network will run, and nothing says where: set "
    'runtime, threads and batch in [latency], e.g. runtime = "onnxruntime" (from Python: latency=LatencyOptions(...))'
)


def check_diagnosed(searcher: Part, evaluator: Part) -> None:
    """Raises ConfigError if a searcher learns from the diagnostics of evaluations, and one of ours makes none."""
    if not is_diagnosed(searcher.name) or evaluator.name not in EVALUATORS.homes:
        return
    tables = [
        evaluator.options,
        *(value for value in evaluator.options.values() if isinstance(value, Mapping)),
    ]
    if not any(table.get("utilisation") for table in tables):
        where = "evaluator.short_training" if evaluator.name == "cascade" else "evaluator"
        msg = f"searcher {searcher.name!r} learns from what evaluations say of every layer, and {evaluator.name!r} says "
        msg += f"nothing: set {where}.utilisation = 5, passes over search-validation for each"
        raise ConfigError(msg)


def names_of_runs(known: Any) -> tuple[str, ...]:  # noqa: ANN401 - whatever it was given
    """Returns the names of known runs, each once; raises ConfigError for anything else than texts that name one."""
    listed = [known] if isinstance(known, str) else known
    if isinstance(listed, list | tuple) and all(isinstance(name, str) and name for name in listed):
        return tuple(dict.fromkeys(listed))
    msg = f'known is a list of run folders, e.g. ["runs/other"], found {known!r:.80}'
    raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Constructor):
    """The network of a configured run.

    Attributes:
        checkpoint: trained weights: a .safetensors file, or a file of torch.save with a state dict (also under
            "state_dict" or "model", also with the prefix "module."). Without it the run trains the network first.
        sizes: in what the network differs from the one that the constructor builds, where the run starts from an
            export (see `with_sizes`); its weights are the checkpoint.
    """

    checkpoint: str | None = None
    sizes: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Checks the kinds of values, which may come out of a file."""
        kinds = {"name": str, "options": Mapping, "checkpoint": str | None, "sizes": Mapping | None}
        wrong = {
            name: getattr(self, name)
            for name, kind in kinds.items()
            if not isinstance(getattr(self, name), kind)
        }
        if wrong:
            msg = f"a model is a name, a table of options, and a checkpoint or none, found {wrong!r:.200}"
            raise ConfigError(msg)

    @classmethod
    def of_export(cls, folder: Path, *, trust: bool = False) -> ModelSettings:
        """Returns the network of an export, to be pruned again.

        Args:
            folder: of the export.
            trust: whether its constructor is taken at its word although it comes from elsewhere.

        Raises:
            ExportError: if there is none, or it is damaged.
            ModelError: if it is from elsewhere and its constructor is not one that such a file may name.
        """
        record, sizes = read_sizes(folder, trust=trust)
        weights = str(export_files(folder)[1])
        return cls(name=record.name, options=record.options, checkpoint=weights, sizes=sizes)

    def build(self, seed: int = 0, make: Callable[..., nn.Module] | None = None) -> nn.Module:
        """Returns a new network without trained weights; see `Constructor.build`.

        Raises:
            ModelError: see `Constructor.build`.
            ExportError: if the run starts from an export and the constructor has changed since.
        """
        if self.sizes is None:
            return super().build(seed, make)
        return with_sizes(super().build(seed, make), self.sizes, f"model {self.name!r}")


@dataclass(frozen=True, kw_only=True)
class RunConfig(SearchSettings):
    """A whole run from a config file: search, fine-tuning, export.

    Attributes:
        model: the network.
        data: the data set.
        pretrain: how the network is trained first, where there is no checkpoint.
        finetune: how the winner and the baselines are fine-tuned.
        baselines: what the winner is compared with, of `BASELINES` or by import path.
        transform: what is done to the fine-tuned winner, of `TRANSFORMS` or by import path, in this order.
        rewind: the epoch of pre-training whose weights the baseline `rewound` begins with; 0: those before it.

    Raises:
        ConfigError: if there is neither a checkpoint nor a recipe for pre-training, or a baseline is unknown.
    """

    model: ModelSettings = setting(compared=True)
    data: Part = setting(compared=True)
    pretrain: Recipe | None = setting(None, compared=True)
    finetune: Recipe = setting(make=lambda: Recipe(lr=0.02), decides=False)
    baselines: tuple[str, ...] = setting(("uniform",), decides=False)
    transform: tuple[Part, ...] = setting((), decides=False)
    rewind: int = setting(0, at_least=0, decides=False)

    def __post_init__(self) -> None:
        """Checks that there will be a trained network."""
        super().__post_init__()
        object.__setattr__(self, "transform", _parts("transform", self.transform))
        if isinstance(self.baselines, str) or not all(isinstance(b, str) for b in self.baselines):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"baselines are a list of names, found {self.baselines!r:.80}"
            raise ConfigError(msg)
        for baseline in self.baselines:
            if baseline not in BASELINES and ":" not in baseline:
                raise ConfigError(BASELINES.unknown(baseline))
        # A random search is its own random baseline; files of older versions may name one twice.
        others = tuple(b for b in dict.fromkeys(self.baselines) if b != self.searcher.name)
        object.__setattr__(self, "baselines", others)
        check_base(self.model, self.pretrain)
        check_rewind(self.rewind, self.pretrain)


def check_rewind(rewind: int, pretrain: Recipe | None) -> None:
    """Raises ConfigError unless there are weights of that epoch of pre-training."""
    check_value(RunConfig, "rewind", rewind)
    epochs = 0 if pretrain is None else pretrain.epochs
    if rewind > epochs:
        what = (
            "the network was brought trained: there are no early weights"
            if pretrain is None
            else ""
        )
        msg = f"rewind is an epoch of [pretrain], from 0 to {epochs}, found {rewind}" + (
            f"; {what}" if what else ""
        )
        raise ConfigError(msg)


def _parts(name: str, listed: Any) -> tuple[Part, ...]:  # noqa: ANN401 - whatever was given, or a file holds
    """Returns a list of parts: as they are, or as a file has them; raises ConfigError for anything else."""
    if not isinstance(listed, list | tuple):
        msg = f"{name} is a list of tables, one [[{name}]] for each, found {listed!r:.80}"
        raise ConfigError(msg)
    return tuple(one if isinstance(one, Part) else Part(**one) for one in listed)


def check_base(model: ModelSettings, pretrain: Recipe | None) -> None:
    """Raises ConfigError unless a network's weights come from exactly one of checkpoint and pre-training."""
    if (model.checkpoint is None) == (pretrain is None):
        given = "neither" if pretrain is None else "both"
        msg = f"a search starts from a trained network: set model.checkpoint or the table [pretrain], found {given}"
        raise ConfigError(msg)


# By table: what runs did whose records do not say
UNSAID: dict[str, dict[str, Any]] = {
    "space": {"renormalise": False, "bake": False},
    "latency": {"finalists": 0},
}
_RECORDS: dict[str, Callable[..., Any]] = {
    "budget": Budget,
    "searcher": Part,
    "evaluator": Part,
    "space": SpaceOptions.recorded,
    "latency": LatencyOptions.recorded,
    "execution": ExecutionOptions,
    "prepare": Part,
    "model": ModelSettings,
    "data": Part,
    "pretrain": Recipe,
    "finetune": Recipe,
}


def deciding(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Returns of plain settings what decides the trials; anything else may change when a run is continued.

    On which device candidates are evaluated may: a run goes on where its GPU is not, if the user says so.
    """
    free = names(RunConfig, decides=False)
    kept = {key: value for key, value in plain.items() if key not in free}
    kept["evaluator"] = asdict(Part(**plain["evaluator"]).on(None))
    return kept | {
        "execution": {key: plain["execution"][key] for key in names(ExecutionOptions, decides=True)}
    }


def to_plain(settings: SearchSettings) -> dict[str, Any]:
    """Returns settings as plain JSON values: what a JSON file of them would hold.

    Raises:
        ConfigError: if an option is not a plain value.
    """
    try:
        return json.loads(json.dumps(asdict(settings)))
    except (TypeError, ValueError) as error:
        msg = f"options are plain JSON values (numbers, texts, lists, tables): {error}"
        raise ConfigError(msg) from error


def from_plain(kind: type[S], plain: Mapping[str, Any], file: Path | None = None) -> S:
    """Returns the settings that `to_plain` described.

    Args:
        kind: of settings.
        plain: their values.
        file: that holds them, for messages.

    Raises:
        RunError: if they are not settings of this version, or a value is out of range.
    """
    where = "the run" if file is None else str(file)
    values: dict[str, Any] = {}
    key: str = "settings"
    try:
        for key, value in plain.items():
            table: Any = value  # whatever the file holds
            empty = value is None and key in ("pretrain", "prepare")
            values[key] = _RECORDS[key](**table) if key in _RECORDS and not empty else value
        if "evaluator" in values:
            values["evaluator"] = values["evaluator"].completed(BEFORE)
        if "searcher" in values:
            values["searcher"] = values["searcher"].searching(former=True)
        key = "settings"
        settings = kind(**values)
        wrong = problems(settings)
    except (
        AbcSearchError,
        ArithmeticError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        reason = str(error).replace(f"{kind.__name__}.__init__() ", "")
        msg = (
            f"{where} has settings that this version does not know: {key}: {reason}; was it written by another "
            f"version? If not, restore it from a copy, or start a new run"
        )
        raise RunError(msg) from error
    if wrong:
        msg = f"{where} has settings of another kind: {'; '.join(wrong)}; restore it from a copy"
        raise RunError(msg)
    return settings
