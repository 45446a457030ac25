"""Demonstrations from a document's own structure: its headings, definitions, tables, lists, rules and examples give the
questions, and its own words the answers. Nothing is invented."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from spiritlevel.chat import Chat, assistant, user
from spiritlevel.data.demonstration import Demonstration
from spiritlevel.data.documents.chunk import SENTENCE_END, Chunk
from spiritlevel.data.documents.document import Block
from spiritlevel.data.documents.markdown import plain_words
from spiritlevel.data.documents.rules import rule_question
from spiritlevel.data.words import count_words

_SECTION = (
    "What does {title} say about {topic}?",
    "What should I know about {topic}, according to {title}?",
    "Tell me what {title} has on {topic}.",
    "I need the part of {title} on {topic}. What does it say?",
    "Quote {title} on {topic}.",
)
_HOW_TO = ("How do I {act}?", "How do I {act}, according to {title}?", "What does {title} say on how to {act}?")
_BEGINNING = ("What is {title} about?", "How does {title} begin?", "Introduce me to {title}.")
_QUESTION = ("{question}", "{question} What does {title} say?", "A question on {title}: {question}")
_GO_ON = ("Please go on.", "What comes next?", "And then?", "What else does it say?")
_LIST = ("What does {title} list on {topic}?", "List what {title} names on {topic}.")
_DEFINITION = (
    "What does {title} mean by {term}?",
    "What is {term}, according to {title}?",
    "Explain {term} as {title} does.",
)
_CELL = ("Which {column} does {title} give for {row}?", "What does {title} say on {row}: which {column}?")
_RULE = ("{question}", "{question} What does {title} say?", "A question on {title}: {question}")
_POINT = ("How does this point of {title} go on: “{beginning} …”?", "Finish this point of {title}: “{beginning} …”")
_EXAMPLE = ("Show me an example of {topic} from {title}.", "What does {topic} look like in code, as {title} has it?")
_EXAMPLE_OF = ("{prose} Show me the example from {title}.", "{prose} How does {title} write that?")

_MARKER = re.compile(r"\A\s*(?:[-*+•‣–]|\(?(?:\d{1,3}|[A-Za-z])[.)])\s+(?:\[[ xX]\]\s+)?")
_TERM_ABOVE = re.compile(r"(?P<term>[^\n]{1,80})\n[ \t]*:[ \t]+(?P<meaning>\S.*)", re.DOTALL)
_TERM_IN_BOLD = re.compile(
    r"(?:\*\*|__)(?P<term>[^*_\n]{1,80}?)(?::(?:\*\*|__)|(?:\*\*|__)\s*(?::|–|—|-(?=\s)))\s+(?P<meaning>\S.*)",
    re.DOTALL,
)
_TERM_IN_CODE = re.compile(r"(?P<term>`[^`\n]{1,80}`)\s*(?::|–|—|-(?=\s))\s+(?P<meaning>\S.*)", re.DOTALL)
_NO_TERM = re.compile(
    r"(?:note|warning|tip|important|example|caution|todo|see also|hint|good|bad|do|don['’]t)s?\W*", re.I
)
_Q, _A = (rf"(?:\*\*)?{word}(?: ?\d+)?[:.)](?:\*\*)?" for word in ("Q(?:uestion)?", "A(?:nswer)?"))
_DIALOGUE = re.compile(
    rf"^{_Q}\s+(?P<question>[^\n]+)\n+\s*{_A}\s+(?P<answer>.+?)\s*(?=\n\s*{_Q}|\Z)", re.DOTALL | re.MULTILINE
)
_DELIMITERS = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*")
_LINK = re.compile(r"\[[^\]]*\]\([^)]*\)")
_FEWEST_WORDS, _FEWEST_LETTERS = 3, 0.25
_SHORTEST_POINT, _LONGEST_LEAD = 6, 40


@dataclass
class Structure:
    """Asks the questions of one document. wordings: in how many ways each is asked, drawn by the place alone."""

    chunks: Sequence[Chunk]
    wordings: int
    dropped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        paths = {chunk.headings for chunk in self.chunks if chunk.headings}
        self._last = Counter(path[-1].casefold() for path in paths)

    def demonstrations(self) -> Iterator[Demonstration]:
        """In the order of the document."""
        before = None
        for chunk in self.chunks:
            yield from self._sections(chunk, before)
            yield from self._dialogues(chunk)
            yield from self._definitions(chunk)
            yield from self._cells(chunk)
            yield from self._lists(chunk)
            yield from self._rules(chunk)
            yield from self._examples(chunk)
            before = chunk

    def _sections(self, chunk: Chunk, before: Chunk | None) -> Iterator[Demonstration]:
        """The heading asks, all that stands under it answers; a later part of a long section goes on from the one
        before."""
        answer = chunk.body_text
        if reason := _says_nothing(answer):
            self.dropped[f"chunk: {reason}"] += 1
            return
        heading = _bare(chunk.headings[-1]) if chunk.headings else ""
        if chunk.part and before is not None and before.body_text:
            (question,) = self._worded(chunk, *self._heading_question(chunk, heading), count=1)
            (go_on,) = self._worded(chunk, _GO_ON, {}, count=1)
            yield self._made(chunk, "section", [user(question), assistant(before.body_text), user(go_on)], answer)
            return
        kind = "question" if heading.endswith("?") else "section"
        for question in self._worded(chunk, *self._heading_question(chunk, heading)):
            yield self._made(chunk, kind, question, answer)

    def _heading_question(self, chunk: Chunk, heading: str) -> tuple[Sequence[str], dict[str, str]]:
        """Wordings and what to put into them."""
        if heading.endswith("?"):
            return _QUESTION, {"question": heading}
        if not heading or heading.casefold() == chunk.document.title.casefold():
            return _BEGINNING, {}
        if match := re.fullmatch(r"how to (\w.*)", heading, re.IGNORECASE):
            return _HOW_TO, {"act": match[1]}
        return _SECTION, {"topic": self._topic(chunk)}

    def _dialogues(self, chunk: Chunk) -> Iterator[Demonstration]:
        """Q: and A:."""
        for match in _DIALOGUE.finditer(chunk.body_text):
            question = plain_words(match["question"].strip("* "))
            for words in self._worded(chunk, _QUESTION, {"question": question}):
                yield self._made(chunk, "question", words, match["answer"])

    def _definitions(self, chunk: Chunk) -> Iterator[Demonstration]:
        """A term in bold type or code with a colon or dash behind it, or above a line that a colon begins."""
        for block, words in _prose(chunk):
            if match := _definition(words):
                term = plain_words(match["term"])
                for question in self._worded(chunk, _DEFINITION, {"term": term}, salt=term):
                    yield self._made(chunk, "definition", question, match["meaning"].strip(), block)

    def _cells(self, chunk: Chunk) -> Iterator[Demonstration]:
        """Each cell of a table, by its row's first cell and its column's head."""
        for block in chunk.body:
            if block.kind != "table":
                continue
            columns, rows = _table(chunk.document.of(block))
            labels = Counter(row[0] for row in rows)
            for row in rows:
                label = plain_words(row[0])
                for column, cell in zip(columns[1:], row[1:], strict=False):
                    if label and column and re.search(r"\w", cell) and labels[row[0]] == 1:
                        values = {"column": plain_words(column), "row": label}
                        for question in self._worded(chunk, _CELL, values, salt=f"{label} {column}", count=1):
                            yield self._made(chunk, "table", question, cell, block)

    def _lists(self, chunk: Chunk) -> Iterator[Demonstration]:
        """A list that is not all of its section."""
        if not chunk.headings or chunk.part:
            return
        for is_item, run in groupby(chunk.body, lambda block: block.kind == "item"):
            items = list(run)
            if is_item and 2 <= len(items) < len(chunk.body):
                answer = chunk.document.text[items[0].start : items[-1].end].strip()
                values = {"topic": self._topic(chunk)}
                for question in self._worded(chunk, _LIST, values, salt=answer, count=1):
                    yield self._made(chunk, "list", question, answer, items[0])

    def _rules(self, chunk: Chunk) -> Iterator[Demonstration]:
        """What a list or a paragraph says to do; of any other point of a list, its beginning asks for the whole."""
        for block, words in _prose(chunk):
            # What leads on to a list or an example is cut before it does.
            answer = SENTENCE_END.split(words, maxsplit=1)[0] if words.endswith(":") else words
            if question := rule_question(plain_words(answer), chunk.document):
                for asked in self._worded(chunk, _RULE, {"question": question}, salt=answer):
                    yield self._made(chunk, "rule", asked, answer, block)
            elif block.kind == "item" and (beginning := _beginning(answer)):
                for asked in self._worded(chunk, _POINT, {"beginning": beginning}, salt=answer, count=1):
                    yield self._made(chunk, "point", asked, answer, block)

    def _examples(self, chunk: Chunk) -> Iterator[Demonstration]:
        """A code block, asked for by the sentence in front of it or by its heading."""
        for before, block in zip([None, *chunk.body], chunk.body, strict=False):
            if block.kind != "code":
                continue
            prose = ""
            if before is not None and before.kind in ("paragraph", "item"):
                prose = plain_words(_without_marker(chunk, before)).rstrip(":.") + "."
            if prose and len(prose.split()) <= _LONGEST_LEAD:
                wordings, values = _EXAMPLE_OF, {"prose": prose}
            elif chunk.headings:
                wordings, values = _EXAMPLE, {"topic": self._topic(chunk)}
            else:
                continue
            code = chunk.document.of(block)
            for question in self._worded(chunk, wordings, values, salt=code, count=1):
                yield self._made(chunk, "example", question, code, block)

    def _topic(self, chunk: Chunk) -> str:
        """The heading, with the one above where it alone would not tell which section is meant."""
        heading = re.sub(r"^How to\b", "how to", _bare(chunk.headings[-1]))
        above = [_bare(words) for words in chunk.headings[:-1] if words.casefold() != chunk.document.title.casefold()]
        return f"{above[-1]}: {heading}" if above and self._last[chunk.headings[-1].casefold()] > 1 else heading

    def _worded(
        self, chunk: Chunk, wordings: Sequence[str], values: dict[str, str], *, salt: str = "", count: int | None = None
    ) -> list[str]:
        """`count` of the wordings, always the same for the same place in the same document."""
        drawn = random.Random(f"{chunk.digest} {salt} {wordings[0]}").sample(wordings, len(wordings))
        values = values | {"title": chunk.document.title}
        return [wording.format(**values) for wording in drawn[: count or self.wordings]]

    def _made(
        self, chunk: Chunk, kind: str, question: str | Chat, answer: str, block: Block | None = None
    ) -> Demonstration:
        place = chunk.provenance(block)
        return Demonstration.of(
            question,
            answer,
            source="document",
            author=f"document:{chunk.document.name}",
            why=f"{kind}: {place['heading'] or chunk.document.title}",
            provenance=place | {"kind": kind},
        )


def _bare(heading: str) -> str:
    """Without its number, and the signs that page generators set behind it."""
    return re.sub(r"^(?:(?:\d+\.)+\d*|\d+\))\s+", "", heading.rstrip(" ¶#:"))


def _says_nothing(answer: str) -> str:
    """Why a text is no answer; empty if it may be one."""
    if count_words(answer) < _FEWEST_WORDS:
        return "fewer than three words under its heading"
    letters = sum(mark.isalpha() for mark in answer)
    return "figures rather than words" if letters < _FEWEST_LETTERS * len("".join(answer.split())) else ""


def _prose(chunk: Chunk) -> Iterator[tuple[Block, str]]:
    """Paragraphs and points of lists, with their words."""
    for block in chunk.body:
        if block.kind in ("paragraph", "item"):
            yield block, _without_marker(chunk, block)


def _definition(words: str) -> re.Match[str] | None:
    match = _TERM_IN_BOLD.match(words) or _TERM_IN_CODE.match(words) or _TERM_ABOVE.match(words)
    return None if match is None or _NO_TERM.fullmatch(match["term"]) else match


def _beginning(point: str) -> str:
    """The first half of a point, at most eight words; empty for a short one, a link or a definition."""
    words = plain_words(point).split()
    if len(words) < _SHORTEST_POINT or _LINK.fullmatch(point) or _definition(point):
        return ""
    return " ".join(words[: min(8, len(words) // 2)])


def _without_marker(chunk: Chunk, block: Block) -> str:
    words = chunk.document.of(block)
    return _MARKER.sub("", words, count=1).strip() if block.kind == "item" else words.strip()


def _table(text: str) -> tuple[list[str], list[list[str]]]:
    """(heads of the columns, rows) of a table in pipes; none if it has no heads, as the later part of a long one."""
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) < 3 or not _DELIMITERS.fullmatch(lines[1]):
        return [], []
    return _row(lines[0]), [_row(line) for line in lines[2:]]


def _row(line: str) -> list[str]:
    inner = line.strip().removeprefix("|")
    inner = inner[:-1] if inner.endswith("|") and not inner.endswith("\\|") else inner
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", inner)]
