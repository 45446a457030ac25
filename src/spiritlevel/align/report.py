"""The report of one alignment: a single HTML page that needs no network, and the same facts in the terminal.

Both are drawn from the dictionary that is also written as report.json; nothing is computed here but layout.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeGuard

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

Point = tuple[float, float]

# A verdict or outcome -> how it is shown; its word and an icon always stand beside the colour.
TONES = {
    "pass": "good", "fixed": "good", "improved": "good",
    "fail": "bad", "broken": "bad", "worsened": "bad", "still bad": "bad",
    "not enough data": "unsure", "unclear": "unsure", "no data": "unsure", "still good": "plain",
}  # fmt: skip
_TERMINAL = {"good": ("✓", "green"), "bad": ("✗", "red"), "unsure": ("?", "yellow"), "plain": ("·", "")}
_TITLES = {"over_refusal": "Over-refusal", "help": "Questions to be helped"}
_OUTCOMES = ("broken", "fixed", "still bad", "still good")
_CURVES: tuple[tuple[str, tuple[str, ...], Point | None], ...] = (
    ("Loss", ("loss",), None),
    ("Margin, chosen over rejected", ("margin",), None),
    ("Accuracy: pairs with chosen ahead", ("accuracy",), (0.0, 1.0)),
    ("Implicit reward, chosen and rejected", ("reward_chosen", "reward_rejected"), None),
)
_GRID = Markup('<path class="grid" d="M{0} {1:.1f}H{2}"/><text x="{0}" y="{1:.1f}" class="y">{3}</text>')
_STEP = Markup('<text x="{:.1f}" y="176" class="x">{}</text>')
_LINE = Markup('<path class="{} {}" d="M{}h0"/>')
_NAME = Markup('<text class="{}" x="{}" y="{:.1f}" dx="6">{} {}</text>')
_CURVE = Markup('<svg viewBox="0 0 410 182" role="img" aria-label="{0}"><title>{0}</title>{1}</svg>')
_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{16,128}")


def render_html(report: dict[str, Any]) -> str:
    """The report as one HTML file: styles, script and drawings are inside, and its CSP forbids all else."""
    folder = PackageLoader("spiritlevel.align", "")
    page = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    functions = (percent, points, number, p_value, interval, duration, wording)
    page.filters |= {function.__name__: function for function in functions}
    page.globals |= {f.__name__: f for f in (change_word, gate_number, gate_bar, highlighted, points)}
    page.tests["digest"] = lambda value: isinstance(value, str) and bool(_DIGEST.fullmatch(value))
    return page.get_template("report.html.j2").render(
        report=report,
        rows={row["measure"]: row for row in report["rows"]},
        titles={row["measure"]: row["title"] for row in report["rows"]} | _TITLES,
        cases=sorted(enumerate(report["cases"], 1), key=lambda item: _OUTCOMES.index(item[1]["outcome"])),
        outcomes=Counter(case["outcome"] for case in report["cases"]),
        sources=sorted({source for counts in report["training"]["sources"].values() for source in counts}),
        curves=training_curves(report["training"]["history"], report["training"]["settings"].get("margin_tokens")),
        tones=TONES,
    )


def print_report(report: dict[str, Any], console: Console) -> None:
    """Verdict, table, gates and cases."""
    console.print(_toned(report["verdict"]) + "  " + _plain(report["sentence"]))
    table = Table("measure (lower is better)", "before", "after", "change", "exact p")
    table.caption = f"Intervals: two-sided, {report['interval_confidence']:.0%}."
    for row in report["rows"]:
        change, rates = row["change"], (row["before"], row["after"])
        table.add_row(
            _plain(row["title"]),
            *(f"{percent(rate['value'])} ({rate['hits']}/{rate['n']})\n{interval(rate)}" for rate in rates),
            _toned(change_word(change), points(change["difference"])) + f"\n{interval(change, points)}",
            p_value(change["p_exact"]),
        )
    console.print(table)
    gates = Table("gate", "estimate", "limit", "bounds", "verdict")
    gates.caption = f"Bounds: each one-sided, {report['confidence']:.0%}."
    for gate in report["gates"]:
        show = gate_number(gate["condition"])
        values = (show(gate["estimate"]), show(gate["limit"]), interval(gate, show))
        gates.add_row(_plain(gate["condition"]), *values, _toned(gate["verdict"]))
    console.print(gates)
    perplexity = report["perplexity"]
    before, after, ratio = (number(perplexity[key]) for key in ("before", "after", "ratio"))
    console.print(f"Perplexity {before} → {after} (×{ratio}, {perplexity['passages']} neutral passages)")
    outcomes = Counter(case["outcome"] for case in report["cases"])
    console.print("Cases: " + ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in _OUTCOMES))


def _toned(word: str, before: str = "") -> Text:
    icon, colour = _TERMINAL[TONES[word]]
    return Text(f"{before or icon} {word}", f"bold {colour}")


def _plain(text: object) -> Text:
    """Text from outside, without markup and without the control characters that could steer a terminal."""
    return Text("".join(char if char.isprintable() else " " for char in str(text)))


# --- words and numbers; a value that is null or not finite is a dash


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def percent(value: float | None) -> str:
    return f"{value:.1%}" if _finite(value) else "–"


def points(value: float | None, unit: str = "") -> str:
    """The change of a share, in percentage points."""
    if not _finite(value):
        return "–"
    change = round(value * 100, 1)
    return (f"{change:+.1f}".replace("-", "−") if change else "0.0") + unit


def number(value: float | None) -> str:
    if not _finite(value):
        return "–"
    return (f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}").replace("-", "−")


def p_value(value: float | None) -> str:
    if not _finite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def interval(bounds: Mapping[str, Any], show: Callable[[float | None], str] = percent) -> str:
    low, high = show(bounds["low"]), show(bounds["high"])
    return high if low == high else f"{low} to {high}".replace(" points to ", " to ")


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def wording(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def change_word(change: Mapping[str, Any]) -> str:
    """Improved or worsened only where the interval and the exact test agree on it."""
    if not change["n"]:
        return "no data"
    low, high, p = change["low"], change["high"], change["p_exact"]
    if not (_finite(low) and _finite(high) and _finite(p)) or low <= 0 <= high or p >= 0.05:
        return "unclear"
    return "improved" if high < 0 else "worsened"


def gate_number(condition: str) -> Callable[[float | None], str]:
    """How a gate's numbers are written: a perplexity or its increase, a rate or its increase in points."""
    if condition.startswith("perplexity at most"):
        return number
    if " up by " in condition:
        unit = "%" if condition.startswith("perplexity") else " points"
        return lambda value: points(value, unit)
    return percent


