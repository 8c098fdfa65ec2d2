"""Optuna's samplers as one searcher. The only file that imports optuna."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import warnings
from collections.abc import Mapping  # the config reads the options' annotations
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from abcsearch.errors import SearcherError, unknown_name
from abcsearch.records import check, setting
from abcsearch.rng import derived_seed
from abcsearch.searchers.base import MOST_MODELLED, Searcher

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from numpy.typing import ArrayLike, NDArray
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from abcsearch.space import Candidate, Dimension
    from abcsearch.trial import Trial

# What samplers raise at wrong options, and what is in the annotations of options that no plain value can fill.
_WRONG = (
    TypeError,
    ValueError,
    AssertionError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    MemoryError,
)
_OBJECTS = ("Callable", "Base", "FrozenTrial")
_STUDY = "search"
# Left out of a state: the optimizer that CMA-ES pickles (it is computed again), the proposal before repair, and the
# budget's constraints (they follow from the structure).
_NOT_SAVED = (":optimizer", ":relative_params", "constraints")


class _Position(IntDistribution):
    """Positions of choices. Converting them takes much of TPE's time, and these need none of Optuna's checks."""

    def to_internal_repr(self, param_value_in_external_repr: int) -> float:
        return float(param_value_in_external_repr)


def _distribution(dimension: Dimension) -> BaseDistribution:
    """Returns the parameter that stands for a dimension: the position of its choice."""
    choices = dimension.choices
    return (
        CategoricalDistribution(choices)
        if dimension.kind == "criterion"
        else _Position(0, len(choices) - 1)
    )


class _CmaEs(optuna.samplers.CmaEsSampler):
    """CMA-ES that knows the parameters from the start; Optuna's own draws at random until a trial is finished."""

    known: Mapping[str, BaseDistribution]

    def infer_relative_search_space(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        return dict(self.known)


_SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "cmaes": _CmaEs,
    "gp": optuna.samplers.GPSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
    "qmc": optuna.samplers.QMCSampler,
    "random": optuna.samplers.RandomSampler,
    "tpe": optuna.samplers.TPESampler,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "cmaes": {"n_startup_trials": 0},
    "qmc": {"scramble": True},  # without it the sequence is the same for every seed
}


def _is_saved(key: str) -> bool:
    """Returns whether an attribute that a sampler gave a trial is part of a state."""
    return not any(word in key for word in _NOT_SAVED)


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keeps Optuna's warnings and messages below errors from the user; afterwards its verbosity is what it was."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


