"""The blocks of a Markdown text (CommonMark with tables), by markdown-it-py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from spiritlevel.data.documents.document import Block, BlockKind, Start, blocks_between

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_LONGEST = 5000  # of what is parsed for inline markup: hostile nesting takes quadratic time
_QUESTION_LEVEL = 7  # below all of Markdown's own
# Only block structure is parsed: inline markup of a whole document would cost most of the time, for nothing.
_BLOCKS = MarkdownIt("commonmark").enable("table").disable(["inline", "text_join"])
_INLINE = MarkdownIt("commonmark")
_KINDS: dict[str, BlockKind] = {
    "fence": "code",
    "code_block": "code",
    "table_open": "table",
    "html_block": "markup",
    "hr": "markup",
}


def split_front_matter(text: str) -> tuple[str, str]:
    """(title or "", the text with its YAML front matter blanked, so that line numbers stay true)."""
    match = _FRONT_MATTER.match(text)
    if match is None:
        return "", text
    try:
        fields = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return "", text
    if not isinstance(fields, dict):
        return "", text
    title = fields.get("title")
    return title.strip() if isinstance(title, str) else "", "\n" * match[0].count("\n") + text[match.end() :]


def markdown_blocks(text: str) -> list[Block]:
    """Blocks from one start to the next, so that they cover the whole text."""
    starts = list(_starts(_BLOCKS.parse(text)))
    if not starts:
        starts = [Start(0, "paragraph")]
    if starts[0].line > 0:
        starts.insert(0, Start(0, "markup"))  # what shows nowhere: the targets of links
    return blocks_between(text, starts)


def _starts(tokens: list[Token]) -> Iterator[Start]:
    """Each line that starts a block, once; what lies deeper in a list or a quotation stands for itself."""
    last, item = -1, None
    for token, following in pairwise([*tokens, None]):
        assert token is not None
        if token.type == "list_item_open":
            item = token.map[0] if token.map else None
            continue
        start = _start(token, following, item)
        if start is not None and start.line > last:
            last = start.line
            yield start
        if token.type != "inline":
            item = None


def _start(token: Token, following: Token | None, item: int | None) -> Start | None:
    """item: the line of the list item whose first block this is, if it is."""
    if token.map is None:
        return None
    line = token.map[0] if item is None else item
    if token.type in _KINDS:
        return Start(line, _KINDS[token.type])
    if token.type not in ("heading_open", "paragraph_open"):
        return None
    content = following.content if following is not None and following.type == "inline" else ""
    if token.type == "heading_open" and token.level == 0:
        return Start(line, "heading", int(token.tag[1:]), plain_words(content))
    if item is not None:
        return Start(line, "item")
    if token.level == 0 and (question := _bold_question(content)):
        return Start(line, "heading", _QUESTION_LEVEL, question)
    return Start(line, "paragraph")


def plain_words(content: str) -> str:
    """One line of Markdown without its markup."""
    (inline,) = _INLINE.parseInline(content[:_LONGEST])
    words = []
    for token in inline.children or []:
        if token.type in ("text", "code_inline", "image"):
            words.append(token.content)
        elif token.type in ("softbreak", "hardbreak"):
            words.append(" ")
    return " ".join("".join(words).split())


def _bold_question(content: str) -> str:
    """The words of a paragraph that is one question in bold type, as many FAQs write their headings; else ""."""
    match = re.fullmatch(r"\*\*([^*\n]+\?)\*\*|__([^_\n]+\?)__", content.strip())
    return plain_words(match[1] or match[2]) if match else ""
