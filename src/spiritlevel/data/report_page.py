"""A data report as one HTML page that needs no network, and as a table in the terminal.

Both are drawn from the document that `data_report` makes; nothing is computed here but layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

# A tone -> its word, its sign and its colour in the terminal; the word always stands beside the colour.
TONES = {
    "good": ("fine", "✓", "green"),
    "unsure": ("look", "?", "yellow"),
    "bad": ("mend", "✗", "red"),
    "plain": ("", "·", ""),
}
_WIDTH, _LEFT, _TOP, _BOTTOM = 400.0, 10.0, 14.0, 140.0
_BAR = Markup('<path class="bar" d="M{:.1f} {:.1f}H{:.1f}V{:.1f}H{:.1f}Z"><title>{}: {:,}</title></path>')
_TICK = Markup('<text x="{:.1f}" y="156" class="x">{}</text>')
_MARK = Markup('<path class="mark" d="M{:.1f} {:.1f}V{:.1f}"/>')
_CHART = Markup(
    '<svg viewBox="0 0 400 170" role="img" aria-label="{0}"><title>{0}</title>{1}'
    '<path class="axis" d="M10 140H390"/></svg>'
)


def render_html(report: Mapping[str, Any]) -> str:
    """One HTML file: styles and drawings are inside, it has no script, and its CSP forbids all else."""
    page = Environment(
        loader=PackageLoader("spiritlevel.data", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page.filters |= {"shown": shown, "chart": chart}
    figures = [figure for section in report["sections"] for figure in section["figures"]]
    worst = [figure for tone in ("bad", "unsure") for figure in figures if figure["tone"] == tone]
    return page.get_template("report.html.j2").render(report=report, tones=TONES, worst=worst)


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Every figure on a line, and what to do about those that are not as they should be."""
    title = f"{report['file']}: {report['read']:,} of {report['rows']:,} rows read"
    table = Table("", "figure", "value", "what to do", title=_plain(title))
    for section in report["sections"]:
        table.add_section()
        table.add_row("", Text(section["title"], "bold"), "", "")
        for figure in section["figures"]:
            _, sign, colour = TONES[figure["tone"]]
            advice = figure["advice"] if figure["tone"] in ("bad", "unsure") else ""
            table.add_row(Text(sign, colour), _plain(figure["title"]), shown(figure), _plain(advice))
    console.print(table)
    if report["tokenizer"] is None:
        console.print("Lengths are in words. Give --model to see cuts, lost end tokens and the faults of its template.")


def _plain(text: str) -> Text:
    """Text from outside, without markup and without what could steer a terminal."""
    return Text("".join(char if char.isprintable() else " " for char in text))


def shown(figure: Mapping[str, Any]) -> str:
    """A figure's value as people write it."""
    value = figure["value"]
    if value is None:
        return "can't be told"
    if figure["kind"] == "share":
        return f"{value:.1%} ({figure['low']:.1%} to {figure['high']:.1%})"
    if figure["kind"] == "fault":
        return "yes"
    share = f" of {figure['of']:,} ({value / figure['of']:.1%})" if figure["of"] else ""
    return f"{value:,}{share}"


def chart(histogram: Mapping[str, Any]) -> Markup:
    """Bars of equal width from edge to edge, with the mark as a line."""
    edges: Sequence[float] = histogram["edges"]
    counts: Sequence[int] = histogram["counts"]
    width = (_WIDTH - 2 * _LEFT) / len(counts)
    most = max(counts) or 1

    def across(value: float) -> float:
        """Where `value` lies, between the edges around it."""
        place = max(0, min(sum(value >= edge for edge in edges) - 1, len(counts) - 1))
        low, high = edges[place], edges[place + 1]
        return _LEFT + width * (place + min(1.0, max(0.0, (value - low) / (high - low))))

    drawn = []
    for place, count in enumerate(counts):
        left, top = _LEFT + width * place, _BOTTOM - (_BOTTOM - _TOP) * count / most
        span = f"{edges[place]:g} to {edges[place + 1]:g} {histogram['unit']}"
        drawn.append(_BAR.format(left + 0.5, top, left + width - 0.5, _BOTTOM, left + 0.5, span, count))
    every = max(1, len(edges) // 6)
    drawn += [_TICK.format(across(edge), f"{edge:g}") for edge in edges[::every]]
    if histogram["mark"] is not None:
        drawn.append(_MARK.format(across(histogram["mark"]), _TOP, _BOTTOM))
    label = f"{histogram['title']}, {histogram['unit']}: {sum(counts):,} values, at most {most:,} in one bar"
    return _CHART.format(label, Markup("").join(drawn))
