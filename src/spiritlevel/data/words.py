"""What a word is: Chinese and Japanese set no spaces between theirs, so each of their signs counts as one."""

from __future__ import annotations

import re

# To stand inside the brackets of a regular expression.
SIGNS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# A "word" of a thousand letters is not one to a tokenizer.
WORD = re.compile(rf"[{SIGNS}]|[^\s{SIGNS}]{{1,24}}")


def count_words(text: str) -> int:
    """Words, about as a tokenizer would see them: a sign of Chinese or Japanese is one, a very long word several."""
    return len(WORD.findall(text))
