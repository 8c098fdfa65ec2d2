"""A finished run and stopped ones, files of theirs damaged in every way, and what the commands then say.

Whatever happens to a file, a command ends as on the undisturbed folder, or with exit status 2 and a message that names
the file and what to do. Nothing else will do: no other result, no traceback.
"""

import collections
import contextlib
import dataclasses
import json
import re
import shutil
import warnings
from unittest import mock

import numpy as np
import torch
from safetensors import SafetensorError
from typer.testing import CliRunner

from abcsearch import cli, load
from abcsearch.channels import latency
from abcsearch.config import read_config
from abcsearch.errors import AbcSearchError
from abcsearch.reporting import report_page
from abcsearch.results import evaluating
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.forward import ForwardTime
from abcsearch.results.open_run import open_run
from abcsearch.rng import torch_seeded
from abcsearch.runs.config_run import run_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import read_journal
from abcsearch.runs.disk.weights import load_tensors

CONFIG = """
n_trials = 8
baselines = ["uniform", "random"]
model = {name = "small_resnet", widths = [4, 6], depths = [1, 1]}
data = {name = "digits"}
pretrain = {epochs = 2, batch_size = 512}
searcher = {name = "bee_colony", n_sources = 3}
evaluator = {name = "adaptive_bn", calibration_images = 64, batch_size = 64}
finetune = {epochs = 2, batch_size = 512, lr = 0.02}
"""
MILLISECONDS = "budget = {macs = 0.7, latency_ms = 0.999}\nlatency = {batch = 2, repeats = 3}\n"

WINNER, STRUCTURES = "bee_colony", ("full", "uniform", "random", "bee_colony")
EXPORTS = {"safetensors": "export", "onnx": "export/model.onnx", "pt2": "export/model.pt2"}

# By how far a run is: its files, by kind.
FINISHED = (
    *(
        "run.json",
        "journal.jsonl",
        "searcher.json",
        "population.json",
        "best.json",
        "fitness.json",
        "latency.json",
    ),
    *("progress.json", "log.txt", "setup.json", "base.safetensors", "report.json"),
    *(f"finetuned/{name}.json" for name in (WINNER, "uniform")),
    *(f"finetuned/{name}.safetensors" for name in (WINNER, "full")),
    f"finetuned/{WINNER}.best.safetensors",
    *(
        f"baselines/random/{name}"
        for name in ("run.json", "journal.jsonl", "searcher.json", "best.json")
    ),
    *("export/plan.json", "export/model.safetensors", "export/model.onnx", "export/model.pt2"),
)
FILES = {
    "finished": FINISHED,
    "searching": ("run.json", "journal.jsonl", "searcher.json", "base.safetensors", "best.json"),
    "tuning": ("finetuned/*.checkpoint",),
    "training": ("base-*.checkpoint", "run.json"),
}
COMMANDS = {
    "finished": ("status", "resume", "finetune", "report", "export", "evaluate"),
    "searching": ("status", "resume"),
    "tuning": ("status", "finetune"),
    "training": ("status", "resume"),
}
WRONG = ("warned", "unclear", "traceback", "different")
MUTATIONS = ("bit", "digit", "truncated", "empty", "zeros", "deleted", "doubled", "lost")


