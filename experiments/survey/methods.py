"""The methods of the table: what each changes in the config of a network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from abcsearch import CRITERIA, SEARCHERS
from abcsearch.config import parse_run, toml_of
from abcsearch.errors import ConfigError
from abcsearch.preparation.registry import PREPARATIONS
from abcsearch.tables import set_override

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from abcsearch.registry import Registry
    from abcsearch.runs.settings import RunConfig

KINDS = (
    "without a search",
    "one threshold on a criterion",
    "search by a criterion",
    "searchers",
    "trained before",
    "controls",
)
REGISTRIES: dict[str, Registry[Any]] = {
    "criterion": CRITERIA,
    "searcher": SEARCHERS,
    "preparation": PREPARATIONS,
}
REPAIRED = "evaluator.repair=one_shot"
GIVEN = ("searcher=given", "n_trials=1")


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: of the row.
        kind: of `KINDS`.
        changes: "dotted.key=value", what it changes in the config.
        needs: parts that must be registered, (kind, name) each.
        network: which structure of its run is fine-tuned; "": the winner.
        rounds: of preparations that train several times, how often.
        retrained: whether its base network is trained in its run, as early weights and recipes of the base need it.
        source: where it is from.
    """

    name: str
    kind: str
    changes: tuple[str, ...] = ()
    needs: tuple[tuple[str, str], ...] = ()
    network: str = ""
    rounds: int = 1
    retrained: bool = False
    source: str = ""

    @property
    def lacking(self) -> str:
        """Why the method cannot run here: which part is not registered; "" where all are."""
        missing = [f"{kind} {name!r}" for kind, name in self.needs if name not in REGISTRIES[kind]]
        return f"not registered: {', '.join(missing)}" if missing else ""

    def all_changes(self, network: str) -> tuple[str, ...]:
        """Returns what it changes in the config of a network by its file's name, strengths for that among it."""
        of = self.name.partition(" of ")[2] or self.name
        return (*self.changes, *TUNED.get(network, {}).get(of, ()))

    def plain(self, file: Path, given: Sequence[str] = ()) -> dict[str, Any]:
        """Returns the settings of its run as plain values, without seed and budget.

        The epochs of the recipe are those of preparation and fine-tuning together: half of them are the preparation's,
        of several rounds each has as many as the fine-tuning.

        Args:
            file: the config of the network.
            given: more changes, made before its own.
        """
        plain = toml_of(file)
        for change in (*given, *self.all_changes(file.stem)):
            set_override(plain, change)
        if "prepare" in plain:
            named: Any = plain["prepare"]
            table = {"name": named} if isinstance(named, str) else dict(named)
            total = int(plain["finetune"]["epochs"])
            epochs = total // (self.rounds + 1)
            if epochs < 1:
                msg = f"{self.name} trains {self.rounds} times before the search, and there are {total} epochs in all: "
                raise ConfigError(f"{msg}raise finetune.epochs")
            recipe = {**plain["finetune"], **table.get("recipe", {}), "epochs": epochs}
            plain["prepare"] = {**table, "recipe": recipe}
            plain["finetune"] = {**plain["finetune"], "epochs": total - self.rounds * epochs}
        return plain

    def config(self, file: Path, budget: float, seed: int, given: Sequence[str] = ()) -> RunConfig:
        """Returns its run; arguments as of `plain`, and share of the MACs and seed."""
        plain = self.plain(file, given)
        baselines = [self.network] if self.network not in ("", "full") else []
        config = parse_run(
            {**plain, "seed": seed, "budget": {"macs": budget}, "baselines": baselines}, self.name
        )
        if TYPE_CHECKING:
            assert isinstance(config, RunConfig)
        return config


def _threshold(criterion: str, *changes: str, structure: str = "global_threshold") -> Method:
    """Returns a criterion as one threshold on all of its scores."""
    all_changes = (f"criterion={criterion}", *GIVEN, f'searcher.initial=["{structure}"]', *changes)
    return Method(f"{criterion}, threshold", KINDS[1], all_changes, (("criterion", criterion),))


def _search(criterion: str, *changes: str) -> Method:
    """Returns a criterion as that by which channels are kept in a search."""
    return Method(
        f"{criterion}, search",
        KINDS[2],
        (f"criterion={criterion}", *changes),
        (("criterion", criterion),),
    )


def _searcher(name: str, searcher: str, *changes: str, source: str = "") -> Method:
    return Method(
        name, KINDS[3], (f"searcher={searcher}", *changes), (("searcher", searcher),), source=source
    )


def _prepared(
    name: str, preparation: str, *changes: str, searcher: str = "", rounds: int = 1
) -> Method:
    """Returns a preparation whose structure is taken, or, with a searcher, searched on from."""
    needs = (("preparation", preparation), *((("searcher", searcher),) if searcher else ()))
    search = (f"searcher={searcher}",) if searcher else GIVEN
    return Method(
        name, KINDS[4], (f"prepare={preparation}", *search, *changes), needs, rounds=rounds
    )


