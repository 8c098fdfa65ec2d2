"""A self-contained HTML page with charts: one file, nothing is fetched, readable on paper."""

from __future__ import annotations

import base64
import functools
import html
import json
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from plotly.offline import get_plotlyjs

from abcsearch.errors import ConfigError, escaped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import plotly.graph_objects as go

    from abcsearch.reporting.tables import Line

_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
# What base85 of Python writes, but for the characters that mean something in HTML.
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%.()*+-;:=/?@^_`{|}~"
_PYTHONS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_SCRIPT = """
(async function () {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const small = window.innerWidth < 700;
  const options = { responsive: true, displaylogo: false, displayModeBar: small ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d"] };
  try {
    const packed = document.getElementById("plotly"), text = packed.textContent, values = {};
    [...packed.dataset.digits].forEach((digit, value) => { values[digit.charCodeAt(0)] = value; });
    const view = new DataView(new ArrayBuffer(text.length / 5 * 4));
    for (let i = 0, o = 0; i < text.length; i += 5, o += 4) {
      let number = 0;
      for (let k = 0; k < 5; k++) number = number * 85 + values[text.charCodeAt(i + k)];
      view.setUint32(o, number);
    }
    const bytes = new Uint8Array(view.buffer, 0, Number(packed.dataset.bytes));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  } catch (error) {
    document.getElementById("old").hidden = false;
    return;
  }
  for (const [name, figure] of Object.entries(charts)) {
    if (small) {
      Object.assign(figure.layout.margin, { l: 48, r: 12 });
      for (const axis of [figure.layout.xaxis, figure.layout.yaxis])
        if (axis && axis.title) axis.title.font = { size: 10 };
      figure.layout.legend.font = { size: 11 };
      if (figure.layout.updatemenus) {  // a legend of several lines would lie under the buttons
        Object.assign(figure.layout.legend, { y: -0.25, yanchor: "top" });
        for (const menu of figure.layout.updatemenus) menu.y = 1.04;
        Object.assign(figure.layout.margin, { t: 60, b: 170 });
        figure.layout.height += 90;
        document.getElementById(name).style.height = `${figure.layout.height}px`;
      }
    }
    await Plotly.newPlot(name, figure.data, figure.layout, options);
  }
})();
"""
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath fill='%230072B2' d='M1 9h3v6H1zM6 5h3v10H6zM11 1h3v14h-3z'/%3E%3C/svg%3E"
)
_NO_SCRIPT = (
    "<noscript><p class='warning'>The charts need JavaScript; the PNG files beside do not.</p></noscript>"
    "<p class='warning' id='old' hidden>The charts need a browser of 2023 or later; the PNG files beside do not.</p>"
)


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a page.

    Attributes:
        title: its heading.
        lead: what is to be seen, plain text; "" for nothing.
        hint: how to use the chart, plain text, not on paper; "" for nothing.
        chart: name of its chart; "" for none.
        body: HTML below the chart.
    """

    title: str
    lead: str = ""
    hint: str = ""
    chart: str = ""
    body: str = ""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page.

    Attributes:
        title: plain text.
        subtitle: plain text.
        headline: what was found, in one sentence; "" for none.
        tiles: (number, what it is), plain texts.
        warnings: plain texts.
        sections: in their order.
        charts: by name.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    charts: Mapping[str, go.Figure] = field(repr=False)
    headline: str = ""
    tiles: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()

    def html(self) -> str:
        """Returns the page as HTML."""
        tiles = "".join(
            f'<div class="tile"><b>{_safe(_bound(n))}</b><span>{_safe(_bound(what))}</span></div>'
            for n, what in self.tiles
        )
        blocks = [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<title>{_safe(self.title)}</title><link rel="icon" href="{_ICON}">',
            f"<style>{_STYLE}</style></head><body>",
            f'<header><h1>{_safe(self.title)}</h1><p class="sub">{_safe(self.subtitle)}</p></header>',
            f'<p class="headline">{_safe(_bound(self.headline))}</p>' if self.headline else "",
            f'<div class="tiles">{tiles}</div>' if tiles else "",
            *(f'<p class="warning">{_safe(text)}</p>' for text in self.warnings),
            _NO_SCRIPT,
            *(self._section(section) for section in self.sections),
            f'<script type="application/json" id="charts">{_embedded(self.charts)}</script>',
            _packed(get_plotlyjs()),
            f"<script>{_SCRIPT}</script>",
            "</body></html>\n",
        ]
        return "\n".join(block for block in blocks if block)

    def _section(self, section: Section) -> str:
        """Returns a section as HTML."""
        chart = self.charts.get(section.chart)
        height = 0 if chart is None else chart.to_dict()["layout"]["height"]
        return "\n".join(
            [
                f'<section><div class="keep{"" if chart is not None else " head"}"><h2>{_safe(section.title)}</h2>',
                paragraph(section.lead) if section.lead else "",
                paragraph(section.hint, "no-print") if section.hint else "",
                f'<div class="chart" id="{section.chart}" role="img" aria-label="{_safe(section.title)}"'
                f' style="height:{height}px"></div>'
                if chart is not None
                else "",
                "</div>",
                section.body,
                "</section>",
            ]
        )


@functools.cache
def _packed(code: str) -> str:
    """Returns plotly's code for the page's script to unpack: 1.8 MB instead of 4.8, in any browser since 2023."""
    squeezed = zlib.compress(code.encode(), 9)
    text = base64.b85encode(squeezed, pad=True).decode().translate(str.maketrans(_PYTHONS, _DIGITS))
    data = f'data-bytes="{len(squeezed)}" data-digits="{html.escape(_DIGITS)}"'
    return f'<script type="text/plain" id="plotly" {data}>{text}</script>'


def _safe(text: str) -> str:
    """Returns plain text as HTML, with every character of it to be seen."""
    return html.escape(escaped(str(text)))


def _bound(text: str) -> str:
    """Returns a text in which units and signs of per cent stay with their numbers."""
    return re.sub(r"(?<=\d) (?=%|[kMG]\b)", "\u00a0", text)


def _embedded(charts: Mapping[str, go.Figure]) -> str:
    """Returns the charts as JSON that no text in them can break out of, with every character of it to be seen."""
    plain = {name: _seen(json.loads(figure.to_json() or "{}")) for name, figure in charts.items()}
    text = json.dumps(plain, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _seen(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Returns a JSON value whose texts are escaped; they are HTML already."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, dict):
        return {key: _seen(inner) for key, inner in cast("dict[str, Any]", value).items()}
    return (
        [_seen(inner) for inner in cast("list[Any]", value)] if isinstance(value, list) else value
    )


def paragraph(text: str, kind: str = "") -> str:
    """Returns plain text as a paragraph."""
    return f'<p class="{kind}">{_safe(text)}</p>' if kind else f"<p>{_safe(text)}</p>"


def link(path: str, text: str) -> str:
    """Returns a paragraph that leads to a file beside the page."""
    return f'<p><a href="{html.escape(quote(path))}">{_safe(text)}</a></p>'


def code(text: str, kind: str = "") -> str:
    """Returns lines of code or of a terminal."""
    return f'<pre class="{kind}">{_safe(text)}</pre>' if kind else f"<pre>{_safe(text)}</pre>"


def table(cells: Sequence[Sequence[str]], numbers: Sequence[int] = (), kind: str = "") -> str:
    """Returns a table of plain texts; the first row is the header.

    Args:
        cells: rows of equal length.
        numbers: columns that are right-aligned.
        kind: class of the table: "dense" for many columns, whose cells are broken between numbers where they must.
    """
    cells = [[_bound(cell) for cell in row] for row in cells]
    head, *rows = cells
    kinds = [' class="n"' if column in numbers else "" for column in range(len(head))]
    top = "".join(f"<th{kind}>{_safe(cell)}</th>" for kind, cell in zip(kinds, head, strict=True))
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{kind}>{_safe(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    )
    opened = f'<table class="{kind}">' if kind else "<table>"
    return f'<div class="scroll">{opened}<thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def network_table(
    names: Sequence[str], parts: Sequence[tuple[str, Sequence[Line]]], order: Sequence[int]
) -> str:
    """Returns the table of networks: a column for each; below every number, what it is against the full network.

    Args:
        names: of the networks.
        parts: titles and lines, whose cells are in the order of the names.
        order: places of the networks as they are shown, the winner first.
    """
    kinds = {index: "n winner" if index == order[0] else "n" for index in order}
    # A narrow screen breaks names where they have an underscore, not within a word.
    heads = [_safe(name).replace("_", "_<wbr>") for name in names]
    top = "".join(f'<th class="{kinds[index]}">{heads[index]}</th>' for index in order)
    rows: list[str] = []
    for title, lines in parts:
        rows.append(f'<tr class="part"><th colspan="{len(names) + 1}">{_safe(title)}</th></tr>')
        for line in lines:
            cells = "".join(
                f'<td class="{kinds[index]}">{_cell(*line.cells[index])}</td>' for index in order
            )
            rows.append(f"<tr><td>{_safe(line.name)}</td>{cells}</tr>")
    body = "\n".join(rows)
    head = f"<thead><tr><th></th>{top}</tr></thead>"
    return (
        f'<div class="scroll"><table class="networks">{head}<tbody>\n{body}\n</tbody></table></div>'
    )


def _cell(text: str, change: str) -> str:
    """Returns a number; what is in brackets after it, and below what it is against the full network, in small."""
    number, bracket, rest = text.partition(" (")
    inside = f"<small>{_safe(f'({rest}')}</small>" if bracket else ""
    return f"{_safe(_bound(number))}{inside}" + (
        f"<small>{_safe(_bound(change))}</small>" if change else ""
    )


def check_page(out: Path, usual: str) -> None:
    """Raises ConfigError unless this can be a page, with its numbers and pictures beside it.

    Args:
        out: the page.
        usual: a name that does, for the message.
    """
    problem = ""
    if out.suffix != ".html":
        problem = "does not end in .html"
    elif out.is_dir():
        problem = "is a folder"
    elif (out.parent / "run.json").exists():
        problem = "is in a run folder, whose own report it could replace"
    if problem:
        msg = f"--out {out} {problem}; name a page elsewhere, e.g. {usual}"
        raise ConfigError(msg)
