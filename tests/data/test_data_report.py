"""The report finds exactly what was planted, whatever the order and the form of the rows, and its page is safe."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from spiritlevel.chat import assistant, user
from spiritlevel.data import Preference, write_preferences
from spiritlevel.data.chat_template import end_of_turn, open_tokenizer, template_faults
from spiritlevel.data.contradictions import comparisons
from spiritlevel.data.label_noise import flipped_share, form_judge, noise_bounds
from spiritlevel.data.lengths import lay_out
from spiritlevel.data.report import data_report
from spiritlevel.data.report_figures import doubling_edges, histogram
from spiritlevel.data.report_page import chart, print_report, render_html, shown
from spiritlevel.data.trl import TrlRow, read_trl
from spiritlevel.errors import SpiritLevelError
from spiritlevel.stats import wilson
from tiny import END, OPENING, TEMPLATE, build_tokenizer

HH = Path("/work/shared/data/hh_rlhf/harmless-base.test.jsonl.gz")
HOSTILE = "</p><script>alert(1)</script><img src=http://x onerror=alert(2)> {{ 7 * 7 }} \x1b[31m [red]a & \"b\" 'c'"
WORDS = ["invoice", "tax", "due", "rent", "month", "office", "paid", "number", "client", "year", "book", "sum"]


def said(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) + str(draw.randrange(1000)) for _ in range(words)) + "."


def some_pairs(count: int, seed: int = 0, longer: float = 0.5) -> list[dict[str, Any]]:
    """Pairs that share nothing; a share of `longer` has the longer reply chosen, exactly."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        replies = [said(draw, draw.randint(15, 20)), said(draw, draw.randint(5, 10))]
        chosen, rejected = replies if number < longer * count else reversed(replies)
        rows.append({"prompt": said(draw, 12), "chosen": chosen, "rejected": rejected})
    return rows


