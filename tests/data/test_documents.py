"""Documents as training data: nothing lost, nothing invented, nothing that must stay unseen, and every skip is told."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pypdf import PdfReader, PdfWriter

from spiritlevel.charter import load_charter, read_probes
from spiritlevel.cli import main as cli
from spiritlevel.data import Demonstration, read_records
from spiritlevel.data.documents import (
    Document,
    ask_for_questions,
    cut,
    make_demonstrations,
    read_document,
    read_documents,
)
from spiritlevel.data.documents.markdown import markdown_blocks, split_front_matter
from spiritlevel.data.documents.plain import plain_blocks
from spiritlevel.data.documents.questions import is_borne, parse_pairs
from spiritlevel.data.documents.rules import rule_question
from spiritlevel.data.overlap import Unseen, UnseenText
from spiritlevel.data.words import count_words
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import Reply
from spiritlevel.store import ContentStore

ACCOUNTING = "src/spiritlevel/charter/templates/accounting"
NOTHING = Unseen([])

STANDARD = """\
---
title: Python standard
---
# Python standard

What every service is written to. It holds from June on.

## Naming

- Use `snake_case` for functions and variables.
- Never shorten your names to one letter, except in a short loop.
- Prefer whole words over abbreviations, because readers search for them.
- Write a docstring for every public function.

## Tests

Functions must have a test that can fail. All functions do. Name it after its law:

```python
def test_sorting_twice_changes_nothing() -> None:

    assert sort(sort(items)) == sort(items)
```

**Flake**: a test that fails without a change.

## Timeouts

| call | limit | retries |
| --- | --- | --- |
| payment | 30 seconds | 2 |
| search | 2 seconds | none |

---

## Questions

### May I use a global variable?

No. Pass what a function needs as an argument.

**Who approves a release?**

The owner of the service, in writing.
"""

PAGE = """\
<html><head><title>Holidays | Intranet</title><script>track()</script></head><body>
<nav><ul><li>Home</li></ul></nav>
<main>
<h1>Holidays</h1>
<p>Everybody has <b>30 days</b>, as <a href="/law">the law</a> has it.</p>
<dl><dt>Bridge day</dt><dd>A day between a holiday and a weekend.</dd></dl>
<h2>How to apply</h2>
<ol><li>Ask your team.</li><li>Fill in <code>holiday_form</code>.</li></ol>
<pre><code class="language-sh">apply --days 3
</code></pre>
<details><summary>May I carry days over?</summary><p>Yes, until March.</p></details>
</main><footer>Imprint</footer></body></html>
"""


def document(text: str, name: str = "notes.md") -> Document:
    """As `read_document` makes it."""
    blocks = markdown_blocks(text) if name.endswith(".md") else plain_blocks(text)
    return Document(name, "The notes", text, tuple(blocks), digest="0" * 64)


def read(tmp_path: Path, text: str | bytes, name: str) -> Document:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_document(path, name)


def solid(text: str) -> str:
    return "".join(text.split())


def make_pdf(*pages: list[str], outline: dict[str, int] | None = None, title: str = "") -> bytes:
    """A PDF of lines of text, written byte by byte; an empty page has no text."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    font = "<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    kids = []
    for lines in pages:
        shown = " ".join(f"({line}) Tj 0 -14 Td" for line in lines)
        stream = f"BT /F1 11 Tf 60 760 Td {shown} ET" if lines else "0 0 9 9 re f"
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        contents = len(objects)
        objects.append(f"<< /Type /Page /Parent 2 0 R /Resources {font} /Contents {contents} 0 R >>")
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} /MediaBox [0 0 595 842] >>"
    body, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(objects) + 1
    trailer = f"trailer << /Size {size} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF"
    plain = f"{body}xref\n0 {size}\n0000000000 65535 f \n{table}{trailer}".encode("latin-1")
    return _finished(plain, outline or {}, title) if outline or title else plain


def _finished(plain: bytes, outline: dict[str, int], title: str, password: str = "") -> bytes:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(plain)))
    for words, page in outline.items():
        writer.add_outline_item(title=words, page_number=page)
    writer.add_metadata({"/Title": title})
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