def call(*arguments):
    """Runs a command in this process; returns its exit status and all that it printed, warnings too."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    text = "".join([result.output, *(f"warning: {one.message}\n" for one in warned)])
    if result.exit_code == 1 or not (
        result.exception is None or isinstance(result.exception, SystemExit)
    ):
        return 1, f"{text}{result.exception!r}"
    return result.exit_code, text


def by_size(networks, full, *_, **__):
    """Stands in for what measures: a parameter takes a nanosecond."""
    most, *sizes = (sum(x.numel() for x in own.parameters()) for own in (full, *networks))
    return latency.Turns(shares=np.array(sizes) / most, full_ms=most / 1e6)


@contextlib.contextmanager
def quick():
    """Has nothing drawn and no time measured: it would take most of the time, and a slow moment would be a budget."""
    time = ForwardTime(
        device="CPU", batch=1, threads=1, median_ms=1.0, low_ms=0.9, high_ms=1.1, passes=3
    )
    times = lambda networks, example, threads: (  # noqa: E731
        [(time, dataclasses.replace(time, batch=64))] * len(networks)
    )
    with (
        mock.patch.object(report_page, "drawings", return_value={}),
        mock.patch("abcsearch.results.report.measure_forward", times),
        mock.patch.object(evaluating, "_median_ms", return_value=1.0),
        # Larger networks take longer, whatever else the machine does: the budget bounds the estimate made of these.
        mock.patch.object(latency, "in_turns", by_size),
        mock.patch("abcsearch.runs.stopwatch.in_turns", by_size),
    ):
        yield


def until(stage, epoch):
    """Returns a progress that ends a run as Ctrl-C does, once a stage has come so far."""

    def progress(name, done, total, note):
        if name == stage and done == epoch:
            raise KeyboardInterrupt

    return progress


def made(path):
    """Makes a run in each state; returns their folders by state."""
    runs = {state: path / state / "run" for state in FILES}
    plain, timed = path / "plain.toml", path / "timed.toml"
    plain.write_text(CONFIG + "budget = {macs = 0.5}\n")
    timed.write_text(CONFIG + MILLISECONDS)
    with quick(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = runs["finished"]
        exports = [["export", run, "--format", name] for name in EXPORTS]
        for arguments in (
            ["search", timed, "--run-dir", run],
            ["finetune", run],
            ["report", run],
            *exports,
        ):
            status, text = call(*arguments)
            assert status == 0, text
        for state, (stage, done) in {
            "training": ("base network", 1),
            "searching": (WINNER, 5),
        }.items():
            with contextlib.suppress(KeyboardInterrupt):
                run_config(read_config(plain, []), runs[state], progress=until(stage, done))
        run_config(read_config(plain, []), runs["tuning"])
        with contextlib.suppress(KeyboardInterrupt):
            finetune_run(open_run(runs["tuning"]), progress=until(f"fine-tuning {WINNER}", 1))
    for state, folder in runs.items():
        for pattern in FILES[state]:
            assert len(list(folder.glob(pattern))) == 1, (state, pattern)
        (folder / "report.html").unlink(missing_ok=True)  # large, and never read
    return runs


def mutated(content, mutation, draws):
    """Returns a file's content damaged in some way, other than it was; None: the file is gone."""
    if mutation == "deleted":
        return None
    if mutation in ("empty", "zeros"):
        return b"" if mutation == "empty" else bytes(len(content))
    at = int(draws.integers(len(content)))
    if mutation == "truncated":
        return content[:at]
    if mutation == "bit":
        return _with(content, at, content[at] ^ (1 << int(draws.integers(8))))
    if mutation == "digit":
        digits = [match.start() for match in re.finditer(rb"[0-9]", content)]
        at = digits[int(draws.integers(len(digits)))]
        return _with(content, at, 48 + (content[at] - 48 + int(draws.integers(1, 10))) % 10)
    lines = re.findall(rb"[^\n]*\n|[^\n]+", content)
    if len(lines) < 4:  # of a file without lines, 16 bytes
        lines = [content[i : i + 16] for i in range(0, len(content), 16)]
    at = int(draws.integers(len(lines)))
    return b"".join(
        lines[:at] + lines[at : at + 1] * (2 if mutation == "doubled" else 0) + lines[at + 1 :]
    )


def _with(content, at, value):
    return content[:at] + bytes([value]) + content[at + 1 :]


def arguments_of(command, run, file):
    """Returns the arguments of a command, for the format of export that a file belongs to."""
    kind = next((name for name in ("onnx", "pt2") if file.endswith(name)), "safetensors")
    if command == "export":
        return [command, run, "--format", kind]
    if command == "evaluate":
        return [command, run / EXPORTS[kind], "--json"]
    return [command, run, *(["--json"] if command == "status" else [])]


def result_of(command, run, file, text):
    """Returns what a command has left or said, apart from times."""
    folder = RunFolder(run)
    match command:
        case "status":
            return {one["name"]: one for one in _json(text)["searches"]}
        case "resume":
            journals = (run / "journal.jsonl", run / "baselines/random/journal.jsonl")
            trials = [_trials(journal) for journal in journals]
            return {"trials": trials, "base": _tensors(folder.base), "printed": _printed(text)}
        case "finetune":
            weights = [
                _tensors(run / f"finetuned/{name}.safetensors")
                for name in STRUCTURES
                if _due(run, name)
            ]
            scores = [
                folder.read_json(f"finetuned/{name}.json") for name in STRUCTURES if _due(run, name)
            ]
            return {"weights": weights, "scores": scores, "printed": _printed(text)[-4:]}
        case "report":
            return _report(json.loads((run / "report.json").read_text()))
        case "export":
            return _exported(run, file)
        case _:
            found = _json(text)
            return {
                key: value
                for key, value in found.items()
                if key not in ("path", "bytes", "latency_ms")
            }


