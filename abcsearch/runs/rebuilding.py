"""A run folder whose run.json is lost: it is made again from the config, if what is left agrees with that.

The journal says which run it is of by a checksum only; the searcher's snapshot has the id. That the config is the run's
is shown by the journal: the searcher proposes the same structures once more, they cost what the journal says, and some
of them, evaluated again, have the same fitness, which needs the same network, data, criterion and evaluator.
"""

from __future__ import annotations

import re
import secrets
import tempfile
import time
import warnings
import zlib
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import numpy as np

from abcsearch.errors import AbcSearchError, CandidateError, RunError, differences, plural, quoted
from abcsearch.evaluation.base import evaluate
from abcsearch.evaluation.registry import EVALUATORS
from abcsearch.evaluation.staged import BAR, FIRST, Staged
from abcsearch.rng import derived_seed
from abcsearch.runs.disk.environment import environment
from abcsearch.runs.disk.folder import FORMAT, RunFolder
from abcsearch.runs.disk.journal import Contents, read_journal
from abcsearch.runs.disk.known import KNOWN
from abcsearch.runs.header import KIND
from abcsearch.runs.knowledge import kept, mark, probes_of
from abcsearch.runs.loop import Loop
from abcsearch.runs.preparing import seen
from abcsearch.runs.settings import RunConfig, deciding, from_plain, to_plain
from abcsearch.signing import signed
from abcsearch.trial import best_trial

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from abcsearch.evaluation.base import Evaluator
    from abcsearch.runs.roles import Roles
    from abcsearch.runs.task import Task
    from abcsearch.trial import Evaluation, Trial

_HEADER = "run.json"
# Files that have the id of the run, too, and under which name
_IDS = (("searcher.json", "run"), ("fitness.json", "id"))
_LONG = 200  # characters of a difference that nobody would read
_TIMED = frozenset({"latency_ms"})  # metrics that are measured anew


P = ParamSpec("P")
T = TypeVar("T")


class _ReachedError(AbcSearchError):
    """All that the journal has of a round is proposed once more; the next structure would have to be evaluated."""