def written(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """All figures by name, without the rows that they name, and all drawings."""
    sections = report["sections"]
    found = {each["name"]: {**each, "rows": None} for section in sections for each in section["figures"]}
    return found | {f"{section['name']} charts": section["charts"] for section in sections}


def values(report: dict[str, Any]) -> dict[str, float]:
    return {name: each["value"] for name, each in figures(report).items() if not name.endswith("charts")}


def planted() -> list[dict[str, Any]]:
    rows = some_pairs(120, longer=0.75)
    rows += [dict(rows[0]), {**rows[1], "chosen": rows[1]["chosen"] + "  "}]  # exact, but for white space
    rows += [{**rows[2], "chosen": "Well " + rows[2]["chosen"]}]  # near
    rows += [{"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[3:7]]
    rows += [{"prompt": "one", "chosen": "same.", "rejected": "same."}]
    rows += [{"prompt": "two", "chosen": "that is not", "rejected": ""}]
    return rows


def test_what_was_planted_is_found_exactly(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in planted()] + ["{torn", json.dumps({"prompt": "q", "chosen": "a"})]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    report = data_report(path)
    found = figures(report)
    assert (report["rows"], report["read"]) == (131, 129)
    assert found["unreadable: not valid JSON"]["value"] == 1
    assert found["exact_duplicates"]["value"] == 2
    assert found["near_duplicates"]["value"] == 1
    assert found["contradictory"]["value"] == 8
    assert found["identical_replies"]["value"] == 1
    assert found["empty_replies"]["value"] == 1
    assert found["open_ended_chosen"]["value"] == 1
    # 90 of 120, three of the 90 again, four of the 90 the other way round, none of equal length, one over an empty one
    judge = wilson(90 + 3 + 1, 120 + 3 + 4 + 1)
    assert [found["length_judge"][key] for key in ("value", "low", "high")] == [judge.value, judge.low, judge.high]
    # Verdicts on a question judged twice: two exact copies agree, four pairs of rows differ.
    repeats = wilson(4, 6)
    assert found["noise_from_repeats"]["value"] == flipped_share(repeats.value)


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_a_shuffled_file_has_the_same_figures(tmp_path: Path, with_tokenizer: bool) -> None:
    tokenizer = build_tokenizer() if with_tokenizer else None
    rows = planted()
    reports = []
    for seed in range(3):
        path = written(tmp_path / f"{seed}.jsonl", random.Random(seed).sample(rows, len(rows)) if seed else rows)
        reports.append(figures(data_report(path, tokenizer=tokenizer, max_length=200)))
    assert reports[0] == reports[1] == reports[2]


def as_text(row: dict[str, Any]) -> dict[str, Any]:
    return row


def as_messages(row: dict[str, Any]) -> dict[str, Any]:
    replies = {name: [assistant(row[name])] for name in ("chosen", "rejected")}
    return {"prompt": [user(row["prompt"])], **replies}


def as_conversations(row: dict[str, Any]) -> dict[str, Any]:
    return {name: [user(row["prompt"]), assistant(row[name])] for name in ("chosen", "rejected")}


def as_dialogue(row: dict[str, Any]) -> dict[str, Any]:
    return {name: f"\n\nHuman: {row['prompt']}\n\nAssistant: {row[name]}" for name in ("chosen", "rejected")}


@pytest.mark.parametrize("form", [as_text, as_messages, as_conversations, as_dialogue])
@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_every_form_has_the_figures_of_its_conversion(
    tmp_path: Path, form: Callable[[dict[str, Any]], dict[str, Any]], with_tokenizer: bool
) -> None:
    tokenizer = build_tokenizer() if with_tokenizer else None
    rows = some_pairs(110)
    rows += rows[:3]
    there, conversion = written(tmp_path / "trl.jsonl", [form(row) for row in rows]), tmp_path / "ours.jsonl"
    write_preferences(conversion, [Preference.model_validate(row) for row in rows])
    one, other = (figures(data_report(path, tokenizer=tokenizer, max_length=200)) for path in (there, conversion))
    shapes = {name for name in [*one, *other] if name.startswith("shape: ")}
    assert {name: each for name, each in one.items() if name not in shapes} == {
        name: each for name, each in other.items() if name not in shapes
    }
    assert [one[name]["value"] for name in shapes if name in one] == [113]


lengths = st.integers(1, 60)


@given(st.lists(st.tuples(lengths, lengths, lengths), min_size=1, max_size=6), st.integers(1, 140))
def test_what_is_cut_is_what_slicing_the_tokens_cuts(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int, int]], limit: int
) -> None:
    tokenizer = build_tokenizer()
    rows = [{"prompt": "p" * a, "chosen": "c" * b, "rejected": "r" * c} for a, b, c in sizes]
    found = values(
        data_report(written(tmp_path_factory.mktemp("cut") / "a.jsonl", rows), tokenizer=tokenizer, max_length=limit)
    )
    expected = {"rows_dropped": 0, "rows_cut": 0, "tokens_lost": 0, "end_lost_chosen": 0, "end_lost_rejected": 0}
    end = tokenizer.eos_token_id
    for row in rows:
        prompt = tokenizer.apply_chat_template([user(row["prompt"])], add_generation_prompt=True, return_dict=False)
        whole = {
            name: tokenizer.apply_chat_template([user(row["prompt"]), assistant(row[name])], return_dict=False)
            for name in ("chosen", "rejected")
        }
        if len(prompt) >= limit:
            expected["rows_dropped"] += 1
            expected["tokens_lost"] += sum(map(len, whole.values()))
            continue
        expected["rows_cut"] += any(len(tokens) > limit for tokens in whole.values())
        for name, tokens in whole.items():
            expected["tokens_lost"] += len(tokens[limit:])
            expected[f"end_lost_{name}"] += end not in tokens[len(prompt) : limit]
    assert {name: found[name] for name in expected} == expected


BARE = TEMPLATE.replace("{{ bos_token }}", "")
THINKING = TEMPLATE.replace("assistant\n' }}", "assistant\n<think>' }}")
FAULTY: dict[str, tuple[dict[str, Any], set[str]]] = {
    "sound": ({"chat_template": BARE, "bos_token": None, "pad_token": OPENING}, set()),
    "padding": ({"chat_template": BARE, "bos_token": None}, {"pad_is_eos"}),
    "two start tokens": ({"pad_token": "!"}, {"double_bos"}),
    "no start token": ({"chat_template": BARE, "pad_token": "!"}, {"no_bos"}),
    "no template": ({"chat_template": None, "pad_token": "!"}, {"no_template"}),
    "no end": ({"chat_template": TEMPLATE.replace("<|im_end|>", ""), "pad_token": "!"}, {"double_bos", "no_end"}),
    "other end": ({"eos_token": "!", "pad_token": "$"}, {"double_bos", "other_end"}),
    "no generation prompt": (
        {"chat_template": TEMPLATE.partition("{% if add")[0], "pad_token": "!"},
        {"double_bos", "no_generation_prompt"},
    ),
    "no prefix": (
        {"chat_template": THINKING, "pad_token": "!"},
        {"double_bos", "not_a_prefix"},
    ),
    "system refused": (
        {
            "chat_template": "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE,
            "pad_token": "!",
        },
        {"double_bos", "no_system"},
    ),
    "system left out": (
        {"chat_template": TEMPLATE.replace("in messages", "in messages if message.role != 'system'"), "pad_token": "!"},
        {"double_bos", "no_system"},
    ),
}


@pytest.mark.parametrize("case", FAULTY)
def test_each_fault_of_a_template_is_found_by_trying(case: str) -> None:
    changes, expected = FAULTY[case]
    tokenizer = build_tokenizer()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    assert {fault.name for fault in template_faults(tokenizer)} == expected


def test_rows_show_what_the_template_does_to_them(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'assistant' %}{{ raise_exception('begin with the person') }}{% endif %}" + THINKING
    )
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    early = {"prompt": [assistant("Hi")], "completion": [assistant("a")]}
    rows = [
        good,
        good | {"chosen": f"a {END} b"},
        early,
        {"messages": [{"role": "system", "content": "s"}, assistant("a")]},
    ]
    found = values(data_report(written(tmp_path / "a.jsonl", rows), tokenizer=tokenizer))
    assert found["refused: begin with the person"] == 1
    assert found["not_a_token_prefix"] == 3 and found["special_tokens"] == 1 and found["system_messages"] == 1


