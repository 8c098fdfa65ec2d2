"""A terminal that is closed stops a command as SIGTERM does, unless it was started by nohup; no line that fails."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time

import pytest

COMMAND = """
import pathlib, sys, time
import typer
from rich.progress import Progress
from abcsearch.terminal import answering, console


def main(file: pathlib.Path, seconds: float):
    with answering():
        ended = time.monotonic() + seconds
        with Progress() as progress:
            task = progress.add_task("search", total=None)
            while time.monotonic() < ended:
                console.print("trial")
                progress.update(task, advance=1)
                file.write_text("running")
                time.sleep(0.01)
        console.print("the end")
        file.write_text("whole")


typer.run(main)
"""


def on_terminal(path, seconds, *, nohup):
    """Returns a running command and the other side of its terminal."""
    ours, theirs = pty.openpty()

    def lead():
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)

    line = [sys.executable, "-c", COMMAND, str(path), str(seconds)]
    process = subprocess.Popen(line, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=lead)  # noqa: PLW1509
    os.close(theirs)
    os.set_blocking(ours, False)
    return process, ours


@pytest.mark.parametrize(("nohup", "seconds", "status", "says"), [(False, 60, 130, "running"), (True, 2, 0, "whole")])
def test_a_closed_terminal_stops_a_command_unless_nohup_started_it(tmp_path, nohup, seconds, status, says):
    file = tmp_path / "says"
    process, ours = on_terminal(file, seconds, nohup=nohup)
    try:
        end = time.monotonic() + 60
        while not file.exists() and time.monotonic() < end:
            time.sleep(0.01)
        os.close(ours)
        assert process.wait(60) == status
    finally:
        process.kill()
    assert file.read_text() == says


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_of_one_kind_have_one_status(tmp_path, number):
    file = tmp_path / "says"
    line = [sys.executable, "-c", COMMAND, str(file), "60"]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while not file.exists() and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "what is under way is dropped" in errors
    assert "Traceback" not in errors