# --- blocks and chunks --------------------------------------------------------------------------------

prose = st.lists(
    st.sampled_from(
        ["The books close.", "See e.g. No. 5.", "*Why?*", "今天关门。", "`x = 1`", "a" * 70, "[it](x)", "| a"]
    ),
    min_size=1,
    max_size=12,
).map(" ".join)
pieces = st.one_of(
    prose,
    prose.map(lambda text: "\n".join(text.split())),
    st.tuples(st.integers(1, 4), prose).map(lambda pair: f"{'#' * pair[0]} {pair[1]}"),
    st.lists(prose, min_size=1, max_size=4).map(lambda items: "\n".join(f"- {item}" for item in items)),
    st.lists(prose, min_size=1, max_size=3).map(lambda items: "\n".join(f"{n}. {i}" for n, i in enumerate(items, 1))),
    prose.map(lambda text: f"```\n{text}\n\n  {text}\n```"),
    st.just("| a | b |\n| --- | --- |\n" + "| one | two words |\n" * 5),
    st.just("> said he\n> - so"),
    st.just("---"),
    st.just("<!-- hidden -->"),
    st.just("[target]: http://x.y"),
    st.just("Title\n====="),
)
markdown = st.lists(pieces, min_size=1, max_size=9).map("\n\n".join)


def check_cover(source: Document, words: int) -> None:
    chunks = cut(source, words=words)
    assert solid("".join(chunk.text for chunk in chunks)) == solid(source.text), "all text once, in order"
    last = 0
    for chunk in chunks:
        start = source.text.index(chunk.text, last)
        assert not source.text[last:start].strip()
        last = start + len(chunk.text)
        assert count_words(chunk.body_text) <= words
        assert chunk.blocks
    assert chunks == cut(source, words=words)
    assert [chunk.digest for chunk in chunks] == [chunk.digest for chunk in cut(source, words=words)]


@given(markdown, st.integers(20, 60))
def test_chunks_of_markdown_are_its_text_once_and_within_their_words(text: str, words: int) -> None:
    check_cover(document(text), words)


@given(markdown, st.integers(20, 60))
def test_chunks_of_plain_text_are_its_text_once_and_within_their_words(text: str, words: int) -> None:
    check_cover(document(text, "notes.txt"), words)


@given(st.text(max_size=300), st.sampled_from(["a.md", "a.txt"]))
def test_any_text_at_all_has_blocks_that_cover_it(text: str, name: str) -> None:
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")  # as it is read
    source = document(text, name)
    assert solid("".join(source.of(block) for block in source.blocks)) == solid(text)
    if text.strip():
        check_cover(source, 20)


@given(markdown)
def test_a_block_stands_on_its_line(text: str) -> None:
    source = document(text)
    for block in source.blocks:
        assert source.of(block).split("\n")[0] == source.text.split("\n")[block.place - 1]


@given(markdown, st.integers(20, 60))
def test_a_chunk_never_crosses_a_heading(text: str, words: int) -> None:
    for chunk in cut(document(text), words=words):
        kinds = ["heading" if block.kind == "heading" else "body" for block in chunk.blocks]
        assert kinds == sorted(kinds, reverse=True), "headings first"
        assert chunk.part == 0 or "heading" not in kinds


@pytest.mark.parametrize("words", [24, 200])
def test_what_fits_is_not_cut(words: int) -> None:
    source = document(STANDARD)
    whole = {source.of(block) for block in source.blocks if count_words(source.of(block)) <= words}
    cut_up = [source.of(block) for chunk in cut(source, words=words) for block in chunk.blocks]
    assert whole <= set(cut_up)
    assert any(text.startswith("```python") and text.endswith("```") for text in cut_up)


def test_sentences_are_whole_if_they_fit() -> None:
    sentences = [f"Rule no. {number} holds, e.g. on a Monday, for all of us." for number in range(9)]
    for chunk in cut(document(" ".join(sentences)), words=30):
        assert set(re.findall(r"Rule .*?us\.", chunk.text)) <= set(sentences)
        assert chunk.text.startswith("Rule") and chunk.text.endswith("us.")


# --- the four formats ---------------------------------------------------------------------------------


