"""The report: one page that loads nothing, escapes everything, and says what the terminal says."""

from __future__ import annotations

import copy
import io
import math
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from spiritlevel.align.report import (
    change_word,
    gate_bar,
    gate_number,
    highlighted,
    line_chart,
    means,
    number,
    percent,
    points,
    print_report,
    render_html,
    ticks,
)
from spiritlevel.stats import paired_change, wilson

VOID = {"meta", "link", "br", "input", "hr", "img"}
HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} \x1b[31m [red]a & \"b\" 'c'"
RULES = {
    "no-legal-advice": "No legal advice",
    "stay-in-scope": "Only accounting questions",
    "unused": "Unused",
}


def rate(hits: int, n: int) -> dict[str, Any]:
    found = wilson(hits, n)
    return {"hits": hits, "n": n, "value": hits / n if n else None, "low": found.low, "high": found.high}


def row(measure: str, title: str, before: list[bool], after: list[bool], **more: Any) -> dict[str, Any]:
    change = vars(paired_change(before, after)).copy()
    change = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in change.items()}
    rates = {"before": rate(sum(before), len(before)), "after": rate(sum(after), len(after))}
    return {
        "measure": measure,
        "title": title,
        "owner": None,
        "severity": None,
        **rates,
        "change": change,
        **more,
    }


def case(number: int, outcome: str, reply: str = "Ask your accountant.\nOr us.", **more: Any) -> dict[str, Any]:
    finding = {"rule_id": "no-legal-advice", "score": 0.75, "span": [0, 3], "evidence": reply[:3]}
    bad, good = {"reply": reply, "findings": [finding]}, {"reply": reply, "findings": []}
    before, after = {"fixed": (bad, good), "broken": (good, bad), "still good": (good, good)}.get(outcome, (bad, bad))
    return {
        "probe": f"held_out-{number}", "rule": "no-legal-advice", "expect": "refer",
        "prompt": f"Question {number}?", "before": before, "after": after, "outcome": outcome, **more,
    }  # fmt: skip


