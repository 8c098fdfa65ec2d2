"""What is being done now, for those who wait: said whenever something begins that may take more than a moment.

The command line shows it; elsewhere it is the logger `abcsearch.steps`, silent unless it is given a handler.
"""

from __future__ import annotations

import logging

STEPS = logging.getLogger("abcsearch.steps")
STEPS.propagate = False  # it is no part of what a run writes to its log
STEPS.setLevel(logging.INFO)


def doing(text: str) -> None:
    """Says what begins now, in a few words: "tracing the network"."""
    STEPS.info(text)