class _Nobody(Executor):
    """Evaluates nothing."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:  # noqa: ARG002
        """Ends what wants an evaluation."""
        raise _ReachedError


@dataclass(frozen=True, kw_only=True)
class Remains:
    """What there is of a run whose run.json is lost.

    Attributes:
        folder: of the run.
        state: what has become of run.json: "missing" or "damaged".
        start: what the first line of the journal continues; None where that is empty, or of an older version.
        based: whether the trained network is there.
    """

    folder: RunFolder
    state: str
    start: int | None
    based: bool
    _contents: Contents = field(default_factory=Contents, repr=False)
    _map: dict[str, str] = field(default_factory=dict[str, str], repr=False)

    @classmethod
    def of(cls, folder: RunFolder) -> Remains | None:
        """Returns what there is; None where run.json can be read, or nothing of a run is there."""
        path = folder.path / _HEADER
        if not (folder.journal.is_file() or folder.base.is_file()):
            return None
        state = "missing"
        if path.exists():
            try:
                folder.read_json(_HEADER)
            except RunError:
                state = "damaged"
            if state == "missing" or not path.is_file():
                return None
        return cls(
            folder=folder, state=state, start=_start(folder.journal), based=folder.base.exists()
        )

    def check(self, config: RunConfig, task: Task, roles: Roles) -> Remains:
        """Returns the same with what the journal holds, once that agrees with a config as far as needs no weights.

        Args:
            config: what the run is said to be.
            task: of it; the network need not be trained yet.
            roles: of it; the searcher is new, and used up.

        Raises:
            RunError: if the journal is damaged, or the config is that of another run.
        """
        self._check_baselines(config)
        self._check_snapshot(roles)
        roles.searcher.know(kept(self.folder, roles.searcher).trials)
        with tempfile.TemporaryDirectory(prefix="abcsearch-") as name:
            copy = RunFolder(name)
            copy.write_json(
                _HEADER, {"id": self.id} if self.start is not None else {}, lasting=False
            )
            if self.folder.journal.is_file():
                copy.journal.write_bytes(self.folder.journal.read_bytes())
            try:
                contents = read_journal(copy.journal)
            except RunError as error:
                reason = str(error).replace(name, str(self.folder.path)).split(";")[0]
                msg = f"{self._lost}, and {reason}; restore one of the two from a copy"
                raise RunError(msg) from error
            self._check_trials(config, task, list(contents.trials.values()))
            self._check_proposals(config, task, roles, copy, contents)
        told = any(path.exists() for path in (self.folder.map.path, self.folder.path / KNOWN))
        probes = probes_of(roles.searcher) if told else ()
        return replace(self, _contents=contents, _map={"map": mark(probes)} if probes else {})

    def rebuild(
        self, config: RunConfig, evaluator: Evaluator, same: dict[str, Any], *, sure: bool
    ) -> None:
        """Writes run.json.

        Args:
            config: of the run.
            evaluator: of it, with the trained network.
            same: what the run is recognised by.
            sure: whether the user says that it is the run's config where that cannot be shown.

        Raises:
            RunError: if it cannot be shown and the user does not say so.

        Warns:
            UserWarning: always, of what has been done.
        """
        shown, doubt = self._compared(config, evaluator)
        if doubt and not sure:
            if not self.based:  # made by this config, which may be that of another run
                self.folder.base.unlink(missing_ok=True)
            msg = (
                f"{self._lost}, and that this is the config of the run cannot be shown: {doubt}. If it is, with the "
                f"same --set options: abcsearch search CONFIG --run-dir {quoted(self.folder.path)} --rebuild; "
                f"else restore {_HEADER} from a copy, or choose another folder"
            )
            raise RunError(msg)
        path = self.folder.path / _HEADER
        if path.exists():
            path.replace(self.folder.inside(f"{_HEADER}.damaged"))
        now = {**environment(), "rebuilt": time.strftime("%Y-%m-%d %H:%M:%S")}
        same = {**same, **self._map}
        header = {
            "format": FORMAT,
            "settings": to_plain(config),
            "identity": same,
            "environment": now,
        }
        kept = {"id": self.id} if self.start is not None or not self._contents.trials else {}
        self.folder.write_json(_HEADER, signed(KIND, {**kept, **header}))
        text = (
            f"{self._lost}: made again from the config; {'not shown: ' + doubt if doubt else shown}"
        )
        if self.folder.base.exists():
            text += "; [pretrain] and model.checkpoint are as the config has them, the trained weights do not show them"
        self.folder.log(text)
        warnings.warn(text, UserWarning, stacklevel=2)

    @property
    def id(self) -> str:
        """The run's id, as files beside the journal have it; else one that the journal continues as well."""
        for file, name in _IDS:
            try:
                plain = self.folder.read_json(file)
            except (RunError, OSError):
                continue
            if isinstance(plain, dict) and self._is_id(plain.get(name)):
                return plain[name]
        return secrets.token_hex(16) if self.start is None else _id_before(self.start)

    def _is_id(self, told: object) -> bool:
        """Returns whether something that a file holds is the id that the journal continues."""
        return isinstance(told, str) and told.isascii() and zlib.crc32(told.encode()) == self.start

    @property
    def _snapshot(self) -> dict[str, Any]:
        """The state of the searcher, as the snapshot of this run has it; {} where there is none."""
        try:
            plain = self.folder.read_json("searcher.json")
        except (RunError, OSError):
            return {}
        state = (
            plain.get("state")
            if isinstance(plain, dict) and self._is_id(plain.get("run"))
            else None
        )
        return state if isinstance(state, dict) else {}

    @property
    def _lost(self) -> str:
        """What has become of run.json, in words."""
        return f"{self.folder.path / _HEADER} is {self.state}"

    def check_prepared(self, config: RunConfig) -> None:
        """Raises RunError before anything is prepared for a run that had nothing prepared, or by other settings."""
        begun = self.folder.journal.exists() and self.folder.journal.stat().st_size > 0
        if begun and not (self.folder.path / "prepared.json").exists():
            self._refuse("its trials were found without [prepare], or prepared.json is lost")
        snapshot = self.folder.read_json("prepared.json") if begun else None
        if isinstance(snapshot, dict) and snapshot.get("settings", seen(config)) != seen(config):
            self._refuse("it was prepared with another [prepare], budget, space, criterion or seed")

    def _refuse(self, reason: str) -> NoReturn:
        """Raises RunError: the config is that of another run."""
        msg = (
            f"{self._lost}, and the config is not that of the run in this folder: {reason}. Give the config and the "
            f"--set options that it was started with, restore {_HEADER} from a copy, or choose another folder"
        )
        raise RunError(msg)

    def _check_baselines(self, config: RunConfig) -> None:
        """Raises RunError if the header of a baseline, which has the settings of its run, has others."""
        for path in sorted(self.folder.path.glob("baselines/*/run.json")):
            try:
                header = RunFolder(path.parent).header()
                there = deciding(to_plain(from_plain(RunConfig, header["settings"], path)))
            except RunError:
                continue  # whoever reads the baseline says so
            mine = deciding(to_plain(config))
            apart = {"searcher": None, "known": None}
            differing = differences({**there, **apart}, {**mine, **apart})
            if differing:
                self._refuse(f"its baseline {path.parent.name} has {'; '.join(differing)}")

    def _check_snapshot(self, roles: Roles) -> None:
        """Raises RunError if the snapshot of the searcher is that of another one."""
        there, now = self._snapshot, roles.searcher.state_dict()
        names = [name for name in ("searcher", "seed", "options", "space") if name in there]
        differing = differences(
            {name: there[name] for name in names}, {name: now[name] for name in names}
        )
        if differing:
            told = (
                text if len(text) < _LONG else f"another {text.partition(':')[0]}"
                for text in differing
            )
            self._refuse(f"the snapshot of its searcher has {'; '.join(told)}")

    def _check_trials(self, config: RunConfig, task: Task, trials: list[Trial]) -> None:
        """Raises RunError if trials are too many, of another space, outside of the budget, or cost something else."""
        last = max((trial.number for trial in trials), default=-1)
        if last >= config.n_trials:
            self._refuse(
                f"trial {last} is in the journal, but n_trials is {config.n_trials} (--set n_trials={last + 1})"
            )
        try:
            for trial in trials:
                task.space.check(trial.candidate)
        except CandidateError as error:
            self._refuse(f"trial {trial.number}: {error}")  # pyright: ignore[reportPossiblyUnboundVariable]
        if not trials:
            return
        candidates = np.array([trial.candidate for trial in trials])
        outside = np.flatnonzero(task.constraint.violation(candidates) > 0)
        if len(outside):
            self._refuse(
                f"trial {trials[outside[0]].number} of the journal is outside of its budget"
            )
        for cost in ("macs", "params") if config.evaluator.name in EVALUATORS else ():
            now = getattr(task.graph.costs, cost)(candidates)
            then = np.array([getattr(trial.evaluation, cost) for trial in trials])
            wrong = np.flatnonzero(now != then)
            if len(wrong):
                number, one = trials[wrong[0]].number, wrong[0]
                self._refuse(
                    f"trial {number} has {then[one]:,} {cost} in the journal, {now[one]:,} with this config"
                )

    def _check_proposals(
        self, config: RunConfig, task: Task, roles: Roles, copy: RunFolder, contents: Contents
    ) -> None:
        """Raises RunError if the searcher of a config does not propose what is in the journal."""
        schedule = "asynchronous" if contents.asked else "rounds"
        if contents.trials and config.execution.schedule != schedule:
            self._refuse(f"its journal is that of execution.schedule = {schedule!r}")
        loop = Loop(
            folder=copy,
            searcher=roles.searcher,
            evaluator=roles.evaluator,
            costs=task.graph.costs,
            executor=_Nobody(),
            n_trials=config.n_trials,
            seed=config.seed,
            max_failures=config.n_trials,  # nothing fails that has not failed before
            execution=config.execution,
        )
        try:
            loop.run()
        except _ReachedError:
            pass
        except RunError as error:
            reason = str(error).replace(str(copy.path), str(self.folder.path))
            self._refuse(
                f"{reason.partition('; was the run')[0]} (another seed, searcher, budget or space)"
            )

    def _compared(self, config: RunConfig, evaluator: Evaluator) -> tuple[str, str]:
        """Returns what shows that the config is the run's, and what speaks against it or is lacking, or ""."""
        trials = [trial for _, trial in sorted(self._contents.trials.items())]
        told = [trial for trial in trials if trial.evaluation.failure is None]
        if not told:
            return "", "the journal has no trial that succeeded"
        if len(trials) < config.n_trials and not self._snapshot:
            return "", "there is no snapshot of the searcher (searcher.json), which has its options"
        # What is kept is chosen among the most
        smallest = min(told, key=lambda trial: trial.evaluation.params)
        chosen = {
            trial.number: trial for trial in (best_trial(told) or told[0], smallest, told[-1])
        }
        staged = isinstance(evaluator, Staged)
        for number, trial in chosen.items():
            seed = derived_seed(config.seed, "evaluation", number)
            bar = trial.evaluation.metrics.get(BAR)
            now = evaluate(evaluator, trial.candidate, seed, "first" if staged else None, bar)
            if other := _other(trial.evaluation, now, staged=staged):
                return "", (
                    f"trial {number}, evaluated again, {other}: another network, data, criterion or evaluator; or "
                    f"other versions, or another machine, which need not compute the same bits"
                )
        again = f"{len(chosen)} of them, evaluated again, have the same fitness"
        return f"the {plural(len(trials), 'trial')} of the journal follow from it, and {again}", ""