def highlighted(reply: str, findings: Iterable[Mapping[str, Any]], titles: Mapping[str, str]) -> Markup:
    """`reply`, escaped, with the spans of the findings marked; one about the whole reply marks nothing."""
    spans = []
    for finding in findings:
        start, end = max(0, finding["span"][0]), min(finding["span"][1], len(reply))
        if start < end and (start, end) != (0, len(reply)):
            spans.append((start, end, titles.get(finding["rule_id"], finding["rule_id"])))
    parts = []
    for start, end in pairwise(sorted({0, len(reply), *(edge for span in spans for edge in span[:2])})):
        about = sorted({title for low, high, title in spans if low <= start and end <= high})
        mark = Markup('<mark title="{}">{}</mark>' if about else "{1}")
        parts.append(mark.format(", ".join(about), reply[start:end]))
    return Markup("").join(parts)


# --- drawings


def gate_bar(gate: Mapping[str, Any]) -> tuple[float | None, ...]:
    """Low, estimate and high with the limit at 0, scaled to -1..1; an endless bound is at the edge."""
    ends = {key: gate[key] - gate["limit"] for key in ("low", "estimate", "high") if _finite(gate[key])}
    scale = max(map(abs, ends.values()), default=0.0) or 1.0
    at = {"low": -1.0, "estimate": None, "high": 1.0} | {key: end / scale for key, end in ends.items()}
    return tuple(at.values())


def training_curves(history: Sequence[Mapping[str, Any]], margin_tokens: int | None) -> list[tuple[str, Markup]]:
    """(title, drawing) of every curve that the history has values for. margin_tokens: of each reply, that the margin,
    accuracy and rewards are about; None: all."""
    curves = []
    for title, keys, domain in _CURVES:
        if margin_tokens and keys != ("loss",):
            title = f"{title}, first {margin_tokens} tokens"
        lines = {key: [(row["step"], row[key]) for row in history if _finite(row.get(key))] for key in keys}
        if lines := {key.removeprefix("reward_"): line for key, line in lines.items() if line}:
            curves.append((title, line_chart(title, lines, domain)))
    return curves


def line_chart(title: str, lines: Mapping[str, Sequence[Point]], domain: Point | None) -> Markup:
    """Values by step, faint, under means of neighbouring steps, strong, whose last value is named."""
    left, top, right, bottom = 44.0, 12.0, 300.0, 158.0
    xs, ys = zip(*(point for line in lines.values() for point in line), strict=True)
    (x0, x1), (y0, y1) = (min(xs), max(xs)), domain or (min(ys), max(ys))
    across, up = (right - left) / ((x1 - x0) or 1), (bottom - top) / ((y1 - y0) or 1)

    def at(x: float, y: float) -> Point:
        return left + (x - x0) * across, bottom - (y - y0) * up

    marks = [_GRID.format(*at(x0, tick), right, number(tick)) for tick in ticks(y0, y1)]
    marks += [_STEP.format(at(tick, y0)[0], number(tick)) for tick in ticks(x0, x1)]
    told, below = [], 0.0
    for name, line in sorted(lines.items(), key=lambda item: -item[1][-1][1]):
        mean = means(line, 30)
        for kind, shown in ("raw", means(line, 240)), ("mean", mean):
            path = " L".join("{:.1f} {:.1f}".format(*at(*point)) for point in shown)
            marks.append(_LINE.format(kind, name, path))
        below = max(at(*mean[-1])[1] + 4, below + 14)
        marks.append(_NAME.format(name, right, below, number(mean[-1][1]), name if len(lines) > 1 else ""))
        told.append(f"{name} from {number(mean[0][1])} to {number(mean[-1][1])}")
    label = f"{title}, steps {x0:g} to {x1:g}: {'; '.join(told)}"
    return _CURVE.format(label, Markup("").join(marks))


def means(line: Sequence[Point], most: int) -> list[Point]:
    """`line` cut into at most `most` stretches, each as its mean."""
    size = math.ceil(len(line) / most)
    parts = [line[start : start + size] for start in range(0, len(line), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """At most `most` + 1 round numbers between `low` and `high`."""
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next((power * factor for factor in (1, 2, 5) if high - low <= most * power * factor), 10 * power)
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
