"""`python -m abcsearch` and the script `abcsearch` are the command line."""

import os
import signal
import sys


def main() -> None:
    """Runs the command line; Ctrl-C ends it without a word while it is being imported, and nothing has begun."""
    # Under nohup and the like it is ignored
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from abcsearch.cli import main as run

    run()


if __name__ == "__main__":
    if sys.path and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109 - pathlib.py may lie there, too
        # What lies beside the user must not stand for a package; `main` puts the folder at the end
        del sys.path[0]
    main()