def _due(run, name):
    return name == WINNER or (run / "finetuned" / f"{name}.json").exists()


def _json(text):
    """Returns the JSON in what a command printed."""
    start = text.index("{")
    return json.JSONDecoder().raw_decode(text[start:])[0]


def _trials(journal):
    found = read_journal(journal).trials
    return {
        n: dataclasses.replace(t, evaluation=dataclasses.replace(t.evaluation, seconds=0.0))
        for n, t in found.items()
    }


def _tensors(path):
    return {name: tensor.numpy().tobytes() for name, tensor in sorted(load_tensors(path).items())}


def _printed(text):
    """Returns the lines of a result: neither of progress and steps nor warnings, nor those with the folder's path."""
    lines = [
        line
        for line in text.splitlines()
        if not re.match(r"warning: |run folder: |next: |.*: \d+/\d+, |.* \.\.\.$", line)
    ]
    return [line for line in lines if " was fine-tuned by " not in line]


def _report(made):
    rows = [
        {k: v for k, v in row.items() if k not in ("latency_ms", "times")}
        for row in made.get("rows", ())
    ]
    curves = made["charts"]["fitness"]
    return {
        "curves": curves,
        "rows": rows,
        "front": made.get("front"),
        "widths": made.get("widths"),
    }


def _exported(run, file):
    kind = next((name for name in ("onnx", "pt2") if file.endswith(name)), "safetensors")
    with torch_seeded(1, "images"), torch.inference_mode():
        outputs = load(run / EXPORTS[kind])(torch.randn(3, 1, 8, 8))
    plan = json.loads((run / "export/plan.json").read_text())
    return {"outputs": outputs.numpy().tobytes(), "plan": plan if kind == "safetensors" else None}


@dataclasses.dataclass
class Case:
    """One mutation of one file."""

    state: str
    file: str
    mutation: str
    seed: int

    @property
    def name(self):
        return f"{self.state}: {self.file} {self.mutation} ({self.seed})"


