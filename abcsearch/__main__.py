"""`python -m abcsearch` is the command line."""

from abcsearch.cli import main

main()