def _other(then: Evaluation, now: Evaluation, *, staged: bool) -> str:
    """Returns in what an evaluation differs from an earlier one of the same trial, or "".

    Args:
        then: the earlier one.
        now: the new one.
        staged: whether the new one is of the first stage of a cascade only.
    """
    before = then.metrics.get(FIRST) if staged else then.fitness
    if now.failure is not None or now.fitness != before:
        return f"has fitness {before} in the journal, {now.failure or now.fitness} now"
    both = (
        {}
        if staged
        else {name: value for name, value in then.metrics.items() if name in now.metrics}
    )
    for name, value in both.items():
        same = np.array_equal(value, now.metrics[name], equal_nan=True)
        if not same and name not in _TIMED:
            return f"has {name} {value} in the journal, {now.metrics[name]} now"
    return ""


def _start(journal: Path) -> int | None:
    """Returns what the first line of a journal continues, None if there is none or it is an older one."""
    if not journal.is_file():
        return None
    with journal.open("rb") as file:
        first = re.match(rb"([0-9a-f]{8})-", file.read(9))
    return None if first is None else int(first[1], 16)


def _id_before(check: int) -> str:
    """Returns an id whose CRC-32 is given: the sum of two checksums is that of the sum of the texts, bit by bit."""
    zeros = bytearray(secrets.token_hex(16).encode() + b"0" * 64)
    base = zlib.crc32(zeros)
    solved: dict[
        int, tuple[int, int]
    ] = {}  # by highest bit: a change of the checksum, and which digits make it
    for digit in range(64):
        changed = bytearray(zeros)
        changed[32 + digit] ^= 1
        change, digits = _reduced(zlib.crc32(changed) ^ base, 1 << digit, solved)
        if change:
            solved[change.bit_length()] = (change, digits)
    _, digits = _reduced(base ^ check, 0, solved)
    for digit in range(64):
        zeros[32 + digit] ^= digits >> digit & 1
    return zeros.decode()


def _reduced(change: int, digits: int, solved: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Returns what is left of a change of the checksum without those that are solved, and the digits that make it."""
    while change and change.bit_length() in solved:
        other, more = solved[change.bit_length()]
        change, digits = change ^ other, digits ^ more
    return change, digits