def test_markdown_is_read_with_its_title_headings_and_lines(tmp_path: Path) -> None:
    source = read(tmp_path, STANDARD, "standard.md")
    assert (source.title, source.unit) == ("Python standard", "line")
    headings = [(block.words, block.level, block.place) for block in source.blocks if block.kind == "heading"]
    assert headings[:3] == [("Python standard", 1, 4), ("Naming", 2, 8), ("Tests", 2, 15)]
    assert headings[-1][0] == "Who approves a release?"
    kinds = Counter(block.kind for block in source.blocks)
    assert kinds == {"heading": 7, "paragraph": 5, "item": 4, "code": 1, "table": 1, "markup": 1}


@pytest.mark.parametrize("front", ["---\n[\n---\n", "---\njust words\n---\n", "---\ntitle: 3\n", "---\n---\nx"])
def test_what_is_no_front_matter_is_text(front: str) -> None:
    assert split_front_matter(front + "text") == ("", front + "text")


def test_html_is_read_without_what_stands_on_every_page(tmp_path: Path) -> None:
    source = read(tmp_path, PAGE, "page.html")
    assert source.title == "Holidays"
    for kept in ("**30 days**", "the law", "`holiday_form`", "```sh\napply --days 3", "1. Ask your team."):
        assert kept in source.text
    for dropped in ("track", "Home", "Imprint", "Intranet", "/law"):
        assert dropped not in source.text
    places = {block.words: block.place for block in source.blocks if block.kind == "heading"}
    assert places == {"Holidays": 4, "How to apply": 7, "May I carry days over?": 11}


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ('<meta charset="iso-8859-1">', "latin-1"),
        ("", "utf-8"),
        ("", "utf-16"),
        ('<meta charset="utf-8">', "utf-8-sig"),
    ],
)
def test_html_is_read_in_the_encoding_it_names(tmp_path: Path, head: str, encoding: str) -> None:
    page = f"<html><head>{head}</head><body><p>Über die Bücher</p></body></html>".encode(encoding)
    assert read(tmp_path, page, "page.html").text == "Über die Bücher"


def test_plain_text_is_read_with_the_headings_that_it_shows(tmp_path: Path) -> None:
    text = (
        "RELEASE NOTES\n\nWe ship on Thursdays.\nNobody ships on Fridays.\n\nRollback\n--------\nRun the old image:\n"
        "- stop it\n  at once\n- start it\n\n2.1 After it\n\nTell the desk.\n\nWho is the desk?\n\nWhoever is awake.\n"
    )
    source = read(tmp_path, text, "release-notes.txt")
    shown = [(block.kind, block.words or source.of(block)) for block in source.blocks]
    assert shown == [
        ("heading", "RELEASE NOTES"),
        ("paragraph", "We ship on Thursdays.\nNobody ships on Fridays."),
        ("heading", "Rollback"),
        ("paragraph", "Run the old image:"),
        ("item", "- stop it\n  at once"),
        ("item", "- start it"),
        ("heading", "2.1 After it"),
        ("paragraph", "Tell the desk."),
        ("heading", "Who is the desk?"),
        ("paragraph", "Whoever is awake."),
    ]


LONG = "The books of a client are closed on the last day of the month, not on the first of the next."


def test_a_pdf_is_read_by_page_with_its_outline_and_without_its_line_breaks(tmp_path: Path) -> None:
    foot = "Handbook, page {}"
    pages = [
        ["Closing the books", *textwrap.wrap(LONG, 60), "Nothing is book-", "ed later.", foot.format(1)],
        ["- Ask the client.", "- Write it down.", foot.format(2)],
        ["Opening them", "On the first.", foot.format(3)],
        ["1.2 Afterwards", "Nobody opens them again.", foot.format(4)],
    ]
    outline = {"Closing the books": 0, "Opening them": 2}
    source = read(tmp_path, make_pdf(*pages, outline=outline, title="Microsoft Word - x.docx"), "hand_book.pdf")
    assert (source.title, source.unit, source.note) == ("Closing the books", "page", "")
    assert LONG in source.text and "Nothing is booked later." in source.text and "Handbook" not in source.text
    headings = {block.words: block.place for block in source.blocks if block.kind == "heading"}
    assert headings == {"Closing the books": 1, "Opening them": 3, "1.2 Afterwards": 4}
    assert [block.place for block in source.blocks if block.kind == "item"] == [2, 2]
    check_cover(source, 20)


