"""Results as people see them: five lines in a terminal, a small table in a notebook."""

from __future__ import annotations

import html

from abcsearch.errors import escaped


class Summarised:
    """A result that says what it is in a few lines."""

    @property
    def summary(self) -> tuple[tuple[str, str], ...]:
        """Names and values, a line each."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Returns the class and a line for each value, every character of which shows."""
        width = max(len(name) for name, _ in self.summary)
        lines = (f"  {name:<{width}}  {value}" for name, value in self.summary)
        return escaped("\n".join([type(self).__name__, *lines]))

    def _repr_html_(self) -> str:
        """Returns a small table for a notebook."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(escaped(name))}</th>"
            f"<td style='text-align:left'>{html.escape(escaped(value))}</td></tr>"
            for name, value in self.summary
        )
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"