def test_the_end_of_a_turn_may_be_a_token_without_a_name() -> None:
    tokenizer = build_tokenizer()
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = "!"
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == END
    row = TrlRow(1, {}, "text", [user("q")], "a", None)
    tokenizer.chat_template = None
    assert lay_out(row, tokenizer, end_of_turn(tokenizer))["chosen"].end == len(tokenizer("qa")["input_ids"])


def test_a_model_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpiritLevelError, match="no tokenizer") as told:
        open_tokenizer(str(tmp_path))
    assert told.value.where == str(tmp_path)


def verdicts(draw: random.Random, questions: int, wrong: float, judged: int) -> list[TrlRow]:
    """Each question judged so often; the better reply has the lower name, and a verdict is wrong with `wrong`."""
    rows = []
    for number in range(questions):
        for _ in range(judged):
            replies = ["good", "poor"] if draw.random() >= wrong else ["poor", "good"]
            rows.append(TrlRow(len(rows), {}, "preference, text", [user(str(number))], *replies))
    return rows


@pytest.mark.parametrize("wrong", [0.05, 0.2])
@pytest.mark.parametrize("judged", [2, 3])
def test_repeated_verdicts_tell_how_many_labels_are_wrong(wrong: float, judged: int) -> None:
    rows = verdicts(random.Random(7), 4000, wrong, judged)
    share = noise_bounds(rows, comparisons(rows)).from_repeats
    assert share is not None and share.value == pytest.approx(wrong, abs=0.01) and share.low < wrong < share.high


def test_the_bound_from_above_holds_and_is_reached_by_a_preference_for_form() -> None:
    for wrong in (0.0, 0.1, 0.3):
        draw = random.Random(3)
        rows = []
        for number in range(600):
            replies = [said(draw, 30), said(draw, 6)]  # the longer is better, unless the label is wrong
            chosen, rejected = replies if draw.random() >= wrong else reversed(replies)
            rows.append(TrlRow(number, {}, "preference, text", [user(said(draw, 9))], chosen, rejected))
        bounds = noise_bounds(rows, comparisons(rows))
        assert bounds.at_most is not None and bounds.at_most.high >= wrong
        assert bounds.at_most.value == pytest.approx(wrong, abs=0.05)


def test_a_judge_of_form_learns_nothing_from_labels_by_chance_and_says_nothing_of_few() -> None:
    draw = random.Random(5)
    rows = [
        TrlRow(number, {}, "preference, text", [user(said(draw, 9))], said(draw, draw.randint(4, 30)), said(draw, 15))
        for number in range(1500)
    ]
    flipped = [
        row if draw.random() < 0.5 else TrlRow(row.number, {}, row.shape, row.prompt, row.rejected, row.chosen)
        for row in rows
    ]
    rate = form_judge(flipped)
    assert rate is not None and rate.low < 0.5 < rate.high
    assert form_judge(rows[:20]) is None


@dataclass
class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(report: dict[str, Any]) -> tuple[str, Page]:
    html, page = render_html(report), Page()
    page.feed(html)
    return html, page