def test_pages_of_a_pdf_without_text_are_told(tmp_path: Path) -> None:
    source = read(tmp_path, make_pdf([LONG], [], ["And so on."]), "part.pdf")
    assert source.note == "1 of 3 pages hold no text"
    assert source.title == "part"


# --- what can't be read -------------------------------------------------------------------------------


def test_what_can_not_be_read_is_told_by_name_and_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    files = {
        "good.md": b"# Good\n\nThe books are open.",
        "empty.md": b" \n\n",
        "comment.html": b"<html><body><!-- nothing --></body></html>",
        "latin.txt": "eins\nzwei \u00fc".encode("latin-1"),
        "binary.txt": b"\x7fELF\0\0",
        "torn.txt": b"\xff\xfe\x00",
        "picture.png": b"\x89PNG",
        ".hidden.md": b"hidden",
        "scan.pdf": make_pdf([]),
        "locked.pdf": _finished(make_pdf([LONG]), {}, "", password="secret"),
        "torn.pdf": make_pdf([LONG])[:200],
        "no.pdf": b"not a PDF",
        "huge.md": b"x" * 2000,
    }
    for name, content in files.items():
        (docs / name).write_bytes(content)
    (docs / ".git").mkdir()
    (docs / ".git" / "inside.md").write_text("x")
    (docs / "loop").symlink_to(docs, target_is_directory=True)
    (docs / "circle.md").symlink_to(docs / "circle.md")
    os.mkfifo(docs / "pipe.md")
    monkeypatch.setattr("spiritlevel.data.documents.read._MOST_BYTES", 1999)
    documents, passed = read_documents(docs)
    assert [found.name for found in documents] == ["good.md"]
    expected = {
        ".git": "hidden",
        ".hidden.md": "hidden",
        "binary.txt": "binary",
        "circle.md": "a link",
        "comment.html": "empty",
        "empty.md": "empty",
        "huge.md": "larger than",
        "latin.txt": "not UTF-8 (line 2)",
        "locked.pdf": "encrypted",
        "loop": "a link",
        "no.pdf": "damaged PDF",
        "picture.png": "not Markdown, text, HTML or PDF",
        "pipe.md": "no regular file",
        "scan.pdf": "scanned",
        "torn.pdf": "",
        "torn.txt": "not utf-16",
    }
    assert list(passed) == sorted(expected)
    for name, reason in expected.items():
        assert reason in passed[name], (name, passed[name])


