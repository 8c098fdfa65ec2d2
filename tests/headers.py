"""run.json with every key deleted, and with every wrong kind of value, each with a checksum that fits."""

import json

from abcsearch.files import CHECKSUM, sealed
from tests.mutations import CONFIG, call

KINDS = (None, True, -7, 0.25, "x", [], ["x"], {}, {"x": 1})
DELETED = object()
COMMANDS = ("status", "status --json", "resume", "report", "finetune", "export", "compare")


def made(path):
    """Makes a small finished run; returns its folder and its run.json as plain values."""
    config = path / "config.toml"
    config.write_text(CONFIG.replace("n_trials = 8", "n_trials = 4") + "budget = {macs = 0.5}\n")
    assert call("search", config, "--run-dir", path / "run", "--set", "pretrain.epochs=1")[0] == 0
    header = json.loads((path / "run" / "run.json").read_text())
    del header[CHECKSUM]
    return path / "run", header


def keys(plain, path=()):
    """Yields the path of every key, those of inner tables as well."""
    for key, value in plain.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from keys(value, (*path, key))


def wrong(header, path):
    """Yields what a key may wrongly be: deleted, or of another kind of JSON."""
    value = _at(header, path)
    yield DELETED
    for other in KINDS:
        alike = type(other) is type(value) and not (other and isinstance(other, dict | list))
        if not alike and other != value:
            yield other


def _at(plain, path):
    for key in path:
        plain = plain[key]
    return plain


def changed(header, path, value):
    """Returns run.json with one key changed, as text with a checksum."""
    header = json.loads(json.dumps(header))
    table = _at(header, path[:-1])
    if value is DELETED:
        del table[path[-1]]
    else:
        table[path[-1]] = value
    return sealed(header)


def failures(run, header, cases, commands):
    """Returns what ended otherwise than with exit status 0, or with 2 and one message that names file or folder.

    Args:
        run: the folder.
        header: its run.json as plain values.
        cases: pairs of a path and a value.
        commands: some of `COMMANDS`.
    """
    found = []
    for path, value in cases:
        for command in commands:
            (run / "run.json").write_text(changed(header, path, value))
            name, *options = command.split()
            if name == "compare":
                options = [run, run, "--out", run.parent / "page.html"]
            status, text = call(name, run, *options)
            right = status == 0 or (
                status == 2 and text.count("error: ") == 1 and "internal" not in text
            )
            if not right or "Traceback" in text:
                shown = "deleted" if value is DELETED else json.dumps(value)
                found.append(f"{'.'.join(path)} {shown}: {command}: {status}\n{text[-500:]}")
    (run / "run.json").write_text(sealed(header))
    return found
