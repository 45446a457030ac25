"""HTML as Markdown, by Beautiful Soup and markdownify, so that both have their structure read in one way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spiritlevel.data.documents.document import Block, Parsed, UnreadableError
from spiritlevel.data.documents.markdown import markdown_blocks
from spiritlevel.errors import SpiritLevelError

# What a page says to a browser, or says on every page of a site.
_NO_CONTENT = ["script", "style", "noscript", "template", "svg", "iframe", "form", "button", "nav", "aside", "footer"]
_HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
_NEED = "pip install 'spiritlevel[documents]', or convert it to Markdown or text."


def require_html() -> None:
    """Raises SpiritLevelError if what reads HTML is not installed."""
    try:
        import bs4  # noqa: F401
        import markdownify  # noqa: F401
    except ImportError:
        raise SpiritLevelError("reading HTML needs beautifulsoup4 and markdownify", remedy=_NEED) from None


def declared_encoding(data: bytes) -> str | None:
    """What the page says of its own encoding."""
    from bs4.dammit import EncodingDetector

    return EncodingDetector.find_declared_encoding(data, is_html=True)


def read_html(source: str) -> Parsed:
    """The page's words as Markdown. A heading's place is its line in the source, and so is that of all blocks under it.

    Raises UnreadableError if it is nested too deeply or is no page at all.
    """
    try:
        return _read(source)
    except (RecursionError, ValueError, AssertionError) as error:  # what the two libraries raise then
        raise UnreadableError(f"damaged HTML: {type(error).__name__}") from None


def _read(source: str) -> Parsed:
    from bs4 import BeautifulSoup, Comment
    from markdownify import MarkdownConverter

    soup = BeautifulSoup(source, "html.parser")
    name = soup.h1 or soup.title  # a title often has the site's name too
    title = name.get_text().rstrip(" \n¶#") if name else ""
    for tag in soup.find_all([*_NO_CONTENT, "head", "title"]):
        tag.extract()
    for comment in soup.find_all(string=lambda string: isinstance(string, Comment)):
        comment.extract()
    content: Any = soup.find("main") or soup.find("article") or soup.body or soup
    for summary in content.find_all("summary"):  # of a question that unfolds
        summary.name = "h6"
    lines = [tag.sourceline or 1 for tag in content.find_all(_HEADINGS) if tag.get_text(strip=True)]
    converter = MarkdownConverter(
        heading_style="atx",
        bullets="-",
        strip=["a", "img"],  # their addresses are no words
        escape_asterisks=False,
        escape_underscores=False,
        table_infer_header=True,
        code_language_callback=_language,
    )
    text = str(converter.convert_soup(content)).strip("\n")
    return Parsed(title, text, _placed(markdown_blocks(text), lines))


def _language(tag: Any) -> str | None:
    """Of a code block, from the class `language-NAME` that highlighters look for."""
    code = tag.find("code") or tag
    names = [name.removeprefix("language-") for name in code.get("class") or [] if name.startswith("language-")]
    return names[0] if names else None


def _placed(blocks: list[Block], lines: list[int]) -> list[Block]:
    """Blocks with the line of the heading that they stand under, 1 before the first."""
    known = sum(block.kind == "heading" and block.level <= len(_HEADINGS) for block in blocks) == len(lines)
    upcoming, line, placed = iter(lines), 1, []
    for block in blocks:
        if known and block.kind == "heading" and block.level <= len(_HEADINGS):
            line = next(upcoming)
        placed.append(replace(block, place=line))
    return placed