def test_a_pdf_that_only_forbids_printing_is_read(tmp_path: Path) -> None:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(make_pdf([LONG]))))
    writer.encrypt("", owner_password="secret", algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    assert LONG in read(tmp_path, file.getvalue(), "a.pdf").text


def test_another_encoding_is_read_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("zwei ü".encode("latin-1"))
    ((found,), _) = read_documents(tmp_path, encoding="latin-1")
    assert found.text == "zwei ü"
    with pytest.raises(SpiritLevelError, match="no encoding 'klingon'"):
        read_documents(tmp_path, encoding="klingon")


@pytest.mark.parametrize("deep", ["<div>" * 20_000 + "x", "<ul><li>" * 3000 + "x", "<table>" * 900 + "x"])
def test_a_page_nested_without_end_stops_nothing(tmp_path: Path, deep: str) -> None:
    (tmp_path / "deep.html").write_text(deep)
    (tmp_path / "good.md").write_text("# Good\n\nThe books are open.")
    documents, passed = read_documents(tmp_path)
    assert "good.md" in [found.name for found in documents]
    assert len(documents) + len(passed) == 2


def test_line_ends_do_not_matter_but_for_the_digest(tmp_path: Path) -> None:
    unix = read(tmp_path, STANDARD, "a.md")
    windows = read(tmp_path, STANDARD.replace("\n", "\r\n"), "a.md")
    assert unix.text == windows.text and unix.blocks == windows.blocks and unix.digest != windows.digest


def test_titles_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(f"# Readme\n\nThis is about {name}.")
    documents, _ = read_documents(tmp_path)
    assert [found.title for found in documents] == ["Readme (a/README.md)", "Readme (b/README.md)"]


@pytest.mark.parametrize("content", [None, {}, {"a.png": b"x", "b.md": b""}])
def test_a_folder_without_documents_is_an_error(tmp_path: Path, content: dict[str, bytes] | None) -> None:
    root = tmp_path / "docs"
    if content is not None:
        root.mkdir()
        for name, data in content.items():
            (root / name).write_bytes(data)
    with pytest.raises(SpiritLevelError) as told:
        read_documents(root)
    assert told.value.where == str(root) and told.value.remedy
    assert not content or "1x empty" in told.value.problem


# --- demonstrations by structure ----------------------------------------------------------------------


def asked(records: list[Demonstration], kind: str) -> set[tuple[str, str]]:
    return {
        (record.chat[-1]["content"], record.completion_text) for record in records if record.provenance["kind"] == kind
    }


def test_the_structure_asks_and_the_document_answers(tmp_path: Path) -> None:
    source = read(tmp_path, STANDARD, "standard.md")
    records = make_demonstrations([source], unseen=NOTHING, wordings=3).demonstrations
    rules = asked(records, "rule")
    assert ("What do I use for functions and variables?", "Use `snake_case` for functions and variables.") in rules
    assert "May I shorten my names to one letter?" in {question for question, _ in rules}
    assert "Which do we prefer, abbreviations or whole words?" in {question for question, _ in rules}
    assert ("Must functions have a test that can fail?", "Functions must have a test that can fail.") in rules
    (question, point), *_ = asked(records, "point")
    assert "Write a docstring" in question and point == "Write a docstring for every public function."
    questions = asked(records, "question")
    assert ("May I use a global variable?", "No. Pass what a function needs as an argument.") in questions
    assert ("Who approves a release?", "The owner of the service, in writing.") in questions
    assert {answer for _, answer in asked(records, "definition")} == {"a test that fails without a change."}
    assert {answer for _, answer in asked(records, "table")} == {"30 seconds", "2", "2 seconds", "none"}
    ((question, code),) = asked(records, "example")
    assert "Name it after its law" in question and code.startswith("```python") and code.endswith("```")
    naming = {question for question, answer in asked(records, "section") if answer.startswith("- Use")}
    assert len(naming) == 3 and all("Naming" in question and "Python standard" in question for question in naming)


def test_definitions_and_dialogues_are_questions() -> None:
    text = (
        "# Words\n\nBridge day\n:   A day between two.\n\n- **Carry over:** what is left.\n- `--dry` – change nothing."
        "\n- **Note:** no term.\n\nQ: Who signs?\nA: The owner.\n\nQ: And if away?\nA: The deputy,\nin writing.\n"
    )
    records = make_demonstrations([document(text)], unseen=NOTHING).demonstrations
    terms = {"A day between two.", "what is left.", "change nothing."}
    assert {answer for _, answer in asked(records, "definition")} == terms
    questions = asked(records, "question")
    assert {answer for _, answer in questions} == {"The owner.", "The deputy,\nin writing."}


@given(markdown, st.integers(20, 60), st.integers(1, 3))
def test_every_answer_stands_in_the_document_and_its_chunk(text: str, words: int, wordings: int) -> None:
    source = document(text)
    data = make_demonstrations([source], unseen=NOTHING, words=words, wordings=wordings)
    texts = {chunk.digest[:12]: chunk.text for chunk in data.chunks}
    for record in data.demonstrations:
        assert record.completion_text in texts[record.provenance["chunk"]]
        assert record.provenance["digest"] == source.digest
    assert data.counts[source.name].records.total() == len(data.demonstrations)
    again = make_demonstrations([source], unseen=NOTHING, words=words, wordings=wordings)
    assert [record.model_dump_json() for record in again.demonstrations] == [
        record.model_dump_json() for record in data.demonstrations
    ]


@given(markdown)
def test_no_question_has_two_answers(text: str) -> None:
    records = make_demonstrations([document(text), document(text + "\n\nmore")], unseen=NOTHING).demonstrations
    assert len({record.prompt for record in records}) == len(records)


def test_a_long_section_is_told_in_turns() -> None:
    text = "# Books\n\n## Closing\n\n" + " ".join(f"Book {number} is closed on day {number}." for number in range(40))
    data = make_demonstrations([document(text)], unseen=NOTHING, words=60)
    turns = [record for record in data.demonstrations if len(record.prompt) == 3]
    bodies = [chunk.body_text for chunk in data.chunks]
    assert len(bodies) > 2
    assert [(record.prompt[1].content, record.completion_text) for record in turns] == list(pairwise(bodies))


def test_figures_are_no_answer_and_signs_are_words() -> None:
    text = "## Figures\n\n1.5e+00 2.5e+00 3.5e+00 4.5e+00\n\n## 规则\n\n今天不提交密码。\n\n## Short\n\nNo more.\n"
    data = make_demonstrations([document(text)], unseen=NOTHING)
    assert {record.completion_text for record in data.demonstrations} == {"今天不提交密码。"}
    dropped = {"chunk: figures rather than words": 1, "chunk: fewer than three words under its heading": 1}
    assert data.counts["notes.md"].dropped == dropped


def test_a_heading_that_stands_twice_is_named_with_the_one_above() -> None:
    text = "# Books\n\n## Closing\n\n### Who\n\nThe owner does it.\n\n## Opening\n\n### Who\n\nNobody does it.\n"
    records = make_demonstrations([document(text)], unseen=NOTHING).demonstrations
    topics = {answer: question for question, answer in asked(records, "section")}
    assert "Closing: Who" in topics["The owner does it."] and "Opening: Who" in topics["Nobody does it."]


@pytest.mark.parametrize(
    ("rule", "question"),
    [
        ("Never commit secrets.", "May I commit secrets?"),
        ("Don't log your customers' names; they are private.", "May I log my customers' names?"),
        ("Always close the file (see 3.1).", "Do I have to close the file?"),
        ("Avoid global state, because tests share it.", "Is anything wrong with global state?"),
        ("Prefer pathlib over os.path.", "Which do we prefer, os.path or pathlib?"),
        ("Use a lock when two threads write.", "What do I use when two threads write?"),
        ("Tests must not sleep.", "Must tests sleep?"),
        ("PEP 8 should be followed everywhere.", "Should PEP 8 be followed everywhere?"),
        ("It must be so.", ""),
        ("The sky is blue.", ""),
        ("Never", ""),
        ("Write it down.", ""),
        ("Never " + "very " * 20 + "long", ""),
    ],
)
def test_a_rule_answers_the_question_whether(rule: str, question: str) -> None:
    assert rule_question(rule, document("All tests run.")) == question


# --- what must stay unseen ----------------------------------------------------------------------------


def test_what_overlaps_with_a_held_out_probe_is_left_out_and_the_rest_stays() -> None:
    charter = load_charter(ACCOUNTING)
    probes = [UnseenText(probe.prompt, "held_out.jsonl") for probe in read_probes(charter, "held_out")]
    planted = [text.text for text in probes if len(text.text.split()) >= 6][:10]
    text = "# Desk\n\n" + "\n\n".join(
        f"## Case {n}\n\nA client asked: {t} We wrote it down." for n, t in enumerate(planted)
    )
    text += "\n\n## Hours\n\nThe desk is open from nine to five.\n"
    free = make_demonstrations([document(text)], unseen=NOTHING)
    data = make_demonstrations([document(text)], unseen=Unseen(probes))
    assert [chunk.headings[-1] for chunk in data.chunks] == ["Hours"]
    kept = [record for record in free.demonstrations if not any(t in record.completion_text for t in planted)]
    assert data.demonstrations == kept and kept
    dropped = data.counts["notes.md"].dropped
    assert dropped["chunk: overlaps with held_out.jsonl"] == len(planted)
    assert dropped["record: overlaps with held_out.jsonl"] == len(free.demonstrations) - len(kept)


# --- demonstrations by a model ------------------------------------------------------------------------


class ScriptedModel:
    """A model that says the same of every chunk."""

    name, digest = "scripted", "f" * 64

    def __init__(self, reply: str, *, finished: bool = True, dies_after: int | None = None) -> None:
        self.reply, self.finished, self.dies_after, self.chats = reply, finished, dies_after, []

    def plan(self, chats: list[Any]) -> list[list[int]]:
        return [[index] for index in range(len(chats))]

    def generate(self, chats: list[Any], *, on_finish: Callable[[int, Reply], None], **_: Any) -> None:
        for index, chat in enumerate(chats):
            if self.dies_after is not None and len(self.chats) >= self.dies_after:
                raise KeyboardInterrupt
            self.chats.append(chat)
            on_finish(index, Reply(self.reply, 9, self.finished))


PASSAGE = "The owner closes the books on the last day, after 3 checks."
BOOKS = f"# Books\n\n## Closing\n\n{PASSAGE}\n\n## Opening\n\nNobody does that.\n"


def make_asked(model: ScriptedModel, folder: Path, **more: Any) -> Any:
    ask = partial(ask_for_questions, model, store=ContentStore(folder), pairs=3, max_new_tokens=99)  # type: ignore[arg-type]
    return make_demonstrations([document(BOOKS)], unseen=more.pop("unseen", NOTHING), ask=ask)


def test_a_models_pairs_are_kept_where_the_chunk_bears_them(tmp_path: Path) -> None:
    reply = (
        "Q: Who closes the books?\nA: The owner closes the books.\n"
        "Q: When are the books closed?\nA: On the last day, after 4 checks.\n"
        "Q: What does this passage say of the owner?\nA: The owner closes the books.\n"
        "Q: Where is Vienna?\nA: The owner.\n"
        "Q: Who closes the accounts?\n"
    )
    data = make_asked(ScriptedModel(reply), tmp_path)
    assert asked(data.demonstrations, "asked") == {("Who closes the books?", "The owner closes the books.")}
    (record,) = [record for record in data.demonstrations if record.provenance["kind"] == "asked"]
    assert (record.source, record.author) == ("sampled", "scripted")
    assert record.provenance["heading"] == "Books > Closing" and record.provenance["line"] == 5
    dropped = {reason: count for reason, count in data.counts["notes.md"].dropped.items() if reason.startswith("asked")}
    assert dropped == {
        "asked: a question without an answer": 2,
        "asked: it speaks of the passage, which nobody will see": 2,
        "asked: its question is about something else": 2,
        "asked: the chunk does not bear the answer": 3,
    }


def test_a_killed_run_asks_only_for_what_it_lacks(tmp_path: Path) -> None:
    reply = "Q: Who closes the books?\nA: The owner."
    with pytest.raises(KeyboardInterrupt):
        make_asked(ScriptedModel(reply, dies_after=1), tmp_path / "store")
    resumed = ScriptedModel(reply)
    data = make_asked(resumed, tmp_path / "store")
    assert len(resumed.chats) == 1
    assert data.demonstrations == make_asked(ScriptedModel(reply), tmp_path / "fresh").demonstrations


def test_the_model_is_not_shown_what_must_stay_unseen(tmp_path: Path) -> None:
    model = ScriptedModel("Q: Who does?\nA: Nobody does.")
    make_asked(model, tmp_path, unseen=Unseen([UnseenText("the owner closes the books", "suite.csv")]))
    assert len(model.chats) == 1 and "Nobody does" in model.chats[0][-1]["content"]


@pytest.mark.parametrize(
    ("text", "finished", "pairs", "dropped"),
    [
        ("Q: a?\nA: b\nand c\nQ2. d?\nA2. e", True, [("a?", "b\nand c"), ("d?", "e")], {}),
        ("Q: a?\nA: b\nQ: d?\nA: e and", False, [("a?", "b")], {"asked: an answer cut at the token limit": 1}),
        ("Sure! Here you are.", True, [], {"asked: a reply without questions": 1}),
        ("", True, [], {"asked: a reply without questions": 1}),
        ("Q: a?\nQ: d?\nA:\n", True, [], {"asked: a question without an answer": 2}),
        ("A: b\nQ: a?\nA: c", True, [("a?", "c")], {}),
    ],
)
def test_replies_are_parsed_strictly(
    text: str, finished: bool, pairs: list[tuple[str, str]], dropped: dict[str, int]
) -> None:
    found, why = parse_pairs(Reply(text, 9, finished))
    assert [(pair.question, pair.answer) for pair in found] == pairs
    assert why == dropped


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The owner closes the books.", True),
        ("Owners close books on the last day.", True),
        ("After 3 checks.", True),
        ("After 5 checks.", False),
        ("The owner never closes the books.", False),
        ("The deputy burns the letters.", False),
        ("Yes, it is.", False),
    ],
)
def test_an_answer_must_be_borne_by_the_passage(answer: str, expected: bool) -> None:
    assert is_borne(answer, PASSAGE) is expected


