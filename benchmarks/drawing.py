"""A small SVG of reward against divergence, one line a method, every point with its standard error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from spiritlevel.align.report import number, ticks

LEFT, TOP, RIGHT, BOTTOM = 56.0, 16.0, 470.0, 250.0
# Colours that people who see few of them tell apart (Okabe & Ito 2008); the name stands beside each line as well.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_PAGE = Markup(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 560 300" width="560" height="300" role="img"'
    ' aria-label="{0}" font-family="sans-serif" font-size="11"><title>{0}</title>'
    '<rect width="560" height="300" fill="#fff"/>{1}</svg>\n'
)
_GRID = Markup('<path d="M{:.1f} {:.1f}L{:.1f} {:.1f}" stroke="#ddd"/>')
_TEXT = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" fill="{}">{}</text>')
_UPWARDS = Markup('<text transform="translate(16 {:.1f}) rotate(-90)" text-anchor="middle" fill="#333">{}</text>')
_LINE = Markup('<path d="M{}" fill="none" stroke="{}" stroke-width="1.5" stroke-dasharray="{}"/>')
_ERROR = Markup('<path d="M{0:.1f} {1:.1f}V{2:.1f}" stroke="{3}" stroke-opacity="0.5"/>')
_POINT = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"><title>{}</title></circle>')


@dataclass(frozen=True)
class Point:
    kl: float
    reward: float
    error: float
    label: str


def reward_against_kl(lines: dict[str, Sequence[Point]], *, title: str) -> Markup:
    """The divergence on a square-root scale, on which rewards rise evenly at first (Gao et al. 2022,
    arXiv:2210.10760)."""
    points = [point for line in lines.values() for point in line]
    most = max(1.0, *(point.kl for point in points))
    highest = max(1.0, *(point.reward for point in points))

    def at(kl: float, reward: float) -> tuple[float, float]:
        across = (max(0.0, kl) / most) ** 0.5
        return LEFT + (RIGHT - LEFT) * across, BOTTOM - (BOTTOM - TOP) * reward / highest

    marks = []
    for tick in ticks(0.0, highest):
        x, y = at(0, tick)
        marks += [_GRID.format(x, y, RIGHT, y), _TEXT.format(x - 6, y + 4, "end", "#333", number(tick))]
    for tick in (tick for tick in (0, 0.5, 1, 2, 5, 10, 20, 50) if tick <= most):
        x, y = at(tick, 0)
        marks += [_GRID.format(x, y, x, TOP), _TEXT.format(x, y + 16, "middle", "#333", number(tick))]
    marks.append(_TEXT.format((LEFT + RIGHT) / 2, 288, "middle", "#333", "divergence from the base, nats a reply (√)"))
    marks.append(_UPWARDS.format((TOP + BOTTOM) / 2, "mean reward, held-out prompts"))
    for colour, dashes, (name, line) in zip(COLOURS, ("", "6 3", "2 3", "8 2 2 2"), lines.items(), strict=False):
        places = [at(point.kl, point.reward) for point in line]
        marks.append(_LINE.format("L".join(f"{x:.1f} {y:.1f}" for x, y in places), colour, dashes))
        for point, (x, y) in zip(line, places, strict=True):
            low, high = (at(0, point.reward + side * point.error)[1] for side in (-1, 1))
            marks += [_ERROR.format(x, low, high, colour), _POINT.format(x, y, colour, point.label)]
        x, y = places[-1]
        marks.append(_TEXT.format(x + 6, y - 6, "start", colour, f"{name}, {line[-1].label}"))
    return _PAGE.format(title, Markup("").join(marks))
