"""A terminal that is closed stops a command as SIGTERM does, unless it was started by nohup; no line that fails."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios

import pytest

from tests.problems import PATIENCE, until

COMMAND = """
import itertools, pathlib, sys, time
import typer
from rich.progress import Progress
from abcsearch.terminal import answering, console


def main(file: pathlib.Path, end: pathlib.Path):
    with answering():
        with Progress() as progress:
            task = progress.add_task("search", total=None)
            for number in itertools.count():
                console.print("trial")
                progress.update(task, advance=1)
                if number == 1:
                    file.write_text("running")  # once: it must be whole when the signal comes
                if end.exists():
                    break
                time.sleep(0.01)
        console.print("the end")
        file.write_text("whole")


typer.run(main)
"""


def says(file, words):
    return file.exists() and file.read_text() == words


def on_terminal(path, *, nohup):
    """Returns a running command and the other side of its terminal."""
    ours, theirs = pty.openpty()

    def lead():
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)

    line = [sys.executable, "-c", COMMAND, str(path), str(path.with_name("end"))]
    process = subprocess.Popen(line, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=lead)  # noqa: PLW1509
    os.close(theirs)
    os.set_blocking(ours, False)
    return process, ours


@pytest.mark.parametrize("nohup", [False, True])
def test_a_closed_terminal_stops_a_command_unless_nohup_started_it(tmp_path, nohup):
    file = tmp_path / "says"
    process, ours = on_terminal(file, nohup=nohup)
    try:
        until(lambda: says(file, "running"), "the command")
        os.close(ours)
        if nohup:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)  # it goes on, whatever it prints
            (tmp_path / "end").touch()
        assert process.wait(PATIENCE) == (0 if nohup else 130)
    finally:
        process.kill()
    assert says(file, "whole" if nohup else "running")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_of_one_kind_have_one_status(tmp_path, number):
    file = tmp_path / "says"
    line = [sys.executable, "-c", COMMAND, str(file), str(tmp_path / "never")]

    def heard():  # also where the tests themselves run under nohup
        signal.signal(number, signal.SIG_DFL)

    kept = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.PIPE,
        "text": True,
        "preexec_fn": heard,
    }
    with subprocess.Popen(line, **kept) as process:
        until(lambda: says(file, "running"), "the command")
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "what is under way is dropped" in errors
    assert "Traceback" not in errors