# --- the command --------------------------------------------------------------------------------------


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def spiritlevel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["spiritlevel", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        told = capsys.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return run


def test_from_documents_to_a_trained_model(spiritlevel: Run, tiny_folder: Path, tmp_path: Path) -> None:
    docs, made = tmp_path / "[docs]", tmp_path / "made.parquet"
    docs.mkdir()
    (docs / "[bold]books.md").write_text(BOOKS)
    (docs / "page.html").write_text(PAGE)
    (docs / "empty.txt").write_text("")
    suite = tmp_path / "suite.csv"
    suite.write_text("question\nMay I carry days over?\n")
    chunks = tmp_path / "chunks.jsonl"
    code, shown, told = spiritlevel("data", "from-docs", docs, "--out", made, "--charter", ACCOUNTING, "--suite", suite)
    assert code == 0 and "[bold]books.md" in shown and "suite.csv" in " ".join(shown.split())
    assert "passed over 1, empty: empty.txt" in told
    records = read_records(made)
    assert records and not any("carry days over" in str(record.prompt) for record in records)
    _, listed, _ = spiritlevel("data", "from-docs", docs, "--out", made, "--chunks", chunks, "--json")
    report = json.loads(listed)
    assert report["passed_over"] == {"empty.txt": "empty"}
    assert report["documents"]["page.html"]["records"]["question"] == 2
    assert len(chunks.read_text().splitlines()) == 5
    spiritlevel("data", "convert", made, tmp_path / "made.jsonl")
    out = tmp_path / "trained"
    flags = ["--model", tiny_folder, "--epochs", 1, "--batch-size", 16, "--rank", 2, "--out", out]
    code, _, told = spiritlevel("train", "sft", "--data", tmp_path / "made.jsonl", *flags)
    assert code == 0, told
    assert (out / "model" / "config.json").exists()
    code, _, told = spiritlevel("train", "dpo", "--data", made, "--model", tiny_folder, "--out", out)
    assert code == 3 and "chosen" in told


def test_documents_that_give_nothing_are_an_error_and_write_nothing(spiritlevel: Run, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Only\n\n## Headings\n")
    code, out, told = spiritlevel("data", "from-docs", tmp_path, "--out", tmp_path / "made.jsonl")
    assert (code, out) == (3, "") and "gave no demonstration" in told and "Traceback" not in told
    assert [path.name for path in tmp_path.iterdir()] == ["a.md"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        ([".", "--charter", "nowhere"], "nowhere: there is no such charter"),
        ([".", "--suite", "nowhere.csv"], "nowhere.csv: No such file"),
        ([".", "--suite", "nowhere"], "nowhere: a suite is read from"),
        ([".", "--encoding", "klingon"], "no encoding 'klingon'"),
    ],
)
def test_bad_input_to_the_command_is_told(
    spiritlevel: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, told = spiritlevel("data", "from-docs", *arguments)
    assert (code, out) == (3, "") and problem in told and "→" in told and "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["pypdf", "bs4", "markdownify"])
def test_without_its_library_a_format_is_refused_before_the_work(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    (tmp_path / ("a.pdf" if missing == "pypdf" else "a.html")).write_bytes(b"x")
    with pytest.raises(SpiritLevelError, match="needs") as told:
        read_documents(tmp_path)
    assert "spiritlevel[documents]" in told.value.remedy
