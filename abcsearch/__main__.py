"""`python -m abcsearch` is the command line."""

import os
import sys

if sys.path and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109 - pathlib.py may lie there, too
    del sys.path[0]  # what lies beside the user must not stand for a package; `main` puts the folder at the end

from abcsearch.cli import main

main()