# What is fitted anew is part of these methods; PFA has widths of its own.
_FITTED = {"thinet", "lasso", "refit"}
_CRITERIA = (
    *(
        "random",
        "l1",
        "l2",
        "bn_gamma",
        "fpgm",
        "apoz",
        "hrank",
        "entropy",
        "taylor",
        "taylor_gate",
        "thinet",
        "lasso",
    ),
    *("pfa", "nisp", "curl", "scsp", "subspace", "refit", "reader_l2"),
)
_BEES = (
    "evaluator=short_training",
    "evaluator.repair=none",
    "evaluator.scoring=full",
    "evaluator.epochs=2",
)
_ABCPRUNER = (
    "criterion=random",
    *_BEES,
    "evaluator.lr=0.01",
    "evaluator.fresh_norms=true",
    "evaluator.threads=1",
)
_SMALL = (
    *("searcher.population=10", "searcher.archive=10", "searcher.parents=5"),
    *("searcher.mutations=5", "searcher.crossovers=5"),
)
METHODS: tuple[Method, ...] = (
    Method("full", KINDS[0], (*GIVEN, 'searcher.initial=["uniform"]'), network="full"),
    Method("uniform", KINDS[0], (*GIVEN, 'searcher.initial=["uniform"]'), network="uniform"),
    Method("random structure", KINDS[0], ("searcher=random", "n_trials=1")),
    *(
        _threshold(
            name,
            *((REPAIRED,) if name in _FITTED else ()),
            structure="pfa_widths" if name == "pfa" else "global_threshold",
        )
        for name in _CRITERIA
    ),
    *(_search(name, *((REPAIRED,) if name in _FITTED else ())) for name in _CRITERIA),
    Method(
        "ours (default)", KINDS[3], ("searcher=response_surface", "criterion=reader_l2", REPAIRED)
    ),
    _searcher("EagleEye", "random", source="Li et al., ECCV 2020"),
    _searcher("AMC", "ddpg", "searcher.warmup=15", source="He et al., ECCV 2018"),
    _searcher(
        "ABCPruner", "bee_colony_official", *_ABCPRUNER, 'space.levels=["filter"]', "n_trials=20"
    ),
    _searcher("ABCPruner, structure level too", "bee_colony_official", *_ABCPRUNER, "n_trials=20"),
    _searcher("bee_colony", "bee_colony", "searcher.n_sources=5"),
    _searcher("MetaPruning's evolution", "evolution", *_SMALL, source="Liu et al., ICCV 2019"),
    _searcher("AutoSlim's greedy", "greedy", source="Yu and Huang, 2019"),
    _searcher("response_surface", "response_surface"),
    _searcher("sensitivity", "sensitivity"),
    _searcher("network_adjustment", "network_adjustment", "evaluator.utilisation=5"),
    _prepared("slimming", "slimming"),
    _prepared("SSL", "group_lasso"),
    _prepared("SFP", "soft_pruning"),
    _prepared("variational", "variational"),
    _prepared("AutoPruner", "autopruner"),
    _prepared("taylor_iterative", "taylor_iterative"),
    _prepared("DMCP", "dmcp"),
    _prepared("TAS", "tas"),
    _prepared("LFPC", "lfpc"),
    _prepared("slimmable + search", "slimmable", searcher="response_surface"),
    _prepared("slimmable, free + greedy", "slimmable", "prepare.widths=free", searcher="greedy"),
    _prepared("MetaPruning", "pruning_net", *_SMALL, searcher="evolution"),
    _prepared("iterate, threshold", "iterate", "prepare.rounds=3", rounds=3),
    _prepared(
        "iterate, search",
        "iterate",
        "prepare.rounds=3",
        "prepare.searcher=response_surface",
        rounds=3,
    ),
)
CONTROLS = ("scratch_e", "scratch_b", "rewound")
# Penalties and gates act by the number of steps. Of three or more values, the one whose structure at 30 % of the MACs had
# the highest fitness, on search-validation images, seed 0. But of ResNet-20's penalties (slimming, SSL) these were the
# strongest that still computed anything, and nothing came back in the epochs that were left; so a fraction of them.
TUNED: dict[str, dict[str, tuple[str, ...]]] = {
    "digits": {
        "slimming": ("prepare.strength=0.02",),
        "SSL": ("prepare.strength=0.1",),
        "AutoPruner": ("prepare.gate_lr=0.3",),
        "taylor_iterative": ("prepare.batches=5", "prepare.at_once=6"),
        "iterate, search": ("prepare.trials=40",),
    },
    "resnet20": {
        "slimming": ("prepare.strength=0.007",),
        "SSL": ("prepare.strength=0.01",),
        "AutoPruner": ("prepare.gate_lr=1.0",),
        "taylor_iterative": ("prepare.batches=5", "prepare.at_once=10"),
        "iterate, search": ("prepare.trials=60",),
        # A round of it passes 60 times over search-validation: so many cost 30 epochs of the base network
        "network_adjustment": ("n_trials=20",),
    },
}


def named(name: str) -> Method:
    """Returns the method of a row, or the control of one: "scratch_e of METHOD".

    Raises:
        ConfigError: if there is none.
    """
    control, _, of = name.partition(" of ")
    if of and control in CONTROLS:
        return replace(named(of), name=name, kind=KINDS[5], network=control, retrained=True)
    for method in METHODS:
        if method.name == name:
            return method
    msg = f"there is no method {name!r}; there are {', '.join(method.name for method in METHODS)}"
    raise ConfigError(msg)