@dataclass(frozen=True, kw_only=True)
class OptunaOptions:
    """Options of `OptunaSearch`.

    Attributes:
        sampler: "tpe" (tree-structured Parzen estimator), "gp" (Gaussian process), "cmaes" (CMA-ES), "nsga2"
            (genetic), "qmc" (quasi-random sequence) or "random".
        sampler_options: arguments of the sampler's class in Optuna, by name, e.g. {"n_startup_trials": 20} for "tpe";
            those that plain values can fill. The seed is the run's.
        batch: how many structures are proposed before the results are needed, 1 to 1,000: as many workers have
            work, but the sampler learns only between batches.
        fill: whether every proposal is grown to spend most of the budget, as random draws are.
        constraints: whether Optuna is told how far every structure is from each bound. All are inside, so only "gp",
            which models these distances, can learn from them; it takes twice the time then.

    Raises:
        SearcherError: if the sampler or one of its options is unknown (with the nearest valid one), or if a value is
            one that the sampler refuses.
    """

    sampler: str = "tpe"
    sampler_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    batch: int = setting(8, at_least=1, at_most=MOST_MODELLED)
    fill: bool = True
    constraints: bool = False

    def __post_init__(self) -> None:
        """Checks everything that can be checked before the first proposal."""
        check(self, "optuna", SearcherError)
        if not isinstance(self.sampler_options, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"optuna: sampler_options is a table of options by name, found {self.sampler_options!r}"
            raise SearcherError(msg)
        # A list takes anything, a dict only what can be hashed
        if self.sampler not in list(_SAMPLERS):
            raise SearcherError(
                unknown_name("sampler of searcher 'optuna':", self.sampler, _SAMPLERS)
            )
        taken = {
            n: p
            for n, p in inspect.signature(_SAMPLERS[self.sampler]).parameters.items()
            if n != "seed"
        }
        plain = {
            n: p
            for n, p in taken.items()
            if not any(word in str(p.annotation) for word in _OBJECTS)
        }
        for name, value in self.sampler_options.items():
            what = f"option of Optuna's sampler {self.sampler!r}:"
            if name in taken and name not in plain:
                msg = f"{what} {name} is an object of Python's, which no setting can be; choose from: {', '.join(plain)}"
                raise SearcherError(msg)
            if name not in plain:
                raise SearcherError(unknown_name(what, name, plain))
            _check_value(f"{what} {name}", value, plain[name].default)
        with quiet():
            _make_sampler(self, 0)


def _check_value(name: str, value: object, default: object) -> None:
    """Raises SearcherError unless a value can be saved and is of the type of the default, if that is not None."""
    try:
        json.dumps(value)
    except TypeError as error:
        msg = (
            f"{name} must be a plain value (number, text, boolean, list or table), found {value!r}"
        )
        raise SearcherError(msg) from error
    wanted = (int, float) if isinstance(default, float) else type(default)
    if default is None or (
        isinstance(value, wanted) and isinstance(value, bool) == isinstance(default, bool)
    ):
        return
    msg = f"{name} is of type {type(default).__name__} (default {default!r}), found {value!r}"
    raise SearcherError(msg)


def _make_sampler(options: OptunaOptions, seed: int) -> BaseSampler:
    """Returns a new sampler.

    Raises:
        SearcherError: if the sampler refuses an option.
    """
    given = {**_DEFAULTS.get(options.sampler, {}), **options.sampler_options}
    try:
        return _SAMPLERS[options.sampler](**given, seed=seed)
    except _WRONG as error:
        raise _refused(options, error) from error


def _refused(options: OptunaOptions, error: Exception) -> SearcherError:
    """Returns the error that says which options Optuna stumbled over."""
    given = dict(options.sampler_options)
    return SearcherError(
        f"Optuna's sampler {options.sampler!r} failed with the options {given}: {error!r}"
    )


@final
class OptunaSearch(Searcher):
    """Any of Optuna's samplers: TPE, Gaussian process, CMA-ES, NSGA-II, quasi-random or random.

    Every dimension with more than one choice is an integer parameter: the position of the choice; of a criterion, a
    categorical one, which "cmaes" and "qmc" draw at random. Structures are proposed in batches; within a batch a
    sampler sees its earlier proposals as running, which TPE (constant liar) and the Gaussian process take into account.

    Source: Akiba et al., Optuna (KDD 2019); TPE: Bergstra et al. (NeurIPS 2011), Watanabe (2023); Gaussian process
    with expected improvement: Jones et al. (1998); CMA-ES: Hansen and Ostermeier (2001); NSGA-II: Deb et al. (2002).

    Differences from plain Optuna:
        - Every proposal is repaired into the budget and grown to spend most of it, and Optuna is told about the
          structure that was evaluated, not about the one it drew. All of those are inside the budget, so Optuna's
          constraints (`set_constraint`) say nothing to most samplers and are off unless asked for.
        - No structure is evaluated twice. Optuna is asked once for each proposal; while the result is known,
          neighbours of it are tried, one random step farther away each time.
        - A failed trial counts as the worst that succeeded so far, so that samplers keep away from it; Optuna ignores
          failed trials. As long as none has succeeded they are ignored here, too.
        - A new sampler is made for every batch, seeded by the run's seed and the number of proposals, so that a
          resumed search continues as if it had not been stopped. "qmc" keeps one seed, as its sequence demands.
        - "cmaes" starts with its own distribution, not with random trials; "qmc" is scrambled by the seed. Warm
          starts are part of the first population of "cmaes" and "nsga2".
    """

    name: ClassVar[str] = "optuna"
    Options: ClassVar[type] = OptunaOptions
    options: OptunaOptions
    overlaps: ClassVar[bool] = True

    def _begin(self) -> None:
        self._free: NDArray[np.int64] = np.flatnonzero(self.space.last_indices > 0)
        free = [dimension for dimension in self.space.dimensions if len(dimension.choices) > 1]
        self._parameters: dict[str, BaseDistribution] = {
            dimension.name: _distribution(dimension) for dimension in free
        }
        self._new_study()

    def _new_study(self) -> None:
        """Starts an empty study."""
        self._running: dict[
            Candidate, int
        ] = {}  # the trial of the study that stands for an open structure
        self._ends: list[
            int
        ] = []  # how many trials the study had when a trial of it ended; 0 while it is running
        self._worst = math.inf  # of all values told
        self._storage = optuna.storages.InMemoryStorage()
        with quiet():
            self._study = optuna.create_study(
                storage=self._storage, study_name=_STUDY, direction="maximize"
            )
        self._study_id = self._storage.get_study_id_from_name(_STUDY)

    def _told(self) -> list[FrozenTrial]:
        """Returns all trials of the study without copying them."""
        return self._storage.get_all_trials(self._study_id, deepcopy=False)

    def _renew_sampler(self, number: int) -> None:
        """Gives the study the sampler of the batch that begins at a number of proposals."""
        seed = derived_seed(self.seed, "optuna", 0 if self.options.sampler == "qmc" else number)
        sampler = _make_sampler(self.options, seed % 2**32)  # all that numpy's RandomState takes
        if isinstance(sampler, _CmaEs):
            sampler.known = {
                n: d for n, d in self._parameters.items() if isinstance(d, IntDistribution)
            }
        self._study.sampler = sampler

    def _propose(self) -> list[Candidate]:
        batch: list[Candidate] = []
        with quiet():
            self._renew_sampler(len(self._known))
            while len(batch) < self.options.batch:
                candidate = self._propose_one()
                if candidate is None:
                    break
                batch.append(candidate)
        return batch

    def _propose_one(self) -> Candidate | None:
        """Returns one new structure, a running trial of the study."""
        trial = self._ask()
        positions = self._positions([trial.params[name] for name in self._parameters])
        steps = -1

        def draw() -> Candidate:
            nonlocal steps
            steps += 1
            near = self.space.at(self._moved(positions, steps))
            return (
                self.constraint.fill(self.constraint.repair(near, self.rng), self.rng)
                if self.options.fill
                else near
            )

        candidate = self._fresh(draw)
        self._ends.append(0)
        if candidate is None:
            self._finish(trial.number, -math.inf)
        else:
            self._settle(trial, self._params(self.space.indices(candidate)[self._free]))
            self._running[candidate] = trial.number
        return candidate

    def _ask(self) -> optuna.Trial:
        """Returns a new trial with all parameters drawn.

        Raises:
            SearcherError: if the sampler fails, as it does with options that make no sense.
        """
        try:
            return self._study.ask(self._parameters)
        except _WRONG as error:
            raise _refused(self.options, error) from error

    def _moved(self, positions: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
        """Returns positions, (n_dims,), after single steps in random dimensions."""
        moved = positions.copy()
        if steps and len(self._free):
            np.add.at(
                moved, self.rng.choice(self._free, size=steps), self.rng.choice((-1, 1), size=steps)
            )
        return np.clip(moved, 0, self.space.last_indices)

    def _params(self, free: NDArray[np.int64]) -> dict[str, int]:
        """Returns Optuna's parameters: positions of the dimensions with a choice, (n_free,), by name."""
        return dict(zip(self._parameters, free.tolist(), strict=True))

    def _positions(self, free: ArrayLike) -> NDArray[np.int64]:
        """Returns positions of all dimensions, (n_dims,), from those of the dimensions with a choice, (n_free,)."""
        positions = np.zeros(len(self.space), np.int64)
        positions[self._free] = free
        return positions

    def _constraints(self, params: Mapping[str, int]) -> dict[str, float]:
        """Returns how far a structure is outside of every bound, relative to it, negative inside; {} unless wanted."""
        if not self.options.constraints:
            return {}
        row = self.space.values(self._positions(list(params.values())))[None]
        constraints: dict[str, float] = {}
        for limit in self.constraint.limits:
            cost = float(limit.cost(row)[0])
            constraints[f"{limit.name} high"] = cost / (limit.high or 1) - 1
            if limit.low:
                constraints[f"{limit.name} low"] = 1 - cost / limit.low
        return constraints

    def _settle(self, trial: optuna.Trial, params: Mapping[str, int]) -> None:
        """Makes a running trial stand for the structure that is evaluated."""
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(
            self._study_id, trial.number
        )
        for name, drawn in trial.params.items():
            if drawn != params[name]:
                self._storage.set_trial_param(trial_id, name, params[name], self._parameters[name])
        for name, value in self._constraints(params).items():
            trial.set_constraint(name, value)

    def _learn(self, batch: list[Trial]) -> None:
        self._worst = min(
            [self._worst, *(trial.fitness for trial in batch if trial.fitness > -math.inf)]
        )
        lowest = -self._worst if math.isinf(self._worst) else self._worst
        with quiet():
            for trial in batch:
                self._finish(self._running.pop(trial.candidate), max(trial.fitness, lowest))

    def _finish(self, number: int, value: float) -> None:
        """Ends a running trial of the study; minus infinity stands for no value."""
        self._ends[number] = len(self._ends)
        if value > -math.inf:
            self._study.tell(number, value)
        else:
            self._study.tell(number, state=TrialState.FAIL)

    def _state(self) -> dict[str, Any]:
        told = self._told()
        saved = {
            str(t.number): {k: v for k, v in t.system_attrs.items() if _is_saved(k)} for t in told
        }
        params = [[trial.params[name] for name in self._parameters] for trial in told]
        return {
            "ends": np.array(self._ends, dtype=np.int64),
            "params": np.array(params, dtype=np.int64).reshape(len(told), len(self._free)),
            "values": np.array(
                [-math.inf if t.value is None else t.value for t in told], dtype=np.float64
            ),
            "updates": np.array(
                [any(":optimizer" in k for k in t.system_attrs) for t in told], dtype=np.bool_
            ),
            "trials": {number: attributes for number, attributes in saved.items() if attributes},
            "study": dict(self._storage.get_study_system_attrs(self._study_id)),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        """Makes the study again: every trial drawn, and ended, when as many others had been drawn as before.

        CMA-ES keeps its optimizer as a pickle with the trials that were drawn after an update. None is written:
        those trials, which `updates` marks, are drawn again, so that the same update is computed from the same results.
        """
        self._new_study()
        ends, values, updates = (state[key].tolist() for key in ("ends", "values", "updates"))
        ending: dict[int, list[int]] = {}  # trials, by the number of trials when they ended
        with quiet():
            self._renew_sampler(0)
            for number, end in enumerate(ends):
                params = self._params(state["params"][number])
                attributes = state["trials"].get(str(number), {})
                # Ending a trial takes as long as adding one, so only where an update might see it is it ended later.
                later = end == 0 or any(updates[number:end])
                if updates[number]:
                    self._draw_again(params, attributes)
                else:
                    self._add(params, attributes, None if later else values[number])
                self._ends.append(0 if later else end)
                if later:
                    ending.setdefault(end, []).append(number)
                for ended in ending.get(number + 1, []):
                    self._finish(ended, values[ended])
        for number in ending.get(0, []):
            self._running[self.space.at(self._positions(state["params"][number]))] = number
        self._worst = min((value for value in values if value > -math.inf), default=math.inf)
        for key, value in state["study"].items():
            self._storage.set_study_system_attr(self._study_id, key, value)

    def _draw_again(self, params: Mapping[str, int], attributes: Mapping[str, Any]) -> None:
        """Lets the sampler update its optimizer as it did before, and makes the new trial the one that was drawn."""
        trial = self._ask()
        self._settle(trial, params)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(
            self._study_id, trial.number
        )
        for key, attribute in attributes.items():
            self._storage.set_trial_system_attr(trial_id, key, attribute)

    def _add(
        self, params: Mapping[str, int], attributes: Mapping[str, Any], value: float | None
    ) -> None:
        """Adds a trial as it was; it runs if it has no value, and has failed if that is minus infinity."""
        ended = TrialState.FAIL if value == -math.inf else TrialState.COMPLETE
        made = optuna.create_trial(
            state=TrialState.RUNNING if value is None else ended,
            value=None if value == -math.inf else value,
            params=dict(params),
            distributions=self._parameters,
            system_attrs=dict(attributes),
            constraints=self._constraints(params),
        )
        self._study.add_trial(made)