def cases(count, seed=0):
    """Returns so many cases or a few more, all kinds of files and of mutations alike often."""
    pairs = [(s, f, m) for s, files in FILES.items() for f in files for m in MUTATIONS]
    rounds = -(-count // len(pairs))
    return [
        Case(s, f, m, seed + 1000 * r + i)
        for r in range(rounds)
        for i, (s, f, m) in enumerate(pairs)
    ]


class Undisturbed:
    """What every command leaves on the undisturbed folders; a status is that of the end."""

    def __init__(self, runs, path):
        self.runs, self._path, self._known = runs, path, {}

    def __call__(self, state, command, file):
        kind = (state, command, next((name for name in ("onnx", "pt2") if file.endswith(name)), ""))
        if kind not in self._known:
            run = copied(self.runs[state], self._path / "undisturbed")
            for before in COMMANDS[state] if command == "status" else ():
                assert call(*arguments_of(before, run, file))[0] == 0
            status, text = call(*arguments_of(command, run, file))
            assert status == 0, text
            self._known[kind] = result_of(command, run, file, text)
        return self._known[kind]

    def trials(self, state):
        """Returns all trials of the search and of its random baseline."""
        kind = (state, "trials")
        if kind not in self._known:
            run = copied(self.runs[state], self._path / "undisturbed")
            assert call("resume", run)[0] == 0
            self._known[kind] = [
                _trials(run / "journal.jsonl"),
                _trials(run / "baselines/random/journal.jsonl"),
            ]
        return self._known[kind]


def copied(run, path):
    """Returns a fresh copy of a run, always at the same path."""
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(run, path / "run")
    return path / "run"


def tried(case, undisturbed, path):
    """Damages a file and runs the commands, one of them first in turn; returns (command, verdict, text) for each."""
    draws = np.random.default_rng(case.seed)
    run = copied(undisturbed.runs[case.state], path / "mutated")
    (target,) = run.glob(case.file)
    before = target.read_bytes()
    after = mutated(before, case.mutation, draws)
    if after is None:
        target.unlink()
    else:
        target.write_bytes(after)
    names = COMMANDS[case.state]
    first = names[int(draws.integers(len(names)))]
    found = []
    for command in (first, *(name for name in names if name != first)):
        status, text = call(*arguments_of(command, run, case.file))
        found.append((command, *_verdict(command, status, text, case, run, target, undisturbed)))
    return found


def _verdict(command, status, text, case, run, target, undisturbed):
    """Returns (what came of it, see `table`; the text)."""
    # Then the folder is no longer one
    gone = target.name in ("run.json", "plan.json") and not target.exists()
    named = str(target.parent) in text and (
        target.name in text or gone or target.name == "run.json"
    )
    if status == 2:
        right = (
            named
            and _ADVICE.search(text)
            and text.count("error: ") == 1
            and "Traceback" not in text
        )
        return ("refused" if right else "unclear"), text
    if status != 0:
        return "traceback", text
    expected = undisturbed(case.state, command, case.file)
    try:
        result = result_of(command, run, case.file, text)
    except (AbcSearchError, SafetensorError, OSError, ValueError, KeyError) as error:
        return "different", f"{text}\nleft behind: {error!r}"
    if result == expected or (
        command == "status" and _so_far(result, expected, undisturbed.trials(case.state))
    ):
        return "same", text
    if command == "report" and named and _shows_less(result, expected):
        return "partial", text
    if command == "report" and "not finished" in text and _shows_less(result, expected):
        return "partial", text
    keys = [key for key in expected if result.get(key) != expected[key]]
    return (
        "warned" if named and "warning: " in text else "different"
    ), f"{text}\ndifferent: {keys}"


_ADVICE = re.compile(
    r"delete|remove|restore|write it again|did you mean|abcsearch (resume|finetune|export|search)"
)


def _so_far(result, expected, trials):
    """Whether a status counts trials that there were, none of them another."""
    for (name, now), true in zip(result.items(), trials, strict=True):
        before = expected.get(name)
        if before is None or now["done"] > before["done"] or now["failed"] > before["failed"]:
            return False
        if (
            now["best"] is not None
            and tuple(now["best"]["candidate"]) != true[now["best"]["number"]].candidate
        ):
            return False
    return True


def _shows_less(result, expected):
    """Whether a report lacks trials or networks, and has nothing that differs from what it would show."""
    curves = {curve["name"]: curve["fitness"] for curve in expected["curves"]}
    short = all(
        curve["fitness"] == curves[curve["name"]][: len(curve["fitness"])]
        for curve in result["curves"]
    )
    rows = {row["network"]: row for row in expected["rows"]}
    tuned = ("after", "tests", "before", "otherwise")
    pairs = [(row, rows.get(row["network"], {})) for row in result["rows"]]
    complete = [
        curve["name"]
        for curve in result["curves"]
        if len(curve["fitness"]) == len(curves[curve["name"]])
    ]
    return short and all(
        row[key] == before.get(key) or (key in tuned and row["after"] is None)
        for row, before in pairs
        if row["network"] not in curves or row["network"] in complete
        for key in row
    )


def table(outcomes):
    """Returns the table of what happened: commands by kind of file and mutation.

    same: as on the undisturbed folder. refused: with exit status 2, one message, the file, and what to do. partial: a
    report that shows less, and says what is missing. None of the others may be: another result beside a warning
    (warned), a message that does not say which file or what to do (unclear), a traceback, another result (different).
    """
    verdicts = ("same", "refused", "partial", *WRONG)
    counts = collections.defaultdict(collections.Counter)
    for case, found in outcomes:
        row = counts[f"{case.state}: {case.file}", case.mutation]
        row["tried"] += 1
        row.update(verdict for _, verdict, _ in found)
    lines = [
        f"{'file':46} {'mutation':10} {'tried':>5} " + " ".join(f"{name:>9}" for name in verdicts)
    ]
    lines += [
        f"{file:46} {mutation:10} {row['tried']:5} "
        + " ".join(f"{row[name]:9}" for name in verdicts)
        for (file, mutation), row in counts.items()
    ]
    total = sum(counts.values(), collections.Counter())
    lines.append(
        f"{'all':57} {total['tried']:5} " + " ".join(f"{total[name]:9}" for name in verdicts)
    )
    return "\n".join(lines)


def wrong(outcomes):
    """Returns what must not be: case, command, verdict, and what was printed."""
    return [
        f"{case.name}, {command}: {verdict}\n{text[-1500:]}"
        for case, found in outcomes
        for command, verdict, text in found
        if verdict in WRONG
    ]