def a_report() -> dict[str, Any]:
    gate = {"condition": "leakage at most 20%", "estimate": 0.1, "low": 0.05, "high": 0.181, "limit": 0.2}
    run = {
        "id": "0123456789abcdef", "stage": "train", "started": "2026-11-20T08:12:44+00:00", "seconds": 3725.0,
        "command": "spiritlevel align c", "inputs": {"charter": "c" * 64, "settings": {"beta": 0.1}},
        "outputs": {"model": "d" * 64}, "versions": {"python": "3.12"}, "machine": {"system": "Linux"},
    }  # fmt: skip
    step = {"loss": 0.69, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens_per_second": 600.0}
    more = {"margin": 0.5, "accuracy": 0.75, "reward_chosen": 0.2, "reward_rejected": -0.3, "seconds": 2.0}
    charter = {"name": "accounting", "version": "1.0.0", "digest": "c" * 64, "owner": "o", "path": "c.yaml"}
    return {
        "verdict": "pass", "sentence": "The aligned model passes every gate of accounting 1.0.0.",
        "charter": charter,
        "model": {"name": "smollm2-135m", "digest": "a" * 64},
        "aligned_model": {"path": "runs/x/model", "digest": "sha256:" + "b" * 64},
        "seed": 7, "confidence": 0.9, "interval_confidence": 0.95,
        "rows": [
            row("leakage", "Leakage of all", [True] * 8 + [False] * 2, [True] + [False] * 9),
            row("over_refusal", "Over-refusal", [False] * 10, [False] * 9 + [True]),
            row("broken_while_helping", "Broken while helping", [False] * 10, [False] * 10),
            row("no-legal-advice", "No legal advice", [True], [False], owner="legal@x", severity="high"),
            row("stay-in-scope", "Only accounting questions", [False], [True], owner="ops", severity="low"),
            row("unused", "Unused", [], []),
        ],
        "gates": [
            {**gate, "verdict": "pass", "detectable": None},
            {
                "condition": "over-refusal up by at most 15 points", "estimate": 0.1, "low": -0.05,
                "high": 0.25, "limit": 0.15, "verdict": "not enough data", "detectable": 0.192,
            },
            {
                "condition": "perplexity up by at most 10%", "estimate": 0.3, "low": 0.2, "high": 0.4,
                "limit": 0.1, "verdict": "fail", "detectable": None,
            },
        ],
        "perplexity": {"before": 14.45, "after": 14.82, "ratio": 1.0256, "passages": 12},
        "cases": [case(n, o) for n, o in enumerate(["fixed", "broken", "still good", "still bad"], 1)],
        "training": {
            "method": "DPO", "pairs": 9, "settings": {"beta": 0.1},
            "sources": {"no-legal-advice": {"sampled": 4, "example": 2}, "help": {"helpful": 3}},
            "dropped": {"stay-in-scope": {"no candidate kept the rule": 2}},
            "history": [{"step": n, "epoch": n / 10, **step, **more, "memory_gb": 2.5} for n in range(1, 11)],
        },
        "judges": [{"role": "gate", "judge": "the charter's checks"}],
        "runs": [run, {**run, "stage": "measure-after", "versions": {"python": "3.11"}}],
        "created": "2026-11-20T10:00:00+00:00", "command": "spiritlevel align c --seed 7",
        "machine": {"processor": "EPYC", "system": "Linux"}, "versions": {"python": "3.12"},
    }  # fmt: skip


class Page(HTMLParser):
    """Checks that tags are balanced; keeps tags, ids, references and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    def having(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


def printed(report: dict[str, Any], width: int = 300) -> str:
    told = io.StringIO()
    print_report(report, Console(file=told, width=width, highlight=False))
    return told.getvalue()


def test_the_page_is_balanced_and_its_references_lead_somewhere() -> None:
    page = Page(render_html(a_report()))
    ids = page.having("id")
    assert len(ids) == len(set(ids))
    assert {href[1:] for href in page.having("href") if href.startswith("#")} <= set(ids)
    assert {name for value in page.having("aria-labelledby") for name in value.split()} <= set(ids)


def test_the_page_loads_nothing() -> None:
    html = render_html(a_report())
    page = Page(html)
    policy = [attributes["content"] for _, attributes in page.tags if attributes.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"]
    assert page.having("src") == []
    assert all(href.startswith(("#", "data:")) for href in page.having("href"))
    assert not re.search(r"https?://|@import|url\(|//[a-z]+\.", html)
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]


def test_text_from_outside_stays_text() -> None:
    report = a_report()
    plain = Page(render_html(report))
    for key in ("rule", "prompt", "probe"):
        report["cases"][0][key] = HOSTILE
    report["cases"][0]["before"] = {
        "reply": HOSTILE,
        "findings": [{"rule_id": HOSTILE, "score": 1.0, "span": [2, 30], "evidence": HOSTILE}],
    }
    report["charter"].update(name=HOSTILE, owner=HOSTILE, path=HOSTILE)
    report["rows"][3].update(title=HOSTILE, owner=HOSTILE)
    report["gates"][0]["condition"] = HOSTILE
    report["training"]["settings"] = {HOSTILE: HOSTILE}
    report["training"]["dropped"] = {HOSTILE: {HOSTILE: 1}}
    report["runs"][0]["inputs"] = {HOSTILE: HOSTILE}
    html = render_html(report)
    page = Page(html)
    assert html.count("<script>") == 1
    assert "onerror" not in {name for _, attributes in page.tags for name in attributes}
    assert [tag for tag, _ in page.tags].count("img") == 0 == [tag for tag, _ in plain.tags].count("img")
    assert "{{ 7 * 7 }}" in page.text
    assert HOSTILE in page.texts  # the prompt, whole


def test_line_breaks_and_marked_spans_are_kept() -> None:
    html = render_html(a_report())
    assert '<mark title="No legal advice">Ask</mark> your accountant.\nOr us.</p>' in html
    assert "score 0.75" in html


def test_every_rule_is_in_the_table_and_among_the_pairs() -> None:
    text = Page(render_html(a_report())).text
    for rule, title in RULES.items():
        assert text.count(title) >= 2 and rule in text
    assert "legal@x" in text and "no candidate kept the rule (2)" in text
    assert re.search(r"All 2 3 4 9", text)


@pytest.mark.parametrize("verdict", ["pass", "fail", "not enough data"])
def test_the_verdict_is_told_in_words_with_an_icon(verdict: str) -> None:
    report = a_report() | {"verdict": verdict}
    html = render_html(report)
    tone = {"pass": "good", "fail": "bad"}.get(verdict, "unsure")
    assert re.search(
        rf'<section class="verdict {tone}"[^>]*>\s*<svg[^>]*><use href="#icon-{tone}"/></svg>\s*<div>'
        rf"<strong>{verdict}</strong><p>{re.escape(report['sentence'])}</p>",
        html,
    )
    assert verdict in printed(report).splitlines()[0] and report["sentence"] in printed(report).splitlines()[0]


def test_the_sections_stand_in_the_order_of_reading() -> None:
    html = render_html(a_report())
    parts = "measures gates cases changed unchanged training pairs provenance judges"
    marks = ['<section class="verdict', '<div class="cards', *(f' id="{part}"' for part in parts.split())]
    places = [html.index(mark) for mark in marks]
    assert places == sorted(places)


def test_changed_cases_stand_open_broken_first_and_the_others_are_folded() -> None:
    html = render_html(a_report())
    changed = html[html.index('id="changed"') : html.index('id="unchanged"')]
    assert re.findall(r'data-outcome="([^"]+)"', changed) == ["broken", "fixed"]
    folded = html[html.index('<details id="unchanged"') :]
    assert re.findall(r'data-outcome="([^"]+)"', folded) == ["still bad", "still good"]


def test_what_is_missing_is_a_dash_and_nothing_is_drawn() -> None:
    report = a_report()
    report["gates"][2].update(estimate=None, low=None, high=math.inf)
    report["training"].update(history=[{"step": 1, "loss": 2.0}], sources={}, dropped={}, pairs=0)
    report.update(cases=[], runs=[], judges=[])
    html = render_html(report)
    assert not re.search(r"\b(nan|NaN|inf|None|null|undefined)\b", Page(html).text)
    assert "0 of 0" in html and "no pairs" in html and "no data" in html
    assert html.count("<figure>") == 1
    assert "0/0" in printed(report)
    report["training"]["history"] = []
    assert "No training history was recorded." in render_html(report)


def test_optional_training_numbers_may_be_absent_from_some_steps() -> None:
    report = a_report()
    report["training"]["history"] = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": math.nan, "margin": 0.1}]
    assert render_html(report).count("<figure>") == 2


def test_five_hundred_cases_have_distinct_anchors() -> None:
    report = a_report()
    report["cases"] = [case(n, ["fixed", "broken", "still good", "still bad"][n % 4]) for n in range(500)]
    ids = Page(render_html(report)).having("id")
    assert sum(name.startswith("case-") for name in ids) == 500 and len(ids) == len(set(ids))


def test_digests_are_short_to_read_and_whole_to_copy() -> None:
    page = Page(render_html(a_report()))
    assert {"a" * 64, "c" * 64, "d" * 64, "sha256:" + "b" * 64, "0123456789abcdef"} <= set(page.having("data-copy"))
    assert "a" * 12 + "…" in page.text and "a" * 13 not in page.text
    assert "Versions as above Machine" in page.text and "Versions python 3.11" in page.text


def test_the_terminal_says_the_same_numbers() -> None:
    report = a_report()
    told, page = printed(report), Page(render_html(report)).text
    for line in report["rows"]:
        change = line["change"]
        for value in (
            line["before"]["value"],
            line["after"]["value"],
            line["before"]["low"],
            line["after"]["high"],
        ):
            assert percent(value) in told and percent(value) in page
        for value in (change["difference"], change["low"], change["high"]):
            assert points(value) in told and points(value) in page
        assert line["title"] in told and change_word(change) in told and change_word(change) in page
    for gate in report["gates"]:
        show = gate_number(gate["condition"])
        for text in (gate["condition"], show(gate["estimate"]), show(gate["limit"]), gate["verdict"]):
            assert text in told and text in page
    assert "14.45 → 14.82" in told and "14.45 → 14.82" in page
    assert "1 broken, 1 fixed, 1 still bad, 1 still good" in told


def test_the_terminal_is_not_steered_by_a_title() -> None:
    report = a_report()
    report["rows"][3]["title"] = report["sentence"] = HOSTILE
    told = printed(report)
    assert "\x1b" not in told and "[red]a &" in told


def test_rendering_leaves_the_report_as_it_is() -> None:
    report = a_report()
    before = copy.deepcopy(report)
    render_html(report)
    printed(report)
    assert report == before


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(0.1234), "12.3%"), (percent(None), "–"), (percent(math.nan), "–"),
        (points(-0.55), "−55.0"), (points(-0.0001), "0.0"), (points(0.1, " points"), "+10.0 points"),
        (number(1234567.0), "1,234,567"), (number(-0.5), "−0.5"), (number(math.inf), "–"),
        (gate_number("perplexity at most 20")(14.5), "14.5"),
        (gate_number("perplexity up by at most 10%")(0.1), "+10.0%"),
    ],
)  # fmt: skip
def test_numbers_as_people_write_them(shown: str, expected: str) -> None:
    assert shown == expected


def test_a_row_reads_improved_only_if_interval_and_exact_test_agree() -> None:
    five = vars(paired_change([True] * 5, [False] * 5))
    assert five["high"] < 0 and five["p_exact"] > 0.05 and change_word(five) == "unclear"
    assert change_word(vars(paired_change([True] * 9, [False] * 9))) == "improved"
    assert change_word(vars(paired_change([False] * 9, [True] * 9))) == "worsened"
    assert change_word(vars(paired_change([], []))) == "no data"


@given(st.text(), st.lists(st.tuples(st.integers(-3, 40), st.integers(-3, 40)), max_size=5))
def test_marking_spans_changes_no_character(reply: str, spans: list[tuple[int, int]]) -> None:
    findings = [{"rule_id": "r", "span": list(span)} for span in spans]
    marked = highlighted(reply, findings, {"r": "<b>"})
    assert unescape(re.sub(r"</?mark[^>]*>", "", marked)) == reply


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    marks = ticks(low, low + span)
    assert len(marks) <= 5
    assert all(low - 1e-6 * span <= mark <= low + span * (1 + 1e-6) for mark in marks) or low + span == low


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=700), st.integers(1, 240))
def test_means_keep_the_sum_and_stay_few(values: list[float], most: int) -> None:
    line = [(float(step), value) for step, value in enumerate(values)]
    size = math.ceil(len(line) / most)
    shown = means(line, most)
    weights = [min(size, len(line) - index * size) for index in range(len(shown))]
    assert len(shown) <= most
    total = sum(weight * value for weight, (_, value) in zip(weights, shown, strict=True))
    assert total == pytest.approx(sum(values), abs=1e-9)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50))
def test_a_curve_stays_inside_its_frame(values: list[float]) -> None:
    drawing = line_chart("Loss", {"loss": [(float(step), value) for step, value in enumerate(values)]}, None)
    Page(drawing)
    for path in re.findall(r'class="mean loss" d="M([^h]*)h0"', drawing):
        for x, y in (map(float, point.split()) for point in path.split(" L")):
            assert 44 <= x <= 300 and 11.9 <= y <= 158.1


def test_a_gate_bar_stands_left_of_the_limit_when_it_passes() -> None:
    low, estimate, high = gate_bar({"low": 0.1, "estimate": 0.15, "high": 0.2, "limit": 0.2})
    assert (low, high) == (-1.0, 0.0) and estimate is not None and -1 < estimate < 0
    assert gate_bar({"low": None, "estimate": None, "high": math.inf, "limit": 0.1}) == (-1.0, None, 1.0)
