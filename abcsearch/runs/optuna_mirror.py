"""The trials of a search as an Optuna study, so that optuna-dashboard opens any search."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from abcsearch.errors import ConfigError
from abcsearch.formats import first_line
from abcsearch.runs.watching import finish_times
from abcsearch.searchers.optuna_search import quiet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.runs.task import Task
    from abcsearch.runs.watching import WatcherFactory
    from abcsearch.space import Candidate, Dimension, SearchSpace
    from abcsearch.trial import Trial


# What a database says where two processes make its tables: one of them has, so that the other finds them the next time.
_MEANWHILE = re.compile("already exists|unique|duplicate|locked", re.IGNORECASE)
_TRIES = 50


def optuna_watcher(storage: str, study_name: str | None = None) -> WatcherFactory:
    """Returns what makes an `OptunaMirror` of a search.

    Args:
        storage: as `open_storage` takes it.
        study_name: by default that of `default_study_name`.

    Raises:
        ConfigError: if the storage cannot be opened.
    """
    opened = open_storage(storage)

    def make(task: Task, folder: RunFolder) -> OptunaMirror:
        return OptunaMirror(
            opened, study_name or default_study_name(folder), task.space, folder.journal
        )

    return make


def default_study_name(folder: RunFolder) -> str:
    """Returns the run folder's name and a hash of where it is and when the run was started.

    The place keeps runs apart that are in folders of the same name, the start those that follow each other in the same
    folder. A run that is continued has the same name; one whose folder was moved is mirrored into a new study.
    """
    path = folder.path.resolve()
    started = folder.header()["environment"].get("started")
    return f"{path.name}-{hashlib.sha256(f'{path} {started}'.encode()).hexdigest()[:8]}"


def open_storage(storage: str) -> BaseStorage:
    """Returns an Optuna storage, with its tables if it is new.

    Args:
        storage: a database's URL, such as sqlite:///studies.db, or the path of a journal file of Optuna's;
            optuna-dashboard takes both.

    Raises:
        ConfigError: if it cannot be opened.
    """
    with quiet():
        try:
            if re.match(r"[\w+]{2,}:", storage):  # two letters: C: is a drive
                return _database(storage)
            return JournalStorage(JournalFileBackend(storage))
        except Exception as error:  # every database and driver has its own
            reason = first_line(error).rstrip(".")
            shown = re.sub(r":[^:@/]*@", ":***@", storage)  # without the password
            msg = (
                f"Optuna storage {shown!r} cannot be opened: {reason}; give a URL such as sqlite:///studies.db, "
                f"or the path of a journal file"
            )
            raise ConfigError(msg) from error


def _database(url: str) -> RDBStorage:
    """Returns the storage of a database, whose tables other processes may be making at the same time."""
    # A search writes for milliseconds, but others may wait in line; SQLite gives up after five seconds by itself.
    patient = (
        {"connect_args": {"timeout": 60}}
        if url.startswith("sqlite") and "timeout=" not in url
        else {}
    )
    for _ in range(_TRIES):
        try:
            return RDBStorage(url, engine_kwargs=dict(patient))
        except Exception as error:
            if not _MEANWHILE.search(str(error)):
                raise
        time.sleep((os.getpid() % 10 + 1) / 50)  # not all at once again
    return RDBStorage(url, engine_kwargs=dict(patient))


class OptunaMirror:
    """Mirrors finished trials into an Optuna study. A journal file of Optuna's is faster than SQLite.

    A parameter is a dimension of the space, from its smallest choice to the full width. The number of a trial is among
    its user attributes (Optuna numbers trials as they come), and by it a trial that the study has is recognised.
    """

    def __init__(
        self,
        storage: str | BaseStorage,
        study_name: str,
        space: SearchSpace,
        journal: Path | None = None,
    ) -> None:
        """Looks at the study; nothing is written yet.

        Args:
            storage: opened, or as `open_storage` takes it.
            study_name: the study's; made by `begin` if it is new.
            space: of the search.
            journal: of the search; it has the times of the trials that are there at the beginning.

        Raises:
            ConfigError: if the storage cannot be opened, or the study is one of another search space.
        """
        self._storage = open_storage(storage) if isinstance(storage, str) else storage
        self._name = study_name
        self._journal = journal
        self._distributions = {
            dimension.name: _distribution(dimension) for dimension in space.dimensions
        }
        self._study: optuna.Study | None = None
        self._known = self._numbers()

    def begin(self, trials: Sequence[Trial], n_trials: int) -> None:
        """Makes the study if it is new, and adds those of these trials that it has not."""
        del n_trials
        times = finish_times(self._journal)
        with quiet():
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=self._name,
                direction="maximize",
                load_if_exists=True,
            )
        for trial in trials:
            self._add(trial, times.get(trial.number, time.time()))

    def trial(self, trial: Trial, best: Trial | None) -> None:
        """Adds a trial."""
        del best
        self._add(trial, time.time())

    def end(self) -> None:
        """Closes the storage."""
        if isinstance(self._storage, RDBStorage):
            self._storage.remove_session()
            self._storage.engine.dispose()

    def _numbers(self) -> set[int]:
        """Returns the numbers of the trials that the study has."""
        with quiet():
            if self._name not in optuna.get_all_study_names(self._storage):
                return set()
            study = optuna.load_study(study_name=self._name, storage=self._storage)
            trials = study.get_trials(deepcopy=False)
        ours = all(
            trial.distributions == self._distributions and "number" in trial.user_attrs
            for trial in trials
        )
        if study.directions != [StudyDirection.MAXIMIZE] or not ours:
            msg = f"the Optuna study {self._name!r} exists with other parameters; choose another name or storage"
            raise ConfigError(msg)
        return {trial.user_attrs["number"] for trial in trials}

    def _add(self, trial: Trial, finished: float) -> None:
        """Adds a trial unless the study has it."""
        if trial.number in self._known or self._study is None:
            return
        with quiet():
            self._study.add_trial(self._frozen(trial, finished))
        self._known.add(trial.number)

    def _params(self, candidate: Candidate) -> dict[str, Any]:
        """Returns a structure as Optuna keeps it: criteria by what they are called."""
        params: dict[str, Any] = dict(zip(self._distributions, candidate, strict=True))
        for name, kind in self._distributions.items():
            if isinstance(kind, CategoricalDistribution):
                params[name] = kind.choices[params[name]]
        return params

    def _frozen(self, trial: Trial, finished: float) -> FrozenTrial:
        """Returns a trial as Optuna keeps it."""
        evaluation = trial.evaluation
        attributes = {
            "number": trial.number,
            "macs": evaluation.macs,
            "params": evaluation.params,
            "seconds": evaluation.seconds,
        }
        failure = {} if evaluation.failure is None else {"failure": evaluation.failure}
        frozen = create_trial(
            state=TrialState.COMPLETE if evaluation.failure is None else TrialState.FAIL,
            value=evaluation.fitness,
            params=self._params(trial.candidate),
            distributions=dict(self._distributions),
            user_attrs={**evaluation.metrics, **attributes, **failure},
        )
        frozen.datetime_complete = datetime.fromtimestamp(finished)  # Optuna's times are local
        frozen.datetime_start = frozen.datetime_complete - timedelta(seconds=evaluation.seconds)
        return frozen


def _distribution(dimension: Dimension) -> BaseDistribution:
    """Returns the range of a dimension; the full width, which is always allowed, may lie above every choice."""
    if dimension.kind == "criterion":
        return CategoricalDistribution(dimension.labels)
    values = sorted({*dimension.choices, dimension.full})
    step = math.gcd(*(after - before for before, after in itertools.pairwise(values)))
    return IntDistribution(values[0], values[-1], step=max(step, 1))