def hostile_report(tmp_path: Path) -> dict[str, Any]:
    rows = some_pairs(20) + [{"prompt": HOSTILE, "chosen": HOSTILE, "rejected": HOSTILE}] * 3
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'tool' %}{{ raise_exception(messages[0].content) }}{% endif %}" + (TEMPLATE)
    )
    rows += [{"prompt": [{"role": "tool", "content": HOSTILE}], "completion": "a"}]
    report = data_report(written(tmp_path / "a.jsonl", rows), tokenizer=tokenizer)
    return report | {"file": HOSTILE, "tokenizer": HOSTILE}


def test_the_page_loads_nothing_and_hostile_text_stays_text(tmp_path: Path) -> None:
    html, page = page_of(hostile_report(tmp_path))
    policy = [attributes["content"] for _, attributes in page.tags if attributes.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {tag for tag, _ in page.tags} & {"script", "img", "iframe", "object", "base", "form"}
    assert not {name for name in names if name.startswith("on") or name == "src"}
    assert all(str(attributes.get("href", "#")).startswith(("#", "data:")) for _, attributes in page.tags)
    assert not re.search(r"@import|url\(", html)
    assert HOSTILE[:60] in page.text and "{{ 7 * 7 }}" in page.text


def test_the_page_and_the_terminal_say_every_figure(tmp_path: Path) -> None:
    report = data_report(written(tmp_path / "a.jsonl", planted()), tokenizer=build_tokenizer(), max_length=100)
    html, page = page_of(report)
    file = io.StringIO()
    print_report(report, Console(file=file, width=400))
    for section in report["sections"]:
        assert section["title"] in page.text and section["title"] in file.getvalue()
        for figure in section["figures"]:
            assert figure["meaning"] and figure["title"] in page.text and shown(figure) in page.text
            assert figure["title"] in file.getvalue() and shown(figure) in file.getvalue()
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    links = {str(attributes.get("href"))[1:] for tag, attributes in page.tags if tag == "a"}
    assert len(ids) == len(set(ids)) and links == set(ids)
    assert html.count("<svg") == sum(len(section["charts"]) for section in report["sections"])
    assert json.loads(json.dumps(report, allow_nan=False)) == json.loads(json.dumps(report))


def test_the_terminal_says_what_it_did_not_look_at(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", planted())
    for tokenizer, expected in ((None, True), (build_tokenizer(), False)):
        file = io.StringIO()
        print_report(data_report(path, tokenizer=tokenizer), Console(file=file, width=200))
        assert ("Give --model" in file.getvalue()) is expected


def test_plain_text_is_measured_without_a_template(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    texts = [said(random.Random(seed), 20) for seed in range(3)]
    path = written(tmp_path / "a.jsonl", [{"text": text} for text in [*texts, texts[0]]])
    report = data_report(path, tokenizer=tokenizer, max_length=10)
    found, long = values(report), [len(tokenizer(text)["input_ids"]) for text in texts]
    assert (report["read"], found["shape: language modelling, text"]) == (4, 4)
    assert found["exact_duplicates"] == 1 and found["no_end_token"] == 0
    assert found["rows_cut"] == found["end_lost_chosen"] == 4 and found["prompt_tokens"] <= 4
    assert found["prompt_tokens"] + found["chosen_tokens"] == sum(long) + long[0] + 4


def test_the_terminal_is_not_steered_by_a_row(tmp_path: Path) -> None:
    file = io.StringIO()
    print_report(hostile_report(tmp_path), Console(file=file, width=200))
    assert "\x1b" not in file.getvalue() and "[red]a" in file.getvalue()


@given(st.lists(st.floats(-5, 5000), max_size=50), st.integers(0, 5000))
def test_a_histogram_counts_every_value_once(found: list[float], longest: int) -> None:
    edges = doubling_edges(longest)
    assert list(edges) == sorted(set(edges)) and edges[-1] > longest
    made = histogram("t", "u", found, edges, mark=float(longest))
    assert sum(made.counts) == len(found)
    for index, count in enumerate(made.counts[:-1]):
        low = edges[index] if index else -10.0
        assert count == sum(low <= value < edges[index + 1] for value in found)
    places = [float(x) for x in re.findall(r'class="(?:bar|mark)" d="M([\d.]+)', chart(vars(made)))]
    assert all(10 <= place <= 390 for place in places)


@pytest.mark.skipif(not HH.exists(), reason=f"needs {HH}")
def test_hh_rlhf_is_read_as_it_is() -> None:
    rows, unreadable = read_trl(HH)
    assert len(rows) > 1000 and len(unreadable) < 0.01 * len(rows)
    assert all(row.prompt[-1]["role"] == "user" and row.chosen is not None for row in rows)
    assert not [row for row in rows if "\n\nHuman:" in f"{row.prompt_text} {row.chosen} {row.rejected}"]
